//! What goes wrong, and when.

use super::{
    chance::Chance,
    coordinator::Message,
    machine::MachineEvent,
    network::{LinkId, Side},
    trace::note,
    world::{Event, World},
};
use crate::core::engine::{Decision, Input};

/// The longest that one process is away, in milliseconds.
const AWAY_MS_MAX: u64 = 90_000;
const HOUR_MS: i64 = 3_600_000;

/// How often what goes wrong in a run.
#[derive(Debug)]
pub(super) struct Weather {
    /// Nothing goes wrong any more.
    pub(super) is_calm: bool,
    /// How long it lasts.
    lasts_ms: u64,
    /// How long it is between two faults, about.
    pause_ms: u64,
    /// How often in a thousand a step of the engine meets a crash.
    pub(super) crashes: u64,
    /// How often in a thousand an attempt cannot begin.
    pub(super) setup_failures: u64,
    /// How often in a thousand a frame of an agent comes twice.
    pub(super) repeats: u64,
    /// Whether the wall clock jumps.
    jumps: bool,
    /// How often in a thousand a fault is rather a decision of the operator.
    decisions: u64,
    /// Whether an agent speaks of what is not its own.
    meddling: bool,
}

impl Weather {
    pub(super) fn of(chance: &mut Chance) -> Self {
        Self {
            is_calm: false,
            lasts_ms: chance.between(600, 2_400) * 1_000,
            pause_ms: *chance.pick(&[15_000, 60_000, 200_000, 1_000_000]),
            crashes: *chance.pick(&[0, 2, 10, 40]),
            setup_failures: *chance.pick(&[0, 30, 200]),
            repeats: *chance.pick(&[0, 20, 100]),
            jumps: chance.permille(400),
            decisions: *chance.pick(&[0, 0, 150]),
            meddling: chance.permille(400),
        }
    }
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Chance chooses.
    Any,
    /// A machine that was taken away comes back.
    Return { machine: usize, life: u32 },
}

impl World {
    /// Plans the first fault and the last.
    pub(super) fn weather_begins(&mut self) {
        self.after(self.weather.lasts_ms, Event::Calm);
        self.next_fault();
    }

    fn next_fault(&mut self) {
        let pause = self.chance.between(1, 2 * self.weather.pause_ms);
        self.after(pause, Event::Fault(Fault::Any));
    }

    /// Something goes wrong.
    pub(super) fn fault(&mut self, fault: Fault) {
        if let Fault::Return { machine, life } = fault {
            if self.machines[machine].life == life {
                self.machine_event(machine, MachineEvent::Start);
            }
            return;
        }
        if self.weather.is_calm {
            return;
        }
        let machine = self.chance.place(self.machines.len());
        if self.chance.permille(self.weather.decisions) {
            self.operator_decides(machine);
            return self.next_fault();
        }
        match self.chance.below(12) {
            0 => self.coordinator_crashes("killed"),
            1 | 2 => self.agent_crashes(machine),
            3 => self.machine_reboots(machine),
            4 => self.machine_is_wiped(machine),
            7 | 8 => self.partition(machine),
            9 if self.weather.jumps => self.wall_jumps(),
            10 | 11 if self.weather.meddling => self.meddle(machine),
            _ => self.cut_some(),
        }
        self.next_fault();
    }

    /// The operator, or the machine itself, decides who builds.
    fn operator_decides(&mut self, machine: usize) {
        let until = self.chance.permille(600).then(|| {
            let ms = self.chance.between(1_000, 600_000);
            self.wall().plus_ms(i64::try_from(ms).unwrap_or(0))
        });
        let decision = match self.chance.below(9) {
            0 | 1 => Decision::Pause { reason: None, until },
            2 | 3 => Decision::Drain { reason: None, until },
            4 => Decision::Resume,
            5 => Decision::Remove,
            6 => {
                let slots = u32::try_from(self.chance.below(3)).unwrap_or(0);
                let slots = Some(slots).filter(|it| *it < self.machines[machine].abilities.slots);
                return self.wants_slots(machine, slots);
            }
            7 => {
                note!(self, "the coordinator is told to stop");
                return self.coordinator_takes(Message::Stop);
            }
            _ => {
                let closed = self.chance.permille(500).then(|| "the disk is full".to_owned());
                note!(self, "intake closed: {closed:?}");
                return self.coordinator_takes(Message::Input(Input::Intake { closed }));
            }
        };
        note!(self, "somebody decides about {}: {decision:?}", self.who(machine));
        let agent = self.machines[machine].name.clone();
        self.coordinator_takes(Message::Administer { agent, decision });
    }

    /// Nothing that was decided holds builds back any more.
    pub(super) fn operator_makes_good(&mut self) {
        if self.shadow.is_intake_closed {
            self.coordinator_takes(Message::Input(Input::Intake { closed: None }));
        }
        for machine in 0..self.machines.len() {
            self.wants_slots(machine, None);
            let agent = self.machines[machine].name.clone();
            if self.shadow.suspended.contains_key(&agent) {
                let decision = Decision::Resume;
                self.coordinator_takes(Message::Administer { agent, decision });
            }
        }
    }

    fn cut_some(&mut self) {
        let links: Vec<LinkId> = self.network.links.keys().copied().collect();
        if links.is_empty() {
            return;
        }
        let link = *self.chance.pick(&links);
        note!(self, "connection {link} is cut");
        self.cut(link);
    }

    fn partition(&mut self, machine: usize) {
        let longest = 2 * self.settings.lease_ms;
        let until_ms = self.now_ms + self.chance.between(1_000, longest);
        let sides: &[Side] = match self.chance.below(3) {
            0 => &[Side::Coordinator],
            1 => &[Side::Agent],
            _ => &[Side::Coordinator, Side::Agent],
        };
        note!(self, "{} hears or is heard no more until {until_ms}: {sides:?}", self.who(machine));
        for side in sides {
            self.network.stall(machine, *side, until_ms);
        }
    }

    fn wall_jumps(&mut self) {
        let far = if self.chance.permille(200) { 10 * 365 * 24 * HOUR_MS } else { HOUR_MS };
        let jump = if self.chance.permille(500) { far } else { -far };
        note!(self, "the wall clock jumps by {jump} ms");
        self.wall_ms = self.wall_ms.saturating_add(jump);
    }

    fn agent_crashes(&mut self, machine: usize) {
        note!(self, "{}'s agent is killed", self.who(machine));
        self.agent_ends(machine);
        self.comes_back(machine);
    }

    fn machine_reboots(&mut self, machine: usize) {
        note!(self, "{} reboots", self.who(machine));
        self.agent_ends(machine);
        self.processes_end(machine);
        self.comes_back(machine);
    }

    fn machine_is_wiped(&mut self, machine: usize) {
        if !self.chance.permille(300) {
            return;
        }
        note!(self, "{} is installed anew", self.who(machine));
        self.agent_ends(machine);
        self.machines[machine].wipe(&mut self.chance);
        self.comes_back(machine);
    }

    fn comes_back(&mut self, machine: usize) {
        let away = self.chance.between(100, AWAY_MS_MAX);
        let long = self.chance.permille(150);
        let away = if long { away + 2 * self.settings.lease_ms } else { away };
        let life = self.machines[machine].life;
        self.after(away, Event::Fault(Fault::Return { machine, life }));
    }
}
