//! `unplaceable`: builds that no agent can take, by what they ask for.

use super::{
    advice, asking,
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::{self, count},
    times,
    verb::Act,
};
use crate::core::engine;
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Unplaceable;

#[derive(Serialize)]
struct Object {
    store_dir: String,
    system: Option<String>,
    features: Vec<String>,
    /// What the builds ask for besides what their derivations do, in words.
    demands: Vec<String>,
    builds: usize,
    /// How many of them wait for nothing else.
    ready: usize,
    /// When the first of them was asked for.
    since: String,
    /// Some of them.
    first: Vec<String>,
    agents: Vec<Agent>,
}

#[derive(Serialize)]
struct Agent {
    agent: String,
    reason: String,
}

impl Act for Unplaceable {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let groups = asking::unplaceable(&invocation.coordinator).await?;
        if groups.is_empty() {
            invocation.output.message("some known agent can take every build").await?;
        }
        for group in groups {
            match invocation.output.format() {
                Format::Json => invocation.output.json(&object(group)).await?,
                Format::Text => {
                    for line in lines(&group) {
                        let line = table::cut(&line, invocation.output.columns());
                        invocation.output.line(&line).await?;
                    }
                }
            }
        }
        Ok(Exit::Done)
    }
}

fn object(group: engine::Unplaceable) -> Object {
    Object {
        store_dir: group.kind.class.store_dir.to_string(),
        system: group.kind.class.system,
        features: group.kind.class.features,
        demands: group.kind.demands.words(),
        builds: group.builds,
        ready: group.ready,
        since: times::rfc3339(group.since),
        first: group.first.iter().map(ToString::to_string).collect(),
        agents: group
            .agents
            .into_iter()
            .map(|(agent, reason)| Agent { agent: agent.to_string(), reason })
            .collect(),
    }
}

fn lines(group: &engine::Unplaceable) -> Vec<String> {
    let needs = advice::needs(&group.kind.class, &group.kind.demands);
    let mut lines = vec![format!(
        "{} ({} ready), the first since {}: {needs}",
        count(group.builds, "build"),
        group.ready,
        times::shown(group.since)
    )];
    for (agent, reason) in &group.agents {
        lines.push(format!("  agent {agent}: {}", table::plain(reason)));
    }
    if group.agents.is_empty() {
        lines.push("  no agent was ever here".to_owned());
    }
    if let Some(first) = group.first.first() {
        lines.push(format!("  for instance {first}"));
    }
    lines
}
