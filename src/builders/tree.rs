//! File trees as nars: reads one from the file system, and writes one there.
//!
//! The format itself is [`formats::nar`](crate::formats::nar); here are the system calls. Every
//! one names a child relative to the descriptor of its directory and follows no symbolic link, so
//! a tree that changes underneath, or a hostile nar, cannot lead out of the tree.

mod dump;
mod remove;
mod restore;

pub use dump::dump;
pub use remove::remove;
pub use restore::restore;

use crate::formats::nar::{NarError, NarWriteError};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, statat};
use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

/// The most directories inside one another, of which each keeps one descriptor open: half of
/// the 1,024 that a process commonly may have.
pub const DEPTH_MAX: usize = 512;
/// How much of a file is read, and of a nar, at once, in bytes.
const CHUNK_BYTES: usize = 128 * 1024;
/// How much of a directory is read at once, in bytes.
const LISTING_BYTES: usize = 32 * 1024;
/// How a directory is opened that must be one itself, not a link to one.
const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a tree was not read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call failed.
    #[error("cannot {action} {path}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is a socket, a pipe or a device, which no nar can hold.
    #[error("{path} is neither a regular file nor a directory nor a symbolic link: remove it", path = .0.display())]
    Special(PathBuf),
    /// A file was replaced, or its size changed, while it was read.
    #[error("{path} changed while it was read: try again when nothing writes to it", path = .0.display())]
    Changed(PathBuf),
    /// Directories are nested deeper than [`DEPTH_MAX`].
    #[error("{path} is more than {DEPTH_MAX} directories deep", path = .0.display())]
    TooDeep(PathBuf),
    /// The tree has something that no nar can hold.
    #[error("{path} cannot be put into a nar", path = .path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: NarWriteError,
    },
    /// What takes the nar of a tree failed.
    #[error("the nar could not be passed on")]
    Sink(#[source] io::Error),
    /// What gives the nar failed.
    #[error("the nar could not be read")]
    Source(#[source] io::Error),
    /// The nar is not valid, or over a limit.
    #[error(transparent)]
    Nar(NarError),
    /// There are bytes behind the end of the nar.
    #[error("there are bytes behind the end of the nar")]
    TrailingBytes,
    /// The name for a tree is empty, `.`, `..`, or has a slash or NUL in it.
    #[error("‘{}’ cannot be the name of a file", .0.escape_debug())]
    Name(String),
}

impl TreeError {
    /// Returns a function that says which system call failed.
    fn io(action: &'static str, path: PathBuf) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { action, path, source: errno.into() }
    }
}

/// One child of a directory.
struct Child {
    name: CString,
    /// As the directory says, which may be `Unknown`.
    kind: FileType,
}

/// Lists a directory, without `.` and `..`, in no order.
fn list(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Child>> {
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut children = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            children.push(Child { name: name.to_owned(), kind: entry.file_type() });
        }
    }
    Ok(children)
}

/// Returns the kind of a file, asking the system where the directory did not say.
fn kind(dir: impl AsFd, name: &CStr, listed: FileType) -> rustix::io::Result<FileType> {
    match listed {
        FileType::Unknown => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode)),
        known => Ok(known),
    }
}

/// Appends the names of the open directories and of the file in the innermost to the root.
fn path_of<'a>(root: &Path, names: impl Iterator<Item = &'a [u8]>) -> PathBuf {
    let mut path = root.to_owned();
    path.extend(names.map(OsStr::from_bytes));
    path
}

/// Checks that a name is one part of a path.
fn check_name(name: &str) -> Result<(), TreeError> {
    if name.is_empty() || matches!(name, "." | "..") || name.contains(['/', '\0']) {
        return Err(TreeError::Name(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
