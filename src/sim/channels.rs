//! The coordinator's ends of control and bulk channels. They follow [`crate::coordinator::control`],
//! [`crate::coordinator::bulk`] and [`crate::coordinator::upload`].

use super::{
    coordinator::Message,
    farm,
    network::{Arrival, LinkId, Purpose, Side},
    trace::{Short, note},
    world::{Event, World},
};
use crate::{
    core::{
        agent::{Abilities, SessionId},
        change::{NarOrigin, Verdict},
        defect::Defect,
        engine::{Answer, Ask, Delivery, Input, Order, Told},
        hash::Sha256,
        id::AttemptId,
        store_path::StorePath,
    },
    logbook,
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, OfferedOutput, OutputPlan, RefusalCode},
        frame::{self, Decoder},
        handshake::{Hello, PROTOCOL_MAX, agree},
        message::{Allocation, FromAgent, ToAgent, Welcome},
        session::{CoordinatorEnd, Due},
    },
    store::DISPUTED_PER_PATH_MAX,
};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};

/// A control session.
pub(super) struct Control {
    machine: usize,
    session: SessionId,
    end: CoordinatorEnd,
    is_greeted: bool,
    live: BTreeSet<AttemptId>,
    asked: BTreeSet<AttemptId>,
    is_deadline_planned: bool,
}

/// A bulk channel.
pub(super) struct Bulk {
    pub(super) machine: usize,
    decoder: Decoder,
    exchange: Exchange,
}

/// What a bulk channel is at.
enum Exchange {
    Between,
    Offered { attempt: AttemptId, outputs: Vec<OfferedOutput> },
    Receiving(Receiving),
}

/// Outputs on their way in.
struct Receiving {
    attempt: AttemptId,
    outputs: Vec<OfferedOutput>,
    /// Those that are still to come, in order, and how much of each has.
    wanted: VecDeque<(OfferedOutput, u64)>,
    taken: Vec<OfferedOutput>,
    verdict: Verdict,
}

impl World {
    /// Something arrives at the coordinator.
    pub(super) fn coordinator_hears(
        &mut self,
        link: LinkId,
        machine: usize,
        purpose: Purpose,
        arrival: Arrival,
    ) {
        let now = self.coordinator_now().mono;
        let Some(process) = &mut self.coordinator.process else {
            return self.close(link, Side::Coordinator);
        };
        match (arrival, purpose) {
            (Arrival::Opened, Purpose::Control) => {
                self.coordinator.next_session += 1;
                let session = SessionId(self.coordinator.next_session);
                let control = Control {
                    machine,
                    session,
                    end: CoordinatorEnd::new(now),
                    is_greeted: false,
                    live: BTreeSet::new(),
                    asked: BTreeSet::new(),
                    is_deadline_planned: false,
                };
                process.controls.insert(link, control);
                self.plan_deadline(link);
            }
            (Arrival::Opened, Purpose::Bulk) => {
                let (decoder, exchange) = (Decoder::default(), Exchange::Between);
                process.bulks.insert(link, Bulk { machine, decoder, exchange });
            }
            (Arrival::Data(bytes), Purpose::Control) => self.control_data(link, &bytes),
            (Arrival::Data(bytes), Purpose::Bulk) => self.bulk_data(link, &bytes),
            (Arrival::Gone, Purpose::Control) => self.control_ends(link),
            (Arrival::Gone, Purpose::Bulk) => {
                process.bulks.remove(&link);
            }
        }
    }

    fn control(&mut self, link: LinkId) -> Option<&mut Control> {
        self.coordinator.process.as_mut()?.controls.get_mut(&link)
    }

    fn control_ends(&mut self, link: LinkId) {
        let Some(process) = &mut self.coordinator.process else { return };
        if let Some(control) = process.controls.remove(&link) {
            note!(self, "session {} ended", control.session.0);
            let session = control.session;
            self.coordinator_takes(Message::Input(Input::Leave { session }));
        }
        self.close(link, Side::Coordinator);
    }

