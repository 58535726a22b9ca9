//! Keeps the ready sets in step with the graph, and gives builds to agents.

use super::{Build, Effect, Engine, Order, Turn, open::Queued, tally::Tally};
use crate::core::{
    agent::Agent,
    arena::Ix,
    build::{BuildEvent, BuildState, Lease, ShownState},
    change::Change,
    defect::Defect,
    graph::{Node, Standing},
    id::{AttemptId, Name},
    plan::{AccountIx, ClassIx, Kind, Rank, Setbacks, Strategy},
};
use std::{collections::BTreeSet, sync::Arc};

/// How many derivations are looked at in one step because something changed for them; the others
/// have their turn in the next step, which follows at once. Something that fifty thousand wait for
/// would otherwise hold everybody else up for as long as all of them take.
pub(super) const REFRESHED_MAX: usize = 2_048;
/// How many ready builds of a class are looked at to find one that need not avoid the agent.
const AVOIDING_LOOKED_AT_MAX: usize = 1_000;

impl Engine {
    /// Brings the ready sets up to date with what the graph says has changed.
    pub(super) fn refresh_ready(&mut self, turn: &mut Turn<'_>) {
        for node in self.graph.take_touched(REFRESHED_MAX) {
            for place in 0..self.graph.builds(node).len() {
                let ix = self.graph.builds(node)[place];
                if self.refresh_build(ix) {
                    let (build, state) = (self.builds[ix].id, ShownState::Blocked);
                    turn.out.effects.push(Effect::Rested { build, state });
                }
            }
        }
    }

    /// Puts a build where it belongs. Returns whether it is blocked and was not before.
    pub(super) fn refresh_build(&mut self, ix: Ix<Build>) -> bool {
        self.unqueue(ix);
        self.enqueue_if_ready(ix);
        self.show(ix) != ShownState::Blocked && self.builds[ix].shown == ShownState::Blocked
    }

    /// Notes how a build is shown from now on. Returns how it was shown before.
    pub(super) fn show(&mut self, ix: Ix<Build>) -> ShownState {
        let now = self.shown(ix);
        let before = std::mem::replace(&mut self.builds[ix].shown, now);
        self.tally.moves(before, now);
        before
    }

    /// Takes a build out of its ready set, if it is in one.
    pub(super) fn unqueue(&mut self, ix: Ix<Build>) {
        if let Some(queued) = self.builds[ix].queued_as.take() {
            let Queued { kind, account, rank } = *queued;
            self.queue.remove(kind, account, rank, ix);
        }
    }

    /// Puts a build into its ready set, if it may start.
    fn enqueue_if_ready(&mut self, ix: Ix<Build>) {
        let node = self.graph.node(self.builds[ix].node);
        let build = &self.builds[ix];
        let held = build.hold().is_some() && !self.settings.planted.is(Defect::HoldIgnored);
        if *build.state == BuildState::Queued && node.is_ready() && !held {
            if self.settings.fair_share.is_on() {
                self.accounts.of(&build.request.submitter);
            }
            let queued = self.place(ix);
            let Queued { kind, account, rank } = queued;
            if !self.settings.planted.is(Defect::ReadyEntryLost) {
                self.queue.insert(kind, account, rank, ix);
            }
            self.builds[ix].queued_as = Some(Box::new(queued));
        }
    }

    /// Returns where a build belongs among the ready.
    fn place(&self, ix: Ix<Build>) -> Queued {
        Queued { kind: self.kind_of(ix), account: self.account_of(ix), rank: self.rank(ix) }
    }

    /// Returns the rank a build has now.
    pub(super) fn rank(&self, ix: Ix<Build>) -> Rank {
        let build = &self.builds[ix];
        let node = self.graph.node(build.node);
        let mut priority = build.request.priority.max(node.priority);
        if self.settings.planted.is(Defect::RankReversed) {
            priority = -priority;
        }
        Rank::of(
            build.request.submitted,
            priority,
            self.settings.priority_step,
            node.height,
            build.id,
        )
    }

