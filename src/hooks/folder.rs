//! Which files are hooks.

use super::HOOKS_MAX;
use crate::core::{event::EventKind, hook::HookId, id::Name, time::Timestamp};
use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The bits of those who may execute a file.
const EXECUTABLE: u32 = 0o111;
/// The bits of those beside the owner who may write.
const WRITABLE: u32 = 0o022;

/// An executable that wants events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Which one it is.
    pub id: HookId,
    /// The file.
    pub path: PathBuf,
    /// Since when it is there as it is: what happened before does not concern it.
    pub since: Timestamp,
}

/// What the folders of hooks have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// What is to be run, in order.
    pub hooks: Vec<Hook>,
    /// All that is there, also what must not be run now.
    pub present: BTreeSet<HookId>,
    /// What is wrong and what to do, a sentence each.
    pub problems: Vec<String>,
}

/// Looks which hooks there are below a directory; `own` is the user that runs them. What looks
/// wrong is reported and not run.
///
/// # Errors
/// When a folder cannot be read: nothing is known then.
pub fn look(dir: &Path, own: u32) -> io::Result<Found> {
    let mut found = Found::default();
    for (name, path) in children(dir)? {
        if name.starts_with('.') || name == "README" || name == "README.md" {
            continue;
        }
        match name.strip_suffix(".d").map(str::parse::<EventKind>) {
            Some(Ok(event)) => look_into(&path, event, own, &mut found)?,
            Some(Err(_)) | None => found.problems.push(format!(
                "{}: ignored: folders of hooks are called EVENT.d, as in build-success.d",
                path.display()
            )),
        }
    }
    found.hooks.sort_by(|one, other| one.id.cmp(&other.id));
    for hook in found.hooks.iter().skip(HOOKS_MAX) {
        let path = hook.path.display();
        found.problems.push(format!("{path}: not run: there are more than {HOOKS_MAX} hooks"));
    }
    found.hooks.truncate(HOOKS_MAX);
    Ok(found)
}

fn look_into(folder: &Path, event: EventKind, own: u32, found: &mut Found) -> io::Result<()> {
    let around = fs_err::metadata(folder)?;
    if !around.is_dir() {
        found.problems.push(format!("{}: ignored: it is no folder", folder.display()));
        return Ok(());
    }
    let exposed = exposed(&around, own);
    if let Some(reason) = exposed {
        found.problems.push(format!("{}: none of its hooks is run: {reason}", folder.display()));
    }
    for (name, path) in children(folder)? {
        if is_left_over(&name) {
            continue;
        }
        let Some(name) = hook_name(&name) else {
            found.problems.push(format!(
                "{}: not run: call it by letters, digits, ‘_’ and ‘-’ only",
                path.display()
            ));
            continue;
        };
        let Ok(metadata) = fs_err::metadata(&path) else { continue };
        let id = HookId { event, name };
        found.present.insert(id.clone());
        let reason = if metadata.is_file() { unfit(&metadata, own) } else { Some("it is no file") };
        match reason {
            None if exposed.is_none() => {
                let since = since(&metadata);
                found.hooks.push(Hook { id, path, since });
            }
            None => {}
            Some(reason) => found.problems.push(format!("{}: not run: {reason}", path.display())),
        }
    }
    Ok(())
}

/// Returns what a folder has, in order. A folder that is not there has nothing.
fn children(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs_err::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        // What is no text is no name of a hook either.
        if let Some(name) = entry.file_name().to_str() {
            children.push((name.to_owned(), entry.path()));
        }
    }
    children.sort();
    Ok(children)
}

/// Tells whether a file is a hook's settings, or was left by an editor, a package manager or version
/// control.
fn is_left_over(name: &str) -> bool {
    name.starts_with('.')
        || name.ends_with('~')
        || Path::new(name).extension().is_some_and(|end| end == "conf")
        || name.starts_with("README")
        || name.contains(".dpkg-")
}

