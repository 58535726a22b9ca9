//! Tests of inputs on their way, on real directories.

use super::*;

struct World {
    dir: tempfile::TempDir,
    inputs: Arc<Inputs>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inputs = Arc::new(Inputs::open(dir.path().join("inputs")).unwrap());
        Self { dir, inputs }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs_err::read_dir(self.dir.path().join("inputs")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A nar that cannot be compressed well, what it is, and its file.
fn sample() -> (Vec<u8>, PathInfo, Vec<u8>) {
    let nar: Vec<u8> = (0u32..40_000)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).rotate_left(9).to_le_bytes())
        .collect();
    let file = zstd::bulk::compress(&nar, 3).unwrap();
    let info = PathInfo {
        path: "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-source".parse().unwrap(),
        nar_hash: Sha256::of(&nar),
        nar_bytes: nar.len() as u64,
        references: vec![],
        deriver: None,
        signatures: vec![],
        content_address: None,
    };
    (nar, info, file)
}

#[test]
fn a_download_goes_on_where_it_was_cut_and_is_bit_exact() {
    let (nar, info, file) = sample();
    let cuts = |file: &[u8]| [0, 1, 1_000, file.len() / 2, file.len() - 1, file.len()];
    let files = [file, nar.clone()];
    for (file, cut) in files.iter().flat_map(|file| cuts(file).map(|cut| (file, cut))) {
        let world = World::new();
        let mut download = world.inputs.begin(&info, Some(Sha256::of(file))).unwrap();
        download.take(&file[..cut]).unwrap();
        drop(download);
        let mut download = world.inputs.begun(&info).unwrap().unwrap();
        assert_eq!(download.bytes(), cut as u64);
        assert_eq!(download.file_hash(), Some(Sha256::of(file)));
        download.take(&file[cut..]).unwrap();
        let complete = download.finish().unwrap();
        let mut read = Vec::new();
        complete.open().unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, nar);
        drop(complete);
        assert!(world.files().is_empty());
    }
}

#[test]
fn what_is_wrong_is_never_handed_out_and_leaves_nothing() {
    let (nar, info, file) = sample();
    let receive = |file: &[u8], hash: Sha256, info: &PathInfo| {
        let world = World::new();
        let mut download = world.inputs.begin(info, Some(hash)).unwrap();
        let received = download.take(file).and_then(|()| download.finish().map(drop));
        assert!(world.files().is_empty(), "{received:?}");
        received.unwrap_err().to_string()
    };
    let hash = Sha256::of(&file);
    assert!(receive(&file, Sha256::of(b""), &info).contains("another hash"));
    assert!(receive(&file[..file.len() - 1], hash, &info).contains("another hash"));
    let mut damaged = file.clone();
    damaged[1_000] ^= 1;
    receive(&damaged, Sha256::of(&damaged), &info);
    let shorter = PathInfo { nar_bytes: info.nar_bytes - 1, ..info.clone() };
    assert!(receive(&file, hash, &shorter).contains("longer than announced"));
    let longer = PathInfo { nar_bytes: info.nar_bytes + 1, ..info.clone() };
    assert!(receive(&file, hash, &longer).contains("1 bytes are missing"));
    let other = PathInfo { nar_hash: Sha256::of(b""), ..info.clone() };
    assert!(receive(&file, hash, &other).contains("another hash"));
    // Half of the frame is a whole nar shorter than announced.
    let half = zstd::bulk::compress(&nar[..nar.len() / 2], 3).unwrap();
    assert!(receive(&half, Sha256::of(&half), &info).contains("are missing"));
}

#[test]
fn a_file_whose_hash_nobody_tells_is_received_whole_or_not_at_all() {
    let (_, info, file) = sample();
    let world = World::new();
    let mut download = world.inputs.begin(&info, None).unwrap();
    download.take(&file[..1_000]).unwrap();
    drop(download);
    assert!(world.inputs.begun(&info).unwrap().is_none());
    let mut download = world.inputs.begin(&info, None).unwrap();
    download.take(&file).unwrap();
    drop(download.finish().unwrap());
    assert!(world.files().is_empty());
}

#[test]
fn a_beginning_that_is_damaged_counts_as_none() {
    let (_, info, file) = sample();
    let world = World::new();
    drop(world.inputs.begin(&info, Some(Sha256::of(&file))).unwrap());
    fs_err::write(&world.files()[0], b"this is no zstd").unwrap();
    assert!(world.inputs.begun(&info).unwrap().is_none());
    assert!(world.files().is_empty());
}

#[tokio::test]
async fn a_path_is_fetched_by_one_at_a_time_and_others_are_not_held_up() {
    let (_, info, _) = sample();
    let world = World::new();
    let claim = world.inputs.claim(&info.path).await;
    let second = tokio::spawn({
        let (inputs, path) = (Arc::clone(&world.inputs), info.path.clone());
        async move { inputs.claim(&path).await }
    });
    let other = "/nix/store/2b9p07z77phvv2hf6gm9f28syp39f1ag-source".parse().unwrap();
    drop(world.inputs.claim(&other).await);
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop(claim);
    drop(second.await.unwrap());
    drop(world.inputs.claim(&info.path).await);
    assert_eq!(world.inputs.claims.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn old_beginnings_are_swept_unless_somebody_has_claimed_them() {
    let (_, info, file) = sample();
    let world = World::new();
    drop(world.inputs.begin(&info, Some(Sha256::of(&file))).unwrap());
    fs_err::write(world.dir.path().join("inputs/nonsense"), "").unwrap();
    let modified = fs_err::metadata(&world.files()[0]).unwrap().mtime() * 1_000;
    let at = |ms| Timestamp::from_ms(ms);
    world.inputs.sweep(at(modified)).unwrap();
    assert_eq!(world.files().len(), 2);
    let claim = world.inputs.claim(&info.path).await;
    world.inputs.sweep(at(modified + 2 * AGE_MS_MAX)).unwrap();
    assert_eq!(world.files().len(), 1);
    drop(claim);
    world.inputs.sweep(at(modified + 2 * AGE_MS_MAX)).unwrap();
    assert_eq!(world.files().len(), 0);
}

#[test]
fn the_oldest_beginnings_go_when_there_are_too_many_bytes() {
    let (_, info, file) = sample();
    let world = World::new();
    // Holes count as much as bytes, and cost nothing.
    for (number, seconds) in [(1u8, 3), (2, 1), (3, 2)] {
        let hash = Sha256::of(&[number]);
        drop(world.inputs.begin(&info, Some(hash)).unwrap());
        let path =
            world.files().into_iter().find(|path| path.to_str().unwrap().contains(&hash.base32()));
        let path = path.unwrap();
        fs_err::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(IDLE_BYTES_MAX / 2)
            .unwrap();
        let at = rustix::fs::Timespec { tv_sec: 1_000_000 + seconds, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
    }
    assert!(!file.is_empty());
    world.inputs.sweep(Timestamp::from_ms(1_000_010_000)).unwrap();
    let left: Vec<_> = world.files();
    assert_eq!(left.len(), 2);
    let oldest = Sha256::of(&[2]).base32();
    assert!(!left.iter().any(|path| path.to_str().unwrap().contains(&oldest)));
}
