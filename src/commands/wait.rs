//! `wait`: until builds end.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    selection::{Selection, Tagged},
    shown,
    table::count,
    verb::Act,
};
use crate::core::{build::ShownState, id::BuildId};
use serde::Serialize;
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::sleep,
};

/// The longest wait that can be asked for: a year, in seconds.
const TIMEOUT_S_MAX: u64 = 366 * 86_400;
/// How many builds that have not ended are named.
const NAMED_MAX: usize = 10;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Wait {
    #[command(flatten)]
    selection: Selection,
    /// Give up after so many seconds, with exit status 1
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(0..=TIMEOUT_S_MAX))]
    timeout: Option<u64>,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
}

impl Act for Wait {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let selected = self.selection.find(invocation, Tagged::All).await?;
        let builds = selected.into_iter().map(|one| one.id).collect();
        until_ended(invocation, builds, self.timeout.map(Duration::from_secs)).await
    }
}

/// Waits until all builds, which exist, have ended or are blocked; prints each as it does.
pub(super) async fn until_ended(
    invocation: &mut Invocation,
    builds: BTreeSet<BuildId>,
    timeout: Option<Duration>,
) -> Result<Exit, CommandError> {
    // Before the first look: what ends behind it is told.
    let rested = invocation.coordinator.rested.subscribe();
    let mut waiting = Waiting { builds, rested, exit: Exit::Done };
    let passed = passed(timeout);
    tokio::pin!(passed);
    waiting.look(invocation).await?;
    while !waiting.builds.is_empty() {
        tokio::select! {
            told = waiting.rested.recv() => match told {
                Ok((build, state)) => waiting.ended(invocation, build, state).await?,
                Err(RecvError::Lagged(_)) => waiting.look(invocation).await?,
                Err(RecvError::Closed) => {
                    let text = "the coordinator is stopping; wait again in a moment";
                    return Err(CommandError::TryAgain(text.to_owned()));
                }
            },
            () = &mut passed => {
                invocation.output.message(&too_late(&waiting.builds)).await?;
                return Ok(Exit::Negative);
            }
        }
    }
    Ok(waiting.exit)
}

/// Ends after so long; never without a limit.
async fn passed(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => sleep(timeout).await,
        None => std::future::pending().await,
    }
}

fn too_late(builds: &BTreeSet<BuildId>) -> String {
    let mut named: Vec<String> = builds.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if builds.len() > NAMED_MAX {
        named.push("…".to_owned());
    }
    format!("the time is over; {} did not end: {}", count(builds.len(), "build"), named.join(" "))
}

/// What is still waited for.
struct Waiting {
    builds: BTreeSet<BuildId>,
    rested: Receiver<(BuildId, ShownState)>,
    exit: Exit,
}

impl Waiting {
    /// Looks at all builds: at first, and when some ends may have been missed.
    async fn look(&mut self, invocation: &mut Invocation) -> Result<(), CommandError> {
        for (build, state) in shown::states(&invocation.coordinator, &self.builds).await? {
            if state.ends_a_wait() {
                self.ended(invocation, build, state).await?;
            }
        }
        Ok(())
    }

    async fn ended(
        &mut self,
        invocation: &mut Invocation,
        build: BuildId,
        state: ShownState,
    ) -> Result<(), CommandError> {
        if !self.builds.remove(&build) {
            return Ok(());
        }
        if state != ShownState::Succeeded {
            self.exit = Exit::Negative;
        }
        match invocation.output.format() {
            Format::Text => invocation.output.line(&format!("{build} {state}")).await?,
            Format::Json => {
                let object = Object { build: build.to_string(), state: state.word() };
                invocation.output.json(&object).await?;
            }
        }
        // Somebody reads along.
        Ok(invocation.output.flush().await?)
    }
}
