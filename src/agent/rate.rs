//! A cap on how fast outputs are sent, over all connections together.

use crate::{core::time::Monotonic, protocol::bulk::CHUNK_BYTES_MAX, telemetry::Clock};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The lowest rate: below it a transfer would look stalled to the coordinator.
pub(super) const RATE_MIN: u64 = 4 * 1024;
/// How much may be sent at once after a pause, as the time that it takes at the rate.
const BURST: Duration = Duration::from_millis(250);
/// How many pieces a second's worth is sent in, so that something is always under way.
const PIECES_PER_SECOND: u64 = 8;

/// A token bucket. It keeps the time at which all that was taken will have been sent, instead of
/// tokens, so nothing has to be added as time passes.
#[derive(Debug)]
struct Bucket {
    /// Bytes per second.
    rate: u64,
    /// When all that was taken will have been sent at that rate, in microseconds.
    sent_at: u64,
}

impl Bucket {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(RATE_MIN), sent_at: 0 }
    }

    /// Takes the right to send so many bytes. Returns how long to wait before sending them.
    fn take(&mut self, now: Monotonic, bytes: u64) -> Duration {
        let now = now.as_ms().saturating_mul(1_000);
        let burst = u64::try_from(BURST.as_micros()).unwrap_or(u64::MAX);
        // What was not sent in a pause is not made up for beyond the burst.
        let begin = self.sent_at.max(now.saturating_sub(burst));
        let takes = u128::from(bytes) * 1_000_000 / u128::from(self.rate);
        self.sent_at = begin.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX));
        Duration::from_micros(self.sent_at.saturating_sub(now))
    }
}

/// What all uploads of an agent share to keep below its rate.
#[derive(Debug)]
pub(super) struct Throttle {
    limited: Option<Mutex<Bucket>>,
    piece_bytes: usize,
    clock: Clock,
}

impl Throttle {
    /// Returns a throttle at so many bytes per second; without limit when absent.
    pub(super) fn new(rate: Option<u64>, clock: Clock) -> Self {
        let piece = rate.map_or(u64::MAX, |rate| rate.max(RATE_MIN) / PIECES_PER_SECOND);
        let piece_bytes = usize::try_from(piece).unwrap_or(usize::MAX).min(CHUNK_BYTES_MAX);
        let limited = rate.map(|rate| Mutex::new(Bucket::new(rate)));
        Self { limited, piece_bytes, clock }
    }

    /// Returns how many bytes one message should have, at most a chunk.
    pub(super) const fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }

    /// Returns when so many bytes may be sent.
    pub(super) async fn pass(&self, bytes: usize) {
        let Some(bucket) = &self.limited else { return };
        let wait = {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(self.clock.now().mono, bytes as u64)
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Takes pieces one after the other, waiting as told, and returns when the last may go.
    fn run(bucket: &mut Bucket, from_ms: u64, pieces: &[u64]) -> u64 {
        pieces.iter().fold(from_ms, |now, bytes| {
            let wait = bucket.take(Monotonic::from_ms(now), *bytes);
            now + u64::try_from(wait.as_millis()).unwrap()
        })
    }

    #[test]
    fn many_pieces_take_as_long_as_one() {
        for piece in [1_000, 10_000, 250_000, MIB] {
            let count = usize::try_from(10 * MIB / piece).unwrap();
            let ended = run(&mut Bucket::new(MIB), 1_000_000, &vec![piece; count]);
            let took = ended - 1_000_000;
            assert!((9_500..=10_000).contains(&took), "{took} ms in pieces of {piece}");
        }
    }

    #[test]
    fn a_pause_is_made_up_for_by_no_more_than_the_burst() {
        let mut bucket = Bucket::new(MIB);
        assert_eq!(bucket.take(Monotonic::from_ms(3_600_000), MIB / 4), Duration::ZERO);
        let wait = bucket.take(Monotonic::from_ms(3_600_000), MIB);
        assert_eq!(wait, Duration::from_secs(1));
        // Whoever takes while others wait, waits behind them.
        assert_eq!(bucket.take(Monotonic::from_ms(3_600_000), MIB), Duration::from_secs(2));
    }

    #[test]
    fn no_rate_and_no_length_overflow() {
        assert_eq!(Bucket::new(0).rate, RATE_MIN);
        let mut bucket = Bucket::new(1);
        bucket.take(Monotonic::from_ms(u64::MAX), u64::MAX);
        bucket.take(Monotonic::from_ms(0), u64::MAX);
        assert_eq!(Bucket::new(u64::MAX).take(Monotonic::from_ms(0), MIB), Duration::ZERO);
    }

    #[tokio::test]
    async fn without_a_rate_nothing_waits() {
        let free = Throttle::new(None, Clock::start());
        assert_eq!(free.piece_bytes(), CHUNK_BYTES_MAX);
        tokio::time::timeout(Duration::ZERO, free.pass(usize::MAX)).await.unwrap();
        assert_eq!(Throttle::new(Some(80_000), Clock::start()).piece_bytes(), 10_000);
    }
}
