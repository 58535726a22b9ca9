//! Inputs on their way from the coordinator: files that are gone on with after an interruption,
//! and given to the builder only when they are complete and right.
//!
//! A file is called `PATH-HASH-FILE-HASH.part` after the store path and the compressed file that
//! it is the beginning of. It goes as soon as the path is valid; what nobody came back for goes
//! after a day.

use super::spool::sync_dir;
use crate::{
    core::{
        compression::Compression,
        hash::{Sha256, Sha256Hasher},
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
        time::Timestamp,
    },
    telemetry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// How long a beginning is kept that nobody goes on with, in milliseconds.
const AGE_MS_MAX: i64 = 24 * 60 * 60 * 1_000;
/// How much beginnings that nobody goes on with may take together, in bytes. What is being fetched
/// comes on top: at most one file per connection.
const IDLE_BYTES_MAX: u64 = 16 << 30;
/// The largest window that is unpacked, as a power of two: 128 MiB, as the protocol has it.
const WINDOW_LOG_MAX: u32 = 27;
/// How much is read at a time, in bytes.
const BUFFER_BYTES: usize = 128 * 1024;
const SUFFIX: &str = ".part";

/// The directory of inputs on their way.
#[derive(Debug)]
pub(super) struct Inputs {
    dir: PathBuf,
    /// Of paths that somebody fetches or wants to.
    claims: Mutex<BTreeMap<PathHash, Weak<tokio::sync::Mutex<()>>>>,
}

/// The right to fetch a path, as long as it lives.
pub(super) type Claim = OwnedMutexGuard<()>;

impl Inputs {
    /// Opens the directory, and makes it when it is missing.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs_err::create_dir_all(&dir)?;
        dir.parent().map_or(Ok(()), sync_dir)?;
        Ok(Self { dir, claims: Mutex::default() })
    }

    /// Returns the right to fetch a path, as soon as nobody else has it. Whoever waited looks
    /// first whether the path is valid by now.
    pub(super) async fn claim(&self, path: &StorePath) -> Claim {
        let claim = {
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|_, claim| claim.strong_count() > 0);
            let known = claims.get(&path.hash()).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let claim = Arc::default();
                claims.insert(path.hash(), Arc::downgrade(&claim));
                claim
            })
        };
        claim.lock_owned().await
    }

    /// Removes beginnings that nobody claims: those that are too old, and the oldest of the others
    /// while there are too many bytes of them.
    pub(super) fn sweep(&self, now: Timestamp) -> io::Result<()> {
        let claimed: BTreeSet<String> = {
            let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            let live = claims.iter().filter(|(_, claim)| claim.strong_count() > 0);
            live.map(|(path, _)| path.base32()).collect()
        };
        let mut idle = Vec::new();
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            // It may be gone since it was listed.
            let Ok(metadata) = entry.metadata() else { continue };
            let name = entry.file_name();
            let path = name.to_str().and_then(|name| name.split('-').next()).unwrap_or_default();
            if !claimed.contains(path) {
                let at = metadata.mtime().saturating_mul(1_000);
                idle.push((at, metadata.len(), entry.path()));
            }
        }
        // The newest first.
        idle.sort_by_key(|(at, _, _)| std::cmp::Reverse(*at));
        let mut kept: u64 = 0;
        for (at, bytes, path) in idle {
            kept = kept.saturating_add(bytes);
            if kept > IDLE_BYTES_MAX || at < now.as_ms().saturating_sub(AGE_MS_MAX) {
                kept = kept.saturating_sub(bytes);
                fs_err::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Returns the beginning of a path's file, read again, if there is one. Call it with the claim.
    pub(super) fn begun(&self, info: &PathInfo) -> io::Result<Option<Download>> {
        let prefix = format!("{}-", info.path.hash().base32());
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else {
                continue;
            };
            let hash = name.strip_suffix(SUFFIX).and_then(Sha256::parse);
            if hash.is_some()
                && let Ok(download) = Download::go_on(entry.path(), hash, info)
            {
                return Ok(Some(download));
            }
            // It is not what it should be.
            fs_err::remove_file(entry.path())?;
        }
        Ok(None)
    }

    /// Begins with a path's file. Call it with the claim. One whose hash nobody tells cannot be
    /// gone on with later.
    pub(super) fn begin(&self, info: &PathInfo, file_hash: Option<Sha256>) -> io::Result<Download> {
        let file_name = file_hash.map_or_else(String::new, |hash| hash.base32());
        let name = format!("{}-{file_name}{SUFFIX}", info.path.hash().base32());
        let path = self.dir.join(name);
        let file = fs_err::File::create(&path)?;
        Download::new(path, file, file_hash, info)
    }
}

/// Why what was received cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    /// The file could not be written or read.
    #[error("an input cannot be kept on this machine")]
    Disk(#[source] io::Error),
    /// It is not what the coordinator said it is.
    #[error("the nar of {path} is not the announced one: {what}")]
    Wrong {
        /// The path.
        path: StorePath,
        /// What is wrong with it.
        what: String,
    },
}

