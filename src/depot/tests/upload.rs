//! Uploads, honest and hostile.

use super::{AT, World, file, info, path};
use crate::{
    core::{
        change::{NarFile, NarRecord},
        derivation::FixedOutput,
        hash::{Sha256, hex},
        id::AttemptId,
        store_path::{StoreDir, StorePath},
    },
    depot::{Depot, Publisher, SYNC_INTERVAL, SmallNars, UploadRules, VerifiedNar, VerifyError},
    formats::{
        nar::{NarLimits, sample::Tree, sample::any_tree},
        narinfo::{self, NarInfo},
        signature::nix::NixPublicKey,
    },
    protocol::bulk::{CHUNK_BYTES_MAX, OfferedOutput, RefusalCode},
};
use bytes::Bytes;
use proptest::prelude::*;
use sha2::Digest as _;
use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::Arc,
};

const LIMITS: NarLimits = NarLimits { bytes_max: 1 << 28, entries_max: 1 << 16, depth_max: 64 };

/// An output on its way, as an agent would offer and send it.
#[derive(Clone)]
struct Sent {
    offer: OfferedOutput,
    bytes: Vec<u8>,
    candidates: Vec<StorePath>,
    fixed: Option<FixedOutput>,
}

impl Sent {
    /// An honest one, of a nar with these references.
    fn new(nar: &[u8], references: &[StorePath]) -> Self {
        let bytes = zstd::bulk::compress(nar, 3).unwrap();
        let mut sent = Self {
            offer: OfferedOutput {
                name: "out".to_owned(),
                info: info(&path("output"), nar, references),
                compression: "zstd".to_owned(),
                file_bytes: 0,
                file_hash: Sha256::of(b""),
            },
            bytes: Vec::new(),
            candidates: vec![path("output"), path("a"), path("b")],
            fixed: None,
        };
        sent.file(bytes);
        sent
    }

    /// Sends other bytes, and declares them rightly.
    fn file(&mut self, bytes: Vec<u8>) {
        self.offer.file_bytes = bytes.len() as u64;
        self.offer.file_hash = Sha256::of(&bytes);
        self.bytes = bytes;
    }

    fn rules(&self) -> UploadRules<'_> {
        UploadRules {
            attempt: AttemptId::from_bytes([5; 16]),
            expected: &self.offer,
            deriver: path("output.drv"),
            candidates: self.candidates.clone().into(),
            fixed: self.fixed.clone(),
            limits: LIMITS,
        }
    }

    /// Sends what is left to send, in pieces.
    fn send(&self, world: &World) -> Result<VerifiedNar, VerifyError> {
        let mut upload = world.depot.upload(&self.rules())?;
        let offset = usize::try_from(upload.offset()).unwrap();
        for piece in self.bytes[offset..].chunks(1000) {
            upload.write(piece)?;
        }
        upload.finish(self.offer.file_hash)
    }

    /// Verifies the whole of it in memory, behind an honest one.
    fn verify(&self) -> Result<NarRecord, VerifyError> {
        let mut small = SmallNars::new().unwrap();
        let honest = Sent::new(&mentioning(&[path("a")]), &[path("a")]);
        let rules = honest.rules();
        small.of_attempt(&rules.candidates).verify(&rules, &honest.bytes, AT).unwrap();
        let rules = self.rules();
        small.of_attempt(&rules.candidates).verify(&rules, &self.bytes, AT)
    }

    /// Sends what is left to send, as an agent's connection brings it: looked at by another thread.
    fn send_long(&self, world: &World) -> Result<VerifiedNar, VerifyError> {
        let mut upload = world.depot.upload(&self.rules())?;
        let offset = usize::try_from(upload.offset()).unwrap();
        let bytes = Bytes::from(self.bytes.clone());
        for start in (offset..bytes.len()).step_by(CHUNK_BYTES_MAX) {
            upload.write_aside(&bytes.slice(start..bytes.len().min(start + CHUNK_BYTES_MAX)))?;
        }
        upload.finish(self.offer.file_hash)
    }

    /// Sends to a fresh depot, where it must be refused without a trace.
    fn refusal(&self) -> VerifyError {
        let world = World::new();
        let error = self.send(&world).map(drop).unwrap_err();
        // Small ones are refused for the same reason.
        assert_eq!(self.verify().unwrap_err().to_string(), error.to_string());
        assert!(world.files("incoming").is_empty(), "{error}");
        assert!(world.files("depot").is_empty(), "{error}");
        assert_eq!(error.code(), RefusalCode::Rejected, "{error}");
        error
    }
}

