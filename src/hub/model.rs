//! The hub, its outboxes and its journal against a model so simple that it is plainly right, while several tasks on several
//! threads bind, join, leave, send and close at once, owners and peers take their turns whenever they like, and somebody
//! stands for Redis.
//!
//! Of each change and each message it is known between which two moments it was put into the inboxes. From that follows who
//! must hear a message: whoever was meant by it throughout; and who may: whoever was meant at any moment between the two.
//! All that is heard is in the order in which it was said, and comes once; nothing comes behind a close frame; what other
//! nodes are told is what is so, whenever somebody has a receipt for it; and in the end nothing is left.
//!
//! `MODEL_SEED=<seed>` runs one seed alone, `MODEL_SEEDS=<count>` so many; a seed names what is done, but not how threads
//! take turns.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::poll_fn;
use parking_lot::Mutex;
use socket2::Socket;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use super::*;
use crate::client::model::{Dice, seeds, sockets};
use crate::client::{Arrival, Departed, SendLimit};
use crate::config::{EventsConfig, SlowConsumer};
use crate::event::Origin;
use crate::id::LanAddress;
use crate::message::Protocol;

/// How many seeds `make test` tries.
const SEEDS: u64 = 1000;

/// What is to happen without further ado happens within this.
const SOON: Duration = Duration::from_secs(20);

const CLIENTS: usize = 6;
const ACTORS: usize = 3;
const UIDS: usize = 2;
const GROUPS: usize = 2;

/// What a client has, by numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Has {
    is_here: bool,
    uid: Option<usize>,
    groups: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum What {
    Come,
    Bind(usize),
    Unbind,
    Join(Vec<usize>),
    Leave(Vec<usize>),
    /// "Leave A, join B", in one step.
    Move(usize, usize),
}

impl Has {
    fn change(&mut self, what: &What) {
        match what {
            What::Come => self.is_here = true,
            What::Bind(uid) => self.uid = Some(*uid),
            What::Unbind => self.uid = None,
            What::Join(groups) => self.groups.extend(groups),
            What::Leave(groups) => self.groups.retain(|group| !groups.contains(group)),
            What::Move(from, to) => {
                self.groups.remove(from);
                self.groups.insert(*to);
            }
        }
    }
}

/// Between which two moments something was put into the inboxes.
#[derive(Debug, Clone, Copy)]
struct When {
    from: u64,
    to: u64,
}

#[derive(Debug, Clone)]
enum To {
    All,
    Clients(Vec<usize>),
    Uids(Vec<usize>),
    Groups(Vec<usize>),
}

#[derive(Debug)]
struct Said {
    to: To,
    but: Option<usize>,
    when: When,
    /// Sockets that took it, where that was asked.
    clients: Option<u64>,
}

impl Said {
    fn is_for(&self, place: usize, has: &Has) -> bool {
        let meant = match &self.to {
            To::All => true,
            To::Clients(places) => places.contains(&place),
            To::Uids(uids) => has.uid.is_some_and(|uid| uids.contains(&uid)),
            To::Groups(groups) => groups.iter().any(|group| has.groups.contains(group)),
        };
        has.is_here && meant && self.but != Some(place)
    }
}

/// One client, and what was done with it.
#[derive(Default)]
struct Seat {
    /// By one task, one after the other; those that found it.
    changes: Vec<(When, What)>,
    /// When it was told to go, the first time.
    closed: Option<When>,
    /// Its peer goes by itself.
    is_lost: bool,
}

/// What a client's peer has heard: messages by their numbers, and whether a close frame came behind them.
#[derive(Debug, Default)]
struct Heard {
    messages: Vec<usize>,
    is_closed: bool,
    has_ended: bool,
    bytes: Vec<u8>,
}

impl Heard {
    /// Takes whole frames, unmasked ones of up to 64 KiB.
    fn take(&mut self) {
        let mut rest = &self.bytes[..];
        while let [first, length, behind @ ..] = rest {
            let (length, behind) = match (*length, behind) {
                (126, [high, low, behind @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), behind),
                (126, _) => break,
                (short, behind) => (usize::from(short), behind),
            };
            let Some((payload, behind)) = behind.split_at_checked(length) else { break };
            assert!(!self.is_closed, "something comes behind a close frame");
            match first {
                0x81 => {
                    let text = std::str::from_utf8(payload).unwrap().trim_end_matches('.');
                    self.messages.push(text.parse().unwrap());
                }
                0x88 => self.is_closed = true,
                other => panic!("{other:#x} begins no frame that was sent"),
            }
            rest = behind;
        }
        self.bytes = rest.to_vec();
    }
}

