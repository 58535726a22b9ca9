//! What a builder left behind: made canonical, checked against its promises, and described.

use super::{BuildOrder, BuilderError, HashingSink, tree, workplace::words};
use crate::{
    core::{
        derivation::{FixedOutput, Output},
        hash::Sha256,
        outcome::{BuildFailure, Outcome},
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
    },
    formats::references::ReferenceScanner,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::Permissions,
    io::{self, Read as _, Write},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The time that every file of a store has, in seconds since the epoch.
const MODIFIED_S: i64 = 1;

/// Examines all outputs of a build that exited with 0, and returns what is to be recorded of
/// them, or how the build failed after all.
pub(super) fn examine(
    order: &BuildOrder<'_>,
    inputs: &BTreeSet<StorePath>,
    physical: impl Fn(&StorePath) -> PathBuf,
) -> Result<Result<Vec<PathInfo>, Outcome>, BuilderError> {
    let derivation = order.derivation;
    let own = derivation.outputs.iter().map(|output| &output.path);
    let candidates: BTreeMap<PathHash, &StorePath> =
        inputs.iter().chain(own).map(|path| (path.hash(), path)).collect();
    let mut infos = Vec::new();
    for output in &derivation.outputs {
        let place = physical(&output.path);
        let info = match describe(order, output, &place, &candidates)? {
            Ok(info) => info,
            Err(failure) => return Ok(Err(Outcome::Failed(failure))),
        };
        infos.push(info);
    }
    Ok(Ok(infos))
}

/// Examines one output.
fn describe(
    order: &BuildOrder<'_>,
    output: &Output,
    place: &Path,
    candidates: &BTreeMap<PathHash, &StorePath>,
) -> Result<Result<PathInfo, BuildFailure>, BuilderError> {
    let rejected = |what: String| {
        Ok(Err(BuildFailure::OutputRejected(format!("output {}: {what}", output.name))))
    };
    match fs_err::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err(BuildFailure::NoOutput(output.name.clone())));
        }
        result => result.map(drop)?,
    }
    if let Err(what) = canonicalise(place)? {
        return rejected(what);
    }
    let mut scan = Scan {
        nar: HashingSink::default(),
        scanner: ReferenceScanner::new(candidates.keys().copied()),
    };
    tree::dump(place, &mut scan).map_err(|source| BuilderError::Files(io::Error::other(source)))?;
    let found = scan.scanner.take_found();
    let mut references: Vec<StorePath> =
        found.iter().filter_map(|hash| candidates.get(hash)).map(|path| (*path).clone()).collect();
    references.sort();
    let (nar_hash, nar_bytes) = scan.nar.finish();
    let fixed = order.derivation.fixed_output();
    if let Some(fixed) = &fixed {
        if let Some(reference) = references.first() {
            return rejected(format!("a fixed output may not refer to {reference}"));
        }
        match content_hash(fixed, place, nar_hash)? {
            None => return rejected("a flat hash needs a file that is not executable".to_owned()),
            Some(actual) if actual.hex() != fixed.hash_hex => {
                return Ok(Err(BuildFailure::HashMismatch {
                    expected: shown(&fixed.hash_hex),
                    actual: actual.to_string(),
                }));
            }
            Some(_) => {}
        }
    }
    if let Some(reference) = forbidden(order, &references) {
        return rejected(format!("it may not refer to {reference}"));
    }
    Ok(Ok(PathInfo {
        path: output.path.clone(),
        nar_hash,
        nar_bytes,
        references,
        deriver: Some(order.drv_path.clone()),
        signatures: Vec::new(),
        content_address: fixed.map(|fixed| {
            format!("fixed:{}{}", if fixed.recursive { "r:" } else { "" }, shown(&fixed.hash_hex))
        }),
    }))
}

