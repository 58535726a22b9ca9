//! A stock OpenSSH server on loopback, to compare our uploads with `sftp put`.

use crate::wait;
use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
};
use steading::{ssh::host_key, telemetry::Clock};

/// Puts a file to a server of its own and returns how long the transfer took, in milliseconds,
/// connecting included; `None` when there is no server on this machine.
pub(crate) fn put_ms(file: &Path) -> Option<u64> {
    let sshd = Path::new("/usr/sbin/sshd");
    if !sshd.exists() {
        return None;
    }
    let dir = tempfile::Builder::new().prefix("sftp").tempdir_in("/tmp").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let server = host_key::load_or_create(&dir.path().join("keys/host")).unwrap();
    let client = host_key::load_or_create(&dir.path().join("keys/client")).unwrap();
    fs_err::write(path("authorized"), client.public_line() + "\n").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let known = format!("[127.0.0.1]:{port} {}\n", server.public_line());
    fs_err::write(path("known_hosts"), known).unwrap();
    // Where the server must be able to chroot to; Debian makes it with the service.
    fs_err::create_dir_all("/run/sshd").unwrap();
    let mut daemon = Command::new(sshd)
        .args(["-D", "-e", "-f", "/dev/null", "-h", &path("keys/host")])
        .args(["-o", &format!("ListenAddress=127.0.0.1:{port}")])
        .args(["-o", &format!("AuthorizedKeysFile={}", path("authorized"))])
        .args(["-o", "StrictModes=no", "-o", "Subsystem=sftp internal-sftp", "-o", "PidFile=none"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait::until("sshd listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let batch = path("batch");
    fs_err::write(&batch, format!("put {} {}\n", file.display(), path("received"))).unwrap();
    let clock = Clock::start();
    let status = Command::new("sftp")
        .args(["-F", "none", "-q", "-b", &batch, "-P", &port.to_string()])
        .args(["-o", "Ciphers=aes128-gcm@openssh.com", "-o", "IdentitiesOnly=yes"])
        .args(["-o", &format!("UserKnownHostsFile={}", path("known_hosts"))])
        .args(["-o", &format!("IdentityFile={}", path("keys/client"))])
        .arg("127.0.0.1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    let took = clock.now().mono.as_ms();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(status.success(), "sftp failed");
    assert_eq!(fs_err::metadata(path("received")).unwrap().len(), file.metadata().unwrap().len());
    Some(took)
}
