//! The coordinator's process: a queue, the turn of the engine's thread, and what it lets out.
//!
//! It follows [`crate::coordinator::engine_thread`]; deciding and keeping are the same code.

use super::{
    chance::CountedIds,
    channels::{Bulk, Control},
    network::{LinkId, Side},
    people::{PersonEvent, RequestId},
    shadow::Heard,
    trace::{Short, note},
    world::{Event, START_MS, World},
};
use crate::{
    coordinator::{engine_thread::SubmitRequest, truth::Truth},
    core::{
        agent::SessionId,
        change::Change,
        defect::{Defect, Planted},
        engine::{Answer, Authority, Decision, Effect, Input, Order, Step, Token, Wanted},
        id::{AttemptId, BuildId, Name},
        time::{Monotonic, Now, Timestamp},
    },
    store::{Fault, Reader, Store},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
};

/// How many inputs go into one commit.
const BATCH_MAX: usize = 64;
/// How often memory is compared with a reload: one step in so many.
const COMPARED_EVERY: u64 = 16;

/// Who decides about agents.
const OPERATOR: &str = "olga";

/// Tells the databases of one test process apart; nothing else depends on it.
static DATABASES: AtomicU64 = AtomicU64::new(0);

/// What the engine's thread is sent.
#[derive(Debug)]
pub(super) enum Message {
    Input(Input),
    Submit {
        request: RequestId,
        wanted: Box<SubmitRequest>,
    },
    Cancel {
        request: RequestId,
        builds: Vec<BuildId>,
        by: Authority,
    },
    /// An agent offers outputs on a bulk channel.
    Offer {
        link: LinkId,
        attempt: AttemptId,
    },
    /// Outputs were received on a bulk channel.
    Deliver {
        link: LinkId,
        delivery: crate::core::engine::Delivery,
        attempt: AttemptId,
    },
    /// Somebody decides about an agent.
    Administer {
        agent: Name,
        decision: Decision,
    },
    /// The process is to stop when all before is done, and to say so.
    Stop,
    /// An agent asks on a bulk channel what an attempt needs.
    Prepare {
        link: LinkId,
        attempt: AttemptId,
    },
}

/// Who waits for an answer of the engine.
#[derive(Debug, Clone, Copy)]
enum Waiter {
    Person(RequestId),
    Bulk(LinkId),
}

/// What is there whether the process runs or not.
pub(super) struct Coordinator {
    pub(super) process: Option<Process>,
    /// The database, while no process has it.
    disk: Option<Store>,
    pub(super) reader: Reader,
    pub(super) logs: BTreeMap<AttemptId, Vec<u8>>,
    ids: CountedIds,
    pub(super) life: u32,
    pub(super) next_session: u64,
}

/// What ends with the process.
pub(super) struct Process {
    pub(super) truth: Truth,
    started_ms: u64,
    messages: VecDeque<Message>,
    is_drain_planned: bool,
    pub(super) controls: BTreeMap<LinkId, Control>,
    pub(super) bulks: BTreeMap<LinkId, Bulk>,
    sessions: BTreeMap<SessionId, LinkId>,
    replies: BTreeMap<Token, Waiter>,
    next_token: u64,
}

impl Coordinator {
    pub(super) fn new(seed: u64, planted: Planted) -> Self {
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let name = format!("sim-{seed}-{number}");
        let store = Store::in_memory(&name, planted).expect("a database fits into memory");
        let reader = Reader::in_memory(&name).expect("a database can be read");
        Self {
            process: None,
            disk: Some(store),
            reader,
            logs: BTreeMap::new(),
            ids: CountedIds::default(),
            life: 0,
            next_session: 0,
        }
    }

    pub(super) const fn is_up(&self) -> bool {
        self.process.is_some()
    }
}

impl World {
    /// What time the coordinator's process thinks it is.
    pub(super) fn coordinator_now(&self) -> Now {
        let started = self.coordinator.process.as_ref().map_or(self.now_ms, |p| p.started_ms);
        Now { wall: self.wall(), mono: Monotonic::from_ms(self.now_ms - started) }
    }

    /// The process starts from the database.
    pub(super) fn coordinator_starts(&mut self) {
        let Some(store) = self.coordinator.disk.take() else { return };
        let now = Now { wall: self.wall(), mono: Monotonic::from_ms(0) };
        let truth = match Truth::restore(store, self.settings, now) {
            Ok(truth) => truth,
            Err(error) => return self.violated(format!("S9: no start from the database: {error}")),
        };
        note!(self, "the coordinator starts");
        self.coordinator.process = Some(Process {
            truth,
            started_ms: self.now_ms,
            messages: VecDeque::new(),
            is_drain_planned: false,
            controls: BTreeMap::new(),
            bulks: BTreeMap::new(),
            sessions: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_token: 1,
        });
        self.shadow.process_started(self.now_ms);
        self.plan_wake();
    }

