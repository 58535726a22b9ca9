//! One control session of an agent: its frames become inputs, orders become frames.

use super::{Coordinator, engine_thread::ORDERS_MAX};
use crate::{
    core::{
        agent::{Abilities, Capacity, SessionId},
        engine::{Input, Order},
        id::AttemptId,
    },
    protocol::{
        bulk::OFFERED_OUTPUTS_MAX,
        frame::FrameError,
        handshake::{
            ABILITIES_MAX, Capabilities, HELD_MAX, Hello, REPORTS_SINCE, SLOTS_MAX, TAGS_MAX, agree,
        },
        message::{
            Allocation, CAPACITY_REASON_BYTES_MAX, FromAgent, MISSING_INPUTS_MAX,
            OUTCOME_WORDS_BYTES_MAX, ToAgent, Welcome,
        },
        session::{CoordinatorEnd, Due},
    },
    ssh::{ChannelReader, GuardedWriter, Incoming, Principal, Request, WriteError},
    store::StoreError,
    telemetry,
};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::sync::mpsc;

/// How long an agent may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);
/// A clock that differs by more than this is worth a warning.
const SKEW_MS_MAX: u64 = 60_000;
/// How many frames may wait to be written to one agent.
const FRAMES_MAX: usize = 256;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// Messages that sessions drop without asking the engine, since the start.
#[derive(Debug, Default)]
pub struct Dropped {
    log_pieces: AtomicU64,
    reports: AtomicU64,
}

impl Dropped {
    /// Returns how many of each kind there were, by the word that commands print.
    #[must_use]
    pub fn by_kind(&self) -> [(&'static str, u64); 2] {
        [("stale-log", &self.log_pieces), ("unasked-report", &self.reports)]
            .map(|(word, number)| (word, number.load(Ordering::Relaxed)))
    }
}

/// Why a control session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The agent closed its side.
    #[error("the agent closed the session")]
    Closed,
    /// The connection was lost.
    #[error("the connection was lost")]
    Lost,
    /// Nothing was heard for too long.
    #[error("nothing was heard of the agent for a minute")]
    Silent,
    /// The agent said no hello in time, or something else first.
    #[error("the agent did not begin with a hello")]
    NoHello,
    /// The agent was refused.
    #[error("refused: {0}")]
    Refused(String),
    /// The coordinator stops, and the agent knows.
    #[error("the coordinator stops")]
    Restarting,
    /// The agent does not take its orders.
    #[error("the agent does not take its orders, or has opened another session")]
    Detached,
    /// Bytes that are no frame, or no message.
    #[error("the agent does not speak the protocol")]
    Protocol(#[from] FrameError),
    /// Writing failed.
    #[error("writing failed")]
    Write(#[from] WriteError),
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopping(#[from] super::engine_thread::EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A log could not be written.
    #[error("a log could not be written")]
    Log(#[source] std::io::Error),
}

/// Serves a control session until it ends.
pub async fn serve(coordinator: Coordinator, request: Request) {
    let session = SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed));
    let agent = request.principal.name.clone();
    let _counted = coordinator.activity.agent_session();
    let result = run(&coordinator, request, session).await;
    if let Err(end) = result {
        tracing::info!(%agent, reason = telemetry::chain(&end), "agent session ended");
    }
    // When the engine is gone, everybody is.
    coordinator.engine.tell(Input::Leave { session }).await.ok();
}

async fn run(
    coordinator: &Coordinator,
    request: Request,
    session: SessionId,
) -> Result<(), SessionEnd> {
    let Request { principal, mut input, output, .. } = request;
    let mut end = CoordinatorEnd::new(coordinator.clock.now().mono);
    let hello = tokio::time::timeout(HELLO_DEADLINE, read_hello(coordinator, &mut end, &mut input))
        .await
        .map_err(|_| SessionEnd::NoHello)??;
    let (frames, outbox) = mpsc::channel(FRAMES_MAX);
    let writer = tokio::spawn(write(output, outbox));
    let mut life = Life {
        coordinator,
        session,
        principal: &principal,
        end,
        frames,
        live: BTreeSet::new(),
        asked: BTreeSet::new(),
        protocol: 0,
    };
    let result = life.live(hello, &mut input).await;
    drop(life);
    // Whatever was said last, a refusal above all, is still written.
    match writer.await {
        Ok(Ok(())) | Err(_) => result,
        Ok(Err(error)) => result.and(Err(error.into())),
    }
}

async fn read_hello(
    coordinator: &Coordinator,
    end: &mut CoordinatorEnd,
    input: &mut ChannelReader,
) -> Result<Hello, SessionEnd> {
    loop {
        match end.next_message() {
            Some(FromAgent::Hello(hello)) => return Ok(hello),
            Some(_) => return Err(SessionEnd::NoHello),
            None => {}
        }
        match input.next().await {
            Incoming::Data(bytes) => end.receive(coordinator.clock.now().mono, &bytes)?,
            Incoming::Stderr(_) | Incoming::Exited(_) => {}
            Incoming::Eof | Incoming::Lost => return Err(SessionEnd::Closed),
        }
    }
}

/// Writes frames as they come, and closes the channel behind the last one.
async fn write(
    output: GuardedWriter,
    mut frames: mpsc::Receiver<bytes::Bytes>,
) -> Result<(), WriteError> {
    while let Some(frame) = frames.recv().await {
        output.write(frame).await?;
    }
    output.close().await
}

/// A session behind its hello.
struct Life<'a> {
    coordinator: &'a Coordinator,
    session: SessionId,
    principal: &'a Principal,
    end: CoordinatorEnd,
    frames: mpsc::Sender<bytes::Bytes>,
    /// The attempts that this session may log for.
    live: BTreeSet<AttemptId>,
    /// The attempts that this session was asked to report.
    asked: BTreeSet<AttemptId>,
    protocol: u16,
}

impl Life<'_> {
    async fn live(&mut self, hello: Hello, input: &mut ChannelReader) -> Result<(), SessionEnd> {
        let mut orders = self.join(hello).await?;
        let Err(mut end) = self.serve(input, &mut orders).await;
        // The engine's last order may be waiting behind what could not be handed in any more.
        while let (SessionEnd::Stopping(_), Ok(order)) = (&end, orders.try_recv()) {
            if let Err(other) = self.obey(order).await {
                end = other;
            }
        }
        Err(end)
    }

