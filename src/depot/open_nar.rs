//! The file of a nar, open for reading: in the depot, or still with the database.

use super::{BUFFER_BYTES, DepotError, uncompressed};
use crate::core::hash::Sha256;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

/// The file of a nar, compressed or not.
#[derive(Debug)]
pub enum OpenNar {
    /// A file of the depot.
    Written(fs_err::File),
    /// What will be one, once it is written out.
    Unwritten(Cursor<Vec<u8>>),
}

impl OpenNar {
    /// Returns the length of the file, in bytes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::Written(file) => Ok(file.metadata()?.len()),
            Self::Unwritten(bytes) => Ok(bytes.get_ref().len() as u64),
        }
    }

    /// Writes the uncompressed nar, which has `nar_bytes` bytes, to `sink`. `file_hash` names it in
    /// errors.
    ///
    /// # Errors
    /// [`DepotError::Damaged`] when the nar has another length (the sink has at most `nar_bytes`
    /// bytes by then), or an error of the sink.
    pub fn unpack(
        self,
        file_hash: &Sha256,
        nar_bytes: u64,
        sink: &mut impl Write,
    ) -> Result<(), DepotError> {
        let mut decoder = uncompressed(self)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut left = nar_bytes;
        loop {
            let len = decoder.read(&mut buffer).map_err(|_| DepotError::Damaged(*file_hash))?;
            if len == 0 {
                break;
            }
            left = left.checked_sub(len as u64).ok_or(DepotError::Damaged(*file_hash))?;
            sink.write_all(&buffer[..len])?;
        }
        if left == 0 { Ok(()) } else { Err(DepotError::Damaged(*file_hash)) }
    }
}

impl Read for OpenNar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Written(file) => file.read(buffer),
            Self::Unwritten(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for OpenNar {
    fn seek(&mut self, place: SeekFrom) -> io::Result<u64> {
        match self {
            Self::Written(file) => file.seek(place),
            Self::Unwritten(bytes) => bytes.seek(place),
        }
    }
}
