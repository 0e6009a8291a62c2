//! Who is on **this** node: clients, uids, groups, sessions. Memory only.
//!
//! The hub is the truth about its clients. It is cut into shards by client; each is owned by one task, which takes
//! what it shall do from its inbox, in order. See `shard` for the way of a message, `client` for its end, and `tails` for
//! who is watched on it.

mod events;
mod journal;
#[cfg(test)]
mod model;
mod shard;
mod tails;
mod targets;
mod topics;

use std::collections::{BTreeSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub use events::{Event, Fate, Listener, Route, Whom};
use journal::Journal;
pub use journal::{Change, Noted, Rebound, Receipt, Single, Told, Untold, Written, left_of};
use shard::{Delivery, Heard};
pub use shard::{Except, Shard, Target, TooManyGroups, View};
use tails::Copied;
pub use tails::{Clip, Seen, Sighting, Tailed, Tails};
use targets::{Shards, Targets};
pub use topics::{Topic, Topics};

use crate::client::Client;
use crate::event::{Events, Kind, Request, Room};
use crate::heartbeat::Tick;
use crate::id::{ClientId, Group, Uid};
use crate::message::{Close, Message};
use crate::metrics::Metrics;

/// Messages and changes that may wait for one shard; beyond it whoever brings one waits. A shard never blocks.
const INBOX: usize = 1024;

/// What a shard takes from its inbox at once. In unit tests few are a crowd, here and below; `tests/it` has the real one.
const BATCH: usize = if cfg!(test) { 8 } else { 256 };

/// So many messages are put into outboxes, about 10 ms of work, before any is written and others have their turn.
const MOST_APPENDED: usize = if cfg!(test) { 8 } else { 100_000 };

/// Heartbeats are spread, so that a node does not write to all its clients in one moment: this often something is due.
const BEAT: Duration = Duration::from_millis(100);

enum Op {
    Deliver(Delivery),
    Insert { client: Arc<Client>, is_guest: bool, request: Option<Arc<Request>> },
    Said { id: ClientId, message: Said },
    Run(Box<dyn FnOnce(&mut Shard) + Send>),
}

/// What a client has said.
#[derive(Debug)]
pub struct Said {
    /// The message.
    pub data: Bytes,
    /// It came as a binary message.
    pub is_binary: bool,
    /// Its place among the events; none where it is not told as one.
    pub room: Option<Room>,
}

/// What became of a message on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Places in the target's list that have clients here (exceptions are not looked at); for everyone, 0 when there
    /// is anyone.
    pub held: BTreeSet<usize>,
    /// Sockets that took it, when that was asked.
    pub clients: u64,
}

/// The node stops: its hub answers no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node is stopping")]
pub struct Stopped;

/// The clients of this node.
pub struct Hub {
    inboxes: Box<[mpsc::Sender<Op>]>,
    uids: Arc<Targets<Uid>>,
    groups: Arc<Targets<Group>>,
    clients: Arc<AtomicUsize>,
    /// What is in the inboxes that may change the indexes.
    changing: Arc<AtomicUsize>,
    others: Others,
    events: Arc<Events>,
    tails: Arc<Tails>,
}

/// What a hub says to whoever tells other nodes about it.
#[derive(Debug, Clone, Default)]
pub struct Others {
    /// Topics whose first client came or whose last one left.
    pub topics: Arc<Topics>,
    /// Some shard has something to be told.
    pub changed: Arc<Notify>,
}

/// What a hub was asked to do is in its inboxes; this says what came of it.
#[derive(Debug)]
#[must_use]
pub struct Begun<T>(Vec<oneshot::Receiver<T>>);

impl<T> Begun<T> {
    /// What each shard answers.
    pub async fn all(self) -> Result<Vec<T>, Stopped> {
        join_all(self.0).await.into_iter().collect::<Result<_, _>>().map_err(|_| Stopped)
    }

    /// What the one shard answers that was asked.
    pub async fn one(self) -> Result<T, Stopped> {
        self.0.into_iter().next().ok_or(Stopped)?.await.map_err(|_| Stopped)
    }
}

/// A message is in the inboxes of the shards that hold its target.
#[derive(Debug)]
#[must_use]
pub struct Delivering {
    known: bool,
    answers: Vec<oneshot::Receiver<Heard>>,
}

impl Delivering {
    /// What became of it.
    pub async fn done(self) -> Result<Delivered, Stopped> {
        let mut delivered = Delivered { held: BTreeSet::new(), clients: 0 };
        if self.known {
            delivered.held.insert(0);
        }
        for answer in self.answers {
            let Heard { held, took } = answer.await.map_err(|_| Stopped)?;
            delivered.held.extend(held);
            delivered.clients += took as u64;
        }
        Ok(delivered)
    }
}

/// The shards' tasks; they end when this or the hub is dropped.
pub struct ShardTasks(JoinSet<()>);

