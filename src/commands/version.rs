//! `version`: which program this is.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    verb::Act,
};
use crate::protocol::handshake::{PROTOCOL_MAX, PROTOCOL_MIN};
use serde::Serialize;

/// The version of this program.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Version;

#[derive(Serialize)]
struct Object {
    version: &'static str,
    protocol_min: u16,
    protocol_max: u16,
}

impl Act for Version {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let object =
            Object { version: VERSION, protocol_min: PROTOCOL_MIN, protocol_max: PROTOCOL_MAX };
        match invocation.output.format() {
            Format::Json => invocation.output.json(&object).await?,
            Format::Text => {
                let text =
                    format!("steading {VERSION}, agent protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}");
                invocation.output.line(&text).await?;
            }
        }
        Ok(Exit::Done)
    }
}
