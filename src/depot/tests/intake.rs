//! Export streams, honest and hostile.

use super::{AT, Drv, Export, Memory, World, drv, export, file, path};
use crate::{
    core::{
        change::NarOrigin,
        compression::Compression,
        content::{fixed_output_path, source_path, text_path},
        derivation::DerivationError,
        hash::Sha256,
        plan::Class,
        store_path::{StoreDir, StorePath},
    },
    depot::{Fact, IntakeError, IntakeRules, IntakeSummary},
    formats::{
        export::{
            ExportError, ExportLimits, entry_begin, entry_facts, signed_entry_trailer, stream_end,
        },
        nar::{NarLimits, sample::Tree},
        signature::guix::{GuixPublicKey, GuixSecretKey},
    },
};
use proptest::prelude::*;
use std::{collections::BTreeMap, path::Path, process::Command};

const RULES: IntakeRules<'static> = IntakeRules {
    authorized: &[],
    trusted_import: false,
    limits: ExportLimits {
        nar: NarLimits { bytes_max: 1 << 30, entries_max: 1 << 16, depth_max: 64 },
        entries_max: 1 << 16,
    },
    at: AT,
};
const TRUSTED: IntakeRules<'static> = IntakeRules { trusted_import: true, ..RULES };

/// Takes a stream in pieces and returns all facts in the order in which they came.
fn take(
    world: &World,
    known: &Memory,
    rules: IntakeRules<'_>,
    stream: &[u8],
    piece: usize,
) -> Result<(Vec<Fact>, IntakeSummary), IntakeError> {
    let mut intake = world.depot.intake(known, rules)?;
    let mut facts = Vec::new();
    for chunk in stream.chunks(piece) {
        intake.feed(chunk)?;
        facts.extend(intake.take_ready());
    }
    let summary = intake.finish()?;
    assert!(summary.ready.is_empty());
    Ok((facts, summary))
}

fn refusal(entries: &[Export]) -> IntakeError {
    let world = World::new();
    let error =
        take(&world, &Memory::default(), RULES, &export(entries), 1000).map(drop).unwrap_err();
    assert!(world.files("incoming").is_empty());
    error
}

/// A path that follows from its content in each of the ways, with the text for the way.
fn sources() -> [(Export, &'static str); 4] {
    let dir = StoreDir::nix();
    let nar = file(b"a patch").nar();
    let references = vec![path("a"), path("b")];
    let (nar_hash, flat) = (Sha256::of(&nar), Sha256::of(b"a patch"));
    let entry = |path: StorePath, references: &[StorePath]| Export {
        path,
        nar: nar.clone(),
        references: references.to_vec(),
    };
    [
        (
            entry(source_path(&dir, "s", &nar_hash, &references, false).unwrap(), &references),
            "fixed:r:sha256:",
        ),
        (entry(text_path(&dir, "t", &flat, &references).unwrap(), &references), "text:sha256:"),
        (
            entry(fixed_output_path(&dir, "f", false, "sha256", &flat.hex()).unwrap(), &[]),
            "fixed:sha256:",
        ),
        (
            entry(fixed_output_path(&dir, "r", true, "sha256", &nar_hash.hex()).unwrap(), &[]),
            "fixed:r:sha256:",
        ),
    ]
}

/// A little graph: top uses two that both use base.
fn graph(source: &StorePath) -> [Drv; 4] {
    let base = drv("base", &[], &[source]);
    let left = drv("left", &[&base], &[]);
    let right = drv("right", &[&base], &[]);
    let top = drv("top", &[&left, &right], &[]);
    [base, left, right, top]
}

#[test]
fn derivations_are_verified_and_handed_out_inputs_first_in_any_order() {
    let absent = path("absent-source");
    let drvs = graph(&absent);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let world = World::new();
        let entries = order.map(|place| Export::from(&drvs[place]));
        let known = Memory::default();
        let (facts, summary) = take(&world, &known, RULES, &export(&entries), 77).unwrap();
        let records: Vec<_> = facts
            .iter()
            .map(|fact| match fact {
                Fact::Derivation(record) => record,
                Fact::Nar(_) => panic!("no nar was sent"),
            })
            .collect();
        assert_eq!(records[0].path, drvs[0].path);
        assert_eq!(records[3].path, drvs[3].path);
        for record in &records {
            let drv = drvs.iter().find(|drv| drv.path == record.path).unwrap();
            assert_eq!((&record.text[..], record.modulo), (&drv.text[..], drv.modulo));
            assert_eq!(record.outputs, [("out".to_owned(), drv.out.clone())]);
            let class = Class {
                store_dir: StoreDir::nix(),
                system: Some("x86_64-linux".to_owned()),
                features: vec!["kvm".to_owned()],
            };
            assert_eq!(record.class, class);
        }
        assert_eq!(records[3].inputs.len(), 2);
        assert_eq!(summary.named, order.map(|place| drvs[place].path.clone()));
        assert_eq!(summary.roots, [drvs[3].path.clone()]);
        assert_eq!(summary.sources_not_held, std::slice::from_ref(&absent));
        assert_eq!((summary.counts.derivations, summary.counts.nars), (4, 0));
        assert!(world.files("depot").is_empty());
    }
}

