//! Random histories: whatever is submitted, canceled, built, lost, repeated and restarted, in any
//! order, memory and disk agree after every step, and in the end everything that can be built is.

use super::{
    disk::{Disk, Model},
    world::{SYSTEM, Wish, World, abilities, name, nar},
};
use crate::core::{
    attempt::{Held, HeldPhase},
    build::ShownState,
    change::Change,
    defect::Planted,
    demands::Demands,
    engine::{Authority, Decision, Delivery, Inputs, RetryWish, Snapshot, SnapshotBuild, Wanted},
    graph::Standing,
    id::BuildId,
    outcome::{BuildFailure, Outcome, SetupFailure},
    plan::{FairShare, Strategy as Ordering},
};
use proptest::prelude::*;

const DERIVATIONS_MAX: usize = 25;
const EVENTS_MAX: usize = 60;
/// Systems of derivations; nobody builds for the last one.
const SYSTEMS: [&str; 3] = [SYSTEM, "aarch64-linux", "riscv64-linux"];
/// The agents, and for how many of [`SYSTEMS`] and how many builds at a time each one is.
const AGENTS: [(&str, &[&str], u32); 3] = [
    ("amber", &[SYSTEM], 2),
    ("birch", &[SYSTEM, "aarch64-linux"], 1),
    ("cedar", &["aarch64-linux"], 3),
];

/// How far attempts are that agents come back with, round and round.
const PHASES: [HeldPhase; 4] = [
    HeldPhase::Building,
    HeldPhase::Finished(Outcome::Built),
    HeldPhase::Preparing,
    HeldPhase::Finished(Outcome::Canceled),
];

/// A derivation to make. Its inputs are among those before it.
#[derive(Debug, Clone)]
pub(crate) struct Plant {
    inputs: Vec<usize>,
    system: usize,
    outputs: Outputs,
}

#[derive(Debug, Clone)]
enum Outputs {
    One,
    Two,
    /// One of a few fixed outputs, which others may make as well.
    Shared(u8),
}

/// Something that happens. Numbers pick one of what there is, counted round and round.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Submit { roots: Vec<usize>, inputs: bool, priority: i32, key: Option<u8>, terms: u8 },
    Cancel { build: usize, force: bool },
    Amend { build: usize, what: u8 },
    Retry { build: usize, wish: u8 },
    Join { agent: usize, held: u8 },
    Leave(usize),
    Started { attempt: usize, by: Option<usize> },
    Finished { attempt: usize, by: Option<usize>, outcome: u8 },
    Offer { attempt: usize },
    Deliver { attempt: usize, taken: u8 },
    Record(usize),
    Wants { agent: usize, slots: u32 },
    Intake { closed: bool },
    Decide { agent: usize, decision: u8 },
    Expel(usize),
    Pass(u64),
    WallJumps(i64),
    Configure(u8),
    Lose(usize),
    Prune(usize),
    Withdraw(usize),
    Restart,
}

/// A whole history.
#[derive(Debug, Clone)]
pub(crate) struct History {
    ordered: bool,
    fair: bool,
    tries: bool,
    plants: Vec<Plant>,
    events: Vec<Event>,
}

fn plant() -> impl Strategy<Value = (Vec<usize>, usize, Outputs)> {
    let outputs = prop_oneof![
        4 => Just(Outputs::One),
        1 => Just(Outputs::Two),
        1 => (0..2u8).prop_map(Outputs::Shared),
    ];
    let system = prop_oneof![6 => Just(0usize), 3 => Just(1), 1 => Just(2)];
    (prop::collection::vec(any::<usize>(), 0..4), system, outputs)
}

