//! The rules once more, as simply as they can be said: everything is worked out anew from the rows
//! of the database, and nothing is remembered from one step to the next.
//!
//! It shares no code with the graph and the ready sets. What it finds is compared with what the
//! engine keeps in memory, after every step of every story and history.

use crate::core::{
    agent::SENDING_MAX,
    build::{BuildState, ShownState},
    engine::{Engine, OpenBuild, Saved, SavedAgent, Settings},
    graph::{EndResult, Facts, Held},
    id::{BuildId, Name},
    plan::{Strategy, Usage},
    store_path::PathHash,
    time::Timestamp,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

/// What the world knows besides the rows.
pub(super) struct Around<'a> {
    pub(super) settings: &'a Settings,
    /// How many builds each connected agent wants at a time.
    pub(super) wants: BTreeMap<Name, u32>,
    pub(super) is_intake_closed: bool,
    pub(super) now: Timestamp,
}

/// The rows, and what was worked out from them.
pub(super) struct Naive<'a> {
    around: &'a Around<'a>,
    saved: &'a Saved,
    facts: BTreeMap<PathHash, &'a Facts>,
    /// Open builds by derivation.
    open: BTreeMap<PathHash, Vec<&'a OpenBuild>>,
    /// Derivations with open builds, by input.
    dependents: BTreeMap<PathHash, BTreeSet<PathHash>>,
    obstructs: RefCell<BTreeMap<PathHash, bool>>,
    places: RefCell<BTreeMap<PathHash, (i32, u32)>>,
}

impl<'a> Naive<'a> {
    pub(super) fn new(around: &'a Around<'a>, saved: &'a Saved) -> Self {
        let facts: BTreeMap<PathHash, &Facts> =
            saved.facts.iter().map(|facts| (facts.path.hash(), facts)).collect();
        let mut open: BTreeMap<PathHash, Vec<&OpenBuild>> = BTreeMap::new();
        let mut dependents: BTreeMap<PathHash, BTreeSet<PathHash>> = BTreeMap::new();
        for build in &saved.builds {
            open.entry(build.derivation).or_default().push(build);
            for input in &facts[&build.derivation].inputs {
                dependents.entry(*input).or_default().insert(build.derivation);
            }
        }
        let (obstructs, places) = (RefCell::default(), RefCell::default());
        Self { around, saved, facts, open, dependents, obstructs, places }
    }

    fn is_available(&self, path: PathHash) -> bool {
        self.facts[&path].outputs.iter().all(|(_, held)| *held == Held::Yes)
    }

    fn is_missing(&self, path: PathHash) -> bool {
        self.facts[&path].outputs.iter().any(|(_, held)| *held == Held::Missing)
    }

    /// Tells whether nothing that needs a derivation can be built until somebody does something.
    fn obstructs(&self, path: PathHash) -> bool {
        if let Some(known) = self.obstructs.borrow().get(&path) {
            return *known;
        }
        let failed =
            |facts: &Facts| facts.last_end.is_some_and(|end| end.result == EndResult::Failed);
        let obstructs = !self.is_available(path)
            && match self.open.get(&path) {
                Some(_) => self.is_blocked(path),
                None => failed(self.facts[&path]),
            };
        self.obstructs.borrow_mut().insert(path, obstructs);
        obstructs
    }

    fn is_blocked(&self, path: PathHash) -> bool {
        self.facts[&path].inputs.iter().any(|input| self.obstructs(*input))
    }

    /// Tells whether a build of a derivation must wait for one of its inputs.
    fn waits(&self, path: PathHash) -> bool {
        self.facts[&path].inputs.iter().any(|input| match self.around.settings.strategy {
            Strategy::DerivationOrdered => !self.is_available(*input),
            Strategy::Basic => {
                let comes = self.open.contains_key(input) || self.is_missing(*input);
                !self.is_available(*input) && (comes || self.obstructs(*input))
            }
        })
    }

    /// Returns how an open build must be shown.
    pub(super) fn shown(&self, build: &OpenBuild) -> ShownState {
        match build.state {
            BuildState::Queued if self.is_blocked(build.derivation) => ShownState::Blocked,
            BuildState::Queued | BuildState::Deferred { .. } if build.extras.hold.is_some() => {
                ShownState::Held
            }
            BuildState::Deferred { .. } => ShownState::Deferred,
            BuildState::Queued if self.waits(build.derivation) => ShownState::Waiting,
            BuildState::Queued => ShownState::Ready,
            BuildState::Allocated(_) => ShownState::Allocated,
            BuildState::Building(_) => ShownState::Building,
            BuildState::Receiving(_) => ShownState::Receiving,
            BuildState::Succeeded { .. } | BuildState::Failed { .. } | BuildState::Canceled => {
                panic!("a build that is over is among the open ones")
            }
        }
    }

