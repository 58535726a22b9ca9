//! One session with the coordinator: from dialing to the loss of the control channel.

use super::{attempts::Attempts, report::Link};
use crate::{
    core::{agent::Capacity, id::InstanceId},
    protocol::{
        CONTROL_SUBSYSTEM,
        frame::FrameError,
        handshake::{Capabilities, Hello, PROTOCOL_MAX, PROTOCOL_MIN, TEXTS_SINCE},
        message::{CAPACITY_REASON_BYTES_MAX, FromAgent, ToAgent, Welcome},
        session::{AgentEnd, Due},
    },
    ssh::{
        self, ChannelReader, ClientConfig, ConnectError, GuardedWriter, Incoming, WriteError,
        client::OpenError,
    },
    telemetry::{self, Clock},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How many messages of all attempts wait to be sent; 256 KiB each at most.
const OUTGOING_MAX: usize = 16;
/// How long the coordinator may take nothing of a control message.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// The longest announced restart that is believed.
const RESTART_MAX: Duration = Duration::from_mins(10);
/// A wall clock that differs by more than this is worth a warning, in milliseconds.
const SKEW_MS_MAX: u64 = 30_000;

/// What every session begins with.
pub(super) struct Dialer {
    /// Whom to call.
    pub(super) client: ClientConfig,
    /// Which installation this is.
    pub(super) instance: InstanceId,
    /// What time it is.
    pub(super) clock: Clock,
    /// How many builds this machine wants to run at a time.
    pub(super) capacity: watch::Receiver<Capacity>,
    /// Fires when the agent stops.
    pub(super) cancel: CancellationToken,
}

/// How a session ended.
pub(super) enum Ended {
    /// There was none, and there will be none with this configuration.
    Misconfigured(ConnectError),
    /// The coordinator does not know this agent's key.
    Unknown(String),
    /// The coordinator does not want this agent, or is not the coordinator.
    Refused(String),
    /// There was none.
    Unreached(SessionError),
    /// There was one, and it is lost.
    Lost(String),
    /// The coordinator said that it would be back by then.
    Restarting(Duration),
}

/// Why a session ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// There is no connection.
    #[error("no connection")]
    Connect(#[source] ConnectError),
    /// There is no control channel.
    #[error("no control channel")]
    Open(#[from] OpenError),
    /// A message was not sent.
    #[error("a message was not sent")]
    Write(#[from] WriteError),
    /// The coordinator's bytes are not messages, or a message of ours is too long.
    #[error("the control channel is broken")]
    Frame(#[from] FrameError),
    /// The channel ended.
    #[error("the connection ended")]
    Ended,
    /// Nothing came for too long.
    #[error("the coordinator is silent")]
    Silent,
    /// A message came that does not belong there.
    #[error("the coordinator broke the protocol: {0}")]
    OutOfTurn(&'static str),
}

/// Dials, and serves the session until it ends. Attempts go on meanwhile and afterwards.
pub(super) async fn run(dialer: &Dialer, attempts: &mut Attempts) -> Ended {
    let dial = async {
        let connection = ssh::connect(&dialer.client, &dialer.cancel).await;
        let connection = connection.map_err(SessionError::Connect)?;
        let channel = connection.subsystem(CONTROL_SUBSYSTEM).await?;
        Ok((connection, channel))
    };
    let (connection, (reader, writer)) = match attempts.meanwhile(dial).await {
        Ok(opened) => opened,
        Err(SessionError::Connect(error)) => return unreached(error),
        Err(error) => return Ended::Unreached(error),
    };
    let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
    let mut session = Session {
        dialer,
        reader,
        writer: writer.with_deadline(WRITE_MAX),
        end: AgentEnd::new(dialer.clock.now().mono),
        outgoing,
        stage: Stage::Greeted(sender),
        capacity: dialer.capacity.clone(),
    };
    let Err(error) = session.serve(attempts).await;
    let stage = session.stage;
    // Whatever comes next needs a new connection.
    drop(connection);
    match (error, stage) {
        (_, Stage::Refused(reason)) => Ended::Refused(reason),
        (_, Stage::Restarting(back_in)) => Ended::Restarting(back_in),
        (error, Stage::Greeted(_)) => Ended::Unreached(error),
        (error, Stage::Welcomed) => Ended::Lost(telemetry::chain(&error)),
    }
}

/// Sorts the reasons for which there is no connection.
/// Returns the oldest protocol that an agent like this can do with.
fn protocol_min(capabilities: &Capabilities) -> u16 {
    if capabilities.dialect == "guix" { TEXTS_SINCE } else { PROTOCOL_MIN }
}

fn unreached(error: ConnectError) -> Ended {
    match error {
        ConnectError::PinnedKey(_) | ConnectError::NothingPinned(_) => Ended::Misconfigured(error),
        ConnectError::Refused { .. } => Ended::Unknown(telemetry::chain(&error)),
        ConnectError::HostKeyMismatch { .. } => Ended::Refused(telemetry::chain(&error)),
        ConnectError::Unreachable { .. }
        | ConnectError::TimedOut { .. }
        | ConnectError::BrokenOff { .. }
        | ConnectError::Canceled => Ended::Unreached(SessionError::Connect(error)),
    }
}

/// How far a session is.
enum Stage {
    /// We said hello; attempts get this to report with once they are welcome.
    Greeted(mpsc::Sender<FromAgent>),
    /// The coordinator knows us.
    Welcomed,
    /// The coordinator will be back after this time.
    Restarting(Duration),
    /// The coordinator does not want us.
    Refused(String),
}

/// A session with an open control channel.
struct Session<'a> {
    dialer: &'a Dialer,
    reader: ChannelReader,
    writer: GuardedWriter,
    end: AgentEnd,
    outgoing: mpsc::Receiver<FromAgent>,
    stage: Stage,
    /// What is unseen of it was not told in this session.
    capacity: watch::Receiver<Capacity>,
}

impl Session<'_> {
    /// Serves until something ends the session.
    async fn serve(
        &mut self,
        attempts: &mut Attempts,
    ) -> Result<std::convert::Infallible, SessionError> {
        let now = self.dialer.clock.now();
        let capabilities = attempts.capabilities();
        let hello = Hello {
            protocol_min: protocol_min(&capabilities),
            protocol_max: PROTOCOL_MAX,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.dialer.instance,
            wall_ms: now.wall.as_ms(),
            capabilities,
            held: attempts.held(),
            capacity: Some(self.wanted()),
        };
        self.send(&FromAgent::Hello(hello)).await?;
        loop {
            let patience = self.patience();
            tokio::select! {
                incoming = self.reader.next() => match incoming {
                    Incoming::Data(bytes) => {
                        self.end.receive(self.dialer.clock.now().mono, &bytes)?;
                        while let Some(message) = self.end.next_message() {
                            self.obey(message, attempts).await?;
                        }
                    }
                    Incoming::Stderr(_) | Incoming::Exited(_) => {}
                    Incoming::Eof | Incoming::Lost => return Err(SessionError::Ended),
                },
                Some(message) = self.outgoing.recv() => self.send(&message).await?,
                event = attempts.next_event() => attempts.take(event),
                Ok(()) = self.capacity.changed(), if self.is_welcome() => {
                    let Capacity { slots, reason } = self.wanted();
                    self.send(&FromAgent::Capacity { slots, reason }).await?;
                }
                () = tokio::time::sleep(patience) => self.on_time().await?,
            }
        }
    }

    /// Returns how many builds are wanted now, in words that fit a message.
    fn wanted(&mut self) -> Capacity {
        let mut wanted = self.capacity.borrow_and_update().clone();
        if let Some(reason) = &mut wanted.reason {
            reason.truncate(reason.floor_char_boundary(CAPACITY_REASON_BYTES_MAX));
        }
        wanted
    }

    /// Tells whether the coordinator knows us.
    const fn is_welcome(&self) -> bool {
        matches!(self.stage, Stage::Welcomed | Stage::Restarting(_))
    }

    /// Returns how long nothing needs to happen.
    fn patience(&self) -> Duration {
        let now = self.dialer.clock.now().mono.as_ms();
        Duration::from_millis(self.end.deadline().as_ms().saturating_sub(now))
    }

    async fn on_time(&mut self) -> Result<(), SessionError> {
        match self.end.on_time(self.dialer.clock.now().mono) {
            Due::Nothing => Ok(()),
            Due::Heartbeat => self.send(&FromAgent::Heartbeat {}).await,
            Due::PeerDead => Err(SessionError::Silent),
        }
    }

    async fn send(&mut self, message: &FromAgent) -> Result<(), SessionError> {
        let frame = self.end.encode(self.dialer.clock.now().mono, message)?;
        self.writer.write(frame).await?;
        Ok(())
    }

    /// Does what the coordinator says.
    async fn obey(
        &mut self,
        message: ToAgent,
        attempts: &mut Attempts,
    ) -> Result<(), SessionError> {
        let message = match message {
            ToAgent::Welcome(welcome) => return self.take_welcome(&welcome, attempts).await,
            ToAgent::Refused { reason } => {
                self.stage = Stage::Refused(reason);
                return Err(SessionError::Ended);
            }
            ToAgent::Heartbeat {} => return Ok(()),
            message => message,
        };
        if let Stage::Greeted(_) = self.stage {
            return Err(SessionError::OutOfTurn("an answer to ‘hello’ was expected"));
        }
        match message {
            ToAgent::Allocate(allocation) => {
                if let Some(answer) = attempts.allocate(allocation) {
                    self.send(&answer).await?;
                }
            }
            ToAgent::Cancel { attempt } => {
                tracing::info!(%attempt, "attempt canceled");
                attempts.forget(attempt);
            }
            ToAgent::LogReceived { attempt, offset } => attempts.acknowledge(attempt, offset),
            ToAgent::Settled { attempt } => {
                tracing::debug!(%attempt, "attempt settled");
                attempts.forget(attempt);
            }
            ToAgent::Restarting { back_in_ms } => {
                let back_in = Duration::from_millis(back_in_ms).min(RESTART_MAX);
                self.stage = Stage::Restarting(back_in);
            }
            ToAgent::Welcome(_) | ToAgent::Refused { .. } | ToAgent::Heartbeat {} => {}
        }
        Ok(())
    }

    /// Begins the session proper.
    async fn take_welcome(
        &mut self,
        welcome: &Welcome,
        attempts: &mut Attempts,
    ) -> Result<(), SessionError> {
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&welcome.protocol) {
            return Err(SessionError::OutOfTurn("it chose a protocol that was not offered"));
        }
        let Stage::Greeted(outgoing) = std::mem::replace(&mut self.stage, Stage::Welcomed) else {
            return Err(SessionError::OutOfTurn("a second ‘welcome’"));
        };
        let skew_ms = welcome.wall_ms.abs_diff(self.dialer.clock.now().wall.as_ms());
        if skew_ms > SKEW_MS_MAX {
            tracing::warn!(skew_ms, "this machine's clock differs from the coordinator's");
        }
        let (kept, dropped) = (welcome.keep.len(), welcome.drop.len());
        let reported = welcome.report.len();
        tracing::info!(
            version = welcome.version,
            kept,
            dropped,
            reported,
            "session with the coordinator"
        );
        for attempt in &welcome.drop {
            attempts.forget(*attempt);
        }
        let muted = Arc::new(welcome.report.iter().copied().collect());
        attempts.link(Link { outgoing, muted });
        for attempt in &welcome.report {
            if let Some(report) = attempts.report(*attempt) {
                self.send(&report).await?;
            }
        }
        Ok(())
    }
}
