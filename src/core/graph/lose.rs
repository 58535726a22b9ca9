//! What follows when something is not held any more.

use super::{Graph, Held, LastEnd, Standing};
use crate::core::store_path::PathHash;

impl Graph {
    /// Notes that an output that was held is missing. `last_ends` are those of the derivations in
    /// memory that make it: of what was available, none is kept.
    ///
    /// Looks at every edge when something needs the output, so it is for accidents only.
    pub fn lose(&mut self, output: PathHash, last_ends: &[(PathHash, LastEnd)]) {
        let places: Vec<u32> = self.places_of(output).collect();
        for place in places {
            let one = self.outputs.at_mut(place);
            let maker = one.node;
            if one.held != Held::Yes {
                continue;
            }
            one.held = Held::Missing;
            let hash = self.nodes[maker].hash;
            if let Some((_, end)) = last_ends.iter().find(|(of, _)| *of == hash) {
                self.last_ends.insert(maker, *end);
            }
            if self.nodes[maker].standing == Standing::Available {
                self.tie_again(maker);
            }
            self.settle(maker);
        }
    }

    /// Enters those that need a node where they wait for it, which they did not as long as it was
    /// available. Nothing that is available is counted, so their counters are right.
    fn tie_again(&mut self, input: super::Ix<super::Node>) {
        let needing: Vec<_> = self
            .iter()
            .filter(|(ix, _)| self.inputs(*ix).contains(&input))
            .map(|(ix, node)| (ix, node.priority, node.height + 1))
            .collect();
        for (ix, priority, height) in needing {
            self.edges.push(&mut self.nodes[input].dependents, ix);
            self.raise(input, priority, height);
        }
    }
}