    fn plan_deadline(&mut self, link: LinkId) {
        let (now, life) = (self.coordinator_now().mono, self.coordinator.life);
        let Some(control) = self.control(link) else { return };
        if !std::mem::replace(&mut control.is_deadline_planned, true) {
            let ms = control.end.deadline().as_ms().saturating_sub(now.as_ms());
            self.after(ms, Event::Deadline { life, link });
        }
    }

    /// A session wanted to be called by now.
    pub(super) fn session_deadline(&mut self, life: u32, link: LinkId) {
        if life != self.coordinator.life {
            return;
        }
        let now = self.coordinator_now().mono;
        let Some(control) = self.control(link) else { return };
        control.is_deadline_planned = false;
        match control.end.on_time(now) {
            Due::PeerDead => return self.control_ends(link),
            Due::Heartbeat => self.say(link, &ToAgent::Heartbeat {}),
            Due::Nothing => {}
        }
        self.plan_deadline(link);
    }

    fn say(&mut self, link: LinkId, message: &ToAgent) {
        let now = self.coordinator_now().mono;
        let Some(control) = self.control(link) else { return };
        let bytes = control.end.encode(now, message).expect("our messages fit");
        self.send(link, Side::Agent, bytes);
    }

    fn control_data(&mut self, link: LinkId, bytes: &Bytes) {
        let now = self.coordinator_now().mono;
        let Some(control) = self.control(link) else { return };
        if let Err(error) = control.end.receive(now, bytes) {
            return self.violated(format!("an agent's frame cannot be read: {error}"));
        }
        while let Some(message) = self.control(link).and_then(|control| control.end.next_message())
        {
            self.take_message(link, message);
        }
    }

    fn take_message(&mut self, link: LinkId, message: FromAgent) {
        let Some(control) = self.control(link) else { return };
        let session = control.session;
        match message {
            FromAgent::Hello(hello) if !control.is_greeted => self.greeted(link, &hello),
            FromAgent::Hello(_) => self.control_ends(link),
            FromAgent::Heartbeat {} => {}
            FromAgent::Started { attempt } => {
                self.coordinator_takes(Message::Input(Input::Started { session, attempt }));
            }
            FromAgent::Log { attempt, offset, bytes } => {
                if control.live.contains(&attempt) {
                    let offset = self.append_log(attempt, offset, &bytes);
                    self.say(link, &ToAgent::LogReceived { attempt, offset });
                }
            }
            FromAgent::Finished { attempt, outcome, log_bytes } => {
                if control.live.remove(&attempt) {
                    self.check_log(attempt, log_bytes);
                }
                let input = Input::Finished { session, attempt, outcome };
                self.coordinator_takes(Message::Input(input));
            }
            FromAgent::Capacity { slots, reason } => {
                let input = Input::Capacity { session, slots, reason };
                self.coordinator_takes(Message::Input(input));
            }
            FromAgent::Report { attempt, outputs } => {
                if control.asked.contains(&attempt) {
                    let input = Input::Report { session, attempt, outputs };
                    self.coordinator_takes(Message::Input(input));
                }
            }
        }
    }

    fn append_log(&mut self, attempt: AttemptId, offset: u64, bytes: &[u8]) -> u64 {
        let twice = self.planted.is(Defect::LogPieceTwice);
        let log = self.coordinator.logs.entry(attempt).or_default();
        let length = log.len() as u64;
        let fresh = if twice { bytes } else { logbook::fresh_part(length, offset, bytes) };
        log.extend_from_slice(fresh);
        // The real one notes a gap; here nothing may ever leave one.
        let end = log.len() as u64;
        if offset > length {
            self.violated(format!("S10: a log has {length} bytes, and a piece comes at {offset}"));
        }
        end
    }

