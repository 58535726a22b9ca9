//! Export streams: nars with what is known of their paths, one behind the other.
//!
//! `nix-store --export` and `guix archive --export` print them. An entry is the number 1, a nar, a
//! magic number, the path, its references, its deriver, and in Nix the number 0, in Guix either
//! that or the number 1 and a signature. The number 0 ends the stream.
//! Source: Nix `src/libstore/export-import.cc`, Guix `nix/libstore/local-store.cc`
//! (`exportPath`, `importPath`).

use super::nar::{NarError, NarLimits, NarReader};
use super::narinfo::sorted;
use super::tokens::{BadToken, Tokens, put_string, wide};
use crate::core::hash::{Sha256, Sha256Hasher};
use crate::core::store_path::{InvalidStorePath, NAME_BYTES_MAX, STORE_DIR_BYTES_MAX, StorePath};

/// Stands between a nar and what is known of its path: `NIXE`.
const MAGIC: u64 = 0x4558_494e;
/// The number before an entry, and before a signature.
const MORE: u64 = 1;
/// The number where an entry or a signature could be, but none is.
const NO_MORE: u64 = 0;
/// The longest store path, in bytes: a directory, a slash, 32 digits, a hyphen and a name.
const PATH_BYTES_MAX: usize = STORE_DIR_BYTES_MAX + 34 + NAME_BYTES_MAX;
/// The longest signature, in bytes. A Guix one over RSA-4096 has about three thousand.
pub const SIGNATURE_BYTES_MAX: usize = 16 * 1024;
/// The most references of one path. The largest profiles have a few thousand.
pub const REFERENCES_MAX: u64 = 65_536;

/// What an export stream may ask of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportLimits {
    /// What each nar may ask.
    pub nar: NarLimits,
    /// The most entries in the stream.
    pub entries_max: u64,
}

/// What stands behind the nar of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportTrailer {
    /// The path that the nar is of, as the stream claims: nothing proves it yet.
    pub path: StorePath,
    /// The references claimed, sorted, each once; all in the store directory of the path.
    pub references: Vec<StorePath>,
    /// The deriver claimed.
    pub deriver: Option<StorePath>,
    /// SHA-256 of the nar, computed here.
    pub nar_hash: Sha256,
    /// Length of the nar, in bytes.
    pub nar_bytes: u64,
    /// The signature, in Guix's text form, not verified.
    pub signature: Option<Vec<u8>>,
    /// What a signature is over: SHA-256 of everything from the nar to the deriver.
    pub signed_hash: Sha256,
}

