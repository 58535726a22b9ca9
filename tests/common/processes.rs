//! A farm of real processes: a coordinator, agents, and the stock `ssh` that talks to it.

use crate::wait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
};
use steading::{core::store_path::StoreDir, ssh::host_key};
use tempfile::TempDir;

/// The program under test.
pub(crate) const STEADING: &str = env!("CARGO_BIN_EXE_steading");

/// One farm. Its processes end with it, attempts included.
///
/// What they say goes to files in its directory. When the test fails, the directory stays.
pub(crate) struct Farm {
    dir: TempDir,
    coordinator: Child,
    conditions: Conditions,
    agents: BTreeMap<String, AgentProcess>,
    port: u16,
}

/// Under what conditions a farm runs.
#[derive(Default)]
pub(crate) struct Conditions {
    /// The text of `steading.toml`.
    pub(crate) configuration: String,
    /// The words in front of the coordinator's command line, such as `nsenter` with its options.
    pub(crate) enclosure: Vec<OsString>,
    /// Variables for all processes.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// An agent, and how to start it again.
struct AgentProcess {
    child: Child,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

/// An agent without a daemon, which has a store of its own.
pub(crate) struct DirectAgent<'a> {
    pub(crate) name: &'a str,
    /// What its paths begin with: an existing directory, over which its own store is mounted for
    /// its builds.
    pub(crate) store_dir: &'a StoreDir,
    pub(crate) slots: u32,
    pub(crate) uploads: u32,
    /// Where it finds the coordinator, if not where it is.
    pub(crate) through: Option<u16>,
}

impl Farm {
    /// Starts a coordinator with an admin called `operator`.
    pub(crate) fn start() -> Self {
        Self::under(Conditions::default())
    }

    /// Starts a coordinator under these conditions.
    pub(crate) fn under(conditions: Conditions) -> Self {
        let dir = tempfile::Builder::new().prefix("farm").tempdir_in("/tmp").unwrap();
        Self::inside(dir, conditions)
    }

    /// Starts a coordinator in this directory.
    pub(crate) fn inside(dir: TempDir, conditions: Conditions) -> Self {
        add_key(dir.path(), "admins", "operator");
        fs_err::write(dir.path().join("steading.toml"), &conditions.configuration).unwrap();
        let mut coordinator = spawn_coordinator(dir.path(), &conditions, 0);
        until_ready(&mut coordinator);
        let mut farm = Self { dir, coordinator, conditions, agents: BTreeMap::new(), port: 0 };
        let address = farm.run_file("address");
        farm.port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let known = format!("[127.0.0.1]:{} {}\n", farm.port, farm.run_file("host_key.pub"));
        fs_err::write(farm.dir.path().join("known_hosts"), known).unwrap();
        farm
    }

    /// Returns the directory of everything.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the coordinator's port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
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
        let mut arguments = self.agent_arguments(&["agent"], name, self.port);
        arguments.extend(["--builder", "nix"].map(OsString::from));
        let socket = vec![("NIX_DAEMON_SOCKET_PATH", socket.into())];
        self.start_agent(name, STEADING.into(), arguments, socket);
    }

    /// Starts an agent with two slots on a Guix daemon.
    pub(crate) fn start_guix_agent(&mut self, name: &str, socket: &Path) {
        self.start_guix_agent_with(name, socket, 2);
    }

    /// Starts an agent on a Guix daemon.
    pub(crate) fn start_guix_agent_with(&mut self, name: &str, socket: &Path, slots: u32) {
        let mut arguments = self.agent_arguments(&["agent"], name, self.port);
        arguments.extend(["--builder", "guix", "--max-parallel-builds"].map(OsString::from));
        arguments.push(slots.to_string().into());
        let socket = vec![("GUIX_DAEMON_SOCKET", socket.into())];
        self.start_agent(name, STEADING.into(), arguments, socket);
    }

    /// Starts an agent that finds out by itself what builds: by these sockets of a Nix daemon and a
    /// Guix daemon.
    pub(crate) fn start_any_agent(&mut self, name: &str, nix: &Path, guix: &Path) {
        let arguments = self.agent_arguments(&["agent"], name, self.port);
        let sockets =
            vec![("NIX_DAEMON_SOCKET_PATH", nix.into()), ("GUIX_DAEMON_SOCKET", guix.into())];
        self.start_agent(name, STEADING.into(), arguments, sockets);
    }

