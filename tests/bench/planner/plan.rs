//! The engine without a database, against a heap and counters.

use super::{
    Bench, INPUTS_EACH, bare, cpu_of_this_thread,
    derivations::{self, class},
    middle_and_least, note, number, peer,
    shape::Shape,
    state::name,
    submit::Counted,
};
use crate::transfers::{
    report::{Bar, Row, Section},
    say,
};
use std::{collections::BTreeMap, sync::Arc};
use steading::core::{
    agent::{Abilities, SessionId},
    change::{Limits, NarOrigin, NarRecord, OutputRecord, Verdict},
    demands::Demands,
    engine::{
        Delivery, Effect, Engine, Input, Inputs, Order, Root, Settings, Step, Submission, Token,
    },
    graph::{Facts, Held},
    hash::Sha256,
    id::{AttemptId, InstanceId, Name},
    path_info::PathInfo,
    store_path::{PathHash, StorePath},
    time::{Monotonic, Now, Timestamp},
};

/// How many builds run at a time.
const RUNNING: usize = 200;
/// Which share of the bare program's speed we must reach.
const SPEED_MIN: f64 = 0.25;

/// Measures how many builds are given out and completed per processor second.
pub(crate) fn measure(bench: &Bench) -> Section {
    let shape = Shape::new(bench.options.plan, INPUTS_EACH);
    let (mut bare, mut ours, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        let used = bare::plan(&shape, RUNNING);
        bare.push(number(shape.count()) / used);
        let (submitted, planned) = engine(&shape);
        taken.push(submitted);
        ours.push(number(shape.count()) / planned);
        say(&format!("  bare {used:.2} CPU s, ours {planned:.2}, taking it in {submitted:.2}"));
    }
    let best = |values: Vec<f64>| {
        let most = values.iter().copied().fold(0.0, f64::max);
        (middle_and_least(values).0, most)
    };
    let rows = vec![
        Row {
            what: "builds given out and completed".to_owned(),
            unit: "/CPU s",
            ours: best(ours),
            peer: peer("heap and counters", Ok(best(bare))),
            bar: Bar::Faster(SPEED_MIN),
        },
        note("taking the graph in", "CPU s", middle_and_least(taken)),
    ];
    let about = format!(
        "{} derivations with {} edges in memory, no database, {RUNNING} builds at a time on as many \
         agents. Ours: `Engine::step` with the reports and the deliveries of {RUNNING} builds at \
         a time, what it wants written down included. {} rounds.",
        shape.count(),
        shape.edge_count(),
        bench.options.rounds
    );
    Section { part: "planner plan", about, rows }
}

/// Returns the processor seconds of taking a graph in, and of planning it.
fn engine(shape: &Shape) -> (f64, f64) {
    let nars: Vec<Arc<NarRecord>> = (0..shape.count()).map(nar).collect();
    let submission = submission(shape);
    let mut world = World::new();
    let before = cpu_of_this_thread();
    let step = world.step(vec![Input::Submit { token: Token(0), submission }]);
    let submitted = cpu_of_this_thread() - before;
    drop(step);
    let before = cpu_of_this_thread();
    let joining = (0..RUNNING).map(join).collect();
    let mut given = world.given(joining);
    let mut completed = 0;
    while !given.is_empty() {
        completed += given.len();
        let mut inputs = Vec::with_capacity(2 * given.len());
        for (session, attempt, derivation) in given.drain(..) {
            let outcome = steading::core::outcome::Outcome::Built;
            inputs.push(Input::Finished { session, attempt, outcome });
            inputs.push(deliver(session, attempt, &nars[node_of(&derivation)]));
        }
        given = world.given(inputs);
    }
    let planned = cpu_of_this_thread() - before;
    assert_eq!(completed, shape.count(), "everything was planned");
    (submitted, planned)
}

/// An engine, and what it needs from outside.
struct World {
    engine: Engine,
    ids: Counted,
    now: Now,
}

impl World {
    fn new() -> Self {
        let (wall, mono) = (Timestamp::from_ms(1_700_000_000_000), Monotonic::from_ms(0));
        let engine = Engine::new(Settings::default());
        Self { engine, ids: Counted::default(), now: Now { wall, mono } }
    }

