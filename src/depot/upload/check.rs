//! Everything that is computed of an uploaded nar while it streams by.

use super::{UploadRules, VerifyError};
use crate::{
    core::{hash::Sha256Hasher, path_info::PathInfo, store_path::StorePath},
    depot::{
        Fault,
        content::{BrokenPromise, FixedCheck},
        zstd_stream::{BadFrame, FrameReader},
    },
    formats::{nar::NarReader, references::ReferenceScanner},
};

/// Compares an upload with what was declared of it.
pub(super) struct NarCheck {
    frame: FrameReader,
    nar: NarSide,
}

/// What looks at the uncompressed bytes.
struct NarSide {
    reader: NarReader,
    hasher: Sha256Hasher,
    scanner: ReferenceScanner,
    fixed: Option<FixedCheck>,
    candidates: Vec<StorePath>,
    /// What was declared, as far as it is of interest.
    declared: PathInfo,
}

impl NarCheck {
    pub(super) fn new(rules: &UploadRules<'_>) -> Result<Self, VerifyError> {
        let mut declared = rules.expected.info.clone();
        declared.references.sort();
        declared.references.dedup();
        let mut candidates = rules.candidates.clone();
        candidates.sort();
        candidates.dedup();
        for reference in &declared.references {
            if candidates.binary_search(reference).is_err() {
                return Err(VerifyError::StrangeReference(reference.clone()));
            }
        }
        let fixed = match &rules.fixed {
            Some(promise) => Some(
                FixedCheck::new(promise.clone())
                    .ok_or_else(|| VerifyError::FixedAlgorithm(promise.algorithm.clone()))?,
            ),
            None => None,
        };
        declared.deriver = Some(rules.deriver.clone());
        let nar = NarSide {
            reader: NarReader::new(rules.limits),
            hasher: Sha256Hasher::default(),
            scanner: ReferenceScanner::new(candidates.iter().map(StorePath::hash)),
            fixed,
            candidates,
            declared,
        };
        Ok(Self { frame: FrameReader::new().map_err(Fault::Io)?, nar })
    }

    /// Looks at the next bytes of the compressed file.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), VerifyError> {
        let Self { frame, nar } = self;
        frame.feed(bytes, |piece| nar.feed(piece)).map_err(|bad| match bad {
            BadFrame::Invalid(error) => VerifyError::Zstd(error),
            BadFrame::Trailing => VerifyError::TrailingBytes,
            BadFrame::Sink(error) => error,
        })
    }

    /// Returns what the nar is; not signed.
    pub(super) fn finish(self) -> Result<PathInfo, VerifyError> {
        if !self.frame.is_complete() {
            return Err(VerifyError::ZstdTruncated);
        }
        self.nar.finish()
    }
}

impl NarSide {
    fn feed(&mut self, piece: &[u8]) -> Result<(), VerifyError> {
        let found = self.reader.offset().saturating_add(piece.len() as u64);
        // A small file can decompress to anything: no more than declared is ever looked at.
        if found > self.declared.nar_bytes {
            return Err(VerifyError::NarBytes { declared: self.declared.nar_bytes, found });
        }
        if self.reader.feed(piece, &mut ())? < piece.len() {
            return Err(VerifyError::TrailingBytes);
        }
        self.hasher.update(piece);
        self.scanner.feed(piece);
        if let Some(fixed) = &mut self.fixed {
            fixed.feed(piece);
        }
        Ok(())
    }

    fn finish(self) -> Result<PathInfo, VerifyError> {
        let mut info = self.declared;
        let found = self.reader.offset();
        self.reader.finish()?;
        if found != info.nar_bytes {
            return Err(VerifyError::NarBytes { declared: info.nar_bytes, found });
        }
        let computed = self.hasher.finish();
        if computed != info.nar_hash {
            return Err(VerifyError::NarHash { declared: info.nar_hash, computed });
        }
        compare_references(&self.candidates, self.scanner, &info.references)?;
        info.content_address = match self.fixed.map(FixedCheck::finish) {
            // With references the path would follow in another way, which Nix does not know for
            // fixed outputs; the signature speaks for it.
            Some(Ok(address)) => info.references.is_empty().then_some(address),
            Some(Err(BrokenPromise { promised, found })) => {
                return Err(VerifyError::FixedOutput { promised, found });
            }
            None => None,
        };
        Ok(info)
    }
}

/// Compares the references found with those declared; both are subsets of the candidates.
fn compare_references(
    candidates: &[StorePath],
    scanner: ReferenceScanner,
    declared: &[StorePath],
) -> Result<(), VerifyError> {
    let found = scanner.found();
    for candidate in candidates {
        let is_declared = declared.binary_search(candidate).is_ok();
        match (found.contains(&candidate.hash()), is_declared) {
            (true, false) => return Err(VerifyError::UndeclaredReference(candidate.clone())),
            (false, true) => return Err(VerifyError::AbsentReference(candidate.clone())),
            (true, true) | (false, false) => {}
        }
    }
    Ok(())
}
