//! Many derivations at once, as after a start.
//!
//! They may come in any order: how each stands, and what that means for others, is worked out when
//! all are there.

use super::{Build, Facts, Graph, Ix, Node, Standing};
use crate::core::{plan::ClassIx, store_path::PathHash};

/// What is wrong with derivations that were loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// A build or a derivation needs this one, which did not come.
    Missing(PathHash),
    /// Derivations need each other; this is one of them.
    Cycle(PathHash),
}

impl Graph {
    /// Hangs an open build on a derivation, which may come later.
    pub fn load_build(&mut self, ix: Ix<Node>, build: Ix<Build>) {
        self.builds.push(&mut self.nodes[ix].builds, build);
    }

    /// Tells whether a derivation is needed that did not come yet.
    #[must_use]
    pub fn lacks(&self, derivation: PathHash) -> bool {
        self.find(derivation).is_some_and(|ix| self.nodes[ix].is_expected())
    }

    /// Returns the derivations that are needed and did not come yet.
    #[must_use]
    pub fn lacking(&self) -> Vec<PathHash> {
        let expected = self.iter().filter(|(_, node)| node.is_expected());
        expected.map(|(_, node)| node.hash).collect()
    }

    /// Enters a derivation that is needed. All its builds must have come.
    pub fn load(&mut self, facts: &Facts, class: ClassIx) {
        let ix = self.expect(facts.path.hash());
        if !self.nodes[ix].is_expected() {
            return;
        }
        self.fill(ix, facts, class);
        if self.nodes[ix].builds.is_empty() {
            return;
        }
        let mut inputs = Vec::with_capacity(facts.inputs.len());
        for input in &facts.inputs {
            let input = self.expect(*input);
            self.nodes[input].uses += 1;
            inputs.push(input);
        }
        self.nodes[ix].inputs = self.edges.list_of(&inputs);
    }

    /// Works out all that follows from what was loaded. `priority_of` returns the priority of a
    /// build.
    ///
    /// # Errors
    /// [`LoadError`] when the derivations do not fit together.
    pub fn finish_load(&mut self, priority_of: impl Fn(Ix<Build>) -> i32) -> Result<(), LoadError> {
        if let Some(missing) = self.lacking().first() {
            return Err(LoadError::Missing(*missing));
        }
        let order = self.dependents_first()?;
        for ix in order.iter().rev() {
            self.load_standing(*ix);
        }
        for ix in order {
            let own = self.builds(ix).iter().map(|build| priority_of(*build)).max();
            let node = &mut self.nodes[ix];
            node.priority = own.map_or(node.priority, |own| own.max(node.priority));
            let (priority, height) = (node.priority, node.height + 1);
            for place in self.nodes[ix].inputs.places() {
                let input = &mut self.nodes[self.edges.at(place)];
                if input.standing != Standing::Available {
                    input.priority = input.priority.max(priority);
                    input.height = input.height.max(height);
                }
            }
            if !self.nodes[ix].builds.is_empty() {
                self.touch(ix);
            }
        }
        Ok(())
    }

    /// Returns all nodes, each behind all that need it.
    fn dependents_first(&mut self) -> Result<Vec<Ix<Node>>, LoadError> {
        // How many of those that need it have not had their turn.
        let mut order: Vec<Ix<Node>> =
            self.iter().filter(|(_, node)| node.uses == 0).map(|(ix, _)| ix).collect();
        let mut next = 0;
        while let Some(ix) = order.get(next).copied() {
            next += 1;
            for place in self.nodes[ix].inputs.places() {
                let input = self.edges.at(place);
                let node = &mut self.nodes[input];
                // Heights are worked out later; until then they count turns.
                node.height += 1;
                if node.height == node.uses {
                    order.push(input);
                }
            }
        }
        if order.len() < self.nodes.len() {
            let left = self.iter().find(|(_, node)| node.height < node.uses);
            let (_, node) = left.expect("whoever had no turn has dependents without turn");
            return Err(LoadError::Cycle(node.hash));
        }
        for node in self.nodes.values_mut() {
            node.height = 0;
        }
        Ok(order)
    }

    /// Works out how a node stands whose inputs are worked out, and enters it where it waits.
    fn load_standing(&mut self, ix: Ix<Node>) {
        let (mut waiting, mut obstructed) = (0, 0);
        for place in self.nodes[ix].inputs.places() {
            let input = self.edges.at(place);
            let standing = self.nodes[input].standing;
            waiting += u32::from(self.strategy.waits_for(standing));
            obstructed += u32::from(standing.obstructs());
            if standing != Standing::Available {
                self.edges.push(&mut self.nodes[input].dependents, ix);
            }
        }
        let node = &mut self.nodes[ix];
        (node.waiting, node.obstructed) = (waiting, obstructed);
        self.nodes[ix].standing = self.stands(ix);
        if self.is_unsupplied(ix) {
            self.want_supply(ix);
        }
    }
}
