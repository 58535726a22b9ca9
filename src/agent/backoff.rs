//! How long to wait before trying again.

use std::time::Duration;

/// The first pause is at most this long.
const FIRST_MS: u64 = 1_000;
/// No pause is longer than this.
const PAUSE_MS_MAX: u64 = 60_000;

/// Pauses that double up to a limit, each of random length so that agents do not return together.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    ceiling_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { ceiling_ms: FIRST_MS }
    }
}

impl Backoff {
    /// Returns the next pause: between half of its ceiling and the ceiling.
    pub(super) fn pause(&mut self) -> Duration {
        let half = self.ceiling_ms / 2;
        self.ceiling_ms = self.ceiling_ms.saturating_mul(2).min(PAUSE_MS_MAX);
        // Without randomness the pause is as long as it may be; nothing depends on it.
        let jitter = getrandom::u64().map_or(half, |random| random % (half + 1));
        Duration::from_millis(half + jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_between_half_and_whole_of_their_ceiling() {
        let mut backoff = Backoff::default();
        for ceiling in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            let pause = backoff.pause();
            assert!(pause >= Duration::from_millis(ceiling / 2), "{pause:?} of {ceiling}");
            assert!(pause <= Duration::from_millis(ceiling), "{pause:?} of {ceiling}");
        }
    }
}
