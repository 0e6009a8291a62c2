//! What other nodes do not know yet of a shard's clients.
//!
//! A shard writes down who has changed, and what of it was told already; whoever tells the others (`cluster`) takes all
//! of it at once, and says when it is told. Until then those who asked for a change wait for their [`Receipt`], and
//! clients that were let go are not told goodbye: whoever sees the close frame finds that the client has left. What
//! changes meanwhile is the next lot. It is bounded by the clients that there are, and those that others still believe in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::shard::Departing;
use crate::client::Arrival;
use crate::event::{About, Event, Events, Kind, Number, Room, What};
use crate::id::{ClientId, Group, Uid};
use crate::message::Close;
use crate::session::Session;

/// One client's difference to what was told before.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Who it is, when nothing was told before.
    pub arrived: Option<Arrival>,
    /// It has left.
    pub gone: bool,
    /// The uid that was told before; several, where it is not known what of it was told.
    pub uids_were: Vec<Uid>,
    /// Its uid now.
    pub uid: Option<Uid>,
    /// It was bound, be it to the uid it had: it may be that this was not written.
    pub bound: bool,
    /// Whether it is to be the only one of its uid.
    pub single: bool,
    /// Groups it has joined, be it again.
    pub joined: Vec<Group>,
    /// Groups it has left.
    pub left: Vec<Group>,
    /// All its groups now.
    pub groups: Vec<Group>,
    /// Its session, when that has changed.
    pub session: Option<Session>,
}

/// What clients have done, or what was done to them, to be told to applications; in order.
#[derive(Debug)]
pub enum Noted {
    /// As it is.
    Event(Event),
    /// A client's uid has changed; of several such changes of one client in a lot, the last one stands for all.
    Uid(Rebound),
}

/// A client's uid has changed.
#[derive(Debug)]
pub struct Rebound {
    /// Whom the events are about that come of it.
    pub about: About,
    /// Their place.
    pub room: Room,
    /// What it was.
    pub(super) was: Option<Uid>,
    /// What it is, and on a node that is alone how that was.
    pub(super) now: Option<(Uid, Option<What>)>,
}

/// What is left of what was noted of a run that was swept. Whoever sweeps tells what became of its clients, and nobody
/// what they have said; but of those that nobody else knows all is left, and their end.
pub fn left_of(noted: Vec<Noted>, events: &Events) -> Vec<Noted> {
    let unknown: HashMap<ClientId, About> = noted
        .iter()
        .filter_map(|noted| match noted {
            Noted::Event(Event { about, what: What::Connect(_), .. }) => Some((about.client_id, about.clone())),
            _ => None,
        })
        .collect();
    let mut left = Vec::new();
    for noted in noted {
        match noted {
            Noted::Event(event) if unknown.contains_key(&event.about.client_id) => left.push(Noted::Event(event)),
            Noted::Event(Event { what: What::Message { .. }, .. }) => events.lost(Kind::Message, "node"),
            Noted::Event(_) | Noted::Uid(_) => {}
        }
    }
    // Told twice, it has the same id.
    let ends = unknown.into_values().filter_map(|about| {
        let room = events.room(Kind::Close, about.length()).filter(|_| events.has(Kind::Close))?;
        let about = About { number: Number::Close, ..about };
        Some(Noted::Event(Event { about, uid: None, what: What::Close(Close::FENCED), room }))
    });
    left.extend(ends);
    left
}

impl Rebound {
    /// It is bound as before, which Redis may not know any more.
    pub fn again(about: About, room: Room) -> Self {
        Self { about, room, was: None, now: None }
    }

    /// An event that comes of it. The last one takes its place.
    pub fn event(&mut self, uid: &Uid, what: What) -> Event {
        Event { about: self.about.clone(), uid: Some(uid.clone()), what, room: std::mem::take(&mut self.room) }
    }
}

