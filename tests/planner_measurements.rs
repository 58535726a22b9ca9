//! The planner over real connections: everything is built once and in order, and the measurement of
//! it works in small. No speed.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is a test; a failure names its place"
)]

#[path = "common/archive.rs"]
mod archive;
#[path = "bench/planner/mod.rs"]
#[expect(dead_code, reason = "the measurement uses the rest")]
mod planner;
#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "common/random.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod random;
#[path = "bench/transfers/mod.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod transfers;
#[path = "common/wait.rs"]
mod wait;

use planner::{Options, PARTS, Part, distribution};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// How many derivations of a real distribution are built here; `tests/bench/run planner
/// distribution` builds all.
const DERIVATIONS: usize = 3_000;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_steading"))
}

fn has_ssh() -> bool {
    let found = Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: there is no ssh in PATH");
    }
    found
}

#[test]
fn every_part_runs_and_gives_numbers() {
    if !has_ssh() {
        return;
    }
    // Of `next`, the peer is the measuring program; `distribution` is tested below.
    let others = |(name, _): &Part| !["next", "distribution"].contains(name);
    for part in PARTS.into_iter().filter(others) {
        let section = planner::run(part, Options::QUICK, program());
        assert!(!section.rows.is_empty(), "{}: no rows", section.part);
        for row in &section.rows {
            let (middle, best) = row.ours;
            assert!(middle.is_finite() && best.is_finite(), "{}: {row:?}", section.part);
        }
        print!("{}", transfers::report::table(&section));
    }
}

#[test]
fn a_distribution_is_built_once_and_in_order_by_agents_that_answer_at_once() {
    if !has_ssh() {
        return;
    }
    if let Err(reason) = archive::read() {
        println!("skipped: {reason}");
        return;
    }
    let options = Options { distribution: DERIVATIONS, agents: 40, ..Options::QUICK };
    let section = planner::run(("distribution", distribution::measure), options, program());
    assert!(section.rows.len() > 5, "{section:?}");
    print!("{}", transfers::report::table(&section));
}
