//! A coordinator in this process, people with keys, and the stock `ssh` that they use.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command as Probe, Stdio},
    time::Duration,
};
use steading::{
    commands,
    config::Config,
    coordinator::{Coordinator, start},
    ssh::{KeyPair, Role, host_key},
    store::StoreError,
    telemetry::Clock,
};
use tokio::{io::AsyncWriteExt as _, process::Command, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long one command may take; far more than any does.
pub(crate) const COMMAND_MAX: Duration = Duration::from_mins(3);

/// A coordinator on a directory of its own, listening on loopback.
pub(crate) struct Farm {
    dir: tempfile::TempDir,
    pub(crate) coordinator: Coordinator,
    pub(crate) address: SocketAddr,
    cancel: CancellationToken,
    serving: JoinHandle<Result<(), StoreError>>,
}

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Answered {
    /// Returns standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// Returns the lines of standard output.
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.text().lines().collect()
    }

    /// Returns the objects on standard output, one per line.
    pub(crate) fn objects(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Panics with all that was said unless the status is this one.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        let out = self.out.escape_ascii();
        assert_eq!(self.status, status, "stdout: {out}\nstderr: {}", self.err);
        self
    }
}

impl Farm {
    /// Starts a coordinator that knows these people and agents; each key line may be preceded by
    /// options. `None`, with the reason printed, where there is no `ssh`.
    pub(crate) async fn start(config: &Config, known: &[(Role, &str, &str)]) -> Option<Self> {
        Self::start_in(tempfile::tempdir().unwrap(), config, known).await
    }

    /// Does the same where another one may have been before; see [`Farm::stop`].
    #[expect(clippy::print_stdout, reason = "whoever reads the results has to know")]
    pub(crate) async fn start_in(
        dir: tempfile::TempDir,
        config: &Config,
        known: &[(Role, &str, &str)],
    ) -> Option<Self> {
        if Probe::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
            println!("skipped: there is no ssh in PATH");
            return None;
        }
        let state = dir.path().join("state");
        for (role, name, options) in known {
            let key = host_key::load_or_create(&key_file(dir.path(), name)).unwrap();
            let folder = state.join("keys").join(role.folder());
            fs_err::create_dir_all(&folder).unwrap();
            let line = format!("{options} {}\n", key.public_line());
            fs_err::write(folder.join(format!("{name}.pub")), line.trim_start()).unwrap();
        }
        let cancel = CancellationToken::new();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let started =
            start::start(&state, config, listen, Clock::start(), cancel.clone()).await.unwrap();
        let line = format!("[127.0.0.1]:{} {}\n", started.address.port(), started.host_public_key);
        fs_err::write(dir.path().join("known_hosts"), line).unwrap();
        Some(Self {
            dir,
            coordinator: started.coordinator.clone(),
            address: started.address,
            cancel: cancel.clone(),
            serving: tokio::spawn(started.serve(cancel, commands::run)),
        })
    }

    /// Returns the state directory; its folder `run` has the public keys.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Returns the key of somebody who was known at the start.
    pub(crate) fn key(&self, name: &str) -> KeyPair {
        host_key::load(&key_file(self.dir.path(), name)).unwrap()
    }

    /// Returns the command of a stock `ssh` as somebody; `options` are for `ssh` itself.
    pub(crate) fn ssh(&self, name: &str, options: &[&str], line: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.dir.path().join("known_hosts").display()))
            .arg("-i")
            .arg(key_file(self.dir.path(), name))
            .args(["-p", &self.address.port().to_string()])
            .args(options)
            .arg("whoever@127.0.0.1")
            .arg(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        ssh
    }

    /// Runs a line as somebody, without input.
    pub(crate) async fn run(&self, name: &str, line: &str) -> Answered {
        self.feed(name, line, &[]).await
    }

    /// Runs a line as somebody, with this input.
    pub(crate) async fn feed(&self, name: &str, line: &str, input: &[u8]) -> Answered {
        answer(self.ssh(name, &[], line), input).await
    }

    /// Ends the coordinator and waits until it has ended. Returns its directory, in which a
    /// folder `state` is the state directory.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.serving.await.unwrap().unwrap();
        self.dir
    }
}

/// Runs a command to its end.
pub(crate) async fn answer(mut command: Command, input: &[u8]) -> Answered {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = tokio::spawn(async move {
        // The command may end before it has read everything.
        stdin.write_all(&input).await.ok();
    });
    let output = timeout(COMMAND_MAX, child.wait_with_output()).await.unwrap().unwrap();
    feeding.await.unwrap();
    Answered {
        status: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn key_file(dir: &Path, name: &str) -> PathBuf {
    dir.join("clients").join(name)
}
