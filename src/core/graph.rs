//! Derivations that open builds concern, and who waits for whom.
//!
//! Edges, readiness and `blocked` belong to derivations; builds hang on them. A node is in memory
//! while it has open builds or is an input of one that has. Inputs of a node are only known while
//! it has open builds: nobody needs them otherwise.
//!
//! A million of them are nothing unusual, so each takes about 240 bytes with ten inputs and ten
//! dependents: whatever has no fixed size lies in memory that all nodes share.

mod check;
mod load;
mod lose;
mod names;
mod node;
mod spread;
mod supply;

pub use load::LoadError;
pub use node::Node;

use super::{
    arena::{Arena, Ix},
    defect::{Defect, Planted},
    engine::Build,
    id::BuildId,
    lists::Lists,
    plan::{Class, ClassIx, Strategy},
    store_path::{PathHash, StoreDir, StorePath},
    table::Table,
    time::Timestamp,
};
use names::Names;
use node::Output;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
    pub class: Arc<Class>,
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

/// All derivations in memory.
#[derive(Debug, Clone)]
pub struct Graph {
    strategy: Strategy,
    planted: Planted,
    nodes: Arena<Node>,
    names: Names,
    edges: Lists<Ix<Node>>,
    builds: Lists<Ix<Build>>,
    outputs: Lists<Output>,
    by_path: Table,
    by_output: Table,
    /// Of those that have one and are not available; most never had one.
    last_ends: BTreeMap<Ix<Node>, LastEnd>,
    /// The store directory of each class.
    dirs: BTreeMap<ClassIx, StoreDir>,
    /// Nodes with the mark of the same name; and perhaps others, which have gone since.
    touched: Vec<Ix<Node>>,
    /// Nodes that are needed and missing, since somebody last asked.
    unsupplied: BTreeSet<Ix<Node>>,
    /// How many builds became blocked since somebody last asked.
    newly_blocked: usize,
}

impl Graph {
    /// Returns an empty graph.
    #[must_use]
    pub fn new(strategy: Strategy, planted: Planted) -> Self {
        Self {
            strategy,
            planted,
            nodes: Arena::default(),
            names: Names::default(),
            edges: Lists::default(),
            builds: Lists::default(),
            outputs: Lists::default(),
            by_path: Table::default(),
            by_output: Table::default(),
            last_ends: BTreeMap::new(),
            dirs: BTreeMap::new(),
            touched: Vec::new(),
            unsupplied: BTreeSet::new(),
            newly_blocked: 0,
        }
    }

    /// Returns how many builds became blocked since this was last asked.
    pub fn take_newly_blocked(&mut self) -> usize {
        std::mem::take(&mut self.newly_blocked)
    }

    /// Returns a node.
    #[must_use]
    pub fn node(&self, ix: Ix<Node>) -> &Node {
        &self.nodes[ix]
    }

    /// Returns the path of a derivation.
    ///
    /// # Panics
    /// Never: a name was checked when it came, and every class has a store directory.
    #[must_use]
    pub fn path(&self, ix: Ix<Node>) -> StorePath {
        let node = &self.nodes[ix];
        let name = self.names.get(node.name);
        self.dirs[&node.class].path(node.hash, name).expect("names are checked when they come")
    }

    /// Returns the open builds of a derivation.
    #[must_use]
    pub fn builds(&self, ix: Ix<Node>) -> &[Ix<Build>] {
        self.builds.get(&self.nodes[ix].builds)
    }

    /// Returns the input derivations of one with open builds; none while no build is open.
    #[must_use]
    pub fn inputs(&self, ix: Ix<Node>) -> &[Ix<Node>] {
        self.edges.get(&self.nodes[ix].inputs)
    }

    /// Returns the nodes with open builds that need a derivation; none once it is available.
    #[must_use]
    pub fn dependents(&self, ix: Ix<Node>) -> &[Ix<Node>] {
        self.edges.get(&self.nodes[ix].dependents)
    }

    /// Returns the node of a derivation, if it is in memory.
    #[must_use]
    pub fn find(&self, path: PathHash) -> Option<Ix<Node>> {
        let mut candidates = self.by_path.candidates(path.digest()).map(Ix::from_number);
        candidates.find(|ix| self.nodes[*ix].hash == path)
    }

