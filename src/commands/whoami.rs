//! `whoami`: who the key is.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table, times,
    verb::Act,
};
use crate::{core::time::Timestamp, ssh::Credential};
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
    max_open_builds: Option<u32>,
    max_submissions_per_hour: Option<u32>,
    /// What the certificate says by which the key is known.
    certificate: Option<Certificate<'a>>,
    address: String,
}

#[derive(Serialize)]
struct Certificate<'a> {
    authority: &'a str,
    serial: u64,
    key_id: &'a str,
    expires: Option<String>,
}

impl<'a> Certificate<'a> {
    fn of(credential: &'a Credential) -> Option<Self> {
        let Credential::Certificate(certified) = credential else { return None };
        let expires = certified.expires_s.and_then(|seconds| {
            let ms = i64::try_from(seconds).ok()?.checked_mul(1_000)?;
            Some(times::rfc3339(Timestamp::from_ms(ms)))
        });
        let (serial, key_id) = (certified.serial, certified.key_id.as_str());
        Some(Self { authority: &certified.authority, serial, key_id, expires })
    }
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
            max_open_builds: principal.quotas.open_builds,
            max_submissions_per_hour: principal.quotas.submissions_per_hour,
            certificate: Certificate::of(&principal.credential),
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
        if let Some(most) = object.max_open_builds {
            lines.push(format!("open builds  at most {most}"));
        }
        if let Some(most) = object.max_submissions_per_hour {
            lines.push(format!("submissions  at most {most} in an hour"));
        }
        if let Some(one) = &object.certificate {
            let until = one.expires.as_deref().unwrap_or("further notice");
            let id = table::plain(one.key_id);
            let authority = one.authority;
            lines.push(format!("certificate  {id}, {}, of {authority} until {until}", one.serial));
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
