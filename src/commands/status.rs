//! `status`: how the farm is.

use super::{
    asking,
    error::{CommandError, Exit},
    health::{self, Kept, Problem, Signs},
    invocation::Invocation,
    obstacles,
    output::Format,
    table, times,
    verb::Act,
    version::VERSION,
};
use crate::{
    coordinator::pressure::Process,
    core::{
        agent::SuspensionKind,
        build::ShownState,
        engine::{AgentView, Counts},
    },
    ssh::{Counters, Role},
    store::{Holdings, Reader},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How many agents that take no builds are listed.
const NOT_TAKING_MAX: usize = 1_000;
/// How many of them get a line; the rest is counted.
const NOT_TAKING_LINES_MAX: usize = 10;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Status;

#[derive(Serialize)]
struct Object {
    healthy: bool,
    /// What a person should look at, what holds up most first.
    problems: Vec<Problem>,
    version: &'static str,
    started_at: String,
    uptime_s: i64,
    /// Open builds by state.
    builds: BTreeMap<&'static str, usize>,
    /// Ready builds that no agent ever seen can take.
    unplaceable: usize,
    /// Why the coordinator gives nothing to agents just now.
    intake_closed: Option<String>,
    agents_connected: usize,
    agents_known: usize,
    agents_paused: usize,
    /// Those that are drained, too.
    agents_draining: usize,
    agents_quarantined: usize,
    /// Known agents that take no builds, or fewer than they have slots, and why.
    not_taking: Vec<NotTaking>,
    /// Agents with a key in the keydir.
    agents_registered: usize,
    slots: usize,
    slots_free: usize,
    /// Messages of attempts that no longer held their lease, since the start.
    stale_messages: u64,
    /// All messages of agents that changed nothing, since the start, by kind.
    ignored_messages: BTreeMap<&'static str, u64>,
    nars: u64,
    /// Compressed.
    nar_bytes: u64,
    sessions: usize,
    channels: usize,
    unauthenticated: usize,
    /// Since the start.
    connections: usize,
    /// Connections that were turned away, since the start.
    turned_away: usize,
    /// What was refused because one principal had too much, since the start.
    refused: usize,
    keydir_problems: Vec<String>,
    /// What the process holds, for whoever looks for leaks.
    process: Option<Process>,
    /// When the database was last saved as a whole.
    last_backup: Option<String>,
    next: String,
}

#[derive(Serialize)]
struct NotTaking {
    agent: String,
    reason: String,
}

impl Act for Status {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let coordinator = &invocation.coordinator;
        let counts = asking::counts(coordinator).await?;
        let holdings = coordinator.readers.read(Reader::holdings).await?;
        let (keydir, problems) = coordinator.monitor.keydir();
        let agents = keydir.principals();
        let mut registered: Vec<&str> = agents
            .iter()
            .filter(|(principal, _)| principal.role == Role::Agent)
            .map(|(principal, _)| principal.name.as_str())
            .collect();
        registered.dedup();
        let uptime_ms =
            coordinator.clock.now().wall.as_ms().saturating_sub(coordinator.started_at.as_ms());
        let door = coordinator.monitor.counters();
        let mut object = object(&counts, holdings, door);
        let dropped = coordinator.dropped.by_kind().into_iter();
        object.ignored_messages.extend(dropped.filter(|(_, number)| *number > 0));
        object.started_at = times::rfc3339(coordinator.started_at);
        object.uptime_s = uptime_ms / 1_000;
        object.agents_registered = registered.len();
        let views = asking::agents(coordinator).await?;
        object.not_taking = not_taking(&views);
        object.keydir_problems = problems.iter().map(ToString::to_string).collect();
        object.process = Process::of(coordinator)
            .await
            .inspect_err(|error| tracing::warn!(%error, "the process is not counted"))
            .ok();
        let kept = Kept::read(invocation, &views).await?;
        object.last_backup = kept.last_backup.map(times::rfc3339);
        object.problems = health::problems(&Signs {
            keydir_problems: &object.keydir_problems,
            counts: &counts,
            agents: &views,
            ready: &asking::ready(coordinator).await?,
            registered: object.agents_registered,
            kept,
            hook_problems: &coordinator.hooks.problems(),
            flooding: &coordinator.audit.refusals().flooding,
            pending_keys: coordinator.enrollment.count_pending().await,
            backup_age: coordinator.config.lock().await.backup_age,
            now: coordinator.clock.now().wall,
        });
        object.healthy = object.problems.is_empty();
        object.next = match object.problems.first() {
            Some(first) => first.advice.clone(),
            None => next(&object),
        };
        if invocation.output.format() == Format::Json {
            invocation.output.json(&object).await?;
            return Ok(Exit::Done);
        }
        for line in lines(&object) {
            let line = table::cut(&line, invocation.output.columns());
            invocation.output.line(&line).await?;
        }
        Ok(Exit::Done)
    }
}

