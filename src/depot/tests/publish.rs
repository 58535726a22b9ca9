//! The published tree: closed at every moment, and readable by the stock client.

use super::{AT, World, file, path};
use crate::{
    core::{
        change::{NarOrigin, NarRecord},
        hash::Sha256,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    depot::{Depot, DepotError, PublishPolicy, Publisher, Unpublished, spool::SmallNarCompressor},
    formats::{narinfo::NarInfo, signature::guix::GuixPublicKey},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    process::Command,
    sync::Arc,
};

/// Puts a nar into the depot as if it were verified.
fn nar(depot: &Depot, path: &StorePath, references: &[&StorePath]) -> NarRecord {
    let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
    let nar = file(format!("{path} {}", texts.join(" ")).as_bytes()).nar();
    let compressed = SmallNarCompressor::new().unwrap().compress(depot, &nar).unwrap();
    compressed.file.settle(depot, &compressed.file_hash).unwrap();
    let mut references: Vec<_> = references.iter().map(|path| (*path).clone()).collect();
    references.sort();
    let mut info = PathInfo {
        path: path.clone(),
        nar_hash: Sha256::of(&nar),
        nar_bytes: nar.len() as u64,
        references,
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    depot.sign(&mut info);
    NarRecord {
        info,
        file_hash: compressed.file_hash,
        file_bytes: compressed.file_bytes,
        origin: NarOrigin::Built,
        at: AT,
    }
}

fn publisher(world: &World) -> Publisher {
    Publisher::new(world.depot.clone(), BTreeMap::new())
}

/// The paths whose narinfos are in the tree of Nix's store, after a look that the tree is closed.
fn visible(world: &World) -> BTreeSet<StorePath> {
    let infos: Vec<NarInfo> = world
        .files("public")
        .iter()
        .filter(|name| name.starts_with("nix-store/") && name.ends_with(".narinfo"))
        .map(|name| fs_err::read_to_string(world.dir.path().join("public").join(name)).unwrap())
        .map(|text| NarInfo::parse(&text, &StoreDir::nix()).unwrap())
        .collect();
    let paths: BTreeSet<_> = infos.iter().map(|narinfo| narinfo.info.path.clone()).collect();
    for narinfo in infos {
        assert!(narinfo.info.references.iter().all(|reference| paths.contains(reference)));
        let nar = fs_err::read(world.dir.path().join("public/nix-store").join(&narinfo.url));
        assert_eq!(Sha256::of(&nar.unwrap()), narinfo.file_hash);
    }
    paths
}

#[test]
fn a_path_appears_when_its_last_reference_does() {
    let world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(path);
    let first = Arc::new(nar(&world.depot, &a, &[&a]));
    let second = Arc::new(nar(&world.depot, &b, &[&a, &b]));
    let third = Arc::new(nar(&world.depot, &c, &[&a, &b]));
    let mut publisher = publisher(&world);
    let report = publisher.publish(vec![third, second]).unwrap();
    assert!(report.visible.is_empty() && visible(&world).is_empty());
    assert_eq!(report.unpublished.len(), 2);
    assert!(report.unpublished.contains(&(b.clone(), Unpublished::Waiting(vec![a.clone()]))));
    assert_eq!(publisher.waits_for(&c).unwrap().len(), 2);
    let report = publisher.publish(vec![first]).unwrap();
    assert_eq!(report.visible, [a, b, c.clone()]);
    assert_eq!(visible(&world).len(), 3);
    assert_eq!(publisher.waits_for(&c), None);
}

#[test]
fn publishing_again_changes_nothing_and_says_the_same() {
    let world = World::new();
    let a = path("a");
    let record = Arc::new(nar(&world.depot, &a, &[]));
    let first = publisher(&world).publish(vec![record.clone()]).unwrap();
    let before = world.files("public");
    let again = publisher(&world).publish(vec![record.clone(), record]).unwrap();
    assert_eq!(first, again);
    assert_eq!(world.files("public"), before);
    let about = world.dir.path().join("public/nix-store/nix-cache-info");
    assert!(fs_err::read_to_string(about).unwrap().starts_with("StoreDir: /nix/store\n"));
}

#[test]
fn a_farm_may_lean_on_references_published_elsewhere() {
    let world = World::new();
    let (a, elsewhere) = (path("a"), path("elsewhere"));
    let record = Arc::new(nar(&world.depot, &a, &[&elsewhere]));
    let policy = BTreeMap::from([(StoreDir::nix(), PublishPolicy::ExternalReferencesAllowed)]);
    let mut publisher = Publisher::new(world.depot.clone(), policy);
    assert_eq!(publisher.publish(vec![record]).unwrap().visible, [a]);
}

#[test]
fn a_store_that_is_not_published_here_has_no_tree_and_holds_up_no_other() {
    let world = World::new();
    let record = Arc::new(nar(&world.depot, &path("a"), &[]));
    let policy = BTreeMap::from([(StoreDir::nix(), PublishPolicy::Never)]);
    let mut publisher = Publisher::new(world.depot.clone(), policy);
    let report = publisher.publish(vec![record]).unwrap();
    assert_eq!((report.visible, report.unpublished), (vec![], vec![(path("a"), Unpublished::Off)]));
    assert!(!world.dir.path().join("public/nix-store").exists());
}

#[test]
fn what_cannot_be_published_is_said_and_holds_up_nothing_else() {
    let world = World::new();
    let guix: StorePath = path("a").to_string().replace("/nix/", "/gnu/").parse().unwrap();
    let [trusted, lost, good] = ["trusted", "lost", "good"].map(path);
    let mut on_trust = nar(&world.depot, &trusted, &[]);
    on_trust.origin = NarOrigin::Trusted;
    let without_file = nar(&world.depot, &lost, &[]);
    fs_err::remove_file(world.depot.0.places.nar(&without_file.file_hash)).unwrap();
    let records = vec![
        Arc::new(on_trust),
        Arc::new(without_file),
        Arc::new(nar(&world.depot, &guix, &[])),
        Arc::new(nar(&world.depot, &good, &[])),
    ];
    let report = publisher(&world).publish(records).unwrap();
    assert_eq!(report.visible, [good]);
    let reasons: BTreeMap<_, _> = report.unpublished.into_iter().collect();
    assert_eq!(reasons[&trusted], Unpublished::Trusted);
    assert_eq!(reasons[&lost], Unpublished::NotHeld);
    assert!(matches!(&reasons[&guix], Unpublished::OtherForms(r) if r.info.path == guix));
    assert!(!world.dir.path().join("public/gnu-store").exists());
}

#[test]
fn both_stores_are_published_side_by_side_each_in_its_dialect() {
    let world = World::new();
    let [nix, below, above] = ["a", "below", "above"].map(path);
    let [below, above] = [below, above].map(|path| {
        let path: StorePath = path.to_string().replace("/nix/", "/gnu/").parse().unwrap();
        path
    });
    let content = file(b"what was promised").nar();
    let mut records = [
        nar(&world.depot, &nix, &[]),
        nar(&world.depot, &below, &[]),
        nar(&world.depot, &above, &[&below]),
    ];
    let compressed = SmallNarCompressor::new().unwrap().compress(&world.depot, &content).unwrap();
    compressed.file.settle(&world.depot, &compressed.file_hash).unwrap();
    let promised = Sha256::of(b"what was promised");
    records[1].info.nar_hash = Sha256::of(&content);
    records[1].info.nar_bytes = content.len() as u64;
    records[1].info.content_address = Some(format!("fixed:sha256:{}", promised.base32()));
    records[1].file_hash = compressed.file_hash;
    records[1].file_bytes = compressed.file_bytes;
    let [first, second, third] = records.map(Arc::new);

    let mut publisher = publisher(&world);
    let given = vec![first.clone(), second.clone(), third.clone()];
    assert_eq!(publisher.publish(given).unwrap().visible, std::slice::from_ref(&nix));
    // The one that is compressed again waits for the one below, which is not yet.
    world.depot.make_other_forms(&third).unwrap();
    assert_eq!(publisher.publish(vec![third.clone()]).unwrap().visible, []);
    world.depot.make_other_forms(&second).unwrap();
    let report = publisher.publish(vec![second.clone()]).unwrap();
    assert_eq!(report.visible, [below.clone(), above.clone()]);
    // What is there stays as it is, and for the other store there is nothing to make.
    let before = world.files("public");
    world.depot.make_other_forms(&second).unwrap();
    world.depot.make_other_forms(&first).unwrap();
    assert_eq!(world.files("public"), before);

    let tree = world.dir.path().join("public/gnu-store");
    let narinfo = tree.join(format!("{}.narinfo", above.hash().base32()));
    let text = fs_err::read_to_string(narinfo).unwrap();
    let (facts, rest) = text.split_once("Signature: ").unwrap();
    assert!(facts.contains(&format!("References: {}\n", below.base_name())), "{text}");
    let key = GuixPublicKey::parse(&world.depot.guix_public_key()).unwrap();
    let (signature, rest) = rest.split_once('\n').unwrap();
    assert!(key.verify_narinfo(facts, signature));
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [_, zstd, _, "zstd", _, zstd_bytes, _, gzip, _, "gzip", _, gzip_bytes] = words[..] else {
        panic!("{rest}");
    };
    for (url, bytes) in [(zstd, zstd_bytes), (gzip, gzip_bytes)] {
        assert_eq!(fs_err::metadata(tree.join(url)).unwrap().len().to_string(), bytes);
    }
    let mut unpacked = Vec::new();
    let packed = fs_err::read(tree.join(gzip)).unwrap();
    flate2::read::GzDecoder::new(&*packed).read_to_end(&mut unpacked).unwrap();
    assert_eq!(Sha256::of(&unpacked), third.info.nar_hash);
    let plain = tree.join("file/below/sha256").join(promised.base32());
    assert_eq!(fs_err::read(plain).unwrap(), b"what was promised");
    let about = fs_err::read_to_string(tree.join("nix-cache-info")).unwrap();
    assert!(about.starts_with("StoreDir: /gnu/store\n"));
    assert_eq!(visible(&world), BTreeSet::from([nix]));
}

#[test]
fn no_other_form_is_made_of_a_damaged_file() {
    let world = World::new();
    let guix: StorePath = path("a").to_string().replace("/nix/", "/gnu/").parse().unwrap();
    let mut record = nar(&world.depot, &guix, &[]);
    record.info.nar_bytes += 1;
    let error = world.depot.make_other_forms(&record).unwrap_err();
    assert!(matches!(error, DepotError::Damaged(_)), "{error}");
    let mut record = nar(&world.depot, &guix, &[]);
    let other = Sha256::of(b"something else").base32();
    record.info.content_address = Some(format!("fixed:sha256:{other}"));
    let error = world.depot.make_other_forms(&record).unwrap_err();
    assert!(matches!(error, DepotError::Damaged(_)), "{error}");
    let report = publisher(&world).publish(vec![Arc::new(record)]).unwrap();
    assert!(matches!(report.unpublished[..], [(_, Unpublished::OtherForms(_))]));
    let shown = world.files("public");
    assert!(shown.iter().all(|name| !name.contains(".nar.gz") && !name.ends_with(&other)));
}

#[test]
fn what_the_disk_refused_is_published_by_the_next_call() {
    let world = World::new();
    let (a, b) = (path("a"), path("b"));
    let mut publisher = publisher(&world);
    let waiting = Arc::new(nar(&world.depot, &b, &[&a]));
    publisher.publish(vec![waiting]).unwrap();
    let obstacle = world.dir.path().join("public/nix-store");
    fs_err::write(&obstacle, "in the way").unwrap();
    assert!(publisher.publish(vec![Arc::new(nar(&world.depot, &a, &[]))]).is_err());
    fs_err::remove_file(&obstacle).unwrap();
    assert_eq!(publisher.publish(Vec::new()).unwrap().visible, [a, b]);
    assert_eq!(visible(&world).len(), 2);
}

/// Runs a command of Nix with settings of its own, and returns its output.
fn nix(home: &std::path::Path, arguments: &[&str]) -> std::process::Output {
    Command::new("nix")
        .args(["--extra-experimental-features", "nix-command"])
        .args(arguments)
        .env("HOME", home)
        .env("NIX_CONF_DIR", home)
        .env("NIX_STORE_DIR", "/nix/store")
        .env("NIX_STATE_DIR", home.join("state"))
        .output()
        .unwrap()
}

#[test]
fn the_stock_client_reads_and_trusts_the_tree() {
    if Command::new("nix").arg("--version").output().is_err() {
        println!("not run: there is no ‘nix’ on this machine");
        return;
    }
    let world = World::new();
    let (a, b) = (path("a"), path("b"));
    let records = vec![nar(&world.depot, &b, &[&a]), nar(&world.depot, &a, &[&a])];
    publisher(&world).publish(records.into_iter().map(Arc::new).collect()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let tree = format!("file://{}", world.dir.path().join("public/nix-store").display());
    let listed = nix(home.path(), &["path-info", "--json", "-r", "--store", &tree, &b.to_string()]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success(), "{}", listed.stderr.escape_ascii());
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{text}");
    // Copied into a store that wants signatures: trusted with the key, refused with another.
    let copy = |root: &str, key: &str| {
        let root = home.path().join(root);
        let target = format!("local?root={}", root.display());
        let path = b.to_string();
        let arguments =
            ["copy", "--from", &tree, "--to", &target, "--trusted-public-keys", key, &path];
        let output = nix(home.path(), &arguments);
        (output, root.join(path.trim_start_matches('/')))
    };
    let (output, copied) = copy("good", &world.depot.public_key());
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    assert!(fs_err::read_to_string(copied).unwrap().contains(&a.to_string()));
    let stranger = Depot::open(&home.path().join("stranger"), "test-1", [9; 32]).unwrap();
    let (output, copied) = copy("bad", &stranger.public_key());
    assert!(!output.status.success() && !copied.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn in_any_order_the_tree_is_closed_at_every_moment_and_whole_at_the_end(
        edges in prop::collection::vec((0..12usize, 0..12usize), 0..30),
        order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(),
        batch in 1..5usize,
    ) {
        let world = World::new();
        let paths: Vec<StorePath> = (0..12).map(|n| path(&format!("p{n}"))).collect();
        let records: Vec<_> = (0..12)
            .map(|n| {
                let references: BTreeSet<_> =
                    edges.iter().filter(|(user, used)| *user == n && used < user).collect();
                let references: Vec<_> = references.iter().map(|(_, used)| &paths[*used]).collect();
                Arc::new(nar(&world.depot, &paths[n], &references))
            })
            .collect();
        let mut publisher = publisher(&world);
        let mut told = BTreeSet::new();
        for numbers in order.chunks(batch) {
            let given = numbers.iter().map(|n| records[*n].clone()).collect();
            told.extend(publisher.publish(given).unwrap().visible);
            prop_assert_eq!(&visible(&world), &told);
        }
        prop_assert_eq!(told.len(), 12);
    }
}
