//! What is counted, found and given back when builds are pruned and nars withdrawn.

use super::{AT, Fresh, Store};
use crate::{
    core::{care::CareChange, change::Change, engine::tests::world::nar, store_path::PathHash},
    store::TotalKind,
};

fn care(change: CareChange) -> Change {
    Change::Care(change)
}

#[test]
fn a_database_from_before_begins_with_what_ended_in_it() {
    let fresh = Fresh::new();
    let path = fresh.dir.path().join("old.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    for script in &crate::store::migrate::SCRIPTS[..6] {
        old.execute_batch(script).unwrap();
    }
    old.execute_batch(
        "INSERT INTO store_dirs VALUES (1, '/gnu/store');
         INSERT INTO classes VALUES
            (1, '{\"store_dir\":\"/gnu/store\",\"system\":\"x86_64-linux\",\"features\":[]}');
         INSERT INTO derivations VALUES (1, zeroblob(20), 1, 'a.drv', 1, x'', zeroblob(32), 1);
         INSERT INTO builds (id, derivation, origin, submitter, priority, submitted_at, state,
            state_at, attempt) VALUES
            (zeroblob(16), 1, 'asked', 'ada', 0, 1, 'failed', 5, zeroblob(16)),
            (x'01000000000000000000000000000000', 1, 'asked', 'ada', 0, 1, 'canceled', 4, NULL),
            (x'02000000000000000000000000000000', 1, 'asked', 'ada', 0, 1, 'queued', 1, NULL);
         INSERT INTO attempts (id, build, agent, state, allocated_at, ended_at, ended, detail)
            VALUES (zeroblob(16), zeroblob(16), 'amber', 'ended', 1, 2, 'exit',
                '{\"end\":\"failed\"}');
         PRAGMA user_version = 6;",
    )
    .unwrap();
    drop(old);
    let store = Store::open(&path).unwrap();
    let reader = store.reader().unwrap();
    let totals = |kind| reader.totals(kind).unwrap();
    assert_eq!(totals(TotalKind::Build), [("canceled".to_owned(), 1), ("failed".to_owned(), 1)]);
    assert_eq!(totals(TotalKind::Attempt), [("exit".to_owned(), 1)]);
    assert_eq!(totals(TotalKind::Pruned), []);
    assert_eq!(store.integrity().unwrap(), Vec::<String>::new());
    let (found, mark) = reader.finished_before(AT, None).unwrap();
    let ids: Vec<u8> = found.iter().map(|one| one.over.build.as_bytes()[0]).collect();
    assert_eq!(ids, [1, 0], "what ended first comes first, and what is open not at all");
    assert_eq!(found[1].attempts.len(), 1);
    assert_eq!(reader.finished_before(AT, mark).unwrap(), (Vec::new(), None));
}

