//! Builds with a stock Guix daemon, over its Unix socket.
//!
//! Known to work with guix-daemon 1.5.0 (protocol 0x164). The operations and their layouts are
//! those of Guix `nix/nix-daemon/nix-daemon.cc` (`performOp`).
//!
//! What differs from Nix: a derivation is built by its path, so it and all derivations below it
//! have to be in the store ([`Builder::import`] takes them like any path, and needs no signature,
//! because their paths follow from what they contain); a nar whose path does not follow from its
//! content comes in only with a signature by a key of `/etc/guix/acl`, whoever brings it.

mod result;
mod take;
mod trace;

pub use take::{SIGNATURE_BEGIN, needs_signature};

use super::{
    BuildOrder, Builder, BuilderError, Substituters,
    daemon::{
        ANSWER_MAX, Connection, Dialect, GRACE, GcAction, ITEMS_MAX, Kept, PATHS_MAX, Patience,
        WORD_BYTES_MAX, add_temp_roots, check_store, collect, later, plain, put_paths, read_path,
        read_paths, whole_seconds,
    },
};
use crate::{
    core::{
        hash::Sha256,
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    telemetry::{self, Clock},
};
use std::{
    collections::BTreeSet,
    env, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use trace::Trace;

/// Where a Guix daemon listens unless it was told otherwise.
const SOCKET: &str = "/var/guix/daemon-socket/socket";
/// How a URI begins that names a socket (`guix/store.scm`, `connect-to-daemon`).
const FILE_SCHEME: &str = "file://";

/// The operations (`WorkerOp`).
mod op {
    pub(super) const IS_VALID_PATH: u64 = 1;
    pub(super) const ADD_TO_STORE: u64 = 7;
    pub(super) const ADD_TEXT_TO_STORE: u64 = 8;
    pub(super) const BUILD_PATHS: u64 = 9;
    pub(super) const ENSURE_PATH: u64 = 10;
    pub(super) const EXPORT_PATH: u64 = 16;
    pub(super) const SET_OPTIONS: u64 = 19;
    pub(super) const QUERY_PATH_INFO: u64 = 26;
    pub(super) const IMPORT_PATHS: u64 = 27;
    pub(super) const QUERY_VALID_PATHS: u64 = 31;
}

/// Returns the socket that `GUIX_DAEMON_SOCKET` names, else the usual one. Only daemons on this
/// machine serve: a file or a `file://` URI.
#[must_use]
pub fn socket_path() -> PathBuf {
    let Some(named) = env::var_os("GUIX_DAEMON_SOCKET") else { return SOCKET.into() };
    match named.to_str().and_then(|text| text.strip_prefix(FILE_SCHEME)) {
        Some(path) => path.into(),
        None => named.into(),
    }
}

/// A connection to a Guix daemon.
#[derive(Debug)]
pub struct Guix {
    socket: PathBuf,
    store_dir: StoreDir,
    clock: Clock,
    connection: Kept,
}

/// The settings that differ between requests.
#[derive(Debug, Clone, Copy, Default)]
struct Options<'a> {
    substitution: Substitution<'a>,
    timeout: Option<Duration>,
    max_silent: Option<Duration>,
    /// As the daemon is configured when absent.
    cores: Option<u32>,
}

/// Whether the daemon may fetch instead of build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Substitution<'a> {
    /// From these, or where the daemon is configured to.
    On(Option<&'a [String]>),
    #[default]
    Off,
}

impl Guix {
    /// Connects to the daemon behind `socket`, which serves `store_dir`.
    ///
    /// # Errors
    /// [`BuilderError::Unreachable`] or [`BuilderError::Dialect`].
    pub fn connect(socket: &Path, store_dir: StoreDir) -> Result<Self, BuilderError> {
        let clock = Clock::start();
        let connection = Kept::new(Connection::open(socket, clock, Dialect::Guix)?);
        Ok(Self { socket: socket.to_owned(), store_dir, clock, connection })
    }

    /// Opens a connection on which the daemon may fetch: one of its own, so that what it knows of
    /// its substituters is not kept.
    fn substituting(&self, from: Option<&[String]>) -> Result<Connection, BuilderError> {
        let mut connection = Connection::open(&self.socket, self.clock, Dialect::Guix)?;
        let substitution = Substitution::On(from);
        set_options(&mut connection, Options { substitution, ..Options::default() })?;
        Ok(connection)
    }

    /// Asks the daemon to build; errors are left for [`Builder::build`] to judge.
    fn ask_to_build(
        &mut self,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError> {
        let clock = self.clock;
        let options = Options {
            substitution: Substitution::Off,
            timeout: order.timeout,
            max_silent: order.max_silent,
            cores: Some(order.cores),
        };
        let with_grace = |limit: Duration| limit.saturating_add(GRACE);
        let patience = Patience {
            deadline: order.timeout.map(|t| later(clock.now().mono, with_grace(t))),
            silence: order.max_silent.map(with_grace),
        };
        self.connection.with(|connection| {
            set_options(connection, options)?;
            connection.wire.stream().patience = patience;
            let mut trace = Trace::new(order.drv_path);
            let these = std::slice::from_ref(order.drv_path);
            let result = build_paths(connection, these, &mut |text| trace.feed(text, log));
            connection.wire.stream().patience =
                Patience { deadline: None, silence: Some(ANSWER_MAX) };
            let told = trace.finish(log);
            match result {
                Ok(()) => Ok(result::success(&told, order.derivation)),
                Err(BuilderError::Daemon(error)) => {
                    log(error.as_bytes());
                    log(b"\n");
                    Ok(result::failure(&told, &error, order.derivation))
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Returns what a build lacks in the store: the derivations below it and its inputs.
    fn lacking(&mut self, order: &BuildOrder<'_>) -> Result<Vec<StorePath>, BuilderError> {
        let below = order.derivation.input_derivations.iter().map(|(path, _)| path);
        let needed: BTreeSet<StorePath> = below.chain(order.input_paths).cloned().collect();
        let needed: Vec<StorePath> = needed.into_iter().collect();
        let valid = self.valid(&needed)?;
        Ok(needed.into_iter().filter(|path| !valid.contains(path)).collect())
    }
}

impl Builder for Guix {
    fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    fn valid(&mut self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, BuilderError> {
        check_store(&self.store_dir, paths)?;
        self.connection.with(|connection| {
            connection.wire.put_u64(op::QUERY_VALID_PATHS)?;
            put_paths(connection, paths)?;
            connection.answer(&mut |_| {})?;
            Ok(read_paths(connection, PATHS_MAX)?.into_iter().collect())
        })
    }

    fn substitute(&mut self, paths: &[StorePath], from: &Substituters) -> Result<(), BuilderError> {
        check_store(&self.store_dir, paths)?;
        let (derivations, others): (Vec<_>, Vec<_>) =
            paths.iter().cloned().partition(StorePath::is_derivation);
        // What could not be had is no error; the others are there.
        let but_for_refusals = |result| match result {
            Err(BuilderError::Daemon(_)) => Ok(()),
            result => result,
        };
        if !derivations.is_empty() {
            let mut connection = self.substituting(from.derivations.as_deref())?;
            for path in &derivations {
                // Asked to build one, it would build what the derivation describes.
                but_for_refusals(ensure_path(&mut connection, path))?;
            }
        }
        if !others.is_empty() {
            let mut connection = self.substituting(from.others.as_deref())?;
            // A path that is no derivation is made valid by substitution alone.
            but_for_refusals(build_paths(&mut connection, &others, &mut |_| {}))?;
        }
        Ok(())
    }

    fn import(&mut self, info: &PathInfo, nar: &mut dyn Read) -> Result<(), BuilderError> {
        check_store(&self.store_dir, std::slice::from_ref(&info.path))?;
        self.connection.with(|connection| take::take(connection, info, nar))
    }

    fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, BuilderError> {
        check_store(&self.store_dir, std::slice::from_ref(path))?;
        self.connection.with(|connection| {
            connection.wire.put_u64(op::IS_VALID_PATH)?;
            connection.wire.put_bytes(path.to_string().as_bytes())?;
            connection.answer(&mut |_| {})?;
            if connection.wire.u64()? == 0 {
                return Ok(None);
            }
            connection.wire.put_u64(op::QUERY_PATH_INFO)?;
            connection.wire.put_bytes(path.to_string().as_bytes())?;
            connection.answer(&mut |_| {})?;
            read_info(connection, path).map(Some)
        })
    }

    fn dump(&mut self, path: &StorePath, sink: &mut dyn Write) -> Result<(), BuilderError> {
        let info = self.path_info(path)?.ok_or_else(|| BuilderError::NotValid(path.clone()))?;
        self.connection.with(|connection| {
            connection.wire.put_u64(op::EXPORT_PATH)?;
            connection.wire.put_bytes(path.to_string().as_bytes())?;
            connection.wire.put_u64(0)?; // not signed
            // The nar is what an entry of an export stream begins with.
            let mut nar = take::First { left: info.nar_bytes, sink, failed: None };
            let answer = connection.answer_with(&mut io::empty(), &mut nar, &mut |_| {});
            if let Some(source) = nar.failed {
                return Err(BuilderError::Stream { path: path.clone(), source });
            }
            answer?;
            connection.wire.u64()?;
            Ok(())
        })
    }

    fn remove(&mut self, paths: &[StorePath]) -> Result<(), BuilderError> {
        for path in self.valid(paths)? {
            let these = std::slice::from_ref(&path);
            let result = self
                .connection
                .with(|connection| collect(connection, GcAction::DeleteThese, these, u64::MAX));
            match result {
                Err(BuilderError::Daemon(reason)) => {
                    return Err(BuilderError::OutputsPresent { path, reason });
                }
                result => drop(result?),
            }
        }
        Ok(())
    }

    fn collect(&mut self, bytes: u64) -> Result<u64, BuilderError> {
        self.connection.with(|connection| collect(connection, GcAction::DeleteDead, &[], bytes))
    }

    fn root(&mut self, paths: &[StorePath]) -> Result<(), BuilderError> {
        check_store(&self.store_dir, paths)?;
        self.connection.with(|connection| add_temp_roots(connection, paths))
    }

    fn builds_by_path(&self) -> bool {
        true
    }

    fn build(
        &mut self,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError> {
        check_store(&self.store_dir, std::slice::from_ref(order.drv_path))?;
        check_store(&self.store_dir, order.input_paths)?;
        let lacking = self.lacking(order)?;
        if !lacking.is_empty() {
            return Ok(Outcome::SetupFailed(SetupFailure::MissingInputs(lacking)));
        }
        let added = self.connection.with(|connection| {
            let (text, references) =
                (order.derivation.to_bytes(), order.derivation.closure_references());
            take::add_text(connection, order.drv_path, &text, &references)
        });
        match added.and_then(|()| self.ask_to_build(order, log)) {
            // The daemon did not keep its limits, and dropping the connection ends the build.
            Err(BuilderError::Lost(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Ok(Outcome::Failed(match order.timeout {
                    Some(_) => BuildFailure::Timeout,
                    None => BuildFailure::Silent,
                }))
            }
            Err(refusal @ BuilderError::Daemon(_)) => {
                Ok(Outcome::SetupFailed(refusal.setup_failure()))
            }
            Err(error) if error.is_lost() => {
                Ok(Outcome::SetupFailed(SetupFailure::DaemonUnreachable(telemetry::chain(&error))))
            }
            result => result,
        }
    }
}

/// Makes a path valid by substitution, whatever it is.
fn ensure_path(connection: &mut Connection, path: &StorePath) -> Result<(), BuilderError> {
    connection.wire.put_u64(op::ENSURE_PATH)?;
    connection.wire.put_bytes(path.to_string().as_bytes())?;
    connection.answer(&mut |_| {})?;
    connection.wire.u64()?;
    Ok(())
}

/// Builds or substitutes paths, and waits until that is done.
fn build_paths(
    connection: &mut Connection,
    paths: &[StorePath],
    log: &mut dyn FnMut(&[u8]),
) -> Result<(), BuilderError> {
    connection.wire.put_u64(op::BUILD_PATHS)?;
    put_paths(connection, paths)?;
    connection.wire.put_u64(0)?; // build mode: normal
    connection.answer(log)?;
    connection.wire.u64()?;
    Ok(())
}

/// Sets what the daemon may do for the next request.
fn set_options(connection: &mut Connection, options: Options<'_>) -> Result<(), BuilderError> {
    let wire = &mut connection.wire;
    wire.put_u64(op::SET_OPTIONS)?;
    wire.put_u64(0)?; // do not keep the directories of failed builds
    wire.put_u64(1)?; // keep going: of several paths to substitute, every one is tried
    wire.put_u64(0)?; // do not build what cannot be substituted
    wire.put_u64(0)?; // verbosity: errors
    wire.put_u64(0)?; // no build hook: nothing is offloaded from here
    wire.put_u64(0)?; // verbosity of builds: their logs are sent
    wire.put_u64(0)?; // obsolete
    wire.put_u64(1)?; // print the trace that `Trace` reads
    wire.put_u64(u64::from(options.substitution != Substitution::Off))?;
    let seconds = |limit: Option<Duration>| limit.map_or(0, whole_seconds).to_string();
    let mut settings = vec![
        ("print-extended-build-trace", "1".to_owned()),
        ("multiplexed-build-output", "true".to_owned()),
        ("build-max-jobs", "1".to_owned()),
        ("build-timeout", seconds(options.timeout)),
        ("build-max-silent-time", seconds(options.max_silent)),
    ];
    settings.extend(options.cores.map(|cores| ("build-cores", cores.to_string())));
    if let Substitution::On(Some(urls)) = options.substitution {
        settings.push(("substitute-urls", urls.join(" ")));
    }
    wire.put_u64(u64::try_from(settings.len()).unwrap_or(u64::MAX))?;
    for (name, value) in settings {
        wire.put_bytes(name.as_bytes())?;
        wire.put_bytes(value.as_bytes())?;
    }
    connection.answer(&mut |_| {})
}

/// Reads what the daemon knows of a path.
fn read_info(connection: &mut Connection, path: &StorePath) -> Result<PathInfo, BuilderError> {
    let deriver = connection.wire.bytes(WORD_BYTES_MAX)?;
    let hash = connection.wire.bytes(WORD_BYTES_MAX)?;
    let mut references = read_paths(connection, ITEMS_MAX)?;
    references.sort();
    connection.wire.u64()?; // registration time
    let nar_bytes = connection.wire.u64()?;
    let hash = plain(&hash);
    Ok(PathInfo {
        path: path.clone(),
        nar_hash: Sha256::parse(&hash)
            .ok_or_else(|| BuilderError::Protocol(format!("the hash of {path} is ‘{hash}’")))?,
        nar_bytes,
        references,
        deriver: if deriver.is_empty() { None } else { Some(read_path(&deriver)?) },
        signatures: Vec::new(),
        content_address: None,
    })
}
