//! A stock OpenSSH server on loopback, in which every key runs one forced command.

use crate::wait;
use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command as Started, Stdio},
};
use steading::ssh::{KeyPair, host_key};
use tokio::process::Command;

/// The running server.
pub(crate) struct Sshd {
    dir: tempfile::TempDir,
    daemon: Child,
    port: u16,
    host_key: KeyPair,
    user: String,
}

impl Sshd {
    /// Starts a server; `None`, with the reason printed, where there is no `sshd`.
    #[expect(clippy::print_stdout, reason = "whoever reads the results has to know")]
    pub(crate) fn start() -> Option<Self> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() {
            println!("skipped: there is no /usr/sbin/sshd");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("sshd").tempdir_in("/tmp").unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let host_key = host_key::load_or_create(&dir.path().join("keys/host")).unwrap();
        fs_err::write(path("authorized"), "").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let known = format!("[127.0.0.1]:{port} {}\n", host_key.public_line());
        fs_err::write(path("known_hosts"), known).unwrap();
        // Where the server must be able to chroot to; Debian makes it with the service.
        fs_err::create_dir_all("/run/sshd").ok();
        let log = fs_err::File::create(path("log")).unwrap();
        let mut daemon = Started::new(program)
            .args(["-D", "-e", "-f", "/dev/null", "-h", &path("keys/host")])
            .args(["-o", &format!("ListenAddress=127.0.0.1:{port}")])
            .args(["-o", &format!("AuthorizedKeysFile={}", path("authorized"))])
            .args(["-o", "StrictModes=no", "-o", "PidFile=none", "-o", "UsePAM=no"])
            .args(["-o", "Subsystem=steading-control steading-control"])
            .args(["-o", "Subsystem=steading-bulk steading-bulk"])
            .args(["-o", "Subsystem=sftp internal-sftp"])
            .stdin(Stdio::null())
            .stderr(log.into_parts().0)
            .spawn()
            .unwrap();
        wait::until("sshd listens", || {
            assert!(daemon.try_wait().unwrap().is_none(), "sshd ended");
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let user = Started::new("id").arg("-un").output().unwrap();
        let user = String::from_utf8(user.stdout).unwrap().trim().to_owned();
        Some(Self { dir, daemon, port, host_key, user })
    }

    /// Makes a key and lets it run this command, and nothing else.
    pub(crate) fn admit(&self, name: &str, command: &str) {
        let key = host_key::load_or_create(&self.key_file(name)).unwrap();
        let authorized = self.dir.path().join("authorized");
        let mut file = fs_err::OpenOptions::new().append(true).open(authorized).unwrap();
        writeln!(file, "restrict,pty,command=\"{command}\" {}", key.public_line()).unwrap();
    }

    /// Returns the command of a stock `ssh` with somebody's key; `options` are for `ssh` itself.
    pub(crate) fn ssh(&self, name: &str, options: &[&str], line: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(self.options(name))
            .args(["-p", &self.port.to_string()])
            .args(options)
            .arg(format!("{}@127.0.0.1", self.user));
        if !line.is_empty() {
            ssh.arg(line);
        }
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        ssh
    }

    /// Returns what `ssh` and its companions need to get in as somebody.
    pub(crate) fn options(&self, name: &str) -> Vec<String> {
        let known = self.dir.path().join("known_hosts");
        let mut words: Vec<String> = ["-F", "none"].map(str::to_owned).to_vec();
        for option in [
            "StrictHostKeyChecking=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "BatchMode=yes".to_owned(),
            "LogLevel=ERROR".to_owned(),
            format!("UserKnownHostsFile={}", known.display()),
            format!("IdentityFile={}", self.key_file(name).display()),
        ] {
            words.extend(["-o".to_owned(), option]);
        }
        words
    }

    /// Returns where it listens.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns its host key, as in `known_hosts`.
    pub(crate) fn host_key(&self) -> String {
        self.host_key.public_line()
    }

    /// Returns the only user that it lets in: whoever runs the test.
    pub(crate) fn user(&self) -> String {
        self.user.clone()
    }

    /// Returns the key of somebody who was admitted.
    pub(crate) fn key(&self, name: &str) -> KeyPair {
        host_key::load(&self.key_file(name)).unwrap()
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("keys").join(name)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.daemon.kill().ok();
        self.daemon.wait().unwrap();
    }
}