/// What was not told yet, taken at once.
#[derive(Debug, Default)]
pub struct Untold {
    /// What other nodes are to know.
    pub changes: Vec<(ClientId, Change)>,
    /// What applications are to be told.
    pub noted: Vec<Noted>,
    /// How many wait for it to be told: who asked for it, and who was let go.
    pub waiting: usize,
}

impl Change {
    /// It is not known what of an earlier change was told: what that took back is taken back again.
    pub fn repeat(&mut self, earlier: &Self) {
        for uid in &earlier.uids_were {
            if !self.uids_were.contains(uid) && (self.gone || self.uid.as_ref() != Some(uid)) {
                self.uids_were.push(uid.clone());
            }
        }
        let known: HashSet<&Group> = self.groups.iter().chain(&self.left).collect();
        let more: Vec<Group> = earlier.left.iter().filter(|group| !known.contains(group)).cloned().collect();
        self.left.extend(more);
    }
}

/// How a lot of changes was told.
#[derive(Debug, Default)]
pub struct Told {
    /// Of these clients it was refused, and why.
    pub refused: HashMap<ClientId, String>,
    /// Of these clients, that were to be the single ones of their uid, what is known of it.
    pub singles: HashMap<ClientId, Single>,
}

/// A client that is to be the only one of its uid.
#[derive(Debug, Clone, Default)]
pub struct Single {
    /// Of several, the one with the highest is the later one.
    pub order: u64,
    /// Who else has the uid.
    pub others: Vec<ClientId>,
}

/// Says when a change is told.
#[derive(Debug)]
pub struct Receipt(Option<oneshot::Receiver<Written>>);

/// A change is told, or refused with a reason; with what is known of its uid, if it was to be single.
pub type Written = Result<Single, String>;

impl Receipt {
    /// Nobody is to be told.
    pub(super) fn done() -> Self {
        Self(None)
    }

    /// Waits until it is told; none when it will not be.
    pub async fn wait(self) -> Option<Written> {
        match self.0 {
            None => Some(Ok(Single::default())),
            Some(written) => written.await.ok(),
        }
    }
}

/// What is not told yet of one client.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, clippy::option_option)] // each is a fact of its own
struct Pending {
    arrived: bool,
    gone: bool,
    /// What was told, if it has changed since.
    uid: Option<Option<Uid>>,
    bound: bool,
    single: bool,
    /// Groups that have changed.
    groups: HashMap<Group, Membership>,
    session: bool,
}

/// One client's in one group.
#[derive(Debug, Clone, Copy)]
struct Membership {
    /// It was told to be in it.
    was: bool,
    /// It has joined, be it again: it may be that this was not written.
    joined: bool,
}

/// Those who wait for a lot.
#[derive(Default)]
struct Lot {
    waiting: Vec<(Box<[ClientId]>, oneshot::Sender<Written>)>,
    departing: Vec<(Instant, Departing)>,
}

/// What a client is now, for [`Journal::take`].
pub(super) struct Now<'a> {
    pub(super) arrival: Arrival,
    pub(super) uid: Option<&'a Uid>,
    pub(super) groups: &'a [Group],
    pub(super) session: Option<&'a Session>,
}

impl Now<'_> {
    /// All there is, as if nothing had been told.
    pub(super) fn everything(&self) -> Change {
        Change {
            arrived: Some(self.arrival),
            bound: self.uid.is_some(),
            uid: self.uid.cloned(),
            joined: self.groups.to_vec(),
            groups: self.groups.to_vec(),
            session: self.session.cloned(),
            ..Change::default()
        }
    }
}

/// One shard's journal.
pub(super) struct Journal {
    pending: HashMap<ClientId, Pending>,
    next: Lot,
    /// Taken, and not said to be told yet.
    taken: Option<Lot>,
    noted: Vec<Noted>,
    changed: Arc<Notify>,
}

impl Journal {
    pub(super) fn new(changed: Arc<Notify>) -> Self {
        Self { pending: HashMap::new(), next: Lot::default(), taken: None, noted: Vec::new(), changed }
    }

