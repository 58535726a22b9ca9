//! `cancel`: builds that nobody wants any more.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    selection::{Selected, Selection, Tagged},
    shown,
    table::count,
    verb::Act,
};
use crate::{
    core::{
        build::ShownState,
        engine::{Answer, Authority, Canceled, Input},
        id::BuildId,
    },
    ssh::Role,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Cancel {
    #[command(flatten)]
    selection: Selection,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
}

impl Act for Cancel {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let principal = &invocation.principal;
        let by = if principal.role.includes(Role::Operator) {
            Authority::All
        } else {
            Authority::Own(principal.name.clone())
        };
        let selected = self.selection.find(invocation, Tagged::Open).await?;
        let (own, others) = divide(selected, &by);
        if let Some(other) = others.first()
            && (self.selection.is_by_id() || own.is_empty())
        {
            return Err(CommandError::NotPermitted(format!(
                "build {} is {}’s: submitters cancel their own builds, operators all; nothing was \
                 canceled",
                other.id, other.submitter
            )));
        }
        if !others.is_empty() {
            let text = format!("{} of other people left alone", count(others.len(), "build"));
            invocation.output.message(&text).await?;
        }
        invocation.audit().await?;
        let answer = invocation
            .coordinator
            .engine
            .request(move |token| Input::Cancel { token, builds: own, by })
            .await?;
        let Answer::Canceled(results) = answer else {
            return Err(CommandError::TryAgain("the engine answered another question".to_owned()));
        };
        report(invocation, results).await
    }
}

/// Divides builds into those that may be canceled and those that may not.
fn divide(selected: Vec<Selected>, by: &Authority) -> (Vec<BuildId>, Vec<Selected>) {
    let mut own = Vec::new();
    let mut others = Vec::new();
    for one in selected {
        match by {
            Authority::Own(name) if one.submitter != name.as_str() => others.push(one),
            Authority::Own(_) | Authority::All => own.push(one.id),
        }
    }
    (own, others)
}

/// Prints what became of each build.
async fn report(
    invocation: &mut Invocation,
    results: Vec<(BuildId, Canceled)>,
) -> Result<Exit, CommandError> {
    let mut over: BTreeSet<BuildId> = BTreeSet::new();
    for (build, result) in results {
        match result {
            Canceled::Done => match invocation.output.format() {
                Format::Text => invocation.output.line(&format!("{build} canceled")).await?,
                Format::Json => {
                    let object = Object { build: build.to_string(), state: "canceled" };
                    invocation.output.json(&object).await?;
                }
            },
            Canceled::NotOpen => {
                over.insert(build);
            }
            Canceled::NotYours => {
                let text = format!("build {build} is somebody else’s");
                return Err(CommandError::NotPermitted(text));
            }
        }
    }
    let mut exit = Exit::Done;
    for (build, state) in shown::states(&invocation.coordinator, &over).await? {
        invocation.output.message(&format!("build {build} is over already: {state}")).await?;
        // Whoever cancels twice has what they wanted; other ends cannot be undone.
        if state != ShownState::Canceled {
            exit = Exit::Negative;
        }
    }
    Ok(exit)
}
