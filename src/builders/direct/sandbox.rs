//! The processes around a builder, which enter namespaces before it starts.
//!
//! `unshare` changes the calling process for good and needs it to have one thread, so the agent
//! starts its own executable again, twice:
//!
//! * `steading direct-sandbox enter ORDER` unshares what the kernel lets it, shows the build a
//!   store that holds its inputs and nothing else ([`mounts`]), and starts
//! * `steading direct-sandbox begin-isolated ORDER` (`begin-plain` where there are no namespaces):
//!   the first process of the process namespace. It gives up the right to all files that are not
//!   the build's ([`files`]), starts the builder, waits for it, and when it exits the kernel ends
//!   everything the builder left running. Without a process namespace it does that itself.
//!
//! ORDER is a file with an [`Order`] as MessagePack. Standard error is the build's log; on standard
//! output one line says how it ended: `exit CODE`, `signal NUMBER` or `refused REASON`. Each
//! process is killed when its parent dies, so ending an attempt ends its build; standard input is
//! a pipe whose other end the parent holds, for a parent that dies before that is arranged.

mod files;
mod mounts;

use crate::builders::processes;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::net::{
    AddressFamily, SendFlags, SocketType, netlink::SocketAddrNetlink, sendto, socket,
};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getegid, geteuid, getpid, kill_process,
    set_child_subreaper, set_parent_process_death_signal, setrlimit, umask, wait,
};
use rustix::{
    fs::{OFlags, fcntl_setfl},
    io::{Errno, read},
};
use serde_bytes::ByteBuf;
use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// The hidden subcommand that [`enter`] implements.
pub const SUBCOMMAND: &str = "direct-sandbox";
/// The first stage.
pub(super) const ENTER: &str = "enter";
/// The second stage, in namespaces.
const BEGIN_ISOLATED: &str = "begin-isolated";
/// The second stage, where the kernel grants no namespaces.
const BEGIN_PLAIN: &str = "begin-plain";

/// The report of a builder that exited.
pub(super) const REPORT_EXIT: &str = "exit";
/// The report of a builder that a signal ended.
pub(super) const REPORT_SIGNAL: &str = "signal";
/// The report of a builder that was not started.
pub(super) const REPORT_REFUSED: &str = "refused";

/// The user and group that the builder sees itself as in its own namespace, as in Nix's sandbox.
const BUILD_USER: u32 = 1000;
const BUILD_GROUP: u32 = 100;

/// What to start, and in what surroundings.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Order {
    /// The program.
    pub(super) builder: ByteBuf,
    /// Its arguments, without its name.
    pub(super) arguments: Vec<ByteBuf>,
    /// Its whole environment.
    pub(super) environment: Vec<Variable>,
    /// Its working directory.
    pub(super) directory: PathBuf,
    /// Whether it reaches the network.
    pub(super) network: Network,
    /// A directory of its own that it sees as `/tmp`, where that can be mounted.
    pub(super) temporary: PathBuf,
    /// Directories of the machine that it reads and writes, too.
    pub(super) shared: Vec<PathBuf>,
    /// The store that it reads and writes.
    pub(super) store: StoreView,
}

/// One environment variable.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Variable {
    pub(super) name: ByteBuf,
    pub(super) value: ByteBuf,
}

/// The network that a builder sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Network {
    /// The machine's: for fixed outputs, whose content is known.
    Host,
    /// None.
    Own,
}

/// The store as a build sees it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct StoreView {
    /// Where the build expects it.
    pub(super) logical: PathBuf,
    /// Where its files are.
    pub(super) physical: PathBuf,
    /// An empty directory on the filesystem of the files: in namespaces it becomes the build's
    /// store, and afterwards holds the outputs.
    pub(super) scratch: PathBuf,
    /// The names in the store of the closure of the build's inputs.
    pub(super) inputs: Vec<String>,
}

