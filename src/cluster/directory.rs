//! The shared index in Redis: uid → clients, group → clients, client → facts.
//!
//! **Writing.** One task takes what the hub's shards have written down since it looked last, and writes it in one
//! pipeline: first what is left, then this node's own index, then what is entered, last the index of those who are gone.
//! So a client is in the index before anything else names it and as long as anything does, wherever a crash cuts the
//! pipeline; whoever sweeps after this node finds all of it. Every write may be repeated. When Redis does not answer, the
//! same lot is written again after the lease is confirmed; what changes meanwhile is the next one. When Redis may have
//! lost data, all that the hub holds is written, and all that stands in our index and is not held is removed. Where many
//! wait for what changes, it is written at most every 2 ms.
//!
//! **Reading.** Queries are answered from Redis alone, never by asking nodes: they need no node to be well.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::bus::Bus;
use super::keys::{Channel, Keys};
use super::redis::{Command, Connection, RedisError, Reply};
use super::{Clock, Shared, Tell};
use crate::event::{About, Event, Events, Kind, Number, Room, What};
use crate::hub::{Change, Hub, Noted, Rebound, Single, Told, Topic, Untold, left_of};
use crate::id::{ClientId, Group, LanAddress, Uid};
use crate::metrics;
use crate::session::Session;
use crate::vitals::{Node, Vitals};

/// Clients in one command.
const CLIENTS: usize = 500;

/// Sets beyond this size are read in pieces.
const WHOLE: u64 = 10_000;

/// After a lot for which [`MANY`] waited the next one is taken so much later at the earliest (tokio makes 2 to 3 ms of it):
/// fewer round trips, and fewer turns of the processes. Where 64 come and go at a time, and Redis and nodes share a
/// processor, each costs 10 % less on one node and 22 % less on two; ANALYSIS.md has the others, and what it costs.
pub(super) const TICK: Duration = Duration::from_millis(2);

/// So many who wait are many: callers, newcomers, and clients that were let go. One who asks for one thing after the other
/// is one in each shard at the most, and is not held up by what it has changed itself, unless it closes many clients.
const MANY: usize = 8;

/// Between two looks at what is stuck.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks at this node's own index.
const INDEX: Duration = Duration::from_secs(5);

/// Clients that were let go wait so long for Redis to know, and then no longer.
const FAREWELL: Duration = Duration::from_secs(5);

/// And so long while Redis is known to be away: nobody can ask for them either.
const FAREWELL_WITHOUT_REDIS: Duration = Duration::from_millis(500);

/// A client in a node's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: ClientId,
    /// Its uid.
    pub uid: Option<Uid>,
    /// Its groups.
    pub groups: Vec<Group>,
}

impl Entry {
    /// Reads what [`index_value`] wrote; none for anything else.
    pub(super) fn read(id: &str, value: &str) -> Option<Self> {
        let names: Vec<Option<String>> = serde_json::from_str(value).ok()?;
        let mut names = names.into_iter();
        let uid = names.next()?.and_then(|uid| uid.parse().ok());
        let groups = names.filter_map(|group| group?.parse().ok()).collect();
        Some(Self { id: id.parse().ok()?, uid, groups })
    }
}

/// What Redis knows of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its uid.
    pub uid: Option<Uid>,
    /// Its session.
    pub session: Option<Session>,
    /// The node that holds it.
    pub node: String,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// When it has connected, unix ms.
    pub connected_at: Option<u64>,
}

/// A client's uid and groups as they stand in the index.
pub(super) fn index_value(uid: Option<&Uid>, groups: &[Group]) -> String {
    let names: Vec<Option<&str>> =
        std::iter::once(uid.map(Uid::as_str)).chain(groups.iter().map(|group| Some(group.as_str()))).collect();
    // Strings: this cannot fail.
    serde_json::to_string(&names).unwrap_or_default()
}

/// The writer.
pub(super) struct Directory {
    shared: Arc<Shared>,
    bus: Arc<Bus>,
    hub: Arc<Hub>,
    /// Redis may have lost data: compare.
    compare: AtomicBool,
    wake: Notify,
    /// Where those are told of who have left.
    tell: Tell,
    /// Until when the lease lasts, as far as this node knows.
    lease: Mutex<Option<Instant>>,
    /// Clients in this run's index by what Redis answered, and when it was last looked at.
    indexed: Mutex<Indexed>,
}

#[derive(Default)]
struct Indexed {
    run: String,
    clients: Option<u64>,
    looked: Option<Instant>,
}

impl Directory {
    pub(super) fn new(shared: Arc<Shared>, bus: Arc<Bus>, hub: Arc<Hub>, tell: Tell) -> Self {
        let (compare, wake, lease) = (AtomicBool::new(false), Notify::new(), Mutex::new(None));
        Self { shared, bus, hub, compare, wake, tell, lease, indexed: Mutex::default() }
    }

    /// The lease is confirmed: until then this node may write.
    pub(super) fn may_write(&self, until: Option<Instant>) {
        *self.lease.lock() = until;
        self.wake.notify_one();
    }

