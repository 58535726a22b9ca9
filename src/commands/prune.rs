//! `prune`: forget what ended long ago.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::{self, count},
    times::{self, Since},
    verb::Act,
};
use crate::{
    coordinator::care::prune::{self, PruneError, Pruned},
    depot::DepotError,
};
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Builds that are over, their attempts, tags and logs are removed; what open builds depend on stays. \
Totals keep counting them. Derivations and what was built stay: see ‘gc’. A key given with \
‘submit --key’ is forgotten with its build.")]
pub(super) struct Prune {
    /// Builds that ended before this, or so long ago: 2026-01-31, 90d
    #[arg(long, value_name = "TIME")]
    older_than: Since,

    /// Only say how much there is
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Object {
    before: String,
    dry_run: bool,
    builds: u64,
    attempts: u64,
    kept: u64,
    bytes: u64,
}

impl Act for Prune {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let coordinator = invocation.coordinator.clone();
        let now = coordinator.clock.now().wall;
        let before = self.older_than.from(now);
        if before > now {
            let text = "--older-than is a time that is over, or how long ago it was";
            return Err(CommandError::Refused(text.to_owned()));
        }
        let pruned = if self.dry_run {
            prune::count(&coordinator, before).await?
        } else {
            invocation.audit().await?;
            let _turn = coordinator.care.one_at_a_time.lock().await;
            prune::prune(&coordinator, before).await?
        };
        let Pruned { builds, attempts, kept, bytes } = pruned;
        if invocation.output.format() == Format::Json {
            let (before, dry_run) = (times::rfc3339(before), self.dry_run);
            let object = Object { before, dry_run, builds, attempts, kept, bytes };
            invocation.output.json(&object).await?;
            return Ok(Exit::Done);
        }
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let did = if self.dry_run { "would be removed" } else { "removed" };
        let line = format!(
            "{} and {} {did}, over before {}",
            count(number(builds), "build"),
            count(number(attempts), "attempt"),
            times::shown(before)
        );
        invocation.output.line(&line).await?;
        if kept > 0 {
            let text = format!("{} kept that open builds depend on", count(number(kept), "build"));
            invocation.output.message(&text).await?;
        }
        if !self.dry_run {
            let text = format!("the database is {} shorter", table::bytes(bytes));
            invocation.output.message(&text).await?;
        }
        Ok(Exit::Done)
    }
}

impl From<PruneError> for CommandError {
    fn from(error: PruneError) -> Self {
        match error {
            PruneError::Stopping(error) => Self::Stopping(error),
            PruneError::Store(error) => Self::Store(error),
            PruneError::Logs(error) => Self::Depot(DepotError::from(error)),
        }
    }
}
