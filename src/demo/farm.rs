//! The processes of the demo: one coordinator, two agents, and a way to run verbs.

use super::{DemoError, around};
use crate::{
    builders::nix,
    core::store_path::StoreDir,
    ssh::{self, ClientConfig, Connection, Incoming, host_key},
};
use bytes::Bytes;
use fs_err as fs;
use std::{
    fmt, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

/// How long a process may take to start, and an agent to connect.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// How long a process may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How often a condition is looked at that nobody announces.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How much of a stream is sent at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// What builds on this machine.
#[derive(Debug)]
pub(super) enum Kind {
    /// The machine's Nix daemon.
    Nix { store_dir: StoreDir },
    /// The embedded executor; each agent has files of its own, shown to builds as one store.
    DirectApart { store_dir: StoreDir },
    /// The embedded executor without namespaces: both agents use one store.
    DirectTogether { store_dir: StoreDir },
}

impl Kind {
    /// Finds out what this machine has. Nix daemons trust root only, unless told otherwise, so
    /// anybody else gets the embedded executor.
    pub(super) fn of_this_machine(dir: &Path) -> Result<Self, DemoError> {
        let is_root = rustix::process::geteuid().is_root();
        if is_root && UnixStream::connect(nix::socket_path()).is_ok() {
            return Ok(Self::Nix { store_dir: StoreDir::nix() });
        }
        let own = dir.join("store");
        fs::create_dir_all(&own).map_err(around("cannot make a store"))?;
        let store_dir = own
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| DemoError::Unexpected(format!("{} has an odd name", own.display())))?;
        let granted = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        Ok(match granted {
            Ok(status) if status.success() => Self::DirectApart { store_dir },
            Ok(_) | Err(_) => Self::DirectTogether { store_dir },
        })
    }

    pub(super) const fn store_dir(&self) -> &StoreDir {
        match self {
            Self::Nix { store_dir }
            | Self::DirectApart { store_dir }
            | Self::DirectTogether { store_dir } => store_dir,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nix { .. } => "the Nix daemon of this machine",
            Self::DirectApart { .. } => {
                "direct (no Nix daemon that trusts this user); each agent has its own store"
            }
            Self::DirectTogether { .. } => {
                "direct (no Nix daemon that trusts this user, no namespaces); the agents share a \
                 store"
            }
        })
    }
}

/// What a verb answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u32,
    pub(super) out: String,
    pub(super) err: String,
}

/// The running farm. Its processes end with it.
#[derive(Debug)]
pub(super) struct Farm {
    state_dir: PathBuf,
    address: String,
    coordinator: Child,
    agents: Vec<Child>,
    operator: Connection,
}

impl Farm {
    /// Starts everything and waits until both agents are connected.
    pub(super) async fn start(dir: &Path, kind: &Kind) -> Result<Self, DemoError> {
        let state_dir = dir.join("coordinator");
        let program = std::env::current_exe().map_err(around("cannot find this program"))?;
        let operator_key = make_key(dir, &state_dir, "admins", "demo")?;
        for agent in ["amber", "birch"] {
            make_key(dir, &state_dir, "agents", agent)?;
        }
        let coordinator = start_coordinator(&program, &state_dir).await?;
        let read = |name: &str| {
            fs::read_to_string(state_dir.join("run").join(name))
                .map(|text| text.trim_end().to_owned())
                .map_err(around("the coordinator did not write down where it is"))
        };
        let (address, host_key) = (read("address")?, read("host_key.pub")?);
        let mut agents = Vec::new();
        for name in ["amber", "birch"] {
            agents.push(start_agent(&program, dir, name, &address, &state_dir, kind)?);
        }
        let config = ClientConfig {
            address: address.clone(),
            host_keys: vec![host_key],
            identity: host_key::load(&operator_key)
                .map_err(|error| DemoError::Ssh(error.into()))?,
            user: "demo".to_owned(),
        };
        let operator = ssh::connect(&config, &CancellationToken::new())
            .await
            .map_err(|error| DemoError::Ssh(error.into()))?;
        let farm = Self { state_dir, address, coordinator, agents, operator };
        tokio::time::timeout(START_DEADLINE, farm.both_connected()).await.map_err(|_| {
            DemoError::Unexpected("the agents did not connect within a minute".to_owned())
        })??;
        Ok(farm)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone()
    }

