//! What a Nix daemon says of a build, as an outcome.
//!
//! The daemon's answer has a status and a text, and only the text has the exit code, the signal,
//! the output that is missing and the two hashes. Reading it is reading a foreign format, so every
//! wording is here, with the versions it is known from; an unknown wording falls back on the
//! status. Source: Nix `src/libstore/build-result.hh`, and
//! `src/libstore/build/local-derivation-goal.cc` for the texts of 2.8 and 2.26,
//! `src/libstore/build/derivation-building-goal.cc` for those of 2.34.

use crate::core::{
    derivation::Derivation,
    outcome::{BuildFailure, Outcome, SetupFailure},
};

/// A build's result as the daemon tells it.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// `BuildResult::Status`.
    pub(super) status: u64,
    /// The text, without colors.
    pub(super) text: &'a str,
    /// Whether the log had been silent for about its limit when the answer came, and the build
    /// was not over its time; settles which limit ended it where the text does not.
    pub(super) was_silent: bool,
}

/// Returns the outcome of a build.
pub(super) fn outcome(told: &Told<'_>, derivation: &Derivation<'_>) -> Outcome {
    let head = without_log(told.text);
    let text = || shortened(&head);
    match told.status {
        // Built, Substituted, ResolvesToAlreadyValid
        0 | 1 | 13 => Outcome::Built,
        // AlreadyValid: nothing was built, and the attempt is there to build.
        2 => match derivation.outputs.first() {
            Some(output) => Outcome::SetupFailed(SetupFailure::OutputsPresent(output.path.clone())),
            None => Outcome::Built,
        },
        // TimedOut. Newer daemons use the same words for both limits.
        8 if head.contains("of silence") || told.was_silent => {
            Outcome::Failed(BuildFailure::Silent)
        }
        8 => Outcome::Failed(BuildFailure::Timeout),
        _ if says_disk_full(told.text) => Outcome::SetupFailed(SetupFailure::DiskFull),
        // PermanentFailure, OutputRejected, TransientFailure (fixed outputs that fail), and the
        // numbers given out since, such as 15 for a hash mismatch.
        3 | 5 | 6 | 15 if let Some(failure) = failure(&head) => Outcome::Failed(failure),
        // PermanentFailure, OutputRejected, CachedFailure, LogLimitExceeded, NotDeterministic
        3 | 5 | 7 | 11 | 12 => Outcome::Failed(BuildFailure::OutputRejected(text())),
        // InputRejected, TransientFailure, MiscFailure, DependencyFailed, NoSubstituters, unknown
        _ => Outcome::SetupFailed(SetupFailure::Refused(text())),
    }
}

/// Tells whether a text of the daemon says that the disk is full: its own note, or `strerror`.
pub(crate) fn says_disk_full(text: &str) -> bool {
    let text = without_log(text);
    text.contains("No space left on device") || text.contains("caused by lack of free disk space")
}

/// Returns the failure that the text of the daemon names.
fn failure(text: &str) -> Option<BuildFailure> {
    if let Some(code) = number_after(text, "failed with exit code ") {
        return Some(BuildFailure::Exit(code));
    }
    if let Some(signal) = number_after(text, "failed due to signal ") {
        return Some(BuildFailure::Signal(signal));
    }
    if let Some((_, rest)) = text.split_once("failed to produce output path") {
        let name = rest.split('\'').nth(1).unwrap_or("out");
        return Some(BuildFailure::NoOutput(shortened(name)));
    }
    if text.contains("hash mismatch") {
        let expected = word_after(text, "specified:")?;
        let actual = word_after(text, "got:")?;
        return Some(BuildFailure::HashMismatch { expected, actual });
    }
    None
}

/// Returns the text without the lines of the build's log that the daemon repeats in it, each behind
/// a `>`: what a build prints must not be taken for the daemon's words.
fn without_log(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with('>')).collect()
}

