//! The coordinator's side of the door: listening, letting in, and what those inside ask for.

use super::{
    CHANNEL_MESSAGES_MAX, INACTIVITY_MAX, KEEPALIVE_INTERVAL, KEEPALIVES_UNANSWERED_MAX,
    OWN_PACKET_BYTES, OWN_WINDOW_BYTES, Principal, Role,
    host_key::{self, KeyFileError, KeyPair},
    keys::{Keydir, KeydirProblem},
    local, preferred, rekey_write_bytes,
    request::{Request, SessionId},
    session::{Outlet, Session},
    sessions::{Counters, Sessions, Unauthenticated},
    socket::{self, KillSwitch},
    software,
    stream::{Flow, FlowStream},
    watch,
};
use crate::{
    core::id::Name,
    telemetry::{self, Clock},
};
use russh::{
    Limits, MethodKind, MethodSet,
    keys::{Algorithm, EcdsaCurve, HashAlg},
    server::{Config, run_stream},
};
use std::{
    borrow::Cow,
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long to wait after the system refused a connection (usually for want of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a cut connection may take to notice.
const CUT_MAX: Duration = Duration::from_secs(5);

/// How many keys a client may offer: people have agents full of keys, and the grace limits the rest.
const OFFERS_MAX: usize = 20;

/// How long a refusal takes. Keys cannot be guessed, so this only slows those who just try.
const REFUSAL_TIME: Duration = Duration::from_millis(100);

/// How many internal messages wait for a connection's task.
const SESSION_MESSAGES_MAX: usize = 64;

/// The window for stock clients. `ssh` copies what does not fit on the wire around in its own
/// memory: with 16 MiB a busy machine uploads at a fifth of the speed that it has with 2 MiB.
const STOCK_WINDOW_BYTES: u32 = 2 << 20;

/// The packet size for stock clients, which send no larger ones anyway.
const STOCK_PACKET_BYTES: u32 = 32 << 10;

/// What the door is opened with.
#[derive(Debug, Clone)]
pub struct DoorConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The host key file; made if it is missing.
    pub host_key: PathBuf,
    /// The keydir.
    pub keydir: PathBuf,
    /// How much of everything.
    pub limits: DoorLimits,
}

/// How much of everything the door allows.
#[derive(Debug, Clone)]
pub struct DoorLimits {
    /// Connections that have not authenticated, in total.
    pub unauthenticated: usize,
    /// The same from one address (one IPv6 network of 64 bits).
    pub unauthenticated_per_address: usize,
    /// How long authentication may take.
    pub grace: Duration,
    /// Authenticated connections. Each needs two file descriptors.
    pub sessions: usize,
    /// Authenticated connections of one agent: one for control, up to four for bytes, and those
    /// of a process before it whose end was not noticed yet. Whoever has twice as many as this, or
    /// as the next, does not get in; in between, requests are refused with words.
    pub sessions_per_agent: usize,
    /// Authenticated connections of one principal who is no agent.
    pub sessions_per_person: usize,
    /// Authenticated connections of all whose key is known nowhere.
    pub sessions_of_strangers: usize,
    /// How long such a connection may last.
    pub stranger_time: Duration,
    /// Channels open at once on all connections of one principal.
    pub channels_per_principal: usize,
    /// Commands of one principal that are taken at once when there were none for a while.
    pub commands_at_once: u32,
    /// Commands of one principal per second beyond those.
    pub commands_per_second: u32,
    /// Channels open at once on an agent's connection.
    pub channels_per_agent: usize,
    /// Channels open at once on anybody else's connection.
    pub channels_per_person: usize,
    /// Channels opened on one connection during its life: russh keeps about a kilobyte of each
    /// until the connection ends.
    pub channels_per_life: usize,
    /// Requests waiting for the coordinator to take them.
    pub requests_waiting: usize,
    /// How long a request waits for a place among those before it is refused.
    pub request_wait: Duration,
    /// How long we may hold up a connection by not reading a channel before the channel is closed.
    /// Less than the minute after which russh misses answers to its keepalives, which it cannot
    /// read meanwhile.
    pub read_progress: Duration,
    /// How long a peer may take nothing of what we write before its channel is closed; a
    /// [`GuardedWriter`](super::GuardedWriter) can be given another deadline.
    pub write_progress: Duration,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self {
            unauthenticated: 256,
            unauthenticated_per_address: 16,
            grace: Duration::from_secs(20),
            sessions: 20_000,
            sessions_per_agent: 16,
            sessions_per_person: 128,
            sessions_of_strangers: 32,
            stranger_time: Duration::from_mins(1),
            channels_per_principal: 256,
            commands_at_once: 2_000,
            commands_per_second: 200,
            channels_per_agent: 4,
            channels_per_person: 10,
            channels_per_life: 20_000,
            requests_waiting: 1_024,
            request_wait: Duration::from_secs(5),
            read_progress: Duration::from_secs(45),
            write_progress: Duration::from_mins(1),
        }
    }
}