    /// Redis may have lost data, or have some back that is over.
    pub(super) fn compare(&self) {
        self.compare.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn connection(&self) -> Option<Connection> {
        let leased = self.lease.lock().is_some_and(|until| Instant::now() < until);
        if leased && *self.shared.member.borrow() { self.shared.link.get().ok() } else { None }
    }

    pub(super) async fn run(self: Arc<Self>) {
        let changed = Arc::clone(&self.hub.others().changed);
        // Taken and tried, and not known to be written; as whom.
        let mut stuck: Option<(String, Untold)> = None;
        let mut left = Vec::new();
        let mut not_before = Instant::now();
        loop {
            if stuck.is_none() {
                sleep_until(not_before).await;
                tokio::select! {
                    () = changed.notified() => {}
                    () = self.wake.notified() => {}
                    () = sleep(PATIENCE) => {}
                }
            }
            let Some(connection) = self.connection() else {
                if self.shared.link.is_up() {
                    // It answers, and takes no lease.
                    self.refuse("Redis takes no writes".to_owned()).await;
                }
                self.release_overdue(FAREWELL_WITHOUT_REDIS).await;
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep(PATIENCE) => {}
                }
                continue;
            };
            let run = self.shared.identity().run.clone();
            // What was to be told of a run that was swept is told by others.
            let mut stuck_lot = match stuck.take() {
                Some((of, lot)) if of == run => Some(lot),
                Some((_, lot)) => {
                    left = left_of(lot.noted, self.hub.events());
                    None
                }
                None => None,
            };
            let mut again = stuck_lot.is_some();
            if stuck_lot.is_none() {
                self.look_at_index(&connection, &run).await;
            }
            if self.compare.swap(false, Ordering::AcqRel) {
                self.indexed.lock().clients = None;
                let known = stuck_lot.as_ref().map(|lot| &*lot.changes).unwrap_or_default();
                let difference = self.difference(&connection, known);
                match self.releasing(difference).await {
                    Ok(mut lot) => {
                        let noted = stuck_lot.take().map(|stuck| stuck.noted).unwrap_or_default();
                        lot.noted.splice(0..0, noted);
                        (stuck_lot, again) = (Some(lot), true);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot compare with Redis yet");
                        self.compare.store(true, Ordering::Release);
                        stuck = stuck_lot.map(|lot| (run, lot));
                        if matches!(error, RedisError::Refused { .. }) {
                            self.refuse(error.to_string()).await;
                        }
                        self.releasing(sleep(PATIENCE)).await;
                        continue;
                    }
                }
            }
            let mut lot = match stuck_lot {
                Some(lot) => lot,
                None => match self.take().await {
                    Some(lot) => {
                        if lot.waiting >= MANY && lot.waiting > self.hub.shards() {
                            not_before = Instant::now() + TICK;
                        }
                        lot
                    }
                    None if left.is_empty() => continue,
                    None => Untold::default(),
                },
            };
            lot.noted.splice(0..0, left.drain(..));
            // First it is heard, then it is found: whoever finds in Redis that a target is held, or that it is not, reaches
            // it, or nobody.
            self.confirmed(self.hub.others().topics.count()).await;
            let Some(connection) = self.connection() else {
                stuck = Some((run, lot));
                continue;
            };
            // The connection may be to another server by now. In an index that stands there from earlier nothing may be
            // written over before it was compared: it says what has to be removed. And a new run has nothing of the last.
            if self.compare.load(Ordering::Acquire) || self.shared.identity().run != run {
                stuck = Some((run, lot));
                continue;
            }
            let Written { told, mut uids, .. } = match self.releasing(self.write(&connection, &lot, again)).await {
                Ok(written) => written,
                Err(error) => {
                    self.shared.metrics.directory_retries.inc();
                    tracing::warn!(%error, clients = lot.changes.len(), "cannot write to Redis; trying again");
                    stuck = Some((run, lot));
                    if matches!(error, RedisError::Refused { .. }) {
                        self.refuse(error.to_string()).await;
                    }
                    self.release_overdue(FAREWELL).await;
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = sleep(PATIENCE) => {}
                    }
                    continue;
                }
            };
            self.tell_events(lot.noted, &mut uids);
            self.told(told).await;
        }
    }

    /// What stands on the stream by now goes to the webhook, too, with what Redis has said of uids.
    fn tell_events(&self, noted: Vec<Noted>, uids: &mut HashMap<usize, Vec<(Uid, What)>>) {
        let events = self.hub.events();
        for (place, noted) in noted.into_iter().enumerate() {
            match noted {
                Noted::Event(event) => events.tell(event),
                Noted::Uid(mut rebound) => {
                    let changes = uids.remove(&place).unwrap_or_default();
                    for (uid, what) in changes {
                        events.tell(rebound.event(&uid, what));
                    }
                }
            }
        }
    }

    /// Nobody but this task writes the index: another length means that somebody has deleted what is in it.
    async fn look_at_index(&self, connection: &Connection, run: &str) {
        {
            let mut indexed = self.indexed.lock();
            if indexed.looked.is_some_and(|at| at.elapsed() < INDEX) {
                return;
            }
            indexed.looked = Some(Instant::now());
            if indexed.run != run {
                (indexed.run, indexed.clients) = (run.to_owned(), None);
            }
        }
        let Ok(length) = connection.call(Command::hlen(self.shared.keys.index(run))).await else { return };
        let before = self.indexed.lock().clients.replace(length.number());
        if before.is_some_and(|before| before != length.number()) {
            tracing::warn!(
                expected = before,
                found = length.number(),
                "this node's index in Redis was changed by others"
            );
            self.compare.store(true, Ordering::Release);
        }
    }

    /// What the shards have written down since the last time; none when there is nothing.
    async fn take(&self) -> Option<Untold> {
        let mut lot = None;
        for shard in 0..self.hub.shards() {
            if let Ok(Some(Untold { changes, noted, waiting })) =
                self.hub.at_shard(shard, crate::hub::Shard::take_untold).await
            {
                let lot: &mut Untold = lot.get_or_insert_default();
                lot.waiting += waiting;
                lot.changes.extend(changes);
                lot.noted.extend(noted);
            }
        }
        lot
    }

    /// All that the hub holds, and what stands in our index and is not held. Of the lot that is `stuck` a part may have
    /// been written, before Redis lost what it had, or after: what it takes back is taken back again.
    async fn difference(&self, connection: &Connection, stuck: &[(ClientId, Change)]) -> Result<Untold, RedisError> {
        let reader = Reader { keys: &self.shared.keys, connection: connection.clone() };
        let mut index: HashMap<ClientId, Entry> = HashMap::new();
        reader
            .for_each_entry(&self.shared.identity().run, |id, value| {
                index.extend(Entry::read(&id, &value).map(|entry| (entry.id, entry)));
            })
            .await?;
        // A stopping hub holds nobody.
        let held = self.hub.at_all(crate::hub::Shard::take_everything).await.unwrap_or_default();
        let (mut lot, mut noted) = (HashMap::new(), Vec::new());
        for untold in held {
            lot.extend(untold.changes);
            noted.extend(untold.noted);
        }
        tracing::warn!(held = lot.len(), indexed = index.len(), "compared with Redis: writing what is held");
        let indexed = index.into_values().map(|entry| {
            let uids_were = entry.uid.into_iter().collect();
            (entry.id, Change { gone: true, uids_were, left: entry.groups, ..Change::default() })
        });
        for (id, earlier) in indexed.chain(stuck.iter().cloned()) {
            match lot.entry(id) {
                hash_map::Entry::Occupied(mut change) => change.get_mut().repeat(&earlier),
                hash_map::Entry::Vacant(place) => drop(place.insert(Change { gone: true, ..earlier })),
            }
        }
        noted.extend(self.bound_again(&lot, &noted, stuck));
        self.shared.metrics.directory_compared.inc();
        Ok(Untold { changes: lot.into_iter().collect(), noted, waiting: 0 })
    }

    /// Whose uid Redis has lost is told to be bound again, with a newer `seq`: others may have been told meanwhile that it is
    /// offline. Not of those of whom more is to be told.
    fn bound_again(
        &self,
        lot: &HashMap<ClientId, Change>,
        noted: &[Noted],
        stuck: &[(ClientId, Change)],
    ) -> Vec<Noted> {
        let events = self.hub.events();
        if !events.has(Kind::Bound) {
            return Vec::new();
        }
        let told = noted.iter().filter_map(|noted| match noted {
            Noted::Uid(rebound) => Some(rebound.about.client_id),
            Noted::Event(_) => None,
        });
        let told: HashSet<ClientId> = told.chain(stuck.iter().map(|(id, _)| *id)).collect();
        let (origin, at) = (events.origin(), jiff::Timestamp::now().as_millisecond().unsigned_abs());
        let bound = lot.iter().filter(|(id, change)| change.bound && !change.gone && !told.contains(id));
        let again = bound.filter_map(|(id, change)| {
            let (session, groups) = (change.session.clone(), change.groups.clone());
            let about =
                About { client_id: *id, origin: Arc::clone(&origin), number: Number::Again(at), session, groups, at };
            let room = events.room(Kind::Bound, about.length())?;
            Some(Noted::Uid(Rebound::again(about, room)))
        });
        again.collect()
    }

    /// Writes a lot. `again`: it may have been written before, so nobody can tell by now who of a uid was first.
    async fn write(&self, connection: &Connection, lot: &Untold, again: bool) -> Result<Written, RedisError> {
        let (keys, identity, events) = (&self.shared.keys, self.shared.identity(), self.hub.events());
        let mut written = Written::default();
        if again {
            let singles = lot.changes.iter().filter(|(_, change)| change.single);
            written.told.refused.extend(singles.map(|(id, _)| (*id, "Redis went away in the middle".to_owned())));
        }
        // Until all is written, it is not known how long the index is.
        let indexed = self.indexed.lock().clients.take();
        if keys.are_sharded() {
            let (steps, end) = writes_in_steps(lot, keys, &identity, events, again);
            for step in steps {
                self.write_some(connection, step, again, &mut written).await?;
            }
            let told = events_of(lot, keys, events, &written.uids);
            self.write_some(connection, told, again, &mut written).await?;
            self.write_some(connection, end, again, &mut written).await?;
        } else {
            let writes = writes_in_order(lot, keys, &identity, events, again);
            self.write_some(connection, writes, again, &mut written).await?;
        }
        self.indexed.lock().clients = indexed.map(|clients| clients.saturating_add_signed(written.grown));
        Ok(written)
    }

    async fn write_some(
        &self,
        connection: &Connection,
        writes: Vec<Write>,
        again: bool,
        written: &mut Written,
    ) -> Result<(), RedisError> {
        let Written { told, uids, grown } = written;
        let (commands, notes): (Vec<_>, Vec<_>) =
            writes.into_iter().map(|Write { command, clients, yields }| (command, (clients, yields))).unzip();
        for (reply, (clients, yields)) in connection.pipeline(commands).await?.into_iter().zip(notes) {
            match (reply, yields) {
                (Ok(_), Yields::Else) => {}
                (Ok(reply), Yields::Index { longer: true }) => *grown += reply.number().cast_signed(),
                (Ok(reply), Yields::Index { longer: false }) => *grown -= reply.number().cast_signed(),
                (Ok(reply), Yields::Uid(written)) => {
                    let reply = reply.list();
                    let (changed, what) = read_uid_change(written.kind, &reply);
                    if let Some(place) = written.place.filter(|_| changed || again && written.is_news) {
                        uids.entry(place).or_default().push((written.uid, what));
                    }
                    if written.single
                        && let Some(id) = clients.first()
                    {
                        let order = reply.first().map_or(0, Reply::number);
                        let others = reply.into_iter().skip(3).filter_map(Reply::text);
                        let others = others.filter_map(|other| other.parse().ok()).collect();
                        told.singles.insert(*id, Single { order, others });
                    }
                }
                (Err(error), _) if error.is_server_wide() => return Err(error),
                (Err(error), _) => {
                    tracing::error!(%error, "Redis refused a change");
                    self.shared.metrics.directory_refused.inc();
                    told.refused.extend(clients.into_iter().map(|id| (id, error.to_string())));
                }
            }
        }
        Ok(())
    }

    /// Waits until the server knows what this node wants to hear, or this node has no place among the others any more.
    async fn confirmed(&self, topics: u64) {
        let mut member = self.shared.member.subscribe();
        let confirmed = async {
            tokio::select! {
                biased;
                () = self.bus.confirmed(topics) => {}
                _ = member.wait_for(|member| !*member) => {}
            }
        };
        self.releasing(confirmed).await;
    }

    async fn told(&self, told: Told) {
        // A stopping hub has nobody left who waits.
        let departed = self.hub.at_all(move |shard| shard.told(&told)).await.unwrap_or_default();
        for departed in departed.into_iter().flatten() {
            self.tell.tell(departed).await;
        }
    }

    /// What waits to be written stays so; whoever waits for it hears why.
    async fn refuse(&self, reason: String) {
        self.hub.at_all(move |shard| shard.refuse_changes(&reason)).await.ok();
    }

    /// However long something takes, those that were let go wait only for so long.
    async fn releasing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(PATIENCE) => self.release_overdue(FAREWELL).await,
            }
        }
    }

    async fn release_overdue(&self, age: Duration) {
        self.hub.at_all(move |shard| shard.release_overdue(age)).await.ok();
    }

    /// Sends to one client: says whether Redis knows it and a node heard.
    pub(super) async fn publish_to_client(&self, id: ClientId, payload: Bytes) -> Result<bool, RedisError> {
        let connection = self.shared.link.get()?;
        let (keys, channel) = (&self.shared.keys, Channel::Topic(Topic::Client(id)));
        let publish = connection.publication(keys.channel(&channel), payload);
        let replies = connection.pipeline(vec![Command::exists(keys.client(id)), publish]).await?;
        self.shared.metrics.bus_published.get_or_create(&metrics::Kind { kind: "client" }).inc();
        let mut there = true;
        for reply in replies {
            there &= reply?.number() > 0;
        }
        Ok(there)
    }
}

