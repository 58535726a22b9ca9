//! Who takes builds just now, and who does not: what agents want, what people decide, and what
//! follows from failures.

use super::{Administered, Answer, Decision, Effect, Engine, Order, Token, Turn};
use crate::core::{
    agent::{Agent, Capacity, SUSPENSION_REASON_BYTES_MAX, SessionId, Suspension, SuspensionKind},
    audit::{AuditChange, AuditRecord},
    change::Change,
    defect::Defect,
    event::EventKind,
    id::{AttemptId, Name},
    outcome::{AttemptEnd, MachineVerdict},
    time::Timestamp,
};

/// Who the audit names for what the coordinator decides by itself.
const COORDINATOR: &str = "coordinator";

impl Engine {
    /// An agent wants to run so many builds at a time. What an old session still had under way, or
    /// one that was refused, changes nothing.
    pub(super) fn note_capacity(&mut self, session: SessionId, slots: u32, reason: Option<String>) {
        let mut agents = self.agents.values_mut();
        let Some(agent) = agents.find(|agent| agent.session() == Some(session)) else { return };
        let notices = !self.settings.planted.is(Defect::CapacityUnnoticed);
        agent.capacity = if slots < agent.abilities.slots && notices {
            Capacity { slots, reason }
        } else {
            Capacity::whole(&agent.abilities)
        };
    }

    /// Returns why the coordinator cannot take results in now; absent when it can.
    #[must_use]
    pub fn intake_closed(&self) -> Option<&str> {
        self.intake_closed.as_deref()
    }

    /// Somebody decides about an agent. The latest decision counts, whatever it was before.
    pub(super) fn administer(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        name: &Name,
        decision: Decision,
        by: Name,
    ) {
        let answer = self.decide(turn, name, decision, by);
        turn.out.effects.push(Effect::Reply { token, answer: Answer::Administered(answer) });
    }

    fn decide(
        &mut self,
        turn: &mut Turn<'_>,
        name: &Name,
        decision: Decision,
        by: Name,
    ) -> Administered {
        let Some(agent) = self.agents.get(name) else { return Administered::NoSuch };
        let (kind, reason, until) = match decision {
            Decision::Pause { reason, until } => (SuspensionKind::Paused, reason, until),
            Decision::Drain { reason, until } => (SuspensionKind::Draining, reason, until),
            Decision::Resume => {
                self.forgive(turn, name);
                self.suspend(turn, name, None);
                return Administered::Done;
            }
            Decision::Remove if agent.session().is_some() => return Administered::Connected,
            Decision::Remove => {
                self.forget_agent(turn, name);
                return Administered::Done;
            }
        };
        let since = turn.now.wall;
        let suspension = Suspension { kind, reason, by: Some(by), since, until };
        self.suspend(turn, name, Some(suspension));
        Administered::Done
    }

    /// Sets or lifts what is decided about an agent.
    fn suspend(&mut self, turn: &mut Turn<'_>, name: &Name, suspension: Option<Suspension>) {
        let Some(agent) = self.agents.get_mut(name) else { return };
        if agent.suspension != suspension {
            agent.suspension.clone_from(&suspension);
            turn.tell_decision(name, suspension.as_ref());
            turn.out.changes.push(Change::AgentSuspended { name: name.clone(), suspension });
        }
    }

    fn forget_agent(&mut self, turn: &mut Turn<'_>, name: &Name) {
        for attempt in self.attempts_of(name) {
            self.give_back(turn, attempt, AttemptEnd::AgentLost);
        }
        self.agents.remove(name);
        turn.out.changes.push(Change::AgentRemoved { name: name.clone() });
        turn.tell_of(name, EventKind::AgentRemoved);
    }

