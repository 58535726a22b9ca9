//! Databases that cannot be used, and what the operator is told.

use super::{Fresh, Store, StoreError};
use crate::telemetry;

#[test]
fn a_new_database_has_the_newest_schema_and_nothing_in_it() {
    let fresh = Fresh::new();
    let pragma = |name: &str| -> String {
        let sql = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
        fresh.store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(pragma("user_version"), "2");
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("synchronous"), "2");
    assert_eq!(pragma("foreign_keys"), "1");
    assert_eq!(pragma("auto_vacuum"), "2");
    let saved = fresh.store.load().unwrap();
    assert!(saved.builds.is_empty() && saved.facts.is_empty() && saved.agents.is_empty());
    fresh.again().unwrap();
}

#[test]
fn a_reader_writes_nothing() {
    let fresh = Fresh::new();
    let reader = fresh.store.reader().unwrap();
    assert!(reader.connection.execute_batch("DELETE FROM builds").is_err());
}

#[test]
fn a_database_of_a_newer_program_is_left_alone() {
    let fresh = Fresh::new();
    fresh.tamper("PRAGMA user_version = 99").unwrap();
    let error = fresh.again().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the database has schema version 99, this program knows up to 2: start the newer steading \
         that wrote it"
    );
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere").join("steading.db");
    let error = Store::open(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot open the database {}: check that the directory exists and is writable",
            path.display()
        )
    );
    assert!(telemetry::chain(&error).contains("unable to open database file"));
}

#[test]
fn what_is_no_database_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("steading.db");
    fs_err::write(&path, "somebody's shopping list, which is longer than a header".repeat(9))
        .unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(telemetry::chain(&error).contains("file is not a database"), "{error:?}");
}

#[test]
fn damaged_rows_are_named_and_nothing_is_loaded() {
    for (sql, table, with) in [
        ("UPDATE builds SET submitter = '/'", "builds", "‘/’ is not a name"),
        ("UPDATE attempts SET agent = '-x'", "attempts", "‘-x’ is not a name"),
        ("DELETE FROM attempts", "builds", "is no attempt"),
        ("UPDATE classes SET class = '{'", "classes", "EOF"),
        ("UPDATE derivations SET name = 'a/b'", "derivations", "a/b"),
        ("UPDATE store_dirs SET path = 'gnu'", "derivations", "gnu"),
        ("UPDATE agents SET abilities = '[]'", "agents", "invalid"),
        ("UPDATE agents SET name = 'a b'", "agents", "‘a b’ is not a name"),
    ] {
        let fresh = Fresh::with_a_leased_build();
        fresh.tamper(sql).unwrap();
        let error = fresh.store.load().unwrap_err();
        let StoreError::Damaged { table: named, what } = &error else { panic!("{sql}: {error:?}") };
        assert_eq!(*named, table, "{sql}");
        assert!(what.contains(with), "{sql}: {what}");
        assert!(error.to_string().ends_with("; restore the last backup"));
    }
}

#[test]
fn a_build_whose_agent_or_input_is_gone_is_named() {
    use crate::core::{
        engine::{Engine, Settings},
        time::{Monotonic, Now},
    };
    let now = Now { wall: super::AT, mono: Monotonic::from_ms(0) };
    for (sql, with) in [
        ("DELETE FROM agents", "leased to amber, who is not known"),
        ("UPDATE derivations SET inputs = zeroblob(20)", "names the input"),
    ] {
        let fresh = Fresh::with_a_leased_build();
        fresh.tamper(sql).unwrap();
        let saved = fresh.store.load().unwrap();
        let what = Engine::restore(Settings::default(), now, saved).unwrap_err();
        assert!(what.contains(with), "{sql}: {what}");
    }
}

#[test]
fn the_integrity_check_names_rows_that_refer_to_nothing() {
    let fresh = Fresh::with_a_leased_build();
    fresh.tamper("PRAGMA foreign_keys = OFF; DELETE FROM derivations").unwrap();
    let findings = fresh.store.integrity().unwrap();
    assert!(findings.contains(&"table builds has a row that refers to nothing".to_owned()));
    assert_eq!(findings, fresh.store.reader().unwrap().integrity().unwrap());
}
