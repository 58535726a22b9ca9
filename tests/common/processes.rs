//! A farm of real processes: a coordinator, agents, and the stock `ssh` that talks to it.

use crate::wait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};
use steading::ssh::host_key;
use tempfile::TempDir;

/// The program under test.
pub(crate) const STEADING: &str = env!("CARGO_BIN_EXE_steading");

/// One farm. Its processes end with it.
pub(crate) struct Farm {
    dir: TempDir,
    coordinator: Child,
    agents: Vec<Child>,
    port: u16,
}

impl Farm {
    /// Starts a coordinator with an admin called `operator`.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("farm").tempdir_in("/tmp").unwrap();
        add_key(dir.path(), "admins", "operator");
        let coordinator = start_coordinator(dir.path(), 0);
        let mut farm = Self { dir, coordinator, agents: Vec::new(), port: 0 };
        let address = farm.run_file("address");
        farm.port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let known = format!("[127.0.0.1]:{} {}\n", farm.port, farm.run_file("host_key.pub"));
        fs_err::write(farm.dir.path().join("known_hosts"), known).unwrap();
        farm
    }

    /// Returns the state directory of the coordinator.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("coordinator")
    }

    /// Returns a file that the coordinator writes for scripts.
    pub(crate) fn run_file(&self, name: &str) -> String {
        let text = fs_err::read_to_string(self.state().join("run").join(name)).unwrap();
        text.trim_end().to_owned()
    }

    /// Starts an agent with one slot on a Nix daemon.
    pub(crate) fn start_nix_agent(&mut self, name: &str, socket: &Path) {
        add_key(self.dir.path(), "agents", name);
        let agent = self.agent(name, socket, &["agent"]).spawn().unwrap();
        self.agents.push(agent);
    }

    /// Lets the doctor look at an agent with more options; returns its status and what it found.
    pub(crate) fn doctor(
        &self,
        name: &str,
        socket: &Path,
        options: &[&str],
    ) -> (Option<i32>, Vec<serde_json::Value>) {
        let mut command = self.agent(name, socket, &["agent", "doctor"]);
        let output = command.arg("--json").args(options).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), found)
    }

    /// Writes the settings that an agent reads when it starts or is told to.
    pub(crate) fn write_settings(&self, name: &str, text: &str) {
        fs_err::create_dir_all(self.agent_dir(name)).unwrap();
        fs_err::write(self.agent_dir(name).join("agent.toml"), text).unwrap();
    }

    /// Tells all agents to read their settings again.
    pub(crate) fn hang_up(&self) {
        for agent in &self.agents {
            let agent = Pid::from_raw(agent.id().try_into().unwrap()).unwrap();
            kill_process(agent, Signal::HUP).unwrap();
        }
    }

    /// Returns the nars that an agent has packed and not delivered yet, of attempts that ended.
    pub(crate) fn packed(&self, name: &str) -> Vec<PathBuf> {
        let attempts = self.agent_dir(name).join("attempts");
        let mut packed = Vec::new();
        for attempt in fs_err::read_dir(attempts).unwrap() {
            let attempt = attempt.unwrap().path();
            if attempt.join("result").exists() {
                let files = fs_err::read_dir(attempt).unwrap().map(|file| file.unwrap().path());
                packed.extend(files.filter(|file| file.extension().is_some_and(|e| e == "zst")));
            }
        }
        packed
    }

    fn agent_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("agent-{name}"))
    }

    /// Returns a command with the options of an agent on a Nix daemon.
    fn agent(&self, name: &str, socket: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(STEADING);
        command
            .args(words)
            .arg("--state")
            .arg(self.agent_dir(name))
            .arg("--coordinator")
            .arg(format!("127.0.0.1:{}", self.port))
            .arg("--host-key")
            .arg(self.state().join("run/host_key.pub"))
            .arg("--identity")
            .arg(self.dir.path().join("identities").join(name))
            .args(["--builder", "nix"])
            .env("NIX_DAEMON_SOCKET_PATH", socket)
            .stdin(Stdio::null());
        command
    }

    /// Returns the words in front of a verb: `ssh` and its options.
    pub(crate) fn ssh_words(&self) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut words: Vec<String> = ["ssh", "-F", "none", "-T"].map(str::to_owned).to_vec();
        for option in [
            "BatchMode=yes".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            format!("UserKnownHostsFile={}", path("known_hosts")),
            format!("IdentityFile={}", path("identities/operator")),
        ] {
            words.extend(["-o".to_owned(), option]);
        }
        words.extend(["-p".to_owned(), self.port.to_string(), "127.0.0.1".to_owned()]);
        words
    }

    /// Returns a stock `ssh` that runs a verb.
    pub(crate) fn ssh(&self, verb: &str) -> Command {
        let words = self.ssh_words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(verb).stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub(crate) fn run(&self, verb: &str) -> Output {
        self.ssh(verb).output().unwrap()
    }

    /// Runs a verb that must succeed, and returns the objects that it prints.
    pub(crate) fn objects(&self, verb: &str) -> Vec<serde_json::Value> {
        let output = self.run(&format!("{verb} --json"));
        assert!(output.status.success(), "{verb}: {}", output.stderr.escape_ascii());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Kills the coordinator as a power failure would.
    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator.kill().unwrap();
        self.coordinator.wait().unwrap();
    }

    /// Starts the coordinator again where it was.
    pub(crate) fn restart_coordinator(&mut self) {
        self.coordinator = start_coordinator(self.dir.path(), self.port);
    }

    /// Returns the most memory the coordinator has had, in KiB.
    pub(crate) fn coordinator_peak_kib(&self) -> u64 {
        let status = format!("/proc/{}/status", self.coordinator.id());
        let status = fs_err::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        for mut child in self.agents.drain(..) {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().unwrap();
        }
        self.coordinator.kill().ok();
        self.coordinator.wait().unwrap();
    }
}

/// Makes a key and enters its public half into the keydir.
fn add_key(dir: &Path, role: &str, name: &str) {
    let key = host_key::load_or_create(&dir.join("identities").join(name)).unwrap();
    let folder = dir.join("coordinator/keys").join(role);
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join(format!("{name}.pub")), key.public_line() + "\n").unwrap();
}

fn start_coordinator(dir: &Path, port: u16) -> Child {
    let mut child = Command::new(STEADING)
        .arg("coordinator")
        .arg("--state")
        .arg(dir.join("coordinator"))
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.any(|line| line.unwrap() == "READY");
    assert!(ready, "the coordinator ended before it was ready");
    child
}

/// Waits until at least one build is in a state.
pub(crate) fn until_some_build_is(farm: &Farm, state: &str) {
    wait::until(&format!("a build is {state}"), || {
        !farm.objects(&format!("builds --state {state}")).is_empty()
    });
}

/// Returns the next lines of a process, one at a time.
pub(crate) fn lines_of(stdout: ChildStdout) -> impl Iterator<Item = String> {
    BufReader::new(stdout).lines().map(Result::unwrap)
}