    /// The whole log came before the report of the end: the channel keeps the order.
    fn check_log(&mut self, attempt: AttemptId, log_bytes: u64) {
        let empty = Vec::new();
        let log = self.coordinator.logs.get(&attempt).unwrap_or(&empty);
        let whole = super::machine::log_of(attempt, 0, log_bytes);
        if *log != whole {
            let (has, id) = (log.len(), Short(attempt.as_bytes()));
            self.violated(format!("S10: the log of {id} has {has} bytes, wrote {log_bytes}"));
        }
    }

    fn greeted(&mut self, link: LinkId, hello: &Hello) {
        let Some(control) = self.control(link) else { return };
        control.is_greeted = true;
        let (session, machine) = (control.session, control.machine);
        if agree(hello).is_none() {
            return self.violated("the agent speaks another protocol");
        }
        let claimed = &hello.capabilities;
        let abilities = Abilities {
            store_dir: claimed.store_dir.clone(),
            dialect: claimed.dialect.clone(),
            systems: claimed.systems.clone(),
            emulated_systems: claimed.emulated_systems.clone(),
            features: claimed.features.clone(),
            slots: claimed.slots,
            tags: claimed.tags.clone(),
        };
        self.attach(session, link);
        self.coordinator_takes(Message::Input(Input::Join {
            session,
            name: self.machines[machine].name.clone(),
            instance: hello.instance,
            abilities,
            held: hello.held.clone(),
            capacity: hello.capacity.clone(),
        }));
    }

    /// Passes an order on.
    pub(super) fn obey_order(&mut self, link: LinkId, order: Order) {
        let wall_ms = self.wall().as_ms();
        let Some(control) = self.control(link) else { return };
        let message = match order {
            Order::Welcome { keep, drop, report } => {
                control.live.extend(&keep);
                control.asked.extend(&report);
                let (protocol, version) = (PROTOCOL_MAX, "sim".to_owned());
                ToAgent::Welcome(Welcome { protocol, version, wall_ms, keep, drop, report })
            }
            Order::Refuse { reason } => {
                self.say(link, &ToAgent::Refused { reason });
                return self.control_ends(link);
            }
            Order::Replaced => return self.control_ends(link),
            Order::Restarting { back_in_ms } => {
                return self.say(link, &ToAgent::Restarting { back_in_ms });
            }
            Order::Allocate { attempt, build, derivation, limits } => {
                control.live.insert(attempt);
                ToAgent::Allocate(Allocation {
                    attempt,
                    build,
                    derivation,
                    timeout_ms: limits.timeout_ms,
                    max_silent_ms: limits.max_silent_ms,
                })
            }
            Order::Cancel { attempt } => {
                control.live.remove(&attempt);
                ToAgent::Cancel { attempt }
            }
            Order::Settled { attempt } => {
                control.live.remove(&attempt);
                control.asked.remove(&attempt);
                ToAgent::Settled { attempt }
            }
        };
        self.say(link, &message);
    }

    fn bulk(&mut self, link: LinkId) -> Option<&mut Bulk> {
        self.coordinator.process.as_mut()?.bulks.get_mut(&link)
    }

    fn say_bulk(&mut self, link: LinkId, message: &BulkToAgent) {
        let bytes = frame::encode(message).expect("our messages fit");
        self.send(link, Side::Agent, bytes);
    }

    fn refuse_bulk(&mut self, link: LinkId, code: RefusalCode) {
        if let Some(bulk) = self.bulk(link) {
            bulk.exchange = Exchange::Between;
        }
        self.say_bulk(link, &BulkToAgent::Refused { code, reason: "not yours".to_owned() });
    }

    fn bulk_data(&mut self, link: LinkId, bytes: &Bytes) {
        let Some(bulk) = self.bulk(link) else { return };
        bulk.decoder.feed(bytes);
        loop {
            let Some(bulk) = self.bulk(link) else { return };
            match bulk.decoder.next_message() {
                Ok(Some(message)) => self.take_bulk(link, message),
                Ok(None) => return,
                Err(error) => {
                    return self.violated(format!("an agent's frame cannot be read: {error}"));
                }
            }
        }
    }

