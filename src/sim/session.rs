//! The agent's end of a control session. It follows `agent::session` and `agent::report`.

use super::{
    machine::{MachineEvent, PAUSE_MS, PAUSE_MS_MAX, Phase, log_of},
    network::{LinkId, Purpose, Side},
    trace::{Short, note},
    world::{Event, World},
};
use crate::{
    core::{
        agent::Capacity,
        build::BuildState,
        id::AttemptId,
        outcome::{BuildFailure, Outcome},
    },
    protocol::{
        handshake::{Capabilities, Hello, PROTOCOL_MAX, PROTOCOL_MIN},
        message::{FromAgent, ToAgent, Welcome},
        session::{AgentEnd, Due},
    },
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The longest piece of log in one message here, in bytes: small, so that there are several.
const PIECE_BYTES: u64 = 200;

/// A session with the coordinator.
pub(super) struct Session {
    pub(super) link: LinkId,
    end: AgentEnd,
    pub(super) is_welcome: bool,
    told: BTreeMap<AttemptId, Told>,
    told_capacity: Option<Capacity>,
    is_deadline_planned: bool,
}

/// What was told of an attempt in a session.
#[derive(Debug, Default)]
struct Told {
    started: bool,
    log_bytes: u64,
    outcome: Option<Outcome>,
}

impl World {
    fn agent_now(&self) -> crate::core::time::Monotonic {
        crate::core::time::Monotonic::from_ms(self.now_ms)
    }

    fn session(&mut self, machine: usize) -> Option<&mut Session> {
        self.machines[machine].agent.as_mut()?.session.as_mut()
    }

    pub(super) fn is_welcome(&self, machine: usize) -> bool {
        let agent = self.machines[machine].agent.as_ref();
        agent.and_then(|agent| agent.session.as_ref()).is_some_and(|session| session.is_welcome)
    }

    /// Opens a session.
    pub(super) fn dial(&mut self, machine: usize) {
        if self.session(machine).is_some() {
            return;
        }
        let link = self.open(machine, Purpose::Control);
        let end = AgentEnd::new(self.agent_now());
        let abilities = &self.machines[machine].abilities;
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            version: "sim".to_owned(),
            instance: self.machines[machine].instance,
            wall_ms: self.wall().as_ms(),
            capabilities: Capabilities {
                store_dir: abilities.store_dir.clone(),
                dialect: abilities.dialect.clone(),
                systems: abilities.systems.clone(),
                emulated_systems: abilities.emulated_systems.clone(),
                features: abilities.features.clone(),
                slots: abilities.slots,
                tags: BTreeMap::new(),
            },
            held: self.machines[machine].held(),
            capacity: self.machines[machine].capacity.clone(),
        };
        let Some(agent) = &mut self.machines[machine].agent else { return };
        agent.session = Some(Session {
            link,
            end,
            is_welcome: false,
            told: BTreeMap::new(),
            told_capacity: hello.capacity.clone(),
            is_deadline_planned: false,
        });
        note!(self, "{} dials ({link}), holds {}", self.who(machine), hello.held.len());
        self.tell_coordinator(machine, &FromAgent::Hello(hello));
        self.plan_agent_deadline(machine);
    }

    fn tell_coordinator(&mut self, machine: usize, message: &FromAgent) {
        let now = self.agent_now();
        let Some(session) = self.session(machine) else { return };
        let (link, bytes) = (session.link, session.end.encode(now, message));
        let bytes = bytes.expect("our messages fit");
        let repeats = !self.weather.is_calm && !matches!(message, FromAgent::Hello(_));
        if repeats && self.chance.permille(self.weather.repeats) {
            self.send(link, Side::Coordinator, bytes.clone());
        }
        self.send(link, Side::Coordinator, bytes);
    }

    fn plan_agent_deadline(&mut self, machine: usize) {
        let (now, life) = (self.now_ms, self.machines[machine].life);
        let Some(session) = self.session(machine) else { return };
        if !std::mem::replace(&mut session.is_deadline_planned, true) {
            let (at, link) = (session.end.deadline().as_ms(), session.link);
            let event = MachineEvent::Deadline { life, link };
            self.at(at.max(now), Event::Machine { machine, event });
        }
    }

    pub(super) fn agent_deadline(&mut self, machine: usize, link: LinkId) {
        let now = self.agent_now();
        let Some(session) = self.session(machine).filter(|session| session.link == link) else {
            return;
        };
        session.is_deadline_planned = false;
        match session.end.on_time(now) {
            Due::PeerDead => return self.session_ends(machine, link),
            Due::Heartbeat => self.tell_coordinator(machine, &FromAgent::Heartbeat {}),
            Due::Nothing => {}
        }
        self.plan_agent_deadline(machine);
    }

    /// The session is over; the agent dials again after a while.
    pub(super) fn session_ends(&mut self, machine: usize, link: LinkId) {
        let Some(session) = self.session(machine).filter(|session| session.link == link) else {
            return;
        };
        let was_welcome = session.is_welcome;
        let life = self.machines[machine].life;
        let Some(agent) = &mut self.machines[machine].agent else { return };
        agent.session = None;
        if was_welcome {
            agent.pause_ms = PAUSE_MS;
        }
        let pause = agent.pause_ms;
        agent.pause_ms = (pause * 2).min(PAUSE_MS_MAX);
        self.close(link, Side::Agent);
        note!(self, "{} lost its session ({link})", self.who(machine));
        let pause = self.chance.between(pause / 2, pause);
        self.after(pause, Event::Machine { machine, event: MachineEvent::Dial { life } });
    }

    pub(super) fn session_data(&mut self, machine: usize, link: LinkId, bytes: &Bytes) {
        let now = self.agent_now();
        let Some(session) = self.session(machine).filter(|session| session.link == link) else {
            return;
        };
        if let Err(error) = session.end.receive(now, bytes) {
            return self.violated(format!("the coordinator's frame cannot be read: {error}"));
        }
        loop {
            let session = self.session(machine).filter(|session| session.link == link);
            let Some(message) = session.and_then(|session| session.end.next_message()) else {
                return;
            };
            self.obey_message(machine, link, message);
        }
    }

    fn obey_message(&mut self, machine: usize, link: LinkId, message: ToAgent) {
        let is_welcome = self.is_welcome(machine);
        match message {
            ToAgent::Welcome(welcome) if !is_welcome => self.welcomed(machine, &welcome),
            ToAgent::Refused { reason } => {
                note!(self, "{} is refused: {reason}", self.who(machine));
                self.session_ends(machine, link);
            }
            ToAgent::Heartbeat {} | ToAgent::Restarting { .. } => {}
            ToAgent::Allocate(allocation) if is_welcome => self.allocated(machine, &allocation),
            ToAgent::Cancel { attempt } if is_welcome => self.forget(machine, attempt),
            ToAgent::Settled { attempt } if is_welcome => {
                self.check_settled(machine, attempt);
                self.forget(machine, attempt);
            }
            ToAgent::LogReceived { attempt, offset } if is_welcome => {
                if let Some(life) = self.life(machine, attempt) {
                    life.acknowledged = life.acknowledged.max(offset);
                }
            }
            message => self.violated(format!("the coordinator is out of turn with {message:?}")),
        }
    }

    /// What an agent may forget must be kept by the coordinator.
    pub(super) fn check_settled(&mut self, machine: usize, attempt: AttemptId) {
        let own = self.life(machine, attempt).is_some();
        let ended = self.shadow.attempts.get(&attempt).is_some_and(|known| known.end.is_some());
        if own && !ended {
            let id = Short(attempt.as_bytes());
            self.violated(format!("S1: the end of {id} is settled and not kept"));
        }
    }

    fn welcomed(&mut self, machine: usize, welcome: &Welcome) {
        if let Some(session) = self.session(machine) {
            session.is_welcome = true;
        }
        note!(
            self,
            "{} is welcome, keeps {}, drops {}, reports {}",
            self.who(machine),
            welcome.keep.len(),
            welcome.drop.len(),
            welcome.report.len()
        );
        // What it said when it dialed may be out of date.
        self.tell_capacity(machine);
        for attempt in &welcome.drop {
            self.forget(machine, *attempt);
        }
        let Some(agent) = &mut self.machines[machine].agent else { return };
        for (attempt, life) in &mut agent.lives {
            life.is_muted = welcome.report.contains(attempt);
        }
        let (muted, lives): (Vec<_>, Vec<_>) =
            agent.lives.keys().copied().partition(|attempt| welcome.report.contains(attempt));
        for attempt in muted {
            self.tell_made(machine, attempt);
        }
        for attempt in lives {
            self.report(machine, attempt);
            self.advance(machine, attempt);
        }
    }

    /// Tells what was made in an attempt that was given up.
    fn tell_made(&mut self, machine: usize, attempt: AttemptId) {
        let spool = self.machines[machine].spools.get(&attempt);
        let done = spool.and_then(|spool| spool.result.as_ref());
        let outputs = done.map(|done| super::delivery::records_of(&done.outputs));
        match outputs.filter(|outputs| !outputs.is_empty()) {
            Some(outputs) => {
                self.tell_coordinator(machine, &FromAgent::Report { attempt, outputs });
            }
            None => self.forget(machine, attempt),
        }
    }

    /// An agent wants another number of builds at a time from now on.
    pub(super) fn wants_slots(&mut self, machine: usize, slots: Option<u32>) {
        let reason = || "somebody plays on it".to_owned();
        self.machines[machine].capacity =
            slots.map(|slots| Capacity { slots, reason: Some(reason()) });
        self.tell_capacity(machine);
    }

    /// Tells how many builds are wanted, unless that was told in this session.
    fn tell_capacity(&mut self, machine: usize) {
        let wanted = self.machines[machine].capacity.clone();
        let whole = Capacity { slots: self.machines[machine].abilities.slots, reason: None };
        let Some(session) = self.session(machine).filter(|session| session.is_welcome) else {
            return;
        };
        if session.told_capacity != wanted {
            session.told_capacity.clone_from(&wanted);
            let Capacity { slots, reason } = wanted.unwrap_or(whole);
            note!(self, "{} wants {slots} builds at a time", self.who(machine));
            self.tell_coordinator(machine, &FromAgent::Capacity { slots, reason });
        }
    }

    /// Tells what was not told yet in this session.
    pub(super) fn report(&mut self, machine: usize, attempt: AttemptId) {
        if !self.is_welcome(machine) {
            return;
        }
        let Some(life) = self.life(machine, attempt) else { return };
        if life.is_muted || matches!(life.phase, Phase::Queued | Phase::Preparing) {
            return;
        }
        let acknowledged = life.acknowledged;
        let Some(spool) = self.machines[machine].spools.get(&attempt) else { return };
        let (is_started, log_bytes) = (spool.is_started, spool.log_bytes);
        let outcome = spool.result.as_ref().map(|done| done.outcome.clone());
        let Some(session) = self.session(machine) else { return };
        let first = || Told { log_bytes: acknowledged, ..Told::default() };
        let told = session.told.entry(attempt).or_insert_with(first);
        let mut messages = Vec::new();
        if is_started && !std::mem::replace(&mut told.started, true) {
            messages.push(FromAgent::Started { attempt });
        }
        while told.log_bytes < log_bytes {
            let (offset, end) = (told.log_bytes, log_bytes.min(told.log_bytes + PIECE_BYTES));
            let bytes = log_of(attempt, offset, end).into();
            messages.push(FromAgent::Log { attempt, offset, bytes });
            told.log_bytes = end;
        }
        let mut tells_end = false;
        if outcome.is_some() && outcome != told.outcome {
            told.outcome.clone_from(&outcome);
            tells_end = true;
            messages.extend(outcome.map(|outcome| FromAgent::Finished {
                attempt,
                outcome,
                log_bytes,
            }));
        }
        for message in messages {
            self.tell_coordinator(machine, &message);
        }
        if tells_end && let Some(life) = self.life(machine, attempt) {
            life.is_told = true;
        }
    }

    /// An agent speaks of an attempt that is not its own, or is over.
    pub(super) fn meddle(&mut self, machine: usize) {
        let attempts: Vec<AttemptId> = self.shadow.attempts.keys().copied().collect();
        if attempts.is_empty() || !self.is_welcome(machine) {
            return;
        }
        let live = self.shadow.attempts.iter().filter(|(_, attempt)| attempt.end.is_none());
        let live: Vec<AttemptId> = live.map(|(attempt, _)| *attempt).collect();
        let alive = !live.is_empty() && self.chance.permille(800);
        let attempt = *self.chance.pick(if alive { &live } else { &attempts });
        if self.life(machine, attempt).is_some() {
            return;
        }
        note!(self, "{} meddles with {}", self.who(machine), Short(attempt.as_bytes()));
        let is_sent = |attempt: &AttemptId| {
            let known = self.shadow.attempts.get(attempt);
            let build = known.and_then(|known| self.shadow.builds.get(&known.build));
            build.is_some_and(|build| matches!(build.state, BuildState::Receiving(_)))
        };
        let (course, sent) = (self.chance.below(5), live.iter().find(|a| is_sent(a)).copied());
        match course {
            0 => self.tell_coordinator(machine, &FromAgent::Started { attempt }),
            1 => {
                let outcome = *self.chance.pick(&[0, 1]);
                let outcome = match outcome {
                    0 => Outcome::Failed(BuildFailure::Exit(3)),
                    _ => Outcome::Built,
                };
                let log_bytes = 0;
                let message = FromAgent::Finished { attempt, outcome, log_bytes };
                self.tell_coordinator(machine, &message);
            }
            2 => {
                let known = self.shadow.attempts.get(&attempt);
                let build = known.and_then(|known| self.shadow.builds.get(&known.build));
                let Some(recipe) = build.map(|build| build.recipe) else { return };
                let outputs = super::delivery::records_of(&self.offered(recipe, attempt));
                self.tell_coordinator(machine, &FromAgent::Report { attempt, outputs });
            }
            _ => self.offer_as_own(machine, sent.unwrap_or(attempt)),
        }
    }
}
