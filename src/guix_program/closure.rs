//! The input closure of a derivation: what of it is sent, in what order, and how it is packed.

use super::{farm::FarmError, settings::Settings};
use crate::{
    builders::{Builder as _, guix::Guix, tree},
    core::{
        derivation::Derivation,
        store_path::{StoreDir, StorePath},
    },
    formats::export::{entry_begin, entry_trailer, stream_end},
    telemetry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io::Write,
    path::Path,
};

/// What is said of a path behind its nar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Facts {
    references: Vec<StorePath>,
    deriver: Option<StorePath>,
}

/// Whether what was built on this machine is sent, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outputs {
    /// The farm believes this machine, so that it need not build them again.
    Sent,
    /// The farm has, substitutes or builds them.
    Left,
}

/// Returns those paths of the closure that may be sent.
pub(super) fn sendable(
    closure: &[StorePath],
    outputs: Outputs,
) -> Result<Vec<StorePath>, FarmError> {
    if outputs == Outputs::Sent {
        return Ok(closure.to_vec());
    }
    let mut made = BTreeSet::new();
    for path in closure.iter().filter(|path| path.is_derivation()) {
        made.extend(derivation(path)?.outputs.into_iter().map(|output| output.path));
    }
    Ok(closure.iter().filter(|path| !made.contains(path)).cloned().collect())
}

/// Writes the export stream of `paths`, what is referred to first.
pub(super) fn export(
    settings: &Settings,
    paths: &[StorePath],
    sink: &mut impl Write,
) -> Result<(), FarmError> {
    let facts = facts(settings, paths)?;
    for path in in_order(&facts) {
        let Some(Facts { references, deriver }) = facts.get(&path) else { continue };
        sink.write_all(&entry_begin()).map_err(|error| input(&error))?;
        tree::dump(Path::new(&path.to_string()), sink).map_err(|error| input(&error))?;
        let trailer = entry_trailer(&path, references, deriver.as_ref());
        sink.write_all(&trailer).map_err(|error| input(&error))?;
    }
    sink.write_all(&stream_end()).and_then(|()| sink.flush()).map_err(|error| input(&error))
}

/// Finds out what is to be said of paths: of derivations they tell it themselves, of others the
/// daemon knows it.
fn facts(
    settings: &Settings,
    paths: &[StorePath],
) -> Result<BTreeMap<StorePath, Facts>, FarmError> {
    let mut daemon: Option<Guix> = None;
    let mut facts = BTreeMap::new();
    for path in paths {
        let found = if path.is_derivation() {
            Facts { references: derivation(path)?.closure_references(), deriver: None }
        } else {
            let opened = match daemon.take() {
                Some(opened) => opened,
                None => Guix::connect(&settings.daemon_socket, StoreDir::guix())
                    .map_err(|error| input(&error))?,
            };
            let info = daemon.insert(opened).path_info(path).map_err(|error| input(&error))?;
            let gone = || FarmError::Input(format!("{path} is not in the store any more"));
            let info = info.ok_or_else(gone)?;
            Facts { references: info.references, deriver: info.deriver }
        };
        facts.insert(path.clone(), found);
    }
    Ok(facts)
}

/// Returns the paths so that each comes behind those of them that it refers to.
fn in_order(facts: &BTreeMap<StorePath, Facts>) -> Vec<StorePath> {
    let mut order = Vec::with_capacity(facts.len());
    let mut begun: BTreeSet<&StorePath> = BTreeSet::new();
    for root in facts.keys() {
        // A path stands on the stack with those of its references that are still to be looked at.
        let mut open: Vec<(&StorePath, std::slice::Iter<'_, StorePath>)> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(path) = next.take()
                && let Some((path, facts)) = facts.get_key_value(path)
                && begun.insert(path)
            {
                open.push((path, facts.references.iter()));
            }
            let Some((path, references)) = open.last_mut() else { break };
            next = references.next();
            if next.is_none() {
                order.push((*path).clone());
                open.pop();
            }
        }
    }
    order
}

/// Reads a derivation of the store.
fn derivation(path: &StorePath) -> Result<Derivation<'static>, FarmError> {
    let text = fs_err::read(path.to_string()).map_err(|error| input(&error))?;
    let parsed = Derivation::parse(&text);
    Ok(parsed.map_err(|error| FarmError::Input(format!("{path}: {error}")))?.into_owned())
}

/// Says why something of this machine cannot be sent.
fn input(error: &(dyn Error + 'static)) -> FarmError {
    FarmError::Input(telemetry::chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::store_path::PathHash;

    fn path(number: u8) -> StorePath {
        StoreDir::guix().path(PathHash::from_bytes([number; 20]), "x").unwrap()
    }

    #[test]
    fn what_is_referred_to_comes_first_and_everything_once() {
        let refers = [(1, vec![3, 1, 2]), (2, vec![3, 9]), (3, vec![4]), (4, vec![]), (5, vec![1])];
        let facts: BTreeMap<StorePath, Facts> = refers
            .iter()
            .map(|(of, to)| {
                let references = to.iter().map(|number| path(*number)).collect();
                (path(*of), Facts { references, deriver: None })
            })
            .collect();
        let order = in_order(&facts);
        assert_eq!(order.iter().collect::<BTreeSet<_>>(), facts.keys().collect());
        assert_eq!(order.len(), facts.len());
        let place = |number| order.iter().position(|one| *one == path(number)).unwrap();
        for (of, to) in &refers {
            // What is not sent is there already.
            for reference in to.iter().filter(|number| **number != *of && **number != 9) {
                assert!(place(*reference) < place(*of), "{reference} before {of}");
            }
        }
    }
}
