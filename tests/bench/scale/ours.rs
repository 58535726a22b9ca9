//! The real engine with the real database.

use crate::meter::{self, Meter};
use std::{
    collections::{BTreeMap, VecDeque},
    io::Read as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use steading::{
    coordinator::{engine_thread::SubmitRequest, truth::Truth},
    core::{
        agent::{Abilities, SessionId},
        change::{Change, NarOrigin, NarRecord, OutputRecord, Verdict},
        engine::{
            Ask, Delivery, Effect, Engine, IdSource, Input, Inputs, Order, Settings, Token, Told,
        },
        hash::Sha256,
        id::{AttemptId, BuildId, InstanceId},
        outcome::Outcome,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
        time::{Monotonic, Now, Timestamp},
    },
    depot::{Depot, Fact, IntakeRules, Known},
    formats::{export::ExportLimits, nar::NarLimits},
    store::{BuildFilter, Reader, Store},
};

/// How many facts are written down together, as the coordinator does.
const SLICE: usize = 500;
/// How many builds the one agent runs at a time.
const SLOTS: u32 = 64;
/// How many times a quick operation is repeated.
const TIMES: usize = 2_000;

/// Ids that count up.
struct Ids(u64);

impl IdSource for Ids {
    fn random(&mut self) -> [u8; 10] {
        self.0 += 1;
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&self.0.to_be_bytes());
        bytes
    }
}

fn now() -> Now {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ms = u64::try_from(since.as_millis()).unwrap();
    let wall = Timestamp::from_ms(i64::try_from(ms).unwrap());
    Now { wall, mono: Monotonic::from_ms(ms) }
}

struct InDatabase(Reader);

impl Known for InDatabase {
    fn modulo(
        &self,
        path: &StorePath,
    ) -> Result<Option<Sha256>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.modulo(path.hash())?)
    }

    fn nar(
        &self,
        path: &StorePath,
    ) -> Result<Option<(Sha256, u64)>, Box<dyn std::error::Error + Send + Sync>> {
        let nar = self.0.nar(path.hash())?;
        Ok(nar.map(|nar| (nar.info.nar_hash, nar.info.nar_bytes)))
    }
}

/// Opens the database of a state directory, and loads what is open.
fn begin(dir: &Path) -> Truth {
    let store = Store::open(&dir.join("steading.db")).unwrap();
    Truth::restore(store, Settings::default(), now()).unwrap()
}

/// Takes the stream on standard input and submits what is in it.
pub(crate) fn submit(dir: &Path) {
    let depot = Depot::open(dir, "test-1", [1; 32]).unwrap();
    let mut truth = begin(dir);
    let mut ids = Ids(0);
    let known = InDatabase(truth.store.reader().unwrap());
    let rules = IntakeRules {
        authorized: &[],
        trusted_import: false,
        limits: ExportLimits {
            nar: NarLimits { bytes_max: 1 << 30, entries_max: 10, depth_max: 5 },
            entries_max: 5_000_000,
        },
        at: now().wall,
    };
    let start = Meter::read();
    let mut intake = depot.intake(&known, rules).unwrap();
    let (mut reading, mut writing) = (Duration::ZERO, Duration::ZERO);
    let (mut facts, mut number): (Vec<Fact>, usize) = (Vec::new(), 0);
    let mut stdin = std::io::stdin().lock();
    let mut piece = vec![0; 256 * 1024];
    loop {
        let read = stdin.read(&mut piece).unwrap();
        let meter = Meter::read();
        if read > 0 {
            intake.feed(&piece[..read]).unwrap();
            facts.extend(intake.take_ready());
        }
        reading += meter.processor();
        if facts.len() >= SLICE || read == 0 {
            let meter = Meter::read();
            number += facts.len();
            let changes = facts.drain(..).map(Change::from).collect();
            let step = truth.decide(now(), &mut ids, vec![Input::Record { token: None, changes }]);
            truth.keep(step).unwrap();
            writing += meter.processor();
        }
        if read == 0 {
            break;
        }
    }
    let meter = Meter::read();
    let summary = intake.finish().unwrap();
    reading += meter.processor();
    meter::say("read and verify the stream", reading, number);
    meter::say("write the facts", writing, number);
    let roots = summary.roots.clone();
    drop(summary);
    let asked = Meter::read();
    ask_for(&mut truth, &mut ids, roots);
    asked.say("make the builds", number);
    start.say("submit, all together", number);
    let meter = Meter::read();
    drop(truth);
    meter.say("let go", 1);
}