/// Returns the hash that a fixed output promises, of what is there; nothing when a flat hash has
/// no plain file to be of.
fn content_hash(
    fixed: &FixedOutput,
    place: &Path,
    nar_hash: Sha256,
) -> Result<Option<Sha256>, BuilderError> {
    if fixed.recursive {
        return Ok(Some(nar_hash));
    }
    let facts = fs_err::symlink_metadata(place)?;
    if !facts.is_file() || facts.mode() & 0o111 != 0 {
        return Ok(None);
    }
    let mut sink = HashingSink::default();
    io::copy(&mut fs_err::File::open(place)?.take(facts.len()), &mut sink)?;
    Ok(Some(sink.finish().0))
}

/// Returns a reference that the derivation forbids for its outputs.
///
/// `allowedReferences` and `disallowedReferences` hold store paths and names of outputs.
fn forbidden<'a>(order: &BuildOrder<'_>, references: &'a [StorePath]) -> Option<&'a StorePath> {
    let listed = |variable: &[u8]| -> Option<BTreeSet<Vec<u8>>> {
        let list = order.derivation.env(variable)?;
        let resolve = |word: &[u8]| {
            let mut outputs = order.derivation.outputs.iter();
            let output = outputs.find(|output| output.name.as_bytes() == word);
            output.map_or(word.to_vec(), |output| output.path.to_string().into_bytes())
        };
        Some(words(list).map(resolve).collect())
    };
    let (allowed, disallowed) = (listed(b"allowedReferences"), listed(b"disallowedReferences"));
    references.iter().find(|path| {
        let path = path.to_string().into_bytes();
        allowed.as_ref().is_some_and(|list| !list.contains(&path))
            || disallowed.as_ref().is_some_and(|list| list.contains(&path))
    })
}

/// Returns a hexadecimal hash as people see hashes.
fn shown(hash_hex: &str) -> String {
    Sha256::parse(hash_hex).map_or_else(|| hash_hex.to_owned(), |hash| hash.to_string())
}

/// Hashes a nar and looks for references in it.
struct Scan {
    nar: HashingSink,
    scanner: ReferenceScanner,
}

impl Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.scanner.feed(bytes);
        self.nar.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes from a tree what a nar does not have: times, owners' permissions, set-id bits.
///
/// Returns the words for a file of a kind that no store holds (a socket, a device). Source: Nix
/// `src/libstore/local-store.cc`, `canonicaliseTimestampAndPermissions`.
pub(super) fn canonicalise(root: &Path) -> io::Result<Result<(), String>> {
    // Directories come to the end of the list before what is in them: entering a directory needs
    // permissions that its builder may have taken away, and changes its time.
    let mut directories = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let facts = fs_err::symlink_metadata(&path)?;
        let kind = facts.file_type();
        if kind.is_dir() {
            fs_err::set_permissions(&path, Permissions::from_mode(0o755))?;
            for entry in fs_err::read_dir(&path)? {
                open.push(entry?.path());
            }
            directories.push(path);
        } else if kind.is_file() {
            let executable = facts.mode() & 0o100 != 0;
            let mode = if executable { 0o555 } else { 0o444 };
            fs_err::set_permissions(&path, Permissions::from_mode(mode))?;
            set_time(&path)?;
        } else if kind.is_symlink() {
            set_time(&path)?;
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).display();
            return Ok(Err(format!("‘{name}’ is no file, directory or symbolic link")));
        }
    }
    for path in directories.iter().rev() {
        fs_err::set_permissions(path, Permissions::from_mode(0o555))?;
        set_time(path)?;
    }
    Ok(Ok(()))
}

/// Sets the time of a file, or of a symbolic link itself.
fn set_time(path: &Path) -> io::Result<()> {
    let time = Timespec { tv_sec: MODIFIED_S, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Removes a tree, also one whose directories are read-only; nothing when there is none.
pub(super) fn remove_tree(root: &Path) -> Result<(), BuilderError> {
    match fs_err::symlink_metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map(drop)?,
    }
    let (Some(parent), Some(name)) = (root.parent(), root.file_name().and_then(OsStr::to_str))
    else {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename).into());
    };
    Ok(tree::remove(parent, name)?)
}
