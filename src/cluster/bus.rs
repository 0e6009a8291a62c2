//! What is said between nodes, and by programs in any language, over Redis' publish/subscribe.
//!
//! **Hearing.** One connection of its own, on Cluster one to each master, subscribes to what this node must hear there,
//! and to nothing else. One task owns it:
//! it takes the topics that have changed, asks the hub which hold, and sends the difference. What was sent counts as
//! confirmed when the `CLIENT INFO` behind it was answered, and counts as many. Changes wait for each other for 2 ms, or
//! until somebody waits for one. When the connection ends, or the node does not hear its own heartbeat through it any
//! more, a fresh one takes its place and subscribes to all there is; publish/subscribe replays nothing, so the time
//! between is a gap, and is counted with its length.
//!
//! **Yielding.** What comes is moved from the library's ring into [`Inbox`] at once, by a task that does nothing else;
//! heartbeats and answers are taken out on the way, so that neither waits behind a delivery. An inbox that is full loses
//! what comes, counted.
//!
//! **Saying** is a `PUBLISH` on the connection for commands; its reply is how many nodes heard. An ask is a `PUBLISH` of
//! an envelope with a return address, and a wait for as many answers as there were hearers.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join3;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::directory::TICK;
use super::envelope::{self, Answer, Back, Do, Header, NotAnEnvelope};
use super::keys::{Channel, Keys};
use super::post::Post;
use super::redis::{ANSWER, Address, ConnectError, Connection, Mark, Published, RING, RedisError};
use super::slots::{Map, Shards, Slots};
use super::{Backoff, Shared, listeners, redis};
use crate::hub::{Hub, Tailed, Topic, Topics};
use crate::id::LanAddress;
use crate::message::Message;
use crate::metrics::{Kind, Reason};

/// The largest payload.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// A node says its heartbeat this often.
pub(super) const BEAT: Duration = Duration::from_millis(700);

/// Three missed heartbeats, while Redis takes them: deaf. Counted from the first of them.
const DEAF: Duration = Duration::from_millis(1500);

/// On Cluster it is looked so often who has which slots, and what each master knows to be heard.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Channels in one `SUBSCRIBE`.
const CHANNELS: usize = 1000;

/// What may wait to be delivered on this node.
const INBOX: usize = 8192;
const INBOX_BYTES: usize = 64 << 20;

/// After so long without all answers it is asked whether all who heard are nodes.
const DOUBT: Duration = Duration::from_millis(100);

/// Asks that may wait for their answers.
const MAX_ASKS: usize = 10_000;

/// Something that was heard.
#[derive(Debug)]
pub struct Heard {
    /// Where.
    pub channel: Channel,
    /// What.
    pub said: Said,
    size: usize,
}

/// What is said on a channel.
#[derive(Debug)]
pub enum Said {
    /// A message to whom the channel names.
    Message(Message),
    /// A command in JSON.
    Command(Bytes),
    /// A part of a command, and the message that belongs to it.
    Part(Do, Bytes),
    /// Somebody is to be watched for a while, and what is seen told to whoever asks.
    Tail(Tailed, Back),
    /// What was seen, a line of JSON, for the tail of this name here.
    Copy(u64, Bytes),
}

/// What is heard, in order.
pub struct Inbox {
    heard: mpsc::Receiver<Heard>,
    bytes: Arc<AtomicUsize>,
}

impl Inbox {
    /// The next one; none when the node stops.
    pub async fn next(&mut self) -> Option<Heard> {
        let heard = self.heard.recv().await?;
        self.bytes.fetch_sub(heard.size, Ordering::Relaxed);
        Some(heard)
    }
}

