//! The one thread that owns the truth: it drains a batch of inputs, steps the engine, commits, and
//! only then lets the effects out.
//!
//! When a commit fails, the thread ends with the error and the process with it: memory must never
//! run ahead of the disk.

use super::{care::meter::Meter, logs::Logs, publishing::PublishQueue, truth::Truth};
use crate::{
    core::{
        agent::SessionId,
        build::ShownState,
        change::{Change, Limits},
        demands::Demands,
        engine::{
            Answer, Ask, Authority, Effect, IdSource, Input, Inputs, Order, OverQuota, RetryWish,
            Token, Told, Wanting,
        },
        event::Cursor,
        id::{AttemptId, BuildId, Name},
        store_path::{PathHash, StorePath},
        time::Timestamp,
    },
    store::StoreError,
    telemetry::{self, Clock},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How many messages may wait for the engine; senders wait beyond that.
const MESSAGES_MAX: usize = 4_096;
/// How many inputs go into one commit. A commit costs about 5 ms on a slow disk; beyond some
/// hundreds the gain is small and the first one waits longer.
const BATCH_MAX: usize = 1_024;
/// How many orders may wait for one agent's session. An agent that takes none is cut off.
pub const ORDERS_MAX: usize = 1_024;

/// A request for builds, before the facts are read.
#[derive(Debug, Clone)]
pub struct SubmitRequest {
    /// Who asks.
    pub submitter: Name,
    /// The derivations, in the order of the answer.
    pub roots: Vec<StorePath>,
    /// Whether builds are made for inputs.
    pub inputs: Inputs,
    /// The priority of each build.
    pub priority: i32,
    /// The limits of each build.
    pub limits: Limits,
    /// The tags of each build.
    pub tags: Vec<(String, String)>,
    /// The submitter's own name for the request.
    pub key: Option<String>,
    /// How many open builds the submitter may have with these; any number when absent.
    pub open_max: Option<u32>,
    /// The id of the build, as the submitter has chosen it: of a request for one.
    pub uuid: Option<BuildId>,
    /// What each build that was named asks of its agent.
    pub demands: Demands,
    /// When each build that was named may be tried, if not at once.
    pub not_before: Option<Timestamp>,
    /// Whether a build that succeeded is an answer, too.
    pub skip_if_built: bool,
    /// Whether an open build is an answer, too.
    pub skip_if_queued: bool,
    /// The submitter's builds with all of these tags that nobody has begun are canceled; none when
    /// empty.
    pub replaces: Vec<(String, String)>,
}

impl SubmitRequest {
    /// Returns a request for builds of derivations, without any wish.
    #[must_use]
    pub fn new(submitter: Name, roots: Vec<StorePath>) -> Self {
        Self {
            submitter,
            roots,
            inputs: Inputs::Leave,
            priority: 0,
            limits: Limits::default(),
            tags: Vec::new(),
            key: None,
            open_max: None,
            uuid: None,
            demands: Demands::default(),
            not_before: None,
            skip_if_built: false,
            skip_if_queued: false,
            replaces: Vec::new(),
        }
    }
}

/// Why nothing was submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSubmitted {
    /// These derivations are not known here.
    Unknown(Vec<PathHash>),
    /// The chosen id is that of a build of another derivation.
    Taken(BuildId),
    /// The submitter would have too many open builds.
    TooMany(OverQuota),
}

/// The answer to a [`SubmitRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// The builds exist, durably.
    Builds {
        /// One per root.
        builds: Vec<BuildId>,
        /// How many more were made for inputs.
        implied: usize,
        /// Those whose place they took, which are canceled.
        replaced: Vec<BuildId>,
    },
    /// Nothing was changed.
    Not(NotSubmitted),
}

/// What the engine's thread is sent.
enum Message {
    Input { make: Box<dyn FnOnce(Token) -> Input + Send>, reply: Option<oneshot::Sender<Answer>> },
    Submit { request: Box<SubmitRequest>, reply: oneshot::Sender<Submitted> },
    Retry { builds: Vec<BuildId>, by: Authority, wish: RetryWish, reply: oneshot::Sender<Answer> },
    Attach { session: SessionId, orders: mpsc::Sender<Order> },
    Ask { question: Ask, reply: oneshot::Sender<Told> },
    CompareWithDisk { reply: oneshot::Sender<Vec<String>> },
    Lost { paths: Vec<PathHash>, reply: oneshot::Sender<Answer> },
    GiveBack { pages: u32, reply: oneshot::Sender<u64> },
    Stop { back_in_ms: u64 },
}

/// The engine is gone: the process is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is stopping; try again in a moment")]
pub struct EngineGone;

/// The way to the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    messages: mpsc::Sender<Message>,
}