impl ShardTasks {
    /// Waits until one shard has ended; while the hub is there, that is a bug, and its clients are out of reach.
    pub async fn any_ended(&mut self) {
        self.0.join_next().await;
    }
}

impl Hub {
    /// A hub of `shards` shards (1 to 64), each with its task. With `others` it keeps a journal of what they are to be
    /// told: somebody must take it. A `listener` is told what clients do, at once; `events` in order with what others are told.
    pub fn start(
        shards: usize,
        tick: Option<&Tick>,
        metrics: &Arc<Metrics>,
        others: Option<Others>,
        listener: Option<&Arc<dyn Listener>>,
        events: &Arc<Events>,
    ) -> (Self, ShardTasks) {
        let topics = || others.as_ref().map(|others| Arc::clone(&others.topics));
        let (uids, groups) = (Targets::new(topics(), Topic::Uid), Targets::new(topics(), Topic::Group));
        let (uids, groups, clients) = (Arc::new(uids), Arc::new(groups), Arc::default());
        let tails = Arc::<Tails>::default();
        let mut tasks = JoinSet::new();
        let inboxes = (0..shards.clamp(1, Shards::MAX)).map(|index| {
            let (inbox, ops) = mpsc::channel(INBOX);
            let journal = others.as_ref().map(|others| {
                let journal = Journal::new(Arc::clone(&others.changed));
                (journal, Arc::clone(&others.topics))
            });
            let indexes = (Arc::clone(&uids), Arc::clone(&groups));
            let (events, tails) = (Arc::clone(events), Arc::clone(&tails));
            let shard = Shard::new(index, indexes, Arc::clone(&clients), journal, listener.cloned(), events, tails);
            tasks.spawn(run(shard, ops, tick.cloned(), Arc::clone(metrics)));
            inbox
        });
        let inboxes = inboxes.collect();
        let (changing, others, events) = (Arc::default(), others.unwrap_or_default(), Arc::clone(events));
        (Self { inboxes, uids, groups, clients, changing, others, events, tails }, ShardTasks(tasks))
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.inboxes.len()
    }

    /// What this hub says to whoever tells other nodes about it.
    pub fn others(&self) -> &Others {
        &self.others
    }

    /// What is told of clients, and where.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Who is being watched here.
    pub fn tails(&self) -> &Tails {
        &self.tails
    }

    /// Whether a topic has clients here.
    pub fn holds(&self, topic: &Topic) -> bool {
        match topic {
            Topic::All => self.clients() > 0,
            Topic::Uid(uid) => self.holds_uid(uid),
            Topic::Group(group) => self.group_size(group) > 0,
            Topic::Client(id) => self.others.topics.has_client(*id),
        }
    }

    /// How many clients are here.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Takes a client in that has come with a request. A guest is still shaking hands: only the listener knows of it.
    pub async fn insert(
        &self,
        client: Arc<Client>,
        is_guest: bool,
        request: Option<Arc<Request>>,
    ) -> Result<(), Stopped> {
        self.push(self.shard_of(client.id()), Op::Insert { client, is_guest, request }).await
    }

