//! When a build is tried again: after an infrastructure end always, after a failure as often as the
//! operator wants.

use super::{
    outcome::{AttemptEnd, BuildFailure, SetupFailure},
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
        | AttemptEnd::Rejected(_) => Some(now.plus_ms(pause_ms(infrastructure_ends))),
        AttemptEnd::Drained
        | AttemptEnd::Succeeded
        | AttemptEnd::Failed(_)
        | AttemptEnd::Canceled => None,
    }
}

/// How often a build that failed is tried again by itself, by how it failed. It counts all failures
/// of the build that were followed by another try, whatever their kind and whoever wanted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Retries {
    /// The builder exited with another status than 0.
    pub exit: u8,
    /// The builder was ended by a signal.
    pub signal: u8,
    /// It took too long.
    pub timeout: u8,
    /// It was silent for too long.
    pub silent: u8,
    /// It ran out of memory.
    pub oom: u8,
    /// It left an output out.
    pub no_output: u8,
    /// A fixed output is not what was promised.
    pub hash_mismatch: u8,
    /// The daemon refused the outputs.
    pub output_rejected: u8,
    /// Whether what failed under emulation is tried once more where the system is native, as long
    /// as an agent is known that could.
    pub emulated: bool,
}

impl Retries {
    /// Never.
    pub const NONE: Self = Self {
        exit: 0,
        signal: 0,
        timeout: 0,
        silent: 0,
        oom: 0,
        no_output: 0,
        hash_mismatch: 0,
        output_rejected: 0,
        emulated: false,
    };

    /// Returns how often a build that failed so is tried again.
    #[must_use]
    pub const fn after(&self, failure: &BuildFailure) -> u8 {
        match failure {
            BuildFailure::Exit(_) => self.exit,
            BuildFailure::Signal(_) => self.signal,
            BuildFailure::Timeout => self.timeout,
            BuildFailure::Silent => self.silent,
            BuildFailure::OutOfMemory => self.oom,
            BuildFailure::NoOutput(_) => self.no_output,
            BuildFailure::HashMismatch { .. } => self.hash_mismatch,
            BuildFailure::OutputRejected(_) => self.output_rejected,
        }
    }
}

impl Default for Retries {
    /// A signal and a lack of memory are often the machine's; what an emulator breaks is no failure
    /// of the build. All else is believed.
    fn default() -> Self {
        Self { signal: 1, oom: 1, emulated: true, ..Self::NONE }
    }
}

/// Returns when a build that failed so often is tried again.
#[must_use]
pub fn next_try_after_failure(failures: u32, now: Timestamp) -> Timestamp {
    now.plus_ms(pause_ms(failures))
}

/// Returns how long the pause after so many ends is, in milliseconds.
fn pause_ms(ends: u32) -> i64 {
    let exponent = ends.saturating_sub(1).min(16);
    FIRST_PAUSE_MS.saturating_mul(FACTOR.saturating_pow(exponent)).min(PAUSE_MS_MAX)
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
