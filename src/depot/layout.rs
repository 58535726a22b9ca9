//! Where everything is in the state directory, and with which permissions.

use super::DepotError;
use crate::core::{
    change::NarRecord,
    compression::Compression,
    hash::Sha256,
    store_path::{PathHash, StoreDir},
};
use std::{
    fs::Permissions,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Directories of the coordinator alone.
pub(super) const PRIVATE: u32 = 0o700;
/// Directories that a web server may read.
pub(super) const PUBLIC: u32 = 0o755;
/// Nars: published files are hard links to them, so everyone may read them.
pub(super) const WRITTEN_ONCE: u32 = 0o444;
/// Narinfos and `nix-cache-info`.
pub(super) const PUBLIC_FILE: u32 = 0o644;
/// What the names of all files in the depot end with, and of the compressed ones in a tree.
const NAR_SUFFIX: &str = ".nar.zst";
/// What the names of those in a tree end with that are not compressed.
const PLAIN_SUFFIX: &str = ".nar";
/// How many characters of an unusual store directory its tree's name shows.
const TREE_NAME_CHARACTERS_MAX: usize = 40;

/// The directories of the state directory that this room owns.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) incoming: PathBuf,
    pub(super) depot: PathBuf,
    pub(super) public: PathBuf,
    pub(super) secrets: PathBuf,
}

impl Places {
    /// Makes the directories that are missing.
    pub(super) fn make(state_dir: &Path) -> Result<Self, DepotError> {
        fs_err::create_dir_all(state_dir)
            .map_err(|source| DepotError::NotWritable { path: state_dir.to_owned(), source })?;
        let place = |name: &str, mode| {
            let path = state_dir.join(name);
            let writable = make_dir(&path, mode).and_then(|()| {
                use rustix::fs::Access;
                Ok(rustix::fs::access(&path, Access::WRITE_OK | Access::EXEC_OK)?)
            });
            match writable {
                Ok(()) => Ok(path),
                Err(source) => Err(DepotError::NotWritable { path, source }),
            }
        };
        let places = Self {
            incoming: place("incoming", PRIVATE)?,
            depot: place("depot", PRIVATE)?,
            public: place("public", PUBLIC)?,
            secrets: place("secrets", PRIVATE)?,
        };
        check_secret(&places.secrets)?;
        Ok(places)
    }

    /// Returns the directory of the nars whose hash begins like this one: there are 1,024.
    pub(super) fn shard(&self, file_hash: &Sha256) -> PathBuf {
        self.depot.join(&file_hash.base32()[..2])
    }

    /// Returns the place of a nar's file.
    pub(super) fn nar(&self, file_hash: &Sha256) -> PathBuf {
        self.shard(file_hash).join(format!("{}{NAR_SUFFIX}", file_hash.base32()))
    }

    /// Returns the published tree of a store directory.
    pub(super) fn tree(&self, dir: &StoreDir) -> PathBuf {
        self.public.join(tree_name(dir))
    }

    /// Returns the place of a published narinfo.
    pub(super) fn narinfo(&self, dir: &StoreDir, path: PathHash) -> PathBuf {
        self.tree(dir).join(format!("{}.narinfo", path.base32()))
    }
}

/// Returns the name of a nar's file in the published tree, from which web servers tell what it is.
pub(super) fn tree_file_name(nar: &NarRecord) -> String {
    let suffix = match nar.compression() {
        Compression::Zstd => NAR_SUFFIX,
        Compression::None => PLAIN_SUFFIX,
    };
    format!("{}{suffix}", nar.file_hash.base32())
}

/// Returns the hash in the name of a nar's file in the depot; nothing when it is another name.
pub(super) fn nar_file_hash(name: &str) -> Option<Sha256> {
    Sha256::parse(name.strip_suffix(NAR_SUFFIX)?)
}

/// Returns the name of the tree of a store directory: its last characters, made safe, and a hash
/// that keeps it apart from others; the two real ones have their plain names.
fn tree_name(dir: &StoreDir) -> String {
    match dir.as_str() {
        "/nix/store" => return "nix-store".to_owned(),
        "/gnu/store" => return "gnu-store".to_owned(),
        _ => {}
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let plain: String = dir.as_str().chars().map(plain).collect();
    let end = &plain[plain.len().saturating_sub(TREE_NAME_CHARACTERS_MAX)..];
    let hash = Sha256::of(dir.as_str().as_bytes()).base32();
    format!("{}-{}", end.trim_start_matches('-'), &hash[..10])
}

/// In which way the paths of a store directory are signed and described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Nix,
    Guix,
}

impl Dialect {
    /// Returns the dialect of a store directory: Nix's, except for Guix's own.
    pub(super) fn of(dir: &StoreDir) -> Self {
        if *dir == StoreDir::guix() { Self::Guix } else { Self::Nix }
    }
}

/// Makes a directory with these permissions; one that is there keeps its own.
pub(super) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match fs_err::create_dir(path) {
        // The umask has its say in the mode of a new directory, so the mode is set afterwards.
        Ok(()) => set_mode(path, mode),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets the permissions of a file or directory.
pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs_err::set_permissions(path, Permissions::from_mode(mode))
}

/// Sets the permissions of an open file.
pub(super) fn set_mode_of(file: &fs_err::File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
}

/// Makes a file look as if it was written now.
pub(super) fn touch(path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let same = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: same, last_modification: now };
    Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
}

/// Refuses a secret that other users can get at.
pub(super) fn check_secret(path: &Path) -> Result<(), DepotError> {
    const OTHERS: u32 = 0o077;
    let mode = fs_err::metadata(path)?.permissions().mode() & 0o777;
    match mode & OTHERS {
        0 => Ok(()),
        _ => Err(DepotError::Exposed { path: path.to_owned(), mode }),
    }
}

/// Tells whether two files have the same content; not, when the second is missing.
pub(super) fn have_same_bytes(first: &Path, second: &Path) -> io::Result<bool> {
    let mut there = match fs_err::File::open(second) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut here = fs_err::File::open(first)?;
    if here.metadata()?.len() != there.metadata()?.len() {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; super::BUFFER_BYTES], vec![0; super::BUFFER_BYTES]);
    loop {
        let len = here.read(&mut ours)?;
        if len == 0 {
            return Ok(true);
        }
        match there.read_exact(&mut theirs[..len]) {
            Ok(()) if ours[..len] == theirs[..len] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Removes a file. Returns whether it was there.
pub(super) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs_err::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_directory_has_a_tree_of_its_own_with_a_safe_name() {
        let long = format!("/{}/store", "x".repeat(200));
        let names: Vec<String> =
            ["/nix/store", "/gnu/store", "/a/b/store", "/a/b-store", "/tmp/../x", "/é", &long]
                .iter()
                .filter_map(|dir| dir.parse().ok())
                .map(|dir| tree_name(&dir))
                .collect();
        assert_eq!(names.len(), 5);
        assert_eq!(names[..2], ["nix-store", "gnu-store"]);
        for (place, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name}");
            assert!(!names[..place].contains(name) && name.len() < 60);
        }
    }
}
