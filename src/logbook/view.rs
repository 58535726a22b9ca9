//! Reading a log, whatever form it has and whatever becomes of it meanwhile.

use super::{Piece, marker, path_of, pieces, sealed};
use fs_err as fs;
use std::{
    io::{self, ErrorKind, Read as _},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

/// How much is read at a time, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// How often files may go between being found and being opened: once by being sealed and, in a log
/// that grows by its whole end meanwhile, a few times more.
const TRIES_MAX: usize = 16;

/// A reader's place in a log. It reads on where it was when the log is sealed meanwhile.
pub struct View {
    live: PathBuf,
    sealed: PathBuf,
    /// The place in the log that comes next, while it is read live.
    place: u64,
    source: Source,
    /// What was read and not returned.
    rest: Vec<u8>,
}

/// What is open.
enum Source {
    Nothing,
    Piece { file: std::fs::File, start: u64 },
    Sealed(sealed::Text),
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("live", &self.live)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl View {
    /// Begins at the beginning of the log that is live in one place or sealed in the other.
    #[must_use]
    pub const fn new(live: PathBuf, sealed: PathBuf) -> Self {
        Self { live, sealed, place: 0, source: Source::Nothing, rest: Vec::new() }
    }

    /// Returns the next bytes; none at the end of what is there by now. A live log may have more
    /// later.
    ///
    /// # Errors
    /// What the file system says, and damage of a sealed log.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        if !self.rest.is_empty() {
            return Ok(std::mem::take(&mut self.rest));
        }
        for _ in 0..TRIES_MAX {
            let mut bytes = vec![0; READ_BYTES];
            let count = match &mut self.source {
                Source::Nothing => 0,
                Source::Piece { file, start } => {
                    file.read_at(&mut bytes, self.place.saturating_sub(*start))?
                }
                // Nothing comes behind a sealed log.
                Source::Sealed(text) => {
                    let count = text.read(&mut bytes)?;
                    bytes.truncate(count);
                    return Ok(bytes);
                }
            };
            if count > 0 {
                self.place = self.place.saturating_add(count as u64);
                bytes.truncate(count);
                return Ok(bytes);
            }
            match self.find()? {
                Found::Text(bytes) => return Ok(bytes),
                Found::Source => {}
                Found::End => return Ok(Vec::new()),
            }
        }
        Err(io::Error::other("the log changes faster than it can be read"))
    }

    /// Goes to the beginning of the last lines of what is there by now.
    ///
    /// # Errors
    /// As [`View::read`].
    pub fn skip_to_last_lines(&mut self, lines: u64) -> io::Result<()> {
        let mut all = Self::new(self.live.clone(), self.sealed.clone());
        let (mut bytes, mut ends, mut last) = (0u64, 0u64, b'\n');
        loop {
            let read = all.read()?;
            let Some(final_byte) = read.last() else { break };
            last = *final_byte;
            bytes = bytes.saturating_add(read.len() as u64);
            ends = ends.saturating_add(count_ends(&read));
        }
        if lines == 0 {
            return self.skip_bytes(bytes);
        }
        // The last line may have no end yet.
        let total = ends.saturating_add(u64::from(last != b'\n'));
        self.skip_lines(total.saturating_sub(lines))
    }

    fn skip_bytes(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            let mut read = self.read()?;
            if read.is_empty() {
                break;
            }
            let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(read.len());
            self.rest = read.split_off(length);
            bytes = bytes.saturating_sub(length as u64);
        }
        Ok(())
    }

    fn skip_lines(&mut self, mut lines: u64) -> io::Result<()> {
        while lines > 0 {
            let mut read = self.read()?;
            if read.is_empty() {
                break;
            }
            let ends = count_ends(&read);
            if ends < lines {
                lines -= ends;
                continue;
            }
            let nth = usize::try_from(lines - 1).unwrap_or(usize::MAX);
            let mut places = read.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let behind = places.nth(nth).map_or(read.len(), |(place, _)| place + 1);
            self.rest = read.split_off(behind);
            return Ok(());
        }
        Ok(())
    }

    /// Looks for what has the next place.
    fn find(&mut self) -> io::Result<Found> {
        if self.open_sealed()? {
            return Ok(self.enter_sealed());
        }
        let known = pieces(&self.live)?;
        if known.is_empty() && self.open_sealed()? {
            // It was sealed and removed between the two looks.
            return Ok(self.enter_sealed());
        }
        let ahead = |piece: &&Piece| piece.end() > self.place || piece.start > self.place;
        let Some(piece) = known.iter().find(ahead) else {
            return Ok(Found::End);
        };
        if let Some(missing) = piece.start.checked_sub(self.place).filter(|missing| *missing > 0) {
            self.place = piece.start;
            return Ok(Found::Text(marker(missing)));
        }
        match fs::File::open(path_of(&self.live, piece.start)) {
            Ok(file) => {
                self.source = Source::Piece { file: file.into_file(), start: piece.start };
            }
            Err(error) if error.kind() == ErrorKind::NotFound => self.source = Source::Nothing,
            Err(error) => return Err(error),
        }
        Ok(Found::Source)
    }

    /// Opens the sealed form, if there is one.
    fn open_sealed(&mut self) -> io::Result<bool> {
        match sealed::Text::open(&self.sealed) {
            Ok(text) => {
                self.source = Source::Sealed(text);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Goes to the place in the sealed text where live reading has stopped.
    fn enter_sealed(&mut self) -> Found {
        let Source::Sealed(text) = &mut self.source else { return Found::Source };
        let (skip, missing) = text.place_of(self.place);
        text.skip(skip);
        match missing {
            0 => Found::Source,
            missing => Found::Text(marker(missing)),
        }
    }
}

/// What a search came to.
enum Found {
    /// Something to return.
    Text(Vec<u8>),
    /// Something to look into.
    Source,
    /// There is no more.
    End,
}

fn count_ends(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').skip(1).fold(0, |count, _| count + 1)
}
