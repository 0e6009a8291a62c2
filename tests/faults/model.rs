//! Several nodes and a Redis between them, against a model so simple that it is plainly right: random commands through
//! every door, clients that come and go, and connections, Redis and nodes that fail meanwhile, all from a seed.
//!
//! While nothing is in trouble all is exact: what a command answers, what stands in Redis, who is subscribed to what, what
//! any node says, and what each client hears, in order. In trouble a change that is not known to be done is repeated until
//! it is, as the contract says that it may; a message may be lost, but it does not come twice or late. When the trouble is
//! over all is exact again within a time; and when all clients have left, nothing is left of them.
//!
//! A seed that fails is run again with fewer and fewer steps, and printed with those that it takes.
//! `MODEL_SEED=<seed>` runs one seed alone, `MODEL_SEEDS=<count>` so many.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Node};
use crate::proxy::Proxy;
use crate::redis::{Connection, Redis, Reply};
use crate::world::{is_chaos, saw};

/// All is exact again within this after a short trouble.
const SOON: Duration = Duration::from_secs(10);

const UIDS: usize = 3;
const GROUPS: usize = 3;

type Outcome<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}

// --- what is done ----------------------------------------------------------------------------------------------------

/// One of the clients, whoever that is when it comes to it.
type Place = usize;

/// Some of few, by their bits.
type Some = usize;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Bind { client: Place, uid: usize, single: bool },
    Unbind { client: Place, only: Option<usize> },
    Join { client: Place, groups: Some },
    Leave { client: Place, groups: Some },
    SetSession { client: Place, value: usize },
    UpdateSession { client: Place, key: usize, value: Option<usize> },
    JoinUid { uid: usize, groups: Some },
    LeaveUid { uid: usize, groups: Some },
    Ungroup { group: usize },
    Close { client: Place, with_message: bool },
    CloseUid { uids: Some },
    Destroy { client: Place },
    SendToAll { but: Some, confirm: bool },
    SendToSome { clients: Some, confirm: bool },
    SendToClient { client: Place, confirm: bool },
    SendToUid { uids: Some, confirm: bool },
    SendToGroup { groups: Some, but: Some, but_uids: Some, confirm: bool },
}

impl Act {
    fn is_send(&self) -> bool {
        use Act::{SendToAll, SendToClient, SendToGroup, SendToSome, SendToUid};
        matches!(
            self,
            SendToAll { .. } | SendToSome { .. } | SendToClient { .. } | SendToUid { .. } | SendToGroup { .. }
        )
    }

    /// The client that it is about.
    fn subject_mut(&mut self) -> Option<&mut Place> {
        match self {
            Self::Bind { client, .. }
            | Self::Unbind { client, .. }
            | Self::Join { client, .. }
            | Self::Leave { client, .. }
            | Self::SetSession { client, .. }
            | Self::UpdateSession { client, .. }
            | Self::Close { client, .. }
            | Self::Destroy { client }
            | Self::SendToClient { client, .. } => Some(client),
            _ => None,
        }
    }

    fn subject(&self) -> Option<Place> {
        self.clone().subject_mut().copied()
    }

    /// The one client that it changes.
    fn changes(&self) -> Option<Place> {
        use Act::{Bind, Join, Leave, SetSession, Unbind, UpdateSession};
        match self {
            Bind { client, single: false, .. }
            | Unbind { client, .. }
            | Join { client, .. }
            | Leave { client, .. }
            | SetSession { client, .. }
            | UpdateSession { client, .. } => Some(*client),
            _ => None,
        }
    }
}

/// Where a command goes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Api(usize),
    /// `mg:cmd`.
    Channel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One connection to Redis is killed: a subscriber or one for commands.
    KillOne {
        subscriber: bool,
        place: usize,
    },
    KillAll,
    /// All connections of one node are cut, or everybody's.
    Cut {
        node: Option<usize>,
    },
    /// For so many ms a node, or all, cannot reach Redis.
    Outage {
        node: Option<usize>,
        time: u64,
    },
    /// Redis is another process with the same data.
    Restart,
    /// Redis is another process with what was last saved.
    Crash,
    /// Redis is another process without data.
    Empty,
    Flush,
    /// Nothing is lost, all takes longer.
    Slow {
        time: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Connect {
        nodes: Vec<usize>,
    },
    /// Clients go by themselves, with a close frame or without.
    Go {
        clients: Vec<(Place, bool)>,
    },
    Do {
        act: Act,
        door: Door,
    },
    Batch {
        acts: Vec<Act>,
        door: Door,
    },
    /// Changes of different clients.
    AtOnce {
        acts: Vec<(Act, usize)>,
    },
    /// Two clients are both to be the only one of a uid, at once.
    Duel {
        clients: (Place, Place),
        uid: usize,
        doors: (usize, usize),
    },
    /// A message from a program that knows nothing but Redis.
    PublishAll,
    PublishUid {
        uid: usize,
    },
    PublishGroup {
        group: usize,
    },
    PublishClient {
        client: Place,
    },
    Ask {
        node: usize,
        what: usize,
    },
    Save,
    Fault {
        fault: Fault,
        after: u64,
    },
    /// Waits until the trouble is over.
    Settle,
    /// A node stops, and another one takes its place.
    Replace {
        node: usize,
    },
    /// A node dies; another one takes its place at once or when it was swept, with its name or a new one.
    Die {
        node: usize,
        at_once: bool,
        same_name: bool,
    },
}

/// What runs are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fast,
    /// Nodes die, or are alone for so long that others take them for dead.
    Slow,
}

/// Numerical Recipes' generator: a seed names a whole run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn place(&mut self) -> Place {
        self.roll(1 << 20)
    }

    fn some(&mut self, of: usize) -> Some {
        self.roll(1 << of)
    }

    fn steps(seed: u64, kind: Kind) -> Vec<Step> {
        let mut dice = Self(seed);
        dice.roll(1);
        let mut steps: Vec<Step> = (0..3).map(|node| Step::Connect { nodes: vec![node] }).collect();
        let length = 40 + dice.roll(41);
        let faults = match kind {
            Kind::Fast => [0, 0, 1, 1, 2, 3][dice.roll(6)],
            Kind::Slow => 1,
        };
        let mut until_settled = 0;
        let mut fault_at: BTreeSet<usize> = (0..faults).map(|_| 3 + dice.roll(length - 3)).collect();
        while steps.len() < length {
            if until_settled == 0 && fault_at.first().is_some_and(|at| *at <= steps.len()) {
                fault_at.pop_first();
                let step = dice.fault(kind);
                until_settled = if matches!(step, Step::Replace { .. }) { 0 } else { 2 + dice.roll(10) };
                if matches!(step, Step::Fault { fault: Fault::Crash, .. }) {
                    let at = dice.roll(steps.len());
                    steps.insert(at, Step::Save);
                }
                steps.push(step);
                continue;
            }
            let step = dice.step();
            steps.push(step);
            if until_settled > 0 {
                until_settled -= 1;
                if until_settled == 0 {
                    steps.push(Step::Settle);
                }
            }
        }
        steps
    }

    fn fault(&mut self, kind: Kind) -> Step {
        let node = if self.one_in(2) { Some(self.place()) } else { None };
        if kind == Kind::Slow {
            let (node, at_once, same_name) = (self.place(), self.one_in(2), self.one_in(2));
            return match self.roll(3) {
                0 => {
                    let time = 1000 + self.roll(5000) as u64;
                    Step::Fault { fault: Fault::Outage { node: Some(node), time }, after: 0 }
                }
                _ => Step::Die { node, at_once, same_name },
            };
        }
        let fault = match self.roll(40) {
            0..=13 => Fault::KillOne { subscriber: self.one_in(2), place: self.place() },
            14..=18 => Fault::KillAll,
            19..=25 => Fault::Cut { node },
            26..=30 => Fault::Outage { node, time: 100 + self.roll(200) as u64 },
            31..=32 => Fault::Restart,
            33..=34 => Fault::Crash,
            35 => Fault::Empty,
            36 => Fault::Flush,
            37..=38 => Fault::Slow { time: 1 + self.roll(2) as u64 },
            _ => return Step::Replace { node: self.place() },
        };
        Step::Fault { fault, after: self.roll(8) as u64 }
    }

    fn step(&mut self) -> Step {
        let node = self.place();
        match self.roll(100) {
            0..=7 => Step::Connect { nodes: (0..=self.roll(3)).map(|_| self.place()).collect() },
            8..=11 => Step::Go { clients: (0..=self.roll(2)).map(|_| (self.place(), self.one_in(2))).collect() },
            12..=18 => {
                let acts = (0..=1 + self.roll(5)).map(|_| self.batched()).collect();
                Step::Batch { acts, door: self.door() }
            }
            19..=24 => {
                let acts = (0..=1 + self.roll(5)).map(|_| (self.change(), self.place())).collect();
                Step::AtOnce { acts }
            }
            25..=26 => Step::Duel {
                clients: (self.place(), self.place()),
                uid: self.roll(UIDS),
                doors: (self.place(), self.place()),
            },
            27..=28 => Step::PublishAll,
            29..=31 => Step::PublishUid { uid: self.roll(UIDS) },
            32..=35 => Step::PublishGroup { group: self.roll(GROUPS) },
            36..=37 => Step::PublishClient { client: self.place() },
            38..=45 => Step::Ask { node, what: self.place() },
            46..=72 => Step::Do { act: self.change(), door: self.door() },
            73..=82 => Step::Do { act: self.of_several(), door: self.door() },
            _ => Step::Do { act: self.send(), door: self.door() },
        }
    }

    fn door(&mut self) -> Door {
        if self.one_in(6) { Door::Channel } else { Door::Api(self.place()) }
    }

    fn batched(&mut self) -> Act {
        match self.roll(4) {
            0 => self.send(),
            _ => self.change(),
        }
    }

    fn change(&mut self) -> Act {
        let client = self.place();
        match self.roll(12) {
            0..=2 => Act::Bind { client, uid: self.roll(UIDS), single: self.one_in(5) },
            3 => Act::Unbind { client, only: if self.one_in(2) { Some(self.roll(UIDS)) } else { None } },
            4..=6 => Act::Join { client, groups: self.some(GROUPS) },
            7..=8 => Act::Leave { client, groups: self.some(GROUPS) },
            9 => Act::SetSession { client, value: self.roll(100) },
            _ => {
                let value = (!self.one_in(3)).then(|| self.roll(100));
                Act::UpdateSession { client, key: self.roll(3), value }
            }
        }
    }

    fn of_several(&mut self) -> Act {
        let (client, uid) = (self.place(), self.roll(UIDS));
        match self.roll(10) {
            0..=2 => Act::JoinUid { uid, groups: self.some(GROUPS) },
            3 => Act::LeaveUid { uid, groups: self.some(GROUPS) },
            4..=5 => Act::Ungroup { group: self.roll(GROUPS) },
            6..=7 => Act::Close { client, with_message: self.one_in(2) },
            8 => Act::CloseUid { uids: self.some(UIDS) },
            _ => Act::Destroy { client },
        }
    }

    fn send(&mut self) -> Act {
        let confirm = self.one_in(4);
        let but = if self.one_in(2) { self.some(8) } else { 0 };
        match self.roll(10) {
            0 => Act::SendToAll { but, confirm },
            1 => Act::SendToSome { clients: self.some(8), confirm },
            2..=3 => Act::SendToClient { client: self.place(), confirm },
            4..=6 => Act::SendToUid { uids: self.some(UIDS), confirm },
            _ => {
                let but_uids = if self.one_in(3) { self.some(UIDS) } else { 0 };
                Act::SendToGroup { groups: self.some(GROUPS), but, but_uids, confirm }
            }
        }
    }
}

