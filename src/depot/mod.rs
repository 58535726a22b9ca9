//! The depot: nars on disk, from the first byte received to the published tree.
//!
//! This room owns `incoming/`, `depot/`, `public/` and the signing keys in the state directory. It
//! takes export streams ([`Intake`]) and agents' uploads ([`Upload`]), believes nothing that it
//! can compute, and shows verified nars to the world ([`Publisher`]). What it found out it hands
//! back as records; it knows neither the database nor the network, and whoever calls it does so
//! from a thread that may block.
//!
//! Hardly anything here is locked: files of the depot are named after the hash of their bytes and
//! are never written twice, so two threads that bring the same nar do no harm. Only the removal of
//! files that no row speaks of keeps everybody out for a moment. The order that keeps
//! promises is always the same: files are moved into place, then [`Depot::sync_nars`], then the rows
//! are committed, then others hear of it. Small nars go the other way: their bytes are committed
//! with their rows, and [`Depot::write_out`] makes files of them afterwards.
//!
//! It is called by the coordinator.

mod aside;
mod content;
mod error;
mod exports;
mod flusher;
mod intake;
mod key;
mod layout;
mod open_nar;
mod orphans;
mod publish;
mod second_form;
mod shown;
mod spool;
#[cfg(test)]
mod tests;
mod upload;
mod withdraw;
mod write_out;
mod zstd_stream;

pub use error::{DepotError, Fault, SigningKeyError};
pub use intake::{Fact, Intake, IntakeCounts, IntakeError, IntakeRules, IntakeSummary, Known};
pub use open_nar::OpenNar;
pub use publish::{PublishPolicy, PublishReport, Publisher, Unpublished};
pub use shown::{Shown, Surplus, Tree};
pub use spool::IncomingFiles;
pub use upload::{
    Candidates, SYNC_INTERVAL, SmallNars, Upload, UploadRules, VerifiedNar, VerifyError,
};

use crate::{
    core::{
        change::{NarOrigin, NarRecord},
        hash::Sha256,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
        time::Timestamp,
    },
    formats::narinfo,
};
use key::SigningKeys;
use layout::{Dialect, Places};
use spool::{SpoolNames, TempFile};
use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

/// The largest window that a reader of zstd allows, as a power of two: 128 MiB, the most that
/// stock readers allow too.
const WINDOW_LOG_MAX: u32 = 27;
/// How much is read and written at a time, in bytes.
const BUFFER_BYTES: usize = 128 * 1024;
/// How a nar begins that is not compressed: with the length of `nix-archive-1`. No frame does.
const NAR_BEGIN: [u8; 8] = 13u64.to_le_bytes();
/// Up to how many nars are synced one by one. Each costs a wait or two; syncing the whole
/// filesystem costs one wait, but for everything that anybody has written there.
const SYNCED_APART_MAX: usize = 4;

/// The nars of a state directory. Clones are the same depot.
#[derive(Debug, Clone)]
pub struct Depot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Places,
    keys: SigningKeys,
    spool_names: SpoolNames,
    exports: exports::Made,
    /// Written while a file of the depot is removed, read while one is moved there.
    settling: RwLock<()>,
}

impl Depot {
    /// Opens the depot of a state directory, and makes what is missing of it.
    ///
    /// `key_name` names the signing keys if there are none yet, like `farm.example.org-1`. `seed`
    /// are 32 bytes that nobody can guess; new keys are made of them.
    ///
    /// # Errors
    /// [`DepotError::NotWritable`], or what is wrong with the key.
    pub fn open(state_dir: &Path, key_name: &str, seed: [u8; 32]) -> Result<Self, DepotError> {
        let places = Places::make(state_dir)?;
        let spool_names = SpoolNames::new(&seed);
        let keys = SigningKeys::load_or_make(&places.secrets, key_name, &seed)?;
        let (exports, settling) = (exports::Made::default(), RwLock::default());
        Ok(Self(Arc::new(Inner { places, keys, spool_names, exports, settling })))
    }

