//! Derivations in the shape of a graph, with right paths.

use super::shape::Shape;
use crate::transfers::graph::{SYSTEM, file_nar};
use std::{collections::BTreeMap, io::Write};
use steading::{
    core::{
        change::DerivationRecord,
        derivation::{Derivation, Output, derivation_path},
        hash::Sha256,
        plan::Class,
        store_path::{PathHash, StoreDir, StorePath},
        time::Timestamp,
    },
    formats::export::{entry_begin, entry_trailer, stream_end},
};

/// The store of all derivations here.
pub(crate) fn store_dir() -> StoreDir {
    StoreDir::nix()
}

/// The class of all derivations here.
pub(crate) fn class() -> Class {
    Class { store_dir: store_dir(), system: Some(SYSTEM.to_owned()), features: Vec::new() }
}

/// One derivation.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) path: StorePath,
    pub(crate) out: StorePath,
    pub(crate) text: Vec<u8>,
    pub(crate) modulo: Sha256,
    /// Its input derivations, in the order of the text.
    pub(crate) inputs: Vec<PathHash>,
    references: Vec<StorePath>,
}

impl Made {
    /// Returns what the database keeps of it.
    pub(crate) fn record(self, at: Timestamp) -> DerivationRecord {
        DerivationRecord {
            path: self.path,
            text: self.text.into(),
            class: class(),
            inputs: self.inputs,
            outputs: vec![("out".to_owned(), self.out)],
            modulo: self.modulo,
            at,
        }
    }
}

/// Makes derivations one after the other.
#[derive(Debug, Default)]
pub(crate) struct Maker {
    made: Vec<(StorePath, Sha256)>,
}

impl Maker {
    /// Makes the next one, which needs these earlier ones, by number.
    pub(crate) fn make(&mut self, name: &str, inputs: &[u32]) -> Made {
        let known = |number: &u32| &self.made[*number as usize];
        let mut inputs: Vec<&(StorePath, Sha256)> = inputs.iter().map(known).collect();
        inputs.sort_by_key(|(path, _)| path.to_string());
        let mut modulo_of = |path: &StorePath| {
            inputs.iter().find(|(other, _)| other == path).map(|(_, modulo)| *modulo)
        };
        let mut derivation = blank(name);
        derivation.input_derivations =
            inputs.iter().map(|(path, _)| (path.clone(), vec!["out".to_owned()])).collect();
        derivation.compute_outputs(name, &mut modulo_of).unwrap();
        let modulo = derivation.hash_modulo(&mut modulo_of).unwrap();
        let text = derivation.to_bytes();
        let references = derivation.closure_references();
        let file = format!("{name}.drv");
        let path = derivation_path(&store_dir(), &file, &text, &references).unwrap();
        let inputs = inputs.iter().map(|(path, _)| path.hash()).collect();
        self.made.push((path.clone(), modulo));
        let out = derivation.outputs[0].path.clone();
        Made { path, out, text, modulo, inputs, references }
    }

    /// Makes a whole graph, inputs first.
    pub(crate) fn make_all(&mut self, shape: &Shape, mut each: impl FnMut(usize, Made)) {
        assert!(self.made.is_empty(), "numbers begin with the graph");
        for node in 0..shape.count() {
            let made = self.make(&format!("package-{node}-1.0"), shape.inputs(node));
            each(node, made);
        }
    }
}

fn blank(name: &str) -> Derivation<'static> {
    let blank = store_dir().path(PathHash::from_bytes([0; 20]), name).unwrap();
    let env = BTreeMap::from([
        ("builder", "/bin/sh"),
        ("doCheck", "1"),
        ("name", name),
        ("out", ""),
        ("outputs", "out"),
        ("stdenv", "/no/such/environment"),
        ("system", SYSTEM),
        ("version", "1.0"),
    ]);
    let bytes = |text: &str| text.as_bytes().to_vec().into();
    Derivation {
        outputs: vec![Output {
            name: "out".to_owned(),
            path: blank,
            hash_algorithm: String::new(),
            hash: String::new(),
        }],
        input_derivations: Vec::new(),
        input_sources: Vec::new(),
        system: SYSTEM.to_owned(),
        builder: b"/bin/sh".into(),
        arguments: vec![b"-c".into(), b"echo built > $out".into()],
        env: env.into_iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
    }
}

/// Writes the export stream of a whole graph.
pub(crate) fn export(shape: &Shape, mut to: impl Write) {
    Maker::default().make_all(shape, |_, made| {
        to.write_all(&entry_begin()).unwrap();
        to.write_all(&file_nar(&made.text)).unwrap();
        to.write_all(&entry_trailer(&made.path, &made.references, None)).unwrap();
    });
    to.write_all(&stream_end()).unwrap();
    to.flush().unwrap();
}
