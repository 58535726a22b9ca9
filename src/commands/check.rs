//! `check`: whether memory, database, depot and published trees agree.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::{self, count},
    verb::Act,
};
use crate::coordinator::care::{
    check::{self, CheckError, Checked, Depth, Finding, Part},
    loss::Loss,
    repair::repair,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The most findings of one kind that are listed.
const LISTED_MAX: usize = 1_000;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Each finding says what to do about it. With --repair, what is safe is done: narinfos are written \
again, files that nothing needs are removed once they are a day old, what we signed is taken in \
again, and what is lost or damaged is noted as not held, so that it is built again when something \
needs it. When so much is lost that the depot seems to be away, nothing is repaired unless --lost \
says that it is lost. Exit status 1 says that something is left.")]
pub(super) struct Check {
    /// Do what is safe about each finding, and say so
    #[arg(long)]
    repair: bool,

    /// Repair also when much of the depot, or all of it, is gone
    #[arg(long, requires = "repair")]
    lost: bool,

    /// Read every nar and compare it with its hash; this takes as long as reading the whole depot
    #[arg(long)]
    deep: bool,
}

#[derive(Serialize)]
struct Object<'a> {
    /// `memory`, `memory-and-disk`, `database`, `depot` or `published`.
    part: &'a str,
    finding: &'a str,
    /// What to do about it.
    advice: &'a str,
    /// What was done about it.
    repaired: Option<&'a str>,
}

impl Act for Check {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let coordinator = invocation.coordinator.clone();
        if self.repair {
            invocation.audit().await?;
        }
        // Whoever prunes, withdraws or checks has its turn before or behind this.
        let _turn = coordinator.care.one_at_a_time.lock().await;
        let depth = if self.deep { Depth::Deep } else { Depth::Shallow };
        let Checked { loss, mut findings } = check::check(&coordinator, depth).await?;
        let is_away = loss.is_of_the_whole_depot() && !self.lost;
        if is_away {
            findings.insert(0, away(&loss));
        }
        let (mut left, mut listed) = (0, BTreeMap::<Part, usize>::new());
        for finding in &findings {
            // What is published cannot be judged either without the nars that it shows.
            let is_repaired = self.repair && !is_away;
            let done = if is_repaired { repair(&coordinator, finding).await? } else { None };
            left += usize::from(done.is_none());
            let number = listed.entry(finding.part).or_default();
            *number += 1;
            if *number > LISTED_MAX {
                continue;
            }
            let (part, advice) = (finding.part.word(), finding.advice.as_str());
            let object = Object { part, finding: &finding.what, advice, repaired: done };
            match invocation.output.format() {
                Format::Json => invocation.output.json(&object).await?,
                Format::Text => {
                    let end = done.unwrap_or(advice);
                    let line = format!("{part}: {}: {end}", table::plain(&finding.what));
                    invocation.output.line(&line).await?;
                }
            }
        }
        for (part, number) in listed.iter().filter(|(_, number)| **number > LISTED_MAX) {
            let text = format!("{}: {} in all", part.word(), count(*number, "finding"));
            invocation.output.message(&text).await?;
        }
        let looked =
            format!("looked at all open builds, the database and {}", count(loss.nars, "nar"));
        let found = count(findings.len(), "finding");
        let (text, exit) = match (findings.len(), left) {
            (0, _) => ("all is well".to_owned(), Exit::Done),
            (_, 0) => (format!("{found}, all repaired"), Exit::Done),
            (all, left) if all == left => (found, Exit::Negative),
            (_, left) => (format!("{found}, {left} left"), Exit::Negative),
        };
        invocation.output.message(&format!("{looked}: {text}")).await?;
        Ok(exit)
    }
}

/// Returns what is said first when the depot seems to be away.
fn away(loss: &Loss) -> Finding {
    let Loss { nars, lost, .. } = loss;
    Finding::new(
        Part::Depot,
        format!("{lost} of {nars} files of the depot are missing or damaged: is it mounted?"),
        "nothing is repaired before the files are there again, or ‘check --repair --lost’ notes \
         them as not held",
    )
}

impl From<CheckError> for CommandError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Stopping(error) => Self::Stopping(error),
            CheckError::Store(error) => Self::Store(error),
            CheckError::Depot(error) => Self::Depot(error),
        }
    }
}
