//! How a derivation is built on this machine.
//!
//! This room owns the ways in which an attempt reaches something that builds: the Unix socket of a
//! stock Nix daemon ([`nix`]) or Guix daemon ([`guix`]), and an executor of its own for machines
//! that have neither ([`direct`]). It never decides what is built or when, talks to no coordinator, and keeps
//! no queue.
//!
//! The entry point is [`open`], which returns a [`Builder`]. Everything here blocks: it is called
//! by the process that an agent starts for each attempt, and by threads that may wait. Bytes from
//! a daemon are foreign bytes: every string, list and wait has a limit, and none of them panics.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used
)]

mod daemon;
pub mod direct;
pub mod guix;
pub mod nix;
pub mod processes;
pub mod tree;
pub mod wire;

use crate::core::{
    derivation::Derivation,
    hash::Sha256,
    outcome::{Outcome, SetupFailure},
    path_info::PathInfo,
    store_path::{StoreDir, StorePath},
};
use crate::{formats::nar, telemetry};
use std::{
    collections::BTreeSet,
    error::Error,
    io::{self, Read, Write},
    path::PathBuf,
    time::Duration,
};

/// Something on this machine that holds a store and builds derivations into it.
///
/// One value is one connection: an attempt opens its own. After an error whose
/// [`BuilderError::is_lost`] is true the value is of no further use and another must be opened.
pub trait Builder: Send {
    /// Returns the directory of the store that is built into.
    fn store_dir(&self) -> &StoreDir;

    /// Returns those of `paths` that are valid here.
    ///
    /// # Errors
    /// The connection is lost, or the state of the store could not be read.
    fn valid(&mut self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, BuilderError>;

    /// Lets the machine's substituters fetch what they have of `paths` and of their references.
    ///
    /// That a path could not be had is no error: ask [`Builder::valid`] afterwards.
    ///
    /// # Errors
    /// The connection is lost.
    fn substitute(&mut self, paths: &[StorePath], from: &Substituters) -> Result<(), BuilderError>;

    /// Takes in a path whose references are valid already; reads `info.nar_bytes` from `nar`.
    ///
    /// A path that is valid already is left as it is; its nar is then still read, or the
    /// remainder dropped.
    ///
    /// # Errors
    /// The nar is not what `info` says, could not be read, or the store refuses it.
    fn import(&mut self, info: &PathInfo, nar: &mut dyn Read) -> Result<(), BuilderError>;

    /// Returns what the store knows of a path; nothing when the path is not valid.
    ///
    /// # Errors
    /// The connection is lost, or the store's record cannot be read.
    fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, BuilderError>;

    /// Writes the nar of a valid path.
    ///
    /// # Errors
    /// The path is not valid, or reading or writing failed.
    fn dump(&mut self, path: &StorePath, sink: &mut dyn Write) -> Result<(), BuilderError>;

    /// Removes those of `paths` that are valid, so that an attempt really builds them.
    ///
    /// # Errors
    /// [`BuilderError::OutputsPresent`] when one cannot be removed, because something else needs
    /// it.
    fn remove(&mut self, paths: &[StorePath]) -> Result<(), BuilderError>;

    /// Removes paths that nothing needs until about so many bytes are free that were not, and
    /// returns how many were freed. Takes minutes in a large store.
    ///
    /// What was rooted ([`Builder::root`]) or built by a builder that still lives stays.
    ///
    /// # Errors
    /// The connection is lost, or the store could not be searched.
    fn collect(&mut self, bytes: u64) -> Result<u64, BuilderError>;

    /// Keeps `paths` and all they refer to from garbage collection for as long as this value lives,
    /// also those that become valid later.
    ///
    /// # Errors
    /// The connection is lost.
    fn root(&mut self, paths: &[StorePath]) -> Result<(), BuilderError>;

    /// Tells whether derivations are built by their paths, so that all derivations below one have
    /// to be valid here, too, and their sources. Otherwise the inputs alone are enough.
    fn builds_by_path(&self) -> bool;

    /// Builds a derivation all of whose inputs are valid, and hands over its log as it appears.
    ///
    /// Whatever happens to the build is an [`Outcome`], also that the daemon went away meanwhile.
    ///
    /// # Errors
    /// The value is of no use any more, before the build was asked for.
    fn build(
        &mut self,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError>;
}

/// What is to be built, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct BuildOrder<'a> {
    /// The path of the derivation; the file itself need not be in the store, and is put there where
    /// [`Builder::builds_by_path`].
    pub drv_path: &'a StorePath,
    /// The derivation.
    pub derivation: &'a Derivation<'a>,
    /// The sources and the outputs of input derivations that it names, all of them valid here; and
    /// the input derivations themselves where [`Builder::builds_by_path`].
    pub input_paths: &'a [StorePath],
    /// How long the build may run; without limit when absent.
    pub timeout: Option<Duration>,
    /// How long it may print nothing; without limit when absent.
    pub max_silent: Option<Duration>,
    /// How many processors it should use, as `NIX_BUILD_CORES` tells it.
    pub cores: u32,
}

/// Where a daemon fetches what it does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Substituters {
    /// The substituters for derivations; the daemon's own when absent, none when empty.
    pub derivations: Option<Vec<String>>,
    /// The substituters for all other paths; the daemon's own when absent, none when empty.
    pub others: Option<Vec<String>>,
}

