//! What hooks get to reach the coordinator with: an address, a key, and the variables that say so.

use crate::{
    core::id::Name,
    hooks::HookRole,
    ssh::{Door, KeyFileError, Role, host_key},
};
use std::{
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

/// Who hooks are.
const PRINCIPAL: &str = "hooks";
/// The variables of the coordinator that hooks get, too.
const PASSED_ON: [&str; 3] = ["PATH", "HOME", "LANG"];

/// Why hooks cannot reach the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// Their key.
    #[error("hooks have no key")]
    Key(#[source] KeyFileError),
    /// The file with the coordinator's host key.
    #[error("the host key cannot be written down for hooks")]
    KnownHosts(#[source] io::Error),
}

/// Lets hooks in at the door, under a key of their own that is made when it is missing. Returns the
/// variables of every run.
///
/// # Errors
/// [`EnvironmentError`].
pub(in crate::coordinator) fn let_in(
    state_dir: &Path,
    door: &Door,
    role: HookRole,
) -> Result<Vec<(OsString, OsString)>, EnvironmentError> {
    let state_dir = std::path::absolute(state_dir).map_err(EnvironmentError::KnownHosts)?;
    let key_file = state_dir.join("secrets/hooks_ed25519");
    let key = host_key::load_or_create(&key_file).map_err(EnvironmentError::Key)?;
    let name: Name = PRINCIPAL.parse().expect("the word is a name");
    door.monitor.let_in(&key, name, role_of(role));

    let address = reachable(door.address);
    let known_hosts = state_dir.join("run/hooks_known_hosts");
    let line = format!("[{}]:{} {}\n", address.ip(), address.port(), door.host_public_key);
    fs_err::write(&known_hosts, line).map_err(EnvironmentError::KnownHosts)?;
    let words = [
        "-F".to_owned(),
        "none".to_owned(),
        "-p".to_owned(),
        address.port().to_string(),
        "-i".to_owned(),
        key_file.display().to_string(),
        "-oBatchMode=yes".to_owned(),
        "-oIdentitiesOnly=yes".to_owned(),
        "-oStrictHostKeyChecking=yes".to_owned(),
        format!("-oUserKnownHostsFile={}", known_hosts.display()),
        address.ip().to_string(),
    ];
    let mut environment: Vec<(OsString, OsString)> = PASSED_ON
        .into_iter()
        .filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
        .collect();
    environment.push(("STEADING_COORDINATOR".into(), joined(&words).into()));
    environment.push(("STEADING_KEY".into(), key_file.into()));
    Ok(environment)
}

/// Joins words so that a shell divides them again when it expands the variable, which takes away no
/// quotes: only what needs them has some, and then only `steading VERB` understands it.
fn joined(words: &[String]) -> String {
    let quoted = words.iter().map(|word| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
        if word.bytes().all(is_plain) { word.clone() } else { shell_words::quote(word).into() }
    });
    quoted.collect::<Vec<String>>().join(" ")
}

const fn role_of(role: HookRole) -> Role {
    match role {
        HookRole::Viewer => Role::Viewer,
        HookRole::Submitter => Role::Submitter,
        HookRole::Operator => Role::Operator,
        HookRole::Admin => Role::Admin,
    }
}

/// Returns where this machine reaches what listens on an address.
const fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_divided_by_an_expansion_and_by_us() {
        let words = |all: &[&str]| all.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let plain = words(&["-F", "none", "-oUserKnownHostsFile=/var/lib/x/run/k", "::1"]);
        assert_eq!(joined(&plain), "-F none -oUserKnownHostsFile=/var/lib/x/run/k ::1");
        let blank = words(&["-i", "/var/lib/my farm/key"]);
        assert_eq!(shell_words::split(&joined(&blank)).unwrap(), blank);
    }

    #[test]
    fn whatever_listens_everywhere_is_reached_here() {
        for (listens, reached) in [
            ("0.0.0.0:22", "127.0.0.1:22"),
            ("[::]:2222", "[::1]:2222"),
            ("192.0.2.7:22", "192.0.2.7:22"),
        ] {
            let reached: SocketAddr = reached.parse().unwrap();
            assert_eq!(reachable(listens.parse().unwrap()), reached);
        }
    }
}
