//! Which derivations are needed and missing, so that a build of each is of use.

use super::{Graph, Ix, Node, Standing};

impl Graph {
    /// Returns the nodes that became needed or missing since the last call, and are both. A build
    /// of each is of use to whoever needs it.
    pub fn take_unsupplied(&mut self) -> Vec<Ix<Node>> {
        let nodes = std::mem::take(&mut self.unsupplied);
        nodes.into_iter().filter(|ix| self.is_unsupplied(*ix)).collect()
    }

    /// Tells whether [`Graph::take_unsupplied`] may have something to return.
    #[must_use]
    pub fn has_unsupplied(&self) -> bool {
        !self.unsupplied.is_empty()
    }

    /// Makes [`Graph::take_unsupplied`] return a node while it is needed and missing.
    pub fn want_supply(&mut self, ix: Ix<Node>) {
        self.unsupplied.insert(ix);
    }

    /// Tells whether a node is needed and missing.
    #[must_use]
    pub fn is_unsupplied(&self, ix: Ix<Node>) -> bool {
        let node = &self.nodes[ix];
        node.standing == Standing::Missing && node.uses > 0
    }
}
