//! Who works, how far it is, and how fast: some times a second, from the thread that publishes, as threads that receive
//! have better things to do.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// On stderr, and only where that is a terminal. One for the process, as the terminal is.
static BAR: LazyLock<ProgressBar> = LazyLock::new(ProgressBar::no_length);
/// What was done before the stretch at hand.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// How often somebody looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// A new phase of `total` steps; the time that is left counts from here.
pub(crate) fn phase(name: &str, total: u64) {
    const STYLE: &str = "{msg} [{bar:30}] {percent:>3} %, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(STYLE) {
        BAR.set_style(style.progress_chars("=> "));
    }
    BEFORE.store(0, Ordering::Relaxed);
    BAR.reset();
    BAR.set_length(total);
    BAR.set_message(name.to_owned());
}

/// The next stretch of a phase, of which so many steps are done.
pub(crate) fn stretch(name: String, before: u64) {
    BEFORE.store(before, Ordering::Relaxed);
    BAR.set_message(name);
    BAR.set_position(before);
}

/// So many steps of the stretch are done.
pub(crate) fn at(done: u64) {
    BAR.set_position(BEFORE.load(Ordering::Relaxed) + done);
}

/// Leaves the line to others.
pub(crate) fn clear() {
    BAR.finish_and_clear();
}

/// Notes a growing count ten times a second and moves the bar.
#[derive(Debug)]
pub(crate) struct Watch {
    began: Instant,
    next: Instant,
    samples: Vec<(f64, u64)>,
}

impl Watch {
    /// From now on.
    pub(crate) fn start() -> Self {
        let began = Instant::now();
        Self { began, next: began + INTERVAL, samples: Vec::new() }
    }

    /// To be called often: looks at the clock, and mostly that is all. `count` are deliveries, `done` steps of the phase.
    pub(crate) fn look(&mut self, count: u64, done: u64) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + INTERVAL;
            self.samples.push(((now - self.began).as_secs_f64(), count));
            at(done);
        }
    }

    /// Ends it; gives seconds since the start and the count then, growing, the last one now.
    pub(crate) fn end(mut self, count: u64) -> Vec<(f64, u64)> {
        let seconds = self.began.elapsed().as_secs_f64();
        // a last stretch that is too short would show chance
        while self.samples.last().is_some_and(|(before, _)| seconds - before < INTERVAL.as_secs_f64() / 2.0) {
            self.samples.pop();
        }
        self.samples.push((seconds, count));
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
    fn what_was_counted_in_the_end_is_the_last_sample() {
        let mut watch = Watch::start();
        watch.next = watch.began;
        watch.look(3, 0);
        let samples = watch.end(5);
        assert_eq!(samples.last().unwrap().1, 5);
        assert!(samples.is_sorted_by(|one, next| one.0 <= next.0));
    }
}