fn bits(some: Some) -> impl Iterator<Item = usize> {
    (0..usize::BITS as usize).filter(move |bit| some >> bit & 1 == 1)
}

// --- where it is done ------------------------------------------------------------------------------------------------

/// A node in a runtime of its own: when that is shut down, nothing of the node runs any further.
struct Member {
    node: Node,
    node_id: String,
    run: String,
    proxy: Arc<Proxy>,
    runtime: Option<Runtime>,
}

impl Member {
    async fn start(redis: &Redis, proxy: Arc<Proxy>, node_id: &str, ttl: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (url, id, ttl) = (proxy.url(), node_id.to_owned(), ttl.to_owned());
        let node = runtime.spawn(async move {
            Node::start_with(&[
                ("MOONGATE_REDIS_URL", &*url),
                ("MOONGATE_NODE_ID", &id),
                ("MOONGATE_NODE_TTL", &ttl),
                ("MOONGATE_PING_INTERVAL", "0s"),
            ])
            .await
        });
        let node = node.await.unwrap();
        let mut member = Self { node, node_id: node_id.to_owned(), run: String::new(), proxy, runtime: Some(runtime) };
        let ready = timeout(SOON, async {
            while member.node.ready().await.0 != 200 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(ready.await.is_ok(), "{node_id} is not ready: {:?}", member.node.ready().await);
        member.run = redis.command(&["HGET", "{mg:nodes}:runs", node_id]).await.string();
        member
    }

    /// As a crash would.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Nodes and their Redis; they serve many runs, one after the other.
struct World {
    redis: Arc<Redis>,
    members: Vec<Member>,
    ttl: &'static str,
    /// Nodes that were ever started, for their names.
    started: usize,
    control: Connection,
    foreign: Option<Connection>,
}

impl World {
    async fn start(kind: Kind, nodes: usize) -> Self {
        let redis = Arc::new(Redis::start().await);
        let control = redis.connection().await;
        let ttl = if kind == Kind::Slow { "2s" } else { "15s" };
        let mut world = Self { redis, members: Vec::new(), ttl, started: 0, control, foreign: None };
        for _ in 0..nodes {
            let proxy = Arc::new(Proxy::start(world.redis.address()).await);
            let name = world.next_name();
            let member = Member::start(&world.redis, proxy, &name, ttl).await;
            world.members.push(member);
        }
        world
    }

    fn next_name(&mut self) -> String {
        self.started += 1;
        format!("node-{}", self.started)
    }

    /// What stands in Redis, and who listens to what, as far as clients can notice it.
    async fn state(&mut self) -> Outcome<State> {
        let state = timeout(Duration::from_secs(2), read_state(&mut self.control)).await;
        match state {
            Ok(Ok(state)) => Ok(state),
            _ => {
                self.control = self.redis.connection().await;
                Err("Redis does not answer".to_owned())
            }
        }
    }

    /// How many heard it; none when that is not known.
    async fn publish(&mut self, channel: &str, payload: &str, may_connect: bool) -> Option<i64> {
        let mut foreign = match self.foreign.take() {
            Some(foreign) => foreign,
            None if may_connect => self.redis.connection().await,
            None => return None,
        };
        match timeout(SOON, foreign.try_command(&["PUBLISH", channel, payload])).await {
            Ok(Ok(Reply::Int(heard))) => {
                self.foreign = Some(foreign);
                Some(heard)
            }
            _ => None,
        }
    }
}

/// Names, and what is under them.
type State = BTreeMap<String, BTreeSet<String>>;

async fn read_state(redis: &mut Connection) -> std::io::Result<State> {
    let first: [&[&str]; 5] = [
        &["KEYS", "*"],
        &["PUBSUB", "CHANNELS"],
        &["PUBSUB", "NUMPAT"],
        &["CLIENT", "LIST"],
        &["HGETALL", "{mg:nodes}:runs"],
    ];
    for command in first {
        redis.send(command).await;
    }
    let mut replies = Vec::new();
    for _ in first {
        replies.push(redis.try_reply().await?);
    }
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap();
    let (keys, channels, patterns) = (next().names(), next().names(), next().int());
    let connections = connections(&next().string());
    let runs: Vec<String> = next().list().into_iter().map(Reply::string).collect();

    let mut state = State::new();
    state.insert("patterns".to_owned(), [patterns.to_string()].into());
    state.insert("connections".to_owned(), [connections.len().to_string()].into());
    let subscribers = connections.iter().filter(|(_, subscriber)| *subscriber).count();
    state.insert("subscribers".to_owned(), [subscribers.to_string()].into());
    let mut asked = Vec::new();
    for key in &keys {
        let command: &[&str] = match key.as_str() {
            "mg:nodes" => &["ZRANGE", key, "0", "-1"],
            "{mg:nodes}:lan" => &["HVALS", key],
            "{mg:nodes}:runs" => &["HKEYS", key],
            // The queue stays, whoever is there.
            "mg:tasks" => continue,
            key if key.starts_with("{mg:nodes}:sw") => continue,
            key if key.starts_with("mg:node:") => &["HGET", key, "none"],
            key if key.starts_with("mg:clients:") => &["HGETALL", key],
            key if key.starts_with("mg:client:") && !key.ends_with(":groups") => &["HGETALL", key],
            key => &["SMEMBERS", key],
        };
        redis.send(command).await;
        asked.push(key.as_str());
    }
    let mut count = vec!["PUBSUB", "NUMSUB"];
    count.extend(channels.iter().map(String::as_str));
    redis.send(&count).await;
    for key in asked {
        let values: Vec<String> = match redis.try_reply().await? {
            Reply::List(list) => list.into_iter().map(Reply::string).collect(),
            _ => Vec::new(),
        };
        let run = key.strip_prefix("mg:clients:");
        let owner = run.and_then(|run| runs.chunks(2).find(|pair| pair[1] == run)).map(|pair| pair[0].as_str());
        let (name, values) = if let Some(run) = run {
            let name = format!("index of {}", owner.unwrap_or(run));
            (name, values.chunks(2).map(|pair| index_entry(&pair[0], &pair[1])).collect())
        } else if key.starts_with("mg:client:") && !key.ends_with(":groups") {
            let pairs = values.chunks(2).filter(|pair| !["ip", "connected_at"].contains(&pair[0].as_str()));
            (key.to_owned(), pairs.map(|pair| format!("{}={}", pair[0], compact(&pair[1]))).collect())
        } else {
            (key.to_owned(), values.into_iter().collect())
        };
        state.insert(name, values);
    }
    let counts = redis.try_reply().await?.list();
    for pair in counts.chunks(2) {
        let (channel, count) = (pair[0].clone().string(), pair[1].clone().int());
        let name =
            if channel.starts_with("mg.lan:") { "channels mg.lan:*".to_owned() } else { format!("channel {channel}") };
        state.entry(name).or_default().insert(count.to_string());
    }
    Ok(state)
}

/// A client in a node's index, with its groups in order.
fn index_entry(id: &str, names: &str) -> String {
    let mut names: Vec<Option<String>> = serde_json::from_str(names).unwrap();
    names[1..].sort();
    format!("{id}={}", json!(names))
}

/// JSON objects in one order.
fn compact(value: &str) -> String {
    if value.starts_with('{') { serde_json::from_str::<Value>(value).unwrap().to_string() } else { value.to_owned() }
}

/// The nodes' connections, and which of them subscribe; the tests' own come by the unix socket.
fn connections(list: &str) -> Vec<(String, bool)> {
    let field = |line: &str, name: &str| -> String {
        line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
    };
    let tcp = list.lines().filter(|line| field(line, "addr").starts_with("127.0.0.1:"));
    tcp.map(|line| (field(line, "id"), field(line, "psub") != "0")).collect()
}

/// Something breaks, and is whole again when this is over; nodes may need longer.
async fn strike(fault: Fault, after: u64, redis: Arc<Redis>, proxies: Vec<Arc<Proxy>>) {
    sleep(Duration::from_millis(after)).await;
    let of = |node: Option<usize>| -> Vec<&Arc<Proxy>> {
        match node {
            Some(node) => vec![&proxies[node % proxies.len()]],
            None => proxies.iter().collect(),
        }
    };
    match fault {
        Fault::KillOne { .. } | Fault::KillAll => {
            let mut connection = redis.connection().await;
            let list = connection.command(&["CLIENT", "LIST"]).await.string();
            let mut victims = connections(&list);
            if let Fault::KillOne { subscriber, place } = fault {
                victims.retain(|(_, subscribes)| *subscribes == subscriber);
                victims = victims.into_iter().cycle().skip(place % 16).take(1).collect();
            }
            for (id, _) in victims {
                connection.command(&["CLIENT", "KILL", "ID", &id]).await;
            }
        }
        Fault::Cut { node } => of(node).into_iter().for_each(|proxy| proxy.cut()),
        Fault::Outage { node, time } => {
            of(node).into_iter().for_each(|proxy| proxy.refuse());
            sleep(Duration::from_millis(time)).await;
            of(node).into_iter().for_each(|proxy| proxy.pass());
        }
        Fault::Restart => redis.restart().await,
        Fault::Crash => {
            redis.stop();
            redis.start_again().await;
        }
        Fault::Empty => redis.restart_empty().await,
        Fault::Flush => drop(redis.command(&["FLUSHALL"]).await),
        Fault::Slow { time } => proxies.iter().for_each(|proxy| proxy.slow(Duration::from_millis(time))),
    }
}

// --- the model, and a run --------------------------------------------------------------------------------------------

/// A message that a client is to hear, or may.
struct Expected {
    text: String,
    must: bool,
}

/// What one client is and hears, as the contract says.
struct Seen {
    client: Client,
    node: usize,
    uid: Option<usize>,
    groups: BTreeSet<usize>,
    session: Option<BTreeMap<String, usize>>,
    expected: Vec<Expected>,
    heard: Vec<String>,
    /// Those that it may be closed with, where 1006 is no close frame; none while it is there.
    closed: Option<BTreeSet<u16>>,
    /// Whether its end was seen.
    over: bool,
    /// Its node has died, or may be taken for dead.
    doomed: bool,
    /// It went in trouble: what it hears until its node notices is not its own any more.
    went: bool,
}

impl Seen {
    fn is_online(&self) -> bool {
        self.closed.is_none()
    }

    fn end(&mut self, code: u16) {
        if self.closed.is_none() {
            (self.uid, self.session) = (None, None);
            self.groups.clear();
            let mut codes = BTreeSet::from([code]);
            if self.doomed {
                codes.extend([1012, 1006]);
            }
            self.closed = Some(codes);
        }
    }
}

/// Something is wrong, or was a moment ago.
#[derive(Default)]
struct Trouble {
    faults: Vec<JoinHandle<()>>,
    /// Redis may have lost data: until nodes have noticed, what it says means nothing.
    lost: bool,
    /// Clients that may be in Redis or not.
    vague: BTreeSet<Place>,
    /// How often nodes had compared with Redis before.
    compared: Option<Vec<f64>>,
    /// A node that may be taken for dead.
    alone: Option<usize>,
    /// A node is dead, and others may not have noticed yet.
    dead: bool,
}

struct Run<'w> {
    world: &'w mut World,
    seed: u64,
    clients: Vec<Seen>,
    trouble: Option<Trouble>,
    saved: bool,
    probes: usize,
    calls: usize,
    /// What was said to everyone of late: somebody who comes now may still hear it.
    said_to_all: Vec<String>,
}

/// Whether it was there does not matter.
fn discard(_: bool) {}

fn uid_name(seed: u64, uid: usize) -> String {
    format!("s{seed}u{uid}")
}

fn group_name(seed: u64, group: usize) -> String {
    format!("s{seed}g{group}")
}

/// Not known to be done.
fn is_unknown(answer: &Value) -> bool {
    ["redis_unavailable", "node_unreachable"].iter().any(|code| answer["code"] == *code)
}

const NOT_FOUND: &str = "client_not_found";

impl<'w> Run<'w> {
    fn new(world: &'w mut World, seed: u64) -> Self {
        Self {
            world,
            seed,
            clients: Vec::new(),
            trouble: None,
            saved: false,
            probes: 0,
            calls: 0,
            said_to_all: Vec::new(),
        }
    }

    async fn all(&mut self, steps: &[Step]) -> Outcome {
        for (number, step) in steps.iter().enumerate() {
            let done = self.step(number, step).await;
            done.map_err(|error| format!("step {number}, {step:?}: {error}"))?;
        }
        self.settle().await.map_err(|error| format!("at the end: {error}"))?;
        self.farewell().await.map_err(|error| format!("when all clients leave: {error}"))
    }

    // --- who there is ---

    fn nodes(&self) -> usize {
        self.world.members.len()
    }

    fn node(&self, place: usize) -> &Node {
        &self.world.members[place % self.world.members.len()].node
    }

    fn online(&self) -> impl Iterator<Item = Place> {
        self.clients.iter().enumerate().filter(|(_, seen)| seen.is_online()).map(|(place, _)| place)
    }

    /// Mostly one that is there.
    fn pick(&self, place: Place) -> Option<Place> {
        let online: Vec<Place> = self.online().collect();
        if place % 16 == 0 || online.is_empty() {
            return (!self.clients.is_empty()).then(|| (place / 16) % self.clients.len());
        }
        Some(online[(place / 16) % online.len()])
    }

    fn id(&self, place: Place) -> &str {
        &self.clients[place].client.id
    }

    fn ids(&self, places: &[Place]) -> Vec<String> {
        places.iter().map(|place| self.id(*place).to_owned()).collect()
    }

    fn is_exact(&self) -> bool {
        self.trouble.is_none()
    }

    /// Nothing is about to happen to Redis.
    fn has_redis(&self) -> bool {
        self.trouble.as_ref().is_none_or(|trouble| trouble.faults.iter().all(JoinHandle::is_finished))
    }

    fn is_vague(&self, place: Place) -> bool {
        self.clients[place].doomed || self.trouble.as_ref().is_some_and(|trouble| trouble.vague.contains(&place))
    }

    // --- steps ---

    async fn step(&mut self, number: usize, step: &Step) -> Outcome {
        let text = format!("{}.{number}", self.seed);
        match step {
            Step::Connect { nodes } => self.connect(nodes).await?,
            Step::Go { clients } => self.go(clients).await?,
            Step::Do { act, door } => self.act(act, *door, &text).await?,
            Step::Batch { acts, door } => self.batch(acts, *door, &text).await?,
            Step::AtOnce { acts } => self.at_once(acts).await?,
            Step::Duel { clients, uid, doors } => self.duel(*clients, *uid, *doors).await?,
            Step::PublishAll => self.publish("mg:all".to_owned(), &text, |_, _| true).await?,
            Step::PublishUid { uid } => {
                let name = format!("mg:uid:{}", uid_name(self.seed, *uid));
                self.publish(name, &text, |_, seen| seen.uid == Some(*uid)).await?;
            }
            Step::PublishGroup { group } => {
                let name = format!("mg:group:{}", group_name(self.seed, *group));
                self.publish(name, &text, |_, seen| seen.groups.contains(group)).await?;
            }
            Step::PublishClient { client } => {
                let Some(client) = self.pick(*client) else { return Ok(()) };
                let name = format!("mg:client:{}", self.id(client));
                self.publish(name, &text, |place, _| place == client).await?;
            }
            Step::Ask { node, what } => self.ask(*node, *what).await?,
            Step::Save => {
                if self.is_exact() {
                    self.world.redis.save().await;
                    self.saved = true;
                }
            }
            Step::Fault { fault, after } => self.fault(*fault, *after).await?,
            Step::Settle => self.settle().await?,
            Step::Replace { node } => self.replace(*node).await?,
            Step::Die { node, at_once, same_name } => self.die(*node, *at_once, *same_name).await?,
        }
        let changes = !matches!(step, Step::Ask { .. } | Step::Save | Step::Fault { .. } | Step::Settle);
        if self.is_exact() && changes {
            if number % 3 == 0 {
                self.agrees_at_once().await?;
            } else {
                self.ask(number, number / 3).await?;
            }
        }
        Ok(())
    }

    async fn connect(&mut self, nodes: &[usize]) -> Outcome {
        let alone = self.trouble.as_ref().and_then(|trouble| trouble.alone);
        let places: Vec<usize> =
            nodes.iter().map(|node| node % self.nodes()).filter(|node| Some(*node) != alone).collect();
        let room = 10_usize.saturating_sub(self.online().count());
        let places = &places[..places.len().min(room)];
        let connected = join_all(places.iter().map(|place| self.node(*place).connect())).await;
        for (client, node) in connected.into_iter().zip(places) {
            let (groups, heard) = <_>::default();
            let expected = self.said_to_all.iter().map(|text| Expected { text: text.clone(), must: false }).collect();
            let seen = Seen {
                client,
                node: *node,
                uid: None,
                groups,
                session: None,
                expected,
                heard,
                closed: None,
                over: false,
                doomed: false,
                went: false,
            };
            if let Some(trouble) = &mut self.trouble {
                trouble.vague.insert(self.clients.len());
            }
            self.clients.push(seen);
        }
        Ok(())
    }

    async fn go(&mut self, clients: &[(Place, bool)]) -> Outcome {
        for (client, politely) in clients {
            let Some(place) = self.pick(*client).filter(|place| self.clients[*place].is_online()) else { continue };
            let seen = &mut self.clients[place];
            // What was sent just before may or may not come before the end.
            for expected in &mut seen.expected[seen.heard.len()..] {
                expected.must = false;
            }
            seen.expected.iter_mut().for_each(|expected| expected.must = false);
            let closing = if *politely {
                seen.client.socket.close(None).await.map_err(|error| format!("a close frame: {error}"))
            } else {
                use tokio::io::AsyncWriteExt as _;
                // An end without a close frame.
                seen.client.socket.get_mut().shutdown().await.map_err(|error| format!("an end: {error}"))
            };
            if let (Err(error), false) = (&closing, seen.doomed) {
                return Err(error.clone());
            }
            // The answer to our frame; an end of ours is answered with none.
            seen.end(if *politely { 1005 } else { 1006 });
            seen.closed.get_or_insert_default().extend([1005, 1006]);
            if let Some(trouble) = &mut self.trouble {
                trouble.vague.insert(place);
                seen.went = true;
            }
        }
        if self.is_exact() { self.agrees_soon(SOON).await } else { Ok(()) }
    }

    /// One command.
    async fn act(&mut self, act: &Act, door: Door, text: &str) -> Outcome {
        let Some(act) = &self.resolve(act) else { return Ok(()) };
        let (op, fields) = self.command(act, text);
        match door {
            Door::Api(node) if self.is_exact() => {
                let expected = self.perform(act, text, true);
                let answer = self.node(node).call(op, fields.clone()).await;
                ensure!(fits(&answer, &expected), "{op} {fields} was answered with {answer} and not {expected}");
            }
            Door::Api(node) => self.troubled_act(act, op, &fields, node, text).await?,
            Door::Channel => {
                let mut command = fields.clone();
                command["op"] = json!(op);
                self.say_command(&command).await?;
                if self.is_exact() || act.is_send() {
                    self.perform(act, text, self.is_exact());
                } else {
                    self.troubled_act(act, op, &fields, self.calls, text).await?;
                }
                if self.is_exact() && !act.is_send() {
                    self.agrees_soon(SOON).await?;
                }
            }
        }
        Ok(())
    }

    /// A command on `mg:cmd`.
    async fn say_command(&mut self, command: &Value) -> Outcome {
        let heard = self.world.publish("mg:cmd", &command.to_string(), self.has_redis()).await;
        ensure!(!self.is_exact() || heard == Some(self.nodes() as i64), "mg:cmd was heard by {heard:?}");
        Ok(())
    }

    /// In trouble a change is repeated until it is done; a send is not.
    async fn troubled_act(&mut self, act: &Act, op: &str, fields: &Value, node: usize, text: &str) -> Outcome {
        if act.is_send() {
            // Whatever came of it.
            let answer = self.node(node).call(op, fields.clone()).await;
            ensure!(is_unknown(&answer) || answer["result"].is_object(), "{op} {fields} was answered with {answer}");
            self.perform(act, text, false);
            return Ok(());
        }
        let started = Instant::now();
        for attempt in 0.. {
            self.calls += 1;
            let answer = self.node(node + attempt).call(op, fields.clone()).await;
            let misled = self.is_misled(act, &answer);
            if misled {
                self.until_compared().await?;
            }
            if !is_unknown(&answer) && !misled {
                return self.troubled_answer(act, &answer, text).map_err(|error| format!("{op} {fields} {error}"));
            }
            ensure!(started.elapsed() < SOON * 2, "{op} {fields} was not done for {:?}: {answer}", started.elapsed());
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Where Redis has lost who there is, a node may not know that another one is there.
    fn is_misled(&self, act: &Act, answer: &Value) -> bool {
        let is_there = act.subject().is_some_and(|place| self.clients[place].is_online() && !self.is_vague(place));
        let lost = self.trouble.as_ref().is_some_and(|trouble| trouble.compared.is_some());
        lost && is_there && (answer["code"] == NOT_FOUND || answer["result"]["nodes"] == 0)
    }

    async fn batch(&mut self, acts: &[Act], door: Door, text: &str) -> Outcome {
        let named = |place: usize| format!("{text}.{place}");
        // A batch that is not known to be done is repeated: then it must not matter that a part of it was done.
        let exact = self.is_exact();
        let may_repeat = |act: &&Act| exact || act.is_send() || act.changes().is_some();
        let Some(mut acts) = acts.iter().filter(may_repeat).map(|act| self.resolve(act)).collect::<Option<Vec<Act>>>()
        else {
            return Ok(());
        };
        if door == Door::Channel {
            // There each node goes on with its clients without waiting for the others: who is the later one, nobody knows.
            for act in &mut acts {
                if let Act::Bind { single, .. } = act {
                    *single = false;
                }
            }
        }
        let commands = acts.iter().enumerate().map(|(place, act)| {
            let (op, mut fields) = self.command(act, &named(place));
            fields["op"] = json!(op);
            fields
        });
        let mut body = json!({"commands": commands.collect::<Vec<_>>()});
        let answers = match door {
            Door::Api(node) => self.node(node).call("batch", body).await["results"].clone(),
            Door::Channel => {
                body["op"] = json!("batch");
                self.say_command(&body).await?;
                Value::Null
            }
        };
        let answer = |place: usize| match &answers[place]["error"] {
            Value::Null => answers[place].clone(),
            error => error.clone(),
        };
        if exact {
            for (place, act) in acts.iter().enumerate() {
                let expected = self.perform(act, &named(place), exact);
                let fits = answers.is_null() || fits(&answer(place), &expected);
                ensure!(fits, "{act:?} in a batch was answered with {} and not {expected}", answer(place));
            }
            return if door == Door::Channel { self.agrees_soon(SOON).await } else { Ok(()) };
        }
        // Whom a message is for depends on what was done before it.
        for (place, _) in acts.iter().enumerate().filter(|(_, act)| act.is_send()) {
            for seen in self.clients.iter_mut().filter(|seen| seen.is_online()) {
                seen.expected.push(Expected { text: named(place), must: false });
            }
        }
        let changes = || acts.iter().enumerate().filter(|(_, act)| !act.is_send());
        let again = answers.is_null() || changes().any(|(place, _)| is_unknown(&answer(place)));
        for (place, act) in changes() {
            let (op, fields) = self.command(act, "");
            if again {
                self.troubled_act(act, op, &fields, self.calls, "").await?;
            } else {
                self.troubled_answer(act, &answer(place), "")
                    .map_err(|error| format!("{op} {fields} in a batch {error}"))?;
            }
        }
        Ok(())
    }

    /// In trouble this was answered, not by "not known"; the model does it. Whoever may be gone may be not found, and the
    /// other way round.
    fn troubled_answer(&mut self, act: &Act, answer: &Value, text: &str) -> Outcome {
        let expected = self.perform(act, text, false);
        let is_vague = act.subject().is_some_and(|place| self.is_vague(place));
        // How many nodes it was that a repeated close found.
        let is_done = answer["result"].is_object() && expected["result"].is_object();
        ensure!(fits(answer, &expected) || is_done || is_vague, "was answered with {answer} and not {expected}");
        Ok(())
    }

    async fn at_once(&mut self, acts: &[(Act, usize)]) -> Outcome {
        let mut taken = BTreeSet::new();
        let mut chosen = Vec::new();
        for (act, node) in acts.iter().filter(|(act, _)| act.changes().is_some()) {
            let Some(act) = self.resolve(act) else { continue };
            if taken.insert(act.subject()) {
                let (op, fields) = self.command(&act, "");
                chosen.push((act, *node, op, fields));
            }
        }
        let calls = chosen.iter().map(|(_, node, op, fields)| self.node(*node).call(op, fields.clone()));
        for ((act, node, op, fields), answer) in chosen.iter().zip(join_all(calls).await) {
            if !self.is_exact() && (is_unknown(&answer) || self.is_misled(act, &answer)) {
                self.troubled_act(act, op, fields, node + 1, "").await?;
                continue;
            }
            self.troubled_answer(act, &answer, "").map_err(|error| format!("{op} {fields} {error}"))?;
        }
        Ok(())
    }

    async fn duel(&mut self, clients: (Place, Place), uid: usize, doors: (usize, usize)) -> Outcome {
        let (Some(one), Some(other)) = (self.pick(clients.0), self.pick(clients.1)) else { return Ok(()) };
        let online = |place: Place| self.clients[place].is_online();
        if !self.is_exact() || one == other || !online(one) || !online(other) {
            return Ok(());
        }
        let name = uid_name(self.seed, uid);
        let bind = |place: Place| json!({"client_id": self.id(place), "uid": name, "single": true});
        let (one_done, other_done) = tokio::join!(
            self.node(doors.0).call("bindUid", bind(one)),
            self.node(doors.1).call("bindUid", bind(other)),
        );
        for answer in [&one_done, &other_done] {
            ensure!(answer["result"] == true || answer["code"] == NOT_FOUND, "a duel was answered with {answer}");
        }
        let stays = self.node(doors.1).ask("getClientIdByUid", json!({"uid": name})).await;
        let winner = [one, other].into_iter().find(|place| stays == json!([self.id(*place)]));
        let Some(winner) = winner else {
            let ids = [self.id(one), self.id(other)];
            return Err(format!("{ids:?} bound at once: {one_done}, {other_done}; then the uid has {stays}"));
        };
        for (place, seen) in self.clients.iter_mut().enumerate() {
            if place == winner {
                seen.uid = Some(uid);
            } else if place == one || place == other || seen.uid == Some(uid) {
                seen.end(4001);
            }
        }
        self.agrees_at_once().await
    }

    async fn publish(&mut self, channel: String, text: &str, is_meant: impl Fn(Place, &Seen) -> bool) -> Outcome {
        let must = self.is_exact();
        if channel == "mg:all" {
            self.said_to_all.push(text.to_owned());
        }
        let mut nodes = BTreeSet::new();
        for (place, seen) in self.clients.iter_mut().enumerate() {
            if seen.is_online() && is_meant(place, seen) {
                nodes.insert(seen.node);
                seen.expected.push(Expected { text: text.to_owned(), must });
            }
        }
        let heard = self.world.publish(&channel, text, self.has_redis()).await;
        let mut expected = vec![Some(nodes.len() as i64)];
        if channel.starts_with("mg:client:") && nodes.is_empty() {
            // Its node, if it is still there, hears it all the same.
            expected.push(Some(1));
        }
        ensure!(!must || expected.contains(&heard), "{channel} was heard by {heard:?} and not {expected:?}");
        Ok(())
    }

    // --- the commands ---

    /// A command with the client that it is about; none where there is none.
    fn resolve(&self, act: &Act) -> Option<Act> {
        let mut act = act.clone();
        if let Some(client) = act.subject_mut() {
            *client = self.pick(*client)?;
        }
        // Redis says who the others are; when it has forgotten, nobody knows.
        if let (Act::Bind { single, .. }, Some(Trouble { lost: true, .. })) = (&mut act, &self.trouble) {
            *single = false;
        }
        Some(act)
    }

    /// A command as it is said.
    fn command(&self, act: &Act, text: &str) -> (&'static str, Value) {
        let uids = |some: Some| -> Vec<String> { bits(some).map(|uid| uid_name(self.seed, uid)).collect() };
        let groups = |some: Some| -> Vec<String> { bits(some).map(|group| group_name(self.seed, group)).collect() };
        let id = |client: &Place| self.id(*client);
        let send = |op, mut fields: Value, confirm: bool| {
            fields["message"] = json!(text);
            if confirm {
                fields["confirm"] = json!(true);
            }
            (op, fields)
        };
        match act {
            Act::Bind { client, uid, single } => {
                ("bindUid", json!({"client_id": id(client), "uid": uid_name(self.seed, *uid), "single": single}))
            }
            Act::Unbind { client, only: Some(uid) } => {
                ("unbindUid", json!({"client_id": id(client), "uid": uid_name(self.seed, *uid)}))
            }
            Act::Unbind { client, only: None } => ("unbindUid", json!({"client_id": id(client)})),
            Act::Join { client, groups: some } => {
                ("joinGroup", json!({"client_id": id(client), "group": groups(*some)}))
            }
            Act::Leave { client, groups: some } => {
                ("leaveGroup", json!({"client_id": id(client), "group": groups(*some)}))
            }
            Act::SetSession { client, value } => {
                ("setSession", json!({"client_id": id(client), "session": {"set": value}}))
            }
            Act::UpdateSession { client, key, value } => {
                let session = json!({format!("k{key}"): value});
                ("updateSession", json!({"client_id": id(client), "session": session}))
            }
            Act::JoinUid { uid, groups: some } => {
                ("joinGroup", json!({"uid": uid_name(self.seed, *uid), "group": groups(*some)}))
            }
            Act::LeaveUid { uid, groups: some } => {
                ("leaveGroup", json!({"uid": uid_name(self.seed, *uid), "group": groups(*some)}))
            }
            Act::Ungroup { group } => ("ungroup", json!({"group": group_name(self.seed, *group)})),
            Act::Close { client, with_message: true } => {
                ("closeClient", json!({"client_id": id(client), "code": 3000, "message": text}))
            }
            Act::Close { client, with_message: false } => {
                ("closeClient", json!({"client_id": id(client), "code": 3000}))
            }
            Act::CloseUid { uids: some } => ("closeUid", json!({"uid": uids(*some), "code": 3001})),
            Act::Destroy { client } => ("destroyClient", json!({"client_id": id(client)})),
            Act::SendToAll { but: 0, confirm } => send("sendToAll", json!({}), *confirm),
            Act::SendToAll { but, confirm } => {
                send("sendToAll", json!({"exclude": self.ids(&self.few(*but))}), *confirm)
            }
            Act::SendToSome { clients, confirm } => {
                send("sendToAll", json!({"client_ids": self.ids(&self.few(*clients))}), *confirm)
            }
            Act::SendToClient { client, confirm } => send("sendToClient", json!({"client_id": id(client)}), *confirm),
            Act::SendToUid { uids: some, confirm } => match &uids(*some)[..] {
                [uid] => send("sendToUid", json!({"uid": uid}), *confirm),
                uids => send("sendToUid", json!({"uid": uids}), *confirm),
            },
            Act::SendToGroup { groups: some, but, but_uids, confirm } => {
                let mut fields = json!({"group": groups(*some)});
                if *but != 0 {
                    fields["exclude"] = json!(self.ids(&self.few(*but)));
                }
                if *but_uids != 0 {
                    fields["exclude_uid"] = json!(uids(*but_uids));
                }
                send("sendToGroup", fields, *confirm)
            }
        }
    }

    /// Clients by their bits: some of the last eight.
    fn few(&self, some: Some) -> Vec<Place> {
        let first = self.clients.len().saturating_sub(8);
        bits(some).map(|bit| first + bit).filter(|place| *place < self.clients.len()).collect()
    }

    /// Does to the model what a command does, and says its answer. A message `must` arrive, or may.
    fn perform(&mut self, act: &Act, text: &str, must: bool) -> Value {
        let seed = self.seed;
        let subject = act.subject();
        let is_there = subject.is_some_and(|place| self.clients[place].is_online());
        let found = if is_there { json!({"result": true}) } else { json!({"code": NOT_FOUND}) };
        let one = |run: &mut Self, change: &mut dyn FnMut(&mut Seen)| {
            if let (Some(place), true) = (subject, is_there) {
                change(&mut run.clients[place]);
            }
        };
        let all = |run: &mut Self, change: &mut dyn FnMut(&mut Seen)| {
            run.clients.iter_mut().filter(|seen| seen.is_online()).for_each(change);
        };
        match act {
            Act::Bind { uid, single, .. } => {
                one(self, &mut |seen| seen.uid = Some(*uid));
                for (place, seen) in self.clients.iter_mut().enumerate() {
                    if *single && is_there && Some(place) != subject && seen.uid == Some(*uid) {
                        seen.end(4001);
                    }
                }
                found
            }
            Act::Unbind { only, .. } => {
                one(self, &mut |seen| seen.uid = seen.uid.filter(|uid| only.is_some_and(|only| only != *uid)));
                found
            }
            Act::Join { groups, .. } => {
                one(self, &mut |seen| seen.groups.extend(bits(*groups)));
                found
            }
            Act::Leave { groups, .. } => {
                one(self, &mut |seen| bits(*groups).for_each(|group| discard(seen.groups.remove(&group))));
                found
            }
            Act::SetSession { value, .. } => {
                one(self, &mut |seen| seen.session = Some([("set".to_owned(), *value)].into()));
                found
            }
            Act::UpdateSession { key, value, .. } => {
                one(self, &mut |seen| {
                    let (session, key) = (seen.session.get_or_insert_default(), format!("k{key}"));
                    match value {
                        Some(value) => drop(session.insert(key, *value)),
                        None => drop(session.remove(&key)),
                    }
                });
                found
            }
            Act::JoinUid { uid, groups } => {
                all(self, &mut |seen| {
                    if seen.uid == Some(*uid) {
                        seen.groups.extend(bits(*groups));
                    }
                });
                json!({"result": true})
            }
            Act::LeaveUid { uid, groups } => {
                all(self, &mut |seen| {
                    if seen.uid == Some(*uid) {
                        bits(*groups).for_each(|group| discard(seen.groups.remove(&group)));
                    }
                });
                json!({"result": true})
            }
            Act::Ungroup { group } => {
                all(self, &mut |seen| discard(seen.groups.remove(group)));
                json!({"result": true})
            }
            Act::Close { with_message, .. } => {
                one(self, &mut |seen| {
                    if *with_message {
                        seen.expected.push(Expected { text: text.to_owned(), must });
                    }
                    seen.end(3000);
                });
                json!({"result": {"nodes": usize::from(is_there)}})
            }
            Act::Destroy { .. } => {
                one(self, &mut |seen| {
                    // It ends at once.
                    seen.expected.iter_mut().for_each(|expected| expected.must = false);
                    seen.end(1006);
                });
                json!({"result": {"nodes": usize::from(is_there)}})
            }
            Act::CloseUid { uids } => {
                let mut nodes = BTreeSet::new();
                all(self, &mut |seen| {
                    if seen.uid.is_some_and(|uid| bits(*uids).any(|named| named == uid)) {
                        nodes.insert(seen.node);
                        seen.end(3001);
                    }
                });
                json!({"result": {"nodes": nodes.len()}})
            }
            Act::SendToAll { but, confirm } => {
                let but = self.few(*but);
                self.said_to_all.push(text.to_owned());
                self.deliver(text, must, *confirm, |_, _| true, |place, _| !but.contains(&place))
            }
            Act::SendToSome { clients, confirm } => {
                let named = self.few(*clients);
                self.deliver(text, must, *confirm, |place, _| named.contains(&place), |_, _| true)
            }
            Act::SendToClient { confirm, .. } => {
                self.deliver(text, must, *confirm, |place, _| Some(place) == subject, |_, _| true)
            }
            Act::SendToUid { uids, confirm } => {
                let is_named = |uid: usize| bits(*uids).any(|named| named == uid);
                let held: BTreeSet<usize> = self.clients.iter().filter_map(|seen| seen.uid).collect();
                let named = |_: Place, seen: &Seen| seen.uid.is_some_and(is_named);
                let mut answer = self.deliver(text, must, *confirm, named, |_, _| true);
                if bits(*uids).count() != 1 {
                    let offline = bits(*uids).filter(|uid| !held.contains(uid)).map(|uid| uid_name(seed, uid));
                    answer["result"]["offline"] = json!(offline.collect::<Vec<_>>());
                }
                answer
            }
            Act::SendToGroup { groups, but, but_uids, confirm } => {
                let but = self.few(*but);
                let named = |_: Place, seen: &Seen| bits(*groups).any(|group| seen.groups.contains(&group));
                let meant = |place: Place, seen: &Seen| {
                    !but.contains(&place) && !seen.uid.is_some_and(|uid| bits(*but_uids).any(|but| but == uid))
                };
                self.deliver(text, must, *confirm, named, meant)
            }
        }
    }

    /// A message to those who are named and meant.
    fn deliver(
        &mut self,
        text: &str,
        must: bool,
        confirm: bool,
        is_named: impl Fn(Place, &Seen) -> bool,
        is_meant: impl Fn(Place, &Seen) -> bool,
    ) -> Value {
        let (mut nodes, mut took) = (BTreeSet::new(), 0);
        for (place, seen) in self.clients.iter_mut().enumerate() {
            if !seen.is_online() || !is_named(place, seen) {
                continue;
            }
            nodes.insert(seen.node);
            if is_meant(place, seen) {
                took += 1;
                seen.expected.push(Expected { text: text.to_owned(), must });
            }
        }
        let mut result = json!({"nodes": nodes.len()});
        if confirm {
            result["clients"] = json!(took);
        }
        json!({ "result": result })
    }

    // --- questions ---

    /// Asks a node something; in trouble it may not know, but it does not say what is wrong.
    async fn ask(&mut self, node: usize, what: usize) -> Outcome {
        let groups: Vec<String> = (0..GROUPS).map(|group| group_name(self.seed, group)).collect();
        let uids: Vec<String> = (0..UIDS).map(|uid| uid_name(self.seed, uid)).collect();
        let one = self.pick(what);
        let id = one.map_or("7f0000010b5400000000", |place| self.id(place));
        let (op, fields) = match what % 14 {
            0 => ("getAllClientSessions", json!({})),
            1 => ("getAllGroupClientIdList", json!({})),
            2 => ("batchGetClientIdByUid", json!({"uid": uids})),
            3 => ("getClientIdListByGroup", json!({"group": groups})),
            4 => ("getClientSessionsByGroup", json!({"group": groups[0]})),
            5 => ("getAllClientIdList", json!({})),
            6 => ("isOnline", json!({"client_id": id})),
            7 => ("getSession", json!({"client_id": id})),
            8 => ("getUidByClientId", json!({"client_id": id})),
            9 => ("getAllUidList", json!({})),
            10 => ("isUidsOnline", json!({"uid": uids})),
            11 => ("batchGetClientIdCountByGroup", json!({"group": groups})),
            12 => ("getAllGroupUidList", json!({})),
            _ => ("getAllClientIdCount", json!({})),
        };
        let answer = self.node(node).call(op, fields.clone()).await;
        if let Some(trouble) = &self.trouble {
            ensure!(is_unknown(&answer) || answer.get("result").is_some(), "{op} was answered with {answer}");
            let someone_is_vague = (0..self.clients.len()).any(|place| self.is_vague(place));
            let about_everyone = what % 14 > 8;
            let about_one = (6..9).contains(&(what % 14)) && one.is_some_and(|one| self.is_vague(one));
            if trouble.lost || is_unknown(&answer) || about_one || (about_everyone && someone_is_vague) {
                return Ok(());
            }
        }
        let expected = self.answer(op, one, &groups, &uids);
        let answer = self.without_vague(sorted(answer["result"].clone()));
        let expected = self.without_vague(sorted(expected));
        ensure!(answer == expected, "{op} {fields} was answered with {answer} and not {expected}");
        Ok(())
    }

    fn answer(&self, op: &str, one: Option<Place>, groups: &[String], uids: &[String]) -> Value {
        let online = || self.clients.iter().filter(|seen| seen.is_online());
        let session = |seen: &Seen| json!(seen.session.clone().unwrap_or_default());
        let one = one.map(|place| &self.clients[place]).filter(|seen| seen.is_online());
        let is_in = |seen: &&Seen, group: usize| seen.groups.contains(&group);
        let sessions = |of: &dyn Fn(&&Seen) -> bool| -> BTreeMap<String, Value> {
            online().filter(of).map(|seen| (seen.client.id.clone(), session(seen))).collect()
        };
        let ids =
            |of: &dyn Fn(&&Seen) -> bool| -> Vec<&str> { online().filter(of).map(|seen| &*seen.client.id).collect() };
        let bound: BTreeSet<&String> = online().filter_map(|seen| Some(&uids[seen.uid?])).collect();
        let by_group = |list: &dyn Fn(usize) -> Value| -> Value {
            let held = (0..GROUPS).filter(|group| online().any(|seen| is_in(&seen, *group)));
            held.map(|group| (groups[group].clone(), list(group))).collect()
        };
        match op {
            "getAllClientSessions" => json!(sessions(&|_| true)),
            "getAllGroupClientIdList" => by_group(&|group| json!(ids(&|seen| is_in(seen, group)))),
            "batchGetClientIdByUid" => {
                (0..UIDS).map(|uid| (uids[uid].clone(), json!(ids(&|seen| seen.uid == Some(uid))))).collect()
            }
            "getClientIdListByGroup" => json!(ids(&|seen| !seen.groups.is_empty())),
            "getClientSessionsByGroup" => json!(sessions(&|seen| is_in(seen, 0))),
            "getAllClientIdList" => json!(ids(&|_| true)),
            "isOnline" => json!(one.is_some()),
            "getSession" => one.map_or(Value::Null, session),
            "getUidByClientId" => json!(one.and_then(|seen| Some(&uids[seen.uid?]))),
            "getAllUidList" => json!(bound),
            "isUidsOnline" => uids.iter().map(|uid| (uid.clone(), json!(bound.contains(uid)))).collect(),
            "batchGetClientIdCountByGroup" => {
                (0..GROUPS).map(|group| (groups[group].clone(), json!(ids(&|seen| is_in(seen, group)).len()))).collect()
            }
            "getAllGroupUidList" => by_group(&|group| {
                let bound: BTreeSet<&String> =
                    online().filter(|seen| is_in(seen, group)).filter_map(|seen| Some(&uids[seen.uid?])).collect();
                json!(bound)
            }),
            _ => json!(online().count()),
        }
    }

    /// Leaves out those of whom it is not known whether they are there, and what holds nobody then.
    fn without_vague(&self, value: Value) -> Value {
        if self.is_exact() {
            return value;
        }
        let is_vague = |id: &str| (0..self.clients.len()).any(|place| self.is_vague(place) && self.id(place) == id);
        match value {
            Value::Array(items) => items.into_iter().filter(|item| !item.as_str().is_some_and(is_vague)).collect(),
            Value::Object(fields) => {
                let fields = fields.into_iter().filter(|(key, _)| !is_vague(key));
                fields
                    .map(|(key, value)| (key, self.without_vague(value)))
                    .filter(|(_, value)| *value != json!([]))
                    .collect()
            }
            other => other,
        }
    }

    // --- agreement ---

    /// What is to be in Redis, and who is to listen.
    fn expected_state(&self) -> State {
        let mut state = State::new();
        let seed = self.seed;
        let nodes = self.nodes();
        let mut put = |name: String, value: String| discard(state.entry(name).or_default().insert(value));
        put("patterns".to_owned(), nodes.to_string());
        // For commands, to hear, to wait for tasks.
        put("connections".to_owned(), (3 * nodes).to_string());
        put("subscribers".to_owned(), nodes.to_string());
        put("channel mg:cmd".to_owned(), nodes.to_string());
        put("channel mg.ask".to_owned(), nodes.to_string());
        put("channels mg.lan:*".to_owned(), "1".to_owned());
        for member in &self.world.members {
            for set in ["mg:nodes", "{mg:nodes}:lan", "{mg:nodes}:runs"] {
                put(set.to_owned(), member.node_id.clone());
            }
        }
        let mut listeners: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for seen in self.clients.iter().filter(|seen| seen.is_online()) {
            let (id, node) = (&seen.client.id, &self.world.members[seen.node].node_id);
            let key = format!("mg:client:{id}");
            listeners.entry("mg:all".to_owned()).or_default().insert(seen.node);
            put(key.clone(), format!("node={node}"));
            let mut names = vec![seen.uid.map(|uid| uid_name(seed, uid))];
            if let Some(uid) = &names[0] {
                put(key.clone(), format!("uid={uid}"));
                put(format!("mg:uid:{uid}:clients"), id.clone());
                listeners.entry(format!("mg:uid:{uid}")).or_default().insert(seen.node);
            }
            for group in seen.groups.iter().map(|group| group_name(seed, *group)) {
                put(format!("{key}:groups"), group.clone());
                put(format!("mg:group:{group}:clients"), id.clone());
                listeners.entry(format!("mg:group:{group}")).or_default().insert(seen.node);
                names.push(Some(group));
            }
            if let Some(session) = &seen.session {
                put(key, format!("session={}", json!(session)));
            }
            put(format!("index of {node}"), format!("{id}={}", json!(names)));
        }
        for (channel, nodes) in listeners {
            put(format!("channel {channel}"), nodes.len().to_string());
        }
        for member in &self.world.members {
            state.insert(format!("mg:node:{}", member.node_id), BTreeSet::new());
        }
        state
    }

    async fn agrees(&mut self) -> Outcome {
        let (state, expected) = (self.world.state().await?, self.expected_state());
        if state == expected {
            return Ok(());
        }
        let mut words = String::new();
        for name in state.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
            let (is, should) = (state.get(name), expected.get(name));
            if is != should {
                write!(words, "\n    {name} is {is:?} and should be {should:?}").unwrap();
            }
        }
        Err(format!("Redis does not agree:{words}"))
    }

    /// But for the connections that wait for tasks: a node that has lost its own has another in a moment.
    async fn agrees_at_once(&mut self) -> Outcome {
        match self.agrees().await {
            Err(error) if error.lines().skip(1).all(|line| line.starts_with("    connections ")) => {
                self.agrees_soon(SOON).await
            }
            agreed => agreed,
        }
    }

    async fn agrees_soon(&mut self, within: Duration) -> Outcome {
        let started = Instant::now();
        loop {
            match self.agrees().await {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > within => {
                    return Err(format!("after {:?}: {error}", started.elapsed()));
                }
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        }
    }

    // --- trouble ---

    async fn compared(&self) -> Vec<f64> {
        join_all(self.world.members.iter().map(|member| member.node.metric("moongate_directory_compared_total"))).await
    }

    async fn fault(&mut self, fault: Fault, after: u64) -> Outcome {
        if let Fault::Slow { .. } = fault {
            return self.strike(fault, after).await.map_err(|error| error.to_string());
        }
        if self.trouble.is_some() {
            self.settle().await?;
        }
        let mut trouble = Trouble::default();
        if fault == Fault::Crash && !self.saved {
            self.world.redis.save().await;
        }
        if matches!(fault, Fault::Restart | Fault::Crash | Fault::Empty | Fault::Flush) {
            trouble.lost = true;
            trouble.compared = Some(self.compared().await);
        }
        if let Fault::Outage { node: Some(node), time } = fault
            && time >= 1000
        {
            let node = node % self.nodes();
            trouble.alone = Some(node);
            self.clients
                .iter_mut()
                .filter(|seen| seen.node == node && seen.is_online())
                .for_each(|seen| seen.doomed = true);
        }
        self.trouble = Some(trouble);
        let strike = self.strike(fault, after);
        self.trouble.as_mut().unwrap().faults.push(strike);
        Ok(())
    }

    fn strike(&self, fault: Fault, after: u64) -> JoinHandle<()> {
        let proxies = self.world.members.iter().map(|member| Arc::clone(&member.proxy)).collect();
        tokio::spawn(strike(fault, after, Arc::clone(&self.world.redis), proxies))
    }

    /// The trouble is over, and soon all is as it should be.
    async fn settle(&mut self) -> Outcome {
        let Some(trouble) = self.trouble.as_mut() else {
            self.world.members.iter().for_each(|member| member.proxy.pass());
            return self.hear().await;
        };
        let alone = trouble.alone;
        let started = Instant::now();
        let within = if alone.is_some() || trouble.dead { SOON * 2 } else { SOON };
        self.until_compared().await?;
        // What is cut is seen to be cut.
        sleep(Duration::from_millis(3)).await;
        self.world.foreign = None;
        for place in 0..self.nodes() {
            while self.node(place).ready().await.0 != 200
                || self.node(place).call("getAllClientIdCount", json!({})).await["result"].is_null()
            {
                ensure!(started.elapsed() < within, "node {place} is not well");
                sleep(Duration::from_millis(5)).await;
            }
        }
        if let Some(alone) = alone {
            self.was_it_swept(alone).await?;
        }
        self.agrees_soon(within).await?;
        self.trouble = None;
        for what in 0..14 {
            self.ask(what, what).await?;
        }
        self.hear().await
    }

    /// What breaks is over; nodes that have noticed that Redis may have lost data have compared.
    async fn until_compared(&mut self) -> Outcome {
        let Some(trouble) = self.trouble.as_mut() else { return Ok(()) };
        for fault in trouble.faults.drain(..) {
            fault.await.map_err(|error| format!("a fault: {error}"))?;
        }
        let Some(before) = trouble.compared.take() else { return Ok(()) };
        let started = Instant::now();
        loop {
            let now = self.compared().await;
            if now.iter().zip(&before).all(|(now, before)| now > before) {
                return Ok(());
            }
            ensure!(started.elapsed() < SOON, "nodes have not compared with Redis: {before:?}, {now:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A node that was alone for long was swept or not; its clients are closed then, or not.
    async fn was_it_swept(&mut self, node: usize) -> Outcome {
        let member = &mut self.world.members[node];
        let run = self.world.redis.command(&["HGET", "{mg:nodes}:runs", &member.node_id]).await;
        let Reply::Text(run) = run else { return Err(format!("{} has no run: {run:?}", member.node_id)) };
        let run = String::from_utf8(run.into()).unwrap();
        let swept = run != member.run;
        member.run = run;
        for seen in self.clients.iter_mut().filter(|seen| seen.doomed) {
            if swept {
                seen.end(1012);
            }
            seen.doomed = false;
        }
        Ok(())
    }

    async fn replace(&mut self, node: usize) -> Outcome {
        if !self.is_exact() {
            self.settle().await?;
        }
        self.hear().await?;
        let place = node % self.nodes();
        self.saved = false;
        for seen in self.clients.iter_mut().filter(|seen| seen.node == place) {
            seen.end(1012);
        }
        let name = self.world.next_name();
        let mut old = self.world.members.remove(place);
        let (proxy, redis) = (Arc::clone(&old.proxy), Arc::clone(&self.world.redis));
        old.node.stop();
        // Its clients see its end only when they read.
        let ends = self.clients.iter_mut().filter(|seen| seen.node == place).map(read_to_the_end);
        for ended in join_all(ends).await {
            ended?;
        }
        let stopped = timeout(SOON, async {
            while self.world.redis.command(&["EXISTS", &format!("mg:node:{}", old.node_id)]).await.int() == 1
                || self.world.redis.command(&["HEXISTS", "{mg:nodes}:runs", &old.node_id]).await.int() == 1
            {
                sleep(Duration::from_millis(2)).await;
            }
        });
        ensure!(stopped.await.is_ok(), "a node that stops has left something");
        old.kill();
        let fresh = Member::start(&redis, proxy, &name, self.world.ttl).await;
        self.world.members.insert(place, fresh);
        self.agrees_soon(SOON).await
    }

    async fn die(&mut self, node: usize, at_once: bool, same_name: bool) -> Outcome {
        if !self.is_exact() {
            self.settle().await?;
        }
        self.hear().await?;
        self.saved = false;
        let place = node % self.nodes();
        let mut old = self.world.members.remove(place);
        let (proxy, redis) = (Arc::clone(&old.proxy), Arc::clone(&self.world.redis));
        let mut trouble = Trouble { dead: true, ..Trouble::default() };
        for (place, seen) in self.clients.iter_mut().enumerate().filter(|(_, seen)| seen.node == place) {
            if seen.is_online() {
                seen.end(1006);
                trouble.vague.insert(place);
            }
        }
        self.trouble = Some(trouble);
        old.kill();
        if !at_once {
            let swept = timeout(SOON, async {
                while redis.command(&["HEXISTS", "{mg:nodes}:runs", &old.node_id]).await.int() == 1 {
                    sleep(Duration::from_millis(2)).await;
                }
            });
            ensure!(swept.await.is_ok(), "nobody has swept after {}", old.node_id);
        }
        let name = if same_name { old.node_id.clone() } else { self.world.next_name() };
        let fresh = Member::start(&redis, proxy, &name, self.world.ttl).await;
        self.world.members.insert(place, fresh);
        Ok(())
    }

    // --- what clients hear ---

    /// Everybody has heard what was to be heard: a message to all comes last.
    async fn hear(&mut self) -> Outcome {
        self.probes += 1;
        let probe = format!("{} probe {}", self.seed, self.probes);
        let act = Act::SendToAll { but: 0, confirm: false };
        self.said_to_all.clear();
        self.act(&act, Door::Api(self.probes), &probe).await?;
        let hears = self.clients.iter_mut().filter(|seen| !seen.over).map(|seen| async {
            if seen.is_online() { read_to(seen, &probe).await } else { read_to_the_end(seen).await }
        });
        for heard in join_all(hears).await {
            heard?;
        }
        for (place, seen) in self.clients.iter_mut().enumerate() {
            compare(seen).map_err(|error| format!("client {place}, {}: {error}", seen.client.id))?;
        }
        Ok(())
    }

    /// All leave, each in its way; nothing is left of them.
    async fn farewell(&mut self) -> Outcome {
        let online: Vec<Place> = self.online().collect();
        for (turn, place) in online.into_iter().enumerate() {
            let id = self.id(place).to_owned();
            let seen = &mut self.clients[place];
            match (turn + self.seed as usize) % 3 {
                0 => {
                    seen.end(4000);
                    let answer = self.node(turn).call("closeClient", json!({"client_id": id})).await;
                    ensure!(answer == json!({"result": {"nodes": 1}}), "closeClient was answered with {answer}");
                    read_to_the_end(&mut self.clients[place]).await?;
                }
                way => {
                    seen.end(1005);
                    if way == 1 {
                        seen.client.socket.close(None).await.map_err(|error| format!("a close frame: {error}"))?;
                    }
                }
            }
        }
        let mut gone: Vec<Seen> = std::mem::take(&mut self.clients);
        gone.clear();
        self.agrees_soon(SOON).await
    }
}

/// An answer is as expected, lists in any order.
fn fits(answer: &Value, expected: &Value) -> bool {
    match expected.get("code") {
        Some(code) => answer["code"] == *code,
        None => sorted(answer.clone()) == sorted(expected.clone()),
    }
}

/// Lists of answers are in no order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(mut items) => {
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, sorted(value))).collect(),
        other => other,
    }
}

async fn next(seen: &mut Seen) -> Outcome<Option<Message>> {
    match timeout(SOON, seen.client.socket.next()).await {
        Ok(Some(Ok(message))) => Ok(Some(message)),
        Ok(_) => Ok(None),
        Err(_) => Err(format!("client {} hears nothing, after {:?}", seen.client.id, seen.heard.last())),
    }
}

/// Reads up to a message.
async fn read_to(seen: &mut Seen, last: &str) -> Outcome {
    loop {
        match next(seen).await? {
            Some(Message::Text(text)) => {
                seen.heard.push(text.as_str().to_owned());
                if text.as_str() == last {
                    return Ok(());
                }
            }
            other => return Err(format!("client {} was to hear {last} and got {other:?}", seen.client.id)),
        }
    }
}

/// Reads up to the close frame, or the end without one.
async fn read_to_the_end(seen: &mut Seen) -> Outcome {
    if seen.over {
        return Ok(());
    }
    let mut code = 1006;
    loop {
        match next(seen).await? {
            Some(Message::Text(text)) => seen.heard.push(text.as_str().to_owned()),
            Some(Message::Close(frame)) => code = frame.map_or(1005, |frame| frame.code.into()),
            Some(other) => return Err(format!("client {} got {other:?}", seen.client.id)),
            None => break,
        }
    }
    seen.over = true;
    let allowed = seen.closed.clone().unwrap_or_default();
    ensure!(allowed.contains(&code), "client {} was closed with {code} and not {allowed:?}", seen.client.id);
    Ok(())
}

/// What it heard is what it was to hear, in order, and nothing twice; what may be lost may be missing.
fn compare(seen: &mut Seen) -> Outcome {
    let distinct: BTreeSet<&String> = seen.heard.iter().collect();
    ensure!(distinct.len() == seen.heard.len(), "it has heard something twice: {:?}", seen.heard);
    if seen.went {
        seen.heard.retain(|text| seen.expected.iter().any(|expected| expected.text == *text));
    }
    let mut heard = seen.heard.iter().peekable();
    for expected in &seen.expected {
        if heard.peek() == Some(&&expected.text) {
            heard.next();
        } else {
            ensure!(!expected.must, "it has not heard {}; it heard {:?}", expected.text, seen.heard);
        }
    }
    ensure!(heard.peek().is_none(), "it should not have heard {:?} here; it heard {:?}", heard.peek(), seen.heard);
    seen.heard.clear();
    seen.expected.clear();
    Ok(())
}

// --- runs ------------------------------------------------------------------------------------------------------------

/// Runs steps in a world that is whole; the world is of no use any more when that fails.
async fn attempt(world: &mut World, seed: u64, steps: &[Step]) -> Outcome {
    let mut run = Run::new(world, seed);
    match AssertUnwindSafe(run.all(steps)).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            Err(words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned())).unwrap_or_default())
        }
    }
}