/// What came of a lot.
#[derive(Default)]
struct Written {
    told: Told,
    /// By the place where it was noted, what became of a client's uids.
    uids: HashMap<usize, Vec<(Uid, What)>>,
    /// How many clients the index has more.
    grown: i64,
}

/// One command of a lot, and whom it concerns.
struct Write {
    command: Command,
    clients: Vec<ClientId>,
    yields: Yields,
}

/// What its reply tells.
enum Yields {
    /// How many clients the index has more, or less.
    Index {
        longer: bool,
    },
    /// When a uid has changed, and whom its only client replaces.
    Uid(UidWritten),
    Else,
}

/// A client was bound to a uid, or unbound.
struct UidWritten {
    /// Where that was noted, if it is told.
    place: Option<usize>,
    /// Whoever was told of it knows nothing newer: it is told, also where it is not known whether this has written it.
    is_news: bool,
    kind: Kind,
    uid: Uid,
    single: bool,
}

impl Write {
    fn of(id: ClientId, command: Command) -> Self {
        Self { command, clients: vec![id], yields: Yields::Else }
    }
}

/// Sets to which clients are added, or from which they are taken: one command for all clients of a set.
type Sets = BTreeMap<String, Vec<ClientId>>;

/// Of clients whose uid has changed, where that was noted; of several such changes, the last.
fn rebound(lot: &Untold) -> HashMap<ClientId, (usize, &Rebound)> {
    let places = lot.noted.iter().enumerate().filter_map(|(place, noted)| match noted {
        Noted::Uid(rebound) => Some((rebound.about.client_id, (place, rebound))),
        Noted::Event(_) => None,
    });
    places.collect()
}