/// Returns the number that follows `mark`.
pub(in crate::builders) fn number_after(text: &str, mark: &str) -> Option<i32> {
    let (_, rest) = text.split_once(mark)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// Returns the word that follows `mark`.
fn word_after(text: &str, mark: &str) -> Option<String> {
    let (_, rest) = text.split_once(mark)?;
    rest.split_whitespace().next().map(shortened)
}

/// Returns at most 2,000 characters of a text.
pub(in crate::builders) fn shortened(text: &str) -> String {
    text.trim().chars().take(2_000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u64, text: &str) -> Outcome {
        let derivation = Derivation::parse(
            br#"Derive([("out","/nix/store/00000000000000000000000000000000-x","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","/nix/store/00000000000000000000000000000000-x")])"#,
        )
        .unwrap();
        outcome(&Told { status, text, was_silent: false }, &derivation)
    }

    #[test]
    fn the_texts_of_nix_2_8_are_understood() {
        assert_eq!(
            read(3, "builder for '/nix/store/x.drv' failed with exit code 3"),
            Outcome::Failed(BuildFailure::Exit(3))
        );
        assert_eq!(
            read(3, "builder for '/nix/store/x.drv' failed due to signal 9 (Killed)"),
            Outcome::Failed(BuildFailure::Signal(9))
        );
        assert_eq!(
            read(
                5,
                "builder for '/nix/store/x.drv' failed to produce output path for output 'doc' at '/nix/store/y'"
            ),
            Outcome::Failed(BuildFailure::NoOutput("doc".to_owned()))
        );
        assert_eq!(
            read(
                5,
                "hash mismatch in fixed-output derivation '/nix/store/x.drv':\n  specified: sha256-A=\n     got:    sha256-B="
            ),
            Outcome::Failed(BuildFailure::HashMismatch {
                expected: "sha256-A=".to_owned(),
                actual: "sha256-B=".to_owned()
            })
        );
        assert_eq!(read(8, "x timed out after 1 seconds"), Outcome::Failed(BuildFailure::Timeout));
        assert_eq!(
            read(8, "x timed out after 1 seconds of silence"),
            Outcome::Failed(BuildFailure::Silent)
        );
    }

    #[test]
    fn the_texts_of_nix_2_34_are_understood() {
        assert_eq!(
            read(
                3,
                "Cannot build '/nix/store/x.drv'.\nReason: builder failed with exit code 3.\nOutput paths:\n  /nix/store/y\nLast 1 log lines:\n> failed due to signal 9"
            ),
            Outcome::Failed(BuildFailure::Exit(3))
        );
        assert_eq!(
            read(
                5,
                "Cannot build '/nix/store/x.drv'.\nReason: builder failed to produce output path for output 'out' at '/nix/store/y'."
            ),
            Outcome::Failed(BuildFailure::NoOutput("out".to_owned()))
        );
    }

    #[test]
    fn what_the_build_printed_is_not_taken_for_the_daemons_words() {
        assert_eq!(
            read(
                3,
                "builder for 'x' failed with exit code 1;\n       last 1 log lines:\n       > No space left on device"
            ),
            Outcome::Failed(BuildFailure::Exit(1))
        );
    }

    #[test]
    fn a_full_disk_is_no_failure_of_the_build() {
        assert_eq!(
            read(
                3,
                "builder for 'x' failed with exit code 1;\n       last 1 log lines:\n       > x\n       For full logs, run 'nix log x'.\nnote: build failure may have been caused by lack of free disk space"
            ),
            Outcome::SetupFailed(SetupFailure::DiskFull)
        );
    }

    #[test]
    fn unknown_texts_fall_back_on_the_status() {
        assert!(matches!(read(5, "?"), Outcome::Failed(BuildFailure::OutputRejected(_))));
        assert!(matches!(read(9, "?"), Outcome::SetupFailed(SetupFailure::Refused(_))));
        assert!(matches!(read(99, "?"), Outcome::SetupFailed(SetupFailure::Refused(_))));
        assert!(matches!(read(2, ""), Outcome::SetupFailed(SetupFailure::OutputsPresent(_))));
    }
}
