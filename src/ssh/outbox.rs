//! Sending without stopping: what the network does not take yet waits here.
//!
//! russh's only task writes to the socket and reads nothing while the socket is full. Two of our
//! ends that both send much would stop each other for ever that way. So the socket pretends to
//! take everything, what it did not take is kept here, and [`GuardedWriter`](super::GuardedWriter)
//! adds nothing while much is kept.

use bytes::{Buf as _, Bytes};
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{io::AsyncWrite as _, net::TcpStream, sync::Notify};

/// From where on writers wait: enough to keep a connection busy between two looks at it.
const KEPT_BYTES: usize = 1 << 20;

/// How much is kept at most. Beyond what writers add there are only answers to the peer, so this is
/// reached by a peer that asks and asks and never reads; then russh's task waits after all.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// How much of one write is copied at once.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// How much is kept for a connection, as its writers see it.
#[derive(Debug, Default)]
pub(super) struct Level {
    bytes: AtomicUsize,
    fell: Notify,
}

impl Level {
    /// Returns when writers may add something.
    pub(super) async fn room(&self) {
        loop {
            let fell = self.fell.notified();
            if self.bytes.load(Ordering::Acquire) < KEPT_BYTES {
                return;
            }
            fell.await;
        }
    }
}

/// What the network did not take yet.
#[derive(Debug)]
pub(super) struct Outbox {
    kept: VecDeque<Bytes>,
    bytes: usize,
    level: Arc<Level>,
}

impl Outbox {
    pub(super) fn new(level: Arc<Level>) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, level }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Sends what the network takes now, and asks to be woken when it takes more.
    pub(super) fn drain(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> io::Result<()> {
        while let Some(first) = self.kept.front_mut() {
            let Poll::Ready(sent) = Pin::new(&mut *stream).poll_write(context, first) else {
                return Ok(());
            };
            let sent = sent?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            first.advance(sent);
            if first.is_empty() {
                self.kept.pop_front();
            }
            self.set_bytes(self.bytes.saturating_sub(sent));
        }
        Ok(())
    }

    /// Takes bytes, sending what the network takes now and keeping the others. Waits only when far
    /// too much is kept.
    pub(super) fn poll_take(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.drain(stream, context)?;
        if self.kept.is_empty()
            && let Poll::Ready(sent) = Pin::new(&mut *stream).poll_write(context, bytes)
        {
            return Poll::Ready(sent);
        }
        if self.bytes >= KEPT_BYTES_MAX {
            return Poll::Pending;
        }
        let piece = bytes.get(..PIECE_BYTES_MAX).unwrap_or(bytes);
        self.kept.push_back(Bytes::copy_from_slice(piece));
        self.set_bytes(self.bytes.saturating_add(piece.len()));
        Poll::Ready(Ok(piece.len()))
    }

    fn set_bytes(&mut self, bytes: usize) {
        let fell = self.bytes >= KEPT_BYTES && bytes < KEPT_BYTES;
        self.bytes = bytes;
        self.level.bytes.store(bytes, Ordering::Release);
        if fell {
            self.level.fell.notify_waiters();
        }
    }
}
