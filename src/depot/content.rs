//! Does a content belong under its path?

use super::BUFFER_BYTES;
use crate::{
    core::{
        base32,
        content::{fixed_output_path, source_path, text_path},
        derivation::FixedOutput,
        hash::{Sha256, hex},
        store_path::StorePath,
    },
    formats::nar::{NarError, NarLimits, NarReader, NarSink, Regular},
};
use sha2::Digest as _;
use std::io;

/// Hashes the content of the single file that a nar may hold.
pub(super) struct FlatHasher {
    /// Gone as soon as the nar turns out to hold something else.
    reader: Option<NarReader>,
    sink: FlatSink,
}

struct FlatSink {
    is_plain: bool,
    digest: Digest,
}

impl FlatHasher {
    pub(super) fn new(digest: Digest) -> Self {
        // Whether the nar is too long is for its other reader to say.
        let limits = NarLimits { bytes_max: u64::MAX, entries_max: 0, depth_max: 0 };
        let sink = FlatSink { is_plain: false, digest };
        Self { reader: Some(NarReader::new(limits)), sink }
    }

    /// Reads the next bytes of the nar.
    pub(super) fn feed(&mut self, nar: &[u8]) {
        if self.reader.as_mut().is_some_and(|reader| reader.feed(nar, &mut self.sink).is_err()) {
            self.reader = None;
        }
    }

    /// Returns the digest of the content, if the nar was one regular file that is not executable.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        let complete = self.reader.is_some_and(|reader| reader.is_complete());
        (complete && self.sink.is_plain).then(|| self.sink.digest.finish())
    }
}

/// Returns the SHA-256 of the content of a nar that holds one plain file and nothing else.
pub(super) fn flat_hash(mut nar: impl io::Read) -> io::Result<Option<Sha256>> {
    let mut hasher = FlatHasher::new(Digest::sha256());
    let mut buffer = vec![0; BUFFER_BYTES];
    while hasher.reader.is_some() {
        let len = nar.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        hasher.feed(&buffer[..len]);
    }
    Ok(hasher.finish().and_then(|digest| digest.try_into().ok()).map(Sha256::from_bytes))
}

impl NarSink for FlatSink {
    fn regular(&mut self, head: Regular) -> Result<(), NarError> {
        self.is_plain = !head.executable;
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.digest.update(bytes);
        Ok(())
    }
}

/// A hash being computed, of one of the algorithms that can be verified here.
pub(super) enum Digest {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Digest {
    /// Begins a hash of SHA-256.
    pub(super) fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    /// Begins a hash of the algorithm with this name in `.drv` files.
    fn of_algorithm(name: &str) -> Option<Self> {
        match name {
            "sha256" => Some(Self::sha256()),
            "sha512" => Some(Self::Sha512(sha2::Sha512::new())),
            _ => None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Sha512(hasher) => hasher.finalize().to_vec(),
        }
    }
}

/// Computes what a fixed-output derivation promises, while the nar streams by.
pub(super) struct FixedCheck {
    promise: FixedOutput,
    hasher: FixedHasher,
}

enum FixedHasher {
    Nar(Digest),
    File(FlatHasher),
}

/// A content is not the promised one.
#[derive(Debug)]
pub(super) struct BrokenPromise {
    pub(super) promised: String,
    pub(super) found: String,
}

impl FixedCheck {
    /// Returns `None` when the algorithm is not one that can be verified here.
    pub(super) fn new(promise: FixedOutput) -> Option<Self> {
        let digest = Digest::of_algorithm(&promise.algorithm)?;
        let hasher = if promise.recursive {
            FixedHasher::Nar(digest)
        } else {
            FixedHasher::File(FlatHasher::new(digest))
        };
        Some(Self { promise, hasher })
    }

    pub(super) fn feed(&mut self, nar: &[u8]) {
        match &mut self.hasher {
            FixedHasher::Nar(digest) => digest.update(nar),
            FixedHasher::File(hasher) => hasher.feed(nar),
        }
    }

    /// Returns the content address that the promise, which was kept, is in Nix's text form.
    pub(super) fn finish(self) -> Result<String, BrokenPromise> {
        let FixedOutput { recursive, algorithm, hash_hex } = self.promise;
        let digest = match self.hasher {
            FixedHasher::Nar(digest) => Some(digest.finish()),
            FixedHasher::File(hasher) => hasher.finish(),
        };
        match digest {
            Some(digest) if hex(&digest) == hash_hex => Ok(fixed(recursive, &algorithm, &digest)),
            Some(digest) => Err(BrokenPromise {
                promised: format!("{algorithm}:{hash_hex}"),
                found: format!("{algorithm}:{}", hex(&digest)),
            }),
            None => Err(BrokenPromise {
                promised: format!("a plain file with {algorithm}:{hash_hex}"),
                found: "something else than a plain file".to_owned(),
            }),
        }
    }
}

/// Returns how `path` follows from a nar, in Nix's text form; `None` when it does not.
///
/// Contents that mention their own path are not known here, neither nars nor files.
pub(super) fn address_of_nar(
    path: &StorePath,
    references: &[StorePath],
    nar_hash: &Sha256,
) -> Option<String> {
    if references.contains(path) {
        return None;
    }
    let found = source_path(path.dir(), path.name(), nar_hash, references, false);
    found.is_ok_and(|found| found == *path).then(|| fixed(true, "sha256", nar_hash.as_bytes()))
}

/// Returns how `path` follows from the content of one plain file, of which `flat` is the SHA-256,
/// in Nix's text form; `None` when it does not.
pub(super) fn address_of_file(
    path: &StorePath,
    references: &[StorePath],
    flat: &Sha256,
) -> Option<String> {
    let (dir, name) = (path.dir(), path.name());
    if references.contains(path) {
        return None;
    }
    if text_path(dir, name, flat, references).is_ok_and(|found| found == *path) {
        return Some(format!("text:{flat}"));
    }
    let found = fixed_output_path(dir, name, false, "sha256", &flat.hex());
    let follows = references.is_empty() && found.is_ok_and(|found| found == *path);
    follows.then(|| fixed(false, "sha256", flat.as_bytes()))
}

/// Returns the content address of a fixed output.
fn fixed(recursive: bool, algorithm: &str, digest: &[u8]) -> String {
    let method = if recursive { "r:" } else { "" };
    format!("fixed:{method}{algorithm}:{}", base32::encode(digest))
}
