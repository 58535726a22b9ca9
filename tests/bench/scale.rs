//! Measures what a large queue costs: processor time and memory of the engine and the database.
//!
//! `cargo bench --bench scale -- 10000 100000` runs each phase in a process of its own, so that
//! none sees memory that another left behind.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot be made has to stop, and its result is printed"
)]

#[path = "../common/closure.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod closure;
#[path = "scale/layered.rs"]
mod layered;
#[path = "scale/meter.rs"]
mod meter;
#[path = "scale/ours.rs"]
mod ours;
#[path = "scale/plain.rs"]
mod plain;
#[path = "../common/random.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod random;

use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
};

const USAGE: &str = "\
usage: cargo bench --bench scale -- [BUILDS…] [--only PHASE]

BUILDS are numbers of derivations; 10000 and 100000 when there are none.
Phases: submit, restore, turn, rows, scan, heap.
";

fn main() -> ExitCode {
    // Cargo adds a flag of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["phase", phase, builds, dir] => {
            run(phase, builds.parse().unwrap(), Path::new(dir));
            ExitCode::SUCCESS
        }
        _ => all(&words),
    }
}

/// Runs one phase in this process.
fn run(phase: &str, builds: usize, dir: &Path) {
    match phase {
        "stream" => layered::stream(builds, &mut std::io::stdout().lock()),
        "submit" => ours::submit(dir),
        "restore" => ours::restore(dir),
        "turn" => ours::turn(dir),
        "rows" => plain::rows(builds, dir),
        "scan" => plain::scan(dir),
        "heap" => plain::heap(builds),
        _ => eprint!("{USAGE}"),
    }
}

fn all(words: &[&str]) -> ExitCode {
    let only = words.iter().position(|word| *word == "--only").map(|at| (at, words.get(at + 1)));
    let (sizes, only) = match only {
        None => (words, None),
        Some((at, Some(phase))) => (&words[..at], Some(*phase)),
        Some((_, None)) => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Ok(mut sizes) = sizes.iter().map(|word| word.parse()).collect::<Result<Vec<usize>, _>>()
    else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    if sizes.is_empty() {
        sizes = vec![10_000, 100_000];
    }
    for builds in sizes {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        println!("\n## {builds} builds");
        for phase in ["submit", "restore", "turn", "rows", "scan", "heap"] {
            // The later phases need what a submission left.
            if only.is_none_or(|only| only == phase) || phase == "submit" {
                child(phase, builds, dir.path());
            }
        }
    }
    ExitCode::SUCCESS
}

/// Runs one phase in a process of its own.
fn child(phase: &str, builds: usize, dir: &Path) {
    let phase_of = |phase: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["phase", phase, &builds.to_string()]).arg(dir);
        command
    };
    let mut command = phase_of(phase);
    let mut feeder = None;
    if phase == "submit" {
        let mut stream = phase_of("stream").stdout(Stdio::piped()).spawn().unwrap();
        command.stdin(stream.stdout.take().unwrap());
        feeder = Some(stream);
    }
    assert!(command.status().unwrap().success(), "{phase} failed");
    if let Some(mut feeder) = feeder {
        assert!(feeder.wait().unwrap().success(), "the stream broke off");
    }
}
