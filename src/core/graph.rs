//! Derivations that open builds concern, and who waits for whom.
//!
//! Edges, readiness and `blocked` belong to derivations; builds hang on them. A node is in memory
//! while it has open builds or is an input of one that has. Inputs of a node are only known while
//! it has open builds: nobody needs them otherwise.

use super::{
    arena::{Arena, Ix},
    defect::{Defect, Planted},
    engine::Build,
    id::BuildId,
    plan::{ClassIx, Strategy},
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// How a derivation stands, as those see it that need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// The coordinator holds a verified nar of every output.
    Available,
    /// It has an open build that can come to an end.
    Pending,
    /// It has an open build, but one of its own inputs failed.
    Blocked,
    /// Its last build failed and none is open.
    Failed,
    /// An agent reported its outputs missing and none of its builds is open.
    Missing,
    /// Nothing is known of it: no output here, no build.
    Absent,
}

impl Standing {
    /// Tells whether a build that needs it cannot do without an end of something else.
    #[must_use]
    pub const fn obstructs(self) -> bool {
        matches!(self, Self::Blocked | Self::Failed)
    }

    /// Returns the word that `why` prints.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Pending => "to be built",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Missing => "missing",
            Self::Absent => "not held, and no build for it",
        }
    }
}

/// What the graph must be told of a derivation when it first meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The derivation.
    pub path: StorePath,
    /// The class of agents that can build it.
    pub class: super::plan::Class,
    /// Its outputs, and whether the coordinator holds each.
    pub outputs: Vec<(PathHash, Held)>,
    /// Its input derivations.
    pub inputs: Vec<PathHash>,
    /// The last end of its builds; absent when none succeeded or failed.
    pub last_end: Option<LastEnd>,
}

/// Whether the coordinator holds a verified nar of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// It does not, and an agent reported that nobody else does.
    Missing,
}

/// An end that tells something of the derivation; to be canceled tells nothing.
///
/// The last one is the greatest: the latest by the wall clock and, within a millisecond, that of
/// the build with the greatest id. The database orders them so as well, and it must not matter
/// which of the two is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LastEnd {
    /// When.
    pub at: Timestamp,
    /// Of which build.
    pub build: BuildId,
    /// How.
    pub result: EndResult,
}

/// How a build ended, as its derivation remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndResult {
    /// It succeeded.
    Succeeded,
    /// It failed.
    Failed,
}

/// One derivation.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its path.
    pub path: StorePath,
    /// The class of agents that can build it.
    pub class: ClassIx,
    /// Open builds of it.
    pub builds: Vec<Ix<Build>>,
    /// Input derivations; empty while no build is open.
    pub inputs: Vec<Ix<Node>>,
    /// Nodes with open builds that need this one; empty once it is available.
    pub dependents: Vec<Ix<Node>>,
    /// How it stands, as its dependents were last told.
    pub standing: Standing,
    /// How many inputs a build must still wait for, under the current strategy.
    pub waiting: u32,
    /// How many inputs obstruct: failed or blocked.
    pub obstructed: u32,
    /// The length of the longest chain of dependents.
    pub height: u32,
    /// The highest priority of its own builds and of anything that needs it.
    pub priority: i32,
    outputs: Box<[(PathHash, Held)]>,
    /// How many outputs are not held.
    unheld: u32,
    /// How many of these were reported missing.
    missing: u32,
    /// How many nodes with open builds have it as an input.
    uses: u32,
    /// Boxed, for most that are in memory never had one.
    last_end: Option<Box<LastEnd>>,
}