/// Everything that several tasks know of the bus.
pub(super) struct Bus {
    shared: Arc<Shared>,
    post: Post,
    asks: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    next_ask: AtomicU64,
    /// Changes of topics that the server is known to know; on Cluster that all are.
    confirmed: watch::Sender<u64>,
    /// Of each listener, how many it has confirmed, and to how many topics it is subscribed.
    listeners: Mutex<HashMap<Listener, (u64, usize)>>,
    inbox: mpsc::Sender<Heard>,
    inbox_bytes: Arc<AtomicUsize>,
    /// When Redis took the last heartbeat, and when the last one that was heard was said, ms since `began`.
    began: Instant,
    beat_said: AtomicU64,
    beat_heard: AtomicU64,
    /// When the first one was said of those that were not heard; 0 when all were.
    unheard: AtomicU64,
    deaf: AtomicBool,
    /// Redis is there again: no use to wait longer.
    hurry: Notify,
    /// Somebody waits for the server to know what has changed.
    wanted: Notify,
    /// The run that last subscribed to all it must hear.
    heard_as: Mutex<String>,
}

/// What became of an ask.
pub(super) struct Asked {
    /// How many nodes heard it.
    pub(super) heard: u64,
    /// What those answered that did so in time.
    pub(super) answers: Vec<Answer>,
}

impl Bus {
    pub(super) fn new(shared: Arc<Shared>, post: Post) -> (Self, Inbox) {
        let (inbox, heard) = mpsc::channel(INBOX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let bus = Self {
            shared,
            post,
            asks: Mutex::default(),
            // Answers to the questions of an earlier process with this address shall find nobody.
            next_ask: AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0 >> 16),
            confirmed: watch::Sender::new(0),
            listeners: Mutex::default(),
            inbox,
            inbox_bytes: Arc::clone(&bytes),
            began: Instant::now(),
            beat_said: AtomicU64::new(0),
            beat_heard: AtomicU64::new(0),
            unheard: AtomicU64::new(0),
            hurry: Notify::new(),
            wanted: Notify::new(),
            deaf: AtomicBool::new(false),
            heard_as: Mutex::default(),
        };
        (bus, Inbox { heard, bytes })
    }

    // --- saying ---

    /// Says something; returns how many heard it. An error means that this is not known.
    pub(super) async fn publish(&self, channel: &Channel, payload: Bytes) -> Result<u64, RedisError> {
        let connection = self.shared.link.get()?;
        let name = self.shared.keys.channel(channel);
        let heard = connection.call(connection.publication(name, payload)).await;
        let kind = Kind { kind: channel.kind() };
        match heard {
            Ok(heard) => {
                self.shared.metrics.bus_published.get_or_create(&kind).inc();
                Ok(heard.number())
            }
            Err(error) => {
                self.shared.metrics.bus_publish_errors.get_or_create(&kind).inc();
                Err(error)
            }
        }
    }

    /// Has every node that hears it do a part of a command, and waits for as many answers as nodes heard it.
    pub(super) async fn ask(
        &self,
        channel: &Channel,
        part: Box<RawValue>,
        message: &[u8],
        within: Duration,
    ) -> Result<Asked, RedisError> {
        let deadline = Instant::now() + within;
        let id = self.next_ask.fetch_add(1, Ordering::Relaxed);
        let (answer, mut answers) = mpsc::channel(1024);
        {
            let mut asks = self.asks.lock();
            if asks.len() >= MAX_ASKS {
                return Err(RedisError::Away("too many commands are waiting for other nodes".to_owned()));
            }
            asks.insert(id, answer);
        }
        let _forget = Forget { bus: self, id };
        let back = Some(Back { to: self.shared.identity().lan, id });
        let until = self.shared.clock.now().map(|now| now + within.as_millis() as u64);
        let sealed = envelope::seal(Header::Do(Do { part, back, until }), message);
        let said = async {
            match channel {
                Channel::Node(node) => self.post.say(*node, sealed).await,
                channel => self.publish(channel, sealed).await,
            }
        };
        let published = timeout_at(deadline, said).await;
        let heard = published.unwrap_or_else(|_| Err(RedisError::Away("no answer in time".to_owned())))?;
        // Only one node has this address.
        let heard =
            if matches!(channel, Channel::Topic(Topic::Client(_)) | Channel::Node(_)) { heard.min(1) } else { heard };
        let mut asked = Asked { heard, answers: Vec::new() };
        let mut doubt = Some(Instant::now() + DOUBT);
        while (asked.answers.len() as u64) < asked.heard {
            match timeout_at(doubt.unwrap_or(deadline).min(deadline), answers.recv()).await {
                Ok(Some(answer)) => asked.answers.push(answer),
                Err(_) if doubt.take().is_some() => {
                    // Where that is not known, all of them.
                    if let Ok(Ok(nodes)) = timeout_at(deadline, self.subscribers(channel)).await {
                        asked.heard = asked.heard.min(nodes);
                    }
                }
                Ok(None) | Err(_) => break,
            }
        }
        Ok(asked)
    }

