//! One run of a hook, in a process group of its own, with a limit on time and on output.

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    pin::pin,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStderr, ChildStdin, ChildStdout},
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// How much of what a hook prints is kept, in bytes: half its beginning, half its end.
pub const OUTPUT_KEPT_BYTES: usize = 16 * 1024;
/// How much a hook may print, in bytes, before it is killed: reading takes time that others need.
pub const FLOOD_BYTES_MAX: usize = 16 << 20;
/// How long output is waited for when the group is dead: what left the group may hold it open.
const LAST_WORDS_MAX: Duration = Duration::from_millis(200);
/// How much is read at a time.
const READ_BYTES: usize = 8 * 1024;
/// What stands where output was left out.
const CUT: &[u8] = "\n[… more was printed …]\n".as_bytes();

/// What is to be run.
#[derive(Debug)]
pub struct Call<'a> {
    /// The executable.
    pub path: &'a Path,
    /// What it gets on standard input.
    pub text: &'a str,
    /// All variables that it gets.
    pub environment: &'a [(OsString, OsString)],
    /// How long it may take.
    pub time_limit: Duration,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The event was taken.
    Done,
    /// With this exit status, which is not 0.
    Exited(i32),
    /// By a signal that nobody here sent.
    Signaled(i32),
    /// It took too long and was killed, with all that it had started.
    TooLong,
    /// It printed too much and was killed.
    Flooding,
    /// It could not be started, for this reason.
    NotStarted(String),
}

impl End {
    /// Returns how it ended, in words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Exited(status) => format!("exit status {status}"),
            Self::Signaled(signal) => format!("killed by signal {signal}"),
            Self::TooLong => "killed: it took longer than time-limit".to_owned(),
            Self::Flooding => format!("killed: it printed more than {FLOOD_BYTES_MAX} bytes"),
            Self::NotStarted(reason) => format!("could not be started: {reason}"),
        }
    }
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// What it printed, on both outputs as it came: its beginning and its end.
    pub output: Vec<u8>,
}

/// Runs a hook until it and all that it started in its group are dead. When this is dropped, they
/// are killed.
pub async fn run(call: Call<'_>) -> Ran {
    let (group, pipes) = match Group::start(&call) {
        Ok(started) => started,
        Err(error) => {
            return Ran { end: End::NotStarted(error.to_string()), output: Vec::new() };
        }
    };
    let mut kept = Kept::default();
    let end = {
        let mut talking = pin!(talk(pipes, call.text, &mut kept));
        let mut over = pin!(group.over());
        let mut limit = pin!(sleep(call.time_limit));
        let mut said = None;
        let ended = loop {
            tokio::select! {
                () = over.as_mut() => break None,
                () = limit.as_mut() => break Some(End::TooLong),
                one = talking.as_mut(), if said.is_none() => match one {
                    Said::TooMuch => break Some(End::Flooding),
                    // It may close its outputs and go on.
                    Said::All => said = Some(one),
                },
            }
        };
        // Whatever still runs in the group is not waited for.
        group.kill();
        let is_open = ended.is_none() && said.is_none();
        if is_open && timeout(LAST_WORDS_MAX, talking).await.is_err() {
            tracing::debug!("what a hook started outside of its group keeps its output open");
        }
        ended
    };
    let status = group.reap().await;
    let end = end.unwrap_or_else(|| match status {
        Ok(status) if status.success() => End::Done,
        Ok(status) => match status.signal() {
            Some(signal) => End::Signaled(signal),
            None => End::Exited(status.code().unwrap_or(-1)),
        },
        Err(error) => End::NotStarted(error.to_string()),
    });
    Ran { end, output: kept.into_bytes() }
}

/// How talking with a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It closed its outputs.
    All,
    /// It printed more than it may.
    TooMuch,
}

/// Gives a hook its input and takes its output. A hook need not read what it is given.
async fn talk(pipes: Pipes, text: &str, kept: &mut Kept) -> Said {
    let Pipes { mut stdin, mut stdout, mut stderr } = pipes;
    let give = async {
        // Who reads nothing, or is gone, wants nothing.
        stdin.write_all(text.as_bytes()).await.ok();
        stdin.write_all(b"\n").await.ok();
        drop(stdin);
    };
    let take = async {
        let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            tokio::select! {
                read = stdout.read(&mut out), if out_open => {
                    out_open = kept.take(&out, &read);
                }
                read = stderr.read(&mut err), if err_open => {
                    err_open = kept.take(&err, &read);
                }
            }
            if kept.seen > FLOOD_BYTES_MAX {
                return Said::TooMuch;
            }
        }
        Said::All
    };
    let (mut give, mut take) = (pin!(give), pin!(take));
    tokio::select! {
        said = &mut take => said,
        () = &mut give => take.await,
    }
}

/// The ends of a hook's pipes.
struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

/// The processes of a run, killed when dropped.
struct Group {
    child: Child,
    id: Pid,
    is_reaped: bool,
}

impl Group {
    fn start(call: &Call<'_>) -> io::Result<(Self, Pipes)> {
        let mut child = Command::new(call.path)
            .env_clear()
            .envs(call.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let id = Pid::from_child(&child);
        let group = Self { child, id, is_reaped: false };
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(io::Error::other("a process without pipes"));
        };
        let pipes = Pipes {
            stdin: ChildStdin::from_std(stdin)?,
            stdout: ChildStdout::from_std(stdout)?,
            stderr: ChildStderr::from_std(stderr)?,
        };
        Ok((group, pipes))
    }