    /// Returns the highest priority of a derivation's builds and of all that need it, and the
    /// longest chain of what needs it.
    pub(super) fn place(&self, path: PathHash) -> (i32, u32) {
        if let Some(known) = self.places.borrow().get(&path) {
            return *known;
        }
        let own = self.open.get(&path).into_iter().flatten().map(|build| build.priority);
        let mut place = (own.max().unwrap_or(i32::MIN), 0);
        if !self.is_available(path) {
            for dependent in self.dependents.get(&path).into_iter().flatten() {
                let (priority, height) = self.place(*dependent);
                place = (place.0.max(priority), place.1.max(height + 1));
            }
        }
        self.places.borrow_mut().insert(path, place);
        place
    }

    /// Returns the open builds that wait for nothing but an agent.
    fn ready(&self) -> impl Iterator<Item = &OpenBuild> {
        self.saved.builds.iter().filter(|build| self.shown(build) == ShownState::Ready)
    }

    fn agent(&self, name: &Name) -> &SavedAgent {
        self.saved.agents.iter().find(|agent| agent.name == *name).expect("agents are noted")
    }

    /// Tells whether an agent is able to build something, whatever it does just now.
    fn is_able(&self, agent: &SavedAgent, build: &OpenBuild) -> bool {
        let (class, abilities) = (&self.facts[&build.derivation].class, &agent.abilities);
        let systems = abilities.systems.iter().chain(&abilities.emulated_systems);
        class.store_dir == abilities.store_dir
            && class.system.as_ref().is_none_or(|system| systems.clone().any(|it| it == system))
            && class.features.iter().all(|feature| abilities.features.contains(feature))
            && Self::may_ever_have(agent, build, class.system.as_ref())
    }

    /// Tells whether a build asks for such an agent.
    fn may_ever_have(agent: &SavedAgent, build: &OpenBuild, system: Option<&String>) -> bool {
        let (asks, abilities) = (&build.extras.demands, &agent.abilities);
        let is_native = system.is_none_or(|system| abilities.systems.contains(system));
        (asks.agents.is_empty() || asks.agents.contains(&agent.name))
            && !asks.not_agents.contains(&agent.name)
            && asks.tags.iter().all(|(tag, value)| abilities.tags.get(tag) == Some(value))
            && (is_native || !asks.native_only)
    }

    /// Tells whether an agent gets builds at all.
    fn takes_builds(&self, agent: &SavedAgent) -> bool {
        let wants = self.around.wants.get(&agent.name).copied().unwrap_or(0);
        wants > 0 && agent.suspension.is_none()
    }

    /// Tells whether an agent may be given a build once it has a free slot.
    fn may_take(&self, agent: &SavedAgent, build: &OpenBuild) -> bool {
        let others = || {
            self.saved.agents.iter().any(|other| {
                other.name != agent.name && self.takes_builds(other) && self.is_able(other, build)
            })
        };
        self.takes_builds(agent)
            && self.is_able(agent, build)
            && (build.avoid.as_ref() != Some(&agent.name) || !others())
    }

    fn has_free_slot(&self, agent: &SavedAgent) -> bool {
        let wants = self.around.wants.get(&agent.name).copied().unwrap_or(0) as usize;
        let (mut running, mut sending) = (0, 0);
        for build in &self.saved.builds {
            match &build.state {
                BuildState::Receiving(lease) if lease.agent == agent.name => sending += 1,
                state => {
                    running += usize::from(state.lease().is_some_and(|l| l.agent == agent.name));
                }
            }
        }
        self.takes_builds(agent) && running < wants && sending < SENDING_MAX.max(wants)
    }

    /// Returns who could have a build and has none.
    fn idle(&self) -> Vec<String> {
        if self.around.is_intake_closed {
            return Vec::new();
        }
        let mut idle = Vec::new();
        for agent in self.saved.agents.iter().filter(|agent| self.has_free_slot(agent)) {
            for build in self.ready().filter(|build| self.may_take(agent, build)) {
                idle.push(format!("{} has a free slot and could take {}", agent.name, build.id));
            }
        }
        idle
    }