    /// How many nodes hear a channel: those who have subscribed to it by its name, and not by a pattern, as tools do.
    async fn subscribers(&self, channel: &Channel) -> Result<u64, RedisError> {
        // Only a client's own channel is heard by a pattern by nodes, too; its node is there or not.
        let node = if let Channel::Topic(Topic::Client(id)) = channel { Some(Channel::Node(id.lan)) } else { None };
        let name = self.shared.keys.channel(node.as_ref().unwrap_or(channel));
        Ok(self.shared.link.get()?.listeners(vec![name]).await?.first().copied().unwrap_or_default())
    }

    /// Says what came of an ask.
    pub(super) async fn answer(&self, back: Back, done: Box<RawValue>) -> Result<(), RedisError> {
        let from = self.shared.identity().lan;
        let answer = Answer { from, done };
        if back.to == from {
            self.answered(back.id, answer);
            return Ok(());
        }
        let sealed = envelope::seal(Header::Answer(back.id, answer), b"");
        self.post.say(back.to, sealed).await.map(drop)
    }

    /// Has every node tell this one for a while what it sees of somebody; returns how many heard that.
    pub(super) async fn tail(&self, tailed: Tailed, id: u64) -> Result<u64, RedisError> {
        let identity = self.shared.identity();
        let back = Back { to: identity.lan, id };
        let sealed = envelope::seal(Header::Tail(identity.node_id.clone(), tailed, back), b"");
        self.publish(&Channel::Ask, sealed).await
    }

    /// Tells a node what was seen for its tail.
    pub(super) async fn copy(&self, to: LanAddress, id: u64, line: &[u8]) -> Result<(), RedisError> {
        self.post.say(to, envelope::seal(Header::Copy(id), line)).await.map(drop)
    }

    fn answered(&self, id: u64, answer: Answer) {
        let asked = self.asks.lock().get(&id).cloned();
        // Whoever asked may have gone, or has enough answers.
        asked.and_then(|asked| asked.try_send(answer).ok());
    }

    /// Says the heartbeat, to be heard by this node itself.
    pub(super) async fn beat(&self) -> Result<(), RedisError> {
        let now = self.elapsed().max(1);
        let is_silent = now.saturating_sub(self.beat_said.load(Ordering::Relaxed)) > BEAT.as_millis() as u64 * 2;
        if is_silent || self.unheard.load(Ordering::Relaxed) == 0 {
            self.unheard.store(now, Ordering::Relaxed);
        }
        let identity = self.shared.identity();
        let beat = envelope::seal(Header::Beat(identity.run.clone()), now.to_string().as_bytes());
        self.publish(&Channel::Node(identity.lan), beat).await?;
        self.beat_said.store(self.elapsed(), Ordering::Relaxed);
        Ok(())
    }

    // --- hearing ---