impl Node {
    /// Tells whether a queued build of it may start.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.waiting == 0 && self.obstructed == 0
    }

    /// Works out how it stands.
    fn stands(&self) -> Standing {
        match () {
            () if self.unheld == 0 => Standing::Available,
            () if !self.builds.is_empty() && self.obstructed > 0 => Standing::Blocked,
            () if !self.builds.is_empty() => Standing::Pending,
            () if self.failed() => Standing::Failed,
            () if self.missing > 0 => Standing::Missing,
            () => Standing::Absent,
        }
    }

    fn failed(&self) -> bool {
        self.last_end.as_ref().is_some_and(|end| end.result == EndResult::Failed)
    }

    /// Notes whether an output is held. Returns whether that is news.
    fn note(&mut self, output: PathHash, now: Held) -> bool {
        let mut news = false;
        for (_, held) in self.outputs.iter_mut().filter(|(path, _)| *path == output) {
            if *held != Held::Yes && *held != now {
                *held = now;
                news = true;
            }
        }
        self.count_outputs();
        news
    }

    fn count_outputs(&mut self) {
        (self.unheld, self.missing) = (0, 0);
        for (_, held) in &self.outputs {
            self.unheld += u32::from(*held != Held::Yes);
            self.missing += u32::from(*held == Held::Missing);
        }
    }
}

/// All derivations in memory.
#[derive(Debug, Clone)]
pub struct Graph {
    strategy: Strategy,
    planted: Planted,
    nodes: Arena<Node>,
    by_path: BTreeMap<PathHash, Ix<Node>>,
    by_output: BTreeMap<PathHash, Vec<Ix<Node>>>,
    touched: BTreeSet<Ix<Node>>,
}

impl Graph {
    /// Returns an empty graph.
    #[must_use]
    pub fn new(strategy: Strategy, planted: Planted) -> Self {
        Self {
            strategy,
            planted,
            nodes: Arena::default(),
            by_path: BTreeMap::new(),
            by_output: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, ix: Ix<Node>) -> &Node {
        &self.nodes[ix]
    }

    /// Returns the node of a derivation, if it is in memory.
    #[must_use]
    pub fn find(&self, path: PathHash) -> Option<Ix<Node>> {
        self.by_path.get(&path).copied()
    }

    /// Returns all nodes.
    pub fn iter(&self) -> impl Iterator<Item = (Ix<Node>, &Node)> {
        self.nodes.iter()
    }

    /// Returns the derivations in memory that have this output.
    #[must_use]
    pub fn makers_of(&self, output: PathHash) -> &[Ix<Node>] {
        self.by_output.get(&output).map_or(&[], Vec::as_slice)
    }

    /// Returns the nodes whose readiness, priority or height changed since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<Ix<Node>> {
        std::mem::take(&mut self.touched)
    }

    /// Returns the node of a derivation, putting it in when it is new.
    pub fn meet(&mut self, facts: &Facts, class: ClassIx) -> Ix<Node> {
        if let Some(ix) = self.find(facts.path.hash()) {
            return ix;
        }
        let mut node = Node {
            path: facts.path.clone(),
            class,
            builds: Vec::new(),
            inputs: Vec::new(),
            dependents: Vec::new(),
            standing: Standing::Absent,
            waiting: 0,
            obstructed: 0,
            height: 0,
            priority: i32::MIN,
            outputs: facts.outputs.clone().into_boxed_slice(),
            unheld: 0,
            missing: 0,
            uses: 0,
            last_end: facts.last_end.map(Box::new),
        };
        node.count_outputs();
        node.standing = node.stands();
        let ix = self.nodes.insert(node);
        self.by_path.insert(facts.path.hash(), ix);
        for (output, _) in &facts.outputs {
            self.by_output.entry(*output).or_default().push(ix);
        }
        ix
    }

    /// Hangs an open build on a derivation. The first one ties it to its inputs, which must all
    /// have been met.
    pub fn attach(
        &mut self,
        ix: Ix<Node>,
        build: Ix<Build>,
        priority: i32,
        inputs: impl Iterator<Item = Ix<Node>>,
    ) {
        let first = self.nodes[ix].builds.is_empty();
        self.nodes[ix].builds.push(build);
        if first {
            let inputs: Vec<_> = inputs.collect();
            for input in &inputs {
                self.tie(ix, *input);
            }
            self.nodes[ix].inputs = inputs;
        }
        self.raise(ix, priority, self.nodes[ix].height);
        self.touched.insert(ix);
        self.settle(ix);
    }

