//! The measurement of transfers in small: that every part runs and gives numbers, no speed.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "bench/transfers/mod.rs"]
#[expect(dead_code, reason = "the planner's measurement uses the rest")]
mod transfers;
#[path = "common/wait.rs"]
mod wait;

use std::{
    path::Path,
    process::{Command, Stdio},
};
use transfers::{
    Options, PARTS,
    report::{Bar, Peer, Row},
};

#[test]
fn every_part_runs_and_gives_numbers() {
    if Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
        println!("skipped: there is no ssh in PATH");
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_steading"));
    for part in PARTS {
        let section = transfers::run(part, Options::QUICK, program);
        assert!(!section.rows.is_empty(), "{}: no rows", section.part);
        for row in &section.rows {
            let (median, best) = row.ours;
            assert!(median.is_finite() && best.is_finite(), "{}: {row:?}", section.part);
        }
        print!("{}", transfers::report::table(&section));
    }
}

fn row(bar: Bar, peer: Peer) -> Row {
    Row { what: "x".to_owned(), unit: "s", ours: (2.0, 1.0), peer, bar }
}

#[test]
fn a_peer_that_was_not_run_is_not_passed() {
    let peer = Peer::NotRun("sftp".to_owned(), "no sshd".to_owned());
    assert_eq!(row(Bar::Faster(1.5), peer).verdict(), "not run");
}

#[test]
fn bars_are_compared_the_right_way_round() {
    let peer = |median| Peer::Measured("sftp".to_owned(), median, median);
    assert_eq!(row(Bar::Faster(1.5), peer(3.0)).verdict(), "met");
    assert_eq!(row(Bar::Faster(1.5), peer(2.0)).verdict(), "MISSED");
    let share = |peer| Row { unit: "CPU s", ..row(Bar::Share(0.6), peer) };
    assert_eq!(share(peer(4.0)).verdict(), "met");
    assert_eq!(share(peer(3.0)).verdict(), "MISSED");
    assert_eq!(row(Bar::AtMost(10.0), Peer::Nothing).verdict(), "met");
    assert_eq!(row(Bar::AtMost(1.0), Peer::Nothing).verdict(), "MISSED");
}