/// Why the door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", listen_advice(.source.kind()))]
    Listen {
        /// The address of the configuration.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// There is no usable host key.
    #[error("no host key")]
    HostKey(#[source] KeyFileError),
    /// The keydir cannot be read, for a reason that is not its own.
    #[error("cannot read the keydir {}", path.display())]
    Keydir {
        /// The keydir of the configuration.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

fn listen_advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::AddrInUse => "something listens there already; stop it or choose another port",
        ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it or choose a higher port"
        }
        ErrorKind::AddrNotAvailable => "this machine has no such address; correct it",
        _ => "see the cause",
    }
}

/// The open door.
#[derive(Debug)]
pub struct Door {
    /// Where it listens.
    pub address: SocketAddr,
    /// The host key for `known_hosts`: `ssh-ed25519 AAAA…`.
    pub host_public_key: String,
    /// What those inside ask for.
    pub requests: mpsc::Receiver<Request>,
    /// A view of who is connected.
    pub monitor: Monitor,
    /// Gone with the tasks that hold it, so that requests end with them.
    entrance: Weak<Entrance>,
    tasks: TaskTracker,
}

impl Door {
    /// Lets those in, too, whom the host's own sshd has let in: `steading stdio` comes through a
    /// socket at this path, which only this process's user may open. Where it cannot be made, such
    /// as for a path that is too long, this is logged: few need it, and all else works.
    pub fn open_locally(&self, path: &Path) {
        match (local::listen(path), self.entrance.upgrade()) {
            (Ok(listener), Some(entrance)) => {
                self.tasks.spawn(local::accept(listener, entrance, self.tasks.clone()));
            }
            (Err(error), _) => {
                tracing::warn!(%error, "nobody can come through ‘steading stdio’");
            }
            (Ok(_), None) => {}
        }
    }

    /// Waits until every connection has ended, after the door's token was canceled.
    pub async fn closed(&self) {
        self.tasks.wait().await;
    }
}

/// A view of who is connected, and the means to end a session.
#[derive(Clone)]
pub struct Monitor {
    sessions: Arc<Sessions>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Monitor").field(&self.counters()).finish()
    }
}

