//! Runs one builder: starts the processes around it, follows its log, and ends all of it in time.

use super::{BuildOrder, BuilderError, sandbox};
use crate::{builders::processes, core::time::Monotonic, telemetry::Clock};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::{
    io::{self, PipeReader, PipeWriter, Read as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// How many pieces of log wait between the pipe and the caller; more stay in the pipe, and then
/// the builder waits.
const PIECES_MAX: usize = 16;
/// The size of one piece of log.
const PIECE_BYTES: usize = 16 * 1024;
/// How long to wait for log before looking whether the builder is still there.
const SLICE: Duration = Duration::from_millis(500);
/// How long the log may stay open after everything was killed: only a process that left the
/// group, on a kernel without namespaces, can hold it.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// The longest report of the processes around the builder, in bytes.
const REPORT_BYTES_MAX: u64 = 64 * 1024;

/// How a builder ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It exited.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// It was killed after its time limit.
    Timeout,
    /// It was killed after printing nothing for its limit.
    Silent,
    /// It was not started.
    Refused(String),
}

/// Starts the builder that `order_file` describes and waits until it and all it started are gone.
pub(super) fn run(
    program: &Path,
    order_file: &Path,
    order: &BuildOrder<'_>,
    log: &mut dyn FnMut(&[u8]),
) -> Result<Ending, BuilderError> {
    let (report, report_writer) = io::pipe()?;
    let (output, output_writer) = io::pipe()?;
    let (alive, held_open) = io::pipe()?;
    let mut group = Group::start(
        held_open,
        Command::new(program)
            .args([sandbox::SUBCOMMAND, sandbox::ENTER])
            .arg(order_file)
            // The variables of the build must not reach our own program's loader.
            .env_clear()
            .stdin(alive)
            .stdout(report_writer)
            .stderr(output_writer)
            .process_group(0),
    )?;
    let pieces = follow(output)?;
    let over = watch(&group, &pieces, order, log);
    group.end()?;
    drain(&pieces, log);
    let mut text = String::new();
    report.take(REPORT_BYTES_MAX).read_to_string(&mut text)?;
    Ok(over.unwrap_or_else(|| read_report(&text)))
}

/// The processes of a build, killed when dropped.
struct Group {
    child: Child,
    id: Pid,
    /// Tells the first of them, before it starts anything, that this process lives.
    _held_open: PipeWriter,
}

impl Group {
    /// Starts the first of them.
    fn start(held_open: PipeWriter, command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let id = Pid::from_child(&child);
        Ok(Self { child, id, _held_open: held_open })
    }

    /// Waits for the first process, or with [`WaitIdOptions::NOHANG`] only looks, and tells whether
    /// it is gone. It stays a zombie, so that nobody else gets the number of the group.
    fn is_over(&self, options: WaitIdOptions) -> bool {
        let options = options | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::Pid(self.id), options) {
                Err(rustix::io::Errno::INTR) => {}
                result => return !matches!(result, Ok(None)),
            }
        }
    }

    /// Kills them all and takes leave of the first.
    ///
    /// Where there are no namespaces, a process that left the group is found below the second of
    /// the processes around the builder, which inherits orphans and so is killed behind them.
    fn end(&mut self) -> io::Result<()> {
        let hidden = processes::children(self.id)
            .and_then(|seconds| seconds.into_iter().try_for_each(sandbox::kill_descendants));
        match kill_process_group(self.id, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        self.child.wait()?;
        hidden
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Without effect after `end`; otherwise an error left the builder running.
        if let Ok(None) = self.child.try_wait()
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, "a builder could not be killed");
        }
    }
}

