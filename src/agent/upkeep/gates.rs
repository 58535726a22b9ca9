//! How many builds this machine wants to run at a time just now, judged from what was read of it.
//!
//! Pure: time and readings come in as values. Each gate watches one quantity. It shuts when the
//! limit is passed and opens again only behind a margin and after a while, because a machine at
//! its limit crosses it all the time. While a gate is shut no build is wanted; those that run go
//! on. After a start, and after a gate has opened, builds begin one after the other.

use crate::core::{agent::Capacity, time::Monotonic};
use std::{collections::BTreeMap, fmt, time::Duration};

/// How far a quantity must be back behind its limit before its gate opens: a tenth.
const MARGIN: f64 = 0.1;
/// How long a gate stays shut at least. Pressure is an average over ten seconds and load one over
/// a minute; what is shorter than this would follow noise.
const SHUT_MIN: Duration = Duration::from_secs(30);

/// What keeps a machine from taking builds. Everything that is absent is not looked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// The highest load average over one minute, in runnable or waiting processes.
    pub load: Option<f64>,
    /// For how much of the last ten seconds some process may have waited for a resource, in
    /// percent of the time.
    pub pressure: BTreeMap<Resource, f64>,
    /// How much memory must be available without swapping, in bytes.
    pub memory_bytes: Option<u64>,
    /// How much must be free on the filesystems of the store and of the state directory, in bytes.
    pub free_bytes: Option<u64>,
    /// How much time lies between the first builds after a start; zero lets all begin at once.
    pub gentle_start: Duration,
}

/// What processes wait for, as the kernel's pressure-stall information tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A processor.
    Cpu,
    /// Memory that has to be reclaimed or read back.
    Memory,
    /// Disks.
    Io,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Io];

    /// Returns the name: of the file in `/proc/pressure`, and in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What was read of the machine. What could not be read is absent, and shuts no gate.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reading {
    /// The load average over one minute.
    pub(crate) load: Option<f64>,
    /// Percent of the last ten seconds in which some process waited.
    pub(crate) pressure: BTreeMap<Resource, f64>,
    /// Memory that is available without swapping, in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Free bytes on the store's filesystem.
    pub(crate) store_free_bytes: Option<u64>,
    /// Free bytes on the state directory's filesystem.
    pub(crate) state_free_bytes: Option<u64>,
}

/// One quantity that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    Load,
    Pressure(Resource),
    Memory,
    StoreDisk,
    StateDisk,
}

/// What one gate compares.
enum Measure {
    /// The value must not be above the limit.
    AtMost { value: f64, limit: f64 },
    /// The value must not be below the limit.
    AtLeast { value: u64, limit: u64 },
}

impl Measure {
    fn is_passed(&self) -> bool {
        match *self {
            Self::AtMost { value, limit } => value > limit,
            Self::AtLeast { value, limit } => value < limit,
        }
    }

    /// Tells whether the value is back far enough for the gate to open.
    fn is_well_back(&self) -> bool {
        match *self {
            Self::AtMost { value, limit } => value <= limit * (1.0 - MARGIN),
            Self::AtLeast { value, limit } => value >= limit.saturating_add(limit / 10),
        }
    }
}

/// A gate that is shut.
#[derive(Debug, Clone, PartialEq)]
struct Shut {
    since: Monotonic,
    /// With the numbers of the moment it shut, so that the words do not change all the time.
    reason: String,
}

/// How builds begin one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ramp {
    /// How many may run.
    allowed: u32,
    /// When one more may.
    next: Monotonic,
}

/// The gates of one machine.
#[derive(Debug)]
pub(crate) struct Gates {
    slots: u32,
    limits: Limits,
    shut: BTreeMap<Gate, Shut>,
    /// Absent until the first judgement, and while a gate is shut.
    ramp: Option<Ramp>,
}

impl Gates {
    /// Returns the gates of a machine that runs so many builds at a time at best.
    pub(crate) const fn new(slots: u32, limits: Limits) -> Self {
        Self { slots, limits, shut: BTreeMap::new(), ramp: None }
    }