impl Monitor {
    /// Returns how much is going on.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.sessions.counters()
    }

    /// Returns the keydir in force, and what in it is not followed.
    #[must_use]
    pub fn keydir(&self) -> (Arc<Keydir>, Vec<KeydirProblem>) {
        self.sessions.keydir()
    }

    /// Lets in whoever has a key of this program's own, though no file of the keydir lists it. What
    /// the keydir says of the same key goes before.
    pub fn let_in(&self, key: &KeyPair, name: Name, role: Role) {
        let principal = Principal::own(name, role, key.fingerprint());
        self.sessions.let_in(key.private.public_key().key_data().clone(), principal);
    }

    /// Returns the names of the agents that are listed and let in now.
    #[must_use]
    pub fn known_agents(&self) -> BTreeSet<Name> {
        self.sessions.known_agents()
    }

    /// Waits until the keydir lets agents in no more that it let in before, and returns their
    /// names. Each is told to one who waits.
    pub async fn agents_gone(&self) -> BTreeSet<Name> {
        self.sessions.agents_gone().await
    }

    /// Ends a session at once. Returns whether it was live.
    #[must_use]
    pub fn cut(&self, session: SessionId) -> bool {
        self.sessions.cut(session)
    }
}

/// Opens the door: from now on people and agents can connect, until `cancel` fires, which ends
/// every connection, too.
///
/// # Errors
/// [`DoorError`]; nothing is left running then.
pub async fn open(
    config: DoorConfig,
    clock: Clock,
    cancel: CancellationToken,
) -> Result<Door, DoorError> {
    let host_key = host_key::load_or_create(&config.host_key).map_err(DoorError::HostKey)?;
    let (keydir, problems) = Keydir::load(&config.keydir)
        .map_err(|source| DoorError::Keydir { path: config.keydir.clone(), source })?;
    let failed = |source| DoorError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;

    let sessions = Arc::new(Sessions::new(config.limits.clone(), clock));
    sessions.replace_keydir(keydir, problems);
    let (outlet, requests) = mpsc::channel(config.limits.requests_waiting);
    let tasks = TaskTracker::new();
    tasks.spawn(watch::follow(config.keydir, Arc::clone(&sessions), cancel.clone()));
    let entrance = Arc::new(Entrance {
        for_own: russh_config(&host_key, OWN_WINDOW_BYTES, OWN_PACKET_BYTES),
        for_stock: russh_config(&host_key, STOCK_WINDOW_BYTES, STOCK_PACKET_BYTES),
        sessions: Arc::clone(&sessions),
        outlet,
        next_session: AtomicU64::new(1),
        cancel,
    });
    let weak = Arc::downgrade(&entrance);
    tasks.spawn(accept(listener, entrance, tasks.clone()));
    tasks.close();
    let host_public_key = host_key.public_line();
    Ok(Door {
        address,
        host_public_key,
        requests,
        monitor: Monitor { sessions },
        entrance: weak,
        tasks,
    })
}

/// What every connection needs.
pub(super) struct Entrance {
    for_own: Arc<Config>,
    for_stock: Arc<Config>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) outlet: mpsc::Sender<Request>,
    next_session: AtomicU64,
    pub(super) cancel: CancellationToken,
}

impl Entrance {
    /// Returns a number that no session had.
    pub(super) fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Has a session forgotten when the returned value is dropped.
    pub(super) fn entry(&self, id: SessionId) -> Entry {
        Entry { sessions: Arc::clone(&self.sessions), id }
    }
}

