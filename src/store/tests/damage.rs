//! Databases that cannot be used, and what the operator is told.

use super::{Fresh, Store, StoreError};
use crate::{core::engine::Snapshot, telemetry};

#[test]
fn a_new_database_has_the_newest_schema_and_nothing_in_it() {
    let fresh = Fresh::new();
    let pragma = |name: &str| -> String {
        let sql = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
        fresh.store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(pragma("user_version"), "9");
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("synchronous"), "2");
    assert_eq!(pragma("foreign_keys"), "1");
    assert_eq!(pragma("auto_vacuum"), "2");
    assert_eq!(fresh.loaded().unwrap().snapshot(), Snapshot::default());
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
        "the database has schema version 99, this program knows up to 9: start the newer steading \
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
    assert!(telemetry::chain(&error).contains("is not a database of steading"), "{error:?}");
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
        let error = fresh.loaded().unwrap_err();
        let StoreError::Damaged { table: named, what } = &error else { panic!("{sql}: {error:?}") };
        assert_eq!(*named, table, "{sql}");
        assert!(what.contains(with), "{sql}: {what}");
        assert!(error.to_string().ends_with("; restore the last backup"));
    }
}

#[test]
fn a_build_whose_agent_or_input_is_gone_is_named() {
    for (sql, with) in [
        ("DELETE FROM agents", "leased to amber, who is not known"),
        ("UPDATE derivations SET inputs = zeroblob(20)", "is needed and is not in the database"),
    ] {
        let fresh = Fresh::with_a_leased_build();
        fresh.tamper(sql).unwrap();
        let error = fresh.loaded().unwrap_err();
        assert!(telemetry::chain(&error).contains(with), "{sql}: {error}");
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

#[test]
fn another_programs_database_is_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("steading.db");
    let foreign = rusqlite::Connection::open(&path).unwrap();
    for version in [0, 1] {
        foreign.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
        foreign.execute_batch("CREATE TABLE IF NOT EXISTS bookmarks (url TEXT)").unwrap();
        let before = fs_err::read(&path).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("is not a database of steading"), "{error}");
        assert!(fs_err::read(&path).unwrap() == before);
    }
}

#[test]
fn a_lock_of_another_program_is_waited_for() {
    let mut fresh = Fresh::new();
    let foreign = rusqlite::Connection::open(fresh.dir.path().join("steading.db")).unwrap();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (begun, is_begun) = std::sync::mpsc::channel();
    let writing = std::thread::spawn(move || {
        begun.send(()).unwrap();
        fresh.write(&[super::derivation()]);
        fresh.count("derivations")
    });
    is_begun.recv().unwrap();
    assert!(!writing.is_finished());
    foreign.execute_batch("COMMIT").unwrap();
    assert_eq!(writing.join().unwrap(), 1);
}

/// Returns everything that a start and the commands read, as text.
fn everything(store: &Store) -> Result<String, StoreError> {
    use std::fmt::Write as _;
    let loaded = super::loaded(store)?.snapshot();
    let reader = store.reader()?;
    let filter = super::super::BuildFilter { limit: 100, ..Default::default() };
    let builds = reader.builds(&filter)?;
    let mut text = format!("{loaded:?} {builds:?} {:?}", reader.holdings()?);
    for build in &builds {
        let (attempts, tags) = (reader.attempts(build.id)?, reader.tags(build.id)?);
        write!(text, "{attempts:?} {tags:?}").unwrap();
    }
    Ok(text)
}

/// Damages a copy of a database and tells what became of it.
fn with_damage(
    fresh: &Fresh,
    name: &str,
    seed: u64,
) -> (tempfile::TempDir, Result<String, String>) {
    let dir = tempfile::tempdir().unwrap();
    for file in ["steading.db", "steading.db-wal"] {
        let from = fresh.dir.path().join(file);
        if from.exists() {
            fs_err::copy(from, dir.path().join(file)).unwrap();
        }
    }
    let path = dir.path().join(name);
    let mut bytes = fs_err::read(&path).unwrap();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..=seed % 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let place = usize::try_from(state >> 16).unwrap() % bytes.len();
        bytes[place] ^= 1 << (state % 8);
    }
    fs_err::write(&path, bytes).unwrap();
    let read = Store::open(&dir.path().join("steading.db"))
        .and_then(|store| everything(&store).map_err(|error| store.named(error)));
    (dir, read.map_err(|error| telemetry::chain(&error)))
}

#[test]
fn a_database_with_flipped_bits_is_refused_with_words_or_read_as_it_was() {
    let fresh = Fresh::with_a_leased_build();
    fresh.tamper("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let whole = everything(&fresh.store).unwrap();
    let (mut refused, mut same, mut found, mut beyond) = (0, 0, 0, 0);
    for seed in 0..200 {
        let (dir, read) = with_damage(&fresh, "steading.db", seed);
        match read {
            Err(words) => {
                refused += 1;
                assert!(words.len() > 20, "seed {seed}: {words}");
                if words.contains("malformed") {
                    assert!(words.contains("last backup"), "seed {seed}: {words}");
                }
            }
            Ok(text) if text == whole => same += 1,
            // A start reads what it needs, not all there is. The rest is for `check` to find, but
            // for what not even that can: content without a checksum.
            Ok(_) => {
                let store = Store::open(&dir.path().join("steading.db")).unwrap();
                if store.integrity().unwrap().is_empty() { beyond += 1 } else { found += 1 }
            }
        }
    }
    let counts = format!("{refused} refused, {same} as before, {found} for check, {beyond} beyond");
    assert!(refused > 10 && same > 10 && found < refused && beyond < 20, "{counts}");
}

#[test]
fn a_write_ahead_log_with_flipped_bits_gives_an_earlier_state_and_never_a_mixed_one() {
    let mut fresh = Fresh::new();
    let mut states = vec![everything(&fresh.store).unwrap()];
    let steps = [
        vec![super::derivation(), super::build(None), super::agent()],
        vec![
            super::attempt(),
            super::moved(
                &crate::core::build::BuildState::Queued,
                &crate::core::build::BuildState::Allocated(super::lease()),
            ),
        ],
    ];
    for step in steps {
        fresh.write(&step);
        states.push(everything(&fresh.store).unwrap());
    }
    for seed in 0..50 {
        let (_dir, read) = with_damage(&fresh, "steading.db-wal", seed);
        match read {
            Ok(text) => assert!(states.contains(&text), "seed {seed}: {text}"),
            Err(words) => assert!(words.len() > 20, "seed {seed}: {words}"),
        }
    }
}