    /// Returns all nodes.
    pub fn iter(&self) -> impl Iterator<Item = (Ix<Node>, &Node)> {
        self.nodes.iter()
    }

    /// Returns the derivations in memory that have this output.
    pub fn makers_of(&self, output: PathHash) -> impl Iterator<Item = Ix<Node>> {
        self.places_of(output).map(|place| self.outputs.at(place).node)
    }

    /// Returns where an output is among the outputs of all nodes.
    fn places_of(&self, output: PathHash) -> impl Iterator<Item = u32> {
        let places = self.by_output.candidates(output.digest()).map(|number| number - 1);
        places.filter(move |place| self.outputs.at(*place).path == output)
    }

    /// Returns the nodes whose readiness, priority or height changed since they were last
    /// returned: at most so many, in the order of their indices.
    pub fn take_touched(&mut self, max: usize) -> Vec<Ix<Node>> {
        if self.touched.len() > max {
            // What is left has been sorted then, which makes this quick the next time.
            self.touched.sort_unstable_by(|one, other| other.cmp(one));
        }
        let rest = self.touched.len().saturating_sub(max);
        let mut taken = self.touched.split_off(rest);
        taken.retain(|ix| match self.nodes.get(*ix) {
            Some(node) if node.touched => {
                self.nodes[*ix].touched = false;
                true
            }
            Some(_) | None => false,
        });
        taken.sort_unstable();
        taken
    }

    /// Tells whether [`Graph::take_touched`] has more to return.
    #[must_use]
    pub const fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Makes [`Graph::take_touched`] and [`Graph::take_unsupplied`] return everything.
    pub fn touch_all(&mut self) {
        for ix in self.nodes.indices() {
            self.touch(ix);
            self.unsupplied.insert(ix);
        }
    }

    /// Takes another strategy and recounts what every build waits for.
    pub fn set_strategy(&mut self, strategy: Strategy) {
        self.strategy = strategy;
        for ix in self.nodes.indices() {
            let inputs = self.inputs(ix).iter();
            let waiting = inputs.filter(|input| strategy.waits_for(self.nodes[**input].standing));
            let waiting = u32::try_from(waiting.count()).unwrap_or(u32::MAX);
            self.nodes[ix].waiting = waiting;
        }
    }

    /// Returns the node of a derivation, putting it in when it is new.
    pub fn meet(&mut self, facts: &Facts, class: ClassIx) -> Ix<Node> {
        let ix = self.expect(facts.path.hash());
        if self.nodes[ix].is_expected() {
            self.fill(ix, facts, class);
            self.nodes[ix].standing = self.stands(ix);
        }
        ix
    }

    /// Returns the node of a derivation, which is to be filled when it is new.
    pub(super) fn expect(&mut self, hash: PathHash) -> Ix<Node> {
        if let Some(ix) = self.find(hash) {
            return ix;
        }
        let ix = self.nodes.insert(Node::expected(hash));
        self.by_path.insert(ix.number(), |number| digest_of(&self.nodes, number));
        ix
    }

    /// Enters what is known of a derivation, except for how it stands.
    fn fill(&mut self, ix: Ix<Node>, facts: &Facts, class: ClassIx) {
        debug_assert_eq!(*facts.path.dir(), facts.class.store_dir, "a class is of one store");
        self.dirs.entry(class).or_insert_with(|| facts.class.store_dir.clone());
        let outputs: Vec<Output> = facts
            .outputs
            .iter()
            .map(|(path, held)| Output { path: *path, node: ix, held: *held })
            .collect();
        let outputs = self.outputs.list_of(&outputs);
        for place in outputs.places() {
            let path_at = |number: u32| self.outputs.at(number - 1).path.digest();
            self.by_output.insert(place + 1, path_at);
        }
        let name = self.names.add(facts.path.name());
        let node = &mut self.nodes[ix];
        (node.class, node.name, node.outputs) = (class, name, outputs);
        if let Some(end) = facts.last_end
            && self.unheld(ix) > 0
        {
            self.last_ends.insert(ix, end);
        }
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
        self.builds.push(&mut self.nodes[ix].builds, build);
        if first {
            let inputs: Vec<_> = inputs.collect();
            for input in &inputs {
                self.tie(ix, *input);
            }
            self.nodes[ix].inputs = self.edges.list_of(&inputs);
        }
        self.raise(ix, priority, self.nodes[ix].height);
        self.touch(ix);
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
        let place = self.builds(ix).iter().position(|other| *other == build);
        if let Some(place) = place {
            self.builds.swap_remove(&mut self.nodes[ix].builds, place);
        }
        if let Some(end) = end
            && self.unheld(ix) > 0
        {
            let last = self.last_ends.entry(ix).or_insert(end);
            *last = end.max(*last);
        }
        let mut unneeded = Vec::new();
        if self.nodes[ix].builds.is_empty() {
            let mut inputs = std::mem::take(&mut self.nodes[ix].inputs);
            let untied = self.edges.get(&inputs).to_vec();
            self.edges.drop_list(&mut inputs);
            self.nodes[ix].waiting = 0;
            self.nodes[ix].obstructed = 0;
            self.settle(ix);
            for input in untied {
                self.untie(ix, input);
                let freed = self.forget_if_unused(input);
                let forgets = self.planted.is(Defect::CancelForgetsWants);
                if !freed && (self.nodes[input].uses == 0 || forgets) {
                    unneeded.push(input);
                }
            }
            self.touch(ix);
            self.forget_if_unused(ix);
        } else {
            self.settle(ix);
        }
        unneeded
    }

