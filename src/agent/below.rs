//! What a builder needs that builds by path: all derivations below the one that is to be built, and
//! the sources that they name.
//!
//! A store that has a derivation has everything below it, so the graph is followed, level by level,
//! only to where the store begins to know it. What the daemon takes on nobody's word needs no
//! signature: the path of a derivation follows from its text.

use super::{
    Equipment,
    blocking::on_thread,
    bulk::BulkError,
    prepare::{Inputs, Obstacle},
};
use crate::{
    builders::{self, Builder, BuilderError},
    core::{
        derivation::{DRV_BYTES_MAX, Derivation, DerivationError, verify_path},
        outcome::SetupFailure,
        store_path::StorePath,
    },
    protocol::bulk::{BulkFromAgent, BulkToAgent, PATHS_PER_PAGE},
    telemetry,
};
use std::collections::{BTreeMap, BTreeSet};

/// How long all texts may be together that one attempt fetches, in bytes. All derivations of a
/// distribution have some 400 MB.
const TEXTS_BYTES_MAX: usize = 1 << 30;

/// Derivations that the store lacks, inputs first.
#[derive(Debug, Default)]
pub(super) struct Below(Vec<Lacking>);

/// A derivation that the store lacks.
#[derive(Debug)]
struct Lacking {
    path: StorePath,
    text: Vec<u8>,
    /// The paths that it refers to, sorted.
    references: Vec<StorePath>,
}

impl Lacking {
    /// Reads a derivation, and proves that it is the one that was asked for.
    fn read(path: StorePath, text: Vec<u8>) -> Result<Self, Obstacle> {
        let wrong = |error: DerivationError| {
            let reason = telemetry::chain(&error);
            refused(format!("the coordinator sent another derivation as {path}: {reason}"))
        };
        let derivation = Derivation::parse(&text).map_err(wrong)?;
        verify_path(&path, &text, &derivation).map_err(wrong)?;
        let references = derivation.closure_references();
        Ok(Self { path, text, references })
    }

    fn derivations(&self) -> impl Iterator<Item = &StorePath> {
        self.references.iter().filter(|path| path.is_derivation())
    }

    fn sources(&self) -> impl Iterator<Item = &StorePath> {
        self.references.iter().filter(|path| !path.is_derivation())
    }
}

fn refused(reason: String) -> Obstacle {
    Obstacle::Setup(SetupFailure::Refused(reason))
}

/// Returns the derivations right below the one with this text.
pub(super) fn direct(text: &[u8]) -> Result<Vec<StorePath>, Obstacle> {
    let derivation = Derivation::parse(text).map_err(|error| refused(telemetry::chain(&error)))?;
    let references = derivation.closure_references().into_iter();
    Ok(references.filter(StorePath::is_derivation).collect())
}

/// Fetches what the store lacks of these derivations and of all below them, and returns it with what
/// is known of the sources that are lacking, too. What the store has is rooted.
pub(super) async fn gather(
    equipment: &Equipment,
    mut builder: Box<dyn Builder>,
    derivations: &[StorePath],
) -> Result<(Box<dyn Builder>, Below, Inputs), Obstacle> {
    let mut lacking: BTreeMap<StorePath, Lacking> = BTreeMap::new();
    let mut looked_at: BTreeSet<StorePath> = derivations.iter().cloned().collect();
    let mut level = derivations.to_vec();
    let mut bytes: usize = 0;
    while !level.is_empty() {
        let absent;
        (builder, absent) = absent_of(builder, level).await?;
        let mut next = Vec::new();
        for page in absent.chunks(PATHS_PER_PAGE) {
            for (path, text) in page.iter().zip(texts(equipment, page).await?) {
                bytes = bytes.saturating_add(text.len());
                if bytes > TEXTS_BYTES_MAX {
                    return Err(refused("the derivations below are too many".to_owned()));
                }
                let read = Lacking::read(path.clone(), text)?;
                next.extend(
                    read.derivations().filter(|path| looked_at.insert((*path).clone())).cloned(),
                );
                lacking.insert(path.clone(), read);
            }
        }
        level = next;
    }
    let sources: BTreeSet<&StorePath> = lacking.values().flat_map(Lacking::sources).collect();
    let sources = sources.into_iter().cloned().collect();
    let absent;
    (builder, absent) = absent_of(builder, sources).await?;
    let mut inputs = Inputs::default();
    for page in absent.chunks(PATHS_PER_PAGE) {
        ask_about(equipment, page, &mut inputs).await?;
    }
    Ok((builder, Below(inputs_first(lacking)), inputs))
}

impl Below {
    /// Puts the derivations into the store, whose sources are there.
    pub(super) async fn import(
        self,
        mut builder: Box<dyn Builder>,
    ) -> Result<Box<dyn Builder>, Obstacle> {
        if self.0.is_empty() {
            return Ok(builder);
        }
        let import = move || -> Result<Box<dyn Builder>, BuilderError> {
            for lacking in self.0 {
                let Lacking { path, text, references } = lacking;
                let (info, nar) = builders::derivation_nar(&path, &text, references)?;
                builder.import(&info, &mut nar.as_slice())?;
            }
            Ok(builder)
        };
        let imported = on_thread(import).await?;
        imported.map_err(|error| Obstacle::Setup(error.setup_failure()))
    }
}