    /// Lets other limits hold from the next judgement on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        // A gate that was shut by another limit has not been judged by this one.
        self.shut.clear();
    }

    /// Tells whether there is too little room in the store.
    pub(crate) fn wants_room(&self) -> bool {
        self.shut.contains_key(&Gate::StoreDisk)
    }

    /// Returns how many builds are wanted, of which `running` are there already.
    pub(crate) fn judge(&mut self, now: Monotonic, reading: &Reading, running: u32) -> Capacity {
        let measures = measures(&self.limits, reading);
        self.shut.retain(|gate, shut| {
            let long_enough = now.as_ms() >= shut.since.plus_ms(as_ms(SHUT_MIN)).as_ms();
            match measures.get(gate) {
                Some(measure) => !(long_enough && measure.is_well_back()),
                // It cannot be read any more, and nobody can tell when it would open.
                None => false,
            }
        });
        for (gate, measure) in measures {
            if measure.is_passed() {
                let reason = || Shut { since: now, reason: words(gate, &measure) };
                self.shut.entry(gate).or_insert_with(reason);
            }
        }
        if self.shut.is_empty() {
            return self.ramp(now, running);
        }
        self.ramp = None;
        let reasons: Vec<&str> = self.shut.values().map(|shut| shut.reason.as_str()).collect();
        Capacity { slots: 0, reason: Some(reasons.join("; ")) }
    }

    /// Lets builds begin one after the other.
    fn ramp(&mut self, now: Monotonic, running: u32) -> Capacity {
        let pause = as_ms(self.limits.gentle_start);
        let ramp = match self.ramp {
            Some(ramp) if now >= ramp.next => {
                Ramp { allowed: ramp.allowed.saturating_add(1), next: now.plus_ms(pause) }
            }
            Some(ramp) => ramp,
            None => Ramp { allowed: running.saturating_add(1), next: now.plus_ms(pause) },
        };
        self.ramp = Some(ramp);
        if pause == 0 || ramp.allowed >= self.slots {
            // Who is through stays through, also when limits are changed.
            self.ramp = Some(Ramp { allowed: self.slots, next: now });
            return Capacity { slots: self.slots, reason: None };
        }
        let reason = format!("builds begin one by one: {} of {} slots", ramp.allowed, self.slots);
        Capacity { slots: ramp.allowed, reason: Some(reason) }
    }
}

/// Returns what there is to compare: of each quantity that has a limit and was read.
fn measures(limits: &Limits, reading: &Reading) -> BTreeMap<Gate, Measure> {
    let at_most = |value: Option<f64>, limit: Option<f64>| {
        value.zip(limit).map(|(value, limit)| Measure::AtMost { value, limit })
    };
    let at_least = |value: Option<u64>, limit: Option<u64>| {
        value.zip(limit).map(|(value, limit)| Measure::AtLeast { value, limit })
    };
    let pressure = Resource::ALL.into_iter().map(|resource| {
        let value = reading.pressure.get(&resource).copied();
        (Gate::Pressure(resource), at_most(value, limits.pressure.get(&resource).copied()))
    });
    let others = [
        (Gate::Load, at_most(reading.load, limits.load)),
        (Gate::Memory, at_least(reading.memory_bytes, limits.memory_bytes)),
        (Gate::StoreDisk, at_least(reading.store_free_bytes, limits.free_bytes)),
        (Gate::StateDisk, at_least(reading.state_free_bytes, limits.free_bytes)),
    ];
    let all = pressure.chain(others);
    all.filter_map(|(gate, measure)| measure.map(|measure| (gate, measure))).collect()
}

