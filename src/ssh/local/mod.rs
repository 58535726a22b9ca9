//! The entrance behind the host's own sshd: `steading stdio` as a forced command.
//!
//! Where port 22 is all that a network lets through, sshd checks the key and starts
//! `steading stdio --principal NAME`, and that passes the request on through a Unix socket in the
//! state directory. Only the coordinator's own user may open the socket, so whoever comes through
//! it is believed: the name stands in the `authorized_keys` of that user, not in anything that a
//! client says. From there on everything is as for those who come through the port: the keydir
//! says what the name may, and a name that is taken out of it loses its sessions.
//!
//! [`frame`] says what goes over the socket, [`accept`] is the coordinator's end and [`relay`] the
//! other. One connection is one request, so a client that does not read stops nobody but itself.

mod client;
mod frame;
mod half;
mod serve;

pub use client::{LocalError, Streams, abandoned, relay};
pub(super) use half::LocalHalf;
pub(super) use serve::{accept, listen};

use super::{
    authorize::{Credential, Principal, Quotas, Role},
    request::RequestKind,
    session::{ENV_BYTES_MAX, ENV_NAMES},
};
use crate::core::id::Name;

/// Where the socket is in the state directory.
pub const SOCKET: &str = "run/stdio";

/// The fingerprint of a principal that no key in the keydir names.
const NO_FINGERPRINT: &str = "forced-command";

/// How the programs are called that serve the subsystem `sftp` of sshd, which hands on their names
/// instead of the subsystem's.
const SFTP_PROGRAMS: [&[u8]; 2] = [b"internal-sftp", b"sftp-server"];

/// Whom a forced command names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// The principal.
    pub name: Name,
    /// Its role; needed where the keydir has no such name, or has it under several roles.
    pub role: Option<Role>,
}

impl Forced {
    /// Returns the principal of a name that is not in the keydir.
    pub(super) fn unlisted(&self, role: Role) -> Principal {
        Principal {
            name: self.name.clone(),
            role,
            fingerprint: NO_FINGERPRINT.to_owned(),
            systems: None,
            tags: Vec::new(),
            max_priority: None,
            trusted_import: false,
            quotas: Quotas::default(),
            credential: Credential::Listed,
        }
    }
}

/// One request on its way through the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who asks.
    pub forced: Forced,
    /// What for.
    pub kind: RequestKind,
    /// The variables of the session that mean something to verbs.
    pub env: Vec<(String, String)>,
}

/// Returns what a client asked sshd for; `original` is `SSH_ORIGINAL_COMMAND`. A subsystem arrives
/// as the command that sshd's configuration has for it, which for ours is its own name.
#[must_use]
pub fn asked(original: Option<&[u8]>) -> RequestKind {
    let Some(line) = original else { return RequestKind::Shell };
    let first = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let program = first.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if SFTP_PROGRAMS.contains(&program) {
        return RequestKind::Subsystem("sftp".to_owned());
    }
    match std::str::from_utf8(first) {
        Ok(name) if name.starts_with("steading-") && first.len() == line.len() => {
            RequestKind::Subsystem(name.to_owned())
        }
        Ok(_) | Err(_) => RequestKind::Exec(line.to_vec()),
    }
}

/// Returns the variables that are passed on, of those that this process has.
#[must_use]
pub fn session_variables() -> Vec<(String, String)> {
    let of = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
    ENV_NAMES.into_iter().filter_map(of).filter(|(_, text)| text.len() <= ENV_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_of_sshd_is_asked_here() {
        let subsystem = |name: &str| RequestKind::Subsystem(name.to_owned());
        assert_eq!(asked(None), RequestKind::Shell);
        assert_eq!(asked(Some(b"builds --json")), RequestKind::Exec(b"builds --json".to_vec()));
        assert_eq!(asked(Some(b"\xff")), RequestKind::Exec(b"\xff".to_vec()));
        assert_eq!(asked(Some(b"")), RequestKind::Exec(Vec::new()));
        assert_eq!(asked(Some(b"internal-sftp")), subsystem("sftp"));
        assert_eq!(asked(Some(b"/usr/lib/openssh/sftp-server -R")), subsystem("sftp"));
        assert_eq!(asked(Some(b"steading-control")), subsystem("steading-control"));
        let line = b"steading-control please".to_vec();
        assert_eq!(asked(Some(&line)), RequestKind::Exec(line));
    }
}
