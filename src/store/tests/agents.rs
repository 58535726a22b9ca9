//! What is decided about agents, and what they did.

use super::{AT, Fresh, agent, lease, moved};
use crate::{
    core::{
        agent::{Suspension, SuspensionKind},
        attempt::AttemptState,
        build::BuildState,
        change::Change,
        engine::tests::world::name,
        id::BuildId,
        outcome::{AttemptEnd, BuildFailure},
    },
    store::{Store, StoreError},
};
use rusqlite::Connection;

fn suspension() -> Suspension {
    Suspension {
        kind: SuspensionKind::Draining,
        reason: Some("a new disk".to_owned()),
        by: Some(name("olga")),
        since: AT,
        until: Some(AT.plus_ms(60_000)),
    }
}

fn suspends(suspension: Option<Suspension>) -> Change {
    Change::AgentSuspended { name: name("amber"), suspension }
}

#[test]
fn a_decision_outlasts_sessions_and_goes_with_the_agent() {
    let mut fresh = Fresh::new();
    let builds = vec![BuildId::from_bytes([1; 16]), BuildId::from_bytes([2; 16])];
    let failures = Change::AgentFailures { name: name("amber"), builds: builds.clone() };
    fresh.write(&[agent(), suspends(Some(suspension())), failures]);
    fresh.write(&[agent()]);
    let saved = fresh.again().unwrap().agents().unwrap();
    assert_eq!(saved[0].suspension, Some(suspension()));
    assert_eq!(saved[0].failures, builds);
    fresh.write(&[suspends(None)]);
    assert_eq!(fresh.store.agents().unwrap()[0].suspension, None);
    fresh.write(&[Change::AgentRemoved { name: name("amber") }]);
    assert_eq!(fresh.store.agents().unwrap().len(), 0);
}

#[test]
fn a_decision_needs_its_agent() {
    let mut fresh = Fresh::new();
    for change in [
        suspends(None),
        Change::AgentFailures { name: name("amber"), builds: Vec::new() },
        Change::AgentRemoved { name: name("amber") },
    ] {
        let error = fresh.store.commit(&[change]).unwrap_err();
        let StoreError::Diverged(what) = error else { panic!("{error:?}") };
        assert_eq!(what, "it has no agent amber");
    }
}

#[test]
fn only_attempts_that_told_something_of_their_builds_are_results() {
    let ends = |end: AttemptEnd| {
        let mut fresh = Fresh::with_a_leased_build();
        let to = AttemptState::Ended(end);
        fresh.write(&[Change::AttemptMoved { attempt: lease().attempt, to, at: AT }]);
        let reader = fresh.store.reader().unwrap();
        let attempts = reader.attempts_of_agent(&name("amber"), 5).unwrap();
        assert_eq!(attempts[0].id, lease().attempt);
        assert_eq!(reader.attempts_of_agent(&name("birch"), 5).unwrap(), []);
        assert_eq!(reader.results_of_agent(&name("amber"), AT.plus_ms(1)).unwrap(), 0);
        reader.results_of_agent(&name("amber"), AT).unwrap()
    };
    assert_eq!(ends(AttemptEnd::Succeeded), 1);
    assert_eq!(ends(AttemptEnd::Failed(BuildFailure::NoOutput("doc".to_owned()))), 1);
    assert_eq!(ends(AttemptEnd::Failed(BuildFailure::Timeout)), 1);
    assert_eq!(ends(AttemptEnd::AgentLost), 0);
    assert_eq!(ends(AttemptEnd::Drained), 0);
    assert_eq!(ends(AttemptEnd::Rejected("{\"failed\":1}".to_owned())), 0);
}

#[test]
fn agents_and_attempts_from_before_are_there_after_the_migration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("steading.db");
    let before = Connection::open(&path).unwrap();
    before.execute_batch(include_str!("../../../schema/0001_initial.sql")).unwrap();
    before
        .execute_batch(
            r#"INSERT INTO store_dirs VALUES (1, '/gnu/store');
            INSERT INTO classes VALUES
                (1, '{"store_dir":"/gnu/store","system":"x86_64-linux","features":[]}');
            INSERT INTO derivations VALUES
                (1, zeroblob(20), 1, 'a.drv', 1, x'', zeroblob(32), 1);
            INSERT INTO agents VALUES ('amber', zeroblob(16),
                '{"store_dir":"/gnu/store","dialect":"guix","systems":["x86_64-linux"],
                  "emulated_systems":[],"features":[],"slots":2}', 5);
            INSERT INTO builds (id, derivation, origin, submitter, priority, submitted_at, state,
                state_at, attempt)
                VALUES (zeroblob(16), 1, 'asked', 'ada', 0, 1, 'allocated', 1, zeroblob(16));
            INSERT INTO attempts (id, build, agent, state, allocated_at)
                VALUES (zeroblob(16), zeroblob(16), 'amber', 'allocated', 7);
            PRAGMA user_version = 1;"#,
        )
        .unwrap();
    drop(before);
    let mut store = Store::open(&path).unwrap();
    let saved = store.agents().unwrap();
    assert_eq!(saved[0].abilities.slots, 2);
    assert_eq!(saved[0].suspension, None);
    assert_eq!(saved[0].failures, []);
    assert_eq!(super::loaded(&store).unwrap().snapshot().builds.len(), 1);
    let reader = store.reader().unwrap();
    assert_eq!(reader.attempts_of_agent(&name("amber"), 5).unwrap().len(), 1);
    store.commit(&[suspends(Some(suspension()))]).unwrap();
    assert_eq!(store.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn leaving_a_lease_does_not_need_its_agent_any_more() {
    let mut fresh = Fresh::with_a_leased_build();
    let ended = AttemptState::Ended(AttemptEnd::AgentLost);
    fresh.write(&[
        Change::AttemptMoved { attempt: lease().attempt, to: ended, at: AT },
        moved(&BuildState::Allocated(lease()), &BuildState::Queued),
        Change::AgentRemoved { name: name("amber") },
    ]);
    let builds = fresh.loaded().unwrap().snapshot().builds;
    assert_eq!(builds[&super::build_id()].avoid, Some(name("amber")));
}