#[test]
fn what_is_known_need_not_be_sent_and_is_not_handed_out_again() {
    let source = path("source");
    let drvs = graph(&source);
    let mut known = Memory::default();
    known.modulos.insert(drvs[1].path.clone(), drvs[1].modulo);
    known.modulos.insert(drvs[2].path.clone(), drvs[2].modulo);
    known.nars.insert(source, (Sha256::of(b""), 1));
    let entries = [Export::from(&drvs[3]), Export::from(&drvs[2]), Export::from(&drvs[3])];
    let (facts, summary) = take(&World::new(), &known, RULES, &export(&entries), 1 << 20).unwrap();
    assert_eq!(facts.len(), 1);
    assert_eq!(summary.named.len(), 2);
    assert_eq!((summary.counts.derivations, summary.counts.derivations_known), (1, 1));
    assert!(summary.sources_not_held.is_empty());
}

#[test]
fn sources_of_every_kind_are_stored_signed_and_with_their_address() {
    let world = World::new();
    for (entry, address) in sources() {
        let stream = export([&entry, &entry]);
        let (facts, summary) = take(&world, &Memory::default(), RULES, &stream, 50).unwrap();
        let [Fact::Nar(record)] = facts.as_slice() else { panic!("{facts:?}") };
        assert_eq!(record.origin, NarOrigin::ContentAddressed);
        assert!(record.info.content_address.as_ref().unwrap().starts_with(address));
        assert!(record.info.signatures[0].starts_with("test-1:"));
        let mut nar = Vec::new();
        world.read_nar(&record.file_hash, record.info.nar_bytes, &mut nar).unwrap();
        assert_eq!(nar, entry.nar);
        let expected = entry.references.len();
        assert_eq!(summary.sources_not_held.len(), expected);
        assert_eq!(summary.counts.nars, 1);
    }
    assert_eq!(world.files("depot").len(), 1, "the same bytes are kept once");
    assert!(world.files("incoming").is_empty());
}

#[test]
fn large_sources_of_every_kind_are_verified_as_well() {
    let content: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let nar = file(&content).nar();
    let dir = StoreDir::nix();
    let flat = Sha256::of(&content).hex();
    let path = fixed_output_path(&dir, "f", false, "sha256", &flat).unwrap();
    let world = World::new();
    let entry = Export { path, nar, references: Vec::new() };
    let stream = export([&entry]);
    let (facts, _) = take(&world, &Memory::default(), RULES, &stream, 4096).unwrap();
    let [Fact::Nar(record)] = facts.as_slice() else { panic!("{facts:?}") };
    let mut nar = Vec::new();
    world.read_nar(&record.file_hash, record.info.nar_bytes, &mut nar).unwrap();
    assert_eq!(nar, entry.nar);
    let bytes = fs_err::read(world.dir.path().join("depot").join(&world.files("depot")[0]));
    assert_eq!(Sha256::of(&bytes.unwrap()), record.file_hash);
    assert!(world.files("incoming").is_empty());
}

