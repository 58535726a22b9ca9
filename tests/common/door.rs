//! A coordinator in this process, and agents that say over real SSH connections what a test says.

use bytes::Bytes;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use steading::{
    commands,
    config::Config,
    coordinator::{
        Coordinator,
        engine_thread::{SubmitRequest, Submitted},
        start, submission,
    },
    core::{
        build::ShownState,
        engine::{Ask, Told},
        hash::Sha256,
        id::{AttemptId, BuildId, InstanceId},
        outcome::Outcome,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    protocol::{
        BULK_SUBSYSTEM, CONTROL_SUBSYSTEM,
        bulk::{
            BulkFromAgent, BulkToAgent, OFFERS_AHEAD_MAX, OfferedOutput, OutputPlan, RefusalCode,
        },
        frame::{self, Decoder},
        handshake::{Capabilities, Hello, PROTOCOL_MAX},
        message::{Allocation, FromAgent, ToAgent},
        session::AgentEnd,
    },
    ssh::{self, ChannelReader, ClientConfig, Connection, GuardedWriter, Incoming, host_key},
    store::{AttemptRow, BuildFilter, Reader, StoreError},
    telemetry::Clock,
};
use tokio_util::sync::CancellationToken;

/// How long anything may take: generous, because it only costs time when a test fails.
const DEADLINE: Duration = Duration::from_mins(3);
/// The agents that the coordinator knows.
const AGENTS: [&str; 2] = ["amber", "birch"];

/// A coordinator in this process.
pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) coordinator: Coordinator,
    address: String,
    host_key: String,
    clock: Clock,
    stop: CancellationToken,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default(), "").await
    }

    /// Starts with a configuration, and with options in front of the keys of agents.
    pub(crate) async fn with(config: Config, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        for name in AGENTS {
            let key = host_key::load_or_create(&dir.path().join("identities").join(name)).unwrap();
            let folder = state.join("keys/agents");
            fs_err::create_dir_all(&folder).unwrap();
            let line = format!("{options} {}", key.public_line());
            fs_err::write(folder.join(format!("{name}.pub")), line.trim_start()).unwrap();
        }
        let (clock, stop) = (Clock::start(), CancellationToken::new());
        let listen = "127.0.0.1:0".parse().unwrap();
        let started = start::start(&state, &config, listen, clock, stop.clone()).await.unwrap();
        let coordinator = started.coordinator.clone();
        let (address, host_key) = (started.address.to_string(), started.host_public_key.clone());
        tokio::spawn(started.serve(stop.clone(), commands::run));
        Self { dir, coordinator, address, host_key, clock, stop }
    }

    /// Submits the derivations of an export stream, without what they need.
    pub(crate) async fn submit(&self, stream: Vec<u8>, roots: &[StorePath]) -> Vec<BuildId> {
        let (pieces, done) = submission::receive(&self.coordinator, submission::Trust::None);
        pieces.send(submission::Piece::Bytes(stream.into())).await.unwrap();
        pieces.send(submission::Piece::End).await.unwrap();
        done.await.unwrap().unwrap();
        let request = SubmitRequest::new("tester".parse().unwrap(), roots.to_vec());
        match self.coordinator.engine.submit(request).await.unwrap() {
            Submitted::Builds { builds, .. } => builds,
            Submitted::Not(reason) => panic!("{reason:?}"),
        }
    }

    pub(crate) async fn connect(&self, name: &str) -> Connection {
        let identity = host_key::load(&self.dir.path().join("identities").join(name)).unwrap();
        let config = ClientConfig {
            address: self.address.clone(),
            host_keys: vec![self.host_key.clone()],
            identity,
            user: name.to_owned(),
        };
        ssh::connect(&config, &CancellationToken::new()).await.unwrap()
    }

    /// Connects an agent that has said hello.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        self.agent_saying(name, hello()).await
    }

    /// Connects an agent that has said this hello.
    pub(crate) async fn agent_saying(&self, name: &str, hello: Hello) -> Agent {
        let connection = self.connect(name).await;
        let (reader, writer) = connection.subsystem(CONTROL_SUBSYSTEM).await.unwrap();
        let end = AgentEnd::new(self.clock.now().mono);
        let mut agent = Agent { connection, reader, writer, end, clock: self.clock };
        agent.say(&FromAgent::Hello(hello)).await;
        agent
    }

    /// Returns all attempts at a build, the earliest first.
    pub(crate) async fn attempts(&self, build: BuildId) -> Vec<AttemptRow> {
        self.coordinator.readers.read(move |reader| reader.attempts(build)).await.unwrap()
    }

    /// Returns how open builds are shown.
    pub(crate) async fn states(&self) -> Vec<ShownState> {
        let read = |reader: &Reader| {
            reader.builds(&BuildFilter { limit: 1_000, ..BuildFilter::default() })
        };
        let rows: Result<_, StoreError> = self.coordinator.readers.read(read).await;
        let ids = rows.unwrap().into_iter().map(|row| row.id).collect();
        match self.coordinator.engine.ask(Ask::Shown(ids)).await.unwrap() {
            Told::Shown(shown) => shown.into_values().collect(),
            other => panic!("{other:?}"),
        }
    }

    /// The names of all files below a directory of the state directory, sorted.
    pub(crate) fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.dir.path().join("state").join(below)];
        while let Some(dir) = pending.pop() {
            for entry in fs_err::read_dir(dir).unwrap().map(Result::unwrap) {
                let is_dir = entry.file_type().unwrap().is_dir();
                if is_dir { &mut pending } else { &mut found }.push(entry.path());
            }
        }
        found.sort();
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What an agent with one slot says first.
pub(crate) fn hello() -> Hello {
    Hello {
        protocol_min: PROTOCOL_MAX,
        protocol_max: PROTOCOL_MAX,
        version: "0".to_owned(),
        instance: InstanceId::from_bytes([1; 16]),
        wall_ms: 0,
        capabilities: Capabilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            slots: 1,
            tags: BTreeMap::new(),
        },
        held: Vec::new(),
        capacity: None,
    }
}