    /// A client has said something, which is to be told. Where it cannot be taken now, the future waits until it is.
    pub fn said(&self, id: ClientId, data: Bytes, is_binary: bool) -> Option<BoxFuture<'static, ()>> {
        let inbox = self.inboxes.get(self.shard_of(id))?;
        let mut message = Said { data, is_binary, room: None };
        if self.events.has(Kind::Message) {
            message.room = self.events.room_for_message(message.data.len());
            if message.room.is_none() {
                let (inbox, events) = (inbox.clone(), Arc::clone(&self.events));
                let waiting = async move {
                    message.room = Some(events.wait_for_room(message.data.len()).await);
                    drop(inbox.send(Op::Said { id, message }).await);
                };
                return Some(waiting.boxed());
            }
        }
        let Err(mpsc::error::TrySendError::Full(op)) = inbox.try_send(Op::Said { id, message }) else {
            // When the hub has ended, nobody is told.
            return None;
        };
        let inbox = inbox.clone();
        Some(async move { drop(inbox.send(op).await) }.boxed())
    }

    /// A client's socket has ended by itself; its owner is told what it had.
    pub async fn ended(&self, id: ClientId, close: Close) -> Result<(), Stopped> {
        self.push(self.shard_of(id), Op::Run(Box::new(move |shard| shard.ended(id, close)))).await
    }

    /// Sends to this node's share of a target. With `confirm` it is told when every socket has taken or refused it.
    pub async fn begin_delivery(
        &self,
        to: Target,
        except: Option<Arc<Except>>,
        message: Message,
        confirm: bool,
    ) -> Result<Delivering, Stopped> {
        self.begin_sending(to, except, false, message, confirm).await
    }

    /// Sends to this node's share of a target, those included that are still shaking hands; nobody asks what becomes of it.
    pub async fn send_to_guests_too(
        &self,
        to: Target,
        except: Option<Arc<Except>>,
        message: Message,
    ) -> Result<(), Stopped> {
        self.begin_sending(to, except, true, message, false).await.map(drop)
    }

    async fn begin_sending(
        &self,
        to: Target,
        except: Option<Arc<Except>>,
        to_guests: bool,
        message: Message,
        confirm: bool,
    ) -> Result<Delivering, Stopped> {
        let (shards, ask) = match &to {
            Target::All => (self.all_shards(), confirm),
            Target::Clients(ids) => {
                let mut shards = Shards::default();
                ids.iter().for_each(|id| shards.add(Shards::one(self.shard_of(*id))));
                (shards, true)
            }
            Target::Uids(names) => (self.shards_of(&self.uids, names), confirm || names.len() != 1),
            Target::Groups(names) => (self.shards_of(&self.groups, names), confirm || names.len() != 1),
        };
        let known = if matches!(to, Target::All) { self.clients() > 0 } else { !shards.is_empty() };
        let mut delivering = Delivering { known: known && !ask, answers: Vec::new() };
        let copied = self.tails.any().then(|| Copied::new(&self.tails, &message));
        for shard in shards.iter() {
            let heard = ask.then(|| {
                let (heard, answer) = oneshot::channel();
                delivering.answers.push(answer);
                heard
            });
            let (to, except, message, copied) = (to.clone(), except.clone(), message.clone(), copied.clone());
            self.push(shard, Op::Deliver(Delivery { to, except, to_guests, message, copied, heard })).await?;
        }
        Ok(delivering)
    }

    /// Acts on the shard that holds a client, in order with the messages to it.
    pub async fn begin_at_client<T: Send + 'static>(
        &self,
        id: ClientId,
        act: impl FnOnce(&mut Shard) -> T + Send + 'static,
    ) -> Result<Begun<T>, Stopped> {
        Ok(Begun(vec![self.begin(self.shard_of(id), act).await?]))
    }

    /// Acts on every shard that holds any of these uids, and maybe on others.
    pub async fn begin_at_uids<T: Send + 'static>(
        &self,
        uids: &[Uid],
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Begun<T>, Stopped> {
        self.begin_at_shards(self.shards_of(&self.uids, uids), act).await
    }

    /// Acts on every shard that holds any of these groups, and maybe on others.
    pub async fn begin_at_groups<T: Send + 'static>(
        &self,
        groups: &[Group],
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Begun<T>, Stopped> {
        self.begin_at_shards(self.shards_of(&self.groups, groups), act).await
    }

    /// Acts on every shard.
    pub async fn at_all<T: Send + 'static>(
        &self,
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Stopped> {
        self.begin_at_all(act).await?.all().await
    }

    /// Acts on every shard.
    pub async fn begin_at_all<T: Send + 'static>(
        &self,
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Begun<T>, Stopped> {
        self.begin_at_shards(self.all_shards(), act).await
    }

    /// Acts on one shard.
    pub async fn at_shard<T: Send + 'static>(
        &self,
        shard: usize,
        act: impl FnOnce(&mut Shard) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.begin(shard, act).await?.await.map_err(|_| Stopped)
    }

    /// Ends up to `count` connections, whichever; returns how many.
    pub async fn close_some(&self, count: usize, close: &Close) -> Result<usize, Stopped> {
        let mut closed = 0;
        for shard in 0..self.inboxes.len() {
            if closed < count {
                let (count, close) = (count - closed, close.clone());
                closed += self.at_shard(shard, move |state| state.close_some(count, &close)).await?;
            }
        }
        Ok(closed)
    }

    /// Whether any client is bound to the uid.
    pub fn holds_uid(&self, uid: &Uid) -> bool {
        !self.uids.shards(uid).is_empty()
    }

    /// How many clients a uid has.
    pub fn uid_size(&self, uid: &Uid) -> usize {
        self.uids.clients(uid)
    }

    /// How many members a group has.
    pub fn group_size(&self, group: &Group) -> usize {
        self.groups.clients(group)
    }

    /// How many uids are online.
    pub fn uid_count(&self) -> usize {
        self.uids.len()
    }

    /// How many groups have members.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// How many topics are held here.
    pub fn topic_count(&self) -> usize {
        let everyone = usize::from(self.holds(&Topic::All));
        self.uid_count() + self.group_count() + everyone + self.others.topics.client_count()
    }

    /// Every uid, with its number of clients.
    pub fn for_each_uid(&self, visit: impl FnMut(&Uid, usize)) {
        self.uids.for_each(visit);
    }

    /// Every group, with its number of members.
    pub fn for_each_group(&self, visit: impl FnMut(&Group, usize)) {
        self.groups.for_each(visit);
    }

    /// Where to look for these names. Of one the index tells which shards hold it. Of several only the shards themselves
    /// can tell: a client that moves from one name to another in one step must be found under one of them. And so it is
    /// while there are changes in the inboxes, which the index does not know yet.
    fn shards_of<N: Hash + Eq + Clone>(&self, targets: &Targets<N>, names: &[N]) -> Shards {
        match names {
            [name] if self.changing.load(Ordering::Acquire) == 0 => targets.shards(name),
            _ => self.all_shards(),
        }
    }

    fn all_shards(&self) -> Shards {
        let mut shards = Shards::default();
        (0..self.inboxes.len()).for_each(|shard| shards.add(Shards::one(shard)));
        shards
    }

    async fn begin_at_shards<T: Send + 'static>(
        &self,
        shards: Shards,
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Begun<T>, Stopped> {
        let act = Arc::new(act);
        let mut begun = Vec::new();
        for shard in shards.iter() {
            let act = Arc::clone(&act);
            begun.push(self.begin(shard, move |state| act(state)).await?);
        }
        Ok(Begun(begun))
    }

    async fn begin<T: Send + 'static>(
        &self,
        shard: usize,
        act: impl FnOnce(&mut Shard) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Stopped> {
        let (done, answer) = oneshot::channel();
        let changing = Changing::new(&self.changing);
        let op = Op::Run(Box::new(move |state: &mut Shard| {
            let result = act(state);
            state.settle();
            drop(changing);
            // Whoever asked may have gone.
            drop(done.send(result));
        }));
        self.push(shard, op).await?;
        Ok(answer)
    }

    async fn push(&self, shard: usize, op: Op) -> Result<(), Stopped> {
        let inbox = self.inboxes.get(shard).ok_or(Stopped)?;
        inbox.send(op).await.map_err(|_| Stopped)
    }

    /// Connection ids are a random permutation, so this is even.
    fn shard_of(&self, id: ClientId) -> usize {
        id.connection as usize % self.inboxes.len()
    }
}