/// A nar that mentions these paths.
fn mentioning(paths: &[StorePath]) -> Vec<u8> {
    let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
    file(texts.join(" ").as_bytes()).nar()
}

#[test]
fn an_honest_upload_is_kept_signed_and_can_be_read() {
    let world = World::new();
    let references = [path("a"), path("output")];
    let nar = mentioning(&references);
    let sent = Sent::new(&nar, &references);
    let verified = sent.send(&world).unwrap();
    let record = world.depot.keep(verified, AT).unwrap();
    let small = sent.verify().unwrap();
    assert!(small.info.signatures.is_empty(), "small ones are signed when they are written out");
    let info = world.depot.signed(small.info.clone());
    assert_eq!(NarRecord { info, ..small }, record);
    let key = NixPublicKey::parse(&world.depot.public_key()).unwrap();
    assert!(key.verify(&narinfo::fingerprint(&record.info), &record.info.signatures[0]));
    assert_eq!(record.info.deriver, Some(path("output.drv")));
    let mut read = Vec::new();
    world.read_nar(&record.file_hash, record.info.nar_bytes, &mut read).unwrap();
    assert_eq!(read, nar);
    assert!(world.files("incoming").is_empty());
    assert_eq!(world.files("depot").len(), 1);
    // The same again, as after a lost acknowledgement.
    let again = sent.send(&world).unwrap();
    assert_eq!(world.depot.keep(again, AT).unwrap(), record);
    assert_eq!(world.files("depot").len(), 1);
}

#[test]
fn files_that_are_written_out_replace_what_is_torn_and_nothing_else() {
    let world = World::new();
    let bytes: Bytes = Sent::new(&file(b"content").nar(), &[]).bytes.into();
    let nar = NarFile { hash: Sha256::of(&bytes), bytes };
    let place = world.depot.0.places.nar(&nar.hash);
    let held = || {
        let metadata = fs_err::metadata(&place).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o444);
        assert_eq!(fs_err::read(&place).unwrap(), nar.bytes);
        assert!(world.files("incoming").is_empty());
        metadata.ino()
    };
    world.depot.write_out(std::slice::from_ref(&nar)).unwrap();
    let first = held();
    world.depot.write_out(&[nar.clone(), nar.clone()]).unwrap();
    assert_eq!(held(), first);
    for torn in [Vec::new(), vec![0; nar.bytes.len()]] {
        fs_err::remove_file(&place).unwrap();
        fs_err::write(&place, torn).unwrap();
        world.depot.write_out(std::slice::from_ref(&nar)).unwrap();
        held();
    }
}

#[test]
fn a_torn_file_in_the_depot_is_replaced() {
    let world = World::new();
    let sent = Sent::new(&file(b"content").nar(), &[]);
    let place = world.depot.0.places.nar(&sent.offer.file_hash);
    fs_err::create_dir_all(place.parent().unwrap()).unwrap();
    for torn in [Vec::new(), vec![0; sent.bytes.len()]] {
        fs_err::write(&place, torn).unwrap();
        world.depot.keep(sent.send(&world).unwrap(), AT).unwrap();
        assert_eq!(fs_err::read(&place).unwrap(), sent.bytes);
        fs_err::remove_file(&place).unwrap();
    }
}

