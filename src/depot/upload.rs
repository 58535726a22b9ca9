//! Uploads: the compressed nar of one output, from an agent.
//!
//! The bytes go to a file in `incoming/` and at the same time through everything that can be said
//! of them, so that an upload is verified when its last byte has come. An upload that breaks off
//! leaves its file there; the next try of the same attempt reads it again and goes on behind it.

mod check;
mod error;

pub use error::VerifyError;

use super::{Depot, Fault, spool::upload_name};
use crate::{
    core::{
        derivation::FixedOutput,
        hash::{Sha256, Sha256Hasher},
        id::AttemptId,
        path_info::PathInfo,
        store_path::StorePath,
    },
    formats::nar::NarLimits,
    protocol::bulk::OfferedOutput,
};
use check::NarCheck;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The only compression that uploads may have.
const COMPRESSION: &str = "zstd";
/// How much longer than its nar a compressed file may be: block headers of content that cannot be
/// compressed take 3 bytes in 128 KiB, and an encoder that is flushed often needs more.
const COMPRESSION_OVERHEAD_MAX: u64 = 64 * 1024;

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
    pub candidates: Vec<StorePath>,
    /// What the content must be, if the derivation promises it.
    pub fixed: Option<FixedOutput>,
    /// What the nar may ask.
    pub limits: NarLimits,
}

/// One upload under way.
pub struct Upload {
    depot: Depot,
    spool: PathBuf,
    file: fs_err::File,
    /// Bytes that an earlier try brought.
    offset: u64,
    received: u64,
    hasher: Sha256Hasher,
    /// Gone when the upload was refused.
    check: Option<NarCheck>,
    declared: Declared,
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
    pub(super) spool: PathBuf,
    /// Keeps the lock, so that nobody writes to the file any more.
    pub(super) lock: fs_err::File,
}

impl VerifiedNar {
    /// Returns what the nar is, signed by the coordinator.
    #[must_use]
    pub const fn info(&self) -> &PathInfo {
        &self.info
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
        let spool = self.0.places.incoming.join(name);
        let declared = Declared { file_hash: expected.file_hash, file_bytes: expected.file_bytes };
        let check = NarCheck::new(rules)?;
        let (mut file, offset) = open_spool(&spool, declared.file_bytes)?;
        let mut upload = Upload {
            depot: self.clone(),
            spool: spool.clone(),
            file: file.try_clone().map_err(Fault::Io)?,
            offset,
            received: 0,
            hasher: Sha256Hasher::default(),
            check: Some(check),
            declared,
        };
        if upload.reread(&mut file).is_err() {
            // What an earlier process wrote need not have reached the disk. Begin again, once.
            upload.file.set_len(0).map_err(Fault::Io)?;
            upload.offset = 0;
            upload.received = 0;
            upload.hasher = Sha256Hasher::default();
            upload.check = Some(NarCheck::new(rules)?);
        }
        Ok(upload)
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
        let result = self.take(bytes).and_then(|()| {
            // Written last, so that what was refused is not resumed.
            Ok(self.file.write_all(bytes).map_err(Fault::Io)?)
        });
        result.map_err(|error| self.refused(error))
    }

    /// Ends the upload. `file_hash` is what the agent says at its end.
    ///
    /// # Errors
    /// As for [`Upload::write`].
    pub fn finish(mut self, file_hash: Sha256) -> Result<VerifiedNar, VerifyError> {
        self.complete(file_hash).map_err(|error| self.refused(error))
    }

    fn complete(&mut self, file_hash: Sha256) -> Result<VerifiedNar, VerifyError> {
        let Declared { file_hash: declared, file_bytes } = self.declared;
        let check = self.check.take().ok_or(VerifyError::Over)?;
        if self.received != file_bytes {
            return Err(VerifyError::FileBytes { declared: file_bytes, came: self.received });
        }
        let computed = std::mem::take(&mut self.hasher).finish();
        for claimed in [declared, file_hash] {
            if claimed != computed {
                return Err(VerifyError::FileHash { claimed, computed });
            }
        }
        let mut info = check.finish()?;
        self.depot.sign(&mut info);
        let lock = self.file.try_clone().map_err(Fault::Io)?;
        Ok(VerifiedNar { info, file_hash: computed, file_bytes, spool: self.spool.clone(), lock })
    }

    /// Looks at bytes without writing them.
    fn take(&mut self, bytes: &[u8]) -> Result<(), VerifyError> {
        let check = self.check.as_mut().ok_or(VerifyError::Over)?;
        let came = self.received.saturating_add(bytes.len() as u64);
        if came > self.declared.file_bytes {
            return Err(VerifyError::FileBytes { declared: self.declared.file_bytes, came });
        }
        self.received = came;
        self.hasher.update(bytes);
        check.feed(bytes)
    }

    /// Looks at what an earlier try brought.
    fn reread(&mut self, file: &mut fs_err::File) -> Result<(), VerifyError> {
        let mut buffer = vec![0; super::BUFFER_BYTES];
        while self.received < self.offset {
            match file.read(&mut buffer).map_err(Fault::Io)? {
                0 => return Err(VerifyError::Over),
                len => self.take(&buffer[..len])?,
            }
        }
        Ok(())
    }

    /// Gives the upload up, and says whose fault it is.
    fn refused(&mut self, error: VerifyError) -> VerifyError {
        self.check = None;
        if matches!(error, VerifyError::Fault(_) | VerifyError::Over) {
            // All that was written is what the agent sent, and passed as far as it goes.
            return error;
        }
        if let Err(error) = fs_err::remove_file(&self.spool) {
            tracing::warn!(%error, "a refused upload could not be removed");
        }
        if self.offset > 0 { VerifyError::EarlierPart(Box::new(error)) } else { error }
    }
}

/// Refuses declarations that cannot be right, before anything is received.
fn check_declarations(expected: &OfferedOutput, limits: &NarLimits) -> Result<(), VerifyError> {
    let info = &expected.info;
    if expected.compression != COMPRESSION {
        return Err(VerifyError::Compression(expected.compression.escape_debug().to_string()));
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

/// Opens the file of an upload for reading and appending, and returns its length. A file that is
/// longer than it may be is emptied.
///
/// The file is locked as long as it is open: an agent that reconnects can begin before the end of
/// its old connection is noticed.
fn open_spool(path: &Path, bytes_max: u64) -> Result<(fs_err::File, u64), VerifyError> {
    let file = fs_err::OpenOptions::new().read(true).append(true).create(true).open(path);
    let file = file.map_err(Fault::Io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(VerifyError::Busy),
        Err(errno) => return Err(Fault::Io(errno.into()).into()),
    }
    let measure = || -> io::Result<Option<u64>> {
        let metadata = file.metadata()?;
        if metadata.nlink() == 0 {
            // The one who had the lock moved or removed the file before the lock was had here.
            return Ok(None);
        }
        if metadata.len() > bytes_max {
            file.set_len(0)?;
            return Ok(Some(0));
        }
        Ok(Some(metadata.len()))
    };
    let bytes = measure().map_err(Fault::Io)?.ok_or(VerifyError::Busy)?;
    Ok((file, bytes))
}
