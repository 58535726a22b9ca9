//! The state directory: what is made, with which permissions, and what is swept.

use super::{World, path};
use crate::{
    core::{hash::Sha256, id::AttemptId, time::Timestamp},
    depot::{Depot, DepotError, IncomingFiles, IntakeError, Publisher, Upload, VerifiedNar, spool},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
};

#[test]
fn everything_is_made_with_its_permissions_and_found_again() {
    let world = World::new();
    let mode =
        |name: &str| fs_err::metadata(world.dir.path().join(name)).unwrap().permissions().mode();
    for (name, expected) in [
        ("secrets", 0o700),
        ("secrets/signing-nix.key", 0o600),
        ("secrets/signing-guix.key", 0o600),
        ("public", 0o755),
        ("incoming", 0o700),
        ("depot", 0o700),
    ] {
        assert_eq!(mode(name) & 0o777, expected, "{name}");
    }
    let again = Depot::open(world.dir.path(), "other-1", [8; 32]).unwrap();
    assert_eq!(again.public_key(), world.depot.public_key());
    assert!(again.public_key().starts_with("test-1:"));
    assert_eq!(again.guix_public_key(), world.depot.guix_public_key());
    assert_eq!(world.files("secrets"), ["signing-guix.key", "signing-nix.key"]);
    again.sync().unwrap();
}

#[test]
fn what_is_under_way_can_move_to_another_thread() {
    fn moves<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Depot>();
    moves::<Upload>();
    moves::<VerifiedNar>();
    moves::<Publisher>();
    moves::<IntakeError>();
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let world = World::new();
    for name in ["secrets/signing-nix.key", "secrets/signing-guix.key", "secrets"] {
        let path = world.dir.path().join(name);
        fs_err::set_permissions(&path, Permissions::from_mode(0o744)).unwrap();
        let error = Depot::open(world.dir.path(), "x", [1; 32]).unwrap_err();
        assert!(matches!(error, DepotError::Exposed { .. }), "{error}");
        fs_err::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let world = World::new();
    let file = world.dir.path().join("secrets/signing-nix.key");
    let error = Depot::open(&file.join("x"), "x", [1; 32]).unwrap_err();
    assert!(matches!(error, DepotError::NotWritable { .. }), "{error}");
    fs_err::write(&file, "no key").unwrap();
    let error = Depot::open(world.dir.path(), "x", [1; 32]).unwrap_err();
    assert!(matches!(error, DepotError::Key { .. }), "{error}");
}

#[test]
fn what_will_not_be_resumed_is_swept() {
    let world = World::new();
    let [live, dead] = [1, 2].map(|n| AttemptId::from_bytes([n; 16]));
    let kept = spool::upload_name(live, &path("a"), &Sha256::of(b"a"));
    let (_, own) = world.depot.new_spool().unwrap();
    for name in [
        &kept,
        &spool::upload_name(dead, &path("a"), &Sha256::of(b"a")),
        "upload-",
        "stream-0000000000000000-0",
    ] {
        fs_err::write(world.dir.path().join("incoming").join(name), "12345").unwrap();
    }
    let found = world.depot.sweep_incoming(|attempt| attempt == live).unwrap();
    assert_eq!(found, IncomingFiles { files: 2, bytes: 5, removed: 3 });
    assert_eq!(world.depot.staged().unwrap(), BTreeMap::from([(live, 5)]));
    drop(own);
    assert_eq!(world.files("incoming"), [kept]);
}

#[test]
fn orphans_are_found_by_age_and_spared_when_somebody_brings_them_again() {
    let world = World::new();
    let settle = |content: &[u8]| {
        let file = world.dir.path().join("incoming/file");
        fs_err::write(&file, content).unwrap();
        world.depot.settle(&file, &Sha256::of(content)).unwrap();
        Sha256::of(content)
    };
    let [old, published, again] = [&b"old"[..], b"published", b"again"].map(settle);
    let place = |hash: &Sha256| world.depot.0.places.nar(hash);
    fs_err::hard_link(place(&published), world.dir.path().join("public/link")).unwrap();
    fs_err::write(world.dir.path().join("depot").join("README"), "").unwrap();
    // Nothing is old yet.
    let past = Timestamp::from_ms(1_000_000_000_000);
    assert_eq!(world.depot.unpublished_files(past).unwrap(), BTreeSet::new());
    // All of it is older than the end of time; then one is brought again.
    let end = Timestamp::from_ms(i64::MAX);
    let found = world.depot.unpublished_files(end).unwrap();
    assert_eq!(found, BTreeSet::from([old, again]));
    let long_ago = rustix::fs::Timespec { tv_sec: 1_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
    for hash in [old, published, again] {
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, place(&hash), &times, flags).unwrap();
    }
    assert_eq!(world.depot.unpublished_files(past).unwrap(), found);
    settle(b"again");
    assert_eq!(world.depot.remove_orphans(&found, past).unwrap(), 1);
    assert_eq!(world.depot.remove_orphans(&found, past).unwrap(), 0);
    assert_eq!([old, published, again].map(|hash| place(&hash).exists()), [false, true, true]);
}

#[test]
fn what_is_not_held_or_damaged_is_said() {
    let world = World::new();
    let hash = Sha256::of(b"x");
    assert!(matches!(world.depot.open_nar(&hash), Err(DepotError::NotHeld(_))));
    let place = world.depot.0.places.nar(&hash);
    fs_err::create_dir_all(place.parent().unwrap()).unwrap();
    let whole = zstd::bulk::compress(b"content", 3).unwrap();
    for (bytes, nar_bytes, good) in [
        (&whole[..], 7, true),
        (&whole[..], 6, false),
        (&whole[..], 8, false),
        (&whole[..whole.len() - 1], 7, false),
        (b"no zstd", 7, false),
    ] {
        fs_err::write(&place, bytes).unwrap();
        let mut out = Vec::new();
        let result = world.read_nar(&hash, nar_bytes, &mut out);
        assert_eq!(result.is_ok(), good);
        assert!(good || matches!(result, Err(DepotError::Damaged(_))));
        assert!(out.len() as u64 <= nar_bytes);
    }
}