/// An agent that does what the test says.
pub(crate) struct Agent {
    pub(crate) connection: Connection,
    reader: ChannelReader,
    pub(crate) writer: GuardedWriter,
    end: AgentEnd,
    clock: Clock,
}

impl Agent {
    pub(crate) async fn say(&mut self, message: &FromAgent) {
        let frame = self.end.encode(self.clock.now().mono, message).unwrap();
        self.writer.write(frame).await.unwrap();
    }

    /// Returns the next message; `None` when the session was closed.
    pub(crate) async fn next(&mut self) -> Option<ToAgent> {
        loop {
            match self.end.next_message() {
                Some(ToAgent::Heartbeat {}) => continue,
                Some(message) => return Some(message),
                None => {}
            }
            match tokio::time::timeout(DEADLINE, self.reader.next()).await.unwrap() {
                Incoming::Data(bytes) => {
                    self.end.receive(self.clock.now().mono, &bytes).unwrap();
                }
                Incoming::Eof | Incoming::Lost => return None,
                Incoming::Stderr(_) | Incoming::Exited(_) => {}
            }
        }
    }

    pub(crate) async fn welcomed(&mut self) {
        assert!(matches!(self.next().await, Some(ToAgent::Welcome(_))));
    }

    pub(crate) async fn allocation(&mut self) -> Allocation {
        match self.next().await {
            Some(ToAgent::Allocate(allocation)) => allocation,
            other => panic!("{other:?}"),
        }
    }

    /// Says that it has built, as far as the coordinator can tell.
    pub(crate) async fn claim_built(&mut self, attempt: AttemptId) {
        self.say(&FromAgent::Started { attempt }).await;
        let outcome = Outcome::Built;
        self.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    }

