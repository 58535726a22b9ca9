//! The derivations of a stream: verified in any order, handed out inputs first.

use super::{IntakeError, Known};
use crate::{
    core::{
        change::DerivationRecord,
        derivation::{Derivation, DerivationError, verify_path},
        hash::Sha256,
        plan::Class,
        store_path::{PathHash, StorePath},
        time::Timestamp,
    },
    depot::Fault,
};
use bytes::Bytes;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// How many bytes of derivations may wait for derivations that they use. Streams come inputs
/// first, so that nothing waits; 256 MiB are 100,000 derivations of the usual size in any order.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The derivations of one stream.
pub(super) struct Derivations<'a> {
    known: &'a dyn Known,
    at: Timestamp,
    /// Those that can be built upon, with their hash modulo.
    modulos: HashMap<PathHash, Sha256>,
    named: Vec<StorePath>,
    named_set: HashSet<PathHash>,
    used: HashSet<PathHash>,
    sources: BTreeSet<StorePath>,
    new: u64,
    waiting: HashMap<StorePath, Waiting>,
    waiting_bytes: usize,
    /// For each derivation that has not come, those that wait for it.
    waited_for: HashMap<StorePath, Vec<StorePath>>,
}

/// A derivation that some input of has not come.
struct Waiting {
    text: Bytes,
    missing: usize,
}

/// What the derivations of a whole stream are to one another.
pub(super) struct Graph {
    pub(super) named: Vec<StorePath>,
    pub(super) roots: Vec<StorePath>,
    pub(super) new: u64,
    pub(super) sources_not_held: Vec<StorePath>,
}

impl<'a> Derivations<'a> {
    pub(super) fn new(known: &'a dyn Known, at: Timestamp) -> Self {
        Self {
            known,
            at,
            modulos: HashMap::new(),
            named: Vec::new(),
            named_set: HashSet::new(),
            used: HashSet::new(),
            sources: BTreeSet::new(),
            new: 0,
            waiting: HashMap::new(),
            waiting_bytes: 0,
            waited_for: HashMap::new(),
        }
    }

    /// Takes a derivation, and returns what is verified now: nothing, it, or it and others that
    /// waited for it.
    pub(super) fn admit(
        &mut self,
        path: &StorePath,
        text: Bytes,
    ) -> Result<Vec<Arc<DerivationRecord>>, IntakeError> {
        let refuse = |source| refused(path, source);
        // What is parsed borrows from the text, which is handed on meanwhile.
        let parsed = text.clone();
        let derivation = Derivation::parse(&parsed).map_err(refuse)?;
        verify_path(path, &text, &derivation).map_err(refuse)?;
        if !self.named_set.insert(path.hash()) {
            return Ok(Vec::new());
        }
        self.named.push(path.clone());
        self.uses_sources(&derivation.input_sources);
        let is_known = self.modulo(path)?.is_some();
        let mut missing = 0;
        for (input, _) in &derivation.input_derivations {
            self.used.insert(input.hash());
            // What is known was verified with its inputs, which need not come again.
            if !is_known && self.modulo(input)?.is_none() {
                self.waited_for.entry(input.clone()).or_default().push(path.clone());
                missing += 1;
            }
        }
        if is_known {
            return Ok(Vec::new());
        }
        if missing == 0 {
            let record = self.verify(path, text, &derivation).map_err(refuse)?;
            return self.verify_all(record);
        }
        self.waiting_bytes += text.len();
        if self.waiting_bytes > WAITING_BYTES_MAX {
            return Err(IntakeError::TooManyWaiting { max: WAITING_BYTES_MAX });
        }
        self.waiting.insert(path.clone(), Waiting { text, missing });
        Ok(Vec::new())
    }

