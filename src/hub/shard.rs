//! One shard of the hub: the clients it holds, their uids, groups and sessions, owned by one task.
//!
//! What reaches a shard comes through its inbox, in order: messages as plain data, everything else as a closure over
//! [`Shard`]. So a change and the messages around it have one order, and no lock is held anywhere.
//!
//! # The story of a delivery
//!
//! The kernel's `send(2)` is 95 % of a delivery's cost, and no trick is worth more than one write less or one wake-up less.
//! What is left is 210 instructions of our own, 0.2 µs, most of it waiting for memory.
//!
//! 1. A message comes into the inbox, encoded once: header and payload in one buffer, which all outboxes share.
//! 2. The shard takes all that is ready ([`super::BATCH`]), and looks up whom each message is for: a list of places, not
//!    of ids, so that nothing is looked up per client.
//! 3. Each message is appended to the outboxes of its targets; those that became dirty are remembered; then each is
//!    flushed once, so that what waits for one socket leaves in one write (`client`). A message that is alone is written
//!    in the same touch.
//! 4. Writing goes in pieces of [`PIECE`] sockets, between which the inbox is looked at: messages to others pass
//!    a big broadcast. Before anything else happens, what is left of a message that was alone is appended where it is
//!    still missing: the order holds for everyone.
//! 5. The write is done here, on the shard's thread; only a client whose socket is full has its own task woken, to drain
//!    when there is room.
//!
//! What each trick gains, as CPU per delivery of 128 bytes to 5,000 clients (where they wait, to 1,000): the median of three
//! rounds or more, in turns, with their range or ± 0.03 µs; and in instructions (`scripts/count-instructions`). One that
//! gains nothing leaves again:
//!
//! | trick | without → with | where |
//! | --- | --- | --- |
//! | the shard writes, and not the client's task, which would have to be woken | 3.75 (3.68–3.89) → 2.76 (2.75–2.80) µs | `Client::send`, `Client::flush` |
//! | what waits for one socket leaves in one write | 4 waiting: 0.30 of the kernel's price of single writes; 16: 0.10 | [`Shard::deliver`] |
//! | it is copied together, not written as a vector | 16 waiting: 0.247 (0.245–0.253) → 0.240 (0.233–0.242) µs | `client::with_gathered` |
//! | a message that is alone is written in the same touch, as by the second the cache has lost most clients | 440 → 210 instructions, 0.19 → 0.15 µs of user time | `Client::send` |
//! | the memory of [`PREFETCH`] clients is asked for before the first of them is written to | 0.29 → 0.17 µs of user time, for 21 instructions | [`for_each_prefetched`] |
//! | the write goes past tokio's readiness, a cache line of its own | 0.21 → 0.17 µs of user time, 17 instructions less | `client::write_now` |
//!
//! Left out, as it gained too little: room for 16 frames in an emptied outbox, in place of 4, takes 120 of 460
//! instructions off a delivery with 16 waiting, but 3 % of its time, and keeps 384 bytes more for each client.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Said;
use super::events::{Event, Fate, Listener, Route, Whom};
use super::journal::{Change, Journal, Noted, Now, Rebound, Receipt, Told, Untold, lookup};
use super::tails::{Clip, Copied, Seen, Tailed, Tails};
use super::targets::Targets;
use super::topics::{Topic, Topics};
use crate::client::{Arrival, Client, Departed, LetGo, Pushed};
use crate::event::{self, About, Events, Kind, Number, Request, Room, What};
use crate::heartbeat::{Beat, Heartbeat, Tick};
use crate::id::{ClientId, Group, Uid};
use crate::message::{Close, Message, Protocol};
use crate::session::Session;

/// How many sockets are written before the inbox is looked at again: about 4 ms. In tests a few clients are a crowd.
pub(super) const PIECE: usize = if cfg!(test) { 2 } else { 1000 };

/// And no more bytes than this, that a large message does not take for longer.
const PIECE_BYTES: usize = 4 << 20;

/// So many clients' memory is asked for at once, before the first of them is written to: the waits for it overlap.
const PREFETCH: usize = 16;

/// Whom a message is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Everyone.
    All,
    /// These clients.
    Clients(Arc<[ClientId]>),
    /// The clients of these uids.
    Uids(Arc<[Uid]>),
    /// The members of these groups.
    Groups(Arc<[Group]>),
}

/// Whom it is not for, though the target names them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Except {
    /// These clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientId>,
    /// The clients of these uids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<Uid>,
}

/// One message on its way through a shard.
pub(super) struct Delivery {
    pub(super) to: Target,
    pub(super) except: Option<Arc<Except>>,
    /// Also to those that are still shaking hands.
    pub(super) to_guests: bool,
    pub(super) message: Message,
    /// Told of those who are watched, when anybody is.
    pub(super) copied: Option<Arc<Copied>>,
    /// Told what became of it, when somebody asked.
    pub(super) heard: Option<oneshot::Sender<Heard>>,
}

/// What became of a message in one shard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Places in the target's list of those that have clients here, exceptions included; for everyone, 0 when there is anyone.
    pub(super) held: Vec<usize>,
    /// Sockets that took it.
    pub(super) took: usize,
}

/// A client's place in its shard; used again after the client has left.
type Slot = u32;

/// A client that was let go, what it had, and what is still to be said to it.
pub(super) struct Departing {
    /// None when it has been said.
    client: Option<Arc<Client>>,
    departed: Departed,
    farewell: Farewell,
    /// Other nodes know of it, and are to be told that it has left.
    known: bool,
}

impl Departing {
    /// Says goodbye. Its owner is told of its end; of what it had, others tell when they know.
    pub(super) fn release(&mut self) {
        if let Some(client) = self.say_goodbye() {
            client.let_go(LetGo { close: self.departed.close.clone(), departed: None });
        }
    }

    /// Says goodbye, if that is not done; returns what it had.
    pub(super) fn finish(mut self) -> Departed {
        self.release();
        self.departed
    }

    /// Says goodbye, and has the owner tell what it had.
    fn finish_alone(mut self) {
        if let Some(client) = self.say_goodbye() {
            client.let_go(LetGo { close: self.departed.close.clone(), departed: Some(self.departed) });
        }
    }