#[test]
fn wrong_declarations_of_the_nar_are_refused() {
    let good = Sent::new(&file(b"content").nar(), &[]);
    let mut sent = good.clone();
    sent.offer.info.nar_hash = Sha256::of(b"");
    assert!(matches!(sent.refusal(), VerifyError::NarHash { .. }));
    for off in [-8, 8] {
        let mut sent = good.clone();
        sent.offer.info.nar_bytes = good.offer.info.nar_bytes.checked_add_signed(off).unwrap();
        assert!(matches!(sent.refusal(), VerifyError::NarBytes { .. }));
    }
    let mut sent = good.clone();
    sent.offer.info.nar_bytes = LIMITS.bytes_max + 1;
    assert!(matches!(sent.refusal(), VerifyError::NarTooLong { .. }));
    let mut sent = good;
    "gzip".clone_into(&mut sent.offer.compression);
    assert!(matches!(sent.refusal(), VerifyError::Compression(_)));
}

#[test]
fn wrong_declarations_of_the_file_are_refused() {
    let good = Sent::new(&file(b"content").nar(), &[]);
    let mut sent = good.clone();
    sent.offer.file_hash = Sha256::of(b"");
    assert!(matches!(sent.refusal(), VerifyError::FileHash { .. }));
    for bytes in [good.offer.file_bytes - 1, good.offer.file_bytes + 1] {
        let mut sent = good.clone();
        sent.offer.file_bytes = bytes;
        assert!(matches!(sent.refusal(), VerifyError::FileBytes { .. }));
    }
    let mut sent = good.clone();
    sent.offer.file_bytes = 1 << 40;
    assert!(matches!(sent.refusal(), VerifyError::FileTooLong { .. }));
    let world = World::new();
    let mut upload = world.depot.upload(&good.rules()).unwrap();
    upload.write(&good.bytes).unwrap();
    let error = upload.finish(Sha256::of(b"another")).map(drop).unwrap_err();
    assert!(matches!(error, VerifyError::FileHash { .. }));
}

#[test]
fn wrong_references_are_refused() {
    let (a, b) = (path("a"), path("b"));
    let sent = Sent::new(&mentioning(std::slice::from_ref(&a)), &[]);
    assert!(matches!(sent.refusal(), VerifyError::UndeclaredReference(found) if found == a));
    let sent = Sent::new(&mentioning(&[]), std::slice::from_ref(&b));
    assert!(matches!(sent.refusal(), VerifyError::AbsentReference(found) if found == b));
    let stranger = path("stranger");
    let strange = std::slice::from_ref(&stranger);
    let sent = Sent::new(&mentioning(strange), strange);
    assert!(matches!(sent.refusal(), VerifyError::StrangeReference(found) if found == stranger));
}

#[test]
fn damaged_compression_is_refused() {
    let nar = file(&[7; 5000]).nar();
    let good = Sent::new(&nar, &[]);
    let with = |bytes: Vec<u8>| {
        let mut sent = good.clone();
        sent.file(bytes);
        sent.refusal()
    };
    let whole = good.bytes.clone();
    for end in 0..whole.len() {
        let error = with(whole[..end].to_vec());
        assert!(matches!(error, VerifyError::ZstdTruncated), "{end}: {error}");
    }
    let mut trailing = whole.clone();
    trailing.push(0);
    assert!(matches!(with(trailing), VerifyError::TrailingBytes));
    assert!(matches!(with([&whole[..], &whole].concat()), VerifyError::TrailingBytes));
    assert!(matches!(with(b"this is no zstd at all".to_vec()), VerifyError::Zstd(_)));
    // A skippable frame is one that holds nothing.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0][..], &whole].concat();
    assert!(matches!(with(skippable), VerifyError::TrailingBytes));
}