/// Reads the log on a thread of its own, so that waiting for it can have limits.
fn follow(mut output: PipeReader) -> io::Result<Receiver<Vec<u8>>> {
    let (sender, pieces): (SyncSender<Vec<u8>>, _) = sync_channel(PIECES_MAX);
    let read = move || {
        let mut piece = vec![0u8; PIECE_BYTES];
        loop {
            match output.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    let bytes = piece.get(..count).unwrap_or_default().to_vec();
                    if sender.send(bytes).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("build-log".to_owned()).spawn(read)?;
    Ok(pieces)
}

/// Hands over the log until the builder is gone or over a limit, and tells which limit.
fn watch(
    group: &Group,
    pieces: &Receiver<Vec<u8>>,
    order: &BuildOrder<'_>,
    log: &mut dyn FnMut(&[u8]),
) -> Option<Ending> {
    let clock = Clock::start();
    let mut last_log = Monotonic::default();
    let start = Monotonic::default();
    loop {
        let now = clock.now().mono;
        let timeout_left = left(start, order.timeout, now);
        let silence_left = left(last_log, order.max_silent, now);
        if timeout_left == Some(Duration::ZERO) {
            return Some(Ending::Timeout);
        }
        if silence_left == Some(Duration::ZERO) {
            return Some(Ending::Silent);
        }
        let slice = [timeout_left, silence_left].into_iter().flatten().fold(SLICE, Duration::min);
        match pieces.recv_timeout(slice) {
            Ok(bytes) => {
                last_log = clock.now().mono;
                log(&bytes);
            }
            Err(RecvTimeoutError::Timeout) if group.is_over(WaitIdOptions::NOHANG) => return None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // The processes around the builder hold the log to their end, which is now; their
                // exit may be a moment away.
                group.is_over(WaitIdOptions::empty());
                return None;
            }
        }
    }
}

/// Returns how much of a limit is left.
fn left(since: Monotonic, limit: Option<Duration>, now: Monotonic) -> Option<Duration> {
    let passed = Duration::from_millis(now.as_ms().saturating_sub(since.as_ms()));
    limit.map(|limit| limit.saturating_sub(passed))
}

/// Hands over what is left of the log.
fn drain(pieces: &Receiver<Vec<u8>>, log: &mut dyn FnMut(&[u8])) {
    let clock = Clock::start();
    while let Some(patience) = left(Monotonic::default(), Some(DRAIN_MAX), clock.now().mono)
        .filter(|patience| !patience.is_zero())
    {
        match pieces.recv_timeout(patience) {
            Ok(bytes) => log(&bytes),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Reads the line in which the processes around the builder say how it ended.
fn read_report(text: &str) -> Ending {
    let line = text.lines().next().unwrap_or_default();
    let ended = match line.split_once(' ') {
        Some((sandbox::REPORT_EXIT, code)) => code.parse().ok().map(Ending::Exit),
        Some((sandbox::REPORT_SIGNAL, signal)) => signal.parse().ok().map(Ending::Signal),
        Some((sandbox::REPORT_REFUSED, reason)) => Some(Ending::Refused(reason.to_owned())),
        _ => None,
    };
    ended.unwrap_or_else(|| {
        Ending::Refused("the processes around the builder were killed".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        assert_eq!(read_report("exit 3\n"), Ending::Exit(3));
        assert_eq!(read_report("signal 9\n"), Ending::Signal(9));
        assert_eq!(read_report("refused no mounts\n"), Ending::Refused("no mounts".to_owned()));
        assert!(matches!(read_report(""), Ending::Refused(_)));
        assert!(matches!(read_report("exit x"), Ending::Refused(_)));
    }

    #[test]
    fn what_is_left_of_a_limit_never_goes_below_zero() {
        let (start, now) = (Monotonic::from_ms(1_000), Monotonic::from_ms(4_000));
        assert_eq!(left(start, None, now), None);
        assert_eq!(left(start, Some(Duration::from_secs(5)), now), Some(Duration::from_secs(2)));
        assert_eq!(left(start, Some(Duration::from_secs(3)), now), Some(Duration::ZERO));
        assert_eq!(left(start, Some(Duration::from_secs(1)), now), Some(Duration::ZERO));
    }
}
