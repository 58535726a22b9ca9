//! The agent's side: dialing the coordinator, whose host key is pinned.

use super::{
    CHANNEL_MESSAGES_MAX, ENROLL_USER, INACTIVITY_MAX, KEEPALIVE_INTERVAL,
    KEEPALIVES_UNANSWERED_MAX, OWN_PACKET_BYTES, OWN_WINDOW_BYTES,
    channel::{self, ChannelReader, Deadlines, Revoked, Surroundings, Terminal},
    host_key::KeyPair,
    keys, preferred, rekey_write_bytes, socket, software,
    stream::{Flow, FlowStream},
    writer::{GuardedWriter, Half},
};
use russh::{
    Channel, ChannelMsg, Disconnect, Limits, Names,
    client::{self, AuthResult, Handle, Msg},
    keys::ssh_key::public::KeyData,
    keys::{Algorithm, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate},
};
use std::{
    borrow::Cow,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long reaching the coordinator, agreeing on keys and authenticating may take together.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// How long the coordinator may take to answer the opening of a channel.
const OPEN_MAX: Duration = Duration::from_secs(15);

/// How long taking leave may last before the connection is cut.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// How long received data may stay unread, and written data untaken, before a channel is closed.
/// Reading has less than the minute after which russh misses answers to its keepalives.
const DEADLINES: Deadlines =
    Deadlines { read: Duration::from_secs(45), write: Duration::from_mins(1) };

/// Whom to call, and as whom.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The coordinator's `host:port`.
    pub address: String,
    /// Its host key, as `ssh-ed25519 AAAA…`; two while it is being changed. Nothing else is
    /// believed, and nothing is learned.
    pub host_keys: Vec<String>,
    /// Our own key.
    pub identity: KeyPair,
    /// The SSH user name. The coordinator does not look at it.
    pub user: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A pinned host key of the configuration is no public key.
    #[error(
        "the pinned host key ‘{0}’ is not a public key: copy the line ‘ssh-ed25519 AAAA…’ that the \
         coordinator prints when it starts"
    )]
    PinnedKey(String),
    /// No host key is pinned.
    #[error(
        "no host key is pinned for {0}: copy the line ‘ssh-ed25519 AAAA…’ that the coordinator \
         prints when it starts"
    )]
    NothingPinned(String),
    /// Nobody answers at the address. Try again later.
    #[error("cannot reach the coordinator at {address}: check the address and that it runs")]
    Unreachable {
        /// The address of the configuration.
        address: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Somebody answers, but not in time. Try again later.
    #[error("the coordinator at {address} did not answer in {} s", CONNECT_MAX.as_secs())]
    TimedOut {
        /// The address of the configuration.
        address: String,
    },
    /// Somebody else than the coordinator answers.
    #[error(
        "{address} shows the host key {offered}, which is not pinned: somebody else may be \
         answering; if the coordinator's key was changed, pin the new one"
    )]
    HostKeyMismatch {
        /// The address of the configuration.
        address: String,
        /// The fingerprint of the key that was shown.
        offered: String,
    },
    /// The coordinator does not let our key in. Trying again helps once the keydir has changed.
    #[error(
        "the coordinator at {address} refuses the key {fingerprint}: put its public half in the \
         coordinator's keydir, in agents/NAME.pub"
    )]
    Refused {
        /// The address of the configuration.
        address: String,
        /// The fingerprint of our key.
        fingerprint: String,
    },
    /// The conversation broke off. Try again later.
    #[error("the connection to {address} broke off while it was made")]
    BrokenOff {
        /// The address of the configuration.
        address: String,
        /// What SSH says.
        #[source]
        source: russh::Error,
    },
    /// We no longer want to connect.
    #[error("connecting was canceled")]
    Canceled,
}

/// Why a channel was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The connection has ended. Connect again.
    #[error("the connection is closed")]
    Lost,
    /// The coordinator does not offer this, to us or now.
    #[error("the coordinator refused the channel")]
    Refused,
    /// The coordinator did not answer. Close the connection.
    #[error("the coordinator did not answer in {} s", OPEN_MAX.as_secs())]
    TimedOut,
}

