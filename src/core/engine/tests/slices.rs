//! What very many wait for, and who is served meanwhile.

use super::world::{abilities, name, nar, output};
use crate::core::{
    agent::SessionId,
    build::ShownState,
    change::{Limits, OutputRecord, Verdict},
    demands::Demands,
    engine::{
        Amendment, Ask, Authority, Delivery, Effect, Engine, HoldWish, IdSource, Input, Inputs,
        Order, Root, Settings, Submission, Token, Told, Wanted, queueing::REFRESHED_MAX,
    },
    graph::{Facts, Held},
    hash::Sha256,
    id::{AttemptId, BuildId, InstanceId},
    outcome::Outcome,
    plan::{Class, FairShare},
    store_path::{PathHash, StoreDir},
    time::{Monotonic, Now, Timestamp},
};
use std::sync::Arc;

const DEPENDENTS: usize = 50_000;

struct Counting(u64);

impl IdSource for Counting {
    fn random(&mut self) -> [u8; 10] {
        self.0 += 1;
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&self.0.to_be_bytes());
        bytes
    }
}

struct Hub {
    engine: Engine,
    ids: Counting,
    sessions: u64,
}

fn now() -> Now {
    Now { wall: Timestamp::from_ms(1_700_000_000_000), mono: Monotonic::from_ms(0) }
}

fn derivation(name: &str) -> PathHash {
    PathHash::fold(&Sha256::of(name.as_bytes()))
}

fn facts(name: &str, class: &Arc<Class>, inputs: &[&str]) -> Facts {
    Facts {
        path: StoreDir::guix().path(derivation(name), &format!("{name}.drv")).unwrap(),
        class: Arc::clone(class),
        outputs: vec![(output(name).hash(), Held::No)],
        inputs: inputs.iter().map(|input| derivation(input)).collect(),
        last_end: None,
    }
}

fn class(system: &str) -> Arc<Class> {
    let (store_dir, system) = (StoreDir::guix(), Some(system.to_owned()));
    Arc::new(Class { store_dir, system, features: Vec::new() })
}

impl Hub {
    /// Fifty thousand builds wait for one, and one for another system waits for an agent.
    fn new() -> Self {
        let (hubs, others) = (class("x86_64-linux"), class("riscv64-linux"));
        let mut all = vec![facts("hub", &hubs, &[]), facts("lonely", &others, &[])];
        all.extend((0..DEPENDENTS).map(|number| facts(&format!("d{number}"), &hubs, &["hub"])));
        let roots = all
            .iter()
            .map(|facts| Root { derivation: facts.path.hash(), existing: None, id: None })
            .collect();
        let submission = Box::new(Submission {
            submitter: name("ada"),
            roots,
            facts: all,
            inputs: Inputs::Build,
            priority: 0,
            limits: Limits::default(),
            tags: Vec::new(),
            key: None,
            open_max: None,
            demands: Demands::default(),
            not_before: None,
            replaces: Vec::new(),
        });
        let engine = Engine::new(Settings::default());
        let mut hub = Self { engine, ids: Counting(0), sessions: 0 };
        hub.step(vec![Input::Submit { token: Token(1), submission }]);
        hub.settle();
        hub
    }

    /// Returns the attempts that this step gave to agents.
    fn step(&mut self, inputs: Vec<Input>) -> Vec<AttemptId> {
        let step = self.engine.step(now(), &mut self.ids, inputs);
        let given = step.effects.into_iter().filter_map(|effect| match effect {
            Effect::Tell { order: Order::Allocate { attempt, .. }, .. } => Some(attempt),
            _ => None,
        });
        given.collect()
    }

    fn has_more_to_do(&self) -> bool {
        self.engine.wakes_in_ms(now()) == Some(0)
    }

    /// Goes on until nothing is left to do. Returns in how many steps.
    fn settle(&mut self) -> usize {
        let mut steps = 0;
        while self.has_more_to_do() {
            self.step(Vec::new());
            steps += 1;
        }
        steps
    }

    fn joins(&mut self, agent: &str, system: &str) -> Vec<AttemptId> {
        self.sessions += 1;
        self.step(vec![Input::Join {
            session: SessionId(self.sessions),
            name: name(agent),
            instance: InstanceId::from_bytes([0; 16]),
            abilities: abilities(&[system], 4),
            held: Vec::new(),
            capacity: None,
        }])
    }

    fn ready(&self) -> usize {
        self.count(ShownState::Ready)
    }

