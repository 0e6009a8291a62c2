//! Who works, how far it is, and how fast: some times a second, from the thread that publishes, as threads that receive
//! have better things to do.

use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// On stderr, and only where that is a terminal. One for the process, as the terminal is.
static BAR: LazyLock<ProgressBar> = LazyLock::new(ProgressBar::no_length);
/// What was done before the stretch at hand.
static BEFORE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ASIDE: Cell<bool> = const { Cell::new(false) };
}

/// This thread works beside another, whose bar it is.
pub(crate) fn aside() {
    ASIDE.set(true);
}

/// How often somebody looks, ns.
const INTERVAL: u64 = 100_000_000;

/// A new phase of `total` steps; the time that is left counts from here.
pub(crate) fn phase(name: &str, total: u64) {
    // what does not fit into the line is cut at the end
    const STYLE: &str = "[{bar:20}] {percent:>3} %, {eta} left, {pos} of {len}: {prefix}{wide_msg}";
    if ASIDE.get() {
        return;
    }
    if let Ok(style) = ProgressStyle::with_template(STYLE) {
        BAR.set_style(style.progress_chars("=> "));
    }
    BEFORE.store(0, Ordering::Relaxed);
    BAR.set_message(name.to_owned());
    BAR.set_length(total);
    BAR.reset();
}

/// The next stretch of a phase, of which so many steps are done.
pub(crate) fn stretch(name: String, before: u64) {
    if ASIDE.get() {
        return;
    }
    BEFORE.store(before, Ordering::Relaxed);
    BAR.set_message(name);
    BAR.set_position(before);
}

/// So many steps of the stretch are done.
pub(crate) fn at(done: u64) {
    if !ASIDE.get() {
        BAR.set_position(BEFORE.load(Ordering::Relaxed) + done);
    }
}

/// What stands in front of every phase.
pub(crate) fn prefix(text: String) {
    BAR.set_prefix(text);
}

/// Leaves the line to others.
pub(crate) fn clear() {
    BAR.finish_and_clear();
}

/// Notes a growing count ten times a second and moves the bar. It reads no clock, as its callers have just done so.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// When the last sample was taken, ns since the start.
    last: u64,
    samples: Vec<(f64, u64)>,
}

impl Watch {
    /// To be called often, and mostly does nothing. `now` is ns since the start, `count` the deliveries since then, `done`
    /// the steps of the stretch.
    pub(crate) fn look(&mut self, now: u64, count: u64, done: u64) {
        if now >= self.last + INTERVAL {
            self.last = now;
            self.samples.push((now as f64 / 1e9, count));
            at(done);
        }
    }

    /// Ends it; gives seconds since the start and the count then, growing, the last one now.
    pub(crate) fn end(mut self, now: u64, count: u64) -> Vec<(f64, u64)> {
        if now < self.last + INTERVAL / 2 {
            // a last stretch so short would show chance
            self.samples.pop();
        }
        self.samples.push((now as f64 / 1e9, count));
        self.samples
    }
}

/// Counts that grow become how much they grew per second, at the end of each stretch. Of more than 300 stretches some are
/// drawn together.
pub(crate) fn rates(samples: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let together = samples.len().div_ceil(300).max(1);
    let mut before = (0.0, 0);
    let rate = |stretch: &[(f64, u64)]| {
        let &(seconds, count) = stretch.last()?;
        let point = (seconds, count.saturating_sub(before.1) as f64 / (seconds - before.0).max(1e-9));
        before = (seconds, count);
        Some(point)
    };
    samples.chunks(together).filter_map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_rates() {
        assert_eq!(rates(&[(0.5, 100), (1.0, 100), (3.0, 500)]), [(0.5, 200.0), (1.0, 0.0), (3.0, 200.0)]);
        assert_eq!(rates(&[]), []);
        let many: Vec<(f64, u64)> = (1..=1000u32).map(|second| (f64::from(second), 7 * u64::from(second))).collect();
        let rates = rates(&many);
        assert_eq!((rates.len(), rates.last()), (250, Some(&(1000.0, 7.0))));
        assert!(rates.iter().all(|(_, rate)| (rate - 7.0).abs() < 1e-9));
    }

    #[test]
    fn a_count_is_noted_ten_times_a_second_and_in_the_end() {
        let millis = |millis: u64| millis * 1_000_000;
        let run = |end: u64| {
            let mut watch = Watch::default();
            for (now, count) in [(1, 1), (99, 2), (110, 3), (150, 4), (209, 5), (215, 6)] {
                watch.look(millis(now), count, 0);
            }
            watch.end(millis(end), 7)
        };
        assert_eq!(run(300), [(0.11, 3), (0.215, 6), (0.3, 7)]);
        assert_eq!(run(220), [(0.11, 3), (0.22, 7)]);
        assert_eq!(Watch::default().end(millis(3), 1), [(0.003, 1)]);
    }
}
