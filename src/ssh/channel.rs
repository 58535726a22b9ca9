//! Reading a channel without stopping its connection.
//!
//! russh hands what it receives to bounded queues, one per channel, and waits in its only task when
//! one of them is full: an unread channel would stop the other channels, the keepalives and even
//! the notice that the peer is dead. So a task of our own always empties that queue into another
//! one, which the [gate](super::gate) keeps from growing. A reader that makes no progress while the
//! connection waits for it loses its channel; the connection goes on.

use super::{
    gate::Backlog,
    stream::Flow,
    writer::{GuardedWriter, Half, Shared, Turn},
};
use bytes::Bytes;
use russh::{ChannelMsg, ChannelReadHalf};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How many messages are still passed on after the end: as many as russh may have kept.
const LAST_MESSAGES_MAX: usize = super::CHANNEL_MESSAGES_MAX;

/// The stream number of standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// What a terminal in raw mode sends for Ctrl-C.
const INTERRUPT: u8 = 0x03;

/// What a terminal in raw mode sends for Ctrl-D.
const END_OF_INPUT: u8 = 0x04;

/// What comes out of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes of the stream.
    Data(Bytes),
    /// Bytes of the peer's standard error; only ever from a server.
    Stderr(Bytes),
    /// The exit status of the command that was run; only ever from a server.
    Exited(u32),
    /// The peer said that no data follows. Returned again by every later call.
    Eof,
    /// The channel ended without the peer having said so: its connection died or was cut, or this
    /// side closed or abandoned it. What came before may be cut short anywhere. Returned again by
    /// every later call.
    Lost,
}

impl Incoming {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Data(bytes) | Self::Stderr(bytes) => bytes.len(),
            Self::Exited(_) | Self::Eof | Self::Lost => 0,
        }
    }
}

/// The reading end of a channel. Dropping it throws away what the peer still sends.
#[derive(Debug)]
pub struct ChannelReader {
    waiting: mpsc::UnboundedReceiver<Incoming>,
    backlog: Arc<Backlog>,
    end: Option<Incoming>,
    revoked: Revoked,
}

/// Whether a session was ended because its owner may not be here any more: what it had sent is
/// thrown away then, while the last words of a connection that just ended are still heard.
#[derive(Debug, Clone, Default)]
pub(super) struct Revoked(Arc<AtomicBool>);

impl Revoked {
    /// Says that from here on it is.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl ChannelReader {
    pub(super) fn new(
        waiting: mpsc::UnboundedReceiver<Incoming>,
        backlog: Arc<Backlog>,
        revoked: Revoked,
    ) -> Self {
        Self { waiting, backlog, end: None, revoked }
    }

    /// Returns what comes next. Giving up the returned future loses nothing.
    ///
    /// Whoever has a reader must call this or drop it: while too much is waiting, nothing is read
    /// from the whole connection, and after the read deadline the channel is closed. In particular,
    /// do not wait for a large write between two calls: the peer's permission to write more may be
    /// behind the data that is not read. Write in a task of its own, or write little.
    pub async fn next(&mut self) -> Incoming {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let mut next = self.waiting.recv().await.unwrap_or(Incoming::Lost);
        self.backlog.take(next.bytes());
        if self.revoked.is_set() {
            next = Incoming::Lost;
        }
        if matches!(next, Incoming::Eof | Incoming::Lost) {
            self.end = Some(next.clone());
        }
        next
    }
}

impl Drop for ChannelReader {
    fn drop(&mut self) {
        self.backlog.abandon();
    }
}

/// The deadlines of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// How long our reader may hold up the connection without taking anything.
    pub(super) read: Duration,
    /// How long the peer may take nothing.
    pub(super) write: Duration,
}

/// Whether the peer has put its terminal into raw mode, so that line ends and control characters
/// are for us to care about.
#[derive(Debug, Clone, Default)]
pub(super) struct Terminal(Arc<AtomicBool>);