#[test]
fn what_is_pruned_goes_with_all_that_refers_to_it_and_what_is_open_never() {
    let mut fresh = Fresh::with_a_leased_build();
    let ids = "SELECT id FROM builds";
    let id: Vec<u8> = fresh.store.connection.query_row(ids, [], |row| row.get(0)).unwrap();
    let build = crate::core::id::BuildId::from_bytes(id.try_into().unwrap());
    let pruned = [care(CareChange::Pruned { build })];
    fresh.store.commit(&pruned).unwrap_err();
    fresh
        .tamper(
            "UPDATE attempts SET state = 'ended', ended_at = 5, ended = 'exit', detail = '{}';
             UPDATE builds SET state = 'failed', state_at = 5;
             INSERT INTO build_tags SELECT 'branch', 'core', id FROM builds;
             INSERT INTO attempt_outputs SELECT id, 'out', zeroblob(20), zeroblob(32), 1
                FROM attempts;
             INSERT INTO disputed_nars SELECT zeroblob(20), zeroblob(32), id, 1, 'a', 1,
                zeroblob(32), 1, '', NULL, NULL, 1 FROM attempts;",
        )
        .unwrap();
    fresh.write(&pruned);
    for table in ["builds", "attempts", "attempt_outputs", "build_tags", "disputed_nars"] {
        let sql = format!("SELECT count(*) FROM {table}");
        let left: i64 = fresh.store.connection.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "{table}");
    }
    let reader = fresh.store.reader().unwrap();
    let failed = [("failed".to_owned(), 1)];
    assert_eq!(reader.totals(TotalKind::Pruned).unwrap(), failed);
    assert_eq!(reader.totals(TotalKind::Build).unwrap(), failed);
    assert_eq!(fresh.store.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_withdrawn_nar_is_remembered_until_its_files_are_gone() {
    let mut fresh = Fresh::new();
    let kept = nar("kept");
    let path = kept.info.path.hash();
    let withdrawn = care(CareChange::Withdrawn { path, at: AT, remove_at: AT.plus_ms(10) });
    fresh.write(&[Change::Nar(kept), withdrawn.clone()]);
    // What is not held cannot be withdrawn once more.
    fresh.write(&[withdrawn]);
    let reader = fresh.store.reader().unwrap();
    assert!(!reader.holds(path).unwrap());
    assert_eq!(reader.holdings().unwrap().nars, 0);
    assert_eq!(reader.withdrawn().unwrap(), (1, 60));
    assert!(reader.is_being_withdrawn(path).unwrap());
    let listed = reader.listed_withdrawn().unwrap();
    assert_eq!(listed.len(), 1);
    assert!(reader.is_withdrawn_file(&listed[0].file_hash).unwrap());
    assert_eq!(reader.due_withdrawn(AT.plus_ms(99)).unwrap(), [], "its narinfo is there");
    let rows = vec![listed[0].row];
    fresh.write(&[care(CareChange::Unlisted { rows: rows.clone(), at: AT })]);
    assert_eq!(reader.listed_withdrawn().unwrap(), []);
    assert!(!reader.is_being_withdrawn(path).unwrap());
    assert_eq!(reader.due_withdrawn(AT.plus_ms(9)).unwrap(), []);
    assert_eq!(reader.due_withdrawn(AT.plus_ms(10)).unwrap(), listed);
    fresh.write(&[care(CareChange::Expunged { rows })]);
    assert_eq!(reader.withdrawn().unwrap(), (0, 0));
}

#[test]
fn a_use_is_noted_once_a_day() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let mut fresh = Fresh::new();
    let used = nar("used");
    let (path, verified): (PathHash, _) = (used.info.path.hash(), used.at);
    fresh.write(&[Change::Nar(used)]);
    let mut last_use_when_used_after = |ms: i64| {
        let at = verified.plus_ms(ms);
        fresh.write(&[care(CareChange::Used { paths: vec![path], at })]);
        fresh.store.reader().unwrap().keepings(None).unwrap()[0].used.as_ms() - verified.as_ms()
    };
    let noted = [DAY_MS, DAY_MS + 1, DAY_MS + 2, 2 * DAY_MS + 2].map(&mut last_use_when_used_after);
    assert_eq!(noted, [0, DAY_MS + 1, DAY_MS + 1, 2 * DAY_MS + 2]);
}

#[test]
fn room_is_given_back_in_steps() {
    let fresh = Fresh::new();
    fresh
        .tamper(
            "CREATE TABLE much (x BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
             INSERT INTO much SELECT zeroblob(8000) FROM n;
             DROP TABLE much;",
        )
        .unwrap();
    let free = fresh.store.give_back(1).unwrap();
    assert!(free > 100, "{free}");
    assert_eq!(fresh.store.give_back(100).unwrap(), free - 100);
    assert_eq!(fresh.store.give_back(100_000).unwrap(), 0);
}

#[test]
fn a_copy_has_what_was_committed_and_nothing_later() {
    let mut fresh = Fresh::new();
    fresh.write(&[Change::Nar(nar("first"))]);
    let copy = fresh.dir.path().join("copy.db");
    let reader = fresh.store.reader().unwrap();
    reader.copy_into(&copy).unwrap();
    fresh.write(&[Change::Nar(nar("second"))]);
    assert!(reader.copy_into(&copy).is_err(), "nothing is written over");
    let copied = Store::open(&copy).unwrap();
    let held = |name: &str| copied.reader().unwrap().holds(nar(name).info.path.hash()).unwrap();
    assert!(held("first") && !held("second"));
    assert_eq!(copied.integrity().unwrap(), Vec::<String>::new());
}
