//! The end of the socket in `steading stdio`.

use super::{
    Call,
    frame::{self, Frame},
};
use crate::ssh::request::RequestKind;
use bytes::BytesMut;
use std::{
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use tokio::{
    io::unix::AsyncFd,
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest},
    net::UnixStream,
};

/// How much of the input is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Why a request was not passed on, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens on the socket.
    #[error(
        "cannot reach the coordinator through {}: does it run, with this state directory, and as \
         this user?",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The command is too long.
    #[error("the command cannot be passed on")]
    Call(#[source] io::Error),
    /// The coordinator went away.
    #[error("the coordinator ended before it had answered: try again")]
    Ended(#[source] Option<io::Error>),
    /// Nobody takes the answer.
    #[error("the answer cannot be written")]
    Output(#[source] io::Error),
}

/// Where input comes from, and where the answer goes.
#[derive(Debug)]
pub struct Streams<I, O, E, G> {
    /// Standard input.
    pub input: I,
    /// Standard output.
    pub output: O,
    /// Standard error.
    pub errors: E,
    /// Ready when nobody is there to read the answer; see [`abandoned`].
    pub abandoned: G,
}

/// Returns when nobody reads any more what is written to a pipe or socket; never, if it is neither.
///
/// sshd tells the end of a connection to a command without a terminal only so: by no signal, and
/// its input ends for clients that just have no more to say, too.
pub async fn abandoned(output: OwnedFd) {
    #[expect(
        deprecated,
        reason = "unsound for values that change their descriptor, which an owned one cannot; what \
                  took its place has to be called with unsafe code"
    )]
    let watched = AsyncFd::with_interest(output, Interest::WRITABLE);
    let Ok(output) = watched else { return std::future::pending().await };
    // Told once for each change, since what was told is cleared each time.
    while let Ok(mut told) = output.ready(Interest::WRITABLE).await {
        if told.ready().is_write_closed() {
            return;
        }
        told.clear_ready();
    }
    std::future::pending::<()>().await;
}

/// Passes one request on to the coordinator and its answer back. Returns the exit status.
///
/// # Errors
/// [`LocalError`].
pub async fn relay<I, O, E, G>(
    socket: &Path,
    call: &Call,
    streams: Streams<I, O, E, G>,
) -> Result<u32, LocalError>
where
    I: AsyncRead + Unpin + Send + 'static,
    O: AsyncWrite + Unpin,
    E: AsyncWrite + Unpin,
    G: Future<Output = ()>,
{
    let frame = call.frame().map_err(LocalError::Call)?;
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| LocalError::Unreachable { path: socket.to_owned(), source })?;
    let (mut incoming, mut outgoing) = stream.into_split();
    outgoing.write_all(&frame.encode()).await.map_err(|error| LocalError::Ended(Some(error)))?;
    let Streams { mut input, mut output, mut errors, abandoned } = streams;
    tokio::pin!(abandoned);
    let sending = tokio::spawn(async move {
        // When it fails, the coordinator has gone, which the answer says.
        send(&mut input, &mut outgoing).await.ok();
        outgoing
    });
    let mut status = match call.kind {
        // Subsystems have no exit status: their end is the end of their channel.
        RequestKind::Subsystem(_) => Some(0),
        RequestKind::Exec(_) | RequestKind::Shell => None,
    };
    let ended = loop {
        let next = tokio::select! {
            next = frame::read(&mut incoming) => next,
            () = &mut abandoned => {
                return Err(LocalError::Output(ErrorKind::BrokenPipe.into()));
            }
        };
        match next {
            Ok(Some(Frame::Data(bytes))) => {
                output.write_all(&bytes).await.map_err(LocalError::Output)?;
                output.flush().await.map_err(LocalError::Output)?;
            }
            Ok(Some(Frame::Stderr(bytes))) => {
                errors.write_all(&bytes).await.map_err(LocalError::Output)?;
                errors.flush().await.map_err(LocalError::Output)?;
            }
            Ok(Some(Frame::Exit(code))) => status = Some(code),
            Ok(Some(Frame::End | Frame::Call(_))) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    sending.abort();
    status.ok_or(LocalError::Ended(ended))
}

/// Sends all input and says that it has ended.
async fn send(
    input: &mut (impl AsyncRead + Unpin),
    outgoing: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES);
    while input.read_buf(&mut buffer).await? > 0 {
        outgoing.write_all(&Frame::Data(buffer.split().freeze()).encode()).await?;
        buffer.reserve(PIECE_BYTES);
    }
    outgoing.write_all(&Frame::End.encode()).await
}