    /// Whether Redis takes this node's heartbeats, and they do not arrive.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed) || self.hears_nothing()
    }

    fn became_deaf(&self) {
        if !self.deaf.swap(true, Ordering::Relaxed) {
            self.shared.metrics.bus_deaf.inc();
        }
    }

    /// What was said before that time, on any channel, has come, too.
    fn has_heard_itself(&self, at: u64) {
        self.beat_heard.fetch_max(at, Ordering::Relaxed);
        self.unheard.store(0, Ordering::Relaxed);
    }

    /// Redis is there again: whoever waits to subscribe waits no longer.
    pub(super) fn hurry(&self) {
        self.hurry.notify_waiters();
        self.hurry.notify_one();
    }

    /// One listener has confirmed so many changes, and is subscribed to so many topics; what all have is confirmed.
    fn has_confirmed(&self, listener: Listener, changes: u64, topics: usize) {
        let mut listeners = self.listeners.lock();
        // One that was told to end may not know it yet.
        if let Some(confirmed) = listeners.get_mut(&listener) {
            *confirmed = (changes, topics);
        }
        self.count_confirmed(&listeners);
    }

    /// A listener is about to listen: until it does, nothing more is confirmed.
    pub(super) fn begins(&self, listener: Listener) {
        let mut listeners = self.listeners.lock();
        listeners.insert(listener, (0, 0));
        self.count_confirmed(&listeners);
    }

    /// What a listener had to hear is heard by others, or by nobody.
    pub(super) fn ends(&self, listener: Listener) {
        let mut listeners = self.listeners.lock();
        listeners.remove(&listener);
        self.count_confirmed(&listeners);
    }

    fn count_confirmed(&self, listeners: &HashMap<Listener, (u64, usize)>) {
        let topics: usize = listeners.values().map(|(_, topics)| topics).sum();
        self.shared.metrics.subscriptions_confirmed.set(i64::try_from(topics).unwrap_or(i64::MAX));
        let changes = listeners.values().map(|(changes, _)| *changes).min().unwrap_or_default();
        if changes > 0 {
            self.heard_as.lock().clone_from(&self.shared.identity().run);
        }
        self.confirmed.send_replace(changes);
    }

    /// Waits for company: for the time that topics wait for each other, or until somebody waits for one.
    pub(super) async fn company(&self, since: Instant) {
        tokio::select! {
            () = self.wanted.notified() => {}
            () = sleep_until(since + TICK) => {}
        }
    }

    /// Asks which master has what, over the connection for commands where there is one.
    pub(super) async fn map(&self, shards: &Shards) -> Result<Map, ConnectError> {
        match self.shared.link.get() {
            Ok(connection) => shards.ask(&connection).await,
            Err(_) => shards.map(&self.shared.metrics).await,
        }
    }

    /// The slot in which a topic is said.
    pub(super) fn slot_of(&self, topic: &Topic) -> u16 {
        redis::slot(self.shared.keys.channel(&Channel::Topic(topic.clone())).as_bytes())
    }

    /// Whether it was ever possible to hear anything, in this run.
    pub(super) fn has_heard(&self) -> bool {
        *self.heard_as.lock() == self.shared.identity().run
    }

    /// Waits until the server knows of so many changes of topics.
    pub(super) async fn confirmed(&self, changes: u64) {
        if *self.confirmed.borrow() < changes {
            self.wanted.notify_one();
        }
        // The sender is here.
        drop(self.confirmed.subscribe().wait_for(|confirmed| *confirmed >= changes).await);
    }

    fn elapsed(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Subscribes, again and again, until `stop`.
    pub(super) async fn listen(self: Arc<Self>, address: Address, hub: Arc<Hub>, stop: CancellationToken) {
        if let Address::Cluster(shards) = address {
            return listeners::listen(self, shards, hub, stop).await;
        }
        self.begins(0);
        let share = Share { listener: 0, topics: Arc::clone(&hub.others().topics), slots: None };
        self.listen_to(address, share, hub, stop).await;
    }

    /// Subscribes to its share, again and again, until `stop`.
    pub(super) async fn listen_to(
        self: Arc<Self>,
        address: Address,
        mut share: Share,
        hub: Arc<Hub>,
        stop: CancellationToken,
    ) {
        let mut backoff = Backoff::up_to(Duration::from_secs(2));
        // Since when nothing is heard, once something was.
        let mut gap: Option<Instant> = None;
        let mut last = None;
        while !stop.is_cancelled() {
            let heard = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                heard = Box::pin(self.listen_once(&address, &mut share, &hub, &mut gap, &mut last)) => heard,
            };
            match heard {
                Ok(ended) => {
                    backoff.begin();
                    tracing::warn!(reason = %ended, "the subscriber's connection to Redis ended");
                }
                Err(error) => tracing::debug!(%error, "cannot subscribe"),
            }
            if self.hears_nothing() {
                self.became_deaf();
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.hurry.notified() => backoff.begin(),
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// The life of one subscribing connection; returns why it ended.
    async fn listen_once(
        self: &Arc<Self>,
        address: &Address,
        share: &mut Share,
        hub: &Arc<Hub>,
        gap: &mut Option<Instant>,
        last: &mut Option<Mark>,
    ) -> Result<Cow<'static, str>, String> {
        let mut member = self.shared.member.subscribe();
        // The sender is here.
        drop(member.wait_for(|member| *member).await);
        let identity = self.shared.identity();
        let words = |error: RedisError| error.to_string();
        let (connection, mut alive) =
            Connection::open(address, &self.shared.metrics, RING).await.map_err(|error| error.to_string())?;
        connection.bear_the_name_of(&identity.run).await.map_err(words)?;
        // What is half-open counts as a listener for minutes.
        connection.take_over_from(last).await.map_err(words)?;
        let mut mover = Mover::start(Arc::clone(self), connection.published().map_err(words)?);
        let mut ears = Ears::of(&connection, &self.shared.keys, identity.lan, share.slots_now());

        let topics = Arc::clone(&share.topics);
        let (changes, _) = topics.take();
        ears.subscribe_to_all(hub).await.map_err(|error| {
            if matches!(error, RedisError::Refused { .. }) {
                tracing::error!(%error, "this node cannot hear what it must");
            }
            error.to_string()
        })?;
        self.is_hearing(share, changes, &ears, gap);
        if ears.hear_the_heartbeat() {
            self.has_heard_itself(self.elapsed());
        }

        // A share is asked for what it hears, as most of them hear no heartbeat.
        let mut asked = Instant::now();
        let mut subscribed = Instant::now();
        let mut check = interval(Duration::from_millis(100));
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            tokio::select! {
                biased;
                () = alive.ended() => break "it was closed".into(),
                _ = member.changed() => {
                    if !*member.borrow_and_update() || self.shared.identity() != identity {
                        break "this node was taken for dead".into();
                    }
                }
                slots = share.next_slots() => {
                    let (changes, changed) = topics.take();
                    if let Err(error) = ears.fit(hub, slots, changed).await {
                        break error.to_string().into();
                    }
                    self.is_hearing(share, changes, &ears, gap);
                }
                () = topics.next() => {
                    // In one go with all that changes until somebody waits for it; shares are put in in such goes.
                    if share.slots.is_none() {
                        self.company(subscribed).await;
                    }
                    subscribed = Instant::now();
                    let (changes, changed) = topics.take();
                    if let Err(error) = ears.follow(hub, changed).await {
                        break error.to_string().into();
                    }
                    self.is_hearing(share, changes, &ears, gap);
                }
                _ = check.tick() => {
                    if self.shared.link.get().is_ok_and(|link| !link.mark.covers(&connection.mark)) {
                        break "Redis is another server by now".into();
                    }
                    if ears.hear_the_heartbeat() && self.hears_nothing() {
                        self.became_deaf();
                        break "this node did not hear its own heartbeat".into();
                    }
                    if share.slots.is_some() && asked.elapsed() > LOOK {
                        match ears.are_as_they_should().await {
                            Ok(true) => asked = Instant::now(),
                            // Slots have moved: soon it is known which.
                            Ok(false) if asked.elapsed() < LOOK * 4 => {}
                            Ok(false) => break "it was unsubscribed".into(),
                            Err(error) => break error.to_string().into(),
                        }
                    }
                }
            }
        };
        // The gap began when the last heartbeat that was heard was said, or later. That may be long ago: where nothing comes
        // through and no connection breaks, it takes some seconds until this one is given up.
        *gap = if share.slots.is_some() {
            Some(asked)
        } else {
            let silent = self.elapsed().saturating_sub(self.beat_heard.load(Ordering::Relaxed));
            Instant::now().checked_sub(Duration::from_millis(silent))
        };
        drop(alive);
        // Nothing is known to be subscribed to until the next connection is.
        self.has_confirmed(share.listener, 0, 0);
        mover.finish().await;
        Ok(ended)
    }

    fn is_hearing(&self, share: &Share, changes: u64, ears: &Ears<'_>, gap: &mut Option<Instant>) {
        if let Some(since) = gap.take() {
            self.shared.metrics.bus_gaps.inc();
            self.shared.metrics.bus_gap_seconds.inc_by(since.elapsed().as_secs_f64());
            tracing::warn!(
                milliseconds = since.elapsed().as_millis() as u64,
                "hearing again; what was said meanwhile is lost"
            );
        }
        if ears.hear_the_heartbeat() {
            self.deaf.store(false, Ordering::Relaxed);
        }
        self.has_confirmed(share.listener, changes, ears.held.len());
    }

    /// Redis takes heartbeats, and none has come for too long.
    fn hears_nothing(&self) -> bool {
        let (said, unheard) = (self.beat_said.load(Ordering::Relaxed), self.unheard.load(Ordering::Relaxed));
        let now = self.elapsed();
        let is_said = now.saturating_sub(said) < BEAT.as_millis() as u64 * 2;
        is_said && unheard > 0 && now.saturating_sub(unheard) > DEAF.as_millis() as u64
    }

    fn lost(&self, reason: &'static str) {
        self.shared.metrics.bus_lost.get_or_create(&Reason { reason }).inc();
    }

    /// Takes what was published off the connection. Never waits.
    fn take(&self, published: Published) {
        let channel = self.shared.keys.parse(redis::channel(&published));
        let (Some(channel), Some(bytes)) = (channel, redis::payload(published)) else {
            return self.lost("garbage");
        };
        self.shared.metrics.bus_heard.get_or_create(&Kind { kind: channel.kind() }).inc();
        if matches!(channel, Channel::Node(_)) {
            for envelope in envelope::unpack(&bytes) {
                self.take_one(channel.clone(), envelope);
            }
        } else {
            self.take_one(channel, bytes);
        }
    }

    fn take_one(&self, channel: Channel, bytes: Bytes) {
        let size = bytes.len();
        let said = if envelope::is_sealed(&bytes) {
            match (envelope::open(&bytes), &channel) {
                (Ok((_, message)), _) if message.len() > MAX_PAYLOAD => {
                    tracing::warn!(bytes = message.len(), "a message of more than 1 MiB is not delivered");
                    return self.lost("too_large");
                }
                (Ok((Header::Beat(run), said)), Channel::Node(_)) => {
                    // In another database of this Redis a foreign node may have our address.
                    if run != self.shared.identity().run {
                        return self.lost("garbage");
                    }
                    let said = std::str::from_utf8(&said).ok().and_then(|said| said.parse().ok());
                    return self.has_heard_itself(said.unwrap_or(0).min(self.elapsed()));
                }
                (Ok((Header::Answer(id, answer), _)), Channel::Node(_)) => return self.answered(id, answer),
                (Ok((Header::Node(id), _)), Channel::Ask) => return self.shared.peers.heard(id),
                (Ok((Header::Tail(_, tailed, back), _)), Channel::Ask) => Said::Tail(tailed, back),
                (Ok((Header::Copy(id), line)), Channel::Node(_)) => Said::Copy(id, line),
                (Ok((Header::Do(part), message)), channel) if *channel != Channel::Command => Said::Part(part, message),
                (Err(NotAnEnvelope::Unknown), Channel::Node(_) | Channel::Ask) => {
                    self.shared.peers.heard_unknown();
                    return self.lost("unknown");
                }
                _ => return self.lost("garbage"),
            }
        } else if size > MAX_PAYLOAD {
            tracing::warn!(bytes = size, "a message of more than 1 MiB is not delivered");
            return self.lost("too_large");
        } else {
            match channel {
                Channel::Topic(_) => Said::Message(message(&bytes)),
                Channel::Command => Said::Command(bytes),
                Channel::Ask | Channel::Node(_) => return self.lost("garbage"),
            }
        };
        if self.inbox_bytes.fetch_add(size, Ordering::Relaxed) > INBOX_BYTES
            || self.inbox.try_send(Heard { channel, said, size }).is_err()
        {
            self.inbox_bytes.fetch_sub(size, Ordering::Relaxed);
            self.lost("overload");
        }
    }
}