    fn note(&mut self, id: ClientId) -> &mut Pending {
        self.changed.notify_one();
        self.pending.entry(id).or_default()
    }

    pub(super) fn arrived(&mut self, id: ClientId) {
        self.note(id).arrived = true;
    }

    /// It is unbound.
    pub(super) fn unbound(&mut self, id: ClientId, was: &Uid) {
        let pending = self.note(id);
        pending.uid.get_or_insert_with(|| Some(was.clone()));
        (pending.bound, pending.single) = (false, false);
    }

    /// It is bound, and was unbound before; it is to be the `single` one.
    pub(super) fn bound(&mut self, id: ClientId, single: bool) {
        let pending = self.note(id);
        pending.uid.get_or_insert(None);
        (pending.bound, pending.single) = (true, single);
    }

    /// It joins, be it again.
    pub(super) fn joined(&mut self, id: ClientId, group: &Group, was: bool) {
        self.note(id).groups.entry(group.clone()).or_insert(Membership { was, joined: true }).joined = true;
    }

    pub(super) fn left(&mut self, id: ClientId, group: &Group) {
        self.note(id).groups.entry(group.clone()).or_insert(Membership { was: true, joined: false }).joined = false;
    }

    pub(super) fn session(&mut self, id: ClientId) {
        self.note(id).session = true;
    }

    /// Returns whether others know of it.
    pub(super) fn gone(&mut self, id: ClientId, uid: Option<&Uid>, groups: &[Group]) -> bool {
        let pending = self.note(id);
        if pending.arrived {
            // Nobody was told that it is here.
            self.pending.remove(&id);
            return false;
        }
        pending.uid.get_or_insert_with(|| uid.cloned());
        for group in groups {
            pending.groups.entry(group.clone()).or_insert(Membership { was: true, joined: false });
        }
        pending.gone = true;
        true
    }

    /// What has happened besides.
    pub(super) fn happened(&mut self, noted: Vec<Noted>) {
        self.noted.extend(noted);
        self.changed.notify_one();
    }

    pub(super) fn departing(&mut self, departing: Departing) {
        self.next.departing.push((Instant::now(), departing));
        self.changed.notify_one();
    }

    /// A receipt for all that was changed up to now of these clients.
    pub(super) fn receipt(&mut self, about: Box<[ClientId]>) -> Receipt {
        let lot = if self.pending.is_empty() { self.taken.as_mut() } else { Some(&mut self.next) };
        Receipt(lot.map(|lot| {
            let (written, receipt) = oneshot::channel();
            lot.waiting.push((about, written));
            receipt
        }))
    }

