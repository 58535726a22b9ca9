//! Agents come and go, and say how their attempts fare.

use super::{Answer, Build, Delivery, Effect, Engine, Ignored, Order, Token, Turn, lost::Sorted};
use crate::core::{
    agent::{Abilities, Agent, AgentEvent, AgentState, Capacity, SessionId, next_state},
    arena::Ix,
    attempt::{AttemptState, Held},
    build::{Blame, BuildEvent, BuildState, Lease},
    change::{Change, NarOrigin, NarRecord, OutputRecord, Verdict},
    defect::{Defect, Planted},
    demands::Demands,
    event::EventKind,
    id::{AttemptId, InstanceId, Name},
    outcome::{AttemptEnd, BuildFailure, Outcome, OutputPolicy, SetupFailure},
    plan::Kind,
    retry,
    store_path::{PathHash, StorePath},
    time::{Monotonic, Now},
};
use std::{collections::BTreeSet, sync::Arc};

impl Engine {
    /// An agent opens a session: what it still holds goes on, what it lost is given back, and what
    /// was given up while it was away is taken back where nobody else has it.
    pub(super) fn join(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        name: &Name,
        instance: InstanceId,
        abilities: Abilities,
        held: &[Held],
    ) {
        if let Some(agent) = self.agents.get(name)
            && let Some(current) = agent.session()
        {
            if agent.instance != instance
                && !self.settings.planted.is(Defect::SecondInstanceWelcome)
            {
                let reason = format!(
                    "another machine is connected as ‘{name}’: give this one a key and a name of \
                     its own, or stop the other"
                );
                return Self::tell(turn, session, Order::Refuse { reason });
            }
            Self::tell(turn, current, Order::Replaced);
        }
        turn.out.changes.push(Change::Agent {
            name: name.clone(),
            instance,
            abilities: abilities.clone(),
            at: turn.now.wall,
        });
        turn.tell_of(name, EventKind::AgentConnected);
        self.enter_agent(turn, session, name.clone(), instance, abilities);
        // What a mistake overlooks, its agent has all the same.
        let held = match held.split_last() {
            Some((_, others)) if self.settings.planted.is(Defect::ReadoptionForgets) => others,
            Some(_) | None => held,
        };
        let welcome = turn.out.effects.len();
        let has: BTreeSet<AttemptId> = held.iter().map(|held| held.attempt).collect();
        // First, so that an older attempt of the same build can go on instead.
        for attempt in self.attempts_of(name) {
            if !has.contains(&attempt) && !self.settings.planted.is(Defect::LossUnnoticed) {
                self.give_back(turn, attempt, AttemptEnd::AgentLost);
            }
        }
        let Sorted { keep, drop, report } = self.sort_held(turn, name, held);
        let order = Order::Welcome { keep, drop, report };
        turn.out.effects.insert(welcome, Effect::Tell { session, order });
    }

    /// Notes an agent's session and what it can take.
    fn enter_agent(
        &mut self,
        turn: &Turn<'_>,
        session: SessionId,
        name: Name,
        instance: InstanceId,
        abilities: Abilities,
    ) {
        let classes = self
            .queue
            .kinds()
            .filter(|(_, kind)| {
                kind.obstacle(&name, &abilities).is_none()
                    || self.settings.planted.is(Defect::AbilitiesUnchecked)
            })
            .map(|(ix, _)| ix)
            .collect();
        let agent = self.agents.entry(name.clone()).or_insert_with(|| {
            let away = AgentState::Away { since: turn.now.mono };
            Agent::new(name, instance, abilities.clone(), away, turn.now.wall)
        });
        agent.state = next_state(agent.state, AgentEvent::Joined { session });
        agent.instance = instance;
        agent.capacity = Capacity::whole(&abilities);
        agent.abilities = abilities;
        agent.classes = classes;
        agent.last_seen = turn.now.wall;
    }