    /// Takes an ended build off its derivation. The last one unties it from its inputs. `end` is
    /// absent when it was canceled: what was known before still holds. Returns the inputs that
    /// nobody with an open build needs any more but that have open builds.
    pub fn detach(
        &mut self,
        ix: Ix<Node>,
        build: Ix<Build>,
        end: Option<LastEnd>,
    ) -> Vec<Ix<Node>> {
        let node = &mut self.nodes[ix];
        node.builds.retain(|other| *other != build);
        if end > node.last_end.as_deref().copied() {
            node.last_end = end.map(Box::new);
        }
        let mut unneeded = Vec::new();
        if self.nodes[ix].builds.is_empty() {
            let inputs = std::mem::take(&mut self.nodes[ix].inputs);
            self.nodes[ix].waiting = 0;
            self.nodes[ix].obstructed = 0;
            self.settle(ix);
            for input in inputs {
                self.untie(ix, input);
                let freed = self.forget_if_unused(input);
                let forgets = self.planted.is(Defect::CancelForgetsWants);
                if !freed && (self.nodes[input].uses == 0 || forgets) {
                    unneeded.push(input);
                }
            }
            self.touched.insert(ix);
            self.forget_if_unused(ix);
        } else {
            self.settle(ix);
        }
        unneeded
    }

    /// Tells whether the coordinator holds an output, as far as a derivation in memory has it.
    #[must_use]
    pub fn holds(&self, output: PathHash) -> bool {
        self.makers_of(output).iter().any(|ix| {
            self.nodes[*ix].outputs.iter().any(|(path, held)| *path == output && *held == Held::Yes)
        })
    }

    /// Notes that the coordinator now holds an output.
    pub fn hold(&mut self, output: PathHash) {
        for ix in self.by_output.get(&output).cloned().unwrap_or_default() {
            self.nodes[ix].note(output, Held::Yes);
            self.settle(ix);
        }
    }

    /// Tells whether an output is one of an input derivation of a node with open builds.
    #[must_use]
    pub fn needs(&self, ix: Ix<Node>, output: PathHash) -> bool {
        let makers = self.by_output.get(&output).map_or(&[][..], Vec::as_slice);
        makers.iter().any(|maker| self.nodes[ix].inputs.contains(maker))
    }

    /// Notes that an agent could not find an output anywhere. Returns whether that is news: some
    /// derivation in memory makes it, and it is neither held nor known to be missing.
    pub fn miss(&mut self, output: PathHash) -> bool {
        let mut news = false;
        for ix in self.by_output.get(&output).cloned().unwrap_or_default() {
            news |= self.nodes[ix].note(output, Held::Missing);
            self.settle(ix);
        }
        news
    }

    /// Makes [`Graph::take_touched`] return a node.
    pub fn touch(&mut self, ix: Ix<Node>) {
        self.touched.insert(ix);
    }

    /// Records that `ix` needs `input`.
    fn tie(&mut self, ix: Ix<Node>, input: Ix<Node>) {
        let standing = self.nodes[input].standing;
        self.nodes[input].uses += 1;
        if standing == Standing::Available {
            return;
        }
        self.nodes[input].dependents.push(ix);
        let height = self.nodes[ix].height + 1;
        self.raise(input, self.nodes[ix].priority, height);
        let strategy = self.strategy;
        let node = &mut self.nodes[ix];
        node.waiting += u32::from(strategy.waits_for(standing));
        node.obstructed += u32::from(standing.obstructs());
    }

    /// Undoes [`Graph::tie`], except for the counters of `ix`, which has no builds any more.
    fn untie(&mut self, ix: Ix<Node>, input: Ix<Node>) {
        let input = &mut self.nodes[input];
        input.uses -= 1;
        // Available inputs have no list: this only costs where a build ended before its inputs.
        if let Some(place) = input.dependents.iter().position(|other| *other == ix) {
            input.dependents.swap_remove(place);
        }
    }