    /// Starts an agent that has no daemon.
    pub(crate) fn start_direct_agent(&mut self, agent: &DirectAgent<'_>) {
        self.start_direct_agent_as(agent, STEADING.into());
    }

    /// Starts an agent that has no daemon, from this executable.
    pub(crate) fn start_direct_agent_as(&mut self, agent: &DirectAgent<'_>, program: PathBuf) {
        let files = self.files(agent.name);
        fs_err::create_dir_all(&files).unwrap();
        let port = agent.through.unwrap_or(self.port);
        let mut arguments = self.agent_arguments(&["agent"], agent.name, port);
        arguments.extend(["--builder", "direct", "--store-dir"].map(OsString::from));
        arguments.extend([agent.store_dir.as_str().into(), "--physical-store-dir".into()]);
        arguments.push(files.into());
        // Builds of the tests wait for files there, and leave marks.
        arguments.extend(["--sandbox-path".into(), self.dir.path().into()]);
        arguments.extend(["--max-parallel-builds".into(), agent.slots.to_string().into()]);
        arguments.extend(["--max-parallel-uploads".into(), agent.uploads.to_string().into()]);
        self.start_agent(agent.name, program, arguments, Vec::new());
    }

    /// Returns where a direct agent has the files of its store.
    pub(crate) fn files(&self, agent: &str) -> PathBuf {
        self.agent_state(agent).join("files")
    }

