//! Who is being watched, for a while, by somebody who tails them on a console; see `gateway::tail`.
//!
//! While nobody is, that costs a message one relaxed load. A copy holds the beginning of what was said and no more, and
//! of each target there are so many in a second; beyond it they are only counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::id::{ClientId, Group, LanAddress, Uid};
use crate::message::{Close, Message};

/// How long somebody is watched who is not asked for again.
const WATCHED: Duration = Duration::from_secs(15);

/// How many are watched at once, by all nodes together; whoever comes later sees nothing of this node.
const MOST_WATCHED: usize = 64;

/// Copies of one target in a second.
const PER_SECOND: u32 = 100;

/// Copies that may wait to be handed over.
const WAITING: usize = 1024;

/// What is copied of a message.
const BEGINNING: usize = 4096;

/// Who is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tailed {
    /// The clients of a uid.
    Uid(Uid),
    /// The members of a group.
    Group(Group),
    /// One client.
    ClientId(ClientId),
}

/// Somebody who is watched, and for whom.
#[derive(Debug)]
pub struct Watch {
    /// Who.
    pub tailed: Tailed,
    /// The node that is to have the copies.
    pub to: LanAddress,
    /// Its name for the tail.
    pub id: u64,
    until: Mutex<Instant>,
    /// Copies that may still be made in this second.
    left: AtomicU32,
    skipped: AtomicU64,
}

/// The beginning of something that was said.
#[derive(Debug)]
pub struct Clip {
    /// So much of it.
    pub bytes: Bytes,
    /// All of it had so many bytes.
    pub length: usize,
    /// It is no text.
    pub is_binary: bool,
}

impl Clip {
    /// Shares no memory with what it is made of, which may be large, or what else was read with it.
    pub(super) fn of(bytes: &[u8], is_binary: bool) -> Self {
        let beginning = bytes.get(..BEGINNING).unwrap_or(bytes);
        Self { bytes: Bytes::copy_from_slice(beginning), length: bytes.len(), is_binary }
    }
}

/// What was seen.
#[derive(Debug)]
pub enum Seen {
    /// A message, and how many of the watched clients' sockets took it.
    Message(Clip, u64),
    /// A client said something.
    Said(ClientId, Clip),
    /// A client is there.
    Connect(ClientId),
    /// It is bound to a uid.
    Bound(ClientId, Uid),
    /// It is so no more.
    Unbound(ClientId, Uid),
    /// It is in a group.
    Joined(ClientId, Group),
    /// It is so no more.
    Left(ClientId, Group),
    /// It has left.
    Close(ClientId, Close),
    /// So many more in a second than are copied.
    Skipped(u64),
}

/// Something that was seen, and for whom.
#[derive(Debug)]
pub struct Sighting {
    /// For whom.
    pub watch: Arc<Watch>,
    /// When, unix ms.
    pub at: u64,
    /// What.
    pub seen: Seen,
}

/// Who is watched on a node, and what was seen of them.
#[derive(Debug, Default)]
pub struct Tails {
    any: AtomicBool,
    watches: RwLock<Arc<[Arc<Watch>]>>,
    copies: Mutex<Vec<Sighting>>,
    wake: Notify,
}

