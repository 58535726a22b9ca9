//! Two private Nix stores, one of which is behind an SSH server: what people copy between today.

use super::{Bench, measure::Sample, sshd::Sshd};
use crate::private_nix::PrivateNix;
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Both stores.
pub(crate) struct Stores {
    here: PrivateNix,
    there: PrivateNix,
    sshd: Sshd,
    /// What the server runs: Nix's program on its own store, whatever the session's environment.
    remote: PathBuf,
}

impl Stores {
    /// Makes both, or says why they cannot be had.
    pub(crate) fn start(bench: &Bench) -> Result<Self, String> {
        let (here, there) = (PrivateNix::start()?, PrivateNix::start()?);
        let sshd = Sshd::start(&bench.scratch, Some(&there))?;
        let remote = bench.scratch.join("remote-nix-store");
        let script = "#!/bin/sh\nexport NIX_CONF_DIR=/nix/etc NIX_REMOTE= HOME=/nix NIX_PATH=\n\
             exec nix-store \"$@\"\n";
        fs_err::write(&remote, script).unwrap();
        fs_err::set_permissions(&remote, std::fs::Permissions::from_mode(0o755)).unwrap();
        Ok(Self { here, there, sshd, remote })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.sshd.address
    }

    /// Adds files to the store here and returns their paths.
    pub(crate) fn add(&self, files: &[PathBuf]) -> Vec<String> {
        let output = nix(&self.here, "nix-store").arg("--add").args(files).output().unwrap();
        assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Copies paths with `nix copy`, by way of `address`, and forgets them there.
    pub(crate) fn copy(&self, paths: &[String], address: SocketAddr) -> Sample {
        let to = format!("ssh://127.0.0.1?remote-program={}", self.remote.display());
        let mut copy = nix(&self.here, "nix");
        copy.args(["copy", "--no-check-sigs", "--to", &to])
            .args(paths)
            .env("NIX_SSHOPTS", self.sshd.options(address).join(" "));
        self.measured(&mut copy, paths)
    }

    /// Exports paths into an import on the other side, by way of `address`, and forgets them
    /// there.
    pub(crate) fn export(&self, scratch: &Path, paths: &[String], address: SocketAddr) -> Sample {
        const PIPELINE: &str = r#"
            list=$1; remote=$2; shift 2
            nix-store --export $(cat "$list") | ssh "$@" 127.0.0.1 "$remote --import" > /dev/null
        "#;
        let list = scratch.join("exported-paths");
        fs_err::write(&list, paths.join("\n")).unwrap();
        let mut pipeline = nix(&self.here, "sh");
        pipeline
            .args(["-c", PIPELINE, "export"])
            .arg(list)
            .arg(&self.remote)
            .args(self.sshd.options(address));
        self.measured(&mut pipeline, paths)
    }

    fn measured(&self, command: &mut Command, paths: &[String]) -> Sample {
        let sample = self.sshd.measure(command.stdout(Stdio::null()));
        let outside = |path: &String| self.there.outside(&path.parse().unwrap());
        assert!(paths.iter().all(|path| outside(path).exists()), "not all paths arrived");
        let gone = nix(&self.there, "nix-store")
            .args(["--delete"])
            .args(paths)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(gone.success(), "the paths cannot be deleted again");
        sample
    }
}

/// Returns a command on a store, without its daemon in between.
fn nix(store: &PrivateNix, program: &str) -> Command {
    let mut command = store.command(program);
    command.env("NIX_REMOTE", "");
    command
}