    /// Waits until the first process is over. It stays a zombie, so that nobody else gets the
    /// number of the group before that was killed.
    async fn over(&self) {
        let id = self.id;
        let wait = move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(id), options), Err(Errno::INTR)) {}
        };
        spawn_blocking(wait).await.expect("waiting does not panic");
    }

    fn kill(&self) {
        match kill_process_group(self.id, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, "a hook could not be killed"),
        }
    }

    /// Takes the exit status of the first process, which has ended or is about to.
    async fn reap(mut self) -> io::Result<ExitStatus> {
        self.over().await;
        self.is_reaped = true;
        self.child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.kill();
            // It was killed, so this takes no time.
            if let Err(error) = self.child.wait() {
                tracing::warn!(%error, "a hook's process was not waited for");
            }
        }
    }
}

/// The beginning and the end of an output.
#[derive(Default)]
struct Kept {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// How much there was in all.
    seen: usize,
}

impl Kept {
    /// Takes what was read; returns whether there may be more.
    fn take(&mut self, buffer: &[u8], read: &io::Result<usize>) -> bool {
        let Ok(count) = *read else { return false };
        let bytes = buffer.get(..count).unwrap_or_default();
        self.push(bytes);
        count > 0
    }

    fn push(&mut self, bytes: &[u8]) {
        const HALF: usize = OUTPUT_KEPT_BYTES / 2;
        self.seen = self.seen.saturating_add(bytes.len());
        let room = HALF.saturating_sub(self.head.len()).min(bytes.len());
        let (head, rest) = bytes.split_at(room);
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(rest);
        let surplus = self.tail.len().saturating_sub(HALF);
        self.tail.drain(..surplus);
    }

    fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.head;
        if self.seen > bytes.len().saturating_add(self.tail.len()) {
            bytes.extend_from_slice(CUT);
        }
        bytes.extend_from_slice(&self.tail);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Runs a shell script as a hook.
    async fn runs(script: &str, time_limit: Duration) -> Ran {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        fs_err::write(&path, script).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let environment = [
            ("PATH".into(), std::env::var_os("PATH").unwrap_or_default()),
            ("WORD".into(), "hello".into()),
        ];
        // Another test may have been about to start a process while the file was open.
        loop {
            let call = Call { path: &path, text: "{}", environment: &environment, time_limit };
            let ran = run(call).await;
            if !matches!(&ran.end, End::NotStarted(reason) if reason.contains("busy")) {
                return ran;
            }
        }
    }

    const LONG: Duration = Duration::from_mins(1);

    fn text(ran: &Ran) -> String {
        String::from_utf8(ran.output.clone()).unwrap()
    }

    #[tokio::test]
    async fn a_hook_gets_its_input_and_variables_and_nothing_else() {
        let ran = runs("#!/bin/sh\ncat; echo $WORD; echo $HOME$USER >&2; exit 7\n", LONG).await;
        assert_eq!(ran.end, End::Exited(7));
        // Two pipes are read, in any order.
        assert!(text(&ran).contains("{}\n") && text(&ran).contains("hello\n"), "{}", text(&ran));
        assert!(!text(&ran).contains("root"), "{}", text(&ran));
    }

    #[tokio::test]
    async fn a_hook_need_not_read_its_input() {
        assert_eq!(runs("#!/bin/sh\nexec <&-; exit 0\n", LONG).await.end, End::Done);
        let ran = runs("#!/bin/sh\nkill -TERM $$\n", LONG).await;
        assert_eq!(ran.end, End::Signaled(15));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_all_that_it_started() {
        // The pipe's other end is closed when the last process that has it is dead.
        let script = "#!/bin/sh\nsleep 1000 & sleep 1000 & echo begun; sleep 1000\n";
        let ran = runs(script, Duration::from_millis(300)).await;
        assert_eq!(ran.end, End::TooLong);
    }

    #[tokio::test]
    async fn what_a_hook_leaves_behind_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reading = {
            let fifo = fifo.clone();
            // Ends when the last process that writes to it is dead.
            spawn_blocking(move || fs_err::read_to_string(fifo))
        };
        let script = format!("#!/bin/sh\nexec 3> {}\nsleep 1000 <&- >&- 2>&- &\n", fifo.display());
        assert_eq!(runs(&script, LONG).await.end, End::Done);
        assert_eq!(timeout(LONG, reading).await.unwrap().unwrap().unwrap(), "");
    }

    #[tokio::test]
    async fn what_left_the_group_holds_nobody_up() {
        let ran = runs("#!/bin/sh\nsetsid sleep 3 &\necho done\n", LONG).await;
        assert_eq!((ran.end.clone(), text(&ran).as_str()), (End::Done, "done\n"));
    }

    #[tokio::test]
    async fn of_a_long_output_the_beginning_and_the_end_are_kept() {
        let ran = runs("#!/bin/sh\necho first; seq 1 100000; echo last >&1\n", LONG).await;
        let text = text(&ran);
        assert!(text.starts_with("first\n1\n") && text.ends_with("100000\nlast\n"));
        assert!(text.contains("more was printed"));
        assert!(text.len() <= OUTPUT_KEPT_BYTES + CUT.len());
    }

    #[tokio::test]
    async fn a_flood_is_stopped() {
        let ran = runs("#!/bin/sh\nexec yes\n", LONG).await;
        assert_eq!(ran.end, End::Flooding);
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_why() {
        let ran = runs("#!/no/such/program\n", LONG).await;
        assert!(matches!(ran.end, End::NotStarted(_)), "{:?}", ran.end);
        assert!(ran.end.words().contains("could not be started"));
    }
}
