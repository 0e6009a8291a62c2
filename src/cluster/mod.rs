//! This node among the others, through Redis.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `keys` | every key and channel, one table |
//! | `redis` | connections, commands, errors |
//! | `sentinel` | who says where Redis is, where that may change |
//! | `slots` | Redis Cluster: which master has which keys and channels |
//! | `envelope` | what nodes say to each other |
//! | `bus` | subscribing to what this node holds; publishing, asking, answering |
//! | `listeners` | the same on Redis Cluster, at each master |
//! | `post` | what is said to single nodes, together where it can be |
//! | `directory` | the shared index: written from the hub's journal, read by queries |
//! | `members` | the life of a node among the nodes: its place and lease; `sweep`: judging and sweeping the dead |
//! | `php` | where PHP finds gateways |
//! | `tasks` | the queue of tasks: a stream, and what is kept of each |
//! | `check` | what `moongate check` finds in Redis, with advice |
//! | `scripts/` | Lua, one file per atomic step |
//!
//! Redis is an index of what the hubs hold. Each node writes its own clients, in order, in one pipeline for many clients,
//! and every write may be repeated. A command is answered when hub, Redis and subscription have it.

mod bus;
mod check;
mod directory;
mod envelope;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keys;
mod listeners;
mod members;
mod php;
mod post;
mod redis;
mod sentinel;
mod slots;
mod tasks;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde_json::value::RawValue;
use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use bus::{Heard, Inbox, MAX_PAYLOAD, Said};
pub use check::{Finding, Level, check};
pub use directory::{Entry, Facts};
pub use envelope::{Answer, Back, Do, MAX_PART};
pub use keys::Channel;
pub use php::Php;
pub use tasks::{Hands, Tasks};

use crate::client::Departed;
use crate::config::ClusterConfig;
use crate::event::Origin;
use crate::hub::{Hub, Tailed};
use crate::id::{ClientId, Group, LanAddress, Uid};
use crate::metrics::Metrics;
use crate::vitals::{Monitor, Node};
use bus::Bus;
use directory::{Directory, Reader};
use envelope::MAGIC;
use keys::Keys;
use members::Members;
use post::Post;
use redis::{Address, ConnectError, Link, Place, RedisError};

/// Redis did not do what it was asked, or it is not known whether it did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

impl From<RedisError> for Unavailable {
    fn from(error: RedisError) -> Self {
        Self(error.to_string())
    }
}

/// Among the nodes there is no place for this one: a setting has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {why}")]
pub struct Refused {
    /// The setting.
    pub variable: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// Has what others find at a LAN address listen there, before they are told of it; does nothing where it does so already.
pub type OpenLan = Box<dyn Fn(LanAddress) -> Result<(), CannotListen> + Send + Sync>;

/// Why nothing can listen at a LAN address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CannotListen {
    /// Something else does; at the next port it may be free.
    PortTaken(Refused),
    /// So it is at every port.
    Never(Refused),
}

/// Whether this node is to get new clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It is.
    Ready,
    /// It is, though nobody has Redis.
    WithoutRedis,
    /// It is not, and why.
    Not(&'static str),
}

impl Readiness {
    /// In words, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::WithoutRedis => "ready; Redis is away",
            Self::Not(why) => why,
        }
    }
}

/// What this node is to say of itself, given how it stands among the others: it may be stopping, say.
pub type Standing = Arc<dyn Fn(Readiness) -> Readiness + Send + Sync>;

/// Who this node is among the others; a node that was swept is a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    /// The name others know.
    node_id: String,
    /// This life of that name.
    run: String,
    /// Where PHP reaches it; the first part of its client ids.
    lan: LanAddress,
}

/// What the tasks of the cluster share.
struct Shared {
    keys: Keys,
    link: Link,
    metrics: Arc<Metrics>,
    clock: Clock,
    peers: Peers,
    identity: RwLock<Arc<Identity>>,
    /// Whether this node has a place among the others.
    member: watch::Sender<bool>,
    monitor: Arc<Monitor>,
    standing: Standing,
}

