//! A coordinator without room or without descriptors: real processes, a real small filesystem.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

#[path = "common/wait.rs"]
mod wait;

use rustix::io::Errno;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};
use steading::ssh::host_key;

const STEADING: &str = env!("CARGO_BIN_EXE_steading");

/// A coordinator that a shell prepares the ground for.
struct World {
    dir: tempfile::TempDir,
    coordinator: Child,
}

impl World {
    /// Runs shell commands, and then a coordinator in the state directory.
    fn start(wrapper: &[&str], prepare: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("state")).unwrap();
        let key = host_key::load_or_create(&dir.path().join("identity")).unwrap();
        fs_err::write(dir.path().join("olga.pub"), key.public_line() + "\n").unwrap();
        let coordinator = Self::run(dir.path(), wrapper, prepare);
        Self { dir, coordinator }
    }

    fn run(dir: &Path, wrapper: &[&str], prepare: &str) -> Child {
        let script = format!(
            "set -e\n{prepare}\nmkdir -p state/keys/admins\ncp olga.pub state/keys/admins/\n\
             exec \"$0\" coordinator --state state --listen 127.0.0.1:0"
        );
        let mut words = wrapper.to_vec();
        words.extend(["sh", "-c", &script, STEADING]);
        Command::new(words[0])
            .args(&words[1..])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Returns the state directory as the coordinator sees it.
    fn state(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.coordinator.id()));
        let dir = self.dir.path().strip_prefix("/").unwrap();
        root.join(dir).join("state")
    }

    fn until_ready(&mut self) -> u16 {
        let mut lines = BufReader::new(self.coordinator.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "READY"), "it ended before it was ready");
        let read =
            |name: &str| fs_err::read_to_string(self.state().join("run").join(name)).unwrap();
        let port = read("address").trim().rsplit_once(':').unwrap().1.parse().unwrap();
        let known = format!("[127.0.0.1]:{port} {}", read("host_key.pub"));
        fs_err::write(self.dir.path().join("known_hosts"), known).unwrap();
        port
    }

    fn ssh(&self, port: u16, line: &str) -> Output {
        let known = self.dir.path().join("known_hosts");
        Command::new("ssh")
            .args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "IdentityAgent=none", "-o", "LogLevel=ERROR"])
            .args(["-o", "StrictHostKeyChecking=yes"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known.display()))
            .arg("-i")
            .arg(self.dir.path().join("identity"))
            .args(["-p", &port.to_string(), "127.0.0.1", line])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn status(&self, port: u16) -> serde_json::Value {
        let output = self.ssh(port, "status --json");
        assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.coordinator.kill().ok();
        self.coordinator.wait().unwrap();
    }
}

fn have(program: &str, arguments: &[&str]) -> bool {
    let probe = Command::new(program).args(arguments).stderr(Stdio::null()).status();
    let have = probe.is_ok_and(|status| status.success());
    if !have {
        println!("skipped: {program} {arguments:?} does not work here");
    }
    have
}

/// Mounts a small filesystem of its own, where the system grants that.
const APART: [&str; 2] = ["unshare", "-Urm"];

fn have_all() -> bool {
    have("ssh", &["-V"]) && have("unshare", &["-Urm", "mount", "-t", "tmpfs", "none", "/mnt"])
}

/// Makes a file so long that only this much room is left.
fn fill(path: &Path, leave_bytes: u64) {
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path).unwrap();
    wait::until("the disk is filled", || {
        let found = rustix::fs::statvfs(path.parent().unwrap()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let length = file.metadata().unwrap().len() + free.saturating_sub(leave_bytes);
        let none = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(file.file(), none, 0, length.max(1)) {
            // Somebody else has taken of it since it was looked at.
            Err(Errno::NOSPC) => false,
            result => {
                result.unwrap();
                true
            }
        }
    });
}

#[test]
fn a_coordinator_short_of_room_takes_nothing_new_and_goes_on_by_itself() {
    if !have_all() {
        return;
    }
    let mount = "mount -t tmpfs -o size=96m none state\necho 'min-free = 33554432' > \
                 state/steading.toml";
    let mut world = World::start(&APART, mount);
    let port = world.until_ready();
    assert_eq!(world.status(port)["intake_closed"], serde_json::Value::Null);

    let ballast = world.state().join("ballast");
    fill(&ballast, 20 << 20);
    wait::until("it says why it takes nothing", || {
        let status = world.status(port);
        status["intake_closed"].as_str().is_some_and(|reason| reason.contains("min-free"))
    });
    let refused = world.ssh(port, "submit /nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x.drv");
    assert_eq!(refused.status.code(), Some(75), "{}", refused.stderr.escape_ascii());
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("nothing was submitted") && words.contains("make room"), "{words}");

    fs_err::remove_file(&ballast).unwrap();
    wait::until("it goes on", || world.status(port)["intake_closed"].is_null());
    // Now it knows no such derivation, instead of having no room for it.
    let refused = world.ssh(port, "submit /nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x.drv");
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr.escape_ascii());
}

#[test]
fn a_start_on_a_full_disk_waits_for_room_instead_of_failing_again_and_again() {
    if !have_all() {
        return;
    }
    let mount = "mount -t tmpfs -o size=24m none state\nfallocate -l 16M state/ballast";
    let mut world = World::start(&APART, mount);
    let mut said = BufReader::new(world.coordinator.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("no room to start"), "{line}");
    assert!(world.coordinator.try_wait().unwrap().is_none());
    fs_err::remove_file(world.state().join("ballast")).unwrap();
    let port = world.until_ready();
    assert!(world.status(port)["process"]["descriptors"].as_u64().unwrap() > 5);
}

#[test]
fn a_commit_without_room_stops_the_coordinator_with_advice() {
    if !have_all() {
        return;
    }
    let mount = "mount -t tmpfs -o size=40m none state\necho 'min-free = 0' > state/steading.toml";
    let mut world = World::start(&APART, mount);
    let port = world.until_ready();
    fill(&world.state().join("ballast"), 0);
    let mut status = None;
    wait::until("a commit has failed", || {
        // Every such command leaves an audit row, so that the write-ahead log has to grow.
        world.ssh(port, "submit /nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x.drv");
        status = world.coordinator.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(75));
    let mut said = String::new();
    world.coordinator.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("make room and start it again"), "{said}");
}

#[test]
fn a_coordinator_without_descriptors_serves_again_when_some_are_free() {
    if !have("ssh", &["-V"]) {
        return;
    }
    let mut world = World::start(&["env"], "ulimit -n 40");
    let port = world.until_ready();
    let before = world.status(port)["process"]["descriptors"].as_u64().unwrap();
    let held: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // It may be turned away already.
            stream.write_all(b"SSH-2.0-slow\r\n").ok();
            stream
        })
        .collect();
    drop(held);
    wait::until("it serves again", || world.ssh(port, "whoami").status.success());
    wait::until("nothing is left open", || {
        let process = world.status(port)["process"].clone();
        assert_eq!(process["panics"], 0);
        process["descriptors"].as_u64().unwrap() <= before
    });
}