/// A payload as a message: text when it is UTF-8, else binary.
fn message(payload: &[u8]) -> Message {
    std::str::from_utf8(payload).map_or_else(|_| Message::binary(payload), Message::text)
}

/// Forgets an ask that is over.
struct Forget<'a> {
    bus: &'a Bus,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.bus.asks.lock().remove(&self.id);
    }
}

/// Which listener it is.
pub(super) type Listener = u64;

/// What one connection has to hear.
pub(super) struct Share {
    pub(super) listener: Listener,
    /// What changes of it.
    pub(super) topics: Arc<Topics>,
    /// On Cluster, the slots of the master to which it leads.
    pub(super) slots: Option<watch::Receiver<Slots>>,
}

impl Share {
    fn slots_now(&mut self) -> Option<Slots> {
        self.slots.as_mut().map(|slots| slots.borrow_and_update().clone())
    }

    /// Waits until it is another one.
    async fn next_slots(&mut self) -> Slots {
        if let Some(slots) = &mut self.slots
            && slots.changed().await.is_ok()
        {
            return slots.borrow_and_update().clone();
        }
        std::future::pending().await
    }
}

/// What one connection is subscribed to.
struct Ears<'a> {
    connection: &'a Connection,
    keys: &'a Keys,
    lan: LanAddress,
    /// On Cluster, all that it may be subscribed to.
    slots: Option<Slots>,
    control: Vec<Channel>,
    held: HashSet<Topic>,
}