    /// Returns which builds wait for inputs that are missing and that nobody builds.
    pub(super) fn unsupplied(&self) -> Vec<String> {
        let mut unsupplied = Vec::new();
        for build in &self.saved.builds {
            for input in &self.facts[&build.derivation].inputs {
                let nobody = !self.open.contains_key(input) && !self.obstructs(*input);
                if nobody && self.is_missing(*input) && !self.is_available(*input) {
                    unsupplied.push(format!("{} needs {input:?}, which is missing", build.id));
                }
            }
        }
        unsupplied
    }

    /// Returns how the engine's memory differs from the rules. Whether its ranks are exact or only
    /// as high as they must be depends on whether it has just read them.
    pub(super) fn differences(&self, engine: &Engine, ranks: Ranks) -> Vec<String> {
        let mut findings = Vec::new();
        let snapshot = engine.snapshot();
        for build in &self.saved.builds {
            let (id, shown) = (build.id, self.shown(build));
            if snapshot.builds.get(&id).map(|known| known.shown) != Some(shown) {
                findings.push(format!("build {id} must be {shown}"));
            }
        }
        for (ix, node) in engine.graph().iter() {
            if engine.graph().builds(ix).is_empty() {
                continue;
            }
            let (priority, height) = self.place(node.hash());
            let agrees = match ranks {
                Ranks::Exact => (node.priority, node.height) == (priority, height),
                Ranks::HighEnough => node.priority >= priority && node.height >= height,
            };
            if !agrees {
                findings.push(format!(
                    "{} must have priority {priority} and height {height}, not {} and {}",
                    engine.graph().path(ix),
                    node.priority,
                    node.height
                ));
            }
        }
        findings
    }

    /// Returns by how many minutes the builds of each submitter went back before these were given:
    /// each was charged a minute.
    fn setbacks_before(&self, given: &[(BuildId, Name)]) -> BTreeMap<Name, i64> {
        let fair = self.around.settings.fair_share;
        let charged = |name: &Name| {
            let of = |id: &BuildId| self.saved.builds.iter().find(|build| build.id == *id);
            let own = given.iter().filter(|(id, _)| of(id).is_some_and(|b| b.submitter == *name));
            60_000 * own.count() as u64
        };
        let left = |(name, usage): &(Name, Usage)| {
            let used = usage.decayed(self.around.now, fair.half_life_minutes);
            (name.clone(), used.saturating_sub(charged(name)))
        };
        let used: BTreeMap<Name, u64> = self.saved.accounts.iter().map(left).collect();
        let total = used.values().map(|ms| u128::from(*ms)).sum::<u128>().max(1);
        let weight = u128::try_from(fair.weight_minutes).unwrap();
        let minutes = |ms: u64| i64::try_from(u128::from(ms) * weight / total).unwrap();
        used.into_iter().map(|(name, ms)| (name, minutes(ms))).collect()
    }

    /// Returns what is wrong with what a step gave away, in this order: nobody may be left with a
    /// free slot, and nothing may go before what is first in rank.
    pub(super) fn misgiven(&self, engine: &Engine, given: &[(BuildId, Name)]) -> Vec<String> {
        let mut findings = self.idle();
        let row = |id: &BuildId| self.saved.builds.iter().find(|build| build.id == *id);
        let rank = |build: &OpenBuild, setbacks: &BTreeMap<Name, i64>| {
            let minutes = setbacks.get(&build.submitter).copied().unwrap_or(0);
            engine.rank_of(build.id).map(|rank| rank.set_back(minutes))
        };
        for (place, (id, agent)) in given.iter().enumerate() {
            let (Some(build), agent) = (row(id), self.agent(agent)) else { continue };
            if !self.may_take(agent, build) {
                findings.push(format!("{} was given {id}", agent.name));
            }
            let setbacks = self.setbacks_before(&given[place..]);
            let later = given[place + 1..].iter().filter_map(|(id, _)| row(id));
            for other in later.chain(self.ready()).filter(|other| self.may_take(agent, other)) {
                if rank(other, &setbacks) < rank(build, &setbacks) {
                    findings.push(format!("{} was given {id} before {}", agent.name, other.id));
                }
            }
        }
        findings
    }
}

/// How well the engine must know its ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ranks {
    /// As it does when it has just read them.
    Exact,
    /// They only rise while it runs.
    HighEnough,
}