    fn take_bulk(&mut self, link: LinkId, message: BulkFromAgent) {
        let Some(bulk) = self.bulk(link) else { return };
        match (message, &mut bulk.exchange) {
            (BulkFromAgent::Prepare { attempt }, Exchange::Between) => {
                self.coordinator_takes(Message::Prepare { link, attempt });
            }
            (BulkFromAgent::Offer { attempt, outputs, .. }, exchange @ Exchange::Between) => {
                *exchange = Exchange::Offered { attempt, outputs };
                self.coordinator_takes(Message::Offer { link, attempt });
            }
            (BulkFromAgent::Data { bytes }, Exchange::Receiving(receiving)) => {
                if let Some((_, received)) = receiving.wanted.front_mut() {
                    *received += bytes.len() as u64;
                }
            }
            (BulkFromAgent::End { file_hash }, Exchange::Receiving(_)) => {
                self.output_ends(link, file_hash);
            }
            // What was still under way when outputs were refused, or the word of a meddler: the
            // channel is closed.
            (_, _) => {
                if let Some(process) = &mut self.coordinator.process {
                    process.bulks.remove(&link);
                }
                self.close(link, Side::Coordinator);
            }
        }
    }

    /// Answers what an attempt needs.
    pub(super) fn answer_prepare(&mut self, link: LinkId, attempt: AttemptId) {
        let Some(process) = &self.coordinator.process else { return };
        let Some(machine) = process.bulks.get(&link).map(|bulk| bulk.machine) else { return };
        let derivation = match process.truth.engine.ask(&Ask::Attempt(attempt)) {
            Told::Attempt(Some((holder, derivation))) if holder == self.machines[machine].name => {
                derivation
            }
            _ => return self.refuse_bulk(link, RefusalCode::Stale),
        };
        let recipe = &self.farm.recipes[self.farm.find(derivation.hash())];
        let text = recipe.record.text.clone();
        let (mut held, mut not_held) = (Vec::new(), Vec::new());
        for input in &recipe.inputs {
            for (_, output) in &self.farm.recipes[*input].record.outputs {
                match self.coordinator.reader.nar(output.hash()) {
                    Ok(Some(nar)) => held.push(nar.info),
                    Ok(None) => not_held.push(output.clone()),
                    Err(error) => return self.violated(error.to_string()),
                }
            }
        }
        self.say_bulk(link, &BulkToAgent::Derivation { bytes: text });
        self.say_bulk(link, &BulkToAgent::Inputs { held, not_held });
        self.say_bulk(link, &BulkToAgent::End {});
    }

    /// The engine has answered what was asked for a bulk channel.
    pub(super) fn bulk_answered(&mut self, link: LinkId, answer: Answer) {
        let Some(bulk) = self.bulk(link) else { return };
        match (answer, std::mem::replace(&mut bulk.exchange, Exchange::Between)) {
            (Answer::Offer { derivation: Some(drv) }, Exchange::Offered { attempt, outputs }) => {
                self.plan_upload(link, &drv, attempt, outputs);
            }
            (Answer::Delivered { accepted: true }, Exchange::Receiving(receiving)) => {
                let attempt = receiving.attempt;
                let was_rejected = receiving.taken.is_empty() && !receiving.wanted.is_empty();
                if was_rejected {
                    self.refuse_bulk(link, RefusalCode::Rejected);
                } else {
                    self.say_bulk(link, &BulkToAgent::Committed { attempt, ahead: 0 });
                }
            }
            (Answer::Offer { derivation: None } | Answer::Delivered { .. }, _) => {
                self.refuse_bulk(link, RefusalCode::Stale);
            }
            (answer, _) => self.violated(format!("{answer:?} on a bulk channel")),
        }
    }