    /// Returns the state of an open build as it is shown.
    pub(super) fn shown(&self, ix: Ix<Build>) -> ShownState {
        let build = &self.builds[ix];
        let node = self.graph.node(build.node);
        match *build.state {
            BuildState::Queued if node.obstructed > 0 => ShownState::Blocked,
            BuildState::Queued | BuildState::Deferred { .. } if build.hold().is_some() => {
                ShownState::Held
            }
            BuildState::Deferred { .. } => ShownState::Deferred,
            BuildState::Queued if node.waiting > 0 => ShownState::Waiting,
            BuildState::Queued => ShownState::Ready,
            BuildState::Allocated(_) => ShownState::Allocated,
            BuildState::Building(_) => ShownState::Building,
            BuildState::Receiving(_) => ShownState::Receiving,
            BuildState::Succeeded { .. } => ShownState::Succeeded,
            BuildState::Failed { .. } => ShownState::Failed,
            BuildState::Canceled => ShownState::Canceled,
        }
    }

    /// Gives ready builds to agents with free slots, one to each in turn, until nobody can take
    /// one more.
    pub(super) fn allocate(&mut self, turn: &mut Turn<'_>) {
        let planted = self.settings.planted;
        let closed = self.intake_closed.is_some() && !planted.is(Defect::IntakeIgnored);
        if self.queue.is_empty() || closed {
            return;
        }
        let mut free: Vec<(usize, Name)> = self
            .agents
            .values()
            .filter(|agent| {
                let served = planted.is(Defect::SuspendedServed) && agent.suspension.is_some();
                agent.free_slots() > 0 || (served && agent.session().is_some())
            })
            .map(|agent| (agent.running.len(), agent.name.clone()))
            .collect();
        // The least busy first, so that a few builds spread over the farm.
        free.sort();
        let mut free: Vec<Name> = free.into_iter().map(|(_, name)| name).collect();
        let mut setbacks = self.setbacks(turn.now.wall);
        while !free.is_empty() {
            free.retain(|name| match self.next_for(&self.agents[name], &setbacks) {
                Some(ix) => {
                    self.give(turn, ix, name);
                    setbacks = self.setbacks(turn.now.wall);
                    self.agents[name].free_slots() > 0
                }
                None => false,
            });
        }
    }

    /// Returns the ready build that is first in rank among those an agent can take, when each goes
    /// back by what its account used.
    pub(super) fn next_for(&self, agent: &Agent, setbacks: &Setbacks) -> Option<Ix<Build>> {
        let sets = agent.classes.iter().flat_map(|class| {
            self.queue.ready(*class).map(|(account, ready)| (*class, account, ready))
        });
        let first =
            |(class, account, ready): (ClassIx, AccountIx, &BTreeSet<(Rank, Ix<Build>)>)| {
                let looked_at = &mut ready.iter().take(AVOIDING_LOOKED_AT_MAX);
                let (rank, ix) = looked_at.find(|(_, ix)| !self.avoids(*ix, agent, class))?;
                Some((rank.set_back(setbacks.of(account)), *ix))
            };
        sets.filter_map(first).min().map(|(_, ix)| ix)
    }

    /// Tells whether a build should rather go to another agent, one that takes builds and can take
    /// this one.
    fn avoids(&self, ix: Ix<Build>, agent: &Agent, class: ClassIx) -> bool {
        self.builds[ix].avoid() == Some(&agent.name)
            && self.agents.values().any(|other| {
                other.name != agent.name && other.takes_builds() && other.classes.contains(&class)
            })
    }

    fn give(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, name: &Name) {
        let attempt = AttemptId::at(turn.now.wall, turn.ids.random());
        let session =
            self.agents.get(name).and_then(Agent::session).expect("only connected agents are free");
        let request = Arc::clone(&self.builds[ix].request);
        let (build, limits) = (self.builds[ix].id, request.limits);
        self.charge_at_once(turn, &request.submitter);
        let derivation = self.graph.path(self.builds[ix].node);
        turn.out.changes.push(Change::Attempt {
            attempt,
            build,
            agent: name.clone(),
            emulated: self.emulates(name, ix),
            at: turn.now.wall,
        });
        self.apply(turn, ix, BuildEvent::Allocated(Lease { attempt, agent: name.clone() }));
        let order = Order::Allocate { attempt, build, derivation, limits };
        turn.out.effects.push(Effect::Tell { session, order });
    }

