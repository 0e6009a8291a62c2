//! What a node must hear of, as it changes: the targets that have clients here.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::id::{Group, Uid};

/// Something that messages are said to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Everyone.
    All,
    /// A uid.
    Uid(Uid),
    /// A group.
    Group(Group),
}

/// Topics whose first client came or whose last one left; which of both, or both, the hub says.
#[derive(Debug)]
pub struct Topics {
    changed: Mutex<HashSet<Topic>>,
    count: AtomicU64,
    notify: Notify,
}

impl Default for Topics {
    /// The count begins at one: with nothing heard yet, nothing is up to date.
    fn default() -> Self {
        Self { changed: Mutex::default(), count: AtomicU64::new(1), notify: Notify::new() }
    }
}

impl Topics {
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
