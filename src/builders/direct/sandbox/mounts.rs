//! What a build in a mount namespace of its own sees of the machine's files.

use super::{Order, StoreView, note};
use nix::mount::{MsFlags, mount};
use rustix::fs::{StatVfsMountFlags, statvfs};
use std::{io, os::unix::fs::symlink, path::Path};

const NONE: Option<&str> = None;

/// Makes the build's store: a directory in which its inputs are mounted read-only and which takes
/// its outputs, mounted where the build expects the store. Nothing else of the store is seen.
///
/// Mounts made from here on stay in the namespace.
pub(super) fn show_store(store: &StoreView) -> Result<(), String> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(|error| format!("making mounts private: {error}"))?;
    for name in &store.inputs {
        show_input(&store.physical.join(name), &store.scratch.join(name))
            .map_err(|error| format!("showing the input {name}: {error}"))?;
    }
    let logical = store.logical.as_path();
    // Works for root; for others the directory must be there, and the mount says so.
    let _exists = fs_err::create_dir_all(logical);
    bind(&store.scratch, logical).map_err(|error| {
        let (scratch, logical) = (store.scratch.display(), logical.display());
        format!("mounting {scratch} at {logical}: {error}; the directory {logical} must exist")
    })
}

/// Shows one input. A symbolic link cannot be mounted, so the build gets one of its own.
fn show_input(source: &Path, place: &Path) -> io::Result<()> {
    let kind = fs_err::symlink_metadata(source)?.file_type();
    if kind.is_symlink() {
        return symlink(fs_err::read_link(source)?, place);
    }
    if kind.is_dir() {
        fs_err::create_dir(place)?;
    } else {
        fs_err::File::create_new(place)?;
    }
    bind(source, place)?;
    // Changing a mount must keep what the surrounding namespace forbids: mount_namespaces(7).
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags_of(place)?;
    Ok(mount(NONE, place, NONE, flags, NONE)?)
}

fn bind(source: &Path, place: &Path) -> io::Result<()> {
    Ok(mount(Some(source), place, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?)
}

/// Returns the flags of the mount that holds `path`, as mount(2) takes them.
fn flags_of(path: &Path) -> io::Result<MsFlags> {
    let flags = statvfs(path)?.f_flag;
    let kept = [
        (StatVfsMountFlags::NOSUID, MsFlags::MS_NOSUID),
        (StatVfsMountFlags::NODEV, MsFlags::MS_NODEV),
        (StatVfsMountFlags::NOEXEC, MsFlags::MS_NOEXEC),
        (StatVfsMountFlags::NOATIME, MsFlags::MS_NOATIME),
        (StatVfsMountFlags::NODIRATIME, MsFlags::MS_NODIRATIME),
        (StatVfsMountFlags::RELATIME, MsFlags::MS_RELATIME),
    ];
    let held = kept.iter().filter(|(shown, _)| flags.contains(*shown));
    Ok(held.fold(MsFlags::empty(), |all, (_, flag)| all | *flag))
}

/// Gives the build a `/tmp` and shared memory of its own. Where the build's own directories are
/// below `/tmp` it gets none: it would lose sight of them.
pub(super) fn show_temporary(order: &Order) -> Result<(), String> {
    let shared = mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::MS_NOSUID, NONE);
    if let Err(error) = shared {
        note(&format!("no shared memory of its own: {error}"));
    }
    if !has_own_temporary(order) {
        return Ok(());
    }
    bind(&order.temporary, Path::new("/tmp")).map_err(|error| format!("mounting /tmp: {error}"))
}

/// Whether a build in namespaces has a `/tmp` of its own.
pub(super) fn has_own_temporary(order: &Order) -> bool {
    let own = [&order.directory, &order.store.logical, &order.temporary];
    !own.into_iter().chain(&order.shared).any(|path| path.starts_with("/tmp"))
}
