//! The processes below a process, as `/proc` shows them.

use rustix::process::Pid;
use std::{
    collections::{HashMap, HashSet},
    io,
};

/// Returns all processes that are visible here.
///
/// # Errors
/// `/proc` cannot be read.
pub fn all() -> io::Result<Vec<Pid>> {
    let mut processes = Vec::new();
    for entry in fs_err::read_dir("/proc")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        processes.extend(number.and_then(Pid::from_raw));
    }
    Ok(processes)
}

/// Returns the living processes that `root` started, that those started, and so on.
///
/// A process whose parent died counts only if `root`, or something below it, inherits orphans
/// (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// `/proc` cannot be read.
pub fn descendants(root: Pid) -> io::Result<Vec<Pid>> {
    let mut families = families()?;
    // Parents are read one after the other while processes come and go, so a circle is thinkable.
    let mut found = HashSet::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        let new = families.remove(&parent).unwrap_or_default();
        open.extend(new.iter().filter(|process| found.insert(**process)));
    }
    found.remove(&root);
    Ok(found.into_iter().collect())
}

/// Returns the living processes whose parent is `root`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn children(root: Pid) -> io::Result<Vec<Pid>> {
    Ok(families()?.remove(&root).unwrap_or_default())
}

/// Returns the living processes by their parents.
fn families() -> io::Result<HashMap<Pid, Vec<Pid>>> {
    let mut families = HashMap::<Pid, Vec<Pid>>::new();
    for process in all()? {
        // A process may end at any moment, and then has no line.
        let stat = fs_err::read(format!("/proc/{}/stat", process.as_raw_nonzero()));
        if let Some(parent) = stat.ok().and_then(|stat| living_parent(&stat)) {
            families.entry(parent).or_default().push(process);
        }
    }
    Ok(families)
}

/// Returns the parent that `/proc/PID/stat` (proc(5)) names, if the process is alive.
fn living_parent(stat: &[u8]) -> Option<Pid> {
    // The second field is a name in parentheses that may itself have blanks and parentheses.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end.checked_add(1)?..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok().and_then(Pid::from_raw)?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpid;
    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
    };

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        let parent = Pid::from_raw(42);
        assert_eq!(living_parent(b"7 (a) b (c)) S 42 7 1 0 -1"), parent);
        assert_eq!(living_parent(b"7 (sh) Z 42 7 1 0 -1"), None);
        assert_eq!(living_parent(b"7 (sh) S 0 0 0"), None);
        assert_eq!(living_parent(b""), None);
        assert_eq!(living_parent(b"7 (sh)"), None);
    }

    #[test]
    fn grandchildren_in_other_sessions_are_found() {
        let mut child = Command::new("sh")
            .args(["-c", "setsid sh -c 'echo ready; read line; true'; true"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let id = Pid::from_child(&child);
        assert!(!descendants(id).unwrap().is_empty());
        assert!(children(getpid()).unwrap().contains(&id));
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        assert_eq!(descendants(id).unwrap(), []);
    }
}
