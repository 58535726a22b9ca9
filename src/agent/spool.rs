//! The directory of one attempt: what the agent and the attempt's process leave for each other.
//!
//! | file | written by | what it is |
//! |---|---|---|
//! | `allocation` | agent | what the coordinator asked for; first of all files |
//! | `order`, `derivation.drv` | agent | what the process is to do, once the inputs are there |
//! | `lock` | agent | held by the process for as long as it lives |
//! | `started` | process | the builder was started |
//! | `log.START` | process | the build's log: its beginning and its end, see `logbook` |
//! | `diagnosis` | process | what it printed itself |
//! | `BASE-NAME.nar.zst` | process | an output, compressed or not, before `result` |
//! | `result` | either | how it ended; last of all files |
//!
//! `allocation`, `order` and `result` are MessagePack and appear whole or not at all.

use crate::{
    builders::{BuilderKind, direct::Place},
    core::{id::AttemptId, outcome::Outcome, store_path::StoreDir, store_path::StorePath},
    logbook::{self, Limits},
    protocol::{bulk::OfferedOutput, message::Allocation},
    telemetry,
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

/// How much of what a process printed before it died is told to the coordinator, in bytes.
const DIAGNOSIS_BYTES_MAX: u64 = 1_000;

/// How much of a log is kept here, in bytes: as much as a coordinator keeps unless told otherwise.
/// While there is a session, the coordinator is sent what is printed before it would go.
pub(super) const LOG_LIMITS: Limits = Limits::within(64 * 1024 * 1024);

/// What an attempt's process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    /// What the coordinator asked for.
    pub(super) allocation: Allocation,
    /// What builds it.
    #[serde(with = "BuilderRecord")]
    pub(super) builder: BuilderKind,
    /// All that the build may need, valid when the order was written.
    pub(super) input_paths: Vec<StorePath>,
    /// How many processors it should use.
    pub(super) cores: u32,
}

/// How [`BuilderKind`] is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "BuilderKind")]
enum BuilderRecord {
    Nix { socket: PathBuf, store_dir: StoreDir },
    Guix { socket: PathBuf, store_dir: StoreDir },
    Direct(#[serde(with = "PlaceRecord")] Place),
}

/// How [`Place`] is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Place")]
struct PlaceRecord {
    store_dir: StoreDir,
    physical_dir: PathBuf,
    #[serde(default)]
    shared: Vec<PathBuf>,
    state_dir: PathBuf,
    program: PathBuf,
}

/// How an attempt ended on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AttemptResult {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// When it was built, all outputs of the derivation; their nars are in the spool.
    pub(super) outputs: Vec<OfferedOutput>,
}

impl AttemptResult {
    /// Returns the result of an attempt that has no outputs to deliver.
    pub(super) const fn without_outputs(outcome: Outcome) -> Self {
        Self { outcome, outputs: Vec::new() }
    }
}

/// How far the files say that an attempt is.
#[derive(Debug, PartialEq)]
pub(super) enum Stage {
    /// No process has begun to build: prepare it, again if need be.
    Preparing,
    /// Its process lives.
    Running,
    /// Its process began to build and died without a result.
    Lost,
    /// It is over.
    Ended(AttemptResult),
}

