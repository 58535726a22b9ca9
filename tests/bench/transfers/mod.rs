//! What transfers cost, ours and those of others, measured in turn in one run on one machine.
//!
//! Absolute numbers say more about the machine than about the program, so every line is a ratio
//! to a peer that was measured beside it. A peer that is not there is reported as not run.

pub(crate) mod client;
mod control;
mod crowd;
pub(crate) mod farm;
pub(crate) mod graph;
pub(crate) mod measure;
mod payload;
mod proxy;
pub(crate) mod report;
mod singles;
mod sink;
pub(crate) mod sshd;
mod stores;
mod submitting;
mod uploads;

use report::Section;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
};
use tokio::runtime::Runtime;

/// The parts by name.
pub(crate) type Part = (&'static str, fn(&Bench) -> Section);

/// All parts, in the order in which they run.
pub(crate) const PARTS: [Part; 6] = [
    ("sink", sink::measure),
    ("upload", uploads::large),
    ("small", uploads::small),
    ("control", control::measure),
    ("agents", crowd::measure),
    ("submit", submitting::measure),
];

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// The length of a large output, in bytes.
    pub(crate) bytes: u64,
    /// The length of a submitted source, in bytes.
    pub(crate) source_bytes: u64,
    /// How many small outputs and derivations.
    pub(crate) count: usize,
    /// How many idle agents.
    pub(crate) agents: usize,
    /// How many questions on a control connection that is alone.
    pub(crate) questions: usize,
    /// How often everything is measured.
    pub(crate) rounds: usize,
}

impl Options {
    /// Enough to see that everything works.
    pub(crate) const QUICK: Self = Self {
        bytes: 2 << 20,
        source_bytes: 1 << 20,
        count: 20,
        agents: 20,
        questions: 20,
        rounds: 1,
    };
}

/// What every part needs.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    /// The program that is measured.
    pub(crate) program: PathBuf,
    /// A directory for everything that is made, on a disk.
    pub(crate) scratch: PathBuf,
    pub(crate) runtime: Runtime,
}

/// Runs a part and returns what it gave.
pub(crate) fn run((name, part): Part, options: Options, program: &Path) -> Section {
    let dir = tempfile::Builder::new().prefix("transfers").tempdir_in("/tmp").unwrap();
    let bench = Bench {
        options,
        program: program.to_owned(),
        scratch: dir.path().to_owned(),
        runtime: Runtime::new().unwrap(),
    };
    say(&format!("{name} …"));
    part(&bench)
}

/// Says how far the run is.
pub(crate) fn say(line: &str) {
    // When standard error is closed, nobody wants to know.
    writeln!(std::io::stderr(), "{line}").ok();
}
