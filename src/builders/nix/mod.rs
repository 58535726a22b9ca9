//! Builds with a stock Nix daemon, over its Unix socket.
//!
//! Known to work with the daemons of Nix 2.8 (protocol 1.34) to 2.34 (1.38). The operations and
//! their layouts are those of Nix `src/libstore/daemon.cc` (`performOp`).
//!
//! A daemon that says that it does not trust this process's user is asked to build derivations by
//! their paths, as a Guix daemon is, and takes in what the coordinator signed.

mod result;

pub use super::daemon::Trust;
pub(crate) use result::says_disk_full;
pub(super) use result::{number_after, shortened};

use super::{
    BuildOrder, Builder, BuilderError, Substituters,
    daemon::{
        ANSWER_MAX, Connection, Dialect, GRACE, GcAction, ITEMS_MAX, Kept, LOG_DELAY_MAX,
        PATHS_MAX, Patience, TEXT_BYTES_MAX, WORD_BYTES_MAX, add_temp_roots, check_store, collect,
        later, plain, put_paths, read_path, read_paths, whole_seconds,
    },
    derivation_nar,
    wire::WireError,
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

/// Where a Nix daemon listens unless it was told otherwise.
const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// The operations (`WorkerProto::Op`).
mod op {
    pub(super) const BUILD_PATHS: u64 = 9;
    pub(super) const SET_OPTIONS: u64 = 19;
    pub(super) const QUERY_PATH_INFO: u64 = 26;
    pub(super) const QUERY_VALID_PATHS: u64 = 31;
    pub(super) const BUILD_DERIVATION: u64 = 36;
    pub(super) const NAR_FROM_PATH: u64 = 38;
    pub(super) const ADD_TO_STORE_NAR: u64 = 39;
    /// Since 1.34; daemons that tell whether they trust a user have it.
    pub(super) const BUILD_PATHS_WITH_RESULTS: u64 = 46;
}

/// Returns the socket that `NIX_DAEMON_SOCKET_PATH` names, else the usual one.
#[must_use]
pub fn socket_path() -> PathBuf {
    env::var_os("NIX_DAEMON_SOCKET_PATH").map_or_else(|| SOCKET.into(), PathBuf::from)
}

/// A connection to a Nix daemon.
#[derive(Debug)]
pub struct Nix {
    socket: PathBuf,
    store_dir: StoreDir,
    clock: Clock,
    connection: Kept,
}

/// Whether the daemon may fetch instead of build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Substitution<'a> {
    /// From these, or where the daemon is configured to.
    On(Option<&'a [String]>),
    Off,
}

/// The settings that differ between requests.
#[derive(Debug, Clone, Copy)]
struct Options<'a> {
    substitution: Substitution<'a>,
    timeout: Option<Duration>,
    max_silent: Option<Duration>,
    cores: u32,
}

/// How a build is asked for.
#[derive(Debug, Clone, Copy)]
enum Request {
    /// By what the derivation says and the paths of its inputs.
    Derivation,
    /// By the path of the derivation, which is in the store with all below it.
    Path,
}

impl Options<'_> {
    /// No limits, and nothing fetched.
    const NONE: Self =
        Self { substitution: Substitution::Off, timeout: None, max_silent: None, cores: 0 };
}

impl Nix {
    /// Connects to the daemon behind `socket`.
    ///
    /// # Errors
    /// [`BuilderError::Unreachable`] or [`BuilderError::Dialect`].
    pub fn connect(socket: &Path, store_dir: StoreDir) -> Result<Self, BuilderError> {
        let clock = Clock::start();
        let connection = Kept::new(Connection::open(socket, clock, Dialect::Nix)?);
        Ok(Self { socket: socket.to_owned(), store_dir, clock, connection })
    }

