//! A coordinator and agents as processes of their own, and somebody who may ask them anything.

use super::{
    Bench,
    graph::{self, Member},
    measure::{self, cpu_of},
};
use bytes::Bytes;
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use steading::{
    core::store_path::{StoreDir, StorePath},
    ssh::{self, ClientConfig, Connection, Incoming, KeyPair, WriteError, host_key},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How much of a stream is sent at a time.
const PIECE_BYTES: usize = 64 << 10;

/// One coordinator. Everything ends with it.
pub(crate) struct Farm<'a> {
    bench: &'a Bench,
    dir: TempDir,
    coordinator: Child,
    agents: Vec<Child>,
    operator: Option<Connection>,
}

impl<'a> Farm<'a> {
    /// Starts a coordinator that knows these agents, and connects to it as an admin.
    pub(crate) fn start(bench: &'a Bench, agents: &[String]) -> Self {
        Self::start_on(bench, agents, &|_| {})
    }

    /// Does the same on a state directory in which something was put before.
    pub(crate) fn start_on(bench: &'a Bench, agents: &[String], put: &dyn Fn(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("bench").tempdir_in(&bench.scratch).unwrap();
        add_key(dir.path(), "admins", "operator");
        for name in agents {
            add_key(dir.path(), "agents", name);
        }
        put(&dir.path().join("coordinator"));
        let coordinator = start_coordinator(bench, dir.path(), 0);
        let mut farm = Self { bench, dir, coordinator, agents: Vec::new(), operator: None };
        let known = format!("[127.0.0.1]:{} {}\n", farm.address().port(), farm.host_key());
        fs_err::write(farm.dir.path().join("known_hosts"), known).unwrap();
        farm.connect_operator();
        farm
    }

    fn connect_operator(&mut self) {
        let config = self.client("operator", self.address());
        let cancel = CancellationToken::new();
        let connecting = ssh::connect(&config, &cancel);
        self.operator = Some(self.bench.runtime.block_on(connecting).unwrap());
    }

    /// Kills the coordinator as a power failure would.
    pub(crate) fn kill_coordinator(&mut self) {
        self.operator = None;
        measure::kill(&mut self.coordinator);
    }

    /// Starts the coordinator again where it was.
    pub(crate) fn restart_coordinator(&mut self) {
        self.coordinator = start_coordinator(self.bench, self.dir.path(), self.address().port());
        self.connect_operator();
    }

