//! Questions about open state. They change nothing and are answered between steps.

use super::{Build, Engine, Ignored};
use crate::core::{
    agent::{Abilities, Agent, AgentState, Capacity, Obstacle, Suspension, SuspensionKind},
    arena::Ix,
    build::ShownState,
    id::{AttemptId, BuildId, Name},
    plan::{ClassIx, Explanation, Kind, explain},
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use std::collections::BTreeMap;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// How these builds are shown; those that are not open are left out of the answer.
    Shown(Vec<BuildId>),
    /// Why a build is not built yet, at this time.
    Why(BuildId, Timestamp),
    /// How many of everything.
    Counts,
    /// All agents that were ever seen.
    Agents,
    /// Who holds an attempt, and of which derivation it is.
    Attempt(AttemptId),
    /// The attempt and agent of open builds.
    Holders(Vec<BuildId>),
    /// The open builds that no agent ever seen can take, by what they ask for.
    Unplaceable,
    /// The ready builds, by what they ask for.
    Ready,
    /// What does not agree in memory.
    Check,
    /// All open state in comparable form.
    Snapshot,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// To [`Ask::Shown`].
    Shown(BTreeMap<BuildId, ShownState>),
    /// To [`Ask::Why`]; absent when the build is not open.
    Why(Option<Box<Explanation>>),
    /// To [`Ask::Counts`].
    Counts(Counts),
    /// To [`Ask::Agents`].
    Agents(Vec<AgentView>),
    /// To [`Ask::Attempt`]; absent when it is not alive.
    Attempt(Option<(Name, StorePath)>),
    /// To [`Ask::Holders`].
    Holders(BTreeMap<BuildId, (AttemptId, Name)>),
    /// To [`Ask::Unplaceable`].
    Unplaceable(Vec<Unplaceable>),
    /// To [`Ask::Ready`].
    Ready(Vec<ReadyBuilds>),
    /// To [`Ask::Check`].
    Check(Vec<String>),
    /// To [`Ask::Snapshot`].
    Snapshot(super::Snapshot),
}

/// How many of everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Open builds by shown state.
    pub builds: BTreeMap<ShownState, usize>,
    /// Agents with a session.
    pub agents_connected: usize,
    /// Agents ever seen.
    pub agents_known: usize,
    /// Agents that get no new builds, by the decision; connected or not.
    pub suspended: BTreeMap<SuspensionKind, usize>,
    /// Slots of connected agents.
    pub slots: usize,
    /// Slots of connected agents that nothing uses.
    pub slots_free: usize,
    /// Ready builds that no agent ever seen can take.
    pub unplaceable: usize,
    /// Messages of attempts that did not hold their lease, since the start.
    pub stale_messages: u64,
    /// Why the coordinator cannot take results in now; absent when it can.
    pub intake_closed: Option<String>,
    /// All messages that changed nothing, by kind, since the start.
    pub ignored: BTreeMap<Ignored, u64>,
}

/// How many builds of a group are named, and how many agents say why they cannot take it.
const NAMED_MAX: usize = 10;

/// Open builds that ask for the same, and that no agent ever seen can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaceable {
    /// What they ask for.
    pub kind: Kind,
    /// How many there are.
    pub builds: usize,
    /// How many of them wait for nothing else.
    pub ready: usize,
    /// When the first of them was asked for.
    pub since: Timestamp,
    /// The first of them, in order of creation.
    pub first: Vec<BuildId>,
    /// Why some agents cannot take them.
    pub agents: Vec<(Name, String)>,
}

/// The ready builds of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyBuilds {
    /// What they ask for.
    pub kind: Kind,
    /// How many there are.
    pub ready: usize,
    /// When the one was asked for that goes first.
    pub first: Option<Timestamp>,
}

/// An agent as commands show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentView {
    /// Its name.
    pub name: Name,
    /// Whether it has a session.
    pub connected: bool,
    /// What it can build.
    pub abilities: Abilities,
    /// How many builds it wants to run at a time.
    pub capacity: Capacity,
    /// How many more builds it takes now.
    pub slots_free: usize,
    /// Why it was decided that it gets no new builds, if it was.
    pub suspension: Option<Suspension>,
    /// Why it takes no build now; absent when it takes the next one that it can build.
    pub obstacle: Option<Obstacle>,
    /// How many builds ended through its fault since the last that did not.
    pub failures_in_a_row: usize,
    /// Builds that take a slot.
    pub running: Vec<BuildId>,
    /// Builds whose outputs it is sending.
    pub sending: Vec<BuildId>,
    /// When its last session began or ended.
    pub last_seen: Timestamp,
}

impl Engine {
    /// Answers a question.
    #[must_use]
    pub fn ask(&self, question: &Ask) -> Told {
        match question {
            Ask::Shown(builds) => Told::Shown(
                builds
                    .iter()
                    .filter_map(|id| self.find(*id).map(|ix| (*id, self.shown(ix))))
                    .collect(),
            ),
            Ask::Why(build, now) => {
                let open = self.find(*build);
                Told::Why(open.map(|ix| Box::new(explain(self, ix, *now))))
            }
            Ask::Counts => Told::Counts(self.counts()),
            Ask::Agents => Told::Agents(self.agents.values().map(|a| self.view(a)).collect()),
            Ask::Attempt(attempt) => Told::Attempt(self.holder(*attempt).and_then(|ix| {
                let build = &self.builds[ix];
                let lease = build.state.lease()?;
                Some((lease.agent.clone(), self.graph.path(build.node)))
            })),
            Ask::Holders(builds) => Told::Holders(
                builds
                    .iter()
                    .filter_map(|id| {
                        let lease = self.builds[self.find(*id)?].state.lease()?;
                        Some((*id, (lease.attempt, lease.agent.clone())))
                    })
                    .collect(),
            ),
            Ask::Unplaceable => Told::Unplaceable(self.unplaceable()),
            Ask::Ready => Told::Ready(self.ready()),
            Ask::Check => Told::Check(self.check()),
            Ask::Snapshot => Told::Snapshot(self.snapshot()),
        }
    }

