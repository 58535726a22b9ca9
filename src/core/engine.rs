//! The one place where state changes: inputs go in, changes and effects come out.
//!
//! The owner calls [`Engine::step`] with what arrived, makes the changes durable in one
//! transaction, and only then lets the effects out. A step is pure: the same state, time, ids and
//! inputs give the same result.

mod administration;
mod agents;
mod ask;
mod contested;
mod ignored;
mod input;
mod kept;
mod lost;
mod order;
mod queueing;
mod restore;
mod snapshot;
mod submit;
mod tally;

pub use ask::{AgentView, Ask, Counts, Told};
pub use ignored::Ignored;
pub use input::{
    Administered, Answer, Authority, Canceled, Decision, Delivery, Effect, Input, Inputs, Order,
    Root, Submission, Token,
};
pub use kept::KeptState;
pub use restore::{LostAttempt, OpenBuild, Restoring, Saved, SavedAgent};
pub use snapshot::{Snapshot, SnapshotAgent, SnapshotBuild};

use super::{
    agent::{Agent, Capacity},
    arena::{Arena, Ix},
    build::{BuildEvent, BuildState, Lease, ShownState, next_state},
    change::{Change, Limits, Origin},
    defect::{Defect, Planted},
    graph::{Graph, Node},
    id::{AttemptId, BuildId, Name},
    outcome::OutputPolicy,
    plan::{Class, ClassIx, Queue, Rank, Strategy},
    retry,
    table::Table,
    time::{Monotonic, Now, Timestamp},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What the operator may set about the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// When an input holds a build back.
    pub strategy: Strategy,
    /// What becomes of outputs.
    pub outputs: OutputPolicy,
    /// How many minutes of waiting one point of priority is worth.
    pub priority_step: i64,
    /// How long an agent may be away before its builds go to others, in milliseconds.
    pub lease_ms: u64,
    /// After how many builds in a row that ended through its fault an agent is quarantined; never
    /// when 0.
    pub quarantine_after: u8,
    /// The mistake that a simulation has planted.
    pub planted: Planted,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            outputs: OutputPolicy::default(),
            priority_step: 5,
            lease_ms: 20 * 60 * 1_000,
            quarantine_after: 5,
            planted: Planted::default(),
        }
    }
}

/// Where new ids come from.
pub trait IdSource {
    /// Returns ten random bytes.
    fn random(&mut self) -> [u8; 10];
}

/// What a step results in.
#[derive(Debug, Default)]
pub struct Step {
    /// What must be durable before any effect is let out, in order.
    pub changes: Vec<Change>,
    /// What happens then, in order.
    pub effects: Vec<Effect>,
}

/// An open build.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// Its derivation.
    pub node: Ix<Node>,
    /// Where it stands.
    pub state: KeptState,
    /// Why it exists.
    pub origin: Origin,
    /// What it has in common with the others of its submission.
    pub request: Arc<Request>,
    /// Nothing for most.
    past: Option<Box<Past>>,
    /// Under which rank it is in its ready set; most are not in one.
    queued_as: Option<Box<Rank>>,
    /// How it is counted, and what those who wait were told.
    shown: ShownState,
}

/// What the builds of one submission have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Who asked for them.
    pub submitter: Name,
    /// The priority of each.
    pub priority: i32,
    /// When they were asked for.
    pub submitted: Timestamp,
    /// How long each may run and be silent.
    pub limits: Limits,
}

/// What attempts that are over left of a build.
#[derive(Debug, Clone, Default)]
struct Past {
    /// How many of its attempts ended through no fault of its own.
    infrastructure_ends: u32,
    /// The agent whose attempt ended so last; others are asked first.
    avoid: Option<Name>,
    /// When it is queued again, while it is deferred.
    due: Option<Monotonic>,
}

impl Build {
    /// Returns how many of its attempts ended through no fault of its own.
    #[must_use]
    pub fn infrastructure_ends(&self) -> u32 {
        self.past.as_ref().map_or(0, |past| past.infrastructure_ends)
    }

