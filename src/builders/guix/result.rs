//! What a Guix daemon says of a build, as an outcome.
//!
//! The wordings are those of guix-daemon 1.5.0 (`nix/libstore/build.cc`), which are older ones of
//! Nix with other quotation marks.

use super::trace::Told;
use crate::{
    builders::nix::{number_after, says_disk_full, shortened},
    core::{
        derivation::Derivation,
        outcome::{BuildFailure, Outcome, SetupFailure},
    },
};

/// Returns the outcome of a build that the daemon says was done.
pub(super) fn success(told: &Told, derivation: &Derivation<'_>) -> Outcome {
    match derivation.outputs.first() {
        // Nothing was built, and the attempt is there to build.
        Some(output) if !told.started => {
            Outcome::SetupFailed(SetupFailure::OutputsPresent(output.path.clone()))
        }
        Some(_) | None => Outcome::Built,
    }
}

/// Returns the outcome of a build that ended with an error of the daemon.
pub(super) fn failure(told: &Told, error: &str, derivation: &Derivation<'_>) -> Outcome {
    // Where the disk was full, the failure itself is whatever came of it.
    if says_disk_full(&told.words) || says_disk_full(error) {
        return Outcome::SetupFailed(SetupFailure::DiskFull);
    }
    let Some(reason) = &told.failure else {
        // The build did not begin.
        let words = if told.words.is_empty() { error } else { &told.words };
        return Outcome::SetupFailed(SetupFailure::Refused(shortened(words)));
    };
    Outcome::Failed(if reason == "timeout" {
        // Both limits are said in the same way there, and in the daemon's own words before.
        if told.words.contains("seconds of silence") {
            BuildFailure::Silent
        } else {
            BuildFailure::Timeout
        }
    } else if let Some((expected, actual)) = told.mismatch.clone() {
        BuildFailure::HashMismatch { expected, actual }
    } else if let Some(code) = number_after(reason, "failed with exit code ") {
        BuildFailure::Exit(code)
    } else if let Some(signal) = number_after(reason, "failed due to signal ") {
        BuildFailure::Signal(signal)
    } else if let Some((_, path)) = reason.split_once("failed to produce output path `") {
        let path = path.split('\'').next().unwrap_or_default();
        let output = derivation.outputs.iter().find(|output| output.path.to_string() == path);
        BuildFailure::NoOutput(output.map_or_else(|| shortened(path), |o| o.name.clone()))
    } else {
        // What stands before the text is a number that says nothing more.
        let text = reason.split_once(' ').map_or(reason.as_str(), |(_, text)| text);
        BuildFailure::OutputRejected(shortened(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derivation() -> Derivation<'static> {
        Derivation::parse(
            br#"Derive([("doc","/gnu/store/00000000000000000000000000000000-x","","")],[],[],"x86_64-linux","/bin/sh",[],[("doc","/gnu/store/00000000000000000000000000000000-x")])"#,
        )
        .unwrap()
    }

    fn read(reason: &str, words: &str) -> Outcome {
        let told = Told {
            started: true,
            failure: Some(reason.to_owned()),
            mismatch: None,
            words: words.to_owned(),
        };
        failure(&told, "build of `x.drv' failed", &derivation())
    }

    #[test]
    fn the_words_of_guix_1_5_are_understood() {
        let failed = Outcome::Failed;
        let builder = "1 builder for `/gnu/store/x.drv' failed";
        assert_eq!(read(&format!("{builder} with exit code 3"), ""), failed(BuildFailure::Exit(3)));
        assert_eq!(
            read(&format!("{builder} due to signal 9 (Killed)"), ""),
            failed(BuildFailure::Signal(9))
        );
        let path = "/gnu/store/00000000000000000000000000000000-x";
        assert_eq!(
            read(&format!("{builder} to produce output path `{path}'"), ""),
            failed(BuildFailure::NoOutput("doc".to_owned()))
        );
        let over = "building of `x.drv' timed out after";
        assert_eq!(
            read("timeout", &format!("{over} 1 seconds of silence")),
            failed(BuildFailure::Silent)
        );
        // The daemon forgets to fill the number in.
        assert_eq!(read("timeout", &format!("{over} %2% seconds")), failed(BuildFailure::Timeout));
        let rejected = "suspicious ownership or permission on `x'; rejecting this build output";
        assert_eq!(
            read(&format!("1 {rejected}"), ""),
            failed(BuildFailure::OutputRejected(rejected.to_owned()))
        );
    }

    #[test]
    fn what_did_not_begin_is_no_failure_of_the_build() {
        let outcome = failure(&Told::default(), "path `x' is not valid", &derivation());
        let reason = "path `x' is not valid".to_owned();
        assert_eq!(outcome, Outcome::SetupFailed(SetupFailure::Refused(reason)));
        assert!(matches!(
            success(&Told::default(), &derivation()),
            Outcome::SetupFailed(SetupFailure::OutputsPresent(_))
        ));
        let note = "note: build failure may have been caused by lack of free disk space";
        assert_eq!(
            read("1 builder for `x' failed with exit code 1", note),
            Outcome::SetupFailed(SetupFailure::DiskFull)
        );
    }
}
