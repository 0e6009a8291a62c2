//! How many clients there may be, and how much each may say.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many clients there may be, all together and from one address; and those that are there.
#[derive(Debug)]
pub struct Limits {
    all: Option<NonZeroU32>,
    of_one: Option<NonZeroU32>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// There is no place for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// For nobody.
    ForAll,
    /// From this address.
    ForAddress,
}

/// A client's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    limits: Arc<Limits>,
    address: IpAddr,
}

impl Limits {
    /// So many at the most; none: as many as come.
    pub fn new(all: Option<NonZeroU32>, of_one: Option<NonZeroU32>) -> Arc<Self> {
        Arc::new(Self { all, of_one, taken: Mutex::default() })
    }

    /// Takes a place for a client from this address; none where nothing is limited.
    ///
    /// An IPv6 address counts as its network of 64 bits: who has one has all of it (RFC 6177).
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<Option<Place>, Full> {
        if self.all.is_none() && self.of_one.is_none() {
            return Ok(None);
        }
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        };
        let mut taken = self.taken.lock();
        if self.all.is_some_and(|most| taken.all >= most.get()) {
            return Err(Full::ForAll);
        }
        if let Some(most) = self.of_one {
            let of_one = taken.by_address.entry(address).or_default();
            if *of_one >= most.get() {
                return Err(Full::ForAddress);
            }
            *of_one += 1;
        }
        taken.all += 1;
        Ok(Some(Place { limits: Arc::clone(self), address }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.limits.taken.lock();
        taken.all -= 1;
        if let Entry::Occupied(mut of_one) = taken.by_address.entry(self.address) {
            *of_one.get_mut() -= 1;
            if *of_one.get() == 0 {
                of_one.remove();
            }
        }
    }
}

/// How much a client may say: a token bucket that holds what one second brings.
#[derive(Debug)]
pub struct Rate {
    per_second: u32,
    /// When the bucket was empty, or would have been: it has been filling since.
    empty_at: Instant,
}

impl Rate {
    /// Full.
    pub fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let per_second = per_second.get();
        Self { per_second, empty_at: now.checked_sub(Duration::from_secs(1)).unwrap_or(now) }
    }

    /// Takes one; false when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_since = now.checked_sub(Duration::from_secs(1)).unwrap_or(self.empty_at);
        let after = self.empty_at.max(full_since) + Duration::from_secs(1) / self.per_second;
        if after > now {
            return false;
        }
        self.empty_at = after;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(number: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(number)
    }

    #[test]
    fn places_are_taken_and_given_back() {
        let limits = Limits::new(most(3), most(2));
        let [a, b, c] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse().unwrap());
        let first = limits.take(a).unwrap();
        let second = limits.take(a).unwrap();
        assert_eq!(limits.take(a).unwrap_err(), Full::ForAddress);
        let third = limits.take(b).unwrap();
        assert_eq!(limits.take(c).unwrap_err(), Full::ForAll);
        drop(first);
        let fourth = limits.take(c).unwrap();
        drop((second, third, fourth));
        let taken = limits.taken.lock();
        assert_eq!((taken.all, taken.by_address.len()), (0, 0));
    }

    #[test]
    fn of_an_ipv6_address_its_network_counts() {
        let limits = Limits::new(None, most(1));
        let _place = limits.take("2001:db8:1:2::7".parse().unwrap()).unwrap().unwrap();
        assert_eq!(limits.take("2001:db8:1:2:ffff::8".parse().unwrap()).unwrap_err(), Full::ForAddress);
        assert!(limits.take("2001:db8:1:3::7".parse().unwrap()).is_ok());
        let _place = limits.take("::ffff:192.0.2.1".parse().unwrap()).unwrap().unwrap();
        assert_eq!(limits.take("192.0.2.1".parse().unwrap()).unwrap_err(), Full::ForAddress);
        assert!(limits.take("192.0.2.2".parse().unwrap()).is_ok());
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let limits = Limits::new(None, None);
        assert!(limits.take("192.0.2.1".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn a_second_brings_what_may_be_said() {
        let mut now = Instant::now();
        let mut rate = Rate::new(NonZeroU32::new(10).unwrap(), now);
        let mut burst = |now| (0..1000).take_while(|_| rate.take(now)).count();
        assert_eq!(burst(now), 10);
        now += Duration::from_millis(99);
        assert_eq!(burst(now), 0);
        now += Duration::from_millis(1);
        assert_eq!(burst(now), 1);
        now += Duration::from_millis(500);
        assert_eq!(burst(now), 5);
        // A pause fills it, and no more.
        now += Duration::from_mins(1);
        assert_eq!(burst(now), 10);
    }
}
