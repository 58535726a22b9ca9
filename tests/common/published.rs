//! The published trees, read as a stranger would read them.

use std::{collections::BTreeMap, io, path::Path};
use steading::{
    core::{
        hash::{Sha256, Sha256Hasher},
        store_path::StoreDir,
    },
    formats::narinfo::NarInfo,
};

/// Returns the nar hash of every published path of a store directory, after recomputing each from
/// its file. `public` is the folder of all trees.
///
/// Narinfos appear by rename, so whatever is there must be whole, at any moment.
pub(crate) fn read(public: &Path, store_dir: &StoreDir) -> BTreeMap<String, Sha256> {
    let mut found = BTreeMap::new();
    for tree in fs_err::read_dir(public).unwrap() {
        let tree = tree.unwrap().path();
        for entry in fs_err::read_dir(&tree).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "narinfo") {
                continue;
            }
            let text = fs_err::read_to_string(&path).unwrap();
            let narinfo = NarInfo::parse(&text, store_dir).unwrap();
            let file = tree.join(&narinfo.url);
            let mut bytes = fs_err::File::open(&file).unwrap();
            let mut hasher = Hashing::default();
            match narinfo.compression.as_str() {
                "none" => drop(io::copy(&mut bytes, &mut hasher).unwrap()),
                _ => zstd::stream::copy_decode(bytes, &mut hasher).unwrap(),
            }
            let computed = hasher.0.finish();
            assert_eq!(computed, narinfo.info.nar_hash, "{} is damaged", file.display());
            found.insert(narinfo.info.path.to_string(), computed);
        }
    }
    found
}

/// Hashes what is written to it.
#[derive(Default)]
pub(crate) struct Hashing(pub(crate) Sha256Hasher);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
