//! A stock OpenSSH server on loopback, and what its clients are told.

use super::measure::{self, Sample, children_of, cpu_of, cpu_of_ended_children, timed};
use crate::private_nix::PrivateNix;
use crate::wait;
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use steading::ssh::{ClientConfig, host_key};
use tempfile::TempDir;

/// The server. It ends with its value.
pub(crate) struct Sshd {
    dir: TempDir,
    /// What we started: the server, or what entered namespaces for it.
    child: Child,
    server: u32,
    pub(crate) address: SocketAddr,
}

impl Sshd {
    /// Starts a server, inside of a private `/nix` if there is one; says why there can be none.
    pub(crate) fn start(scratch: &Path, nix: Option<&PrivateNix>) -> Result<Self, String> {
        let program = ["/usr/sbin/sshd", "/usr/bin/sshd"].map(Path::new);
        let Some(program) = program.into_iter().find(|program| program.exists()) else {
            return Err("there is no sshd".to_owned());
        };
        let dir = tempfile::Builder::new().prefix("sshd").tempdir_in(scratch).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let server = host_key::load_or_create(&dir.path().join("keys/host")).unwrap();
        let client = host_key::load_or_create(&dir.path().join("keys/client")).unwrap();
        fs_err::write(path("authorized"), client.public_line() + "\n").unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let known = format!("[127.0.0.1]:{} {}\n", address.port(), server.public_line());
        fs_err::write(path("known_hosts"), known).unwrap();
        // Where the server must be able to chroot to; Debian makes it with the service.
        fs_err::create_dir_all("/run/sshd").map_err(|error| error.to_string())?;
        let mut command = nix.map_or_else(|| Command::new(program), |nix| nix.command(program));
        let mut child = command
            .args(["-D", "-e", "-f", "/dev/null", "-h", &path("keys/host")])
            .args(["-o", &format!("ListenAddress={address}"), "-o", "MaxStartups=1000"])
            .args(["-o", &format!("AuthorizedKeysFile={}", path("authorized"))])
            .args(["-o", "StrictModes=no", "-o", "Subsystem=sftp internal-sftp"])
            // What this machine's shell does at every start is not what is measured.
            .args(["-o", "PidFile=none", "-o", &format!("SetEnv=HOME={}", path(""))])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait::until("sshd listens", || {
            assert_eq!(child.try_wait().unwrap(), None, "sshd does not run");
            TcpStream::connect(address).is_ok()
        });
        let server = match nix {
            Some(_) => children_of(child.id())[0],
            None => child.id(),
        };
        Ok(Self { dir, child, server, address })
    }

    /// Returns a client's options, by way of `address`; the cipher is ours.
    pub(crate) fn options(&self, address: SocketAddr) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut words: Vec<String> = ["-F", "none"].map(str::to_owned).to_vec();
        for option in [
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "Ciphers=aes128-gcm@openssh.com".to_owned(),
            // Under one name, whatever the way there.
            format!("HostKeyAlias=[127.0.0.1]:{}", self.address.port()),
            format!("UserKnownHostsFile={}", path("known_hosts")),
            format!("IdentityFile={}", path("keys/client")),
            format!("Port={}", address.port()),
        ] {
            words.extend(["-o".to_owned(), option]);
        }
        words
    }

    /// Returns a client that runs a command line on the server.
    pub(crate) fn ssh(&self, line: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(self.options(self.address)).args(["-T", "127.0.0.1", line]);
        ssh
    }

    /// Returns how our own client connects.
    pub(crate) fn client(&self) -> ClientConfig {
        let key = |name: &str| host_key::load(&self.at("keys").join(name)).unwrap();
        ClientConfig {
            address: self.address.to_string(),
            host_keys: vec![key("host").public_line()],
            identity: key("client"),
            user: "root".to_owned(),
        }
    }

    /// Puts a file by way of `address`.
    pub(crate) fn put(&self, file: &Path, address: SocketAddr) -> Sample {
        let received = self.at("received");
        let line = format!("put {} {}\n", file.display(), received.display());
        let sample = self.sftp(&line, address);
        assert_eq!(
            fs_err::metadata(&received).unwrap().len(),
            fs_err::metadata(file).unwrap().len()
        );
        fs_err::remove_file(received).unwrap();
        sample
    }

    /// Puts a file where it costs nothing to store.
    pub(crate) fn put_into_nothing(&self, file: &Path) -> Sample {
        self.sftp(&format!("put {} /dev/null\n", file.display()), self.address)
    }

    fn sftp(&self, line: &str, address: SocketAddr) -> Sample {
        let batch = self.at("batch");
        fs_err::write(&batch, line).unwrap();
        let mut sftp = Command::new("sftp");
        sftp.arg("-q").arg("-b").arg(&batch).args(self.options(address)).arg("127.0.0.1");
        self.measure(sftp.stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// Runs a client to its end, which must be a good one; counts both ends.
    pub(crate) fn measure(&self, client: &mut Command) -> Sample {
        self.wait_until_idle();
        let before = (cpu_of_ended_children(), self.cpu());
        let (status, wall_s) = timed(|| client.status().unwrap());
        assert!(status.success(), "{client:?}: {status}");
        self.wait_until_idle();
        let cpu_s = cpu_of_ended_children() - before.0 + self.cpu() - before.1;
        Sample { wall_s, cpu_s: Some(cpu_s) }
    }

    /// Returns the processes of sessions.
    pub(crate) fn sessions(&self) -> Vec<u32> {
        let mut found = children_of(self.server);
        let mut at = 0;
        while let Some(pid) = found.get(at).copied() {
            found.extend(children_of(pid));
            at += 1;
        }
        found
    }

    /// The server has counted what its sessions used once it has none.
    fn wait_until_idle(&self) {
        wait::until("sshd has no session", || children_of(self.server).is_empty());
    }

    fn cpu(&self) -> f64 {
        let cpu = cpu_of(self.server);
        cpu.own_s + cpu.children_s
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Killing what entered the namespaces would leave those inside until they notice.
        measure::kill_process(self.server);
        measure::kill(&mut self.child);
    }
}