    /// A session ended; the agent's builds are kept for a lease.
    pub(super) fn leave(&mut self, turn: &mut Turn<'_>, session: SessionId) {
        let Some(agent) = self.agents.values_mut().find(|agent| agent.session() == Some(session))
        else {
            return;
        };
        let at = lease_clock(self.settings.planted, turn.now);
        agent.state = next_state(agent.state, AgentEvent::Left { session, at });
        agent.last_seen = turn.now.wall;
        turn.out.changes.push(Change::Agent {
            name: agent.name.clone(),
            instance: agent.instance,
            abilities: agent.abilities.clone(),
            at: turn.now.wall,
        });
        turn.tell_of(&agent.name, EventKind::AgentAway);
        if self.settings.planted.is(Defect::LeaseEndsWithConnection) {
            let name = agent.name.clone();
            for attempt in self.attempts_of(&name) {
                self.give_back(turn, attempt, AttemptEnd::AgentLost);
            }
        }
    }

    /// Returns the live attempts of an agent.
    pub(super) fn attempts_of(&self, name: &Name) -> Vec<AttemptId> {
        let Some(agent) = self.agents.get(name) else { return Vec::new() };
        let held = agent.running.iter().chain(&agent.sending);
        held.filter_map(|ix| self.builds[*ix].state.lease().map(|lease| lease.attempt)).collect()
    }

    /// Returns when the leases of agents that are away run out.
    pub(super) fn lease_ends(&self) -> impl Iterator<Item = (Monotonic, &Agent)> {
        self.agents.values().filter_map(|agent| match agent.state {
            AgentState::Connected { .. } => None,
            AgentState::Away { .. } if agent.running.is_empty() && agent.sending.is_empty() => None,
            AgentState::Away { since } => Some((since.plus_ms(self.settings.lease_ms), agent)),
        })
    }

    /// Ends leases that ran out and queues builds whose deferral is over.
    pub(super) fn pass_time(&mut self, turn: &mut Turn<'_>) {
        let now = lease_clock(self.settings.planted, turn.now);
        let over =
            |end: &Monotonic| *end <= now && !self.settings.planted.is(Defect::LeaseNeverEnds);
        let lost: Vec<AttemptId> = self
            .lease_ends()
            .filter(|(end, _)| over(end))
            .flat_map(|(_, agent)| self.attempts_of(&agent.name))
            .collect();
        for attempt in lost {
            self.give_back(turn, attempt, AttemptEnd::AgentLost);
        }
        while let Some((until, ix)) = self.deferred.first().copied() {
            if until > turn.now.mono {
                break;
            }
            // A pause is never longer than an hour on this clock; what somebody wished for may be.
            let wished = self.builds[ix].not_before();
            if let Some(not_before) = wished.filter(|not_before| *not_before > turn.now.wall) {
                let due = retry::due(not_before, turn.now);
                self.deferred.remove(&(until, ix));
                self.deferred.insert((due, ix));
                self.builds[ix].rare_mut().due = Some(due);
                continue;
            }
            self.apply(turn, ix, BuildEvent::Due);
        }
    }

    /// Returns the build of an attempt that the agent on this session holds. Any other message is
    /// counted as stale, and if the session is an agent's current one, the agent is told to forget
    /// the attempt.
    fn fenced(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        attempt: AttemptId,
        message: Ignored,
    ) -> Option<Ix<Build>> {
        let holder = self.holder(attempt).filter(|ix| {
            let lease = self.builds[*ix].state.lease();
            lease.and_then(|lease| self.agents.get(&lease.agent)).and_then(Agent::session)
                == Some(session)
                || self.settings.planted.is(Defect::FenceDropped)
        });
        if holder.is_none() {
            self.ignore(message);
            // An attempt that lives on under a newer session must not be stopped by what was
            // still under way on the old one.
            if self.agents.values().any(|agent| agent.session() == Some(session)) {
                Self::tell(turn, session, Order::Cancel { attempt });
            }
        }
        holder
    }