    async fn both_connected(&self) -> Result<(), DemoError> {
        loop {
            let answer = self.run("agents --json", None).await?;
            let connected = answer
                .out
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|agent| agent.get("connected") == Some(&true.into()))
                .count();
            if connected == 2 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Runs a verb to its end.
    pub(super) async fn run(
        &self,
        line: &str,
        stdin: Option<Vec<u8>>,
    ) -> Result<Answer, DemoError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = self
            .exchange(line, stdin, |piece| match piece {
                Incoming::Data(bytes) => out.extend_from_slice(bytes),
                Incoming::Stderr(bytes) => err.extend_from_slice(bytes),
                Incoming::Exited(_) | Incoming::Eof | Incoming::Lost => {}
            })
            .await?;
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .map_err(|_| DemoError::Unexpected(format!("‘{line}’ did not print text")))
        };
        Ok(Answer { status, out: text(out)?, err: text(err)? })
    }

    /// Runs a verb and hands over what it prints, while it prints.
    pub(super) async fn stream(&self, line: &str, show: impl Fn(&str)) -> Result<u32, DemoError> {
        let mut rest = Vec::new();
        let status = self
            .exchange(line, None, |piece| {
                if let Incoming::Data(bytes) = piece {
                    rest.extend_from_slice(bytes);
                    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = rest.drain(..=end).collect();
                        show(&crate::telemetry::printable(line.trim_ascii_end()));
                    }
                }
            })
            .await?;
        if !rest.is_empty() {
            show(&crate::telemetry::printable(&rest));
        }
        Ok(status)
    }

    async fn exchange(
        &self,
        line: &str,
        stdin: Option<Vec<u8>>,
        mut take: impl FnMut(&Incoming),
    ) -> Result<u32, DemoError> {
        let (mut reader, writer) =
            self.operator.exec(line).await.map_err(|error| DemoError::Ssh(error.into()))?;
        // Written by a task of its own: whoever does not read while writing can be waited for.
        let sending = tokio::spawn(async move {
            let stdin = Bytes::from(stdin.unwrap_or_default());
            for start in (0..stdin.len()).step_by(PIECE_BYTES) {
                let end = stdin.len().min(start + PIECE_BYTES);
                writer.write(stdin.slice(start..end)).await?;
            }
            writer.end_data().await?;
            Ok::<_, ssh::WriteError>(writer)
        });
        let mut status = None;
        loop {
            let piece = reader.next().await;
            take(&piece);
            match piece {
                Incoming::Exited(code) => status = Some(code),
                Incoming::Eof | Incoming::Lost => break,
                Incoming::Data(_) | Incoming::Stderr(_) => {}
            }
        }
        // A verb may answer before it has read everything.
        drop(sending.await);
        status.ok_or_else(|| DemoError::Unexpected(format!("‘{line}’ ended without a status")))
    }

    /// Stops all processes, as systemd would.
    pub(super) async fn stop(mut self) -> Result<(), DemoError> {
        self.operator.close().await;
        for mut child in self.agents.drain(..).chain([self.coordinator]) {
            let pid = child.id().and_then(|id| i32::try_from(id).ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                    .map_err(|errno| around("cannot stop a process")(errno.into()))?;
            }
            let status = tokio::time::timeout(STOP_DEADLINE, child.wait())
                .await
                .map_err(|_| DemoError::Unexpected("a process does not stop".to_owned()))?
                .map_err(around("cannot wait for a process"))?;
            if !status.success() {
                return Err(DemoError::Unexpected(format!("a process ended with {status}")));
            }
        }
        Ok(())
    }
}

/// Makes a key and enters its public half into the keydir, which is all that joining takes.
fn make_key(dir: &Path, state_dir: &Path, role: &str, name: &str) -> Result<PathBuf, DemoError> {
    let path = dir.join("identities").join(name);
    let key = host_key::load_or_create(&path).map_err(|error| DemoError::Ssh(error.into()))?;
    let folder = state_dir.join("keys").join(role);
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join(format!("{name}.pub")), key.public_line() + "\n"))
        .map_err(around("cannot write a key"))?;
    Ok(path)
}

async fn start_coordinator(program: &Path, state_dir: &Path) -> Result<Child, DemoError> {
    let mut child = Command::new(program)
        .arg("coordinator")
        .arg("--state")
        .arg(state_dir)
        .args(["--listen", "127.0.0.1:0"])
        .env("STEADING_LOG", "steading=warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(around("cannot start the coordinator"))?;
    let stdout = child.stdout.take().ok_or_else(|| {
        around("cannot read what the coordinator prints")(io::ErrorKind::BrokenPipe.into())
    })?;
    let ready = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            if line == "READY" {
                return Ok(true);
            }
        }
        Ok::<_, io::Error>(false)
    };
    match tokio::time::timeout(START_DEADLINE, ready).await {
        Ok(Ok(true)) => Ok(child),
        Ok(Ok(false)) => {
            Err(DemoError::Unexpected("the coordinator ended before it was ready".to_owned()))
        }
        Ok(Err(error)) => Err(around("cannot read what the coordinator prints")(error)),
        Err(_) => Err(DemoError::Unexpected("the coordinator did not become ready".to_owned())),
    }
}

fn start_agent(
    program: &Path,
    dir: &Path,
    name: &str,
    address: &str,
    state_dir: &Path,
    kind: &Kind,
) -> Result<Child, DemoError> {
    let own = dir.join(format!("agent-{name}"));
    let mut command = Command::new(program);
    command
        .arg("agent")
        .arg("--state")
        .arg(&own)
        .args(["--coordinator", address, "--host-key"])
        .arg(state_dir.join("run/host_key.pub"))
        .arg("--identity")
        .arg(dir.join("identities").join(name))
        .env("STEADING_LOG", "steading=warn")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    match kind {
        Kind::Nix { .. } => {
            command.args(["--builder", "nix"]);
        }
        Kind::DirectApart { store_dir } => {
            let files = own.join("files");
            fs::create_dir_all(&files).map_err(around("cannot make a store"))?;
            command.args(["--builder", "direct", "--store-dir", store_dir.as_str()]);
            command.arg("--physical-store-dir").arg(files);
        }
        Kind::DirectTogether { store_dir } => {
            command.args(["--builder", "direct", "--store-dir", store_dir.as_str()]);
        }
    }
    command.spawn().map_err(around("cannot start an agent"))
}
