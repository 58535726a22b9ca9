//! Memory from the database.

use super::{
    Build, Engine, Extras, Request, Settings,
    open::{Rare, Requests},
};
use crate::core::{
    agent::{Abilities, Agent, AgentState, Suspension},
    arena::Ix,
    build::{BuildState, ShownState},
    change::{Limits, Origin},
    graph::{Facts, LoadError, Node},
    id::{AttemptId, BuildId, InstanceId, Name},
    plan::Usage,
    store_path::PathHash,
    time::{Now, Timestamp},
};
use std::sync::Arc;

/// All open state as the database keeps it.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// The derivations of open builds and their inputs.
    pub facts: Vec<Facts>,
    /// The open builds.
    pub builds: Vec<OpenBuild>,
    /// All agents that were ever seen.
    pub agents: Vec<SavedAgent>,
    /// The attempts of open builds that ended because their agent was lost.
    pub lost: Vec<LostAttempt>,
    /// What submitters have used of the farm.
    pub accounts: Vec<(Name, Usage)>,
}

/// An attempt that its agent may still come back with.
#[derive(Debug, Clone)]
pub struct LostAttempt {
    /// Which one.
    pub attempt: AttemptId,
    /// Of which open build.
    pub build: BuildId,
    /// Whose it was.
    pub agent: Name,
}

/// An open build as the database keeps it.
#[derive(Debug, Clone)]
pub struct OpenBuild {
    /// Its id.
    pub id: BuildId,
    /// Its derivation.
    pub derivation: PathHash,
    /// Where it stands.
    pub state: BuildState,
    /// Why it exists.
    pub origin: Origin,
    /// Who asked for it.
    pub submitter: Name,
    /// Its own priority.
    pub priority: i32,
    /// When it was asked for.
    pub submitted: Timestamp,
    /// How long it may run and be silent.
    pub limits: Limits,
    /// How many of its attempts ended through no fault of its own.
    pub infrastructure_ends: u32,
    /// The agent of the last such attempt.
    pub avoid: Option<Name>,
    /// What few builds have.
    pub extras: Extras,
}

impl OpenBuild {
    /// Returns what it may have in common with others.
    pub(super) fn request(&self) -> Request {
        Request {
            submitter: self.submitter.clone(),
            priority: self.priority,
            submitted: self.submitted,
            limits: self.limits,
        }
    }

    /// Returns it as the engine has it, before it is entered anywhere.
    pub(super) fn into_build(self, node: Ix<Node>, request: Arc<Request>) -> Build {
        Build {
            id: self.id,
            node,
            state: self.state.into(),
            origin: self.origin,
            request,
            rare: Rare::of(self.infrastructure_ends, self.avoid, self.extras),
            queued_as: None,
            shown: ShownState::Waiting,
        }
    }
}

/// An agent as the database keeps it.
#[derive(Debug, Clone)]
pub struct SavedAgent {
    /// Its name.
    pub name: Name,
    /// Which installation it was.
    pub instance: InstanceId,
    /// What it said of itself last.
    pub abilities: Abilities,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// Why it was decided that it gets no new builds, if it was.
    pub suspension: Option<Suspension>,
    /// The builds that ended through its fault since the last that did not.
    pub failures: Vec<BuildId>,
}

/// An engine that is told piece by piece what the database has, so that not all of it must be in
/// memory twice: first the agents, then the open builds, then the derivations that they concern.
#[derive(Debug)]
pub struct Restoring {
    engine: Engine,
    now: Now,
    requests: Requests,
    /// Builds that ask for more than their derivations do: in which ready sets they belong is known
    /// when those are.
    demanding: Vec<Ix<Build>>,
    lost: Vec<LostAttempt>,
}

impl Restoring {
    /// Begins with nothing. Every agent counts as away from now on, so that each live attempt has
    /// a fresh lease.
    #[must_use]
    pub fn new(settings: Settings, now: Now) -> Self {
        let engine = Engine::new(settings);
        let (requests, demanding, lost) = (Requests::default(), Vec::new(), Vec::new());
        Self { engine, now, requests, demanding, lost }
    }

    /// Enters what a submitter has used of the farm.
    pub fn account(&mut self, name: &Name, usage: Usage) {
        self.engine.accounts.restore(name, usage);
    }

