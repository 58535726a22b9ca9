//! Logs on disk: bounded while they are written, compressed once they are over, and readable the
//! same way in both forms.
//!
//! This room owns the files of a log: [`Writer`] appends and keeps a log's beginning and its end
//! within [`Limits`], [`seal`] turns a live log into one compressed file, and [`View`] reads
//! whatever there is. It never decides whose log it is, when it is over or how long it is kept. The
//! coordinator uses it for the logs of attempts, the agent for its own copy of a log.
//!
//! A *live* log is a few files in a directory, each named `log.START` for the place in the log
//! where it starts. The first has the beginning; the others follow each other, and the oldest of
//! them goes when there is no room. What is missing between two files is told to readers in a line
//! of its own ([`marker`]). Files are only appended to, so that what is read is never overwritten.
//!
//! A *sealed* log is one file: a zstd skippable frame (RFC 8878 section 3.1.2) that says which
//! pieces there are, and one frame with the text, markers included, so that `zstdcat` prints it.

mod sealed;
#[cfg(test)]
mod tests;
mod view;
mod writer;

pub use sealed::{Sealed, seal, sealed_bytes, unseal};
pub use view::View;
pub use writer::{Limits, Writer, fresh_part};

use fs_err as fs;
use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// How the files of a live log begin.
const PREFIX: &str = "log.";
/// How many digits the start of a piece has in a file name: as many as the greatest.
const DIGITS: usize = 20;

/// A part of a log that is there, by its place in the whole log, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Piece {
    /// Where it starts.
    pub start: u64,
    /// How long it is. An empty last piece says how long the log was.
    pub bytes: u64,
}

impl Piece {
    /// Returns the place behind it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// Returns the line that readers see where bytes of a log are missing.
#[must_use]
pub fn marker(missing: u64) -> Vec<u8> {
    format!("\n[steading: {missing} bytes of the log are missing here]\n").into_bytes()
}

/// Returns the pieces of the live log in a directory, in order; none when there is none.
///
/// # Errors
/// What the file system says.
pub fn pieces(dir: &Path) -> io::Result<Vec<Piece>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut pieces = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let start = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let Some(start) = start else { continue };
        match entry.metadata() {
            Ok(metadata) => pieces.push(Piece { start, bytes: metadata.len() }),
            // It was the oldest of a log that goes on.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    pieces.sort_unstable_by_key(|piece| piece.start);
    Ok(pieces)
}

/// Returns the place behind the last piece: how long a log is, whatever is missing in it.
#[must_use]
pub fn end(pieces: &[Piece]) -> u64 {
    pieces.last().map_or(0, Piece::end)
}

/// Returns how many bytes a reader gets of a log with these pieces.
#[must_use]
pub fn text_bytes(pieces: &[Piece]) -> u64 {
    let mut end = 0;
    let mut total = 0u64;
    for piece in pieces {
        total = total.saturating_add(marker_bytes(end, piece.start)).saturating_add(piece.bytes);
        end = piece.end();
    }
    total
}

/// Reads at most `length` bytes of a live log at a place, or behind it when the place is missing.
/// Returns where they start. Nothing is returned at the end.
///
/// # Errors
/// What the file system says.
pub fn read_at(dir: &Path, place: u64, length: usize) -> io::Result<(u64, Vec<u8>)> {
    use std::os::unix::fs::FileExt as _;
    for piece in pieces(dir)? {
        if piece.end() <= place {
            continue;
        }
        let from = place.max(piece.start);
        let file = match fs::File::open(path_of(dir, piece.start)) {
            Ok(file) => file.into_file(),
            // It went meanwhile, to make room for those behind it.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; length];
        let count = file.read_at(&mut bytes, from - piece.start)?;
        bytes.truncate(count);
        return Ok((from, bytes));
    }
    Ok((place, Vec::new()))
}

/// Returns the length of the marker between two pieces; 0 when nothing is missing.
fn marker_bytes(end: u64, start: u64) -> u64 {
    match start.checked_sub(end) {
        None | Some(0) => 0,
        Some(missing) => marker(missing).len() as u64,
    }
}

fn path_of(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{start:0DIGITS$}"))
}
