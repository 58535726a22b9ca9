//! `keys approve` and `keys revoke`.

use super::{
    super::{
        error::{CommandError, Exit},
        invocation::Invocation,
        output::Format,
        table::count,
    },
    Fingerprint, RoleWord, owner,
};
use crate::{core::id::Name, ssh::keyfile::Addition};
use serde::Serialize;

/// A key that is to be let in.
#[derive(Debug, clap::Args)]
pub(super) struct Approve {
    /// The key, by its fingerprint
    #[arg(value_name = "FINGERPRINT")]
    key: Fingerprint,
    /// agent, viewer, submitter, operator or admin
    role: RoleWord,
    /// What its owner is called from now on
    name: Name,
    /// It may be another key of somebody who has one
    #[arg(long)]
    also: bool,
}

/// A key that is to be let in no more.
#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// The key, by its fingerprint
    #[arg(value_name = "FINGERPRINT")]
    key: Fingerprint,
}

#[derive(Serialize)]
struct Approved<'a> {
    fingerprint: &'a str,
    state: &'static str,
    role: &'static str,
    name: &'a str,
    file: String,
}

#[derive(Serialize)]
struct Revoked<'a> {
    fingerprint: &'a str,
    state: &'static str,
    /// Where it was listed.
    places: Vec<String>,
    /// Whether it waited.
    waited: bool,
}

pub(super) async fn approve(
    invocation: &mut Invocation,
    approve: Approve,
) -> Result<Exit, CommandError> {
    let Approve { key: Fingerprint(fingerprint), role: RoleWord(role), name, also } = approve;
    invocation.audit().await?;
    let addition = if also { Addition::AnotherKey } else { Addition::NewPrincipal };
    let enrollment = invocation.coordinator.enrollment.clone();
    let path = enrollment.approve(&fingerprint, role, &name, addition).await?;
    match invocation.output.format() {
        Format::Json => {
            let object = Approved {
                fingerprint: &fingerprint,
                state: "approved",
                role: role.word(),
                name: name.as_str(),
                file: path.display().to_string(),
            };
            invocation.output.json(&object).await?;
        }
        Format::Text => {
            let text = format!("{fingerprint} is {}: {}", owner(role, &name), path.display());
            invocation.output.line(&text).await?;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn revoke(
    invocation: &mut Invocation,
    Revoke { key: Fingerprint(fingerprint) }: Revoke,
) -> Result<Exit, CommandError> {
    let coordinator = invocation.coordinator.clone();
    let (keydir, _) = coordinator.monitor.keydir();
    let waits = coordinator.enrollment.pending().await?;
    // With authorities, a key may be known that is listed nowhere.
    let is_known = keydir.has_authorities()
        || waits.iter().any(|one| one.fingerprint == fingerprint)
        || keydir.listed().iter().any(|one| one.principal.fingerprint == fingerprint);
    if !is_known {
        return Err(CommandError::NoSuch(format!(
            "no key has the fingerprint {fingerprint}: ‘keys list’ has all that are known"
        )));
    }
    if fingerprint == invocation.principal.fingerprint {
        let text = "this is your own key: let another admin revoke it";
        return Err(CommandError::Refused(text.to_owned()));
    }
    invocation.audit().await?;
    let (removed, waited) = coordinator.enrollment.revoke(&fingerprint).await?;
    let place = |one: &crate::ssh::keyfile::Removed| format!("{}:{}", one.path.display(), one.line);
    let places: Vec<String> = removed.iter().map(place).collect();
    match invocation.output.format() {
        Format::Json => {
            let object = Revoked { fingerprint: &fingerprint, state: "revoked", places, waited };
            invocation.output.json(&object).await?;
        }
        Format::Text => {
            invocation.output.line(&format!("{fingerprint} revoked")).await?;
            let mut text = if waited && places.is_empty() {
                "it waited, and was listed nowhere".to_owned()
            } else {
                format!("it was listed in {}", count(places.len(), "place"))
            };
            for place in &places {
                text.push_str("\n  ");
                text.push_str(place);
            }
            text.push_str(
                "\nno token and no certificate makes it known again, until an admin takes it out \
                 of keys/revoked",
            );
            invocation.output.message(&text).await?;
        }
    }
    Ok(Exit::Done)
}
