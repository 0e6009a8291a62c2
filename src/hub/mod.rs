//! Who is on **this** node: clients, uids, groups, sessions. Memory only.
//!
//! The hub is the truth about its clients. It is cut into shards by client; each is owned by one task, which takes
//! what it shall do from its inbox, in order. See `shard` for the way of a message, and `client` for its end.

mod shard;
mod targets;

use std::collections::{BTreeSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use shard::{Delivery, Heard};
pub use shard::{Except, Shard, Target, TooManyGroups, View};
use targets::{Shards, Targets};

use crate::client::Client;
use crate::heartbeat::Tick;
use crate::id::{ClientId, Group, Uid};
use crate::message::{Close, Message};
use crate::metrics::Metrics;

/// Messages and changes that may wait for one shard; beyond it whoever brings one waits. A shard never blocks.
const INBOX: usize = 1024;

/// What a shard takes from its inbox at once.
const BATCH: usize = 256;

/// So many messages are put into outboxes, about 10 ms of work, before any is written and others have their turn.
const MOST_APPENDED: usize = 100_000;

/// Heartbeats are spread, so that a node does not write to all its clients in one moment: this often something is due.
const BEAT: Duration = Duration::from_millis(100);

enum Op {
    Deliver(Delivery),
    Insert(Arc<Client>, Option<Message>),
    Run(Box<dyn FnOnce(&mut Shard) + Send>),
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
    /// A hub of `shards` shards (1 to 64), each with its task.
    pub fn start(shards: usize, tick: Option<&Tick>, metrics: &Arc<Metrics>) -> (Self, ShardTasks) {
        let (uids, groups, clients) = (Arc::new(Targets::new()), Arc::new(Targets::new()), Arc::default());
        let mut tasks = JoinSet::new();
        let inboxes = (0..shards.clamp(1, Shards::MAX)).map(|index| {
            let (inbox, ops) = mpsc::channel(INBOX);
            let shard = Shard::new(index, Arc::clone(&uids), Arc::clone(&groups), Arc::clone(&clients));
            tasks.spawn(run(shard, ops, tick.cloned(), Arc::clone(metrics)));
            inbox
        });
        let inboxes = inboxes.collect();
        let hub = Self { inboxes, uids, groups, clients };
        (hub, ShardTasks(tasks))
    }

    /// How many clients are here.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Takes a client in; `first` is what it gets before anything else.
    pub async fn insert(&self, client: Arc<Client>, first: Option<Message>) -> Result<(), Stopped> {
        self.push(self.shard_of(client.id()), Op::Insert(client, first)).await
    }

    /// A client's socket has ended by itself; its owner is told what it had.
    pub async fn ended(&self, id: ClientId, close: Close) -> Result<(), Stopped> {
        self.push(self.shard_of(id), Op::Run(Box::new(move |shard| shard.ended(id, close)))).await
    }

    /// Sends to this node's share of a target. With `confirm` it is answered when every socket has taken or refused it.
    pub async fn deliver(
        &self,
        to: Target,
        except: Option<Arc<Except>>,
        message: Message,
        confirm: bool,
    ) -> Result<Delivered, Stopped> {
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
        let mut delivered = Delivered { held: BTreeSet::new(), clients: 0 };
        let known = if matches!(to, Target::All) { self.clients() > 0 } else { !shards.is_empty() };
        if known && !ask {
            delivered.held.insert(0);
        }
        let mut answers = Vec::new();
        for shard in shards.iter() {
            let heard = ask.then(|| {
                let (heard, answer) = oneshot::channel();
                answers.push(answer);
                heard
            });
            let delivery = Delivery { to: to.clone(), except: except.clone(), message: message.clone(), heard };
            self.push(shard, Op::Deliver(delivery)).await?;
        }
        for answer in answers {
            let Heard { held, took } = answer.await.map_err(|_| Stopped)?;
            delivered.held.extend(held);
            delivered.clients += took as u64;
        }
        Ok(delivered)
    }

    /// Acts on the shard that holds a client, in order with the messages to it.
    pub async fn at_client<T: Send + 'static>(
        &self,
        id: ClientId,
        act: impl FnOnce(&mut Shard) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.run(self.shard_of(id), act).await
    }

    /// Acts on every shard that holds any of these uids, and, if they are several, on others.
    pub async fn at_uids<T: Send + 'static>(
        &self,
        uids: &[Uid],
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Stopped> {
        self.at_shards(self.shards_of(&self.uids, uids), act).await
    }

    /// Acts on every shard that holds any of these groups, and, if they are several, on others.
    pub async fn at_groups<T: Send + 'static>(
        &self,
        groups: &[Group],
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Stopped> {
        self.at_shards(self.shards_of(&self.groups, groups), act).await
    }

    /// Acts on every shard.
    pub async fn at_all<T: Send + 'static>(
        &self,
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Stopped> {
        self.at_shards(self.all_shards(), act).await
    }

    /// Ends up to `count` connections, whichever; returns how many.
    pub async fn close_some(&self, count: usize, close: &Close) -> Result<usize, Stopped> {
        let mut closed = 0;
        for shard in 0..self.inboxes.len() {
            if closed < count {
                let (count, close) = (count - closed, close.clone());
                closed += self.run(shard, move |state| state.close_some(count, &close)).await?;
            }
        }
        Ok(closed)
    }

    /// Whether any client is bound to the uid.
    pub fn holds_uid(&self, uid: &Uid) -> bool {
        !self.uids.shards(uid).is_empty()
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

    /// Every uid, with its number of clients.
    pub fn for_each_uid(&self, visit: impl FnMut(&Uid, usize)) {
        self.uids.for_each(visit);
    }

    /// Every group, with its number of members.
    pub fn for_each_group(&self, visit: impl FnMut(&Group, usize)) {
        self.groups.for_each(visit);
    }

    /// Where to look for these names. Of one the index tells which shards hold it. Of several only the shards themselves
    /// can tell: a client that moves from one name to another in one step must be found under one of them.
    fn shards_of<N: Hash + Eq + Clone>(&self, targets: &Targets<N>, names: &[N]) -> Shards {
        match names {
            [name] => targets.shards(name),
            _ => self.all_shards(),
        }
    }

    fn all_shards(&self) -> Shards {
        let mut shards = Shards::default();
        (0..self.inboxes.len()).for_each(|shard| shards.add(Shards::one(shard)));
        shards
    }

    async fn at_shards<T: Send + 'static>(
        &self,
        shards: Shards,
        act: impl Fn(&mut Shard) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Stopped> {
        let act = Arc::new(act);
        let runs = shards.iter().map(|shard| {
            let act = Arc::clone(&act);
            self.run(shard, move |state| act(state))
        });
        join_all(runs).await.into_iter().collect()
    }

    async fn run<T: Send + 'static>(
        &self,
        shard: usize,
        act: impl FnOnce(&mut Shard) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (done, answer) = oneshot::channel();
        let op = Op::Run(Box::new(move |state: &mut Shard| {
            let result = act(state);
            state.settle();
            // Whoever asked may have gone.
            drop(done.send(result));
        }));
        self.push(shard, op).await?;
        answer.await.map_err(|_| Stopped)
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
                Op::Insert(client, first) => shard.insert(&client, first.as_ref()),
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
