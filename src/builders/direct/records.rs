//! Which paths are valid: one JSON file per path, written when the path's files are in place.
//!
//! A record is written under another name and renamed, so a reader finds all of it or nothing.
//! Like Nix by default, nothing is flushed to the disk: after a power failure a path may be
//! recorded whose files are incomplete, which the hash of its nar shows.

use super::BuilderError;
use crate::core::{path_info::PathInfo, store_path::StorePath};
use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, utimensat};
use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The records and locks of a place.
#[derive(Debug)]
pub(super) struct Records {
    valid: PathBuf,
    locks: PathBuf,
}

/// Ends the lock when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: fs_err::File,
}

impl Lock {
    /// Returns the lock that this open file has.
    pub(super) const fn of(file: fs_err::File) -> Self {
        Self { file }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is just starting has a copy
        // of it, and with it the lock, until it runs its program.
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "a lock ends with its process only");
        }
    }
}

/// A valid path and when it was used last.
#[derive(Debug)]
pub(super) struct Used {
    /// The path.
    pub(super) info: PathInfo,
    /// When it was taken in, built or rooted last, in seconds since the epoch.
    pub(super) at: i64,
}

impl Records {
    /// Makes the directories that are missing.
    pub(super) fn open(state_dir: &Path) -> Result<Self, BuilderError> {
        let records = Self { valid: state_dir.join("valid"), locks: state_dir.join("locks") };
        fs_err::create_dir_all(&records.valid)?;
        fs_err::create_dir_all(&records.locks)?;
        Ok(records)
    }

    /// Returns the record of a path; nothing when it is not valid.
    pub(super) fn read(&self, path: &StorePath) -> Result<Option<PathInfo>, BuilderError> {
        read_file(self.file(path))
    }

    /// Makes a path valid.
    pub(super) fn write(&self, info: &PathInfo) -> Result<(), BuilderError> {
        let file = self.file(&info.path);
        let text = serde_json::to_vec(info)
            .map_err(|source| BuilderError::Record { file: file.clone(), source })?;
        let name = format!("{}.{:016x}.new", info.path.hash().base32(), super::random()?);
        let written = self.valid.join(name);
        fs_err::write(&written, text)?;
        fs_err::rename(&written, &file)?;
        Ok(())
    }

    /// Makes a path invalid.
    pub(super) fn remove(&self, path: &StorePath) -> Result<(), BuilderError> {
        match fs_err::remove_file(self.file(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => Ok(result?),
        }
    }

    /// Returns one of `paths` and a valid path that refers to it and is none of them.
    pub(super) fn find_referrer(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<Option<(StorePath, StorePath)>, BuilderError> {
        for Used { info, .. } in self.all()? {
            let referred = info.references.iter().find(|path| paths.contains(*path));
            if let (Some(path), false) = (referred, paths.contains(&info.path)) {
                return Ok(Some((path.clone(), info.path)));
            }
        }
        Ok(None)
    }

    /// Returns all valid paths.
    pub(super) fn all(&self) -> Result<Vec<Used>, BuilderError> {
        let mut all = Vec::new();
        for entry in fs_err::read_dir(&self.valid)? {
            let entry = entry?;
            let file = entry.path();
            if file.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // One that was just removed is none any more.
            let Ok(facts) = entry.metadata() else { continue };
            if let Some(info) = read_file(file)? {
                all.push(Used { info, at: facts.mtime() });
            }
        }
        Ok(all)
    }

    /// Notes that paths are used now. Paths that are not valid have nothing to note it at.
    pub(super) fn note_use(&self, paths: &[StorePath]) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        paths.iter().try_for_each(|path| self.set_time(path, now))
    }

    /// Notes that a path was used then, in seconds since the epoch.
    #[cfg(test)]
    pub(super) fn set_used(&self, path: &StorePath, at: i64) -> io::Result<()> {
        self.set_time(path, Timespec { tv_sec: at, tv_nsec: 0 })
    }

    fn set_time(&self, path: &StorePath, time: Timespec) -> io::Result<()> {
        let times = Timestamps { last_access: time, last_modification: time };
        match utimensat(CWD, self.file(path), &times, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until nobody else moves or builds this path: as long as that takes, at most the time
    /// of a build.
    pub(super) fn lock(&self, path: &StorePath) -> Result<Lock, BuilderError> {
        let file = self.lock_file(path)?;
        Ok(wait_for_lock(file)?)
    }

    /// Locks the path unless somebody else has.
    pub(super) fn try_lock(&self, path: &StorePath) -> Result<Option<Lock>, BuilderError> {
        let file = self.lock_file(path)?;
        Ok(lock_unless_held(file)?)
    }

    fn file(&self, path: &StorePath) -> PathBuf {
        self.valid.join(format!("{}.json", path.base_name()))
    }

    /// Opens the lock's file. It stays for good: removing it would let two hold the lock.
    fn lock_file(&self, path: &StorePath) -> io::Result<fs_err::File> {
        let file = self.locks.join(path.hash().base32());
        fs_err::OpenOptions::new().create(true).append(true).open(file)
    }
}

/// Locks a file or directory as soon as nobody else has.
pub(super) fn wait_for_lock(file: fs_err::File) -> io::Result<Lock> {
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(Lock { file })
}

/// Locks a file or directory unless somebody else has.
pub(super) fn lock_unless_held(file: fs_err::File) -> io::Result<Option<Lock>> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads one record.
fn read_file(file: PathBuf) -> Result<Option<PathInfo>, BuilderError> {
    match fs_err::read(&file) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| BuilderError::Record { file, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_when_it_is_dropped_whoever_has_a_copy_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = || fs_err::File::open(dir.path()).unwrap();
        let lock = wait_for_lock(file()).unwrap();
        let _copy = lock.file.file().try_clone().unwrap();
        assert!(lock_unless_held(file()).unwrap().is_none());
        drop(lock);
        assert!(lock_unless_held(file()).unwrap().is_some());
    }
}