    fn say_goodbye(&mut self) -> Option<Arc<Client>> {
        let client = self.client.take()?;
        match std::mem::replace(&mut self.farewell, Farewell::None) {
            Farewell::None => {}
            Farewell::Close(last) => drop(client.close(last.as_ref(), self.departed.close.clone())),
            Farewell::Destroy => client.destroy(),
        }
        Some(client)
    }
}

/// What is still to be said to a client that was let go.
enum Farewell {
    /// Its socket has ended, or it is closing already.
    None,
    /// This message, and the close frame.
    Close(Option<Message>),
    /// Nothing: its connection ends at once.
    Destroy,
}

/// What the shard knows about a client.
struct Facts {
    uid: Option<Uid>,
    /// Of its being bound as the single one, among other nodes; 0 when it was not.
    order: u64,
    groups: Vec<Group>,
    /// It has been in a group; PHP tells those that never were from those that have left.
    has_joined: bool,
    session: Option<Session>,
    heartbeat: Heartbeat,
    /// It is still shaking hands: only the listener knows of it.
    is_guest: bool,
    /// What is said to it reaches it: of a WebSocket, a good request has come.
    is_reachable: bool,
    route: Route,
    /// How many of its events were told.
    told: u32,
}

/// The state of one shard.
pub struct Shard {
    index: usize,
    uid_targets: Arc<Targets<Uid>>,
    group_targets: Arc<Targets<Group>>,
    /// Clients of the whole hub.
    total: Arc<AtomicUsize>,
    /// What other nodes are to be told, if there are any.
    journal: Option<Journal>,
    topics: Option<Arc<Topics>>,
    listener: Option<Arc<dyn Listener>>,
    events: Arc<Events>,
    tails: Arc<Tails>,
    /// What has happened during the present step.
    noted: Vec<Noted>,
    /// By slot; apart from the facts, so that a broadcast walks over little memory.
    clients: Vec<Option<Arc<Client>>>,
    facts: Vec<Option<Facts>>,
    free: Vec<Slot>,
    by_connection: HashMap<u32, Slot>,
    /// How many are still shaking hands.
    guests: usize,
    uids: HashMap<Uid, Members>,
    groups: HashMap<Group, Members>,
    /// Left during the present step, one entry for each membership: still in the node's index.
    left_uids: Vec<Uid>,
    left_groups: Vec<Group>,
    /// Let go during the present step. They are told goodbye, and their owners what they had, when the index holds
    /// them no more (and other nodes know): whoever sees the close frame finds that the client has left.
    departing: Vec<Departing>,
    /// By slot: the delivery that has visited it last, so that nobody gets a message twice.
    visited: Vec<u32>,
    visit: u32,
    /// The message under way. Nothing else happens in the shard while there is one.
    broadcast: Option<Broadcast>,
    /// Outboxes that are owed a flush.
    dirty: VecDeque<Slot>,
    /// Messages that sockets took, not yet counted elsewhere.
    taken: u64,
    /// Kept for the next message, so that it allocates nothing.
    slots: Vec<Slot>,
}

impl Shard {
    pub(super) fn new(
        index: usize,
        (uid_targets, group_targets): (Arc<Targets<Uid>>, Arc<Targets<Group>>),
        total: Arc<AtomicUsize>,
        others: Option<(Journal, Arc<Topics>)>,
        listener: Option<Arc<dyn Listener>>,
        events: Arc<Events>,
        tails: Arc<Tails>,
    ) -> Self {
        let (journal, topics) = others.unzip();
        Self {
            index,
            uid_targets,
            group_targets,
            total,
            journal,
            topics,
            listener,
            events,
            tails,
            noted: Vec::new(),
            clients: Vec::new(),
            facts: Vec::new(),
            free: Vec::new(),
            by_connection: HashMap::new(),
            guests: 0,
            uids: HashMap::new(),
            groups: HashMap::new(),
            left_uids: Vec::new(),
            left_groups: Vec::new(),
            departing: Vec::new(),
            visited: Vec::new(),
            visit: 0,
            broadcast: None,
            dirty: VecDeque::new(),
            taken: 0,
            slots: Vec::new(),
        }
    }

    // --- coming and going ---

