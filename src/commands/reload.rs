//! `reload`: read the configuration again.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table,
    verb::Act,
};
use crate::{
    core::engine::{Answer, Input},
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
        // Two reloads at once would have to agree on what held before.
        let coordinator = invocation.coordinator.clone();
        let mut config = coordinator.config.lock().await;
        let read = config.reread().map_err(|error| {
            let reason = table::plain(&telemetry::chain(&error));
            CommandError::Refused(format!("nothing was changed: {reason}"))
        })?;
        let differences = config.differences(&read);
        let settings = read.settings();
        let configure = move |token| Input::Configure { token, settings };
        let Answer::Configured = coordinator.engine.request(configure).await? else {
            return Err(CommandError::TryAgain("the engine answered another question".to_owned()));
        };
        config.adopt_settings(&read);
        drop(config);
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