fn event() -> impl Strategy<Value = Event> {
    // Mostly of late attempts, by whoever has them, so that histories get somewhere.
    let attempt = || prop_oneof![4 => 0..4usize, 1 => any::<usize>()];
    let by = || prop_oneof![9 => Just(None), 1 => (0..3usize).prop_map(Some)];
    prop_oneof![
        4 => (
            prop::collection::vec(any::<usize>(), 1..3),
            prop::bool::weighted(0.7),
            -2..3i32,
            prop::option::weighted(0.3, 0..2u8),
            any::<u8>(),
        )
            .prop_map(|(roots, inputs, priority, key, terms)| {
                Event::Submit { roots, inputs, priority, key, terms }
            }),
        2 => (any::<usize>(), any::<bool>())
            .prop_map(|(build, force)| Event::Cancel { build, force }),
        2 => (any::<usize>(), 0..6u8).prop_map(|(build, what)| Event::Amend { build, what }),
        4 => (any::<usize>(), 0..6u8).prop_map(|(build, wish)| Event::Retry { build, wish }),
        4 => (0..3usize, any::<u8>()).prop_map(|(agent, held)| Event::Join { agent, held }),
        1 => (0..3usize).prop_map(Event::Leave),
        1 => (0..3usize).prop_map(Event::Expel),
        4 => (attempt(), by()).prop_map(|(attempt, by)| Event::Started { attempt, by }),
        10 => (attempt(), by(), 0..14u8)
            .prop_map(|(attempt, by, outcome)| Event::Finished { attempt, by, outcome }),
        3 => attempt().prop_map(|attempt| Event::Offer { attempt }),
        10 => (attempt(), any::<u8>())
            .prop_map(|(attempt, taken)| Event::Deliver { attempt, taken }),
        1 => any::<usize>().prop_map(Event::Record),
        1 => (0..3usize, 0..4u32).prop_map(|(agent, slots)| Event::Wants { agent, slots }),
        1 => any::<bool>().prop_map(|closed| Event::Intake { closed }),
        2 => (0..3usize, 0..6u8).prop_map(|(agent, decision)| Event::Decide { agent, decision }),
        3 => prop_oneof![Just(1u64), Just(10_000), Just(90_000), Just(1_200_000)]
            .prop_map(Event::Pass),
        1 => prop_oneof![Just(-3_600_000i64), Just(3_600_000)].prop_map(Event::WallJumps),
        1 => (0..6u8).prop_map(Event::Configure),
        1 => any::<usize>().prop_map(Event::Lose),
        1 => any::<usize>().prop_map(Event::Prune),
        1 => any::<usize>().prop_map(Event::Withdraw),
        1 => Just(Event::Restart),
    ]
}

pub(crate) fn history() -> impl Strategy<Value = History> {
    let plants = prop::collection::vec(plant(), 1..=DERIVATIONS_MAX);
    let events = prop::collection::vec(event(), 1..=EVENTS_MAX);
    let modes = (any::<bool>(), any::<bool>(), any::<bool>());
    (modes, plants, events).prop_map(|((ordered, fair, tries), plants, events)| {
        let plants = plants.into_iter().enumerate().map(|(place, (inputs, system, outputs))| {
            // Near ones, so that chains get long.
            let near = |pick: usize| place.checked_sub(1 + pick % 5);
            let mut inputs: Vec<usize> = inputs.into_iter().filter_map(near).collect();
            inputs.sort_unstable();
            inputs.dedup();
            Plant { inputs, system, outputs }
        });
        History { ordered, fair, tries, plants: plants.collect(), events }
    })
}

/// Returns what a build asks of its agent: nothing, more often than not.
fn demands(number: u8) -> Demands {
    let names = |picked: &[usize]| picked.iter().map(|agent| name(AGENTS[*agent].0)).collect();
    let none = Demands::default();
    match number % 8 {
        0 => Demands { agents: names(&[1]), ..none },
        1 => Demands { not_agents: names(&[0]), ..none },
        2 => Demands { agents: names(&[0, 2]), not_agents: names(&[2]), ..none },
        3 => Demands { native_only: true, ..none },
        _ => none,
    }
}

/// A history as it goes.
struct Telling {
    world: World,
    derivations: Vec<String>,
    returned: Vec<BuildId>,
}

/// Tells a history on a disk.
pub(crate) fn tell(history: &History, disk: Box<dyn Disk>) {
    tell_with(history, disk, Planted::default());
}

/// Tells a history of an engine that makes a mistake.
fn tell_with(history: &History, disk: Box<dyn Disk>, planted: Planted) {
    let mut telling =
        Telling { world: World::new(disk), derivations: Vec::new(), returned: vec![] };
    // So that short histories have quarantines, too.
    telling.world.settings.quarantine_after = 2;
    telling.world.settings.planted = planted;
    if history.tries {
        telling.world.settings.build_missing = true;
        telling.world.settings.retries.exit = 1;
    }
    if history.fair {
        let fair = FairShare { weight_minutes: 30, half_life_minutes: 60 };
        telling.world.settings.fair_share = fair;
    }
    telling.world.restart();
    if history.ordered {
        telling.world.strategy(Ordering::DerivationOrdered);
    }
    for (place, plant) in history.plants.iter().enumerate() {
        telling.plant(place, plant);
    }
    for event in &history.events {
        telling.happens(event);
        telling.world.forget();
    }
    telling.comes_to_rest();
    for build in &telling.returned {
        assert!(telling.world.disk.has_build(*build), "{build} was returned and is not on disk");
    }
}

