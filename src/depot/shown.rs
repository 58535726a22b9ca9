//! What the published trees show, compared with what they should.

use super::{
    Depot, DepotError, WINDOW_LOG_MAX,
    layout::{self, Dialect, tree_file_name},
};
use crate::{
    core::{
        change::{NarOrigin, NarRecord},
        compression::Compression,
        hash::{Sha256, Sha256Hasher},
        path_info::PathInfo,
        store_path::{PathHash, StoreDir},
        time::Timestamp,
    },
    formats::narinfo::{self, NARINFO_BYTES_MAX, NarInfo},
};
use std::{
    io::{self, Read as _, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// What the names of narinfos end with.
const NARINFO_SUFFIX: &str = ".narinfo";
/// What the names of files in a tree end with, each behind the hash of a file of the depot.
const TREE_SUFFIXES: [&str; 3] = [".nar.zst", ".nar.gz", ".nar"];

/// A published tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The store directory whose paths it shows.
    pub store_dir: StoreDir,
    dir: PathBuf,
}

/// What a narinfo of a tree says that no row speaks of.
#[derive(Debug)]
pub enum Shown {
    /// We signed it, and the nar is there as it says: the row can be made of it.
    Ours(Box<NarRecord>),
    /// It is of no use, for this reason.
    Useless(String),
}

/// A file of a tree whose name says which file of the depot it was made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Surplus {
    /// The hash in its name; `None` when its name is none of ours.
    pub file_hash: Option<Sha256>,
    /// Where it is.
    pub place: PathBuf,
}