/// Binds or unbinds a client of whom that is told.
fn rebind(
    (place, rebound): (usize, &Rebound),
    keys: &Keys,
    events: &Events,
    uid: &Uid,
    kind: Kind,
    single: bool,
) -> Write {
    let is_news = !matches!(rebound.about.number, Number::Again(_));
    let command = change_uid(keys, events, &rebound.about, uid, kind, single);
    let written = UidWritten { place: Some(place), is_news, kind, uid: uid.clone(), single };
    Write { command, clients: vec![rebound.about.client_id], yields: Yields::Uid(written) }
}

/// The commands of a lot, for one server, which does them in order. First what changes for all clients, in few commands;
/// then what has happened, in order, and with it the uids of those of whom that is told: so a uid's set and the stream have
/// one order. Last the index of those who are gone.
fn writes_in_order(lot: &Untold, keys: &Keys, identity: &super::Identity, events: &Events, again: bool) -> Vec<Write> {
    let rebound = rebound(lot);
    let (mut all, mut apart) = (Steps::default(), HashMap::new());
    for (id, change) in &lot.changes {
        if !rebound.contains_key(id) {
            all.add(*id, change, keys, identity);
            all.uids(*id, change, keys, again);
        } else if change.gone || unbound(change).next().is_none() {
            all.add(*id, change, keys, identity);
            apart.insert(*id, (change, Steps::default()));
        } else {
            // Its index names the old uid until that is left.
            let mut steps = Steps::default();
            steps.add(*id, change, keys, identity);
            apart.insert(*id, (change, steps));
        }
    }
    let index = keys.index(&identity.run);
    let mut writes: Vec<Write> = all.begin(keys, &index).into_iter().flatten().collect();
    for (place, noted) in lot.noted.iter().enumerate() {
        match noted {
            Noted::Event(event) => writes.extend(told_on_stream(event, keys, events)),
            Noted::Uid(noted) => {
                let id = noted.about.client_id;
                let Some(at) = rebound.get(&id).copied().filter(|(last, _)| *last == place) else { continue };
                let Some((change, mut steps)) = apart.remove(&id) else { continue };
                writes.extend(unbound(change).map(|uid| rebind(at, keys, events, uid, Kind::Unbound, false)));
                writes.extend(steps.begin(keys, &index).into_iter().flatten());
                if let (Some(uid), true, false) = (&change.uid, change.bound, change.gone) {
                    writes.push(rebind(at, keys, events, uid, Kind::Bound, change.single && !again));
                }
            }
        }
    }
    writes.extend(all.end(&index));
    writes
}

