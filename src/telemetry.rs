//! Diagnosis: the clock, error chains in one line, and foreign bytes made printable.

use crate::core::time::{Monotonic, Now, Timestamp};
use std::{
    error::Error,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often a thread or task of this process has panicked.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts panics from now on, whoever catches them; they are reported as before. Once is enough.
pub fn count_panics() {
    static COUNTING: Once = Once::new();
    COUNTING.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            report(panic);
        }));
    });
}

/// Returns how often this process has panicked since [`count_panics`].
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The two clocks of this process. The only place that asks the operating system for the time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts counting monotonic time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock that others take time from")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Returns how long ago this clock was started, as exactly as the machine knows it: for
    /// measuring how long something took.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    /// Returns what time it is.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock that others take time from")]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mono = self.start.elapsed();
        Now {
            wall: Timestamp::from_ms(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)),
            mono: Monotonic::from_ms(u64::try_from(mono.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// Returns a time as JSON has it (RFC 3339): `2026-11-21T11:02:03.456Z`.
#[must_use]
pub fn rfc3339(at: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(at.as_ms()) {
        Ok(time) => format!("{time:.3}"),
        // Outside of the years that calendars know: only a damaged row has it.
        Err(_) => format!("{at} ms"),
    }
}

/// Returns an error and all its sources in one line, outermost first.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Returns foreign bytes as printable text: what is not printable ASCII is escaped, and at most
/// 1,000 bytes are shown.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let shown = bytes.get(..1_000).unwrap_or(bytes);
    let mut text = shown.escape_ascii().to_string();
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_costs_nobody_else_anything() {
        count_panics();
        let before = panics();
        let ended = tokio::spawn(async { panic!("as a test of what catches it") }).await;
        assert!(ended.unwrap_err().is_panic());
        assert!(panics() > before);
    }
}
