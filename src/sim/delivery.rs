//! The agent's bulk exchanges: what an attempt needs comes down, its outputs go up.
//!
//! It follows `agent::prepare` and `agent::upload`, with one connection per exchange.

use super::{
    machine::{Done, MachineEvent, PAUSE_MS_MAX, Phase},
    network::{LinkId, Purpose, Side},
    trace::{Short, note},
    world::{Event, World},
};
use crate::{
    core::{
        change::OutputRecord,
        hash::Sha256,
        id::AttemptId,
        outcome::{Outcome, SetupFailure},
        store_path::StorePath,
    },
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, OfferedOutput, OutputPlan, RefusalCode},
        frame::{self, Decoder},
    },
};
use bytes::Bytes;

/// How long the coordinator may take for an answer, in milliseconds.
const ANSWER_MS_MAX: u64 = 120_000;

/// One exchange on a connection of its own.
pub(super) struct Exchange {
    pub(super) attempt: AttemptId,
    /// The control session in which it began.
    session: Option<LinkId>,
    decoder: Decoder,
    course: Course,
}

/// What an exchange is about.
enum Course {
    /// The answer is being received.
    Preparing { not_held: Vec<StorePath> },
    /// Outputs were offered.
    Offering { outputs: Vec<OfferedOutput> },
}

/// Returns what an agent says it made.
pub(super) fn records_of(outputs: &[OfferedOutput]) -> Vec<OutputRecord> {
    let record = |output: &OfferedOutput| OutputRecord {
        name: output.name.clone(),
        path: output.info.path.clone(),
        nar_hash: output.info.nar_hash,
        nar_bytes: output.info.nar_bytes,
    };
    outputs.iter().map(record).collect()
}

/// Returns an offer whose files come when they are asked for.
const fn offer_of(attempt: AttemptId, outputs: Vec<OfferedOutput>) -> BulkFromAgent {
    BulkFromAgent::Offer { attempt, outputs, eager: Vec::new(), signs: false }
}

impl World {
    /// Does what comes next for an attempt, if that is an exchange.
    pub(super) fn advance(&mut self, machine: usize, attempt: AttemptId) {
        if !self.is_welcome(machine) {
            return;
        }
        let Some(spool) = self.machines[machine].spools.get(&attempt) else { return };
        let outputs = spool.result.as_ref().map(|done| done.outputs.clone()).unwrap_or_default();
        let Some(life) = self.life(machine, attempt) else { return };
        if life.is_exchanging || life.is_muted {
            return;
        }
        match life.phase {
            Phase::Preparing => {
                life.is_exchanging = true;
                let course = Course::Preparing { not_held: Vec::new() };
                self.exchange(machine, attempt, course, &BulkFromAgent::Prepare { attempt });
            }
            Phase::Finished if life.is_told && !outputs.is_empty() => {
                life.is_exchanging = true;
                let offer = offer_of(attempt, outputs.clone());
                self.exchange(machine, attempt, Course::Offering { outputs }, &offer);
            }
            Phase::Queued | Phase::Building | Phase::Finished => {}
        }
    }

    fn exchange(
        &mut self,
        machine: usize,
        attempt: AttemptId,
        course: Course,
        first: &BulkFromAgent,
    ) {
        let link = self.open(machine, Purpose::Bulk);
        self.say_up(link, first);
        let life = self.machines[machine].life;
        let event = MachineEvent::Late { life, link };
        self.after(ANSWER_MS_MAX, Event::Machine { machine, event });
        if let Some(agent) = &mut self.machines[machine].agent {
            let session = agent.session.as_ref().map(|session| session.link);
            let decoder = Decoder::default();
            let exchange = Exchange { attempt, session, decoder, course };
            agent.exchanges.insert(link, exchange);
        }
    }

    fn say_up(&mut self, link: LinkId, message: &BulkFromAgent) {
        let bytes = frame::encode(message).expect("our messages fit");
        self.send(link, Side::Coordinator, bytes);
    }

    /// An agent offers outputs of an attempt that it does not have.
    pub(super) fn offer_as_own(&mut self, machine: usize, attempt: AttemptId) {
        let known = self.shadow.attempts.get(&attempt);
        let build = known.and_then(|known| self.shadow.builds.get(&known.build));
        let Some(recipe) = build.map(|build| build.recipe) else { return };
        let mut outputs = self.offered(recipe, attempt);
        for output in &mut outputs {
            output.info.nar_hash = Sha256::of(b"something else");
        }
        let offer = offer_of(attempt, outputs.clone());
        self.exchange(machine, attempt, Course::Offering { outputs }, &offer);
    }

