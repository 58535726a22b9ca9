//! Nars: the canonical archive of a file tree that stores hash, sign and exchange.
//!
//! [`NarReader`] checks the bytes of anybody's nar and tells a [`NarSink`] what is in it;
//! [`NarWriter`] makes one, byte for byte as `nix-store --dump` does.
//! Source: Nix `doc/manual/source/protocols/nix-archive.md` and `src/libutil/archive.cc`.

mod names;
mod reader;
#[cfg(test)]
pub(crate) mod sample;
mod words;
mod writer;

pub use reader::NarReader;
pub use writer::{NarWriteError, NarWriter, plain_file};

use std::error::Error;

/// The longest name of a directory entry, in bytes; as Linux has it (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes; as Linux has it (`PATH_MAX` less the NUL).
pub const TARGET_BYTES_MAX: usize = 4095;

/// What one nar may ask of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarLimits {
    /// The longest nar, in bytes.
    pub bytes_max: u64,
    /// The most directory entries in it, at all depths together.
    pub entries_max: u64,
    /// The most directories inside one another; 0 allows only a single file or link.
    pub depth_max: usize,
}

/// The head of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regular {
    /// Whether the owner may execute it.
    pub executable: bool,
    /// Length of its content, in bytes.
    pub size: u64,
}

/// Is told what a nar contains, in the order of its bytes.
///
/// A node is a directory (`directory_begin`, then `entry` and a node for each child, then
/// `directory_end`), a regular file (`regular`, then `content` until `size` bytes came, then
/// `regular_end`) or a `symlink`. Names and order are checked before the sink hears of them;
/// whether the rest of the nar is valid is not known yet. An error ends the reading; wrap a
/// failure of the sink's own in [`NarError::Sink`].
#[expect(clippy::missing_errors_doc, reason = "every method ends the reading by its error")]
pub trait NarSink {
    /// A directory begins.
    fn directory_begin(&mut self) -> Result<(), NarError> {
        Ok(())
    }
    /// The node that follows has this name in the innermost open directory.
    fn entry(&mut self, _name: &[u8]) -> Result<(), NarError> {
        Ok(())
    }
    /// The innermost open directory ends.
    fn directory_end(&mut self) -> Result<(), NarError> {
        Ok(())
    }
    /// A regular file begins.
    fn regular(&mut self, _head: Regular) -> Result<(), NarError> {
        Ok(())
    }
    /// The next bytes of the file, never empty, borrowed from the input.
    fn content(&mut self, _bytes: &[u8]) -> Result<(), NarError> {
        Ok(())
    }
    /// The file ends: as many bytes came as its head said.
    fn regular_end(&mut self) -> Result<(), NarError> {
        Ok(())
    }
    /// A symbolic link to `target`: 1 to [`TARGET_BYTES_MAX`] bytes without NUL.
    fn symlink(&mut self, _target: &[u8]) -> Result<(), NarError> {
        Ok(())
    }
}

/// Hears nothing: for reading a nar only to know that it is valid.
impl NarSink for () {}

/// Why a nar is refused. Offsets count bytes from its beginning.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// Something else stands where the format demands a certain word.
    #[error("not a valid nar: expected {expected} at byte {offset}")]
    Unexpected {
        /// Where it stands.
        offset: u64,
        /// What may stand there.
        expected: &'static str,
    },
    /// A name, target or keyword declares more bytes than such a thing may have.
    #[error(
        "not a valid nar: a string of {declared} bytes at byte {offset}; at most {max} may be there"
    )]
    StringTooLong {
        /// Where it stands.
        offset: u64,
        /// Its declared length.
        declared: u64,
        /// The longest one allowed there.
        max: usize,
    },
    /// A padding byte is not zero, so equal trees could have different hashes.
    #[error("not a valid nar: the padding at byte {offset} is not zero")]
    Padding {
        /// Where it stands.
        offset: u64,
    },
    /// An entry's name is empty, `.`, `..`, or has a slash or NUL in it.
    #[error("not a valid nar: ‘{name}’ at byte {offset} cannot be the name of a file")]
    Name {
        /// Where it ends.
        offset: u64,
        /// The name, escaped.
        name: String,
    },
    /// An entry's name does not come after the one before it.
    #[error("not a valid nar: the entry ‘{name}’ at byte {offset} is out of order or there twice")]
    Order {
        /// Where it ends.
        offset: u64,
        /// The name, escaped.
        name: String,
    },
    /// The target of a symbolic link is empty or has a NUL in it.
    #[error(
        "not a valid nar: the target of the symbolic link at byte {offset} is empty or has a NUL"
    )]
    Target {
        /// Where it ends.
        offset: u64,
    },
    /// The nar is, or declares to be, longer than [`NarLimits::bytes_max`].
    #[error("the nar is longer than the {max} bytes allowed: raise the limit if it is wanted")]
    TooManyBytes {
        /// The limit, in bytes.
        max: u64,
    },
    /// There are more entries than [`NarLimits::entries_max`].
    #[error("the nar has more than the {max} entries allowed: raise the limit if it is wanted")]
    TooManyEntries {
        /// The limit.
        max: u64,
    },
    /// Directories are nested deeper than [`NarLimits::depth_max`].
    #[error("the nar nests directories deeper than the {max} allowed")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// The bytes ended before the nar did.
    #[error("the nar ends early, after {offset} bytes: send it again")]
    Truncated {
        /// How many bytes came.
        offset: u64,
    },
    /// The reader was fed again after it had refused the nar.
    #[error("the nar was refused before: begin again with a new reader")]
    Refused,
    /// The sink could not take what it was told.
    #[error("the content of the nar could not be taken")]
    Sink(#[source] Box<dyn Error + Send + Sync>),
}