    /// Removes a node that neither has builds nor is needed. Returns whether it did.
    fn forget_if_unused(&mut self, ix: Ix<Node>) -> bool {
        let node = &self.nodes[ix];
        if node.uses > 0 || !node.builds.is_empty() {
            return false;
        }
        let node = self.nodes.remove(ix);
        self.touched.remove(&ix);
        self.by_path.remove(&node.path.hash());
        for (output, _) in &node.outputs {
            if let Some(makers) = self.by_output.get_mut(output) {
                makers.retain(|other| *other != ix);
                if makers.is_empty() {
                    self.by_output.remove(output);
                }
            }
        }
        true
    }

    /// Tells dependents, and theirs in turn, how a node stands now.
    fn settle(&mut self, start: Ix<Node>) {
        let mut pending = vec![start];
        while let Some(ix) = pending.pop() {
            let (before, now) = (self.nodes[ix].standing, self.nodes[ix].stands());
            if before == now {
                continue;
            }
            self.nodes[ix].standing = now;
            let dependents = match now {
                Standing::Available => std::mem::take(&mut self.nodes[ix].dependents),
                Standing::Pending
                | Standing::Blocked
                | Standing::Failed
                | Standing::Missing
                | Standing::Absent => self.nodes[ix].dependents.clone(),
            };
            for dependent in dependents {
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
                self.touched.insert(dependent);
                pending.push(dependent);
            }
        }
    }

    /// Raises the derived priority and the height of a node, and of all that it needs.
    ///
    /// An input was always higher than its dependents, so the heights from before are an order in
    /// which each node has heard of all its dependents before its turn comes, and has just one.
    fn raise(&mut self, start: Ix<Node>, priority: i32, height: u32) {
        let mut pending = BTreeMap::from([((self.nodes[start].height, start), (priority, height))]);
        while let Some(((_, ix), (priority, height))) = pending.pop_first() {
            let node = &mut self.nodes[ix];
            if node.priority >= priority && node.height >= height {
                continue;
            }
            node.priority = node.priority.max(priority);
            node.height = node.height.max(height);
            let (priority, height) = (node.priority, node.height + 1);
            self.touched.insert(ix);
            for input in &self.nodes[ix].inputs {
                let node = &self.nodes[*input];
                let is_high = node.priority >= priority && node.height >= height;
                if !is_high && node.standing != Standing::Available {
                    let raised = pending.entry((node.height, *input)).or_insert((priority, height));
                    *raised = (raised.0.max(priority), raised.1.max(height));
                }
            }
        }
    }

    /// Recounts everything from the edges and returns what does not agree.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let mut uses: BTreeMap<Ix<Node>, u32> = BTreeMap::new();
        for (ix, node) in self.iter() {
            let (mut waiting, mut obstructed) = (0, 0);
            for input in &node.inputs {
                *uses.entry(*input).or_default() += 1;
                let standing = self.nodes[*input].standing;
                waiting += u32::from(self.strategy.waits_for(standing));
                obstructed += u32::from(standing.obstructs());
                let listed = self.nodes[*input].dependents.contains(&ix);
                if listed == (standing == Standing::Available) {
                    findings.push(format!("{}: its input's list is wrong about it", node.path));
                }
            }
            if (waiting, obstructed) != (node.waiting, node.obstructed) {
                findings.push(format!(
                    "{}: waits for {waiting} ({obstructed} obstructed), counted as {} ({})",
                    node.path, node.waiting, node.obstructed
                ));
            }
            if node.standing != node.stands() {
                findings.push(format!("{}: its standing is out of date", node.path));
            }
            if node.builds.is_empty() && !node.inputs.is_empty() {
                findings.push(format!("{}: has inputs but no open build", node.path));
            }
        }
        for (ix, node) in self.iter() {
            let counted = uses.get(&ix).copied().unwrap_or(0);
            if counted != node.uses || (counted == 0 && node.builds.is_empty()) {
                findings.push(format!("{}: used {counted} times, noted {}", node.path, node.uses));
            }
        }
        findings
    }
}
