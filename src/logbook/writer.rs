//! Appending to a live log within its limits.

use super::{Piece, end, path_of, pieces};
use fs_err as fs;
use std::{
    io::{self, ErrorKind, Write as _},
    path::PathBuf,
};

/// The most files a live log has, whatever its pieces: one with the beginning, and the last ones.
const PIECES_MAX: usize = 32;
/// Into how many files the end of a log is divided. The oldest goes as a whole, so that between
/// 7/8 and all of the room for the end is used.
const END_PIECES: u64 = 8;

/// How much of a log is kept, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of its beginning.
    pub head: u64,
    /// Of its end.
    pub tail: u64,
}

impl Limits {
    /// Returns limits that keep at most `cap` bytes, half of them of the beginning.
    #[must_use]
    pub const fn within(cap: u64) -> Self {
        Self { head: cap / 2, tail: cap - cap / 2 }
    }

    /// How long one file of the end may be.
    fn tail_piece(self) -> u64 {
        (self.tail / END_PIECES).max(1)
    }
}

/// Appends to the live log in a directory. Nothing is open between two calls, so a thousand logs
/// cost no file descriptors.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    limits: Limits,
    pieces: Vec<Piece>,
    /// What was written since the last [`Writer::sync`], by start.
    unsynced: Vec<u64>,
}

/// Returns what is new of the bytes at a place, to a log of this length: nothing of what came before.
#[must_use]
pub fn fresh_part(end: u64, place: u64, bytes: &[u8]) -> &[u8] {
    let known = usize::try_from(end.saturating_sub(place)).unwrap_or(usize::MAX);
    bytes.get(known..).unwrap_or_default()
}

impl Writer {
    /// Goes on with the log in a directory; neither need exist.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(dir: PathBuf, limits: Limits) -> io::Result<Self> {
        let pieces = pieces(&dir)?;
        Ok(Self { dir, limits, pieces, unsynced: Vec::new() })
    }

    /// Returns how long the log is, whatever is missing in it.
    #[must_use]
    pub fn end(&self) -> u64 {
        end(&self.pieces)
    }

    /// Writes what is new of the bytes at a place. When the place is behind the end, what is
    /// between stays missing.
    ///
    /// # Errors
    /// What the file system says. A part may have been written: [`Writer::end`] tells.
    pub fn append(&mut self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let mut fresh = fresh_part(self.end(), place, bytes);
        let mut place = place.max(self.end());
        while !fresh.is_empty() {
            let room = self.room_at(place)?;
            let (now, later) = fresh.split_at(fresh.len().min(room));
            self.write(now)?;
            fresh = later;
            place = place.saturating_add(now.len() as u64);
        }
        Ok(())
    }

    /// Notes that the log was this long, so that readers learn what is missing at its end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn note_end(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.end() { self.begin(bytes) } else { Ok(()) }
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        for start in std::mem::take(&mut self.unsynced) {
            if self.pieces.iter().any(|piece| piece.start == start) {
                fs::File::open(path_of(&self.dir, start))?.sync_data()?;
            }
        }
        fs::File::open(&self.dir)?.sync_all()
    }

    /// Makes the last piece one that ends at a place and has room, and returns how much.
    fn room_at(&mut self, place: u64) -> io::Result<usize> {
        let is_head = self.pieces.len() <= 1;
        let limit = if is_head { self.limits.head } else { self.limits.tail_piece() };
        let room = match self.pieces.last() {
            Some(last) if last.end() == place => limit.saturating_sub(last.bytes),
            Some(_) => 0,
            // The beginning itself may be missing: then there is an empty head.
            None => {
                self.begin(0)?;
                return self.room_at(place);
            }
        };
        if room > 0 {
            return Ok(usize::try_from(room).unwrap_or(usize::MAX));
        }
        self.begin(place)?;
        Ok(usize::try_from(self.limits.tail_piece()).unwrap_or(usize::MAX))
    }

    /// Begins a piece, and makes room for it first.
    fn begin(&mut self, start: u64) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        // What could not be written into the last piece is part of what is missing before this one.
        let last = self.pieces.len().saturating_sub(1);
        if last > 0 && self.pieces.get(last).is_some_and(|piece| piece.bytes == 0) {
            self.remove(last)?;
        }
        while self.pieces.len() >= PIECES_MAX || self.tail_is_full() {
            self.remove(1)?;
        }
        let path = path_of(&self.dir, start);
        fs::OpenOptions::new().create(true).append(true).open(path)?;
        self.pieces.push(Piece { start, bytes: 0 });
        self.unsynced.push(start);
        Ok(())
    }

    fn remove(&mut self, index: usize) -> io::Result<()> {
        let Some(piece) = self.pieces.get(index) else { return Ok(()) };
        match fs::remove_file(path_of(&self.dir, piece.start)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.pieces.remove(index);
        Ok(())
    }

    /// Tells whether the oldest piece of the end has to go before another one begins.
    fn tail_is_full(&self) -> bool {
        let tail = self.pieces.get(1..).unwrap_or_default();
        let bytes: u64 = tail.iter().map(|piece| piece.bytes).sum();
        !tail.is_empty() && bytes.saturating_add(self.limits.tail_piece()) > self.limits.tail
    }

    /// Writes at the end of the last piece.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(last) = self.pieces.last_mut() else { return Ok(()) };
        let path = path_of(&self.dir, last.start);
        let mut file = fs::OpenOptions::new().append(true).open(path)?;
        let written = file.write_all(bytes);
        last.bytes = match written {
            Ok(()) => last.bytes.saturating_add(bytes.len() as u64),
            // Some of it may be there.
            Err(_) => file.metadata().map_or(last.bytes, |metadata| metadata.len()),
        };
        if self.unsynced.last() != Some(&last.start) {
            self.unsynced.push(last.start);
        }
        written
    }
}
