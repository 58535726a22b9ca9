//! What the engine's thread measures of itself: how long it decides, and how long the disk takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The upper bounds of what is counted together, in microseconds: from a commit to memory to one
/// that waits for a foreign lock.
pub const BOUNDS_US: [u64; 12] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000,
];

/// How often something took how long.
#[derive(Debug, Default)]
struct Histogram {
    /// By the first bound that it did not exceed.
    within: [AtomicU64; BOUNDS_US.len()],
    beyond: AtomicU64,
    sum_us: AtomicU64,
}

/// What was counted, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// How often it took no longer than each bound; each has those before it, too.
    pub within: [u64; BOUNDS_US.len()],
    /// How often it was done.
    pub number: u64,
    /// How long all of it took, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS_US.iter().position(|bound| us <= *bound);
        let counter = place.map_or(&self.beyond, |place| &self.within[place]);
        counter.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn counted(&self) -> Counted {
        let mut number = 0;
        let within = self.within.each_ref().map(|counter| {
            number += counter.load(Ordering::Relaxed);
            number
        });
        number += self.beyond.load(Ordering::Relaxed);
        Counted { within, number, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

/// The measurements of the engine's thread; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Measured>);

#[derive(Debug, Default)]
struct Measured {
    steps: Histogram,
    commits: Histogram,
}

impl Meter {
    /// A step was decided.
    pub(crate) fn decided(&self, took: Duration) {
        self.0.steps.note(took);
    }

    /// A step was committed.
    pub(crate) fn committed(&self, took: Duration) {
        self.0.commits.note(took);
    }

    /// Returns how long steps took to decide.
    #[must_use]
    pub fn steps(&self) -> Counted {
        self.0.steps.counted()
    }

    /// Returns how long commits took.
    #[must_use]
    pub fn commits(&self) -> Counted {
        self.0.commits.counted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_counts_what_is_within_it() {
        let meter = Meter::default();
        for us in [100, 250, 251, 4_000, 60_000_000] {
            meter.committed(Duration::from_micros(us));
        }
        let counted = meter.commits();
        assert_eq!(counted.within[..5], [2, 3, 3, 3, 4]);
        assert_eq!((counted.within[11], counted.number), (4, 5));
        assert_eq!(counted.sum_us, 60_004_601);
        assert_eq!(meter.steps().number, 0);
    }
}