/// Fewer steps that fail as well, and how: pieces are left out, ever smaller ones, as long as there is time.
async fn shrink(kind: Kind, nodes: usize, seed: u64, mut steps: Vec<Step>, mut error: String) -> (Vec<Step>, String) {
    let until = Instant::now() + Duration::from_mins(2);
    let mut world = World::start(kind, nodes).await;
    let (mut piece, mut at) = (steps.len() / 2, 0);
    while piece > 0 && Instant::now() < until {
        if at >= steps.len() {
            (piece, at) = (piece / 2, 0);
            continue;
        }
        let mut fewer = steps.clone();
        fewer.drain(at..(at + piece).min(steps.len()));
        let mut failed = None;
        // What depends on timing may need more than one attempt.
        for _ in 0..3 {
            failed = attempt(&mut world, seed, &fewer).await.err();
            if failed.is_some() {
                world = World::start(kind, nodes).await;
                break;
            }
        }
        match failed {
            Some(failed) => (steps, error) = (fewer, failed),
            None => at += piece,
        }
    }
    (steps, error)
}

/// Runs many seeds in several worlds at once; returns what went wrong first.
fn run(kind: Kind, worlds: usize, seeds: u64) {
    let number = |name: &str| std::env::var_os(name).map(|value| value.into_string().unwrap().parse::<u64>().unwrap());
    let (first, count) = match number("MODEL_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("MODEL_SEEDS").unwrap_or(seeds)),
    };
    // Even seeds run with two nodes, odd ones with three.
    let next = [AtomicU64::new(first.next_multiple_of(2)), AtomicU64::new(first | 1)];
    let failed = AtomicBool::new(false);
    let failure: Mutex<Option<String>> = Mutex::new(None);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for world in 0..worlds {
            let (next, failed, failure) = (&next[world % 2], &failed, &failure);
            let nodes = 2 + world % 2;
            scope.spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut world = None;
                    loop {
                        let seed = next.fetch_add(2, Ordering::Relaxed);
                        if seed >= first + count || failed.load(Ordering::Relaxed) {
                            return;
                        }
                        let mut there = match world.take() {
                            Some(world) => world,
                            None => World::start(kind, nodes).await,
                        };
                        let steps = Dice::steps(seed, kind);
                        let Err(error) = attempt(&mut there, seed, &steps).await else {
                            world = Some(there);
                            continue;
                        };
                        drop(there);
                        if failed.swap(true, Ordering::Relaxed) {
                            eprintln!("seed {seed} fails, too: {error}");
                            return;
                        }
                        eprintln!("seed {seed} fails with {nodes} nodes: {error}\nlooking for fewer steps …");
                        let of = steps.len();
                        let (steps, error) = shrink(kind, nodes, seed, steps, error).await;
                        let mut words =
                            format!("seed {seed} ({nodes} nodes) fails with {} of its {of} steps:\n", steps.len());
                        for (number, step) in steps.iter().enumerate() {
                            writeln!(words, "  {number}: {step:?}").unwrap();
                        }
                        *failure.lock() = Some(format!("{words}{error}\nrepeat it with MODEL_SEED={seed}"));
                    }
                });
            });
        }
    });
    if let Some(failure) = failure.into_inner() {
        panic!("{failure}");
    }
    saw("model", &format!("{kind:?}: {count} seeds in {:.0?}", started.elapsed()));
}

#[test]
fn whatever_breaks_between_nodes_all_is_as_the_model_says() {
    run(Kind::Fast, 4, if is_chaos() { 600 } else { 300 });
}

#[test]
fn whoever_dies_or_is_taken_for_dead_all_is_as_the_model_says() {
    run(Kind::Slow, 4, if is_chaos() { 48 } else { 24 });
}