impl Shared {
    fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.read())
    }

    /// Whether this node is to get new clients.
    fn readiness(&self, bus: &Bus) -> Readiness {
        (self.standing)(self.among_others(bus))
    }

    fn among_others(&self, bus: &Bus) -> Readiness {
        if !*self.member.borrow() {
            return Readiness::Not("no place among the nodes yet: the log says why");
        }
        if !bus.has_heard() {
            return Readiness::Not("not subscribed yet");
        }
        if self.peers.speaks_unknown() {
            return Readiness::Not("another node speaks a newer language");
        }
        match (self.link.is_up(), bus.is_deaf()) {
            (false, _) => Readiness::WithoutRedis,
            (true, true) => Readiness::Not("deaf: this node does not hear its own heartbeat"),
            (true, false) => Readiness::Ready,
        }
    }
}

/// Redis' clock, as far as it is known.
#[derive(Default)]
struct Clock(Mutex<Option<(Instant, u64)>>);

impl Clock {
    /// Redis said this time, in ms; it was asked at `asked`.
    fn set(&self, asked: Instant, time: u64) {
        // It read its clock somewhere between question and answer.
        *self.0.lock() = Some((asked + asked.elapsed() / 2, time));
    }

    /// Unix milliseconds, by Redis' clock.
    fn now(&self) -> Option<u64> {
        (*self.0.lock()).map(|(at, time)| time + at.elapsed().as_millis() as u64)
    }
}

/// Nodes that were heard, to tell foreign ones from ours.
#[derive(Default)]
struct Peers {
    /// When first, and when last.
    heard: Mutex<HashMap<String, (Instant, Instant)>>,
    unknown: Mutex<Option<Instant>>,
}

impl Peers {
    fn heard(&self, id: String) {
        let (now, mut heard) = (Instant::now(), self.heard.lock());
        // Somebody who makes up names shall not fill the memory.
        if heard.len() < 10_000 || heard.contains_key(&id) {
            heard.entry(id).or_insert((now, now)).1 = now;
        }
    }

    fn heard_unknown(&self) {
        let before = self.unknown.lock().replace(Instant::now());
        if before.is_none_or(|before| before.elapsed() > Duration::from_mins(1)) {
            tracing::error!("another node speaks a newer language: update this one");
        }
    }

    fn speaks_unknown(&self) -> bool {
        self.unknown.lock().is_some_and(|heard| heard.elapsed() < Duration::from_mins(1))
    }

    /// Nodes that go on speaking under our prefix for so long and are not in our Redis database.
    fn foreign(&self, known: impl Fn(&str) -> bool, patience: Duration) -> Vec<String> {
        let mut heard = self.heard.lock();
        heard.retain(|id, (_, last)| !known(id) && last.elapsed() <= patience.max(members::FACTS) * 2);
        let speaks_on = |(first, last): &(Instant, Instant)| last.duration_since(*first) > patience;
        let foreign: Vec<String> =
            heard.iter().filter(|(_, times)| speaks_on(times)).map(|(id, _)| id.clone()).collect();
        // Said again when as much time has passed again.
        for id in &foreign {
            heard.remove(id);
        }
        foreign
    }
}

/// Waits between attempts: from 20 ms, doubling up to 2 s or less, each with some jitter.
struct Backoff {
    attempts: u32,
    most: Duration,
}

impl Backoff {
    fn up_to(most: Duration) -> Self {
        Self { attempts: 0, most: most.min(Duration::from_secs(2)) }
    }

    fn begin(&mut self) {
        self.attempts = 0;
    }

    fn attempts(&self) -> u32 {
        self.attempts
    }

    fn next(&mut self) -> Duration {
        let step = Duration::from_millis(20 << self.attempts.min(7)).min(self.most);
        self.attempts += 1;
        // A few random bits are enough, and a UUID has them.
        let jitter = uuid::Uuid::new_v4().as_u128() as u32 % 50;
        step + step * jitter / 100
    }
}

/// How many departures may be waiting to be told.
const MOST_DEPARTED: usize = 1024;

/// Where departures are told.
#[derive(Clone)]
struct Tell {
    departed: mpsc::Sender<Departure>,
    untold: Arc<Semaphore>,
}

/// A client that has left, to be told.
pub struct Departure {
    /// What it had.
    pub departed: Departed,
    /// Given back when it is told.
    _untold: OwnedSemaphorePermit,
}