    /// Tells whether the coordinator holds an output, as far as a derivation in memory has it.
    #[must_use]
    pub fn holds(&self, output: PathHash) -> bool {
        self.places_of(output).any(|place| self.outputs.at(place).held == Held::Yes)
    }

    /// Notes that the coordinator now holds an output.
    pub fn hold(&mut self, output: PathHash) {
        self.note(output, Held::Yes);
    }

    /// Tells whether an output is one of an input derivation of a node with open builds.
    #[must_use]
    pub fn needs(&self, ix: Ix<Node>, output: PathHash) -> bool {
        self.makers_of(output).any(|maker| self.inputs(ix).contains(&maker))
    }

    /// Notes that an agent could not find an output anywhere. Returns whether that is news: some
    /// derivation in memory makes it, and it is neither held nor known to be missing.
    pub fn miss(&mut self, output: PathHash) -> bool {
        self.note(output, Held::Missing)
    }

    /// Notes whether an output is held. Returns whether that is news.
    fn note(&mut self, output: PathHash, now: Held) -> bool {
        let mut news = false;
        let places: Vec<u32> = self.places_of(output).collect();
        for place in places {
            let one = self.outputs.at_mut(place);
            let maker = one.node;
            if one.held != Held::Yes && one.held != now {
                one.held = now;
                news = true;
            }
            self.settle(maker);
        }
        news
    }

    /// Takes something else for the last end of a derivation's builds, because one that was over is
    /// opened again. It shows once that is attached.
    pub fn correct_last_end(&mut self, ix: Ix<Node>, end: Option<LastEnd>) {
        match end.filter(|_| self.unheld(ix) > 0) {
            Some(end) => self.last_ends.insert(ix, end),
            None => self.last_ends.remove(&ix),
        };
    }

    /// Makes [`Graph::take_touched`] return a node.
    pub fn touch(&mut self, ix: Ix<Node>) {
        let node = &mut self.nodes[ix];
        if !node.touched {
            node.touched = true;
            self.touched.push(ix);
        }
    }

    /// Removes a node that neither has builds nor is needed. Returns whether it did.
    fn forget_if_unused(&mut self, ix: Ix<Node>) -> bool {
        let node = &self.nodes[ix];
        if node.uses > 0 || !node.builds.is_empty() {
            return false;
        }
        self.by_path.remove(ix.number(), |number| digest_of(&self.nodes, number));
        let mut node = self.nodes.remove(ix);
        for place in node.outputs.places() {
            let path_at = |number: u32| self.outputs.at(number - 1).path.digest();
            self.by_output.remove(place + 1, path_at);
        }
        self.outputs.drop_list(&mut node.outputs);
        self.edges.drop_list(&mut node.dependents);
        self.last_ends.remove(&ix);
        self.unsupplied.remove(&ix);
        self.names.forget(node.name);
        if self.names.are_sparse() {
            let names = self.nodes.values_mut().map(|node| &mut node.name);
            self.names.move_together(names);
        }
        true
    }
}

/// Returns what [`Table`] looks for a node by.
fn digest_of(nodes: &Arena<Node>, number: u32) -> u64 {
    nodes[Ix::from_number(number)].hash.digest()
}