    /// Returns what the daemon says of its version, for people.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.connection.get()?.version.as_deref()
    }

    /// Returns whether the daemon trusts this process's user.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.connection.get().map_or(Trust::Unknown, |connection| connection.trust)
    }

    /// Takes in a path only if the daemon believes one of its signatures, whoever brings it.
    ///
    /// # Errors
    /// As [`Builder::import`]; [`BuilderError::Daemon`] when it believes none.
    pub fn import_signed(
        &mut self,
        info: &PathInfo,
        nar: &mut dyn Read,
    ) -> Result<(), BuilderError> {
        self.import_checking(Signatures::Checked, info, nar)
    }

    /// Takes in a path.
    fn import_checking(
        &mut self,
        signatures: Signatures,
        info: &PathInfo,
        nar: &mut dyn Read,
    ) -> Result<(), BuilderError> {
        check_store(&self.store_dir, std::slice::from_ref(&info.path))?;
        self.connection.with(|connection| {
            put_info(connection, signatures, info)?;
            connection.wire.put_framed(info.nar_bytes, nar).map_err(|error| match error {
                WireError::Source(source) => {
                    BuilderError::Stream { path: info.path.clone(), source }
                }
                error => error.into(),
            })?;
            connection.answer(&mut |_| {})
        })
    }

    /// Lets the daemon fetch paths of one kind, over a connection of its own: a daemon looks at its
    /// list of substituters once in a connection (`getDefaultSubstituters`).
    fn substitute_from(
        &self,
        paths: &[StorePath],
        substituters: Option<&[String]>,
    ) -> Result<(), BuilderError> {
        if paths.is_empty() {
            return Ok(());
        }
        let mut connection = Connection::open(&self.socket, self.clock, Dialect::Nix)?;
        let options = Options { substitution: Substitution::On(substituters), ..Options::NONE };
        let mut request = || {
            set_options(&mut connection, options)?;
            connection.wire.put_u64(op::BUILD_PATHS)?;
            // A path that is no derivation is made valid by substitution alone.
            put_paths(&mut connection, paths)?;
            connection.wire.put_u64(0)?; // build mode: normal
            connection.answer(&mut |_| {})?;
            connection.wire.u64()?;
            Ok(())
        };
        match request() {
            // Some could not be had; the others are there.
            Err(BuilderError::Daemon(_)) => Ok(()),
            result => result,
        }
    }

    /// Puts a derivation into the store: its path follows from its text, so nobody's word is needed.
    fn add_derivation(&mut self, order: &BuildOrder<'_>) -> Result<(), BuilderError> {
        let references = order.derivation.closure_references();
        let text = order.derivation.to_bytes();
        let (info, nar) = derivation_nar(order.drv_path, &text, references)?;
        self.import_checking(Signatures::Checked, &info, &mut nar.as_slice())
    }

    /// Asks the daemon to build; errors are left for [`Builder::build`] to judge.
    fn ask_to_build(
        &mut self,
        request: Request,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError> {
        let clock = self.clock;
        let options = Options {
            timeout: order.timeout,
            max_silent: order.max_silent,
            cores: order.cores,
            ..Options::NONE
        };
        let with_grace = |limit: Duration| limit.saturating_add(GRACE);
        let patience = Patience {
            deadline: order.timeout.map(|t| later(clock.now().mono, with_grace(t))),
            silence: order.max_silent.map(with_grace),
        };
        self.connection.with(|connection| {
            set_options(connection, options)?;
            match request {
                Request::Derivation => put_derivation(connection, order)?,
                Request::Path => put_path_to_build(connection, order.drv_path)?,
            }
            connection.wire.stream().patience = patience;
            let began = clock.now().mono;
            let mut last_log = began;
            connection.answer(&mut |bytes| {
                last_log = clock.now().mono;
                log(bytes);
            })?;
            let ended = clock.now().mono;
            match request {
                Request::Derivation => {}
                Request::Path => expect_one(connection)?,
            }
            let (status, text) = build_result(connection)?;
            connection.wire.stream().patience =
                Patience { deadline: None, silence: Some(ANSWER_MAX) };
            if !text.is_empty() {
                log(text.as_bytes());
                log(b"\n");
            }
            let over_time = order.timeout.is_some_and(|limit| later(began, limit) <= ended);
            // The daemon counts from when it sent the last line, which is a little earlier.
            let nearly = |limit: Duration| limit.saturating_sub(LOG_DELAY_MAX);
            let was_silent = !over_time
                && order.max_silent.is_some_and(|limit| later(last_log, nearly(limit)) <= ended);
            let told = result::Told { status, text: &text, was_silent };
            Ok(result::outcome(&told, order.derivation))
        })
    }
}