impl Tell {
    fn new() -> (Self, mpsc::Receiver<Departure>) {
        let (departed, told) = mpsc::channel(MOST_DEPARTED);
        (Self { departed, untold: Arc::new(Semaphore::new(MOST_DEPARTED)) }, told)
    }

    /// Hands a departure over; waits while very many are untold.
    async fn tell(&self, departed: Departed) {
        // Neither is ever closed while somebody is here to be told.
        if let Ok(untold) = Arc::clone(&self.untold).acquire_owned().await {
            self.departed.send(Departure { departed, _untold: untold }).await.ok();
        }
    }

    /// Waits for room for so many; none when nobody is told any more.
    async fn room(&self, departures: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.untold).acquire_many_owned(departures as u32).await.ok()
    }

    /// Hands a departure over for which there is room.
    fn tell_now(&self, departed: Departed, untold: OwnedSemaphorePermit) {
        // There are as many places as permits.
        self.departed.try_send(Departure { departed, _untold: untold }).ok();
    }

    /// Waits until all are told.
    async fn all_told(&self) {
        drop(self.untold.acquire_many(MOST_DEPARTED as u32).await);
    }
}

/// This node among the others.
pub struct Cluster {
    shared: Arc<Shared>,
    bus: Arc<Bus>,
    directory: Arc<Directory>,
    tasks: Arc<Tasks>,
    last_look: Mutex<php::LastLook>,
}

/// The tasks of a cluster; they end when this is dropped.
pub struct ClusterTasks {
    /// With why there is no place for this node.
    tasks: JoinSet<Option<Refused>>,
    members: Arc<Members>,
}

impl ClusterTasks {
    /// Waits until one ends, as none should before this node leaves: there is no place for it, and why; or it is broken.
    pub async fn any_ended(&mut self) -> Option<Refused> {
        self.tasks.join_next().await.and_then(Result::ok).flatten()
    }

    /// Leaves the others, with nothing left behind: its clients are gone.
    pub async fn leave(mut self, within: Duration) {
        if tokio::time::timeout(within, self.members.leave()).await.is_err() {
            tracing::warn!("Redis did not take this node's leave in time; others will sweep after it");
        }
        self.tasks.shutdown().await;
    }
}

/// What a cluster yields.
pub struct Yield {
    /// What is said to this node.
    pub inbox: Inbox,
    /// Clients that have left, as all nodes know by now: this node's, and those of dead nodes that it has swept.
    pub departed: mpsc::Receiver<Departure>,
}

impl Cluster {
    /// Begins to enter the cluster, with the clients of this hub.
    pub fn start(
        config: &ClusterConfig,
        hub: &Arc<Hub>,
        metrics: &Arc<Metrics>,
        monitor: &Arc<Monitor>,
        standing: &Standing,
        open_lan: OpenLan,
    ) -> Result<(Self, Yield, ClusterTasks), Refused> {
        let address = Address::read(&config.redis_url).map_err(|error| refused_url(None, &error))?;
        let run = uuid::Uuid::new_v4().to_string();
        // Where it is not set, it is known when Redis is found.
        let lan = LanAddress { ip: config.lan.ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port: config.lan.port };
        let node_id = config.node_id.clone().unwrap_or_else(|| run.clone());
        hub.events().set_origin(Origin { node: node_id.clone(), run: run.clone() });
        let shared = Arc::new(Shared {
            keys: Keys::new(&config.prefix, matches!(address, Address::Cluster(_))),
            link: Link::default(),
            metrics: Arc::clone(metrics),
            clock: Clock::default(),
            peers: Peers::default(),
            identity: RwLock::new(Arc::new(Identity { node_id, run, lan })),
            member: watch::Sender::new(false),
            monitor: Arc::clone(monitor),
            standing: Arc::clone(standing),
        });
        if matches!(address, Address::Cluster(_)) {
            hub.others().topics.follow_clients();
        }
        let (post, letters) = Post::new();
        let (bus, inbox) = Bus::new(Arc::clone(&shared), post);
        let (bus, stop) = (Arc::new(bus), CancellationToken::new());
        let (tell, departed) = Tell::new();
        let directory = Directory::new(Arc::clone(&shared), Arc::clone(&bus), Arc::clone(hub), tell.clone());
        let directory = Arc::new(directory);
        let tasks = Arc::new(Tasks::new(Arc::clone(&shared), address.clone(), config.node_ttl));
        let members = Members::new(
            config,
            &shared,
            &bus,
            &directory,
            Arc::clone(hub),
            address.clone(),
            tell,
            stop.clone(),
            open_lan,
        );
        let (members, mut running) = (Arc::new(members), JoinSet::new());
        let (listening, writing) =
            (Arc::clone(&bus).listen(address, Arc::clone(hub), stop), Arc::clone(&directory).run());
        running.spawn(async move {
            listening.await;
            None
        });
        running.spawn(async move {
            writing.await;
            None
        });
        let carrying = letters.carry(Arc::clone(&bus));
        running.spawn(async move {
            carrying.await;
            None
        });
        let life = Arc::clone(&members);
        running.spawn(async move { Box::pin(life.live()).await });
        let cluster = Self { shared, bus, directory, tasks, last_look: Mutex::default() };
        Ok((cluster, Yield { inbox, departed }, ClusterTasks { tasks: running, members }))
    }