    /// The builder of an attempt runs.
    pub(super) fn started(&mut self, turn: &mut Turn<'_>, session: SessionId, attempt: AttemptId) {
        let Some(ix) = self.fenced(turn, session, attempt, Ignored::StaleStarted) else { return };
        if matches!(*self.builds[ix].state, BuildState::Allocated(_)) {
            self.apply(turn, ix, BuildEvent::Started(attempt));
            Self::move_attempt(turn, attempt, AttemptState::Building);
        } else {
            self.ignore(Ignored::RepeatedStarted);
        }
    }

    pub(super) fn move_attempt(turn: &mut Turn<'_>, attempt: AttemptId, to: AttemptState) {
        turn.out.changes.push(Change::AttemptMoved { attempt, to, at: turn.now.wall });
    }

    /// An attempt is over on the agent.
    pub(super) fn finished(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        attempt: AttemptId,
        outcome: Outcome,
    ) {
        let Some(ix) = self.fenced(turn, session, attempt, Ignored::StaleFinished) else { return };
        // A repeated report after a reconnect finds its build already further.
        let receiving = matches!(*self.builds[ix].state, BuildState::Receiving(_));
        match outcome {
            Outcome::Built if receiving => {
                self.ignore(Ignored::RepeatedFinished);
                if self.settings.planted.is(Defect::FinishedTwice) {
                    Self::move_attempt(turn, attempt, AttemptState::Receiving);
                }
            }
            Outcome::Built => {
                self.apply(turn, ix, BuildEvent::Built(attempt));
                Self::move_attempt(turn, attempt, AttemptState::Receiving);
                if let Some(token) = self.early_offers.remove(&attempt) {
                    self.welcome_offer(turn, token, ix);
                }
            }
            Outcome::Failed(failure) if !receiving => {
                self.fail(turn, ix, attempt, failure);
                Self::tell(turn, session, Order::Settled { attempt });
            }
            Outcome::Failed(_) => {
                let end = AttemptEnd::UploadFailed(
                    "the agent reported outputs and then a failure".to_owned(),
                );
                self.give_back(turn, attempt, end);
                Self::tell(turn, session, Order::Settled { attempt });
            }
            Outcome::SetupFailed(failure) => {
                self.give_back(turn, attempt, AttemptEnd::SetupFailed(failure));
                Self::tell(turn, session, Order::Settled { attempt });
            }
            Outcome::Canceled => {
                // We did not ask for it, or the attempt would be stale: somebody stopped it there.
                let failure = SetupFailure::AttemptLost("canceled on the agent".to_owned());
                self.give_back(turn, attempt, AttemptEnd::SetupFailed(failure));
                Self::tell(turn, session, Order::Settled { attempt });
            }
        }
    }

    /// An attempt found the build failing. It is tried again by the rules of [`retry`], on another
    /// agent first, or has failed.
    fn fail(
        &mut self,
        turn: &mut Turn<'_>,
        ix: Ix<Build>,
        attempt: AttemptId,
        failure: BuildFailure,
    ) {
        let agent = self.builds[ix].state.lease().map(|lease| lease.agent.clone());
        let failures = self.builds[ix].failures();
        let goes_native = agent.as_ref().is_some_and(|agent| self.may_go_native(agent, ix));
        let again = failures < u32::from(self.settings.retries.after(&failure));
        self.end_attempt(turn, attempt, AttemptEnd::Failed(failure));
        if !goes_native && !again {
            self.finish(turn, ix, BuildEvent::Failed(attempt));
            return;
        }
        let build = &mut self.builds[ix];
        if !self.settings.planted.is(Defect::FailureUncounted) {
            build.change_extras(|extras| extras.failures += 1);
        }
        build.rare_mut().avoid = agent;
        // Where it is tried natively, nothing is to be waited for.
        let pause = retry::next_try_after_failure(failures + 1, turn.now.wall);
        let until = (!goes_native).then_some(pause);
        let event = BuildEvent::GivenBack { attempt, until };
        self.apply_blaming(turn, ix, event, Some(Blame::Build));
        if goes_native {
            let native = Demands { native_only: true, ..self.builds[ix].extras().demands };
            self.set_demands(turn, ix, &native);
        }
    }

