//! Tests of the spool.

use super::*;
use crate::core::{
    hash::Sha256, id::BuildId, outcome::BuildFailure, outcome::SetupFailure, path_info::PathInfo,
};

const PATH: &str = "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello-2.12.1";

fn path() -> StorePath {
    PATH.parse().unwrap()
}

fn allocation() -> Allocation {
    Allocation {
        attempt: AttemptId::from_bytes([1; 16]),
        build: BuildId::from_bytes([2; 16]),
        derivation: format!("{PATH}.drv").parse().unwrap(),
        timeout_ms: Some(5_000),
        max_silent_ms: None,
    }
}

fn built() -> AttemptResult {
    let info = PathInfo {
        path: path(),
        nar_hash: Sha256::of(b"nar"),
        nar_bytes: 3,
        references: vec![path()],
        deriver: None,
        signatures: vec![],
        content_address: None,
    };
    let output = OfferedOutput {
        name: "out".to_owned(),
        info,
        compression: "zstd".to_owned(),
        file_bytes: 7,
        file_hash: Sha256::of(b"file"),
    };
    AttemptResult { outcome: Outcome::Built, outputs: vec![output] }
}

#[test]
fn every_result_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path(), &allocation()).unwrap();
    assert_eq!(spool.result().unwrap(), None);
    let hash_mismatch =
        BuildFailure::HashMismatch { expected: "a".to_owned(), actual: "b".to_owned() };
    for result in [
        built(),
        AttemptResult::without_outputs(Outcome::Failed(BuildFailure::Exit(2))),
        AttemptResult::without_outputs(Outcome::Failed(hash_mismatch)),
        AttemptResult::without_outputs(Outcome::SetupFailed(SetupFailure::MissingInputs(vec![
            path(),
        ]))),
        AttemptResult::without_outputs(Outcome::Canceled),
    ] {
        spool.write_result(&result).unwrap();
        assert_eq!(spool.result().unwrap(), Some(result));
    }
}

#[test]
fn orders_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path(), &allocation()).unwrap();
    let place = Place {
        shared: vec![],
        store_dir: StoreDir::nix(),
        physical_dir: "/a".into(),
        state_dir: "/b".into(),
        program: "/c".into(),
    };
    let nix = BuilderKind::Nix { socket: "/s".into(), store_dir: StoreDir::nix() };
    let guix = BuilderKind::Guix { socket: "/s".into(), store_dir: StoreDir::guix() };
    for builder in [nix, guix, BuilderKind::Direct(place)] {
        let order =
            Order { allocation: allocation(), builder, input_paths: vec![path()], cores: 2 };
        spool.write_order(&order, b"Derive()").unwrap();
        let (read, derivation) = spool.order().unwrap();
        assert_eq!(format!("{read:?}"), format!("{order:?}"));
        assert_eq!(derivation, b"Derive()");
    }
}

#[test]
fn the_files_tell_how_far_an_attempt_is() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path(), &allocation()).unwrap();
    assert_eq!(spool.stage().unwrap(), Stage::Preparing);
    let lock = spool.hold().unwrap();
    assert_eq!(spool.stage().unwrap(), Stage::Running);
    spool.mark_started().unwrap();
    assert_eq!(spool.stage().unwrap(), Stage::Running);
    drop(lock);
    assert_eq!(spool.stage().unwrap(), Stage::Lost);
    spool.write_result(&built()).unwrap();
    assert_eq!(spool.stage().unwrap(), Stage::Ended(built()));
    spool.remove().unwrap();
    spool.remove().unwrap();
    assert!(!spool.dir().exists());
}

#[test]
fn a_damaged_result_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path(), &allocation()).unwrap();
    fs_err::write(spool.dir().join("result"), b"\xc1").unwrap();
    let error = spool.stage().unwrap_err();
    assert!(error.to_string().contains("result"), "{error}");
}

#[test]
fn the_log_is_read_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path(), &allocation()).unwrap();
    assert_eq!(spool.log_bytes(), 0);
    let mut log = logbook::Writer::open(spool.dir().to_owned(), LOG_LIMITS).unwrap();
    log.append(0, b"one two three").unwrap();
    assert_eq!(spool.log_bytes(), 13);
    assert_eq!(spool.read_log(4, 3).unwrap(), (4, b"two".to_vec()));
    assert_eq!(spool.read_log(8, 100).unwrap(), (8, b"three".to_vec()));
    assert_eq!(spool.read_log(13, 100).unwrap(), (13, Vec::new()));
    // What is missing is stepped over.
    log.append(20, b"four").unwrap();
    assert_eq!(spool.read_log(13, 100).unwrap(), (20, b"four".to_vec()));
    assert_eq!(spool.log_bytes(), 24);
}

#[test]
fn only_the_end_of_a_diagnosis_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path(), &allocation()).unwrap();
    assert_eq!(spool.diagnosis(), "what it said cannot be read");
    let text = format!("{}\nthe end\n", "x".repeat(5_000));
    fs_err::write(spool.diagnosis_path(), text).unwrap();
    assert!(spool.diagnosis().ends_with("the end"));
    assert!(spool.diagnosis().len() <= 1_010);
}
