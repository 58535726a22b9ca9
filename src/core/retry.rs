//! When a build is tried again after an infrastructure end.

use super::{
    outcome::{AttemptEnd, SetupFailure},
    time::{Monotonic, Now, Timestamp},
};

/// The first pause after an end that is the machine's fault.
const FIRST_PAUSE_MS: i64 = 10_000;
/// How much longer each further pause is.
const FACTOR: i64 = 3;
/// The longest pause. A farm without a working machine is then asked once an hour per build.
pub const PAUSE_MS_MAX: i64 = 3_600_000;

/// Returns when to try again; `None` is at once.
///
/// `infrastructure_ends` counts the attempts of this build that ended so, this one included. A lost
/// agent costs nothing, for another one can begin at once; anything else waits, so that one bad
/// build or machine cannot keep the farm spinning.
#[must_use]
pub fn next_try(end: &AttemptEnd, infrastructure_ends: u32, now: Timestamp) -> Option<Timestamp> {
    match end {
        AttemptEnd::AgentLost if infrastructure_ends <= 3 => None,
        AttemptEnd::SetupFailed(SetupFailure::AttemptLost(_)) if infrastructure_ends <= 1 => None,
        AttemptEnd::AgentLost
        | AttemptEnd::SetupFailed(_)
        | AttemptEnd::UploadFailed(_)
        | AttemptEnd::Rejected(_) => {
            let exponent = infrastructure_ends.saturating_sub(1).min(16);
            let pause = FIRST_PAUSE_MS.saturating_mul(FACTOR.saturating_pow(exponent));
            Some(now.plus_ms(pause.min(PAUSE_MS_MAX)))
        }
        AttemptEnd::Drained
        | AttemptEnd::Succeeded
        | AttemptEnd::Failed(_)
        | AttemptEnd::Canceled => None,
    }
}

/// Returns when a pause is over on the monotonic clock. It is never longer from now than the longest
/// one, whatever the wall clock did since it began.
#[must_use]
pub fn due(until: Timestamp, now: Now) -> Monotonic {
    let left = until.as_ms().saturating_sub(now.wall.as_ms()).clamp(0, PAUSE_MS_MAX);
    now.mono.plus_ms(u64::try_from(left).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_agent_costs_no_pause_and_a_bad_machine_ever_longer_ones() {
        let now = Timestamp::from_ms(0);
        assert_eq!(next_try(&AttemptEnd::AgentLost, 1, now), None);
        assert_eq!(next_try(&AttemptEnd::Drained, 9, now), None);
        let end = AttemptEnd::SetupFailed(SetupFailure::DiskFull);
        let pauses: Vec<_> =
            (1..=8).map(|n| next_try(&end, n, now).map_or(0, Timestamp::as_ms)).collect();
        assert_eq!(
            pauses,
            [10_000, 30_000, 90_000, 270_000, 810_000, 2_430_000, 3_600_000, 3_600_000]
        );
    }
}
