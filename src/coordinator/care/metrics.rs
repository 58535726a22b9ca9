//! Everything about a farm that is worth a graph, at one moment.
//!
//! What grows with the queue or the history is counted as it changes; here it is only read, so this
//! costs the same whatever there is.

use super::{
    super::{Coordinator, engine_thread::EngineGone, pressure::Process},
    backup::database_bytes,
    exposition::{Exposition, Kind, number_of},
};
use crate::{
    core::{
        build::ShownState,
        engine::{AgentView, Ask, Counts, ReadyBuilds, Told},
        event::Cursor,
        time::Timestamp,
    },
    ssh::Role,
    store::{BackupMark, Holdings, HookRow, Reader, StoreError, TotalKind},
};
use std::{collections::BTreeMap, io};

/// How many agents have numbers of their own.
const AGENTS_MAX: usize = 1_000;
/// How many kinds of ready builds have numbers of their own.
const KINDS_MAX: usize = 1_000;

/// How many hooks have numbers of their own.
const HOOKS_MAX: usize = 1_000;

/// The states that no open build has.
const OVER: [ShownState; 3] = [ShownState::Succeeded, ShownState::Failed, ShownState::Canceled];

/// Why there are no measurements.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The process is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system failed.
    #[error("the state directory cannot be looked at")]
    Io(#[from] io::Error),
}

/// What the database has counted.
struct Kept {
    holdings: Holdings,
    withdrawn: (u64, u64),
    unwritten: u64,
    ended: Vec<(String, u64)>,
    attempts: Vec<(String, u64)>,
    pruned: Vec<(String, u64)>,
    backup: Option<BackupMark>,
    hooks: Vec<HookRow>,
    events: Cursor,
}

impl Kept {
    fn read(reader: &Reader) -> Result<Self, StoreError> {
        Ok(Self {
            holdings: reader.holdings()?,
            withdrawn: reader.withdrawn()?,
            unwritten: reader.unwritten_bytes()?,
            ended: reader.totals(TotalKind::Build)?,
            attempts: reader.totals(TotalKind::Attempt)?,
            pruned: reader.totals(TotalKind::Pruned)?,
            backup: reader.last_backup()?,
            hooks: reader.hooks()?,
            events: reader.events_extent()?.last,
        })
    }
}

/// Measures.
///
/// # Errors
/// [`MetricsError`].
pub async fn gather(coordinator: &Coordinator) -> Result<Exposition, MetricsError> {
    let mut all = Exposition::default();
    let asked = coordinator.clock.uptime();
    let counts = match coordinator.engine.ask(Ask::Counts).await? {
        Told::Counts(counts) => counts,
        _ => Counts::default(),
    };
    let answer = coordinator.clock.uptime().saturating_sub(asked);
    let ready = match coordinator.engine.ask(Ask::Ready).await? {
        Told::Ready(ready) => ready,
        _ => Vec::new(),
    };
    let agents = match coordinator.engine.ask(Ask::Agents).await? {
        Told::Agents(agents) => agents,
        _ => Vec::new(),
    };
    let kept = coordinator.readers.read(Kept::read).await?;
    process(&mut all, coordinator).await?;
    engine(&mut all, coordinator, answer.as_secs_f64());
    builds(&mut all, &counts, &kept);
    queue(&mut all, &ready, coordinator.clock.now().wall);
    of_agents(&mut all, &counts, &agents, coordinator);
    messages(&mut all, &counts, coordinator);
    held(&mut all, coordinator, &kept)?;
    door(&mut all, coordinator);
    of_hooks(&mut all, coordinator, &kept);
    let pending = coordinator.enrollment.count_pending().await;
    people(&mut all, coordinator, pending);
    Ok(all)
}

fn labeled(name: &'static str, value: impl Into<String>) -> Vec<(&'static str, String)> {
    vec![(name, value.into())]
}

fn size(number: usize) -> f64 {
    number_of(number as u64)
}

