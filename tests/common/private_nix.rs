//! A Nix daemon of a test's own, with a `/nix` that nobody else sees.
//!
//! The daemon runs in a mount and a process namespace: a temporary directory is its root, with
//! everything of the machine's root mounted into it and `/nix` its own. The machine's `/nix`, if
//! there is one, is not touched. The socket is reached from outside through the temporary
//! directory. Everything ends with the value.

use crate::wait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use steading::{
    builders::{self, BuilderKind},
    core::{
        derivation::Derivation,
        store_path::{StoreDir, StorePath},
    },
};
use tempfile::TempDir;

/// Mounts the machine's root into `$1` and runs the rest of the arguments there. Its root really
/// changes, because processes that were confined with `chroot` may make no user namespaces, which
/// the daemon's sandboxes are.
const ENTER: &str = r#"
set -eu
root=$1; shift
mount --rbind "$root" "$root"
cd "$root"
for entry in /*; do
    if [ "$entry" = /nix ]; then
        continue
    elif [ -L "$entry" ]; then
        [ -L "$root$entry" ] || ln -s "$(readlink "$entry")" "$root$entry"
    elif [ -d "$entry" ]; then
        mkdir -p "$root$entry"
        mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p .machine
pivot_root . .machine
umount --lazy /.machine
cd /
exec "$@"
"#;

/// No sandbox, because the processes are in a namespace already, and nothing from elsewhere.
const CONFIGURATION: &str = "\
build-users-group =
sandbox = false
substituters =
experimental-features = nix-command
";

/// The running daemon.
pub(crate) struct PrivateNix {
    root: TempDir,
    daemon: Child,
}

impl PrivateNix {
    /// Starts a daemon, or says why there can be none here.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_with("")
    }

    /// Starts a daemon with more lines in its configuration.
    pub(crate) fn start_with(more: &str) -> Result<Self, String> {
        let installed = Command::new("nix-daemon").arg("--version").stdout(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            return Err("nix-daemon is not installed".to_owned());
        }
        // The path of a Unix socket has at most 107 bytes, so the directory must be a short one.
        let root = tempfile::Builder::new().prefix("nix").tempdir_in("/tmp").unwrap();
        let settings = root.path().join("nix/etc");
        fs_err::create_dir_all(&settings).unwrap();
        fs_err::create_dir_all(root.path().join("nix/tmp")).unwrap();
        fs_err::write(settings.join("nix.conf"), format!("{CONFIGURATION}{more}")).unwrap();
        let possible = enter(root.path(), "true").output().unwrap();
        if !possible.status.success() {
            let reason = possible.stderr.escape_ascii();
            return Err(format!("no private /nix can be mounted: {reason}"));
        }
        let log = fs_err::File::create(root.path().join("nix/daemon.log")).unwrap();
        let daemon = enter(root.path(), "nix-daemon")
            .arg("--daemon")
            .stdout(Stdio::null())
            .stderr(log.into_parts().0)
            .spawn()
            .unwrap();
        let nix = Self { root, daemon };
        // Two clients that come first make the database both, and one of them may be cut off.
        let (socket, store_dir) = (nix.socket(), StoreDir::nix());
        let kind = BuilderKind::Nix { socket, store_dir };
        wait::until("nix-daemon answers", || {
            builders::open(kind.clone()).is_ok_and(|mut nix| nix.valid(&[]).is_ok())
        });
        Ok(nix)
    }

    /// Returns the socket, as seen from outside.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("nix/var/nix/daemon-socket/socket")
    }

    /// Returns where the file of a path of the daemon's store is, as seen from outside.
    pub(crate) fn outside(&self, path: &StorePath) -> PathBuf {
        self.root.path().join(&path.to_string()[1..])
    }

    /// Returns a command that sees the private `/nix` and talks to the daemon.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = enter(self.root.path(), program);
        command.env("NIX_REMOTE", "daemon");
        command
    }

    /// Evaluates an expression to derivations in the daemon's store.
    pub(crate) fn instantiate(&self, expression: &str) -> Vec<StorePath> {
        let output =
            self.command("nix-instantiate").arg("--expr").arg(expression).output().unwrap();
        assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Reads a derivation of the daemon's store.
    pub(crate) fn derivation(&self, path: &StorePath) -> Derivation<'static> {
        Derivation::parse(&fs_err::read(self.outside(path)).unwrap()).unwrap().into_owned()
    }

    /// Returns the paths that a derivation's build needs: its sources and the named outputs of
    /// its input derivations.
    pub(crate) fn input_paths(&self, derivation: &Derivation<'_>) -> Vec<StorePath> {
        let mut paths = derivation.input_sources.clone();
        for (path, names) in &derivation.input_derivations {
            let outputs = self.derivation(path).outputs.into_iter();
            paths.extend(outputs.filter(|o| names.contains(&o.name)).map(|output| output.path));
        }
        paths
    }

    /// Kills the daemon and everything it started; without effect when that is done.
    pub(crate) fn kill(&mut self) {
        if self.daemon.try_wait().unwrap().is_some() {
            return;
        }
        // The child of `unshare` is the first process of the namespace and takes all others along;
        // `unshare` itself then ends after it, and leaves no zombie.
        let unshare = self.daemon.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let children = fs_err::read_to_string(children).unwrap();
        let first = children.split_whitespace().find_map(|id| Pid::from_raw(id.parse().ok()?));
        if let Some(first) = first {
            kill_process(first, Signal::KILL).unwrap();
        }
        self.daemon.wait().unwrap();
    }
}

impl Drop for PrivateNix {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a command that runs `program` with `root` as its root.
fn enter(root: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .args(["sh", "-c", ENTER, "enter"])
        .arg(root)
        .arg(program)
        .stdin(Stdio::null())
        .env("NIX_CONF_DIR", "/nix/etc")
        .env("NIX_PATH", "")
        .env("HOME", "/nix")
        .env("TMPDIR", "/nix/tmp");
    command
}
