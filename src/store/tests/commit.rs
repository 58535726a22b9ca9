//! One transaction per step: all of it, or nothing and an error.

use super::{Fresh, attempt, build, build_id, derivation, lease, moved};
use crate::{
    core::{
        attempt::AttemptState,
        build::{BuildState, Lease},
        change::Change,
        id::AttemptId,
        outcome::AttemptEnd,
        store_path::PathHash,
    },
    store::{StoreError, tests::AT},
};

fn assert_diverged(error: StoreError, with: &str) {
    let StoreError::Diverged(what) = error else { panic!("{error:?}") };
    assert!(what.contains(with), "{what}");
}

#[test]
fn a_commit_is_all_or_nothing() {
    let mut fresh = Fresh::new();
    let unknown = moved(&BuildState::Building(lease()), &BuildState::Canceled);
    let error = fresh.store.commit(&[derivation(), build(None), unknown]).unwrap_err();
    assert_diverged(error, "is not building");
    for table in ["derivations", "store_dirs", "classes", "builds", "build_tags"] {
        assert_eq!(fresh.count(table), 0, "{table}");
    }
    // What it had interned is forgotten as well.
    fresh.write(&[derivation(), build(None)]);
    assert_eq!(fresh.count("builds"), 1);
    assert_eq!(fresh.store.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_build_moves_only_from_where_it_is() {
    let mut fresh = Fresh::with_a_leased_build();
    let other = Lease { attempt: AttemptId::from_bytes([9; 16]), ..lease() };
    for wrong in [
        BuildState::Queued,
        BuildState::Building(lease()),
        BuildState::Allocated(other),
        BuildState::Canceled,
    ] {
        let error = fresh.store.commit(&[moved(&wrong, &BuildState::Canceled)]).unwrap_err();
        assert_diverged(error, "is not");
    }
    fresh.write(&[moved(&BuildState::Allocated(lease()), &BuildState::Building(lease()))]);
}

#[test]
fn an_attempt_ends_once() {
    let mut fresh = Fresh::with_a_leased_build();
    let ends = || Change::AttemptMoved {
        attempt: lease().attempt,
        to: AttemptState::Ended(AttemptEnd::AgentLost),
        at: AT,
    };
    fresh.write(&[ends()]);
    assert_diverged(fresh.store.commit(&[ends()]).unwrap_err(), "cannot become ended");
}

#[test]
fn a_build_needs_its_derivation() {
    let mut fresh = Fresh::new();
    assert_diverged(fresh.store.commit(&[build(None)]).unwrap_err(), "has no derivation");
}

#[test]
fn one_key_is_one_build() {
    let mut fresh = Fresh::new();
    fresh.write(&[derivation(), build(Some("nightly"))]);
    let Change::Build(mut twin) = build(Some("nightly")) else { unreachable!() };
    twin.id = crate::core::id::BuildId::from_bytes([7; 16]);
    let error = fresh.store.commit(&[Change::Build(twin)]).unwrap_err();
    assert!(matches!(error, StoreError::Sql { .. }), "{error:?}");
    let found = fresh
        .store
        .submission_facts(
            &[PathHash::from_bytes([1; 20])],
            crate::core::engine::Inputs::Leave,
            &"ada".parse().unwrap(),
            Some("nightly"),
        )
        .unwrap();
    assert_eq!(found.roots[0].existing, Some(build_id()));
}

#[test]
fn an_unknown_derivation_is_named() {
    let fresh = Fresh::new();
    let unknown = PathHash::from_bytes([8; 20]);
    let name = "ada".parse().unwrap();
    let inputs = crate::core::engine::Inputs::Build;
    let found = fresh.store.submission_facts(&[unknown], inputs, &name, None).unwrap();
    assert_eq!(found.unknown, [unknown]);
}

#[test]
fn leaving_a_lease_without_a_result_counts_and_names_whom_to_avoid() {
    let mut fresh = Fresh::with_a_leased_build();
    fresh.write(&[moved(&BuildState::Allocated(lease()), &BuildState::Queued)]);
    let build = fresh.loaded().unwrap().snapshot().builds.remove(&build_id()).unwrap();
    assert_eq!(build.infrastructure_ends, 1);
    assert_eq!(build.avoid, Some(lease().agent));
    fresh.write(&[moved(&BuildState::Queued, &BuildState::Deferred { until: AT })]);
    fresh.write(&[moved(&BuildState::Deferred { until: AT }, &BuildState::Queued)]);
    let builds = fresh.loaded().unwrap().snapshot().builds;
    assert_eq!(builds[&build_id()].infrastructure_ends, 1);
}

#[test]
fn rows_cannot_say_what_cannot_be() {
    let fresh = Fresh::with_a_leased_build();
    let id = |byte: u8| format!("x'{}'", format!("{byte:02x}").repeat(16));
    let hash = format!("x'{}'", "05".repeat(20));
    for (table, sql) in [
        ("builds: a word", "UPDATE builds SET state = 'ready'".to_owned()),
        ("builds: a lease and no attempt", "UPDATE builds SET attempt = NULL".to_owned()),
        ("builds: an attempt and no lease", "UPDATE builds SET state = 'queued'".to_owned()),
        (
            "builds: deferred for ever",
            "UPDATE builds SET state = 'deferred', attempt = NULL".to_owned(),
        ),
        ("builds: until, and not deferred", "UPDATE builds SET deferred_until = 1".to_owned()),
        ("builds: too urgent", "UPDATE builds SET priority = 1001".to_owned()),
        ("builds: no time", "UPDATE builds SET timeout_ms = 0".to_owned()),
        ("builds: an origin", "UPDATE builds SET origin = 'wished'".to_owned()),
        ("builds: no derivation", "UPDATE builds SET derivation = 77".to_owned()),
        ("builds: a type", "UPDATE builds SET priority = 'high'".to_owned()),
        ("agents: a word", "UPDATE agents SET suspended = 'busy', suspended_at = 1".to_owned()),
        ("agents: since no time", "UPDATE agents SET suspended = 'paused'".to_owned()),
        ("agents: until, and taking builds", "UPDATE agents SET suspended_until = 1".to_owned()),
        (
            "agents: a quarantine that ends",
            "UPDATE agents SET suspended = 'quarantined', suspended_at = 1, suspended_until = 2"
                .to_owned(),
        ),
        ("agents: half an id", "UPDATE agents SET failures = x'00'".to_owned()),
        ("attempts: ended at no time", "UPDATE attempts SET state = 'ended'".to_owned()),
        ("attempts: an end and alive", "UPDATE attempts SET ended_at = 1".to_owned()),
        (
            "attempts: an end without reason",
            "UPDATE attempts SET state = 'ended', ended_at = 1".to_owned(),
        ),
        ("attempts: of no build", format!("UPDATE attempts SET build = {}", id(9))),
        ("attempts: a short id", "UPDATE attempts SET id = x'00'".to_owned()),
        ("derivations: half an input", "UPDATE derivations SET inputs = x'0102'".to_owned()),
        ("derivations: a short hash", "UPDATE derivations SET hash = x'00'".to_owned()),
        (
            "nars: empty",
            format!(
                "INSERT INTO nars VALUES ({hash}, 1, 'a', zeroblob(32), 0, zeroblob(32), 1, '', NULL, \
             NULL, '', 'built', 1, NULL)"
            ),
        ),
        (
            "nars: an origin",
            format!(
                "INSERT INTO nars VALUES ({hash}, 1, 'a', zeroblob(32), 1, zeroblob(32), 1, '', NULL, \
             NULL, '', 'found', 1, NULL)"
            ),
        ),
        (
            "missing_outputs: a short hash",
            "INSERT INTO missing_outputs VALUES (x'00', 1)".to_owned(),
        ),
        (
            "attempt_outputs: of no attempt",
            format!(
                "INSERT INTO attempt_outputs VALUES ({}, 'out', {hash}, zeroblob(32), 1)",
                id(9)
            ),
        ),
    ] {
        assert!(fresh.tamper(&sql).is_err(), "{table}");
    }
    assert_eq!(fresh.loaded().unwrap().snapshot().builds.len(), 1);
}

#[test]
fn an_attempt_belongs_to_a_build_in_the_database() {
    let mut fresh = Fresh::new();
    fresh.write(&[derivation()]);
    let error = fresh.store.commit(&[attempt()]).unwrap_err();
    assert!(matches!(error, StoreError::Sql { .. }), "{error:?}");
}