impl<'a> Ears<'a> {
    fn of(connection: &'a Connection, keys: &'a Keys, lan: LanAddress, slots: Option<Slots>) -> Self {
        Self { connection, keys, lan, slots, control: Vec::new(), held: HashSet::new() }
    }

    /// Whether a channel is heard here, and not through another connection.
    fn has(&self, channel: &Channel) -> bool {
        self.slots.as_ref().is_none_or(|slots| slots.contain_name(&self.keys.channel(channel)))
    }

    fn has_topic(&self, topic: &Topic) -> bool {
        self.slots.is_none() || self.has(&Channel::Topic(topic.clone()))
    }

    fn hear_the_heartbeat(&self) -> bool {
        self.control.contains(&Channel::Node(self.lan))
    }

    async fn subscribe_to_all(&mut self, hub: &Hub) -> Result<(), RedisError> {
        let control = [Channel::Command, Channel::Ask, Channel::Node(self.lan)];
        let control: Vec<Channel> =
            control.into_iter().filter(|channel| self.has(channel) && !self.control.contains(channel)).collect();
        self.connection.subscribe(control.iter().map(|channel| self.keys.channel(channel)).collect()).await?;
        self.control.extend(control);
        if self.slots.is_none() {
            self.connection.subscribe_to_pattern(self.keys.client_pattern(self.lan)).await?;
        }
        let mut topics: Vec<Topic> = hub.holds(&Topic::All).then_some(Topic::All).into_iter().collect();
        hub.for_each_uid(|uid, _| topics.push(Topic::Uid(uid.clone())));
        hub.for_each_group(|group, _| topics.push(Topic::Group(group.clone())));
        topics.extend(hub.others().topics.clients().into_iter().map(Topic::Client));
        topics.retain(|topic| self.has_topic(topic) && !self.held.contains(topic));
        let known = self.connection.barrier().await?;
        self.check(known)?;
        self.change(&[], &topics).await
    }