    fn count(&self, state: ShownState) -> usize {
        match self.engine.ask(&Ask::Counts) {
            Told::Counts(counts) => counts.builds.get(&state).copied().unwrap_or(0),
            _ => unreachable!("counts were asked for"),
        }
    }

    /// Amber builds the hub.
    fn is_built(&mut self) -> Vec<AttemptId> {
        let attempt = self.joins("amber", "x86_64-linux")[0];
        let session = SessionId(self.sessions);
        let made = OutputRecord {
            name: "out".to_owned(),
            path: output("hub"),
            nar_hash: Sha256::of(b"hub"),
            nar_bytes: 120,
        };
        let delivery = Delivery::Verified {
            outputs: vec![made],
            nars: vec![nar("hub")],
            files: Vec::new(),
            verdict: Verdict::Agreed,
        };
        self.step(vec![
            Input::Finished { session, attempt, outcome: Outcome::Built },
            Input::Deliver { token: Token(2), agent: name("amber"), attempt, delivery },
        ])
    }
}

#[test]
fn who_waits_for_a_hub_is_woken_in_slices_and_others_are_served_between_them() {
    let mut hub = Hub::new();
    assert_eq!(hub.ready(), 2, "the hub and the lonely one");
    let given = hub.is_built();
    assert_eq!(given.len(), 4, "amber needs not wait for the rest");
    assert!(hub.has_more_to_do());
    assert!(hub.ready() < REFRESHED_MAX, "{} woken at once", hub.ready());
    assert_eq!(hub.engine.check(), Vec::<String>::new());

    let given = hub.joins("birch", "riscv64-linux");
    assert_eq!(given.len(), 1, "the lonely one has its agent in the next slice");
    assert!(hub.has_more_to_do());

    let steps = hub.settle();
    assert!(steps >= DEPENDENTS / REFRESHED_MAX - 2, "{steps} steps");
    assert_eq!(hub.ready(), DEPENDENTS - 4);
    assert_eq!(hub.engine.check(), Vec::<String>::new());
}

#[test]
fn what_ends_between_slices_is_not_woken() {
    let mut hub = Hub::new();
    hub.is_built();
    let builds = hub.engine.snapshot().builds;
    let waiting = builds.iter().filter(|(_, build)| build.state.lease().is_none());
    let builds = waiting.map(|(id, _)| *id).collect();
    let by = Authority::All;
    let wanted = Wanted::Goes;
    hub.step(vec![Input::Cancel { token: Token(3), builds, by, wanted }]);
    hub.settle();
    assert_eq!(hub.ready(), 0);
    assert_eq!(hub.engine.snapshot().builds.len(), 4, "what amber has goes on");
    assert_eq!(hub.engine.check(), Vec::<String>::new());
}

#[test]
fn what_is_held_between_slices_goes_to_nobody() {
    let mut hub = Hub::new();
    hub.is_built();
    let builds: Vec<BuildId> = hub.engine.snapshot().builds.into_keys().collect();
    let amendment = Amendment { hold: Some(HoldWish::Hold(name("olga"))), ..Amendment::default() };
    let by = Authority::All;
    assert_eq!(hub.step(vec![Input::Amend { token: Token(3), builds, by, amendment }]), []);
    assert_eq!(hub.engine.check(), Vec::<String>::new());
    assert_eq!(hub.joins("birch", "x86_64-linux"), []);
    hub.settle();
    assert_eq!(hub.ready(), 0);
    let open = hub.engine.snapshot().builds.len();
    assert_eq!(hub.count(ShownState::Held), open - 4, "what amber has goes on");
    assert_eq!(hub.engine.check(), Vec::<String>::new());
}

#[test]
fn other_settings_are_judged_by_in_slices() {
    let mut hub = Hub::new();
    hub.is_built();
    hub.settle();
    let fair_share = FairShare { weight_minutes: 60, half_life_minutes: 60 };
    let settings = Settings { priority_step: 7, fair_share, ..Settings::default() };
    hub.step(vec![Input::Configure { token: Token(3), settings }]);
    assert!(hub.has_more_to_do());
    assert_eq!(hub.engine.check(), Vec::<String>::new());
    let steps = hub.settle();
    assert!(steps >= DEPENDENTS / REFRESHED_MAX - 2, "{steps} steps");
    assert_eq!(hub.ready(), DEPENDENTS - 4 + 1);
    assert_eq!(hub.engine.check(), Vec::<String>::new());
}