    /// Takes a client in that has come with a request; a guest is still shaking hands.
    pub(super) fn insert(&mut self, client: &Arc<Client>, is_guest: bool, request: Option<Arc<Request>>) {
        let connection = client.id().connection;
        let facts = Facts {
            uid: None,
            order: 0,
            groups: Vec::new(),
            has_joined: false,
            session: None,
            heartbeat: Heartbeat::default(),
            is_guest,
            is_reachable: !is_guest,
            route: None,
            told: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.clients.push(None);
                self.facts.push(None);
                self.visited.push(self.visit);
                (self.clients.len() - 1) as Slot
            }
        };
        if let (Some(client_place), Some(facts_place)) =
            (self.clients.get_mut(slot as usize), self.facts.get_mut(slot as usize))
        {
            *client_place = Some(Arc::clone(client));
            *facts_place = Some(facts);
            self.by_connection.insert(connection, slot);
            if is_guest {
                self.guests += 1;
            } else {
                self.arrived(slot, request);
            }
            // A WebSocket that is no guest came when nobody listened.
            if is_guest || client.protocol() != Protocol::WebSocket {
                self.tell(slot, Event::Connected);
            }
        }
    }

    /// A guest is a client like others from now on. False when it is gone.
    pub(crate) fn welcome(&mut self, id: ClientId, request: Option<Arc<Request>>) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        if let Some(facts) = self.facts_mut(slot)
            && std::mem::replace(&mut facts.is_guest, false)
        {
            self.guests -= 1;
            self.arrived(slot, request);
        }
        true
    }

    /// A client is there for everyone, with what it has.
    fn arrived(&mut self, slot: Slot, request: Option<Arc<Request>>) {
        if self.total.fetch_add(1, Ordering::Relaxed) == 0 {
            self.changed_from_or_to_nobody();
        }
        if let (Some(topics), Some(client)) = (&self.topics, self.client(slot)) {
            topics.client_has_come(client.id());
        }
        self.seen(slot, Seen::Connect);
        if let Some(request) = request {
            self.happened(slot, What::Connect(request), None);
        }
        let uid = self.facts.get(slot as usize).and_then(Option::as_ref).and_then(|facts| facts.uid.clone());
        if let Some(uid) = uid {
            let bound = self.uid_targets.look(&uid, |clients| self.bound_alone(clients));
            self.rebound(slot, Number::Nth, None, Some((uid, bound)));
        }
        let Some(id) = self.client(slot).map(|client| client.id()) else { return };
        let Some(facts) = self.facts.get(slot as usize).and_then(Option::as_ref) else { return };
        if let Some(journal) = &mut self.journal {
            journal.arrived(id);
            if facts.uid.is_some() {
                journal.bound(id, false);
            }
            for group in &facts.groups {
                journal.joined(id, group, false);
            }
            if facts.session.is_some() {
                journal.session(id);
            }
        }
    }

    // --- what the listener is told ---

    /// A client has said something.
    pub(super) fn said(&mut self, id: ClientId, message: Said) {
        let Some(slot) = self.slot(id) else { return };
        if !self.tell(slot, Event::Said(&message.data)) {
            return;
        }
        self.seen(slot, |id| Seen::Said(id, Clip::of(&message.data, message.is_binary)));
        if let Said { data, is_binary, room: Some(room) } = message {
            // What was read shares its memory with what else was read then.
            let data = Bytes::copy_from_slice(&data);
            self.happened(slot, What::Message { data, is_binary }, Some(room));
        }
    }

    /// A client's handshake has come. False when it is not served.
    pub(crate) fn shook_hands(&mut self, id: ClientId, request: &[u8]) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        if let Some(facts) = self.facts_mut(slot) {
            facts.is_reachable = true;
        }
        self.tell(slot, Event::ShookHands(request))
    }

    /// Tells the listener, if there is one; false when that was the client's end.
    fn tell(&mut self, slot: Slot, event: Event<'_>) -> bool {
        let Some(listener) = self.listener.as_ref().filter(|listener| listener.listens()) else { return true };
        let place = slot as usize;
        let (Some(Some(client)), Some(Some(facts))) = (self.clients.get(place), self.facts.get_mut(place)) else {
            return false;
        };
        let about = Whom { id: client.id(), arrival: Some(client.arrival()), session: facts.session.as_ref() };
        let close = match listener.tell(event, about, &mut facts.route) {
            Fate::Stays => return true,
            Fate::Refused => Close::NO_WORKER,
            Fate::TooBig => Close::TOO_BIG,
        };
        self.close_slot(slot, None, &close);
        false
    }

    // --- what applications are told ---

    /// An event of a client, if it is told anywhere. `room` is there for a message.
    fn happened(&mut self, slot: Slot, what: What, room: Option<Room>) {
        let kind = what.kind();
        if !self.events.has(kind) {
            return;
        }
        let number = if kind == Kind::Close { |_| Number::Close } else { Number::Nth };
        let Some(about) = self.about(slot, number) else { return };
        let room = match room {
            Some(mut room) => {
                self.events.widen(&mut room, about.length());
                Some(room)
            }
            None => self.events.room(kind, about.length()),
        };
        let Some(room) = room else { return };
        let uid = self.facts.get(slot as usize).and_then(Option::as_ref).and_then(|facts| facts.uid.clone());
        self.noted.push(Noted::Event(event::Event { about, uid, what, room }));
    }

    /// A client's uid has changed.
    fn rebound(&mut self, slot: Slot, number: fn(u32) -> Number, was: Option<Uid>, now: Option<(Uid, Option<What>)>) {
        let is_same = was.as_ref() == now.as_ref().map(|(uid, _)| uid);
        if is_same || !self.events.has_uids() {
            return;
        }
        let Some(about) = self.about(slot, number) else { return };
        let kind = if now.is_some() { Kind::Bound } else { Kind::Unbound };
        if let Some(room) = self.events.room(kind, about.length()) {
            self.noted.push(Noted::Uid(Rebound { about, room, was, now }));
        }
    }

    /// What is told of a client with an event; none while it is a guest.
    fn about(&mut self, slot: Slot, number: fn(u32) -> Number) -> Option<About> {
        let client_id = self.client(slot)?.id();
        let origin = self.events.origin();
        let facts = self.facts_mut(slot).filter(|facts| !facts.is_guest)?;
        let number = number(facts.told);
        facts.told += 1;
        let (session, groups) = (facts.session.clone(), facts.groups.clone());
        let at = jiff::Timestamp::now().as_millisecond().unsigned_abs();
        Some(About { client_id, origin, number, session, groups, at })
    }

    /// On a node that is alone, what it means that a uid has so many clients now.
    fn bound_alone(&self, clients: usize) -> Option<What> {
        let is_told = self.journal.is_none() && self.events.has_uids();
        is_told.then(|| What::Bound { first: clients == 1, seq: self.events.next_seq() })
    }

    /// The journal, of what others are to be told of this client.
    fn journal_of(&mut self, slot: Slot) -> Option<&mut Journal> {
        let is_guest = self.facts.get(slot as usize)?.as_ref()?.is_guest;
        self.journal.as_mut().filter(|_| !is_guest)
    }

    fn changed_from_or_to_nobody(&self) {
        if let Some(topics) = &self.topics {
            topics.changed(Topic::All);
        }
    }

    /// Lets a client go, whatever ended it: it leaves its uid and groups, and its owner is told what it had. The only way out.
    fn remove(&mut self, slot: Slot, close: Close, farewell: Farewell) {
        self.ending(slot, &close);
        let place = slot as usize;
        let Some(client) = self.clients.get_mut(place).and_then(Option::take) else { return };
        let Some(mut facts) = self.facts.get_mut(place).and_then(Option::take) else { return };
        self.by_connection.remove(&client.id().connection);
        if facts.is_guest {
            self.guests -= 1;
        } else {
            if self.total.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.changed_from_or_to_nobody();
            }
            if let Some(topics) = &self.topics {
                topics.client_has_gone(client.id());
            }
        }
        self.free.push(slot);
        let known = match &mut self.journal {
            Some(journal) if !facts.is_guest => journal.gone(client.id(), facts.uid.as_ref(), &facts.groups),
            _ => false,
        };
        if let Some(uid) = &facts.uid {
            leave(&mut self.uids, &mut self.left_uids, uid, slot);
        }
        for group in &facts.groups {
            leave(&mut self.groups, &mut self.left_groups, group, slot);
        }
        if self.by_connection.is_empty() {
            // All gone: so goes the memory that a storm needed. Slots still owed a flush are empty now.
            self.clients = Vec::new();
            self.facts = Vec::new();
            self.visited = Vec::new();
            self.free = Vec::new();
            self.by_connection = HashMap::new();
            self.uids = HashMap::new();
            self.groups = HashMap::new();
        }
        if let Some(listener) = self.listener.as_ref().filter(|listener| listener.listens()) {
            let (id, arrival) = (client.id(), Some(client.arrival()));
            let about = Whom { id, arrival, session: facts.session.as_ref() };
            // Whoever was refused at once was never told of; and of a node that was swept, the one that sweeps tells what
            // it knows.
            if close == Close::FENCED && known {
                listener.tell(Event::Lost, about, &mut facts.route);
            } else if facts.route.is_some() || close != Close::NO_WORKER {
                listener.tell(Event::Ended, about, &mut facts.route);
            }
        }
        let departed =
            Departed { id: client.id(), uid: facts.uid, groups: facts.groups, session: facts.session, close };
        self.departing.push(Departing { client: Some(client), departed, farewell, known });
    }

    /// Notes a client's end.
    fn ending(&mut self, slot: Slot, close: &Close) {
        self.seen(slot, |id| Seen::Close(id, close.clone()));
        let uid = self.facts.get(slot as usize).and_then(Option::as_ref).and_then(|facts| facts.uid.clone());
        if uid.is_some() {
            self.rebound(slot, |_| Number::LastUnbound, uid, None);
        }
        self.happened(slot, What::Close(close.clone()), None);
    }

    /// The client's socket has ended by itself.
    pub(super) fn ended(&mut self, id: ClientId, close: Close) {
        if let Some(slot) = self.slot(id) {
            self.remove(slot, close, Farewell::None);
        }
    }

    /// Ends a client's connection: what is queued, `last`, then the close frame. False when it is not here.
    pub fn close(&mut self, id: ClientId, last: Option<&Message>, close: &Close) -> bool {
        self.slot(id).is_some_and(|slot| self.close_slot(slot, last, close))
    }

    /// Ends a client's connection at once. False when it is not here.
    pub fn destroy(&mut self, id: ClientId) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        self.remove(slot, Close::DESTROYED, Farewell::Destroy);
        true
    }

    /// Ends the connections of a uid; returns whether it has any.
    pub fn close_uid(&mut self, uid: &Uid, last: Option<&Message>, close: &Close) -> bool {
        let slots: Vec<Slot> = self.uids.get(uid).map(|members| members.iter().collect()).unwrap_or_default();
        let held = !slots.is_empty();
        for slot in slots {
            self.close_slot(slot, last, close);
        }
        held
    }

    /// Ends up to `count` connections, whichever; returns how many.
    pub fn close_some(&mut self, count: usize, close: &Close) -> usize {
        let slots: Vec<Slot> = self.by_connection.values().take(count).copied().collect();
        let closed = slots.len();
        for slot in slots {
            self.close_slot(slot, None, close);
        }
        closed
    }

    fn close_slot(&mut self, slot: Slot, last: Option<&Message>, close: &Close) -> bool {
        let Some(client) = self.client(slot) else { return false };
        let is_open = client.is_open();
        self.remove(slot, close.clone(), self.farewell(slot, last));
        is_open
    }

    /// How a connection is ended in order. Before its handshake nothing can be said.
    fn farewell(&self, slot: Slot, last: Option<&Message>) -> Farewell {
        match self.facts.get(slot as usize) {
            Some(Some(facts)) if facts.is_reachable => Farewell::Close(last.cloned()),
            _ => Farewell::Destroy,
        }
    }

    /// Ends a step: what was left leaves the node's index, too. Not before: whoever sends to a uid or group looks there
    /// first, and of a step "leave A, join B" must find A or B at any moment.
    pub(super) fn settle(&mut self) {
        let (events, alone) = (&self.events, self.journal.is_none() && self.events.has_uids());
        let mut left = Vec::new();
        settle(&self.uids, &self.uid_targets, self.index, &mut self.left_uids, |uid, clients| {
            if alone {
                left.push((uid.clone(), What::Unbound { last: clients == 0, seq: events.next_seq() }));
            }
        });
        settle(&self.groups, &self.group_targets, self.index, &mut self.left_groups, |_, _| ());
        if !self.noted.is_empty() {
            let noted = std::mem::take(&mut self.noted);
            match &mut self.journal {
                Some(journal) => journal.happened(noted),
                None => noted.into_iter().for_each(|noted| self.tell_alone(noted, &mut left)),
            }
        }
        for mut departing in std::mem::take(&mut self.departing) {
            match &mut self.journal {
                None => departing.finish_alone(),
                Some(_) if !departing.known => departing.release(),
                Some(journal) => {
                    if let (Farewell::Destroy, Some(client)) = (&departing.farewell, &departing.client) {
                        client.destroy();
                    }
                    journal.departing(departing);
                }
            }
        }
    }

    /// On a node that is alone, what has happened is told at once; with what leaving a uid meant.
    fn tell_alone(&self, noted: Noted, left: &mut Vec<(Uid, What)>) {
        let mut rebound = match noted {
            Noted::Event(event) => return self.events.tell_webhook(event),
            Noted::Uid(rebound) => rebound,
        };
        if let Some(was) = rebound.was.take()
            && let Some(place) = left.iter().position(|(uid, _)| *uid == was)
        {
            let (uid, what) = left.remove(place);
            let event = rebound.event(&uid, what);
            self.events.tell_webhook(event);
        }
        if let Some((uid, Some(what))) = rebound.now.take() {
            let event = rebound.event(&uid, what);
            self.events.tell_webhook(event);
        }
    }

    // --- what others are told ---

    /// Says when all that was changed up to now of these clients is told to the others.
    pub fn receipt(&mut self, about: impl Into<Box<[ClientId]>>) -> Receipt {
        self.journal.as_mut().map_or_else(Receipt::done, |journal| journal.receipt(about.into()))
    }

    /// Takes what others are to be told; none when there is nothing.
    pub fn take_untold(&mut self) -> Option<Untold> {
        let mut journal = self.journal.take()?;
        let changes = (!journal.is_empty()).then(|| journal.take(|id| self.now(id)));
        self.journal = Some(journal);
        changes
    }

    /// Takes all there is, as if nothing had been told ever; and what was to be taken back.
    pub fn take_everything(&mut self) -> Untold {
        let Untold { changes, noted, waiting } = self.take_untold().unwrap_or_default();
        let mut changes: HashMap<ClientId, Change> = changes.into_iter().collect();
        let ids: Vec<ClientId> = self.all().filter(|client| !client.is_guest).map(|client| client.id).collect();
        for id in ids {
            let Some(mut everything) = self.now(id).map(|now| now.everything()) else { continue };
            if let Some(change) = changes.get(&id) {
                everything.repeat(change);
            }
            changes.insert(id, everything);
        }
        Untold { changes: changes.into_iter().collect(), noted, waiting }
    }

    /// Whether everybody knows all of it.
    pub fn is_told(&self) -> bool {
        self.journal.as_ref().is_none_or(Journal::is_empty)
    }

    /// What was taken is told; returns what those had who have left with it.
    pub fn told(&mut self, told: &Told) -> Vec<Departed> {
        for (id, single) in &told.singles {
            if let Some(facts) = self.slot(*id).and_then(|slot| self.facts_mut(slot)) {
                facts.order = single.order;
            }
        }
        let departing = self.journal.as_mut().map(|journal| journal.told(told)).unwrap_or_default();
        departing.into_iter().map(Departing::finish).collect()
    }

    /// Others cannot be told now: those who wait for it hear so.
    pub fn refuse_changes(&mut self, reason: &str) {
        if let Some(journal) = &mut self.journal {
            journal.refuse(reason);
        }
    }

    /// Those that were let go so long ago wait no longer for others to be told.
    pub fn release_overdue(&mut self, age: Duration) {
        if let Some(journal) = &mut self.journal {
            journal.release_overdue(age);
        }
    }

    /// Nobody will be told any more by us of what has changed up to now.
    pub fn forget_changes(&mut self) {
        let events = &self.events;
        let departing = self.journal.as_mut().map(|journal| journal.forget(events)).unwrap_or_default();
        for departing in departing {
            departing.finish();
        }
    }

    fn now(&self, id: ClientId) -> Option<Now<'_>> {
        let slot = self.slot(id)?;
        let (client, facts) = (self.client(slot)?, self.facts.get(slot as usize)?.as_ref()?);
        Some(Now {
            arrival: client.arrival(),
            uid: facts.uid.as_ref(),
            groups: &facts.groups,
            session: facts.session.as_ref(),
        })
    }

    // --- changes ---

    /// Binds a client to a uid, replacing the one it had; it is to be the `single` one. False when it is not here; so for
    /// all changes.
    pub fn bind(&mut self, id: ClientId, uid: &Uid, single: bool) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let was = self.take_uid(slot, None);
        let held = self.uids.get_key_value(uid).map(|(held, _)| held.clone());
        let uid = held.unwrap_or_else(|| uid.clone());
        let bound = self.uid_targets.enter(&uid, self.index, |clients| self.bound_alone(clients));
        enter(&mut self.uids, &uid, slot);
        if let Some(facts) = self.facts_mut(slot) {
            facts.uid = Some(uid.clone());
            facts.order = 0;
        }
        self.seen(slot, |id| Seen::Bound(id, uid.clone()));
        self.rebound(slot, Number::Nth, was, Some((uid, bound)));
        if let Some(journal) = self.journal_of(slot) {
            journal.bound(id, single);
        }
        true
    }

    /// Unbinds a client; with `only`, only from that uid.
    pub fn unbind(&mut self, id: ClientId, only: Option<&Uid>) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        let was = self.take_uid(slot, only);
        self.rebound(slot, Number::Nth, was, None);
        true
    }

    /// Takes a client's uid from it; with `only`, only that one.
    fn take_uid(&mut self, slot: Slot, only: Option<&Uid>) -> Option<Uid> {
        let id = self.client(slot)?.id();
        let facts = self.facts_mut(slot).filter(|facts| only.is_none() || only == facts.uid.as_ref())?;
        let uid = facts.uid.take()?;
        self.seen(slot, |id| Seen::Unbound(id, uid.clone()));
        leave(&mut self.uids, &mut self.left_uids, &uid, slot);
        if let Some(journal) = self.journal_of(slot) {
            journal.unbound(id, &uid);
        }
        Some(uid)
    }

    /// Puts a client into groups, at most `most` in all. All or none.
    pub fn join(&mut self, id: ClientId, groups: &[Group], most: usize) -> Result<bool, TooManyGroups> {
        let Some(slot) = self.slot(id) else { return Ok(false) };
        self.join_slot(slot, groups, most)?;
        Ok(true)
    }

    /// Puts all clients of a uid into groups; clients that would be in too many are left as they are and reported.
    pub fn join_uid(&mut self, uid: &Uid, groups: &[Group], most: usize) -> Result<(), TooManyGroups> {
        let slots: Vec<Slot> = self.uids.get(uid).map(|members| members.iter().collect()).unwrap_or_default();
        let mut result = Ok(());
        for slot in slots {
            result = self.join_slot(slot, groups, most).and(result);
        }
        result
    }

    fn join_slot(&mut self, slot: Slot, groups: &[Group], most: usize) -> Result<(), TooManyGroups> {
        let Some(id) = self.client(slot).map(|client| client.id()) else { return Ok(()) };
        let Some(facts) = self.facts.get_mut(slot as usize).and_then(Option::as_mut) else { return Ok(()) };
        if groups.len() > most {
            return Err(TooManyGroups { most });
        }
        let is_in = lookup(&facts.groups, groups.len());
        let (known, fresh): (Vec<&Group>, Vec<&Group>) = groups.iter().partition(|group| is_in(group));
        drop(is_in);
        if facts.groups.len() + fresh.len() > most {
            return Err(TooManyGroups { most });
        }
        if let Some(journal) = self.journal.as_mut().filter(|_| !facts.is_guest) {
            for group in &known {
                journal.joined(id, group, true);
            }
            for group in &fresh {
                journal.joined(id, group, false);
            }
        }
        facts.has_joined |= !groups.is_empty();
        facts.groups.reserve_exact(fresh.len());
        for &group in &fresh {
            let group = self.groups.get_key_value(group).map_or_else(|| group.clone(), |(held, _)| held.clone());
            self.group_targets.enter(&group, self.index, |_| ());
            enter(&mut self.groups, &group, slot);
            facts.groups.push(group);
        }
        for group in fresh {
            self.seen(slot, |id| Seen::Joined(id, group.clone()));
        }
        Ok(())
    }

    /// Takes a client out of groups.
    pub fn leave(&mut self, id: ClientId, groups: &[Group]) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        self.leave_slot(slot, groups);
        true
    }

    /// Takes all clients of a uid out of groups.
    pub fn leave_uid(&mut self, uid: &Uid, groups: &[Group]) {
        let slots: Vec<Slot> = self.uids.get(uid).map(|members| members.iter().collect()).unwrap_or_default();
        for slot in slots {
            self.leave_slot(slot, groups);
        }
    }

    /// Takes all members out of a group.
    pub fn ungroup(&mut self, group: &Group) {
        let slots: Vec<Slot> = self.groups.get(group).map(|members| members.iter().collect()).unwrap_or_default();
        for slot in slots {
            self.leave_slot(slot, std::slice::from_ref(group));
        }
    }

    fn leave_slot(&mut self, slot: Slot, groups: &[Group]) {
        let Some(id) = self.client(slot).map(|client| client.id()) else { return };
        for group in groups {
            let Some(facts) = self.facts.get_mut(slot as usize).and_then(Option::as_mut) else { return };
            if let Some(place) = facts.groups.iter().position(|member| member == group) {
                facts.groups.remove(place);
                leave(&mut self.groups, &mut self.left_groups, group, slot);
                if let Some(journal) = self.journal.as_mut().filter(|_| !facts.is_guest) {
                    journal.left(id, group);
                }
                self.seen(slot, |id| Seen::Left(id, group.clone()));
            }
        }
    }

    /// Replaces a client's session by what `change` makes of it; by none, as if it had never been set. None when the
    /// client is not here.
    pub fn change_session<E>(
        &mut self,
        id: ClientId,
        change: impl FnOnce(Option<&Session>) -> Result<Option<Session>, E>,
    ) -> Option<Result<(), E>> {
        let slot = self.slot(id)?;
        let facts = self.facts_mut(slot)?;
        let changed = change(facts.session.as_ref()).map(|session| facts.session = session);
        if let (Ok(()), Some(journal)) = (&changed, self.journal_of(slot)) {
            journal.session(id);
        }
        Some(changed)
    }

    // --- questions ---

    /// What is known about a client.
    pub fn view(&self, id: ClientId) -> Option<View<'_>> {
        self.view_slot(self.slot(id)?)
    }

    /// All clients.
    pub fn all(&self) -> impl Iterator<Item = View<'_>> {
        self.by_connection.values().filter_map(|&slot| self.view_slot(slot))
    }

    /// The clients of a uid.
    pub fn of_uid(&self, uid: &Uid) -> impl Iterator<Item = View<'_>> {
        self.uids.get(uid).into_iter().flat_map(Members::iter).filter_map(|slot| self.view_slot(slot))
    }

    /// The members of a group.
    pub fn of_group(&self, group: &Group) -> impl Iterator<Item = View<'_>> {
        self.groups.get(group).into_iter().flat_map(Members::iter).filter_map(|slot| self.view_slot(slot))
    }

    /// The groups that have members here.
    pub fn group_names(&self) -> impl Iterator<Item = &Group> {
        self.groups.keys()
    }

    fn view_slot(&self, slot: Slot) -> Option<View<'_>> {
        let facts = self.facts.get(slot as usize)?.as_ref()?;
        let id = self.client(slot)?.id();
        Some(View {
            id,
            uid: facts.uid.as_ref(),
            order: facts.order,
            groups: &facts.groups,
            has_joined: facts.has_joined,
            session: facts.session.as_ref(),
            is_guest: facts.is_guest,
            arrival: self.client(slot)?.arrival(),
        })
    }

    // --- who is watched ---

    /// A client has done something; where it is about a uid or group, that is the one which is named.
    fn seen(&self, slot: Slot, seen: impl Fn(ClientId) -> Seen) {
        if !self.tails.any() {
            return;
        }
        let (Some(client), Some(Some(facts))) = (self.client(slot), self.facts.get(slot as usize)) else { return };
        if facts.is_guest {
            return;
        }
        let id = client.id();
        for watch in self.tails.watches().iter() {
            let seen = seen(id);
            let is_watched = match (&watch.tailed, &seen) {
                (Tailed::ClientId(watched), _) => *watched == id,
                (Tailed::Uid(watched), Seen::Bound(_, uid) | Seen::Unbound(_, uid)) => watched == uid,
                (Tailed::Uid(watched), _) => facts.uid.as_ref() == Some(watched),
                (Tailed::Group(watched), Seen::Joined(_, group) | Seen::Left(_, group)) => watched == group,
                (Tailed::Group(watched), Seen::Connect(_) | Seen::Close(..)) => facts.groups.contains(watched),
                (Tailed::Group(_), _) => false,
            };
            if is_watched {
                self.tails.copy(watch, seen);
            }
        }
    }

    /// Counts the clients of those who are watched among these.
    fn count_watched(&mut self, copied: &Copied, slots: &[Slot]) {
        self.next_visit();
        for &slot in slots {
            if let Some(visited) = self.visited.get_mut(slot as usize) {
                *visited = self.visit;
            }
        }
        let is_among = |slot: &Slot| self.visited.get(*slot as usize) == Some(&self.visit);
        let among = |members: Option<&Members>| members.into_iter().flat_map(Members::iter).filter(is_among).count();
        copied.count(|tailed| match tailed {
            Tailed::Uid(uid) => among(self.uids.get(uid)),
            Tailed::Group(group) => among(self.groups.get(group)),
            Tailed::ClientId(id) => self.slot(*id).iter().filter(|slot| is_among(slot)).count(),
        });
    }

    // --- messages ---

    /// Whether nothing is left of those that were here.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let is_left = self.clients.iter().any(Option::is_some)
            || self.facts.iter().any(Option::is_some)
            || self.is_busy()
            || self.guests > 0
            || !(self.left_uids.is_empty() && self.left_groups.is_empty() && self.departing.is_empty());
        !is_left && self.by_connection.is_empty() && self.uids.is_empty() && self.groups.is_empty() && self.is_told()
    }

    /// Whether sockets are still to be written.
    pub(super) fn is_busy(&self) -> bool {
        self.broadcast.is_some() || !self.dirty.is_empty()
    }

    /// How many messages sockets took since the last call.
    pub(super) fn take_taken(&mut self) -> u64 {
        std::mem::take(&mut self.taken)
    }

    /// Hands a message to its targets. `alone`: nothing else is ready to go. Returns how many outboxes it was put into.
    pub(super) fn deliver(&mut self, delivery: Delivery, alone: bool) -> usize {
        let Delivery { to, except, to_guests, message, copied, heard } = delivery;
        let mut slots = std::mem::take(&mut self.slots);
        let skip_guests = self.guests > 0 && !to_guests;
        let held = self.resolve(&to, except.as_deref(), skip_guests, &mut slots, heard.is_some());
        let targets = slots.len();
        if let Some(copied) = &copied {
            self.count_watched(copied, &slots);
        }
        let broadcast = Broadcast { message, slots, next: 0, result: Heard { held, took: 0 }, copied, heard };
        self.broadcast = Some(broadcast);
        if alone {
            return 0;
        }
        if targets <= PIECE && self.dirty.len() > PIECE {
            // A big broadcast is being flushed: this one does not wait for its end. What is before it in a client's
            // outbox goes out with it.
            self.hand(targets, Client::send);
            return 0;
        }
        self.append_rest();
        targets
    }

    /// The slots of those a message is for, each once; returns, if somebody asked,
    /// the places in the target's list that have any.
    fn resolve(
        &mut self,
        to: &Target,
        except: Option<&Except>,
        skip_guests: bool,
        slots: &mut Vec<Slot>,
        tell: bool,
    ) -> Vec<usize> {
        slots.clear();
        let mut held = Vec::new();
        let is_guest = |slot: Slot| matches!(self.facts.get(slot as usize), Some(Some(facts)) if facts.is_guest);
        let mut add = |place: usize, found: &mut dyn Iterator<Item = Slot>| {
            let before = slots.len();
            slots.extend(found.filter(|&slot| !(skip_guests && is_guest(slot))));
            if tell && slots.len() > before {
                held.push(place);
            }
        };
        let several = match to {
            Target::All => {
                add(0, &mut self.by_connection.values().copied());
                false
            }
            Target::Clients(ids) => {
                ids.iter().enumerate().for_each(|(place, id)| add(place, &mut self.slot(*id).into_iter()));
                false
            }
            Target::Uids(names) => {
                let members = names.iter().map(|name| self.uids.get(name));
                members
                    .enumerate()
                    .for_each(|(place, members)| add(place, &mut members.into_iter().flat_map(Members::iter)));
                names.len() > 1
            }
            Target::Groups(names) => {
                let members = names.iter().map(|name| self.groups.get(name));
                members
                    .enumerate()
                    .for_each(|(place, members)| add(place, &mut members.into_iter().flat_map(Members::iter)));
                names.len() > 1
            }
        };
        // Only several names can mean one client twice; those excepted count as visited.
        if several || except.is_some() {
            self.next_visit();
            if let Some(except) = except {
                self.visit_excepted(except);
            }
            slots.retain(|&slot| match self.visited.get_mut(slot as usize) {
                Some(visited) if *visited != self.visit => {
                    *visited = self.visit;
                    true
                }
                _ => false,
            });
        }
        held
    }

    fn next_visit(&mut self) {
        self.visit = self.visit.wrapping_add(1);
        if self.visit == 0 {
            self.visited.fill(0);
            self.visit = 1;
        }
    }

    fn visit_excepted(&mut self, except: &Except) {
        let clients = except.clients.iter().filter_map(|id| self.slot(*id));
        let uids = except.uids.iter().filter_map(|uid| self.uids.get(uid)).flat_map(Members::iter);
        for slot in clients.chain(uids).collect::<Vec<_>>() {
            if let Some(visited) = self.visited.get_mut(slot as usize) {
                *visited = self.visit;
            }
        }
    }

    /// Writes to up to [`PIECE`] sockets: the message that is alone, else what waits in dirty outboxes.
    pub(super) fn write_piece(&mut self) {
        if let Some(broadcast) = &self.broadcast {
            let most = (PIECE_BYTES / broadcast.message.frame().len().max(1)).clamp(1, PIECE);
            self.hand(most, Client::send);
            return;
        }
        let piece = self.dirty.len().min(PIECE);
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        slots.extend(self.dirty.drain(..piece));
        for_each_prefetched(&self.clients, &slots, |_, client| client.flush());
        self.slots = slots;
    }

    /// Something else comes in: what is left of a message that was alone goes into the outboxes first, so that the
    /// order holds for everyone.
    pub(super) fn append_rest(&mut self) {
        if self.broadcast.is_some() {
            self.hand(usize::MAX, Client::append);
        }
    }

    /// Hands the message under way to the next `most` of its targets.
    fn hand(&mut self, most: usize, give: impl Fn(&Client, &Message) -> Pushed) {
        let Some(mut broadcast) = self.broadcast.take() else { return };
        let piece = broadcast.slots.get(broadcast.next..).unwrap_or_default();
        let piece = piece.get(..most).unwrap_or(piece);
        broadcast.next += piece.len();
        let mut overflowed = Vec::new();
        let (facts, copied) = (&self.facts, &broadcast.copied);
        // Only where somebody is watched, and a socket did not take it.
        let refused = |slot: Slot, client: &Client| {
            let (Some(copied), Some(Some(facts))) = (copied, facts.get(slot as usize)) else { return };
            copied.refused(|tailed| match tailed {
                Tailed::Uid(uid) => facts.uid.as_ref() == Some(uid),
                Tailed::Group(group) => facts.groups.contains(group),
                Tailed::ClientId(id) => *id == client.id(),
            });
        };
        for_each_prefetched(&self.clients, piece, |slot, client| match give(client, &broadcast.message) {
            Pushed::Taken => broadcast.result.took += 1,
            Pushed::TakenFirst => {
                broadcast.result.took += 1;
                self.dirty.push_back(slot);
            }
            Pushed::Overflowed => {
                refused(slot, client);
                overflowed.push(slot);
            }
            Pushed::Dropped | Pushed::Closed => refused(slot, client),
        });
        for slot in overflowed {
            self.remove(slot, Close::SLOW, self.farewell(slot, None));
        }
        if broadcast.next < broadcast.slots.len() {
            self.broadcast = Some(broadcast);
            return;
        }
        let Broadcast { slots, result, heard, .. } = broadcast;
        self.slots = slots;
        self.taken += result.took as u64;
        if let Some(heard) = heard {
            // Whoever asked may have gone.
            heard.send(result).ok();
        }
    }

    /// One heartbeat tick for every `of`-th client, beginning with slot `part`.
    pub(super) fn tick(&mut self, tick: &Tick, part: usize, of: usize) {
        let mut idle = Vec::new();
        for place in (part..self.clients.len()).step_by(of.max(1)) {
            let (Some(Some(client)), Some(Some(facts))) = (self.clients.get(place), self.facts.get_mut(place)) else {
                continue;
            };
            if client.has_hung_up() {
                idle.push((place as Slot, Close::LOST));
                continue;
            }
            if client.protocol() != Protocol::WebSocket && !tick.for_streams {
                continue;
            }
            match facts.heartbeat.tick(tick, client.take_heard()) {
                Beat::Nothing => {}
                Beat::Send => {
                    if let Some(ping) = &tick.ping
                        && client.send(ping) == Pushed::Overflowed
                    {
                        idle.push((place as Slot, Close::SLOW));
                    }
                }
                Beat::Cut => idle.push((place as Slot, Close::IDLE)),
            }
        }
        for (slot, close) in idle {
            self.close_slot(slot, None, &close);
        }
    }

    // --- places ---

    fn slot(&self, id: ClientId) -> Option<Slot> {
        let slot = *self.by_connection.get(&id.connection)?;
        (self.client(slot)?.id() == id).then_some(slot)
    }

    fn client(&self, slot: Slot) -> Option<&Arc<Client>> {
        self.clients.get(slot as usize)?.as_ref()
    }

    fn facts_mut(&mut self, slot: Slot) -> Option<&mut Facts> {
        self.facts.get_mut(slot as usize)?.as_mut()
    }
}

