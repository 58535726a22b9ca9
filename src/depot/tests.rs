//! Tests of the whole room, on real directories.

mod intake;
mod publish;
mod store;
mod upload;

use super::{Depot, DepotError, Known};
use crate::{
    core::{
        derivation::{Derivation, DerivationError, derivation_path},
        hash::Sha256,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
        time::Timestamp,
    },
    formats::{
        export::{entry_begin, entry_trailer, stream_end},
        nar::sample::Tree,
    },
};
use std::{
    collections::HashMap,
    error::Error,
    path::{Path, PathBuf},
};

const AT: Timestamp = Timestamp::from_ms(1_700_000_000_000);

/// A depot in a directory of its own.
struct World {
    dir: tempfile::TempDir,
    depot: Depot,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let depot = Depot::open(dir.path(), "test-1", [7; 32]).unwrap();
        Self { dir, depot }
    }

    /// Writes the uncompressed nar of a file to `sink`.
    fn read_nar(
        &self,
        file_hash: &Sha256,
        nar_bytes: u64,
        sink: &mut Vec<u8>,
    ) -> Result<(), DepotError> {
        self.depot.open_nar(file_hash)?.unpack(file_hash, nar_bytes, sink)
    }

    /// The names of all files below a directory of the state directory, sorted.
    fn files(&self, below: &str) -> Vec<String> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs_err::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), found);
                } else {
                    found.push(entry.path());
                }
            }
        }
        let (root, mut found) = (self.dir.path().join(below), Vec::new());
        walk(&root, &mut found);
        let name = |path: PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let mut names: Vec<String> = found.into_iter().map(name).collect();
        names.sort();
        names
    }
}

/// What a database would know.
#[derive(Default)]
struct Memory {
    modulos: HashMap<StorePath, Sha256>,
    nars: HashMap<StorePath, (Sha256, u64)>,
}

impl Known for Memory {
    fn modulo(&self, path: &StorePath) -> Result<Option<Sha256>, Box<dyn Error + Send + Sync>> {
        Ok(self.modulos.get(path).copied())
    }

    fn nar(&self, path: &StorePath) -> Result<Option<(Sha256, u64)>, Box<dyn Error + Send + Sync>> {
        Ok(self.nars.get(path).copied())
    }
}

fn file(content: &[u8]) -> Tree {
    Tree::Regular { executable: false, content: content.to_vec() }
}

/// A path in `/nix/store` with made-up digits.
fn path(name: &str) -> StorePath {
    StoreDir::nix().make_path("test", &Sha256::of(name.as_bytes()), name).unwrap()
}

/// What a nar is, without a word about signatures.
fn info(path: &StorePath, nar: &[u8], references: &[StorePath]) -> PathInfo {
    PathInfo {
        path: path.clone(),
        nar_hash: Sha256::of(nar),
        nar_bytes: nar.len() as u64,
        references: references.to_vec(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    }
}

/// A derivation for tests.
#[derive(Clone)]
struct Drv {
    path: StorePath,
    text: Vec<u8>,
    out: StorePath,
    modulo: Sha256,
}

/// Makes a derivation with right paths.
fn drv(name: &str, inputs: &[&Drv], sources: &[&StorePath]) -> Drv {
    let dir = StoreDir::nix();
    let mut inputs_by_text = inputs.to_vec();
    inputs_by_text.sort_by_key(|input| input.path.to_string());
    let mut derivation = Derivation::parse(
        br#"Derive([("out","/nix/store/00000000000000000000000000000000-x","","")],[],[],"x86_64-linux","/bin/sh",[],[("out","/nix/store/00000000000000000000000000000000-x"),("requiredSystemFeatures","kvm")])"#,
    )
    .unwrap();
    derivation.input_derivations =
        inputs_by_text.iter().map(|i| (i.path.clone(), vec!["out".to_owned()])).collect();
    derivation.input_sources = sources.iter().map(|source| (*source).clone()).collect();
    derivation.input_sources.sort_by_key(ToString::to_string);
    let modulos: HashMap<_, _> = inputs.iter().map(|i| (i.path.clone(), i.modulo)).collect();
    let mut modulo_of = |path: &StorePath| modulos.get(path).copied();
    let Err(DerivationError::OutputPath { computed, .. }) =
        derivation.verify_outputs(name, &mut modulo_of)
    else {
        panic!("the made-up output was right")
    };
    derivation.env[0].1 = computed.to_string().into_bytes().into();
    derivation.outputs[0].path = (*computed).clone();
    let text = derivation.to_bytes();
    let references = derivation.closure_references();
    let path = derivation_path(&dir, &format!("{name}.drv"), &text, &references).unwrap();
    Drv { path, out: *computed, modulo: derivation.hash_modulo(&mut modulo_of).unwrap(), text }
}

/// One entry of an export stream.
struct Export {
    path: StorePath,
    nar: Vec<u8>,
    references: Vec<StorePath>,
}

impl From<&Drv> for Export {
    fn from(drv: &Drv) -> Self {
        Self { path: drv.path.clone(), nar: file(&drv.text).nar(), references: Vec::new() }
    }
}

/// Makes an export stream.
fn export<'e>(entries: impl IntoIterator<Item = &'e Export>) -> Vec<u8> {
    let mut stream = Vec::new();
    for entry in entries {
        stream.extend(entry_begin());
        stream.extend(&entry.nar);
        stream.extend(entry_trailer(&entry.path, &entry.references, None));
    }
    stream.extend(stream_end());
    stream
}