/// One attempt's directory.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// Returns the spool in this directory, which need not exist yet.
    pub(super) const fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the spool of a new attempt. Durable when this returns.
    pub(super) fn create(attempts_dir: &Path, allocation: &Allocation) -> io::Result<Self> {
        let spool = Self { dir: attempts_dir.join(allocation.attempt.to_string()) };
        fs_err::create_dir_all(&spool.dir)?;
        sync_dir(attempts_dir)?;
        spool.write("allocation", allocation)?;
        Ok(spool)
    }

    /// Returns the attempt that the directory is named for.
    pub(super) fn attempt(&self) -> Option<AttemptId> {
        self.dir.file_name()?.to_str()?.parse().ok()
    }

    /// Returns the directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of what the process printed itself.
    pub(super) fn diagnosis_path(&self) -> PathBuf {
        self.dir.join("diagnosis")
    }

    /// Returns the path of an output's compressed nar. It is named for the store path, whose
    /// characters are harmless in any file name.
    pub(super) fn nar_path(&self, output: &StorePath) -> PathBuf {
        self.dir.join(format!("{}.nar.zst", output.base_name()))
    }

    /// Reads what the coordinator asked for.
    pub(super) fn allocation(&self) -> io::Result<Allocation> {
        self.read("allocation")
    }

    /// Writes what the process is to do.
    pub(super) fn write_order(&self, order: &Order, derivation: &[u8]) -> io::Result<()> {
        write_durably(&self.dir, "derivation.drv", derivation)?;
        self.write("order", order)
    }

    /// Reads what the process is to do, and the text of the derivation.
    pub(super) fn order(&self) -> io::Result<(Order, Vec<u8>)> {
        Ok((self.read("order")?, fs_err::read(self.dir.join("derivation.drv"))?))
    }

    /// Notes that the builder is being started.
    pub(super) fn mark_started(&self) -> io::Result<()> {
        write_durably(&self.dir, "started", b"")
    }

    /// Tells whether the builder was started.
    pub(super) fn is_started(&self) -> bool {
        self.dir.join("started").exists()
    }

    /// Writes how it ended.
    pub(super) fn write_result(&self, result: &AttemptResult) -> io::Result<()> {
        self.write("result", result)
    }

    /// Reads how it ended; nothing while it has not.
    pub(super) fn result(&self) -> io::Result<Option<AttemptResult>> {
        match self.read("result") {
            Ok(result) => Ok(Some(result)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns how far the attempt is.
    pub(super) fn stage(&self) -> io::Result<Stage> {
        // The lock comes first: a process that ends after the look at `result` would otherwise
        // seem to have died without one.
        if self.is_held()? {
            return Ok(Stage::Running);
        }
        match self.result()? {
            Some(result) => Ok(Stage::Ended(result)),
            None if self.is_started() => Ok(Stage::Lost),
            None => Ok(Stage::Preparing),
        }
    }

    /// Returns the length of the log, in bytes, whatever is missing in it.
    pub(super) fn log_bytes(&self) -> u64 {
        // What cannot be read is as good as missing; reading it is tried anyway, and told.
        logbook::pieces(&self.dir).map_or(0, |pieces| logbook::end(&pieces))
    }

    /// Reads at most `length` bytes of the log from `offset` on, or from behind it where bytes are
    /// missing; returns where they start.
    pub(super) fn read_log(&self, offset: u64, length: usize) -> io::Result<(u64, Vec<u8>)> {
        logbook::read_at(&self.dir, offset, length)
    }

    /// Returns the end of what the process printed itself, fit for a message.
    pub(super) fn diagnosis(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = fs_err::File::open(self.diagnosis_path())?;
            let start = file.metadata()?.len().saturating_sub(DIAGNOSIS_BYTES_MAX);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(DIAGNOSIS_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) if bytes.is_empty() => "it said nothing".to_owned(),
            Ok(bytes) => telemetry::printable(bytes.trim_ascii()),
            Err(_) => "what it said cannot be read".to_owned(),
        }
    }

    /// Takes the lock for a process that is about to be started. The lock belongs to the open
    /// file, so it lives as long as anybody has that.
    pub(super) fn hold(&self) -> io::Result<std::fs::File> {
        let lock = fs_err::File::create(self.dir.join("lock"))?.into_file();
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }

    /// Tells whether the attempt's process lives.
    pub(super) fn is_held(&self) -> io::Result<bool> {
        let Some(lock) = self.open_lock()? else { return Ok(false) };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Blocks until the attempt's process is dead.
    pub(super) fn wait_until_free(&self) -> io::Result<()> {
        let Some(lock) = self.open_lock()? else { return Ok(()) };
        loop {
            match flock(&lock, FlockOperation::LockShared) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Removes everything. The attempt's process must be dead.
    pub(super) fn remove(&self) -> io::Result<()> {
        // Without this file the rest is no attempt any more, wherever removing is interrupted.
        match fs_err::remove_file(self.dir.join("allocation")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match fs_err::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn open_lock(&self) -> io::Result<Option<fs_err::File>> {
        match fs_err::File::open(self.dir.join("lock")) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let bytes = rmp_serde::to_vec_named(value).map_err(io::Error::other)?;
        write_durably(&self.dir, name, &bytes)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let path = self.dir.join(name);
        let bytes = fs_err::read(&path)?;
        rmp_serde::from_slice(&bytes).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        })
    }
}

/// Writes a file that appears whole or not at all, and stays.
pub(super) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let draft = dir.join(format!("{name}.draft"));
    let mut file = fs_err::File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs_err::rename(&draft, dir.join(name))?;
    sync_dir(dir)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs_err::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