    pub(super) fn exchange_data(&mut self, machine: usize, link: LinkId, bytes: &Bytes) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let Some(exchange) = agent.exchanges.get_mut(&link) else { return };
        exchange.decoder.feed(bytes);
        loop {
            let Some(agent) = &mut self.machines[machine].agent else { return };
            let Some(exchange) = agent.exchanges.get_mut(&link) else { return };
            match exchange.decoder.next_message() {
                Ok(Some(message)) => self.exchange_hears(machine, link, message),
                Ok(None) => return,
                Err(error) => {
                    let what = format!("the coordinator's frame cannot be read: {error}");
                    return self.violated(what);
                }
            }
        }
    }

    fn exchange_hears(&mut self, machine: usize, link: LinkId, message: BulkToAgent) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let Some(exchange) = agent.exchanges.get_mut(&link) else { return };
        let attempt = exchange.attempt;
        let is_earlier = exchange.session != agent.session.as_ref().map(|session| session.link);
        match (message, &mut exchange.course) {
            (BulkToAgent::Derivation { .. }, Course::Preparing { .. }) => {}
            (BulkToAgent::Inputs { not_held: more, .. }, Course::Preparing { not_held }) => {
                not_held.extend(more);
            }
            (BulkToAgent::End {}, Course::Preparing { not_held }) => {
                let not_held = std::mem::take(not_held);
                self.exchange_is_over(machine, link);
                self.prepared(machine, attempt, &not_held);
            }
            (BulkToAgent::Plan { outputs: plan, .. }, Course::Offering { outputs }) => {
                let outputs = outputs.clone();
                self.send_outputs(link, &outputs, &plan);
            }
            (BulkToAgent::Committed { attempt: committed, .. }, Course::Offering { .. })
                if committed == attempt =>
            {
                self.exchange_is_over(machine, link);
                self.check_settled(machine, attempt);
                self.forget(machine, attempt);
            }
            // It may have been given up then and taken back since.
            (BulkToAgent::Refused { code: RefusalCode::Stale, .. }, _) if is_earlier => {
                self.exchange_breaks(machine, link);
            }
            (BulkToAgent::Refused { code: RefusalCode::Stale | RefusalCode::Rejected, .. }, _) => {
                note!(self, "{}: {} is refused", self.who(machine), Short(attempt.as_bytes()));
                self.exchange_is_over(machine, link);
                self.check_settled(machine, attempt);
                self.forget(machine, attempt);
            }
            (BulkToAgent::Refused { .. }, _) => self.exchange_breaks(machine, link),
            (message, _) => {
                self.violated(format!("the coordinator is out of turn with {message:?}"));
            }
        }
    }

    fn send_outputs(&mut self, link: LinkId, outputs: &[OfferedOutput], plan: &[OutputPlan]) {
        if plan.len() != outputs.len() {
            return self.violated("the plan is not for this offer");
        }
        for (output, plan) in outputs.iter().zip(plan) {
            let OutputPlan::Send { offset } = plan else { continue };
            let left = usize::try_from(output.file_bytes - offset).unwrap_or(0);
            let bytes = Bytes::from(vec![0u8; left]);
            self.say_up(link, &BulkFromAgent::Data { bytes });
            let is_damaged = !self.weather.is_calm && self.chance.permille(15);
            let file_hash = if is_damaged { Sha256::of(b"damaged") } else { output.file_hash };
            self.say_up(link, &BulkFromAgent::End { file_hash });
        }
    }

    /// What an attempt needs is known: it can begin, or cannot.
    fn prepared(&mut self, machine: usize, attempt: AttemptId, not_held: &[StorePath]) {
        let Some(spool) = self.machines[machine].spools.get(&attempt) else { return };
        let inputs = self.farm.recipes[spool.recipe].inputs.clone();
        let missing: Vec<StorePath> = inputs
            .iter()
            .map(|input| &self.farm.recipes[*input])
            .filter(|input| !input.is_elsewhere)
            .flat_map(|input| input.record.outputs.iter().map(|(_, path)| path.clone()))
            .filter(|path| not_held.contains(path))
            .collect();
        let fails = !self.weather.is_calm && self.chance.permille(self.weather.setup_failures);
        let failure = match () {
            () if !missing.is_empty() => SetupFailure::MissingInputs(missing),
            () if fails && self.chance.permille(700) => SetupFailure::DiskFull,
            () if fails => SetupFailure::DaemonUnreachable("no answer".to_owned()),
            () => return self.start_process(machine, attempt),
        };
        let outcome = Outcome::SetupFailed(failure);
        self.finish_attempt(machine, attempt, Done { outcome, outputs: Vec::new() });
    }

    /// An exchange has come to its end.
    fn exchange_is_over(&mut self, machine: usize, link: LinkId) {
        self.close(link, Side::Agent);
        let Some(agent) = &mut self.machines[machine].agent else { return };
        if let Some(exchange) = agent.exchanges.remove(&link)
            && let Some(life) = agent.lives.get_mut(&exchange.attempt)
        {
            life.is_exchanging = false;
        }
    }

    /// An exchange broke off: it is tried again after a while.
    pub(super) fn exchange_breaks(&mut self, machine: usize, link: LinkId) {
        let life_number = self.machines[machine].life;
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let Some(exchange) = agent.exchanges.get(&link) else { return };
        let attempt = exchange.attempt;
        self.exchange_is_over(machine, link);
        let Some(life) = self.life(machine, attempt) else { return };
        let pause = life.pause_ms;
        life.pause_ms = (pause * 2).min(PAUSE_MS_MAX);
        let pause = self.chance.between(pause / 2, pause);
        let event = MachineEvent::Again { life: life_number, attempt };
        self.after(pause, Event::Machine { machine, event });
    }
}
