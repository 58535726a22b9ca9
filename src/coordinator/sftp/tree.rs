//! What people may read: `public` and `logs` of the state directory, and nothing that only looks as
//! if it were there.
//!
//! A path is taken apart here, so `..` ends at the root; what is left is opened by the kernel
//! beneath one of the two folders and through no link (`openat2(2)`), so that not even a link that
//! somebody puts there leads anywhere. Names that begin with a dot are files that are being written.

use crate::formats::sftp::{
    PATH_BYTES_MAX, READ_BYTES_MAX,
    answer::{Attributes, Named},
};
use jiff::Timestamp;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat},
    io::pread,
};
use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// The folders, by the names that they have here and in the state directory.
const FOLDERS: [&str; 2] = ["public", "logs"];
/// How files are shown, whoever may write them on the disk.
const FILE_MODE: u32 = 0o100_444;
/// How folders are shown.
const FOLDER_MODE: u32 = 0o040_555;

/// The two folders.
#[derive(Debug)]
pub(super) struct Tree {
    folders: [OwnedFd; FOLDERS.len()],
}

/// Where a path leads.
enum Place<'a> {
    Root,
    /// Below one of the folders; no part is empty, a dot or two.
    In(&'a OwnedFd, Vec<u8>),
}

impl Tree {
    /// What is shown of the root.
    pub(super) const FOLDER: Attributes = Attributes { bytes: 0, mode: FOLDER_MODE, changed_s: 0 };

    /// Opens the folders of a state directory; one that is missing is made by the room that fills
    /// it, before the door opens.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |name| rustix::fs::open(state_dir.join(name), flags, Mode::empty());
        let [public, logs] = FOLDERS;
        Ok(Self { folders: [open(public)?, open(logs)?] })
    }

    /// Returns a path without dots and empty parts.
    pub(super) fn real_path(path: &[u8]) -> io::Result<Vec<u8>> {
        let parts = parts(path)?;
        Ok([b"/", parts.join(&b"/"[..]).as_slice()].concat())
    }

    pub(super) fn open_file(&self, path: &[u8]) -> io::Result<OpenFile> {
        let Place::In(folder, below) = self.place(path)? else { return Err(not_a_file()) };
        // Not waiting: whatever else has this name is closed again at once.
        let file = beneath(folder, &below, OFlags::RDONLY | OFlags::NONBLOCK)?;
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile => Ok(OpenFile(file)),
            _ => Err(not_a_file()),
        }
    }

    pub(super) fn list(&self, path: &[u8]) -> io::Result<Listing> {
        match self.place(path)? {
            Place::Root => Ok(Listing::Root { given: false }),
            Place::In(folder, below) => {
                let folder = beneath(folder, &below, OFlags::RDONLY | OFlags::DIRECTORY)?;
                Ok(Listing::Folder { names: Dir::read_from(&folder)?, folder })
            }
        }
    }

    pub(super) fn stat(&self, path: &[u8]) -> io::Result<Attributes> {
        match self.place(path)? {
            Place::Root => Ok(Self::FOLDER),
            Place::In(folder, below) => {
                let file = beneath(folder, &below, OFlags::PATH)?;
                attributes(&fstat(&file)?).ok_or_else(not_a_file)
            }
        }
    }

    fn place(&self, path: &[u8]) -> io::Result<Place<'_>> {
        let parts = parts(path)?;
        let Some((first, rest)) = parts.split_first() else { return Ok(Place::Root) };
        let known = FOLDERS.iter().zip(&self.folders);
        let folder = known.into_iter().find(|(name, _)| name.as_bytes() == *first);
        let Some((_, folder)) = folder else { return Err(ErrorKind::NotFound.into()) };
        let below = if rest.is_empty() { b".".to_vec() } else { rest.join(&b"/"[..]) };
        Ok(Place::In(folder, below))
    }
}

/// Takes a path apart. It begins at the root, whatever it begins with.
fn parts(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part if part.starts_with(b".") => return Err(ErrorKind::NotFound.into()),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn beneath(folder: &OwnedFd, below: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(folder, below, flags, Mode::empty(), resolve).map_err(|error| match error {
        // A link.
        rustix::io::Errno::LOOP => not_a_file(),
        other => other.into(),
    })
}

fn not_a_file() -> io::Error {
    ErrorKind::PermissionDenied.into()
}

/// Returns what is shown of a file or folder; `None` of anything else.
fn attributes(stat: &Stat) -> Option<Attributes> {
    let mode = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FILE_MODE,
        FileType::Directory => FOLDER_MODE,
        _ => return None,
    };
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let changed_s = u32::try_from(stat.st_mtime).unwrap_or(0);
    Some(Attributes { bytes, mode, changed_s })
}

/// A file that is open for reading.
#[derive(Debug)]
pub(super) struct OpenFile(OwnedFd);

impl OpenFile {
    /// Returns up to so many bytes from a place, at most [`READ_BYTES_MAX`]; none at the end.
    pub(super) fn read(&self, offset: u64, bytes: u32) -> io::Result<Vec<u8>> {
        // No file is so long; the kernel would call the number negative.
        if i64::try_from(offset).is_err() {
            return Ok(Vec::new());
        }
        let room = usize::try_from(bytes.min(READ_BYTES_MAX)).unwrap_or(0);
        let mut buffer = vec![0; room];
        let length = pread(&self.0, &mut buffer, offset)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    pub(super) fn attributes(&self) -> io::Result<Attributes> {
        attributes(&fstat(&self.0)?).ok_or_else(not_a_file)
    }
}

/// A folder that is being listed.
#[derive(Debug)]
pub(super) enum Listing {
    /// That of the two folders.
    Root {
        /// Whether they were listed.
        given: bool,
    },
    /// One on the disk.
    Folder {
        /// The folder.
        folder: OwnedFd,
        /// Its names that were not listed yet.
        names: Dir,
    },
}

impl Listing {
    /// Returns the next names, at most so many; none at the end.
    pub(super) fn next(&mut self, most: usize) -> io::Result<Vec<Named>> {
        match self {
            Self::Root { given: true } => Ok(Vec::new()),
            Self::Root { given } => {
                *given = true;
                let named = |name: &&str| named(name.as_bytes(), Tree::FOLDER);
                Ok(FOLDERS.iter().map(named).collect())
            }
            Self::Folder { folder, names } => next_of(folder, names, most),
        }
    }

    pub(super) fn attributes(&self) -> io::Result<Attributes> {
        match self {
            Self::Root { .. } => Ok(Tree::FOLDER),
            Self::Folder { folder, .. } => attributes(&fstat(folder)?).ok_or_else(not_a_file),
        }
    }
}

fn next_of(folder: impl AsFd, names: &mut Dir, most: usize) -> io::Result<Vec<Named>> {
    let mut found = Vec::new();
    while found.len() < most
        && let Some(entry) = names.read()
    {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                found.extend(attributes(&stat).map(|known| named(name.to_bytes(), known)));
            }
            // Removed since.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Returns a name as `ls -l` would show it.
fn named(name: &[u8], attributes: Attributes) -> Named {
    let kind = if attributes.mode == FOLDER_MODE { "dr-xr-xr-x" } else { "-r--r--r--" };
    let time = Timestamp::from_second(attributes.changed_s.into()).unwrap_or_default();
    let time = time.strftime("%Y-%m-%d %H:%M");
    let bytes = attributes.bytes;
    let mut long = format!("{kind} 1 steading steading {bytes:>12} {time} ").into_bytes();
    long.extend_from_slice(name);
    Named { name: name.to_vec(), long, attributes }
}