/// Counts what may change the indexes, from before it is in an inbox until it is done.
struct Changing(Arc<AtomicUsize>);

impl Changing {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A shard's task.
async fn run(mut shard: Shard, mut inbox: mpsc::Receiver<Op>, tick: Option<Tick>, metrics: Arc<Metrics>) {
    let parts = tick.as_ref().map_or(1, |tick| (tick.period.as_millis() / BEAT.as_millis()).clamp(1, 1024) as u32);
    let mut beats = tick.as_ref().map(|tick| {
        let each = tick.period / parts;
        let mut beats = interval_at(Instant::now() + each, each);
        // Each beat is another part of the clients: a late one is made up for.
        beats.set_missed_tick_behavior(MissedTickBehavior::Burst);
        beats
    });
    let mut part = 0;
    let (mut ops, mut pending) = (Vec::with_capacity(BATCH), VecDeque::new());
    loop {
        let beat = async {
            match &mut beats {
                Some(beats) => beats.tick().await,
                None => std::future::pending().await,
            }
        };
        let mut beaten = false;
        if shard.is_busy() || !pending.is_empty() {
            // Between two pieces of a broadcast: what is ready joins, nothing is waited for.
            beaten = beat.now_or_never().is_some();
            while pending.is_empty() && ops.len() < BATCH {
                match inbox.try_recv() {
                    Ok(op) => ops.push(op),
                    Err(_) => break,
                }
            }
        } else {
            tokio::select! {
                biased;
                _ = beat => beaten = true,
                received = inbox.recv_many(&mut ops, BATCH) => {
                    if received == 0 {
                        return;
                    }
                }
            }
        }
        pending.extend(ops.drain(..));
        let alone = pending.len() == 1 && !beaten && !shard.is_busy();
        if beaten || !pending.is_empty() {
            shard.append_rest();
        }
        if let (true, Some(tick)) = (beaten, &tick) {
            shard.tick(tick, part, parts as usize);
            shard.settle();
            part = (part + 1) % parts as usize;
        }
        let mut appended = 0;
        while appended < MOST_APPENDED
            && let Some(op) = pending.pop_front()
        {
            match op {
                Op::Deliver(delivery) => appended += shard.deliver(delivery, alone),
                Op::Insert { client, is_guest, request } => shard.insert(&client, is_guest, request),
                Op::Said { id, message } => shard.said(id, message),
                Op::Run(act) => act(&mut shard),
            }
            shard.settle();
        }
        if shard.is_busy() {
            shard.write_piece();
            shard.settle();
        }
        if shard.is_busy() || !pending.is_empty() {
            tokio::task::yield_now().await;
        }
        match shard.take_taken() {
            0 => {}
            taken => drop(metrics.deliveries.inc_by(taken)),
        }
    }
}
