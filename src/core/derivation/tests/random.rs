//! Random derivations: they read back, and the crate `nix-derivation` agrees about them.

use crate::core::{derivation::*, hash::hex, store_path::PathHash};
use nix_derivation::{OutputPathHash, store_path::StoreDir as OtherDir};
use proptest::{
    collection::{btree_map, btree_set, vec},
    prelude::*,
};
use std::collections::{BTreeMap, BTreeSet};

/// The name of every derivation here.
const NAME: &str = "random-1";

/// Texts of store paths, all different and in order, that end in `suffix`.
fn paths(suffix: &'static str) -> impl Strategy<Value = BTreeSet<String>> {
    let base = "[0-9a-df-np-sv-z]{32}-[a-z]{1,3}";
    btree_set(base.prop_map(move |base| format!("/gnu/store/{base}{suffix}")), 0..6)
}

/// Output names, at least one.
fn names() -> impl Strategy<Value = BTreeSet<String>> {
    btree_set("out|lib|[a-z0-9+._?=-]{1,4}", 1..4)
}

/// Outputs of either kind.
fn outputs() -> impl Strategy<Value = Vec<Output>> {
    let path = || StoreDir::guix().path(PathHash::from_bytes([0; 20]), "placeholder").unwrap();
    let addressed = names().prop_map(move |names| {
        let output = |name| Output {
            name,
            path: path(),
            hash_algorithm: String::new(),
            hash: String::new(),
        };
        names.into_iter().map(output).collect()
    });
    let fixed = ("(r:)?sha(256|512)", any::<[u8; 32]>()).prop_map(move |(algorithm, digest)| {
        let hash = hex(&digest).repeat(if algorithm.ends_with("512") { 2 } else { 1 });
        vec![Output { name: "out".to_owned(), path: path(), hash_algorithm: algorithm, hash }]
    });
    prop_oneof![3 => addressed, 1 => fixed]
}

/// Derivations whose builder, arguments and variables are `strings`. Output paths are wrong.
fn derivations(strings: BoxedStrategy<Vec<u8>>) -> impl Strategy<Value = Derivation<'static>> {
    let inputs = (paths(".drv"), vec(names(), 6));
    let environment = btree_map(strings.clone(), strings.clone(), 0..5);
    let process = ("[a-z0-9_-]{1,12}", strings.clone(), vec(strings, 0..4), environment);
    (outputs(), inputs, paths(""), process).prop_map(|(outputs, inputs, sources, process)| {
        let (system, builder, arguments, mut env) = process;
        for output in outputs.iter().filter(|output| output.name != "lib") {
            env.insert(output.name.clone().into_bytes(), Vec::new());
        }
        Derivation {
            outputs,
            input_derivations: inputs
                .0
                .iter()
                .zip(inputs.1)
                .map(|(path, names)| (path.parse().unwrap(), names.into_iter().collect()))
                .collect(),
            input_sources: sources.iter().map(|path| path.parse().unwrap()).collect(),
            system,
            builder: builder.into(),
            arguments: arguments.into_iter().map(Cow::Owned).collect(),
            env: env.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
        }
    })
}

/// Any bytes, many of them special.
fn bytes() -> BoxedStrategy<Vec<u8>> {
    let special = prop::sample::select(b"\"\\\n\r\tnrt".to_vec());
    vec(prop_oneof![special, any::<u8>()], 0..8).boxed()
}

/// Any text, many of its characters special.
fn texts() -> BoxedStrategy<Vec<u8>> {
    "[\"\\\\\n\r\tnrté☂]{0,8}".prop_map(String::into_bytes).boxed()
}

/// Returns a hash for each input, by its base name. Inputs of which the same outputs are used share
/// one, so that entries are merged. Where other outputs are used, the other crate keeps those of
/// the last entry, and Nix those of all: see `inputs_with_the_same_hash_become_one_as_in_nix`.
fn input_hashes(derivation: &Derivation<'_>) -> BTreeMap<String, [u8; 32]> {
    let hash = |names: &[String]| *Sha256::of(names.join(" ").as_bytes()).as_bytes();
    derivation.input_derivations.iter().map(|(p, names)| (p.base_name(), hash(names))).collect()
}

