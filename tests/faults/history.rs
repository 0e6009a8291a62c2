//! What was said and what was heard while something went wrong, and whether the two go together.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Caller, Node, eventually};
use crate::redis::{Connection, Redis, Reply};
use crate::world::Ear;

/// Between an answer and the next message.
const PAUSE: Duration = Duration::from_millis(10);

/// One message, which is the name of its source and its number there.
#[derive(Debug, Clone, Copy)]
struct Said {
    asked: Instant,
    /// Somebody was there to hear it, by the answer. What was answered otherwise may or may not arrive.
    is_accepted: bool,
}

/// Messages of one source, one after the other, that were accepted and did not come: when the first and the last of them
/// was said, and how many they are.
#[derive(Debug, Clone, Copy)]
pub struct Missed {
    pub from: Instant,
    pub to: Instant,
    pub count: usize,
}

/// Who says something, and to whom.
enum Source {
    /// A program that publishes to a channel.
    Program(Connection, String),
    /// An application that keeps one connection to a node.
    Application(Caller, &'static str, Value),
}

impl Source {
    /// Whether somebody was there to hear it.
    async fn say(&mut self, text: &str) -> bool {
        match self {
            Self::Program(redis, channel) => redis.publish(channel, text).await > 0,
            Self::Application(caller, op, target) => {
                target["message"] = json!(text);
                let answer = caller.call(op, target.clone()).await;
                assert!(answer["result"].is_object() || answer["code"] == "redis_unavailable", "{op}: {answer}");
                answer["result"]["nodes"].as_u64() > Some(0)
            }
        }
    }
}

/// Sources that speak all the time, each message after the answer to the one before.
#[derive(Default)]
pub struct Load {
    said: Arc<Mutex<BTreeMap<String, Vec<Said>>>>,
    over: Arc<AtomicBool>,
    sources: JoinSet<()>,
}

impl Load {
    /// Its connection to Redis is called `test`.
    pub async fn publish(&mut self, redis: &Redis, name: &str, channel: &str) {
        let mut program = redis.connection().await;
        program.command(&["CLIENT", "SETNAME", "test"]).await;
        self.source(name, Source::Program(program, channel.to_owned()));
    }

    pub async fn call(&mut self, node: &Node, name: &str, op: &'static str, target: Value) {
        self.source(name, Source::Application(node.caller().await, op, target));
    }

    fn source(&mut self, name: &str, mut source: Source) {
        let (name, said, over) = (name.to_owned(), Arc::clone(&self.said), Arc::clone(&self.over));
        self.sources.spawn(async move {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let is_accepted = source.say(&format!("{name} {number}")).await;
                let message = Said { asked, is_accepted };
                said.lock().entry(name.clone()).or_default().push(message);
                number += 1;
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// How many messages there were.
    pub fn count(&self) -> usize {
        self.said.lock().values().map(Vec::len).sum()
    }

    /// Nothing more is said from now on.
    pub async fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        mem::take(&mut self.sources).join_all().await;
    }

    /// What this one heard of these sources is something that was said, in its order and nothing twice. Returns what was
    /// accepted and did not come.
    pub fn missed(&self, ear: &Ear, sources: &[&str]) -> Vec<Missed> {
        let (said, heard) = (self.said.lock(), ear.heard());
        let mut missed = Vec::new();
        for source in sources {
            let said = said.get(*source).map_or(&[][..], Vec::as_slice);
            let mut next = 0;
            let mut skip = |to: usize, next: &mut usize| {
                let lost = said[*next..to].iter().filter(|said| said.is_accepted);
                let count = lost.clone().count();
                if let (Some(first), Some(last)) = (lost.clone().next(), lost.last()) {
                    missed.push(Missed { from: first.asked, to: last.asked, count });
                }
                *next = to + 1;
            };
            for text in &heard {
                let Some(number) = text.strip_prefix(source).and_then(|rest| rest.strip_prefix(' ')) else { continue };
                let number: usize = number.parse().unwrap();
                assert!(number < said.len(), "{text} was never said");
                assert!(number >= next, "{text} came behind {source} {}", next - 1);
                skip(number, &mut next);
            }
            if next < said.len() {
                skip(said.len(), &mut next);
            }
        }
        missed
    }

    /// Each of these has heard all of these sources, in order and once; what is still under way may come.
    pub async fn was_all_heard(&self, ears: &[Ear], sources: &[&str]) {
        eventually("all have heard all", async || ears.iter().all(|ear| self.missed(ear, sources).is_empty())).await;
    }
}

/// The entries of `mg:events`, as names and values.
pub async fn entries(redis: &Redis) -> Vec<BTreeMap<String, String>> {
    let entries = redis.command(&["XRANGE", "mg:events", "-", "+"]).await.list();
    let fields = entries.into_iter().map(|entry| entry.list().remove(1).list());
    let texts = fields.map(|fields| fields.into_iter().map(Reply::string).collect::<Vec<_>>());
    texts.map(|texts| texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()).collect()
}

/// What the stream says of each client is a life: `connect`, then `bound` and `unbound` in turn, then `close`. What is told
/// twice has the same id. Returns how many lives are over.
pub fn lives(entries: &[BTreeMap<String, String>]) -> usize {
    let mut told: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    let mut seqs: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in entries {
        let (client, event) = (told.entry(&entry["client_id"]).or_default(), (&*entry["event"], &*entry["id"]));
        if client.contains(&event) {
            continue;
        }
        client.push(event);
        if let Some(seq) = entry.get("seq") {
            let (uid, seq): (&str, u64) = (&entry["uid"], seq.parse().unwrap());
            assert!(seqs.insert(uid, seq).is_none_or(|before| before < seq), "{uid}: {seq} is not the highest");
        }
    }
    let mut over = 0;
    for (client, events) in told {
        let names: Vec<&str> = events.iter().map(|(name, _)| *name).collect();
        let mut inner = &names[..];
        if let [rest @ .., "close"] = inner {
            (inner, over) = (rest, over + 1);
        }
        let ["connect", inner @ ..] = inner else { panic!("{client}: {names:?}") };
        for (number, name) in inner.iter().enumerate() {
            assert_eq!(*name, ["bound", "unbound"][number % 2], "{client}: {names:?}");
        }
    }
    over
}