    /// Returns the state directory of an agent.
    pub(crate) fn agent_state(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("agent-{name}"))
    }

    fn agent_arguments(&self, words: &[&str], name: &str, port: u16) -> Vec<OsString> {
        let identity = self.dir.path().join("identities").join(name);
        let host_key = self.state().join("run/host_key.pub");
        let address = format!("127.0.0.1:{port}");
        let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
        arguments.extend(["--state".into(), self.agent_state(name).into()]);
        arguments.extend(["--coordinator".into(), address.into()]);
        arguments.extend(["--host-key".into(), host_key.into()]);
        arguments.extend(["--identity".into(), identity.into()]);
        arguments
    }

    fn start_agent(
        &mut self,
        name: &str,
        program: PathBuf,
        arguments: Vec<OsString>,
        mut environment: Vec<(&'static str, OsString)>,
    ) {
        add_key(self.dir.path(), "agents", name);
        let common = self.conditions.environment.iter();
        environment.extend(common.map(|(name, value)| (*name, value.into())));
        let child = spawn_agent(&program, &arguments, &environment, &self.log_of(name));
        let agent = AgentProcess { child, program, arguments, environment };
        self.agents.insert(name.to_owned(), agent);
    }

    /// Lets the doctor look at an agent on a Nix daemon with more options; returns its status and
    /// what it found.
    pub(crate) fn doctor(
        &self,
        name: &str,
        socket: &Path,
        options: &[&str],
    ) -> (Option<i32>, Vec<serde_json::Value>) {
        let options = [&["--builder", "nix"], options].concat();
        self.doctor_with(name, ("NIX_DAEMON_SOCKET_PATH", socket), &options)
    }

    /// The same for an agent on a Guix daemon.
    pub(crate) fn guix_doctor(
        &self,
        name: &str,
        socket: &Path,
    ) -> (Option<i32>, Vec<serde_json::Value>) {
        self.doctor_with(name, ("GUIX_DAEMON_SOCKET", socket), &["--builder", "guix"])
    }

    fn doctor_with(
        &self,
        name: &str,
        socket: (&str, &Path),
        options: &[&str],
    ) -> (Option<i32>, Vec<serde_json::Value>) {
        let mut command = Command::new(STEADING);
        command
            .args(self.agent_arguments(&["agent", "doctor"], name, self.port))
            .args(["--json"])
            .args(options)
            .env(socket.0, socket.1)
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), found)
    }

    /// Writes the settings that an agent reads when it starts or is told to.
    pub(crate) fn write_settings(&self, name: &str, text: &str) {
        fs_err::create_dir_all(self.agent_state(name)).unwrap();
        fs_err::write(self.agent_state(name).join("agent.toml"), text).unwrap();
    }

    /// Returns the nars that an agent has packed and not delivered yet, of attempts that ended.
    pub(crate) fn packed(&self, name: &str) -> Vec<PathBuf> {
        let attempts = self.agent_state(name).join("attempts");
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

    /// Waits until so many agents are connected.
    pub(crate) fn until_connected(&self, count: usize) {
        wait::until(&format!("{count} agents are connected"), || {
            let agents = self.objects("agents");
            agents.iter().filter(|agent| agent["connected"] == true).count() == count
        });
    }

    /// Kills an agent as running out of memory would. What it attempts goes on.
    pub(crate) fn kill_agent(&mut self, name: &str) {
        let child = &mut self.agents.get_mut(name).unwrap().child;
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks an agent to stop, and waits until it has.
    pub(crate) fn stop_agent(&mut self, name: &str) {
        self.signal_agent(name, Signal::TERM);
        assert!(self.agents.get_mut(name).unwrap().child.wait().unwrap().success());
    }

    /// Kills an agent and all its attempts, as a power failure of its machine would.
    pub(crate) fn kill_machine(&mut self, name: &str) {
        self.kill_agent(name);
        kill_attempts(&self.agent_state(name));
    }

    /// Starts an agent again where it was.
    pub(crate) fn restart_agent(&mut self, name: &str) {
        let log = self.log_of(name);
        let agent = self.agents.get_mut(name).unwrap();
        agent.child = spawn_agent(&agent.program, &agent.arguments, &agent.environment, &log);
    }

    /// Returns the process of an agent.
    pub(crate) fn agent_process(&self, name: &str) -> Pid {
        Pid::from_child(&self.agents[name].child)
    }

    /// Sends a signal to an agent.
    pub(crate) fn signal_agent(&self, name: &str, signal: Signal) {
        kill_process(self.agent_process(name), signal).unwrap();
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

    /// Returns the process of the coordinator.
    pub(crate) fn coordinator_process(&self) -> Pid {
        Pid::from_child(&self.coordinator)
    }

    /// Sends a signal to the coordinator.
    pub(crate) fn signal_coordinator(&self, signal: Signal) {
        kill_process(self.coordinator_process(), signal).unwrap();
    }

    /// Kills the coordinator as a power failure would.
    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator.kill().unwrap();
        self.coordinator.wait().unwrap();
    }

    /// Asks the coordinator to stop, and waits until it has.
    pub(crate) fn stop_coordinator(&mut self) {
        self.signal_coordinator(Signal::TERM);
        assert!(self.coordinator.wait().unwrap().success());
    }

    /// Starts the coordinator again where it was.
    pub(crate) fn restart_coordinator(&mut self) {
        self.begin_coordinator();
        until_ready(&mut self.coordinator);
    }

    /// Starts the coordinator again and does not wait until it is ready.
    pub(crate) fn begin_coordinator(&mut self) {
        self.coordinator = spawn_coordinator(self.dir.path(), &self.conditions, self.port);
    }

    /// Returns whether the coordinator has not ended by itself.
    pub(crate) fn coordinator_lives(&mut self) -> bool {
        self.coordinator.try_wait().unwrap().is_none()
    }

    /// Returns the most memory the coordinator has had, in KiB.
    pub(crate) fn coordinator_peak_kib(&self) -> u64 {
        let status = format!("/proc/{}/status", self.coordinator.id());
        let status = fs_err::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Returns the file with what a process says: `coordinator`, or the name of an agent.
    fn log_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Keeps the directory and prints the end of what every process said.
    fn keep(&mut self) {
        const LINES: usize = 40;
        self.dir.disable_cleanup(true);
        let mut text = Vec::new();
        writeln!(text, "the farm stays in {}", self.dir.path().display()).unwrap();
        for name in self.agents.keys().map(String::as_str).chain(["coordinator"]) {
            let log = fs_err::read_to_string(self.log_of(name)).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(LINES);
            let end: Vec<&str> = log.lines().skip(skipped).collect();
            writeln!(text, "== {name}\n{}", end.join("\n")).unwrap();
        }
        std::io::stderr().write_all(&text).ok();
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        for (name, agent) in &mut self.agents {
            // It may have ended by itself.
            agent.child.kill().ok();
            agent.child.wait().unwrap();
            kill_attempts(&self.dir.path().join(format!("agent-{name}")));
        }
        self.coordinator.kill().ok();
        self.coordinator.wait().unwrap();
        if thread::panicking() {
            self.keep();
        }
    }
}

/// Makes a key and enters its public half into the keydir.
fn add_key(dir: &Path, role: &str, name: &str) {
    let key = host_key::load_or_create(&dir.join("identities").join(name)).unwrap();
    let folder = dir.join("coordinator/keys").join(role);
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join(format!("{name}.pub")), key.public_line() + "\n").unwrap();
}

fn spawn_coordinator(dir: &Path, conditions: &Conditions, port: u16) -> Child {
    let mut words = conditions.enclosure.clone();
    words.push(STEADING.into());
    Command::new(&words[0])
        .args(&words[1..])
        .envs(conditions.environment.clone())
        .arg("coordinator")
        .arg("--state")
        .arg(dir.join("coordinator"))
        .arg("--config")
        .arg(dir.join("steading.toml"))
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(append(&dir.join("coordinator.log")))
        .spawn()
        .unwrap()
}

fn until_ready(coordinator: &mut Child) {
    let mut lines = BufReader::new(coordinator.stdout.take().unwrap()).lines();
    let ready = lines.any(|line| line.unwrap() == "READY");
    assert!(ready, "the coordinator ended before it was ready");
}

fn spawn_agent(
    program: &Path,
    arguments: &[OsString],
    environment: &[(&'static str, OsString)],
    log: &Path,
) -> Child {
    Command::new(program)
        .args(arguments)
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stderr(append(log))
        .spawn()
        .unwrap()
}

fn append(log: &Path) -> Stdio {
    let options = fs_err::OpenOptions::new().create(true).append(true).open(log);
    options.unwrap().into_file().into()
}

/// Kills the processes of all attempts of an agent and all that they started, and waits until they
/// are dead.
fn kill_attempts(agent_state: &Path) {
    let of_agent = |line: Vec<u8>| {
        let mut words = line.split(|byte| *byte == 0).skip(1);
        words.next() == Some(b"attempt")
            && words
                .next()
                .is_some_and(|spool| spool.starts_with(agent_state.as_os_str().as_bytes()))
    };
    // A process may end at any moment, and then has no files.
    let line = |id: i32| fs_err::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let leaders: Vec<i32> = processes().into_iter().filter(|id| of_agent(line(*id))).collect();
    wait::until("the attempts of an agent are dead", || {
        let living: Vec<i32> = processes()
            .into_iter()
            .filter(|id| leaders.contains(id) || leaders.contains(&session_of(*id)))
            .filter(|id| of_agent(line(*id)) || !leaders.contains(id))
            .collect();
        for id in &living {
            kill_process(Pid::from_raw(*id).unwrap(), Signal::KILL).ok();
        }
        living.is_empty()
    });
}

/// Returns all processes that are visible here.
fn processes() -> Vec<i32> {
    let entries = fs_err::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
}

/// Returns the session of a process that lives (proc(5)), and otherwise none that there is.
fn session_of(process: i32) -> i32 {
    let stat = fs_err::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return -1 };
    let fields: Vec<&str> = rest.split(' ').collect();
    if fields[0] == "Z" { -1 } else { fields[3].parse().unwrap() }
}

/// Runs a verb with this input, for threads that have no farm. `words` are [`Farm::ssh_words`].
pub(crate) fn feed(words: &[String], verb: &str, input: &[u8]) -> Output {
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The verb may answer before it has read everything.
    child.stdin.take().unwrap().write_all(input).ok();
    child.wait_with_output().unwrap()
}

/// Returns why this machine can have no farm of direct agents, if so.
pub(crate) fn obstacle() -> Option<&'static str> {
    let works = |command: &mut Command| {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    if !works(Command::new("ssh").arg("-V")) {
        return Some("there is no ssh in PATH");
    }
    let namespaces = ["--user", "--map-root-user", "--mount", "true"];
    if !works(Command::new("unshare").args(namespaces)) {
        return Some("the kernel grants no namespaces");
    }
    None
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