    /// Tells whether an agent emulates the system that a build is for.
    pub(super) fn emulates(&self, agent: &Name, ix: Ix<Build>) -> bool {
        let class = &self.queue.kind(self.kind_of(ix)).class;
        self.agents.get(agent).is_some_and(|agent| class.is_emulated_by(&agent.abilities))
    }

    /// Compares every index with what it is derived from and returns what does not agree.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut findings = self.graph.check();
        let mut queued = 0;
        let mut tally = Tally::default();
        for (ix, build) in self.builds.iter() {
            let id = build.id;
            let node = self.graph.node(build.node);
            let held = build.hold().is_some();
            let ready = *build.state == BuildState::Queued && node.is_ready() && !held;
            let expected = ready.then(|| self.place(ix));
            let queued_as = build.queued_as.as_deref().copied();
            if queued_as != expected && !node.is_touched() {
                findings.push(format!("build {id}: its place in the ready set is out of date"));
            }
            if build.shown != self.shown(ix) && !node.is_touched() {
                findings.push(format!("build {id}: counted as {}", build.shown));
            }
            tally.enters(build.shown);
            if let Some(Queued { kind, account, rank }) = queued_as {
                queued += 1;
                if !self.queue.has(kind, account, rank, ix) {
                    findings.push(format!("build {id}: ready but in no ready set"));
                }
            }
            let Kind { class, demands } = self.queue.kind(self.kind_of(ix));
            if class != &self.queue.kind(node.class).class || *demands != build.extras().demands {
                findings.push(format!("build {id}: belongs in another ready set"));
            }
            if self.find(id) != Some(ix) {
                findings.push(format!("build {id}: is not found by its id"));
            }
            if !self.graph.builds(build.node).contains(&ix) {
                findings.push(format!("build {id}: its derivation does not know it"));
            }
            if build.state.is_final() {
                findings.push(format!("build {id}: {} but still open", build.state.word()));
            }
            findings.extend(self.check_lease(ix, build));
        }
        findings.extend(self.lost.check(self));
        if tally != self.tally {
            findings.push(format!("builds by state: {:?}, counted {:?}", self.tally, tally));
        }
        if queued != self.queue.len() {
            findings.push(format!("ready sets hold {}, should be {queued}", self.queue.len()));
        }
        if self.by_attempt.len()
            != self.agents.values().map(|a| a.running.len() + a.sending.len()).sum::<usize>()
        {
            findings.push("the agents' lists and the live attempts differ in number".to_owned());
        }
        for agent in self.agents.values() {
            let able = self
                .queue
                .kinds()
                .filter(|(_, kind)| kind.obstacle(&agent.name, &agent.abilities).is_none());
            let able: BTreeSet<ClassIx> = able.map(|(ix, _)| ix).collect();
            let unchecked = self.settings.planted.is(Defect::AbilitiesUnchecked);
            if agent.classes.iter().copied().collect::<BTreeSet<_>>() != able && !unchecked {
                findings.push(format!("agent {}: what it can take is out of date", agent.name));
            }
            let open = self.intake_closed.is_none();
            if open
                && agent.free_slots() > 0
                && self.next_for(agent, &Setbacks::default()).is_some()
            {
                findings
                    .push(format!("agent {}: has a free slot and could take a build", agent.name));
            }
        }
        findings
    }

    fn check_lease(&self, ix: Ix<Build>, build: &Build) -> Option<String> {
        let id = build.id;
        if let Some(lease) = build.state.lease() {
            let agent = self.agents.get(&lease.agent);
            let listed = agent.is_some_and(|a| a.running.contains(&ix) || a.sending.contains(&ix));
            return (!listed || self.holder(lease.attempt) != Some(ix))
                .then(|| format!("build {id}: its lease is not indexed"));
        }
        let ordered = self.settings.strategy == Strategy::DerivationOrdered;
        let is_unavailable =
            |input: &Ix<Node>| self.graph.node(*input).standing != Standing::Available;
        let inputs = self.graph.inputs(build.node);
        (ordered && build.queued_as.is_some() && inputs.iter().any(is_unavailable))
            .then(|| format!("build {id}: ready without all of its inputs"))
    }
}
