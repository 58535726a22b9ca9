//! Starting: the state directory made and locked, the database opened, the threads and the door
//! started, and requests handed to those who serve them.

use super::{
    Coordinator,
    audit::Auditor,
    bulk, care, control,
    engine_thread::{self, Outlets},
    enrollment::Enrollment,
    expulsion,
    forms::FormQueue,
    hooks, hygiene,
    keeper::Keeper,
    logs::{LOG_CAP_MIN, LogRules, Logs},
    pressure::{self, Activity, Pressure},
    publishing::{self, Outlet},
    quotas::Quotas,
    readers::Readers,
    sftp,
    small::Room,
    transfers::{TransferLimits, Transfers},
    truth::Truth,
};
use crate::{
    config::Config,
    core::{
        change::Change,
        engine::{Engine, Input},
        event::{Event, EventKind},
        id::AttemptId,
    },
    depot::{Depot, DepotError, Publisher},
    protocol::{BULK_SUBSYSTEM, CONTROL_SUBSYSTEM},
    ssh::{
        self, Door, DoorConfig, DoorError, DoorLimits, KeyPair, Request, RequestKind, Role,
        host_key,
    },
    store::{Store, StoreError},
    telemetry::{self, Clock},
};
use fs_err as fs;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{broadcast, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// When agents are told to come back after a planned stop, in milliseconds: a start takes a second
/// or two, and an agent that comes too early only tries again.
const BACK_IN_MS: u64 = 3_000;
/// How long a planned stop waits until agents have been told: as long as one of them may take
/// nothing of a message, and a little.
const FAREWELL_MAX: Duration = Duration::from_secs(7);
/// How many builds may come to rest before somebody who waits looks; it then asks again.
const RESTED_MAX: usize = 4_096;
/// The same for builds that are given to agents.
const ALLOCATED_MAX: usize = 4_096;
/// The folders of the keydir, one per role, and the one of authorities.
const KEYDIR_FOLDERS: [&str; 6] = ["agents", "viewers", "submitters", "operators", "admins", "ca"];
/// The keydir, in the state directory.
const KEYDIR: &str = "keys";
/// The host key, in the state directory.
const HOST_KEY: &str = "secrets/host_ed25519";
/// The one that will take its place; see keys/README.md.
const NEXT_HOST_KEY: &str = "secrets/host_ed25519.next";

/// Why the coordinator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be made or written.
    #[error(
        "cannot use the state directory {path}: make it writable for this user, or name another \
         with --state"
    )]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another coordinator uses it.
    #[error(
        "another coordinator runs on {0}: stop it first, or name another directory with --state"
    )]
    Locked(PathBuf),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// The door.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// There is no thread.
    #[error("the operating system gives no thread")]
    Thread(#[source] io::Error),
    /// Hooks have no way in.
    #[error("hooks cannot be served")]
    Hooks(#[from] hooks::EnvironmentError),
    /// The engine ended at once.
    #[error(transparent)]
    Engine(#[from] engine_thread::EngineGone),
    /// There is no randomness.
    #[error("the operating system gives no randomness")]
    Randomness,
}

/// A started coordinator.
#[derive(Debug)]
pub struct Started {
    /// What sessions and commands need.
    pub coordinator: Coordinator,
    /// Where it listens.
    pub address: SocketAddr,
    /// The public half of its host key, as in `known_hosts`.
    pub host_public_key: String,
    /// That of the host key that will take its place, when there is one already.
    pub next_host_public_key: Option<String>,
    /// The public signing key of the Nix dialect.
    pub signing_public_key: String,
    /// That of the Guix dialect, an S-expression of several lines.
    pub guix_signing_public_key: String,
    door: Door,
    engine_end: oneshot::Receiver<Result<(), StoreError>>,
    /// The control sessions of agents.
    controls: JoinSet<()>,
    /// Closes the door.
    cancel: CancellationToken,
    /// Keeps others off the state directory.
    lock: fs::File,
}

/// Starts a coordinator on a state directory. `cancel` cuts all connections at once; for a stop that
/// agents are told of, [`Started::serve`] has a token of its own.
///
/// # Errors
/// [`StartError`]; nothing is left running then.
pub async fn start(
    state_dir: &Path,
    config: &Config,
    listen: SocketAddr,
    clock: Clock,
    cancel: CancellationToken,
) -> Result<Started, StartError> {
    let unusable = |source| StartError::StateDir { path: state_dir.to_owned(), source };
    make_dirs(state_dir).map_err(unusable)?;
    let lock = lock(state_dir)?;
    telemetry::count_panics();
    pressure::room_to_start(state_dir, &cancel).await.map_err(unusable)?;
    let pressure = Pressure::new(state_dir, config.min_free, clock);
    let database = state_dir.join("steading.db");
    let store = Store::open(&database)?.with_outputs(config.outputs);
    let depot = open_depot(state_dir, config)?;
    let (publish, publishing) = publishing::queue();
    let care = care::Care::new(state_dir, publish.weak()).map_err(unusable)?;
    let (rested, _) = broadcast::channel(RESTED_MAX);
    let (allocated, _) = broadcast::channel(ALLOCATED_MAX);
    let truth = Truth::restore(store, config.settings(), clock.now())?;
    let logs = start_logs(state_dir, config, &truth, &pressure, clock).map_err(unusable)?;
    let (events_sender, events) = watch::channel(truth.store.last_event());
    let outlets = Outlets {
        logs: logs.clone(),
        meter: care.meter.clone(),
        publish,
        rested: rested.clone(),
        allocated: allocated.clone(),
        events: events_sender,
    };
    let keeper = Keeper::start(depot.clone(), clock).map_err(StartError::Thread)?;
    let unwritten = Room::new(truth.store.reader()?.unwritten_bytes()?);
    let transfers = Arc::new(Transfers::new(&transfer_limits(config), keeper, unwritten.clone()));
    sweep(&depot, &truth.engine, &transfers)?;
    let (engine, engine_end) = engine_thread::spawn(truth, clock, outlets);
    let readers = Readers::new(database);
    let publisher = Publisher::new(depot.clone(), config.publish.clone());
    let forms =
        FormQueue::start(depot.clone(), care.publish.clone()).map_err(StartError::Thread)?;
    let outlet = Outlet {
        depot: depot.clone(),
        reader: readers.open()?,
        engine: engine.clone(),
        forms,
        unwritten,
    };
    publishing.start(publisher, outlet, clock);
    let audit = Auditor::start(engine.clone(), clock).await?;
    let keydir = state_dir.join(KEYDIR);
    let enrollment = Enrollment::load(engine.clone(), &readers, clock, keydir).await?;
    let door = ssh::open(door_config(state_dir, listen), clock, cancel.clone()).await?;
    door.open_locally(&state_dir.join(ssh::local::SOCKET));
    let next_host_key = next_host_key(&state_dir.join(NEXT_HOST_KEY))?;
    let coordinator = Coordinator {
        engine,
        readers,
        depot,
        transfers,
        logs,
        pressure,
        outputs: config.outputs,
        activity: Activity::default(),
        rested,
        allocated,
        events,
        hooks: hooks::Outbox::default(),
        dropped: Arc::default(),
        audit,
        enrollment,
        quotas: Quotas::new(clock),
        clock,
        state_dir: state_dir.to_owned(),
        config: Arc::new(tokio::sync::Mutex::new(config.clone())),
        care,
        started_at: clock.now().wall,
        monitor: door.monitor.clone(),
    };
    begin(&coordinator, &door, config, &cancel).await?;
    let started = Started {
        address: door.address,
        host_public_key: door.host_public_key.clone(),
        next_host_public_key: next_host_key.map(|key| key.public_line()),
        signing_public_key: coordinator.depot.public_key(),
        guix_signing_public_key: coordinator.depot.guix_public_key(),
        coordinator,
        door,
        engine_end,
        controls: JoinSet::new(),
        cancel,
        lock,
    };
    started.write_addresses(state_dir).map_err(unusable)?;
    Ok(started)
}

/// Opens the logs of the attempts that are not over.
fn start_logs(
    state_dir: &Path,
    config: &Config,
    truth: &Truth,
    pressure: &Pressure,
    clock: Clock,
) -> io::Result<Logs> {
    let live: BTreeSet<AttemptId> = truth.engine.attempts().map(|(attempt, _)| attempt).collect();
    Logs::start(&state_dir.join("logs"), log_rules(config), clock, &live, pressure.clone())
}

/// Begins all that goes on by itself, tells that the coordinator has started, and lets hooks have
/// this and all other events.
async fn begin(
    coordinator: &Coordinator,
    door: &Door,
    config: &Config,
    cancel: &CancellationToken,
) -> Result<(), StartError> {
    care::begin(coordinator, cancel);
    tokio::spawn(coordinator.audit.clone().sum_up(cancel.clone()));
    tokio::spawn(expulsion::follow(coordinator.clone(), cancel.clone()));
    let environment = hooks::let_in(&coordinator.state_dir, door, config.hooks.role)?;
    let started = Event::new(EventKind::CoordinatorStarted, coordinator.started_at);
    let changes = vec![Change::Event(Box::new(started))];
    // It fails only where the engine has ended already, which has its own words.
    coordinator.engine.tell(Input::Record { token: None, changes }).await.ok();
    let forget = hygiene::forget_events(coordinator.clone(), config.clone(), cancel.clone());
    tokio::spawn(forget);
    let settings = config.hooks.clone();
    tokio::spawn(hooks::serve(coordinator.clone(), settings, environment, cancel.clone()));
    Ok(())
}

impl Started {
    /// Serves until `stop` is canceled or the engine fails. Command lines go to `run`.
    ///
    /// On `stop`, everything that has arrived is made durable, every agent is told that the
    /// coordinator will be back, and then the door is closed.
    ///
    /// # Errors
    /// What ended the engine: the state on disk is good, and a new start goes on from it.
    pub async fn serve<F>(
        mut self,
        stop: CancellationToken,
        run: impl Fn(Coordinator, Request) -> F,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let result = loop {
            tokio::select! {
                () = stop.cancelled() => break self.take_leave().await,
                end = &mut self.engine_end => break engine_result(end),
                Some(_) = self.controls.join_next() => {}
                request = self.door.requests.recv() => match request {
                    Some(request) => self.hand_out(request, &run),
                    None => break Ok(()),
                },
            }
        };
        self.cancel.cancel();
        self.door.closed().await;
        drop(self.lock);
        result
    }

    /// Stops the engine behind what has arrived, and lets the sessions of agents say so.
    async fn take_leave(&mut self) -> Result<(), StoreError> {
        // It may have ended by itself, and then has its own reason.
        self.coordinator.engine.stop(BACK_IN_MS).await.ok();
        let result = engine_result((&mut self.engine_end).await);
        let told = async { while self.controls.join_next().await.is_some() {} };
        if timeout(FAREWELL_MAX, told).await.is_err() {
            tracing::warn!(left = self.controls.len(), "not every agent could be told of the stop");
        }
        result
    }

    fn hand_out<F>(&mut self, request: Request, run: &impl Fn(Coordinator, Request) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let coordinator = self.coordinator.clone();
        let is_agent = request.principal.role == Role::Agent;
        match &request.kind {
            RequestKind::Subsystem(name) if is_agent && name == CONTROL_SUBSYSTEM => {
                self.controls.spawn(control::serve(coordinator, request));
            }
            RequestKind::Subsystem(name) if is_agent && name == BULK_SUBSYSTEM => {
                tokio::spawn(bulk::serve(coordinator, request));
            }
            RequestKind::Subsystem(name)
                if name == sftp::SUBSYSTEM && request.principal.role.includes(Role::Viewer) =>
            {
                tokio::spawn(sftp::serve(coordinator.state_dir, request));
            }
            RequestKind::Subsystem(_) | RequestKind::Exec(_) | RequestKind::Shell => {
                tokio::spawn(run(coordinator, request));
            }
        }
    }

    /// Writes down where this coordinator is and which keys it has, for scripts.
    fn write_addresses(&self, state_dir: &Path) -> io::Result<()> {
        let run = state_dir.join("run");
        for (name, text) in [
            ("address", self.address.to_string()),
            ("host_key.pub", self.host_public_key.clone()),
            ("signing-nix.pub", self.signing_public_key.clone()),
            ("signing-guix.pub", self.guix_signing_public_key.trim_ascii_end().to_owned()),
        ] {
            let fresh = run.join(format!(".{name}.new"));
            fs::write(&fresh, format!("{text}\n"))?;
            fs::rename(&fresh, run.join(name))?;
        }
        let next = run.join("host_key_next.pub");
        match &self.next_host_public_key {
            Some(key) => {
                let fresh = run.join(".host_key_next.pub.new");
                fs::write(&fresh, format!("{key}\n"))?;
                fs::rename(&fresh, next)?;
            }
            None if next.exists() => fs::remove_file(next)?,
            None => {}
        }
        Ok(())
    }
}

fn door_config(state_dir: &Path, listen: SocketAddr) -> DoorConfig {
    DoorConfig {
        listen,
        host_key: state_dir.join(HOST_KEY),
        keydir: state_dir.join(KEYDIR),
        limits: DoorLimits::default(),
    }
}

/// Returns the host key that is to come, if there is one. It is not made here: that it exists says
/// that somebody wants to change.
fn next_host_key(path: &Path) -> Result<Option<KeyPair>, DoorError> {
    if !path.exists() {
        return Ok(None);
    }
    host_key::load(path).map(Some).map_err(DoorError::HostKey)
}

/// Returns what ended the engine's thread.
fn engine_result(
    end: Result<Result<(), StoreError>, oneshot::error::RecvError>,
) -> Result<(), StoreError> {
    end.unwrap_or_else(|_| Err(StoreError::Diverged("the engine broke an invariant".to_owned())))
}

fn make_dirs(state_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(state_dir)?;
    for name in ["logs", "run", "keys", "hooks"] {
        fs::create_dir_all(state_dir.join(name))?;
    }
    for folder in KEYDIR_FOLDERS {
        fs::create_dir_all(state_dir.join("keys").join(folder))?;
    }
    let secrets = state_dir.join("secrets");
    if !secrets.exists() {
        std::fs::DirBuilder::new().mode(0o700).create(&secrets)?;
    }
    fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o700))
}

