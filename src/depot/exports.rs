//! Signatures over exports, which are what a Guix daemon takes nars in by.
//!
//! Such a signature is over the nar itself and not over its hash, so all of the nar is read for it.
//! It follows from nar, facts and key alone; those that were made lately are kept, because the
//! machines of a farm want the same inputs one after the other.

use super::{Depot, DepotError, OpenNar, layout::Dialect};
use crate::{
    core::{
        hash::{Sha256, Sha256Hasher},
        path_info::PathInfo,
    },
    formats::export::entry_facts,
};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Mutex, PoisonError},
};

/// How many signatures are kept: 10 MB of them.
const KEPT_MAX: usize = 16_384;

/// The signatures that were made lately, by the hash of what they say.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    signatures: BTreeMap<Sha256, String>,
    /// The oldest first.
    order: VecDeque<Sha256>,
}

impl Made {
    fn get(&self, key: &Sha256) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).signatures.get(key).cloned()
    }

    fn keep(&self, key: Sha256, signature: String) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.signatures.insert(key, signature).is_none() {
            kept.order.push_back(key);
        }
        if kept.order.len() > KEPT_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.signatures.remove(&oldest);
        }
    }
}

impl Depot {
    /// Returns the signature of an export that has these facts behind this nar; nothing where the
    /// path's store has another dialect. `file_hash` names the file in errors.
    ///
    /// It reads all of the nar, unless that was signed lately.
    ///
    /// # Errors
    /// [`DepotError::Damaged`] when the nar is not the one that the facts are about, or it cannot
    /// be read.
    pub fn export_signature(
        &self,
        info: &PathInfo,
        file_hash: &Sha256,
        file: OpenNar,
    ) -> Result<Option<String>, DepotError> {
        match Dialect::of(info.path.dir()) {
            Dialect::Nix => return Ok(None),
            Dialect::Guix => {}
        }
        let facts = entry_facts(&info.path, &info.references, info.deriver.as_ref());
        let key = Sha256::of(&[info.nar_hash.as_bytes().as_slice(), &facts].concat());
        if let Some(made) = self.0.exports.get(&key) {
            return Ok(Some(made));
        }
        let mut sink = HashSink(Sha256Hasher::default());
        file.unpack(file_hash, info.nar_bytes, &mut sink)?;
        let HashSink(mut hasher) = sink;
        // Nothing is vouched for that is not what was verified.
        if hasher.clone().finish() != info.nar_hash {
            return Err(DepotError::Damaged(*file_hash));
        }
        hasher.update(&facts);
        let signature = self.0.keys.guix.sign(&hasher.finish());
        self.0.exports.keep(key, signature.clone());
        Ok(Some(signature))
    }
}

struct HashSink(Sha256Hasher);

impl io::Write for HashSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::store_path::StoreDir, formats::signature::guix::GuixPublicKey};
    use std::io::Cursor;

    fn info(dir: &StoreDir, nar: &[u8]) -> PathInfo {
        let nar_hash = Sha256::of(nar);
        PathInfo {
            path: dir.make_path("output:out", &nar_hash, "thing").unwrap(),
            nar_hash,
            nar_bytes: nar.len() as u64,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        }
    }

    fn open(nar: &[u8]) -> OpenNar {
        OpenNar::Unwritten(Cursor::new(nar.to_vec()))
    }

    #[test]
    fn what_is_signed_is_the_nar_with_what_is_said_of_it() {
        let state = tempfile::tempdir().unwrap();
        let depot = Depot::open(state.path(), "farm-1", [7; 32]).unwrap();
        let key = GuixPublicKey::parse(&depot.guix_public_key()).unwrap();
        // What is not compressed is told by how nars begin.
        let nar = [13u64.to_le_bytes().as_slice(), b"nix-archive-1\0\0\0 and more"].concat();
        let info = info(&StoreDir::guix(), &nar);
        let signature = depot.export_signature(&info, &info.nar_hash, open(&nar)).unwrap().unwrap();
        let export = [nar.clone(), entry_facts(&info.path, &info.references, None)].concat();
        assert!(key.verify(&Sha256::of(&export), signature.as_bytes()));
        // The second time nothing is read.
        let again = depot.export_signature(&info, &info.nar_hash, open(b"")).unwrap();
        assert_eq!(again, Some(signature.clone()));

        let other = PathInfo { references: vec![info.path.clone()], ..info.clone() };
        let of_other = depot.export_signature(&other, &other.nar_hash, open(&nar)).unwrap();
        assert_ne!(of_other, Some(signature));
    }

    #[test]
    fn a_nar_that_is_another_one_is_not_signed_and_neither_is_one_of_nix() {
        let state = tempfile::tempdir().unwrap();
        let depot = Depot::open(state.path(), "farm-1", [7; 32]).unwrap();
        let nar = [13u64.to_le_bytes().as_slice(), b"nix-archive-1\0\0\0"].concat();
        let wrong = [13u64.to_le_bytes().as_slice(), b"nix-archive-2\0\0\0"].concat();
        let guix = info(&StoreDir::guix(), &nar);
        let error = depot.export_signature(&guix, &guix.nar_hash, open(&wrong)).unwrap_err();
        assert!(matches!(error, DepotError::Damaged(_)), "{error}");
        let nix = info(&StoreDir::nix(), &nar);
        assert_eq!(depot.export_signature(&nix, &nix.nar_hash, open(&nar)).unwrap(), None);
    }
}
