//! What an attempt needs: its derivation, the inputs that are held with all they refer to, and the
//! inputs that are not held.

use crate::{
    core::{
        derivation::Derivation,
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
    },
    store::{Reader, StoreError},
};
use std::collections::{BTreeMap, BTreeSet};

/// The most paths an attempt's inputs may have together with all they refer to.
pub const CLOSURE_PATHS_MAX: usize = 200_000;

/// What an attempt needs.
#[derive(Debug)]
pub struct InputsOf {
    /// The text of its derivation.
    pub text: Vec<u8>,
    /// The inputs that are held and all they refer to, references first.
    pub held: Vec<PathInfo>,
    /// The inputs, and references of inputs, that are not held.
    pub not_held: Vec<StorePath>,
}

/// Why it cannot be told what an attempt needs.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// The derivation is not in the database.
    #[error("the derivation {0} is not in the database")]
    Unknown(StorePath),
    /// The stored text cannot be read.
    #[error("the text of {path} cannot be read")]
    Text {
        /// The derivation.
        path: StorePath,
        /// What is wrong with it.
        #[source]
        source: Box<crate::core::derivation::DerivationError>,
    },
    /// There are too many.
    #[error("the inputs of {0} refer to more than {CLOSURE_PATHS_MAX} paths")]
    TooMany(StorePath),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns what an attempt at a derivation needs.
///
/// # Errors
/// [`InputsError`].
pub fn inputs_of(reader: &Reader, path: &StorePath) -> Result<InputsOf, InputsError> {
    let text =
        reader.derivation_text(path.hash())?.ok_or_else(|| InputsError::Unknown(path.clone()))?;
    let derivation = Derivation::parse(&text)
        .map_err(|source| InputsError::Text { path: path.clone(), source: Box::new(source) })?;
    let direct = direct_inputs(reader, &derivation)?;
    let (held, not_held) = closure(reader, path, direct)?;
    Ok(InputsOf { text, held, not_held })
}

/// Returns those of these paths, and of all they refer to, that are held, references first; and the
/// others.
///
/// # Errors
/// [`InputsError`].
pub(super) fn known_of(
    reader: &Reader,
    paths: Vec<StorePath>,
) -> Result<(Vec<PathInfo>, Vec<StorePath>), InputsError> {
    match paths.first().cloned() {
        Some(first) => closure(reader, &first, paths),
        None => Ok((Vec::new(), Vec::new())),
    }
}

/// Returns the sources and the outputs of input derivations that a derivation names.
///
/// # Errors
/// [`InputsError::Unknown`] when an input derivation is not known.
pub fn direct_inputs(
    reader: &Reader,
    derivation: &Derivation<'_>,
) -> Result<Vec<StorePath>, InputsError> {
    let mut inputs = derivation.input_sources.clone();
    for (input, names) in &derivation.input_derivations {
        let outputs = reader.outputs_of(input.hash())?;
        if outputs.is_empty() {
            return Err(InputsError::Unknown(input.clone()));
        }
        inputs.extend(
            outputs.into_iter().filter(|(name, _)| names.contains(name)).map(|(_, path)| path),
        );
    }
    Ok(inputs)
}

/// Where the walk through a path's references is.
enum Visit {
    Enter(StorePath),
    Leave(PathInfo),
}

/// Follows references, depth first, so that whatever is referred to comes first.
fn closure(
    reader: &Reader,
    path: &StorePath,
    roots: Vec<StorePath>,
) -> Result<(Vec<PathInfo>, Vec<StorePath>), InputsError> {
    let mut seen: BTreeSet<PathHash> = BTreeSet::new();
    let mut held = Vec::new();
    let mut not_held: BTreeMap<PathHash, StorePath> = BTreeMap::new();
    let mut pending: Vec<Visit> = roots.into_iter().rev().map(Visit::Enter).collect();
    while let Some(visit) = pending.pop() {
        match visit {
            Visit::Leave(info) => held.push(info),
            Visit::Enter(next) if !seen.insert(next.hash()) => {}
            Visit::Enter(next) => match reader.nar(next.hash())? {
                None => {
                    not_held.insert(next.hash(), next);
                }
                Some(nar) => {
                    let references = nar.info.references.clone();
                    pending.push(Visit::Leave(nar.info));
                    pending.extend(references.into_iter().rev().map(Visit::Enter));
                }
            },
        }
        if seen.len() > CLOSURE_PATHS_MAX {
            return Err(InputsError::TooMany(path.clone()));
        }
    }
    Ok((held, not_held.into_values().collect()))
}