/// A connection to the coordinator. Dropping it ends it, with all its channels.
pub struct Connection {
    handle: Handle<Caller>,
    lost: CancellationToken,
    flow: Flow,
    _lost_on_drop: DropGuard,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("lost", &self.lost.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Connects and authenticates. The connection ends when `cancel` fires.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    config: &ClientConfig,
    cancel: &CancellationToken,
) -> Result<Connection, ConnectError> {
    let pinned = pinned(config)?;
    tokio::select! {
        () = cancel.cancelled() => Err(ConnectError::Canceled),
        connected = timeout(CONNECT_MAX, dial(config, pinned, cancel)) => match connected {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::TimedOut { address: config.address.clone() }),
        },
    }
}

fn pinned(config: &ClientConfig) -> Result<Vec<KeyData>, ConnectError> {
    if config.host_keys.is_empty() {
        return Err(ConnectError::NothingPinned(config.address.clone()));
    }
    let parse = |line: &String| match PublicKey::from_openssh(line.trim()) {
        Ok(key) => Ok(key.key_data().clone()),
        Err(_) => Err(ConnectError::PinnedKey(line.chars().take(200).collect())),
    };
    config.host_keys.iter().map(parse).collect()
}

async fn dial(
    config: &ClientConfig,
    pinned: Vec<KeyData>,
    cancel: &CancellationToken,
) -> Result<Connection, ConnectError> {
    let address = || config.address.clone();
    let unreachable = |source| ConnectError::Unreachable { address: address(), source };
    let stream = TcpStream::connect(&config.address).await.map_err(unreachable)?;
    let switch = socket::prepare(&stream).map_err(unreachable)?;
    let lost = cancel.child_token();
    let lost_on_drop = lost.clone().drop_guard();
    drop(tokio::spawn({
        let lost = lost.clone();
        async move {
            lost.cancelled().await;
            switch.end();
        }
    }));

    let offered = Arc::new(OnceLock::new());
    let caller =
        Caller { pinned, refused: Arc::clone(&offered), _lost_on_drop: lost.clone().drop_guard() };
    let broken_off = |source| ConnectError::BrokenOff { address: address(), source };
    let flow = Flow::default();
    let stream = FlowStream::new(stream, &flow);
    let mut handle = match client::connect_stream(russh_config(), stream, caller).await {
        Ok(handle) => handle,
        Err(source) => {
            return Err(match offered.get() {
                Some(offered) => {
                    ConnectError::HostKeyMismatch { address: address(), offered: offered.clone() }
                }
                None => broken_off(source),
            });
        }
    };
    let user = || config.user.clone();
    let private = || Arc::clone(&config.identity.private);
    let certificate = config.identity.certificate().filter(|_| config.user != ENROLL_USER);
    if let Some(certificate) = certificate {
        let tried = handle.authenticate_openssh_cert(user(), private(), certificate).await;
        if tried.map_err(broken_off)?.success() {
            return Ok(Connection { handle, lost, flow, _lost_on_drop: lost_on_drop });
        }
        tracing::info!("the certificate beside the key is refused: the key itself is tried");
    }
    let key = PrivateKeyWithHashAlg::new(private(), None);
    match handle.authenticate_publickey(user(), key).await.map_err(broken_off)? {
        AuthResult::Success => Ok(Connection { handle, lost, flow, _lost_on_drop: lost_on_drop }),
        AuthResult::Failure { .. } => Err(ConnectError::Refused {
            address: address(),
            fingerprint: config.identity.fingerprint(),
        }),
    }
}

