//! What is kept of one derivation.

use super::{Graph, Held, Ix, Standing, names::Named};
use crate::core::{engine::Build, lists::List, plan::ClassIx, store_path::PathHash};

/// One derivation. Its lists are asked for from the [`Graph`].
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) hash: PathHash,
    /// How it stands, as its dependents were last told.
    pub standing: Standing,
    /// Whether its readiness, priority or height changed and nobody was told.
    pub(super) touched: bool,
    /// The class of agents that can build it.
    pub class: ClassIx,
    pub(super) name: Named,
    /// Open builds of it.
    pub(super) builds: List<Ix<Build>>,
    /// Input derivations; empty while no build is open.
    pub(super) inputs: List<Ix<Self>>,
    /// Nodes with open builds that need this one; empty once it is available.
    pub(super) dependents: List<Ix<Self>>,
    pub(super) outputs: List<Output>,
    /// How many inputs a build must still wait for, under the current strategy.
    pub waiting: u32,
    /// How many inputs obstruct: failed or blocked.
    pub obstructed: u32,
    /// The length of the longest chain of dependents.
    pub height: u32,
    /// The highest priority of its own builds and of anything that needs it.
    pub priority: i32,
    /// How many nodes with open builds have it as an input.
    pub(super) uses: u32,
}

/// An output of a derivation in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) path: PathHash,
    pub(super) node: Ix<Node>,
    pub(super) held: Held,
}

impl Node {
    /// Returns a node of which nothing is known but that it is needed.
    pub(super) fn expected(hash: PathHash) -> Self {
        Self {
            hash,
            standing: Standing::Absent,
            touched: false,
            class: ClassIx::default(),
            name: Named::default(),
            builds: List::default(),
            inputs: List::default(),
            dependents: List::default(),
            outputs: List::default(),
            waiting: 0,
            obstructed: 0,
            height: 0,
            priority: i32::MIN,
            uses: 0,
        }
    }

    /// Tells whether nothing is known of it but that it is needed.
    pub(super) const fn is_expected(&self) -> bool {
        self.name.is_empty()
    }

    /// Returns the hash of its path.
    #[must_use]
    pub const fn hash(&self) -> PathHash {
        self.hash
    }

    /// Tells whether a queued build of it may start.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.waiting == 0 && self.obstructed == 0
    }

    /// Tells whether a derivation with open builds has it as an input.
    #[must_use]
    pub const fn is_used(&self) -> bool {
        self.uses > 0
    }

    /// Tells whether its readiness, priority or height changed, and [`Graph::take_touched`] did
    /// not yet return it.
    #[must_use]
    pub const fn is_touched(&self) -> bool {
        self.touched
    }
}

impl Graph {
    /// Works out how a derivation stands.
    pub(super) fn stands(&self, ix: Ix<Node>) -> Standing {
        let node = &self.nodes[ix];
        let outputs = self.outputs.get(&node.outputs);
        match () {
            () if outputs.iter().all(|one| one.held == Held::Yes) => Standing::Available,
            () if !node.builds.is_empty() && node.obstructed > 0 => Standing::Blocked,
            () if !node.builds.is_empty() => Standing::Pending,
            () if self.failed(ix) => Standing::Failed,
            () if outputs.iter().any(|one| one.held == Held::Missing) => Standing::Missing,
            () => Standing::Absent,
        }
    }

    /// Returns how many outputs are not held.
    pub(super) fn unheld(&self, ix: Ix<Node>) -> usize {
        let outputs = self.outputs.get(&self.nodes[ix].outputs);
        outputs.iter().filter(|one| one.held != Held::Yes).count()
    }

    fn failed(&self, ix: Ix<Node>) -> bool {
        self.last_ends.get(&ix).is_some_and(|end| end.result == super::EndResult::Failed)
    }
}
