//! `missing`: what a sender would have to send.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    lines::{self, Lines},
    output::Format,
    verb::Act,
};
use crate::store::StoreError;
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Missing {
    /// ‘-’: store paths come on standard input, one per line
    #[arg(value_name = "-")]
    dash: String,
}

#[derive(Serialize)]
struct Object {
    path: String,
}

impl Act for Missing {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        lines::is_dash(&self.dash)?;
        let mut lines = Lines::new(&mut invocation.input);
        loop {
            let paths = lines.paths(lines::store_path).await?;
            if paths.is_empty() {
                return Ok(Exit::Done);
            }
            let uses = invocation.coordinator.care.uses.clone();
            let missing = invocation
                .coordinator
                .readers
                .read(move |reader| {
                    let mut missing = Vec::new();
                    for path in paths {
                        let held = if path.is_derivation() {
                            reader.modulo(path.hash())?.is_some()
                        } else {
                            reader.holds(path.hash())?
                        };
                        if held {
                            uses.note(std::iter::once(path.hash()));
                        } else {
                            missing.push(path.to_string());
                        }
                    }
                    Ok::<_, StoreError>(missing)
                })
                .await?;
            for path in missing {
                match invocation.output.format() {
                    Format::Text => invocation.output.line(&path).await?,
                    Format::Json => invocation.output.json(&Object { path }).await?,
                }
            }
        }
    }
}
