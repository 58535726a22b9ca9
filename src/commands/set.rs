//! `set`: change builds that have not ended.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    selection::{Selection, Tagged},
    settings::{self, Tag},
    shown,
    verb::Act,
};
use crate::core::{
    build::{PRIORITY_MAX, PRIORITY_MIN, ShownState},
    engine::{Amended, Amendment, Answer, HoldWish, Input},
    id::BuildId,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Set {
    #[command(flatten)]
    selection: Selection,
    /// Higher goes first
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser =
        clap::value_parser!(i32).range(i64::from(PRIORITY_MIN)..=i64::from(PRIORITY_MAX)))]
    priority: Option<i32>,
    /// Give them this tag, in place of all values of the same name
    #[arg(long = "tag", value_name = "K=V")]
    tags: Vec<Tag>,
    /// Hold them back: no agent gets them
    #[arg(long, conflicts_with = "release")]
    hold: bool,
    /// Hold them back no more
    #[arg(long)]
    release: bool,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
}

impl Act for Set {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let nothing = self.priority.is_none() && self.tags.is_empty();
        if nothing && !self.hold && !self.release {
            let text = "say what to change: --priority, --tag, --hold or --release";
            return Err(CommandError::Usage(text.to_owned()));
        }
        let (own, by) = self.selection.find_own(invocation, Tagged::Open).await?;
        let priority = match self.priority {
            Some(asked) => Some(settings::granted(invocation, asked).await?),
            None => None,
        };
        let hold = match (self.hold, self.release) {
            (true, _) => Some(HoldWish::Hold(invocation.principal.name.clone())),
            (false, true) => Some(HoldWish::Release),
            (false, false) => None,
        };
        let tags = self.tags.into_iter().map(|tag| (tag.name, tag.value)).collect();
        let amendment = Amendment { priority, hold, tags };
        invocation.audit().await?;
        let answer = invocation
            .coordinator
            .engine
            .request(move |token| Input::Amend { token, builds: own, by, amendment })
            .await?;
        let Answer::Amended(results) = answer else {
            return Err(CommandError::TryAgain("the engine answered another question".to_owned()));
        };
        report(invocation, &results).await
    }
}

/// Prints how each changed build is now.
async fn report(
    invocation: &mut Invocation,
    results: &[(BuildId, Amended)],
) -> Result<Exit, CommandError> {
    let all: BTreeSet<BuildId> = results.iter().map(|(build, _)| *build).collect();
    let states = shown::states(&invocation.coordinator, &all).await?;
    let mut exit = Exit::Done;
    for (build, result) in results {
        let state = states.get(build).copied().map_or("unknown", ShownState::word);
        match result {
            Amended::Done => print(invocation, *build, state).await?,
            Amended::NotOpen => {
                let text = format!("build {build} is over already: {state}");
                invocation.output.message(&text).await?;
                exit = Exit::Negative;
            }
            Amended::NotYours => {
                let text = format!("build {build} is somebody else’s");
                return Err(CommandError::NotPermitted(text));
            }
        }
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