    fn step(&mut self, inputs: Vec<Input>) -> Step {
        self.engine.step(self.now, &mut self.ids, inputs)
    }

    /// Steps, and returns what was given to whom.
    fn given(&mut self, inputs: Vec<Input>) -> Vec<(SessionId, AttemptId, StorePath)> {
        let given = |effect| match effect {
            Effect::Tell { session, order: Order::Allocate { attempt, derivation, .. } } => {
                Some((session, attempt, derivation))
            }
            _ => None,
        };
        self.step(inputs).effects.into_iter().filter_map(given).collect()
    }
}

fn join(agent: usize) -> Input {
    Input::Join {
        session: SessionId(agent as u64),
        name: agent_name(agent),
        instance: InstanceId::from_bytes([1; 16]),
        abilities: Abilities {
            store_dir: derivations::store_dir(),
            dialect: "direct".to_owned(),
            systems: class().system.into_iter().collect(),
            emulated_systems: Vec::new(),
            features: Vec::new(),
            slots: 1,
            tags: BTreeMap::new(),
        },
        held: Vec::new(),
        capacity: None,
    }
}

fn agent_name(agent: usize) -> Name {
    name(&format!("a{agent}"))
}

fn deliver(session: SessionId, attempt: AttemptId, nar: &Arc<NarRecord>) -> Input {
    let output = OutputRecord {
        name: "out".to_owned(),
        path: nar.info.path.clone(),
        nar_hash: nar.info.nar_hash,
        nar_bytes: nar.info.nar_bytes,
    };
    let agent = agent_name(session.0.try_into().unwrap());
    let (outputs, nars) = (vec![output], vec![Arc::clone(nar)]);
    let delivery =
        Delivery::Verified { outputs, nars, files: Vec::new(), verdict: Verdict::Agreed };
    Input::Deliver { token: Token(0), agent, attempt, delivery }
}

fn submission(shape: &Shape) -> Box<Submission> {
    let derivation = |node: usize| path(node, ".drv").hash();
    let class = Arc::new(class());
    let facts = (0..shape.count()).map(|node| Facts {
        path: path(node, ".drv"),
        class: Arc::clone(&class),
        outputs: vec![(path(node, "").hash(), Held::No)],
        inputs: shape.inputs(node).iter().map(|input| derivation(*input as usize)).collect(),
        last_end: None,
    });
    let root = |node| Root { derivation: derivation(node), existing: None, id: None };
    Box::new(Submission {
        submitter: name("operator"),
        roots: (0..shape.count()).map(root).collect(),
        facts: facts.collect(),
        inputs: Inputs::Leave,
        priority: 0,
        limits: Limits::default(),
        tags: Vec::new(),
        key: None,
        open_max: None,
        demands: Demands::default(),
        not_before: None,
        replaces: Vec::new(),
    })
}

/// Returns a path for a node; its hash begins like any hash and ends with the number.
fn path(node: usize, suffix: &str) -> StorePath {
    let name = format!("package-{node}{suffix}");
    let mut bytes = [0; 20];
    bytes[..12].copy_from_slice(&Sha256::of(name.as_bytes()).as_bytes()[..12]);
    bytes[12..].copy_from_slice(&(node as u64).to_be_bytes());
    derivations::store_dir().path(PathHash::from_bytes(bytes), &name).unwrap()
}

fn node_of(derivation: &StorePath) -> usize {
    let hash = derivation.hash();
    let number = hash.as_bytes().last_chunk().unwrap();
    u64::from_be_bytes(*number).try_into().unwrap()
}

fn nar(node: usize) -> Arc<NarRecord> {
    let info = PathInfo {
        path: path(node, ""),
        nar_hash: Sha256::from_bytes([7; 32]),
        nar_bytes: 4_096,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    Arc::new(NarRecord {
        info,
        file_hash: Sha256::from_bytes([8; 32]),
        file_bytes: 1_024,
        origin: NarOrigin::Built,
        at: Timestamp::from_ms(1_700_000_000_000),
    })
}
