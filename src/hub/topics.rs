//! What a node must hear of, as it changes: the targets that have clients here.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::id::{ClientId, Group, Uid};

/// Something that messages are said to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Everyone.
    All,
    /// A uid.
    Uid(Uid),
    /// A group.
    Group(Group),
    /// A client, where each is to be heard of by its name.
    Client(ClientId),
}

/// Topics whose first client came or whose last one left; which of both, or both, the hub says.
#[derive(Debug)]
pub struct Topics {
    changed: Mutex<HashSet<Topic>>,
    count: AtomicU64,
    notify: Notify,
    /// The clients that are here, where each is a topic.
    clients: OnceLock<Mutex<HashSet<ClientId>>>,
}

impl Default for Topics {
    /// The count begins at one: with nothing heard yet, nothing is up to date.
    fn default() -> Self {
        Self { changed: Mutex::default(), count: AtomicU64::new(1), notify: Notify::new(), clients: OnceLock::new() }
    }
}

impl Topics {
    /// A share of others: with nothing taken yet, so many changes are behind it.
    pub fn from(count: u64) -> Self {
        Self { count: AtomicU64::new(count), ..Self::default() }
    }

    /// Puts in those that have changed since the last time, and how many have in all; they may be fewer, as others have
    /// their share.
    pub fn put(&self, count: u64, topics: impl IntoIterator<Item = Topic>) {
        let mut changed = self.changed.lock();
        changed.extend(topics);
        self.count.store(count, Ordering::Release);
        drop(changed);
        self.notify.notify_one();
    }

    /// From now on each client is a topic; nobody is there yet.
    pub fn follow_clients(&self) {
        self.clients.get_or_init(Mutex::default);
    }

    pub(super) fn client_has_come(&self, id: ClientId) {
        if let Some(clients) = self.clients.get() {
            clients.lock().insert(id);
            self.changed(Topic::Client(id));
        }
    }

    pub(super) fn client_has_gone(&self, id: ClientId) {
        if let Some(clients) = self.clients.get() {
            clients.lock().remove(&id);
            self.changed(Topic::Client(id));
        }
    }

    pub(super) fn has_client(&self, id: ClientId) -> bool {
        self.clients.get().is_some_and(|clients| clients.lock().contains(&id))
    }

    /// How many clients are topics.
    pub(super) fn client_count(&self) -> usize {
        self.clients.get().map_or(0, |clients| clients.lock().len())
    }

    /// Those clients that are topics.
    pub fn clients(&self) -> Vec<ClientId> {
        self.clients.get().map(|clients| clients.lock().iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn changed(&self, topic: Topic) {
        let mut changed = self.changed.lock();
        changed.insert(topic);
        self.count.fetch_add(1, Ordering::Release);
        drop(changed);
        self.notify.notify_one();
    }

    /// Takes those that have changed, and says how many there were in all.
    pub fn take(&self) -> (u64, HashSet<Topic>) {
        let mut changed = self.changed.lock();
        (self.count(), std::mem::take(&mut *changed))
    }

    /// How many changes there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits for the next change, or one that was not taken.
    pub async fn next(&self) {
        self.notify.notified().await;
    }
}
