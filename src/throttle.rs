//! Log lines about what others do wrong: at most one a second, or they would fill the disk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets one through a second.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    /// Whether it is time for one.
    pub(crate) fn allows(&self) -> bool {
        let mut last = self.0.lock();
        let allows = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if allows {
            *last = Some(Instant::now());
        }
        allows
    }
}