    /// Notes paths that must be held, or be had by agents.
    pub(super) fn uses_sources<'p>(&mut self, paths: impl IntoIterator<Item = &'p StorePath>) {
        for path in paths {
            if !self.sources.contains(path) {
                self.sources.insert(path.clone());
            }
        }
    }

    /// Ends the stream; `nars` are those that it held.
    pub(super) fn finish(self, nars: &HashMap<StorePath, Sha256>) -> Result<Graph, IntakeError> {
        let absent = self.waited_for.iter().filter(|(path, _)| !self.waiting.contains_key(*path));
        if let Some((input, users)) = absent.min_by_key(|(path, _)| *path) {
            let user = users.first().unwrap_or(input).clone();
            return Err(IntakeError::MissingInput { input: input.clone(), user });
        }
        if let Some(path) = self.waiting.keys().min() {
            return Err(IntakeError::Cycle(path.clone()));
        }
        let mut sources_not_held = Vec::new();
        for path in &self.sources {
            let held = if path.is_derivation() {
                self.modulos.contains_key(&path.hash())
                    || self.known.modulo(path).map_err(Fault::Known)?.is_some()
            } else {
                nars.contains_key(path) || self.known.nar(path).map_err(Fault::Known)?.is_some()
            };
            if !held {
                sources_not_held.push(path.clone());
            }
        }
        let is_root = |path: &&StorePath| !self.used.contains(&path.hash());
        let roots = self.named.iter().filter(is_root).cloned().collect();
        Ok(Graph { roots, named: self.named, new: self.new, sources_not_held })
    }

    /// Enters a verified derivation, and then all that waited for it alone.
    fn verify_all(
        &mut self,
        first: DerivationRecord,
    ) -> Result<Vec<Arc<DerivationRecord>>, IntakeError> {
        let mut verified = Vec::new();
        let mut complete = vec![first];
        while let Some(record) = complete.pop() {
            let path = record.path.clone();
            self.modulos.insert(path.hash(), record.modulo);
            self.new += 1;
            verified.push(Arc::new(record));
            for user in self.waited_for.remove(&path).unwrap_or_default() {
                let Some(waiting) = self.waiting.get_mut(&user) else { continue };
                waiting.missing -= 1;
                if waiting.missing == 0
                    && let Some((user, waiting)) = self.waiting.remove_entry(&user)
                {
                    self.waiting_bytes -= waiting.text.len();
                    let text = waiting.text.clone();
                    let record = Derivation::parse(&text)
                        .and_then(|derivation| self.verify(&user, waiting.text, &derivation));
                    complete.push(record.map_err(|source| refused(&user, source))?);
                }
            }
        }
        Ok(verified)
    }

    /// Verifies the outputs of a derivation whose path is verified and whose inputs are there.
    fn verify(
        &self,
        path: &StorePath,
        text: Bytes,
        derivation: &Derivation<'_>,
    ) -> Result<DerivationRecord, DerivationError> {
        let mut modulo_of = |input: &StorePath| self.modulos.get(&input.hash()).copied();
        let name = path.name().strip_suffix(".drv").unwrap_or_default();
        derivation.verify_outputs(name, &mut modulo_of)?;
        Ok(DerivationRecord {
            path: path.clone(),
            class: class(derivation),
            inputs: derivation.input_derivations.iter().map(|(input, _)| input.hash()).collect(),
            outputs: derivation
                .outputs
                .iter()
                .map(|output| (output.name.clone(), output.path.clone()))
                .collect(),
            modulo: derivation.hash_modulo(&mut modulo_of)?,
            at: self.at,
            text,
        })
    }

    /// Returns the hash modulo of an input, from the stream or from what was known before.
    fn modulo(&mut self, path: &StorePath) -> Result<Option<Sha256>, IntakeError> {
        if let Some(modulo) = self.modulos.get(&path.hash()) {
            return Ok(Some(*modulo));
        }
        if self.waited_for.contains_key(path) {
            // It was asked for before, in vain.
            return Ok(None);
        }
        let modulo = self.known.modulo(path).map_err(Fault::Known)?;
        if let Some(modulo) = modulo {
            self.modulos.insert(path.hash(), modulo);
        }
        Ok(modulo)
    }
}

/// Returns the refusal of a derivation.
fn refused(path: &StorePath, source: DerivationError) -> IntakeError {
    IntakeError::Derivation { path: path.clone(), source: Box::new(source) }
}

/// Returns the class of agents that can build a derivation.
fn class(derivation: &Derivation<'_>) -> Class {
    let builtin = derivation.system == "builtin" || derivation.builder.starts_with(b"builtin:");
    Class {
        store_dir: derivation.store_dir().clone(),
        system: (!builtin).then(|| derivation.system.clone()),
        features: derivation.required_system_features(),
    }
}
