//! Takes nars out of the published trees again: first the narinfo, so that nobody new learns of
//! them, and much later the files.

use super::{
    Depot, DepotError,
    layout::{self, Dialect},
};
use crate::core::{hash::Sha256, store_path::StorePath};
use std::collections::BTreeSet;

/// What the names of a nar's files in a tree end with.
const TREE_SUFFIXES: [&str; 3] = [".nar.zst", ".nar", ".nar.gz"];
/// What precedes the SHA-256 of a fixed output that is one plain file.
const FLAT_SHA256: &str = "fixed:sha256:";

impl Depot {
    /// Removes the narinfos of these paths. They are gone for good when this returns.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn unlist<'a>(&self, paths: impl Iterator<Item = &'a StorePath>) -> Result<(), DepotError> {
        let mut trees = BTreeSet::new();
        for path in paths {
            if layout::remove_if_there(&self.0.places.narinfo(path.dir(), path.hash()))? {
                trees.insert(self.0.places.tree(path.dir()));
            }
        }
        for tree in trees {
            fs_err::File::open(tree)?.sync_all()?;
        }
        Ok(())
    }

    /// Removes the links in the tree to a file of the depot, and what was made of it.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn unlink(&self, path: &StorePath, file_hash: &Sha256) -> Result<(), DepotError> {
        let nars = self.0.places.tree(path.dir()).join("nar");
        for suffix in TREE_SUFFIXES {
            layout::remove_if_there(&nars.join(format!("{}{suffix}", file_hash.base32())))?;
        }
        Ok(())
    }

    /// Removes what a tree of the Guix dialect shows of the content of a fixed output.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn unlink_content(
        &self,
        path: &StorePath,
        content_address: Option<&str>,
    ) -> Result<(), DepotError> {
        let hash = content_address.and_then(|address| address.strip_prefix(FLAT_SHA256));
        let Some(hash) = hash.and_then(Sha256::parse) else { return Ok(()) };
        if Dialect::of(path.dir()) == Dialect::Guix && !path.name().starts_with('.') {
            let tree = self.0.places.tree(path.dir());
            let place = tree.join("file").join(path.name()).join("sha256").join(hash.base32());
            layout::remove_if_there(&place)?;
        }
        Ok(())
    }
}