impl Terminal {
    /// Says that from here on it is.
    pub(super) fn make_raw(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_raw(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a channel belongs to.
pub(super) struct Surroundings<Slot> {
    /// The channel's own token, a child of its connection's.
    pub(super) gone: CancellationToken,
    /// The connection's.
    pub(super) flow: Flow,
    pub(super) deadlines: Deadlines,
    pub(super) terminal: Terminal,
    /// The session's.
    pub(super) revoked: Revoked,
    /// Dropped when the channel has ended.
    pub(super) slot: Slot,
}

/// Makes both ends of a channel.
pub(super) fn open<Slot: Send + 'static>(
    incoming: ChannelReadHalf,
    outgoing: Half,
    surroundings: Surroundings<Slot>,
) -> (ChannelReader, GuardedWriter) {
    let Surroundings { gone, flow, deadlines, terminal, revoked, slot } = surroundings;
    // Not bounded by itself: the gate closes before it holds much.
    let (queue, waiting) = mpsc::unbounded_channel();
    let backlog = Arc::new(Backlog::new(flow.gate));
    let outgoing = Arc::new(outgoing);
    let writer = GuardedWriter::new(
        Shared {
            half: Arc::clone(&outgoing),
            turn: Mutex::new(Turn::Open),
            gone: gone.clone(),
            terminal: terminal.clone(),
            level: flow.level,
        },
        deadlines.write,
    );
    let read_max = deadlines.read;
    let reader = ChannelReader::new(waiting, Arc::clone(&backlog), revoked);
    let intake = Intake { incoming, queue, backlog, gone, read_max, terminal };
    drop(tokio::spawn(async move {
        if intake.run().await == Ended::Stalled {
            tracing::warn!("channel was not read in time on this side and is closed");
            outgoing.close_soon().await;
        }
        drop(slot);
    }));
    (reader, writer)
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// By the peer, with its connection, or by our writer.
    Closed,
    /// By our reader, who did not read.
    Stalled,
}

/// The task that always reads.
struct Intake {
    incoming: ChannelReadHalf,
    queue: mpsc::UnboundedSender<Incoming>,
    backlog: Arc<Backlog>,
    gone: CancellationToken,
    read_max: Duration,
    terminal: Terminal,
}

impl Intake {
    async fn run(mut self) -> Ended {
        let ended = loop {
            let message = tokio::select! {
                message = self.incoming.wait() => message,
                () = self.gone.cancelled() => {
                    self.pass_on_the_rest().await;
                    break Ended::Closed;
                }
                () = stalled(&self.backlog, self.read_max), if self.backlog.is_behind() => break Ended::Stalled,
            };
            match message {
                None | Some(ChannelMsg::Close) => break Ended::Closed,
                Some(message) => {
                    if let Some(incoming) = wanted(message)
                        && self.pass_on(incoming) == Passed::Interrupt
                    {
                        break Ended::Closed;
                    }
                }
            }
        };
        self.backlog.abandon();
        self.gone.cancel();
        ended
    }

    fn pass_on(&self, incoming: Incoming) -> Passed {
        let incoming = match incoming {
            Incoming::Data(bytes) if self.terminal.is_raw() => match typed(bytes) {
                Some(incoming) => incoming,
                None => return Passed::Interrupt,
            },
            other => other,
        };
        let bytes = incoming.bytes();
        self.backlog.add(bytes);
        if self.queue.send(incoming).is_err() {
            // Nobody reads any more: thrown away.
            self.backlog.take(bytes);
        }
        Passed::On
    }

    /// Passes on what had arrived before the end, so that a command's last words are not lost to
    /// the end of its connection.
    async fn pass_on_the_rest(&mut self) {
        for _ in 0..LAST_MESSAGES_MAX {
            let Ok(Some(message)) = timeout(Duration::ZERO, self.incoming.wait()).await else {
                return;
            };
            if let Some(incoming) = wanted(message)
                && self.pass_on(incoming) == Passed::Interrupt
            {
                return;
            }
        }
    }
}

/// Returns when the reader of a channel that holds up its connection has taken nothing for as long
/// as its deadline; never, once it has caught up.
async fn stalled(backlog: &Backlog, read_max: Duration) {
    while backlog.is_behind() {
        if timeout(read_max, backlog.progressed.notified()).await.is_err() {
            return;
        }
    }
    std::future::pending::<()>().await;
}

#[derive(Debug, PartialEq, Eq)]
enum Passed {
    On,
    Interrupt,
}

/// Returns what somebody typed at a raw terminal; `None` for an interrupt.
fn typed(bytes: Bytes) -> Option<Incoming> {
    match bytes.iter().find(|byte| matches!(**byte, INTERRUPT | END_OF_INPUT)) {
        Some(&INTERRUPT) => None,
        Some(_) => Some(Incoming::Eof),
        None => Some(Incoming::Data(bytes)),
    }
}

/// Returns what of a message is for the reader.
fn wanted(message: ChannelMsg) -> Option<Incoming> {
    match message {
        ChannelMsg::Data { data } => Some(Incoming::Data(data)),
        ChannelMsg::ExtendedData { data, ext: STDERR } => Some(Incoming::Stderr(data)),
        ChannelMsg::ExitStatus { exit_status } => Some(Incoming::Exited(exit_status)),
        ChannelMsg::Eof => Some(Incoming::Eof),
        _ => None,
    }
}
