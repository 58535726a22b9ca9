//! What a Guix daemon says while it builds: one text in arbitrary fragments, in which the daemon's
//! own lines, its trace and the logs of builds take turns.
//!
//! Lines of the trace begin with `@ `. `@ build-log PID LENGTH` is followed by so many bytes of the
//! log of one build, whatever they are, so that a build cannot speak for the daemon. Source: Guix
//! `nix/libstore/build.cc` (`handleChildOutput`), `guix/status.scm`.

use crate::core::store_path::StorePath;

/// The longest line of the daemon that is kept, in bytes; the rest of it is dropped.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// How much of what the daemon itself says is kept for reading a failure, in bytes: it names the
/// failure in its last lines.
const WORDS_BYTES_MAX: usize = 64 * 1024;

/// Takes the text apart, and remembers what it says of one derivation.
#[derive(Debug)]
pub(super) struct Trace {
    drv_path: String,
    line: Vec<u8>,
    /// Bytes of a log that are still to come.
    log_left: u64,
    told: Told,
}

/// What was said of the derivation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The build began, so nothing of it was there already.
    pub(super) started: bool,
    /// Why it failed, in the daemon's words.
    pub(super) failure: Option<String>,
    /// The hash promised and the one found, when they differ, with their algorithm.
    pub(super) mismatch: Option<(String, String)>,
    /// The daemon's other lines.
    pub(super) words: String,
}

impl Trace {
    pub(super) fn new(drv_path: &StorePath) -> Self {
        let drv_path = drv_path.to_string();
        Self { drv_path, line: Vec::new(), log_left: 0, told: Told::default() }
    }

    /// Takes the next fragment. Logs and the daemon's own lines go to `log`.
    pub(super) fn feed(&mut self, mut text: &[u8], log: &mut dyn FnMut(&[u8])) {
        while !text.is_empty() {
            if self.log_left > 0 {
                let length = usize::try_from(self.log_left).unwrap_or(usize::MAX).min(text.len());
                let (piece, rest) = text.split_at_checked(length).unwrap_or((text, &[]));
                log(piece);
                self.log_left = self.log_left.saturating_sub(wide(piece.len()));
                text = rest;
                continue;
            }
            let end = text.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(text.len(), |at| at.saturating_add(1));
            let (piece, rest) = text.split_at_checked(length).unwrap_or((text, &[]));
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
            text = rest;
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                self.line(&line, log);
            }
        }
    }

    /// Returns what was said, after the last fragment.
    pub(super) fn finish(mut self, log: &mut dyn FnMut(&[u8])) -> Told {
        let line = std::mem::take(&mut self.line);
        self.line(&line, log);
        self.told
    }

    fn line(&mut self, line: &[u8], log: &mut dyn FnMut(&[u8])) {
        let text = super::plain(line);
        let Some(event) = text.strip_prefix("@ ") else {
            log(line);
            if self.told.words.len().saturating_add(text.len()) <= WORDS_BYTES_MAX {
                self.told.words.push_str(&text);
            }
            return;
        };
        let mut words = event.trim_end().split(' ');
        match (words.next(), words.next()) {
            (Some("build-log"), Some(_)) => {
                let length = words.next().and_then(|length| length.parse().ok());
                self.log_left = length.unwrap_or_default();
            }
            (Some("build-started"), Some(drv)) if drv == self.drv_path => {
                self.told.started = true;
            }
            (Some("build-failed"), Some(drv)) if drv == self.drv_path => {
                // A hyphen stands where Nix once named an output; then a status and a text.
                let reason: Vec<&str> = words.skip(1).collect();
                self.told.failure = Some(reason.join(" "));
            }
            (Some("hash-mismatch"), Some(_)) => {
                if let (Some(algorithm), Some(expected), Some(actual)) =
                    (words.next(), words.next(), words.next())
                {
                    let named = |hash: &str| format!("{algorithm}:{hash}");
                    self.told.mismatch = Some((named(expected), named(actual)));
                }
            }
            // Successes, substitutions and downloads.
            _ => {}
        }
    }
}

fn wide(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DRV: &str = "/gnu/store/wgd9i6yligq18a1zp600q4rrizfim5lw-exit.drv";

    /// As guix-daemon 1.5.0 prints it, with a build that would like to speak for it.
    const TEXT: &str = "\
@ build-started /gnu/store/wgd9i6yligq18a1zp600q4rrizfim5lw-exit.drv - x86_64-linux /var/log/guix/x.gz 19
@ build-log 19 4
one
@ build-log 19 78
@ build-failed /gnu/store/wgd9i6yligq18a1zp600q4rrizfim5lw-exit.drv - timeout
@ build-log 19 3
twobuilder for `/gnu/store/wgd9i6yligq18a1zp600q4rrizfim5lw-exit.drv' failed with exit code 3
@ build-failed /gnu/store/00000000000000000000000000000000-other.drv - timeout
@ build-failed /gnu/store/wgd9i6yligq18a1zp600q4rrizfim5lw-exit.drv - 1 builder failed with exit code 3
";

    fn read(pieces: impl Iterator<Item = Vec<u8>>) -> (Told, String) {
        let mut trace = Trace::new(&DRV.parse().unwrap());
        let mut log = Vec::new();
        let mut sink = |bytes: &[u8]| log.extend_from_slice(bytes);
        for piece in pieces {
            trace.feed(&piece, &mut sink);
        }
        let told = trace.finish(&mut sink);
        (told, String::from_utf8(log).unwrap())
    }

    proptest! {
        #[test]
        fn a_text_says_the_same_however_it_is_split(piece in 1..400usize) {
            let (told, log) = read(TEXT.as_bytes().chunks(piece).map(<[u8]>::to_vec));
            prop_assert!(told.started);
            prop_assert_eq!(told.failure.as_deref(), Some("1 builder failed with exit code 3"));
            prop_assert_eq!(log.lines().count(), 3);
            prop_assert!(log.starts_with("one\n@ build-failed /gnu"), "{}", log);
            prop_assert!(told.words.starts_with("builder for"), "{}", told.words);
        }

        #[test]
        fn any_text_is_taken(text in "(@ build-log [0-9]{1,30} [0-9]{0,25}\n|@ hash-mismatch( [a-z]){0,5}\n|\\PC{0,9}\n?){0,9}") {
            read(std::iter::once(text.into_bytes()));
        }
    }

    #[test]
    fn two_hashes_that_differ_are_told() {
        let (told, _) =
            read(std::iter::once(b"@ hash-mismatch /gnu/store/x sha256 a b\n".to_vec()));
        assert_eq!(told.mismatch, Some(("sha256:a".to_owned(), "sha256:b".to_owned())));
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut trace = Trace::new(&DRV.parse().unwrap());
        for _ in 0..100 {
            trace.feed(&[b'x'; 10_000], &mut |_| {});
        }
        assert!(trace.line.len() <= LINE_BYTES_MAX);
    }
}
