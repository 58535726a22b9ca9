//! What planning costs, ours and that of others, measured in turn in one run on one machine.
//!
//! Everybody gets the same graph, [`shape::Shape`]. Processor seconds count where both sides do
//! the same work, because the machine may be busy with something else meanwhile.

mod agents;
mod allocate;
mod bare;
mod derivations;
pub(crate) mod distribution;
mod growth;
mod memory;
pub(crate) mod next;
mod peers;
mod plan;
mod questions;
mod recovery;
mod shape;
mod state;
mod submit;

use crate::transfers::{
    self,
    report::{Bar, Peer, Row, Section},
    say,
};
use std::path::Path;
use tokio::{runtime::Runtime, time::Instant};

/// The parts by name.
pub(crate) type Part = (&'static str, fn(&Bench) -> Section);

/// All parts, in the order in which they run.
pub(crate) const PARTS: [Part; 8] = [
    ("submit", submit::measure),
    ("plan", plan::measure),
    ("memory", memory::measure),
    ("recovery", recovery::measure),
    ("allocate", allocate::measure),
    ("next", next::measure),
    ("distribution", distribution::measure),
    ("growth", growth::measure),
];

/// How many inputs a derivation has.
pub(crate) const INPUTS_EACH: usize = 10;

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// How many derivations are submitted, and held in memory.
    pub(crate) nodes: usize,
    /// How many are planned without a database.
    pub(crate) plan: usize,
    /// The most open builds.
    pub(crate) open: usize,
    /// How many finished builds a database with a history has.
    pub(crate) history: usize,
    /// How many builds are allocated and completed.
    pub(crate) builds: usize,
    /// By how many agents.
    pub(crate) agents: usize,
    /// How many derivations of a real distribution at most.
    pub(crate) distribution: usize,
    /// How often everything is measured.
    pub(crate) rounds: usize,
}

impl Options {
    /// What the bars speak of.
    pub(crate) const FULL: Self = Self {
        nodes: 100_000,
        plan: 1_000_000,
        open: 1_000_000,
        history: 10_000_000,
        builds: 20_000,
        agents: 200,
        distribution: usize::MAX,
        rounds: 3,
    };
    /// Enough to see that everything works.
    pub(crate) const QUICK: Self = Self {
        nodes: 1_000,
        plan: 2_000,
        open: 20_000,
        history: 2_000,
        builds: 400,
        agents: 8,
        distribution: 500,
        rounds: 1,
    };
}

/// What every part needs.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    /// What the farm of the other measurements needs: the program, a place on a disk, a runtime.
    pub(crate) farm: transfers::Bench,
}

impl Bench {
    pub(crate) fn scratch(&self) -> &Path {
        &self.farm.scratch
    }
}

/// Runs a part and returns what it gave.
pub(crate) fn run((name, part): Part, options: Options, program: &Path) -> Section {
    let dir = tempfile::Builder::new().prefix("planner").tempdir_in("/tmp").unwrap();
    let farm = transfers::Bench {
        options: transfers::Options::QUICK,
        program: program.to_owned(),
        scratch: dir.path().to_owned(),
        runtime: Runtime::new().unwrap(),
    };
    say(&format!("{name} …"));
    part(&Bench { options, farm })
}

/// Returns the processor time of this thread so far, in seconds.
fn cpu_of_this_thread() -> f64 {
    let text = fs_err::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
    nanoseconds / 1e9
}

/// Runs something and returns its result, and how many seconds it took.
fn timed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let result = run();
    (result, begun.elapsed().as_secs_f64())
}

/// Returns the value in the middle, and the least.
fn middle_and_least(mut values: Vec<f64>) -> (f64, f64) {
    let middle = transfers::measure::percentile(&mut values, 0.5);
    (middle, values.first().copied().unwrap_or(f64::NAN))
}

/// Returns a line that is there for information.
fn note(what: impl Into<String>, unit: &'static str, value: (f64, f64)) -> Row {
    Row { what: what.into(), unit, ours: value, peer: Peer::Nothing, bar: Bar::None }
}

/// Returns what a peer gave, or that it was not run and why.
fn peer(name: impl Into<String>, outcome: Result<(f64, f64), String>) -> Peer {
    match outcome {
        Ok((middle, best)) => Peer::Measured(name.into(), middle, best),
        Err(reason) => Peer::NotRun(name.into(), reason),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of some million")]
fn number(count: usize) -> f64 {
    count as f64
}
