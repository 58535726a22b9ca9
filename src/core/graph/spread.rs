//! What one derivation's standing, priority and height mean for others.

use super::{Build, Graph, Ix, Node, Standing};
use crate::core::defect::Defect;
use std::collections::{BTreeMap, BTreeSet};

impl Graph {
    /// Records that `ix` needs `input`.
    pub(super) fn tie(&mut self, ix: Ix<Node>, input: Ix<Node>) {
        let standing = self.nodes[input].standing;
        self.nodes[input].uses += 1;
        if standing == Standing::Available {
            return;
        }
        self.edges.push(&mut self.nodes[input].dependents, ix);
        let height = self.nodes[ix].height + 1;
        self.raise(input, self.nodes[ix].priority, height);
        let strategy = self.strategy;
        let node = &mut self.nodes[ix];
        node.waiting += u32::from(strategy.waits_for(standing));
        node.obstructed += u32::from(standing.obstructs());
        if standing == Standing::Missing {
            self.want_supply(input);
        }
    }

    /// Undoes [`Graph::tie`], except for the counters of `ix`, which has no builds any more.
    pub(super) fn untie(&mut self, ix: Ix<Node>, input: Ix<Node>) {
        self.nodes[input].uses -= 1;
        // Available inputs have no list: this only costs where a build ended before its inputs.
        if let Some(place) = self.dependents(input).iter().position(|other| *other == ix) {
            self.edges.swap_remove(&mut self.nodes[input].dependents, place);
        }
    }

    /// Tells dependents, and theirs in turn, how a node stands now.
    pub(super) fn settle(&mut self, start: Ix<Node>) {
        let mut pending = vec![start];
        while let Some(ix) = pending.pop() {
            let (before, now) = (self.nodes[ix].standing, self.stands(ix));
            if before == now {
                continue;
            }
            self.nodes[ix].standing = now;
            if now == Standing::Missing {
                self.want_supply(ix);
            }
            if now == Standing::Blocked {
                self.newly_blocked += self.builds(ix).len();
            }
            for place in self.nodes[ix].dependents.places() {
                let dependent = self.edges.at(place);
                let strategy = self.strategy;
                let node = &mut self.nodes[dependent];
                if !self.planted.is(Defect::CounterForgotten) {
                    node.waiting -= u32::from(strategy.waits_for(before));
                }
                node.waiting += u32::from(strategy.waits_for(now));
                if !self.planted.is(Defect::BlockedForGood) {
                    node.obstructed -= u32::from(before.obstructs());
                }
                node.obstructed += u32::from(now.obstructs());
                self.touch(dependent);
                pending.push(dependent);
            }
            if now == Standing::Available {
                self.edges.drop_list(&mut self.nodes[ix].dependents);
                self.last_ends.remove(&ix);
            }
        }
    }

    /// Raises the derived priority and the height of a node, and of all that it needs.
    ///
    /// An input was always higher than its dependents, so the heights from before are an order in
    /// which each node has heard of all its dependents before its turn comes, and has just one.
    pub(super) fn raise(&mut self, start: Ix<Node>, priority: i32, height: u32) {
        let node = &self.nodes[start];
        if node.priority >= priority && node.height >= height {
            return;
        }
        let mut pending = BTreeMap::from([((node.height, start), (priority, height))]);
        while let Some(((_, ix), (priority, height))) = pending.pop_first() {
            let node = &mut self.nodes[ix];
            if node.priority >= priority && node.height >= height {
                continue;
            }
            node.priority = node.priority.max(priority);
            node.height = node.height.max(height);
            let (priority, height) = (node.priority, node.height + 1);
            self.touch(ix);
            for input in self.edges.get(&self.nodes[ix].inputs) {
                let node = &self.nodes[*input];
                let is_high = node.priority >= priority && node.height >= height;
                if !is_high && node.standing != Standing::Available {
                    let raised = pending.entry((node.height, *input)).or_insert((priority, height));
                    *raised = (raised.0.max(priority), raised.1.max(height));
                }
            }
        }
    }

    /// Works out anew the priority of a node, one of whose builds has another one now, and of all
    /// that it needs and that follow from it. `own` returns the priority of a build itself.
    pub fn reprioritize(&mut self, start: Ix<Node>, own: impl Fn(Ix<Build>) -> i32) {
        let mut pending = BTreeSet::from([(self.nodes[start].height, start)]);
        // As in `raise`, whoever needs something comes before it.
        while let Some((_, ix)) = pending.pop_first() {
            let builds = self.builds(ix).iter().map(|build| own(*build));
            let dependents = self.dependents(ix).iter().map(|other| self.nodes[*other].priority);
            let priority = builds.chain(dependents).max().unwrap_or(i32::MIN);
            if self.nodes[ix].priority == priority && ix != start {
                continue;
            }
            self.nodes[ix].priority = priority;
            self.touch(ix);
            for input in self.inputs(ix) {
                let node = &self.nodes[*input];
                if node.standing != Standing::Available {
                    pending.insert((node.height, *input));
                }
            }
        }
    }
}