/// What a client has, by names.
type Had = (Option<Uid>, BTreeSet<Group>);

struct World {
    hub: Hub,
    clock: AtomicU64,
    seats: Vec<Mutex<Seat>>,
    heard: Vec<Mutex<Heard>>,
    clients: Vec<Arc<Client>>,
    said: Mutex<Vec<Said>>,
    /// What stands for Redis.
    index: Mutex<HashMap<ClientId, Had>>,
    /// Of whom that was ever told.
    known: Mutex<HashSet<ClientId>>,
    departed: Mutex<Vec<Departed>>,
    owners_left: AtomicUsize,
}

/// The number of the message that every client is told first.
const FIRST: usize = 0;

fn uid(number: usize) -> Uid {
    format!("u{number}").parse().unwrap()
}

fn group(number: usize) -> Group {
    format!("g{number}").parse().unwrap()
}

fn groups(numbers: &[usize]) -> Vec<Group> {
    numbers.iter().map(|number| group(*number)).collect()
}

fn some(dice: &mut Dice, of: usize) -> Vec<usize> {
    let bits = 1 + dice.roll((1 << of) - 1);
    (0..of).filter(|bit| bits >> bit & 1 == 1).collect()
}

impl World {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn id(&self, place: usize) -> ClientId {
        self.clients[place].id()
    }

    /// What one of those that act does; each changes clients of its own.
    async fn act(self: Arc<Self>, seed: u64, actor: usize) {
        let mut dice = Dice(seed.wrapping_mul(31).wrapping_add(actor as u64));
        dice.roll(1);
        let mut has: BTreeMap<usize, Has> =
            (actor..CLIENTS).step_by(ACTORS).map(|place| (place, Has::default())).collect();
        let own: Vec<usize> = has.keys().copied().collect();
        let mut delivering = Vec::new();
        for _ in 0..8 + dice.roll(12) {
            let place = own[dice.roll(own.len())];
            match dice.roll(20) {
                0..=8 => self.change(&mut dice, place, has.get_mut(&place).unwrap()).await,
                9..=17 => delivering.extend(self.send(&mut dice).await),
                18 if dice.roll(3) == 0 => self.close(dice.roll(CLIENTS)).await,
                _ => yield_now().await,
            }
            if dice.roll(4) == 0 {
                self.told(&mut delivering).await;
            }
        }
        self.told(&mut delivering).await;
    }

    async fn told(&self, delivering: &mut Vec<(usize, Delivering)>) {
        for (number, delivering) in delivering.drain(..) {
            let delivered = delivering.done().await.unwrap();
            self.said.lock()[number].clients = Some(delivered.clients);
        }
    }

    async fn change(&self, dice: &mut Dice, place: usize, has: &mut Has) {
        let id = self.id(place);
        if !has.is_here {
            let from = self.now();
            self.hub.insert(Arc::clone(&self.clients[place]), false, None).await.unwrap();
            let when = When { from, to: self.now() };
            has.is_here = true;
            return self.seats[place].lock().changes.push((when, What::Come));
        }
        let what = match dice.roll(8) {
            0..=1 => What::Bind(dice.roll(UIDS)),
            2 => What::Unbind,
            3..=4 => What::Join(some(dice, GROUPS)),
            5..=6 => What::Leave(some(dice, GROUPS)),
            _ => What::Move(dice.roll(GROUPS), dice.roll(GROUPS)),
        };
        let (from, asked) = (self.now(), what.clone());
        let begun = self.hub.begin_at_client(id, move |shard| {
            let found = match asked {
                What::Come => unreachable!(),
                What::Bind(number) => shard.bind(id, &uid(number), false),
                What::Unbind => shard.unbind(id, None),
                What::Join(numbers) => shard.join(id, &groups(&numbers), 10).unwrap(),
                What::Leave(numbers) => shard.leave(id, &groups(&numbers)),
                What::Move(from, to) => shard.leave(id, &[group(from)]) && shard.join(id, &[group(to)], 10).unwrap(),
            };
            (found, shard.receipt([id]))
        });
        let begun = begun.await.unwrap();
        let when = When { from, to: self.now() };
        let (found, receipt) = begun.one().await.unwrap();
        if !found {
            // It has gone; whoever sends meanwhile may think of it as they like.
            return;
        }
        has.change(&what);
        self.seats[place].lock().changes.push((when, what));
        if dice.roll(2) == 0 {
            receipt.wait().await.unwrap().unwrap();
            // Without others the index stays empty.
            if let Some((uid_now, groups_now)) = self.index.lock().get(&id) {
                let told = (uid_now.clone(), groups_now.clone());
                let so =
                    (has.uid.map(uid), groups(&has.groups.iter().copied().collect::<Vec<_>>()).into_iter().collect());
                assert_eq!(told, so, "a receipt was given for something else");
            }
        }
    }