    /// Tells whether an agent that found a build failing emulates its system, and one is known that
    /// does not and could have it.
    fn may_go_native(&self, agent: &Name, ix: Ix<Build>) -> bool {
        if !self.settings.retries.emulated || !self.emulates(agent, ix) {
            return false;
        }
        let Kind { class, demands } = self.queue.kind(self.kind_of(ix));
        let demands = Demands { native_only: true, ..demands.clone() };
        let native = Kind { class: class.clone(), demands };
        self.agents.values().any(|it| native.obstacle(&it.name, &it.abilities).is_none())
    }

    /// Ends a live attempt through no fault of the build, which is tried again by the rules of
    /// [`retry`].
    pub(super) fn give_back(&mut self, turn: &mut Turn<'_>, attempt: AttemptId, end: AttemptEnd) {
        let ix = self.holder(attempt).expect("only live attempts are given back");
        let agent = self.builds[ix].state.lease().map(|lease| lease.agent.clone());
        if let AttemptEnd::SetupFailed(SetupFailure::MissingInputs(paths)) = &end {
            let node = self.builds[ix].node;
            for path in paths {
                // Of what the build does not need, the agent has nothing to say.
                if !self.settings.planted.is(Defect::MissingUnnoticed)
                    && self.graph.needs(node, path.hash())
                    && self.graph.miss(path.hash())
                {
                    let (path, at) = (path.hash(), turn.now.wall);
                    turn.out.changes.push(Change::Missing { path, at });
                }
            }
        }
        // What it waits for now ends the pause as well. Nothing else does: an agent may miss a path
        // that is held, or one that no input makes, and would be asked again at once, for ever.
        let waits_for_input = !self.graph.node(self.builds[ix].node).is_ready();
        let rare = self.builds[ix].rare_mut();
        if !self.settings.planted.is(Defect::EndsUncounted) {
            rare.infrastructure_ends = rare.infrastructure_ends.saturating_add(1);
        }
        let ends = rare.infrastructure_ends;
        rare.avoid = agent;
        if let (AttemptEnd::AgentLost, Some(agent)) = (&end, &rare.avoid) {
            self.lost.insert(attempt, ix, agent.clone());
        }
        let until = if waits_for_input || self.settings.planted.is(Defect::RetryWithoutPause) {
            None
        } else {
            retry::next_try(&end, ends, turn.now.wall)
        };
        self.end_attempt(turn, attempt, end);
        let event = BuildEvent::GivenBack { attempt, until };
        self.apply_blaming(turn, ix, event, Some(Blame::Infrastructure));
    }

    /// Tells whether an agent holds an attempt, and what its outputs must be. An offer that came
    /// before the report that the attempt is finished is answered with that report.
    pub(super) fn offer(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        agent: &Name,
        attempt: AttemptId,
    ) {
        let anybody = self.settings.planted.is(Defect::StrangerDelivers);
        let own = |lease: &Lease| lease.agent == *agent || anybody;
        let holder = self.holder(attempt);
        match holder.map(|ix| (ix, &*self.builds[ix].state)) {
            Some((ix, BuildState::Receiving(lease))) if own(lease) => {
                self.welcome_offer(turn, token, ix);
            }
            Some((_, BuildState::Allocated(lease) | BuildState::Building(lease))) if own(lease) => {
                if let Some(earlier) = self.early_offers.insert(attempt, token) {
                    let answer = Answer::Offer { derivation: None };
                    turn.out.effects.push(Effect::Reply { token: earlier, answer });
                }
            }
            Some(_) | None => {
                self.ignore(Ignored::StaleOffer);
                let answer = Answer::Offer { derivation: None };
                turn.out.effects.push(Effect::Reply { token, answer });
            }
        }
    }

    fn welcome_offer(&self, turn: &mut Turn<'_>, token: Token, ix: Ix<Build>) {
        let derivation = Some(self.graph.path(self.builds[ix].node));
        turn.out.effects.push(Effect::Reply { token, answer: Answer::Offer { derivation } });
    }

