//! Paths that were committed while somebody else was sending the same path.
//!
//! What an attempt is to send is planned from what is held then. Two attempts can be told to send
//! the same path, and the second one to be done must not be taken for agreed: its nar is compared
//! with this.

use super::Engine;
use crate::core::{
    build::BuildState, change::NarRecord, defect::Defect, hash::Sha256, store_path::PathHash,
};
use std::collections::BTreeMap;

/// The hashes of nars that were committed meanwhile. Nearly always empty, and never longer than
/// what attempts are sending.
#[derive(Debug, Clone, Default)]
pub(super) struct Contested(BTreeMap<PathHash, Sha256>);

impl Engine {
    /// Takes a nar as held from now on, under a path that may have been held before.
    pub(super) fn hold(&mut self, nar: &NarRecord) {
        let path = nar.info.path.hash();
        if !self.graph.holds(path) && self.is_being_sent(path) {
            self.contested.0.insert(path, nar.info.nar_hash);
        }
        self.graph.hold(path);
    }

    /// Tells whether another nar was committed under the path of this one while it was being sent.
    pub(super) fn differs(&self, nar: &NarRecord) -> bool {
        let committed = self.contested.0.get(&nar.info.path.hash());
        let unnoticed = self.settings.planted.is(Defect::ContestUnnoticed);
        committed.is_some_and(|hash| *hash != nar.info.nar_hash) && !unnoticed
    }

    /// Forgets what nobody is sending any more.
    pub(super) fn forget_contested(&mut self) {
        if self.contested.0.is_empty() {
            return;
        }
        let mut contested = std::mem::take(&mut self.contested.0);
        contested.retain(|path, _| self.is_being_sent(*path));
        self.contested.0 = contested;
    }

    fn is_being_sent(&self, path: PathHash) -> bool {
        let mut builds = self.graph.makers_of(path).flat_map(|maker| self.graph.builds(maker));
        builds.any(|ix| matches!(*self.builds[*ix].state, BuildState::Receiving(_)))
    }
}
