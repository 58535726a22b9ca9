//! How attempts end, in words.

use super::table;
use crate::core::outcome::{AttemptEnd, BuildFailure, SetupFailure};

/// How many paths are named before the rest is counted.
const PATHS_NAMED_MAX: usize = 5;

/// Returns how an attempt ended, to follow the words “the attempt”.
pub(super) fn sentence(end: &AttemptEnd) -> String {
    match end {
        AttemptEnd::Succeeded => "succeeded".to_owned(),
        AttemptEnd::Failed(failure) => build_failure(failure),
        AttemptEnd::SetupFailed(failure) => setup_failure(failure),
        AttemptEnd::AgentLost => {
            "was lost: its agent was not heard of for a whole lease, or came back without it"
                .to_owned()
        }
        AttemptEnd::Drained => "was given back: its agent was to be empty by a deadline".to_owned(),
        AttemptEnd::UploadFailed(reason) => {
            format!("built, but its outputs could not be delivered: {}", table::plain(reason))
        }
        AttemptEnd::Rejected(reason) => {
            format!("built, but its outputs were refused: {}", table::plain(reason))
        }
        AttemptEnd::Canceled => "was canceled".to_owned(),
    }
}

fn build_failure(failure: &BuildFailure) -> String {
    match failure {
        BuildFailure::Exit(status) => format!("failed: the builder exited with status {status}"),
        BuildFailure::Signal(signal) => {
            format!("failed: the builder was ended by signal {signal}")
        }
        BuildFailure::Timeout => "failed: it ran longer than its limit".to_owned(),
        BuildFailure::Silent => "failed: it was silent for longer than its limit".to_owned(),
        BuildFailure::OutOfMemory => "failed: it ran out of memory".to_owned(),
        BuildFailure::NoOutput(output) => {
            format!("failed: the builder made no output ‘{}’", table::plain(output))
        }
        BuildFailure::HashMismatch { expected, actual } => format!(
            "failed: the output has the hash {}, not {}",
            table::plain(actual),
            table::plain(expected)
        ),
        BuildFailure::OutputRejected(reason) => {
            format!("failed: the daemon refused the outputs: {}", table::plain(reason))
        }
    }
}

fn setup_failure(failure: &SetupFailure) -> String {
    match failure {
        SetupFailure::MissingInputs(paths) => {
            let mut named: Vec<String> =
                paths.iter().take(PATHS_NAMED_MAX).map(ToString::to_string).collect();
            let more = paths.len().saturating_sub(PATHS_NAMED_MAX);
            if more > 0 {
                named.push(format!("and {more} more"));
            }
            format!("could not begin: nobody has {}", named.join(", "))
        }
        SetupFailure::DiskFull => "could not begin: the disk of its machine is full".to_owned(),
        SetupFailure::OutputsPresent(path) => {
            format!("could not begin: {path} is on the machine already and cannot be removed")
        }
        SetupFailure::DaemonUnreachable(reason) => {
            format!("could not begin: the daemon does not answer: {}", table::plain(reason))
        }
        SetupFailure::Refused(reason) => {
            format!("could not begin: the machine refused: {}", table::plain(reason))
        }
        SetupFailure::AttemptLost(reason) => {
            format!("was lost on its machine: {}", table::plain(reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_agents_cannot_begin_a_line() {
        let end = AttemptEnd::SetupFailed(SetupFailure::Refused("no\nsuch".to_owned()));
        assert_eq!(sentence(&end), "could not begin: the machine refused: no\\nsuch");
    }

    #[test]
    fn many_missing_inputs_are_counted() {
        let path = "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x".parse().unwrap();
        let end = AttemptEnd::SetupFailed(SetupFailure::MissingInputs(vec![path; 7]));
        assert!(sentence(&end).ends_with("-x, and 2 more"));
    }
}