/// Returns why a gate is shut, for people.
fn words(gate: Gate, measure: &Measure) -> String {
    let what = match gate {
        Gate::Load => "the load average".to_owned(),
        Gate::Pressure(resource) => format!("the {resource} pressure in percent"),
        Gate::Memory => "the available memory".to_owned(),
        Gate::StoreDisk => "the free space of the store".to_owned(),
        Gate::StateDisk => "the free space of the state directory".to_owned(),
    };
    match *measure {
        Measure::AtMost { value, limit } => format!("{what} is {value:.2}, above {limit}"),
        Measure::AtLeast { value, limit } => {
            format!("{what} is {}, below {}", super::bytes(value), super::bytes(limit))
        }
    }
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Gates and the time that passes for them.
    struct Machine {
        gates: Gates,
        now: Monotonic,
        reading: Reading,
        running: u32,
    }

    impl Machine {
        fn new(slots: u32, limits: Limits) -> Self {
            let reading = Reading {
                load: Some(0.0),
                pressure: Resource::ALL.map(|resource| (resource, 0.0)).into(),
                memory_bytes: Some(64 * GIB),
                store_free_bytes: Some(500 * GIB),
                state_free_bytes: Some(500 * GIB),
            };
            let now = Monotonic::from_ms(1_000);
            Self { gates: Gates::new(slots, limits), now, reading, running: 0 }
        }

        /// Lets seconds pass and returns how many builds are wanted then.
        fn after(&mut self, seconds: u64) -> u32 {
            self.judged_after(seconds).slots
        }

        fn judged_after(&mut self, seconds: u64) -> Capacity {
            self.now = self.now.plus_ms(seconds * 1_000);
            self.gates.judge(self.now, &self.reading, self.running)
        }
    }

    fn load_of_8() -> Limits {
        Limits { load: Some(8.0), ..Limits::default() }
    }

    #[test]
    fn without_limits_all_slots_are_wanted_whatever_is_read() {
        let mut machine = Machine::new(4, Limits::default());
        machine.reading = Reading {
            load: Some(900.0),
            pressure: [(Resource::Memory, 100.0)].into(),
            memory_bytes: Some(0),
            store_free_bytes: Some(0),
            state_free_bytes: Some(0),
        };
        assert_eq!(machine.judged_after(0), Capacity { slots: 4, reason: None });
    }

    #[test]
    fn a_gate_at_its_limit_is_open_and_above_it_shut() {
        let mut machine = Machine::new(4, load_of_8());
        machine.reading.load = Some(8.0);
        assert_eq!(machine.after(0), 4);
        machine.reading.load = Some(8.01);
        let reason = Some("the load average is 8.01, above 8".to_owned());
        assert_eq!(machine.judged_after(5), Capacity { slots: 0, reason });
    }

    #[test]
    fn a_load_around_its_limit_does_not_make_the_gate_flap() {
        let mut machine = Machine::new(4, load_of_8());
        machine.after(0);
        let mut changes = 0;
        let mut last = 4;
        for round in 0..200u32 {
            machine.reading.load = Some(if round % 2 == 0 { 8.1 } else { 7.9 });
            let slots = machine.after(5);
            changes += u32::from(slots != last);
            last = slots;
        }
        assert_eq!((changes, last), (1, 0));
    }

    #[test]
    fn a_gate_opens_behind_its_margin_and_not_before_its_time() {
        let mut machine = Machine::new(4, load_of_8());
        machine.reading.load = Some(9.0);
        assert_eq!(machine.after(0), 0);
        machine.reading.load = Some(1.0);
        assert_eq!(machine.after(29), 0);
        assert_eq!(machine.after(1), 4);
        machine.reading.load = Some(9.0);
        assert_eq!(machine.after(1), 0);
        machine.reading.load = Some(7.3);
        assert_eq!(machine.after(1_000), 0);
        machine.reading.load = Some(7.2);
        assert_eq!(machine.after(5), 4);
    }

    #[test]
    fn each_resource_has_its_own_limit_of_pressure() {
        let pressure = [(Resource::Io, 60.0)].into();
        let mut machine = Machine::new(4, Limits { pressure, ..Limits::default() });
        machine.reading.pressure.insert(Resource::Cpu, 99.0);
        assert_eq!(machine.after(0), 4);
        machine.reading.pressure.insert(Resource::Io, 61.5);
        let reason = Some("the io pressure in percent is 61.50, above 60".to_owned());
        assert_eq!(machine.judged_after(5), Capacity { slots: 0, reason });
    }

    #[test]
    fn floors_shut_below_and_open_a_tenth_above() {
        let limits = Limits {
            memory_bytes: Some(10 * GIB),
            free_bytes: Some(20 * GIB),
            ..Limits::default()
        };
        let mut machine = Machine::new(4, limits);
        machine.reading.memory_bytes = Some(10 * GIB);
        machine.reading.store_free_bytes = Some(20 * GIB);
        assert_eq!(machine.after(0), 4);
        assert!(!machine.gates.wants_room());

        machine.reading.memory_bytes = Some(10 * GIB - 1);
        machine.reading.store_free_bytes = Some(19 * GIB);
        let reason = "the available memory is 9.9 GiB, below 10.0 GiB; \
                      the free space of the store is 19.0 GiB, below 20.0 GiB";
        let shut = Capacity { slots: 0, reason: Some(reason.to_owned()) };
        assert_eq!(machine.judged_after(5), shut);
        assert!(machine.gates.wants_room());

        machine.reading.memory_bytes = Some(11 * GIB);
        machine.reading.store_free_bytes = Some(22 * GIB - 1);
        assert_eq!(machine.after(100), 0);
        machine.reading.store_free_bytes = Some(22 * GIB);
        assert_eq!(machine.after(5), 4);
        assert!(!machine.gates.wants_room());
    }

    #[test]
    fn a_reason_keeps_its_numbers_while_its_gate_is_shut() {
        let mut machine = Machine::new(4, load_of_8());
        machine.reading.load = Some(9.0);
        let first = machine.judged_after(0);
        machine.reading.load = Some(10.0);
        assert_eq!(machine.judged_after(5), first);
    }

    #[test]
    fn what_cannot_be_read_shuts_nothing() {
        let mut machine = Machine::new(4, load_of_8());
        machine.reading.load = Some(9.0);
        assert_eq!(machine.after(0), 0);
        machine.reading.load = None;
        assert_eq!(machine.after(5), 4);
    }

    #[test]
    fn builds_begin_one_by_one_after_a_start() {
        let limits = Limits { gentle_start: Duration::from_secs(10), ..Limits::default() };
        let mut machine = Machine::new(3, limits);
        let reason = Some("builds begin one by one: 1 of 3 slots".to_owned());
        assert_eq!(machine.judged_after(0), Capacity { slots: 1, reason });
        assert_eq!(machine.after(9), 1);
        assert_eq!(machine.after(1), 2);
        assert_eq!(machine.after(9), 2);
        assert_eq!(machine.judged_after(1), Capacity { slots: 3, reason: None });
        assert_eq!(machine.after(1_000), 3);
    }

    #[test]
    fn builds_that_were_taken_over_count_at_a_start() {
        let limits = Limits { gentle_start: Duration::from_secs(10), ..Limits::default() };
        let mut machine = Machine::new(8, limits);
        machine.running = 5;
        assert_eq!(machine.after(0), 6);
        machine.running = 6;
        assert_eq!(machine.after(10), 7);
    }

    #[test]
    fn a_gate_that_opens_lets_in_one_more_than_there_are() {
        let limits = Limits { gentle_start: Duration::from_secs(10), ..load_of_8() };
        let mut machine = Machine::new(8, limits);
        machine.running = 7;
        assert_eq!(machine.after(0), 8);
        machine.reading.load = Some(20.0);
        assert_eq!(machine.after(5), 0);
        machine.reading.load = Some(2.0);
        machine.running = 3;
        assert_eq!(machine.after(60), 4);
        assert_eq!(machine.after(10), 5);
    }

    #[test]
    fn other_limits_hold_at_once() {
        let mut machine = Machine::new(4, load_of_8());
        machine.reading.load = Some(9.0);
        assert_eq!(machine.after(0), 0);
        machine.gates.set_limits(Limits { load: Some(10.0), ..Limits::default() });
        assert_eq!(machine.after(0), 4);
    }
}
