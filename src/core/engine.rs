//! The one place where state changes: inputs go in, changes and effects come out.
//!
//! The owner calls [`Engine::step`] with what arrived, makes the changes durable in one
//! transaction, and only then lets the effects out. A step is pure: the same state, time, ids and
//! inputs give the same result.

mod accounts;
mod administration;
mod agents;
mod amend;
mod ask;
mod configure;
mod contested;
mod forget;
mod ignored;
mod input;
mod kept;
mod lost;
mod open;
mod order;
mod queueing;
mod restore;
mod retrial;
mod snapshot;
mod submit;
mod supply;
mod tally;
mod tell;

pub use ask::{AgentView, Ask, Counts, ReadyBuilds, Told, Unplaceable};
pub use ignored::Ignored;
pub use input::{
    Administered, Amended, Amendment, Answer, Authority, Canceled, Decision, Delivery, Effect,
    HoldWish, Input, Inputs, Order, OverQuota, Root, Submission, Token, Wanted,
};
pub use kept::KeptState;
pub use open::{Build, Extras, Request};
pub use restore::{LostAttempt, OpenBuild, Restoring, Saved, SavedAgent};
pub use retrial::{OverBuild, Retrial, Retried, RetryWish};
pub use snapshot::{Snapshot, SnapshotAgent, SnapshotBuild};
pub use supply::{Supplies, Wanting};

use super::{
    agent::{Agent, Capacity},
    arena::{Arena, Ix},
    build::{Blame, BuildEvent, BuildState, Lease, next_state},
    change::Change,
    defect::{Defect, Planted},
    graph::Graph,
    id::{AttemptId, BuildId, Name},
    outcome::OutputPolicy,
    plan::{Accounts, Class, ClassIx, FairShare, Queue, Strategy},
    retry::{self, Retries},
    table::Table,
    time::{Monotonic, Now},
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
    /// How much those go back who used much.
    pub fair_share: FairShare,
    /// How long an agent may be away before its builds go to others, in milliseconds.
    pub lease_ms: u64,
    /// After how many builds in a row that ended through its fault an agent is quarantined; never
    /// when 0.
    pub quarantine_after: u8,
    /// Whether builds are made for inputs that an agent found missing.
    pub build_missing: bool,
    /// How often a build that failed is tried again by itself.
    pub retries: Retries,
    /// The mistake that a simulation has planted.
    pub planted: Planted,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            outputs: OutputPolicy::default(),
            priority_step: 5,
            fair_share: FairShare::default(),
            lease_ms: 20 * 60 * 1_000,
            quarantine_after: 5,
            build_missing: false,
            retries: Retries::NONE,
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
    accounts: Accounts,
    /// Deferred builds by when they are queued again: on the monotonic clock, so that a jump of the
    /// wall clock neither holds them back for years nor lets them all go at once.
    deferred: BTreeSet<(Monotonic, Ix<Build>)>,
    /// How many builds are shown in each state.
    tally: tally::Tally,
    /// How many open builds each submitter has; who has none is not in it.
    open_of: BTreeMap<Name, usize>,
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
    /// What builds share that changed.
    requests: open::Requests,
    /// Whose account was charged.
    charged: BTreeSet<Name>,
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
            accounts: Accounts::default(),
            deferred: BTreeSet::new(),
            tally: tally::Tally::default(),
            open_of: BTreeMap::new(),
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
        let mut turn = Turn {
            now,
            ids,
            requests: open::Requests::default(),
            charged: BTreeSet::new(),
            out: Step::default(),
        };
        self.pass_time(&mut turn);
        self.pass_deadlines(&mut turn);
        for input in inputs {
            self.take(&mut turn, input);
        }
        self.refresh_ready(&mut turn);
        self.ask_for_supplies(&mut turn);
        self.allocate(&mut turn);
        self.note_charges(&mut turn);
        turn.out
    }

    /// Returns how long until [`Engine::step`] must be called even if nothing arrives, in
    /// milliseconds; `None` when only an input can change anything.
    #[must_use]
    pub fn wakes_in_ms(&self, now: Now) -> Option<u64> {
        if self.graph.has_touched() || self.graph.has_unsupplied() {
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
            Input::Cancel { token, builds, by, wanted } => {
                self.cancel(turn, token, &builds, &by, wanted);
            }
            Input::Amend { token, builds, by, amendment } => {
                self.amend(turn, token, &builds, &by, &amendment);
            }
            Input::Retry { token, retrial } => self.retry(turn, token, *retrial),
            Input::Supply(supplies) => self.supply(turn, *supplies),
            Input::Configure { token, settings } => self.configure(turn, token, settings),
            Input::Record { token, changes } => self.record(turn, token, changes),
            Input::Forget { token, what } => self.forget(turn, token, what),
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
            Input::Expel { agent } => self.expel(turn, &agent),
            Input::Intake { closed } => self.close_intake(turn, closed),
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
        self.apply_blaming(turn, ix, event, None);
    }

    /// Does what [`Engine::apply`] does, and counts an attempt that ended.
    fn apply_blaming(
        &mut self,
        turn: &mut Turn<'_>,
        ix: Ix<Build>,
        event: BuildEvent,
        blame: Option<Blame>,
    ) {
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
        if let Some(due) = self.builds[ix].take_due() {
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
        let at = turn.now.wall;
        turn.out.changes.push(Change::BuildMoved { build: id, from, to, blame, at });
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
            self.builds[ix].rare_mut().due = Some(due);
            self.deferred.insert((due, ix));
        }
    }

    /// Gives a build its place.
    fn enter(&mut self, build: Build) -> Ix<Build> {
        self.tally.enters(build.shown);
        match self.open_of.get_mut(&build.request.submitter) {
            Some(open) => *open += 1,
            None => drop(self.open_of.insert(build.request.submitter.clone(), 1)),
        }
        let ix = self.builds.insert(build);
        let builds = &self.builds;
        self.by_id.insert(ix.number(), |number| builds[Ix::from_number(number)].id.digest());
        ix
    }

    /// Counts an open build of somebody no more.
    fn disown(&mut self, submitter: &Name) {
        let open = self.open_of.get_mut(submitter).expect("whoever has a build is counted");
        *open -= 1;
        if *open == 0 {
            self.open_of.remove(submitter);
        }
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
