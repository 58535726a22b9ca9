//! The graph that everybody gets: layers, each node of which needs some of the layer below.

use crate::random::Random;
use std::ops::Range;

/// How many layers there are, and so how long the longest chain is.
const DEPTH: usize = 100;
const SEED: u64 = 20;

/// Which nodes need which, by number; whoever is needed has the smaller number.
#[derive(Debug)]
pub(crate) struct Shape {
    count: usize,
    /// How many nodes a layer has.
    width: usize,
    /// How many inputs each has that is not in the first layer.
    each: usize,
    /// The inputs of all nodes behind the first layer.
    edges: Vec<u32>,
}

impl Shape {
    /// Returns a graph of `count` nodes with `each` inputs per node, always the same one.
    pub(crate) fn new(count: usize, each: usize) -> Self {
        let width = (count / DEPTH).max(each).max(1);
        let mut random = Random::new(SEED);
        let mut edges: Vec<u32> = Vec::with_capacity(count * each);
        for node in width..count {
            let below = (node / width - 1) * width;
            let begun = edges.len();
            while edges.len() < begun + each {
                let pick = u32::try_from(below as u64 + random.below(width as u64)).unwrap();
                if !edges[begun..].contains(&pick) {
                    edges.push(pick);
                }
            }
        }
        Self { count, width, each, edges }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) const fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// Returns what a node needs.
    pub(crate) fn inputs(&self, node: usize) -> &[u32] {
        let Some(place) = node.checked_sub(self.width) else { return &[] };
        &self.edges[place * self.each..][..self.each]
    }

    /// Returns how long the longest chain of dependents may be.
    pub(crate) const fn height(&self, node: usize) -> usize {
        (self.count - 1) / self.width - node / self.width
    }

    /// Returns the nodes that nobody needs, or of which that may be: the last layer.
    pub(crate) const fn top(&self) -> Range<usize> {
        self.count - self.width..self.count
    }
}
