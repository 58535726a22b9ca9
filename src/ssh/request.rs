//! What those who were let in ask for.

use super::{authorize::Principal, channel::ChannelReader, writer::GuardedWriter};
use std::{net::SocketAddr, sync::Arc};
use tokio_util::sync::CancellationToken;

/// The number of one authenticated connection, never used again by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The size of a client's terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtySize {
    /// Characters per line.
    pub columns: u32,
    /// Lines.
    pub rows: u32,
}

/// What somebody wants to be run on their channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestKind {
    /// The command line, as the client sent it: any bytes.
    Exec(Vec<u8>),
    /// A subsystem, by name.
    Subsystem(String),
    /// An interactive login: no command was given.
    Shell,
}

/// One thing that somebody who was let in wants, and the channel to answer it on. The channel is
/// closed when the request is dropped.
#[derive(Debug)]
pub struct Request {
    /// Who wants it.
    pub principal: Arc<Principal>,
    /// What they want.
    pub kind: RequestKind,
    /// Their connection; see [`Monitor::cut`](super::Monitor::cut).
    pub session: SessionId,
    /// Where they connect from.
    pub peer: SocketAddr,
    /// The variables that they sent, of those that mean something here.
    pub env: Vec<(String, String)>,
    /// Their terminal, if they have one. Output gets the line ends that it needs; Ctrl-C ends the
    /// channel and Ctrl-D the input, instead of arriving as characters.
    pub pty: Option<PtySize>,
    /// What they send.
    pub input: ChannelReader,
    /// What they get.
    pub output: GuardedWriter,
    /// Fires when the channel or its connection has ended.
    pub gone: CancellationToken,
}
