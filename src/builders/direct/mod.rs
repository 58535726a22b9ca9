//! Builds without any daemon, for machines that have neither Nix nor Guix.
//!
//! The store has a *logical* directory, which its paths and the builds name, and a *physical* one,
//! where the files are; they may be the same. Beside it, a state directory holds one record per
//! valid path ([`records`]) and what is in use ([`roots`]). Nothing is removed from the store until
//! somebody asks for room ([`collect`]).
//!
//! A build runs in namespaces of its own where the kernel grants them, and behind landlock where
//! the kernel has that ([`sandbox`]). That keeps builds from the network, from each other's
//! processes, from leaving anything running, from store paths that are none of their inputs, and
//! from all files of the machine that are not for everybody, such as homes and keys. They do use
//! the machine's programs and libraries, `/bin/sh` above all, so results are only as reproducible
//! as those are.
//!
//! Several processes may use one place at a time: a path is locked while it is moved into place,
//! and an output while it is built.

mod collect;
mod outputs;
mod records;
mod roots;
mod run;
pub mod sandbox;
mod workplace;

use super::{BuildOrder, Builder, BuilderError, Substituters, tree};
use crate::core::{
    hash::{Sha256, Sha256Hasher},
    outcome::{BuildFailure, Outcome, SetupFailure},
    path_info::PathInfo,
    store_path::{StoreDir, StorePath},
};
use crate::formats::nar::NarLimits;
use records::Records;
use roots::Roots;
use run::Ending;
use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// The most files of one path: some hundred times the largest package.
const NAR_ENTRIES_MAX: u64 = 10_000_000;

/// Where the embedded executor keeps its store, and what it starts builds with.
#[derive(Debug, Clone)]
pub struct Place {
    /// The logical directory: what store paths begin with.
    pub store_dir: StoreDir,
    /// The directory that holds the files. Where it is not the logical one, builds see it there by
    /// a mount of their own, for which the logical directory must exist.
    pub physical_dir: PathBuf,
    /// Records, locks and the directories of running builds. On any filesystem, outside of both
    /// others.
    pub state_dir: PathBuf,
    /// Directories of the machine that builds may read and write beside their own.
    pub shared: Vec<PathBuf>,
    /// The `steading` executable, started again inside the build's namespaces;
    /// [`Place::THIS_PROGRAM`] unless the caller is another program.
    pub program: PathBuf,
}

impl Place {
    /// The running executable, also after its file was replaced.
    pub const THIS_PROGRAM: &'static str = "/proc/self/exe";
}

/// The embedded executor.
#[derive(Debug)]
pub struct Direct {
    place: Place,
    records: Records,
    roots: Roots,
}

impl Direct {
    /// Makes the directories that are missing.
    ///
    /// # Errors
    /// [`BuilderError::Files`] when they cannot be made.
    pub fn open(place: Place) -> Result<Self, BuilderError> {
        fs_err::create_dir_all(&place.physical_dir)?;
        let records = Records::open(&place.state_dir)?;
        let roots = Roots::open(&place.state_dir)?;
        workplace::open(&place)?;
        Ok(Self { place, records, roots })
    }

    /// Returns where the files of a path are.
    fn physical(&self, path: &StorePath) -> PathBuf {
        self.place.physical_dir.join(path.base_name())
    }