    async fn send(&self, dice: &mut Dice) -> Option<(usize, Delivering)> {
        let to = match dice.roll(8) {
            0 => To::All,
            1 => To::Clients(some(dice, CLIENTS)),
            2..=3 => To::Uids(vec![dice.roll(UIDS)]),
            4 => To::Uids(some(dice, UIDS)),
            5..=6 => To::Groups(vec![dice.roll(GROUPS)]),
            _ => To::Groups(some(dice, GROUPS)),
        };
        let but = (dice.roll(4) == 0).then(|| dice.roll(CLIENTS));
        let target = match &to {
            To::All => Target::All,
            To::Clients(places) => Target::Clients(places.iter().map(|place| self.id(*place)).collect()),
            To::Uids(numbers) => Target::Uids(numbers.iter().map(|number| uid(*number)).collect()),
            To::Groups(numbers) => Target::Groups(groups(numbers).into()),
        };
        let except = but.map(|place| Arc::new(Except { clients: vec![self.id(place)], uids: Vec::new() }));
        let number = {
            let mut said = self.said.lock();
            said.push(Said { to, but, when: When { from: self.now(), to: u64::MAX }, clients: None });
            said.len() - 1
        };
        let message = Message::text(&format!("{number}{}", ".".repeat(dice.roll(400))));
        let confirm = dice.roll(2) == 0;
        let delivering = self.hub.begin_delivery(target, except, message, confirm).await.unwrap();
        self.said.lock()[number].when.to = self.now();
        confirm.then_some((number, delivering))
    }

    async fn close(&self, place: usize) {
        let (id, from) = (self.id(place), self.now());
        let begun = self.hub.begin_at_client(id, move |shard| shard.close(id, None, &Close::CLOSED)).await.unwrap();
        let when = When { from, to: self.now() };
        if begun.one().await.unwrap() {
            self.seats[place].lock().closed.get_or_insert(when);
        }
    }

    /// The task that owns a client's socket, as `edge` has it. It may begin late.
    async fn own(self: Arc<Self>, place: usize, patience: usize) {
        let client = Arc::clone(&self.clients[place]);
        for _ in 0..patience {
            yield_now().await;
        }
        client.open(Some(&Message::text(&FIRST.to_string())));
        let mut read = [0; 64];
        let end = poll_fn(|cx| {
            if client.poll_ended(cx).is_ready() {
                return std::task::Poll::Ready(Close::CLOSED);
            }
            client.poll_read(cx, &mut read).map(|_| Close::LOST)
        });
        let close = end.await;
        // Whoever has not come yet is not there to leave.
        while !self.seats[place].lock().changes.iter().any(|(_, what)| matches!(what, What::Come)) {
            yield_now().await;
        }
        self.hub.ended(client.id(), close).await.unwrap();
        let let_go = poll_fn(|cx| client.poll_let_go(cx)).await;
        self.departed.lock().extend(let_go.departed);
        if !client.is_gone() {
            poll_fn(|cx| client.poll_flushed(cx)).await;
            client.finish_writing();
        }
        client.release();
        drop(client);
        self.owners_left.fetch_sub(1, Ordering::SeqCst);
    }

