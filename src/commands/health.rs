//! Whether a farm is well, and what an operator should do next if it is not.

use super::{
    invocation::Invocation,
    table::{self, count},
    times,
};
use crate::{
    coordinator::hooks::WAITING_MAX,
    core::{
        agent::SuspensionKind,
        engine::{AgentView, Counts, ReadyBuilds},
        hook::HookId,
        id::Name,
        time::Timestamp,
    },
    ssh::Role,
    store::{Reader, StoreError},
};
use serde::Serialize;
use std::collections::BTreeSet;

/// For how long faults of machines are looked at, in milliseconds: an hour.
const FAULTS_MS: i64 = 3_600_000;
/// How many attempts must have ended in that time for their faults to say something.
const FAULTS_MIN: u64 = 5;
/// How many agents are looked at for that.
const AGENTS_MAX: usize = 1_000;
/// How many milliseconds a day has.
const DAY_MS: i64 = 86_400_000;
/// How many systems one sentence names.
const NAMED_MAX: usize = 5;

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    /// What is wrong.
    pub(super) problem: String,
    /// What to do.
    pub(super) advice: String,
}

fn problem(problem: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem { problem: problem.into(), advice: advice.into() }
}

/// What health is told from.
pub(super) struct Signs<'a> {
    pub(super) keydir_problems: &'a [String],
    pub(super) counts: &'a Counts,
    pub(super) agents: &'a [AgentView],
    pub(super) ready: &'a [ReadyBuilds],
    /// Agents with a key.
    pub(super) registered: usize,
    pub(super) kept: Kept,
    /// What is wrong with the folders of hooks.
    pub(super) hook_problems: &'a [String],
    /// Who is refused again and again.
    pub(super) flooding: &'a [(Role, Name)],
    /// How many keys wait for an admin.
    pub(super) pending_keys: usize,
    /// After how many days without a backup somebody is asked for one; never when 0.
    pub(super) backup_age: u32,
    pub(super) now: Timestamp,
}

/// What the database says about health.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Agents with the attempts that lately ended through the fault of their machines, and how many
    /// ended in all.
    faults: Vec<(Name, u64, u64)>,
    pub(super) last_backup: Option<Timestamp>,
    first_submission: Option<Timestamp>,
    /// Hooks that get nothing new before some of their failures are settled.
    stuck_hooks: Vec<HookId>,
    /// How many events were given up within a day, by hook.
    given_up: Vec<(HookId, u64)>,
}

impl Kept {
    /// Asks the database.
    pub(super) async fn read(
        invocation: &Invocation,
        agents: &[AgentView],
    ) -> Result<Self, StoreError> {
        let now = invocation.coordinator.clock.now().wall;
        let since = now.plus_ms(-FAULTS_MS);
        let names: Vec<Name> = agents.iter().take(AGENTS_MAX).map(|a| a.name.clone()).collect();
        invocation
            .coordinator
            .readers
            .read(move |reader: &Reader| {
                let mut faults = Vec::new();
                for name in names {
                    let (number, all) = reader.faults_of_agent(&name, since)?;
                    faults.push((name, number, all));
                }
                let hooks = reader.hooks()?.into_iter();
                let stuck = hooks.filter(|row| row.waiting >= u64::from(WAITING_MAX));
                Ok(Self {
                    faults,
                    stuck_hooks: stuck.map(|row| row.hook).collect(),
                    given_up: reader.given_up_since(now.plus_ms(-DAY_MS))?,
                    last_backup: reader.last_backup()?.map(|mark| mark.at),
                    first_submission: reader.first_submission()?,
                })
            })
            .await
    }
}

/// Returns what is wrong, what holds up most first.
pub(super) fn problems(signs: &Signs<'_>) -> Vec<Problem> {
    let mut found = Vec::new();
    keys_and_room(signs, &mut found);
    agents(signs, &mut found);
    faults(signs, &mut found);
    backup(signs, &mut found);
    hooks(signs, &mut found);
    people(signs, &mut found);
    found
}

