//! Derivations with right paths, and export streams of them.

use std::collections::HashMap;
use steading::{
    core::{
        content::source_path,
        derivation::{Derivation, DerivationError, derivation_path},
        hash::Sha256,
        store_path::{StoreDir, StorePath},
    },
    formats::{
        export::{entry_begin, entry_trailer, stream_end},
        nar::{NarWriter, Regular},
    },
};

/// A derivation whose paths are right.
#[derive(Debug, Clone)]
pub(crate) struct Drv {
    pub(crate) path: StorePath,
    pub(crate) text: Vec<u8>,
    pub(crate) out: StorePath,
    modulo: Sha256,
}

/// Makes a derivation for `x86_64-linux` in `/nix/store` that runs a script with `/bin/sh`.
pub(crate) fn drv(name: &str, script: &str, inputs: &[&Drv], sources: &[&StorePath]) -> Drv {
    const SKELETON: &[u8] = br#"Derive([("out","/nix/store/00000000000000000000000000000000-x","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","/nix/store/00000000000000000000000000000000-x")])"#;
    let mut derivation = Derivation::parse(SKELETON).unwrap();
    derivation.arguments = vec![b"-c".into(), script.as_bytes().to_vec().into()];
    derivation.input_derivations =
        inputs.iter().map(|input| (input.path.clone(), vec!["out".to_owned()])).collect();
    derivation.input_derivations.sort_by_key(|(path, _)| path.to_string());
    derivation.input_sources = sources.iter().map(|&source| source.clone()).collect();
    derivation.input_sources.sort_by_key(ToString::to_string);
    let modulos: HashMap<StorePath, Sha256> =
        inputs.iter().map(|input| (input.path.clone(), input.modulo)).collect();
    let mut modulo_of = |path: &StorePath| modulos.get(path).copied();
    let Err(DerivationError::OutputPath { computed, .. }) =
        derivation.verify_outputs(name, &mut modulo_of)
    else {
        panic!("the made-up output path is right")
    };
    derivation.env[0].1 = computed.to_string().into_bytes().into();
    derivation.outputs[0].path = (*computed).clone();
    let text = derivation.to_bytes();
    let references = derivation.closure_references();
    let path =
        derivation_path(&StoreDir::nix(), &format!("{name}.drv"), &text, &references).unwrap();
    let modulo = derivation.hash_modulo(&mut modulo_of).unwrap();
    Drv { path, text, out: *computed, modulo }
}

/// Makes a source: the path of one file with this content, and its nar.
pub(crate) fn source(name: &str, content: &[u8]) -> (StorePath, Vec<u8>) {
    let nar = file_nar(content);
    let path = source_path(&StoreDir::nix(), name, &Sha256::of(&nar), &[], false).unwrap();
    (path, nar)
}

/// Returns the nar of one file that is not executable.
pub(crate) fn file_nar(content: &[u8]) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    writer.begin().unwrap();
    writer.regular(Regular { executable: false, size: content.len() as u64 }).unwrap();
    writer.content(content).unwrap();
    writer.finish().unwrap()
}

/// Makes an export stream of paths with their nars.
pub(crate) fn stream<'a>(entries: impl IntoIterator<Item = (&'a StorePath, Vec<u8>)>) -> Vec<u8> {
    let mut stream = Vec::new();
    for (path, nar) in entries {
        stream.extend(entry_begin());
        stream.extend(nar);
        stream.extend(entry_trailer(path, &[], None));
    }
    stream.extend(stream_end());
    stream
}

/// Makes an export stream of derivations, in this order.
pub(crate) fn export(drvs: &[&Drv]) -> Vec<u8> {
    stream(drvs.iter().map(|drv| (&drv.path, file_nar(&drv.text))))
}
