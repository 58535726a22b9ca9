//! `enroll`: a key that is known nowhere asks to become known.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    verb::Act,
};
use crate::{coordinator::enrollment::Applicant, core::id::Name, ssh::Credential};
use serde::Serialize;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Enroll {
    /// Become known at once, with this token of an admin
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// What to be called
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
}

#[derive(Serialize)]
struct Object<'a> {
    /// `approved` or `pending`.
    state: &'static str,
    fingerprint: &'a str,
    role: Option<&'static str>,
    name: Option<&'a str>,
    /// What an admin types.
    approve: Option<&'a str>,
}

impl Act for Enroll {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let principal = std::sync::Arc::clone(&invocation.principal);
        let Credential::Unknown { key } = &principal.credential else {
            // Whoever asks again has what they want.
            return approved(invocation, principal.role.word(), principal.name.as_str()).await;
        };
        let applicant = Applicant {
            fingerprint: principal.fingerprint.clone(),
            key: key.clone(),
            name: self.name.clone(),
            address: invocation.peer.ip(),
        };
        let enrollment = invocation.coordinator.enrollment.clone();
        invocation.audit().await?;
        if let Some(token) = &self.token {
            let (role, name) = enrollment.redeem(applicant, token).await?;
            return approved(invocation, role.word(), name.as_str()).await;
        }
        enrollment.wait(applicant).await?;
        pending(invocation, self.name.as_ref().map(Name::as_str)).await
    }
}

async fn approved(
    invocation: &mut Invocation,
    role: &'static str,
    name: &str,
) -> Result<Exit, CommandError> {
    let fingerprint = invocation.principal.fingerprint.clone();
    let object = Object {
        state: "approved",
        fingerprint: &fingerprint,
        role: Some(role),
        name: Some(name),
        approve: None,
    };
    match invocation.output.format() {
        Format::Json => invocation.output.json(&object).await?,
        Format::Text => {
            invocation.output.line(&format!("{fingerprint} is {role} {name}")).await?;
        }
    }
    Ok(Exit::Done)
}

async fn pending(invocation: &mut Invocation, name: Option<&str>) -> Result<Exit, CommandError> {
    let fingerprint = invocation.principal.fingerprint.clone();
    let approve =
        format!("ssh COORDINATOR keys approve {fingerprint} agent {}", name.unwrap_or("NAME"));
    let object = Object {
        state: "pending",
        fingerprint: &fingerprint,
        role: None,
        name,
        approve: Some(&approve),
    };
    match invocation.output.format() {
        Format::Json => invocation.output.json(&object).await?,
        Format::Text => {
            invocation.output.line(&format!("{fingerprint} waits for an admin")).await?;
            let text = format!("an admin lets it in with ‘{approve}’, or in another role");
            invocation.output.message(&text).await?;
        }
    }
    Ok(Exit::Negative)
}