impl Depot {
    /// Returns the published trees.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn trees(&self) -> Result<Vec<Tree>, DepotError> {
        let mut trees = Vec::new();
        let entries = match fs_err::read_dir(&self.0.places.public) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(trees),
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            let dir = entry?.path();
            let about = match fs_err::read_to_string(dir.join("nix-cache-info")) {
                Ok(about) => about,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            let store_dir = about.lines().find_map(|line| line.strip_prefix("StoreDir: "));
            if let Some(store_dir) = store_dir.and_then(|text| text.parse().ok()) {
                trees.push(Tree { store_dir, dir });
            }
        }
        trees.sort_by(|one, other| one.dir.cmp(&other.dir));
        Ok(trees)
    }

    /// Hands the hash of every path that a tree shows to `each`.
    ///
    /// # Errors
    /// What `each` returns, and when a directory cannot be read.
    pub fn each_shown<E: From<DepotError>>(
        &self,
        tree: &Tree,
        mut each: impl FnMut(PathHash) -> Result<(), E>,
    ) -> Result<(), E> {
        let io = |error: io::Error| E::from(DepotError::from(error));
        for entry in fs_err::read_dir(&tree.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(NARINFO_SUFFIX));
            if let Some(path) = digits.and_then(|digits| PathHash::parse(digits.as_bytes())) {
                each(path)?;
            }
        }
        Ok(())
    }

    /// Hands every file of a tree that nars lie in to `each`, and what else lies there that was
    /// there before `before`.
    ///
    /// # Errors
    /// What `each` returns, and when a directory cannot be read.
    pub fn each_tree_file<E: From<DepotError>>(
        &self,
        tree: &Tree,
        before: Timestamp,
        mut each: impl FnMut(Surplus) -> Result<(), E>,
    ) -> Result<(), E> {
        let io = |error: io::Error| E::from(DepotError::from(error));
        let entries = match fs_err::read_dir(tree.dir.join("nar")) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(io(error)),
        };
        for entry in entries {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let hash = name.to_str().and_then(|name| {
                TREE_SUFFIXES.iter().find_map(|suffix| Sha256::parse(name.strip_suffix(suffix)?))
            });
            // The name, not the file, counts: a link is as old as what it leads to.
            let Ok(found) = entry.metadata() else { continue };
            if found.ctime().saturating_mul(1_000) < before.as_ms() {
                each(Surplus { file_hash: hash, place: entry.path() })?;
            }
        }
        Ok(())
    }

    /// Removes a file of a tree that [`Depot::each_tree_file`] has found.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_tree_file(&self, surplus: &Surplus) -> Result<(), DepotError> {
        layout::remove_if_there(&surplus.place)?;
        Ok(())
    }

    /// Tells whether a tree shows a nar as it should: with its narinfo, and with its file.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn shows_rightly(&self, record: &NarRecord) -> Result<bool, DepotError> {
        let path = &record.info.path;
        let place = self.0.places.narinfo(path.dir(), path.hash());
        let found = match fs_err::read(place) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(self.has_other_forms(record)
            && self.is_linked(record)?
            && found == self.narinfo(record)?.as_bytes())
    }

    /// Returns the narinfo in the dialect of the path's store. Signed anew where it has no
    /// signature: what is small, or was taken before there was a key, is kept without.
    pub(super) fn narinfo(&self, record: &NarRecord) -> Result<String, DepotError> {
        let info = self.signed(record.info.clone());
        match Dialect::of(record.info.path.dir()) {
            Dialect::Nix => {
                let narinfo = NarInfo {
                    info,
                    url: Self::url(record),
                    compression: record.compression().word().to_owned(),
                    file_hash: record.file_hash,
                    file_bytes: record.file_bytes,
                };
                Ok(narinfo.to_text()?)
            }
            Dialect::Guix => Ok(narinfo::guix::text(&info, &self.forms(record)?)?),
        }
    }

    /// Links a file of the depot into the tree, in place of whatever else is there.
    pub(super) fn link(&self, record: &NarRecord) -> Result<(), DepotError> {
        let (file, link) = (self.0.places.nar(&record.file_hash), self.link_place(record));
        match fs_err::hard_link(&file, &link) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.is_linked(record)? {
                    return Ok(());
                }
                let new = link.with_extension("new");
                layout::remove_if_there(&new)?;
                fs_err::hard_link(&file, &new)?;
                Ok(fs_err::rename(new, link)?)
            }
            Err(error) if is_absent(&error) => Err(DepotError::NotHeld(record.file_hash)),
            Err(error) => Err(error.into()),
        }
    }

    fn link_place(&self, record: &NarRecord) -> PathBuf {
        let tree = self.0.places.tree(record.info.path.dir());
        tree.join("nar").join(tree_file_name(record))
    }

    /// Tells whether the tree has the very file of the depot.
    fn is_linked(&self, record: &NarRecord) -> io::Result<bool> {
        let file = metadata(&self.0.places.nar(&record.file_hash))?;
        let link = metadata(&self.link_place(record))?;
        Ok(match (file, link) {
            (Some(file), Some(link)) => (file.dev(), file.ino()) == (link.dev(), link.ino()),
            (None, _) | (_, None) => false,
        })
    }

    /// Removes a narinfo of a tree.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_narinfo(&self, tree: &Tree, path: PathHash) -> Result<(), DepotError> {
        layout::remove_if_there(&self.0.places.narinfo(&tree.store_dir, path))?;
        Ok(())
    }

    /// Tells whether the depot has a file with this hash.
    #[must_use]
    pub fn is_held(&self, file_hash: &Sha256) -> bool {
        self.0.places.nar(file_hash).exists()
    }

    /// Tells whether the depot has nothing at all: no file was ever moved there, all of it was taken
    /// away, the disk that it is on is not mounted, or its folder is gone.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn is_empty(&self) -> Result<bool, DepotError> {
        let entries = match fs_err::read_dir(&self.0.places.depot) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            entries => entries?,
        };
        for entry in entries {
            // A disk that was just made has this one.
            if entry?.file_name() != "lost+found" {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a narinfo that no row speaks of, and compares the nar with it.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn examine_shown(&self, tree: &Tree, path: PathHash) -> Result<Shown, DepotError> {
        let useless = |why: &str| Ok(Shown::Useless(why.to_owned()));
        let place = self.0.places.narinfo(&tree.store_dir, path);
        let Some(found) = metadata(&place)? else { return useless("it is gone") };
        if found.len() > NARINFO_BYTES_MAX as u64 {
            return useless("its narinfo is too long");
        }
        let text = fs_err::read(&place)?;
        let Ok(text) = String::from_utf8(text) else { return useless("its narinfo is no text") };
        let (info, url) = match read_narinfo(&text, &tree.store_dir) {
            Ok(read) => read,
            Err(error) => return useless(&error.to_string()),
        };
        if info.path.hash() != path {
            return useless("its narinfo is of another path");
        }
        let signatures = info.signatures.clone();
        let info = self.signed(PathInfo { signatures: Vec::new(), ..info });
        if info.signatures != signatures {
            return useless("its signature is not ours");
        }
        let Some(file_hash) = url.strip_prefix("nar/").and_then(|name| {
            TREE_SUFFIXES.iter().find_map(|suffix| Sha256::parse(name.strip_suffix(suffix)?))
        }) else {
            return useless("its nar has a name that is not ours");
        };
        let Some(file) = metadata(&self.0.places.nar(&file_hash))? else {
            return useless("its file is gone");
        };
        let origin = match info.content_address {
            Some(_) => NarOrigin::ContentAddressed,
            None => NarOrigin::Built,
        };
        let at = Timestamp::from_ms(found.mtime().saturating_mul(1_000));
        let record = NarRecord { info, file_hash, file_bytes: file.len(), origin, at };
        match self.examine_file(&record)? {
            None => Ok(Shown::Ours(Box::new(record))),
            Some(why) => Ok(Shown::Useless(why)),
        }
    }

    /// Reads the file of a nar from the depot, to its end, and returns what is wrong with it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn examine_file(&self, record: &NarRecord) -> Result<Option<String>, DepotError> {
        let place = self.0.places.nar(&record.file_hash);
        let mut file = match fs_err::File::open(&place) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(Some("its file is gone".to_owned())),
            Err(error) => return Err(error.into()),
        };
        let mut whole = Hashing::default();
        io::copy(&mut file, &mut whole)?;
        if whole.bytes != record.file_bytes {
            let expected = record.file_bytes;
            let what = format!("its file has {} bytes instead of {expected}", whole.bytes);
            return Ok(Some(what));
        }
        if whole.hasher.finish() != record.file_hash {
            return Ok(Some("its file is damaged".to_owned()));
        }
        if record.compression() == Compression::None {
            let fits = record.file_bytes == record.info.nar_bytes;
            return Ok((!fits).then(|| "its nar has another length".to_owned()));
        }
        // The same bytes that were verified: only a row that was changed can disagree with them.
        let mut decoder = zstd::stream::read::Decoder::new(fs_err::File::open(&place)?)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        let mut nar = Hashing::default();
        let limit = record.info.nar_bytes.saturating_add(1);
        if io::copy(&mut decoder.take(limit), &mut nar).is_err() {
            return Ok(Some("its file cannot be decompressed".to_owned()));
        }
        let fits =
            nar.bytes == record.info.nar_bytes && nar.hasher.finish() == record.info.nar_hash;
        Ok((!fits).then(|| "its file has another nar".to_owned()))
    }

    /// Removes the file of a nar that is damaged, with its links, so that a good one can take its
    /// place.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn remove_damaged(&self, record: &NarRecord) -> Result<(), DepotError> {
        let path = &record.info.path;
        layout::remove_if_there(&self.0.places.narinfo(path.dir(), path.hash()))?;
        layout::remove_if_there(&self.link_place(record))?;
        layout::remove_if_there(&self.0.places.nar(&record.file_hash))?;
        Ok(())
    }
}

fn read_narinfo(text: &str, dir: &StoreDir) -> Result<(PathInfo, String), narinfo::NarInfoError> {
    match Dialect::of(dir) {
        Dialect::Nix => NarInfo::parse(text, dir).map(|narinfo| (narinfo.info, narinfo.url)),
        Dialect::Guix => narinfo::guix::parse(text, dir),
    }
}

fn metadata(path: &Path) -> io::Result<Option<std::fs::Metadata>> {
    match fs_err::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Counts and hashes what is written to it.
#[derive(Default)]
struct Hashing {
    hasher: Sha256Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