/// A message on its way through its targets.
struct Broadcast {
    message: Message,
    slots: Vec<Slot>,
    /// Place in `slots` of the next one.
    next: usize,
    result: Heard,
    copied: Option<Arc<Copied>>,
    heard: Option<oneshot::Sender<Heard>>,
}

/// Visits the clients of these slots; the memory of a few at a time is asked for before the first of them is visited.
fn for_each_prefetched(clients: &[Option<Arc<Client>>], slots: &[Slot], mut visit: impl FnMut(Slot, &Client)) {
    for few in slots.chunks(PREFETCH) {
        let client = |slot: Slot| clients.get(slot as usize).and_then(Option::as_ref);
        few.iter().filter_map(|&slot| client(slot)).for_each(|client| client.prefetch());
        for &slot in few {
            if let Some(client) = client(slot) {
                visit(slot, client);
            }
        }
    }
}

/// What is known about a client, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Its id.
    pub id: ClientId,
    /// The uid it is bound to.
    pub uid: Option<&'a Uid>,
    /// Which of several that were bound as the single one it is, as far as others have said.
    pub order: u64,
    /// Its groups, in the order in which it has joined them.
    pub groups: &'a [Group],
    /// It is in a group, or has been.
    pub has_joined: bool,
    /// Its session, when it was ever set.
    pub session: Option<&'a Session>,
    /// It is still shaking hands: others do not know of it.
    pub is_guest: bool,
    /// Where it came from, and when.
    pub arrival: Arrival,
}

