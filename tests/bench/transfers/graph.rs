//! Derivations to build: each independent of all others, with a shell script as builder.

use std::collections::BTreeMap;
use steading::{
    core::{
        derivation::{Derivation, Output, derivation_path},
        store_path::{PathHash, StoreDir, StorePath},
    },
    formats::{
        export::{entry_begin, entry_trailer, stream_end},
        nar::{NarWriter, Regular},
    },
};

/// The system of all builds; agents claim it whatever they run on.
pub(crate) const SYSTEM: &str = "x86_64-linux";

/// One derivation.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: StorePath,
    pub(crate) text: Vec<u8>,
    pub(crate) outputs: Vec<(String, StorePath)>,
    references: Vec<StorePath>,
}

/// Writes a derivation whose builder runs a script with `/bin/sh`.
pub(crate) fn derivation(
    dir: &StoreDir,
    name: &str,
    script: &str,
    outputs: &[&str],
    sources: &[StorePath],
) -> Member {
    let blank = dir.path(PathHash::from_bytes([0; 20]), name).unwrap();
    let mut env: BTreeMap<&str, String> =
        outputs.iter().map(|output| (*output, String::new())).collect();
    env.insert("name", name.to_owned());
    env.insert("outputs", outputs.join(" "));
    let output = |name: &&str| Output {
        name: (*name).to_owned(),
        path: blank.clone(),
        hash_algorithm: String::new(),
        hash: String::new(),
    };
    let mut derivation = Derivation {
        outputs: outputs.iter().map(output).collect(),
        input_derivations: Vec::new(),
        input_sources: sources.to_vec(),
        system: SYSTEM.to_owned(),
        builder: b"/bin/sh".into(),
        arguments: vec![b"-c".into(), script.as_bytes().to_vec().into()],
        env: env
            .into_iter()
            .map(|(name, value)| (name.as_bytes().to_vec().into(), value.into_bytes().into()))
            .collect(),
    };
    derivation.outputs.sort_by(|one, other| one.name.cmp(&other.name));
    derivation.compute_outputs(name, &mut |_| None).unwrap();
    let text = derivation.to_bytes();
    let references = derivation.closure_references();
    let path = derivation_path(dir, &format!("{name}.drv"), &text, &references).unwrap();
    let outputs = derivation.outputs.into_iter().map(|output| (output.name, output.path)).collect();
    Member { path, text, outputs, references }
}

/// Returns an export stream of sources (with their nars) and derivations.
pub(crate) fn export(sources: &[(StorePath, Vec<u8>)], members: &[Member]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (path, nar) in sources {
        stream.extend(entry_begin());
        stream.extend(nar);
        stream.extend(entry_trailer(path, &[], None));
    }
    for member in members {
        stream.extend(entry_begin());
        stream.extend(file_nar(&member.text));
        stream.extend(entry_trailer(&member.path, &member.references, None));
    }
    stream.extend(stream_end());
    stream
}

/// Returns the nar of one file that is not executable.
pub(crate) fn file_nar(content: &[u8]) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::with_capacity(content.len() + 1_024));
    writer.begin().unwrap();
    writer.regular(Regular { executable: false, size: content.len() as u64 }).unwrap();
    writer.content(content).unwrap();
    writer.finish().unwrap()
}