    /// Returns the coordinator's state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("coordinator")
    }

    pub(crate) fn coordinator_pid(&self) -> u32 {
        self.coordinator.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.run_file("address").parse().unwrap()
    }

    fn host_key(&self) -> String {
        self.run_file("host_key.pub")
    }

    fn run_file(&self, name: &str) -> String {
        let file = self.dir.path().join("coordinator/run").join(name);
        fs_err::read_to_string(file).unwrap().trim_end().to_owned()
    }

    /// Returns the store directory of the direct builders.
    pub(crate) fn store_dir(&self) -> StoreDir {
        self.dir.path().join("store").to_str().unwrap().parse().unwrap()
    }

    /// Returns a file that is not there, for builds to wait for.
    pub(crate) fn gate(&self) -> PathBuf {
        self.dir.path().join("gate")
    }

    /// Returns how somebody who is known connects, by way of `address`.
    pub(crate) fn client(&self, name: &str, address: SocketAddr) -> ClientConfig {
        ClientConfig {
            address: address.to_string(),
            host_keys: vec![self.host_key()],
            identity: self.key(name),
            user: name.to_owned(),
        }
    }

    fn key(&self, name: &str) -> KeyPair {
        host_key::load(&self.dir.path().join("identities").join(name)).unwrap()
    }

    /// Returns a stock `ssh` that runs a verb as the admin.
    pub(crate) fn ssh(&self, verb: &str) -> Command {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "Ciphers=aes128-gcm@openssh.com"])
            .args(["-o", &format!("UserKnownHostsFile={}", path("known_hosts"))])
            .args(["-o", &format!("IdentityFile={}", path("identities/operator"))])
            .args(["-p", &self.address().port().to_string(), "127.0.0.1", verb]);
        ssh
    }

    /// Starts an agent process that builds without any daemon, one build at a time, and waits until
    /// it is connected.
    pub(crate) fn start_agent(&mut self, name: &str, address: SocketAddr) -> u32 {
        self.start_agent_with(name, address, 1)
    }

    /// The same with so many builds at a time.
    pub(crate) fn start_agent_with(
        &mut self,
        name: &str,
        address: SocketAddr,
        slots: usize,
    ) -> u32 {
        let own = self.dir.path().join(format!("agent-{name}"));
        fs_err::create_dir_all(self.dir.path().join("store")).unwrap();
        let agent = Command::new(&self.bench.program)
            .arg("agent")
            .arg("--state")
            .arg(&own)
            .args(["--coordinator", &address.to_string(), "--host-key", &self.host_key()])
            .arg("--identity")
            .arg(self.dir.path().join("identities").join(name))
            .args(["--builder", "direct", "--store-dir", self.store_dir().as_str()])
            .args(["--system", graph::SYSTEM, "--max-parallel-builds", &slots.to_string()])
            .args(["--gentle-start", "0"])
            // Where the files are that builds copy.
            .arg("--sandbox-path")
            .arg(&self.bench.scratch)
            .env("STEADING_LOG", "steading=warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = agent.id();
        self.agents.push(agent);
        crate::wait::until("the agent is connected", || {
            let agents = self.objects("agents");
            agents.iter().any(|agent| agent["agent"] == name && agent["connected"] == true)
        });
        pid
    }

    /// Ends all agents, so that the next one gets every build.
    pub(crate) fn stop_agents(&mut self) {
        self.agents.drain(..).for_each(|mut agent| measure::kill(&mut agent));
    }

    /// Submits derivations and returns the ids of their builds, in the order of `members`.
    pub(crate) fn submit(&self, members: &[Member]) -> Vec<String> {
        let answer = self.run("submit --closure --json", graph::export(&[], members));
        let by_path = |object: Value| {
            let text = |field: &str| object[field].as_str().unwrap().to_owned();
            (text("derivation").parse::<StorePath>().unwrap(), text("build"))
        };
        let builds: std::collections::HashMap<_, _> = answer.into_iter().map(by_path).collect();
        members.iter().map(|member| builds[&member.path].clone()).collect()
    }

    /// Waits until a build has succeeded, and returns for how long its outputs were on the way:
    /// from the agent's report to the commit.
    pub(crate) fn upload_seconds(&self, build: &str) -> f64 {
        self.run(&format!("wait {build}"), Vec::new());
        let shown = &self.objects(&format!("show {build}"))[0];
        let attempt = &shown["attempts"][0];
        assert_eq!(attempt["end"], "succeeded", "{shown}");
        let ms = |field: &str| {
            let time: jiff::Timestamp = attempt[field].as_str().unwrap().parse().unwrap();
            time.as_millisecond()
        };
        measure::seconds(u64::try_from(ms("ended_at") - ms("built_at")).unwrap())
    }

    /// Waits until so many attempts of an agent have a file of this name in their spools.
    pub(crate) fn until_spooled(&self, agent: &str, name: &str, count: usize) {
        let spools = self.dir.path().join(format!("agent-{agent}/attempts"));
        crate::wait::until("attempts are so far", || {
            let spools = fs_err::read_dir(&spools).unwrap();
            spools.filter(|spool| spool.as_ref().unwrap().path().join(name).exists()).count()
                == count
        });
    }

    /// Waits until so many paths are published.
    pub(crate) fn until_published(&self, count: usize) {
        let public = self.dir.path().join("coordinator/public");
        let is_narinfo = |entry: std::io::Result<fs_err::DirEntry>| {
            entry.unwrap().path().extension().is_some_and(|end| end == "narinfo")
        };
        crate::wait::until("everything is published", || {
            let trees = fs_err::read_dir(&public).unwrap();
            let files = trees.flat_map(|tree| fs_err::read_dir(tree.unwrap().path()).unwrap());
            files.map(is_narinfo).filter(|is_narinfo| *is_narinfo).count() >= count
        });
    }

    /// Waits until builds have succeeded, and returns for how long outputs of theirs were on the
    /// way: from the first report of the agent to the last commit; and when that report came.
    pub(crate) fn delivery(&self, builds: &[String]) -> (f64, jiff::Timestamp) {
        let mut times: Option<(jiff::Timestamp, jiff::Timestamp)> = None;
        for build in builds {
            self.run(&format!("wait {build}"), Vec::new());
            let shown = &self.objects(&format!("show {build}"))[0];
            let attempt = &shown["attempts"][0];
            assert_eq!(attempt["end"], "succeeded", "{shown}");
            let time = |field: &str| attempt[field].as_str().unwrap().parse().unwrap();
            let (built, ended): (jiff::Timestamp, jiff::Timestamp) =
                (time("built_at"), time("ended_at"));
            let (first, last) = times.unwrap_or((built, ended));
            times = Some((first.min(built), last.max(ended)));
        }
        let (first, last) = times.unwrap();
        (seconds_between(first, last), first)
    }

    /// Runs a verb that must succeed, and returns the objects that it prints.
    pub(crate) fn objects(&self, verb: &str) -> Vec<Value> {
        self.run(&format!("{verb} --json"), Vec::new())
    }

    fn run(&self, verb: &str, input: Vec<u8>) -> Vec<Value> {
        let operator = self.operator.as_ref().unwrap();
        let (status, out, err) = self.bench.runtime.block_on(exchange(operator, verb, input));
        assert_eq!(status, Some(0), "{verb}: {}", err.escape_ascii());
        let text = String::from_utf8(out).unwrap();
        // Verbs that are asked without `--json` are asked for their status only.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Returns the processor time of the coordinator and an agent, without the agent's children.
    pub(crate) fn cpu_with(&self, agent: u32) -> f64 {
        cpu_of(self.coordinator.id()).own_s + cpu_of(agent).own_s
    }
}

impl Drop for Farm<'_> {
    fn drop(&mut self) {
        for child in self.agents.iter_mut().chain([&mut self.coordinator]) {
            measure::kill(child);
        }
    }
}