    /// Returns the agent whose attempt ended so last; others are asked first.
    #[must_use]
    pub fn avoid(&self) -> Option<&Name> {
        self.past.as_ref()?.avoid.as_ref()
    }

    fn past_mut(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }
}

/// All open state. One thread owns it.
#[derive(Debug, Clone)]
pub struct Engine {
    settings: Settings,
    graph: Graph,
    queue: Queue,
    builds: Arena<Build>,
    by_id: Table,
    by_attempt: BTreeMap<AttemptId, Ix<Build>>,
    agents: BTreeMap<Name, Agent>,
    /// Deferred builds by when they are queued again: on the monotonic clock, so that a jump of the
    /// wall clock neither holds them back for years nor lets them all go at once.
    deferred: BTreeSet<(Monotonic, Ix<Build>)>,
    /// How many builds are shown in each state.
    tally: tally::Tally,
    /// The class that was met last.
    last_class: Option<(Arc<Class>, ClassIx)>,
    /// Offers that came before the report that the attempt is finished: they travel on different
    /// connections. At most one per live attempt.
    early_offers: BTreeMap<AttemptId, Token>,
    /// Why the coordinator cannot take results in now.
    intake_closed: Option<String>,
    /// What its agents may still come back with.
    lost: lost::LostAttempts,
    /// What was committed while others were sending the same path.
    contested: contested::Contested,
    ignored: BTreeMap<Ignored, u64>,
}

/// What a step has produced so far, and what it needs to know.
struct Turn<'a> {
    now: Now,
    ids: &'a mut dyn IdSource,
    out: Step,
}