    /// Whether anything is to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
            && self.next.waiting.is_empty()
            && self.next.departing.is_empty()
            && self.noted.is_empty()
    }

    /// Takes all that is not told.
    pub(super) fn take<'a>(&mut self, now: impl Fn(ClientId) -> Option<Now<'a>>) -> Untold {
        let pending = std::mem::take(&mut self.pending);
        let waiting = self.next.waiting.len() + self.next.departing.len();
        self.begin();
        let changes = pending.into_iter().filter_map(|(id, pending)| Some((id, pending.change(now(id))?)));
        Untold { changes: changes.collect(), noted: std::mem::take(&mut self.noted), waiting }
    }

    /// What was to be told is told in another way: those who wait for it wait for that.
    pub(super) fn begin(&mut self) {
        self.pending.clear();
        let mut lot = std::mem::take(&mut self.next);
        if let Some(before) = self.taken.take() {
            lot.waiting.extend(before.waiting);
            lot.departing.extend(before.departing);
        }
        self.taken = Some(lot);
    }

    /// What was taken is told.
    pub(super) fn told(&mut self, told: &Told) -> Vec<Departing> {
        let Some(lot) = self.taken.take() else { return Vec::new() };
        for (about, written) in lot.waiting {
            let result = match about.iter().find_map(|id| told.refused.get(id)) {
                Some(reason) => Err(reason.clone()),
                None => Ok(about.first().and_then(|id| told.singles.get(id)).cloned().unwrap_or_default()),
            };
            // Whoever asked may have gone.
            written.send(result).ok();
        }
        lot.departing.into_iter().map(|(_, departing)| departing).collect()
    }

    /// It cannot be told now: those who wait for it hear so. It stays to be told.
    pub(super) fn refuse(&mut self, reason: &str) {
        for lot in self.taken.iter_mut().chain([&mut self.next]) {
            for (_, written) in lot.waiting.drain(..) {
                // Whoever asked may have gone.
                written.send(Err(reason.to_owned())).ok();
            }
        }
    }

    /// Those that were let go so long ago wait no longer; what they had is kept until others know.
    pub(super) fn release_overdue(&mut self, age: Duration) {
        for lot in self.taken.iter_mut().chain([&mut self.next]) {
            // Those who have given up need no place here either.
            lot.waiting.retain(|(_, written)| !written.is_closed());
            let old = lot.departing.iter_mut().filter(|(since, _)| since.elapsed() >= age);
            old.for_each(|(_, departing)| departing.release());
        }
    }

    /// Nobody will be told anything any more of what there was; whoever sweeps tells what became of the clients. But of
    /// those that nobody else knows.
    pub(super) fn forget(&mut self, events: &Events) -> Vec<Departing> {
        self.begin();
        self.noted = left_of(std::mem::take(&mut self.noted), events);
        let lot = self.taken.take().unwrap_or_default();
        lot.departing.into_iter().map(|(_, departing)| departing).collect()
    }
}

/// Whether a client is in a group, for so many questions: of very many at once each is looked up in a set.
pub(super) fn lookup(groups: &[Group], questions: usize) -> impl Fn(&Group) -> bool {
    let set: HashSet<&Group> = if questions > 16 { groups.iter().collect() } else { HashSet::new() };
    move |group| if set.is_empty() { groups.contains(group) } else { set.contains(group) }
}

impl Pending {
    fn change(self, now: Option<Now<'_>>) -> Option<Change> {
        if self.gone {
            let left = self.groups.into_iter().filter_map(|(group, member)| member.was.then_some(group)).collect();
            let uids_were = self.uid.flatten().into_iter().collect();
            return Some(Change { gone: true, uids_were, left, ..Change::default() });
        }
        let now = now?;
        let is_in = lookup(now.groups, self.groups.len());
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for (group, member) in self.groups {
            match is_in(&group) {
                true if member.joined => joined.push(group),
                false if member.was => left.push(group),
                _ => {}
            }
        }
        Some(Change {
            arrived: self.arrived.then_some(now.arrival),
            gone: false,
            uids_were: self.uid.unwrap_or_else(|| now.uid.cloned()).into_iter().collect(),
            uid: now.uid.cloned(),
            bound: self.bound,
            single: self.single,
            joined,
            left,
            groups: now.groups.to_vec(),
            session: self.session.then(|| now.session.cloned().unwrap_or_default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::LanAddress;

    #[test]
    fn one_who_waits_for_the_changes_of_many_is_one() {
        let mut journal = Journal::new(Arc::default());
        let lan = LanAddress { ip: std::net::Ipv4Addr::LOCALHOST, port: 2900 };
        let ids: Vec<ClientId> = (0..32).map(|connection| ClientId { lan, connection }).collect();
        for id in &ids {
            journal.unbound(*id, &"u".parse().unwrap());
        }
        let receipt = journal.receipt(ids.into());
        let arrival = Arrival { peer: ([127, 0, 0, 1], 1).into(), port: 1, connected_at: 0 };
        let untold = journal.take(|_| Some(Now { arrival, uid: None, groups: &[], session: None }));
        assert_eq!((untold.changes.len(), untold.waiting), (32, 1));
        // The next lot is another one's.
        assert_eq!(journal.take(|_| None).waiting, 0);
        drop(receipt);
    }
}
