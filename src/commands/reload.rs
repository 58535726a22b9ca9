//! `reload`: read the configuration again.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table,
    verb::Act,
};
use crate::{
    coordinator::care::reload::{ReloadError, reload},
    telemetry,
};
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Reload;

#[derive(Serialize)]
struct Object {
    key: &'static str,
    /// Whether what the file says now holds; otherwise a restart is needed.
    holds: bool,
}

impl Act for Reload {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        invocation.audit().await?;
        let differences = reload(&invocation.coordinator).await.map_err(|error| match error {
            ReloadError::Stopping(gone) => CommandError::Stopping(gone),
            ReloadError::Config(_) => {
                CommandError::Refused(table::plain(&telemetry::chain(&error)))
            }
        })?;
        let at_once = differences.at_once.iter().map(|key| Object { key, holds: true });
        let later = differences.at_restart.iter().map(|key| Object { key, holds: false });
        for object in at_once.chain(later) {
            match invocation.output.format() {
                Format::Json => invocation.output.json(&object).await?,
                Format::Text => {
                    let when = if object.holds { "holds from now on" } else { "needs a restart" };
                    invocation.output.line(&format!("{} {when}", object.key)).await?;
                }
            }
        }
        Ok(Exit::Done)
    }
}