impl EngineHandle {
    /// Hands in an input and waits until its changes are durable and it is answered.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn request(
        &self,
        make: impl FnOnce(Token) -> Input + Send + 'static,
    ) -> Result<Answer, EngineGone> {
        self.post(make).await?.await.map_err(|_| EngineGone)
    }

    /// Hands in an input and returns where its answer will come, once its changes are durable; it
    /// does not come when the engine is gone. Inputs that are handed in without waiting in between
    /// share a commit.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn post(
        &self,
        make: impl FnOnce(Token) -> Input + Send + 'static,
    ) -> Result<oneshot::Receiver<Answer>, EngineGone> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Input { make: Box::new(make), reply: Some(reply) };
        self.messages.send(message).await.map_err(|_| EngineGone)?;
        Ok(answer)
    }

    /// Hands in an input that has no answer.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn tell(&self, input: Input) -> Result<(), EngineGone> {
        let message = Message::Input { make: Box::new(|_| input), reply: None };
        self.messages.send(message).await.map_err(|_| EngineGone)
    }

    /// Hands in an input that has no answer, from a thread that may wait.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub fn tell_blocking(&self, input: Input) -> Result<(), EngineGone> {
        let message = Message::Input { make: Box::new(|_| input), reply: None };
        self.messages.blocking_send(message).map_err(|_| EngineGone)
    }

    /// Tells why results cannot be taken in now, or with `None` that they can again: nothing is
    /// allocated meanwhile. It need not be told again, and is forgotten at a start.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn close_intake(&self, reason: Option<String>) -> Result<(), EngineGone> {
        self.tell(Input::Intake { closed: reason }).await
    }

    /// Has facts written down, from a thread that may wait; [`Recording::wait`] tells when they are
    /// durable. What is handed in meanwhile shares a commit.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub fn record_blocking(&self, changes: Vec<Change>) -> Result<Recording, EngineGone> {
        let (reply, answer) = oneshot::channel();
        let make = Box::new(|token| Input::Record { token: Some(token), changes });
        let message = Message::Input { make, reply: Some(reply) };
        self.messages.blocking_send(message).map_err(|_| EngineGone)?;
        Ok(Recording(answer))
    }

    /// Asks for builds.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn submit(&self, request: SubmitRequest) -> Result<Submitted, EngineGone> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Submit { request: Box::new(request), reply };
        self.messages.send(message).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Asks that builds be tried again. Answered by [`Answer::Retried`].
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn retry(
        &self,
        builds: Vec<BuildId>,
        by: Authority,
        wish: RetryWish,
    ) -> Result<Answer, EngineGone> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Retry { builds, by, wish, reply };
        self.messages.send(message).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Connects a session's outbox, before the session's agent joins.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn attach(
        &self,
        session: SessionId,
        orders: mpsc::Sender<Order>,
    ) -> Result<(), EngineGone> {
        self.messages.send(Message::Attach { session, orders }).await.map_err(|_| EngineGone)
    }

    /// Asks about open state.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn ask(&self, question: Ask) -> Result<Told, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Ask { question, reply }).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Ends the thread as soon as everything that was handed in before is durable and let out. The
    /// last that each session hears is when the coordinator expects to be back.
    ///
    /// # Errors
    /// [`EngineGone`]: it has ended already.
    pub async fn stop(&self, back_in_ms: u64) -> Result<(), EngineGone> {
        self.messages.send(Message::Stop { back_in_ms }).await.map_err(|_| EngineGone)
    }

    /// Notes that nars are held no more, because their files are gone or damaged. Answered by
    /// [`Answer::Forgotten`].
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn lose(&self, paths: Vec<PathHash>) -> Result<Answer, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Lost { paths, reply }).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Gives so many pages of the database that nothing uses back to the file system, and returns
    /// how many are left.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn give_back(&self, pages: u32) -> Result<u64, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::GiveBack { pages, reply }).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Returns how memory differs from what the database would give now.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn compare_with_disk(&self) -> Result<Vec<String>, EngineGone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::CompareWithDisk { reply }).await.map_err(|_| EngineGone)?;
        answer.await.map_err(|_| EngineGone)
    }
}

/// Facts on their way to the disk.
#[derive(Debug)]
#[must_use = "facts are durable when they were waited for"]
pub struct Recording(oneshot::Receiver<Answer>);

impl Recording {
    /// Waits until the facts are durable, on a thread that may wait.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub fn wait(self) -> Result<(), EngineGone> {
        self.0.blocking_recv().map(drop).map_err(|_| EngineGone)
    }
}

/// Random bytes of the operating system, for ids, behind a counter: ids of the same millisecond
/// sort by creation, too, so that builds of one submission keep its order.
#[derive(Default)]
struct SystemIds {
    made: u32,
}