    /// Returns the build whose outputs this agent is sending under this attempt.
    fn receiving(&mut self, agent: &Name, attempt: AttemptId) -> Option<Ix<Build>> {
        let ix = self.holder(attempt).filter(|ix| match &*self.builds[*ix].state {
            BuildState::Receiving(lease) => {
                lease.agent == *agent || self.settings.planted.is(Defect::StrangerDelivers)
            }
            BuildState::Deferred { .. }
            | BuildState::Queued
            | BuildState::Allocated(_)
            | BuildState::Building(_)
            | BuildState::Succeeded { .. }
            | BuildState::Failed { .. }
            | BuildState::Canceled => false,
        });
        if ix.is_none() {
            self.ignore(Ignored::StaleDelivery);
        }
        ix
    }

    /// All outputs of an attempt are in, or were refused.
    pub(super) fn deliver(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        agent: &Name,
        attempt: AttemptId,
        delivery: Delivery,
    ) {
        let Some(ix) = self.receiving(agent, attempt) else {
            let answer = Answer::Delivered { accepted: false };
            turn.out.effects.push(Effect::Reply { token, answer });
            return;
        };
        match delivery {
            Delivery::Rejected(reason) => {
                self.give_back(turn, attempt, AttemptEnd::Rejected(reason));
            }
            Delivery::Verified { outputs, nars, files, verdict } => {
                let is_to_be_written = !files.is_empty();
                turn.out.changes.extend(files.into_iter().map(Change::UnwrittenNar));
                let publish = self.commit(turn, ix, attempt, outputs, &nars, verdict);
                if is_to_be_written || !publish.is_empty() {
                    turn.out.effects.push(Effect::Publish { paths: publish });
                }
            }
        }
        // This answer settles the attempt on the agent, too: an order on the control channel could
        // overtake it.
        let answer = Answer::Delivered { accepted: true };
        turn.out.effects.push(Effect::Reply { token, answer });
    }

    /// Commits all outputs of an attempt together. When one of them differs from what is held, none
    /// of them becomes available or is published: they are kept beside. Returns what is to be
    /// published.
    fn commit(
        &mut self,
        turn: &mut Turn<'_>,
        ix: Ix<Build>,
        attempt: AttemptId,
        outputs: Vec<OutputRecord>,
        nars: &[Arc<NarRecord>],
        planned: Verdict,
    ) -> Vec<StorePath> {
        // What was held when the outputs were asked for is one thing; others have delivered since.
        let verdict =
            if nars.iter().any(|nar| self.differs(nar)) { Verdict::Disputed } else { planned };
        let unnoticed = self.settings.planted.is(Defect::OutputUnnoticed);
        let mut publish = Vec::new();
        for nar in nars {
            turn.out.changes.push(match verdict {
                Verdict::Agreed => Change::Nar(Arc::clone(nar)),
                Verdict::Disputed => Change::DisputedNar { attempt, nar: Arc::clone(nar) },
            });
            if verdict == Verdict::Agreed && nar.origin != NarOrigin::Trusted {
                publish.push(nar.info.path.clone());
            }
        }
        // Of these there are no nars: that they were made is all there will be of them.
        let recorded: Vec<PathHash> = match self.settings.outputs {
            OutputPolicy::Take => Vec::new(),
            OutputPolicy::Record => outputs.iter().map(|output| output.path.hash()).collect(),
        };
        turn.out.changes.push(Change::Outputs { attempt, outputs, verdict });
        self.end_attempt(turn, attempt, AttemptEnd::Succeeded);
        for path in recorded {
            self.graph.hold(path);
        }
        if verdict == Verdict::Agreed && !unnoticed {
            // Only what the depot took: outputs that were held are known to be, and those that it
            // did not take are not.
            for nar in nars {
                self.hold(nar);
            }
        }
        self.finish(turn, ix, BuildEvent::Committed(attempt));
        publish
    }
}

/// Returns the time that leases are measured on.
fn lease_clock(planted: Planted, now: Now) -> Monotonic {
    if planted.is(Defect::LeaseOnWallClock) {
        return Monotonic::from_ms(u64::try_from(now.wall.as_ms()).unwrap_or(0));
    }
    now.mono
}