/// The commands of a lot, for a Cluster, whose servers know no common order: steps, each of which is done before the next
/// one begins, and the last of all. Between them it is told what has happened, as then it is known what became of uids.
fn writes_in_steps(
    lot: &Untold,
    keys: &Keys,
    identity: &super::Identity,
    events: &Events,
    again: bool,
) -> ([Vec<Write>; 3], Vec<Write>) {
    let rebound = rebound(lot);
    let (mut all, mut left, mut entered) = (Steps::default(), Vec::new(), Vec::new());
    for (id, change) in &lot.changes {
        all.add(*id, change, keys, identity);
        let Some(at) = rebound.get(id).copied() else {
            all.uids(*id, change, keys, again);
            continue;
        };
        left.extend(unbound(change).map(|uid| rebind(at, keys, events, uid, Kind::Unbound, false)));
        if let (Some(uid), true, false) = (&change.uid, change.bound, change.gone) {
            entered.push(rebind(at, keys, events, uid, Kind::Bound, change.single && !again));
        }
    }
    let index = keys.index(&identity.run);
    let mut steps = all.begin(keys, &index);
    let [first, _, last] = &mut steps;
    first.extend(left);
    last.extend(entered);
    (steps, all.end(&index))
}

/// What has happened, for the stream of a Cluster, which no script of a uid can write.
fn events_of(lot: &Untold, keys: &Keys, events: &Events, uids: &HashMap<usize, Vec<(Uid, What)>>) -> Vec<Write> {
    let told = lot.noted.iter().enumerate().flat_map(|(place, noted)| match noted {
        Noted::Event(event) => told_on_stream(event, keys, events).into_iter().collect::<Vec<_>>(),
        Noted::Uid(rebound) => {
            let changes = uids.get(&place).into_iter().flatten();
            let told = changes.filter_map(|(uid, what)| {
                told_on_stream(&rebound_event(&rebound.about, uid, what.clone()), keys, events)
            });
            told.collect()
        }
    });
    told.collect()
}

fn told_on_stream(event: &Event, keys: &Keys, events: &Events) -> Option<Write> {
    let is_told = events.is_for_stream(event.what.kind());
    is_told.then(|| Write::of(event.about.client_id, add_event(keys, events, event.to_fields())))
}

/// That a client was bound or unbound.
pub(super) fn rebound_event(about: &About, uid: &Uid, what: What) -> Event {
    Event { about: about.clone(), uid: Some(uid.clone()), what, room: Room::default() }
}

/// The uids that a client has no more.
fn unbound(change: &Change) -> impl Iterator<Item = &Uid> {
    change.uids_were.iter().filter(|uid| change.gone || change.uid.as_ref() != Some(uid))
}

/// What changes for some clients, in the order in which it is written.
#[derive(Default)]
struct Steps {
    left: Sets,
    removed: Vec<Write>,
    indexed: Vec<(ClientId, String)>,
    facts: Vec<Write>,
    entered: Sets,
    gone: Vec<ClientId>,
}

