//! One SSH session on the coordinator's side: what russh reports, turned into requests.

use super::{
    ENROLL_USER,
    authorize::{Credential, Principal, Role},
    channel::{self, ChannelReader, Deadlines, Revoked, Surroundings, Terminal},
    key_line,
    keys::Presented,
    request::{PtySize, Request, RequestKind, SessionId},
    sessions::{Admitted, Sessions},
    stream::Flow,
    writer::{GuardedWriter, Half},
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Pty,
    keys::{Algorithm, Certificate},
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, VerifiedPublicKey},
};
use std::{collections::HashMap, net::SocketAddr, sync::Arc};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The environment variables that mean something here; all others are refused.
pub(super) const ENV_NAMES: [&str; 3] = ["STEADING_PRIORITY", "STEADING_TAGS", "STEADING_KEY"];

/// The exit status of what may succeed later (`EX_TEMPFAIL` in sysexits.h).
pub(super) const TRY_AGAIN: u32 = 75;

/// The longest value of an environment variable, in bytes.
pub(super) const ENV_BYTES_MAX: usize = 4 << 10;

/// Where a session's requests go, and what is written on them.
pub(super) struct Outlet {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) id: SessionId,
    pub(super) peer: SocketAddr,
}

/// The state of one connection.
pub(super) struct Session {
    sessions: Arc<Sessions>,
    outlet: Outlet,
    /// Set by `identify` and nothing else.
    principal: Option<Arc<Principal>>,
    authenticated: Option<oneshot::Sender<Role>>,
    /// How many more channels may be open at once; known once the principal is.
    channels: Arc<Semaphore>,
    channels_opened: usize,
    /// Channels that nothing was asked of yet.
    openings: HashMap<ChannelId, Opening>,
    end: CancellationToken,
    revoked: Revoked,
    /// Whether the principal has too many connections, so that nothing is taken on this one.
    over: bool,
    flow: Flow,
    /// Tells everybody that the session is over when russh drops it, however that comes about.
    _end_on_drop: DropGuard,
}

/// A channel that nothing was asked of yet.
struct Opening {
    input: ChannelReader,
    output: GuardedWriter,
    env: Vec<(String, String)>,
    pty: Option<PtySize>,
    terminal: Terminal,
}

impl Session {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        outlet: Outlet,
        end: CancellationToken,
        flow: Flow,
        authenticated: oneshot::Sender<Role>,
    ) -> Self {
        Self {
            sessions,
            outlet,
            principal: None,
            authenticated: Some(authenticated),
            channels: Arc::new(Semaphore::new(0)),
            channels_opened: 0,
            openings: HashMap::new(),
            _end_on_drop: end.clone().drop_guard(),
            end,
            revoked: Revoked::default(),
            over: false,
            flow,
        }
    }

    /// Makes the owner of a key the session's principal. The one place where a session gets an
    /// identity; its callers have what they present from russh, which has verified the signature.
    fn identify(&mut self, presented: Presented) -> Auth {
        let admitted = self.sessions.admit(self.outlet.id, presented, &self.end, &self.revoked);
        let Some(Admitted { principal, over }) = admitted else { return Auth::reject() };
        self.over = over;
        let limits = self.sessions.limits();
        self.channels = Arc::new(Semaphore::new(match principal.role {
            Role::Agent => limits.channels_per_agent,
            Role::Stranger | Role::Viewer | Role::Submitter | Role::Operator | Role::Admin => {
                limits.channels_per_person
            }
        }));
        tracing::info!(session = self.outlet.id.0, peer = %self.outlet.peer, role = %principal.role,
            name = %principal.name, key = %principal.fingerprint, "session began");
        self.principal = Some(principal);
        Auth::Accept
    }

    /// Hands a request out, or says that it cannot be taken.
    async fn ask(
        &mut self,
        id: ChannelId,
        kind: RequestKind,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let (Some(principal), Some(opening)) = (self.principal.clone(), self.openings.remove(&id))
        else {
            return session.channel_failure(id);
        };
        let Some(kind) = forced(&principal, kind) else { return session.channel_failure(id) };
        if let Err(reason) = self.may_ask(&principal, &kind) {
            tracing::warn!(name = %principal.name, reason, "request refused");
            if matches!(kind, RequestKind::Subsystem(_)) {
                return session.channel_failure(id);
            }
            session.channel_success(id)?;
            drop(tokio::spawn(refuse(opening, reason)));
            return Ok(());
        }
        let wait = self.sessions.limits().request_wait;
        let place = tokio::select! {
            place = timeout(wait, self.outlet.requests.reserve()) => place,
            () = self.end.cancelled() => return Ok(()),
        };
        let Ok(Ok(place)) = place else {
            tracing::warn!(name = %principal.name, "request refused: too many are waiting");
            return session.channel_failure(id);
        };
        // Before anything that the answer may write: both go through one queue.
        session.channel_success(id)?;
        place.send(Request {
            principal,
            kind,
            session: self.outlet.id,
            peer: self.outlet.peer,
            env: opening.env,
            pty: opening.pty,
            gone: opening.output.gone().clone(),
            input: opening.input,
            output: opening.output,
        });
        Ok(())
    }
}

