//! The agent against a coordinator of few words: real SSH on loopback, real attempt processes,
//! the embedded builder.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/until.rs"]
mod until;

use bytes::Bytes;
use std::{
    collections::BTreeMap, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration,
};
use steading::{
    agent::{
        self, AgentConfig, AgentError,
        upkeep::{Collection, Upkeep, gates::Limits},
    },
    builders::{BuilderKind, Substituters, direct::Place},
    core::{
        hash::Sha256,
        id::{AttemptId, BuildId},
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    formats::nar::{NarWriter, Regular},
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, OfferedOutput, OutputPlan, RefusalCode, STALL_MAX},
        frame::{self, Decoder},
        handshake::{HeldPhase, Hello},
        message::{Allocation, FromAgent, ToAgent, Welcome},
    },
    ssh::{
        ChannelReader, Door, DoorConfig, DoorLimits, GuardedWriter, Incoming, RequestKind,
        host_key, open,
    },
    telemetry::Clock,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use until::{WAIT_MAX as LIMIT, until};

/// A coordinator's door, and what one agent needs.
struct World {
    dir: tempfile::TempDir,
    store_dir: StoreDir,
    host_key: String,
    address: String,
    control: mpsc::Receiver<Channel>,
    bulk: mpsc::Receiver<Channel>,
    cancel: CancellationToken,
}

/// The coordinator's end of a channel.
struct Channel {
    reader: ChannelReader,
    writer: GuardedWriter,
    decoder: Decoder,
}

impl Channel {
    async fn send<T: serde::Serialize>(&self, message: &T) {
        self.writer.write(frame::encode(message).unwrap()).await.unwrap();
    }

    async fn receive<T: serde::de::DeserializeOwned>(&mut self) -> T {
        let next = async {
            loop {
                if let Some(message) = self.decoder.next_message().unwrap() {
                    return message;
                }
                match self.reader.next().await {
                    Incoming::Data(bytes) => self.decoder.feed(&bytes),
                    other => panic!("{other:?} instead of a message"),
                }
            }
        };
        timeout(LIMIT, next).await.unwrap()
    }

    /// Returns the next message that is not a sign of life.
    async fn told(&mut self) -> FromAgent {
        loop {
            match self.receive().await {
                FromAgent::Heartbeat {} => {}
                message => return message,
            }
        }
    }