#[test]
fn sources_that_are_compressed_already_are_kept_as_they_are() {
    let content: Vec<u8> = (0u64..400_000)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
        .flat_map(|n| n.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes())
        .collect();
    let (nar, dir) = (file(&content).nar(), StoreDir::nix());
    let by_nar = source_path(&dir, "n", &Sha256::of(&nar), &[], false).unwrap();
    let flat = Sha256::of(&content).hex();
    let by_file = fixed_output_path(&dir, "f", false, "sha256", &flat).unwrap();
    for path in [by_nar, by_file] {
        let world = World::new();
        let entry = Export { path, nar: nar.clone(), references: Vec::new() };
        let stream = export([&entry]);
        let (facts, _) = take(&world, &Memory::default(), RULES, &stream, 4096).unwrap();
        let [Fact::Nar(record)] = facts.as_slice() else { panic!("{facts:?}") };
        assert_eq!(record.compression(), Compression::None);
        assert_eq!((record.file_hash, record.file_bytes), (Sha256::of(&nar), nar.len() as u64));
        assert_eq!(fs_err::read(world.depot.0.places.nar(&record.file_hash)).unwrap(), nar);
        let mut read = Vec::new();
        world.read_nar(&record.file_hash, record.info.nar_bytes, &mut read).unwrap();
        assert_eq!(read, nar);
        assert!(world.files("incoming").is_empty());
    }
    let world = World::new();
    let entry = Export { path: path("unverifiable"), nar, references: Vec::new() };
    let refused = take(&world, &Memory::default(), RULES, &export([&entry]), 4096);
    assert!(matches!(refused, Err(IntakeError::Unverifiable(_))));
    assert!(world.files("incoming").is_empty() && world.files("depot").is_empty());
}

#[test]
fn a_held_nar_is_skipped_and_another_content_refused() {
    let (entry, _) = sources().into_iter().next().unwrap();
    let mut known = Memory::default();
    known.nars.insert(entry.path.clone(), (Sha256::of(&entry.nar), entry.nar.len() as u64));
    let world = World::new();
    let (facts, summary) = take(&world, &known, RULES, &export([&entry]), 50).unwrap();
    assert_eq!((facts.len(), summary.counts.nars_held), (0, 1));
    assert!(world.files("depot").is_empty());
    known.nars.insert(entry.path.clone(), (Sha256::of(b""), 1));
    let error = take(&world, &known, TRUSTED, &export([&entry]), 50).map(drop).unwrap_err();
    assert!(matches!(error, IntakeError::Differs(path) if path == entry.path));
}

