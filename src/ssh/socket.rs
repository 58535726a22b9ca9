//! What is done to a TCP socket before SSH gets it.

use super::SOFTWARE_PREFIX;
use rustix::net::sockopt;
use std::{
    io,
    net::{Shutdown, TcpStream as StdStream},
    os::fd::AsFd as _,
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// How long the kernel waits for a peer to acknowledge what was sent to it.
const UNACKNOWLEDGED_MAX_MS: u32 = 60_000;

/// How long a peer may take to introduce itself before it is treated as a stock client. Both
/// OpenSSH and our own client do so at once, without waiting for us.
const INTRODUCTION_MAX: Duration = Duration::from_millis(300);

/// Ends a connection from outside, whatever its tasks are waiting for. It is a second descriptor of
/// the socket, so the connection stays open in the kernel until this is dropped, too.
#[derive(Debug)]
pub(super) struct KillSwitch(StdStream);

impl KillSwitch {
    /// Ends the connection in both directions.
    pub(super) fn end(&self) {
        if let Err(error) = self.0.shutdown(Shutdown::Both) {
            // The peer was faster.
            tracing::trace!(%error, "connection was over already");
        }
    }
}

/// Sets the options of a connection and returns its switch.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<KillSwitch> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MAX_MS)?;
    Ok(KillSwitch(StdStream::from(stream.as_fd().try_clone_to_owned()?)))
}

/// Returns whether the peer introduces itself as this program. Only a hint, for windows: anybody
/// can write anything there.
pub(super) async fn is_own_software(stream: &TcpStream) -> bool {
    let mut start = [0; 64];
    match timeout(INTRODUCTION_MAX, stream.peek(&mut start)).await {
        Ok(Ok(length)) => start.get(..length).is_some_and(|line| line.starts_with(SOFTWARE_PREFIX)),
        Ok(Err(_)) | Err(_) => false,
    }
}