    /// Says what is to be sent: what is held stays, and a few that differ are kept beside it.
    fn plan_upload(
        &mut self,
        link: LinkId,
        derivation: &StorePath,
        attempt: AttemptId,
        outputs: Vec<OfferedOutput>,
    ) {
        let recipe = &self.farm.recipes[self.farm.find(derivation.hash())];
        let names = |(name, path): &(String, StorePath)| (name.clone(), path.clone());
        let expected: Vec<_> = recipe.record.outputs.iter().map(names).collect();
        let offered: Vec<_> =
            outputs.iter().map(|output| (output.name.clone(), output.info.path.clone())).collect();
        if expected != offered {
            return self.refuse_bulk(link, RefusalCode::Stale);
        }
        let (mut answers, mut wanted, mut verdict) = (Vec::new(), VecDeque::new(), Verdict::Agreed);
        for output in &outputs {
            let held = match self.coordinator.reader.nar(output.info.path.hash()) {
                Ok(held) => held,
                Err(error) => return self.violated(error.to_string()),
            };
            let differs = held.as_ref().is_some_and(|h| h.info.nar_hash != output.info.nar_hash);
            if differs {
                verdict = Verdict::Disputed;
            }
            let disputed = match held {
                Some(_) => self.coordinator.reader.disputed_nars(output.info.path.hash()),
                None => Ok(Vec::new()),
            };
            let disputed = match disputed {
                Ok(disputed) => disputed,
                Err(error) => return self.violated(error.to_string()),
            };
            let is_kept = disputed.iter().any(|(_, nar)| nar.info.nar_hash == output.info.nar_hash);
            let is_new = differs && !is_kept && disputed.len() < DISPUTED_PER_PATH_MAX;
            if held.is_some() && !is_new {
                answers.push(OutputPlan::Held);
                continue;
            }
            let offset = self.chance.below(output.file_bytes);
            answers.push(OutputPlan::Send { offset });
            wanted.push_back((output.clone(), offset));
        }
        let is_all_held = wanted.is_empty();
        let receiving = Receiving { attempt, outputs, wanted, taken: Vec::new(), verdict };
        if let Some(bulk) = self.bulk(link) {
            bulk.exchange = Exchange::Receiving(receiving);
        }
        self.say_bulk(link, &BulkToAgent::Plan { outputs: answers, signs: false });
        if is_all_held {
            self.keep_nars(link);
        }
    }

    fn keep_nars(&mut self, link: LinkId) {
        let life = self.coordinator.life;
        let ms = self.chance.between(1, 200);
        self.after(ms, Event::Kept { life, link });
    }

    /// The bytes of one output are complete: they are what was offered, or the attempt is over.
    fn output_ends(&mut self, link: LinkId, file_hash: Sha256) {
        let Some(Bulk { exchange: Exchange::Receiving(receiving), .. }) = self.bulk(link) else {
            return;
        };
        let Some((output, received)) = receiving.wanted.pop_front() else { return };
        if output.file_hash != file_hash || output.file_bytes != received {
            let attempt = receiving.attempt;
            receiving.taken.clear();
            receiving.wanted.push_front((output, received));
            let delivery = Delivery::Rejected("not what was offered".to_owned());
            return self.coordinator_takes(Message::Deliver { link, delivery, attempt });
        }
        receiving.taken.push(output);
        if receiving.wanted.is_empty() {
            self.keep_nars(link);
        }
    }

    /// Received nars are durable: now the engine decides.
    pub(super) fn nars_kept(&mut self, life: u32, link: LinkId) {
        let at = self.wall();
        if life != self.coordinator.life {
            return;
        }
        let Some(Bulk { exchange: Exchange::Receiving(receiving), .. }) = self.bulk(link) else {
            return;
        };
        let nar = |output: &OfferedOutput| farm::nar(output.info.clone(), NarOrigin::Built, at);
        let delivery = Delivery::Verified {
            outputs: super::delivery::records_of(&receiving.outputs),
            nars: receiving.taken.iter().map(nar).collect(),
            files: Vec::new(),
            verdict: receiving.verdict,
        };
        let attempt = receiving.attempt;
        self.coordinator_takes(Message::Deliver { link, delivery, attempt });
    }
}
