//! Uploads: the compressed nar of one output, from an agent.
//!
//! The bytes go to a file in `incoming/` and at the same time through everything that can be said
//! of them, so that an upload is verified when its last byte has come. Long ones have two threads
//! for it, and a third that brings to the disk what was written. An upload that breaks off
//! leaves its file there; the next try of the same attempt reads it again and goes on behind it.

mod blocks;
mod check;
mod error;
mod small;
mod spooled;

pub use check::Candidates;
pub use error::VerifyError;
pub use small::SmallNars;
pub use spooled::SYNC_INTERVAL;

use super::{Depot, Fault, aside::Aside, spool::upload_name};
use crate::{
    core::{
        compression::Compression, derivation::FixedOutput, hash::Sha256, id::AttemptId,
        path_info::PathInfo, store_path::StorePath,
    },
    formats::nar::NarLimits,
    protocol::bulk::OfferedOutput,
};
use bytes::Bytes;
use check::NarCheck;
pub(super) use spooled::Spooled;
use std::io;

/// How much of the name of another compression is repeated to the agent, in characters.
const COMPRESSION_CHARS_SHOWN_MAX: usize = 40;
/// How much longer than its nar a compressed file may be: block headers of content that cannot be
/// compressed take 3 bytes in 128 KiB, and an encoder that is flushed often needs more.
const COMPRESSION_OVERHEAD_MAX: u64 = 64 * 1024;
/// From which length on a file gets threads of its own, in bytes: they cost as much as hashing a
/// tenth of this.
const ASIDE_BYTES_MIN: u64 = 1 << 20;

/// What an upload must turn out to be.
#[derive(Debug)]
pub struct UploadRules<'a> {
    /// The attempt that made the output.
    pub attempt: AttemptId,
    /// What the agent says of the output. That the path is one of the derivation's outputs is for
    /// the caller to check, before anything is received.
    pub expected: &'a OfferedOutput,
    /// The derivation that was built.
    pub deriver: StorePath,
    /// All paths that the output may refer to: the closure of the inputs, and the derivation's own
    /// outputs.
    pub candidates: Candidates,
    /// What the content must be, if the derivation promises it.
    pub fixed: Option<FixedOutput>,
    /// What the nar may ask.
    pub limits: NarLimits,
}

impl UploadRules<'_> {
    /// Returns how the file is compressed.
    fn compression(&self) -> Compression {
        Compression::of(&self.expected.info.nar_hash, &self.expected.file_hash)
    }
}

/// One upload under way. What came stays for the next try when this is dropped.
pub struct Upload {
    depot: Depot,
    spooled: Spooled,
    /// Bytes that an earlier try brought.
    offset: u64,
    check: Check,
    declared: Declared,
}

/// What looks at the bytes.
enum Check {
    /// Whoever brings them.
    Here(Box<NarCheck>),
    /// A thread of its own.
    Aside(Aside<Bytes, Box<NarCheck>, VerifyError>),
    /// Nothing: the upload was refused, or is complete.
    Over,
}

/// What the agent declared of the file.
struct Declared {
    file_hash: Sha256,
    file_bytes: u64,
}

/// A nar that is what it was said to be; [`Depot::keep`] takes it over.
///
/// Its file stays in `incoming/` when this is dropped, so that nothing must be sent again.
#[derive(Debug)]
pub struct VerifiedNar {
    pub(super) info: PathInfo,
    pub(super) file_hash: Sha256,
    pub(super) file_bytes: u64,
    /// Keeps the lock, so that nobody writes to the file any more.
    pub(super) spooled: Spooled,
}

impl VerifiedNar {
    /// Returns what the nar is, signed by the coordinator.
    #[must_use]
    pub const fn info(&self) -> &PathInfo {
        &self.info
    }

    /// Returns the length of the file, in bytes.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Notes that the file is complete, so that it is not sent again even if this process is
    /// killed before the nar is kept. Costs two syncs: for those that others follow.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn mark(&mut self) -> io::Result<()> {
        self.spooled.mark()
    }
}

impl Depot {
    /// Begins to receive an output, or goes on where an earlier try of the same attempt ended.
    ///
    /// # Errors
    /// A [`VerifyError`] when what is declared cannot be right; nothing is received then.
    pub fn upload(&self, rules: &UploadRules<'_>) -> Result<Upload, VerifyError> {
        let expected = rules.expected;
        check_declarations(expected, &rules.limits)?;
        let name = upload_name(rules.attempt, &expected.info.path, &expected.file_hash);
        let declared = Declared { file_hash: expected.file_hash, file_bytes: expected.file_bytes };
        let mut check = Box::new(NarCheck::new(rules)?);
        let path = self.0.places.incoming.join(name);
        let (mut spooled, mark) = Spooled::open(path, declared.file_bytes)?;
        if let Some(mark) = mark {
            // Whatever is wrong with it, it cannot be gone on with. Begin again, once.
            if !matches!(spooled.reread(mark, |bytes| check.feed(bytes)), Ok(true)) {
                spooled.restart().map_err(Fault::Io)?;
                *check = NarCheck::new(rules)?;
            }
        }
        let offset = spooled.bytes();
        Ok(Upload { depot: self.clone(), spooled, offset, check: Check::Here(check), declared })
    }
}

