//! Everything that is counted, counted again.

use super::{Graph, Ix, Node, Standing};
use std::collections::{BTreeMap, BTreeSet};

/// How many dependents are searched for each of them. A hub may have fifty thousand.
const SEARCHED_MAX: usize = 64;

impl Graph {
    /// Recounts everything from the edges and returns what does not agree.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let mut uses: BTreeMap<Ix<Node>, u32> = BTreeMap::new();
        let mut of_hubs: BTreeSet<(Ix<Node>, Ix<Node>)> = BTreeSet::new();
        let is_hub = |ix: Ix<Node>| self.dependents(ix).len() > SEARCHED_MAX;
        for (ix, _) in self.iter().filter(|(ix, _)| is_hub(*ix)) {
            of_hubs.extend(self.dependents(ix).iter().map(|dependent| (ix, *dependent)));
        }
        let is_listed = |input: Ix<Node>, ix: Ix<Node>| {
            if is_hub(input) {
                of_hubs.contains(&(input, ix))
            } else {
                self.dependents(input).contains(&ix)
            }
        };
        for (ix, node) in self.iter() {
            let (mut waiting, mut obstructed) = (0, 0);
            for input in self.inputs(ix) {
                *uses.entry(*input).or_default() += 1;
                let standing = self.nodes[*input].standing;
                waiting += u32::from(self.strategy.waits_for(standing));
                obstructed += u32::from(standing.obstructs());
                if is_listed(*input, ix) == (standing == Standing::Available) {
                    findings.push(format!("{}: its input's list is wrong about it", self.path(ix)));
                }
            }
            if (waiting, obstructed) != (node.waiting, node.obstructed) {
                findings.push(format!(
                    "{}: waits for {waiting} ({obstructed} obstructed), counted as {} ({})",
                    self.path(ix),
                    node.waiting,
                    node.obstructed
                ));
            }
            if node.standing != self.stands(ix) {
                findings.push(format!("{}: its standing is out of date", self.path(ix)));
            }
            if node.builds.is_empty() && !node.inputs.is_empty() {
                findings.push(format!("{}: has inputs but no open build", self.path(ix)));
            }
        }
        for (ix, node) in self.iter() {
            let counted = uses.get(&ix).copied().unwrap_or(0);
            if counted != node.uses || (counted == 0 && node.builds.is_empty()) {
                let path = self.path(ix);
                findings.push(format!("{path}: used {counted} times, noted {}", node.uses));
            }
            if self.find(node.hash) != Some(ix) {
                findings.push(format!("{}: is not found by its path", self.path(ix)));
            }
            let outputs = self.outputs.get(&node.outputs);
            if !outputs.iter().all(|one| self.makers_of(one.path).any(|maker| maker == ix)) {
                findings.push(format!("{}: is not found by its outputs", self.path(ix)));
            }
        }
        findings
    }
}
