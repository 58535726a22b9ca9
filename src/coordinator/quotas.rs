//! How often principals submit.
//!
//! Kept in memory: after a start everybody may submit as if they had not for an hour.

use crate::{
    core::{id::Name, time::Monotonic},
    telemetry::Clock,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// How long an hour is, in milliseconds.
const HOUR_MS: u64 = 60 * 60 * 1_000;

/// Counts submissions; cheap to clone.
#[derive(Debug, Clone)]
pub struct Quotas {
    clock: Clock,
    /// Bounded by the keydir: who has not submitted for an hour is not in it.
    saved: Arc<Mutex<BTreeMap<Name, Saved>>>,
}

/// What somebody may still submit, in parts of a submission as small as one of an hour's
/// milliseconds.
#[derive(Debug, Clone, Copy)]
struct Saved {
    parts: u64,
    counted: Monotonic,
    most: u64,
}

impl Saved {
    fn new(now: Monotonic, per_hour: u32) -> Self {
        let most = u64::from(per_hour).saturating_mul(HOUR_MS);
        Self { parts: most, counted: now, most }
    }

    /// Takes one submission, or returns in how many milliseconds there is one.
    fn take(&mut self, now: Monotonic, per_hour: u32) -> Result<(), u64> {
        let per_hour = u64::from(per_hour);
        self.earn(now, per_hour);
        match self.parts.checked_sub(HOUR_MS) {
            Some(rest) => {
                self.parts = rest;
                Ok(())
            }
            None => Err(HOUR_MS.saturating_sub(self.parts).div_ceil(per_hour.max(1))),
        }
    }

    fn earn(&mut self, now: Monotonic, per_hour: u64) {
        let passed = now.as_ms().saturating_sub(self.counted.as_ms());
        self.most = per_hour.saturating_mul(HOUR_MS);
        self.parts = self.parts.saturating_add(passed.saturating_mul(per_hour)).min(self.most);
        self.counted = now;
    }
}

impl Quotas {
    /// Returns counts that begin now.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, saved: Arc::default() }
    }

    /// Takes one submission of somebody who may make so many in an hour, in whatever rhythm.
    ///
    /// # Errors
    /// In how many milliseconds there is one again.
    pub fn take_submission(&self, name: &Name, per_hour: u32) -> Result<(), u64> {
        let now = self.clock.now().mono;
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.retain(|_, one| now.as_ms().saturating_sub(one.counted.as_ms()) < HOUR_MS);
        let one = saved.entry(name.clone()).or_insert_with(|| Saved::new(now, per_hour));
        one.take(now, per_hour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_submissions_are_taken_in_an_hour() {
        let at = Monotonic::from_ms;
        let mut saved = Saved::new(at(0), 60);
        for _ in 0..60 {
            assert_eq!(saved.take(at(0), 60), Ok(()));
        }
        assert_eq!(saved.take(at(0), 60), Err(60_000));
        assert_eq!(saved.take(at(59_999), 60), Err(1));
        assert_eq!(saved.take(at(60_000), 60), Ok(()));
        assert_eq!(saved.take(at(60_000), 60), Err(60_000));
        // After a long pause, not more than an hour's.
        for _ in 0..60 {
            assert_eq!(saved.take(at(10 * HOUR_MS), 60), Ok(()));
        }
        assert!(saved.take(at(10 * HOUR_MS), 60).is_err());
        assert_eq!(Saved::new(at(0), 0).take(at(0), 0), Err(HOUR_MS));
    }
}