fn keys_and_room(signs: &Signs<'_>, found: &mut Vec<Problem>) {
    if let Some(first) = signs.keydir_problems.first() {
        let problems = count(signs.keydir_problems.len(), "problem of the keydir");
        found.push(problem(
            format!("the keydir is not as it should be: {}", table::plain(first)),
            format!("mend {problems}"),
        ));
    }
    if let Some(reason) = &signs.counts.intake_closed {
        let reason = table::plain(reason);
        let advice = format!("make room for results: {reason}");
        found.push(problem("nothing is given to agents", advice));
    }
}

fn agents(signs: &Signs<'_>, found: &mut Vec<Problem>) {
    let counts = signs.counts;
    let is_wanted = !counts.builds.is_empty();
    if signs.registered == 0 && is_wanted {
        let advice = "register an agent: put its public key into keys/agents/NAME.pub in the state \
                      directory";
        found.push(problem("builds wait and no agent is registered", advice));
    } else if counts.agents_connected == 0 && is_wanted {
        let advice = "start an agent: ‘steading agent --coordinator HOST:PORT’ on a build machine";
        found.push(problem("builds wait and no agent is connected", advice));
    }
    let quarantined = counts.suspended.get(&SuspensionKind::Quarantined).copied().unwrap_or(0);
    if quarantined > 0 {
        let advice = "see what is wrong with quarantined agents: ‘agents’, then ‘agents show NAME’";
        found.push(problem(format!("{} quarantined", count(quarantined, "agent")), advice));
    }
    // Where no agent was ever seen, that is said already.
    if counts.unplaceable > 0 && counts.agents_known > 0 {
        let number = count(counts.unplaceable, "ready build");
        let advice = "see what no agent can take: ‘unplaceable’, then ‘why ID’";
        found.push(problem(format!("{number} that no known agent can take"), advice));
    }
    let away = away(signs);
    if counts.agents_connected > 0 && !away.is_empty() {
        let named: Vec<&str> = away.iter().take(NAMED_MAX).map(String::as_str).collect();
        let what = format!("no agent is here for ready builds of {}", named.join(", "));
        let advice = "start the agents for them, or give them builds again: ‘agents’ says which";
        found.push(problem(what, advice));
    }
}

/// Returns the systems of ready builds that some known agent can take, and none that is here does.
fn away(signs: &Signs<'_>) -> BTreeSet<String> {
    let mut away = BTreeSet::new();
    for ready in signs.ready.iter().filter(|ready| ready.ready > 0) {
        let can = |agent: &&AgentView| ready.kind.obstacle(&agent.name, &agent.abilities).is_none();
        let mut able = signs.agents.iter().filter(can).peekable();
        if able.peek().is_some() && able.all(|a| !a.connected || a.suspension.is_some()) {
            let system = ready.kind.class.system.clone();
            away.insert(system.unwrap_or_else(|| "builtin".to_owned()));
        }
    }
    away
}

fn faults(signs: &Signs<'_>, found: &mut Vec<Problem>) {
    let all = signs.kept.faults.iter().map(|(_, _, all)| all).sum::<u64>();
    let faults = signs.kept.faults.iter().map(|(_, faults, _)| faults).sum::<u64>();
    // More than every fifth.
    if faults < FAULTS_MIN || faults.saturating_mul(5) <= all {
        return;
    }
    let worst = signs.kept.faults.iter().max_by_key(|(_, faults, _)| *faults);
    if let Some((name, of_it, _)) = worst {
        found.push(problem(
            format!(
                "{faults} of {all} attempts of the last hour ended through the fault of machines"
            ),
            format!(
                "see what is wrong with {name}, which has {of_it} of them: ‘agents show {name}’"
            ),
        ));
    }
}

