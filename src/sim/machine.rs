//! A build machine: its spools and attempts' processes, which outlive the agent, and the agent.
//!
//! It follows `agent::attempts` and `agent::life`.

use super::{
    chance::Chance,
    delivery::Exchange,
    farm,
    network::{Arrival, LinkId, Purpose, Side},
    session::Session,
    trace::{Short, note},
    world::{Event, World},
};
use crate::{
    core::{
        agent::{Abilities, Capacity},
        id::{AttemptId, InstanceId, Name},
        outcome::{BuildFailure, Outcome, SetupFailure},
    },
    protocol::{
        bulk::OfferedOutput,
        handshake::{Held, HeldPhase},
        message::Allocation,
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The first pause before something is tried again, in milliseconds.
pub(super) const PAUSE_MS: u64 = 1_000;
/// The longest pause.
pub(super) const PAUSE_MS_MAX: u64 = 60_000;

/// Something on a machine. What names a life or a process is void when that is over.
#[derive(Debug, Clone, Copy)]
pub(super) enum MachineEvent {
    /// The agent starts.
    Start,
    /// The agent dials.
    Dial { life: u32 },
    /// A session wanted to be called by now.
    Deadline { life: u32, link: LinkId },
    /// An attempt's process has begun to build.
    Begun { attempt: AttemptId, process: u64 },
    /// It wrote into its log.
    Logged { attempt: AttemptId, process: u64 },
    /// It is over.
    Ended { attempt: AttemptId, process: u64 },
    /// An exchange is tried again.
    Again { life: u32, attempt: AttemptId },
    /// An exchange took too long.
    Late { life: u32, link: LinkId },
}

/// A build machine.
pub(super) struct Machine {
    pub(super) name: Name,
    pub(super) instance: InstanceId,
    pub(super) abilities: Abilities,
    pub(super) spools: BTreeMap<AttemptId, Spool>,
    pub(super) agent: Option<Agent>,
    /// How many builds it wants at a time, if not all that it can have.
    pub(super) capacity: Option<Capacity>,
    /// How many agents ran here.
    pub(super) life: u32,
    processes: u64,
}

/// What is on disk of an attempt.
#[derive(Debug)]
pub(super) struct Spool {
    pub(super) recipe: usize,
    pub(super) is_started: bool,
    /// The process that lives, and what will come of it.
    process: Option<(u64, Fate)>,
    pub(super) log_bytes: u64,
    pub(super) result: Option<Done>,
}

/// How an attempt ended on its machine.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) outputs: Vec<OfferedOutput>,
}

/// What a process will do.
#[derive(Debug, Clone)]
struct Fate {
    outcome: Outcome,
    log_bytes: u64,
}

/// A running agent.
#[derive(Default)]
pub(super) struct Agent {
    pub(super) lives: BTreeMap<AttemptId, Life>,
    busy: BTreeSet<AttemptId>,
    waiting: VecDeque<AttemptId>,
    pub(super) session: Option<Session>,
    pub(super) pause_ms: u64,
    pub(super) exchanges: BTreeMap<LinkId, Exchange>,
}

/// What an agent knows of an attempt.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) phase: Phase,
    pub(super) acknowledged: u64,
    /// Whether the end was told in any session.
    pub(super) is_told: bool,
    pub(super) is_exchanging: bool,
    /// Whether its outputs are only reported in this session.
    pub(super) is_muted: bool,
    pub(super) pause_ms: u64,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Queued,
    Preparing,
    Building,
    Finished,
}

/// Returns a part of the log that an attempt writes.
pub(super) fn log_of(attempt: AttemptId, from: u64, to: u64) -> Vec<u8> {
    let salt = attempt.as_bytes()[15];
    (from..to).map(|place| place.to_le_bytes()[0].wrapping_mul(31).wrapping_add(salt)).collect()
}

impl Machine {
    pub(super) fn new(chance: &mut Chance, place: usize) -> Self {
        let names = ["amber", "basalt", "cobalt", "dolomite"];
        let mut machine = Self {
            name: names[place].parse().expect("a plain name"),
            instance: InstanceId::from_bytes([0; 16]),
            abilities: farm::abilities(chance, place),
            spools: BTreeMap::new(),
            agent: None,
            capacity: None,
            life: 0,
            processes: 0,
        };
        machine.wipe(chance);
        machine
    }