    /// Returns the log, how the attempt ended, and whether it said that it had started.
    async fn told_to_the_end(&mut self) -> (Vec<u8>, Outcome, Vec<AttemptId>) {
        let (mut log, mut started) = (Vec::new(), Vec::new());
        loop {
            match self.told().await {
                FromAgent::Started { attempt } => started.push(attempt),
                FromAgent::Log { attempt, offset, bytes } => {
                    if !bytes.is_empty() {
                        assert_eq!(offset, log.len() as u64);
                    }
                    log.extend_from_slice(&bytes);
                    let offset = log.len() as u64;
                    self.send(&ToAgent::LogReceived { attempt, offset }).await;
                }
                FromAgent::Finished { outcome, log_bytes, .. } => {
                    assert_eq!(log_bytes, log.len() as u64);
                    return (log, outcome, started);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn welcome(&mut self, keep: Vec<AttemptId>, drop: Vec<AttemptId>) -> Hello {
        self.welcome_asking(keep, drop, vec![]).await
    }

    /// Welcomes an agent and asks it what some of its attempts made.
    async fn welcome_asking(
        &mut self,
        keep: Vec<AttemptId>,
        drop: Vec<AttemptId>,
        report: Vec<AttemptId>,
    ) -> Hello {
        let FromAgent::Hello(hello) = self.receive().await else { panic!("no hello") };
        let (protocol, version) = (2, "0".to_owned());
        let wall_ms = hello.wall_ms;
        let welcome = Welcome { protocol, version, wall_ms, keep, drop, report };
        self.send(&ToAgent::Welcome(welcome)).await;
        hello
    }
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys/agents");
        fs_err::create_dir_all(&folder).unwrap();
        let identity = host_key::load_or_create(&dir.path().join("state/identity")).unwrap();
        fs_err::write(folder.join("one.pub"), identity.public_line()).unwrap();
        let config = DoorConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            host_key: dir.path().join("host_key"),
            keydir: dir.path().join("keys"),
            limits: DoorLimits::default(),
        };
        let cancel = CancellationToken::new();
        let door = open(config, Clock::start(), cancel.clone()).await.unwrap();
        let store_dir = dir.path().join("store").to_str().unwrap().parse().unwrap();
        let (controls, control) = mpsc::channel(4);
        let (bulks, bulk) = mpsc::channel(4);
        let (host_key, address) = (door.host_public_key.clone(), door.address.to_string());
        drop(tokio::spawn(sort(door, controls, bulks)));
        Self { dir, store_dir, host_key, address, control, bulk, cancel }
    }

    fn config(&self) -> AgentConfig {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_steading"));
        AgentConfig {
            state_dir: self.dir.path().join("state"),
            coordinator: self.address.clone(),
            host_keys: vec![self.host_key.clone()],
            token: None,
            name: None,
            identity: self.dir.path().join("state/identity"),
            program: program.clone(),
            builder: BuilderKind::Direct(Place {
                shared: vec![self.dir.path().to_owned()],
                store_dir: self.store_dir.clone(),
                physical_dir: self.dir.path().join("store"),
                state_dir: self.dir.path().join("builder"),
                program,
            }),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: vec![],
            features: vec![],
            slots: 1,
            uploads: 1,
            upload_rate: None,
            cores: 1,
            tags: BTreeMap::new(),
            substituters: Substituters::default(),
            upkeep: Upkeep::default().fixed(),
        }
    }

    fn agent(&self) -> Agent {
        Self::agent_with(self.config())
    }

    fn agent_with(config: AgentConfig) -> Agent {
        let cancel = CancellationToken::new();
        let run = agent::run(config, Clock::start(), cancel.clone());
        Agent { running: tokio::spawn(run), cancel }
    }

    fn path(&self, base: &str) -> StorePath {
        format!("{}/{base}", self.store_dir).parse().unwrap()
    }

    fn output(&self) -> StorePath {
        self.path("1c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello")
    }

    /// Returns a derivation whose builder is a shell with this script.
    fn derivation(&self, script: &str) -> String {
        let (out, path) = (self.output(), std::env::var("PATH").unwrap());
        format!(
            "Derive([(\"out\",\"{out}\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",\
             [\"-c\",\"{script}\"],[(\"PATH\",\"{path}\"),(\"out\",\"{out}\")])"
        )
    }

    fn allocation(&self, number: u8) -> Allocation {
        Allocation {
            attempt: AttemptId::from_bytes([number; 16]),
            build: BuildId::from_bytes([number; 16]),
            derivation: self.path("2c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello.drv"),
            timeout_ms: None,
            max_silent_ms: None,
        }
    }

    fn spool(&self, attempt: AttemptId) -> PathBuf {
        self.dir.path().join("state/attempts").join(attempt.to_string())
    }

    async fn until_gone(&self, attempt: AttemptId) {
        until("the attempt is forgotten", async || !self.spool(attempt).exists()).await;
    }

    async fn control(&mut self) -> Channel {
        timeout(LIMIT, self.control.recv()).await.unwrap().unwrap()
    }

    async fn bulk(&mut self) -> Channel {
        timeout(LIMIT, self.bulk.recv()).await.unwrap().unwrap()
    }

    /// Answers one `prepare`.
    async fn prepare(&mut self, script: &str, held: Vec<PathInfo>) -> Channel {
        let mut bulk = self.bulk().await;
        assert!(matches!(bulk.receive().await, BulkFromAgent::Prepare { .. }));
        for piece in self.derivation(script).as_bytes().chunks(100) {
            bulk.send(&BulkToAgent::Derivation { bytes: Bytes::copy_from_slice(piece) }).await;
        }
        bulk.send(&BulkToAgent::Inputs { held, not_held: vec![] }).await;
        bulk.send(&BulkToAgent::End {}).await;
        bulk
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A running agent.
struct Agent {
    running: JoinHandle<Result<(), AgentError>>,
    cancel: CancellationToken,
}

impl Agent {
    async fn stop(self) {
        self.cancel.cancel();
        timeout(LIMIT, self.running).await.unwrap().unwrap().unwrap();
    }
}

/// Sorts the channels that an agent opens.
async fn sort(mut door: Door, control: mpsc::Sender<Channel>, bulk: mpsc::Sender<Channel>) {
    while let Some(request) = door.requests.recv().await {
        let kind = request.kind.clone();
        let channel =
            Channel { reader: request.input, writer: request.output, decoder: Decoder::default() };
        let sent = match kind {
            RequestKind::Subsystem(name) if name == "steading-control" => {
                control.send(channel).await
            }
            RequestKind::Subsystem(name) if name == "steading-bulk" => bulk.send(channel).await,
            other => panic!("{other:?}"),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Returns the nar of a file.
fn nar(content: &[u8]) -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new());
    nar.begin().unwrap();
    nar.regular(Regular { executable: false, size: content.len() as u64 }).unwrap();
    nar.content(content).unwrap();
    nar.finish().unwrap()
}

fn info(path: StorePath, nar: &[u8]) -> PathInfo {
    PathInfo {
        path,
        nar_hash: Sha256::of(nar),
        nar_bytes: nar.len() as u64,
        references: vec![],
        deriver: None,
        signatures: vec![],
        content_address: None,
    }
}

/// Receives an offer of one output.
async fn offer(bulk: &mut Channel) -> OfferedOutput {
    let BulkFromAgent::Offer { mut outputs, .. } = bulk.receive().await else { panic!("no offer") };
    assert_eq!(outputs.len(), 1);
    outputs.remove(0)
}

/// Receives the bytes of a file up to its end.
async fn file(bulk: &mut Channel) -> Vec<u8> {
    let mut file = Vec::new();
    loop {
        match bulk.receive().await {
            BulkFromAgent::Data { bytes } => file.extend_from_slice(&bytes),
            BulkFromAgent::End { .. } => return file,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_build_gets_its_inputs_and_delivers_its_output() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    let hello = control.welcome(vec![], vec![]).await;
    assert_eq!(hello.capabilities.dialect, "direct");
    assert_eq!(hello.held, vec![]);
    let allocation = world.allocation(1);
    let attempt = allocation.attempt;
    control.send(&ToAgent::Allocate(allocation.clone())).await;
    // Giving it twice changes nothing.
    control.send(&ToAgent::Allocate(allocation)).await;

    let input_nar = nar(b"from the coordinator");
    let input = info(world.path("0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-input"), &input_nar);
    let script = format!("echo begun; cat {} > $out", input.path);
    let mut bulk = world.prepare(&script, vec![input.clone()]).await;
    let fetch = BulkFromAgent::Fetch {
        path: input.path.clone(),
        offset: 0,
        file_hash: None,
        export: false,
    };
    assert_eq!(bulk.receive::<BulkFromAgent>().await, fetch);
    let compressed = zstd::encode_all(&input_nar[..], 3).unwrap();
    let file_bytes = compressed.len() as u64;
    let (compression, file_hash) = ("zstd".to_owned(), None);
    // Something may take long on the other side.
    bulk.send(&BulkToAgent::Wait {}).await;
    bulk.send(&BulkToAgent::Nar { info: input, compression, file_bytes, file_hash }).await;
    for piece in compressed.chunks(7) {
        bulk.send(&BulkToAgent::Data { bytes: Bytes::copy_from_slice(piece) }).await;
    }
    bulk.send(&BulkToAgent::End {}).await;

    let (log, outcome, started) = control.told_to_the_end().await;
    assert_eq!((outcome, started), (Outcome::Built, vec![attempt]));
    assert!(log.windows(5).any(|word| word == b"begun"), "{}", log.escape_ascii());

    let offered = offer(&mut bulk).await;
    assert_eq!((offered.name.as_str(), &offered.info.path), ("out", &world.output()));
    bulk.send(&BulkToAgent::Plan { outputs: vec![OutputPlan::Send { offset: 0 }], signs: false })
        .await;
    let sent = file(&mut bulk).await;
    assert_eq!(sent.len() as u64, offered.file_bytes);
    assert_eq!(Sha256::of(&sent), offered.file_hash);
    let output_nar = zstd::decode_all(&sent[..]).unwrap();
    assert_eq!(output_nar, nar(b"from the coordinator"));
    assert_eq!(Sha256::of(&output_nar), offered.info.nar_hash);
    // The coordinator may ask to come again, and then have a part already.
    let refusal =
        BulkToAgent::Refused { code: RefusalCode::TryLater, reason: "disk full".to_owned() };
    bulk.send(&refusal).await;
    assert_eq!(offer(&mut bulk).await, offered);
    bulk.send(&BulkToAgent::Plan { outputs: vec![OutputPlan::Send { offset: 9 }], signs: false })
        .await;
    assert_eq!(file(&mut bulk).await, sent[9..]);
    assert!(world.spool(attempt).exists());
    bulk.send(&BulkToAgent::Committed { attempt, ahead: 0 }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}

/// Bytes that cannot be compressed.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    getrandom::fill(&mut noise).unwrap();
    noise
}

/// Runs one attempt without inputs to its end, and returns the channel on which its outputs will be
/// offered, if they come on the same.
async fn built(world: &mut World, control: &mut Channel, script: &str) -> (AttemptId, Channel) {
    control.welcome(vec![], vec![]).await;
    let allocation = world.allocation(1);
    let attempt = allocation.attempt;
    control.send(&ToAgent::Allocate(allocation)).await;
    let bulk = world.prepare(script, vec![]).await;
    let (log, outcome, _) = control.told_to_the_end().await;
    assert_eq!(outcome, Outcome::Built, "{}", log.escape_ascii());
    (attempt, bulk)
}

#[tokio::test]
async fn an_input_that_was_cut_goes_on_where_it_ended() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    control.welcome(vec![], vec![]).await;
    control.send(&ToAgent::Allocate(world.allocation(1))).await;
    let input_nar = nar(&noise(1_000_000));
    let input = info(world.path("0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-input"), &input_nar);
    let compressed = zstd::encode_all(&input_nar[..], 3).unwrap();
    let file_hash = Some(Sha256::of(&compressed));
    let announced = BulkToAgent::Nar {
        info: input.clone(),
        compression: "zstd".to_owned(),
        file_bytes: compressed.len() as u64,
        file_hash,
    };
    let script = format!("cat {} > $out", input.path);
    let fetch = |offset: u64, file_hash| BulkFromAgent::Fetch {
        path: input.path.clone(),
        offset,
        file_hash,
        export: false,
    };
    let half = compressed.len() / 2;
    let mut bulk = world.prepare(&script, vec![input.clone()]).await;
    assert_eq!(bulk.receive::<BulkFromAgent>().await, fetch(0, None));
    bulk.send(&announced).await;
    for piece in compressed[..half].chunks(100_000) {
        bulk.send(&BulkToAgent::Data { bytes: Bytes::copy_from_slice(piece) }).await;
    }
    // The channel ends without an end.
    drop(bulk);
    let mut bulk = world.prepare(&script, vec![input.clone()]).await;
    assert_eq!(bulk.receive::<BulkFromAgent>().await, fetch(half as u64, file_hash));
    bulk.send(&announced).await;
    for piece in compressed[half..].chunks(100_000) {
        bulk.send(&BulkToAgent::Data { bytes: Bytes::copy_from_slice(piece) }).await;
    }
    bulk.send(&BulkToAgent::End {}).await;
    let (log, outcome, _) = control.told_to_the_end().await;
    assert_eq!(outcome, Outcome::Built, "{}", log.escape_ascii());
    let offered = offer(&mut bulk).await;
    assert_eq!(offered.info.nar_hash, Sha256::of(&input_nar));
    assert_eq!(fs_err::read_dir(world.dir.path().join("state/inputs")).unwrap().count(), 0);
    agent.stop().await;
}

#[tokio::test]
async fn a_small_output_costs_one_round_trip() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    let (attempt, mut bulk) = built(&mut world, &mut control, "echo small > $out").await;
    let BulkFromAgent::Offer { attempt: offered, outputs, eager, signs } = bulk.receive().await
    else {
        panic!("no offer")
    };
    assert_eq!((offered, outputs.len(), signs), (attempt, 1, true));
    assert_eq!(Sha256::of(&eager[0]), outputs[0].file_hash);
    assert_eq!(zstd::decode_all(&eager[0][..]).unwrap(), nar(b"small\n"));
    // Waiting for its turn ends nothing, and being asked to come again does not either.
    bulk.send(&BulkToAgent::Wait {}).await;
    let (code, reason) = (RefusalCode::TryLater, "disk full".to_owned());
    bulk.send(&BulkToAgent::Refused { code, reason }).await;
    assert!(matches!(bulk.receive().await, BulkFromAgent::Offer { eager, .. } if eager.len() == 1));
    bulk.send(&BulkToAgent::Committed { attempt, ahead: 64 }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_stands_still_is_left_and_offered_to_again() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    let script = "head -c 1000000 /dev/urandom > $out";
    let (attempt, mut bulk) = built(&mut world, &mut control, script).await;
    let offered = offer(&mut bulk).await;
    let send = vec![OutputPlan::Send { offset: 0 }];
    bulk.send(&BulkToAgent::Plan { outputs: send.clone(), signs: true }).await;
    // It is alive, but takes next to nothing; what is sent meanwhile lies in buffers.
    for _ in 0..2 {
        assert!(matches!(bulk.receive().await, BulkFromAgent::Data { .. }));
    }
    // Signs that tell of no progress do not count, however many there are.
    let mut again = tokio::select! {
        again = world.bulk() => again,
        () = standing_still(&bulk) => unreachable!("it never returns"),
    };
    assert_eq!(offer(&mut again).await, offered);
    let clock = Clock::start();
    again.send(&BulkToAgent::Plan { outputs: send.clone(), signs: true }).await;
    assert_eq!(file(&mut again).await.len() as u64, offered.file_bytes);
    // Now it does not even give signs of life.
    let mut third = world.bulk().await;
    let patience = u128::from(clock.now().mono.as_ms());
    assert!(patience >= STALL_MAX.as_millis(), "only {patience} ms");
    assert_eq!(offer(&mut third).await, offered);
    third.send(&BulkToAgent::Committed { attempt, ahead: 0 }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}

/// Gives signs of life that tell of no progress. Never returns.
async fn standing_still(bulk: &Channel) {
    loop {
        let sign = frame::encode(&BulkToAgent::Taken { bytes: 7 }).unwrap();
        if bulk.writer.write(sign).await.is_err() {
            // The agent has left.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn outputs_are_sent_no_faster_than_allowed() {
    let mut world = World::new().await;
    let agent = World::agent_with(AgentConfig { upload_rate: Some(400_000), ..world.config() });
    let mut control = world.control().await;
    let script = "head -c 1000000 /dev/urandom > $out";
    let (attempt, mut bulk) = built(&mut world, &mut control, script).await;
    let offered = offer(&mut bulk).await;
    let clock = Clock::start();
    let outputs = vec![OutputPlan::Send { offset: 0 }];
    bulk.send(&BulkToAgent::Plan { outputs, signs: true }).await;
    assert_eq!(Sha256::of(&file(&mut bulk).await), offered.file_hash);
    // 2.5 s at the rate, of which a quarter may come at once.
    assert!(clock.now().mono.as_ms() > 2_000, "{} ms", clock.now().mono.as_ms());
    bulk.send(&BulkToAgent::Committed { attempt, ahead: 0 }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_build_survives_the_agent_and_is_reported_by_the_next() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    let instance = control.welcome(vec![], vec![]).await.instance;
    let allocation = world.allocation(1);
    let attempt = allocation.attempt;
    control.send(&ToAgent::Allocate(allocation)).await;
    let fifo = world.dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let script = format!("echo one; cat {}; exit 3", fifo.display());
    drop(world.prepare(&script, vec![]).await);
    assert_eq!(control.told().await, FromAgent::Started { attempt });
    agent.stop().await;
    assert!(matches!(
        control.reader.next().await,
        Incoming::Eof | Incoming::Lost | Incoming::Data(_)
    ));

    let agent = world.agent();
    let mut control = world.control().await;
    let hello = control.welcome(vec![attempt], vec![]).await;
    assert_eq!(hello.instance, instance);
    assert_eq!(hello.held.len(), 1);
    assert_eq!(hello.held[0].phase, HeldPhase::Building);
    let writing = tokio::task::spawn_blocking(move || fs_err::write(fifo, "two\n").unwrap());
    let (log, outcome, started) = control.told_to_the_end().await;
    writing.await.unwrap();
    assert_eq!(outcome, Outcome::Failed(BuildFailure::Exit(3)));
    assert_eq!(started, [attempt]);
    assert!(log.ends_with(b"one\ntwo\n"), "{}", log.escape_ascii());
    control.send(&ToAgent::Settled { attempt }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_canceled_build_is_killed_and_forgotten() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    control.welcome(vec![], vec![]).await;
    let allocation = world.allocation(1);
    let attempt = allocation.attempt;
    control.send(&ToAgent::Allocate(allocation)).await;
    // The slot is taken, so this one waits; canceled, it never begins.
    let waiting = world.allocation(2);
    control.send(&ToAgent::Allocate(waiting.clone())).await;
    drop(world.prepare("sleep 10000", vec![]).await);
    assert_eq!(control.told().await, FromAgent::Started { attempt });
    until("the other one waits", async || world.spool(waiting.attempt).exists()).await;
    control.send(&ToAgent::Cancel { attempt: waiting.attempt }).await;
    world.until_gone(waiting.attempt).await;
    control.send(&ToAgent::Cancel { attempt }).await;
    world.until_gone(attempt).await;
    // The slot is free again, and nothing was said of the canceled ones.
    let third = world.allocation(3);
    control.send(&ToAgent::Allocate(third.clone())).await;
    drop(world.prepare("exit 1", vec![]).await);
    assert_eq!(control.told().await, FromAgent::Started { attempt: third.attempt });
    agent.stop().await;
}

#[tokio::test]
async fn missing_inputs_are_a_setup_failure() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    control.welcome(vec![], vec![]).await;
    control.send(&ToAgent::Allocate(world.allocation(1))).await;
    let missing = world.path("0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-input");
    let mut bulk = world.bulk().await;
    assert!(matches!(bulk.receive().await, BulkFromAgent::Prepare { .. }));
    let derivation = Bytes::from(world.derivation("true"));
    bulk.send(&BulkToAgent::Derivation { bytes: derivation }).await;
    bulk.send(&BulkToAgent::Inputs { held: vec![], not_held: vec![missing.clone()] }).await;
    bulk.send(&BulkToAgent::End {}).await;
    let (log, outcome, started) = control.told_to_the_end().await;
    assert_eq!(outcome, Outcome::SetupFailed(SetupFailure::MissingInputs(vec![missing])));
    assert_eq!((log, started), (vec![], vec![]));
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_session_is_taken_up_again_and_dropped_attempts_are_forgotten() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    control.welcome(vec![], vec![]).await;
    let allocation = world.allocation(1);
    let attempt = allocation.attempt;
    control.send(&ToAgent::Allocate(allocation)).await;
    let bulk = world.prepare("exit 1", vec![]).await;
    let failed = Outcome::Failed(BuildFailure::Exit(1));
    assert_eq!(control.told_to_the_end().await.1, failed);
    drop((control, bulk));

    let mut control = world.control().await;
    let hello = control.welcome(vec![attempt], vec![]).await;
    let phases: BTreeMap<_, _> =
        hello.held.into_iter().map(|held| (held.attempt, held.phase)).collect();
    assert_eq!(phases, BTreeMap::from([(attempt, HeldPhase::Finished(failed.clone()))]));
    // Everything is told again.
    let (_, outcome, started) = control.told_to_the_end().await;
    assert_eq!((outcome, started), (failed, vec![attempt]));
    drop(control);

    let mut control = world.control().await;
    assert_eq!(control.welcome(vec![], vec![attempt]).await.held.len(), 1);
    world.until_gone(attempt).await;
    drop(control);
    let mut control = world.control().await;
    assert_eq!(control.welcome(vec![], vec![]).await.held, []);
    agent.stop().await;
}

#[tokio::test]
async fn a_process_without_a_result_is_a_setup_failure_in_its_own_words() {
    let mut world = World::new().await;
    let program = world.dir.path().join("broken");
    fs_err::write(&program, "#!/bin/sh\necho it is broken >&2\nexit 1\n").unwrap();
    fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let agent = World::agent_with(AgentConfig { program, ..world.config() });
    let mut control = world.control().await;
    control.welcome(vec![], vec![]).await;
    control.send(&ToAgent::Allocate(world.allocation(1))).await;
    drop(world.prepare("true", vec![]).await);
    let (_, outcome, started) = control.told_to_the_end().await;
    let Outcome::SetupFailed(SetupFailure::AttemptLost(words)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(words.ends_with("it is broken"), "{words}");
    assert_eq!(started, []);
    agent.stop().await;
}

#[tokio::test]
async fn a_machine_without_room_wants_no_builds_until_its_limits_change() {
    let mut world = World::new().await;
    let limits = Limits { free_bytes: Some(u64::MAX / 2), ..Limits::default() };
    let collection = Collection::Never;
    let (upkeep, changes) = watch::channel(Upkeep { limits, collection });
    let config = AgentConfig { slots: 3, upkeep: changes, ..world.config() };
    let agent = World::agent_with(config);
    let mut control = world.control().await;
    let wanted = control.welcome(vec![], vec![]).await.capacity.unwrap();
    assert_eq!(wanted.slots, 0);
    let reason = wanted.reason.unwrap();
    assert!(reason.contains("the free space of the store"), "{reason}");

    let gentle_start = Duration::from_hours(1);
    upkeep
        .send_replace(Upkeep { limits: Limits { gentle_start, ..Limits::default() }, collection });
    let FromAgent::Capacity { slots: 1, reason: Some(reason) } = control.told().await else {
        panic!("not one build is wanted")
    };
    assert_eq!(reason, "builds begin one by one: 1 of 3 slots");
    // The next session begins with what is wanted then.
    drop(control);
    let mut control = world.control().await;
    let wanted = control.welcome(vec![], vec![]).await.capacity.unwrap();
    assert_eq!((wanted.slots, wanted.reason), (1, Some(reason)));
    upkeep.send_replace(Upkeep::default());
    let whole = FromAgent::Capacity { slots: 3, reason: None };
    assert_eq!(control.told().await, whole);
    agent.stop().await;
}

#[tokio::test]
async fn too_little_room_in_the_store_makes_the_agent_collect_what_nothing_needs() {
    let mut world = World::new().await;
    let mut builder = steading::builders::open(world.config().builder).unwrap();
    let nar = nar(b"of no use any more");
    let unused = info(world.path("0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-unused"), &nar);
    builder.import(&unused, &mut nar.as_slice()).unwrap();
    drop(builder);
    let limits = Limits { free_bytes: Some(u64::MAX / 2), ..Limits::default() };
    let upkeep = Upkeep { limits, collection: Collection::Auto }.fixed();
    let agent = World::agent_with(AgentConfig { upkeep, ..world.config() });
    let mut control = world.control().await;
    assert_eq!(control.welcome(vec![], vec![]).await.capacity.unwrap().slots, 0);
    let files = PathBuf::from(unused.path.to_string());
    until("it is collected", async || !files.exists()).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_refusal_from_before_an_attempt_was_taken_back_is_not_believed() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    let (attempt, mut bulk) = built(&mut world, &mut control, "echo made > $out").await;
    let offered = offer(&mut bulk).await;
    drop(control);

    // The offer was answered while the attempt was given up; then its agent came with it.
    let mut control = world.control().await;
    assert_eq!(control.welcome(vec![attempt], vec![]).await.held.len(), 1);
    assert_eq!(control.told_to_the_end().await.1, Outcome::Built);
    let stale = || (RefusalCode::Stale, "not yours any more".to_owned());
    let (code, reason) = stale();
    bulk.send(&BulkToAgent::Refused { code, reason }).await;
    assert_eq!(offer(&mut bulk).await, offered);
    // In the same session it is.
    let (code, reason) = stale();
    bulk.send(&BulkToAgent::Refused { code, reason }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}

#[tokio::test]
async fn of_an_attempt_that_was_given_up_only_hashes_are_told() {
    let mut world = World::new().await;
    let agent = world.agent();
    let mut control = world.control().await;
    control.welcome(vec![], vec![]).await;
    let allocation = world.allocation(1);
    let attempt = allocation.attempt;
    control.send(&ToAgent::Allocate(allocation)).await;
    let mut bulk = world.prepare("echo made > $out", vec![]).await;
    assert_eq!(control.told_to_the_end().await.1, Outcome::Built);
    let offered = offer(&mut bulk).await;
    drop((control, bulk));

    // The first report is lost with its connection, so the attempt stays.
    for _ in 0..2 {
        let mut control = world.control().await;
        let hello = control.welcome_asking(vec![], vec![], vec![attempt]).await;
        assert_eq!(hello.held[0].phase, HeldPhase::Finished(Outcome::Built));
        let FromAgent::Report { attempt: reported, outputs } = control.told().await else {
            panic!("no report")
        };
        assert_eq!((reported, outputs.len()), (attempt, 1));
        assert_eq!(outputs[0].path, offered.info.path);
        assert_eq!(outputs[0].nar_hash, offered.info.nar_hash);
        assert_eq!(outputs[0].nar_bytes, offered.info.nar_bytes);
        assert!(world.spool(attempt).exists());
        drop(control);
    }
    let mut control = world.control().await;
    control.welcome_asking(vec![], vec![], vec![attempt]).await;
    assert!(matches!(control.told().await, FromAgent::Report { .. }));
    control.send(&ToAgent::Settled { attempt }).await;
    world.until_gone(attempt).await;
    agent.stop().await;
}