    /// Returns the public signing key of the Nix dialect, as `trusted-public-keys` has it.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.0.keys.nix.public().to_text()
    }

    /// Returns the public signing key of the Guix dialect, as `guix archive --authorize` takes it.
    #[must_use]
    pub fn guix_public_key(&self) -> String {
        self.0.keys.guix.public().to_text()
    }

    /// Returns the public key that verifies the signatures of paths of this store directory.
    #[must_use]
    pub fn public_key_of(&self, dir: &StoreDir) -> String {
        match Dialect::of(dir) {
            Dialect::Nix => self.public_key(),
            Dialect::Guix => self.guix_public_key(),
        }
    }

    /// Returns the facts with the signature of the path's dialect, where there is one. What has
    /// it is not signed again.
    #[must_use]
    pub fn signed(&self, mut info: PathInfo) -> PathInfo {
        if info.signatures.is_empty() {
            self.sign(&mut info);
        }
        info
    }

    /// Waits until everything that was moved into the depot and the published trees is on the
    /// disk. Call it before the rows are committed that speak of it.
    ///
    /// # Errors
    /// When the disk failed: commit nothing.
    pub fn sync(&self) -> Result<(), DepotError> {
        let directory = fs_err::File::open(&self.0.places.depot)?;
        // One call for the whole filesystem costs less than one for each of many small files.
        rustix::fs::syncfs(&directory).map_err(|errno| Fault::Io(errno.into()))?;
        Ok(())
    }

    /// Waits until these nars, which were moved into the depot, are on the disk. Call it before the
    /// rows are committed that speak of them.
    ///
    /// # Errors
    /// When the disk failed: commit nothing.
    pub fn sync_nars<'a>(
        &self,
        nars: impl ExactSizeIterator<Item = &'a NarRecord>,
    ) -> Result<(), DepotError> {
        if nars.len() > SYNCED_APART_MAX {
            return self.sync();
        }
        let mut changed = BTreeSet::new();
        for nar in nars {
            fs_err::File::open(self.0.places.nar(&nar.file_hash))?.sync_all()?;
            changed.insert(self.0.places.shard(&nar.file_hash));
        }
        // A shard may be new, too.
        changed.insert(self.0.places.depot.clone());
        for directory in changed {
            fs_err::File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Moves a verified upload into the depot. It is durable after [`Depot::sync_nars`] or
    /// [`Depot::sync`].
    ///
    /// # Errors
    /// When files cannot be moved; the upload then is still in `incoming/` and can be resumed.
    pub fn keep(&self, verified: VerifiedNar, at: Timestamp) -> Result<NarRecord, DepotError> {
        let VerifiedNar { info, file_hash, file_bytes, spooled } = verified;
        spooled.settle(|file| self.settle(file, &file_hash))?;
        Ok(NarRecord { info, file_hash, file_bytes, origin: NarOrigin::Built, at })
    }

    /// Opens the file with this hash. A file that may still have to be written out is
    /// not looked for here before it was looked for there.
    ///
    /// # Errors
    /// [`DepotError::NotHeld`] when there is none.
    pub fn open_nar(&self, file_hash: &Sha256) -> Result<OpenNar, DepotError> {
        match fs_err::File::open(self.0.places.nar(file_hash)) {
            Ok(file) => Ok(OpenNar::Written(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DepotError::NotHeld(*file_hash))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns where a nar is, or will be, within the published tree of its store: the `URL` of its
    /// narinfo.
    #[must_use]
    pub fn url(nar: &NarRecord) -> String {
        format!("nar/{}", layout::tree_file_name(nar))
    }

    /// Tells whether the published tree shows a path: whether its narinfo is there.
    #[must_use]
    pub fn shows(&self, path: &StorePath) -> bool {
        self.0.places.narinfo(path.dir(), path.hash()).exists()
    }

    /// Moves a complete file to its place in the depot, unless the same bytes are there.
    fn settle(&self, file: &Path, file_hash: &Sha256) -> io::Result<()> {
        let target = self.0.places.nar(file_hash);
        let _settling = self.0.settling.read().unwrap_or_else(PoisonError::into_inner);
        // A file that came before a power failure can be there torn and unrecorded; its name
        // proves nothing, so its bytes are compared.
        if layout::have_same_bytes(file, &target)? {
            // It counts as new, so that it is no orphan before its row is there.
            layout::touch(&target)?;
            return fs_err::remove_file(file);
        }
        layout::make_dir(&self.0.places.shard(file_hash), layout::PRIVATE)?;
        layout::touch(file)?;
        layout::set_mode(file, layout::WRITTEN_ONCE)?;
        fs_err::rename(file, target)
    }

    /// Adds the signature of the path's dialect.
    fn sign(&self, info: &mut PathInfo) {
        info.signatures = match Dialect::of(info.path.dir()) {
            Dialect::Nix => vec![self.0.keys.nix.sign(&narinfo::fingerprint(info))],
            // What has no facts could not be written into a narinfo either, which is said there.
            Dialect::Guix => narinfo::guix::facts(info)
                .map(|facts| self.0.keys.guix.sign_narinfo(self.0.keys.nix.name(), &facts))
                .into_iter()
                .collect(),
        };
    }

    /// Opens a new file in `incoming/` that vanishes unless it is kept.
    fn new_spool(&self) -> io::Result<(fs_err::File, TempFile)> {
        self.0.spool_names.create_in(&self.0.places.incoming)
    }
}

/// Reads the nar in a file of the depot. It tells by itself whether it is compressed.
fn uncompressed<F: io::Read + io::Seek + 'static>(mut file: F) -> io::Result<Box<dyn io::Read>> {
    let mut begin = [0; NAR_BEGIN.len()];
    let is_nar = match file.read_exact(&mut begin) {
        Ok(()) => begin == NAR_BEGIN,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    file.rewind()?;
    if is_nar {
        return Ok(Box::new(file));
    }
    let mut decoder = zstd::stream::read::Decoder::new(file)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(Box::new(decoder))
}