    /// A peer that reads a little now and then, and goes by itself after so many bytes, if any.
    async fn hear(self: Arc<Self>, place: usize, peer: Socket, seed: u64, most: Option<usize>) {
        let mut dice = Dice(seed);
        let mut peer = UnixStream::from_std(peer.into()).unwrap();
        let (mut buffer, mut all) = ([0; 1000], 0);
        loop {
            for _ in 0..dice.roll(4) {
                yield_now().await;
            }
            let length = 1 + dice.roll(buffer.len());
            let Ok(length @ 1..) = peer.read(&mut buffer[..length]).await else { break };
            all += length;
            let mut heard = self.heard[place].lock();
            heard.bytes.extend_from_slice(&buffer[..length]);
            heard.take();
            if most.is_some_and(|most| all > most) {
                self.seats[place].lock().is_lost = true;
                break;
            }
        }
        self.heard[place].lock().has_ended = true;
    }

    /// What stands for `cluster::directory`, and for Redis. Of a lot a part may be written twice.
    async fn direct(self: Arc<Self>, seed: u64) {
        let mut dice = Dice(seed);
        loop {
            // As there, one look is not missed for ever; but what is written down is announced.
            self.hub.others.changed.notified().await;
            for shard in 0..self.hub.shards() {
                let Some(untold) = self.hub.at_shard(shard, Shard::take_untold).await.unwrap() else { continue };
                let again = if dice.roll(4) == 0 { dice.roll(untold.changes.len() + 1) } else { 0 };
                for (id, change) in untold.changes.iter().take(again).chain(&untold.changes) {
                    self.write(*id, change);
                    if dice.roll(3) == 0 {
                        yield_now().await;
                    }
                }
                let departed = self.hub.at_shard(shard, |shard| shard.told(&Told::default())).await.unwrap();
                self.departed.lock().extend(departed);
            }
        }
    }

    fn write(&self, id: ClientId, change: &Change) {
        let mut index = self.index.lock();
        if change.gone {
            if let Some((uid, groups)) = index.remove(&id) {
                assert!(uid.is_none_or(|uid| change.uids_were.contains(&uid)), "its uid stays behind");
                assert!(groups.iter().all(|group| change.left.contains(group)), "its group stays behind");
            }
            return;
        }
        let (uid, groups) = match change.arrived {
            Some(_) => {
                self.known.lock().insert(id);
                index.entry(id).or_default()
            }
            None => index.get_mut(&id).expect("whoever is told of has come"),
        };
        if uid.as_ref().is_some_and(|uid| change.uids_were.contains(uid)) && change.uid != *uid {
            *uid = None;
        }
        groups.retain(|group| !change.left.contains(group));
        if let (Some(now), true) = (&change.uid, change.bound) {
            *uid = Some(now.clone());
        }
        groups.extend(change.joined.iter().cloned());
    }

    /// What stands for the subscriber: it follows what has changed, and nothing else.
    async fn follow(self: Arc<Self>, held: Arc<Mutex<HashSet<Topic>>>) {
        loop {
            self.hub.others.topics.next().await;
            let (_, changed) = self.hub.others.topics.take();
            for topic in changed {
                if self.hub.holds(&topic) {
                    held.lock().insert(topic);
                } else {
                    held.lock().remove(&topic);
                }
            }
        }
    }

    // --- what the model says ---

    /// Who must hear a message, and who may.
    fn must_and_may(&self, place: usize, said: &Said) -> (bool, bool) {
        let seat = self.seats[place].lock();
        let mut has = Has::default();
        let (mut must, mut may) = (true, false);
        let mut see = |has: &Has| {
            let is_for = said.is_for(place, has);
            (must, may) = (must && is_for, may || is_for);
        };
        let mut changes = seat.changes.iter().peekable();
        while let Some((_, what)) = changes.next_if(|(when, _)| when.to < said.when.from) {
            has.change(what);
        }
        see(&has);
        while let Some((_, what)) = changes.next_if(|(when, _)| when.from < said.when.to) {
            has.change(what);
            see(&has);
        }
        if seat.is_lost || seat.closed.is_some_and(|closed| closed.from < said.when.to) {
            must = false;
        }
        (must, may && seat.closed.is_none_or(|closed| closed.to > said.when.from))
    }

    /// What a client still has to hear.
    fn lacks(&self, place: usize) -> Option<usize> {
        let said = self.said.lock();
        let heard = self.heard[place].lock();
        let must = |number: &usize| *number == FIRST || self.must_and_may(place, &said[*number]).0;
        let is_lost = self.seats[place].lock().is_lost;
        (0..said.len()).filter(must).find(|number| !is_lost && !heard.messages.contains(number))
    }

