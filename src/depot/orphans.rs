//! Files of the depot that no row speaks of.
//!
//! A file is moved into the depot before its row is committed. When the row never comes (a
//! submission that was refused at its end, an upload whose attempt went to another agent
//! meanwhile, a crash between the two) the file would stay for ever.

use super::{Depot, DepotError, layout};
use crate::core::{hash::Sha256, time::Timestamp};
use std::{
    collections::BTreeSet, io, os::unix::fs::MetadataExt as _, path::Path, sync::PoisonError,
};

/// How many orphans one look finds at most; the next look finds the others.
const ORPHANS_MAX: usize = 100_000;

impl Depot {
    /// Returns files that were moved into the depot before `before` and are not published: those
    /// of them that no row speaks of are orphans.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn unpublished_files(&self, before: Timestamp) -> Result<BTreeSet<Sha256>, DepotError> {
        let mut found = BTreeSet::new();
        let shards = match fs_err::read_dir(&self.0.places.depot) {
            Ok(shards) => shards,
            // Whoever has removed all of it has left no orphans.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error.into()),
        };
        for shard in shards {
            let shard = shard?;
            if !shard.file_type()?.is_dir() {
                continue;
            }
            for entry in fs_err::read_dir(shard.path())? {
                let entry = entry?;
                let name = entry.file_name();
                let hash = name.to_str().and_then(layout::nar_file_hash);
                let Some(hash) = hash else { continue };
                if is_alone(&entry.path(), before)? {
                    found.insert(hash);
                }
                if found.len() >= ORPHANS_MAX {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// Removes orphans, unless somebody brought them again since `before`. Returns how many.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_orphans(
        &self,
        orphans: &BTreeSet<Sha256>,
        before: Timestamp,
    ) -> Result<u64, DepotError> {
        let mut removed = 0;
        for hash in orphans {
            let path = self.0.places.nar(hash);
            // Between the look and the removal nobody moves a file there or relies on it.
            let _settling = self.0.settling.write().unwrap_or_else(PoisonError::into_inner);
            if is_alone(&path, before)? {
                fs_err::remove_file(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Tells whether a file is there, came before `before`, and has no link in a published tree.
fn is_alone(path: &Path, before: Timestamp) -> io::Result<bool> {
    match fs_err::symlink_metadata(path) {
        Ok(metadata) => {
            let modified = metadata.mtime().saturating_mul(1_000);
            Ok(metadata.nlink() == 1 && metadata.is_file() && modified < before.as_ms())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