    /// The process is gone, with all that was only in its memory.
    pub(super) fn coordinator_crashes(&mut self, why: &str) {
        let Some(process) = self.coordinator.process.take() else { return };
        note!(self, "the coordinator is gone: {why}");
        self.coordinator.life += 1;
        let Process { truth, messages, controls, bulks, replies, .. } = process;
        self.coordinator.disk = Some(truth.store.reopened());
        for link in controls.into_keys().chain(bulks.into_keys()) {
            self.close(link, Side::Coordinator);
        }
        let waiting = replies.into_values().filter_map(|waiter| match waiter {
            Waiter::Person(request) => Some(request),
            Waiter::Bulk(_) => None,
        });
        let queued = messages.into_iter().filter_map(|message| match message {
            Message::Submit { request, .. } | Message::Cancel { request, .. } => Some(request),
            Message::Input(_)
            | Message::Offer { .. }
            | Message::Deliver { .. }
            | Message::Administer { .. }
            | Message::Stop
            | Message::Prepare { .. } => None,
        });
        for request in waiting.chain(queued).collect::<Vec<_>>() {
            let noticed = self.chance.between(1, 5_000);
            self.after(noticed, Event::Person(PersonEvent::Lost(request)));
        }
        let away = if self.chance.permille(100) { 600_000 } else { 20_000 };
        let away = self.chance.between(50, away);
        self.after(away, Event::Start);
    }

    /// Something is put into the engine's queue.
    pub(super) fn coordinator_takes(&mut self, message: Message) {
        let life = self.coordinator.life;
        let Some(process) = &mut self.coordinator.process else { return };
        process.messages.push_back(message);
        if !std::mem::replace(&mut process.is_drain_planned, true) {
            let busy = self.chance.below(20);
            self.after(busy, Event::Drain { life });
        }
    }

    /// The engine's thread takes what has come; what asks sees only what is kept.
    pub(super) fn coordinator_drains(&mut self, life: u32) {
        if life != self.coordinator.life {
            return;
        }
        let mut inputs = Vec::new();
        for _ in 0..BATCH_MAX {
            let Some(message) = self.next_message() else { break };
            match message {
                Message::Input(input) => inputs.push(input),
                Message::Offer { link, attempt } => {
                    if let Some((token, agent)) = self.bulk_token(link) {
                        inputs.push(Input::Offer { token, agent, attempt });
                    }
                }
                Message::Deliver { link, delivery, attempt } => {
                    if let Some((token, agent)) = self.bulk_token(link) {
                        inputs.push(Input::Deliver { token, agent, attempt, delivery });
                    }
                }
                Message::Cancel { request, builds, by } => {
                    let token = self.token(Waiter::Person(request));
                    let wanted = Wanted::Goes;
                    inputs.push(Input::Cancel { token, builds, by, wanted });
                }
                Message::Administer { agent, decision } => {
                    // Nobody waits for the answer.
                    let (token, by) = (Token(0), OPERATOR.parse().expect("a plain name"));
                    inputs.push(Input::Administer { token, agent, decision, by });
                }
                Message::Stop => {
                    if self.turn(std::mem::take(&mut inputs)) {
                        self.take_leave();
                        self.coordinator_crashes("stopped");
                    }
                    return;
                }
                Message::Submit { request, wanted } => {
                    let before = std::mem::take(&mut inputs);
                    if !self.turn(before) {
                        // It was taken out of the queue, and nobody else would tell.
                        return self.after(10, Event::Person(PersonEvent::Lost(request)));
                    }
                    if !self.submit(request, *wanted) {
                        return;
                    }
                }
                Message::Prepare { link, attempt } => {
                    if !self.turn(std::mem::take(&mut inputs)) {
                        return;
                    }
                    self.answer_prepare(link, attempt);
                }
            }
        }
        if self.turn(inputs) {
            self.plan_drain();
        }
    }

    /// Tells every session that the process stops.
    fn take_leave(&mut self) {
        let Some(process) = &mut self.coordinator.process else { return };
        for link in std::mem::take(&mut process.sessions).into_values() {
            self.obey_order(link, Order::Restarting { back_in_ms: 1_000 });
        }
    }