/// A file that is being received. What came stays for the next try when this is dropped.
pub(super) struct Download {
    path: PathBuf,
    file: fs_err::File,
    file_hash: Option<Sha256>,
    hasher: Sha256Hasher,
    nar: Unpacking,
    bytes: u64,
    /// How many bytes an earlier try brought.
    earlier: u64,
    info: PathInfo,
}

impl Download {
    fn new(
        path: PathBuf,
        file: fs_err::File,
        file_hash: Option<Sha256>,
        info: &PathInfo,
    ) -> io::Result<Self> {
        let sink = NarSink { hasher: Sha256Hasher::default(), left: info.nar_bytes };
        let nar = match compression_of(info, file_hash) {
            Compression::Zstd => {
                let mut nar = zstd::stream::write::Decoder::new(sink)?;
                nar.window_log_max(WINDOW_LOG_MAX)?;
                Unpacking::Zstd(Box::new(nar))
            }
            Compression::None => Unpacking::None(sink),
        };
        let hasher = Sha256Hasher::default();
        let info = info.clone();
        Ok(Self { path, file, file_hash, hasher, nar, bytes: 0, earlier: 0, info })
    }

    /// Reads again what an earlier try brought.
    fn go_on(path: PathBuf, file_hash: Option<Sha256>, info: &PathInfo) -> io::Result<Self> {
        let mut earlier = fs_err::File::open(&path)?;
        let file = fs_err::OpenOptions::new().append(true).open(&path)?;
        let mut download = Self::new(path, file, file_hash, info)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = earlier.read(&mut buffer)?;
            if length == 0 {
                download.earlier = download.bytes;
                return Ok(download);
            }
            download.look_at(&buffer[..length])?;
        }
    }

    /// Returns how many bytes there are.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the hash of the file that this is the beginning of.
    pub(super) const fn file_hash(&self) -> Option<Sha256> {
        self.file_hash
    }

    fn look_at(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.nar.get().write_all(bytes)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`DownloadError`]; nothing is kept unless the disk failed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        match self.look_at(bytes) {
            Ok(()) => self.file.write_all(bytes).map_err(DownloadError::Disk),
            Err(error) => Err(self.wrong(telemetry::chain(&error))),
        }
    }

    /// Ends the file, and returns it if it is what it should be.
    ///
    /// # Errors
    /// [`DownloadError`]; nothing is kept unless the disk failed.
    pub(super) fn finish(mut self) -> Result<Complete, DownloadError> {
        if let Err(error) = self.nar.get().flush() {
            return Err(self.wrong(telemetry::chain(&error)));
        }
        let computed = std::mem::take(&mut self.hasher).finish();
        if self.file_hash.is_some_and(|hash| hash != computed) {
            return Err(self.wrong("its file has another hash".to_owned()));
        }
        let NarSink { hasher, left } = std::mem::replace(
            self.nar.sink(),
            NarSink { hasher: Sha256Hasher::default(), left: 0 },
        );
        if left > 0 {
            return Err(self.wrong(format!("{left} bytes are missing")));
        }
        if hasher.finish() != self.info.nar_hash {
            return Err(self.wrong("it has another hash".to_owned()));
        }
        let compression = compression_of(&self.info, self.file_hash);
        Ok(Complete { path: self.path, compression })
    }

    /// Removes it.
    pub(super) fn discard(self) {
        remove(&self.path);
    }

    /// Tells whether it may be an earlier try that is to blame when something is wrong.
    pub(super) const fn is_resumed(&self) -> bool {
        self.earlier > 0
    }

    fn wrong(&self, what: String) -> DownloadError {
        remove(&self.path);
        DownloadError::Wrong { path: self.info.path.clone(), what }
    }
}

/// The file of a complete and verified nar; it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Complete {
    path: PathBuf,
    compression: Compression,
}

impl Complete {
    /// Opens the uncompressed nar.
    pub(super) fn open(&self) -> io::Result<Box<dyn io::Read>> {
        let file = fs_err::File::open(&self.path)?;
        Ok(match self.compression {
            Compression::Zstd => {
                let mut nar = zstd::stream::read::Decoder::new(file)?;
                nar.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(nar)
            }
            Compression::None => Box::new(file),
        })
    }
}

impl Drop for Complete {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Returns how a path's file is compressed. One whose hash nobody tells is.
pub(super) fn compression_of(info: &PathInfo, file_hash: Option<Sha256>) -> Compression {
    file_hash.map_or(Compression::Zstd, |hash| Compression::of(&info.nar_hash, &hash))
}

/// What makes the nar of the file.
enum Unpacking {
    Zstd(Box<zstd::stream::write::Decoder<'static, NarSink>>),
    None(NarSink),
}

impl Unpacking {
    fn get(&mut self) -> &mut dyn Write {
        match self {
            Self::Zstd(decoder) => decoder,
            Self::None(sink) => sink,
        }
    }

    fn sink(&mut self) -> &mut NarSink {
        match self {
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::None(sink) => sink,
        }
    }
}

fn remove(path: &Path) {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "an input could not be removed");
        }
        Ok(()) | Err(_) => {}
    }
}

/// Looks at the uncompressed nar; refuses more of it than there should be.
struct NarSink {
    hasher: Sha256Hasher,
    left: u64,
}

impl Write for NarSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("it is longer than announced"))?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
