//! `keys token`: what lets keys in without an admin.

use super::{
    super::{
        error::{CommandError, Exit},
        invocation::Invocation,
        output::Format,
        table::Table,
        times::{self, Deadline},
    },
    RoleWord,
};
use crate::{coordinator::enrollment::Token, core::time::Timestamp, ssh::Role};
use serde::Serialize;

/// How long a token holds when it is not said, in milliseconds: a day.
const EXPIRES_MS: i64 = 24 * 60 * 60 * 1_000;
/// How long a token may hold, in milliseconds: a year.
const EXPIRES_MS_MAX: i64 = 366 * 24 * 60 * 60 * 1_000;
/// For how many keys a token may be.
const USES_MAX: i64 = 10_000;

/// A token that is to be made.
#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// Until when it holds: 2026-11-21T11:02:03Z, or for how long: 90s, 2h, 3d [default: 1d]
    #[arg(long, value_name = "TIME")]
    expires: Option<Deadline>,
    /// For how many keys it is
    #[arg(long, value_name = "N", default_value_t = 1, value_parser =
        clap::value_parser!(u32).range(1..=USES_MAX))]
    uses: u32,
    /// What its bearers become: agent, viewer, submitter or operator
    #[arg(long, value_name = "ROLE", default_value = "agent")]
    role: RoleWord,
}

#[derive(Serialize)]
struct Made<'a> {
    id: &'a str,
    token: &'a str,
    role: &'a str,
    uses: u32,
    expires: String,
}

#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    /// `usable`, `used-up`, `expired` or `revoked`.
    state: &'static str,
    role: &'a str,
    uses: u32,
    used: Vec<Used<'a>>,
    made_by: &'a str,
    made: String,
    expires: String,
}

#[derive(Serialize)]
struct Used<'a> {
    fingerprint: &'a str,
    name: &'a str,
    at: String,
}

pub(super) async fn new(invocation: &mut Invocation, new: New) -> Result<Exit, CommandError> {
    let New { expires, uses, role: RoleWord(role) } = new;
    if role == Role::Admin {
        // A token may be found by whoever reads a script; an admin is approved by name.
        let text = "a token makes no admins: approve their keys with ‘keys approve’";
        return Err(CommandError::Refused(text.to_owned()));
    }
    let now = invocation.coordinator.clock.now().wall;
    let expires = expires.map_or(now.plus_ms(EXPIRES_MS), |deadline| deadline.from(now));
    if expires <= now || expires > now.plus_ms(EXPIRES_MS_MAX) {
        let text = "a token holds until some time in the next 366 days";
        return Err(CommandError::Refused(text.to_owned()));
    }
    invocation.audit().await?;
    let by = invocation.principal.name.clone();
    let enrollment = invocation.coordinator.enrollment.clone();
    let (token, record) = enrollment.new_token(role, expires, uses, by).await?;
    match invocation.output.format() {
        Format::Json => {
            let object = Made {
                id: &record.id,
                token: &token,
                role: &record.role,
                uses,
                expires: times::rfc3339(expires),
            };
            invocation.output.json(&object).await?;
        }
        Format::Text => {
            invocation.output.line(&token).await?;
            let text = format!(
                "for {uses} × {role}, until {}; ‘keys token revoke {}’ ends it. It is not shown \
                 again",
                times::shown(expires),
                record.id,
            );
            invocation.output.message(&text).await?;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn list(invocation: &mut Invocation) -> Result<Exit, CommandError> {
    let now = invocation.coordinator.clock.now().wall;
    let tokens = invocation.coordinator.enrollment.tokens().await;
    if invocation.output.format() == Format::Json {
        for token in &tokens {
            invocation.output.json(&listed(token, now)).await?;
        }
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["id", "state", "role", "used", "made by", "until", "by whom"]);
    for token in &tokens {
        let names: Vec<&str> = token.used.iter().map(|one| one.name.as_str()).collect();
        table.row(vec![
            token.record.id.clone(),
            state(token, now).to_owned(),
            token.record.role.clone(),
            format!("{} of {}", token.used.len(), token.record.uses),
            token.record.made_by.to_string(),
            times::shown(token.record.expires),
            names.join(" "),
        ]);
    }
    invocation.output.table(&table).await?;
    Ok(Exit::Done)
}

pub(super) async fn revoke(invocation: &mut Invocation, id: String) -> Result<Exit, CommandError> {
    invocation.audit().await?;
    let token = invocation.coordinator.enrollment.revoke_token(&id).await?;
    match invocation.output.format() {
        Format::Json => {
            let now = invocation.coordinator.clock.now().wall;
            invocation.output.json(&listed(&token, now)).await?;
        }
        Format::Text => invocation.output.line(&format!("{} revoked", token.record.id)).await?,
    }
    if !token.used.is_empty() {
        let names: Vec<&str> = token.used.iter().map(|one| one.name.as_str()).collect();
        let text = format!("who came in with it stays: {}", names.join(" "));
        invocation.output.message(&text).await?;
    }
    Ok(Exit::Done)
}

fn listed(token: &Token, now: Timestamp) -> Listed<'_> {
    let used = token.used.iter().map(|one| Used {
        fingerprint: &one.fingerprint,
        name: one.name.as_str(),
        at: times::rfc3339(one.at),
    });
    Listed {
        id: &token.record.id,
        state: state(token, now),
        role: &token.record.role,
        uses: token.record.uses,
        used: used.collect(),
        made_by: token.record.made_by.as_str(),
        made: times::rfc3339(token.record.made),
        expires: times::rfc3339(token.record.expires),
    }
}

fn state(token: &Token, now: Timestamp) -> &'static str {
    match token.spent(now) {
        None => "usable",
        Some(spent) => spent.word(),
    }
}
