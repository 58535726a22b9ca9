//! `cancel`: builds that nobody wants any more.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    selection::{Selection, Tagged},
    shown,
    verb::Act,
};
use crate::core::{
    build::ShownState,
    engine::{Answer, Canceled, Input, Wanted},
    id::BuildId,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Cancel {
    #[command(flatten)]
    selection: Selection,
    /// Cancel also what other builds that have not ended need
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
}

impl Act for Cancel {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let (own, by) = self.selection.find_own(invocation, Tagged::Open).await?;
        invocation.audit().await?;
        let wanted = if self.force { Wanted::Goes } else { Wanted::Stays };
        let answer = invocation
            .coordinator
            .engine
            .request(move |token| Input::Cancel { token, builds: own, by, wanted })
            .await?;
        let Answer::Canceled(results) = answer else {
            return Err(CommandError::TryAgain("the engine answered another question".to_owned()));
        };
        report(invocation, results).await
    }
}

/// Prints what became of each build.
async fn report(
    invocation: &mut Invocation,
    results: Vec<(BuildId, Canceled)>,
) -> Result<Exit, CommandError> {
    let mut over: BTreeSet<BuildId> = BTreeSet::new();
    let mut exit = Exit::Done;
    for (build, result) in results {
        match result {
            Canceled::Done => match invocation.output.format() {
                Format::Text => invocation.output.line(&format!("{build} canceled")).await?,
                Format::Json => {
                    let object = Object { build: build.to_string(), state: "canceled" };
                    invocation.output.json(&object).await?;
                }
            },
            Canceled::Stays => {
                let text = format!(
                    "build {build} stays, because others need it: it goes with the last of them, \
                     or now with --force"
                );
                invocation.output.message(&text).await?;
                exit = Exit::Negative;
            }
            Canceled::NotOpen => {
                over.insert(build);
            }
            Canceled::NotYours => {
                let text = format!("build {build} is somebody else’s");
                return Err(CommandError::NotPermitted(text));
            }
        }
    }
    for (build, state) in shown::states(&invocation.coordinator, &over).await? {
        invocation.output.message(&format!("build {build} is over already: {state}")).await?;
        // Whoever cancels twice has what they wanted; other ends cannot be undone.
        if state != ShownState::Canceled {
            exit = Exit::Negative;
        }
    }
    Ok(exit)
}