fn backup(signs: &Signs<'_>, found: &mut Vec<Problem>) {
    let age = i64::from(signs.backup_age).saturating_mul(DAY_MS);
    let advice =
        "save the database: ‘ssh COORDINATOR backup > steading.db.zst’, and see ‘help backup’";
    let older = |at: Timestamp| age > 0 && at.plus_ms(age) < signs.now;
    match (signs.kept.last_backup, signs.kept.first_submission) {
        (Some(last), _) if older(last) => {
            let what = format!("the last backup of the database is of {}", times::shown(last));
            found.push(problem(what, advice));
        }
        (None, Some(first)) if older(first) => {
            found.push(problem("the database was never saved", advice));
        }
        (Some(_) | None, _) => {}
    }
}

/// What was given up is told for a day: nobody has to tidy up what concerns nobody any more.
fn hooks(signs: &Signs<'_>, found: &mut Vec<Problem>) {
    if let Some(hook) = signs.kept.stuck_hooks.first() {
        let what = format!("hook {hook} gets nothing new: {WAITING_MAX} failures wait");
        let advice = "see what it says and mend it: ‘hooks --failed’, then ‘hooks retry ID’";
        found.push(problem(what, advice));
    }
    if let Some(first) = signs.hook_problems.first() {
        let advice = "have it run again, or take its file away: ‘hooks’ lists what is wrong";
        found.push(problem(format!("a hook does not run: {}", table::plain(first)), advice));
    }
    let number = signs.kept.given_up.iter().map(|(_, number)| number).sum::<u64>();
    if let Some((hook, _)) = signs.kept.given_up.iter().max_by_key(|(_, number)| *number) {
        let events = count(usize::try_from(number).unwrap_or(usize::MAX), "event");
        let what = format!("{events} given up within a day, most of them for hook {hook}");
        let advice = "see what hooks failed on: ‘hooks --failed’, then ‘hooks retry ID’";
        found.push(problem(what, advice));
    }
}

fn people(signs: &Signs<'_>, found: &mut Vec<Problem>) {
    if let Some((role, name)) = signs.flooding.first() {
        let what = format!("{} {name} is refused again and again", role.word());
        let advice =
            format!("see what it asks for and have that ended: ‘audit --principal {name}’");
        found.push(problem(what, advice));
    }
    if signs.pending_keys > 0 {
        let what = format!("{} to be let in", waiting(signs.pending_keys));
        let advice = "decide about keys that wait: ‘keys list’, then ‘keys approve FINGERPRINT’ or \
                      ‘keys revoke FINGERPRINT’";
        found.push(problem(what, advice));
    }
}