impl Steps {
    /// All but the sets of uids.
    fn add(&mut self, id: ClientId, change: &Change, keys: &Keys, identity: &super::Identity) {
        for group in &change.left {
            self.left.entry(keys.group_clients(group)).or_default().push(id);
        }
        if change.gone {
            self.gone.push(id);
            return;
        }
        if !change.left.is_empty() {
            let command = Command::srem(keys.client_groups(id));
            self.removed.push(Write::of(id, command.args(change.left.iter().map(Group::as_str))));
        }
        let (bound, unbound) = (change.bound, change.uid.is_none() && !change.uids_were.is_empty());
        if change.arrived.is_some() || bound || unbound || !change.joined.is_empty() || !change.left.is_empty() {
            self.indexed.push((id, index_value(change.uid.as_ref(), &change.groups)));
        }
        let mut fields: Vec<String> = Vec::new();
        let mut field = |name: &str, value: String| fields.extend([name.to_owned(), value]);
        if let Some(arrival) = change.arrived {
            field("node", identity.node_id.clone());
            field("ip", arrival.peer.ip().to_string());
            field("connected_at", arrival.connected_at.to_string());
        }
        if let (Some(uid), true) = (&change.uid, bound) {
            field("uid", uid.as_str().to_owned());
        }
        if let Some(session) = &change.session {
            field("session", session.as_str().to_owned());
        }
        if !fields.is_empty() {
            self.facts.push(Write::of(id, Command::hset(keys.client(id)).args(fields)));
        }
        if unbound {
            self.facts.push(Write::of(id, Command::hdel(keys.client(id)).arg("uid")));
        }
        if !change.joined.is_empty() {
            let command = Command::sadd(keys.client_groups(id));
            self.facts.push(Write::of(id, command.args(change.joined.iter().map(Group::as_str))));
        }
        for group in &change.joined {
            self.entered.entry(keys.group_clients(group)).or_default().push(id);
        }
    }

    /// The sets of its uids.
    fn uids(&mut self, id: ClientId, change: &Change, keys: &Keys, again: bool) {
        for uid in unbound(change) {
            self.left.entry(keys.uid_clients(uid)).or_default().push(id);
        }
        let (Some(uid), true, false) = (&change.uid, change.bound, change.gone) else { return };
        if change.single && !again {
            let command = Command::script(UID, [keys.uid_clients(uid)]).arg(id).arg("single");
            let written = UidWritten { place: None, is_news: false, kind: Kind::Bound, uid: uid.clone(), single: true };
            self.facts.push(Write { command, clients: vec![id], yields: Yields::Uid(written) });
        } else {
            self.entered.entry(keys.uid_clients(uid)).or_default().push(id);
        }
    }

    /// What is left; this node's own index; what is entered.
    fn begin(&mut self, keys: &Keys, index: &str) -> [Vec<Write>; 3] {
        let sets = |writes: &mut Vec<Write>, sets: Sets, start: fn(String) -> Command| {
            for (set, ids) in sets {
                for ids in ids.chunks(CLIENTS) {
                    let command = start(set.clone()).args(ids.iter().copied());
                    writes.push(Write { command, clients: ids.to_vec(), yields: Yields::Else });
                }
            }
        };
        let mut left = Vec::new();
        sets(&mut left, std::mem::take(&mut self.left), Command::srem);
        left.append(&mut self.removed);
        left.extend(self.of_gone(
            || Yields::Else,
            |ids| {
                let mut names = ids.iter().flat_map(|id| [keys.client(*id), keys.client_groups(*id)]);
                Command::del(names.next().unwrap_or_default()).args(names)
            },
        ));
        let indexed = self.indexed.chunks(CLIENTS).map(|entries| {
            let command =
                entries.iter().fold(Command::hset(index), |command, (id, value)| command.arg(*id).arg(value.as_str()));
            let clients = entries.iter().map(|(id, _)| *id).collect();
            Write { command, clients, yields: Yields::Index { longer: true } }
        });
        let indexed = indexed.collect();
        let mut entered = std::mem::take(&mut self.facts);
        sets(&mut entered, std::mem::take(&mut self.entered), Command::sadd);
        [left, indexed, entered]
    }

    fn end(&self, index: &str) -> Vec<Write> {
        self.of_gone(|| Yields::Index { longer: false }, |ids| Command::hdel(index).args(ids.iter().copied()))
    }

    /// A command for all who are gone.
    fn of_gone(&self, yields: impl Fn() -> Yields, command: impl Fn(&[ClientId]) -> Command) -> Vec<Write> {
        let write = |ids: &[ClientId]| Write { command: command(ids), clients: ids.to_vec(), yields: yields() };
        self.gone.chunks(CLIENTS).map(write).collect()
    }
}

const UID: &str = include_str!("scripts/uid.lua");

/// Binds or unbinds a client, and tells it; but on Cluster, where the stream has a slot of its own.
pub(super) fn change_uid(keys: &Keys, events: &Events, about: &About, uid: &Uid, kind: Kind, single: bool) -> Command {
    let mut names = vec![keys.uid_clients(uid), keys.uid_seq(uid)];
    let mut fields = Vec::new();
    if events.is_for_stream(kind) && !keys.are_sharded() {
        names.push(keys.events());
        // What Redis finds out comes last.
        let what = if kind == Kind::Bound {
            What::Bound { first: false, seq: 0 }
        } else {
            What::Unbound { last: false, seq: 0 }
        };
        fields = rebound_event(about, uid, what).to_fields();
        fields.truncate(fields.len().saturating_sub(4));
    }
    let op = if single { "single" } else { kind.name() };
    Command::script(UID, names).arg(about.client_id).arg(op).arg(events.max_len()).args(fields)
}

