//! The whole farm simulated from seeds: every seed goes well, the same seed is the same run, and
//! each planted mistake is noticed.
//!
//! `STEADING_SIM_SEEDS=FROM..TO` says which seeds, `STEADING_SIM_DEFECT=WORD` plants a mistake.

#![expect(clippy::print_stdout, reason = "a run of minutes says how far it is")]

use std::{
    panic,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};
use steading::{
    sim::{self, Defect, Failure, Report},
    telemetry::Clock,
};

/// The seeds of the gate.
const SEEDS: std::ops::Range<u64> = 0..10_000;
/// How often the console hears of the progress.
const PROGRESS_SEEDS: u64 = 1_000;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("STEADING_SIM_SEEDS") else { return SEEDS };
    let (from, to) = text.split_once("..").expect("STEADING_SIM_SEEDS is FROM..TO");
    from.parse().expect("FROM is a number")..to.parse().expect("TO is a number")
}

fn defect() -> Option<Defect> {
    let word = std::env::var("STEADING_SIM_DEFECT").ok()?;
    let found = Defect::ALL.iter().find(|defect| defect.word() == word);
    Some(*found.unwrap_or_else(|| panic!("no defect is called {word}")))
}

/// Panics that a run catches are told with its failure; the console need not hear of them.
fn be_quiet() {
    panic::set_hook(Box::new(|_| {}));
}

/// Runs seeds on all processors. Returns the first failures and what all did together.
fn run_all(seeds: std::ops::Range<u64>, defect: Option<Defect>) -> (Vec<Failure>, Report) {
    let next = AtomicU64::new(seeds.start);
    let (clock, stop) = (Clock::start(), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let one = || {
        let mut failures = Vec::new();
        let mut sum = Report::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match sim::run(seed, defect) {
                Ok(report) => sum = sum + report,
                Err(failure) => {
                    failures.push(*failure);
                    let stops = std::env::var("STEADING_SIM_KEEP_GOING").is_err();
                    stop.store(stops, Ordering::Relaxed);
                }
            }
            let done = seed - seeds.start + 1;
            if done.is_multiple_of(PROGRESS_SEEDS) {
                let rate = done * 1_000 / clock.now().mono.as_ms().max(1);
                println!("{done} seeds, {rate} per second");
            }
        }
        (failures, sum)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let mut all = (Vec::new(), Report::default());
        for thread in running {
            let (failures, sum) = thread.join().expect("no thread panics");
            all.0.extend(failures);
            all.1 = all.1 + sum;
        }
        all
    })
}

#[test]
fn any_seed_goes_well() {
    be_quiet();
    let clock = Clock::start();
    let (failures, sum) = run_all(seeds(), defect());
    let days = sum.simulated_ms / 86_400_000;
    println!("{sum:?}, {days} days simulated in {} s", clock.now().mono.as_ms() / 1_000);
    for failure in failures.iter().rev().take(5) {
        println!("{failure}\n");
    }
    for failure in &failures {
        println!("{} {}", failure.seed, failure.what);
    }
    assert!(failures.is_empty(), "{} seeds failed", failures.len());
}

/// For each mistake a seed whose run notices it. `STEADING_SIM_FIND=1` looks for them anew.
const CAUGHT: &[(Defect, u64)] = &[
    (Defect::FenceDropped, 24),
    (Defect::StrangerDelivers, 379),
    (Defect::FinishedTwice, 3),
    (Defect::CounterForgotten, 0),
    (Defect::BlockedForGood, 0),
    (Defect::LeaseNeverEnds, 20),
    (Defect::LeaseEndsWithConnection, 0),
    (Defect::LeaseOnWallClock, 0),
    (Defect::ReadoptionForgets, 0),
    (Defect::ReadoptionUnchecked, 59),
    (Defect::LossUnnoticed, 0),
    (Defect::SecondInstanceWelcome, 72),
    (Defect::DisputedOverwrites, 68),
    (Defect::ContestUnnoticed, 42),
    (Defect::RetryWithoutPause, 0),
    (Defect::EndsUncounted, 0),
    (Defect::DeferredWakeForgotten, 59),
    (Defect::CancelForgetsInputs, 1),
    (Defect::CancelForgetsWants, 1),
    (Defect::KeyForgotten, 5),
    (Defect::SlotLeaked, 0),
    (Defect::ReadyEntryLost, 0),
    (Defect::RankReversed, 8),
    (Defect::AbilitiesUnchecked, 0),
    (Defect::SuspendedServed, 7),
    (Defect::IntakeIgnored, 32),
    (Defect::CapacityUnnoticed, 28),
    (Defect::OutputUnnoticed, 0),
    (Defect::MissingUnnoticed, 29),
    (Defect::AnswerBeforeCommit, 1),
    (Defect::SettledBeforeCommit, 1),
    (Defect::PublishedBeforeCommit, 0),
    (Defect::EffectsReversed, 0),
    (Defect::MemoryAheadOfDisk, 1),
    (Defect::LogPieceTwice, 0),
];

#[test]
fn each_planted_defect_is_noticed_and_nothing_without_it() {
    be_quiet();
    if std::env::var("STEADING_SIM_FIND").is_ok() {
        return find();
    }
    for defect in Defect::ALL {
        let seed = CAUGHT.iter().find(|(caught, _)| caught == defect);
        let (_, seed) = seed.unwrap_or_else(|| panic!("no seed is kept for {}", defect.word()));
        let caught = sim::run(*seed, Some(*defect));
        assert!(caught.is_err(), "{} goes unnoticed with seed {seed}", defect.word());
        if let Err(failure) = sim::run(*seed, None) {
            panic!("{failure}");
        }
    }
}

/// Prints the table anew.
fn find() {
    for defect in Defect::ALL {
        let mut seeds = seeds();
        match seeds.find_map(|seed| Some((seed, sim::run(seed, Some(*defect)).err()?))) {
            Some((seed, failure)) => {
                println!("    (Defect::{defect:?}, {seed}), // {}", failure.what);
            }
            None => println!("    // {defect:?} goes unnoticed"),
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    be_quiet();
    for seed in 0..20 {
        assert_eq!(sim::run(seed, None), sim::run(seed, None), "seed {seed}");
    }
    let hashes: std::collections::BTreeSet<u64> =
        (0..20).filter_map(|seed| Some(sim::run(seed, None).ok()?.trace_hash)).collect();
    assert_eq!(hashes.len(), 20, "every seed is another run");
}