/// Sets the path of every output to what the other crate computes.
fn set_output_paths(derivation: &mut Derivation<'_>) {
    let dir = OtherDir::new("/gnu/store").unwrap();
    let (other, hashes) = (other(derivation), input_hashes(derivation));
    let resolved = other.resolved_outputs().unwrap();
    let hash = if derivation.fixed_output().is_some() {
        None
    } else {
        let hash = other.hash_output_path_modulo(|input| {
            nix_derivation::InputDerivationHash::regular(hashes[&input.to_basename()])
        });
        match hash.unwrap() {
            OutputPathHash::Ready(hash) => Some(hash),
            OutputPathHash::Deferred => panic!("nothing is deferred"),
        }
    };
    let mut paths = BTreeMap::new();
    for output in &mut derivation.outputs {
        let path = match hash {
            Some(hash) => dir.build_output_path(hash, &output.name, NAME).unwrap(),
            None => resolved[&output.name].path.clone().unwrap(),
        };
        output.path = dir.render_path(&path).parse().unwrap();
        paths.insert(output.name.clone().into_bytes(), output.path.to_string().into_bytes());
    }
    for (name, value) in &mut derivation.env {
        if let Some(path) = paths.get(name.as_ref()) {
            *value = path.clone().into();
        }
    }
}

/// Reads the derivation with the other crate.
fn other(derivation: &Derivation<'_>) -> nix_derivation::Derivation {
    let dir = OtherDir::new("/gnu/store").unwrap();
    nix_derivation::Derivation::from_aterm_bytes_in(&derivation.to_bytes(), NAME, dir).unwrap()
}

proptest! {
    #[test]
    fn every_derivation_reads_back(derivation in derivations(bytes())) {
        let text = derivation.to_bytes();
        let again = Derivation::parse(&text);
        prop_assert_eq!(again.as_ref(), Ok(&derivation));
        prop_assert_eq!(again.unwrap().to_bytes(), text);
    }

    #[test]
    fn damaged_derivations_are_refused_or_written_the_same(
        derivation in derivations(bytes()),
        place: prop::sample::Index,
        byte in prop_oneof![any::<u8>(), prop::sample::select(b"\"\\,()[]".to_vec())],
        inserted: bool,
    ) {
        let mut text = derivation.to_bytes();
        let place = place.index(text.len());
        if inserted {
            text.insert(place, byte);
        } else {
            text[place] = byte;
        }
        if let Ok(derivation) = Derivation::parse(&text) {
            prop_assert_eq!(derivation.to_bytes(), text);
        }
    }

    #[test]
    fn any_bytes_are_refused_without_harm(bytes: Vec<u8>) {
        prop_assert!(Derivation::parse(&bytes).is_err());
    }

    #[test]
    fn paths_and_hashes_are_those_of_another_implementation(
        mut derivation in derivations(texts()),
    ) {
        set_output_paths(&mut derivation);
        let text = derivation.to_bytes();
        let derivation = Derivation::parse(&text).unwrap();
        let other = other(&derivation);
        prop_assert_eq!(other.to_aterm_bytes(), text.as_slice());

        let hashes = input_hashes(&derivation);
        let mut input =
            |path: &StorePath| Some(Sha256::from_bytes(hashes[&path.base_name()]));
        prop_assert_eq!(derivation.verify_outputs(NAME, &mut input), Ok(()));
        let theirs = other.hash_input_derivation_modulo(|input| {
            nix_derivation::InputDerivationHash::regular(hashes[&input.to_basename()])
        }).unwrap();
        let theirs = match theirs {
            nix_derivation::InputDerivationHash::Regular(hash)
            | nix_derivation::InputDerivationHash::FixedOutput(hash) => hash.into_bytes(),
            nix_derivation::InputDerivationHash::Deferred => panic!("nothing is deferred"),
        };
        let ours = derivation.hash_modulo(&mut input).unwrap();
        prop_assert_eq!(*ours.as_bytes(), theirs);

        let path = OtherDir::new("/gnu/store").unwrap().render_path(&other.drv_path().unwrap());
        prop_assert_eq!(verify_path(&path.parse().unwrap(), &text, &derivation), Ok(()));
    }
}