/// Puts an event on the stream.
pub(super) fn add_event(keys: &Keys, events: &Events, fields: Vec<Bytes>) -> Command {
    Command::xadd(keys.events()).arg("MAXLEN").arg("~").arg(events.max_len()).arg("*").args(fields)
}

/// Commands that take the clients of a dead node out of everything but their own hash and its index, their uids in the
/// order of the clients; those of whose uids it is told, by a command each.
pub(super) fn removal(keys: &Keys, events: &Events, gone: &[(Entry, About)]) -> (Vec<Command>, Vec<Command>) {
    let (mut left, mut unbound) = (Sets::new(), Vec::new());
    for (entry, about) in gone {
        if let Some(uid) = &entry.uid {
            if events.has(Kind::Unbound) {
                let about = About { number: Number::LastUnbound, ..about.clone() };
                unbound.push(change_uid(keys, events, &about, uid, Kind::Unbound, false));
            } else {
                left.entry(keys.uid_clients(uid)).or_default().push(entry.id);
            }
        }
        for group in &entry.groups {
            left.entry(keys.group_clients(group)).or_default().push(entry.id);
        }
    }
    let sets = left.into_iter().map(|(set, ids)| Command::srem(set).args(ids));
    let hashes = gone.iter().map(|(entry, _)| Command::del(keys.client_groups(entry.id)));
    (sets.chain(hashes).collect(), unbound)
}

/// What the reply to [`change_uid`] tells.
pub(super) fn read_uid_change(kind: Kind, reply: &[Reply]) -> (bool, What) {
    let number = |place: usize| reply.get(place).map_or(0, Reply::number);
    let (seq, changed, clients) = (number(0), number(1) == 1, number(2));
    let what = match kind {
        Kind::Bound => What::Bound { first: clients == 1, seq },
        _ => What::Unbound { last: clients == 0, seq },
    };
    (changed, what)
}

/// The reader.
pub(super) struct Reader<'a> {
    pub(super) keys: &'a Keys,
    pub(super) connection: Connection,
}

