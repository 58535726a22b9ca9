//! Sealed logs: one compressed file each.

use super::{Piece, View, end, marker_bytes, path_of, pieces, text_bytes};
use fs_err as fs;
use std::{
    io::{self, BufReader, ErrorKind, Read, Write as _},
    path::Path,
};

/// The first bytes of the skippable frame with the pieces (RFC 8878 section 3.1.2), little-endian.
const TABLE_MAGIC: u32 = 0x184D_2A5E;
/// The longest table, in bytes; the most pieces that a live log has need less than a thousand.
const TABLE_BYTES_MAX: u32 = 64 * 1024;
/// How hard zstd tries. Level 3 takes 64 MiB of log in a quarter of a second.
const LEVEL: i32 = 3;
/// The unfinished file, inside the live log's directory.
const DRAFT: &str = "sealing.draft";

/// What came of sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// There was nothing to keep.
    Nothing,
    /// A file of this many bytes has the log.
    File {
        /// How long it is.
        bytes: u64,
    },
}

/// Turns the live log in a directory into one compressed file. Durable when this returns.
///
/// Stopped anywhere, it is done again from the beginning: the file appears under its name when it
/// is complete and durable, and the live log goes behind that. Where both are found, the file
/// counts.
///
/// # Errors
/// What the file system says; the live log stays.
pub fn seal(live: &Path, sealed: &Path) -> io::Result<Sealed> {
    let bytes = if sealed.exists() {
        fs::metadata(sealed)?.len()
    } else {
        let pieces = pieces(live)?;
        if end(&pieces) == 0 {
            remove_dir(live)?;
            return Ok(Sealed::Nothing);
        }
        write(live, sealed, &pieces)?
    };
    remove_dir(live)?;
    Ok(Sealed::File { bytes })
}

/// Makes a sealed log live again, because its attempt goes on. Durable when this returns; stopped
/// anywhere before its end, the log is sealed as it was.
///
/// # Errors
/// What the file system says, and damage of the file.
pub fn unseal(live: &Path, sealed: &Path) -> io::Result<()> {
    let mut text = Text::open(sealed)?;
    remove_dir(live)?;
    fs::create_dir_all(live)?;
    let mut place = 0;
    for piece in text.pieces.clone() {
        text.skip(marker_bytes(place, piece.start));
        let mut file = fs::File::create(path_of(live, piece.start))?;
        let copied = io::copy(&mut (&mut text).take(piece.bytes), &mut file)?;
        if copied != piece.bytes {
            return Err(damaged("the text is shorter than its table says"));
        }
        file.sync_all()?;
        place = piece.end();
    }
    fs::File::open(live)?.sync_all()?;
    fs::remove_file(sealed)
}

/// Returns how many bytes a reader gets of a sealed log, without reading it.
///
/// # Errors
/// What the file system says, and damage of the file.
pub fn sealed_bytes(sealed: &Path) -> io::Result<u64> {
    Ok(text_bytes(&Text::open(sealed)?.pieces))
}

fn write(live: &Path, sealed: &Path, pieces: &[Piece]) -> io::Result<u64> {
    let table = rmp_serde::to_vec(pieces).map_err(io::Error::other)?;
    let draft = live.join(DRAFT);
    let mut file = fs::File::create(&draft)?;
    file.write_all(&TABLE_MAGIC.to_le_bytes())?;
    file.write_all(&u32::try_from(table.len()).map_err(io::Error::other)?.to_le_bytes())?;
    file.write_all(&table)?;
    let mut encoder = zstd::Encoder::new(file, LEVEL)?;
    // Only the live form is there: this file is not found under a name yet.
    let mut view = View::new(live.to_owned(), draft.with_extension("none"));
    loop {
        let bytes = view.read()?;
        if bytes.is_empty() {
            break;
        }
        encoder.write_all(&bytes)?;
    }
    let file = encoder.finish()?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    let parent = sealed.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    fs::rename(&draft, sealed)?;
    fs::File::open(parent)?.sync_all()?;
    Ok(bytes)
}

fn remove_dir(live: &Path) -> io::Result<()> {
    match fs::remove_dir_all(live) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the sealed log is damaged: {what}"))
}

/// The text of a sealed log, read from its beginning.
pub(super) struct Text {
    pieces: Vec<Piece>,
    decoder: zstd::Decoder<'static, BufReader<fs::File>>,
    /// How much is thrown away before the next byte is returned.
    skip: u64,
}

impl Text {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = fs::File::open(path)?;
        let mut word = [0; 4];
        file.read_exact(&mut word)?;
        if u32::from_le_bytes(word) != TABLE_MAGIC {
            return Err(damaged("it does not begin with a table"));
        }
        file.read_exact(&mut word)?;
        let length = u32::from_le_bytes(word);
        if length > TABLE_BYTES_MAX {
            return Err(damaged("its table is too long"));
        }
        let mut table = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact(&mut table)?;
        let pieces = rmp_serde::from_slice(&table).map_err(|_| damaged("its table is none"))?;
        Ok(Self { pieces, decoder: zstd::Decoder::new(file)?, skip: 0 })
    }

    /// Returns where in the text a place of the log is, and how many bytes a reader misses who had
    /// come that far: when there are some, the text's own marker is skipped.
    pub(super) fn place_of(&self, place: u64) -> (u64, u64) {
        let (mut text, mut end) = (0u64, 0u64);
        for piece in &self.pieces {
            let behind_marker = text.saturating_add(marker_bytes(end, piece.start));
            if place < piece.start {
                return (behind_marker, piece.start - place);
            }
            if place < piece.end() {
                return (behind_marker.saturating_add(place - piece.start), 0);
            }
            text = behind_marker.saturating_add(piece.bytes);
            end = piece.end();
        }
        (text, 0)
    }

    /// Throws away the next bytes.
    pub(super) const fn skip(&mut self, bytes: u64) {
        self.skip = self.skip.saturating_add(bytes);
    }
}

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.skip > 0 {
            let wanted = usize::try_from(self.skip).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            let count = self.decoder.read(part)?;
            if count == 0 {
                return Ok(0);
            }
            self.skip = self.skip.saturating_sub(count as u64);
        }
        self.decoder.read(buffer)
    }
}