fn waiting(keys: usize) -> String {
    if keys == 1 { "1 key waits".to_owned() } else { format!("{keys} keys wait") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(100 * DAY_MS);

    /// Returns the signs of a farm that is well.
    fn well(counts: &Counts) -> Signs<'_> {
        Signs {
            keydir_problems: &[],
            counts,
            agents: &[],
            ready: &[],
            registered: 1,
            kept: Kept::default(),
            hook_problems: &[],
            flooding: &[],
            pending_keys: 0,
            backup_age: 7,
            now: NOW,
        }
    }

    fn first(change: impl FnOnce(&mut Signs<'_>, &mut Counts)) -> Option<(String, String)> {
        let mut counts = Counts::default();
        let unused = Counts::default();
        let mut signs = well(&unused);
        change(&mut signs, &mut counts);
        let signs = Signs { counts: &counts, ..signs };
        problems(&signs).into_iter().next().map(|one| (one.problem, one.advice))
    }

    #[test]
    fn a_farm_that_nobody_uses_yet_is_well() {
        assert_eq!(first(|signs, _| signs.registered = 0), None);
        assert_eq!(first(|_, _| {}), None);
    }

    #[test]
    fn builds_that_wait_for_agents_are_told_with_what_to_do() {
        use crate::core::build::ShownState::Ready;
        let (_, advice) = first(|signs, counts| {
            signs.registered = 0;
            counts.builds.insert(Ready, 1);
        })
        .unwrap();
        assert!(advice.starts_with("register an agent"), "{advice}");
        let (what, advice) = first(|_, counts| {
            counts.builds.insert(Ready, 1);
        })
        .unwrap();
        assert!(what.contains("no agent is connected") && advice.starts_with("start"), "{what}");
        let (what, _) = first(|_, counts| {
            counts.unplaceable = 2;
            counts.agents_known = 1;
        })
        .unwrap();
        assert_eq!(what, "2 ready builds that no known agent can take");
        let (what, _) = first(|_, counts| {
            counts.suspended.insert(SuspensionKind::Quarantined, 1);
            counts.unplaceable = 2;
        })
        .unwrap();
        assert_eq!(what, "1 agent quarantined");
    }

    #[test]
    fn many_faults_of_machines_name_the_worst_one() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let of = |faults: Vec<(Name, u64, u64)>| first(|signs, _| signs.kept.faults = faults);
        assert_eq!(of(vec![(name("amber"), 4, 4)]), None, "too few to tell");
        assert_eq!(of(vec![(name("amber"), 5, 25)]), None, "every fifth is not much");
        let (what, advice) = of(vec![(name("amber"), 5, 5), (name("birch"), 9, 20)]).unwrap();
        assert!(what.starts_with("14 of 25 attempts"), "{what}");
        assert!(advice.contains("agents show birch"), "{advice}");
    }

    #[test]
    fn hooks_that_stop_or_give_up_are_named() {
        let hook = |name: &str| HookId {
            event: crate::core::event::EventKind::BuildFailure,
            name: name.parse().unwrap(),
        };
        let problems = ["hooks/build-failure.d/mail: not run: it is not executable".to_owned()];
        let (what, advice) = first(|signs, _| {
            signs.kept.given_up = vec![(hook("badge"), 2), (hook("mail"), 3)];
        })
        .unwrap();
        let mail = hook("mail");
        assert_eq!(what, format!("5 events given up within a day, most of them for hook {mail}"));
        assert!(advice.contains("hooks retry ID"), "{advice}");
        let (what, _) = first(|signs, _| signs.kept.stuck_hooks = vec![hook("mail")]).unwrap();
        assert_eq!(what, format!("hook {mail} gets nothing new: 1000 failures wait"));
        let counts = Counts::default();
        let signs = Signs { hook_problems: &problems, ..well(&counts) };
        assert!(super::problems(&signs)[0].problem.contains("d/mail: not run"));
    }

    #[test]
    fn keys_that_wait_and_those_who_are_refused_are_told() {
        let counts = Counts::default();
        let flooding = [(Role::Submitter, "sam".parse::<Name>().unwrap())];
        let signs = Signs { flooding: &flooding, pending_keys: 2, ..well(&counts) };
        let found = problems(&signs);
        assert_eq!(found[0].problem, "submitter sam is refused again and again");
        assert!(found[0].advice.contains("audit --principal sam"), "{found:?}");
        assert_eq!(found[1].problem, "2 keys wait to be let in");
        let (what, _) = first(|signs, _| signs.pending_keys = 1).unwrap();
        assert_eq!(what, "1 key waits to be let in");
    }

    #[test]
    fn an_old_backup_is_asked_for_again_unless_nobody_wants_any() {
        let at = |days: i64| Some(NOW.plus_ms(-days * DAY_MS));
        assert_eq!(first(|signs, _| signs.kept.last_backup = at(6)), None);
        assert!(first(|signs, _| signs.kept.last_backup = at(8)).is_some());
        assert_eq!(first(|signs, _| signs.kept.first_submission = at(6)), None);
        let (what, advice) = first(|signs, _| signs.kept.first_submission = at(8)).unwrap();
        assert_eq!(what, "the database was never saved");
        assert!(advice.contains("backup > "), "{advice}");
        let never = first(|signs, _| {
            signs.kept.last_backup = at(80);
            signs.backup_age = 0;
        });
        assert_eq!(never, None);
    }
}