impl Builder for Nix {
    fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    fn valid(&mut self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, BuilderError> {
        check_store(&self.store_dir, paths)?;
        self.connection.with(|connection| {
            connection.wire.put_u64(op::QUERY_VALID_PATHS)?;
            put_paths(connection, paths)?;
            connection.wire.put_u64(0)?; // do not substitute
            connection.answer(&mut |_| {})?;
            Ok(read_paths(connection, PATHS_MAX)?.into_iter().collect())
        })
    }

    fn substitute(&mut self, paths: &[StorePath], from: &Substituters) -> Result<(), BuilderError> {
        check_store(&self.store_dir, paths)?;
        let (derivations, others): (Vec<_>, Vec<_>) =
            paths.iter().cloned().partition(StorePath::is_derivation);
        self.substitute_from(&derivations, from.derivations.as_deref())?;
        self.substitute_from(&others, from.others.as_deref())
    }

    fn import(&mut self, info: &PathInfo, nar: &mut dyn Read) -> Result<(), BuilderError> {
        // The coordinator has verified it, and where the daemon trusts us, that is enough.
        let signatures = match self.trust() {
            Trust::Untrusted => Signatures::Checked,
            Trust::Trusted | Trust::Unknown => Signatures::Ignored,
        };
        self.import_checking(signatures, info, nar)
    }

    fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, BuilderError> {
        check_store(&self.store_dir, std::slice::from_ref(path))?;
        self.connection.with(|connection| {
            connection.wire.put_u64(op::QUERY_PATH_INFO)?;
            connection.wire.put_bytes(path.to_string().as_bytes())?;
            connection.answer(&mut |_| {})?;
            if connection.wire.u64()? == 0 {
                return Ok(None);
            }
            read_info(connection, path).map(Some)
        })
    }

    fn dump(&mut self, path: &StorePath, sink: &mut dyn Write) -> Result<(), BuilderError> {
        // The nar comes without its length, so the record of the path must tell it.
        let info = self.path_info(path)?.ok_or_else(|| BuilderError::NotValid(path.clone()))?;
        self.connection.with(|connection| {
            connection.wire.put_u64(op::NAR_FROM_PATH)?;
            connection.wire.put_bytes(path.to_string().as_bytes())?;
            connection.answer(&mut |_| {})?;
            connection.wire.copy_to(info.nar_bytes, sink).map_err(|error| match error {
                WireError::Sink(source) => BuilderError::Stream { path: path.clone(), source },
                error => error.into(),
            })
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
        // Those who are not trusted may not say what a derivation is, but for fixed outputs.
        self.trust() == Trust::Untrusted
    }

    fn build(
        &mut self,
        order: &BuildOrder<'_>,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, BuilderError> {
        check_store(&self.store_dir, std::slice::from_ref(order.drv_path))?;
        check_store(&self.store_dir, order.input_paths)?;
        let request = match self.connection.get().ok_or(BuilderError::GivenUp)?.trust {
            Trust::Trusted | Trust::Unknown => Request::Derivation,
            Trust::Untrusted => Request::Path,
        };
        match request {
            Request::Derivation => {}
            Request::Path => match self.add_derivation(order) {
                Err(refusal @ BuilderError::Daemon(_)) => {
                    return Ok(Outcome::SetupFailed(refusal.setup_failure()));
                }
                added => added?,
            },
        }
        let start = self.clock.now().mono;
        match self.ask_to_build(request, order, log) {
            // The daemon did not keep its limits, and dropping the connection ends the build.
            Err(BuilderError::Lost(error)) if error.kind() == io::ErrorKind::TimedOut => {
                let over = order.timeout.is_some_and(|t| later(start, t) <= self.clock.now().mono);
                let failure = if over { BuildFailure::Timeout } else { BuildFailure::Silent };
                Ok(Outcome::Failed(failure))
            }
            Err(BuilderError::Daemon(text)) => {
                log(text.as_bytes());
                log(b"\n");
                let refusal = BuilderError::Daemon(text);
                Ok(Outcome::SetupFailed(refusal.setup_failure()))
            }
            Err(error) if error.is_lost() => {
                Ok(Outcome::SetupFailed(SetupFailure::DaemonUnreachable(telemetry::chain(&error))))
            }
            result => result,
        }
    }
}

/// Sets what the daemon may do for the next request.
fn set_options(connection: &mut Connection, options: Options<'_>) -> Result<(), BuilderError> {
    let seconds = |limit: Option<Duration>| limit.map_or(0, whole_seconds);
    let wire = &mut connection.wire;
    wire.put_u64(op::SET_OPTIONS)?;
    wire.put_u64(0)?; // do not keep the directories of failed builds
    wire.put_u64(1)?; // keep going: of several paths to substitute, every one is tried
    wire.put_u64(0)?; // do not build what cannot be substituted
    wire.put_u64(1)?; // verbosity: warnings
    wire.put_u64(1)?; // one build at a time, which is all that is asked for
    wire.put_u64(seconds(options.max_silent))?;
    wire.put_u64(1)?; // obsolete
    wire.put_u64(0)?; // verbosity of builds: their log lines are sent
    wire.put_u64(0)?; // obsolete
    wire.put_u64(0)?; // obsolete
    wire.put_u64(u64::from(options.cores))?;
    wire.put_u64(u64::from(options.substitution != Substitution::Off))?;
    // Untrusted clients may set these too: the time limit, and that no other machine builds.
    let mut settings =
        vec![("timeout", seconds(options.timeout).to_string()), ("builders", String::new())];
    if let Substitution::On(Some(urls)) = options.substitution {
        // Those that an untrusted client names are used only if the daemon's `trusted-substituters`
        // list them, too.
        settings.push(("substituters", urls.join(" ")));
    }
    wire.put_u64(u64::try_from(settings.len()).unwrap_or(u64::MAX))?;
    for (name, value) in settings {
        wire.put_bytes(name.as_bytes())?;
        wire.put_bytes(value.as_bytes())?;
    }
    connection.answer(&mut |_| {})
}

/// Writes the request to build a derivation whose inputs are given as paths (`BasicDerivation`).
fn put_derivation(connection: &mut Connection, order: &BuildOrder<'_>) -> Result<(), BuilderError> {
    let derivation = order.derivation;
    let wire = &mut connection.wire;
    wire.put_u64(op::BUILD_DERIVATION)?;
    wire.put_bytes(order.drv_path.to_string().as_bytes())?;
    wire.put_u64(u64::try_from(derivation.outputs.len()).unwrap_or(u64::MAX))?;
    for output in &derivation.outputs {
        wire.put_bytes(output.name.as_bytes())?;
        wire.put_bytes(output.path.to_string().as_bytes())?;
        wire.put_bytes(output.hash_algorithm.as_bytes())?;
        wire.put_bytes(output.hash.as_bytes())?;
    }
    let inputs: BTreeSet<_> = order.input_paths.iter().map(ToString::to_string).collect();
    wire.put_list(inputs.iter())?;
    wire.put_bytes(derivation.system.as_bytes())?;
    wire.put_bytes(&derivation.builder)?;
    wire.put_list(derivation.arguments.iter())?;
    wire.put_u64(u64::try_from(derivation.env.len()).unwrap_or(u64::MAX))?;
    for (name, value) in &derivation.env {
        wire.put_bytes(name)?;
        wire.put_bytes(value)?;
    }
    wire.put_u64(0)?; // build mode: normal
    Ok(())
}

/// Writes the request to build all outputs of a derivation of the store.
fn put_path_to_build(
    connection: &mut Connection,
    drv_path: &StorePath,
) -> Result<(), BuilderError> {
    connection.wire.put_u64(op::BUILD_PATHS_WITH_RESULTS)?;
    connection.wire.put_list([format!("{drv_path}!*")].iter())?;
    connection.wire.put_u64(0)?; // build mode: normal
    Ok(())
}

/// Reads up to the one result of such a request.
fn expect_one(connection: &mut Connection) -> Result<(), BuilderError> {
    match connection.wire.count(ITEMS_MAX)? {
        1 => drop(connection.wire.bytes(WORD_BYTES_MAX)?), // what was asked for
        count => return Err(BuilderError::Protocol(format!("{count} results of one build"))),
    }
    Ok(())
}

/// Reads a `BuildResult` and returns its status and its text.
fn build_result(connection: &mut Connection) -> Result<(u64, String), BuilderError> {
    let wire = &mut connection.wire;
    let status = wire.u64()?;
    let text = plain(&wire.text(TEXT_BYTES_MAX)?);
    for _ in 0..4 {
        wire.u64()?; // times built, whether they differed, start, stop
    }
    for _ in 0..wire.count(ITEMS_MAX)? {
        wire.text(WORD_BYTES_MAX)?; // the output
        wire.text(TEXT_BYTES_MAX)?; // its realisation
    }
    Ok((status, text))
}

/// Whether the daemon looks at the signatures of what it takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signatures {
    Checked,
    Ignored,
}

/// Writes the request to take in a nar.
fn put_info(
    connection: &mut Connection,
    signatures: Signatures,
    info: &PathInfo,
) -> Result<(), BuilderError> {
    let wire = &mut connection.wire;
    wire.put_u64(op::ADD_TO_STORE_NAR)?;
    wire.put_bytes(info.path.to_string().as_bytes())?;
    let deriver = info.deriver.as_ref().map(ToString::to_string).unwrap_or_default();
    wire.put_bytes(deriver.as_bytes())?;
    wire.put_bytes(info.nar_hash.hex().as_bytes())?;
    wire.put_list(info.references.iter().map(ToString::to_string))?;
    wire.put_u64(0)?; // registration time: the daemon's
    wire.put_u64(info.nar_bytes)?;
    wire.put_u64(0)?; // not built here
    wire.put_list(info.signatures.iter())?;
    wire.put_bytes(info.content_address.as_deref().unwrap_or_default().as_bytes())?;
    wire.put_u64(0)?; // no repair
    wire.put_u64(u64::from(signatures == Signatures::Ignored))?;
    Ok(())
}

/// Reads what the daemon knows of a path (`UnkeyedValidPathInfo`).
fn read_info(connection: &mut Connection, path: &StorePath) -> Result<PathInfo, BuilderError> {
    let deriver = connection.wire.bytes(WORD_BYTES_MAX)?;
    let hash = connection.wire.bytes(WORD_BYTES_MAX)?;
    let mut references = read_paths(connection, ITEMS_MAX)?;
    references.sort();
    let wire = &mut connection.wire;
    wire.u64()?; // registration time
    let nar_bytes = wire.u64()?;
    wire.u64()?; // whether it was built here
    let signatures = wire.list(ITEMS_MAX, WORD_BYTES_MAX)?;
    let content_address = wire.bytes(WORD_BYTES_MAX)?;
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .map_err(|error| BuilderError::Protocol(format!("of {path}: {error}")))
    };
    let hash = text(hash)?;
    Ok(PathInfo {
        path: path.clone(),
        nar_hash: Sha256::parse(&hash)
            .ok_or_else(|| BuilderError::Protocol(format!("the hash of {path} is ‘{hash}’")))?,
        nar_bytes,
        references,
        deriver: if deriver.is_empty() { None } else { Some(read_path(&deriver)?) },
        signatures: signatures.into_iter().map(text).collect::<Result<_, _>>()?,
        content_address: Some(text(content_address)?).filter(|text| !text.is_empty()),
    })
}
