//! Writes the file tree of a nar.

use super::{CHUNK_BYTES, DEPTH_MAX, OPEN_DIRECTORY, TreeError, check_name, path_of, remove};
use crate::formats::nar::{NarError, NarLimits, NarReader, NarSink, Regular};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, mkdirat,
    openat, symlinkat, utimensat,
};
use rustix::io::{Errno, retry_on_intr, write};
use std::{
    io::{ErrorKind, Read},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

/// The times that stores give their files: one second after 1970 began.
const STORE_TIMES: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};
/// The mode of directories and executable files, 0555.
const EXECUTABLE: Mode = Mode::from_raw_mode(0o555);
/// The mode of other files, 0444.
const PLAIN: Mode = Mode::from_raw_mode(0o444);

/// Writes the tree of a nar as `parent_dir/name`, which must not exist yet.
///
/// `nar` must end where the nar does. Modes are 0444 and 0555, as in a store, and files are dated
/// one second after 1970 began; nothing is flushed to the disk. [`NarLimits::depth_max`] is lowered to
/// [`DEPTH_MAX`]. Nothing verifies the tree: give it its final name when its hash matched. To
/// move a directory out of `parent_dir`, an owner other than root must first make it writable.
///
/// # Errors
/// A [`TreeError`]; what was written by then is removed as far as possible.
pub fn restore(
    nar: &mut impl Read,
    parent_dir: &Path,
    name: &str,
    limits: NarLimits,
) -> Result<(), TreeError> {
    check_name(name)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(CWD, parent_dir, flags, Mode::empty())
        .map_err(TreeError::io("open the directory", parent_dir.to_owned()))?;
    let mut restore = Restore {
        parent,
        parent_dir,
        open: Vec::new(),
        name: name.as_bytes().to_vec(),
        file: None,
        root: Root::Missing,
    };
    let depth_max = limits.depth_max.min(DEPTH_MAX);
    let read = restore.read(nar, NarLimits { depth_max, ..limits });
    if read.is_err() && matches!(restore.root, Root::Made) {
        // The first error is the one that matters; what cannot be removed stays behind.
        drop(restore);
        drop(remove(parent_dir, name));
    }
    read
}

/// A tree being written.
struct Restore<'a> {
    parent: OwnedFd,
    parent_dir: &'a Path,
    /// The directories being written, outermost first.
    open: Vec<Directory>,
    /// The name of the next node.
    name: Vec<u8>,
    file: Option<File>,
    root: Root,
}

/// Whether the root of the tree is ours to remove.
enum Root {
    Missing,
    Made,
}

/// A directory being written.
struct Directory {
    descriptor: OwnedFd,
    name: Vec<u8>,
}

/// A file being written.
struct File {
    descriptor: OwnedFd,
    mode: Mode,
}

impl Restore<'_> {
    /// Reads the nar to its end.
    fn read(&mut self, nar: &mut impl Read, limits: NarLimits) -> Result<(), TreeError> {
        let mut reader = NarReader::new(limits);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let len = match nar.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(TreeError::Source(error)),
            };
            let came = buffer.get(..len).unwrap_or_default();
            if reader.feed(came, self).map_err(own_error)? < came.len() {
                return Err(TreeError::TrailingBytes);
            }
        }
        reader.finish().map_err(own_error)
    }

    /// Returns the directory that the next node goes into.
    fn dir(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.parent.as_fd(), |directory| directory.descriptor.as_fd())
    }

    /// Returns the error of a system call on the current node.
    fn error(&self, action: &'static str) -> impl FnOnce(Errno) -> NarError {
        let names = self.open.iter().map(|directory| directory.name.as_slice());
        let path = path_of(self.parent_dir, names.chain([self.name.as_slice()]));
        move |errno| NarError::Sink(Box::new(TreeError::io(action, path)(errno)))
    }

    /// Gives a finished file or directory its mode and time.
    fn seal(&self, descriptor: &OwnedFd, mode: Mode) -> Result<(), NarError> {
        fchmod(descriptor, mode)
            .and_then(|()| futimens(descriptor, &STORE_TIMES))
            .map_err(|errno| self.error("set mode and time of")(errno))
    }
}

impl NarSink for Restore<'_> {
    fn directory_begin(&mut self) -> Result<(), NarError> {
        mkdirat(self.dir(), self.name.as_slice(), Mode::RWXU)
            .map_err(|errno| self.error("make the directory")(errno))?;
        self.root = Root::Made;
        let descriptor = openat(self.dir(), self.name.as_slice(), OPEN_DIRECTORY, Mode::empty())
            .map_err(|errno| self.error("open the directory")(errno))?;
        self.open.push(Directory { descriptor, name: std::mem::take(&mut self.name) });
        Ok(())
    }

    fn entry(&mut self, name: &[u8]) -> Result<(), NarError> {
        self.name.clear();
        self.name.extend_from_slice(name);
        Ok(())
    }

    fn directory_end(&mut self) -> Result<(), NarError> {
        self.name.clear();
        let Some(directory) = self.open.pop() else {
            return Ok(());
        };
        self.name = directory.name;
        self.seal(&directory.descriptor, EXECUTABLE)
    }

    fn regular(&mut self, head: Regular) -> Result<(), NarError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = openat(self.dir(), self.name.as_slice(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| self.error("make the file")(errno))?;
        self.root = Root::Made;
        self.file =
            Some(File { descriptor, mode: if head.executable { EXECUTABLE } else { PLAIN } });
        Ok(())
    }

    fn content(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        while !bytes.is_empty() {
            let len = retry_on_intr(|| write(&file.descriptor, bytes))
                .map_err(|errno| self.error("write")(errno))?;
            bytes = bytes.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    fn regular_end(&mut self) -> Result<(), NarError> {
        match self.file.take() {
            Some(file) => self.seal(&file.descriptor, file.mode),
            None => Ok(()),
        }
    }

    fn symlink(&mut self, target: &[u8]) -> Result<(), NarError> {
        symlinkat(target, self.dir(), self.name.as_slice())
            .map_err(|errno| self.error("make the symbolic link")(errno))?;
        self.root = Root::Made;
        utimensat(self.dir(), self.name.as_slice(), &STORE_TIMES, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.error("set the time of")(errno))
    }
}

/// Takes an error of our own out of the nar reader's.
fn own_error(error: NarError) -> TreeError {
    match error {
        NarError::Sink(error) => match error.downcast::<TreeError>() {
            Ok(own) => *own,
            Err(other) => TreeError::Nar(NarError::Sink(other)),
        },
        refusal => TreeError::Nar(refusal),
    }
}