#[expect(clippy::cast_precision_loss, reason = "times since 1970 in seconds are exact enough")]
fn seconds(at: Timestamp) -> f64 {
    at.as_ms() as f64 / 1e3
}

async fn process(all: &mut Exposition, coordinator: &Coordinator) -> Result<(), MetricsError> {
    use Kind::{Counter, Gauge};
    let version = env!("CARGO_PKG_VERSION");
    let info = [(labeled("version", version), 1.0)];
    all.add(Gauge, "build_info", "The program that runs.", info);
    let started = seconds(coordinator.started_at);
    all.one(Gauge, "start_time_seconds", "When this process began.", started);
    let process = Process::of(coordinator).await?;
    all.one(Gauge, "tasks", "Asynchronous tasks that have not ended.", size(process.tasks));
    if let Some(descriptors) = process.descriptors {
        all.one(Gauge, "open_descriptors", "Open file descriptors.", size(descriptors));
    }
    let panics = number_of(process.panics);
    all.one(Counter, "panics_total", "Panics, each of which cost one connection.", panics);
    all.one(Gauge, "agent_sessions", "Control sessions of agents.", size(process.agent_sessions));
    all.one(Gauge, "transfers", "Exchanges with agents under way.", size(process.transfers));
    let staged = number_of(process.staged_bytes);
    all.one(Gauge, "staged_bytes", "What was received and not verified yet.", staged);
    let followers = size(process.log_followers);
    all.one(Gauge, "log_followers", "Those who follow a log.", followers);
    Ok(())
}

fn engine(all: &mut Exposition, coordinator: &Coordinator, answer_s: f64) {
    let meter = &coordinator.care.meter;
    let help = "How long the engine's thread took to decide a step.";
    all.durations("step_seconds", help, &meter.steps());
    let help = "How long the commit of a step took.";
    all.durations("commit_seconds", help, &meter.commits());
    let help =
        "How long the engine's thread took to answer just now, behind what was in its queue.";
    all.one(Kind::Gauge, "engine_answer_seconds", help, answer_s);
}

fn builds(all: &mut Exposition, counts: &Counts, kept: &Kept) {
    use Kind::{Counter, Gauge};
    let is_open = |state: &&ShownState| !OVER.contains(state);
    let open = ShownState::ALL.iter().filter(is_open).map(|state| {
        let number = counts.builds.get(state).copied().unwrap_or(0);
        (labeled("state", state.word()), size(number))
    });
    all.add(Gauge, "builds", "Open builds.", open);
    let help = "Ready builds that no agent ever seen can take.";
    all.one(Gauge, "unplaceable_builds", help, size(counts.unplaceable));
    let by = |name: &'static str, counted: &[(String, u64)]| {
        let one = |(word, number): &(String, u64)| (labeled(name, word), number_of(*number));
        counted.iter().map(one).collect::<Vec<_>>()
    };
    let help = "Builds that ended, since the beginning; one that is tried again ends again.";
    all.add(Counter, "builds_ended_total", help, by("state", &kept.ended));
    let help = "Attempts that ended, since the beginning.";
    all.add(Counter, "attempts_ended_total", help, by("end", &kept.attempts));
    let help = "Builds that were pruned, since the beginning.";
    all.add(Counter, "builds_pruned_total", help, by("state", &kept.pruned));
}

