//! That questions cost what their answers have, not what the tables have.

use super::Fresh;
use crate::{
    core::{change::Change, engine::tests::world::nar},
    store::{
        BuildFilter, First, Holdings, Store, dependents::UNSUCCESSFUL_SQL, migrate::SCRIPTS,
        read::builds_sql, retrial::OWN_SUCCESS_SQL,
    },
};

#[test]
fn builds_of_a_state_are_read_in_order_from_an_index() {
    let fresh = Fresh::new();
    for state in ["deferred", "queued", "allocated", "building", "receiving", "failed", "canceled"]
    {
        for first in [First::Oldest, First::Newest] {
            let states = vec![state.to_owned()];
            let filter = BuildFilter { states, first, limit: 100, ..BuildFilter::default() };
            let (sql, values) = builds_sql(&filter);
            let values: Vec<&dyn rusqlite::ToSql> = values.iter().map(Box::as_ref).collect();
            let sql = format!("EXPLAIN QUERY PLAN {sql}");
            let mut explain = fresh.store.connection.prepare(&sql).unwrap();
            let lines = explain.query_map(values.as_slice(), |row| row.get::<_, String>(3));
            let plan = lines.unwrap().collect::<Result<Vec<_>, _>>().unwrap().join("\n");
            assert!(plan.starts_with("SEARCH b USING INDEX builds_"), "{state}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{state} is sorted: {plan}");
        }
    }
}

#[test]
fn what_a_retry_or_a_submission_asks_about_builds_that_are_over_comes_from_an_index() {
    let fresh = Fresh::new();
    for (sql, index) in [
        (UNSUCCESSFUL_SQL, "SEARCH b USING INDEX builds_unsuccessful_since"),
        (OWN_SUCCESS_SQL, "SEARCH b USING COVERING INDEX builds_ended"),
    ] {
        let mut explain =
            fresh.store.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let lines = explain.raw_query().mapped(|row| row.get::<_, String>(3));
        let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("\n");
        assert!(plan.contains(index), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "sorted: {plan}");
    }
}

#[test]
fn builds_of_several_states_come_in_order() {
    let fresh = Fresh::new();
    fresh
        .tamper(
            r#"PRAGMA foreign_keys = OFF;
            INSERT INTO store_dirs VALUES (1, '/gnu/store');
            INSERT INTO classes VALUES
                (1, '{"store_dir":"/gnu/store","system":"x86_64-linux","features":[]}');
            INSERT INTO derivations VALUES
                (1, zeroblob(20), 1, 'a.drv', 1, x'', zeroblob(32), 1);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30)
            INSERT INTO builds (id, derivation, origin, submitter, priority, submitted_at, state,
                state_at, deferred_until)
            SELECT CAST(printf('%016d', i) AS BLOB), 1, 'asked', 'ada', 0, 1,
                iif(i % 3 = 0, 'deferred', iif(i % 3 = 1, 'queued', 'canceled')), 1,
                iif(i % 3 = 0, 1, NULL) FROM n;"#,
        )
        .unwrap();
    let reader = fresh.store.reader().unwrap();
    for (first, wanted) in [
        (First::Oldest, ["01:queued", "03:deferred", "04:queued", "06:deferred"]),
        (First::Newest, ["30:deferred", "28:queued", "27:deferred", "25:queued"]),
    ] {
        let states = BuildFilter::open_states();
        let filter = BuildFilter { states, first, limit: 4, ..BuildFilter::default() };
        let found = reader.builds(&filter).unwrap();
        let found = found.iter().map(|build| {
            let digits = String::from_utf8(build.id.as_bytes().to_vec()).unwrap();
            format!("{}:{}", &digits[14..], build.state)
        });
        assert_eq!(found.collect::<Vec<_>>(), wanted);
    }
}

#[test]
fn what_was_held_before_the_count_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("steading.db");
    let before = rusqlite::Connection::open(&path).unwrap();
    for script in &SCRIPTS[..3] {
        before.execute_batch(script).unwrap();
    }
    before
        .execute_batch(
            "INSERT INTO store_dirs VALUES (1, '/gnu/store');
            INSERT INTO nars VALUES (zeroblob(20), 1, 'a', zeroblob(32), 120, zeroblob(32), 77, '',
                NULL, NULL, '', 'built', 1, NULL);
            PRAGMA user_version = 3;",
        )
        .unwrap();
    drop(before);
    let store = Store::open(&path).unwrap();
    let held = store.reader().unwrap().holdings().unwrap();
    assert_eq!(held, Holdings { nars: 1, bytes: 77 });
    assert_eq!(store.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn what_is_held_is_counted_as_it_comes() {
    let mut fresh = Fresh::new();
    let reader = fresh.store.reader().unwrap();
    assert_eq!(reader.holdings().unwrap(), Holdings { nars: 0, bytes: 0 });
    fresh.write(&[Change::Nar(nar("a")), Change::Nar(nar("b")), Change::Nar(nar("a"))]);
    let held = Holdings { nars: 2, bytes: 2 * nar("a").file_bytes };
    assert_eq!(reader.holdings().unwrap(), held);
    assert_eq!(fresh.store.integrity().unwrap(), Vec::<String>::new());
    fresh.tamper("UPDATE holdings SET nars = 3").unwrap();
    let findings = fresh.store.integrity().unwrap();
    assert_eq!(findings, ["table holdings does not say how much table nars has"]);
}
