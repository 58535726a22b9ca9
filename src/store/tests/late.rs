//! What comes late: attempts that are taken back, reports, and nars that differ.

use super::{AT, Fresh, build_id, lease, moved};
use crate::{
    core::{
        attempt::AttemptState,
        build::BuildState,
        change::{Change, OutputRecord, Verdict},
        engine::tests::world::{self, World},
        hash::Sha256,
        id::AttemptId,
        outcome::AttemptEnd,
    },
    store::{DISPUTED_PER_PATH_MAX, Reader, StoreError},
};

/// Returns a database in which amber had the build and was lost.
fn amber_was_lost() -> Fresh {
    let mut fresh = Fresh::with_a_leased_build();
    fresh.write(&[ended(AttemptEnd::AgentLost)]);
    fresh.write(&[moved(&BuildState::Allocated(lease()), &BuildState::Queued)]);
    fresh
}

fn ended(end: AttemptEnd) -> Change {
    Change::AttemptMoved { attempt: lease().attempt, to: AttemptState::Ended(end), at: AT }
}

/// Returns what amber says it made of the output, which is something else with a `salt`.
fn reported(attempt: AttemptId, by: &str, salt: &str) -> Change {
    Change::Reported { attempt, agent: world::name(by), outputs: made(salt), at: AT }
}

fn made(salt: &str) -> Vec<OutputRecord> {
    let (mut outputs, _) = World::made(&["a".to_owned()], salt);
    outputs[0].name = "out".to_owned();
    outputs
}

fn nar(salt: &str) -> Change {
    let (_, mut nars) = World::made(&["a".to_owned()], salt);
    Change::Nar(nars.remove(0))
}

fn disputed_nar(salt: &str) -> Change {
    let (_, mut nars) = World::made(&["a".to_owned()], salt);
    Change::DisputedNar { attempt: lease().attempt, nar: nars.remove(0) }
}

impl Fresh {
    fn reader(&self) -> Reader {
        self.store.reader().unwrap()
    }

    fn is_disputed(&self) -> bool {
        self.reader().is_disputed(lease().attempt).unwrap().unwrap()
    }
}

#[test]
fn a_lost_attempt_is_loaded_until_its_build_is_over_or_it_is_taken_back() {
    let mut fresh = amber_was_lost();
    let loaded = fresh.loaded().unwrap();
    let lost: Vec<_> = loaded.lost_attempts().collect();
    assert_eq!(lost, [(lease().attempt, &lease().agent)]);
    let build = &loaded.snapshot().builds[&build_id()];
    assert!(build.lost.contains_key(&lease().attempt));
    fresh.write(&[
        Change::AttemptReadopted { attempt: lease().attempt, at: AT },
        moved(&BuildState::Queued, &BuildState::Allocated(lease())),
    ]);
    assert!(fresh.loaded().unwrap().lost_attempts().next().is_none());
    let row = fresh.reader().attempts(build_id()).unwrap().remove(0);
    assert_eq!((row.state.as_str(), row.end, row.readopted), ("allocated", None, Some(AT)));

    let mut fresh = amber_was_lost();
    fresh.write(&[moved(&BuildState::Queued, &BuildState::Canceled)]);
    assert!(fresh.loaded().unwrap().lost_attempts().next().is_none());
}

#[test]
fn only_a_lost_attempt_is_taken_back() {
    let back = || Change::AttemptReadopted { attempt: lease().attempt, at: AT };
    let mut fresh = Fresh::with_a_leased_build();
    assert!(matches!(fresh.store.commit(&[back()]), Err(StoreError::Diverged(_))));
    fresh.write(&[ended(AttemptEnd::Canceled)]);
    assert!(matches!(fresh.store.commit(&[back()]), Err(StoreError::Diverged(_))));
}

#[test]
fn a_report_is_compared_with_what_is_held_and_with_what_comes_later() {
    for (salt, differs) in [("", false), ("other", true)] {
        let mut held_before = amber_was_lost();
        held_before.write(&[nar("")]);
        held_before.write(&[reported(lease().attempt, "amber", salt)]);
        assert_eq!(held_before.is_disputed(), differs);

        let mut comes_later = amber_was_lost();
        comes_later.write(&[reported(lease().attempt, "amber", salt)]);
        assert!(!comes_later.is_disputed());
        comes_later.write(&[nar("")]);
        assert_eq!(comes_later.is_disputed(), differs);

        for fresh in [held_before, comes_later] {
            let row = fresh.reader().attempts(build_id()).unwrap().remove(0);
            assert_eq!((row.end, row.reported), (Some(AttemptEnd::AgentLost), Some(AT)));
            let path = world::output("a").hash();
            assert!(fresh.reader().builds_of_path(path).unwrap()[0].reported);
            let held = fresh.reader().nar(path).unwrap().unwrap();
            assert_eq!(held.info.nar_hash, Sha256::of(b"a"), "what is held stays");
        }
    }
}

