//! The build machine's side: dials the coordinator, builds what it is given, uploads the outputs.
//!
//! This room owns the agent's state directory and the spool of every attempt in it. It never
//! decides what is built or in which order, listens on no port, and obeys nobody but the
//! coordinator whose host key is pinned.
//!
//! An attempt is not a connection and not this process either. Each one is a process of its own
//! ([`attempt`]) with its own session, which builds and leaves log and result in its spool. The
//! agent that started it, or the next one, follows the spool, reports and uploads. So builds
//! survive lost connections, restarts and upgrades of the agent.
//!
//! Bytes go over bulk connections that all attempts share (`bulk`): inputs down (`prepare`, kept in
//! `inputs` until they are whole; `below` for builders that build by path), large outputs up (`upload`) one after the other, small ones
//! (`express`) many at a time. What a lost connection interrupts is gone on with, for ever: only
//! the coordinator settles an attempt.
//!
//! Meanwhile [`upkeep`] looks after the machine: it says how many builds are wanted just now, and
//! makes room in the store. [`doctor`] looks once at everything that an agent needs, and
//! explains it.
//!
//! Entry points: [`run`] is `steading agent`; [`doctor::examine`] is `steading agent doctor`;
//! [`attempt::main`] is the hidden `steading attempt`.
//! One place, `attempts`, owns what is known of all attempts; each attempt has one `life`, which
//! tells it by channel how far it is.

pub mod attempt;
mod attempts;
mod backoff;
mod below;
mod blocking;
mod bulk;
mod child;
pub mod doctor;
mod enroll;
mod express;
mod inputs;
mod life;
mod pack;
mod prepare;
mod rate;
mod report;
mod session;
pub mod settings;
mod slots;
mod spool;
mod state;
pub mod upkeep;
mod upload;
mod watch;

use crate::{
    builders::{BuilderKind, Substituters},
    core::{id::Name, store_path::StoreDir},
    protocol::handshake::Capabilities,
    ssh::{self, ClientConfig, ConnectError, KeyFileError},
    telemetry::{self, Clock},
};
use attempts::Attempts;
use backoff::Backoff;
use session::Ended;
use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};
use tokio::sync::{self, Semaphore};
use tokio_util::sync::CancellationToken;
use upkeep::{Caretaker, Upkeep};

/// The most bulk connections of one agent (design: one to four). One of them is never used for
/// uploads, so that a new build does not wait for an old one's outputs.
const BULK_LINES_MAX: usize = 4;

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Where the agent keeps its instance id and the spools. One agent per directory.
    pub state_dir: PathBuf,
    /// The coordinator's `host:port`.
    pub coordinator: String,
    /// The coordinator's host key, as `ssh-ed25519 AAAA…`; two while it is being changed.
    pub host_keys: Vec<String>,
    /// The agent's own key file, made when it is missing.
    pub identity: PathBuf,
    /// With what it lets itself in when its key is not known.
    pub token: Option<String>,
    /// What it would like to be called then, if not like its host.
    pub name: Option<Name>,
    /// The executable that is started as `attempt SPOOL_DIR` for each attempt;
    /// [`AgentConfig::THIS_PROGRAM`] unless the caller is another program.
    pub program: PathBuf,
    /// What builds on this machine.
    pub builder: BuilderKind,
    /// Systems built natively, such as `x86_64-linux`.
    pub systems: Vec<String>,
    /// Systems built through emulation.
    pub emulated_systems: Vec<String>,
    /// What is offered to `requiredSystemFeatures`.
    pub features: Vec<String>,
    /// How many builds run at a time (`max-parallel-builds`).
    pub slots: u32,
    /// How many attempts upload at a time (`max-parallel-uploads`), from 1 to 3.
    pub uploads: u32,
    /// How fast outputs are sent at most, over all connections, in bytes per second
    /// (`max-upload-rate`); as fast as they can be when absent.
    pub upload_rate: Option<u64>,
    /// How many processors one build should use; 0 leaves it to the builder.
    pub cores: u32,
    /// What is said of this agent, for choosing among agents.
    pub tags: BTreeMap<String, String>,
    /// Where the daemon fetches inputs that the coordinator does not hold.
    pub substituters: Substituters,
    /// How the machine is looked after; changes hold at once.
    pub upkeep: sync::watch::Receiver<Upkeep>,
}

impl AgentConfig {
    /// The running executable, also after its file was replaced.
    pub const THIS_PROGRAM: &'static str = "/proc/self/exe";

    /// Returns what the agent says of itself in its first message.
    fn capabilities(&self) -> Capabilities {
        let (dialect, store_dir) = dialect(&self.builder);
        Capabilities {
            store_dir: store_dir.clone(),
            dialect: dialect.to_owned(),
            systems: self.systems.clone(),
            emulated_systems: self.emulated_systems.clone(),
            features: self.features.clone(),
            slots: self.slots,
            tags: self.tags.clone(),
        }
    }
}

/// Returns the word for a kind of builder, and the store that it builds into.
const fn dialect(builder: &BuilderKind) -> (&'static str, &StoreDir) {
    match builder {
        BuilderKind::Nix { store_dir, .. } => ("nix", store_dir),
        BuilderKind::Guix { store_dir, .. } => ("guix", store_dir),
        BuilderKind::Direct(place) => ("direct", &place.store_dir),
    }
}