    /// Enters an agent.
    pub fn agent(&mut self, agent: SavedAgent) {
        let away = AgentState::Away { since: self.now.mono };
        let name = agent.name.clone();
        let known = Agent::new(agent.name, agent.instance, agent.abilities, away, agent.last_seen);
        let SavedAgent { suspension, failures, .. } = agent;
        self.engine.agents.insert(name, Agent { suspension, failures, ..known });
    }

    /// Enters an open build.
    ///
    /// # Errors
    /// What is wrong with it, in words, when its agent is not known.
    pub fn build(&mut self, open: OpenBuild) -> Result<(), String> {
        let id = open.id;
        if let Some(lease) = open.state.lease()
            && !self.engine.agents.contains_key(&lease.agent)
        {
            return Err(format!("build {id} is leased to {}, who is not known", lease.agent));
        }
        let request = self.requests.share(open.request());
        let state = open.state.clone();
        let engine = &mut self.engine;
        // Its node is known when it has its place, and its place is what the node needs.
        let node = engine.graph.expect(open.derivation);
        let ix = engine.enter(open.into_build(node, request));
        if engine.builds[ix].demands().is_some() {
            self.demanding.push(ix);
        }
        engine.graph.load_build(node, ix);
        engine.index_state(self.now, ix, &state);
        engine.show(ix);
        Ok(())
    }

    /// Enters an attempt of an open build that its agent may still come back with.
    pub fn lost(&mut self, lost: LostAttempt) {
        self.lost.push(lost);
    }

    /// Enters a derivation that open builds concern.
    pub fn derivation(&mut self, facts: &Facts) {
        let class = self.engine.class(&facts.class);
        self.engine.graph.load(facts, class);
    }

    /// Tells whether a derivation is needed that was not entered yet.
    #[must_use]
    pub fn lacks(&self, derivation: PathHash) -> bool {
        self.engine.graph.lacks(derivation)
    }

    /// Returns the derivations that are needed and were not entered yet.
    #[must_use]
    pub fn lacking(&self) -> Vec<PathHash> {
        self.engine.graph.lacking()
    }

    /// Returns the engine.
    ///
    /// # Errors
    /// What is wrong with the saved state, in words, when it does not fit together.
    pub fn finish(self) -> Result<Engine, String> {
        let Self { mut engine, demanding, lost, .. } = self;
        let builds = &engine.builds;
        let priority_of = |ix| builds[ix].request.priority;
        engine.graph.finish_load(priority_of).map_err(|error| match error {
            LoadError::Missing(path) => {
                format!("the derivation {path:?} is needed and is not in the database")
            }
            LoadError::Cycle(path) => format!("the derivation {path:?} needs itself"),
        })?;
        for ix in demanding {
            engine.enter_kind(ix);
        }
        for LostAttempt { attempt, build, agent } in lost {
            let ix = engine.find(build).ok_or_else(|| {
                format!("attempt {attempt} was lost of the build {build}, which is not open")
            })?;
            engine.lost.insert(attempt, ix, agent);
        }
        while engine.graph.has_touched() {
            for node in engine.graph.take_touched(usize::MAX) {
                for place in 0..engine.graph.builds(node).len() {
                    engine.refresh_build(engine.graph.builds(node)[place]);
                }
            }
        }
        Ok(engine)
    }
}

impl Engine {
    /// Returns the engine that the saved state describes.
    ///
    /// # Errors
    /// What is wrong with the saved state, in words, when it does not fit together.
    pub fn restore(settings: Settings, now: Now, saved: Saved) -> Result<Self, String> {
        let mut restoring = Restoring::new(settings, now);
        saved.accounts.iter().for_each(|(name, usage)| restoring.account(name, *usage));
        saved.agents.into_iter().for_each(|agent| restoring.agent(agent));
        saved.builds.into_iter().try_for_each(|open| restoring.build(open))?;
        for facts in &saved.facts {
            restoring.derivation(facts);
        }
        saved.lost.into_iter().for_each(|lost| restoring.lost(lost));
        restoring.finish()
    }

    /// Returns the attempts of open builds that their agents may still come back with, each with
    /// its agent.
    pub fn lost_attempts(&self) -> impl Iterator<Item = (AttemptId, &Name)> {
        self.lost.iter()
    }

    /// Returns the live attempts, each with its agent.
    pub fn attempts(&self) -> impl Iterator<Item = (AttemptId, &Name)> {
        let leases = self.by_attempt.values().filter_map(|ix| self.builds[*ix].state.lease());
        leases.map(|lease| (lease.attempt, &lease.agent))
    }
}