/// Which builder to open.
#[derive(Debug, Clone)]
pub enum BuilderKind {
    /// A Nix daemon behind its Unix socket.
    Nix {
        /// The socket; [`nix::socket_path`] knows the usual one.
        socket: PathBuf,
        /// The store directory that the daemon serves. The protocol does not tell it.
        store_dir: StoreDir,
    },
    /// A Guix daemon behind its Unix socket.
    Guix {
        /// The socket; [`guix::socket_path`] knows the usual one.
        socket: PathBuf,
        /// The store directory that the daemon serves. The protocol does not tell it.
        store_dir: StoreDir,
    },
    /// The embedded executor.
    Direct(direct::Place),
}

/// Opens the builder of that kind.
///
/// # Errors
/// [`BuilderError::Unreachable`] when there is no daemon, [`BuilderError::Dialect`] when it is the
/// other kind of daemon or none at all, [`BuilderError::Files`] when directories cannot be made.
pub fn open(kind: BuilderKind) -> Result<Box<dyn Builder>, BuilderError> {
    Ok(match kind {
        BuilderKind::Nix { socket, store_dir } => Box::new(nix::Nix::connect(&socket, store_dir)?),
        BuilderKind::Guix { socket, store_dir } => {
            Box::new(guix::Guix::connect(&socket, store_dir)?)
        }
        BuilderKind::Direct(place) => Box::new(direct::Direct::open(place)?),
    })
}

/// Returns what a store has to know of a derivation with this text, which no signature is needed
/// for, and its nar.
///
/// # Errors
/// [`BuilderError::Files`] never comes of memory.
pub fn derivation_nar(
    path: &StorePath,
    text: &[u8],
    references: Vec<StorePath>,
) -> Result<(PathInfo, Vec<u8>), BuilderError> {
    let nar = nar::plain_file(text).map_err(io::Error::other)?;
    let info = PathInfo {
        path: path.clone(),
        nar_hash: Sha256::of(&nar),
        nar_bytes: u64::try_from(nar.len()).unwrap_or(u64::MAX),
        references,
        deriver: None,
        signatures: Vec::new(),
        content_address: Some(format!("text:{}", Sha256::of(text))),
    };
    Ok((info, nar))
}

