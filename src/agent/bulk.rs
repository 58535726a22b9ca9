//! Bulk channels: connections apart from the control one, opened on demand and kept.

use crate::{
    protocol::{
        BULK_SUBSYSTEM,
        bulk::{BulkFromAgent, BulkToAgent},
        frame::{self, Decoder, FrameError},
    },
    ssh::{
        self, ChannelReader, ClientConfig, ConnectError, Connection, GuardedWriter, Incoming,
        WriteError, client::OpenError,
    },
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How many attempts may wait for a channel before they wait for a place among those who wait.
const ASKS_MAX: usize = 64;
/// How long the coordinator may take for its next message.
const ANSWER_MAX: Duration = Duration::from_mins(2);

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
    cancel: CancellationToken,
}

impl Pool {
    /// Starts a pool of at most that many connections; none is opened yet.
    pub(super) fn start(client: ClientConfig, lines: usize, cancel: CancellationToken) -> Self {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        drop(tokio::spawn(lend(asked, lines, cancel.clone())));
        Self { asks, client, cancel }
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
            let connection = ssh::connect(&self.client, &self.cancel).await?;
            let (reader, writer) = connection.subsystem(BULK_SUBSYSTEM).await?;
            let decoder = Decoder::default();
            exchange.line = Some(Line { connection, reader, writer, decoder });
        }
        Ok(exchange)
    }
}

/// Lends the places to those who ask, in order.
async fn lend(
    mut asked: mpsc::Receiver<oneshot::Sender<Exchange>>,
    places: usize,
    cancel: CancellationToken,
) {
    let (home, mut returned) = mpsc::channel(places);
    let mut idle: Vec<Line> = Vec::new();
    let mut free = places;
    loop {
        tokio::select! {
            // A connection that just came back is lent again before a new one is opened.
            biased;
            () = cancel.cancelled() => return,
            line = returned.recv() => {
                free += 1;
                idle.extend(line.flatten());
            }
            ask = asked.recv(), if free > 0 => {
                let Some(ask) = ask else { return };
                free -= 1;
                idle.retain(|line| !line.connection.lost().is_cancelled());
                let (line, home) = (idle.pop(), home.clone());
                if let Err(unwanted) = ask.send(Exchange { line, state: State::Unfinished, home }) {
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
    pub(super) async fn send(&mut self, message: &BulkFromAgent) -> Result<(), BulkError> {
        let line = self.line.as_mut().ok_or(BulkError::Lost)?;
        line.writer.write(frame::encode(message)?).await?;
        Ok(())
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
        let line = self.line.as_mut().ok_or(BulkError::Lost)?;
        let next = async {
            loop {
                if let Some(message) = line.decoder.next_message()? {
                    return Ok(message);
                }
                match line.reader.next().await {
                    Incoming::Data(bytes) => line.decoder.feed(&bytes),
                    Incoming::Stderr(_) | Incoming::Exited(_) => {}
                    Incoming::Eof | Incoming::Lost => return Err(BulkError::Lost),
                }
            }
        };
        timeout(patience, next).await.map_err(|_| BulkError::Late(patience))?
    }

    /// Sends a message, unless the coordinator says something first: that is returned then, and the
    /// message may be sent in part, so that the exchange must not be given back.
    ///
    /// # Errors
    /// As [`Exchange::send`] and [`Exchange::receive`].
    pub(super) async fn send_unless_told(
        &mut self,
        message: &BulkFromAgent,
    ) -> Result<Option<BulkToAgent>, BulkError> {
        let frame = frame::encode(message)?;
        let writer = self.line.as_ref().ok_or(BulkError::Lost)?.writer.clone();
        tokio::select! {
            biased;
            told = self.receive_within(Duration::MAX) => told.map(Some),
            sent = writer.write(frame) => Ok(sent.map(|()| None)?),
        }
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