    /// Whether this node is to get new clients.
    pub fn readiness(&self) -> Readiness {
        self.shared.readiness(&self.bus)
    }

    /// Whether Redis is there.
    pub fn has_redis(&self) -> bool {
        self.shared.link.is_up()
    }

    /// Whether this node has a place among the others; without one it has no address to make client ids from.
    pub fn is_member(&self) -> bool {
        *self.shared.member.borrow()
    }

    /// Whether it has, and when that changes.
    pub fn membership(&self) -> watch::Receiver<bool> {
        self.shared.member.subscribe()
    }

    /// The queue of tasks.
    pub fn tasks(&self) -> Arc<Tasks> {
        Arc::clone(&self.tasks)
    }

    /// The first part of this node's client ids.
    pub fn lan(&self) -> LanAddress {
        self.shared.identity().lan
    }

    /// Says a message to whom the channel names, in the very bytes a foreign program would; returns how many nodes heard.
    pub async fn publish(&self, channel: &Channel, payload: Bytes) -> Result<u64, Unavailable> {
        Ok(self.bus.publish(channel, payload).await?)
    }

    /// A part of a command in an envelope, to be published.
    pub fn seal(part: Box<RawValue>, message: &[u8]) -> Bytes {
        envelope::seal(envelope::Header::Do(Do { part, back: None, until: None }), message)
    }

    /// Whether a payload would be taken for an envelope.
    pub fn is_ambiguous(payload: &[u8]) -> bool {
        payload.starts_with(&MAGIC)
    }

    /// Has the nodes that hear it do a part of a command; returns how many heard, and what those answered in time.
    pub async fn ask(
        &self,
        channel: &Channel,
        part: Box<RawValue>,
        message: &[u8],
        within: Duration,
    ) -> Result<(u64, Vec<Answer>), Unavailable> {
        let asked = self.bus.ask(channel, part, message, within).await?;
        Ok((asked.heard, asked.answers))
    }

    /// Answers an ask.
    pub async fn answer(&self, back: Back, done: Box<RawValue>) -> Result<(), Unavailable> {
        Ok(self.bus.answer(back, done).await?)
    }

    /// Has every node tell this one for a while what it sees of somebody; returns how many heard that.
    pub async fn tail(&self, tailed: Tailed, id: u64) -> Result<u64, Unavailable> {
        Ok(self.bus.tail(tailed, id).await?)
    }

    /// Tells a node what was seen for its tail, a line of JSON.
    pub async fn copy(&self, to: LanAddress, id: u64, line: &[u8]) -> Result<(), Unavailable> {
        Ok(self.bus.copy(to, id, line).await?)
    }

    /// A node has asked for something that is not known here.
    pub fn heard_unknown(&self) {
        self.shared.peers.heard_unknown();
    }

    /// Whether Redis' clock says that this time, in ms, is over.
    pub fn is_over(&self, until: u64) -> bool {
        self.shared.clock.now().is_some_and(|now| now > until)
    }

    /// Sends a message to one client by its own channel; returns whether it is there.
    pub async fn publish_to_client(&self, id: ClientId, payload: Bytes) -> Result<bool, Unavailable> {
        Ok(self.directory.publish_to_client(id, payload).await?)
    }