impl Reader<'_> {
    async fn many(&self, commands: Vec<Command>) -> Result<Vec<Reply>, RedisError> {
        self.connection.pipeline(commands).await?.into_iter().collect()
    }

    async fn sizes(&self, sets: &[String]) -> Result<Vec<u64>, RedisError> {
        let replies = self.many(sets.iter().map(|set| Command::scard(set.as_str())).collect()).await?;
        Ok(replies.iter().map(Reply::number).collect())
    }

    /// The members of sets; large ones in pieces, so that Redis serves others in between.
    async fn sets(&self, names: Vec<String>) -> Result<Vec<Vec<ClientId>>, RedisError> {
        let sizes = self.sizes(&names).await?;
        let mut small = Vec::new();
        for (name, size) in names.iter().zip(&sizes) {
            if *size <= WHOLE {
                small.push(Command::smembers(name.as_str()));
            }
        }
        let mut whole = self.many(small).await?.into_iter();
        let mut sets = Vec::with_capacity(names.len());
        for (name, size) in names.iter().zip(sizes) {
            let mut members: Vec<ClientId> = Vec::new();
            if size <= WHOLE {
                members.extend(whole.next().into_iter().flat_map(client_ids));
            } else {
                let all = |items| {
                    members.extend(client_ids(items));
                    true
                };
                self.scan(Command::sscan(name.as_str()), all).await?;
                members.sort_unstable();
                members.dedup();
            }
            sets.push(members);
        }
        Ok(sets)
    }

    /// Goes through a large set or hash, as long as `take` wants more; returns whether it came to the end.
    async fn scan(&self, scan: Command, mut take: impl FnMut(Reply) -> bool + Send) -> Result<bool, RedisError> {
        let mut cursor = "0".to_owned();
        loop {
            let scan = scan.clone().arg(cursor.as_str()).arg("COUNT").arg(1000);
            let mut parts = self.connection.call(scan).await?.list().into_iter();
            cursor = parts.next().and_then(Reply::text).unwrap_or_else(|| "0".to_owned());
            let is_enough = parts.next().is_some_and(|items| !take(items));
            if cursor == "0" || is_enough {
                return Ok(cursor == "0");
            }
        }
    }

    pub(super) async fn clients_of_uids(&self, uids: &[Uid]) -> Result<Vec<Vec<ClientId>>, RedisError> {
        self.sets(uids.iter().map(|uid| self.keys.uid_clients(uid)).collect()).await
    }

    pub(super) async fn uid_sizes(&self, uids: &[Uid]) -> Result<Vec<u64>, RedisError> {
        self.sizes(&uids.iter().map(|uid| self.keys.uid_clients(uid)).collect::<Vec<_>>()).await
    }

    pub(super) async fn members(&self, groups: &[Group]) -> Result<Vec<Vec<ClientId>>, RedisError> {
        self.sets(groups.iter().map(|group| self.keys.group_clients(group)).collect()).await
    }

    pub(super) async fn group_sizes(&self, groups: &[Group]) -> Result<Vec<u64>, RedisError> {
        self.sizes(&groups.iter().map(|group| self.keys.group_clients(group)).collect::<Vec<_>>()).await
    }

    pub(super) async fn facts(&self, ids: &[ClientId]) -> Result<Vec<Option<Facts>>, RedisError> {
        let replies = self.many(ids.iter().map(|id| Command::hgetall(self.keys.client(*id))).collect()).await?;
        Ok(replies.into_iter().map(read_facts).collect())
    }

    pub(super) async fn uids_of(&self, ids: &[ClientId]) -> Result<Vec<Option<Uid>>, RedisError> {
        let replies = self.many(ids.iter().map(|id| Command::hget(self.keys.client(*id)).arg("uid")).collect()).await?;
        Ok(replies.into_iter().map(|uid| uid.text().and_then(|uid| uid.parse().ok())).collect())
    }

    pub(super) async fn groups_of(&self, ids: &[ClientId]) -> Result<Vec<Vec<Group>>, RedisError> {
        let sets = ids.iter().map(|id| Command::smembers(self.keys.client_groups(*id))).collect();
        let read = |groups: Reply| groups.texts().filter_map(|group| group.parse().ok()).collect();
        Ok(self.many(sets).await?.into_iter().map(read).collect())
    }

    /// The runs of all nodes that are there.
    async fn runs(&self) -> Result<Vec<String>, RedisError> {
        Ok(self
            .connection
            .call(Command::hgetall(self.keys.runs()))
            .await?
            .pairs()
            .into_iter()
            .map(|(_, run)| run)
            .collect())
    }

    pub(super) async fn client_count(&self) -> Result<u64, RedisError> {
        let indexes = self.runs().await?.into_iter().map(|run| Command::hlen(self.keys.index(&run))).collect();
        Ok(self.many(indexes).await?.iter().map(Reply::number).sum())
    }

    pub(super) async fn everyone(&self) -> Result<Vec<Entry>, RedisError> {
        let mut entries = BTreeMap::new();
        for run in self.runs().await? {
            self.for_each_entry(&run, |id, value| {
                entries.extend(Entry::read(&id, &value).map(|entry| (entry.id, entry)));
            })
            .await?;
        }
        Ok(entries.into_values().collect())
    }

    /// Every client in a run's index, at least once.
    pub(super) async fn for_each_entry(
        &self,
        run: &str,
        mut visit: impl FnMut(String, String) + Send,
    ) -> Result<(), RedisError> {
        let all = |items: Reply| {
            items.pairs().into_iter().for_each(|(id, value)| visit(id, value));
            true
        };
        self.scan(Command::hscan(self.keys.index(run)), all).await.map(drop)
    }

    /// About so many clients, as many of each node, and whether that is everyone.
    pub(super) async fn some(&self, most: usize) -> Result<(Vec<Entry>, bool), RedisError> {
        let runs = self.runs().await?;
        let (mut all, mut complete) = (BTreeMap::new(), true);
        for run in &runs {
            let mut entries = BTreeMap::new();
            let share = |items: Reply| {
                let read = |(id, value): (String, String)| Entry::read(&id, &value).map(|entry| (entry.id, entry));
                entries.extend(items.pairs().into_iter().filter_map(read));
                entries.len() < most / runs.len()
            };
            complete &= self.scan(Command::hscan(self.keys.index(run)), share).await?;
            all.append(&mut entries);
        }
        Ok((all.into_values().collect(), complete))
    }

    pub(super) async fn has_node(&self, lan: LanAddress) -> Result<bool, RedisError> {
        Ok(self.connection.call(Command::hget(self.keys.lan()).arg(lan.to_string())).await?.text().is_some())
    }

    /// All nodes that have a lease, with what each has told of itself.
    pub(super) async fn vitals(&self, clock: &Clock) -> Result<Vec<Node>, RedisError> {
        let leases = Command::zrange(self.keys.nodes()).arg(0).arg("-1").arg("WITHSCORES");
        let (nodes, _): (Vec<String>, Vec<u64>) = self.connection.call(leases).await?.scores().into_iter().unzip();
        let told = self.many(nodes.iter().map(|node| Command::hgetall(self.keys.node(node))).collect()).await?;
        let now = clock.now().unwrap_or_default();
        let of = |(node, told): (String, Reply)| {
            let fields: HashMap<String, String> = told.pairs().into_iter().collect();
            let field = |name: &str| fields.get(name).map(String::as_str);
            let at = field("at").and_then(|at| at.parse().ok()).unwrap_or_default();
            // Its lease comes a moment before what it tells.
            (!fields.is_empty()).then(|| Node { node, age_ms: now.saturating_sub(at), vitals: Vitals::read(field) })
        };
        Ok(nodes.into_iter().zip(told).filter_map(of).collect())
    }

    pub(super) async fn nodes(&self) -> Result<Vec<LanAddress>, RedisError> {
        let nodes = self.connection.call(Command::hgetall(self.keys.lan())).await?.pairs();
        Ok(nodes.into_iter().filter_map(|(lan, _)| lan.parse().ok()).collect())
    }
}

fn client_ids(reply: Reply) -> impl Iterator<Item = ClientId> {
    reply.texts().filter_map(|id| id.parse().ok())
}

pub(super) fn read_facts(hash: Reply) -> Option<Facts> {
    let fields: HashMap<String, String> = hash.pairs().into_iter().collect();
    if fields.is_empty() {
        return None;
    }
    let uid = fields.get("uid").and_then(|uid| uid.parse().ok());
    let session = fields.get("session").and_then(|session| serde_json::from_str(session).ok());
    let ip = fields.get("ip").and_then(|ip| ip.parse().ok());
    let connected_at = fields.get("connected_at").and_then(|at| at.parse().ok());
    Some(Facts { uid, session, node: fields.get("node").cloned().unwrap_or_default(), ip, connected_at })
}