    /// Its slots are others now. Where one has left, the server has ended what was heard there.
    async fn fit(&mut self, hub: &Hub, slots: Slots, changed: HashSet<Topic>) -> Result<(), RedisError> {
        self.slots = Some(slots);
        let mut held = std::mem::take(&mut self.held);
        held.retain(|topic| self.has_topic(topic));
        self.held = held;
        let mut control = std::mem::take(&mut self.control);
        control.retain(|channel| self.has(channel));
        self.control = control;
        self.follow(hub, changed).await?;
        self.subscribe_to_all(hub).await
    }

    /// Whether the server took all of it.
    fn check(&self, known: Option<(usize, usize)>) -> Result<(), RedisError> {
        if self.fits(known) {
            return Ok(());
        }
        let expected = self.control.len() + self.held.len();
        let (channels, patterns) = known.unwrap_or_default();
        let error = format!(
            "of {expected} channels and the pattern it took {channels} and {patterns}; what may the user hear (ACL)?"
        );
        Err(RedisError::Refused { command: "SUBSCRIBE", error })
    }

    /// Whether it is so many. On Cluster there may be more: of a slot that has just moved away.
    fn fits(&self, known: Option<(usize, usize)>) -> bool {
        let expected = self.control.len() + self.held.len();
        match known {
            Some((channels, _)) if self.slots.is_some() => channels >= expected,
            Some(known) => known == (expected, 1),
            None => true,
        }
    }