    /// Returns when something decided about agents ends or must be done.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Timestamp, &Agent)> {
        self.agents.values().filter_map(|agent| {
            let suspension = agent.suspension.as_ref()?;
            let is_due = match suspension.kind {
                SuspensionKind::Paused => true,
                SuspensionKind::Draining => !agent.is_empty(),
                SuspensionKind::Quarantined => false,
            };
            Some((suspension.until?, agent)).filter(|_| is_due)
        })
    }

    /// Lifts pauses that are over, and gives to others what agents still have that should be
    /// empty.
    pub(super) fn pass_deadlines(&mut self, turn: &mut Turn<'_>) {
        let over: Vec<(Name, Option<SessionId>, bool)> = self
            .deadlines()
            .filter(|(until, _)| *until <= turn.now.wall)
            .map(|(_, agent)| (agent.name.clone(), agent.session(), agent.is_draining()))
            .collect();
        for (name, session, is_draining) in over {
            if !is_draining {
                self.suspend(turn, &name, None);
                continue;
            }
            for attempt in self.attempts_of(&name) {
                self.give_back(turn, attempt, AttemptEnd::Drained);
                if let Some(session) = session {
                    Self::tell(turn, session, Order::Cancel { attempt });
                }
            }
        }
    }

    /// Draws from the end of a live attempt what it says of its agent, and quarantines the agent
    /// when too many builds in a row say the same.
    ///
    /// Only different builds count, so that no single bad one, however often it is tried, takes an
    /// agent away from the others.
    pub(super) fn judge(&mut self, turn: &mut Turn<'_>, attempt: AttemptId, end: &AttemptEnd) {
        let Some(ix) = self.holder(attempt) else { return };
        let Some(lease) = self.builds[ix].state.lease() else { return };
        let (build, name) = (self.builds[ix].id, lease.agent.clone());
        match end.machine_verdict() {
            MachineVerdict::Unknown => return,
            MachineVerdict::Sound => return self.forgive(turn, &name),
            MachineVerdict::AtFault => {}
        }
        let Some(agent) = self.agents.get_mut(&name) else { return };
        if !agent.failures.contains(&build) && agent.failures.len() < usize::from(u8::MAX) {
            agent.failures.push(build);
            let builds = agent.failures.clone();
            turn.out.changes.push(Change::AgentFailures { name: name.clone(), builds });
        }
        let limit = usize::from(self.settings.quarantine_after);
        if limit == 0 || agent.failures.len() < limit || !agent.may_be_quarantined() {
            return;
        }
        let number = agent.failures.len();
        let words =
            if number == 1 { "build".to_owned() } else { format!("{number} builds in a row") };
        let mut reason = format!("{words} ended through its fault; the last: {}", end.brief());
        reason.truncate(reason.floor_char_boundary(SUSPENSION_REASON_BYTES_MAX));
        self.quarantine(turn, name, reason);
    }

    fn quarantine(&mut self, turn: &mut Turn<'_>, name: Name, reason: String) {
        let suspension = Suspension {
            kind: SuspensionKind::Quarantined,
            reason: Some(reason.clone()),
            by: None,
            since: turn.now.wall,
            until: None,
        };
        self.suspend(turn, &name, Some(suspension));
        let line = format!("agents quarantine {name}: {reason}");
        Self::note_own_decision(turn, line);
        turn.out.effects.push(Effect::Quarantined { agent: name, reason });
    }

    /// Writes down what the coordinator decides by itself.
    fn note_own_decision(turn: &mut Turn<'_>, line: String) {
        let principal = COORDINATOR.parse().expect("the word is a name");
        let record = AuditRecord::of_coordinator(principal, line, turn.now.wall);
        turn.out.changes.push(Change::Audit(Box::new(AuditChange::Line(record))));
    }

    /// An agent's key is known no more: its session is over for the engine, and what it has goes to
    /// others at once. Unlike a lost connection, nothing makes it likely that it comes back.
    pub(super) fn expel(&mut self, turn: &mut Turn<'_>, name: &Name) {
        let Some(agent) = self.agents.get(name) else { return };
        if let Some(session) = agent.session() {
            self.leave(turn, session);
        }
        let attempts = self.attempts_of(name);
        if attempts.is_empty() {
            return;
        }
        let number = attempts.len();
        for attempt in attempts {
            self.give_back(turn, attempt, AttemptEnd::AgentLost);
        }
        let builds = if number == 1 { "build" } else { "builds" };
        let line =
            format!("agents expel {name}: its key is known no more; {number} {builds} to others");
        Self::note_own_decision(turn, line);
    }

    /// Forgets what an agent did wrong.
    fn forgive(&mut self, turn: &mut Turn<'_>, name: &Name) {
        let Some(agent) = self.agents.get_mut(name) else { return };
        if !agent.failures.is_empty() {
            agent.failures.clear();
            let (name, builds) = (name.clone(), Vec::new());
            turn.out.changes.push(Change::AgentFailures { name, builds });
        }
    }
}

impl Agent {
    fn is_draining(&self) -> bool {
        self.suspension.as_ref().is_some_and(|one| one.kind == SuspensionKind::Draining)
    }

    /// Tells whether a quarantine would say more than what is decided already. A pause may end by
    /// itself; a draining agent has a deadline to keep, and gets no builds anyway.
    fn may_be_quarantined(&self) -> bool {
        match self.suspension.as_ref().map(|suspension| suspension.kind) {
            None | Some(SuspensionKind::Paused) => true,
            Some(SuspensionKind::Draining | SuspensionKind::Quarantined) => false,
        }
    }
}