    /// Takes the next build, and says that it has built it.
    pub(crate) async fn build(&mut self) -> AttemptId {
        let attempt = self.allocation().await.attempt;
        self.claim_built(attempt).await;
        attempt
    }

    /// Sends a piece of log, and returns how long the log is then.
    pub(crate) async fn log(&mut self, attempt: AttemptId, offset: u64, bytes: Bytes) -> u64 {
        self.say(&FromAgent::Log { attempt, offset, bytes }).await;
        match self.next().await {
            Some(ToAgent::LogReceived { attempt: about, offset }) if about == attempt => offset,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn bulk(&self) -> Bulk {
        let (reader, writer) = self.connection.subsystem(BULK_SUBSYSTEM).await.unwrap();
        Bulk { reader, writer, decoder: Decoder::default() }
    }
}

/// An offer without files in it, of an agent that knows no signs of life.
pub(crate) fn offer(attempt: AttemptId, outputs: Vec<OfferedOutput>) -> BulkFromAgent {
    BulkFromAgent::Offer { attempt, outputs, eager: vec![], signs: false }
}

/// The answer to such an offer of one output.
pub(crate) fn plan(output: OutputPlan) -> BulkToAgent {
    BulkToAgent::Plan { outputs: vec![output], signs: false }
}

/// The answer to outputs that were taken.
pub(crate) fn committed(attempt: AttemptId) -> BulkToAgent {
    BulkToAgent::Committed { attempt, ahead: OFFERS_AHEAD_MAX }
}

/// A bulk channel.
pub(crate) struct Bulk {
    reader: ChannelReader,
    pub(crate) writer: GuardedWriter,
    decoder: Decoder,
}

impl Bulk {
    pub(crate) async fn say(&self, message: &BulkFromAgent) {
        self.writer.write(frame::encode(message).unwrap()).await.unwrap();
    }

    /// Returns the next message; `None` when the channel was closed.
    pub(crate) async fn next(&mut self) -> Option<BulkToAgent> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            match tokio::time::timeout(DEADLINE, self.reader.next()).await.unwrap() {
                Incoming::Data(bytes) => self.decoder.feed(&bytes),
                Incoming::Eof | Incoming::Lost => return None,
                Incoming::Stderr(_) | Incoming::Exited(_) => {}
            }
        }
    }

    /// Offers; the answer may have to wait for the report on the other channel.
    pub(crate) async fn offer(
        &mut self,
        attempt: AttemptId,
        outputs: &[OfferedOutput],
    ) -> BulkToAgent {
        self.say(&offer(attempt, outputs.to_vec())).await;
        self.next().await.unwrap()
    }

    /// Sends the bytes of one output, and returns the answer.
    pub(crate) async fn send(&mut self, file: &Bytes, file_hash: Sha256) -> Option<BulkToAgent> {
        const PIECE: usize = 100_000;
        for start in (0..file.len()).step_by(PIECE) {
            let bytes = file.slice(start..file.len().min(start + PIECE));
            self.say(&BulkFromAgent::Data { bytes }).await;
        }
        self.say(&BulkFromAgent::End { file_hash }).await;
        self.next().await
    }
}

/// Returns the offer of a nar as the output `out`, and its compressed file.
pub(crate) fn output(path: &StorePath, nar: &[u8]) -> (OfferedOutput, Bytes) {
    let file = zstd::bulk::compress(nar, 3).unwrap();
    let offered = OfferedOutput {
        name: "out".to_owned(),
        info: PathInfo {
            path: path.clone(),
            nar_hash: Sha256::of(nar),
            nar_bytes: nar.len() as u64,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        },
        compression: "zstd".to_owned(),
        file_bytes: file.len() as u64,
        file_hash: Sha256::of(&file),
    };
    (offered, file.into())
}

pub(crate) fn refusal(answer: Option<BulkToAgent>) -> (RefusalCode, String) {
    match answer {
        Some(BulkToAgent::Refused { code, reason }) => (code, reason),
        other => panic!("not refused: {other:?}"),
    }
}
