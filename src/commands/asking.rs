//! Questions to the engine, with answers of the right kind.

use super::error::CommandError;
use crate::{
    coordinator::Coordinator,
    core::{
        build::ShownState,
        engine::{AgentView, Ask, Counts, ReadyBuilds, Told, Unplaceable},
        id::BuildId,
        plan::Explanation,
    },
};
use std::collections::BTreeMap;

/// Asks a question and takes the answer that belongs to it.
macro_rules! ask {
    ($coordinator:expr, $question:expr, $answer:path) => {
        match $coordinator.engine.ask($question).await? {
            $answer(answer) => Ok(answer),
            _ => Err(CommandError::TryAgain("the engine answered another question".to_owned())),
        }
    };
}

/// Returns how builds are shown; those that are not open are left out.
pub(super) async fn shown(
    coordinator: &Coordinator,
    builds: Vec<BuildId>,
) -> Result<BTreeMap<BuildId, ShownState>, CommandError> {
    ask!(coordinator, Ask::Shown(builds), Told::Shown)
}

/// Returns why a build is not built yet; `None` when it is not open.
pub(super) async fn why(
    coordinator: &Coordinator,
    build: BuildId,
) -> Result<Option<Box<Explanation>>, CommandError> {
    let now = coordinator.clock.now().wall;
    ask!(coordinator, Ask::Why(build, now), Told::Why)
}

/// Returns the builds that no agent ever seen can take, by what they ask for.
pub(super) async fn unplaceable(
    coordinator: &Coordinator,
) -> Result<Vec<Unplaceable>, CommandError> {
    ask!(coordinator, Ask::Unplaceable, Told::Unplaceable)
}

/// Returns how many of everything there are.
pub(super) async fn counts(coordinator: &Coordinator) -> Result<Counts, CommandError> {
    ask!(coordinator, Ask::Counts, Told::Counts)
}

/// Returns all agents that were ever seen.
pub(super) async fn agents(coordinator: &Coordinator) -> Result<Vec<AgentView>, CommandError> {
    ask!(coordinator, Ask::Agents, Told::Agents)
}

/// Returns the ready builds, by what they ask for.
pub(super) async fn ready(coordinator: &Coordinator) -> Result<Vec<ReadyBuilds>, CommandError> {
    ask!(coordinator, Ask::Ready, Told::Ready)
}