/// Returns why agents take no builds, or fewer than they have slots.
fn not_taking(views: &[AgentView]) -> Vec<NotTaking> {
    let reasons = views.iter().filter_map(|view| {
        let agent = view.name.to_string();
        obstacles::limit(view).map(|reason| NotTaking { agent, reason })
    });
    reasons.take(NOT_TAKING_MAX).collect()
}

fn object(counts: &Counts, holdings: Holdings, door: Counters) -> Object {
    let suspended = |kind| counts.suspended.get(&kind).copied().unwrap_or(0);
    Object {
        healthy: true,
        problems: Vec::new(),
        version: VERSION,
        started_at: String::new(),
        uptime_s: 0,
        builds: counts.builds.iter().map(|(state, number)| (state.word(), *number)).collect(),
        unplaceable: counts.unplaceable,
        intake_closed: counts.intake_closed.clone(),
        agents_connected: counts.agents_connected,
        agents_known: counts.agents_known,
        agents_paused: suspended(SuspensionKind::Paused),
        agents_draining: suspended(SuspensionKind::Draining),
        agents_quarantined: suspended(SuspensionKind::Quarantined),
        not_taking: Vec::new(),
        agents_registered: 0,
        slots: counts.slots,
        slots_free: counts.slots_free,
        stale_messages: counts.stale_messages,
        ignored_messages: counts.ignored.iter().map(|(kind, n)| (kind.word(), *n)).collect(),
        nars: holdings.nars,
        nar_bytes: holdings.bytes,
        sessions: door.sessions,
        channels: door.channels,
        unauthenticated: door.unauthenticated,
        connections: door.connections,
        turned_away: door.turned_away,
        refused: door.refused,
        keydir_problems: Vec::new(),
        process: None,
        last_backup: None,
        next: String::new(),
    }
}

fn lines(object: &Object) -> Vec<String> {
    let uptime = times::span(object.uptime_s.saturating_mul(1_000));
    let states: Vec<String> = ShownState::ALL
        .iter()
        .filter_map(|state| object.builds.get(state.word()).map(|n| format!("{n} {state}")))
        .collect();
    let builds = if states.is_empty() { "none open".to_owned() } else { states.join(", ") };
    let health = match object.problems.as_slice() {
        [] => "healthy".to_owned(),
        [first, rest @ ..] => {
            let more =
                if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            format!("not healthy: {}{more}", first.problem)
        }
    };
    let mut lines = vec![
        format!("health    {health}"),
        format!("steading  {VERSION}, up {uptime}"),
        format!("builds    {builds}; {} that no known agent can take", object.unplaceable),
        format!(
            "agents    {} connected, {} known, {} registered",
            object.agents_connected, object.agents_known, object.agents_registered
        ),
        format!("slots     {} of {} free", object.slots_free, object.slots),
        format!("depot     {} nars, {}", object.nars, table::bytes(object.nar_bytes)),
        format!(
            "door      {} sessions, {} channels, {} not authenticated; since the start {} \
             connections, {} turned away",
            object.sessions,
            object.channels,
            object.unauthenticated,
            object.connections,
            object.turned_away
        ),
        format!("stale     {}", ignored(object)),
    ];
    if let Some(reason) = &object.intake_closed {
        lines.push(format!("stopped   nothing is given to agents: {}", table::plain(reason)));
    }
    for NotTaking { agent, reason } in object.not_taking.iter().take(NOT_TAKING_LINES_MAX) {
        lines.push(format!("agent     {agent}: {reason}"));
    }
    let more = object.not_taking.len().saturating_sub(NOT_TAKING_LINES_MAX);
    if more > 0 {
        lines.push(format!("agent     … and {more} more: see ‘agents’"));
    }
    for problem in &object.keydir_problems {
        lines.push(format!("keydir    {}", table::plain(problem)));
    }
    for Problem { problem, advice } in object.problems.iter().skip(1) {
        lines.push(format!("problem   {problem}: {advice}"));
    }
    lines.push(format!("next      {}", object.next));
    lines
}

