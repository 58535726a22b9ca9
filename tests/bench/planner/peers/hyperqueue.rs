//! `HyperQueue`, with everything in one process.

use super::{Rate, output};
use crate::planner::number;
use std::{path::Path, process::Command, thread};

/// What does it; prints how many seconds it took.
const SCRIPT: &str = include_str!("hyperqueue.py");
/// The version that is measured.
const PACKAGE: &str = "hyperqueue==0.27.0";

/// Submits `count` processes that do nothing and waits for them.
pub(crate) fn hyperqueue(scratch: &Path, count: usize) -> Result<Rate, String> {
    let dir = tempfile::tempdir_in(scratch).unwrap();
    let packages = dir.path().join("packages");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
    output(pip.arg(&packages).arg(PACKAGE))?;
    let clients = thread::available_parallelism().map_or(1, usize::from);
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT, &count.to_string(), &clients.to_string()]);
    python.env("PYTHONPATH", packages).current_dir(dir.path());
    let text = output(&mut python)?;
    // It tells of itself before.
    let seconds = text.lines().last().and_then(|line| line.parse::<f64>().ok());
    let seconds = seconds.ok_or_else(|| format!("it printed: {text}"))?;
    Ok(Rate { per_s: number(count) / seconds, clients })
}
