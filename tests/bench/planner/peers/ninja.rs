//! ninja: what a graph takes in memory.

use crate::{planner::shape::Shape, transfers::measure, wait};
use std::{
    io::{BufWriter, Write as _},
    path::Path,
    process::{Command, Stdio},
};

/// How long the memory must not have changed to be all of it, in looks.
const STEADY_LOOKS: usize = 20;

/// Returns the resident memory of ninja with a graph, in KiB: it stops when nobody reads what it
/// prints.
pub(crate) fn ninja(scratch: &Path, shape: &Shape, arguments: &[&str]) -> Result<f64, String> {
    let dir = tempfile::tempdir_in(scratch).unwrap();
    let file = dir.path().join("build.ninja");
    let mut text = BufWriter::new(fs_err::File::create(&file).unwrap());
    writeln!(text, "rule build\n  command = build $out").unwrap();
    for node in 0..shape.count() {
        write!(text, "build package-{node}-1.0: build").unwrap();
        for input in shape.inputs(node) {
            write!(text, " package-{input}-1.0").unwrap();
        }
        writeln!(text).unwrap();
    }
    text.flush().unwrap();
    let mut child = Command::new("ninja")
        .arg("-C")
        .arg(dir.path())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("ninja: {error}"))?;
    let (mut before, mut steady) = (0.0, 0);
    let mut ended = false;
    wait::until("ninja has read the graph", || {
        ended = child.try_wait().unwrap().is_some();
        if ended {
            return true;
        }
        // One that has just ended has none.
        let Some(now) = resident_kib(child.id()) else { return false };
        steady = if now.to_bits() == f64::to_bits(before) { steady + 1 } else { 0 };
        before = now;
        // A sleeping process that wrote a pipe full has nothing more to do.
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        steady >= STEADY_LOOKS && stat.contains(") S ")
    });
    measure::kill(&mut child);
    if ended { Err("ninja ended before it was looked at".to_owned()) } else { Ok(before) }
}

/// Returns the resident memory of a process that may have ended.
fn resident_kib(pid: u32) -> Option<f64> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