#[test]
fn a_report_comes_twice_or_is_taken_back_without_harm() {
    let mut fresh = amber_was_lost();
    for _ in 0..2 {
        fresh.write(&[reported(lease().attempt, "amber", "")]);
    }
    assert_eq!(fresh.count("attempt_outputs"), 1);
    fresh.write(&[
        Change::AttemptReadopted { attempt: lease().attempt, at: AT },
        moved(&BuildState::Queued, &BuildState::Allocated(lease())),
        nar(""),
        Change::Outputs { attempt: lease().attempt, outputs: made(""), verdict: Verdict::Agreed },
        ended(AttemptEnd::Succeeded),
    ]);
    assert!(!fresh.is_disputed());
    let built = fresh.reader().builds_of_path(world::output("a").hash()).unwrap().remove(0);
    assert!(!built.reported, "it was delivered in the end");
}

#[test]
fn nobody_reports_what_is_not_its_own_or_what_no_derivation_makes() {
    let mut fresh = amber_was_lost();
    fresh.write(&[reported(lease().attempt, "birch", "other")]);
    let stray = AttemptId::from_bytes([9; 16]);
    let mut outputs = made("");
    outputs[0].path = world::output("nothing");
    for attempt in [lease().attempt, stray] {
        let (agent, outputs) = (world::name("amber"), outputs.clone());
        fresh.write(&[Change::Reported { attempt, agent, outputs, at: AT }]);
    }
    assert_eq!((fresh.count("attempt_outputs"), fresh.count("stray_outputs")), (0, 0));
    assert!(!fresh.is_disputed());
}

#[test]
fn a_report_of_an_attempt_that_is_not_known_is_kept_and_there_is_an_end_to_it() {
    let mut fresh = amber_was_lost();
    for number in 0..2 * DISPUTED_PER_PATH_MAX {
        let attempt = AttemptId::from_bytes([100 + u8::try_from(number).unwrap(); 16]);
        fresh.write(&[reported(attempt, "amber", "")]);
    }
    let strays = fresh.reader().stray_outputs(world::output("a").hash()).unwrap();
    assert_eq!(strays.len(), DISPUTED_PER_PATH_MAX);
    assert_eq!((strays[0].agent.as_str(), strays[0].nar_hash), ("amber", Sha256::of(b"a")));
}

#[test]
fn differing_nars_are_kept_once_each_and_what_is_held_is_none_of_them() {
    let mut fresh = Fresh::with_a_leased_build();
    fresh.write(&[nar("")]);
    fresh.write(&[disputed_nar(""), disputed_nar("one"), disputed_nar("two"), disputed_nar("one")]);
    let kept = fresh.reader().disputed_nars(world::output("a").hash()).unwrap();
    let mut hashes: Vec<Sha256> = kept.iter().map(|(_, nar)| nar.info.nar_hash).collect();
    let mut expected = [Sha256::of(b"aone"), Sha256::of(b"atwo")];
    hashes.sort_unstable();
    expected.sort_unstable();
    assert_eq!(hashes, expected);
    assert!(kept.iter().all(|(by, nar)| *by == lease().attempt && nar.info.signatures.is_empty()));
}

#[test]
fn a_database_from_before_leases_is_migrated_with_its_rows() {
    let fresh = Fresh::new();
    let path = fresh.dir.path().join("old.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../../../schema/0001_initial.sql")).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute_batch(
        r#"INSERT INTO store_dirs VALUES (1, '/gnu/store');
         INSERT INTO classes VALUES (1, '{}');
         INSERT INTO derivations VALUES
            (1, zeroblob(20), 1, 'a.drv', 1, zeroblob(0), zeroblob(32), 1);
         INSERT INTO builds (id, derivation, origin, submitter, priority, submitted_at, state,
            state_at) VALUES (zeroblob(16), 1, 'asked', 'ada', 0, 1, 'canceled', 1);
         INSERT INTO attempts (id, build, agent, state, allocated_at, ended_at, ended, detail)
            VALUES (zeroblob(16), zeroblob(16), 'amber', 'ended', 1, 2, 'canceled', '"canceled"');"#,
    )
    .unwrap();
    drop(old);
    let store = crate::store::Store::open(&path).unwrap();
    let build = crate::core::id::BuildId::from_bytes([0; 16]);
    let row = store.reader().unwrap().attempts(build).unwrap().remove(0);
    assert_eq!((row.end, row.readopted, row.reported), (Some(AttemptEnd::Canceled), None, None));
    assert_eq!(store.integrity().unwrap(), Vec::<String>::new());
}