/// Makes builds of these derivations and their inputs. Returns those that were named.
fn ask_for(truth: &mut Truth, ids: &mut Ids, roots: Vec<StorePath>) -> usize {
    let number = roots.len();
    let request = SubmitRequest {
        inputs: Inputs::Build,
        ..SubmitRequest::new("ada".parse().unwrap(), roots)
    };
    let part = Meter::read();
    let input = truth.submission(request, Token(1)).unwrap().unwrap();
    if number > 1 {
        part.say("  look up", number);
    }
    let part = Meter::read();
    let step = truth.decide(now(), ids, vec![input]);
    if number > 1 {
        part.say("  decide", step.changes.len());
    }
    let part = Meter::read();
    truth.keep(step).unwrap();
    if number > 1 {
        part.say("  keep", number);
    }
    number
}

/// Starts as after a kill.
pub(crate) fn restore(dir: &Path) {
    let start = Meter::read();
    let store = Store::open(&dir.join("steading.db")).unwrap();
    let truth = Truth::restore(store, Settings::default(), now()).unwrap();
    let number = open(&truth.engine);
    start.say("from the start to the first step", number);
    let part = Meter::read();
    assert_eq!(truth.engine.check(), Vec::<String>::new());
    part.say("check of the memory", number);
    let part = Meter::read();
    assert_eq!(truth.differences(now()).unwrap(), Vec::<String>::new());
    part.say("comparison with the disk", number);
}

fn open(engine: &Engine) -> usize {
    match engine.ask(&Ask::Counts) {
        Told::Counts(counts) => counts.builds.values().sum(),
        _ => 0,
    }
}

fn join() -> Input {
    Input::Join {
        session: SessionId(1),
        name: "amber".parse().unwrap(),
        instance: InstanceId::from_bytes([1; 16]),
        abilities: Abilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            slots: SLOTS,
            tags: BTreeMap::new(),
        },
        held: Vec::new(),
        capacity: None,
    }
}

/// A build that the agent was given.
struct Given {
    attempt: AttemptId,
    build: BuildId,
    derivation: StorePath,
}

fn given(effects: Vec<Effect>) -> impl Iterator<Item = Given> {
    effects.into_iter().filter_map(|effect| match effect {
        Effect::Tell { order: Order::Allocate { attempt, build, derivation, .. }, .. } => {
            Some(Given { attempt, build, derivation })
        }
        _ => None,
    })
}

fn output(name: String, path: StorePath) -> (OutputRecord, Arc<NarRecord>) {
    let nar_hash = Sha256::of(path.name().as_bytes());
    let info = PathInfo {
        path: path.clone(),
        nar_hash,
        nar_bytes: 120,
        references: Vec::new(),
        deriver: None,
        signatures: vec!["test-1:signature".to_owned()],
        content_address: None,
    };
    let (origin, at) = (NarOrigin::Built, now().wall);
    let nar = NarRecord { info, file_hash: nar_hash, file_bytes: 60, origin, at };
    (OutputRecord { name, path, nar_hash, nar_bytes: 120 }, Arc::new(nar))
}