impl Engine {
    /// Returns an engine without any state.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            graph: Graph::new(settings.strategy, settings.planted),
            queue: Queue::default(),
            builds: Arena::default(),
            by_id: Table::default(),
            by_attempt: BTreeMap::new(),
            agents: BTreeMap::new(),
            deferred: BTreeSet::new(),
            tally: tally::Tally::default(),
            last_class: None,
            early_offers: BTreeMap::new(),
            intake_closed: None,
            lost: lost::LostAttempts::default(),
            contested: contested::Contested::default(),
            ignored: BTreeMap::new(),
        }
    }

    /// Takes in what arrived, in order, together with the passing of time.
    pub fn step(&mut self, now: Now, ids: &mut dyn IdSource, inputs: Vec<Input>) -> Step {
        let mut turn = Turn { now, ids, out: Step::default() };
        self.pass_time(&mut turn);
        self.pass_deadlines(&mut turn);
        for input in inputs {
            self.take(&mut turn, input);
        }
        self.refresh_ready(&mut turn);
        self.allocate(&mut turn);
        turn.out
    }

    /// Returns how long until [`Engine::step`] must be called even if nothing arrives, in
    /// milliseconds; `None` when only an input can change anything.
    #[must_use]
    pub fn wakes_in_ms(&self, now: Now) -> Option<u64> {
        if self.graph.has_touched() {
            return Some(0);
        }
        let forgets = self.settings.planted.is(Defect::DeferredWakeForgotten);
        let first = self.deferred.first().filter(|_| !forgets);
        let deferred = first.map(|(until, _)| until.as_ms().saturating_sub(now.mono.as_ms()));
        let deadlines = self.deadlines().map(|(until, _)| {
            u64::try_from(until.as_ms().saturating_sub(now.wall.as_ms())).unwrap_or(0)
        });
        let deadline = deadlines.min();
        let leases =
            self.lease_ends().map(|(end, _)| end.as_ms().saturating_sub(now.mono.as_ms())).min();
        deferred.into_iter().chain(deadline).chain(leases).min()
    }

    fn take(&mut self, turn: &mut Turn<'_>, input: Input) {
        match input {
            Input::Submit { token, submission } => self.submit(turn, token, &submission),
            Input::Cancel { token, builds, by } => self.cancel(turn, token, &builds, &by),
            Input::Record { token, changes } => self.record(turn, token, changes),
            Input::Join { session, name, instance, abilities, held, capacity } => {
                self.join(turn, session, &name, instance, abilities, &held);
                if let Some(Capacity { slots, reason }) = capacity {
                    self.note_capacity(session, slots, reason);
                }
            }
            Input::Leave { session } => self.leave(turn, session),
            Input::Capacity { session, slots, reason } => {
                self.note_capacity(session, slots, reason);
            }
            Input::Administer { token, agent, decision, by } => {
                self.administer(turn, token, &agent, decision, by);
            }
            Input::Intake { closed } => self.intake_closed = closed,
            Input::Started { session, attempt } => self.started(turn, session, attempt),
            Input::Finished { session, attempt, outcome } => {
                self.finished(turn, session, attempt, outcome);
            }
            Input::Report { session, attempt, outputs } => {
                self.report(turn, session, attempt, outputs);
            }
            Input::Offer { token, agent, attempt } => self.offer(turn, token, &agent, attempt),
            Input::Deliver { token, agent, attempt, delivery } => {
                self.deliver(turn, token, &agent, attempt, delivery);
            }
        }
    }

    /// Moves a build, writes the change down and keeps every index that depends on the state.
    ///
    /// # Panics
    /// When the event does not fit the state: callers look at the lease first.
    fn apply(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, event: BuildEvent) {
        let build = &self.builds[ix];
        let (id, from) = (build.id, BuildState::clone(&build.state));
        let to = next_state(&from, event).expect("the caller checked that the event fits");
        self.unqueue(ix);
        if let Some(lease) = from.lease() {
            let agent = self.agents.get_mut(&lease.agent).expect("a lease names a known agent");
            if !self.settings.planted.is(Defect::SlotLeaked) {
                agent.running.remove(&ix);
            }
            agent.sending.remove(&ix);
            self.by_attempt.remove(&lease.attempt);
        }
        if let Some(due) = self.builds[ix].past.as_mut().and_then(|past| past.due.take()) {
            self.deferred.remove(&(due, ix));
        }
        self.index_state(turn.now, ix, &to);
        self.builds[ix].state = to.clone().into();
        if to.is_final() || to.lease().is_some() {
            // Of any other, what its inputs did meanwhile decides.
            self.show(ix);
        }
        if matches!(from, BuildState::Receiving(_)) {
            self.forget_contested();
        }
        turn.out.changes.push(Change::BuildMoved { build: id, from, to, at: turn.now.wall });
        if !self.builds[ix].state.is_final() && self.builds[ix].state.lease().is_none() {
            // What its inputs did meanwhile decides: ready, waiting or blocked.
            self.graph.touch(self.builds[ix].node);
        }
    }

    /// Enters a build under what its state says, except for the ready sets.
    fn index_state(&mut self, now: Now, ix: Ix<Build>, state: &BuildState) {
        if let Some(Lease { attempt, agent }) = state.lease() {
            self.by_attempt.insert(*attempt, ix);
            let agent = self.agents.get_mut(agent).expect("a lease names a known agent");
            if matches!(state, BuildState::Receiving(_)) {
                agent.sending.insert(ix);
            } else {
                agent.running.insert(ix);
            }
        }
        if let BuildState::Deferred { until } = state {
            let due = retry::due(*until, now);
            self.builds[ix].past_mut().due = Some(due);
            self.deferred.insert((due, ix));
        }
    }

    /// Gives a build its place.
    fn enter(&mut self, build: Build) -> Ix<Build> {
        self.tally.enters(build.shown);
        let ix = self.builds.insert(build);
        let builds = &self.builds;
        self.by_id.insert(ix.number(), |number| builds[Ix::from_number(number)].id.digest());
        ix
    }

    /// Returns an open build.
    pub(crate) fn find(&self, id: BuildId) -> Option<Ix<Build>> {
        let mut candidates = self.by_id.candidates(id.digest()).map(Ix::from_number);
        candidates.find(|ix| self.builds[*ix].id == id)
    }

    /// Returns the build whose lease an attempt holds.
    fn holder(&self, attempt: AttemptId) -> Option<Ix<Build>> {
        self.by_attempt.get(&attempt).copied()
    }
}

#[cfg(test)]
pub(crate) mod tests;
