//! Bytes between agents and the coordinator, over real SSH connections: cut, stopped, many at a
//! time, and more than there is room for.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "each of those who share it uses a part")]
mod closure;
#[path = "common/until.rs"]
mod until;

use bytes::Bytes;
use closure::{Drv, drv, drv_in, export, file_nar, stream};
use std::{collections::BTreeMap, num::NonZeroU32, path::Path, sync::Arc, time::Duration};
use steading::{
    commands,
    config::Config,
    coordinator::{
        Coordinator,
        engine_thread::SubmitRequest,
        start::{self, StartError},
        submission,
    },
    core::{
        content::source_path,
        hash::Sha256,
        id::{AttemptId, InstanceId},
        outcome::Outcome,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    formats::{export::entry_facts, signature::guix::GuixPublicKey},
    protocol::{
        BULK_SUBSYSTEM, CONTROL_SUBSYSTEM,
        bulk::{
            BulkFromAgent, BulkToAgent, CHUNK_BYTES_MAX, OFFERS_AHEAD_MAX, OfferedOutput,
            OutputPlan, PATHS_PER_PAGE, RefusalCode, SIGN_INTERVAL, STALL_MAX,
        },
        frame::{self, Decoder},
        handshake::{Capabilities, Hello, PROTOCOL_MAX},
        message::{FromAgent, ToAgent},
        session::AgentEnd,
    },
    ssh::{self, ChannelReader, ClientConfig, Connection, GuardedWriter, Incoming, host_key},
    store::Reader,
    telemetry::Clock,
};
use tokio_util::sync::CancellationToken;
use until::{WAIT_MAX as DEADLINE, until};

/// A coordinator in this process.
struct World {
    dir: Arc<tempfile::TempDir>,
    coordinator: Coordinator,
    address: String,
    host_key: String,
    clock: Clock,
    stop: CancellationToken,
}

impl World {
    async fn new(config: &Config) -> Self {
        Self::start(tempfile::tempdir().unwrap(), config).await
    }

    async fn start(dir: impl Into<Arc<tempfile::TempDir>>, config: &Config) -> Self {
        let dir = dir.into();
        let state = dir.path().join("state");
        for name in ["amber", "birch"] {
            let key = host_key::load_or_create(&dir.path().join("identities").join(name)).unwrap();
            let folder = state.join("keys/agents");
            fs_err::create_dir_all(&folder).unwrap();
            fs_err::write(folder.join(format!("{name}.pub")), key.public_line()).unwrap();
        }
        let (clock, stop) = (Clock::start(), CancellationToken::new());
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut started = Err(StartError::Locked(state.clone()));
        until("the one before has ended", async || {
            started = start::start(&state, config, listen, clock, stop.clone()).await;
            !matches!(started, Err(StartError::Locked(_)))
        })
        .await;
        let started = started.unwrap();
        let coordinator = started.coordinator.clone();
        let (address, host_key) = (started.address.to_string(), started.host_public_key.clone());
        tokio::spawn(started.serve(stop.clone(), commands::run));
        Self { dir, coordinator, address, host_key, clock, stop }
    }

    /// Stops the coordinator and starts another one where it was.
    async fn started_again(self) -> Self {
        self.stop.cancel();
        Self::start(Arc::clone(&self.dir), &Config::default()).await
    }

    /// Submits so many derivations that need nothing.
    async fn submit(&self, count: usize) -> Vec<Drv> {
        let drvs: Vec<Drv> = (0..count).map(|n| drv(&format!("d{n}"), "", &[], &[])).collect();
        self.take(export(&drvs.iter().collect::<Vec<_>>())).await;
        let roots = drvs.iter().map(|drv| drv.path.clone()).collect();
        let request = SubmitRequest::new("tester".parse().unwrap(), roots);
        self.coordinator.engine.submit(request).await.unwrap();
        drvs
    }

    /// Takes an export stream, of which nothing is asked to be built.
    async fn take(&self, stream: Vec<u8>) {
        let (pieces, done) = submission::receive(&self.coordinator, submission::Trust::None);
        pieces.send(submission::Piece::Bytes(stream.into())).await.unwrap();
        pieces.send(submission::Piece::End).await.unwrap();
        done.await.unwrap().unwrap();
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

    /// Returns an agent with so many slots, and so many attempts that it has built.
    async fn built(&self, name: &str, slots: u32) -> (Agent, BTreeMap<StorePath, AttemptId>) {
        let connection = self.connect(name).await;
        let (reader, writer) = connection.subsystem(CONTROL_SUBSYSTEM).await.unwrap();
        let end = AgentEnd::new(self.clock.now().mono);
        let mut agent = Agent { _connection: connection, reader, writer, end, clock: self.clock };
        agent.say(&FromAgent::Hello(hello(slots))).await;
        assert!(matches!(agent.next().await, ToAgent::Welcome(_)));
        let mut attempts = BTreeMap::new();
        for _ in 0..slots {
            let ToAgent::Allocate(allocation) = agent.next().await else { panic!("no attempt") };
            let attempt = allocation.attempt;
            attempts.insert(allocation.derivation, attempt);
        }
        for attempt in attempts.values().copied() {
            agent.say(&FromAgent::Started { attempt }).await;
            let outcome = Outcome::Built;
            agent.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
        }
        (agent, attempts)
    }

    async fn bulk(&self, name: &str) -> Bulk {
        let connection = self.connect(name).await;
        let (reader, writer) = connection.subsystem(BULK_SUBSYSTEM).await.unwrap();
        Bulk { connection, reader, writer, decoder: Decoder::default() }
    }

    /// Returns whether a nar of the path is recorded.
    async fn holds(&self, path: &StorePath) -> bool {
        let hash = path.hash();
        self.coordinator.readers.read(move |reader| reader.holds(hash)).await.unwrap()
    }

    fn files(&self, folder: &str) -> usize {
        fs_err::read_dir(self.dir.path().join("state").join(folder)).unwrap().count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn hello(slots: u32) -> Hello {
    // Fields that were added since are of no interest here.
    serde_json::from_value(serde_json::json!({
        "protocol_min": PROTOCOL_MAX, "protocol_max": PROTOCOL_MAX, "version": "0",
        "instance": InstanceId::from_bytes([1; 16]), "wall_ms": 0, "held": [],
        "capabilities": Capabilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            tags: BTreeMap::default(),
            slots,
        },
    }))
    .unwrap()
}

/// An agent that does what the test says.
struct Agent {
    _connection: Connection,
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

    async fn next(&mut self) -> ToAgent {
        loop {
            match self.end.next_message() {
                Some(ToAgent::Heartbeat {}) => {}
                Some(message) => return message,
                None => match tokio::time::timeout(DEADLINE, self.reader.next()).await.unwrap() {
                    Incoming::Data(bytes) => {
                        self.end.receive(self.clock.now().mono, &bytes).unwrap();
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
    }
}

/// A bulk connection with its channel.
struct Bulk {
    connection: Connection,
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

    /// Returns the offset of the plan for one output, and how often to wait was said before.
    async fn plan(&mut self) -> (u64, usize) {
        let mut waits = 0;
        loop {
            match self.next().await {
                Some(BulkToAgent::Wait {}) => waits += 1,
                Some(BulkToAgent::Plan { outputs, .. }) => match outputs[..] {
                    [OutputPlan::Send { offset }] => return (offset, waits),
                    _ => panic!("{outputs:?}"),
                },
                other => panic!("{other:?}"),
            }
        }
    }

    /// Offers an output that was sent in part, and returns the offset of the plan.
    async fn go_on(&mut self, output: &Output, attempt: AttemptId) -> u64 {
        loop {
            self.say(&output.offer(attempt, Signs::Wanted)).await;
            match self.next().await {
                Some(BulkToAgent::Plan { outputs, .. }) => match outputs[..] {
                    [OutputPlan::Send { offset }] => return offset,
                    _ => panic!("{outputs:?}"),
                },
                // The end of the last connection need not have been noticed yet.
                Some(BulkToAgent::Refused { code: RefusalCode::TryLater, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn send(&self, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK_BYTES_MAX) {
            let bytes = Bytes::copy_from_slice(piece);
            self.say(&BulkFromAgent::Data { bytes }).await;
        }
    }

    /// Waits until an attempt is committed, behind any number of signs of life.
    async fn until_committed(&mut self, attempt: AttemptId) {
        loop {
            match self.next().await {
                Some(BulkToAgent::Taken { .. }) => {}
                other => return assert_eq!(other, Some(committed(attempt))),
            }
        }
    }

    /// Returns the text that is told next.
    async fn text(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        loop {
            match self.next().await {
                Some(BulkToAgent::Derivation { bytes }) => text.extend_from_slice(&bytes),
                Some(BulkToAgent::End {}) => return text,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn refusal(&mut self) -> (RefusalCode, String) {
        match self.next().await {
            Some(BulkToAgent::Refused { code, reason }) => (code, reason),
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// Whether an offer asks for signs of life.
#[derive(Clone, Copy)]
enum Signs {
    Wanted,
    Unknown,
}

/// One output and its file.
#[derive(Clone)]
struct Output {
    offered: OfferedOutput,
    file: Bytes,
}

impl Output {
    fn new(path: &StorePath, content: &[u8]) -> Self {
        let nar = file_nar(content);
        let file = zstd::bulk::compress(&nar, 3).unwrap();
        let offered = OfferedOutput {
            name: "out".to_owned(),
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
        Self { offered, file: file.into() }
    }

    /// One that cannot be compressed.
    fn noise(path: &StorePath, bytes: usize) -> Self {
        let mut content = vec![0; bytes];
        getrandom::fill(&mut content).unwrap();
        Self::new(path, &content)
    }

    fn offer(&self, attempt: AttemptId, signs: Signs) -> BulkFromAgent {
        let (outputs, signs) = (vec![self.offered.clone()], matches!(signs, Signs::Wanted));
        BulkFromAgent::Offer { attempt, outputs, eager: vec![], signs }
    }

    fn eager(&self, attempt: AttemptId) -> BulkFromAgent {
        let (outputs, eager) = (vec![self.offered.clone()], vec![self.file.clone()]);
        BulkFromAgent::Offer { attempt, outputs, eager, signs: true }
    }

    fn end(&self) -> BulkFromAgent {
        BulkFromAgent::End { file_hash: self.offered.file_hash }
    }
}

fn committed(attempt: AttemptId) -> BulkToAgent {
    BulkToAgent::Committed { attempt, ahead: OFFERS_AHEAD_MAX }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_outputs_travel_in_their_offers_and_are_answered_in_order() {
    let world = World::new(&Config::default()).await;
    let drvs = world.submit(150).await;
    let (_agent, attempts) = world.built("amber", 150).await;
    let mut outputs: Vec<_> = drvs
        .iter()
        .enumerate()
        .map(|(n, drv)| (attempts[&drv.path], Output::new(&drv.out, n.to_string().as_bytes())))
        .collect();
    // One of them lies; it is told apart from its neighbors.
    outputs[70].1.offered.info.nar_hash = Sha256::of(b"something else");
    let mut bulk = world.bulk("amber").await;
    for (attempt, output) in &outputs[..64] {
        bulk.say(&output.eager(*attempt)).await;
    }
    for (n, (attempt, _)) in outputs.iter().enumerate() {
        if let Some((next, output)) = outputs.get(n + 64) {
            bulk.say(&output.eager(*next)).await;
        }
        let answer = bulk.next().await;
        if n == 70 {
            assert!(matches!(answer, Some(BulkToAgent::Refused { .. })), "{answer:?}");
        } else {
            assert_eq!(answer, Some(committed(*attempt)), "{n}");
        }
    }
    for (n, drv) in drvs.iter().enumerate() {
        assert_eq!(world.holds(&drv.out).await, n != 70, "{n}");
    }
    assert_eq!(world.files("incoming"), 0);
    // The channel is as good as ever, also for what is larger. The same again is stale.
    bulk.say(&outputs[0].1.offer(outputs[0].0, Signs::Wanted)).await;
    assert_eq!(bulk.refusal().await.0, RefusalCode::Stale);
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_with_more_or_fewer_files_than_allowed_are_refused() {
    let world = World::new(&Config::default()).await;
    let drvs = world.submit(2).await;
    let (_agent, attempts) = world.built("amber", 2).await;
    let mut bulk = world.bulk("amber").await;
    let large = Output::noise(&drvs[0].out, 70_000);
    bulk.say(&large.eager(attempts[&drvs[0].path])).await;
    let (code, reason) = bulk.refusal().await;
    assert_eq!(code, RefusalCode::Rejected);
    assert!(reason.contains("65536"), "{reason}");
    let small = Output::new(&drvs[1].out, b"content");
    let (attempt, outputs) = (attempts[&drvs[1].path], vec![small.offered]);
    let eager = vec![small.file.clone(), small.file];
    bulk.say(&BulkFromAgent::Offer { attempt, outputs, eager, signs: false }).await;
    assert_eq!(bulk.refusal().await.0, RefusalCode::Rejected);
    assert_eq!((world.files("incoming"), world.files("depot")), (0, 0));
}

/// Reads the nar of a path as agents do.
async fn fetched(bulk: &mut Bulk, path: &StorePath) -> (PathInfo, Vec<u8>) {
    bulk.say(&BulkFromAgent::Fetch {
        path: path.clone(),
        offset: 0,
        file_hash: None,
        export: false,
    })
    .await;
    let Some(BulkToAgent::Nar { info, .. }) = bulk.next().await else { panic!("no nar") };
    let mut file = Vec::new();
    loop {
        match bulk.next().await {
            Some(BulkToAgent::Data { bytes }) => file.extend_from_slice(&bytes),
            Some(BulkToAgent::End {}) => return (info, zstd::decode_all(&file[..]).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_nars_are_there_before_their_files_are_and_after_a_crash_in_between() {
    let mut world = World::new(&Config::default()).await;
    let drvs = world.submit(3).await;
    let (agent, attempts) = world.built("amber", 3).await;
    // Two of them have the same bytes.
    let outputs: Vec<Output> =
        drvs.iter().zip(["a", "b", "b"]).map(|(d, t)| Output::new(&d.out, t.as_bytes())).collect();
    // Where the folder of a file has to be, there is none and cannot be one.
    let name = outputs[1].offered.file_hash.base32();
    let obstacle = world.dir.path().join("state/depot").join(&name[..2]);
    fs_err::write(&obstacle, "").unwrap();
    let mut bulk = world.bulk("amber").await;
    for (drv, output) in drvs.iter().zip(&outputs) {
        bulk.say(&output.eager(attempts[&drv.path])).await;
    }
    for drv in &drvs {
        assert_eq!(bulk.next().await, Some(committed(attempts[&drv.path])));
    }
    let mut signatures = Vec::new();
    for (drv, text) in drvs.iter().zip(["a", "b", "b"]) {
        let (info, nar) = fetched(&mut bulk, &drv.out).await;
        assert_eq!(nar, file_nar(text.as_bytes()));
        assert_eq!(info.signatures.len(), 1);
        signatures.push(info.signatures);
    }
    let unwritten = |world: &World| {
        let readers = world.coordinator.readers.clone();
        async move { readers.read(Reader::unwritten_bytes).await.unwrap() }
    };
    let shows = |world: &World| drvs.iter().all(|drv| world.coordinator.depot.shows(&drv.out));
    assert!(unwritten(&world).await > 0);
    assert!(!shows(&world));

    drop((agent, bulk));
    world = world.started_again().await;
    assert!(unwritten(&world).await > 0);
    let mut bulk = world.bulk("amber").await;
    assert_eq!(fetched(&mut bulk, &drvs[1].out).await.1, file_nar(b"b"));

    fs_err::remove_file(obstacle).unwrap();
    world = world.started_again().await;
    until("everything is published", async || shows(&world)).await;
    until("nothing is to be written out", async || unwritten(&world).await == 0).await;
    let mut bulk = world.bulk("amber").await;
    for (n, drv) in drvs.iter().enumerate() {
        let (info, nar) = fetched(&mut bulk, &drv.out).await;
        assert_eq!(Sha256::of(&nar), outputs[n].offered.info.nar_hash);
        assert_eq!(info.signatures, signatures[n], "the same as before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_of_a_large_nar_goes_to_the_depot_at_once() {
    let world = World::new(&Config::default()).await;
    let drvs = world.submit(2).await;
    let (_agent, attempts) = world.built("amber", 2).await;
    let large = Output::new(&drvs[0].out, &vec![0; 3 << 20]);
    let mut lie = Output::new(&drvs[1].out, &vec![0; 3 << 20]);
    lie.offered.info.nar_hash = Sha256::of(b"something else");
    let mut bulk = world.bulk("amber").await;
    bulk.say(&large.eager(attempts[&drvs[0].path])).await;
    bulk.say(&lie.eager(attempts[&drvs[1].path])).await;
    assert_eq!(bulk.next().await, Some(committed(attempts[&drvs[0].path])));
    assert_eq!(bulk.refusal().await.0, RefusalCode::Rejected);
    let hash = large.offered.file_hash;
    let unwritten = move |reader: &Reader| reader.unwritten_file(&hash);
    assert_eq!(world.coordinator.readers.read(unwritten).await.unwrap(), None);
    assert!(world.coordinator.depot.open_nar(&hash).is_ok());
    assert_eq!(world.files("incoming"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_cut_goes_on_at_the_byte() {
    let world = World::new(&Config::default()).await;
    let drvs = world.submit(1).await;
    let (_agent, attempts) = world.built("amber", 1).await;
    let attempt = attempts[&drvs[0].path];
    let output = Output::noise(&drvs[0].out, 3 << 20);
    let mut sent = 0;
    for cut in [1 << 20, 1 << 20, 2_000_001, output.file.len()] {
        let mut bulk = world.bulk("amber").await;
        let offset = usize::try_from(bulk.go_on(&output, attempt).await).unwrap();
        // What was on its way when the connection was cut may be lost, nothing else.
        assert!(offset <= sent && offset + CHUNK_BYTES_MAX * 64 >= sent, "{offset} of {sent}");
        if cut < output.file.len() {
            bulk.send(&output.file[offset..cut.max(offset)]).await;
            sent = cut.max(offset);
            // Until all of it is taken, it may be lost.
            until_length(&world.dir.path().join("state/incoming"), sent).await;
            drop(bulk);
            continue;
        }
        assert_eq!(offset, sent, "all of it was taken");
        bulk.send(&output.file[offset..]).await;
        bulk.say(&output.end()).await;
        assert_eq!(bulk.next().await, Some(committed(attempt)));
    }
    assert_eq!(world.files("incoming"), 0);

    // What was committed can be fetched, from anywhere.
    let mut bulk = world.bulk("amber").await;
    let hash = output.offered.file_hash;
    for (file_hash, from) in [(Some(hash), 1_000), (None, 1_000), (Some(Sha256::of(b"")), 0)] {
        let path = drvs[0].out.clone();
        bulk.say(&BulkFromAgent::Fetch { path, offset: 1_000, file_hash, export: false }).await;
        match bulk.next().await {
            Some(BulkToAgent::Nar { file_hash, .. }) => assert_eq!(file_hash, Some(hash)),
            other => panic!("{other:?}"),
        }
        let mut received = Vec::new();
        while let Some(BulkToAgent::Data { bytes }) = bulk.next().await {
            received.extend_from_slice(&bytes);
        }
        assert!(received == output.file[from..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_below_is_told_and_its_exports_are_signed() {
    let world = World::new(&Config::default()).await;
    let guix = StoreDir::guix();
    let nar = file_nar(b"leaf");
    let source = |name, hash: &Sha256| source_path(&guix, name, hash, &[], false).unwrap();
    let leaf = source("leaf", &Sha256::of(&nar));
    let absent = source("absent", &Sha256::of(b""));
    // A text of more than one message.
    let script = "x".repeat(CHUNK_BYTES_MAX);
    let below = drv_in(&guix, "below", &script, &[], &[&leaf]);
    let above = drv_in(&guix, "above", "", &[&below], &[]);
    let nar_of = |drv: &Drv| file_nar(&drv.text);
    let entries =
        [(&leaf, nar.clone()), (&below.path, nar_of(&below)), (&above.path, nar_of(&above))];
    world.take(stream(entries)).await;

    let mut bulk = world.bulk("amber").await;
    let paths = vec![above.path.clone(), below.path.clone()];
    bulk.say(&BulkFromAgent::Texts { paths }).await;
    assert_eq!(bulk.text().await, above.text);
    assert_eq!(bulk.text().await, below.text);
    let unknown = drv_in(&guix, "unknown", "", &[], &[]);
    let paths = vec![above.path.clone(), unknown.path, below.path.clone()];
    bulk.say(&BulkFromAgent::Texts { paths }).await;
    assert_eq!(bulk.text().await, above.text);
    let (code, reason) = bulk.refusal().await;
    assert!(code == RefusalCode::NotHeld && reason.contains("unknown"), "{reason}");

    bulk.say(&BulkFromAgent::About { paths: vec![leaf.clone(), absent.clone()] }).await;
    let (mut known, mut lacking) = (Vec::new(), Vec::new());
    while let Some(BulkToAgent::Inputs { held, not_held }) = bulk.next().await {
        known.extend(held.into_iter().map(|info| info.path));
        lacking.extend(not_held);
    }
    assert_eq!((known, lacking), (vec![leaf.clone()], vec![absent]));

    let key = fs_err::read_to_string(world.dir.path().join("state/run/signing-guix.pub")).unwrap();
    let key = GuixPublicKey::parse(&key).unwrap();
    for export in [true, false] {
        let path = leaf.clone();
        bulk.say(&BulkFromAgent::Fetch { path, offset: 0, file_hash: None, export }).await;
        let Some(BulkToAgent::Nar { info, .. }) = bulk.next().await else { panic!("no nar") };
        while let Some(BulkToAgent::Data { .. }) = bulk.next().await {}
        let facts = entry_facts(&info.path, &info.references, info.deriver.as_ref());
        let entry = Sha256::of(&[nar.clone(), facts].concat());
        let is_signed = |signature: &String| key.verify(&entry, signature.as_bytes());
        assert_eq!(info.signatures.last().is_some_and(is_signed), export);
        assert_eq!(info.signatures.len(), 1 + usize::from(export));
    }

    let paths = vec![above.path; PATHS_PER_PAGE + 1];
    bulk.say(&BulkFromAgent::Texts { paths }).await;
    assert_eq!(bulk.next().await, None);
}

/// Waits until the only upload in a directory has this length.
async fn until_length(incoming: &Path, bytes: usize) {
    let length = || {
        let entries = fs_err::read_dir(incoming).unwrap();
        let lengths = entries.filter_map(|entry| entry.unwrap().metadata().ok());
        lengths.map(|metadata| metadata.len()).max().unwrap_or(0)
    };
    until("all of it was taken", async || length() == bytes as u64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_beyond_the_limit_wait_for_their_turn_and_hear_of_it() {
    let config = Config { uploads_max: NonZeroU32::MIN, ..Config::default() };
    let world = World::new(&config).await;
    let drvs = world.submit(3).await;
    let (_agent, attempts) = world.built("amber", 3).await;
    let outputs: Vec<_> =
        drvs.iter().map(|drv| (attempts[&drv.path], Output::noise(&drv.out, 1 << 20))).collect();
    let mut bulks = Vec::new();
    for _ in 0..4 {
        bulks.push(world.bulk("amber").await);
    }
    let [first, second, leaver, older] = &mut bulks[..] else { panic!() };
    first.say(&outputs[0].1.offer(outputs[0].0, Signs::Wanted)).await;
    assert_eq!(first.plan().await, (0, 0));
    // An agent of before this is not kept waiting, because it would take silence for the end.
    older.say(&outputs[1].1.offer(outputs[1].0, Signs::Unknown)).await;
    assert_eq!(older.refusal().await.0, RefusalCode::TryLater);
    leaver.say(&outputs[2].1.offer(outputs[2].0, Signs::Wanted)).await;
    second.say(&outputs[1].1.offer(outputs[1].0, Signs::Wanted)).await;
    assert_eq!(leaver.next().await, Some(BulkToAgent::Wait {}));
    assert_eq!(second.next().await, Some(BulkToAgent::Wait {}));
    // Who leaves has no turn; the connection is lost, not closed.
    leaver.connection.lost().cancel();
    // A transfer that goes slowly is told how far it is.
    first.send(&outputs[0].1.file[..1_000]).await;
    loop {
        match first.next().await {
            Some(BulkToAgent::Taken { bytes: 0 }) => {}
            Some(BulkToAgent::Taken { bytes }) => {
                assert!((1_000..1_100).contains(&bytes), "{bytes}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    first.send(&outputs[0].1.file[1_000..]).await;
    first.say(&outputs[0].1.end()).await;
    first.until_committed(outputs[0].0).await;
    assert_eq!(second.plan().await.0, 0);
    second.send(&outputs[1].1.file).await;
    second.say(&outputs[1].1.end()).await;
    second.until_committed(outputs[1].0).await;
    assert!(world.holds(&drvs[1].out).await && !world.holds(&drvs[2].out).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_in_the_middle_is_cut_off_and_leaves_only_its_beginning() {
    let world = World::new(&Config::default()).await;
    let drvs = world.submit(1).await;
    let (_agent, attempts) = world.built("amber", 1).await;
    let attempt = attempts[&drvs[0].path];
    let output = Output::noise(&drvs[0].out, 1 << 20);
    let mut bulk = world.bulk("amber").await;
    bulk.say(&output.offer(attempt, Signs::Wanted)).await;
    bulk.plan().await;
    // SSH is alive all the time and answers keepalives; only the transfer stands still.
    let begin = world.clock.now().mono.as_ms();
    bulk.send(&output.file[..300_000]).await;
    let mut signs = 0;
    while let Some(message) = bulk.next().await {
        assert!(matches!(message, BulkToAgent::Taken { .. }), "{message:?}");
        signs += 1;
    }
    let took = Duration::from_millis(world.clock.now().mono.as_ms() - begin);
    assert!(took + SIGN_INTERVAL >= STALL_MAX && took < 2 * STALL_MAX, "{took:?}");
    assert!((2..=6).contains(&signs), "{signs}");
    tokio::time::timeout(DEADLINE, bulk.connection.lost().cancelled()).await.unwrap();
    // What came is there for the next try.
    let mut bulk = world.bulk("amber").await;
    assert_eq!(bulk.go_on(&output, attempt).await, 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_no_more_under_way_than_it_may() {
    let config = Config { staged_gib_max: NonZeroU32::MIN, ..Config::default() };
    let world = World::new(&config).await;
    let drvs = world.submit(3).await;
    let (_agent, attempts) = world.built("amber", 3).await;
    let claiming = |n: usize, bytes: u64| {
        let mut output = Output::new(&drvs[n].out, b"content");
        output.offered.file_bytes = bytes;
        output.offered.info.nar_bytes = bytes;
        output.offer(attempts[&drvs[n].path], Signs::Wanted)
    };
    let mut bulks = [world.bulk("amber").await, world.bulk("amber").await];
    bulks[0].say(&claiming(0, 1 << 29)).await;
    bulks[0].plan().await;
    bulks[1].say(&claiming(1, (1 << 29) + 1)).await;
    let (code, reason) = bulks[1].refusal().await;
    assert_eq!(code, RefusalCode::TryLater);
    assert!(reason.contains("536870912 of 1073741824"), "{reason}");
    // Waiting would not help here.
    bulks[1].say(&claiming(2, (1 << 30) + 1)).await;
    let (code, reason) = bulks[1].refusal().await;
    assert_eq!(code, RefusalCode::Rejected);
    assert!(reason.contains("staged-gib-max"), "{reason}");
    bulks[1].say(&claiming(1, 1 << 29)).await;
    bulks[1].plan().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_go_by_themselves_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let orphan = Sha256::of(b"orphan");
    let place = |hash: &Sha256| {
        let name = hash.base32();
        dir.path().join("state/depot").join(&name[..2]).join(format!("{name}.nar.zst"))
    };
    let (old, fresh) = (place(&orphan), place(&Sha256::of(b"fresh")));
    for file in [&old, &fresh] {
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(file, "").unwrap();
    }
    let long_ago = rustix::fs::Timespec { tv_sec: 1_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
    rustix::fs::utimensat(rustix::fs::CWD, &old, &times, rustix::fs::AtFlags::empty()).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs_err::set_permissions(dir.path().join("state/depot"), permissions).unwrap();
    let world = World::start(dir, &Config::default()).await;
    until("the orphan is gone", async || !old.exists()).await;
    assert!(fresh.exists());
    drop(world);
}