#[test]
fn a_window_larger_than_stock_readers_allow_is_refused() {
    let nar = file(&vec![7; 1 << 20]).nar();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    std::io::Write::write_all(&mut encoder, &nar).unwrap();
    let mut sent = Sent::new(&nar, &[]);
    sent.file(encoder.finish().unwrap());
    assert!(matches!(sent.refusal(), VerifyError::Zstd(_)));
}

#[test]
fn a_bomb_is_not_unpacked() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 19).unwrap();
    let head = file(&[0; 8]).nar();
    std::io::Write::write_all(&mut encoder, &head[..96]).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..512 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let mut sent = Sent::new(&head, &[]);
    sent.file(encoder.finish().unwrap());
    assert!(sent.bytes.len() < 60_000);
    let error = sent.refusal();
    let VerifyError::NarBytes { found, .. } = error else { panic!("{error}") };
    assert!(found <= 1 << 18, "{found} bytes were unpacked");
}

#[test]
fn what_is_no_nar_is_refused() {
    let mut nar = file(b"content").nar();
    nar.extend([0; 8]);
    assert!(matches!(Sent::new(&nar, &[]).refusal(), VerifyError::TrailingBytes));
    assert!(matches!(Sent::new(b"no nar at all", &[]).refusal(), VerifyError::Nar(_)));
    let whole = file(b"content").nar();
    let sent = Sent::new(&whole[..whole.len() - 8], &[]);
    assert!(matches!(sent.refusal(), VerifyError::Nar(_)));
    assert!(matches!(Sent::new(b"", &[]).refusal(), VerifyError::Nar(_)));
}

#[test]
fn promises_of_fixed_outputs_are_checked() {
    let nar = file(b"content").nar();
    let good = Sent::new(&nar, &[]);
    let promise = |recursive, algorithm: &str, hash_hex: String| {
        let mut sent = good.clone();
        let algorithm = algorithm.to_owned();
        sent.fixed = Some(FixedOutput { recursive, algorithm, hash_hex });
        sent
    };
    let flat512 = hex(&sha2::Sha512::digest(b"content"));
    let nar512 = hex(&sha2::Sha512::digest(&nar));
    for (sent, address) in [
        (promise(false, "sha256", Sha256::of(b"content").hex()), "fixed:sha256:"),
        (promise(true, "sha256", Sha256::of(&nar).hex()), "fixed:r:sha256:"),
        (promise(false, "sha512", flat512.clone()), "fixed:sha512:"),
        (promise(true, "sha512", nar512), "fixed:r:sha512:"),
    ] {
        let verified = sent.send(&World::new()).unwrap();
        assert!(verified.info().content_address.as_ref().unwrap().starts_with(address));
    }
    for sent in [
        promise(false, "sha256", Sha256::of(b"other").hex()),
        promise(true, "sha256", Sha256::of(b"content").hex()),
        promise(true, "sha512", flat512),
    ] {
        assert!(matches!(sent.refusal(), VerifyError::FixedOutput { .. }));
    }
    let executable = Tree::Regular { executable: true, content: b"content".to_vec() };
    let mut sent = Sent::new(&executable.nar(), &[]);
    sent.fixed = promise(false, "sha256", Sha256::of(b"content").hex()).fixed;
    assert!(matches!(sent.refusal(), VerifyError::FixedOutput { .. }));
    let sent = promise(false, "md5", "0".repeat(32));
    assert!(matches!(sent.refusal(), VerifyError::FixedAlgorithm(_)));
}

#[test]
fn the_same_output_on_two_connections_is_received_once() {
    let world = World::new();
    let sent = Sent::new(&file(b"content").nar(), &[]);
    let first = world.depot.upload(&sent.rules()).unwrap();
    let second = world.depot.upload(&sent.rules()).map(drop).unwrap_err();
    assert!(matches!(second, VerifyError::Busy));
    assert_eq!(second.code(), RefusalCode::TryLater);
    drop(first);
    assert!(sent.send(&world).is_ok());
}

