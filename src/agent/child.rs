//! The process of an attempt, seen from the agent: starting it, noticing its death, ending it.
//!
//! Whether it lives is never read from a process number, which may belong to somebody else by
//! now, but from the lock in its spool. The agent takes the lock and gives the open file to the
//! process as standard input; the kernel frees it when the process dies, however that comes
//! about. This holds for processes that an earlier agent started, too.

use super::{attempt::SUBCOMMAND, spool::Spool};
use crate::{
    builders::processes::{self, descendants},
    telemetry,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    convert::Infallible,
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};
use tokio::sync::oneshot;

/// How often an attempt is searched for further processes before its first one is killed: each
/// round kills all that it finds, so only what forks faster than that outlives many rounds.
const ROUNDS_MAX: usize = 100;
/// The pause between two such rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(20);

/// Starts the attempt's process.
pub(super) fn start(program: &Path, spool: &Spool) -> io::Result<Child> {
    let lock = spool.hold()?;
    let diagnosis = fs_err::File::create(spool.diagnosis_path())?.into_file();
    Command::new(program)
        .arg(SUBCOMMAND)
        .arg(spool.dir())
        .stdin(lock)
        .stdout(diagnosis.try_clone()?)
        .stderr(Stdio::from(diagnosis))
        .spawn()
}

/// Returns what is closed when the attempt's process has died; `child` if this process started it.
pub(super) fn ended(
    spool: &Spool,
    child: Option<Child>,
) -> io::Result<oneshot::Receiver<Infallible>> {
    let (dead, ended) = oneshot::channel::<Infallible>();
    let spool = spool.clone();
    // A thread of its own, because it waits as long as the build takes: tokio's would be waited
    // for when the agent stops.
    let watch = move || {
        if let Err(error) = spool.wait_until_free() {
            // Nobody knows what the process does, so the agent must not go on without it.
            tracing::error!(error = telemetry::chain(&error), "lock of an attempt is unreadable");
        }
        if let Some(mut child) = child
            && let Err(error) = child.wait()
        {
            tracing::warn!(error = telemetry::chain(&error), "attempt's process not waited for");
        }
        // Dropping it tells the same: nobody needs an answer when the attempt was forgotten.
        drop(dead);
    };
    thread::Builder::new().name("attempt-end".to_owned()).spawn(watch)?;
    Ok(ended)
}

/// Kills the attempt's process and everything it started, and waits until it is dead. Does nothing
/// when it is dead already.
///
/// What left its session is found, too: the attempt's process inherits the orphans among all that
/// it started.
///
/// There is no gentle signal before: nothing of such an attempt is kept, and a daemon stops its
/// build when its client is gone. The first process is stopped at once, so that it neither sees
/// nor reports what happens to the others, and killed last, so that it goes on
/// inheriting orphans meanwhile.
pub(super) fn kill(spool: &Spool) -> io::Result<()> {
    for _ in 0..ROUNDS_MAX {
        if !spool.is_held()? {
            return Ok(());
        }
        let Some(leader) = find(spool)? else {
            // It is between its birth and its first instruction, or between its last and its
            // death.
            thread::sleep(ROUND_PAUSE);
            continue;
        };
        signal(leader, Signal::STOP)?;
        for _ in 0..ROUNDS_MAX {
            let others = descendants(leader)?;
            if others.is_empty() {
                break;
            }
            for process in others {
                signal(process, Signal::KILL)?;
            }
            thread::sleep(ROUND_PAUSE);
        }
        signal(leader, Signal::KILL)?;
        return spool.wait_until_free();
    }
    Err(io::Error::other("the process that holds the attempt's lock was not found"))
}

/// Sends a signal to a process that may be gone by now.
fn signal(process: Pid, signal: Signal) -> io::Result<()> {
    match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Finds the process of an attempt by its command line, which names the spool.
fn find(spool: &Spool) -> io::Result<Option<Pid>> {
    for process in processes::all()? {
        // A process may end at any moment, and then has no command line.
        let line = fs_err::read(format!("/proc/{}/cmdline", process.as_raw_nonzero()));
        let line = line.unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_attempt = words.any(|word| word == SUBCOMMAND.as_bytes());
        if is_attempt && words.next() == Some(spool.dir().as_os_str().as_bytes()) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::id::{AttemptId, BuildId},
        protocol::message::Allocation,
    };
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _, path::PathBuf};
    use tokio::sync::oneshot::error::TryRecvError;

    fn spool(dir: &Path) -> Spool {
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).unwrap();
        let allocation = Allocation {
            attempt: AttemptId::from_bytes(random),
            build: BuildId::from_bytes([2; 16]),
            derivation: "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x.drv".parse().unwrap(),
            timeout_ms: None,
            max_silent_ms: None,
        };
        Spool::create(dir, &allocation).unwrap()
    }

    /// Makes a program that stands for `steading` and runs these shell commands.
    fn program(dir: &Path, commands: &str) -> PathBuf {
        let path = dir.join("program");
        fs_err::write(&path, format!("#!/bin/sh\n{commands}\n")).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn the_death_of_a_process_frees_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let fifo = dir.path().join("fifo");
        let commands = format!("mkfifo {0}.new; mv {0}.new {0}; read line < {0}", fifo.display());
        let child = start(&program(dir.path(), &commands), &spool).unwrap();
        let mut own = ended(&spool, Some(child)).unwrap();
        // Another agent, which did not start it, sees the same.
        let mut adopted = ended(&spool, None).unwrap();
        assert!(spool.is_held().unwrap());
        assert_eq!(own.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(adopted.try_recv(), Err(TryRecvError::Empty));
        while !fifo.exists() {
            tokio::task::yield_now().await;
        }
        fs_err::write(&fifo, b"go\n").unwrap();
        own.await.unwrap_err();
        adopted.await.unwrap_err();
        assert!(!spool.is_held().unwrap());
    }

    #[test]
    fn killing_reaches_everything_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        // The pipe's other end is closed when the last process that has it is dead.
        let (mut alive, end) = io::pipe().unwrap();
        let program =
            program(dir.path(), "sleep 1000 & setsid sleep 1000 & (sleep 1000; true) & wait");
        let lock = spool.hold().unwrap();
        let mut child = Command::new("setsid")
            .arg(program)
            .arg(SUBCOMMAND)
            .arg(spool.dir())
            .stdin(lock)
            .stdout(end)
            .spawn()
            .unwrap();
        // Unlike a real attempt, a shell does not inherit the orphans of whoever dies while it is
        // still starting something, so all four are there first.
        let begun = || find(&spool).unwrap().map_or(0, |leader| descendants(leader).unwrap().len());
        while begun() < 4 {
            thread::yield_now();
        }
        kill(&spool).unwrap();
        assert!(!spool.is_held().unwrap());
        child.wait().unwrap();
        let mut rest = Vec::new();
        alive.read_to_end(&mut rest).unwrap();
        kill(&spool).unwrap();
    }
}