/// Keeps a second coordinator off the same directory, for as long as the file is open.
fn lock(state_dir: &Path) -> Result<fs::File, StartError> {
    let path = state_dir.join("run/lock");
    let file = fs::File::create(&path)
        .map_err(|source| StartError::StateDir { path: state_dir.to_owned(), source })?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StartError::Locked(state_dir.to_owned()))?;
    Ok(file)
}

fn log_rules(config: &Config) -> LogRules {
    LogRules {
        cap: config.log_cap.max(LOG_CAP_MIN),
        keep_days: config.log_keep_days,
        keep_bytes: config.log_keep_bytes,
    }
}

/// Removes what earlier processes left of uploads that nobody will go on with, and counts the rest.
fn sweep(depot: &Depot, engine: &Engine, transfers: &Transfers) -> Result<(), DepotError> {
    // Agents may come back with lost attempts, too, and go on from where they were.
    let live: BTreeMap<_, _> = engine.attempts().chain(engine.lost_attempts()).collect();
    let found = depot.sweep_incoming(|attempt| live.contains_key(&attempt))?;
    if found.removed > 0 {
        tracing::info!(removed = found.removed, kept = found.files, "abandoned uploads removed");
    }
    for (attempt, bytes) in depot.staged()? {
        if let Some(agent) = live.get(&attempt) {
            transfers.staging.restore(agent, attempt, bytes);
        }
    }
    Ok(())
}

fn transfer_limits(config: &Config) -> TransferLimits {
    TransferLimits {
        uploads_max: config.uploads_max.get(),
        uploads_per_agent_max: config.uploads_per_agent_max.get(),
        staged_bytes_max: u64::from(config.staged_gib_max.get()) << 30,
    }
}

fn open_depot(state_dir: &Path, config: &Config) -> Result<Depot, StartError> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|_| StartError::Randomness)?;
    let name = config.signing_key_name.clone().unwrap_or_else(|| {
        let host = rustix::system::uname();
        format!("{}-1", host.nodename().to_str().unwrap_or("steading"))
    });
    Ok(Depot::open(state_dir, &name, seed)?)
}
