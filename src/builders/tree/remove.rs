//! Removes a file tree.

use super::{Child, DEPTH_MAX, OPEN_DIRECTORY, TreeError, check_name, kind, list, path_of};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fchmod, openat, unlinkat};
use std::{
    ffi::CString,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Removes the tree `parent_dir/name`, read-only directories included.
///
/// # Errors
/// A [`TreeError`]; part of the tree may be gone then.
pub fn remove(parent_dir: &Path, name: &str) -> Result<(), TreeError> {
    check_name(name)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(CWD, parent_dir, flags, Mode::empty())
        .map_err(TreeError::io("open the directory", parent_dir.to_owned()))?;
    let mut removal = Removal { parent, parent_dir, open: Vec::new() };
    let name = CString::new(name).map_err(|_| TreeError::Name(name.to_owned()))?;
    removal.child(Child { name, kind: FileType::Unknown })?;
    while let Some(directory) = removal.open.last_mut() {
        match directory.children.pop() {
            Some(child) => removal.child(child)?,
            None => removal.leave()?,
        }
    }
    Ok(())
}

/// A tree being removed.
struct Removal<'a> {
    parent: OwnedFd,
    parent_dir: &'a Path,
    /// The directories being emptied, outermost first.
    open: Vec<Directory>,
}

/// A directory being emptied.
struct Directory {
    descriptor: OwnedFd,
    name: CString,
    children: Vec<Child>,
}

impl Removal<'_> {
    /// Removes a child of the innermost directory, or enters it when it is a directory.
    fn child(&mut self, child: Child) -> Result<(), TreeError> {
        let kind = kind(self.dir(), &child.name, child.kind)
            .map_err(|errno| TreeError::io("look at", self.path(&child))(errno))?;
        if kind != FileType::Directory {
            return unlinkat(self.dir(), &child.name, AtFlags::empty())
                .map_err(|errno| TreeError::io("remove", self.path(&child))(errno));
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(TreeError::TooDeep(self.path(&child)));
        }
        let opened =
            openat(self.dir(), &child.name, OPEN_DIRECTORY, Mode::empty()).and_then(|descriptor| {
                fchmod(&descriptor, Mode::RWXU)?;
                let children = list(descriptor.as_fd())?;
                Ok((descriptor, children))
            });
        let (descriptor, children) = opened
            .map_err(|errno| TreeError::io("empty the directory", self.path(&child))(errno))?;
        self.open.push(Directory { descriptor, name: child.name, children });
        Ok(())
    }

    /// Removes the innermost directory, which is empty by now.
    fn leave(&mut self) -> Result<(), TreeError> {
        let Some(Directory { name, .. }) = self.open.pop() else {
            return Ok(());
        };
        unlinkat(self.dir(), &name, AtFlags::REMOVEDIR).map_err(|errno| {
            let child = Child { name, kind: FileType::Directory };
            TreeError::io("remove the directory", self.path(&child))(errno)
        })
    }

    /// Returns the innermost directory.
    fn dir(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.parent.as_fd(), |directory| directory.descriptor.as_fd())
    }

    /// Returns the path of a child of the innermost directory.
    fn path(&self, child: &Child) -> PathBuf {
        let names = self.open.iter().map(|directory| directory.name.to_bytes());
        path_of(self.parent_dir, names.chain([child.name.to_bytes()]))
    }
}