impl IdSource for SystemIds {
    fn random(&mut self) -> [u8; 10] {
        let mut bytes = [0; 10];
        getrandom::fill(&mut bytes).expect("the operating system has randomness");
        // 26 bits, around the version and variant of a UUID (RFC 9562 section 6.2, method 1): in
        // one millisecond they do not come round.
        let [a, b, c, d] = (self.made << 6).to_be_bytes();
        let low = u16::from_be_bytes([c, d]) >> 6;
        bytes[0] = a >> 4;
        bytes[1] = (a << 4) | (b >> 4);
        bytes[2] = ((b & 0x0f) << 2) | u8::try_from(low >> 8).unwrap_or(0);
        bytes[3] = low.to_le_bytes()[0];
        self.made = self.made.wrapping_add(1);
        bytes
    }
}

/// Who is told what happened, once it is durable.
pub(super) struct Outlets {
    pub(super) logs: Logs,
    pub(super) meter: Meter,
    pub(super) publish: PublishQueue,
    pub(super) rested: broadcast::Sender<(BuildId, ShownState)>,
    pub(super) allocated: broadcast::Sender<(BuildId, AttemptId)>,
    pub(super) events: watch::Sender<Cursor>,
}

/// The engine's thread.
pub(super) struct EngineThread {
    truth: Truth,
    clock: Clock,
    messages: mpsc::Receiver<Message>,
    outlets: Outlets,
    sessions: BTreeMap<SessionId, mpsc::Sender<Order>>,
    replies: BTreeMap<Token, oneshot::Sender<Answer>>,
    submitters: BTreeMap<Token, oneshot::Sender<Submitted>>,
    ids: SystemIds,
    next_token: u64,
    /// Missing inputs whose facts the engine wants.
    wanting: VecDeque<Wanting>,
}

/// Starts the thread. The receiver gets the error that ended it, or nothing when all handles are
/// gone.
pub(super) fn spawn(
    truth: Truth,
    clock: Clock,
    outlets: Outlets,
) -> (EngineHandle, oneshot::Receiver<Result<(), StoreError>>) {
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let (ended, end) = oneshot::channel();
    let thread = EngineThread {
        truth,
        clock,
        messages,
        outlets,
        sessions: BTreeMap::new(),
        replies: BTreeMap::new(),
        submitters: BTreeMap::new(),
        ids: SystemIds::default(),
        next_token: 1,
        wanting: VecDeque::new(),
    };
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            let result = thread.run(&runtime);
            // Nobody listens any more when the process is already stopping.
            drop(ended.send(result));
        })
        .expect("a thread can be started");
    (EngineHandle { messages: sender }, end)
}