impl Tails {
    /// Whether anybody is watched.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Watches somebody for a while from `now` on; the same tail again for longer.
    pub fn watch(&self, tailed: Tailed, to: LanAddress, id: u64, now: Instant) {
        let until = now + WATCHED;
        let mut watches = self.watches.write();
        if let Some(known) = watches.iter().find(|watch| watch.to == to && watch.id == id) {
            *known.until.lock() = until;
        } else if watches.len() < MOST_WATCHED {
            let (until, left, skipped) = (Mutex::new(until), AtomicU32::new(PER_SECOND), AtomicU64::new(0));
            let watch = Arc::new(Watch { tailed, to, id, until, left, skipped });
            *watches = watches.iter().cloned().chain([watch]).collect();
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Another second has begun: what was skipped is told, and who is asked for no more is forgotten.
    pub fn tick(&self, now: Instant) {
        if !self.any() {
            return;
        }
        {
            let mut watches = self.watches.write();
            if watches.iter().any(|watch| *watch.until.lock() < now) {
                *watches = watches.iter().filter(|watch| *watch.until.lock() >= now).cloned().collect();
                self.any.store(!watches.is_empty(), Ordering::Relaxed);
            }
        }
        for watch in self.watches().iter() {
            watch.left.store(PER_SECOND, Ordering::Relaxed);
            let skipped = watch.skipped.swap(0, Ordering::Relaxed);
            if skipped > 0 {
                self.copy(watch, Seen::Skipped(skipped));
            }
        }
    }

    /// What was seen since the last time; waits until there is something.
    pub async fn next(&self) -> Vec<Sighting> {
        loop {
            let copies = std::mem::take(&mut *self.copies.lock());
            if !copies.is_empty() {
                return copies;
            }
            self.wake.notified().await;
        }
    }

    pub(super) fn watches(&self) -> Arc<[Arc<Watch>]> {
        Arc::clone(&self.watches.read())
    }

    /// Something was seen.
    pub(super) fn copy(&self, watch: &Arc<Watch>, seen: Seen) {
        let left = watch.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let mut copies = self.copies.lock();
        if left.is_err() || copies.len() >= WAITING {
            let count = if let Seen::Skipped(count) = seen { count } else { 1 };
            watch.skipped.fetch_add(count, Ordering::Relaxed);
            return;
        }
        let at = jiff::Timestamp::now().as_millisecond().unsigned_abs();
        copies.push(Sighting { watch: Arc::clone(watch), at, seen });
        drop(copies);
        self.wake.notify_one();
    }
}

/// A message on its way while somebody is watched: the shards count here, and with the last of them it is copied, once
/// for each who is watched and has clients among its targets.
#[derive(Debug)]
pub(super) struct Copied {
    tails: Arc<Tails>,
    message: Message,
    /// Whether it has any of these, and how many sockets took it.
    watches: Box<[(Arc<Watch>, AtomicBool, AtomicU64)]>,
}

impl Copied {
    pub(super) fn new(tails: &Arc<Tails>, message: &Message) -> Arc<Self> {
        let counted = |watch: &Arc<Watch>| (Arc::clone(watch), AtomicBool::new(false), AtomicU64::new(0));
        let watches = tails.watches().iter().map(counted).collect();
        Arc::new(Self { tails: Arc::clone(tails), message: message.clone(), watches })
    }

    /// Counts how many a shard has for each who is watched.
    pub(super) fn count(&self, clients: impl Fn(&Tailed) -> usize) {
        for (watch, any, took) in &self.watches {
            let count = clients(&watch.tailed) as u64;
            if count > 0 {
                any.store(true, Ordering::Relaxed);
                took.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// A client's socket did not take it.
    pub(super) fn refused(&self, is_of: impl Fn(&Tailed) -> bool) {
        for (watch, _, took) in &self.watches {
            if is_of(&watch.tailed) {
                took.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        for (watch, any, took) in &mut self.watches {
            if *any.get_mut() {
                let clip = Clip::of(&self.message.payload(), self.message.is_binary());
                self.tails.copy(watch, Seen::Message(clip, *took.get_mut()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(tails: &Tails, id: u64, now: Instant) {
        tails.watch(Tailed::Uid("42".parse().unwrap()), "7f0000010b54".parse().unwrap(), id, now);
    }

    #[test]
    fn who_is_asked_for_no_more_is_forgotten() {
        let (tails, mut now) = (Tails::default(), Instant::now());
        assert!(!tails.any());
        watched(&tails, 1, now);
        watched(&tails, 2, now);
        for _ in 0..3 {
            now += Duration::from_secs(10);
            watched(&tails, 1, now);
            tails.tick(now);
        }
        assert_eq!(tails.watches().iter().map(|watch| watch.id).collect::<Vec<_>>(), [1]);
        tails.tick(now + WATCHED + Duration::from_secs(1));
        assert!(!tails.any());
    }

    #[tokio::test]
    async fn only_so_many_are_watched_and_copied_and_the_rest_is_counted() {
        let tails = Tails::default();
        (0..100).for_each(|id| watched(&tails, id, Instant::now()));
        assert_eq!(tails.watches().len(), MOST_WATCHED);

        let watch = Arc::clone(tails.watches().first().unwrap());
        let see = |times| (0..times).for_each(|_| tails.copy(&watch, Seen::Connect(ClientId::NOBODY)));
        see(PER_SECOND + 20);
        assert_eq!(tails.next().await.len(), PER_SECOND as usize);
        tails.tick(Instant::now());
        let copies = tails.next().await;
        assert!(matches!(copies[..], [Sighting { seen: Seen::Skipped(20), .. }]), "{copies:?}");
        see(1);
        assert_eq!(tails.next().await.len(), 1);
    }

    #[tokio::test]
    async fn a_message_is_copied_when_the_last_shard_is_done_with_it_and_only_its_beginning() {
        let tails = Arc::new(Tails::default());
        watched(&tails, 1, Instant::now());
        let copied = Copied::new(&tails, &Message::text(&"x".repeat(BEGINNING + 1)));
        let shards = [Arc::clone(&copied), copied];
        for shard in &shards {
            shard.count(|_| 2);
        }
        shards[0].refused(|_| true);
        drop(shards);
        let copies = tails.next().await;
        let [Sighting { seen: Seen::Message(clip, 3), .. }] = &copies[..] else { panic!("{copies:?}") };
        assert_eq!((clip.bytes.len(), clip.length), (BEGINNING, BEGINNING + 1));
        drop(Copied::new(&tails, &Message::text("for nobody who is watched")));
        assert!(tails.copies.lock().is_empty());
    }
}
