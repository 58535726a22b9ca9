//! Small nars, which come whole: verified in memory, many with what one of them would need.

use super::{Candidates, UploadRules, VerifyError, check::NarSide, check_declarations};
use crate::{
    core::{
        change::{NarOrigin, NarRecord},
        compression::Compression,
        hash::Sha256,
        time::Timestamp,
    },
    depot::{Fault, zstd_stream::FrameReader},
    formats::references::ReferenceScanner,
};
use std::fmt;

/// Verifies whole files. It is kept from one batch to the next, because the memory of a
/// decompressor costs more to get than a small nar takes to verify.
pub struct SmallNars(FrameReader);

impl fmt::Debug for SmallNars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmallNars").finish_non_exhaustive()
    }
}

impl SmallNars {
    /// Returns a verifier; it has some hundred KiB.
    ///
    /// # Errors
    /// [`VerifyError::Fault`] when there is no memory.
    pub fn new() -> Result<Self, VerifyError> {
        Ok(Self(FrameReader::new().map_err(Fault::Io)?))
    }

    /// Begins with the outputs of an attempt, which all have the same candidates.
    pub fn of_attempt(&mut self, candidates: &Candidates) -> SmallNarsOfAttempt<'_> {
        SmallNarsOfAttempt { frame: &mut self.0, scanner: Some(candidates.scanner()) }
    }
}

/// Verifies the outputs of one attempt.
pub struct SmallNarsOfAttempt<'a> {
    frame: &'a mut FrameReader,
    /// Gone when an output was refused.
    scanner: Option<ReferenceScanner>,
}

impl SmallNarsOfAttempt<'_> {
    /// Verifies one output. The record is not signed: that is done when the file is written out.
    ///
    /// # Errors
    /// A [`VerifyError`], after which no other output of the attempt is looked at.
    pub fn verify(
        &mut self,
        rules: &UploadRules<'_>,
        file: &[u8],
        at: Timestamp,
    ) -> Result<NarRecord, VerifyError> {
        let expected = rules.expected;
        check_declarations(expected, &rules.limits)?;
        let (declared, came) = (expected.file_bytes, file.len() as u64);
        if came != declared {
            return Err(VerifyError::FileBytes { declared, came });
        }
        let (claimed, computed) = (expected.file_hash, Sha256::of(file));
        if claimed != computed {
            return Err(VerifyError::FileHash { claimed, computed });
        }
        let mut nar = NarSide::new(rules, self.scanner.take().ok_or(VerifyError::Over)?)?;
        match rules.compression() {
            Compression::Zstd => {
                self.frame.restart().map_err(Fault::Io)?;
                self.frame.feed(file, |piece| nar.feed(piece)).map_err(VerifyError::of_frame)?;
                if !self.frame.is_complete() {
                    return Err(VerifyError::ZstdTruncated);
                }
            }
            Compression::None => nar.feed(file)?,
        }
        let (info, scanner) = nar.finish()?;
        self.scanner = Some(scanner);
        let origin = NarOrigin::Built;
        Ok(NarRecord { info, file_hash: computed, file_bytes: declared, origin, at })
    }
}
