//! What must not be collected because somebody uses it.
//!
//! Every executor that roots something has a file in `roots/` with a path per line, which it keeps
//! locked for as long as it lives; the kernel ends the lock with the process. The lock `collection`
//! orders the two sides: writers of roots share it, and whoever decides what may go has it alone.
//! So a path is either rooted before that decision, or seen as gone by whoever roots it after.

use super::{
    BuilderError,
    records::{self, Lock},
};
use crate::core::store_path::StorePath;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The roots of all executors of a place, and this one's.
#[derive(Debug)]
pub(super) struct Roots {
    dir: PathBuf,
    collection: PathBuf,
    own: Option<Own>,
}

/// This executor's file.
#[derive(Debug)]
struct Own {
    file: fs_err::File,
    path: PathBuf,
    rooted: BTreeSet<StorePath>,
}

impl Drop for Own {
    fn drop(&mut self) {
        // Left behind, it is removed by the next collection: its lock ends now.
        fs_err::remove_file(&self.path).ok();
    }
}

/// Whose roots are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Everybody's.
    All,
    /// Everybody's but this executor's.
    Others,
}

impl Roots {
    /// Makes the directory if it is missing.
    pub(super) fn open(state_dir: &Path) -> Result<Self, BuilderError> {
        let dir = state_dir.join("roots");
        fs_err::create_dir_all(&dir)?;
        Ok(Self { dir, collection: state_dir.join("collection"), own: None })
    }

    /// Roots paths, valid or not, for as long as this value lives.
    pub(super) fn add(&mut self, paths: &[StorePath]) -> Result<(), BuilderError> {
        let known = self.own.as_ref().map(|own| &own.rooted);
        let new: BTreeSet<StorePath> =
            paths.iter().filter(|path| known.is_none_or(|k| !k.contains(*path))).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let _shared = self.lock(FlockOperation::LockShared)?;
        let own = match &mut self.own {
            Some(own) => own,
            none => none.insert(Own::new(&self.dir)?),
        };
        let mut lines: Vec<String> = new.iter().map(ToString::to_string).collect();
        lines.push(String::new());
        own.file.write_all(lines.join("\n").as_bytes())?;
        own.rooted.extend(new);
        Ok(())
    }

    /// Keeps everybody from rooting anything until the lock is dropped.
    pub(super) fn hold(&self) -> Result<Lock, BuilderError> {
        self.lock(FlockOperation::LockExclusive)
    }

    /// Returns what is rooted. The files of executors that are gone are removed.
    pub(super) fn read(
        &self,
        whose: Whose,
        _held: &Lock,
    ) -> Result<BTreeSet<StorePath>, BuilderError> {
        let mut rooted = BTreeSet::new();
        let own = self.own.as_ref().map(|own| own.path.as_path());
        for entry in fs_err::read_dir(&self.dir)? {
            let path = entry?.path();
            if own == Some(path.as_path()) {
                if whose == Whose::All {
                    rooted.extend(self.own.iter().flat_map(|own| own.rooted.iter().cloned()));
                }
                continue;
            }
            // One that ended just now has taken its file along.
            let Ok(file) = fs_err::File::open(&path) else { continue };
            if records::lock_unless_held(file)?.is_some() {
                remove_if_there(&path)?;
                continue;
            }
            let text = match fs_err::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            // A line that is no path was cut off by a full disk, and its writer was told.
            rooted.extend(text.lines().filter_map(|line| line.parse::<StorePath>().ok()));
        }
        Ok(rooted)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock, BuilderError> {
        let file = fs_err::OpenOptions::new().create(true).append(true).open(&self.collection)?;
        flock(&file, operation).map_err(io::Error::from)?;
        Ok(Lock::of(file))
    }
}

impl Own {
    fn new(dir: &Path) -> Result<Self, BuilderError> {
        let path = dir.join(format!("{:016x}", super::random()?));
        let file = fs_err::OpenOptions::new().create_new(true).append(true).open(&path)?;
        flock(&file, FlockOperation::LockExclusive).map_err(io::Error::from)?;
        Ok(Self { file, path, rooted: BTreeSet::new() })
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
