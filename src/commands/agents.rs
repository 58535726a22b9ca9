//! `agents`: who builds here.

use super::{
    asking,
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::Table,
    times,
    verb::Act,
};
use crate::{
    core::engine::AgentView,
    ssh::{Principal, Role},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Agents;

#[derive(Serialize)]
struct Object {
    agent: String,
    connected: bool,
    /// Whether a key of the agent is in the keydir.
    registered: bool,
    store_dir: String,
    dialect: String,
    systems: Vec<String>,
    emulated_systems: Vec<String>,
    features: Vec<String>,
    tags: Vec<String>,
    slots: u32,
    running: Vec<String>,
    sending: Vec<String>,
    last_seen: String,
}

impl Act for Agents {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let views = asking::agents(&invocation.coordinator).await?;
        let (keydir, _) = invocation.coordinator.monitor.keydir();
        let registered: BTreeMap<String, Arc<Principal>> = keydir
            .principals()
            .into_iter()
            .filter(|(principal, _)| principal.role == Role::Agent)
            .map(|(principal, _)| (principal.name.to_string(), principal))
            .collect();
        if invocation.output.format() == Format::Json {
            for view in views {
                let principal = registered.get(view.name.as_str());
                invocation.output.json(&object(view, principal)).await?;
            }
            return Ok(Exit::Done);
        }
        let mut table =
            Table::new(&["agent", "state", "builds", "slots", "sending", "systems", "last seen"]);
        for view in &views {
            let abilities = &view.abilities;
            let emulated = abilities.emulated_systems.iter().map(|s| format!("{s} (emulated)"));
            let systems: Vec<String> = abilities.systems.iter().cloned().chain(emulated).collect();
            let state = if view.connected { "connected" } else { "away" };
            table.row(vec![
                view.name.to_string(),
                state.to_owned(),
                view.running.len().to_string(),
                abilities.slots.to_string(),
                view.sending.len().to_string(),
                systems.join(" "),
                times::shown(view.last_seen),
            ]);
        }
        invocation.output.table(&table).await?;
        let seen = |name: &String| views.iter().any(|view| view.name.as_str() == name);
        let unseen: Vec<&str> =
            registered.keys().filter(|name| !seen(name)).map(String::as_str).collect();
        if !unseen.is_empty() {
            let text = format!("registered, but never seen: {}", unseen.join(", "));
            invocation.output.message(&text).await?;
        } else if views.is_empty() {
            let text = "no agent is registered: put its public key into keys/agents/NAME.pub in \
                        the state directory";
            invocation.output.message(text).await?;
        }
        Ok(Exit::Done)
    }
}

fn object(view: AgentView, principal: Option<&Arc<Principal>>) -> Object {
    let tags = principal.map(|principal| principal.tags.as_slice()).unwrap_or_default();
    Object {
        agent: view.name.to_string(),
        connected: view.connected,
        registered: principal.is_some(),
        store_dir: view.abilities.store_dir.to_string(),
        dialect: view.abilities.dialect,
        systems: view.abilities.systems,
        emulated_systems: view.abilities.emulated_systems,
        features: view.abilities.features,
        tags: tags.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        slots: view.abilities.slots,
        running: view.running.iter().map(ToString::to_string).collect(),
        sending: view.sending.iter().map(ToString::to_string).collect(),
        last_seen: times::rfc3339(view.last_seen),
    }
}
