//! Builds with a Nix daemon of today that trusts nobody: derivations by their paths, inputs by the
//! coordinator's signatures. The daemon is Debian sid's, in the root that the tests of Guix have.
//! Skipped, and said so, where there is none.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use private_nix::PrivateNix;
use processes::Farm;
use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use steading::{
    builders::{Builder as _, nix},
    core::store_path::{StoreDir, StorePath},
};
use tempfile::TempDir;

/// Mounts a directory as /nix of the common root, and runs the daemon there.
const ENTER: &str = r#"
set -eu
base=$1 own=$2
mount --bind "$base" "$own/root"
mount -o remount,bind,ro "$own/root"
mount --bind "$own/nix" "$own/root/nix"
for place in dev proc sys tmp; do mount --rbind "/$place" "$own/root/$place"; done
cd "$own/root"
pivot_root . machine
umount --lazy /machine
cd /
exec nix-daemon --daemon
"#;

/// A daemon that trusts nobody but believes one key.
struct Untrusting {
    own: TempDir,
    daemon: Child,
}

impl Untrusting {
    fn start(key: &str) -> Result<Self, String> {
        let base = private_guix::base()?;
        if !base.join("usr/bin/nix-daemon").exists() || !base.join("nix").exists() {
            return Err("the root with Guix was made without a Nix of today".to_owned());
        }
        let own = tempfile::Builder::new().prefix("nix").tempdir_in("/tmp").unwrap();
        for place in ["root", "nix/etc", "nix/tmp"] {
            fs_err::create_dir_all(own.path().join(place)).unwrap();
        }
        let configuration = format!(
            "build-users-group =\nsandbox = false\nsubstituters =\ntrusted-users =\n\
             trusted-public-keys = {key}\n"
        );
        fs_err::write(own.path().join("nix/etc/nix.conf"), configuration).unwrap();
        let log = fs_err::File::create(own.path().join("nix/daemon.log")).unwrap();
        let daemon = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args(["sh", "-c", ENTER, "enter"])
            .args([base, own.path()])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("NIX_CONF_DIR", "/nix/etc")
            .env("TMPDIR", "/nix/tmp")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.into_parts().0)
            .spawn()
            .unwrap();
        let started = Self { own, daemon };
        let socket = started.socket();
        wait::until("nix-daemon answers", || UnixStream::connect(&socket).is_ok());
        Ok(started)
    }

    fn socket(&self) -> PathBuf {
        self.own.path().join("nix/var/nix/daemon-socket/socket")
    }

    fn has(&self, path: &StorePath) -> bool {
        let mut nix = nix::Nix::connect(&self.socket(), StoreDir::nix()).unwrap();
        assert_eq!(nix.trust(), nix::Trust::Untrusted);
        nix.valid(std::slice::from_ref(path)).unwrap().contains(path)
    }
}

impl Drop for Untrusting {
    fn drop(&mut self) {
        // `unshare` takes the daemon along.
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// A source, a derivation that both machines need the output of, and two that need it.
const GRAPH: &str = r#"
let
  make = name: script: more: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  } // more);
  low = make "low" "echo building low; cat $source > $out; echo $out >> $out"
    { source = builtins.toFile "source" "content"; };
  high = make "high" "cat $low > $out; echo doc > $doc" { inherit low; outputs = [ "out" "doc" ]; };
in [ high (make "top" "cat $high > $out" { inherit high; })
     (make "failing" "echo about to fail; exit 3" { inherit low; }) low ]"#;

#[test]
fn a_daemon_that_trusts_nobody_builds_what_it_is_given_by_path() {
    let home = match PrivateNix::start() {
        Ok(home) => home,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let mut farm = Farm::start();
    let key = farm.run_file("signing-nix.pub");
    let (amber, birch) = match (Untrusting::start(&key), Untrusting::start(&key)) {
        (Ok(amber), Ok(birch)) => (amber, birch),
        (Err(reason), _) | (_, Err(reason)) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let drvs = home.instantiate(GRAPH);
    let low = home.derivation(&drvs[3]).outputs[0].path.clone();
    farm.start_nix_agent("amber", &amber.socket());
    // Each machine alone, so that the second needs what the first has built.
    assert_eq!(
        build(&farm, &home, &drvs[3]),
        ("succeeded".to_owned(), "building low\n".to_owned())
    );
    assert!(amber.has(&low));
    farm.stop_agent("amber");
    farm.start_nix_agent("birch", &birch.socket());
    assert_eq!(build(&farm, &home, &drvs[1]).0, "succeeded");
    assert!(birch.has(&low) && birch.has(&drvs[3]));
    let (state, log) = build(&farm, &home, &drvs[2]);
    assert!(state == "failed" && log.starts_with("about to fail\n"), "{state}: {log}");
    let (status, findings) = farm.doctor("birch", &birch.socket(), &[]);
    assert_eq!(status, Some(0), "{findings:?}");
}

/// Submits a derivation, waits for its end, and returns its state and log.
fn build(farm: &Farm, home: &PrivateNix, drv: &StorePath) -> (String, String) {
    let mut export = home
        .command("sh")
        .arg("-c")
        .arg(format!("nix-store --export $(nix-store --query --requisites {drv})"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let verb = format!("submit --closure {drv}");
    let submitted = farm.ssh(&verb).stdin(export.stdout.take().unwrap()).output().unwrap();
    assert!(export.wait().unwrap().success());
    assert!(submitted.status.success(), "{}", submitted.stderr.escape_ascii());
    let id = String::from_utf8(submitted.stdout).unwrap().trim_end().to_owned();
    farm.run(&format!("wait {id}"));
    let state = farm.objects(&format!("show {id}"))[0]["state"].as_str().unwrap().to_owned();
    let log = String::from_utf8(farm.run(&format!("log {id}")).stdout).unwrap();
    (state, log)
}