    /// Installs it anew: nothing is left on its disk.
    pub(super) fn wipe(&mut self, chance: &mut Chance) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&chance.number().to_be_bytes());
        self.instance = InstanceId::from_bytes(bytes);
        self.spools.clear();
    }

    /// Returns the attempts for the first message of a session.
    pub(super) fn held(&self) -> Vec<Held> {
        let Some(agent) = &self.agent else { return Vec::new() };
        let phase = |attempt: &AttemptId, life: &Life| match life.phase {
            Phase::Queued | Phase::Preparing => HeldPhase::Preparing,
            Phase::Building => HeldPhase::Building,
            Phase::Finished => match self.spools.get(attempt).and_then(|s| s.result.as_ref()) {
                Some(done) => HeldPhase::Finished(done.outcome.clone()),
                None => HeldPhase::Building,
            },
        };
        let lives = agent.lives.iter();
        lives
            .map(|(attempt, life)| Held { attempt: *attempt, phase: phase(attempt, life) })
            .collect()
    }
}

impl World {
    pub(super) fn machine_event(&mut self, machine: usize, event: MachineEvent) {
        match event {
            MachineEvent::Start => self.agent_starts(machine),
            MachineEvent::Dial { life } if self.is_life(machine, life) => self.dial(machine),
            MachineEvent::Deadline { life, link } if self.is_life(machine, life) => {
                self.agent_deadline(machine, link);
            }
            MachineEvent::Begun { attempt, process } => {
                if self.is_process(machine, attempt, process) {
                    self.spool(machine, attempt, |spool| spool.is_started = true);
                    self.report(machine, attempt);
                }
            }
            MachineEvent::Logged { attempt, process } => {
                if self.is_process(machine, attempt, process) {
                    self.spool(machine, attempt, |spool| {
                        let last = spool.process.as_ref().map_or(0, |(_, fate)| fate.log_bytes);
                        spool.log_bytes = (spool.log_bytes + last.div_ceil(3)).min(last);
                    });
                    self.report(machine, attempt);
                }
            }
            MachineEvent::Ended { attempt, process } => {
                if self.is_process(machine, attempt, process) {
                    self.process_ends(machine, attempt);
                }
            }
            MachineEvent::Again { life, attempt } if self.is_life(machine, life) => {
                self.advance(machine, attempt);
            }
            MachineEvent::Late { life, link } if self.is_life(machine, life) => {
                self.exchange_breaks(machine, link);
            }
            MachineEvent::Dial { .. }
            | MachineEvent::Deadline { .. }
            | MachineEvent::Again { .. }
            | MachineEvent::Late { .. } => {}
        }
    }

    fn is_life(&self, machine: usize, life: u32) -> bool {
        self.machines[machine].life == life && self.machines[machine].agent.is_some()
    }

    fn is_process(&self, machine: usize, attempt: AttemptId, process: u64) -> bool {
        let spool = self.machines[machine].spools.get(&attempt);
        spool.and_then(|spool| spool.process.as_ref()).is_some_and(|(lives, _)| *lives == process)
    }

    fn spool(&mut self, machine: usize, attempt: AttemptId, change: impl FnOnce(&mut Spool)) {
        if let Some(spool) = self.machines[machine].spools.get_mut(&attempt) {
            change(spool);
        }
    }

    pub(super) fn life(&mut self, machine: usize, attempt: AttemptId) -> Option<&mut Life> {
        self.machines[machine].agent.as_mut()?.lives.get_mut(&attempt)
    }

    /// The agent starts and adopts what it finds.
    fn agent_starts(&mut self, machine: usize) {
        if self.machines[machine].agent.is_some() {
            return;
        }
        note!(self, "{}'s agent starts", self.who(machine));
        let pause_ms = PAUSE_MS;
        self.machines[machine].agent = Some(Agent { pause_ms, ..Agent::default() });
        let spools: Vec<AttemptId> = self.machines[machine].spools.keys().copied().collect();
        for attempt in spools {
            self.adopt(machine, attempt);
        }
        self.dial(machine);
    }

