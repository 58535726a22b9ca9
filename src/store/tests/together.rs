//! Engine and database together.

use super::{Fresh, Store};
use crate::core::{
    change::Change,
    engine::{
        Authority, Engine, Inputs, Retrial, RetryWish, Root, Saved, Settings,
        tests::{
            self,
            disk::{Disk, Model},
            histories::{self, history},
            world::{Wish, World},
        },
    },
    graph::{Facts, Held, LastEnd},
    id::{BuildId, Name},
    outcome::{Outcome, OutputPolicy},
    plan::Strategy,
    store_path::PathHash,
    time::Now,
};
use proptest::prelude::*;

/// A database, and what must be in it.
struct Known {
    fresh: Fresh,
    rows: Model,
}

impl Disk for Known {
    fn commit(&mut self, changes: &[Change]) {
        self.fresh.store.commit(changes).unwrap();
        self.rows.commit(changes);
    }

    fn saved(&self) -> Saved {
        self.rows.saved()
    }

    fn restore(&self, settings: Settings, now: Now) -> Engine {
        self.fresh.store.restore(settings, now).unwrap()
    }

    fn submission_facts(
        &self,
        roots: &[PathHash],
        inputs: Inputs,
        submitter: &Name,
        key: Option<&str>,
    ) -> (Vec<Root>, Vec<Facts>) {
        let found = self.fresh.store.submission_facts(roots, inputs, submitter, key).unwrap();
        assert_eq!(found.unknown, []);
        (found.roots, found.facts)
    }

    fn retrial(&self, builds: &[BuildId], by: Authority, wish: RetryWish) -> Retrial {
        self.fresh.store.retrial(builds, by, wish).unwrap()
    }

    fn last_end(&self, derivation: PathHash) -> Option<LastEnd> {
        self.fresh.store.last_end(derivation).unwrap()
    }

    fn has_build(&self, build: BuildId) -> bool {
        self.fresh.store.reader().unwrap().build(build).unwrap().is_some()
    }

    fn holds_outputs_of(&self, derivation: PathHash) -> bool {
        let facts = self.fresh.store.facts(derivation).unwrap().unwrap();
        facts.outputs.iter().all(|(_, held)| *held == Held::Yes)
    }
}

/// Returns an empty database that does not wait for the platter: what survives a power cut is not
/// what the stories are about.
fn quick() -> Known {
    let fresh = Fresh::new();
    fresh.tamper("PRAGMA synchronous = OFF").unwrap();
    Known { fresh, rows: Model::default() }
}

#[test]
fn every_story_of_the_engine_goes_the_same_on_the_database() {
    for (name, story) in tests::all() {
        let told = std::panic::catch_unwind(|| story(&mut World::new(Box::new(quick()))));
        assert!(told.is_ok(), "{name} goes another way on the database");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_goes_the_same_on_the_database(history in history()) {
        histories::tell(&history, Box::new(quick()));
    }
}

#[test]
fn recorded_outputs_are_available_without_nars_and_after_a_restart() {
    let Known { fresh, .. } = quick();
    let store = fresh.store.with_outputs(OutputPolicy::Record);
    let known = Known { fresh: Fresh { store, ..fresh }, rows: Model::recording() };
    let mut world = World::new(Box::new(known));
    world.settings.outputs = OutputPolicy::Record;
    world.strategy(Strategy::DerivationOrdered);
    world.graph("a: b; b; c: b");
    world.submit("a", Wish::WITH_INPUTS);
    world.join("amber", 9);
    assert_eq!(world.shown(), "a waiting, b allocated");
    world.started("amber", "b.1");
    world.finished("amber", "b.1", Outcome::Built);
    world.forget();
    world.deliver_as("amber", "b.1", World::verified(&["b".to_owned()], Vec::new()));
    assert!(!world.changes().iter().any(|change| change.starts_with("nar")));
    assert!(!world.effects().iter().any(|effect| effect.starts_with("publish")));
    assert_eq!(world.shown(), "a allocated");
    world.restart();
    // What is submitted later finds it in the database.
    world.submit("c", Wish::WITH_INPUTS);
    assert_eq!(world.shown(), "a allocated, c ready");
}

#[test]
fn what_was_written_is_there_for_the_next_process() {
    let fresh = Fresh::with_a_leased_build();
    let before = fresh.loaded().unwrap().snapshot();
    let after: Store = fresh.again().unwrap();
    assert_eq!(before, super::loaded(&after).unwrap().snapshot());
    assert_eq!(after.integrity().unwrap(), Vec::<String>::new());
}