fn russh_config(host_key: &KeyPair, window_bytes: u32, packet_bytes: u32) -> Arc<Config> {
    // What is announced to clients as accepted from them (RFC 8308 server-sig-algs), therefore more
    // than our own key's algorithm; RSA with SHA-1 is missing on purpose.
    const ANNOUNCED: &[Algorithm] = &[
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    Arc::new(Config {
        server_id: software(),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        auth_rejection_time: REFUSAL_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![(*host_key.private).clone()],
        // The side that sends much has to start a new key exchange: russh ends a connection whose
        // peer has more than two windows on the way while we wait for its half of one.
        limits: Limits {
            rekey_write_limit: rekey_write_bytes(),
            rekey_read_limit: usize::MAX,
            rekey_time_limit: Duration::from_hours(24),
        },
        window_size: window_bytes,
        maximum_packet_size: packet_bytes,
        channel_buffer_size: CHANNEL_MESSAGES_MAX,
        event_buffer_size: SESSION_MESSAGES_MAX,
        preferred: preferred(Cow::Borrowed(ANNOUNCED)),
        max_auth_attempts: OFFERS_MAX,
        inactivity_timeout: Some(INACTIVITY_MAX),
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_UNANSWERED_MAX,
        nodelay: true,
        ..Config::default()
    })
}

async fn accept(listener: TcpListener, entrance: Arc<Entrance>, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = entrance.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(guard) = entrance.sessions.knock(peer.ip()) {
                    tasks.spawn(connection(Arc::clone(&entrance), stream, peer, guard));
                } else {
                    tracing::debug!(%peer, "connection turned away: too many are unauthenticated");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection from its first to its last byte.
async fn connection(
    entrance: Arc<Entrance>,
    stream: TcpStream,
    peer: SocketAddr,
    guard: Unauthenticated,
) {
    let switch = match socket::prepare(&stream) {
        Ok(switch) => switch,
        Err(error) => {
            tracing::debug!(%peer, %error, "connection was over before it began");
            return;
        }
    };
    let own = tokio::select! {
        own = socket::is_own_software(&stream) => own,
        () = entrance.cancel.cancelled() => return,
    };
    let config = if own { &entrance.for_own } else { &entrance.for_stock };
    let id = entrance.next_session();
    let end = entrance.cancel.child_token();
    let _entry = entrance.entry(id);
    let (authenticated, authentication) = oneshot::channel();
    let outlet = Outlet { requests: entrance.outlet.clone(), id, peer };
    let sessions = Arc::clone(&entrance.sessions);
    let flow = Flow::default();
    let stream = FlowStream::new(stream, &flow);
    let session = Session::new(sessions, outlet, end.clone(), flow, authenticated);

    let running = async { run_stream(Arc::clone(config), stream, session).await?.await };
    tokio::pin!(running);
    let limits = entrance.sessions.limits();
    let (grace, stranger_time) = (limits.grace, limits.stranger_time);
    tokio::select! {
        result = &mut running => log_end(peer, result),
        () = until_cut(authentication, (grace, stranger_time), guard, &end) => {
            cut(&switch, &end);
            if let Ok(result) = timeout(CUT_MAX, running).await {
                log_end(peer, result);
            } else {
                tracing::warn!(%peer, "connection does not notice that it was cut");
            }
        }
    }
    end.cancel();
}

/// Returns when the connection has to be cut: it did not authenticate in time, it is a
/// stranger's and has lasted too long, or its session has to go.
async fn until_cut(
    authentication: oneshot::Receiver<Role>,
    (grace, stranger_time): (Duration, Duration),
    guard: Unauthenticated,
    end: &CancellationToken,
) {
    let authentication = async {
        match authentication.await {
            Ok(role) => role,
            // The session is over already, which its own future is about to say.
            Err(_) => std::future::pending().await,
        }
    };
    let role = tokio::select! {
        role = authentication => role,
        () = sleep(grace) => return,
        () = end.cancelled() => return,
    };
    drop(guard);
    if role == Role::Stranger {
        // Running out of time ends it, too.
        timeout(stranger_time, end.cancelled()).await.ok();
    } else {
        end.cancelled().await;
    }
}

/// Ends a connection from outside: the token frees tasks that wait for us, the switch those that
/// wait for the network.
fn cut(switch: &KillSwitch, end: &CancellationToken) {
    end.cancel();
    switch.end();
}

fn log_end(peer: SocketAddr, result: Result<(), russh::Error>) {
    match result {
        Ok(()) => tracing::debug!(%peer, "connection closed"),
        Err(error) => {
            tracing::debug!(%peer, reason = telemetry::chain(&error), "connection ended");
        }
    }
}

/// Removes the session when its connection ends in whatever way.
pub(super) struct Entry {
    sessions: Arc<Sessions>,
    id: SessionId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.sessions.remove(self.id);
    }
}
