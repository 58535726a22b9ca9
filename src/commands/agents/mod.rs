//! `agents`: who builds here, and who shall not for now.

mod decide;
mod list;
mod show;

use super::{
    asking,
    error::{CommandError, Exit},
    invocation::Invocation,
    nearest::nearest,
    obstacles, times,
    verb::Act,
};
use crate::{
    core::{engine::AgentView, id::Name, time::Timestamp},
    ssh::{Principal, Role},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// How long a day is, in milliseconds.
const DAY_MS: i64 = 86_400_000;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Agents {
    #[command(subcommand)]
    what: Option<What>,
}

/// What to do with one agent. Without any of these, all agents are listed.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print everything about an agent
    Show(Named),
    /// Give an agent no new builds for now; what it has goes on
    Pause(decide::Suspend),
    /// Give an agent no new builds, and let it become empty
    Drain(decide::Suspend),
    /// Give an agent builds again, after a pause, a drain or a quarantine
    Resume(Named),
    /// Forget an agent that is away; what it had goes to others
    Rm(Named),
}

/// One agent.
#[derive(Debug, clap::Args)]
struct Named {
    /// The agent, as its key in the keydir is called
    name: Name,
}

impl Act for Agents {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        match self.what {
            None => list::run(invocation).await,
            Some(What::Show(named)) => show::run(invocation, &named.name).await,
            Some(What::Pause(suspend)) => decide::pause(invocation, suspend).await,
            Some(What::Drain(suspend)) => decide::drain(invocation, suspend).await,
            Some(What::Resume(named)) => decide::resume(invocation, named.name).await,
            Some(What::Rm(named)) => decide::remove(invocation, named.name).await,
        }
    }
}

/// An agent as JSON has it.
#[derive(Serialize)]
struct Object {
    agent: String,
    state: &'static str,
    connected: bool,
    /// Whether a key of the agent is in the keydir.
    registered: bool,
    /// Why it takes no builds, or fewer than it has slots.
    limit: Option<String>,
    /// The reason of the decision that it gets no builds, who made it (`null`: the coordinator),
    /// when, and until when it holds.
    reason: Option<String>,
    decided_by: Option<String>,
    decided_at: Option<String>,
    until: Option<String>,
    store_dir: String,
    dialect: String,
    systems: Vec<String>,
    emulated_systems: Vec<String>,
    features: Vec<String>,
    tags: Vec<String>,
    slots: u32,
    slots_free: usize,
    /// How many builds it wants to run at a time just now, and why not all its slots.
    capacity: u32,
    capacity_reason: Option<String>,
    running: Vec<String>,
    sending: Vec<String>,
    /// Attempts given to it since midnight that told something of their builds.
    builds_today: u64,
    failures_in_a_row: usize,
    last_seen: String,
}

/// What is known of an agent.
struct Known {
    view: AgentView,
    principal: Option<Arc<Principal>>,
    builds_today: u64,
}

impl Known {
    fn object(&self) -> Object {
        let view = &self.view;
        let suspension = view.suspension.as_ref();
        Object {
            agent: view.name.to_string(),
            state: obstacles::state(view),
            connected: view.connected,
            registered: self.principal.is_some(),
            limit: obstacles::limit(view),
            reason: suspension.and_then(|one| one.reason.clone()),
            decided_by: suspension.and_then(|one| one.by.as_ref()).map(ToString::to_string),
            decided_at: suspension.map(|one| times::rfc3339(one.since)),
            until: suspension.and_then(|one| one.until).map(times::rfc3339),
            store_dir: view.abilities.store_dir.to_string(),
            dialect: view.abilities.dialect.clone(),
            systems: view.abilities.systems.clone(),
            emulated_systems: view.abilities.emulated_systems.clone(),
            features: view.abilities.features.clone(),
            tags: self.tags(),
            slots: view.abilities.slots,
            slots_free: view.slots_free,
            capacity: view.capacity.slots,
            capacity_reason: view.capacity.reason.clone(),
            running: view.running.iter().map(ToString::to_string).collect(),
            sending: view.sending.iter().map(ToString::to_string).collect(),
            builds_today: self.builds_today,
            failures_in_a_row: view.failures_in_a_row,
            last_seen: times::rfc3339(view.last_seen),
        }
    }

    fn tags(&self) -> Vec<String> {
        let tags = self.principal.as_ref().map(|principal| principal.tags.as_slice());
        tags.unwrap_or_default().iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Returns the systems as tables show them.
    fn systems(&self) -> String {
        let abilities = &self.view.abilities;
        let emulated = abilities.emulated_systems.iter().map(|s| format!("{s} (emulated)"));
        abilities.systems.iter().cloned().chain(emulated).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the agents that have a key.
fn registered(invocation: &Invocation) -> BTreeMap<String, Arc<Principal>> {
    let (keydir, _) = invocation.coordinator.monitor.keydir();
    keydir
        .principals()
        .into_iter()
        .filter(|(principal, _)| principal.role == Role::Agent)
        .map(|(principal, _)| (principal.name.to_string(), principal))
        .collect()
}

/// Returns what is known of agents.
async fn known(invocation: &Invocation, views: Vec<AgentView>) -> Result<Vec<Known>, CommandError> {
    let principals = registered(invocation);
    let now = invocation.coordinator.clock.now().wall.as_ms();
    let midnight = Timestamp::from_ms(now.saturating_sub(now.rem_euclid(DAY_MS)));
    let names: Vec<Name> = views.iter().map(|view| view.name.clone()).collect();
    let results = invocation
        .coordinator
        .readers
        .read(move |reader| {
            let each = names.iter().map(|name| reader.results_of_agent(name, midnight));
            each.collect::<Result<Vec<u64>, _>>()
        })
        .await?;
    let each = views.into_iter().zip(results).map(|(view, builds_today)| {
        let principal = principals.get(view.name.as_str()).cloned();
        Known { view, principal, builds_today }
    });
    Ok(each.collect())
}

/// Returns what is known of one agent.
async fn find(invocation: &Invocation, name: &Name) -> Result<Known, CommandError> {
    let views = asking::agents(&invocation.coordinator).await?;
    let Some(view) = views.iter().find(|view| view.name == *name).cloned() else {
        return Err(no_such(invocation, name, &views));
    };
    let mut found = known(invocation, vec![view]).await?;
    found.pop().ok_or_else(|| no_such(invocation, name, &views))
}

fn no_such(invocation: &Invocation, name: &Name, views: &[AgentView]) -> CommandError {
    let registered = registered(invocation);
    if registered.contains_key(name.as_str()) {
        let text = format!("agent ‘{name}’ has a key, but was never seen here");
        return CommandError::NoSuch(text);
    }
    let names = views.iter().map(|view| view.name.as_str());
    let names = names.chain(registered.keys().map(String::as_str));
    CommandError::NoSuch(match nearest(name.as_str(), names) {
        Some(meant) => format!("there is no agent ‘{name}’; did you mean ‘{meant}’?"),
        None => format!("there is no agent ‘{name}’: ‘agents’ lists them"),
    })
}