impl Session {
    /// Decides whether a principal may ask for anything more, or says why not.
    fn may_ask(&self, principal: &Principal, kind: &RequestKind) -> Result<(), String> {
        if self.over {
            self.sessions.count_refusal();
            return Err(format!(
                "too many connections of {} are open: close some, and try again",
                principal.name
            ));
        }
        match kind {
            // Agents open few, for long.
            RequestKind::Subsystem(_) => Ok(()),
            RequestKind::Exec(_) | RequestKind::Shell => {
                self.sessions.take_command(principal).map_err(|per_second| {
                    format!(
                        "{} sends too many commands, {per_second} per second are taken: try again \
                         in a moment, or ask for more with one command",
                        principal.name
                    )
                })
            }
        }
    }
}

/// Returns what is done of what was asked for: all of it, unless a certificate forces a command.
fn forced(principal: &Principal, kind: RequestKind) -> Option<RequestKind> {
    let Credential::Certificate(certified) = &principal.credential else { return Some(kind) };
    match (&certified.forced, &kind) {
        (None, _) => Some(kind),
        (Some(line), RequestKind::Exec(_) | RequestKind::Shell) => {
            Some(RequestKind::Exec(line.clone().into_bytes()))
        }
        (Some(_), RequestKind::Subsystem(_)) => None,
    }
}

/// Tells a client why it is refused.
async fn refuse(opening: Opening, reason: String) {
    let told = opening.output.write_stderr(format!("steading: {reason}\n").into()).await;
    if told.is_err() || opening.output.exit(TRY_AGAIN).await.is_err() {
        tracing::trace!("a client was gone before it was refused");
    }
}

/// Returns whether a signature of this algorithm is worth nothing any more.
fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

impl Handler for Session {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        // Of a certificate only its key is shown here, so with authorities any key may be one.
        let may_come = user == ENROLL_USER
            || self.sessions.knows(offer.public_key.key_data())
            || self.sessions.takes_certificates();
        Ok(if may_come && !is_sha1(offer.algorithm) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if is_sha1(key.algorithm) {
            return Ok(Auth::reject());
        }
        let data = key.public_key.key_data();
        let presented = if user == ENROLL_USER && !self.sessions.knows(data) {
            if key_line::accept(data).is_err() {
                return Ok(Auth::reject());
            }
            Presented::Unknown(key.public_key.clone())
        } else {
            Presented::Key(data.clone())
        };
        Ok(self.identify(presented))
    }

    // The signature was made with the algorithm that was offered, so it is not SHA-1.
    async fn auth_openssh_certificate(
        &mut self,
        _user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        let peer = self.outlet.peer.ip();
        Ok(self.identify(Presented::Certificate(Box::new(certificate.clone()), peer)))
    }

    async fn auth_succeeded(
        &mut self,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        if let (Some(tell), Some(principal)) = (self.authenticated.take(), &self.principal)
            && tell.send(principal.role).is_err()
        {
            tracing::trace!("connection was cut while it authenticated");
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        let limits = self.sessions.limits();
        let place = Arc::clone(&self.channels).try_acquire_owned();
        let in_life = self.channels_opened < limits.channels_per_life;
        let counted = match &self.principal {
            Some(principal) if place.is_ok() && in_life => self.sessions.count_channel(principal),
            Some(_) | None => None,
        };
        let (Ok(place), Some(counted)) = (place, counted) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        self.channels_opened = self.channels_opened.saturating_add(1);
        let terminal = Terminal::default();
        let surroundings = Surroundings {
            gone: self.end.child_token(),
            flow: self.flow.clone(),
            deadlines: Deadlines { read: limits.read_progress, write: limits.write_progress },
            terminal: terminal.clone(),
            revoked: self.revoked.clone(),
            slot: (place, counted),
        };
        let id = channel.id();
        let (incoming, outgoing) = channel.split();
        let (input, output) = channel::open(incoming, Half::Server(outgoing), surroundings);
        let opening = Opening { input, output, env: Vec::new(), pty: None, terminal };
        self.openings.insert(id, opening);
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.openings.remove(&id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        _term: &str,
        columns: u32,
        rows: u32,
        _pixel_width: u32,
        _pixel_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        // Refusing would make OpenSSH give up, so its terminal goes raw and the channel translates.
        match self.openings.get_mut(&id) {
            Some(opening) => {
                opening.pty = Some(PtySize { columns, rows });
                opening.terminal.make_raw();
                session.channel_success(id)
            }
            None => session.channel_failure(id),
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        match self.openings.get_mut(&id) {
            Some(opening) if ENV_NAMES.contains(&name) && value.len() <= ENV_BYTES_MAX => {
                opening.env.retain(|(other, _)| other != name);
                opening.env.push((name.to_owned(), value.to_owned()));
                session.channel_success(id)
            }
            Some(_) | None => session.channel_failure(id),
        }
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single_connection: bool,
        _auth_protocol: &str,
        _auth_cookie: &str,
        _screen_number: u32,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.ask(id, RequestKind::Exec(line.to_vec()), session).await
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.ask(id, RequestKind::Subsystem(name.to_owned()), session).await
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        self.ask(id, RequestKind::Shell, session).await
    }
}
