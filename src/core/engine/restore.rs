//! Memory from the database, and memory in a form that can be compared with what the database
//! would give.

use super::{Build, Engine, Settings, order::dependents_first};
use crate::core::{
    agent::{Abilities, Agent, AgentState, Suspension},
    build::{BuildState, ShownState},
    change::{Limits, Origin},
    graph::Facts,
    id::{AttemptId, BuildId, InstanceId, Name},
    store_path::PathHash,
    time::{Now, Timestamp},
};
use std::collections::BTreeMap;

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

/// Open state in comparable form: what must be equal in memory and after a reload.
///
/// Two things are left out on purpose. Who is connected is not kept on disk. And the rank in the
/// ready sets: the priority and the chain of dependents that a derivation inherits only ever rise
/// in memory, so that the end of a dependent costs nothing; a restart gives them back their exact
/// values. What a build is ordered by for itself is compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The open builds.
    pub builds: BTreeMap<BuildId, SnapshotBuild>,
    /// Per derivation in memory: its path, how it stands, how many inputs it waits for.
    pub derivations: BTreeMap<PathHash, (String, &'static str, u32, u32)>,
    /// What is decided about agents.
    pub agents: BTreeMap<Name, SnapshotAgent>,
}

/// An agent in comparable form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotAgent {
    /// Why it was decided that it gets no new builds, if it was.
    pub suspension: Option<Suspension>,
    /// The builds that ended through its fault since the last that did not.
    pub failures: Vec<BuildId>,
}

/// An open build in comparable form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotBuild {
    /// The stored state.
    pub state: BuildState,
    /// The shown state.
    pub shown: ShownState,
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
    /// The attempts that their agents may still come back with.
    pub lost: BTreeMap<AttemptId, Name>,
}

impl Engine {
    /// Returns the engine that the saved state describes. Every agent counts as away from now on,
    /// so that each live attempt has a fresh lease.
    ///
    /// # Errors
    /// What is wrong with the saved state, in words, when it does not fit together.
    pub fn restore(settings: Settings, now: Now, saved: Saved) -> Result<Self, String> {
        let mut engine = Self::new(settings);
        for agent in saved.agents {
            let away = AgentState::Away { since: now.mono };
            let name = agent.name.clone();
            let known =
                Agent::new(agent.name, agent.instance, agent.abilities, away, agent.last_seen);
            let SavedAgent { suspension, failures, .. } = agent;
            engine.agents.insert(name, Agent { suspension, failures, ..known });
        }
        let mut inputs_of = BTreeMap::new();
        for facts in saved.facts {
            engine.meet_new(&facts);
            inputs_of.insert(facts.path.hash(), facts.inputs);
        }
        let mut builds_of: BTreeMap<PathHash, Vec<OpenBuild>> = BTreeMap::new();
        for open in saved.builds {
            builds_of.entry(open.derivation).or_default().push(open);
        }
        let inputs = |path| inputs_of.get(&path).map_or(&[][..], Vec::as_slice);
        let starts: Vec<PathHash> = builds_of.keys().copied().collect();
        for path in dependents_first(starts.into_iter(), inputs) {
            for open in builds_of.remove(&path).unwrap_or_default() {
                engine.restore_build(now, open, inputs(path))?;
            }
        }
        for LostAttempt { attempt, build, agent } in saved.lost {
            let ix = *engine.by_id.get(&build).ok_or_else(|| {
                format!("attempt {attempt} was lost of the build {build}, which is not open")
            })?;
            engine.lost.insert(attempt, ix, agent);
        }
        let touched = engine.graph.take_touched();
        for node in touched {
            for ix in engine.graph.node(node).builds.clone() {
                engine.refresh_build(ix);
            }
        }
        Ok(engine)
    }

    fn restore_build(
        &mut self,
        now: Now,
        open: OpenBuild,
        input_paths: &[PathHash],
    ) -> Result<(), String> {
        let id = open.id;
        let lost = |what: &str, path: PathHash| {
            format!("build {id} names the {what} {path:?}, which is not in the database")
        };
        let node =
            self.graph.find(open.derivation).ok_or_else(|| lost("derivation", open.derivation))?;
        if let Some(lease) = open.state.lease()
            && !self.agents.contains_key(&lease.agent)
        {
            return Err(format!("build {id} is leased to {}, who is not known", lease.agent));
        }
        let mut inputs = Vec::new();
        for path in input_paths {
            inputs.push(self.graph.find(*path).ok_or_else(|| lost("input", *path))?);
        }
        let build = Build {
            id,
            node,
            state: open.state,
            origin: open.origin,
            submitter: open.submitter,
            priority: open.priority,
            submitted: open.submitted,
            limits: open.limits,
            infrastructure_ends: open.infrastructure_ends,
            avoid: open.avoid,
            due: None,
            queued_as: None,
            told_blocked: false,
        };
        self.add_open(now, build, inputs);
        Ok(())
    }

    /// Returns all open state in comparable form.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let builds = self
            .builds
            .iter()
            .map(|(ix, build)| {
                let snapshot = SnapshotBuild {
                    state: build.state.clone(),
                    shown: self.shown(ix),
                    origin: build.origin,
                    submitter: build.submitter.clone(),
                    priority: build.priority,
                    submitted: build.submitted,
                    limits: build.limits,
                    infrastructure_ends: build.infrastructure_ends,
                    avoid: build.avoid.clone(),
                    lost: self.lost.of_build(ix),
                };
                (build.id, snapshot)
            })
            .collect();
        let derivations = self
            .graph
            .iter()
            .map(|(_, node)| {
                let path = node.path.to_string();
                (node.path.hash(), (path, node.standing.word(), node.waiting, node.obstructed))
            })
            .collect();
        let agents = self
            .agents
            .values()
            .map(|agent| {
                let (suspension, failures) = (agent.suspension.clone(), agent.failures.clone());
                (agent.name.clone(), SnapshotAgent { suspension, failures })
            })
            .collect();
        Snapshot { builds, derivations, agents }
    }

    /// Returns the settings in force.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the rank under which a build is in its ready set.
    #[must_use]
    pub fn queued_as(&self, ix: crate::core::arena::Ix<Build>) -> Option<crate::core::plan::Rank> {
        self.builds[ix].queued_as
    }
}