impl Upload {
    /// Returns how many bytes of the file are there already; the agent sends what follows them.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// A [`VerifyError`]; unless it is a [`VerifyError::Fault`], nothing of the upload is kept and
    /// it cannot go on.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), VerifyError> {
        let looked = self.look(bytes);
        self.append(looked, bytes)
    }

    /// Takes the next bytes of the file, and of a long one has a thread beside this one look at
    /// them: what is wrong with them may then be told later.
    ///
    /// # Errors
    /// As for [`Upload::write`].
    pub fn write_aside(&mut self, bytes: &Bytes) -> Result<(), VerifyError> {
        if self.declared.file_bytes < ASIDE_BYTES_MIN {
            return self.write(bytes);
        }
        let handed = self.look_aside(bytes.clone());
        self.append(handed, bytes)
    }

    /// Ends the upload. `file_hash` is what the agent says at its end.
    ///
    /// # Errors
    /// As for [`Upload::write`].
    pub fn finish(mut self, file_hash: Sha256) -> Result<VerifiedNar, VerifyError> {
        match self.complete(file_hash) {
            Ok(info) => {
                let Declared { file_hash, file_bytes } = self.declared;
                Ok(VerifiedNar { info, file_hash, file_bytes, spooled: self.spooled })
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    fn complete(&mut self, file_hash: Sha256) -> Result<PathInfo, VerifyError> {
        let Declared { file_hash: declared, file_bytes } = self.declared;
        let check = self.looked_at()?;
        if self.spooled.bytes() != file_bytes {
            let came = self.spooled.bytes();
            return Err(VerifyError::FileBytes { declared: file_bytes, came });
        }
        let computed = self.spooled.hash();
        for claimed in [declared, file_hash] {
            if claimed != computed {
                return Err(VerifyError::FileHash { claimed, computed });
            }
        }
        let mut info = check.finish()?;
        self.depot.sign(&mut info);
        if file_bytes >= ASIDE_BYTES_MIN {
            // Not left to whoever keeps it, who has others' nars to keep as well.
            self.spooled.flush().map_err(Fault::Io)?;
        }
        Ok(info)
    }

    /// Looks at bytes without writing them.
    fn look(&mut self, bytes: &[u8]) -> Result<(), VerifyError> {
        self.check_length(bytes)?;
        match &mut self.check {
            Check::Here(check) => check.feed(bytes),
            Check::Aside(_) => self.look_aside(Bytes::copy_from_slice(bytes)),
            Check::Over => Err(VerifyError::Over),
        }
    }

    /// Has bytes looked at by another thread.
    fn look_aside(&mut self, bytes: Bytes) -> Result<(), VerifyError> {
        self.check_length(&bytes)?;
        self.check = match std::mem::replace(&mut self.check, Check::Over) {
            Check::Here(check) => {
                let feed = |check: &mut Box<NarCheck>, piece: Bytes| check.feed(&piece);
                Check::Aside(Aside::start(check, feed)?)
            }
            other @ (Check::Aside(_) | Check::Over) => other,
        };
        match &self.check {
            Check::Aside(aside) if aside.give(bytes) => Ok(()),
            Check::Aside(_) | Check::Here(_) | Check::Over => {
                self.looked_at().and(Err(VerifyError::Over))
            }
        }
    }

    /// Waits until all bytes that came were looked at, and ends that.
    fn looked_at(&mut self) -> Result<Box<NarCheck>, VerifyError> {
        match std::mem::replace(&mut self.check, Check::Over) {
            Check::Here(check) => Ok(check),
            Check::Aside(aside) => aside.finish(),
            Check::Over => Err(VerifyError::Over),
        }
    }

    /// Refuses bytes that make the file longer than it is declared to be.
    fn check_length(&self, bytes: &[u8]) -> Result<(), VerifyError> {
        let came = self.spooled.bytes().saturating_add(bytes.len() as u64);
        if came > self.declared.file_bytes {
            return Err(VerifyError::FileBytes { declared: self.declared.file_bytes, came });
        }
        Ok(())
    }

    /// Writes bytes that were looked at, or are being. Last, so that what was refused is not
    /// resumed; what is refused later is removed.
    fn append(&mut self, looked: Result<(), VerifyError>, bytes: &[u8]) -> Result<(), VerifyError> {
        let result = looked.and_then(|()| Ok(self.spooled.append(bytes).map_err(Fault::Io)?));
        result.map_err(|error| self.refused(error))
    }

    /// Gives the upload up, and says whose fault it is.
    fn refused(&mut self, error: VerifyError) -> VerifyError {
        self.check = Check::Over;
        if matches!(error, VerifyError::Fault(_) | VerifyError::Over) {
            // All that was written is what the agent sent, and passed as far as it goes.
            return error;
        }
        self.spooled.remove();
        if self.offset > 0 { VerifyError::EarlierPart(Box::new(error)) } else { error }
    }
}

/// Refuses declarations that cannot be right, before anything is received.
fn check_declarations(expected: &OfferedOutput, limits: &NarLimits) -> Result<(), VerifyError> {
    let info = &expected.info;
    let Some(compression) = Compression::parse(&expected.compression) else {
        let shown = expected.compression.chars().take(COMPRESSION_CHARS_SHOWN_MAX);
        let shown = shown.flat_map(char::escape_debug).collect();
        return Err(VerifyError::Compression(shown));
    };
    // From here on the hashes tell which of the two it is.
    if Compression::of(&info.nar_hash, &expected.file_hash) != compression {
        return Err(VerifyError::OtherCompression(compression));
    }
    if info.nar_bytes > limits.bytes_max {
        return Err(VerifyError::NarTooLong { bytes: info.nar_bytes, max: limits.bytes_max });
    }
    let max = info.nar_bytes + info.nar_bytes / 64 + COMPRESSION_OVERHEAD_MAX;
    if expected.file_bytes > max {
        return Err(VerifyError::FileTooLong { bytes: expected.file_bytes, max });
    }
    Ok(())
}