/// Runs one of the stages: the arguments are what follows `direct-sandbox` on the command line.
///
/// The calling process must have one thread, so this comes before any runtime is started.
pub fn enter(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let (stage, file) = (arguments.next().unwrap_or_default(), arguments.next());
    let ended = match (stage.to_str(), file) {
        (Some(ENTER), Some(file)) => enter_namespaces(Path::new(&file)),
        (Some(BEGIN_ISOLATED), Some(file)) => begin(Path::new(&file), Surroundings::Isolated),
        (Some(BEGIN_PLAIN), Some(file)) => begin(Path::new(&file), Surroundings::Plain),
        _ => Err("this subcommand is for the agent's own use".to_owned()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // The report is one line.
            report(REPORT_REFUSED, &reason.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Whether the second stage runs in namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Surroundings {
    Isolated,
    Plain,
}

/// The first stage.
fn enter_namespaces(file: &Path) -> Result<(), String> {
    die_with_parent()?;
    let order = read_order(file)?;
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC;
    if order.network == Network::Own {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let stage = match unshare(flags) {
        Ok(()) => {
            map_ids((0, user), (0, group)).map_err(|e| format!("mapping user ids: {e}"))?;
            if order.network == Network::Own {
                raise_loopback().map_err(|e| format!("raising the loopback device: {e}"))?;
            }
            mounts::show_store(&order.store)?;
            mounts::show_temporary(&order)?;
            BEGIN_ISOLATED
        }
        Err(error) if order.store.logical == order.store.physical => {
            note(&format!("the kernel grants no namespaces ({error}): building without isolation"));
            BEGIN_PLAIN
        }
        Err(error) => {
            return Err(format!(
                "the kernel grants no namespaces ({error}), so {} cannot be mounted at {}",
                order.store.physical.display(),
                order.store.logical.display()
            ));
        }
    };
    let (alive, _held_open) = io::pipe().map_err(|error| format!("making a pipe: {error}"))?;
    let mut begin = Command::new(super::Place::THIS_PROGRAM);
    begin.args([SUBCOMMAND, stage]).arg(file).env_clear().stdin(alive);
    // Its own end is in its report, or shows as the lack of one.
    begin.status().map(drop).map_err(|error| format!("starting {stage}: {error}"))
}

/// Brings up the only device of a new network namespace, so that a build can talk to itself.
///
/// The message is an `ifinfomsg` behind an `nlmsghdr`, as rtnetlink(7) and netlink(7) have them.
fn raise_loopback() -> io::Result<()> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const LOOPBACK_INDEX: u32 = 1;
    const IFF_UP: u32 = 1;
    let mut message = Vec::new();
    message.extend_from_slice(&LENGTH.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence number, port, and of the interface its family and type: all zero.
    message.extend_from_slice(&[0; 12]);
    // Its index, its flags, and which of them are meant.
    for number in [LOOPBACK_INDEX, IFF_UP, IFF_UP] {
        message.extend_from_slice(&number.to_ne_bytes());
    }
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}

/// The second stage.
fn begin(file: &Path, surroundings: Surroundings) -> Result<(), String> {
    die_with_parent()?;
    let order = read_order(file)?;
    if surroundings == Surroundings::Plain {
        set_child_subreaper(Some(getpid())).map_err(|e| format!("inheriting orphans: {e}"))?;
    } else {
        // Without it the builder sees the numbers of the machine's processes, which harms nothing;
        // in some containers the kernel does not allow more.
        let none = None::<&str>;
        if let Err(error) = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none) {
            note(&format!("/proc shows the machine's processes: {error}"));
        }
        unshare(CloneFlags::CLONE_NEWUSER)
            .map_err(io::Error::from)
            .and_then(|()| map_ids((BUILD_USER, 0), (BUILD_GROUP, 0)))
            .map_err(|error| format!("becoming the build's user: {error}"))?;
    }
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| format!("switching off core files: {error}"))?;
    match files::give_up_others(&order, surroundings) {
        Ok(true) => {}
        Ok(false) => note("the kernel has no landlock: the build reaches the machine's files"),
        Err(error) => return Err(format!("giving up the machine's files: {error}")),
    }
    match start(&order) {
        Ok(builder) => wait_for(builder, surroundings),
        Err(error) => {
            // As in Nix, this is the derivation's failure.
            note(&format!("executing '{}': {error}", order.builder.escape_ascii()));
            report(REPORT_EXIT, "1");
            Ok(())
        }
    }
}

/// Starts the builder.
fn start(order: &Order) -> io::Result<Pid> {
    let path = OsStr::from_bytes(&order.builder);
    let name = Path::new(path).file_name().unwrap_or(path);
    let variables = order.environment.iter();
    let child = Command::new(path)
        .arg0(name)
        .args(order.arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .envs(variables.map(|v| (OsStr::from_bytes(&v.name), OsStr::from_bytes(&v.value))))
        .current_dir(&order.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::from(io::stderr()))
        .spawn()?;
    Ok(Pid::from_child(&child))
}

/// Takes leave of every process that ends, until it is the builder; reports how that ended.
fn wait_for(builder: Pid, surroundings: Surroundings) -> Result<(), String> {
    loop {
        let status = match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == builder => status,
            Ok(_) | Err(Errno::INTR) => continue,
            Err(error) => return Err(format!("waiting for the builder: {error}")),
        };
        if surroundings == Surroundings::Plain {
            // In namespaces the kernel does it when this process exits.
            kill_descendants(getpid()).map_err(|e| format!("ending what was left: {e}"))?;
        }
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => report(REPORT_EXIT, &code.to_string()),
            (None, Some(signal)) => report(REPORT_SIGNAL, &signal.to_string()),
            (None, None) => continue,
        }
        return Ok(());
    }
}

/// How often what a process started is searched for more: each round kills all that it finds, so
/// only what forks faster than that outlives many rounds.
const ROUNDS_MAX: usize = 100;

/// Kills all that a process started, but not the process.
pub(super) fn kill_descendants(root: Pid) -> io::Result<()> {
    for _ in 0..ROUNDS_MAX {
        let found = processes::descendants(root)?;
        if found.is_empty() {
            return Ok(());
        }
        for process in found {
            match kill_process(process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(io::Error::other("it starts processes faster than they can be ended"))
}

/// Maps one user and one group of the surrounding namespace into this process's new one: pairs of
/// (inside, outside).
fn map_ids(user: (u32, u32), group: (u32, u32)) -> io::Result<()> {
    // Required before an unprivileged process may map its group: user_namespaces(7).
    fs_err::write("/proc/self/setgroups", "deny")?;
    fs_err::write("/proc/self/uid_map", format!("{} {} 1\n", user.0, user.1))?;
    fs_err::write("/proc/self/gid_map", format!("{} {} 1\n", group.0, group.1))
}

/// Has the kernel kill this process when the one that started it dies, and finds out whether it
/// has died already: its end of the pipe that is standard input here is closed then. Without that
/// a builder could go on that nobody waits for, while another begins on the same outputs.
fn die_with_parent() -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("following the parent's death: {error}"))?;
    let input = io::stdin();
    fcntl_setfl(&input, OFlags::NONBLOCK)
        .map_err(|error| format!("looking for the parent: {error}"))?;
    match read(&input, &mut [0u8; 1]) {
        Err(Errno::AGAIN) => Ok(()),
        Ok(_) => Err("the process that started this one has died".to_owned()),
        Err(error) => Err(format!("looking for the parent: {error}")),
    }
}

/// Reads the order.
fn read_order(file: &Path) -> Result<Order, String> {
    let bytes = fs_err::read(file).map_err(|error| error.to_string())?;
    rmp_serde::from_slice(&bytes).map_err(|error| format!("reading the order: {error}"))
}

/// Writes a line into the build's log. That nobody reads it any more is no reason to stop.
fn note(text: &str) {
    let _written = writeln!(io::stderr(), "steading: {text}");
}

/// Says how the build ended.
fn report(word: &str, rest: &str) {
    let _written = writeln!(io::stdout(), "{word} {rest}");
}