/// Why a builder could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// There is no daemon behind the socket.
    #[error("no daemon answers at {}: is it running?", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// What connecting to it said.
        #[source]
        source: io::Error,
    },
    /// The connection ended, or the daemon was silent for longer than anything takes.
    #[error("the connection to the daemon is lost")]
    Lost(#[source] io::Error),
    /// An earlier error left the connection in the middle of a message.
    #[error("the connection to the daemon was given up after an earlier error: open another")]
    GivenUp,
    /// What answered speaks another protocol than the one asked for.
    #[error("this is not the daemon that was expected: {0}")]
    Dialect(String),
    /// The daemon's bytes break its protocol.
    #[error("the daemon broke its protocol: {0}")]
    Protocol(String),
    /// The daemon refused, in its own words.
    #[error("the daemon refused: {0}")]
    Daemon(String),
    /// A path was expected to be valid.
    #[error("{0} is not valid in this store")]
    NotValid(StorePath),
    /// A path belongs to another store directory than this builder's.
    #[error("{path} is not in {store_dir}, the store of this builder")]
    OtherStore {
        /// The path.
        path: StorePath,
        /// The builder's store directory.
        store_dir: StoreDir,
    },
    /// An output is there already and something needs it.
    #[error("{path} is there already and cannot be removed: {reason}")]
    OutputsPresent {
        /// The output.
        path: StorePath,
        /// Who needs it, or what the daemon said.
        reason: String,
    },
    /// A nar is not the one that was promised.
    #[error("the nar of {path} is not the promised one: {expected} promised, {actual} received")]
    NarMismatch {
        /// The path that should have been taken in.
        path: StorePath,
        /// The promised hash.
        expected: Sha256,
        /// The hash of what came.
        actual: Sha256,
    },
    /// The nar of a path could not be read from where it comes, or written to where it goes.
    #[error("the nar of {path} could not be passed on")]
    Stream {
        /// The path.
        path: StorePath,
        /// What reading or writing said.
        #[source]
        source: io::Error,
    },
    /// A tree of the store could not be read, written or removed, or the nar is none.
    #[error("a tree in the store could not be read, written or removed")]
    Tree(#[from] tree::TreeError),
    /// The store's own files could not be read or written.
    #[error("the files of the store could not be read or written")]
    Files(#[from] io::Error),
    /// A record of the store is not what was written there.
    #[error("{} is damaged: remove it, and the path it describes will be fetched again", file.display())]
    Record {
        /// The file of the record.
        file: PathBuf,
        /// What reading it said.
        #[source]
        source: serde_json::Error,
    },
}

impl BuilderError {
    /// Tells whether the builder is of no further use, so that another must be opened.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::GivenUp | Self::Protocol(_))
    }

    /// Returns the setup failure that an attempt reports for this error.
    #[must_use]
    pub fn setup_failure(&self) -> SetupFailure {
        match self {
            Self::Unreachable { .. } | Self::Lost(_) | Self::GivenUp | Self::Protocol(_) => {
                SetupFailure::DaemonUnreachable(telemetry::chain(self))
            }
            Self::NotValid(path) => SetupFailure::MissingInputs(vec![path.clone()]),
            Self::OutputsPresent { path, .. } => SetupFailure::OutputsPresent(path.clone()),
            Self::Daemon(text) if nix::says_disk_full(text) => SetupFailure::DiskFull,
            Self::Tree(_) | Self::Files(_) if self.is_disk_full() => SetupFailure::DiskFull,
            Self::Dialect(_)
            | Self::Daemon(_)
            | Self::OtherStore { .. }
            | Self::NarMismatch { .. }
            | Self::Stream { .. }
            | Self::Tree(_)
            | Self::Files(_)
            | Self::Record { .. } => SetupFailure::Refused(telemetry::chain(self)),
        }
    }

    /// Tells whether there was no space left for a file.
    fn is_disk_full(&self) -> bool {
        let first: Option<&(dyn Error + 'static)> = Some(self);
        std::iter::successors(first, |error| (*error).source())
            .filter_map(|error| error.downcast_ref::<io::Error>())
            .any(|error| error.kind() == io::ErrorKind::StorageFull)
    }

    /// Tells apart whether the store's side or the other side of a nar failed.
    fn of_tree(path: &StorePath, error: tree::TreeError) -> Self {
        match error {
            tree::TreeError::Source(source) | tree::TreeError::Sink(source) => {
                Self::Stream { path: path.clone(), source }
            }
            error => Self::Tree(error),
        }
    }
}
