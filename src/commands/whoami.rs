//! `whoami`: who the key is.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    verb::Act,
};
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Whoami;

#[derive(Serialize)]
struct Object<'a> {
    name: &'a str,
    role: String,
    fingerprint: &'a str,
    tags: Vec<String>,
    max_priority: Option<i32>,
    trusted_import: bool,
    systems: Option<&'a [String]>,
    address: String,
}

impl Act for Whoami {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let principal = &invocation.principal;
        let object = Object {
            name: principal.name.as_str(),
            role: principal.role.to_string(),
            fingerprint: &principal.fingerprint,
            tags: principal.tags.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            max_priority: principal.max_priority,
            trusted_import: principal.trusted_import,
            systems: principal.systems.as_deref(),
            address: invocation.peer.to_string(),
        };
        if invocation.output.format() == Format::Json {
            invocation.output.json(&object).await?;
            return Ok(Exit::Done);
        }
        let mut lines = vec![
            format!("name         {}", object.name),
            format!("role         {}", object.role),
            format!("key          {}", object.fingerprint),
            format!("from         {}", object.address),
        ];
        if !object.tags.is_empty() {
            lines.push(format!("tags         {}", object.tags.join(", ")));
        }
        if let Some(ceiling) = object.max_priority {
            lines.push(format!("max priority {ceiling}"));
        }
        if let Some(systems) = object.systems {
            lines.push(format!("systems      {}", systems.join(", ")));
        }
        if object.trusted_import {
            lines.push("may import outputs that cannot be verified".to_owned());
        }
        for line in lines {
            invocation.output.line(&line).await?;
        }
        Ok(Exit::Done)
    }
}
