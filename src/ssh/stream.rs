//! The socket as russh sees it: see [`gate`](super::gate) for reading and
//! [`outbox`](super::outbox) for writing.

use super::{
    gate::Gate,
    outbox::{Level, Outbox},
};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// How long what is kept may take to go out when the connection is closed.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What the channels of a connection share to slow it down.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow {
    /// Holds back reading.
    pub(super) gate: Arc<Gate>,
    /// Holds back writers.
    pub(super) level: Arc<Level>,
}

/// A connection that never makes russh's task wait for the network: reading and keeping are driven
/// by the reads that the task always has under way.
#[derive(Debug)]
pub(super) struct FlowStream {
    stream: TcpStream,
    gate: Arc<Gate>,
    outbox: Outbox,
    linger: Option<Pin<Box<Sleep>>>,
}

impl FlowStream {
    pub(super) fn new(stream: TcpStream, flow: &Flow) -> Self {
        let outbox = Outbox::new(Arc::clone(&flow.level));
        Self { stream, gate: Arc::clone(&flow.gate), outbox, linger: None }
    }
}

impl AsyncRead for FlowStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.outbox.drain(&mut this.stream, context)?;
        ready!(this.gate.poll_open(context));
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.outbox.poll_take(&mut this.stream, context, bytes)
    }

    /// Does not wait for the network, on purpose.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        Poll::Ready(this.outbox.drain(&mut this.stream, context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.outbox.drain(&mut this.stream, context)?;
        if !this.outbox.is_empty() {
            let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER_MAX)));
            ready!(linger.as_mut().poll(context));
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