/// Roots paths, and returns those that are not valid.
async fn absent_of(
    mut builder: Box<dyn Builder>,
    paths: Vec<StorePath>,
) -> Result<(Box<dyn Builder>, Vec<StorePath>), Obstacle> {
    if paths.is_empty() {
        return Ok((builder, paths));
    }
    let look = move || -> Result<_, BuilderError> {
        // Roots first: what is found valid afterwards stays so.
        builder.root(&paths)?;
        let valid = builder.valid(&paths)?;
        let absent = paths.into_iter().filter(|path| !valid.contains(path)).collect();
        Ok((builder, absent))
    };
    on_thread(look).await?.map_err(|error| Obstacle::Setup(error.setup_failure()))
}

/// Asks for the texts of derivations; returns them in the same order.
async fn texts(equipment: &Equipment, paths: &[StorePath]) -> Result<Vec<Vec<u8>>, Obstacle> {
    let mut exchange = equipment.pool.exchange().await?;
    exchange.send(&BulkFromAgent::Texts { paths: paths.to_vec() }).await?;
    let mut texts = Vec::with_capacity(paths.len());
    let mut text: Vec<u8> = Vec::new();
    while texts.len() < paths.len() {
        match exchange.receive().await? {
            BulkToAgent::Derivation { bytes } => {
                text.extend_from_slice(&bytes);
                if text.len() > DRV_BYTES_MAX {
                    return Err(BulkError::OutOfTurn("a derivation is too long").into());
                }
            }
            BulkToAgent::End {} => texts.push(std::mem::take(&mut text)),
            BulkToAgent::Refused { code, reason } => return Err((code, reason).into()),
            _ => return Err(BulkError::OutOfTurn("texts of derivations were expected").into()),
        }
    }
    exchange.finish();
    Ok(texts)
}

/// Asks what is known of paths, and adds it to `inputs`.
async fn ask_about(
    equipment: &Equipment,
    paths: &[StorePath],
    inputs: &mut Inputs,
) -> Result<(), Obstacle> {
    let known: BTreeSet<StorePath> = inputs.paths().cloned().collect();
    let mut exchange = equipment.pool.exchange().await?;
    exchange.send(&BulkFromAgent::About { paths: paths.to_vec() }).await?;
    loop {
        match exchange.receive().await? {
            BulkToAgent::Inputs { mut held, mut not_held } => {
                // Answers may have references in common.
                held.retain(|info| !known.contains(&info.path));
                not_held.retain(|path| !known.contains(path));
                inputs.extend(held, not_held)?;
            }
            BulkToAgent::End {} => break,
            BulkToAgent::Refused { code, reason } => return Err((code, reason).into()),
            _ => return Err(BulkError::OutOfTurn("an answer to ‘about’ was expected").into()),
        }
    }
    exchange.finish();
    Ok(())
}

/// Where the walk through derivations is.
enum Visit {
    Enter(StorePath),
    Leave(Lacking),
}

/// Returns derivations in an order in which each comes behind those that it uses.
fn inputs_first(mut lacking: BTreeMap<StorePath, Lacking>) -> Vec<Lacking> {
    let mut ordered = Vec::with_capacity(lacking.len());
    let mut pending: Vec<Visit> = lacking.keys().cloned().map(Visit::Enter).collect();
    while let Some(visit) = pending.pop() {
        match visit {
            Visit::Leave(done) => ordered.push(done),
            Visit::Enter(path) => {
                // What is not there was visited before, or is in the store.
                let Some(entered) = lacking.remove(&path) else { continue };
                let below: Vec<StorePath> = entered.derivations().cloned().collect();
                pending.push(Visit::Leave(entered));
                pending.extend(below.into_iter().map(Visit::Enter));
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::store_path::{PathHash, StoreDir};
    use proptest::prelude::*;

    fn path(number: u8) -> StorePath {
        StoreDir::guix().path(PathHash::from_bytes([number; 20]), "x.drv").unwrap()
    }

    proptest! {
        #[test]
        fn a_derivation_comes_behind_all_that_it_uses(
            edges in proptest::collection::vec((0..30u8, 0..30u8), 0..120)
        ) {
            let mut lacking: BTreeMap<StorePath, Lacking> = BTreeMap::new();
            for (a, b) in edges {
                // Numbers fall along every edge, so that there is no circle.
                let (user, input) = (a.max(b), a.min(b));
                for number in [user, input] {
                    lacking.entry(path(number)).or_insert_with(|| Lacking {
                        path: path(number), text: Vec::new(), references: Vec::new(),
                    });
                }
                if user != input {
                    lacking.get_mut(&path(user)).unwrap().references.push(path(input));
                }
            }
            let count = lacking.len();
            let mut seen = BTreeSet::new();
            for next in inputs_first(lacking) {
                prop_assert!(next.derivations().all(|input| seen.contains(input)));
                prop_assert!(seen.insert(next.path));
            }
            prop_assert_eq!(seen.len(), count);
        }
    }

    #[test]
    fn a_text_under_another_path_is_refused() {
        let error = Lacking::read(path(1), b"Derive()".to_vec()).unwrap_err();
        assert!(matches!(error, Obstacle::Setup(SetupFailure::Refused(_))));
    }
}
