//! Derivations with right paths, and export streams of them.

use std::collections::{BTreeMap, HashMap};
use steading::{
    core::{
        content::source_path,
        derivation::{Derivation, Output, derivation_path},
        hash::Sha256,
        store_path::{PathHash, StoreDir, StorePath},
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
    /// The first output.
    pub(crate) out: StorePath,
    outputs: Vec<Output>,
    modulo: Sha256,
}

impl Drv {
    /// Returns the path of the output with this name.
    pub(crate) fn output(&self, name: &str) -> &StorePath {
        &self.outputs.iter().find(|output| output.name == name).unwrap().path
    }

    /// Returns how many outputs there are.
    pub(crate) fn output_count(&self) -> usize {
        self.outputs.len()
    }
}

/// What a derivation is made of.
pub(crate) struct Recipe<'a> {
    pub(crate) store_dir: &'a StoreDir,
    pub(crate) name: &'a str,
    /// Run by `/bin/sh`, with the path of each output in the variable of its name.
    pub(crate) script: &'a str,
    pub(crate) outputs: &'a [&'a str],
    /// Derivations, and the output of each that is used.
    pub(crate) inputs: &'a [(&'a Drv, &'a str)],
    pub(crate) sources: &'a [&'a StorePath],
}

/// Makes a derivation for `x86_64-linux`.
pub(crate) fn derive(recipe: &Recipe<'_>) -> Drv {
    let Recipe { store_dir, name, script, outputs, inputs, sources } = *recipe;
    let blank = store_dir.path(PathHash::from_bytes([0; 20]), name).unwrap();
    let mut input_derivations: BTreeMap<&StorePath, Vec<String>> = BTreeMap::new();
    for (input, output) in inputs {
        input_derivations.entry(&input.path).or_default().push((*output).to_owned());
    }
    let mut derivation = Derivation {
        outputs: outputs
            .iter()
            .map(|output| Output {
                name: (*output).to_owned(),
                path: blank.clone(),
                hash_algorithm: String::new(),
                hash: String::new(),
            })
            .collect(),
        input_derivations: input_derivations
            .into_iter()
            .map(|(path, names)| (path.clone(), names))
            .collect(),
        input_sources: sources.iter().map(|&source| source.clone()).collect(),
        system: "x86_64-linux".to_owned(),
        builder: b"/bin/sh".into(),
        arguments: vec![b"-c".into(), script.as_bytes().to_vec().into()],
        env: outputs.iter().map(|output| (output.as_bytes().to_vec().into(), b"".into())).collect(),
    };
    derivation.input_derivations.sort_by_key(|(path, _)| path.to_string());
    derivation.input_sources.sort_by_key(ToString::to_string);
    let modulos: HashMap<&StorePath, Sha256> =
        inputs.iter().map(|(input, _)| (&input.path, input.modulo)).collect();
    let mut modulo_of = |path: &StorePath| modulos.get(path).copied();
    derivation.compute_outputs(name, &mut modulo_of).unwrap();
    let text = derivation.to_bytes();
    let references = derivation.closure_references();
    let path = derivation_path(store_dir, &format!("{name}.drv"), &text, &references).unwrap();
    let modulo = derivation.hash_modulo(&mut modulo_of).unwrap();
    let outputs = derivation.outputs;
    Drv { path, text, out: outputs[0].path.clone(), outputs, modulo }
}

/// Makes a derivation in `/nix/store` with one output.
pub(crate) fn drv(name: &str, script: &str, inputs: &[&Drv], sources: &[&StorePath]) -> Drv {
    drv_in(&StoreDir::nix(), name, script, inputs, sources)
}

/// Makes a derivation with the output `out` in this store directory.
pub(crate) fn drv_in(
    store_dir: &StoreDir,
    name: &str,
    script: &str,
    inputs: &[&Drv],
    sources: &[&StorePath],
) -> Drv {
    let inputs: Vec<(&Drv, &str)> = inputs.iter().map(|&input| (input, "out")).collect();
    derive(&Recipe { store_dir, name, script, outputs: &["out"], inputs: &inputs, sources })
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
