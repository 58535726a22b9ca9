//! Memory in a form that can be compared with what the database would give.

use super::{Build, Engine, Extras, Settings};
use crate::core::{
    agent::Suspension,
    arena::Ix,
    build::{BuildState, ShownState},
    change::{Limits, Origin},
    id::{AttemptId, BuildId, Name},
    plan::{Rank, Usage},
    store_path::PathHash,
    time::Timestamp,
};
use std::collections::BTreeMap;

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
    /// What submitters have used of the farm; nothing when they are not in it.
    pub accounts: BTreeMap<Name, Usage>,
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
    /// What few builds have.
    pub extras: Extras,
    /// The attempts that their agents may still come back with.
    pub lost: BTreeMap<AttemptId, Name>,
}

impl Engine {
    /// Returns all open state in comparable form.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let builds = self
            .builds
            .iter()
            .map(|(ix, build)| {
                let snapshot = SnapshotBuild {
                    state: BuildState::clone(&build.state),
                    shown: self.shown(ix),
                    origin: build.origin,
                    submitter: build.request.submitter.clone(),
                    priority: build.request.priority,
                    submitted: build.request.submitted,
                    limits: build.request.limits,
                    infrastructure_ends: build.infrastructure_ends(),
                    avoid: build.avoid().cloned(),
                    extras: build.extras(),
                    lost: self.lost.of_build(ix),
                };
                (build.id, snapshot)
            })
            .collect();
        let derivations = self
            .graph
            .iter()
            .map(|(ix, node)| {
                let path = self.graph.path(ix).to_string();
                (node.hash(), (path, node.standing.word(), node.waiting, node.obstructed))
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
        let accounts = self.accounts.iter().filter(|(_, usage)| *usage != Usage::NONE);
        let accounts = accounts.map(|(name, usage)| (name.clone(), usage)).collect();
        Snapshot { builds, derivations, agents, accounts }
    }

    /// Returns the settings in force.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the rank that an open build has.
    #[cfg(test)]
    pub(crate) fn rank_of(&self, id: BuildId) -> Option<Rank> {
        self.find(id).map(|ix| self.rank(ix))
    }

    /// Returns the rank under which a build is in its ready set.
    #[must_use]
    pub fn queued_as(&self, ix: Ix<Build>) -> Option<Rank> {
        self.builds[ix].queued_as.as_ref().map(|queued| queued.rank)
    }
}