    fn adopt(&mut self, machine: usize, attempt: AttemptId) {
        let Some(spool) = self.machines[machine].spools.get_mut(&attempt) else { return };
        let is_running = spool.process.is_some();
        if spool.is_started && !is_running && spool.result.is_none() {
            let lost = SetupFailure::AttemptLost("no result".to_owned());
            let outcome = Outcome::SetupFailed(lost);
            spool.result = Some(Done { outcome, outputs: Vec::new() });
        }
        if spool.result.is_some() {
            self.live(machine, attempt, Phase::Finished);
        } else if is_running {
            if let Some(agent) = &mut self.machines[machine].agent {
                agent.busy.insert(attempt);
            }
            self.live(machine, attempt, Phase::Building);
        } else {
            self.admit(machine, attempt);
        }
    }

    fn live(&mut self, machine: usize, attempt: AttemptId, phase: Phase) {
        let life = Life {
            phase,
            acknowledged: 0,
            is_told: false,
            is_exchanging: false,
            is_muted: false,
            pause_ms: PAUSE_MS,
        };
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.lives.insert(attempt, life);
        }
    }

    /// Begins an attempt when there is a slot.
    fn admit(&mut self, machine: usize, attempt: AttemptId) {
        let slots = self.machines[machine].abilities.slots as usize;
        let Some(agent) = &mut self.machines[machine].agent else { return };
        if agent.busy.len() < slots && agent.waiting.is_empty() {
            agent.busy.insert(attempt);
            self.live(machine, attempt, Phase::Preparing);
            self.advance(machine, attempt);
        } else {
            agent.waiting.push_back(attempt);
            self.live(machine, attempt, Phase::Queued);
        }
    }

    /// An allocation arrives.
    pub(super) fn allocated(&mut self, machine: usize, allocation: &Allocation) {
        let attempt = allocation.attempt;
        if self.life(machine, attempt).is_some() {
            return;
        }
        note!(
            self,
            "{} has {} of {}",
            self.who(machine),
            Short(attempt.as_bytes()),
            allocation.derivation.name()
        );
        let recipe = self.farm.find(allocation.derivation.hash());
        let spool = Spool { recipe, is_started: false, process: None, log_bytes: 0, result: None };
        self.machines[machine].spools.insert(attempt, spool);
        self.admit(machine, attempt);
    }

    /// Frees the attempt's slot and gives it to the next.
    fn release(&mut self, machine: usize, attempt: AttemptId) {
        let slots = self.machines[machine].abilities.slots as usize;
        loop {
            let Some(agent) = &mut self.machines[machine].agent else { return };
            agent.busy.remove(&attempt);
            agent.waiting.retain(|waiting| *waiting != attempt);
            if agent.busy.len() >= slots {
                return;
            }
            let Some(next) = agent.waiting.pop_front() else { return };
            agent.busy.insert(next);
            if let Some(life) = self.life(machine, next) {
                life.phase = Phase::Preparing;
            }
            self.advance(machine, next);
        }
    }

    /// Nothing of an attempt is wanted any more.
    pub(super) fn forget(&mut self, machine: usize, attempt: AttemptId) {
        if self.life(machine, attempt).is_none() {
            return;
        }
        note!(self, "{} forgets {}", self.who(machine), Short(attempt.as_bytes()));
        self.machines[machine].spools.remove(&attempt);
        let Some(agent) = &mut self.machines[machine].agent else { return };
        agent.lives.remove(&attempt);
        let links: Vec<LinkId> = agent
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.attempt == attempt)
            .map(|(link, _)| *link)
            .collect();
        agent.exchanges.retain(|link, _| !links.contains(link));
        for link in links {
            self.close(link, Side::Agent);
        }
        self.release(machine, attempt);
    }

    /// Starts the attempt's process; its inputs are there.
    pub(super) fn start_process(&mut self, machine: usize, attempt: AttemptId) {
        let Some(spool) = self.machines[machine].spools.get(&attempt) else { return };
        let recipe = &self.farm.recipes[spool.recipe];
        let outcome = match () {
            () if self.weather.is_calm => Outcome::Built,
            () if self.chance.permille(recipe.failures) => Outcome::Failed(BuildFailure::Exit(1)),
            () if self.chance.permille(self.weather.setup_failures / 4) => {
                Outcome::SetupFailed(SetupFailure::AttemptLost("killed".to_owned()))
            }
            () => Outcome::Built,
        };
        let takes = self.chance.between(20, recipe.duration_ms_max);
        let fate = Fate { outcome, log_bytes: self.chance.below(900) };
        self.machines[machine].processes += 1;
        let process = self.machines[machine].processes;
        self.spool(machine, attempt, |spool| spool.process = Some((process, fate)));
        let begun = self.chance.between(1, 15);
        for (after, event) in [
            (begun, MachineEvent::Begun { attempt, process }),
            (takes / 3, MachineEvent::Logged { attempt, process }),
            (takes / 2, MachineEvent::Logged { attempt, process }),
            (takes.max(16), MachineEvent::Ended { attempt, process }),
        ] {
            self.after(after, Event::Machine { machine, event });
        }
        if let Some(life) = self.life(machine, attempt) {
            life.phase = Phase::Building;
        }
    }

    fn process_ends(&mut self, machine: usize, attempt: AttemptId) {
        let Some(spool) = self.machines[machine].spools.get_mut(&attempt) else { return };
        let Some((_, fate)) = spool.process.take() else { return };
        spool.log_bytes = fate.log_bytes;
        let recipe = spool.recipe;
        let outputs =
            if fate.outcome == Outcome::Built { self.offered(recipe, attempt) } else { Vec::new() };
        let done = Done { outcome: fate.outcome, outputs };
        self.finish_attempt(machine, attempt, done);
    }

    /// Keeps the result of an attempt and makes it known.
    pub(super) fn finish_attempt(&mut self, machine: usize, attempt: AttemptId, done: Done) {
        self.spool(machine, attempt, |spool| spool.result = Some(done));
        if let Some(life) = self.life(machine, attempt) {
            life.phase = Phase::Finished;
            self.release(machine, attempt);
            self.report(machine, attempt);
            self.advance(machine, attempt);
        }
    }

    /// Returns what an attempt offers.
    pub(super) fn offered(&self, recipe: usize, attempt: AttemptId) -> Vec<OfferedOutput> {
        let outputs = self.farm.recipes[recipe].record.outputs.iter();
        let offered = outputs.map(|(name, path)| {
            let info = self.farm.content(recipe, path, attempt);
            let nar = farm::nar(info, crate::core::change::NarOrigin::Built, self.wall());
            OfferedOutput {
                name: name.clone(),
                info: nar.info.clone(),
                compression: "zstd".to_owned(),
                file_bytes: nar.file_bytes,
                file_hash: nar.file_hash,
            }
        });
        offered.collect()
    }

    /// The agent's process ends; attempts' processes go on.
    pub(super) fn agent_ends(&mut self, machine: usize) {
        self.machines[machine].life += 1;
        let Some(agent) = self.machines[machine].agent.take() else { return };
        let links = agent.session.iter().map(|session| session.link);
        for link in links.chain(agent.exchanges.keys().copied()).collect::<Vec<_>>() {
            self.close(link, Side::Agent);
        }
    }

    /// All processes of a machine end.
    pub(super) fn processes_end(&mut self, machine: usize) {
        for spool in self.machines[machine].spools.values_mut() {
            spool.process = None;
        }
    }

    /// Nothing keeps a machine away any more.
    pub(super) fn machine_is_well(&mut self, machine: usize) {
        if self.machines[machine].agent.is_none() {
            self.after(1, Event::Machine { machine, event: MachineEvent::Start });
        }
    }

    /// Something arrives at a machine.
    pub(super) fn machine_hears(
        &mut self,
        link: LinkId,
        machine: usize,
        purpose: Purpose,
        arrival: Arrival,
    ) {
        match (arrival, purpose) {
            (Arrival::Opened, _) => {}
            (Arrival::Data(bytes), Purpose::Control) => self.session_data(machine, link, &bytes),
            (Arrival::Data(bytes), Purpose::Bulk) => self.exchange_data(machine, link, &bytes),
            (Arrival::Gone, Purpose::Control) => self.session_ends(machine, link),
            (Arrival::Gone, Purpose::Bulk) => self.exchange_breaks(machine, link),
        }
    }
}