    /// Passes messages and orders on until something ends the session.
    async fn serve(
        &mut self,
        input: &mut ChannelReader,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Result<Infallible, SessionEnd> {
        loop {
            let now = self.coordinator.clock.now().mono;
            let wait = self.end.deadline().as_ms().saturating_sub(now.as_ms());
            tokio::select! {
                incoming = input.next() => match incoming {
                    Incoming::Data(bytes) => {
                        self.end.receive(self.coordinator.clock.now().mono, &bytes)?;
                        while let Some(message) = self.end.next_message() {
                            self.take(message).await?;
                        }
                    }
                    Incoming::Stderr(_) | Incoming::Exited(_) => {}
                    Incoming::Eof => return Err(SessionEnd::Closed),
                    Incoming::Lost => return Err(SessionEnd::Lost),
                },
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await?,
                    None => return Err(SessionEnd::Detached),
                },
                () = tokio::time::sleep(Duration::from_millis(wait)) => {
                    match self.end.on_time(self.coordinator.clock.now().mono) {
                        Due::PeerDead => return Err(SessionEnd::Silent),
                        Due::Heartbeat => self.say(&ToAgent::Heartbeat {}).await?,
                        Due::Nothing => {}
                    }
                }
            }
        }
    }

    /// Checks a hello and lets the agent join.
    async fn join(&mut self, hello: Hello) -> Result<mpsc::Receiver<Order>, SessionEnd> {
        let Some(protocol) = agree(&hello) else {
            let reason = format!(
                "no common protocol: the agent speaks {} to {}, this coordinator {} to {}; \
                 upgrade the older of the two",
                hello.protocol_min,
                hello.protocol_max,
                crate::protocol::handshake::PROTOCOL_MIN,
                crate::protocol::handshake::PROTOCOL_MAX,
            );
            return self.refuse(reason).await;
        };
        if hello.held.len() > HELD_MAX {
            return self.refuse(format!("more than {HELD_MAX} attempts held")).await;
        }
        self.protocol = protocol;
        let skew = hello.wall_ms.abs_diff(self.coordinator.clock.now().wall.as_ms());
        if skew > SKEW_MS_MAX {
            tracing::warn!(agent = %self.principal.name, skew_ms = skew, "the agent's clock is off");
        }
        if hello.capabilities.tags.len() > TAGS_MAX {
            return self.refuse(format!("more than {TAGS_MAX} tags")).await;
        }
        let Capabilities { systems, emulated_systems, features, .. } = &hello.capabilities;
        if systems.len() + emulated_systems.len() + features.len() > ABILITIES_MAX {
            let reason = format!("more than {ABILITIES_MAX} systems and features");
            return self.refuse(reason).await;
        }
        let abilities = abilities(&hello, self.principal);
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        self.coordinator.engine.attach(self.session, orders).await?;
        self.coordinator
            .engine
            .tell(Input::Join {
                session: self.session,
                name: self.principal.name.clone(),
                instance: hello.instance,
                abilities,
                held: hello.held,
                capacity: hello.capacity.map(limited),
            })
            .await?;
        Ok(receiver)
    }

