//! A Guix daemon, and whether it takes in what the coordinator signs.

use super::{Finding, connection::Probe};
use crate::{
    builders::{
        Builder as _, BuilderError,
        guix::{Guix, SIGNATURE_BEGIN},
    },
    core::store_path::StoreDir,
    telemetry,
};
use std::path::Path;

/// What the coordinator's key is called here and there.
const KEY_FILE_NAME: &str = "signing-guix.pub";

/// Checks the daemon behind a socket. The key that it should believe is left in `state_dir` when it
/// does not.
pub(super) fn check(
    socket: &Path,
    store_dir: &StoreDir,
    state_dir: &Path,
    probe: Option<&Probe>,
) -> Vec<Finding> {
    let mut guix = match Guix::connect(socket, store_dir.clone()) {
        Ok(guix) => guix,
        Err(error) => {
            let mend = match error {
                BuilderError::Unreachable { .. } => "systemctl enable --now guix-daemon",
                _ => "set GUIX_DAEMON_SOCKET to the socket of a Guix daemon, or --builder nix",
            };
            return vec![Finding::fail("daemon", telemetry::chain(&error), mend.to_owned())];
        }
    };
    let explanation = format!("a Guix daemon answers at {}", socket.display());
    let mut findings = vec![Finding::ok("daemon", explanation)];
    findings.extend(probe.map(|probe| check_acl(&mut guix, state_dir, probe)));
    findings
}

/// Lets the daemon take in a path that the coordinator signed.
fn check_acl(guix: &mut Guix, state_dir: &Path, probe: &Probe) -> Finding {
    if !probe.info.signatures.iter().any(|signature| signature.starts_with(SIGNATURE_BEGIN)) {
        let explanation = "the coordinator signs no exports for this store, so the daemon takes \
                           in only sources and derivations";
        let mend = "upgrade the coordinator".to_owned();
        return Finding::fail("signatures", explanation, mend);
    }
    match guix.import(&probe.info, &mut probe.nar.as_ref()) {
        Ok(()) => Finding::ok("signatures", "the daemon takes in what the coordinator signs"),
        Err(error @ BuilderError::Daemon(_)) => {
            let explanation = format!(
                "the daemon refuses what the coordinator signs: {}",
                telemetry::chain(&error)
            );
            Finding::fail("signatures", explanation, authorize(state_dir, &probe.signing_key))
        }
        Err(error) => Finding::fail("signatures", telemetry::chain(&error), None),
    }
}

/// Returns the command that makes the daemon believe the key.
fn authorize(state_dir: &Path, key: &str) -> String {
    let file = state_dir.join(KEY_FILE_NAME);
    match fs_err::write(&file, format!("{}\n", key.trim_end())) {
        Ok(()) => format!("guix archive --authorize < {}", file.display()),
        Err(_) => format!(
            "guix archive --authorize < {KEY_FILE_NAME}, which is in run/ of the coordinator's \
             state directory"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_a_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let command = authorize(dir.path(), "(public-key)");
        let (_, file) = command.split_once("< ").unwrap();
        assert_eq!(fs_err::read_to_string(file).unwrap(), "(public-key)\n");
        let elsewhere = authorize(&dir.path().join("absent"), "(public-key)");
        assert!(elsewhere.contains("run/ of the coordinator"), "{elsewhere}");
    }
}