#[test]
fn a_damaged_earlier_part_is_sent_again() {
    let nar = file(&(0..200_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).nar();
    let sent = Sent::new(&nar, &[]);
    let half = sent.bytes.len() / 2;
    let world = World::new();
    let spool = world.dir.path().join("incoming").join(crate::depot::spool::upload_name(
        AttemptId::from_bytes([5; 16]),
        &path("output"),
        &sent.offer.file_hash,
    ));
    let bytes_of = |spool: &std::path::Path| fs_err::metadata(spool).unwrap().len();
    let marked = |content: &[u8], length: u64, hash: Sha256| {
        fs_err::write(&spool, content).unwrap();
        let mark = [&length.to_be_bytes()[..], hash.as_bytes()].concat();
        fs_err::write(spool.with_added_extension("mark"), mark).unwrap();
        world.depot.upload(&sent.rules()).map(|upload| upload.offset()).unwrap()
    };
    let start = &sent.bytes[..half];
    let length = half as u64;
    // What is marked is gone on with; what is behind the mark is not believed.
    assert_eq!(marked(start, length, Sha256::of(start)), length);
    assert_eq!(marked(&sent.bytes, length, Sha256::of(start)), length);
    assert_eq!(bytes_of(&spool), length);
    // A file shorter than its mark, or other than it, is worth nothing; nor is one without.
    assert_eq!(marked(&start[1..], length, Sha256::of(start)), 0);
    assert_eq!(bytes_of(&spool), 0);
    assert_eq!(marked(&vec![0; half], length, Sha256::of(start)), 0);
    assert_eq!(marked(start, u64::MAX, Sha256::of(start)), 0);
    assert_eq!(marked(&vec![0; half], length, Sha256::of(&vec![0; half])), 0);
    fs_err::remove_file(spool.with_added_extension("mark")).unwrap();
    fs_err::write(&spool, start).unwrap();
    assert_eq!(world.depot.upload(&sent.rules()).map(|upload| upload.offset()).unwrap(), 0);
    // Another valid file shows only at the end, and the agent is not to blame.
    let other = zstd::stream::encode_all(&nar[..], 1).unwrap();
    assert_eq!(marked(&other[..1000], 1000, Sha256::of(&other[..1000])), 1000);
    let error = sent.send(&world).map(drop).unwrap_err();
    assert!(matches!(error, VerifyError::EarlierPart(_)), "{error}");
    assert_eq!(error.code(), RefusalCode::TryLater);
    assert!(world.files("incoming").is_empty());
    assert!(sent.send(&world).is_ok());
}

/// Returns so many bytes that no compressor sees through.
fn incompressible(bytes: u64) -> Vec<u8> {
    (0..bytes / 8)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .flat_map(|n| n.rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes())
        .collect()
}

#[test]
fn a_long_upload_is_looked_at_like_a_short_one() {
    let content = incompressible(4 << 20);
    let (a, b) = (path("a"), path("b"));
    let good = Sent::new(&[&file(&content).nar()[..], &mentioning(&[])].concat(), &[]);
    assert!(matches!(good.send_long(&World::new()), Err(VerifyError::TrailingBytes)));
    let text = [&content[..], a.to_string().as_bytes(), &content].concat();
    let good = Sent::new(&file(&text).nar(), std::slice::from_ref(&a));
    let refusal = |sent: &Sent| {
        let world = World::new();
        let error = sent.send_long(&world).map(drop).unwrap_err();
        assert!(world.files("incoming").is_empty(), "{error}");
        error
    };
    let mut sent = good.clone();
    sent.offer.info.references = vec![b];
    assert!(matches!(refusal(&sent), VerifyError::UndeclaredReference(_)));
    let mut sent = good.clone();
    sent.offer.info.nar_hash = Sha256::of(b"");
    assert!(matches!(refusal(&sent), VerifyError::NarHash { .. }));
    for damage in [0, good.bytes.len() / 3, good.bytes.len() - 1] {
        let mut sent = good.clone();
        sent.bytes[damage] ^= 1;
        assert!(matches!(
            refusal(&sent),
            VerifyError::FileHash { .. } | VerifyError::Zstd(_) | VerifyError::Nar(_)
        ));
    }
    let mut sent = good.clone();
    sent.file(good.bytes[..good.bytes.len() / 2].to_vec());
    assert!(matches!(refusal(&sent), VerifyError::ZstdTruncated));
    let world = World::new();
    let record = world.depot.keep(good.send_long(&world).unwrap(), AT).unwrap();
    world.depot.sync_nars([&record].into_iter()).unwrap();
    assert_eq!(record.info.references, [a]);
    assert_eq!(fs_err::read(world.depot.0.places.nar(&record.file_hash)).unwrap(), good.bytes);
    assert!(world.files("incoming").is_empty());
}

/// One whose file is the nar itself.
fn plain(content: &[u8]) -> Sent {
    let nar = file(content).nar();
    let mut sent = Sent::new(&nar, &[]);
    "none".clone_into(&mut sent.offer.compression);
    sent.file(nar);
    sent
}

#[test]
fn a_nar_that_is_not_compressed_is_taken_and_published_as_it_is() {
    for content in [b"short".to_vec(), incompressible(3 << 20)] {
        let (world, sent) = (World::new(), plain(&content));
        // It is gone on with like any other.
        let cut = sent.bytes.len() / 2;
        let mut upload = world.depot.upload(&sent.rules()).unwrap();
        upload.write(&sent.bytes[..cut]).unwrap();
        drop(upload);
        assert_eq!(world.depot.upload(&sent.rules()).unwrap().offset(), cut as u64);
        let record = world.depot.keep(sent.send_long(&world).unwrap(), AT).unwrap();
        let mut read = Vec::new();
        world.read_nar(&record.file_hash, record.info.nar_bytes, &mut read).unwrap();
        assert_eq!(read, sent.bytes);
        let url = Depot::url(&record);
        assert_eq!(url, format!("nar/{}.nar", sent.offer.info.nar_hash.base32()));
        let mut publisher = Publisher::new(world.depot.clone(), BTreeMap::new());
        let report = publisher.publish(vec![Arc::new(record.clone())]).unwrap();
        assert_eq!(report.visible, [path("output")]);
        let tree = world.dir.path().join("public/nix-store");
        let name = format!("{}.narinfo", path("output").hash().base32());
        let text = fs_err::read_to_string(tree.join(name)).unwrap();
        let narinfo = NarInfo::parse(&text, &StoreDir::nix()).unwrap();
        assert_eq!((narinfo.compression.as_str(), &narinfo.url), ("none", &url));
        assert_eq!(narinfo.file_hash, narinfo.info.nar_hash);
        assert_eq!(fs_err::read(tree.join(url)).unwrap(), sent.bytes);
    }
}

#[test]
fn a_file_is_compressed_as_it_is_said_to_be() {
    let good = plain(&incompressible(2 << 20));
    let mut sent = good.clone();
    "zstd".clone_into(&mut sent.offer.compression);
    assert!(matches!(sent.refusal(), VerifyError::OtherCompression(_)));
    let mut sent = Sent::new(&file(b"content").nar(), &[]);
    "none".clone_into(&mut sent.offer.compression);
    assert!(matches!(sent.refusal(), VerifyError::OtherCompression(_)));
    let mut sent = good.clone();
    sent.bytes[1 << 20] ^= 1;
    assert!(matches!(sent.refusal(), VerifyError::FileHash { .. }));
    for off in [-8, 8] {
        let mut sent = good.clone();
        sent.offer.info.nar_bytes = sent.offer.info.nar_bytes.checked_add_signed(off).unwrap();
        assert!(matches!(sent.refusal(), VerifyError::NarBytes { .. }));
    }
    // A frame is no nar, whatever its hashes.
    let mut sent = good.clone();
    sent.file(zstd::bulk::compress(&good.bytes, 1).unwrap());
    sent.offer.info.nar_hash = sent.offer.file_hash;
    sent.offer.info.nar_bytes = sent.offer.file_bytes;
    assert!(matches!(sent.refusal(), VerifyError::Nar(_)));
}

#[test]
fn a_long_upload_that_breaks_off_is_gone_on_with_where_it_was() {
    let sent = Sent::new(&file(&incompressible(24 << 20)).nar(), &[]);
    let world = World::new();
    let cut = 3 * (sent.bytes.len() / 4);
    let mut upload = world.depot.upload(&sent.rules()).unwrap();
    for piece in sent.bytes[..cut].chunks(CHUNK_BYTES_MAX) {
        upload.write_aside(&Bytes::copy_from_slice(piece)).unwrap();
    }
    drop(upload);
    assert_eq!(world.depot.upload(&sent.rules()).unwrap().offset(), cut as u64);
    let record = world.depot.keep(sent.send_long(&world).unwrap(), AT).unwrap();
    assert_eq!(fs_err::read(world.depot.0.places.nar(&record.file_hash)).unwrap(), sent.bytes);
    assert!(world.files("incoming").is_empty());
}

#[test]
fn a_killed_coordinator_has_all_but_the_last_interval() {
    let sent = Sent::new(&file(&incompressible(80 << 20)).nar(), &[]);
    let sync = usize::try_from(SYNC_INTERVAL).unwrap();
    let came = sync + (sync >> 3);
    assert!(sent.bytes.len() > came, "it is too short: {}", sent.bytes.len());
    let world = World::new();
    let mut upload = world.depot.upload(&sent.rules()).unwrap();
    for piece in sent.bytes[..came].chunks(1 << 20) {
        upload.write(piece).unwrap();
    }
    // What a killed process leaves: no destructor has run, the lock is gone. The copy stands for
    // it, because a process cannot kill itself and go on.
    let (incoming, after) = (world.dir.path().join("incoming"), World::new());
    for name in world.files("incoming") {
        fs_err::copy(incoming.join(&name), after.dir.path().join("incoming").join(&name)).unwrap();
    }
    let kept = after.depot.upload(&sent.rules()).unwrap().offset();
    let came = came as u64;
    assert!((came - SYNC_INTERVAL..=came).contains(&kept) && kept > 0, "{kept} of {came}");
    assert!(sent.send(&after).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_upload_resumed_anywhere_is_bit_exact(
        tree in any_tree(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let world = World::new();
        let nar = tree.nar();
        let sent = Sent::new(&nar, &[]);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(sent.bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut at = 0;
        for cut in cuts {
            let mut upload = world.depot.upload(&sent.rules()).unwrap();
            prop_assert_eq!(upload.offset(), at as u64);
            if cut > at {
                upload.write(&sent.bytes[at..cut]).unwrap();
                at = cut;
            }
        }
        let record = world.depot.keep(sent.send(&world).unwrap(), AT).unwrap();
        let place = world.depot.0.places.nar(&record.file_hash);
        prop_assert_eq!(fs_err::read(place).unwrap(), sent.bytes);
        prop_assert!(world.files("incoming").is_empty());
    }

    #[test]
    fn a_flipped_bit_is_never_kept(place: prop::sample::Index, bit in 0..8u8) {
        let mut sent = Sent::new(&mentioning(&[path("a")]), &[path("a")]);
        let place = place.index(sent.bytes.len());
        sent.bytes[place] ^= 1 << bit;
        // Not only a wrong file hash, which tells all: the agent declares the damaged file.
        let declared = sent.bytes.clone();
        sent.file(declared);
        if let Ok(verified) = sent.send(&World::new()) {
            prop_assert_eq!(verified.info().nar_hash, sent.offer.info.nar_hash);
        }
    }
}