#[test]
fn an_output_needs_trust_and_is_marked_so() {
    let entry = Export {
        path: path("output"),
        nar: Tree::Directory(BTreeMap::new()).nar(),
        references: vec![path("output")],
    };
    let world = World::new();
    let (facts, _) = take(&world, &Memory::default(), TRUSTED, &export([&entry]), 50).unwrap();
    let [Fact::Nar(record)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(record.origin, NarOrigin::Trusted);
    assert!(matches!(refusal(&[entry]), IntakeError::Unverifiable(_)));
}

#[test]
fn an_output_is_taken_on_the_signature_of_somebody_authorized() {
    let (output, reference) = (path("output"), path("reference"));
    let nar = Tree::Directory(BTreeMap::new()).nar();
    let (key, stranger) = (GuixSecretKey::generate([1; 32]), GuixSecretKey::generate([2; 32]));
    let authorized = [*stranger.public(), *key.public()];
    let sign = |key: &GuixSecretKey| {
        key.sign(&Sha256::of(&[nar.clone(), entry_facts(&output, &[], None)].concat()))
    };
    let stream = |references: &[StorePath], signature: &str| {
        let trailer = signed_entry_trailer(&output, references, None, signature);
        [&entry_begin(), &*nar, &trailer, &stream_end()].concat()
    };
    let world = World::new();
    let refuse = |authorized: &[GuixPublicKey], stream: &[u8]| {
        let rules = IntakeRules { authorized, ..RULES };
        let error = take(&world, &Memory::default(), rules, stream, 50).map(drop).unwrap_err();
        assert!(matches!(error, IntakeError::Unverifiable(_)), "{error}");
    };
    refuse(&[], &stream(&[], &sign(&key)));
    refuse(&authorized[..1], &stream(&[], &sign(&key)));
    refuse(&authorized, &stream(&[reference], &sign(&key)));
    refuse(&authorized, &stream(&[], "(signature)"));
    let rules = IntakeRules { authorized: &authorized, ..RULES };
    let signed = stream(&[], &sign(&key));
    let (facts, _) = take(&world, &Memory::default(), rules, &signed, 50).unwrap();
    let [Fact::Nar(record)] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(record.origin, NarOrigin::Trusted);
}

#[test]
fn a_source_with_another_content_is_refused() {
    for (mut entry, way) in sources() {
        entry.nar = file(b"a_patch").nar();
        assert!(matches!(refusal(&[entry]), IntakeError::Unverifiable(_)), "{way}");
    }
    for (mut entry, way) in sources() {
        entry.references.push(path("c"));
        assert!(matches!(refusal(&[entry]), IntakeError::Unverifiable(_)), "{way}");
    }
    let (_, text, flat, _) = sources().map(|(entry, _)| entry).into();
    for mut entry in [text, flat] {
        entry.nar = Tree::Regular { executable: true, content: b"a patch".to_vec() }.nar();
        assert!(matches!(refusal(&[entry]), IntakeError::Unverifiable(_)));
    }
}

#[test]
fn a_derivation_that_is_not_what_its_path_says_is_refused() {
    let good = drv("good", &[], &[]);
    let of = |nar: Vec<u8>| Export { path: good.path.clone(), nar, references: Vec::new() };
    let mut changed = good.text.clone();
    let place = changed.windows(2).position(|two| two == b"sh").unwrap();
    changed[place] = b'z';
    let refused = |entry| match refusal(&[entry]) {
        IntakeError::Derivation { source, .. } => *source,
        other => panic!("{other}"),
    };
    assert!(matches!(refused(of(file(&changed).nar())), DerivationError::DerivationPath { .. }));
    assert!(matches!(refused(of(file(b"Derive(").nar())), DerivationError::Syntax(_)));
    let large = file(&vec![b'x'; 2 << 20]).nar();
    assert!(matches!(refused(of(large)), DerivationError::TooLarge { .. }));
    let executable = Tree::Regular { executable: true, content: good.text.clone() };
    for tree in [executable, Tree::Directory(BTreeMap::new()), Tree::Symlink(b"x".to_vec())] {
        assert!(matches!(refusal(&[of(tree.nar())]), IntakeError::NotAFile(_)));
    }
}

#[test]
fn a_derivation_that_claims_the_output_of_another_is_refused() {
    let (victim, thief) = (drv("a", &[], &[]), drv("b", &[], &[]));
    let text = String::from_utf8(thief.text).unwrap();
    let text = text.replace(&thief.out.to_string(), &victim.out.to_string());
    let digest = Sha256::of(text.as_bytes());
    let path = text_path(&StoreDir::nix(), "b.drv", &digest, &[]).unwrap();
    let entry = Export { path, nar: file(text.as_bytes()).nar(), references: Vec::new() };
    let IntakeError::Derivation { source, .. } = refusal(&[entry]) else { panic!() };
    assert!(matches!(*source, DerivationError::OutputPath { .. }));
}

#[test]
fn a_missing_input_is_named_with_its_user() {
    let drvs = graph(&path("source"));
    for order in [[1, 2, 3], [3, 2, 1]] {
        let error = refusal(&order.map(|place| Export::from(&drvs[place])));
        let IntakeError::MissingInput { input, user } = error else { panic!("{error}") };
        assert_eq!(input, drvs[0].path);
        assert!(user == drvs[1].path || user == drvs[2].path);
    }
}

#[test]
fn what_is_no_whole_stream_is_refused() {
    let (entry, _) = sources().into_iter().next().unwrap();
    let stream = export([&entry, &Export::from(&drv("a", &[], &[]))]);
    let world = World::new();
    let refused = |bytes: &[u8]| {
        let error = take(&world, &Memory::default(), RULES, bytes, 100).map(drop).unwrap_err();
        match error {
            IntakeError::Stream(error) => *error,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(refused(b""), ExportError::Empty));
    assert!(matches!(refused(b"#!/bin/sh\necho no stream"), ExportError::NotExport));
    let mut trailing = stream.clone();
    trailing.push(0);
    assert!(matches!(refused(&trailing), ExportError::TrailingBytes));
    for end in (8..stream.len()).step_by(61) {
        assert!(matches!(refused(&stream[..end]), ExportError::Truncated { .. }), "{end}");
    }
    assert!(world.files("incoming").is_empty());
}

#[test]
fn a_large_entry_that_breaks_off_leaves_no_file() {
    let nar = file(&vec![1; 2 << 20]).nar();
    let stream = export([&Export { path: path("x"), nar, references: Vec::new() }]);
    let world = World::new();
    let known = Memory::default();
    let mut intake = world.depot.intake(&known, RULES).unwrap();
    intake.feed(&stream[..2 << 20]).unwrap();
    assert_eq!(world.files("incoming").len(), 1);
    drop(intake);
    assert!(world.files("incoming").is_empty());
}

#[test]
fn a_refused_stream_stays_refused() {
    let world = World::new();
    let known = Memory::default();
    let mut intake = world.depot.intake(&known, RULES).unwrap();
    assert!(intake.feed(b"no stream").is_err());
    assert!(matches!(intake.feed(b""), Err(IntakeError::Over)));
    assert!(matches!(intake.finish(), Err(IntakeError::Over)));
}

/// Runs a command of Nix on a store of its own below `home`, and returns what it prints.
fn nix(home: &Path, command: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(command)
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", home)
        .env("NIX_CONF_DIR", home)
        .env("NIX_STORE_DIR", home.join("store"))
        .env("NIX_STATE_DIR", home.join("state"))
        .env("NIX_LOG_DIR", home.join("log"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", output.stderr.escape_ascii());
    output.stdout
}

#[test]
fn what_the_stock_client_exports_is_taken() {
    if Command::new("nix-instantiate").arg("--version").output().is_err() {
        println!("not run: there is no ‘nix-instantiate’ on this machine");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    // Nix refuses a store whose path goes through a symbolic link.
    let home_path = fs_err::canonicalize(home.path()).unwrap();
    fs_err::create_dir(home_path.join("tree")).unwrap();
    fs_err::write(home_path.join("tree/file"), "a source").unwrap();
    let expression = format!(
        r#"let
          base = derivation {{
            name = "base"; system = "x86_64-linux"; builder = "/bin/sh"; outputs = [ "out" "lib" ];
            text = builtins.toFile "text" "refers to ${{builtins.toFile "other" "x"}}";
          }};
          fixed = derivation {{
            name = "fixed"; system = "builtin"; builder = "builtin:fetchurl";
            outputHash = "{}"; outputHashAlgo = "sha256"; outputHashMode = "flat";
          }};
        in derivation {{
          name = "top"; system = "x86_64-linux"; builder = "/bin/sh"; tree = {};
          inputs = [ base.lib fixed ]; requiredSystemFeatures = [ "kvm" "big-parallel" ];
        }}"#,
        Sha256::of(b"fixed").hex(),
        home_path.join("tree").display(),
    );
    let drv = nix(&home_path, "nix-instantiate", &["--expr", &expression]);
    let drv = String::from_utf8(drv).unwrap().trim().to_owned();
    let closure = String::from_utf8(nix(&home_path, "nix-store", &["-qR", &drv])).unwrap();
    let mut arguments = vec!["--export"];
    arguments.extend(closure.lines());
    let stream = nix(&home_path, "nix-store", &arguments);
    let world = World::new();
    let (facts, summary) = take(&world, &Memory::default(), RULES, &stream, 997).unwrap();
    assert_eq!((summary.counts.derivations, summary.counts.nars), (3, 3));
    assert_eq!(summary.roots, [drv.parse().unwrap()]);
    assert!(summary.sources_not_held.is_empty());
    let Some(Fact::Derivation(top)) =
        facts.iter().rfind(|fact| matches!(fact, Fact::Derivation(_)))
    else {
        panic!("{facts:?}")
    };
    assert_eq!(top.path.to_string(), drv);
    assert_eq!(top.class.features, ["big-parallel", "kvm"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_stream_never_gives_a_wrong_fact(place: prop::sample::Index, bit in 0..8u8) {
        let (entry, _) = sources().into_iter().next().unwrap();
        let good = drv("a", &[], &[&entry.path]);
        let mut stream = export([&entry, &Export::from(&good)]);
        let place = place.index(stream.len());
        stream[place] ^= 1 << bit;
        let world = World::new();
        if let Ok((facts, _)) = take(&world, &Memory::default(), RULES, &stream, 1000) {
            for fact in facts {
                match fact {
                    Fact::Derivation(record) => prop_assert_eq!(&record.path, &good.path),
                    Fact::Nar(record) => prop_assert_eq!(&record.info.path, &entry.path),
                }
            }
        }
    }
}
