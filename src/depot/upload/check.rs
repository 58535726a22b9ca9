//! Everything that is computed of an uploaded nar while it streams by.

use super::{UploadRules, VerifyError};
use crate::{
    core::{
        compression::Compression,
        hash::Sha256Hasher,
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
    },
    depot::{
        Fault,
        content::{BrokenPromise, FixedCheck},
        zstd_stream::FrameReader,
    },
    formats::{nar::NarReader, references::ReferenceScanner},
};
use std::{collections::BTreeSet, sync::Arc};

/// Compares an upload with what was declared of it.
pub(super) struct NarCheck {
    /// Absent when the file is the nar itself.
    frame: Option<FrameReader>,
    nar: NarSide,
}

/// What looks at the uncompressed bytes.
pub(super) struct NarSide {
    reader: NarReader,
    /// Absent when the hash of the file, which others compute, is that of the nar.
    hasher: Option<Sha256Hasher>,
    scanner: ReferenceScanner,
    fixed: Option<FixedCheck>,
    candidates: Candidates,
    /// What was declared, as far as it is of interest.
    declared: PathInfo,
}

impl NarCheck {
    pub(super) fn new(rules: &UploadRules<'_>) -> Result<Self, VerifyError> {
        let nar = NarSide::new(rules, rules.candidates.scanner())?;
        let frame = match rules.compression() {
            Compression::Zstd => Some(FrameReader::new().map_err(Fault::Io)?),
            Compression::None => None,
        };
        Ok(Self { frame, nar })
    }

    /// Looks at the next bytes of the file.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), VerifyError> {
        let Self { frame, nar } = self;
        let Some(frame) = frame else { return nar.feed(bytes) };
        frame.feed(bytes, |piece| nar.feed(piece)).map_err(VerifyError::of_frame)
    }

    /// Returns what the nar is; not signed.
    pub(super) fn finish(self) -> Result<PathInfo, VerifyError> {
        if self.frame.is_some_and(|frame| !frame.is_complete()) {
            return Err(VerifyError::ZstdTruncated);
        }
        self.nar.finish().map(|(info, _)| info)
    }
}

impl NarSide {
    /// Begins a nar. The scanner is one of the rules' candidates, and comes back at the end.
    pub(super) fn new(
        rules: &UploadRules<'_>,
        scanner: ReferenceScanner,
    ) -> Result<Self, VerifyError> {
        let mut declared = rules.expected.info.clone();
        declared.references.sort();
        declared.references.dedup();
        for reference in &declared.references {
            if !rules.candidates.contain(reference) {
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
        let hasher = match rules.compression() {
            Compression::Zstd => Some(Sha256Hasher::default()),
            Compression::None => None,
        };
        Ok(Self {
            reader: NarReader::new(rules.limits),
            hasher,
            scanner,
            fixed,
            candidates: rules.candidates.clone(),
            declared,
        })
    }

    /// Looks at the next bytes.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<(), VerifyError> {
        let found = self.reader.offset().saturating_add(piece.len() as u64);
        // A small file can decompress to anything: no more than declared is ever looked at.
        if found > self.declared.nar_bytes {
            return Err(VerifyError::NarBytes { declared: self.declared.nar_bytes, found });
        }
        if self.reader.feed(piece, &mut ())? < piece.len() {
            return Err(VerifyError::TrailingBytes);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        self.scanner.feed(piece);
        if let Some(fixed) = &mut self.fixed {
            fixed.feed(piece);
        }
        Ok(())
    }

    /// Returns what the nar is, not signed, and the scanner for another nar.
    pub(super) fn finish(self) -> Result<(PathInfo, ReferenceScanner), VerifyError> {
        let (mut info, mut scanner) = (self.declared, self.scanner);
        let found = self.reader.offset();
        self.reader.finish()?;
        if found != info.nar_bytes {
            return Err(VerifyError::NarBytes { declared: info.nar_bytes, found });
        }
        if let Some(computed) = self.hasher.map(Sha256Hasher::finish)
            && computed != info.nar_hash
        {
            return Err(VerifyError::NarHash { declared: info.nar_hash, computed });
        }
        self.candidates.compare(&scanner.take_found(), &info.references)?;
        info.content_address = match self.fixed.map(FixedCheck::finish) {
            // With references the path would follow in another way, which Nix does not know for
            // fixed outputs; the signature speaks for it.
            Some(Ok(address)) => info.references.is_empty().then_some(address),
            Some(Err(BrokenPromise { promised, found })) => {
                return Err(VerifyError::FixedOutput { promised, found });
            }
            None => None,
        };
        Ok((info, scanner))
    }
}

/// All paths that the outputs of a derivation may refer to.
#[derive(Debug, Clone)]
pub struct Candidates(Arc<[StorePath]>);

impl From<Vec<StorePath>> for Candidates {
    fn from(mut paths: Vec<StorePath>) -> Self {
        paths.sort();
        paths.dedup();
        Self(paths.into())
    }
}

impl Candidates {
    /// Returns what searches a nar for them.
    pub(super) fn scanner(&self) -> ReferenceScanner {
        ReferenceScanner::new(self.0.iter().map(StorePath::hash))
    }

    fn contain(&self, path: &StorePath) -> bool {
        self.0.binary_search(path).is_ok()
    }

    /// Compares the references found with those declared; both are subsets of these.
    fn compare(
        &self,
        found: &BTreeSet<PathHash>,
        declared: &[StorePath],
    ) -> Result<(), VerifyError> {
        let hashes: BTreeSet<PathHash> = declared.iter().map(StorePath::hash).collect();
        if let Some(strange) = found.difference(&hashes).next()
            && let Some(path) = self.0.iter().find(|path| path.hash() == *strange)
        {
            return Err(VerifyError::UndeclaredReference(path.clone()));
        }
        match declared.iter().find(|path| !found.contains(&path.hash())) {
            Some(absent) => Err(VerifyError::AbsentReference(absent.clone())),
            None => Ok(()),
        }
    }
}