    fn next_message(&mut self) -> Option<Message> {
        self.coordinator.process.as_mut()?.messages.pop_front()
    }

    fn plan_drain(&mut self) {
        let life = self.coordinator.life;
        let Some(process) = &mut self.coordinator.process else { return };
        process.is_drain_planned = !process.messages.is_empty();
        if process.is_drain_planned {
            self.after(0, Event::Drain { life });
        }
    }

    /// Calls the engine because of the time.
    pub(super) fn coordinator_wakes(&mut self, life: u32) {
        if life != self.coordinator.life {
            return;
        }
        let now = self.coordinator_now();
        let due = self.coordinator.process.as_ref().and_then(|p| p.truth.engine.wakes_in_ms(now));
        if due == Some(0) {
            self.turn(Vec::new());
        }
    }

    fn plan_wake(&mut self) {
        let (now, life) = (self.coordinator_now(), self.coordinator.life);
        let wakes = self.coordinator.process.as_ref().and_then(|p| p.truth.engine.wakes_in_ms(now));
        if let Some(ms) = wakes {
            self.after(ms, Event::Wake { life });
        }
    }

    fn token(&mut self, waiter: Waiter) -> Token {
        let process = self.coordinator.process.as_mut().expect("the caller runs in it");
        let token = Token(process.next_token);
        process.next_token += 1;
        process.replies.insert(token, waiter);
        token
    }

    fn bulk_token(&mut self, link: LinkId) -> Option<(Token, Name)> {
        let machine = self.coordinator.process.as_ref()?.bulks.get(&link)?.machine;
        let agent = self.machines[machine].name.clone();
        Some((self.token(Waiter::Bulk(link)), agent))
    }

    fn submit(&mut self, request: RequestId, wanted: SubmitRequest) -> bool {
        let token = self.token(Waiter::Person(request));
        let process = self.coordinator.process.as_ref().expect("the caller runs in it");
        match process.truth.submission(wanted, token) {
            Ok(Ok(input)) => self.turn(vec![input]),
            Ok(Err(unknown)) => {
                self.violated(format!("S1: recorded derivations are unknown: {unknown:?}"));
                false
            }
            Err(error) => {
                self.violated(format!("the database cannot be read: {error}"));
                false
            }
        }
    }

    /// One turn of the engine's thread. Returns whether the process still runs.
    fn turn(&mut self, inputs: Vec<Input>) -> bool {
        let now = self.coordinator_now();
        let Some(process) = self.coordinator.process.as_mut() else { return false };
        for input in &inputs {
            if let Input::Leave { session } = input {
                process.sessions.remove(session);
            }
        }
        let heard = self.shadow.listen(&inputs);
        let step = process.truth.decide(now, &mut self.coordinator.ids, inputs);
        let changes = step.changes.clone();
        let early = self.let_out_too_early(&step);
        let crashes = if self.weather.is_calm { 0 } else { self.weather.crashes };
        // What is told and changes nothing is no moment of its own to fail at.
        let matters = changes.iter().any(|change| !matches!(change, Change::Event(_)));
        if matters && self.chance.permille(crashes) {
            self.coordinator_crashes("before a commit");
            return false;
        }
        let refused = matters && self.chance.permille(crashes);
        let process = self.coordinator.process.as_mut().expect("it was there a moment ago");
        if refused {
            process.truth.store.fail_next(Fault::Refused);
        }
        let ahead = self.planted.is(Defect::MemoryAheadOfDisk).then(|| step.effects.clone());
        let effects = match (process.truth.keep(step), ahead) {
            (Ok(effects), _) => effects,
            (Err(error), None) if refused => {
                self.coordinator_crashes(&error.to_string());
                return false;
            }
            (Err(_), Some(effects)) if refused => return self.let_out_all(effects, crashes),
            (Err(error), _) => {
                self.violated(format!(
                    "a commit failed by itself: {}",
                    crate::telemetry::chain(&error)
                ));
                return false;
            }
        };
        self.committed(now, &heard, &changes);
        if matters && self.chance.permille(crashes) {
            self.coordinator_crashes("behind a commit");
            return false;
        }
        let effects = if self.planted.is(Defect::EffectsReversed) {
            effects.into_iter().rev().collect()
        } else {
            effects
        };
        let effects = effects.into_iter().filter(|effect| !early.contains(effect)).collect();
        self.let_out_all(effects, crashes)
    }

