//! What goes on all the time while the master of Redis changes: members of a room who hear all that is said there, clients
//! that are changed again and again, a program that publishes, and applications that send.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{Node, eventually};
use crate::redis::{Connection, Reply};
use crate::world::{Ear, Expected, all_open};

/// The room of all that is said here.
const CHANNEL: &str = "mg:group:room";

/// Groups that clients come to and leave.
const GROUPS: usize = 7;

/// Who was changed all the time is bound to these in the end.
const SETTLED: [&str; 2] = ["settled-0", "settled-1"];

/// Clients of two nodes in one room: three of each that stay what they are, and one of each that is changed.
pub struct Room {
    pub ears: Vec<Ear>,
    /// Theirs, in the same order.
    pub uids: Vec<String>,
    changing: Vec<Ear>,
}

impl Room {
    pub async fn open(nodes: &[Node; 2]) -> Self {
        let mut room = Self { ears: Vec::new(), uids: Vec::new(), changing: Vec::new() };
        for (place, node) in nodes.iter().enumerate() {
            for client in 0..3 {
                let uid = format!("user-{place}-{client}");
                room.ears.push(Ear::member(node, &uid, &["room"]).await);
                room.uids.push(uid);
            }
            room.changing.push(Ear::member(node, &format!("changing-{place}"), &["room"]).await);
        }
        room
    }

    /// Whether all sockets are open.
    pub fn is_open(&self) -> bool {
        all_open(&self.ears) && all_open(&self.changing)
    }

    /// When the load is over: who was changed all the time ends somewhere.
    pub async fn settle(&self, nodes: &[Node; 2]) {
        for ((ear, uid), node) in self.changing.iter().zip(SETTLED).zip(nodes) {
            node.done("bindUid", json!({"client_id": ear.id, "uid": uid})).await;
            for group in 0..GROUPS {
                node.done("leaveGroup", json!({"client_id": ear.id, "group": format!("load-{group}")})).await;
            }
        }
    }

    /// All of them as they are to stand in Redis when they have settled.
    pub fn settled(&self) -> Vec<Expected<'_>> {
        let stayed = self.ears.iter().zip(&self.uids).map(|(ear, uid)| Expected::member(ear, uid, &["room"]));
        let settled = self.changing.iter().zip(SETTLED).enumerate().map(|(place, (ear, uid))| Expected {
            session: Some(json!({"uname": format!("changing-{place}")})),
            ..Expected::member(ear, uid, &["room"])
        });
        stayed.chain(settled).collect()
    }

    /// Of what each speaker has said, every member has heard some, and nothing twice; and what was said under one name in
    /// order. What is said at a replica is heard a moment later, which the next connection may be before: a publisher that
    /// comes to replicas has a name for each connection.
    pub fn has_heard_in_order(&self) {
        for ear in &self.ears {
            let mut heard = BTreeMap::<String, Vec<u64>>::new();
            for text in ear.heard() {
                if let Some((connection, Ok(number))) =
                    text.split_once(' ').map(|(name, number)| (name, number.parse()))
                {
                    heard.entry(connection.to_owned()).or_default().push(number);
                }
            }
            for speaker in ["redis", "http-0", "http-1"] {
                let by_it = heard.iter().filter(|(connection, _)| connection.starts_with(speaker));
                let numbers: Vec<u64> = by_it.flat_map(|(_, numbers)| numbers.iter().copied()).collect();
                assert!(numbers.len() > 10, "{speaker}: {numbers:?}");
                assert_eq!(
                    numbers.iter().collect::<BTreeSet<_>>().len(),
                    numbers.len(),
                    "twice, of {speaker}: {numbers:?}"
                );
            }
            for (connection, numbers) in heard {
                let wrong: Vec<_> = numbers.windows(2).filter(|pair| pair[0] >= pair[1]).collect();
                assert!(wrong.is_empty(), "out of order, of {connection}: {wrong:?}");
            }
        }
    }
}

/// What a publisher has said that somebody heard, and whether it is to stop.
#[derive(Default)]
pub struct Publishing {
    over: AtomicBool,
    heard: AtomicU64,
}

impl Publishing {
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Says one number after another to the room over a connection, under a name that begins with `redis`, until that fails
    /// or nobody hears it there. Returns where they do, if the server says so. What is not known to be done is not said
    /// again.
    pub async fn go_on(
        &self,
        mut connection: Connection,
        command: &str,
        name: &str,
        number: &mut u64,
    ) -> Option<SocketAddr> {
        while !self.is_over() {
            *number += 1;
            let message = format!("{name} {number}");
            let said = [command, CHANNEL, &message];
            match tokio::time::timeout(Duration::from_secs(1), connection.try_command(&said)).await {
                Ok(Ok(Reply::Int(heard))) if heard > 0 => drop(self.heard.fetch_add(1, Ordering::Relaxed)),
                // They may be elsewhere: it may be a replica by now.
                Ok(Ok(Reply::Int(_))) if *number % 20 == 0 => return None,
                Ok(Ok(Reply::Error(error))) if error.starts_with("MOVED ") => {
                    return Some(error.rsplit(' ').next().unwrap().parse().unwrap());
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        None
    }
}

/// A publisher, messages over HTTP, and changes. Each message has its number, and none is said again.
pub struct Load {
    publishing: Arc<Publishing>,
    tasks: JoinSet<()>,
}

impl Load {
    /// The publisher finds its way to Redis by itself. Clients are bound through one node to so many `uids` in turn,
    /// `load-<node>-0` and on: of a uid that comes once, what was lost in a switch is not put right by the next turn.
    pub async fn begin<P: Future<Output = ()> + Send + 'static>(
        nodes: &[Node; 2],
        room: &Room,
        uids: usize,
        publish: impl FnOnce(Arc<Publishing>) -> P,
    ) -> Self {
        let (publishing, mut tasks) = (Arc::<Publishing>::default(), JoinSet::new());
        tasks.spawn(publish(Arc::clone(&publishing)));
        for (place, node) in nodes.iter().enumerate() {
            let (mut sender, over) = (node.caller().await, Arc::clone(&publishing));
            tasks.spawn(async move {
                for number in 0.. {
                    if over.is_over() {
                        return;
                    }
                    let message = format!("http-{place} {number}");
                    // Not known to be done, or done.
                    sender.call("sendToGroup", json!({"group": "room", "message": message})).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            let (mut caller, over) = (node.caller().await, Arc::clone(&publishing));
            let ids: Vec<String> = room.changing.iter().map(|ear| ear.id.clone()).collect();
            tasks.spawn(async move {
                for number in 0.. {
                    if over.is_over() {
                        return;
                    }
                    let (id, uid) = (&ids[number % ids.len()], format!("load-{place}-{}", number % uids));
                    caller.call("bindUid", json!({"client_id": id, "uid": uid})).await;
                    let op = if number % 3 == 0 { "leaveGroup" } else { "joinGroup" };
                    let group = format!("load-{}", number % GROUPS);
                    caller.call(op, json!({"client_id": id, "group": group})).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self { publishing, tasks }
    }

    pub async fn has_said_more(&self) {
        let heard = || self.publishing.heard.load(Ordering::Relaxed);
        let before = heard();
        eventually("the publisher goes on", async || heard() > before + 50).await;
    }

    pub async fn end(mut self) {
        self.publishing.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}
