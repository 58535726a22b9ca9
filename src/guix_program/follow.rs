//! The log of a build, live and each line once, over as many connections as it takes.

use super::farm::{Farm, FarmError, judge, wait};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write},
    process::Stdio,
};

/// The longest answer line, in bytes: a line of a log has at most 64 KiB, and twelve times that
/// where every byte is escaped.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What `log --json` prints.
#[derive(serde::Deserialize)]
struct Line {
    attempt: String,
    line: String,
}

/// How far a log was passed on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    attempt: String,
    lines: u64,
}

impl Place {
    /// Notes a line that came over a connection whose place is `here`, and tells whether it is a
    /// new one. A connection begins with the first line of the last attempt.
    fn is_new(&mut self, here: &mut Self, attempt: &str) -> bool {
        if here.attempt != attempt {
            *here = Self { attempt: attempt.to_owned(), lines: 0 };
        }
        here.lines += 1;
        if self.attempt == here.attempt && here.lines <= self.lines {
            return false;
        }
        self.attempt.clone_from(&here.attempt);
        self.lines = here.lines;
        true
    }
}

/// Passes the log of a build on until the build has ended or is blocked.
///
/// # Errors
/// [`FarmError::Unreachable`] when the farm stays away for too long, [`FarmError::Unwanted`] when
/// nobody reads the log any more, and what the coordinator refuses with.
pub(super) fn follow(farm: &Farm<'_>, build: &str, log: &mut impl Write) -> Result<(), FarmError> {
    let mut place = Place::default();
    loop {
        // A connection that brought something is a reason to begin with short pauses again.
        let result = farm.persist(|| {
            let before = place.lines;
            match connection(farm, build, &mut place, log) {
                Err(FarmError::Unreachable(_)) if place.lines != before => Ok(false),
                result => result.map(|()| true),
            }
        });
        match result {
            // A log of which there is none: it never ran, or its log is kept no more.
            Ok(true) | Err(FarmError::NoSuch(_)) => return Ok(()),
            Ok(false) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Passes on what one connection brings.
fn connection(
    farm: &Farm<'_>,
    build: &str,
    place: &mut Place,
    log: &mut impl Write,
) -> Result<(), FarmError> {
    let words = ["log", "-f", "--json", build].map(str::to_owned);
    let mut command = farm.command(&words);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(FarmError::Run)?;
    let mut here = Place::default();
    let mut passed = Ok(());
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let mut text = Vec::new();
        loop {
            text.clear();
            let mut limited = stdout.by_ref().take(LINE_BYTES_MAX);
            let length = limited.read_until(b'\n', &mut text).map_err(FarmError::Run)?;
            // What has no end is what was on the way when the connection broke.
            if length == 0 || text.last() != Some(&b'\n') {
                break;
            }
            passed = pass(&text, place, &mut here, log);
            if passed.is_err() {
                break;
            }
        }
    }
    if passed.is_err() {
        // Otherwise it would go on until the end of the build.
        child.kill().map_err(FarmError::Run)?;
        wait(&mut child)?;
        return passed;
    }
    judge(wait(&mut child)?, b"")
}

fn pass(
    text: &[u8],
    place: &mut Place,
    here: &mut Place,
    log: &mut impl Write,
) -> Result<(), FarmError> {
    let line: Line = serde_json::from_slice(text).map_err(FarmError::Answer)?;
    if !place.is_new(here, &line.attempt) {
        return Ok(());
    }
    // In one piece, so that a line is never seen in part.
    log.write_all(format!("{}\n", line.line).as_bytes()).map_err(|_| FarmError::Unwanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns which lines of a connection are new.
    fn connected(place: &mut Place, attempts: &[&str]) -> Vec<bool> {
        let mut here = Place::default();
        attempts.iter().map(|attempt| place.is_new(&mut here, attempt)).collect()
    }

    #[test]
    fn lines_that_come_again_after_a_lost_connection_are_not_passed_on_twice() {
        let mut place = Place::default();
        assert_eq!(connected(&mut place, &["a", "a"]), [true, true]);
        assert_eq!(connected(&mut place, &["a", "a", "a"]), [false, false, true]);
        // Broken off before it came as far as the last one.
        assert_eq!(connected(&mut place, &["a"]), [false]);
        assert_eq!(connected(&mut place, &["a", "a", "a", "a"]), [false, false, false, true]);
    }

    #[test]
    fn another_attempt_is_another_log() {
        let mut place = Place::default();
        assert_eq!(connected(&mut place, &["a", "a", "b"]), [true, true, true]);
        assert_eq!(connected(&mut place, &["b", "b"]), [false, true]);
        assert_eq!(connected(&mut place, &["c", "c"]), [true, true]);
    }
}