    /// Lets the effects out. Returns whether the process still runs.
    fn let_out_all(&mut self, effects: Vec<Effect>, crashes: u64) -> bool {
        for effect in effects {
            self.let_out(effect);
            if self.chance.permille(crashes / 4) {
                self.coordinator_crashes("between two effects");
                return false;
            }
        }
        self.plan_wake();
        true
    }

    /// What a planted mistake lets out before the commit.
    fn let_out_too_early(&mut self, step: &Step) -> Vec<Effect> {
        let is_early = |effect: &&Effect| match effect {
            Effect::Reply { answer: Answer::Delivered { .. }, .. }
            | Effect::Tell { order: Order::Settled { .. }, .. } => {
                self.planted.is(Defect::SettledBeforeCommit)
            }
            Effect::Reply { .. } => self.planted.is(Defect::AnswerBeforeCommit),
            Effect::Publish { .. } => self.planted.is(Defect::PublishedBeforeCommit),
            Effect::Tell { .. }
            | Effect::Rested { .. }
            | Effect::SealLog { .. }
            | Effect::Supply(_)
            | Effect::Quarantined { .. } => false,
        };
        let early: Vec<Effect> = step.effects.iter().filter(is_early).cloned().collect();
        for effect in early.clone() {
            self.let_out(effect);
        }
        early
    }

    /// Looks at what was committed.
    fn committed(&mut self, now: Now, heard: &Heard, changes: &[Change]) {
        let true_wall = Timestamp::from_ms(START_MS);
        note!(self, "{} changes at {}", changes.len(), now.wall.as_ms() - true_wall.as_ms());
        let process = self.coordinator.process.as_ref().expect("it has just committed");
        let mut findings = self.shadow.commit(
            &super::shadow::Step { now_ms: self.now_ms, settings: &self.settings, heard, changes },
            &self.farm,
            &process.truth.engine,
        );
        if self.shadow.steps.is_multiple_of(COMPARED_EVERY) {
            match process.truth.differences(now) {
                Ok(found) => findings.extend(found.into_iter().map(|what| format!("S9: {what}"))),
                Err(error) => findings.push(format!("S9: {error}")),
            }
        }
        findings.extend(self.shadow.compare_nars(&self.coordinator.reader, changes));
        for change in changes {
            if let Change::BuildMoved { build, from, to, .. } = change {
                note!(self, "{} {} -> {}", Short(build.as_bytes()), from.word(), to.word());
            }
        }
        for finding in findings {
            self.violated(finding);
        }
    }

    fn let_out(&mut self, effect: Effect) {
        match effect {
            Effect::Tell { session, order } => self.tell(session, order),
            Effect::Reply { token, answer } => self.reply(token, answer),
            Effect::Publish { paths } => {
                for path in paths {
                    if !matches!(self.coordinator.reader.nar(path.hash()), Ok(Some(_))) {
                        self.violated(format!("S4: {path} is published and not in the database"));
                    }
                }
            }
            Effect::Rested { build, state } => {
                note!(self, "{} rests as {state}", Short(build.as_bytes()));
            }
            // A log that is over is not touched, and one that is taken back goes on where it was.
            // Missing inputs are not built there.
            Effect::SealLog { .. } | Effect::Supply(_) => {}
            Effect::Quarantined { agent, reason } => {
                note!(self, "{agent} is quarantined: {reason}");
            }
        }
    }

    fn reply(&mut self, token: Token, answer: Answer) {
        let process = self.coordinator.process.as_mut();
        match process.and_then(|process| process.replies.remove(&token)) {
            Some(Waiter::Person(request)) => {
                let delay = self.chance.between(1, 400);
                self.after(delay, Event::Person(PersonEvent::Answered(request, answer)));
            }
            Some(Waiter::Bulk(link)) => self.bulk_answered(link, answer),
            None => {}
        }
    }

    /// Sends an order to the session of an agent.
    fn tell(&mut self, session: SessionId, order: Order) {
        if let Some(finding) = self.shadow.order(session, &order, &self.farm) {
            self.violated(finding);
        }
        let Some(process) = self.coordinator.process.as_mut() else { return };
        let last = matches!(order, Order::Refuse { .. } | Order::Replaced);
        let link = if last {
            process.sessions.remove(&session)
        } else {
            process.sessions.get(&session).copied()
        };
        if let Some(link) = link {
            self.obey_order(link, order);
        }
    }

    /// Connects a session with its channel.
    pub(super) fn attach(&mut self, session: SessionId, link: LinkId) {
        if let Some(process) = &mut self.coordinator.process {
            process.sessions.insert(session, link);
        }
    }
}