/// Returns the name of a hook, if `run-parts` would run a file that is called so.
fn hook_name(name: &str) -> Option<Name> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    name.parse().ok().filter(|_| plain)
}

/// Returns why a file must not be run.
fn unfit(metadata: &std::fs::Metadata, own: u32) -> Option<&'static str> {
    if metadata.mode() & EXECUTABLE == 0 {
        return Some("it is not executable (chmod 755)");
    }
    exposed(metadata, own)
}

/// Returns why somebody else decides what a file or folder has in it.
fn exposed(metadata: &std::fs::Metadata, own: u32) -> Option<&'static str> {
    if metadata.uid() != own && metadata.uid() != 0 {
        Some("it belongs to another user (chown it)")
    } else if metadata.mode() & WRITABLE != 0 {
        Some("others may write to it (chmod go-w)")
    } else {
        None
    }
}

/// Returns when a file was last made, changed, renamed or made executable.
fn since(metadata: &std::fs::Metadata) -> Timestamp {
    let ms = metadata.ctime().saturating_mul(1_000);
    Timestamp::from_ms(ms.saturating_add(metadata.ctime_nsec() / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn own() -> u32 {
        rustix::process::getuid().as_raw()
    }

    fn put(dir: &Path, name: &str, mode: u32) {
        let path = dir.join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        let folder = std::fs::Permissions::from_mode(0o755);
        fs_err::set_permissions(path.parent().unwrap(), folder).unwrap();
        fs_err::write(&path, "#!/bin/sh\n").unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn names(found: &Found) -> Vec<String> {
        found.hooks.iter().map(|hook| hook.id.to_string()).collect()
    }

    #[test]
    fn what_can_be_executed_is_a_hook_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "build-success.d/mail", 0o755);
        put(dir.path(), "build-success.d/10-badge_svg", 0o700);
        put(dir.path(), "agent-quarantined.d/mail", 0o755);
        put(dir.path(), "README.md", 0o644);
        put(dir.path(), "build-success.d/mail~", 0o755);
        put(dir.path(), "build-success.d/mail.conf", 0o644);
        put(dir.path(), "build-success.d/.mail.swp", 0o755);
        let found = look(dir.path(), own()).unwrap();
        assert_eq!(found.problems, Vec::<String>::new());
        let expected =
            ["build-success.d/10-badge_svg", "build-success.d/mail", "agent-quarantined.d/mail"];
        assert_eq!(names(&found), expected);
        assert_eq!(found.present.len(), 3);
    }

    #[test]
    fn what_looks_wrong_is_reported_and_not_run() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "build-success.d/quiet", 0o644);
        put(dir.path(), "build-success.d/open", 0o757);
        put(dir.path(), "build-success.d/group", 0o775);
        put(dir.path(), "build-success.d/mail.sh", 0o755);
        put(dir.path(), "build-done.d/mail", 0o755);
        fs_err::create_dir(dir.path().join("build-success.d/folder")).unwrap();
        let found = look(dir.path(), own()).unwrap();
        assert_eq!(names(&found), Vec::<String>::new());
        assert_eq!(found.problems.len(), 6, "{:?}", found.problems);
        // They are there all the same: what they had is not forgotten.
        assert_eq!(found.present.len(), 4);
    }

    #[test]
    fn a_folder_that_others_write_to_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "build-success.d/mail", 0o755);
        let folder = dir.path().join("build-success.d");
        fs_err::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let found = look(dir.path(), own()).unwrap();
        assert_eq!(names(&found), Vec::<String>::new());
        assert_eq!((found.problems.len(), found.present.len()), (1, 1));
    }

    #[test]
    fn there_is_an_end_to_how_many_there_are() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..=HOOKS_MAX {
            put(dir.path(), &format!("build-success.d/hook-{number}"), 0o755);
        }
        let found = look(dir.path(), own()).unwrap();
        assert_eq!((found.hooks.len(), found.problems.len()), (HOOKS_MAX, 1));
        assert_eq!(look(&dir.path().join("none"), own()).unwrap(), Found::default());
    }
}