    fn check(&self, place: usize) {
        let (said, heard) = (self.said.lock(), self.heard[place].lock());
        let distinct: BTreeSet<&usize> = heard.messages.iter().collect();
        assert_eq!(distinct.len(), heard.messages.len(), "client {place} hears twice: {:?}", heard.messages);
        assert!(heard.messages.first().is_none_or(|first| *first == FIRST), "{:?}", heard.messages);
        for (at, number) in heard.messages.iter().enumerate().skip(1) {
            let one = &said[*number];
            assert!(self.must_and_may(place, one).1, "client {place} hears {number}, which is for others: {one:?}");
            for later in &heard.messages[at + 1..] {
                assert!(said[*later].when.to > one.when.from, "client {place} hears {number} before {later}");
            }
        }
    }
}

async fn run(seed: u64) {
    let mut dice = Dice(seed);
    dice.roll(1);
    let metrics = Arc::new(Metrics::new());
    let events = Arc::new(Events::new(EventsConfig::default(), Origin::default(), Arc::clone(&metrics)));
    let others = (dice.roll(2) == 0).then(Others::default);
    let (hub, _tasks) = Hub::start(1 + dice.roll(3), None, &metrics, others.clone(), None, &events);
    let limit = SendLimit { bytes: 1 << 20, policy: SlowConsumer::Close, dropped: metrics.dropped.clone() };
    let (limit, lan) = (Arc::new(limit), LanAddress { ip: Ipv4Addr::LOCALHOST, port: 2900 });
    let (mut clients, mut peers) = (Vec::new(), Vec::new());
    for place in 0..CLIENTS {
        let (socket, peer) = sockets(1 << dice.roll(13));
        let arrival = Arrival { peer: (Ipv4Addr::LOCALHOST, 1).into(), port: 1, connected_at: 0 };
        let id = ClientId { lan, connection: 1 + place as u32 };
        clients.push(Client::new(id, arrival, Protocol::WebSocket, socket, Arc::clone(&limit)));
        peers.push(peer);
    }
    let nobody = Said { to: To::Clients(Vec::new()), but: None, when: When { from: 0, to: 0 }, clients: None };
    let world = Arc::new(World {
        hub,
        clock: AtomicU64::new(1),
        seats: (0..CLIENTS).map(|_| Mutex::default()).collect(),
        heard: (0..CLIENTS).map(|_| Mutex::default()).collect(),
        clients,
        said: Mutex::new(vec![nobody]),
        index: Mutex::default(),
        known: Mutex::default(),
        departed: Mutex::default(),
        owners_left: AtomicUsize::new(CLIENTS),
    });
    let held = Arc::<Mutex<HashSet<Topic>>>::default();
    let mut background = JoinSet::new();
    if others.is_some() {
        background.spawn(Arc::clone(&world).direct(seed));
        background.spawn(Arc::clone(&world).follow(Arc::clone(&held)));
    }
    for (place, peer) in peers.into_iter().enumerate() {
        let most = (dice.roll(12) == 0).then(|| dice.roll(2000));
        background.spawn(Arc::clone(&world).hear(place, peer, seed + place as u64, most));
        background.spawn(Arc::clone(&world).own(place, dice.roll(20)));
    }
    let acting: Vec<JoinHandle<()>> =
        (0..ACTORS).map(|actor| tokio::spawn(Arc::clone(&world).act(seed, actor))).collect();
    for actor in acting {
        actor.await.unwrap();
    }
    // Those that never came come now, as their owners wait for it.
    for place in 0..CLIENTS {
        if world.seats[place].lock().changes.is_empty() {
            let from = world.now();
            world.hub.insert(Arc::clone(&world.clients[place]), false, None).await.unwrap();
            let when = When { from, to: world.now() };
            world.seats[place].lock().changes.push((when, What::Come));
        }
    }
    // Nothing is said any more: what is not out yet goes out by itself.
    soon("somebody has not heard all", || {
        let lacks = (0..CLIENTS).find_map(|place| Some((place, world.lacks(place)?)));
        lacks.map_or(Ok(()), |(place, number)| Err(format!("client {place} lacks {:?}", world.said.lock()[number])))
    })
    .await;
    let is_there = |place: usize| world.seats[place].lock().closed.is_none() && !world.seats[place].lock().is_lost;
    if others.is_some() {
        soon("what is subscribed to is not what is held", || {
            let held = held.lock();
            let topics = std::iter::once(Topic::All).chain((0..UIDS).map(|number| Topic::Uid(uid(number))));
            topics
                .chain((0..GROUPS).map(|number| Topic::Group(group(number))))
                .all(|topic| held.contains(&topic) == world.hub.holds(&topic))
        })
        .await;
        soon("what others are told is not what is", || {
            (0..CLIENTS).filter(|place| is_there(*place)).all(|place| {
                let mut has = Has::default();
                world.seats[place].lock().changes.iter().for_each(|(_, what)| has.change(what));
                let index = world.index.lock();
                let told = index.get(&world.id(place));
                told.is_some_and(|(told, of)| {
                    *told == has.uid.map(uid) && *of == has.groups.iter().map(|number| group(*number)).collect()
                })
            })
        })
        .await;
    }
    // And now all go.
    world.hub.close_some(CLIENTS, &Close::DRAIN).await.unwrap();
    soon("somebody has not left", || world.owners_left.load(Ordering::SeqCst) == 0).await;
    soon("a socket has not ended", || world.heard.iter().all(|heard| heard.lock().has_ended)).await;
    for place in 0..CLIENTS {
        world.check(place);
        let is_lost = world.seats[place].lock().is_lost;
        assert!(is_lost || world.heard[place].lock().is_closed, "client {place} got no close frame");
        assert_eq!(world.lacks(place), None, "client {place}");
    }
    if !world.seats.iter().any(|seat| seat.lock().is_lost) {
        for (number, said) in world.said.lock().iter().enumerate() {
            let heard = world.heard.iter().filter(|heard| heard.lock().messages.contains(&number)).count() as u64;
            assert!(said.clients.is_none_or(|clients| clients == heard), "{heard} have heard {number}: {said:?}");
        }
    }
    soon("not all are said to have left, or not what they had", || {
        let mut departed: Vec<_> = world.departed.lock().iter().map(|departed| (departed.id, had(departed))).collect();
        departed.sort_by_key(|(id, _)| *id);
        // Whoever had gone before others were told has never been there for them.
        let is_known = |place: &usize| others.is_none() || world.known.lock().contains(&world.id(*place));
        let so = (0..CLIENTS).filter(is_known).map(|place| {
            let mut has = Has::default();
            world.seats[place].lock().changes.iter().for_each(|(_, what)| has.change(what));
            (world.id(place), (has.uid.map(uid), has.groups.iter().map(|number| group(*number)).collect()))
        });
        departed == so.collect::<Vec<_>>()
    })
    .await;
    soon("something is left", || {
        let hub = &world.hub;
        (hub.clients(), hub.uid_count(), hub.group_count()) == (0, 0, 0)
            && world.index.lock().is_empty()
            && held.lock().is_empty()
    })
    .await;
    assert!(world.hub.at_all(|shard| shard.is_empty()).await.unwrap().into_iter().all(|is_empty| is_empty));
    while let Some(done) = background.try_join_next() {
        done.unwrap();
    }
    background.shutdown().await;
    soon("somebody still holds a client", || world.clients.iter().all(|client| Arc::strong_count(client) == 1)).await;
}

/// Whether something is so, and why it is not.
struct Verdict(Result<(), String>);

impl From<bool> for Verdict {
    fn from(is_so: bool) -> Self {
        Self(if is_so { Ok(()) } else { Err("it never was".to_owned()) })
    }
}

impl From<Result<(), String>> for Verdict {
    fn from(is_so: Result<(), String>) -> Self {
        Self(is_so)
    }
}

fn had(departed: &Departed) -> Had {
    (departed.uid.clone(), departed.groups.iter().cloned().collect())
}

async fn soon<T: Into<Verdict>>(what: &str, is_so: impl Fn() -> T) {
    let until = Instant::now() + SOON;
    while let Err(why) = is_so().into().0 {
        assert!(Instant::now() < until, "{what}: {why}");
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
}

#[test]
fn whatever_is_done_at_once_everybody_hears_what_the_model_says_and_nothing_is_left() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    for seed in seeds(SEEDS) {
        let ran = runtime.block_on(async { timeout(SOON * 4, tokio::spawn(run(seed))).await });
        assert!(ran.is_ok_and(|ran| ran.is_ok()), "seed {seed} fails: repeat it with MODEL_SEED={seed}");
    }
}