    fn counts(&self) -> Counts {
        let stale = self.ignored.iter().filter(|(message, _)| message.is_stale());
        let mut counts = Counts {
            stale_messages: stale.map(|(_, number)| number).sum(),
            ignored: self.ignored.clone(),
            intake_closed: self.intake_closed.clone(),
            ..Counts::default()
        };
        counts.builds = self.tally.all();
        for agent in self.agents.values() {
            counts.agents_known += 1;
            if let Some(suspension) = &agent.suspension {
                *counts.suspended.entry(suspension.kind).or_default() += 1;
            }
            if let AgentState::Connected { .. } = agent.state {
                counts.agents_connected += 1;
                counts.slots += agent.abilities.slots as usize;
                counts.slots_free += agent.free_slots();
            }
        }
        for (class, _) in self.queue.kinds() {
            if !self.agents.values().any(|agent| agent.classes.contains(&class)) {
                counts.unplaceable += self.queue.ready_count(class);
            }
        }
        counts
    }

    /// Returns the ready sets. Of the builds in them, only the first of each account is looked at.
    fn ready(&self) -> Vec<ReadyBuilds> {
        let of_kind = |(ix, kind): (ClassIx, &Kind)| {
            let firsts = self.queue.ready(ix).filter_map(|(_, ready)| ready.first());
            let first = firsts.min().map(|(_, ix)| self.builds[*ix].request.submitted);
            ReadyBuilds { kind: kind.clone(), ready: self.queue.ready_count(ix), first }
        };
        self.queue.kinds().map(of_kind).collect()
    }

    /// Returns the open builds that no agent ever seen can take. Builds are gone through only where
    /// there are such.
    fn unplaceable(&self) -> Vec<Unplaceable> {
        let lonely = self
            .queue
            .kinds()
            .filter(|(ix, _)| !self.agents.values().any(|agent| agent.classes.contains(ix)));
        let mut groups: BTreeMap<ClassIx, Unplaceable> = lonely
            .map(|(ix, kind)| {
                let reasons = self.agents.values().filter_map(|agent| {
                    Some((agent.name.clone(), kind.obstacle(&agent.name, &agent.abilities)?))
                });
                let group = Unplaceable {
                    kind: kind.clone(),
                    builds: 0,
                    ready: self.queue.ready_count(ix),
                    since: Timestamp::from_ms(i64::MAX),
                    first: Vec::new(),
                    agents: reasons.take(NAMED_MAX).collect(),
                };
                (ix, group)
            })
            .collect();
        if !groups.is_empty() {
            for (ix, build) in self.builds.iter() {
                let Some(group) = groups.get_mut(&self.kind_of(ix)) else { continue };
                if build.state.lease().is_some() {
                    continue;
                }
                group.builds += 1;
                group.since = group.since.min(build.request.submitted);
                let place = group.first.partition_point(|other| *other < build.id);
                if place < NAMED_MAX {
                    group.first.truncate(NAMED_MAX - 1);
                    group.first.insert(place, build.id);
                }
            }
        }
        let mut groups: Vec<Unplaceable> =
            groups.into_values().filter(|group| group.builds > 0).collect();
        groups.sort_by(|a, b| (b.builds, &a.kind).cmp(&(a.builds, &b.kind)));
        groups
    }

    fn view(&self, agent: &Agent) -> AgentView {
        let id = |ix: &Ix<Build>| self.builds[*ix].id;
        AgentView {
            name: agent.name.clone(),
            connected: agent.session().is_some(),
            abilities: agent.abilities.clone(),
            capacity: agent.capacity.clone(),
            slots_free: agent.free_slots(),
            suspension: agent.suspension.clone(),
            obstacle: agent.obstacle(),
            failures_in_a_row: agent.failures.len(),
            running: agent.running.iter().map(id).collect(),
            sending: agent.sending.iter().map(id).collect(),
            last_seen: agent.last_seen,
        }
    }

    /// Returns the oldest open build of a derivation.
    #[must_use]
    pub fn open_build_of(&self, derivation: PathHash) -> Option<BuildId> {
        let builds = self.graph.builds(self.graph.find(derivation)?);
        builds.iter().map(|ix| self.builds[*ix].id).min()
    }

    /// Returns an open build.
    #[must_use]
    pub fn build(&self, ix: Ix<Build>) -> &Build {
        &self.builds[ix]
    }

    /// Returns the derivations that open builds concern.
    #[must_use]
    pub const fn graph(&self) -> &crate::core::graph::Graph {
        &self.graph
    }

    /// Returns the ready sets.
    #[must_use]
    pub const fn queue(&self) -> &crate::core::plan::Queue {
        &self.queue
    }

    /// Returns all agents ever seen.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    /// Returns how an open build is shown.
    #[must_use]
    pub fn shown_state(&self, ix: Ix<Build>) -> ShownState {
        self.shown(ix)
    }
}
