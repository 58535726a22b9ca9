//! Bulk channels: connections apart from the control one, opened on demand and kept.

use super::backoff::Backoff;
use crate::{
    protocol::{
        BULK_SUBSYSTEM,
        bulk::{BulkFromAgent, BulkToAgent, STALL_MAX},
        data::data_of,
        frame::{self, Decoder, FrameError},
    },
    ssh::{
        self, ChannelReader, ClientConfig, ConnectError, Connection, GuardedWriter, Incoming,
        WriteError, client::OpenError,
    },
};
use bytes::Bytes;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// How many attempts may wait for a channel before they wait for a place among those who wait.
const ASKS_MAX: usize = 64;
/// How long the coordinator may take for its next message.
const ANSWER_MAX: Duration = Duration::from_mins(2);
/// How long a connection that nobody uses is kept.
const WARM_MAX: Duration = Duration::from_mins(1);

/// Why an exchange was not completed. Trying again on another channel may help.
#[derive(Debug, thiserror::Error)]
pub(super) enum BulkError {
    /// There is no connection.
    #[error("no bulk connection")]
    Connect(#[from] ConnectError),
    /// There is a connection but no channel.
    #[error("no bulk channel")]
    Open(#[from] OpenError),
    /// A message was not written.
    #[error("a message was not sent")]
    Write(#[from] WriteError),
    /// The coordinator's bytes are not messages, or a message of ours is too long.
    #[error("the exchange is broken")]
    Frame(#[from] FrameError),
    /// The channel ended.
    #[error("the connection was lost")]
    Lost,
    /// The coordinator takes nothing of what is sent.
    #[error("the coordinator took nothing for {} s", STALL_MAX.as_secs())]
    Stalled,
    /// The coordinator said nothing.
    #[error("the coordinator did not answer in {} s", .0.as_secs())]
    Late(Duration),
    /// The coordinator said something that does not belong here.
    #[error("the coordinator broke the protocol: {0}")]
    OutOfTurn(&'static str),
}

/// The agent's bulk channels. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    asks: mpsc::Sender<oneshot::Sender<Exchange>>,
    client: ClientConfig,
    dialing: Arc<Mutex<Dialing>>,
    cancel: CancellationToken,
}

/// When the coordinator may be dialed again. Whoever dials has it, so that one after the other
/// does, and those behind a failure wait out its pause.
#[derive(Debug, Default)]
struct Dialing {
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Pool {
    /// Starts a pool of at most that many connections; none is opened yet.
    pub(super) fn start(client: ClientConfig, lines: usize, cancel: CancellationToken) -> Self {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        drop(tokio::spawn(lend(asked, lines, cancel.clone())));
        Self { asks, client, dialing: Arc::default(), cancel }
    }

    /// Returns a channel for one exchange, waiting until one is free.
    ///
    /// # Errors
    /// [`BulkError::Connect`], [`BulkError::Open`]; [`BulkError::Lost`] when the agent stops.
    pub(super) async fn exchange(&self) -> Result<Exchange, BulkError> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(answer).await.map_err(|_| BulkError::Lost)?;
        let mut exchange = answered.await.map_err(|_| BulkError::Lost)?;
        if exchange.line.is_none() {
            exchange.line = Some(self.dial().await?);
        }
        Ok(exchange)
    }

    async fn dial(&self) -> Result<Line, BulkError> {
        let mut dialing = self.dialing.lock().await;
        if let Some(not_before) = dialing.not_before {
            sleep_until(not_before).await;
        }
        let open = async {
            let connection = ssh::connect(&self.client, &self.cancel).await?;
            let (reader, writer) = connection.subsystem(BULK_SUBSYSTEM).await?;
            let writer = writer.with_deadline(STALL_MAX);
            Ok(Line { connection, reader, writer, decoder: Decoder::default(), ahead: 1 })
        };
        let opened = open.await;
        if opened.is_ok() {
            *dialing = Dialing::default();
        } else {
            dialing.not_before = Some(Instant::now() + dialing.backoff.pause());
        }
        opened
    }
}

/// A connection that waits to be used.
struct Idle {
    line: Line,
    since: Instant,
}

/// Lends the places to those who ask, in order.
async fn lend(
    mut asked: mpsc::Receiver<oneshot::Sender<Exchange>>,
    places: usize,
    cancel: CancellationToken,
) {
    let (home, mut returned) = mpsc::channel(places);
    let mut idle: VecDeque<Idle> = VecDeque::new();
    let mut free = places;
    loop {
        let cold = idle.front().map(|oldest| oldest.since + WARM_MAX);
        tokio::select! {
            // A connection that just came back is lent again before a new one is opened.
            biased;
            () = cancel.cancelled() => return,
            line = returned.recv() => {
                free += 1;
                idle.extend(line.flatten().map(|line| Idle { line, since: Instant::now() }));
            }
            () = sleep_until(cold.unwrap_or_else(Instant::now)), if cold.is_some() => {
                if let Some(Idle { line, .. }) = idle.pop_front() {
                    drop(tokio::spawn(line.connection.close()));
                }
            }
            ask = asked.recv(), if free > 0 => {
                let Some(ask) = ask else { return };
                free -= 1;
                idle.retain(|idle| !idle.line.connection.lost().is_cancelled());
                // The one that was used last, so that those too many grow cold.
                let line = idle.pop_back().map(|idle| idle.line);
                let exchange = Exchange { line, state: State::Unfinished, home: home.clone() };
                if let Err(unwanted) = ask.send(exchange) {
                    unwanted.finish();
                }
            }
        }
    }
}

/// One connection with its one channel.
#[derive(Debug)]
struct Line {
    connection: Connection,
    reader: ChannelReader,
    writer: GuardedWriter,
    decoder: Decoder,
    /// How many offers with all their files may be unanswered at a time, as far as is known.
    ahead: usize,
}

/// Whether a channel is between two exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unfinished,
    Finished,
}

/// A channel for one exchange. Dropping it without [`Exchange::finish`] ends its connection,
/// because nobody knows what the coordinator still sends.
#[derive(Debug)]
pub(super) struct Exchange {
    line: Option<Line>,
    state: State,
    home: mpsc::Sender<Option<Line>>,
}

impl Exchange {
    /// Sends a message.
    ///
    /// # Errors
    /// [`BulkError::Write`], [`BulkError::Frame`].
    pub(super) async fn send(&self, message: &BulkFromAgent) -> Result<(), BulkError> {
        self.sender()?.send(frame::encode(message)?).await
    }

    /// Returns what can send while this receives.
    ///
    /// # Errors
    /// [`BulkError::Lost`].
    pub(super) fn sender(&self) -> Result<Sender, BulkError> {
        let line = self.line.as_ref().ok_or(BulkError::Lost)?;
        Ok(Sender(line.writer.clone()))
    }

    /// Returns how many offers with all their files may be unanswered at a time.
    pub(super) fn ahead(&self) -> usize {
        self.line.as_ref().map_or(1, |line| line.ahead)
    }

    /// Notes what the coordinator said of that.
    pub(super) fn set_ahead(&mut self, ahead: u32) {
        if let Some(line) = &mut self.line {
            line.ahead = usize::try_from(ahead).unwrap_or(1).max(1);
        }
    }

    /// Returns the next message, which must come soon.
    ///
    /// # Errors
    /// [`BulkError::Lost`], [`BulkError::Late`], [`BulkError::Frame`].
    pub(super) async fn receive(&mut self) -> Result<BulkToAgent, BulkError> {
        self.receive_within(ANSWER_MAX).await
    }

    /// Returns the next message, which must come within `patience`. Giving up the returned future
    /// loses nothing.
    ///
    /// # Errors
    /// As [`Exchange::receive`].
    pub(super) async fn receive_within(
        &mut self,
        patience: Duration,
    ) -> Result<BulkToAgent, BulkError> {
        let next = self.receive_flowing(Duration::MAX);
        timeout(patience, next).await.map_err(|_| BulkError::Late(patience))?
    }

    /// Returns the next message of many, of which something must come at least every `silence`.
    ///
    /// # Errors
    /// As [`Exchange::receive`].
    pub(super) async fn receive_flowing(
        &mut self,
        silence: Duration,
    ) -> Result<BulkToAgent, BulkError> {
        let line = self.line.as_mut().ok_or(BulkError::Lost)?;
        loop {
            if let Some(body) = line.decoder.next_frame()? {
                return Ok(match data_of(&body) {
                    Some(bytes) => BulkToAgent::Data { bytes },
                    None => frame::decode(&body)?,
                });
            }
            let incoming = timeout(silence, line.reader.next()).await;
            match incoming.map_err(|_| BulkError::Late(silence))? {
                Incoming::Data(bytes) => line.decoder.feed(&bytes),
                Incoming::Stderr(_) | Incoming::Exited(_) => {}
                Incoming::Eof | Incoming::Lost => return Err(BulkError::Lost),
            }
        }
    }

    /// Returns the next message, if it has come already.
    ///
    /// # Errors
    /// [`BulkError::Frame`], [`BulkError::Lost`].
    pub(super) fn received(&mut self) -> Result<Option<BulkToAgent>, BulkError> {
        let line = self.line.as_mut().ok_or(BulkError::Lost)?;
        Ok(line.decoder.next_message()?)
    }

    /// Gives the channel back for another exchange. Call it when the coordinator has nothing more
    /// to say.
    pub(super) fn finish(mut self) {
        self.state = State::Finished;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let line = self.line.take().filter(|_| self.state == State::Finished);
        // There is room for every place; only a stopped agent takes none back.
        if self.home.try_send(line).is_err() {
            tracing::trace!("bulk connection given back to a stopped agent");
        }
    }
}

/// The sending half of an exchange. The coordinator must take something of what is sent every
/// [`STALL_MAX`].
#[derive(Debug)]
pub(super) struct Sender(GuardedWriter);

impl Sender {
    /// Sends a frame.
    ///
    /// # Errors
    /// [`BulkError::Write`].
    pub(super) async fn send(&self, frame: Bytes) -> Result<(), BulkError> {
        Ok(self.0.write(frame).await?)
    }
}
