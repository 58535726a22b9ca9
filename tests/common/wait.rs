//! Waiting for a condition, never for a time.

use std::{thread, time::Duration};
use steading::telemetry::Clock;

/// How long any condition may take: generous, because it only costs time when a test fails.
const WAIT_MAX_MS: u64 = 180_000;
/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until `condition` holds, and panics with `what` when it never does.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let clock = Clock::start();
    while !condition() {
        assert!(clock.now().mono.as_ms() < WAIT_MAX_MS, "waited in vain until {what}");
        thread::park_timeout(LOOK_EVERY);
    }
}