fn queue(all: &mut Exposition, ready: &[ReadyBuilds], now: Timestamp) {
    let mut by_class: BTreeMap<_, (usize, Option<Timestamp>)> = BTreeMap::new();
    for ReadyBuilds { kind, ready, first } in ready {
        let (number, oldest) = by_class.entry(&kind.class).or_default();
        *number += ready;
        *oldest = match (*oldest, *first) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    let labels = |class: &crate::core::plan::Class| {
        vec![
            ("store_dir", class.store_dir.to_string()),
            ("system", class.system.clone().unwrap_or_else(|| "builtin".to_owned())),
            ("features", class.features.join(" ")),
        ]
    };
    let classes: Vec<_> = by_class.iter().take(KINDS_MAX).collect();
    let numbers = classes.iter().map(|(class, (number, _))| (labels(class), size(*number)));
    all.add(Kind::Gauge, "ready_builds", "Builds that the next free slot takes.", numbers);
    let ages = classes.iter().filter_map(|(class, (_, first))| {
        let age = seconds(now) - seconds((*first)?);
        Some((labels(class), age.max(0.0)))
    });
    let help = "How long ago that ready build was asked for which goes first.";
    all.add(Kind::Gauge, "next_build_age_seconds", help, ages);
}

fn of_agents(
    all: &mut Exposition,
    counts: &Counts,
    agents: &[AgentView],
    coordinator: &Coordinator,
) {
    use Kind::Gauge;
    let (keydir, _) = coordinator.monitor.keydir();
    let is_agent = |role: Role| role == Role::Agent;
    let registered = keydir.principals().iter().filter(|(p, _)| is_agent(p.role)).count();
    let mut states = vec![
        (labeled("state", "registered"), size(registered)),
        (labeled("state", "known"), size(counts.agents_known)),
        (labeled("state", "connected"), size(counts.agents_connected)),
    ];
    for kind in crate::core::agent::SuspensionKind::ALL {
        let number = counts.suspended.get(&kind).copied().unwrap_or(0);
        states.push((labeled("state", kind.word()), size(number)));
    }
    all.add(Gauge, "agents", "Agents; one can be in several states.", states);
    all.one(Gauge, "slots", "Slots of connected agents.", size(counts.slots));
    let help = "Slots of connected agents that nothing uses.";
    all.one(Gauge, "slots_free", help, size(counts.slots_free));
    let agents = &agents[..agents.len().min(AGENTS_MAX)];
    let each = |value: fn(&AgentView) -> f64| {
        agents.iter().map(move |agent| (labeled("agent", agent.name.as_str()), value(agent)))
    };
    let help = "Whether an agent is connected.";
    let up = each(|agent| f64::from(u8::from(agent.connected)));
    all.add(Gauge, "agent_connected", help, up.collect::<Vec<_>>());
    let running = each(|agent| size(agent.running.len()));
    all.add(Gauge, "agent_running", "Builds that an agent runs.", running.collect::<Vec<_>>());
    let sending = each(|agent| size(agent.sending.len()));
    let help = "Builds whose outputs an agent sends.";
    all.add(Gauge, "agent_sending", help, sending.collect::<Vec<_>>());
    let failures = each(|agent| size(agent.failures_in_a_row));
    let help = "Builds that ended through an agent's fault since the last that did not.";
    all.add(Gauge, "agent_failures_in_a_row", help, failures.collect::<Vec<_>>());
}

fn messages(all: &mut Exposition, counts: &Counts, coordinator: &Coordinator) {
    let mut ignored: BTreeMap<&'static str, u64> =
        counts.ignored.iter().map(|(kind, number)| (kind.word(), *number)).collect();
    ignored.extend(coordinator.dropped.by_kind());
    let ignored =
        ignored.into_iter().map(|(kind, number)| (labeled("kind", kind), number_of(number)));
    let help = "Messages of agents that changed nothing.";
    all.add(Kind::Counter, "ignored_messages_total", help, ignored);
    let received = number_of(coordinator.activity.received());
    let help = "Bytes that agents have sent on bulk channels.";
    all.one(Kind::Counter, "received_bytes_total", help, received);
    let closed = f64::from(u8::from(counts.intake_closed.is_some()));
    let help = "Whether nothing is given to agents, because results cannot be taken in.";
    all.one(Kind::Gauge, "intake_closed", help, closed);
}

fn held(all: &mut Exposition, coordinator: &Coordinator, kept: &Kept) -> Result<(), MetricsError> {
    use Kind::Gauge;
    all.one(Gauge, "nars", "Nars that are held.", number_of(kept.holdings.nars));
    let help = "The length of their files.";
    all.one(Gauge, "nar_file_bytes", help, number_of(kept.holdings.bytes));
    let (withdrawn, bytes) = kept.withdrawn;
    let help = "Nars that are held no more, and whose files stay for a while.";
    all.one(Gauge, "withdrawn_nars", help, number_of(withdrawn));
    all.one(Gauge, "withdrawn_file_bytes", "The length of their files.", number_of(bytes));
    let help = "Files of small nars that are in the database, to be written out.";
    all.one(Gauge, "unwritten_bytes", help, number_of(kept.unwritten));
    let database = database_bytes(&coordinator.state_dir)?;
    all.one(Gauge, "database_bytes", "The database and its log.", number_of(database));
    let room = coordinator.pressure.room()?;
    all.one(Gauge, "disk_free_bytes", "Room on the state directory's disk.", number_of(room.free));
    all.one(Gauge, "disk_bytes", "The size of the state directory's disk.", number_of(room.total));
    if let Some(backup) = &kept.backup {
        let help = "When the database was last saved as a whole.";
        all.one(Gauge, "last_backup_time_seconds", help, seconds(backup.at));
    }
    Ok(())
}

fn door(all: &mut Exposition, coordinator: &Coordinator) {
    use Kind::{Counter, Gauge};
    let door = coordinator.monitor.counters();
    all.one(Gauge, "sessions", "Connections that have authenticated.", size(door.sessions));
    all.one(Gauge, "channels", "Open channels.", size(door.channels));
    let help = "Connections that have not authenticated.";
    all.one(Gauge, "unauthenticated", help, size(door.unauthenticated));
    all.one(Counter, "connections_total", "Connections that were made.", size(door.connections));
    let help = "Connections that were turned away.";
    all.one(Counter, "turned_away_total", help, size(door.turned_away));
    let help = "What was refused because one principal had too much.";
    all.one(Counter, "refused_total", help, size(door.refused));
    let (_, problems) = coordinator.monitor.keydir();
    all.one(Gauge, "keydir_problems", "What is wrong with the keydir.", size(problems.len()));
}

fn of_hooks(all: &mut Exposition, coordinator: &Coordinator, kept: &Kept) {
    use Kind::{Counter, Gauge};
    let events = number_of(u64::try_from(kept.events.0).unwrap_or(0));
    all.one(Counter, "events_total", "Events since the beginning.", events);
    let hooks = &kept.hooks[..kept.hooks.len().min(HOOKS_MAX)];
    let each = |value: fn(&HookRow) -> u64| {
        let labels = |row: &HookRow| {
            vec![("event", row.hook.event.word().to_owned()), ("hook", row.hook.name.to_string())]
        };
        hooks.iter().map(move |row| (labels(row), number_of(value(row)))).collect::<Vec<_>>()
    };
    let help = "Events that a hook failed on and is to have again.";
    all.add(Gauge, "hook_waiting", help, each(|row| row.waiting));
    let help = "Events that were given up for a hook, and are kept to be tried again.";
    all.add(Gauge, "hook_dead", help, each(|row| row.dead));
    let help = "Events of all kinds that were forgotten before a hook could have them.";
    let lost = each(|row| u64::try_from(row.lost).unwrap_or(0));
    all.add(Counter, "hook_lost_total", help, lost);
    let problems = size(coordinator.hooks.problems().len());
    all.one(Gauge, "hook_problems", "What is wrong with the folders of hooks.", problems);
}

fn people(all: &mut Exposition, coordinator: &Coordinator, pending_keys: usize) {
    use Kind::{Counter, Gauge};
    let help = "Keys that wait for an admin to let them in.";
    all.one(Gauge, "pending_keys", help, size(pending_keys));
    let refusals = coordinator.audit.refusals();
    let help = "Commands that were refused, or failed without changing anything.";
    all.one(Counter, "audit_refusals_total", help, number_of(refusals.refused));
    let help = "Those of them that share a line of the audit with others.";
    all.one(Counter, "audit_refusals_summed_total", help, number_of(refusals.summed));
}