/// Is told what an export stream contains, in the order of its bytes.
#[expect(clippy::missing_errors_doc, reason = "every method ends the reading by its error")]
pub trait ExportSink {
    /// Why the sink may end the reading.
    type Error;
    /// An entry begins.
    fn entry_begin(&mut self) -> Result<(), Self::Error>;
    /// The next bytes of the entry's nar, checked as far as they go, never empty.
    fn nar(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// The entry ends, and its nar was valid.
    fn entry_end(&mut self, trailer: ExportTrailer) -> Result<(), Self::Error>;
}

/// Why an export stream is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExportError<E> {
    /// There are no bytes at all.
    #[error(
        "the stream is empty: pipe what ‘nix-store --export’ or ‘guix archive --export’ prints for the paths into this"
    )]
    Empty,
    /// The bytes are something else.
    #[error(
        "this is no export stream: give what ‘nix-store --export’ or ‘guix archive --export’ prints, not a derivation, nar or compressed file"
    )]
    NotExport,
    /// The bytes ended before the stream did.
    #[error("the export stream ends early, in entry {entry}: export it again")]
    Truncated {
        /// The entry's number, from 1.
        entry: u64,
    },
    /// There are bytes behind the end of the stream.
    #[error("there are bytes behind the end of the export stream: give one stream only")]
    TrailingBytes,
    /// There are more entries than [`ExportLimits::entries_max`].
    #[error("the export stream has more than the {max} entries allowed: split it")]
    TooManyEntries {
        /// The limit.
        max: u64,
    },
    /// A path claims more than [`REFERENCES_MAX`] references.
    #[error(
        "entry {entry} of the export stream has {count} references; {REFERENCES_MAX} are allowed"
    )]
    TooManyReferences {
        /// The entry's number, from 1.
        entry: u64,
        /// The number claimed.
        count: u64,
    },
    /// A number or string is not one that may stand where it does.
    #[error("entry {entry} of the export stream is damaged: its {part} is invalid")]
    Damaged {
        /// The entry's number, from 1.
        entry: u64,
        /// The part.
        part: &'static str,
    },
    /// A path, reference or deriver is no store path.
    #[error("entry {entry} of the export stream has an invalid store path")]
    Path {
        /// The entry's number, from 1.
        entry: u64,
        /// What is wrong with it.
        #[source]
        source: InvalidStorePath,
    },
    /// A reference or deriver is in another store directory than the path.
    #[error("entry {entry} of the export stream refers to {path}, which is in another store")]
    OtherStore {
        /// The entry's number, from 1.
        entry: u64,
        /// The reference or deriver.
        path: StorePath,
    },
    /// The nar of an entry is refused.
    #[error("entry {entry} of the export stream has an invalid nar")]
    Nar {
        /// The entry's number, from 1.
        entry: u64,
        /// What is wrong with it.
        #[source]
        source: NarError,
    },
    /// The reader was fed again after it had refused the stream.
    #[error("the export stream was refused before: begin again with a new reader")]
    Refused,
    /// The sink could not take what it was told.
    #[error("what the export stream holds could not be taken")]
    Sink(#[source] E),
}

mod reader;
pub use reader::ExportReader;

/// Returns what stands before the nar of an entry.
#[must_use]
pub const fn entry_begin() -> [u8; 8] {
    MORE.to_le_bytes()
}

/// Returns what stands behind the nar of an entry that bears no signature.
#[must_use]
pub fn entry_trailer(
    path: &StorePath,
    references: &[StorePath],
    deriver: Option<&StorePath>,
) -> Vec<u8> {
    let mut out = entry_facts(path, references, deriver);
    out.extend_from_slice(&NO_MORE.to_le_bytes());
    out
}

/// Returns what stands behind the nar of an entry that bears a signature of Guix's kind: over the
/// SHA-256 of the nar and the [`entry_facts`].
#[must_use]
pub fn signed_entry_trailer(
    path: &StorePath,
    references: &[StorePath],
    deriver: Option<&StorePath>,
    signature: &str,
) -> Vec<u8> {
    let mut out = entry_facts(path, references, deriver);
    out.extend_from_slice(&MORE.to_le_bytes());
    put_string(&mut out, signature.as_bytes());
    out
}

/// Returns what is said of a path behind its nar, which a signature covers together with the nar.
#[must_use]
pub fn entry_facts(
    path: &StorePath,
    references: &[StorePath],
    deriver: Option<&StorePath>,
) -> Vec<u8> {
    let references = sorted(references.iter().map(StorePath::to_string));
    let mut out = Vec::with_capacity(references.len().saturating_add(4).saturating_mul(96));
    out.extend_from_slice(&MAGIC.to_le_bytes());
    put_string(&mut out, path.to_string().as_bytes());
    out.extend_from_slice(&wide(references.len()).to_le_bytes());
    for reference in references {
        put_string(&mut out, reference.as_bytes());
    }
    put_string(&mut out, deriver.map(StorePath::to_string).unwrap_or_default().as_bytes());
    out
}

/// Returns what ends a stream.
#[must_use]
pub const fn stream_end() -> [u8; 8] {
    NO_MORE.to_le_bytes()
}

#[cfg(test)]
mod tests;
