//! Agents that break the protocol or lie about their outputs, over real SSH connections.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

use bytes::Bytes;
use std::{collections::BTreeMap, path::Path, time::Duration};
use steading::{
    commands,
    config::Config,
    coordinator::{Coordinator, engine_thread::SubmitRequest, start, submission},
    core::{
        build::ShownState,
        change::Limits,
        engine::{Ask, Inputs, Told},
        hash::Sha256,
        id::{AttemptId, InstanceId},
        outcome::{AttemptEnd, Outcome},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    demo::graph::Graph,
    formats::nar::{NarWriter, Regular},
    protocol::{
        BULK_SUBSYSTEM, CONTROL_SUBSYSTEM,
        bulk::{
            BulkFromAgent, BulkToAgent, OFFERS_AHEAD_MAX, OfferedOutput, OutputPlan, RefusalCode,
        },
        frame::{self, Decoder, FRAME_BYTES_MAX},
        handshake::{Capabilities, Hello, PROTOCOL_MAX},
        message::{Allocation, FromAgent, ToAgent},
        session::AgentEnd,
    },
    ssh::{self, ChannelReader, ClientConfig, Connection, GuardedWriter, Incoming, host_key},
    telemetry::Clock,
};
use tokio_util::sync::CancellationToken;

/// How long anything may take: generous, because it only costs time when a test fails.
const DEADLINE: Duration = Duration::from_mins(1);

/// A coordinator in this process, with one derivation to build.
struct World {
    dir: tempfile::TempDir,
    coordinator: Coordinator,
    address: String,
    host_key: String,
    clock: Clock,
    stop: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        for name in ["amber", "birch"] {
            let key = host_key::load_or_create(&dir.path().join("identities").join(name)).unwrap();
            let folder = state.join("keys/agents");
            fs_err::create_dir_all(&folder).unwrap();
            fs_err::write(folder.join(format!("{name}.pub")), key.public_line()).unwrap();
        }
        let (clock, stop) = (Clock::start(), CancellationToken::new());
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = Config::default();
        let started = start::start(&state, &config, listen, clock, stop.clone()).await.unwrap();
        let coordinator = started.coordinator.clone();
        let (address, host_key) = (started.address.to_string(), started.host_public_key.clone());
        tokio::spawn(started.serve(stop.clone(), commands::run));
        Self { dir, coordinator, address, host_key, clock, stop }
    }

    /// Submits one derivation with one output and returns it.
    async fn submit(&self) -> (StorePath, StorePath) {
        let graph =
            Graph::write(StoreDir::nix(), "x86_64-linux".to_owned(), "0".to_owned()).unwrap();
        let (pieces, done) = submission::receive(&self.coordinator, submission::Trust::None);
        let stream = Bytes::from(graph.export().unwrap());
        pieces.send(submission::Piece::Bytes(stream)).await.unwrap();
        pieces.send(submission::Piece::End).await.unwrap();
        done.await.unwrap().unwrap();
        let member = &graph.members()[0];
        let request = SubmitRequest {
            submitter: "tester".parse().unwrap(),
            roots: vec![member.path.clone()],
            inputs: Inputs::Leave,
            priority: 0,
            limits: Limits::default(),
            tags: Vec::new(),
            key: None,
        };
        self.coordinator.engine.submit(request).await.unwrap();
        (member.path.clone(), member.derivation.outputs[0].path.clone())
    }

    async fn connect(&self, name: &str) -> Connection {
        let identity = host_key::load(&self.dir.path().join("identities").join(name)).unwrap();
        let config = ClientConfig {
            address: self.address.clone(),
            host_keys: vec![self.host_key.clone()],
            identity,
            user: name.to_owned(),
        };
        ssh::connect(&config, &CancellationToken::new()).await.unwrap()
    }

    async fn agent(&self, name: &str) -> Agent {
        let connection = self.connect(name).await;
        let (reader, writer) = connection.subsystem(CONTROL_SUBSYSTEM).await.unwrap();
        let end = AgentEnd::new(self.clock.now().mono);
        let mut agent = Agent { connection, reader, writer, end, clock: self.clock };
        agent.say(&FromAgent::Hello(hello())).await;
        agent
    }

    /// Returns how the last attempt at the only build ended.
    async fn last_end(&self) -> Option<AttemptEnd> {
        let read = |reader: &steading::store::Reader| {
            let filter = steading::store::BuildFilter { limit: 10, ..Default::default() };
            let build = reader.builds(&filter)?.pop().unwrap();
            Ok::<_, steading::store::StoreError>(reader.attempts(build.id)?.pop())
        };
        self.coordinator.readers.read(read).await.unwrap().and_then(|attempt| attempt.end)
    }

    async fn states(&self) -> Vec<ShownState> {
        let read = |reader: &steading::store::Reader| {
            let filter = steading::store::BuildFilter { limit: 10, ..Default::default() };
            reader.builds(&filter)
        };
        let rows: Result<_, steading::store::StoreError> =
            self.coordinator.readers.read(read).await;
        let ids = rows.unwrap().into_iter().map(|row| row.id).collect();
        match self.coordinator.engine.ask(Ask::Shown(ids)).await.unwrap() {
            Told::Shown(shown) => shown.into_values().collect(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn hello() -> Hello {
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
struct Agent {
    connection: Connection,
    reader: ChannelReader,
    writer: GuardedWriter,
    end: AgentEnd,
    clock: Clock,
}

impl Agent {
    async fn say(&mut self, message: &FromAgent) {
        let frame = self.end.encode(self.clock.now().mono, message).unwrap();
        self.writer.write(frame).await.unwrap();
    }

    /// Returns the next message; `None` when the session was closed.
    async fn next(&mut self) -> Option<ToAgent> {
        loop {
            if let Some(message) = self.end.next_message() {
                return Some(message);
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

    async fn welcomed(&mut self) {
        assert!(matches!(self.next().await, Some(ToAgent::Welcome(_))));
    }

    async fn allocation(&mut self) -> Allocation {
        match self.next().await {
            Some(ToAgent::Allocate(allocation)) => allocation,
            other => panic!("{other:?}"),
        }
    }

    /// Builds, as far as the coordinator can tell.
    async fn build(&mut self) -> AttemptId {
        let attempt = self.allocation().await.attempt;
        self.say(&FromAgent::Started { attempt }).await;
        let outcome = Outcome::Built;
        self.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
        attempt
    }

    async fn bulk(&self) -> Bulk {
        let (reader, writer) = self.connection.subsystem(BULK_SUBSYSTEM).await.unwrap();
        Bulk { reader, writer, decoder: Decoder::default() }
    }
}

/// A bulk channel.
struct Bulk {
    reader: ChannelReader,
    writer: GuardedWriter,
    decoder: Decoder,
}

impl Bulk {
    async fn say(&self, message: &BulkFromAgent) {
        self.writer.write(frame::encode(message).unwrap()).await.unwrap();
    }

    async fn next(&mut self) -> Option<BulkToAgent> {
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
    async fn offer(&mut self, attempt: AttemptId, outputs: &[OfferedOutput]) -> BulkToAgent {
        self.say(&plain_offer(attempt, outputs.to_vec())).await;
        self.next().await.unwrap()
    }
}

/// An offer without files in it, of an agent that knows no signs of life.
fn plain_offer(attempt: AttemptId, outputs: Vec<OfferedOutput>) -> BulkFromAgent {
    BulkFromAgent::Offer { attempt, outputs, eager: vec![], signs: false }
}

/// Returns the compressed nar of a small file, and an offer of it as an output.
fn output(name: &str, path: &StorePath, content: &[u8]) -> (OfferedOutput, Bytes) {
    let mut nar = NarWriter::new(Vec::new());
    nar.begin().unwrap();
    nar.regular(Regular { executable: false, size: content.len() as u64 }).unwrap();
    nar.content(content).unwrap();
    let nar = nar.finish().unwrap();
    let file = zstd::bulk::compress(&nar, 3).unwrap();
    let offered = OfferedOutput {
        name: name.to_owned(),
        info: PathInfo {
            path: path.clone(),
            nar_hash: Sha256::of(&nar),
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

fn refusal(answer: Option<BulkToAgent>) -> (RefusalCode, String) {
    match answer {
        Some(BulkToAgent::Refused { code, reason }) => (code, reason),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_instead_of_messagepack_ends_the_session_and_nothing_else() {
    let world = World::new().await;
    world.submit().await;
    let mut honest = world.agent("birch").await;
    honest.welcomed().await;
    honest.allocation().await;
    let mut hostile = world.agent("amber").await;
    hostile.welcomed().await;
    let mut garbage = 5u32.to_be_bytes().to_vec();
    garbage.extend(b"\xc1GET /");
    hostile.writer.write(garbage.into()).await.unwrap();
    assert_eq!(hostile.next().await, None);
    honest.say(&FromAgent::Heartbeat {}).await;
    assert_eq!(world.states().await, [ShownState::Allocated]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_cap_ends_the_session_before_its_bytes_come() {
    let world = World::new().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let length = u32::try_from(FRAME_BYTES_MAX + 1).unwrap();
    agent.writer.write(Bytes::copy_from_slice(&length.to_be_bytes())).await.unwrap();
    assert_eq!(agent.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_common_protocol_is_told_what_to_upgrade() {
    let world = World::new().await;
    let connection = world.connect("amber").await;
    let (reader, writer) = connection.subsystem(CONTROL_SUBSYSTEM).await.unwrap();
    let end = AgentEnd::new(world.clock.now().mono);
    let mut agent = Agent { connection, reader, writer, end, clock: world.clock };
    let (protocol_min, protocol_max) = (PROTOCOL_MAX + 1, PROTOCOL_MAX + 1);
    agent.say(&FromAgent::Hello(Hello { protocol_min, protocol_max, ..hello() })).await;
    match agent.next().await {
        Some(ToAgent::Refused { reason }) => assert!(reason.contains("upgrade"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_that_are_right_are_committed_and_published() {
    let world = World::new().await;
    let (_, path) = world.submit().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    let (offered, file) = output("out", &path, b"content");
    let file_hash = offered.file_hash;
    let mut bulk = agent.bulk().await;
    let plan = BulkToAgent::Plan { outputs: vec![OutputPlan::Send { offset: 0 }], signs: false };
    assert_eq!(bulk.offer(attempt, &[offered]).await, plan);
    bulk.say(&BulkFromAgent::Data { bytes: file }).await;
    bulk.say(&BulkFromAgent::End { file_hash }).await;
    assert_eq!(
        bulk.next().await,
        Some(BulkToAgent::Committed { attempt, ahead: OFFERS_AHEAD_MAX })
    );
    assert_eq!(world.last_end().await, Some(AttemptEnd::Succeeded));
}

/// Builds the derivation again and delivers this content. Returns the attempt.
async fn build_again(
    world: &World,
    agent: &mut Agent,
    path: &StorePath,
    content: &[u8],
) -> AttemptId {
    let attempt = agent.build().await;
    let (offered, file) = output("out", path, content);
    let file_hash = offered.file_hash;
    let mut bulk = agent.bulk().await;
    let plan = bulk.offer(attempt, &[offered]).await;
    if matches!(&plan, BulkToAgent::Plan { outputs, .. } if *outputs == [OutputPlan::Send { offset: 0 }])
    {
        bulk.say(&BulkFromAgent::Data { bytes: file }).await;
        bulk.say(&BulkFromAgent::End { file_hash }).await;
    }
    let answer = bulk.next().await;
    assert!(
        matches!(answer, Some(BulkToAgent::Committed { attempt: of, .. }) if of == attempt),
        "{answer:?}"
    );
    assert_eq!(world.last_end().await, Some(AttemptEnd::Succeeded));
    attempt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_differs_is_kept_beside_the_one_that_is_held() {
    let world = World::new().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let mut attempts = Vec::new();
    let mut paths = Vec::new();
    for content in [&b"first"[..], b"other", b"other", b"first"] {
        let (_, path) = world.submit().await;
        attempts.push(build_again(&world, &mut agent, &path, content).await);
        paths.push(path);
    }
    let (path, asked) = (paths[0].clone(), attempts.clone());
    let (held, kept, disputed) = world
        .coordinator
        .readers
        .read(move |reader| {
            let disputed: Result<Vec<_>, _> =
                asked.iter().map(|attempt| reader.is_disputed(*attempt)).collect();
            let (hash, disputed) = (path.hash(), disputed?);
            Ok::<_, steading::store::StoreError>((
                reader.nar(hash)?.unwrap(),
                reader.disputed_nars(hash)?,
                disputed,
            ))
        })
        .await
        .unwrap();
    assert_eq!(disputed, [Some(false), Some(true), Some(true), Some(false)]);
    let (first, _) = output("out", &paths[0], b"first");
    let (other, _) = output("out", &paths[0], b"other");
    assert_eq!(held.info.nar_hash, first.info.nar_hash);
    assert_eq!(kept.len(), 1, "the same bytes are kept once");
    assert_eq!((kept[0].0, kept[0].1.info.nar_hash), (attempts[1], other.info.nar_hash));
    let mut nar = Vec::new();
    let kept = &kept[0].1;
    world.coordinator.depot.read_nar(&kept.file_hash, kept.info.nar_bytes, &mut nar).unwrap();
    assert_eq!(Sha256::of(&nar), other.info.nar_hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_overtakes_the_report_is_answered_with_it() {
    let world = World::new().await;
    let (_, path) = world.submit().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.allocation().await.attempt;
    let (offered, _) = output("out", &path, b"content");
    let mut bulk = agent.bulk().await;
    bulk.say(&plain_offer(attempt, vec![offered])).await;
    let outcome = Outcome::Built;
    agent.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert!(matches!(bulk.next().await, Some(BulkToAgent::Plan { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_not_of_this_build_is_refused_before_its_first_byte() {
    let world = World::new().await;
    let (derivation, _) = world.submit().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    // A path that exists, but is no output.
    let (offered, _) = output("out", &derivation, b"content");
    let mut bulk = agent.bulk().await;
    let (code, reason) = refusal(Some(bulk.offer(attempt, &[offered]).await));
    assert_eq!(code, RefusalCode::Rejected);
    assert!(reason.contains("of this build is"), "{reason}");
    assert!(matches!(world.last_end().await, Some(AttemptEnd::Rejected(_))));
    assert_eq!(world.states().await, [ShownState::Deferred]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nar_with_another_hash_than_declared_is_refused() {
    let world = World::new().await;
    let (_, path) = world.submit().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    let (mut offered, file) = output("out", &path, b"content");
    offered.info.nar_hash = Sha256::of(b"something else");
    let file_hash = offered.file_hash;
    let mut bulk = agent.bulk().await;
    assert!(matches!(bulk.offer(attempt, &[offered]).await, BulkToAgent::Plan { .. }));
    bulk.say(&BulkFromAgent::Data { bytes: file }).await;
    bulk.say(&BulkFromAgent::End { file_hash }).await;
    let (code, reason) = refusal(bulk.next().await);
    assert_eq!(code, RefusalCode::Rejected);
    assert!(reason.contains("hash"), "{reason}");
    assert!(matches!(world.last_end().await, Some(AttemptEnd::Rejected(_))));
    assert!(nothing_in(&world.dir.path().join("state/public/nix-store"), "narinfo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agents_attempt_cannot_be_offered_prepared_or_finished() {
    let world = World::new().await;
    let (_, path) = world.submit().await;
    let mut honest = world.agent("amber").await;
    honest.welcomed().await;
    let attempt = honest.allocation().await.attempt;
    let mut thief = world.agent("birch").await;
    thief.welcomed().await;
    let outcome = Outcome::Failed(steading::core::outcome::BuildFailure::Exit(1));
    thief.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert_eq!(thief.next().await, Some(ToAgent::Cancel { attempt }));
    let mut bulk = thief.bulk().await;
    bulk.say(&BulkFromAgent::Prepare { attempt }).await;
    assert_eq!(refusal(bulk.next().await).0, RefusalCode::Stale);
    let (offered, _) = output("out", &path, b"content");
    bulk.say(&plain_offer(attempt, vec![offered])).await;
    assert_eq!(refusal(bulk.next().await).0, RefusalCode::Stale);
    assert_eq!(world.states().await, [ShownState::Allocated]);
}

fn nothing_in(dir: &Path, extension: &str) -> bool {
    !dir.exists()
        || fs_err::read_dir(dir)
            .unwrap()
            .all(|entry| entry.unwrap().path().extension().is_none_or(|found| found != extension))
}
