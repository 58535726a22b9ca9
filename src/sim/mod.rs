//! The whole farm in one thread and on no clock: everything that happens follows from one seed.
//!
//! Real are the rules, the database, what both ends say to each other as bytes, and the order of
//! deciding, keeping and letting out ([`crate::coordinator::truth`]). Simulated are time, the
//! network, the agents, the people, and whatever goes wrong: crashes of either side at any
//! instant, refused commits, lost and silent connections, jumps of the wall clock, failing builds,
//! and an agent that speaks of attempts that are not its own.
//!
//! After every step a shadow, which keeps a naive account of what was committed and promised,
//! compares it with what is. In the end the faults stop, and everything must come to rest.
//!
//! This room is compiled with the feature `sim` only. [`run`] is the entry point; it is called by
//! `tests/simulation.rs`, whose page says how to repeat a failure.

mod chance;
mod channels;
mod coordinator;
mod delivery;
mod farm;
mod faults;
mod machine;
mod network;
mod people;
mod rest;
mod session;
mod shadow;
mod trace;
mod world;

pub use crate::core::defect::Defect;

use std::{fmt, panic::AssertUnwindSafe};
use world::World;

/// How many of the last lines of its trace a failure shows.
const LINES_SHOWN: usize = 60;

/// What a run that went well did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// The fingerprint of all that happened.
    pub trace_hash: u64,
    /// How many things happened.
    pub events: u64,
    /// How many steps of the engine were committed.
    pub steps: u64,
    /// How many builds came into being.
    pub builds: u64,
    /// How many attempts were given to agents.
    pub attempts: u64,
    /// How many attempts that were given up were taken back.
    pub readopted: u64,
    /// How many were only reported, by their agents.
    pub reported: u64,
    /// How many nars were kept beside those that differ.
    pub disputed: u64,
    /// How many decisions about agents were kept.
    pub decisions: u64,
    /// How much time passed in the simulation, in milliseconds.
    pub simulated_ms: u64,
}

/// Several runs together; the fingerprint depends on none of their order.
impl std::ops::Add for Report {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            trace_hash: self.trace_hash ^ other.trace_hash,
            events: self.events + other.events,
            steps: self.steps + other.steps,
            builds: self.builds + other.builds,
            attempts: self.attempts + other.attempts,
            readopted: self.readopted + other.readopted,
            reported: self.reported + other.reported,
            disputed: self.disputed + other.disputed,
            decisions: self.decisions + other.decisions,
            simulated_ms: self.simulated_ms + other.simulated_ms,
        }
    }
}

/// What went wrong, and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// The mistake that was planted.
    pub defect: Option<Defect>,
    /// What was violated, or the panic's words.
    pub what: String,
    /// The fingerprint of all that happened until then.
    pub trace_hash: u64,
    /// The last things that happened.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "again: STEADING_SIM_SEEDS={}..{}", self.seed, self.seed + 1)?;
        if let Some(defect) = self.defect {
            write!(f, " STEADING_SIM_DEFECT={}", defect.word())?;
        }
        write!(f, " cargo test --features sim --test simulation any_seed -- --nocapture")
    }
}

/// Runs the farm of a seed to its end, with a mistake planted or without.
///
/// # Errors
/// [`Failure`] when something that must hold did not.
pub fn run(seed: u64, defect: Option<Defect>) -> Result<Report, Box<Failure>> {
    let mut world = World::new(seed, defect);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let what = match ended {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(violation)) => violation,
        Err(panic) => panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .map_or_else(|| "it panicked".to_owned(), |words| format!("it panicked: {words}")),
    };
    let (trace_hash, trace) = (world.trace.hash(), world.trace.last(LINES_SHOWN));
    Err(Box::new(Failure { seed, defect, what, trace_hash, trace }))
}