    /// Refuses paths of other stores.
    fn check(&self, paths: &[StorePath]) -> Result<(), BuilderError> {
        match paths.iter().find(|path| path.dir() != &self.place.store_dir) {
            Some(path) => Err(BuilderError::OtherStore {
                path: path.clone(),
                store_dir: self.place.store_dir.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Returns the references of `paths`, of these, and so on, with `paths`.
    fn closure(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, BuilderError> {
        let mut closure = BTreeSet::new();
        let mut open = paths.to_vec();
        while let Some(path) = open.pop() {
            if closure.contains(&path) {
                continue;
            }
            let info = self.records.read(&path)?;
            let info = info.ok_or_else(|| BuilderError::NotValid(path.clone()))?;
            open.extend(info.references);
            closure.insert(path);
        }
        Ok(closure)
    }

    /// Builds, once everything is found in order; the outputs' locks are held by the caller.
    fn build_locked(
        &self,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError> {
        for output in &order.derivation.outputs {
            if self.records.read(&output.path)?.is_some() {
                let present = SetupFailure::OutputsPresent(output.path.clone());
                return Ok(Outcome::SetupFailed(present));
            }
            outputs::remove_tree(&self.physical(&output.path))?;
        }
        let inputs = self.closure(order.input_paths)?;
        let workplace = workplace::Workplace::new(&self.place, order, &inputs)?;
        let ending = run::run(&self.place.program, workplace.order_file(), order, log)?;
        if ending == Ending::Exit(0) {
            workplace.place_outputs(&self.place, order.derivation)?;
        }
        drop(workplace);
        let outcome = match ending {
            Ending::Exit(0) => self.take_outputs(order, &inputs)?,
            Ending::Exit(code) => Outcome::Failed(BuildFailure::Exit(code)),
            Ending::Signal(signal) => Outcome::Failed(BuildFailure::Signal(signal)),
            Ending::Timeout => Outcome::Failed(BuildFailure::Timeout),
            Ending::Silent => Outcome::Failed(BuildFailure::Silent),
            Ending::Refused(reason) => Outcome::SetupFailed(SetupFailure::Refused(reason)),
        };
        if outcome != Outcome::Built {
            for output in &order.derivation.outputs {
                outputs::remove_tree(&self.physical(&output.path))?;
            }
        }
        Ok(outcome)
    }

    /// Makes what a successful builder left behind valid: every output, or none.
    fn take_outputs(
        &self,
        order: &BuildOrder<'_>,
        inputs: &BTreeSet<StorePath>,
    ) -> Result<Outcome, BuilderError> {
        match outputs::examine(order, inputs, |path| self.physical(path))? {
            // Each record is whole in itself, and the first is written when all are known good.
            Ok(infos) => {
                for info in &infos {
                    self.records.write(info)?;
                }
                Ok(Outcome::Built)
            }
            Err(outcome) => Ok(outcome),
        }
    }
}

impl Builder for Direct {
    fn store_dir(&self) -> &StoreDir {
        &self.place.store_dir
    }

    fn valid(&mut self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, BuilderError> {
        self.check(paths)?;
        let mut valid = BTreeSet::new();
        for path in paths {
            if self.records.read(path)?.is_some() {
                valid.insert(path.clone());
            }
        }
        Ok(valid)
    }

    /// There is nothing to substitute from: everything comes from the coordinator.
    fn substitute(
        &mut self,
        paths: &[StorePath],
        _from: &Substituters,
    ) -> Result<(), BuilderError> {
        self.check(paths)
    }

    fn import(&mut self, info: &PathInfo, nar: &mut dyn Read) -> Result<(), BuilderError> {
        self.root(std::slice::from_ref(&info.path))?;
        let staged = format!(".import-{:016x}", random()?);
        let staging = self.place.physical_dir.join(&staged);
        let mut nar = HashingReader::new(nar.take(info.nar_bytes));
        let limits = NarLimits {
            bytes_max: info.nar_bytes,
            entries_max: NAR_ENTRIES_MAX,
            depth_max: tree::DEPTH_MAX,
        };
        tree::restore(&mut nar, &self.place.physical_dir, &staged, limits)
            .map_err(|error| BuilderError::of_tree(&info.path, error))?;
        let result = self.adopt(info, &staging, nar);
        if result.is_err() {
            outputs::remove_tree(&staging)?;
        }
        result
    }

    fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, BuilderError> {
        self.check(std::slice::from_ref(path))?;
        self.records.read(path)
    }

    fn dump(&mut self, path: &StorePath, sink: &mut dyn Write) -> Result<(), BuilderError> {
        if self.path_info(path)?.is_none() {
            return Err(BuilderError::NotValid(path.clone()));
        }
        let mut sink = sink;
        tree::dump(&self.physical(path), &mut sink).map_err(|source| BuilderError::Stream {
            path: path.clone(),
            source: io::Error::other(source),
        })
    }

    fn remove(&mut self, paths: &[StorePath]) -> Result<(), BuilderError> {
        let valid = self.valid(paths)?;
        if valid.is_empty() {
            return Ok(());
        }
        let present = |path, reason| Err(BuilderError::OutputsPresent { path, reason });
        let held = self.roots.hold()?;
        if let Some((path, referrer)) = self.records.find_referrer(&valid)? {
            return present(path, format!("{referrer} refers to it"));
        }
        if let Some(path) = self.used_by_others(&valid, &held)? {
            return present(path, "another attempt on this machine uses it".to_owned());
        }
        for path in valid {
            let Some(_lock) = self.records.try_lock(&path)? else {
                return present(path, "another attempt on this machine makes it".to_owned());
            };
            self.records.remove(&path)?;
            outputs::remove_tree(&self.physical(&path))?;
        }
        Ok(())
    }

    fn collect(&mut self, bytes: u64) -> Result<u64, BuilderError> {
        self.make_room(bytes)
    }

    fn root(&mut self, paths: &[StorePath]) -> Result<(), BuilderError> {
        self.check(paths)?;
        self.roots.add(paths)?;
        Ok(self.records.note_use(paths)?)
    }

    fn builds_by_path(&self) -> bool {
        false
    }

    fn build(
        &mut self,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError> {
        self.check(std::slice::from_ref(order.drv_path))?;
        self.check(order.input_paths)?;
        if let Some(reason) = workplace::unsupported(order.derivation) {
            return Ok(Outcome::SetupFailed(SetupFailure::Refused(reason)));
        }
        let outputs = order.derivation.outputs.iter().map(|output| output.path.clone());
        let used: Vec<_> = order.input_paths.iter().cloned().chain(outputs).collect();
        self.root(&used)?;
        let valid = self.valid(order.input_paths)?;
        let missing: Vec<_> =
            order.input_paths.iter().filter(|path| !valid.contains(*path)).cloned().collect();
        if !missing.is_empty() {
            return Ok(Outcome::SetupFailed(SetupFailure::MissingInputs(missing)));
        }
        let mut locks = Vec::new();
        for output in &order.derivation.outputs {
            let Some(lock) = self.records.try_lock(&output.path)? else {
                let reason = format!("{} is being built by another attempt here", output.path);
                return Ok(Outcome::SetupFailed(SetupFailure::Refused(reason)));
            };
            locks.push(lock);
        }
        let outcome = self.build_locked(order, log);
        drop(locks);
        match outcome {
            Err(error) if error.setup_failure() == SetupFailure::DiskFull => {
                Ok(Outcome::SetupFailed(SetupFailure::DiskFull))
            }
            outcome => outcome,
        }
    }
}

impl Direct {
    /// Moves a restored tree into place and records it, if its nar was the promised one.
    fn adopt<R: Read>(
        &self,
        info: &PathInfo,
        staging: &Path,
        nar: HashingReader<io::Take<R>>,
    ) -> Result<(), BuilderError> {
        let actual = nar.hasher.finish();
        if actual != info.nar_hash || nar.source.limit() != 0 {
            let (path, expected) = (info.path.clone(), info.nar_hash);
            return Err(BuilderError::NarMismatch { path, expected, actual });
        }
        let _lock = self.records.lock(&info.path)?;
        if self.records.read(&info.path)?.is_some() {
            return outputs::remove_tree(staging);
        }
        let place = self.physical(&info.path);
        outputs::remove_tree(&place)?;
        fs_err::rename(staging, &place)?;
        self.records.write(info)
    }
}

/// Hashes what is read through it.
struct HashingReader<R> {
    source: R,
    hasher: Sha256Hasher,
}

impl<R: Read> HashingReader<R> {
    fn new(source: R) -> Self {
        Self { source, hasher: Sha256Hasher::default() }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Hashes and counts what is written into it.
#[derive(Default)]
struct HashingSink {
    hasher: Sha256Hasher,
    bytes: u64,
}

impl HashingSink {
    /// Returns the hash and the number of bytes.
    fn finish(self) -> (Sha256, u64) {
        (self.hasher.finish(), self.bytes)
    }
}

impl Write for HashingSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a number for a name that nobody else uses.
fn random() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}
