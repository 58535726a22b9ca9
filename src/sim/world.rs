//! Time, and what happens in it.

use super::{
    Defect, Report,
    chance::Chance,
    coordinator::Coordinator,
    farm::Farm,
    faults::{Fault, Weather},
    machine::{Machine, MachineEvent},
    network::{Arrival, LinkId, Network, Side},
    people::{People, PersonEvent},
    shadow::Shadow,
    trace::{Trace, note},
};
use crate::core::{defect::Planted, engine::Settings, plan::Strategy, time::Timestamp};
use std::collections::BTreeMap;

/// When a simulation begins, by the wall clock.
pub(super) const START_MS: i64 = 1_700_000_000_000;
/// How many things may happen: a run with more spins.
const EVENTS_MAX: u64 = 100_000;
/// How long it may take to come to rest after the last fault: the longest pauses between tries are
/// an hour, and chains of builds may each have some.
const REST_MS_MAX: u64 = 8 * 3_600_000;
/// How often it is looked whether all is at rest.
const LOOK_MS: u64 = 60_000;

/// Something that happens at a time.
#[derive(Debug)]
pub(super) enum Event {
    /// Something comes out of a connection.
    Arrive { link: LinkId, to: Side, arrival: Arrival },
    /// The coordinator's process starts.
    Start,
    /// The engine's thread takes what has come.
    Drain { life: u32 },
    /// The engine wanted to be called by now.
    Wake { life: u32 },
    /// A session of the coordinator wanted to be called by now.
    Deadline { life: u32, link: LinkId },
    /// Received nars are on the coordinator's disk.
    Kept { life: u32, link: LinkId },
    /// Something on a machine.
    Machine { machine: usize, event: MachineEvent },
    /// Somebody wants something.
    Person(PersonEvent),
    /// Something goes wrong.
    Fault(Fault),
    /// From here on nothing does.
    Calm,
    /// It is looked whether all is at rest.
    Look,
}

/// Everything.
pub(super) struct World {
    pub(super) planted: Planted,
    pub(super) settings: Settings,
    /// The time that passes for everybody, in milliseconds.
    pub(super) now_ms: u64,
    /// What the coordinator's wall clock adds to that.
    pub(super) wall_ms: i64,
    pub(super) chance: Chance,
    pub(super) trace: Trace,
    pub(super) farm: Farm,
    pub(super) network: Network,
    pub(super) coordinator: Coordinator,
    pub(super) machines: Vec<Machine>,
    pub(super) people: People,
    pub(super) weather: Weather,
    pub(super) shadow: Shadow,
    /// The first thing that was wrong.
    pub(super) violation: Option<String>,
    queue: BTreeMap<(u64, u64), Event>,
    pushed: u64,
    events: u64,
    calm_since_ms: u64,
}

impl World {
    pub(super) fn new(seed: u64, defect: Option<Defect>) -> Self {
        let mut chance = Chance::new(seed);
        let planted = Planted::one(defect);
        let strategy = *chance.pick(&[Strategy::Basic, Strategy::DerivationOrdered]);
        let lease_ms = chance.between(100, 400) * 1_000;
        let quarantine_after = *chance.pick(&[0, 3, 5]);
        let settings =
            Settings { strategy, lease_ms, quarantine_after, planted, ..Settings::default() };
        let farm = Farm::plant(&mut chance, Timestamp::from_ms(START_MS));
        let weather = Weather::of(&mut chance);
        let count = chance.between(1, 4);
        let machines =
            (0..count).map(|place| Machine::new(&mut chance, usize::try_from(place).unwrap_or(0)));
        let machines = machines.collect();
        let people = People::new(&mut chance);
        Self {
            planted,
            settings,
            now_ms: 0,
            wall_ms: START_MS,
            farm,
            network: Network::default(),
            coordinator: Coordinator::new(seed, planted),
            machines,
            people,
            weather,
            shadow: Shadow::default(),
            trace: Trace::new(),
            violation: None,
            queue: BTreeMap::new(),
            pushed: 0,
            events: 0,
            calm_since_ms: u64::MAX,
            chance,
        }
    }

    /// Lets everything happen, to the end.
    pub(super) fn run(&mut self) -> Result<Report, String> {
        note!(self, "{:?}, lease {} ms", self.settings.strategy, self.settings.lease_ms);
        self.at(0, Event::Start);
        for machine in 0..self.machines.len() {
            let boot = self.chance.below(30_000);
            self.after(boot, Event::Machine { machine, event: MachineEvent::Start });
        }
        self.people_begin();
        self.weather_begins();
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now_ms = self.now_ms.max(at);
            self.events += 1;
            let looked = matches!(event, Event::Look);
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if looked && self.is_at_rest() {
                self.check_rest()?;
                return Ok(self.summary());
            }
            if self.events > EVENTS_MAX {
                return Err("more happens than can be: something spins".to_owned());
            }
            if self.now_ms.saturating_sub(self.calm_since_ms) > REST_MS_MAX {
                return Err(format!(
                    "L1: not at rest long after the last fault: {}",
                    self.unrest()
                ));
            }
        }
        Err("nothing more happens, and not all is at rest".to_owned())
    }

    fn summary(&self) -> Report {
        Report {
            trace_hash: self.trace.hash(),
            events: self.events,
            steps: self.shadow.steps,
            builds: self.shadow.builds.len() as u64,
            attempts: self.shadow.attempts.len() as u64,
            simulated_ms: self.now_ms,
            ..self.shadow.counts
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { link, to, arrival } => self.arrive(link, to, arrival),
            Event::Start => self.coordinator_starts(),
            Event::Drain { life } => self.coordinator_drains(life),
            Event::Wake { life } => self.coordinator_wakes(life),
            Event::Deadline { life, link } => self.session_deadline(life, link),
            Event::Kept { life, link } => self.nars_kept(life, link),
            Event::Machine { machine, event } => self.machine_event(machine, event),
            Event::Person(event) => self.person_event(event),
            Event::Fault(fault) => self.fault(fault),
            Event::Calm => self.calm(),
            Event::Look => {
                self.operator_makes_good();
                self.after(LOOK_MS, Event::Look);
            }
        }
    }

    /// Lets something happen at a time.
    pub(super) fn at(&mut self, at_ms: u64, event: Event) {
        self.pushed += 1;
        self.queue.insert((at_ms.max(self.now_ms), self.pushed), event);
    }

    /// Lets something happen after a while.
    pub(super) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now_ms.saturating_add(ms), event);
    }

    /// Notes that something is not as it must be.
    pub(super) fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        note!(self, "VIOLATED {what}");
        self.violation.get_or_insert(what);
    }

    /// Ends the bad weather.
    fn calm(&mut self) {
        note!(self, "the faults stop");
        self.calm_since_ms = self.now_ms;
        self.weather.is_calm = true;
        self.network.heal();
        for machine in 0..self.machines.len() {
            self.machine_is_well(machine);
        }
        self.operator_makes_good();
        self.after(LOOK_MS, Event::Look);
    }

    /// Returns what the coordinator's wall clock shows.
    pub(super) fn wall(&self) -> Timestamp {
        let passed = i64::try_from(self.now_ms).unwrap_or(i64::MAX);
        Timestamp::from_ms(self.wall_ms.saturating_add(passed).max(1))
    }

    /// Returns what a machine is called.
    pub(super) fn who(&self, machine: usize) -> String {
        self.machines[machine].name.to_string()
    }
}