    /// Whether the server still knows of all of it.
    async fn are_as_they_should(&self) -> Result<bool, RedisError> {
        Ok(self.fits(self.connection.barrier().await?))
    }

    /// Follows the hub in what has changed.
    async fn follow(&mut self, hub: &Hub, changed: HashSet<Topic>) -> Result<(), RedisError> {
        let (held, not): (Vec<Topic>, Vec<Topic>) = changed.into_iter().partition(|topic| hub.holds(topic));
        let is_new = |topic: &Topic| !self.held.contains(topic) && self.has_topic(topic);
        let come: Vec<Topic> = held.into_iter().filter(is_new).collect();
        let gone: Vec<Topic> = not.into_iter().filter(|topic| self.held.contains(topic)).collect();
        self.change(&gone, &come).await
    }

    /// Hears these no more, and those from now on; returns when the server knows. Each piece has a barrier of its own, so
    /// that many take no longer for an answer than few, and what makes up a piece is handed over at once: small ones leave
    /// in one write.
    async fn change(&mut self, gone: &[Topic], come: &[Topic]) -> Result<(), RedisError> {
        let (mut gone, mut come) = (gone.chunks(CHANNELS), come.chunks(CHANNELS));
        loop {
            let (gone, come) = (gone.next().unwrap_or_default(), come.next().unwrap_or_default());
            if gone.is_empty() && come.is_empty() {
                return Ok(());
            }
            let unsubscribed = async {
                // Of none it would be of all.
                if gone.is_empty() { Ok(()) } else { self.connection.unsubscribe(self.names(gone)).await }
            };
            let subscribed =
                async { if come.is_empty() { Ok(()) } else { self.connection.subscribe(self.names(come)).await } };
            let (unsubscribed, subscribed, known) = join3(unsubscribed, subscribed, self.connection.barrier()).await;
            unsubscribed.and(subscribed)?;
            for topic in gone {
                self.held.remove(topic);
            }
            self.held.extend(come.iter().cloned());
            self.check(known?)?;
        }
    }

    fn names(&self, topics: &[Topic]) -> Vec<String> {
        topics.iter().map(|topic| self.keys.channel(&Channel::Topic(topic.clone()))).collect()
    }
}

/// The task that moves what is published from the library's ring on.
struct Mover {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Mover {
    fn start(bus: Arc<Bus>, mut ring: broadcast::Receiver<Published>) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let lagged = |bus: &Bus, lost| {
                tracing::error!(lost, "messages were lost: this node is too slow for them");
                bus.shared.metrics.bus_lost.get_or_create(&Reason { reason: "lagged" }).inc_by(lost);
            };
            loop {
                tokio::select! {
                    biased;
                    published = ring.recv() => match published {
                        Ok(published) => bus.take(published),
                        Err(RecvError::Lagged(lost)) => lagged(&bus, lost),
                        Err(RecvError::Closed) => return,
                    },
                    () = stopped.cancelled() => break,
                }
            }
            // What has come is not lost.
            loop {
                match ring.try_recv() {
                    Ok(published) => bus.take(published),
                    Err(TryRecvError::Lagged(lost)) => lagged(&bus, lost),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => return,
                }
            }
        });
        Self { task, stop }
    }

    /// Moves what is left on, and ends.
    async fn finish(&mut self) {
        self.stop.cancel();
        drop(timeout(ANSWER, &mut self.task).await);
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.task.abort();
    }
}