    async fn refuse<T>(&mut self, reason: String) -> Result<T, SessionEnd> {
        self.say(&ToAgent::Refused { reason: reason.clone() }).await?;
        Err(SessionEnd::Refused(reason))
    }

    /// Takes in one message of the agent.
    async fn take(&mut self, message: FromAgent) -> Result<(), SessionEnd> {
        let session = self.session;
        match message {
            FromAgent::Hello(_) => return Err(SessionEnd::NoHello),
            FromAgent::Heartbeat {} => {}
            FromAgent::Started { attempt } => {
                self.coordinator.engine.tell(Input::Started { session, attempt }).await?;
            }
            FromAgent::Capacity { slots, reason } => {
                let Capacity { slots, reason } = limited(Capacity { slots, reason });
                let capacity = Input::Capacity { session, slots, reason };
                self.coordinator.engine.tell(capacity).await?;
            }
            FromAgent::Log { attempt, offset, bytes } => {
                // A log of an attempt that is not this session's is dropped, as stale as any other
                // of its messages.
                if self.live.contains(&attempt) {
                    let logs = &self.coordinator.logs;
                    let offset =
                        logs.append(attempt, offset, bytes).await.map_err(SessionEnd::Log)?;
                    self.say(&ToAgent::LogReceived { attempt, offset }).await?;
                } else {
                    self.coordinator.dropped.log_pieces.fetch_add(1, Ordering::Relaxed);
                }
            }
            FromAgent::Finished { attempt, outcome, log_bytes } => {
                // Its whole log has come: the channel keeps the order. Of a log that is not this
                // session's, nothing is believed, least of all its length.
                if self.live.remove(&attempt) {
                    let logs = &self.coordinator.logs;
                    logs.complete(attempt, log_bytes).await.map_err(SessionEnd::Log)?;
                }
                let outcome = outcome.limited(OUTCOME_WORDS_BYTES_MAX, MISSING_INPUTS_MAX);
                self.coordinator.engine.tell(Input::Finished { session, attempt, outcome }).await?;
            }
            FromAgent::Report { attempt, outputs } => {
                // Nobody may fill the database with what was never asked.
                if self.asked.contains(&attempt) && outputs.len() <= OFFERED_OUTPUTS_MAX {
                    let report = Input::Report { session, attempt, outputs };
                    self.coordinator.engine.tell(report).await?;
                } else {
                    self.coordinator.dropped.reports.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Says in the log what a report came to, for the operator: a different result is worth a look.
    async fn tell_of_report(&self, attempt: AttemptId) -> Result<(), SessionEnd> {
        let agent = &self.principal.name;
        match self.coordinator.readers.read(move |reader| reader.is_disputed(attempt)).await? {
            Some(false) => tracing::info!(%agent, %attempt, "late outputs: nothing differs"),
            Some(true) => tracing::warn!(%agent, %attempt, "late outputs differ: see ‘outputs’"),
            None => tracing::warn!(
                %agent, %attempt,
                "late outputs of an attempt that is not known here; was a backup restored?"
            ),
        }
        Ok(())
    }

    /// Passes one order on.
    async fn obey(&mut self, order: Order) -> Result<(), SessionEnd> {
        let message = match order {
            Order::Welcome { keep, mut drop, mut report } => {
                self.live.extend(&keep);
                if self.protocol < REPORTS_SINCE {
                    drop.append(&mut report);
                }
                self.asked.extend(&report);
                tracing::info!(
                    agent = %self.principal.name, kept = keep.len(), dropped = drop.len(),
                    reported = report.len(), "agent connected"
                );
                ToAgent::Welcome(Welcome {
                    protocol: self.protocol,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    wall_ms: self.coordinator.clock.now().wall.as_ms(),
                    keep,
                    drop,
                    report,
                })
            }
            Order::Refuse { reason } => return self.refuse(reason).await,
            Order::Replaced => return Err(SessionEnd::Detached),
            Order::Restarting { back_in_ms } => {
                self.say(&ToAgent::Restarting { back_in_ms }).await?;
                return Err(SessionEnd::Restarting);
            }
            Order::Allocate { attempt, build, derivation, limits } => {
                self.live.insert(attempt);
                ToAgent::Allocate(Allocation {
                    attempt,
                    build,
                    derivation,
                    timeout_ms: limits.timeout_ms,
                    max_silent_ms: limits.max_silent_ms,
                })
            }
            Order::Cancel { attempt } => {
                self.live.remove(&attempt);
                ToAgent::Cancel { attempt }
            }
            Order::Settled { attempt } => {
                self.live.remove(&attempt);
                if self.asked.remove(&attempt) {
                    self.tell_of_report(attempt).await?;
                }
                ToAgent::Settled { attempt }
            }
        };
        self.say(&message).await
    }

    async fn say(&mut self, message: &ToAgent) -> Result<(), SessionEnd> {
        let frame = self.end.encode(self.coordinator.clock.now().mono, message)?;
        // The writer ends with its own error, which is the one to tell.
        self.frames.send(frame).await.map_err(|_| SessionEnd::Lost)
    }
}

/// Returns the capacity with no longer a reason than the protocol allows.
fn limited(capacity: Capacity) -> Capacity {
    let reason = capacity.reason.map(|words| cut(words, CAPACITY_REASON_BYTES_MAX));
    Capacity { reason, ..capacity }
}

/// Returns the text with at most so many bytes.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// What an agent says of itself, cut down to what its key allows.
fn abilities(hello: &Hello, principal: &Principal) -> Abilities {
    let (claimed, ceiling) = (&hello.capabilities, principal.systems.as_deref());
    let mut tags = claimed.tags.clone();
    tags.extend(principal.tags.iter().cloned());
    let allowed = |systems: &[String]| -> Vec<String> {
        let within = |system: &&String| ceiling.is_none_or(|ceiling| ceiling.contains(system));
        systems.iter().filter(within).cloned().collect()
    };
    Abilities {
        store_dir: claimed.store_dir.clone(),
        dialect: claimed.dialect.clone(),
        systems: allowed(&claimed.systems),
        emulated_systems: allowed(&claimed.emulated_systems),
        features: claimed.features.clone(),
        slots: claimed.slots.min(SLOTS_MAX),
        tags,
    }
}
