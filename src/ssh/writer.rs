//! Writing to a channel without waiting for ever.

use super::{OWN_PACKET_BYTES, channel::Terminal, local::LocalHalf, outbox::Level};
use bytes::{Bytes, BytesMut};
use russh::{ChannelWriteHalf, client, server};
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{Mutex, MutexGuard},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How many bytes are sent under one progress deadline: one packet between our own ends, since
/// smaller pieces would make smaller packets. 128 KiB in 60 s are 2.2 KiB/s.
const PIECE_BYTES_MAX: usize = OWN_PACKET_BYTES as usize;

/// How long an abandoned channel's last message may wait for room.
pub(super) const CLOSE_MAX: Duration = Duration::from_secs(5);

/// The stream number of standard error (RFC 4254 section 5.2).
pub(super) const STDERR: u32 = 1;

/// Why something was not written. Nothing more can be written to the channel in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The connection or the channel has ended.
    #[error("the connection is closed")]
    Gone,
    /// The peer took nothing for as long as the progress deadline.
    #[error("the peer stopped reading")]
    Stalled,
    /// This end has ended the channel already, or an earlier write was given up half-way.
    #[error("the channel was ended on this side")]
    Ended,
}

/// The writing half of either kind of russh channel, or of a socket that is one channel.
pub(super) enum Half {
    Server(ChannelWriteHalf<server::Msg>),
    Client(ChannelWriteHalf<client::Msg>),
    Local(LocalHalf),
}

/// Calls a method that all kinds have.
macro_rules! on_half {
    ($half:expr, $method:ident ( $($argument:expr),* )) => {
        match $half {
            Half::Server(half) => half.$method($($argument),*).await,
            Half::Client(half) => half.$method($($argument),*).await,
            Half::Local(half) => half.$method($($argument),*).await,
        }
    };
}

impl Half {
    /// Asks to close the channel, for a moment only.
    pub(super) async fn close_soon(&self) {
        let close = async { on_half!(self, close()) };
        if !matches!(timeout(CLOSE_MAX, close).await, Ok(Ok(()))) {
            tracing::debug!("channel could not be closed: its connection has ended or is stuck");
        }
    }
}

/// How far this side has come with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Data may follow.
    Open,
    /// A write has begun; remains when it is given up, since half a message went out.
    Writing,
    /// No data may follow.
    DataEnded,
    /// Nothing may follow.
    Closed,
}

/// The writing end of a channel. Every wait ends when the channel or connection does, or when the
/// peer takes nothing for as long as the progress deadline.
///
/// Clones write to the same channel, one message at a time. When the last clone is dropped, the
/// channel is closed.
#[derive(Clone)]
pub struct GuardedWriter {
    shared: Arc<Shared>,
    progress_max: Duration,
}

/// What the clones of a writer share.
pub(super) struct Shared {
    pub(super) half: Arc<Half>,
    pub(super) turn: Mutex<Turn>,
    pub(super) gone: CancellationToken,
    pub(super) terminal: Terminal,
    pub(super) level: Arc<Level>,
}

