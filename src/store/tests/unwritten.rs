//! Files of small nars, which are kept here until the depot has them.

use super::Fresh;
use crate::{
    core::{
        change::{Change, NarFile},
        engine::tests::world::World,
        hash::Sha256,
    },
    store::Store,
};

fn file(text: &str) -> NarFile {
    NarFile { hash: Sha256::of(text.as_bytes()), bytes: text.to_owned().into() }
}

#[test]
fn files_are_kept_in_their_order_until_they_are_written_out() {
    let mut fresh = Fresh::new();
    let all = ["one", "two", "two", "three"].map(file);
    fresh.write(&all.clone().map(Change::UnwrittenNar));
    let reader = fresh.store.reader().unwrap();
    assert_eq!(reader.unwritten_bytes().unwrap(), 14);
    assert_eq!(reader.unwritten_file(&all[1].hash).unwrap().unwrap(), b"two");
    assert_eq!(reader.unwritten_file(&Sha256::of(b"four")).unwrap(), None);
    let (through, files) = reader.unwritten().unwrap().unwrap();
    assert_eq!(files, all);
    // What comes meanwhile stays.
    fresh.write(&[Change::UnwrittenNar(file("four"))]);
    fresh.write(&[Change::NarsWritten { through }]);
    assert_eq!(reader.unwritten_file(&all[0].hash).unwrap(), None);
    let (through, files) = reader.unwritten().unwrap().unwrap();
    assert_eq!(files, [file("four")]);
    fresh.write(&[Change::NarsWritten { through }]);
    assert_eq!(reader.unwritten().unwrap(), None);
    assert_eq!(reader.unwritten_bytes().unwrap(), 0);
}

#[test]
fn a_nar_is_signed_once() {
    let mut fresh = Fresh::new();
    let (_, nars) = World::made(&["a".to_owned()], "");
    let path = nars[0].info.path.hash();
    fresh.write(&nars.into_iter().map(Change::Nar).collect::<Vec<_>>());
    for name in ["first", "second"] {
        fresh.write(&[Change::Signed { path, signatures: vec![name.to_owned()] }]);
    }
    let nar = fresh.store.reader().unwrap().nar(path).unwrap().unwrap();
    assert_eq!(nar.info.signatures, ["first"]);
}

#[test]
fn a_database_from_before_has_nothing_to_write_out() {
    let fresh = Fresh::new();
    let path = fresh.dir.path().join("old.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(concat!(
        include_str!("../../../schema/0001_initial.sql"),
        include_str!("../../../schema/0002_agents.sql"),
        include_str!("../../../schema/0003_leases.sql"),
        "INSERT INTO store_dirs VALUES (1, '/gnu/store');
         INSERT INTO nars (path, store_dir, name, nar_hash, nar_bytes, file_hash, file_bytes, refs,
            signatures, origin, verified_at)
         VALUES (zeroblob(20), 1, 'a', zeroblob(32), 1, zeroblob(32), 1, '', 'kept', 'built', 1);
         PRAGMA user_version = 3;"
    ))
    .unwrap();
    drop(old);
    let store = Store::open(&path).unwrap();
    let reader = store.reader().unwrap();
    assert_eq!(reader.unwritten().unwrap(), None);
    let nars = reader.unpublished(None).unwrap();
    assert_eq!(nars[0].info.signatures, ["kept"]);
    assert_eq!(store.integrity().unwrap(), Vec::<String>::new());
}