    /// Whether a living node has this address.
    pub async fn has_node(&self, lan: LanAddress) -> Result<bool, Unavailable> {
        Ok(self.reader()?.has_node(lan).await?)
    }

    /// The addresses of all living nodes.
    pub async fn nodes(&self) -> Result<Vec<LanAddress>, Unavailable> {
        Ok(self.reader()?.nodes().await?)
    }

    /// All nodes with what each has told of itself.
    pub async fn vitals(&self) -> Result<Vec<Node>, Unavailable> {
        Ok(self.reader()?.vitals(&self.shared.clock).await?)
    }

    fn reader(&self) -> Result<Reader<'_>, Unavailable> {
        Ok(Reader { keys: &self.shared.keys, connection: self.shared.link.get()? })
    }

    /// The clients of each of these uids.
    pub async fn clients_of_uids(&self, uids: &[Uid]) -> Result<Vec<Vec<ClientId>>, Unavailable> {
        Ok(self.reader()?.clients_of_uids(uids).await?)
    }

    /// How many clients each of these uids has.
    pub async fn uid_sizes(&self, uids: &[Uid]) -> Result<Vec<u64>, Unavailable> {
        Ok(self.reader()?.uid_sizes(uids).await?)
    }

    /// The members of each of these groups.
    pub async fn members(&self, groups: &[Group]) -> Result<Vec<Vec<ClientId>>, Unavailable> {
        Ok(self.reader()?.members(groups).await?)
    }

    /// How many members each of these groups has.
    pub async fn group_sizes(&self, groups: &[Group]) -> Result<Vec<u64>, Unavailable> {
        Ok(self.reader()?.group_sizes(groups).await?)
    }

    /// What is known of each of these clients; none of those that are not online.
    pub async fn facts(&self, ids: &[ClientId]) -> Result<Vec<Option<Facts>>, Unavailable> {
        Ok(self.reader()?.facts(ids).await?)
    }

    /// The groups of each of these clients.
    pub async fn groups_of(&self, ids: &[ClientId]) -> Result<Vec<Vec<Group>>, Unavailable> {
        Ok(self.reader()?.groups_of(ids).await?)
    }

    /// The uids of these clients.
    pub async fn uids_of(&self, ids: &[ClientId]) -> Result<Vec<Option<Uid>>, Unavailable> {
        Ok(self.reader()?.uids_of(ids).await?)
    }

    /// How many clients there are.
    pub async fn client_count(&self) -> Result<u64, Unavailable> {
        Ok(self.reader()?.client_count().await?)
    }

    /// All clients with their uids and groups.
    pub async fn everyone(&self) -> Result<Vec<Entry>, Unavailable> {
        Ok(self.reader()?.everyone().await?)
    }

    /// About so many clients of all nodes with their uids and groups, and whether that is everyone.
    pub async fn some(&self, most: usize) -> Result<(Vec<Entry>, bool), Unavailable> {
        Ok(self.reader()?.some(most).await?)
    }
}

fn refused_url(address: Option<&Address>, error: &ConnectError) -> Refused {
    let place = address.and_then(Address::place).map_or_else(String::new, |place| format!("{place}: "));
    Refused { variable: "MOONGATE_REDIS_URL", why: format!("{place}{error}") }
}

/// This machine's address on the way to Redis; loopback when Redis is here. Without IPv4 on that way, an address that no
/// machine has: it only tells nodes apart.
async fn lan_ip(redis: Option<Place>) -> Ipv4Addr {
    let Some(Place { host, port }) = redis else { return Ipv4Addr::LOCALHOST };
    let on_the_way = async {
        let places: Vec<_> = lookup_host((host.as_str(), port)).await.ok()?.collect();
        let place = places.iter().find(|place| place.is_ipv4())?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        // Nothing is sent: this only looks up the route.
        socket.connect(place).await.ok()?;
        match socket.local_addr().ok()?.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }
    };
    on_the_way.await.unwrap_or_else(|| {
        let [_, b, c, d] = (uuid::Uuid::new_v4().as_u128() as u32).to_be_bytes();
        Ipv4Addr::new(0, b, c, d)
    })
}