/// Why an agent cannot run at all. Everything that may pass by itself is retried instead.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error("the state directory {} cannot be used: check that this user may write there", path.display())]
    StateDir {
        /// The directory of the configuration.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// Another agent runs on the same state directory.
    #[error("another agent uses {}: stop it, or give this one its own directory", .0.display())]
    InUse(PathBuf),
    /// The file with the instance id was changed.
    #[error("{} does not hold an instance id: remove it and the agent makes a new one", .0.display())]
    Instance(PathBuf),
    /// The spools were written by a newer program.
    #[error(
        "{} says that the attempts beside it have the form ‘{found}’, which this program does not \
         know: start the steading that wrote them, or let it finish them first", path.display()
    )]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// There is no usable key.
    #[error("the agent has no key")]
    Identity(#[source] KeyFileError),
    /// The pinned host keys are not usable.
    #[error("the coordinator cannot be recognized")]
    HostKeys(#[source] ConnectError),
}

/// What every attempt's life uses.
struct Equipment {
    config: AgentConfig,
    clock: Clock,
    pool: bulk::Pool,
    inputs: Arc<inputs::Inputs>,
    uploads: Arc<Semaphore>,
    throttle: Arc<rate::Throttle>,
    express: express::Express,
}

/// Runs the agent until `cancel` fires. Attempts go on in their own processes after that, and the
/// next agent on the same state directory takes them over.
///
/// # Errors
/// [`AgentError`]: correct the configuration and start again.
pub async fn run(
    config: AgentConfig,
    clock: Clock,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    let state = state::open(&config.state_dir, clock)?;
    let identity = ssh::host_key::load_or_create(&config.identity).map_err(AgentError::Identity)?;
    tracing::info!(key = identity.public_line(), coordinator = config.coordinator, "agent started");
    let client = ClientConfig {
        address: config.coordinator.clone(),
        host_keys: config.host_keys.clone(),
        identity,
        user: "steading".to_owned(),
    };
    let uploads = usize::try_from(config.uploads).unwrap_or(usize::MAX);
    let uploads = uploads.clamp(1, BULK_LINES_MAX - 1);
    let pool = bulk::Pool::start(client.clone(), uploads + 1, cancel.child_token());
    let throttle = Arc::new(rate::Throttle::new(config.upload_rate, clock));
    let inputs = inputs::Inputs::open(state.inputs_dir())
        .map_err(|source| AgentError::StateDir { path: config.state_dir.clone(), source })?;
    let equipment = Equipment {
        express: express::Express::start(pool.clone(), Arc::clone(&throttle)),
        pool,
        inputs: Arc::new(inputs),
        uploads: Arc::new(Semaphore::new(uploads)),
        throttle,
        clock,
        config,
    };
    let equipment = Arc::new(equipment);
    let mut attempts = Attempts::restore(state.attempts_dir(), Arc::clone(&equipment))?;
    let (caretaker, capacity) = Caretaker::new(&equipment.config, clock, attempts.running());
    let dialer = session::Dialer { client, instance: state.instance, clock, capacity, cancel };
    let enrollment = enroll::Request {
        token: equipment.config.token.clone(),
        name: equipment.config.name.clone(),
    };
    tokio::select! {
        // A stop cuts the connections, too, which is then nothing to speak of.
        biased;
        () = dialer.cancel.cancelled() => {
            tracing::info!("agent stopped; running attempts go on");
            Ok(())
        }
        () = caretaker.run() => Ok(()),
        error = keep_connected(&dialer, &enrollment, &mut attempts) => Err(error),
    }
}

/// Connects for ever; returns only when the configuration is wrong.
async fn keep_connected(
    dialer: &session::Dialer,
    enrollment: &enroll::Request,
    attempts: &mut Attempts,
) -> AgentError {
    let mut backoff = Backoff::default();
    loop {
        let ended = session::run(dialer, attempts).await;
        attempts.unlink();
        let pause = match ended {
            Ended::Misconfigured(error) => return AgentError::HostKeys(error),
            Ended::Unknown(reason) => {
                tracing::warn!(reason, "the coordinator does not know this agent");
                if attempts.meanwhile(enroll::ask(dialer, enrollment)).await {
                    backoff = Backoff::default();
                }
                backoff.pause()
            }
            Ended::Refused(reason) => {
                // Only a person can lift that, often at this very moment: a machine whose key was
                // just copied should not wait for long.
                tracing::error!(reason, "the coordinator refuses this agent");
                backoff.pause()
            }
            Ended::Unreached(error) => {
                tracing::warn!(error = telemetry::chain(&error), "coordinator not reached");
                backoff.pause()
            }
            Ended::Lost(reason) => {
                tracing::warn!(reason, "session lost; running attempts go on");
                backoff = Backoff::default();
                backoff.pause()
            }
            Ended::Restarting(back_in) => {
                tracing::info!("coordinator restarts; running attempts go on");
                backoff = Backoff::default();
                back_in.saturating_add(backoff.pause())
            }
        };
        attempts.meanwhile(tokio::time::sleep(pause)).await;
    }
}