fn russh_config() -> Arc<client::Config> {
    Arc::new(client::Config {
        client_id: software(),
        // As on the other side, whoever sends much has to start a new key exchange.
        limits: Limits {
            rekey_write_limit: rekey_write_bytes(),
            rekey_read_limit: usize::MAX,
            rekey_time_limit: Duration::from_hours(1),
        },
        window_size: OWN_WINDOW_BYTES,
        maximum_packet_size: OWN_PACKET_BYTES,
        channel_buffer_size: CHANNEL_MESSAGES_MAX,
        preferred: preferred(Cow::Borrowed(&[Algorithm::Ed25519])),
        inactivity_timeout: Some(INACTIVITY_MAX),
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: KEEPALIVES_UNANSWERED_MAX,
        nodelay: true,
        ..client::Config::default()
    })
}

/// What russh asks us about the coordinator.
struct Caller {
    pinned: Vec<KeyData>,
    /// The fingerprint of the host key that was not believed.
    refused: Arc<OnceLock<String>>,
    /// Tells everybody that the connection is over when russh drops it, however that comes about.
    _lost_on_drop: DropGuard,
}

impl client::Handler for Caller {
    type Error = russh::Error;

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        _names: &Names,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        tracing::debug!("keys exchanged");
        Ok(())
    }

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let believed = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.pinned.contains(key.key_data()),
            PublicKeyOrCertificate::Certificate(_) => false,
        };
        if !believed {
            self.refused.get_or_init(|| keys::fingerprint(&key.public_key()));
        }
        Ok(believed)
    }
}

impl Connection {
    /// Returns a token that fires when the connection has ended. Canceling it ends the connection.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Opens a channel to a subsystem.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn subsystem(&self, name: &str) -> Result<(ChannelReader, GuardedWriter), OpenError> {
        self.answered(async {
            let channel = self.handle.channel_open_session().await?;
            channel.request_subsystem(true, name).await?;
            confirmed(channel).await
        })
        .await
    }

    /// Opens a channel on which a command line is run.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn exec(
        &self,
        line: impl AsRef<[u8]>,
    ) -> Result<(ChannelReader, GuardedWriter), OpenError> {
        let line = line.as_ref().to_vec();
        self.answered(async {
            let channel = self.handle.channel_open_session().await?;
            channel.exec(true, line).await?;
            confirmed(channel).await
        })
        .await
    }

    /// Takes leave and ends the connection, after what was written has been sent.
    pub async fn close(self) {
        let leave = async {
            let said = self.handle.disconnect(Disconnect::ByApplication, "", "").await;
            if said.is_ok() {
                self.lost.cancelled().await;
            }
        };
        if timeout(LEAVE_MAX, leave).await.is_err() {
            tracing::debug!("connection cut: the coordinator takes nothing any more");
        }
    }

    async fn answered(
        &self,
        opening: impl Future<Output = Result<Channel<Msg>, russh::Error>>,
    ) -> Result<(ChannelReader, GuardedWriter), OpenError> {
        let channel = tokio::select! {
            () = self.lost.cancelled() => return Err(OpenError::Lost),
            opened = timeout(OPEN_MAX, opening) => match opened {
                Ok(Ok(channel)) => channel,
                Ok(Err(russh::Error::ChannelOpenFailure(_) | russh::Error::RequestDenied)) => {
                    return Err(OpenError::Refused);
                }
                Ok(Err(_)) => return Err(OpenError::Lost),
                Err(_) => return Err(OpenError::TimedOut),
            },
        };
        let (incoming, outgoing) = channel.split();
        let surroundings = Surroundings {
            gone: self.lost.child_token(),
            flow: self.flow.clone(),
            deadlines: DEADLINES,
            terminal: Terminal::default(),
            revoked: Revoked::default(),
            slot: (),
        };
        Ok(channel::open(incoming, Half::Client(outgoing), surroundings))
    }
}

/// Waits for the coordinator's answer to what was asked of a new channel.
async fn confirmed(mut channel: Channel<Msg>) -> Result<Channel<Msg>, russh::Error> {
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(channel),
            Some(ChannelMsg::Failure | ChannelMsg::Close) => {
                if channel.close().await.is_err() {
                    tracing::trace!("connection ended while a channel was refused");
                }
                return Err(russh::Error::RequestDenied);
            }
            Some(_) => {}
            None => return Err(russh::Error::Disconnect),
        }
    }
}