/// A client would be in more groups than `MAX_GROUPS_PER_CLIENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client can be in at most {most} groups")]
pub struct TooManyGroups {
    /// The setting.
    pub most: usize,
}

/// The clients of one uid or group in a shard. Most uids have one client: that one needs no memory of its own.
enum Members {
    One(Slot),
    Many(HashSet<Slot, BuildHasherDefault<SlotHasher>>),
}

impl Members {
    fn insert(&mut self, slot: Slot) {
        match self {
            Self::One(one) => *self = Self::Many([*one, slot].into_iter().collect()),
            Self::Many(many) => {
                many.insert(slot);
            }
        }
    }

    /// Removes a member; true when none is left.
    fn remove(&mut self, slot: Slot) -> bool {
        match self {
            Self::One(_) => true,
            Self::Many(many) => {
                many.remove(&slot);
                if many.capacity() > 64 && many.len() < many.capacity() / 8 {
                    many.shrink_to_fit();
                }
                many.is_empty()
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = Slot> {
        let (one, many) = match self {
            Self::One(one) => (Some(*one), None),
            Self::Many(many) => (None, Some(many)),
        };
        one.into_iter().chain(many.into_iter().flatten().copied())
    }
}

/// Slots are ours and dense: a multiplication (Knuth, TAOCP 6.4) spreads them well enough.
#[derive(Default)]
struct SlotHasher(u64);

impl Hasher for SlotHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }
    fn write_u32(&mut self, slot: u32) {
        self.0 = (self.0 ^ u64::from(slot)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Adds a member here.
fn enter<N: std::hash::Hash + Eq + Clone>(map: &mut HashMap<N, Members>, name: &N, slot: Slot) {
    match map.get_mut(name) {
        Some(members) => members.insert(slot),
        None => drop(map.insert(name.clone(), Members::One(slot))),
    }
}

/// Removes a member here; the node's index follows in [`Shard::settle`].
fn leave<N: std::hash::Hash + Eq + Clone>(map: &mut HashMap<N, Members>, left: &mut Vec<N>, name: &N, slot: Slot) {
    if map.get_mut(name).is_none_or(|members| members.remove(slot)) {
        map.remove(name);
    }
    left.push(name.clone());
}

/// Takes what was left out of the node's index.
fn settle<N: std::hash::Hash + Eq + Clone>(
    map: &HashMap<N, Members>,
    targets: &Targets<N>,
    shard: usize,
    left: &mut Vec<N>,
    mut stamp: impl FnMut(&N, usize),
) {
    for name in left.drain(..) {
        targets.leave(&name, shard, !map.contains_key(&name), |clients| stamp(&name, clients));
    }
    // A large client's end shall not be remembered for ever.
    left.shrink_to(64);
}