/// Builds some, and asks about the rest.
pub(crate) fn turn(dir: &Path) {
    let mut truth = begin(dir);
    let reader = truth.store.reader().unwrap();
    let mut ids = Ids(1 << 40);
    let number = open(&truth.engine);
    let part = Meter::read();
    let step = truth.decide(now(), &mut ids, vec![join()]);
    let mut queue: VecDeque<Given> = given(truth.keep(step).unwrap()).collect();
    part.say("join, and be given builds", queue.len());
    ask(&truth, &reader, queue.iter().map(|one| one.build).collect());
    let (mut deciding, mut keeping, mut done) = (Duration::ZERO, Duration::ZERO, 0);
    let mut worst = Duration::ZERO;
    while let Some(one) = queue.pop_front() {
        let outputs = reader.outputs_of(one.derivation.hash()).unwrap();
        let (outputs, nars) = outputs.into_iter().map(|(name, path)| output(name, path)).unzip();
        let session = SessionId(1);
        let attempt = one.attempt;
        let agent = "amber".parse().unwrap();
        let delivery =
            Delivery::Verified { outputs, nars, files: Vec::new(), verdict: Verdict::Agreed };
        let inputs = [
            Input::Started { session, attempt },
            Input::Finished { session, attempt, outcome: Outcome::Built },
            Input::Deliver { token: Token(1), agent, attempt, delivery },
        ];
        for input in inputs {
            let meter = Meter::read();
            let step = truth.decide(now(), &mut ids, vec![input]);
            let spent = meter.processor();
            (deciding, worst) = (deciding + spent, worst.max(spent));
            let meter = Meter::read();
            let effects = truth.keep(step).unwrap();
            keeping += meter.processor();
            queue.extend(given(effects));
        }
        done += 1;
        if done == TIMES {
            break;
        }
    }
    meter::say("allocate, start, complete: decide", deciding, done);
    meter::say("  and keep, in three commits", keeping, done);
    meter::say("  the longest step", worst, 1);
    drop(truth);
    in_memory(dir, number);
}

fn ask(truth: &Truth, reader: &Reader, some: Vec<BuildId>) {
    let question = |what: &str, question: Ask, times: usize| {
        let part = Meter::read();
        for _ in 0..times {
            std::hint::black_box(truth.engine.ask(&question));
        }
        part.say(what, times);
    };
    question("status", Ask::Counts, 20);
    question("why", Ask::Why(some[0], now().wall), 1_000);
    question("how builds are shown", Ask::Shown(some), 100);
    let list = |what: &str, filter: &BuildFilter| {
        let part = Meter::read();
        for _ in 0..20 {
            std::hint::black_box(reader.builds(filter).unwrap());
        }
        part.say(what, 20);
    };
    let hundred = BuildFilter { limit: 100, ..BuildFilter::default() };
    list("builds", &hundred);
    let states = BuildFilter::open_states();
    list("builds that are open", &BuildFilter { states, ..hundred.clone() });
    let states = vec!["failed".to_owned()];
    list("builds that failed", &BuildFilter { states, ..hundred.clone() });
    list("builds of an agent", &BuildFilter { agent: Some("amber".to_owned()), ..hundred });
    let part = Meter::read();
    for _ in 0..20 {
        std::hint::black_box(reader.holdings().unwrap());
    }
    part.say("holdings", 20);
}

/// Plans the whole graph without a database.
fn in_memory(dir: &Path, number: usize) {
    let truth = begin(dir);
    let reader = truth.store.reader().unwrap();
    let mut engine = truth.engine;
    let mut ids = Ids(1 << 50);
    let at = now();
    let step = engine.step(at, &mut ids, vec![join()]);
    let mut queue: VecDeque<Given> = given(step.effects).collect();
    let (mut done, mut spent) = (0, Duration::ZERO);
    let mut round = Vec::new();
    while !queue.is_empty() {
        for one in queue.drain(..) {
            let (session, attempt) = (SessionId(1), one.attempt);
            let (name, out) = reader.outputs_of(one.derivation.hash()).unwrap().remove(0);
            let (output, nar) = output(name, out);
            let delivery = Delivery::Verified {
                outputs: vec![output],
                nars: vec![nar],
                files: Vec::new(),
                verdict: Verdict::Agreed,
            };
            let agent = "amber".parse().unwrap();
            round.extend([
                Input::Started { session, attempt },
                Input::Finished { session, attempt, outcome: Outcome::Built },
                Input::Deliver { token: Token(1), agent, attempt, delivery },
            ]);
            done += 1;
        }
        let meter = Meter::read();
        let step = engine.step(at, &mut ids, std::mem::take(&mut round));
        spent += meter.processor();
        queue.extend(given(step.effects));
    }
    assert!(done >= number - TIMES - 1, "{done} of {number} were built");
    meter::say("plan in memory: allocate, complete", spent, done);
}
