//! Which files of the machine a build reaches: landlock(7).
//!
//! A build reads and executes what the machine offers everybody (programs, libraries, `/etc`), and
//! reads and writes its own directories and the store it was given. Homes, the state of services,
//! and above all the agent's key are out of its reach, also where it runs as the agent's own user.

use super::{Network, Order, Surroundings, mounts};
use landlock::{
    ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use std::path::{Path, PathBuf};

/// The newest version of the interface whose rights are used; an older kernel enforces those it
/// knows.
const RIGHTS: ABI = ABI::V6;

/// What everybody may read and execute. The two stores are there for machines whose own programs
/// are in one.
const SHARED: &[&str] = &[
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr",
    "/etc",
    "/proc",
    "/nix/store",
    "/gnu/store",
    "/run/current-system",
];
/// Where `/etc/resolv.conf` often points to, for builds that may use the network.
const RESOLVERS: &[&str] = &["/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager"];
/// The devices of a build, as in Nix's sandbox.
const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/fd",
];

/// Gives up the right to all other files, for this process and all that it starts.
///
/// Returns whether the kernel keeps it to that.
pub(super) fn give_up_others(
    order: &Order,
    surroundings: Surroundings,
) -> Result<bool, RulesetError> {
    let mut shared: Vec<&str> = SHARED.to_vec();
    if order.network == Network::Host {
        shared.extend(RESOLVERS);
    }
    let mut own: Vec<PathBuf> = DEVICES.iter().map(PathBuf::from).collect();
    own.extend([order.directory.clone(), order.store.logical.clone()]);
    own.extend(order.shared.iter().cloned());
    if surroundings == Surroundings::Isolated {
        own.push(PathBuf::from("/dev/shm"));
        if mounts::has_own_temporary(order) {
            own.push(PathBuf::from("/tmp"));
        }
    }
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .scope(Scope::from_all(RIGHTS))?
        .create()?
        .add_rules(path_beneath_rules(present(shared), AccessFs::from_read(RIGHTS)))?
        .add_rules(path_beneath_rules(present(own), AccessFs::from_all(RIGHTS)))?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Returns those of `paths` that this machine has.
fn present<P: AsRef<Path>>(paths: Vec<P>) -> impl Iterator<Item = P> {
    paths.into_iter().filter(|path| path.as_ref().exists())
}
