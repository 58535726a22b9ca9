//! Store paths, from arguments and from standard input.

use super::{error::CommandError, table};
use crate::{
    core::store_path::StorePath,
    ssh::{ChannelReader, Incoming},
};
use bytes::{Buf as _, Bytes};

/// The longest line on standard input, in bytes. The longest store path has 501.
const LINE_BYTES_MAX: usize = 4_096;
/// The most paths one command takes from standard input.
pub(super) const PATHS_MAX: usize = 1_000_000;
/// How many paths are looked up together.
pub(super) const BATCH_PATHS: usize = 1_000;

/// Reads a store path that somebody typed.
pub(super) fn store_path(text: &str) -> Result<StorePath, CommandError> {
    text.parse().map_err(|error| CommandError::Usage(format!("{error}")))
}

/// Reads the path of a derivation that somebody typed.
pub(super) fn derivation_path(text: &str) -> Result<StorePath, CommandError> {
    let path = store_path(text)?;
    if path.is_derivation() {
        return Ok(path);
    }
    Err(CommandError::Usage(format!(
        "{path} is not a derivation: its name does not end in .drv. ‘nix-store -qd {path}’ or \
         ‘guix gc --derivers {path}’ tell what makes it"
    )))
}

/// Reads lines from standard input.
pub(super) struct Lines<'a> {
    input: &'a mut ChannelReader,
    /// Received and not looked at.
    rest: Bytes,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// How many lines were returned or skipped.
    number: usize,
    /// Whether everything has come.
    over: bool,
}

impl<'a> Lines<'a> {
    pub(super) const fn new(input: &'a mut ChannelReader) -> Self {
        Self { input, rest: Bytes::new(), partial: Vec::new(), number: 0, over: false }
    }

    /// Returns up to [`BATCH_PATHS`] paths, one from each line that is not empty; none at the end.
    pub(super) async fn paths(
        &mut self,
        read: fn(&str) -> Result<StorePath, CommandError>,
    ) -> Result<Vec<StorePath>, CommandError> {
        let mut paths = Vec::new();
        while paths.len() < BATCH_PATHS
            && let Some(line) = self.next().await?
        {
            let wrong = |text: String| CommandError::Usage(format!("line {}: {text}", self.number));
            let line = String::from_utf8(line).map_err(|error| {
                wrong(format!("‘{}’ is not a store path", error.as_bytes().escape_ascii()))
            })?;
            if !line.trim().is_empty() {
                paths.push(read(line.trim()).map_err(|error| wrong(error.text()))?);
            }
            if self.number > PATHS_MAX {
                return Err(CommandError::Refused(format!(
                    "there are more than {PATHS_MAX} lines: give them in several commands"
                )));
            }
        }
        Ok(paths)
    }

    /// Returns the next line without its end.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, CommandError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let last = self.rest.split_to(end);
                self.rest.advance(1);
                self.add(&last)?;
                self.number += 1;
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            let rest = std::mem::take(&mut self.rest);
            self.add(&rest)?;
            if self.over {
                self.number += 1;
                let last = std::mem::take(&mut self.partial);
                return Ok((!last.is_empty()).then_some(last));
            }
            match self.input.next().await {
                Incoming::Data(bytes) => self.rest = bytes,
                Incoming::Eof => self.over = true,
                Incoming::Lost => {
                    let text = "the connection was lost before standard input had ended";
                    return Err(CommandError::TryAgain(text.to_owned()));
                }
                Incoming::Stderr(_) | Incoming::Exited(_) => {}
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(CommandError::Usage(format!(
                "line {} is longer than {LINE_BYTES_MAX} bytes: give one store path per line",
                self.number + 1
            )));
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

/// Checks the one argument of verbs that read standard input and nothing else.
pub(super) fn is_dash(text: &str) -> Result<(), CommandError> {
    if text == "-" {
        return Ok(());
    }
    Err(CommandError::Usage(format!(
        "‘{}’: write ‘-’, and give store paths on standard input, one per line",
        table::excerpt(text)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_derivation_is_refused_with_an_explanation() {
        for (text, part) in [
            ("hello", "give the whole path"),
            ("/nix/store/short-x.drv", "32 base-32 digits"),
            ("/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello", "does not end in .drv"),
        ] {
            let error = derivation_path(text).unwrap_err();
            assert_eq!(error.status(), 2);
            assert!(error.text().contains(part), "{}", error.text());
        }
        assert!(derivation_path("/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x.drv").is_ok());
    }

    #[test]
    fn only_a_dash_means_standard_input() {
        assert!(is_dash("-").is_ok());
        assert_eq!(is_dash("/nix/store/x").unwrap_err().status(), 2);
    }
}