/// Returns how many messages changed nothing, by kind.
fn ignored(object: &Object) -> String {
    let kinds: Vec<String> =
        object.ignored_messages.iter().map(|(kind, number)| format!("{number} {kind}")).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(": {}", kinds.join(", ")) };
    let number: u64 = object.ignored_messages.values().sum();
    format!("{number} messages changed nothing since the start{kinds}")
}

/// Returns the most useful thing to do on a farm that is well.
fn next(object: &Object) -> String {
    let number = |state: ShownState| object.builds.get(state.word()).copied().unwrap_or(0);
    if object.agents_registered == 0 {
        let text = "register an agent: put its public key into keys/agents/NAME.pub in the state \
                    directory";
        return text.to_owned();
    }
    if object.agents_connected == 0 {
        return "start an agent: ‘steading agent --coordinator HOST:PORT’ on a build machine"
            .to_owned();
    }
    let idle = object.agents_paused + object.agents_draining;
    if idle > 0 && object.slots_free == 0 && number(ShownState::Ready) > 0 {
        return "give agents builds again: ‘agents’, then ‘agents resume NAME’".to_owned();
    }
    if number(ShownState::Blocked) > 0 {
        return "see what failed below blocked builds: ‘builds --state blocked’, then ‘why ID’"
            .to_owned();
    }
    if number(ShownState::Deferred) > 0 {
        return "see why builds are put off: ‘builds --state deferred’, then ‘why ID’".to_owned();
    }
    if object.builds.is_empty() {
        return "nothing: submit something, with ‘steading submit DRV’".to_owned();
    }
    "nothing: builds go on".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_thing_to_do_is_the_one_that_holds_up_most() {
        let mut object =
            object(&Counts::default(), Holdings { nars: 0, bytes: 0 }, Counters::default());
        assert!(next(&object).starts_with("register an agent"));
        object.agents_registered = 1;
        assert!(next(&object).starts_with("start an agent"));
        object.agents_connected = 1;
        assert!(next(&object).contains("submit something"));
        object.builds.insert("building", 1);
        assert_eq!(next(&object), "nothing: builds go on");
        object.builds.insert("blocked", 1);
        assert!(next(&object).contains("--state blocked"));
        object.agents_paused = 1;
        object.builds.insert("ready", 1);
        assert!(next(&object).contains("agents resume NAME"));
    }

    #[test]
    fn the_text_is_complete() {
        let mut object =
            object(&Counts::default(), Holdings { nars: 2, bytes: 2048 }, Counters::default());
        object.builds.insert("ready", 3);
        object.ignored_messages = BTreeMap::from([("stale-offer", 2), ("repeated-started", 1)]);
        object.uptime_s = 61;
        let idle = |number: usize| {
            let reason = "paused by olga: a new disk".to_owned();
            NotTaking { agent: format!("a{number}"), reason }
        };
        object.not_taking = (0..12).map(idle).collect();
        object.intake_closed = Some("1 GiB free, at least 2 GiB are wanted".to_owned());
        let problem = |problem: &str| Problem {
            problem: problem.to_owned(),
            advice: "do something".to_owned(),
        };
        object.problems = vec![problem("it rains"), problem("it snows")];
        object.next = "rest".to_owned();
        let text = lines(&object).join("\n").replace(VERSION, "VERSION");
        insta::assert_snapshot!(text, @r"
        health    not healthy: it rains (and 1 more)
        steading  VERSION, up 1 min 1 s
        builds    3 ready; 0 that no known agent can take
        agents    0 connected, 0 known, 0 registered
        slots     0 of 0 free
        depot     2 nars, 2.0 KiB
        door      0 sessions, 0 channels, 0 not authenticated; since the start 0 connections, 0 turned away
        stale     3 messages changed nothing since the start: 1 repeated-started, 2 stale-offer
        stopped   nothing is given to agents: 1 GiB free, at least 2 GiB are wanted
        agent     a0: paused by olga: a new disk
        agent     a1: paused by olga: a new disk
        agent     a2: paused by olga: a new disk
        agent     a3: paused by olga: a new disk
        agent     a4: paused by olga: a new disk
        agent     a5: paused by olga: a new disk
        agent     a6: paused by olga: a new disk
        agent     a7: paused by olga: a new disk
        agent     a8: paused by olga: a new disk
        agent     a9: paused by olga: a new disk
        agent     … and 2 more: see ‘agents’
        problem   it snows: do something
        next      rest
        ");
    }
}
