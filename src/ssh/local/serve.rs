//! The coordinator's end of the socket.

use super::{
    Call,
    frame::{self, Frame},
    half::LocalHalf,
};
use crate::ssh::{
    channel::{ChannelReader, Incoming, Revoked, Terminal},
    gate::{Backlog, Gate},
    outbox::Level,
    request::{Request, RequestKind},
    server::Entrance,
    session::TRY_AGAIN,
    sessions::Admitted,
    writer::{GuardedWriter, Half, Shared, Turn},
};
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::geteuid,
};
use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Requests through the socket at once.
const CALLS_MAX: usize = 1_024;
/// How many connections wait to be accepted.
const WAITING_MAX: i32 = 128;
/// How long a connection may take to say what it wants.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long to wait after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The exit status of what the key may not (`src/commands/README.md`).
const NOT_PERMITTED: u32 = 4;

/// Makes the socket. Nobody can connect before only this user may: it is not listened on until its
/// permissions are set.
pub(in crate::ssh) fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let in_path = |error: rustix::io::Errno| {
        let kind = io::Error::from(error).kind();
        io::Error::new(kind, format!("cannot make the socket {}: {error}", path.display()))
    };
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).map_err(in_path)?).map_err(in_path)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, WAITING_MAX)?;
    UnixListener::from_std(socket.into())
}

/// Serves those who connect, until the door is closed.
pub(in crate::ssh) async fn accept(
    listener: UnixListener,
    entrance: Arc<Entrance>,
    tasks: TaskTracker,
) {
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    loop {
        let accepted = tokio::select! {
            () = entrance.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match (accepted, Arc::clone(&calls).try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) if is_own(&stream) => {
                let entrance = Arc::clone(&entrance);
                tasks.spawn(async move {
                    if let Err(error) = serve(&entrance, stream, place).await {
                        tracing::debug!(%error, "a connection on the local socket ended");
                    }
                });
            }
            (Ok(_), _) => tracing::warn!("a connection on the local socket was turned away"),
            (Err(error), _) => {
                tracing::warn!(%error, "cannot accept a connection on the local socket");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Returns whether the other end runs as this process's user, or as root.
fn is_own(stream: &UnixStream) -> bool {
    let own = geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Hands out what one connection asks for.
async fn serve<Place: Send + 'static>(
    entrance: &Arc<Entrance>,
    stream: UnixStream,
    place: Place,
) -> io::Result<()> {
    let (mut incoming, outgoing) = stream.into_split();
    let Ok(call) = timeout(CALL_MAX, frame::read(&mut incoming)).await else { return Ok(()) };
    let Some(Frame::Call(call)) = call? else { return Ok(()) };
    let call = Call::read(&call)?;
    let id = entrance.next_session();
    let (end, revoked) = (entrance.cancel.child_token(), Revoked::default());
    let limits = entrance.sessions.limits();
    let write_max = limits.write_progress;
    let Some(Admitted { principal, over }) =
        entrance.sessions.admit_forced(id, &call.forced, &end, &revoked)
    else {
        let (_, output) = open(incoming, outgoing, Slot::new(place, end, revoked, write_max));
        let text = format!(
            "nobody is called {} here, or the name does not say which role: name one with --role \
             in the forced command, or put a key into the keydir",
            call.forced.name
        );
        return refuse(&output, &text, NOT_PERMITTED).await;
    };
    let entry = entrance.entry(id);
    let counted = entrance.sessions.count_channel(&principal);
    let allowed = match &call.kind {
        _ if over || counted.is_none() => Err(()),
        RequestKind::Subsystem(_) => Ok(()),
        RequestKind::Exec(_) | RequestKind::Shell => {
            entrance.sessions.take_command(&principal).map_err(|_| ())
        }
    };
    tracing::info!(session = id.0, role = %principal.role, name = %principal.name,
        "session began through the local socket");
    let held = ((place, entry), counted);
    let (input, output) = open(incoming, outgoing, Slot::new(held, end, revoked, write_max));
    if allowed.is_err() {
        let text = format!("too much is open or asked by {}: try again", principal.name);
        return refuse(&output, &text, TRY_AGAIN).await;
    }
    let Ok(Ok(room)) = timeout(limits.request_wait, entrance.outlet.reserve()).await else {
        return refuse(&output, "too many requests are waiting: try again", TRY_AGAIN).await;
    };
    room.send(Request {
        principal,
        kind: call.kind,
        session: id,
        // What is asked comes from this machine; sshd's own log has the client's address.
        peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        env: call.env,
        pty: None,
        gone: output.gone().clone(),
        input,
        output,
    });
    Ok(())
}

async fn refuse(output: &GuardedWriter, text: &str, status: u32) -> io::Result<()> {
    output.write_stderr(format!("steading: {text}\n").into()).await.map_err(io::Error::other)?;
    output.exit(status).await.map_err(io::Error::other)
}

/// What belongs to a connection as long as it is open.
struct Slot<Held> {
    /// Dropped when it has ended.
    held: Held,
    gone: CancellationToken,
    revoked: Revoked,
    write_max: Duration,
}

impl<Held> Slot<Held> {
    const fn new(
        held: Held,
        gone: CancellationToken,
        revoked: Revoked,
        write_max: Duration,
    ) -> Self {
        Self { held, gone, revoked, write_max }
    }
}

/// Makes both ends of the channel that a connection is.
fn open<Held: Send + 'static>(
    incoming: OwnedReadHalf,
    outgoing: OwnedWriteHalf,
    slot: Slot<Held>,
) -> (ChannelReader, GuardedWriter) {
    let Slot { held, gone, revoked, write_max } = slot;
    let gate = Arc::new(Gate::default());
    let backlog = Arc::new(Backlog::new(Arc::clone(&gate)));
    // Not bounded by itself: the gate closes before it holds much.
    let (queue, waiting) = mpsc::unbounded_channel();
    let shared = Shared {
        half: Arc::new(Half::Local(LocalHalf::new(outgoing))),
        turn: Mutex::new(Turn::Open),
        gone: gone.clone(),
        // sshd has the terminal.
        terminal: Terminal::default(),
        level: Arc::new(Level::default()),
    };
    let reader = ChannelReader::new(waiting, Arc::clone(&backlog), revoked);
    drop(tokio::spawn(async move {
        tokio::select! {
            () = gone.cancelled() => {}
            () = receive(incoming, &queue, &backlog, &gate) => gone.cancel(),
        }
        backlog.abandon();
        drop(held);
    }));
    (reader, GuardedWriter::new(shared, write_max))
}

/// Passes input on until the other end goes away.
async fn receive(
    mut incoming: OwnedReadHalf,
    queue: &mpsc::UnboundedSender<Incoming>,
    backlog: &Backlog,
    gate: &Gate,
) {
    loop {
        poll_fn(|context| gate.poll_open(context)).await;
        let next = match frame::read(&mut incoming).await {
            Ok(Some(Frame::Data(bytes))) => Incoming::Data(bytes),
            Ok(Some(Frame::End)) => Incoming::Eof,
            Ok(Some(Frame::Call(_) | Frame::Stderr(_) | Frame::Exit(_)) | None) | Err(_) => return,
        };
        let bytes = next.bytes();
        backlog.add(bytes);
        if queue.send(next).is_err() {
            // Nobody reads any more: thrown away.
            backlog.take(bytes);
        }
    }
}
