//! Verbs on the coordinator, through the stock `ssh`.

use super::settings::Settings;
use crate::telemetry::Clock;
use serde::de::DeserializeOwned;
use std::{
    io::{self, Read as _, Write as _},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// What ssh is told beside what the settings say, which has precedence: no questions, and an end
/// when nothing comes for a minute.
const OPTIONS: [&str; 11] = [
    "-T",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=15",
    "-o",
    "ServerAliveCountMax=4",
    "-o",
    "LogLevel=ERROR",
];
/// The most that one answer may have, in bytes: a few hundred for each path that is asked for.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// The most that is kept of what a verb says on standard error, in bytes.
const REMARKS_BYTES_MAX: u64 = 64 * 1024;
/// The first pause before another try; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// What ssh exits with when the connection failed (ssh(1)).
const SSH_FAILED: i32 = 255;
/// What a verb exits with that may succeed when it is tried again (`src/commands/README.md`).
const TRY_AGAIN: i32 = 75;
/// What a verb exits with when something does not exist (`src/commands/README.md`).
const NO_SUCH: i32 = 3;

/// The coordinator, seen from here.
#[derive(Debug, Clone)]
pub(super) struct Farm<'a> {
    settings: &'a Settings,
    clock: Clock,
}

/// Why a verb has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum FarmError {
    /// `ssh` cannot be run.
    #[error("ssh cannot be run; is it installed?")]
    Run(#[source] io::Error),
    /// The coordinator is not reached, or is stopping.
    #[error("the coordinator is not reached: {0}")]
    Unreachable(String),
    /// What was named does not exist there.
    #[error("{0}")]
    NoSuch(String),
    /// The coordinator refused.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// The coordinator's answer cannot be read.
    #[error("the coordinator's answer is not understood; is it older than this program?")]
    Answer(#[source] serde_json::Error),
    /// The answer is longer than anything should be.
    #[error("the coordinator's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// What was to be sent could not be read.
    #[error("{0}")]
    Input(String),
    /// Whoever wanted it is gone.
    #[error("nobody waits for it any more")]
    Unwanted,
}

impl<'a> Farm<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { settings, clock: Clock::start() }
    }

    /// Returns milliseconds on a clock that only goes forward.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now().mono.as_ms()
    }

    /// Returns the command that runs a verb.
    pub(super) fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(&self.settings.ssh);
        command.args(&self.settings.destination).args(OPTIONS);
        command.arg("--").arg(shell_words::join(words)).stdin(Stdio::null());
        command
    }

    /// Runs a verb with `--json`, and returns the objects that it prints. `input` is what it reads.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        words: &[&str],
        input: &str,
    ) -> Result<Vec<T>, FarmError> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.send(&words, |mut stdin| match stdin.write_all(input.as_bytes()) {
            // The verb answers without having read all; it says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(|error| FarmError::Input(error.to_string())),
        })
    }

    /// The same for a verb that reads a stream, which `feed` writes.
    pub(super) fn send<T: DeserializeOwned>(
        &self,
        words: &[String],
        feed: impl FnOnce(ChildStdin) -> Result<(), FarmError> + Send,
    ) -> Result<Vec<T>, FarmError> {
        let words: Vec<String> = words.iter().cloned().chain(["--json".to_owned()]).collect();
        let mut command = self.command(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(FarmError::Run)?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (mut answer, mut remarks) = (Vec::new(), Vec::new());
        let (sent, read) = thread::scope(|scope| {
            let feeding = scope.spawn(move || stdin.map_or(Ok(()), feed));
            let remarks = &mut remarks;
            scope.spawn(move || {
                let Some(stderr) = stderr else { return };
                let mut stderr = stderr.take(REMARKS_BYTES_MAX);
                // What cannot be read of the remarks is missed by people only.
                stderr.read_to_end(remarks).ok();
                io::copy(&mut stderr.into_inner(), &mut io::sink()).ok();
            });
            let read = stdout.map_or(Ok(0), |stdout| {
                stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map(|n| n as u64)
            });
            let gone = || Err(FarmError::Input("the sender of the stream panicked".to_owned()));
            (feeding.join().unwrap_or_else(|_| gone()), read)
        });
        let read = read.map_err(FarmError::Run)?;
        // The coordinator's own words say more than a broken pipe does.
        judge(wait(&mut child)?, &remarks)?;
        sent?;
        if read == ANSWER_BYTES_MAX {
            return Err(FarmError::TooLong);
        }
        let objects = serde_json::Deserializer::from_slice(&answer).into_iter::<T>();
        objects.collect::<Result<_, _>>().map_err(FarmError::Answer)
    }

    /// Tries until the coordinator is reached, or for as long as the settings say.
    pub(super) fn persist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, FarmError>,
    ) -> Result<T, FarmError> {
        let give_up = self.now_ms() + u64::from(self.settings.patience) * 1_000;
        let mut pause = PAUSE_MIN;
        loop {
            match attempt() {
                Err(FarmError::Unreachable(reason)) if self.now_ms() < give_up => {
                    if pause == PAUSE_MIN {
                        super::remark(&format!("trying again to reach the farm: {reason}"));
                    }
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                result => return result,
            }
        }
    }
}

/// Waits for the end of a child whose output was read.
pub(super) fn wait(child: &mut Child) -> Result<ExitStatus, FarmError> {
    child.wait().map_err(FarmError::Run)
}

/// Tells what the end of `ssh` means. `remarks` is what it and the verb said.
pub(super) fn judge(status: ExitStatus, remarks: &[u8]) -> Result<(), FarmError> {
    let words = |otherwise: &str| {
        let lines = remarks.trim_ascii().utf8_chunks().map(|chunk| chunk.valid());
        let text: String = lines.collect();
        if text.is_empty() { otherwise.to_owned() } else { text.replace('\n', " ") }
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(SSH_FAILED) => Err(FarmError::Unreachable(words("ssh has no connection"))),
        Some(TRY_AGAIN) => Err(FarmError::Unreachable(words("it asks to try again later"))),
        Some(NO_SUCH) => Err(FarmError::NoSuch(words("there is no such thing there"))),
        Some(status) => Err(FarmError::Refused(words(&format!("exit status {status}")))),
        None => Err(FarmError::Unreachable(words("ssh was killed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    fn judged(status: i32, remarks: &str) -> Result<(), FarmError> {
        judge(ExitStatus::from_raw(status << 8), remarks.as_bytes())
    }

    #[test]
    fn an_exit_status_tells_whether_another_try_can_help() {
        assert!(judged(0, "a remark").is_ok());
        for status in [255, 75] {
            let error = judged(status, "gone\n").unwrap_err();
            assert!(matches!(&error, FarmError::Unreachable(words) if words == "gone"), "{error}");
        }
        assert!(matches!(judged(3, ""), Err(FarmError::NoSuch(_))));
        assert!(matches!(judged(5, "no"), Err(FarmError::Refused(words)) if words == "no"));
        let killed = judge(ExitStatus::from_raw(9), b"");
        assert!(matches!(killed, Err(FarmError::Unreachable(_))));
    }
}
