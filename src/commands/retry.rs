//! `retry`: try builds again, those that are over as well.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    selection::{Selection, Tagged},
    settings, shown,
    verb::Act,
};
use crate::{
    core::{
        build::{PRIORITY_MAX, PRIORITY_MIN, ShownState},
        engine::{Answer, Authority, Retried, RetryWish},
        id::{BuildId, Name},
    },
    store::Unsuccessful,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Retry {
    #[command(flatten)]
    selection: Selection,
    /// Only this agent may have them; given several times, any of these
    #[arg(long = "agent", value_name = "NAME")]
    agents: Vec<Name>,
    /// This agent may not have them
    #[arg(long = "not-agent", value_name = "NAME")]
    not_agents: Vec<Name>,
    /// Also all failed and canceled builds that need what these make, however far off
    #[arg(long)]
    with_dependents: bool,
    /// Higher goes first
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser =
        clap::value_parser!(i32).range(i64::from(PRIORITY_MIN)..=i64::from(PRIORITY_MAX)))]
    priority: Option<i32>,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
}

impl Act for Retry {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let (mut own, by) = self.selection.find_own(invocation, Tagged::Unsuccessful).await?;
        if self.with_dependents {
            let dependents = dependents(invocation, &own, &by).await?;
            own.extend(dependents);
        }
        let priority = match self.priority {
            Some(asked) => Some(settings::granted(invocation, asked).await?),
            None => None,
        };
        let open_max = invocation.principal.quotas.open_builds;
        let wish =
            RetryWish { agents: self.agents, not_agents: self.not_agents, priority, open_max };
        invocation.audit().await?;
        let answer = invocation.coordinator.engine.retry(own, by, wish).await?;
        let results = match answer {
            Answer::Retried(results) => results,
            Answer::TooMany(over) => {
                return Err(settings::too_many(&over, "nothing is tried again"));
            }
            _ => {
                return Err(CommandError::TryAgain(
                    "the engine answered another question".to_owned(),
                ));
            }
        };
        report(invocation, results).await
    }
}

/// Returns the failed and canceled builds that need some others, and that the asker may change.
async fn dependents(
    invocation: &Invocation,
    builds: &[BuildId],
    by: &Authority,
) -> Result<Vec<BuildId>, CommandError> {
    let builds = builds.to_vec();
    let readers = &invocation.coordinator.readers;
    let found = readers.read(move |reader| reader.unsuccessful_dependents(&builds)).await?;
    let may_change = |one: &Unsuccessful| match by {
        Authority::All => true,
        Authority::Own(name) => one.submitter == name.as_str(),
    };
    Ok(found.into_iter().filter(may_change).map(|one| one.id).collect())
}

/// Prints how each build is now, in order of creation.
async fn report(
    invocation: &mut Invocation,
    mut results: Vec<(BuildId, Retried)>,
) -> Result<Exit, CommandError> {
    results.sort_by_key(|(build, _)| *build);
    let all: BTreeSet<BuildId> = results.iter().map(|(build, _)| *build).collect();
    let states = shown::states(&invocation.coordinator, &all).await?;
    let mut exit = Exit::Done;
    for (build, result) in results {
        let state = states.get(&build).copied().map_or("unknown", ShownState::word);
        let remark = match result {
            Retried::Reopened | Retried::Hastened | Retried::Waits => {
                print(invocation, build, state).await?;
                continue;
            }
            Retried::Busy => format!("build {build} is with an agent just now: {state}"),
            Retried::Succeeded => format!("build {build} succeeded: submit it anew"),
            Retried::NoSuch => format!("build {build} was removed meanwhile"),
            Retried::NotYours => {
                let text = format!("build {build} is somebody else’s");
                return Err(CommandError::NotPermitted(text));
            }
        };
        invocation.output.message(&remark).await?;
        exit = Exit::Negative;
    }
    Ok(exit)
}

async fn print(
    invocation: &mut Invocation,
    build: BuildId,
    state: &'static str,
) -> Result<(), CommandError> {
    match invocation.output.format() {
        Format::Text => Ok(invocation.output.line(&format!("{build} {state}")).await?),
        Format::Json => {
            let object = Object { build: build.to_string(), state };
            Ok(invocation.output.json(&object).await?)
        }
    }
}
