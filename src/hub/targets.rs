//! Which shards hold a uid or group, and how many clients it has on this node.
//!
//! Shards share nothing on the way of a message; this index is what spares a message to one uid the visit of every
//! shard. It is also the node's answer to "is anybody here?": a target is in it exactly while it has clients.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;

use super::topics::{Topic, Topics};

/// A set of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shards(u64);

impl Shards {
    /// The most shards a hub can have.
    pub(super) const MAX: usize = u64::BITS as usize;

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn one(shard: usize) -> Self {
        Self(1 << shard)
    }

    /// From the lowest. It costs what is in it: a look at each of the 64 was one in twenty of a message's instructions.
    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let shard = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(shard)
        })
    }
}

#[derive(Default, Clone, Copy)]
struct Held {
    shards: Shards,
    clients: usize,
}

/// Locks are taken for nanoseconds; so many stripes keep two threads out of each other's way.
const STRIPES: usize = 64;

/// The targets of one kind, uids or groups.
pub(super) struct Targets<N> {
    hasher: RandomState,
    stripes: Box<[Mutex<HashMap<N, Held>>]>,
    /// Who is told of first and last clients.
    topics: Option<Arc<Topics>>,
    topic: fn(N) -> Topic,
}

impl<N: Hash + Eq + Clone> Targets<N> {
    pub(super) fn new(topics: Option<Arc<Topics>>, topic: fn(N) -> Topic) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::new(), stripes, topics, topic }
    }

    fn changed(&self, name: &N) {
        if let Some(topics) = &self.topics {
            topics.changed((self.topic)(name.clone()));
        }
    }

    /// A client of `shard` holds the target now. `stamp` sees how many do, in one order with all others who come and go.
    pub(super) fn enter<T>(&self, name: &N, shard: usize, stamp: impl FnOnce(usize) -> T) -> T {
        self.with(name, |stripe| {
            let held = match stripe.get_mut(name) {
                Some(held) => held,
                None => stripe.entry(name.clone()).or_default(),
            };
            held.shards.add(Shards::one(shard));
            held.clients += 1;
            if held.clients == 1 {
                self.changed(name);
            }
            stamp(held.clients)
        })
    }

    /// A client of `shard` holds it no more; `last` says that the shard has no other. `stamp` as with [`Self::enter`].
    pub(super) fn leave<T>(&self, name: &N, shard: usize, last: bool, stamp: impl FnOnce(usize) -> T) -> T {
        self.with(name, |stripe| {
            let Some(held) = stripe.get_mut(name) else { return stamp(0) };
            held.clients -= 1;
            if last {
                held.shards.0 &= !Shards::one(shard).0;
            }
            let left = held.clients;
            if left == 0 {
                self.changed(name);
                stripe.remove(name);
                if stripe.capacity() > 64 && stripe.len() < stripe.capacity() / 8 {
                    stripe.shrink_to_fit();
                }
            }
            stamp(left)
        })
    }

    /// As [`Self::enter`], and nothing changes.
    pub(super) fn look<T>(&self, name: &N, stamp: impl FnOnce(usize) -> T) -> T {
        self.with(name, |stripe| stamp(stripe.get(name).map_or(0, |held| held.clients)))
    }

    /// The shards that hold the target.
    pub(super) fn shards(&self, name: &N) -> Shards {
        self.with(name, |stripe| stripe.get(name).copied()).unwrap_or_default().shards
    }

    /// How many clients hold the target.
    pub(super) fn clients(&self, name: &N) -> usize {
        self.look(name, |clients| clients)
    }

    /// How many targets there are.
    pub(super) fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.lock().len()).sum()
    }

    /// Calls `visit` with every target and its number of clients.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&N, usize)) {
        for stripe in &self.stripes {
            for (name, held) in stripe.lock().iter() {
                visit(name, held.clients);
            }
        }
    }

    fn with<T>(&self, name: &N, act: impl FnOnce(&mut HashMap<N, Held>) -> T) -> T {
        let stripe = self.hasher.hash_one(name) as usize % STRIPES;
        #[allow(clippy::indexing_slicing)] // below STRIPES by construction
        act(&mut self.stripes[stripe].lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_shards_gives_each_that_was_added_once_from_the_lowest() {
        let mut shards = Shards::default();
        assert_eq!(shards.iter().count(), 0);
        for shard in [63, 0, 17, 0] {
            shards.add(Shards::one(shard));
        }
        assert_eq!(shards.iter().collect::<Vec<_>>(), [0, 17, 63]);
        let all = (0..Shards::MAX).fold(Shards::default(), |mut all, shard| {
            all.add(Shards::one(shard));
            all
        });
        assert!(all.iter().eq(0..Shards::MAX));
    }
}