/// Returns how many seconds lie between two times.
pub(crate) fn seconds_between(first: jiff::Timestamp, last: jiff::Timestamp) -> f64 {
    let ms = last.as_millisecond() - first.as_millisecond();
    measure::seconds(u64::try_from(ms).unwrap())
}

async fn exchange(
    operator: &Connection,
    verb: &str,
    input: Vec<u8>,
) -> (Option<u32>, Vec<u8>, Vec<u8>) {
    let (mut reader, writer) = operator.exec(verb).await.unwrap();
    let feeding = tokio::spawn(async move {
        let input = Bytes::from(input);
        for start in (0..input.len()).step_by(PIECE_BYTES) {
            let end = input.len().min(start + PIECE_BYTES);
            writer.write(input.slice(start..end)).await?;
        }
        writer.end_data().await?;
        Ok::<_, WriteError>(writer)
    });
    let (mut status, mut out, mut err) = (None, Vec::new(), Vec::new());
    loop {
        match reader.next().await {
            Incoming::Data(bytes) => out.extend_from_slice(&bytes),
            Incoming::Stderr(bytes) => err.extend_from_slice(&bytes),
            Incoming::Exited(code) => status = Some(code),
            Incoming::Eof | Incoming::Lost => break,
        }
    }
    // A verb may answer before it has read everything; its status is what counts.
    drop(feeding.await.unwrap());
    (status, out, err)
}

/// Makes a key and enters its public half into the keydir.
fn add_key(dir: &Path, role: &str, name: &str) -> PathBuf {
    let path = dir.join("identities").join(name);
    let key = host_key::load_or_create(&path).unwrap();
    let folder = dir.join("coordinator/keys").join(role);
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join(format!("{name}.pub")), key.public_line() + "\n").unwrap();
    path
}

fn start_coordinator(bench: &Bench, dir: &Path, port: u16) -> Child {
    let mut child = Command::new(&bench.program)
        .arg("coordinator")
        .arg("--state")
        .arg(dir.join("coordinator"))
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .env("STEADING_LOG", "steading=warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.any(|line| line.unwrap() == "READY");
    assert!(ready, "the coordinator ended before it was ready");
    child
}