/// Whether the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl EngineThread {
    fn run(mut self, runtime: &tokio::runtime::Handle) -> Result<(), StoreError> {
        loop {
            let pause = self.truth.engine.wakes_in_ms(self.clock.now()).map(Duration::from_millis);
            let first = runtime.block_on(async {
                match pause {
                    Some(pause) => tokio::time::timeout(pause, self.messages.recv()).await.ok(),
                    None => Some(self.messages.recv().await),
                }
            });
            match first {
                None => self.turn(Vec::new())?,
                Some(None) => return Ok(()),
                Some(Some(message)) => {
                    if self.drain(message)? == Next::End {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes in what has arrived, up to a batch. Questions and submissions see only what is
    /// durable, so whatever came before them is committed first.
    fn drain(&mut self, first: Message) -> Result<Next, StoreError> {
        let mut inputs = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Input { make, reply } => {
                    let token = self.token();
                    if let Some(reply) = reply {
                        self.replies.insert(token, reply);
                    }
                    let input = make(token);
                    if let Input::Leave { session } = &input {
                        self.sessions.remove(session);
                    }
                    inputs.push(input);
                }
                Message::Attach { session, orders } => {
                    self.sessions.insert(session, orders);
                }
                Message::Submit { request, reply } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    self.submit(*request, reply)?;
                }
                Message::Retry { builds, by, wish, reply } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    let token = self.token();
                    let input = self.truth.retrial(&builds, by, wish, token)?;
                    self.replies.insert(token, reply);
                    self.turn(vec![input])?;
                }
                Message::Ask { question, reply } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    // Whoever asked may have gone.
                    drop(reply.send(self.truth.engine.ask(&question)));
                }
                Message::CompareWithDisk { reply } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    drop(reply.send(self.truth.differences(self.clock.now())?));
                }
                Message::Lost { paths, reply } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    let token = self.token();
                    let input = self.truth.losses(paths, token)?;
                    self.replies.insert(token, reply);
                    self.turn(vec![input])?;
                }
                Message::GiveBack { pages, reply } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    // Whoever asked may have gone.
                    reply.send(self.truth.store.give_back(pages)?).ok();
                }
                Message::Stop { back_in_ms } => {
                    self.turn(std::mem::take(&mut inputs))?;
                    self.take_leave(back_in_ms);
                    return Ok(Next::End);
                }
            }
            next = if inputs.len() < BATCH_MAX { self.messages.try_recv().ok() } else { None };
        }
        self.turn(inputs)?;
        Ok(Next::GoOn)
    }

    /// Tells every session that the coordinator stops. An order that was allocated before is in
    /// front of it, so that no agent misses what it was given.
    fn take_leave(&mut self, back_in_ms: u64) {
        for orders in std::mem::take(&mut self.sessions).into_values() {
            // A session that is over, or takes nothing any more, finds out by itself.
            orders.try_send(Order::Restarting { back_in_ms }).ok();
        }
    }

    /// Steps, commits, and lets the effects out.
    fn turn(&mut self, inputs: Vec<Input>) -> Result<(), StoreError> {
        self.one_turn(inputs)?;
        while let Some(wanting) = self.wanting.pop_front() {
            let supplies = self.truth.supplies(wanting)?;
            self.one_turn(vec![supplies])?;
        }
        Ok(())
    }

    fn one_turn(&mut self, inputs: Vec<Input>) -> Result<(), StoreError> {
        let begun = self.clock.uptime();
        let step = self.truth.decide(self.clock.now(), &mut self.ids, inputs);
        let decided = self.clock.uptime();
        let is_commit = !step.changes.is_empty();
        let effects = self.truth.keep(step)?;
        self.outlets.meter.decided(decided.saturating_sub(begun));
        if is_commit {
            self.outlets.meter.committed(self.clock.uptime().saturating_sub(decided));
        }
        let last = self.truth.store.last_event();
        self.outlets.events.send_if_modified(|known| std::mem::replace(known, last) != last);
        for effect in effects {
            self.let_out(effect);
        }
        Ok(())
    }

    fn submit(
        &mut self,
        request: SubmitRequest,
        reply: oneshot::Sender<Submitted>,
    ) -> Result<(), StoreError> {
        let token = self.token();
        match self.truth.submission(request, token)? {
            Ok(input) => {
                self.submitters.insert(token, reply);
                self.turn(vec![input])
            }
            Err(reason) => {
                drop(reply.send(Submitted::Not(reason)));
                Ok(())
            }
        }
    }

    fn let_out(&mut self, effect: Effect) {
        match effect {
            Effect::Tell { session, order } => self.tell(session, order),
            Effect::Reply { token, answer: Answer::Submitted { builds, implied, replaced } } => {
                if let Some(reply) = self.submitters.remove(&token) {
                    drop(reply.send(Submitted::Builds { builds, implied, replaced }));
                }
            }
            Effect::Reply { token, answer: Answer::TooMany(over) }
                if self.submitters.contains_key(&token) =>
            {
                if let Some(reply) = self.submitters.remove(&token) {
                    drop(reply.send(Submitted::Not(NotSubmitted::TooMany(over))));
                }
            }
            Effect::Reply { token, answer } => {
                if let Some(reply) = self.replies.remove(&token) {
                    drop(reply.send(answer));
                }
            }
            // Nobody may be waiting.
            Effect::Rested { build, state } => drop(self.outlets.rested.send((build, state))),
            Effect::Supply(wanting) => self.wanting.push_back(wanting),
            Effect::SealLog { attempt } => self.outlets.logs.seal(attempt),
            Effect::Quarantined { agent, reason } => {
                tracing::warn!(%agent, reason = telemetry::printable(reason.as_bytes()), "an agent was quarantined");
            }
            Effect::Publish { paths } => self.outlets.publish.push(paths),
        }
    }

    /// Sends an order to a session. A session that lets its orders pile up, or has ended, loses its
    /// outbox: its task sees that and closes the connection, and the agent comes again.
    fn tell(&mut self, session: SessionId, order: Order) {
        if let Order::Allocate { build, attempt, .. } = &order {
            // Nobody may be waiting.
            self.outlets.allocated.send((*build, *attempt)).ok();
        }
        let last = matches!(order, Order::Refuse { .. } | Order::Replaced);
        let Some(orders) = self.sessions.get(&session) else { return };
        let sent = orders.try_send(order);
        if sent.is_err() || last {
            if sent.is_err() {
                tracing::warn!(session = session.0, "an agent does not take its orders");
            }
            self.sessions.remove(&session);
        }
    }

    fn token(&mut self) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_millisecond_sort_by_creation() {
        let now = Timestamp::from_ms(1_700_000_000_000);
        for made in [0, 200, 16_000, 65_000, 4_194_000, (1 << 26) - 1_000] {
            let mut ids = SystemIds { made };
            let made: Vec<BuildId> = (0..900).map(|_| BuildId::at(now, ids.random())).collect();
            assert!(made.is_sorted(), "{:?}", made.first());
        }
    }
}