impl Telling {
    fn plant(&mut self, place: usize, plant: &Plant) {
        let name = format!("d{place}");
        let outputs = match plant.outputs {
            Outputs::One => vec![name.clone()],
            Outputs::Two => vec![name.clone(), format!("{name}-doc")],
            Outputs::Shared(which) => vec![format!("shared{which}")],
        };
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let inputs: Vec<String> = plant.inputs.iter().map(|input| format!("d{input}")).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.world.derivation(&name, SYSTEMS[plant.system], &outputs, &inputs);
        self.derivations.push(name);
    }

    fn pick(&self, number: usize) -> String {
        self.derivations[number % self.derivations.len()].clone()
    }

    /// Returns an attempt that was ever given, the last one first, and who got it.
    fn attempt(&self, number: usize) -> Option<(String, &'static str)> {
        let given = self.world.given();
        let (attempt, agent) = given.iter().rev().nth(number % given.len().max(1))?;
        let agent = AGENTS.iter().find(|(name, _, _)| name == agent)?.0;
        Some((self.world.attempt_names[attempt].clone(), agent))
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Submit { roots, inputs, priority, key, terms } => {
                let roots: Vec<String> = roots.iter().map(|root| self.pick(*root)).collect();
                let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
                let wish = Wish {
                    inputs: if *inputs { Inputs::Build } else { Inputs::Leave },
                    priority: *priority,
                    key: key.map(|key| key.to_string()),
                    demands: demands(*terms),
                    defer_ms: (terms % 7 == 6).then_some(7_200_000),
                    submitter: ["ada", "bea"][usize::from(terms / 128)],
                    replaces: if terms % 9 == 8 { self.returned.clone() } else { Vec::new() },
                    open_max: None,
                };
                let builds = self.world.submit_all(&roots, wish);
                assert_eq!(builds.len(), roots.len());
                self.returned.extend(builds);
            }
            Event::Cancel { build, force } => {
                if let Some(build) = self.build(*build) {
                    let wanted = if *force { Wanted::Goes } else { Wanted::Stays };
                    self.world.cancel_all(&[build], Authority::All, wanted);
                }
            }
            Event::Amend { build, what } => {
                if let Some(build) = self.build(*build) {
                    self.amend(build, *what);
                }
            }
            Event::Retry { build, wish } => {
                if let Some(build) = self.build(*build) {
                    let Demands { agents, not_agents, .. } = demands(*wish);
                    let priority = (*wish == 5).then_some(4);
                    let again = RetryWish { agents, not_agents, priority, open_max: None };
                    self.world.retries(&[build], again);
                    if matches!(*wish, 3 | 4) {
                        self.world.cancel_all(&[build], Authority::All, Wanted::Goes);
                    }
                }
            }
            Event::Join { agent, held } => self.join(*agent, |place| held >> (place % 8) & 1 == 0),
            Event::Leave(agent) => self.world.leave(AGENTS[*agent].0),
            Event::Started { attempt, by } => {
                if let Some((attempt, agent)) = self.attempt(*attempt) {
                    let by = by.map_or(agent, |by| AGENTS[by].0);
                    if self.world.session_is_open(by) {
                        self.world.started(by, &attempt);
                    }
                }
            }
            Event::Finished { attempt, by, outcome } => {
                if let Some((attempt, agent)) = self.attempt(*attempt) {
                    let by = by.map_or(agent, |by| AGENTS[by].0);
                    if self.world.session_is_open(by) {
                        let outcome = self.outcome(*outcome, &attempt);
                        self.world.finished(by, &attempt, outcome);
                    }
                }
            }
            Event::Offer { attempt } => {
                if let Some((attempt, agent)) = self.attempt(*attempt) {
                    self.world.offer(agent, &attempt);
                }
            }
            Event::Deliver { attempt, taken } => {
                if let Some((attempt, agent)) = self.attempt(*attempt) {
                    self.deliver(agent, &attempt, *taken);
                }
            }
            Event::Record(number) => {
                self.world.record(vec![Change::Nar(nar(&self.output(*number)))]);
            }
            Event::Lose(number) => self.world.loses(&[&self.output(*number)]),
            Event::Withdraw(number) => self.world.withdraws(&[(&self.output(*number), &[])]),
            Event::Prune(number) => self.prunes(*number),
            Event::Wants { agent, slots } => {
                let agent = AGENTS[*agent].0;
                if self.world.session_is_open(agent) {
                    self.world.wants(agent, *slots, "it is busy");
                }
            }
            Event::Intake { closed } => self.world.close_intake(closed.then_some("it is full")),
            Event::Decide { agent, decision } => self.decide(AGENTS[*agent].0, *decision),
            Event::Expel(agent) => self.expel(AGENTS[*agent].0),
            Event::Pass(ms) => self.world.pass_ms(*ms),
            Event::WallJumps(ms) => self.world.wall_clock_jumps(*ms),
            Event::Configure(what) => self.configure(*what),
            Event::Restart => self.world.restart(),
        }
        self.world.assert_supplied();
    }

    /// Takes the key of an agent away: what it had is nobody's at once, and is not its own when it
    /// comes back with a new one.
    fn expel(&mut self, agent: &str) {
        let name = name(agent);
        self.world.expel(agent);
        let snapshot = self.world.engine.snapshot();
        let keeps = |build: &SnapshotBuild| build.state.lease().is_some_and(|l| l.agent == name);
        let kept = snapshot.builds.values().filter(|build| keeps(build)).count();
        assert_eq!(kept, 0, "{agent} has no key and keeps builds");
    }

    /// Forgets any build that is over.
    fn prunes(&mut self, number: usize) {
        let open = self.world.engine.snapshot().builds;
        let disk = &self.world.disk;
        let over = |build: &BuildId| !open.contains_key(build) && disk.has_build(*build);
        if let Some(build) = self.build(number).filter(over) {
            self.world.prunes(&[build]);
            self.returned.retain(|other| self.world.disk.has_build(*other));
        }
    }

    /// Returns the name of any output.
    fn output(&self, number: usize) -> String {
        let outputs = &self.world.drv(&self.pick(number)).outputs;
        outputs[number / 7 % outputs.len()].0.clone()
    }

    /// Returns any build that ever was.
    fn build(&self, number: usize) -> Option<BuildId> {
        let builds = &self.world.build_names;
        builds.keys().nth(number % builds.len().max(1)).copied()
    }

    fn amend(&mut self, build: BuildId, what: u8) {
        match what {
            0 => self.world.sets_priority(build, 3),
            1 => self.world.sets_priority(build, -3),
            2 | 3 => self.world.holds(build),
            _ => self.world.releases(build),
        }
    }

    fn configure(&mut self, what: u8) {
        self.world.configure(|settings| match what {
            0 => settings.strategy = Ordering::Basic,
            1 => settings.strategy = Ordering::DerivationOrdered,
            2 => settings.build_missing = !settings.build_missing,
            3 => settings.priority_step = 7,
            4 => settings.fair_share = FairShare::default(),
            _ => {
                let fair = FairShare { weight_minutes: 60, half_life_minutes: 30 };
                settings.fair_share = fair;
            }
        });
    }

    /// An agent comes with some of the attempts it ever had.
    fn join(&mut self, agent: usize, has_kept: impl Fn(usize) -> bool) {
        let (name, systems, slots) = AGENTS[agent];
        let own = self.world.given().into_iter().filter(|(_, to)| to == name);
        let held: Vec<Held> = own
            .map(|(attempt, _)| attempt)
            .enumerate()
            .filter(|(place, _)| has_kept(*place))
            .map(|(place, attempt)| Held { attempt, phase: PHASES[place % PHASES.len()].clone() })
            .collect();
        self.world.join_with(name, 0, abilities(systems, slots), &held);
    }

    fn decide(&mut self, agent: &str, number: u8) {
        let until = number.is_multiple_of(2).then(|| self.world.now.wall.plus_ms(90_000));
        let decision = match number {
            0 | 1 => Decision::Pause { reason: None, until },
            2 | 3 => Decision::Drain { reason: Some("it moves".to_owned()), until },
            4 => Decision::Resume,
            _ => Decision::Remove,
        };
        self.world.decides(agent, decision);
    }

    fn outcome(&self, number: u8, attempt: &str) -> Outcome {
        let drv = self.world.drv(attempt.split(['.', '#']).next().unwrap());
        let missed = || {
            let of = |input: &String| self.world.drv(input).outputs.clone();
            let mine =
                |name: &&String| drv.inputs.contains(&self.world.drv(name.as_str()).path.hash());
            let inputs = self.derivations.iter().filter(mine);
            inputs.flat_map(of).map(|(_, path)| path).take(usize::from(number % 3)).collect()
        };
        match number {
            0..6 => Outcome::Built,
            6..8 => Outcome::Failed(BuildFailure::Exit(1)),
            8..10 => Outcome::SetupFailed(SetupFailure::MissingInputs(missed())),
            10 => Outcome::SetupFailed(SetupFailure::DiskFull),
            11 => Outcome::SetupFailed(SetupFailure::AttemptLost("killed".to_owned())),
            12 => Outcome::Canceled,
            _ => Outcome::SetupFailed(SetupFailure::MissingInputs(
                self.world.drv(&self.derivations[0]).outputs.iter().map(|o| o.1.clone()).collect(),
            )),
        }
    }

    /// Outputs come and are refused, taken, or only some are, as when others were held.
    fn deliver(&mut self, agent: &str, attempt: &str, taken: u8) {
        if taken < 32 {
            let refused = Delivery::Rejected("wrong hash".to_owned());
            return self.world.deliver_as(agent, attempt, refused);
        }
        let drv = self.world.drv(attempt.split(['.', '#']).next().unwrap());
        let outs: Vec<String> = drv.outputs.iter().map(|(out, _)| out.clone()).collect();
        let is_taken = |place: &usize| taken >= 64 || taken >> place & 1 == 1;
        let nars = outs.iter().enumerate().filter(|(place, _)| is_taken(place));
        let nars = nars.map(|(_, out)| nar(out)).collect();
        self.world.deliver_as(agent, attempt, World::verified(&outs, nars));
    }

    /// From here on everybody is well: agents come, keep what they have, and build all of it.
    fn comes_to_rest(&mut self) {
        self.world.close_intake(None);
        for (agent, (name, _, _)) in AGENTS.iter().enumerate() {
            self.join(agent, |_| true);
            self.world.decides(name, Decision::Resume);
        }
        let open: Vec<BuildId> = self.world.engine.snapshot().builds.into_keys().collect();
        for build in &open {
            self.world.releases(*build);
        }
        // What is deferred for long would only be waited for.
        self.world.retries(&open, RetryWish::default());
        let bound = 20 * (self.world.engine.snapshot().builds.len() + 1);
        for _ in 0..bound {
            let leased = self.world.snapshot_attempts();
            for (attempt, agent) in &leased {
                self.world.finished(agent, attempt, Outcome::Built);
                self.world.deliver(agent, attempt);
            }
            if leased.is_empty() {
                match self.world.engine.wakes_in_ms(self.world.now) {
                    Some(ms) => self.world.pass_ms(ms),
                    None => break,
                }
            }
        }
        let snapshot = self.world.engine.snapshot();
        for (id, build) in &snapshot.builds {
            assert!(
                self.may_rest(&snapshot, *id),
                "{} stays {}",
                self.world.build_names[id],
                build.shown
            );
        }
    }

    /// Tells whether nothing more can happen to a build by itself.
    fn may_rest(&self, snapshot: &Snapshot, id: BuildId) -> bool {
        let drv = self.world.drv(self.world.build_names[&id].split('#').next().unwrap());
        match snapshot.builds[&id].shown {
            ShownState::Blocked => true,
            ShownState::Ready => {
                let class = &drv.class;
                let demands = &snapshot.builds[&id].extras.demands;
                !AGENTS.iter().any(|(agent, systems, slots)| {
                    let (agent, abilities) = (name(agent), abilities(systems, *slots));
                    class.obstacle(&abilities).is_none()
                        && demands.obstacle(class, &agent, &abilities).is_none()
                })
            }
            // Then the input itself is nobody's business, or cannot go on either.
            ShownState::Waiting => drv.inputs.iter().any(|input| {
                let graph = self.world.engine.graph();
                let at = graph.find(*input).unwrap();
                let node = graph.node(at);
                let mut builds = graph.builds(at).iter().map(|ix| self.world.engine.build(*ix).id);
                node.standing != Standing::Available && builds.all(|id| self.may_rest(snapshot, id))
            }),
            _ => false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_memory_and_disk_equal_and_comes_to_rest(history in history()) {
        tell(&history, Box::<Model>::default());
    }
}

/// How many histories a planted mistake may survive.
#[cfg(feature = "sim")]
const SURVIVED_MAX: usize = 600;

/// Each mistake is planted, and the same histories are told until one of them notices it.
#[cfg(feature = "sim")]
#[test]
fn each_planted_mistake_is_noticed() {
    use crate::core::defect::Defect;
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    use std::panic::{self, AssertUnwindSafe};

    let mut unnoticed = Vec::new();
    for defect in Defect::IN_HISTORIES {
        let mut runner = TestRunner::deterministic();
        let noticed = (0..SURVIVED_MAX).any(|_| {
            let history = history().new_tree(&mut runner).unwrap().current();
            let planted = Planted::one(Some(*defect));
            let telling = || tell_with(&history, Box::<Model>::default(), planted);
            panic::catch_unwind(AssertUnwindSafe(telling)).is_err()
        });
        if !noticed {
            unnoticed.push(defect.word());
        }
    }
    assert_eq!(unnoticed, Vec::<&str>::new());
}
