//! All attempts of this agent and how far each is: the one owner of that knowledge.

use super::{
    AgentError, Equipment,
    attempt::{limited, spool_failure},
    life::Life,
    report::{Acknowledged, Link},
    slots::{Slots, Turn},
    spool::{Spool, Stage},
    watch::SpoolWatch,
};
use crate::{
    core::{change::OutputRecord, id::AttemptId},
    protocol::{
        handshake::{Capabilities, HELD_MAX, Held, HeldPhase},
        message::{Allocation, FromAgent},
    },
    telemetry,
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// How many changes of phase wait to be taken; lives wait when there are more.
const EVENTS_MAX: usize = 256;

/// The attempts of this agent.
pub(super) struct Attempts {
    dir: PathBuf,
    equipment: Arc<Equipment>,
    entries: BTreeMap<AttemptId, Entry>,
    slots: Slots,
    running: watch::Sender<u32>,
    watch: SpoolWatch,
    link: watch::Sender<Option<Link>>,
    phases: mpsc::Sender<(AttemptId, HeldPhase)>,
    entered: mpsc::Receiver<(AttemptId, HeldPhase)>,
    lives: JoinSet<()>,
    living: HashMap<Id, AttemptId>,
}

/// One attempt.
struct Entry {
    spool: Spool,
    phase: Phase,
    acknowledged: watch::Sender<Acknowledged>,
    forget: CancellationToken,
}

/// How far an attempt is.
enum Phase {
    /// It waits for a slot and has no life yet.
    Queued(Allocation),
    /// It has a life, which said this last.
    Living(HeldPhase),
}

/// Something that changed.
pub(super) enum Event {
    /// An attempt entered a phase.
    Entered(AttemptId, HeldPhase),
    /// An attempt's life is over and nothing is left of it.
    Over(AttemptId),
}

impl Attempts {
    /// Takes over what an earlier agent left in the directory.
    ///
    /// # Errors
    /// [`AgentError::StateDir`].
    pub(super) fn restore(dir: PathBuf, equipment: Arc<Equipment>) -> Result<Self, AgentError> {
        let (phases, entered) = mpsc::channel(EVENTS_MAX);
        let mut attempts = Self {
            slots: Slots::new(equipment.config.slots),
            running: watch::Sender::new(0),
            equipment,
            entries: BTreeMap::new(),
            watch: SpoolWatch::start(),
            link: watch::Sender::new(None),
            phases,
            entered,
            lives: JoinSet::new(),
            living: HashMap::new(),
            dir,
        };
        let unreadable = |source| AgentError::StateDir { path: attempts.dir.clone(), source };
        let spools = find_spools(&attempts.dir).map_err(unreadable)?;
        for spool in spools {
            attempts.adopt(spool);
        }
        attempts.count();
        Ok(attempts)
    }

    /// Returns how many builds run, from now on.
    pub(super) fn running(&self) -> watch::Receiver<u32> {
        self.running.subscribe()
    }

    /// Tells how many builds run.
    fn count(&self) {
        self.running.send_replace(self.slots.busy());
    }

    /// Takes over one spool.
    fn adopt(&mut self, spool: Spool) {
        let Some(attempt) = spool.attempt() else {
            tracing::warn!(path = %spool.dir().display(), "not an attempt: left alone");
            return;
        };
        let allocation = match spool.allocation() {
            Ok(allocation) if allocation.attempt == attempt => allocation,
            Ok(_) => {
                tracing::warn!(%attempt, "spool belongs to another attempt: left alone");
                return;
            }
            Err(error) => {
                // It was being made or removed when the agent ended.
                tracing::warn!(%attempt, error = telemetry::chain(&error), "spool without allocation removed");
                if let Err(error) = spool.remove() {
                    tracing::warn!(%attempt, error = telemetry::chain(&error), "spool not removed");
                }
                return;
            }
        };
        let stage = spool.stage();
        tracing::info!(%attempt, ?stage, "attempt of an earlier agent taken over");
        match stage {
            Ok(Stage::Preparing) => self.admit(spool, allocation),
            Ok(Stage::Running) => {
                self.slots.occupy(attempt);
                self.insert(spool.clone(), attempt, Phase::Living(HeldPhase::Building));
                self.begin(attempt, spool, allocation);
            }
            // An error is found again by its life, which reports it.
            Ok(Stage::Lost | Stage::Ended(_)) | Err(_) => {
                let phase = match stage {
                    Ok(Stage::Ended(result)) => HeldPhase::Finished(result.outcome),
                    _ => HeldPhase::Building,
                };
                self.insert(spool.clone(), attempt, Phase::Living(phase));
                self.begin(attempt, spool, allocation);
            }
        }
    }

    /// Takes on a new attempt. Returns what is to be said at once when that is impossible.
    pub(super) fn allocate(&mut self, allocation: Allocation) -> Option<FromAgent> {
        let attempt = allocation.attempt;
        if self.entries.contains_key(&attempt) {
            tracing::debug!(%attempt, "attempt was allocated before");
            return None;
        }
        tracing::info!(%attempt, build = %allocation.build, drv = %allocation.derivation, "attempt allocated");
        match Spool::create(&self.dir, &allocation) {
            Ok(spool) => {
                self.admit(spool, allocation);
                self.count();
                None
            }
            Err(error) => {
                tracing::error!(%attempt, error = telemetry::chain(&error), "no spool for an attempt");
                let outcome = limited(spool_failure(&error));
                Some(FromAgent::Finished { attempt, outcome, log_bytes: 0 })
            }
        }
    }

    /// Begins an attempt that nobody has begun, when there is a slot.
    fn admit(&mut self, spool: Spool, allocation: Allocation) {
        let attempt = allocation.attempt;
        match self.slots.ask(attempt) {
            Turn::Now => {
                self.insert(spool.clone(), attempt, Phase::Living(HeldPhase::Preparing));
                self.begin(attempt, spool, allocation);
            }
            Turn::Later => self.insert(spool, attempt, Phase::Queued(allocation)),
        }
    }

    fn insert(&mut self, spool: Spool, attempt: AttemptId, phase: Phase) {
        let acknowledged = watch::Sender::new(Acknowledged::default());
        let entry = Entry { spool, phase, acknowledged, forget: CancellationToken::new() };
        self.entries.insert(attempt, entry);
    }

    /// Starts the life of an attempt that has an entry.
    fn begin(&mut self, attempt: AttemptId, spool: Spool, allocation: Allocation) {
        let Some(entry) = self.entries.get(&attempt) else { return };
        let life = Life {
            attempt,
            allocation,
            equipment: Arc::clone(&self.equipment),
            link: self.link.subscribe(),
            acknowledged: entry.acknowledged.subscribe(),
            changes: self.watch.add(spool.dir()),
            phases: self.phases.clone(),
            forget: entry.forget.clone(),
            spool,
        };
        let life = self.lives.spawn(life.run());
        self.living.insert(life.id(), attempt);
    }

    /// Returns what this agent can build at best.
    pub(super) fn capabilities(&self) -> Capabilities {
        self.equipment.config.capabilities()
    }

    /// Returns all attempts, for the first message of a session.
    pub(super) fn held(&self) -> Vec<Held> {
        let held = self.entries.iter().map(|(attempt, entry)| Held {
            attempt: *attempt,
            phase: match &entry.phase {
                Phase::Queued(_) => HeldPhase::Preparing,
                Phase::Living(phase) => phase.clone(),
            },
        });
        held.take(HELD_MAX).collect()
    }

    /// Stops an attempt, if it still runs, and leaves nothing of it. Harmless when it is unknown.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        let Some(entry) = self.entries.get(&attempt) else { return };
        match entry.phase {
            Phase::Living(_) => entry.forget.cancel(),
            Phase::Queued(_) => {
                if let Err(error) = entry.spool.remove() {
                    tracing::warn!(%attempt, error = telemetry::chain(&error), "spool not removed");
                }
                self.entries.remove(&attempt);
                self.slots.release(attempt);
            }
        }
    }

    /// Returns what is said of an attempt whose outputs nobody wants any more: what it made. It is
    /// forgotten when that has arrived, or at once when there is nothing to say.
    pub(super) fn report(&mut self, attempt: AttemptId) -> Option<FromAgent> {
        let result = self.entries.get(&attempt)?.spool.result();
        let outputs = match result {
            Ok(Some(result)) => result.outputs,
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::warn!(%attempt, error = telemetry::chain(&error), "outputs not known any more");
                Vec::new()
            }
        };
        if outputs.is_empty() {
            self.forget(attempt);
            return None;
        }
        tracing::info!(%attempt, "attempt was given up: its outputs are only reported");
        let outputs = outputs.into_iter().map(|output| OutputRecord {
            name: output.name,
            path: output.info.path,
            nar_hash: output.info.nar_hash,
            nar_bytes: output.info.nar_bytes,
        });
        Some(FromAgent::Report { attempt, outputs: outputs.collect() })
    }

    /// Notes how much of an attempt's log the coordinator says that it has.
    pub(super) fn acknowledge(&mut self, attempt: AttemptId, offset: u64) {
        if let Some(entry) = self.entries.get(&attempt) {
            entry.acknowledged.send_modify(|said| {
                *said = Acknowledged { answers: said.answers.wrapping_add(1), offset };
            });
        }
    }

    /// Lets all attempts report in this session.
    pub(super) fn link(&mut self, link: Link) {
        self.link.send_replace(Some(link));
    }

    /// Tells all attempts that there is no session.
    pub(super) fn unlink(&mut self) {
        self.link.send_replace(None);
    }

    /// Returns what changes next; [`Attempts::take`] takes it in. Giving up the returned future
    /// loses nothing.
    pub(super) async fn next_event(&mut self) -> Event {
        loop {
            tokio::select! {
                // What an attempt said comes before its end.
                biased;
                Some((attempt, phase)) = self.entered.recv() => {
                    return Event::Entered(attempt, phase);
                }
                Some(over) = self.lives.join_next_with_id() => {
                    let id = match &over {
                        Ok((id, ())) => *id,
                        Err(error) => {
                            // Its spool stays for the next agent.
                            tracing::error!(%error, "the life of an attempt broke off");
                            error.id()
                        }
                    };
                    if let Some(attempt) = self.living.remove(&id) {
                        return Event::Over(attempt);
                    }
                }
            }
        }
    }

    /// Takes in what changed.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Entered(attempt, phase) => {
                if let HeldPhase::Finished(_) = phase {
                    self.slots.release(attempt);
                }
                if let Some(entry) = self.entries.get_mut(&attempt) {
                    entry.phase = Phase::Living(phase);
                }
            }
            Event::Over(attempt) => {
                self.slots.release(attempt);
                if let Some(entry) = self.entries.remove(&attempt) {
                    self.watch.remove(entry.spool.dir());
                }
            }
        }
        while let Some(attempt) = self.slots.next() {
            let Some(entry) = self.entries.get_mut(&attempt) else { continue };
            let next = Phase::Living(HeldPhase::Preparing);
            if let Phase::Queued(allocation) = std::mem::replace(&mut entry.phase, next) {
                let spool = entry.spool.clone();
                self.begin(attempt, spool, allocation);
            }
        }
        self.count();
    }

    /// Takes in all changes until `other` is done.
    pub(super) async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                event = self.next_event() => self.take(event),
            }
        }
    }
}

/// Returns the spools in a directory.
fn find_spools(dir: &Path) -> io::Result<Vec<Spool>> {
    let entries = fs_err::read_dir(dir)?;
    entries.map(|entry| Ok(Spool::at(entry?.path()))).collect()
}
