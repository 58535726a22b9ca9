//! Reads a file tree and makes its nar.

use super::{CHUNK_BYTES, Child, DEPTH_MAX, OPEN_DIRECTORY, TreeError, kind, list, path_of};
use crate::formats::nar::{NarWriteError, NarWriter, Regular};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::{Errno, read, retry_on_intr};
use std::{
    ffi::{CStr, CString},
    io::{BufWriter, Write},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

/// Writes the nar of the tree at `path` in one pass.
///
/// Memory does not grow with files, only with the number of names in the directories that are
/// open at the same time. A file is executable when its owner may execute it.
///
/// # Errors
/// A [`TreeError`] that names the file; what was written so far is not a whole nar then.
pub fn dump(path: &Path, sink: &mut impl Write) -> Result<(), TreeError> {
    let root = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| TreeError::Name(path.display().to_string()))?;
    let mut dump = Dump {
        root: path,
        nar: NarWriter::new(BufWriter::with_capacity(CHUNK_BYTES / 2, sink)),
        open: Vec::new(),
        buffer: vec![0; CHUNK_BYTES],
    };
    dump.put(NarWriter::begin)?;
    dump.node(&Child { name: root, kind: FileType::Unknown })?;
    while let Some(directory) = dump.open.last_mut() {
        if let Some(child) = directory.children.next() {
            directory.current.clone_from(&child.name);
            dump.put(|nar| nar.entry(child.name.to_bytes()))?;
            dump.node(&child)?;
        } else {
            dump.put(NarWriter::directory_end)?;
            dump.open.pop();
        }
    }
    let path = dump.path();
    let mut sink = dump.nar.finish().map_err(|error| write_error(error, path))?;
    sink.flush().map_err(TreeError::Sink)
}

/// A tree being read.
struct Dump<'a, W: Write> {
    root: &'a Path,
    nar: NarWriter<BufWriter<W>>,
    /// The directories being read, outermost first.
    open: Vec<Directory>,
    buffer: Vec<u8>,
}

/// A directory being read.
struct Directory {
    descriptor: OwnedFd,
    children: std::vec::IntoIter<Child>,
    /// The name of the child being read.
    current: CString,
}

impl<W: Write> Dump<'_, W> {
    /// Writes a node: a file or link whole, of a directory the beginning.
    fn node(&mut self, child: &Child) -> Result<(), TreeError> {
        let kind = kind(self.dir(), &child.name, child.kind)
            .map_err(|errno| TreeError::io("look at", self.path())(errno))?;
        match kind {
            FileType::RegularFile => self.regular(&child.name),
            FileType::Symlink => {
                let target = readlinkat(self.dir(), &child.name, Vec::new())
                    .map_err(|errno| TreeError::io("read the link", self.path())(errno))?;
                self.put(|nar| nar.symlink(target.to_bytes()))
            }
            FileType::Directory => self.directory(&child.name),
            _ => Err(TreeError::Special(self.path())),
        }
    }

    /// Opens a directory and sorts its children.
    fn directory(&mut self, name: &CStr) -> Result<(), TreeError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(TreeError::TooDeep(self.path()));
        }
        let descriptor = self.open_child(name, OPEN_DIRECTORY)?;
        let mut children = list(descriptor.as_fd())
            .map_err(|errno| TreeError::io("read the directory", self.path())(errno))?;
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.put(NarWriter::directory_begin)?;
        let children = children.into_iter();
        self.open.push(Directory { descriptor, children, current: CString::default() });
        Ok(())
    }

    /// Writes a regular file.
    fn regular(&mut self, name: &CStr) -> Result<(), TreeError> {
        // Should a pipe have taken the file's place, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = self.open_child(name, flags)?;
        let stat = fstat(&file).map_err(|errno| TreeError::io("look at", self.path())(errno))?;
        let size = u64::try_from(stat.st_size).map_err(|_| TreeError::Changed(self.path()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(TreeError::Changed(self.path()));
        }
        let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
        self.put(|nar| nar.regular(Regular { executable, size }))?;
        self.content(&file, size)
    }

    /// Writes a file's content, and makes sure that it has the size it had.
    fn content(&mut self, file: &OwnedFd, size: u64) -> Result<(), TreeError> {
        let mut left = size;
        loop {
            let len = retry_on_intr(|| read(file, self.buffer.as_mut_slice()))
                .map_err(|errno| TreeError::io("read", self.path())(errno))?;
            if len == 0 {
                break;
            }
            left = u64::try_from(len)
                .ok()
                .and_then(|len| left.checked_sub(len))
                .ok_or_else(|| TreeError::Changed(self.path()))?;
            let came = self.buffer.get(..len).unwrap_or_default();
            if let Err(error) = self.nar.content(came) {
                return Err(write_error(error, self.path()));
            }
        }
        if left == 0 { Ok(()) } else { Err(TreeError::Changed(self.path())) }
    }

    /// Opens a child of the innermost directory, as what it was found to be.
    fn open_child(&self, name: &CStr, flags: OFlags) -> Result<OwnedFd, TreeError> {
        openat(self.dir(), name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => TreeError::Changed(self.path()),
            errno => TreeError::io("open", self.path())(errno),
        })
    }

    /// Returns the innermost directory.
    fn dir(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(CWD, |directory| directory.descriptor.as_fd())
    }

    /// Writes a part of the nar.
    fn put(
        &mut self,
        part: impl FnOnce(&mut NarWriter<BufWriter<W>>) -> Result<(), NarWriteError>,
    ) -> Result<(), TreeError> {
        part(&mut self.nar).map_err(|error| write_error(error, self.path()))
    }

    /// Returns the path of what is being read.
    fn path(&self) -> PathBuf {
        path_of(self.root, self.open.iter().map(|directory| directory.current.to_bytes()))
    }
}

/// Tells a failure of the sink from a file that no nar can hold.
fn write_error(error: NarWriteError, path: PathBuf) -> TreeError {
    match error {
        NarWriteError::Write(source) => TreeError::Sink(source),
        source => TreeError::Unfit { path, source },
    }
}