impl std::fmt::Debug for GuardedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedWriter")
            .field("gone", &self.shared.gone.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl GuardedWriter {
    pub(super) fn new(shared: Shared, progress_max: Duration) -> Self {
        Self { shared: Arc::new(shared), progress_max }
    }

    /// Returns a writer to the same channel with another progress deadline.
    #[must_use]
    pub fn with_deadline(&self, progress_max: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), progress_max }
    }

    /// Returns a token that fires when the channel or its connection has ended.
    #[must_use]
    pub fn gone(&self) -> &CancellationToken {
        &self.shared.gone
    }

    /// Writes all bytes; messages of clones are not mixed. Giving up the returned future half-way
    /// leaves half a message, so the channel takes no further data then.
    ///
    /// # Errors
    /// [`WriteError`]: drop what was going to be written.
    pub async fn write(&self, bytes: Bytes) -> Result<(), WriteError> {
        self.write_to(None, bytes).await
    }

    /// Writes all bytes to the peer's standard error.
    ///
    /// # Errors
    /// As [`GuardedWriter::write`].
    pub async fn write_stderr(&self, bytes: Bytes) -> Result<(), WriteError> {
        self.write_to(Some(STDERR), bytes).await
    }

    /// Says that no data will follow; the peer may still send.
    ///
    /// # Errors
    /// As [`GuardedWriter::write`].
    pub async fn end_data(&self) -> Result<(), WriteError> {
        let mut turn = self.turn(&[Turn::Open]).await?;
        self.guarded(async { on_half!(&*self.shared.half, eof()) }).await?;
        *turn = Turn::DataEnded;
        Ok(())
    }

    /// Ends a command: sends its exit status, the end of data, and closes the channel.
    ///
    /// # Errors
    /// As [`GuardedWriter::write`].
    pub async fn exit(&self, status: u32) -> Result<(), WriteError> {
        let mut turn = self.turn(&[Turn::Open, Turn::Writing, Turn::DataEnded]).await?;
        self.guarded(async { on_half!(&*self.shared.half, exit_status(status)) }).await?;
        self.finish(&mut turn).await
    }

    /// Closes the channel. Closing it twice does nothing.
    ///
    /// # Errors
    /// As [`GuardedWriter::write`].
    pub async fn close(&self) -> Result<(), WriteError> {
        match self.turn(&[Turn::Open, Turn::Writing, Turn::DataEnded]).await {
            Ok(mut turn) => self.finish(&mut turn).await,
            Err(WriteError::Ended) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn finish(&self, turn: &mut Turn) -> Result<(), WriteError> {
        if *turn != Turn::DataEnded {
            self.guarded(async { on_half!(&*self.shared.half, eof()) }).await?;
        }
        self.guarded(async { on_half!(&*self.shared.half, close()) }).await?;
        *turn = Turn::Closed;
        // The reading side has nobody left to read for.
        self.shared.gone.cancel();
        Ok(())
    }

    async fn write_to(&self, stream: Option<u32>, mut bytes: Bytes) -> Result<(), WriteError> {
        let mut turn = self.turn(&[Turn::Open]).await?;
        *turn = Turn::Writing;
        if self.shared.terminal.is_raw() {
            bytes = with_carriage_returns(&bytes);
        }
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            self.guarded(async {
                self.shared.level.room().await;
                match stream {
                    None => on_half!(&*self.shared.half, data_bytes(piece)),
                    Some(number) => {
                        on_half!(&*self.shared.half, extended_data_bytes(number, piece))
                    }
                }
            })
            .await?;
        }
        *turn = Turn::Open;
        Ok(())
    }

    /// Waits until no clone is writing.
    async fn turn(&self, allowed: &[Turn]) -> Result<MutexGuard<'_, Turn>, WriteError> {
        let turn = tokio::select! {
            // An ended channel is told from one that ended: look at the turn first.
            biased;
            turn = self.shared.turn.lock() => turn,
            () = self.shared.gone.cancelled() => return Err(WriteError::Gone),
        };
        match *turn {
            now if allowed.contains(&now) => Ok(turn),
            Turn::Open | Turn::Writing | Turn::DataEnded | Turn::Closed => Err(WriteError::Ended),
        }
    }

    /// Runs one step of writing under both guards.
    async fn guarded(
        &self,
        step: impl Future<Output = Result<(), russh::Error>>,
    ) -> Result<(), WriteError> {
        tokio::select! {
            biased;
            () = self.shared.gone.cancelled() => Err(WriteError::Gone),
            result = timeout(self.progress_max, step) => match result {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(WriteError::Gone),
                Err(_) => {
                    self.shared.gone.cancel();
                    Err(WriteError::Stalled)
                }
            },
        }
    }
}

/// Returns text for a terminal in raw mode, where a line feed alone does not begin a new line.
fn with_carriage_returns(bytes: &[u8]) -> Bytes {
    let mut text = BytesMut::with_capacity(bytes.len().saturating_add(16));
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(line) => {
                text.extend_from_slice(line);
                text.extend_from_slice(b"\r\n");
            }
            None => text.extend_from_slice(piece),
        }
    }
    text.freeze()
}

impl Drop for Shared {
    fn drop(&mut self) {
        if *self.turn.get_mut() == Turn::Closed {
            return;
        }
        self.gone.cancel();
        if let Ok(runtime) = Handle::try_current() {
            let half = Arc::clone(&self.half);
            drop(runtime.spawn(async move { half.close_soon().await }));
        }
    }
}
