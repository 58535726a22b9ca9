//! `agents pause`, `drain`, `resume` and `rm`: what operators decide about one agent.

use super::{
    super::{
        error::{CommandError, Exit},
        invocation::Invocation,
        obstacles,
        output::Format,
        table::count,
        times::Deadline,
    },
    Known, find,
};
use crate::{
    core::{
        agent::SUSPENSION_REASON_BYTES_MAX,
        engine::{Administered, Answer, Decision, Input},
        id::Name,
        time::Timestamp,
    },
    ssh::Role,
};
use serde::Serialize;

/// An agent that gets no new builds.
#[derive(Debug, clap::Args)]
pub(super) struct Suspend {
    /// The agent, as its key in the keydir is called
    name: Name,
    /// Why, for those who wonder
    #[arg(long, value_name = "WORDS")]
    reason: Option<String>,
    /// A pause ends then by itself; what a draining agent still has then goes to others
    #[arg(long, value_name = "TIME")]
    deadline: Option<Deadline>,
}

#[derive(Serialize)]
struct Removed<'a> {
    agent: &'a str,
    state: &'static str,
}

pub(super) async fn pause(
    invocation: &mut Invocation,
    suspend: Suspend,
) -> Result<Exit, CommandError> {
    authorize(invocation, "agents pause")?;
    let Suspend { name, reason, deadline } = suspend;
    let (reason, until) = (checked(reason)?, ahead(invocation, deadline)?);
    let agent = decide(invocation, name, Decision::Pause { reason, until }).await?;
    print(invocation, &agent).await
}

pub(super) async fn drain(
    invocation: &mut Invocation,
    suspend: Suspend,
) -> Result<Exit, CommandError> {
    authorize(invocation, "agents drain")?;
    let Suspend { name, reason, deadline } = suspend;
    let (reason, until) = (checked(reason)?, ahead(invocation, deadline)?);
    let agent = decide(invocation, name, Decision::Drain { reason, until }).await?;
    let left = agent.view.running.len() + agent.view.sending.len();
    if left > 0 {
        let text =
            format!("{} left; ‘agents show {}’ lists them", count(left, "build"), agent.view.name);
        invocation.output.message(&text).await?;
    }
    print(invocation, &agent).await
}

pub(super) async fn resume(invocation: &mut Invocation, name: Name) -> Result<Exit, CommandError> {
    authorize(invocation, "agents resume")?;
    let agent = decide(invocation, name, Decision::Resume).await?;
    print(invocation, &agent).await
}

pub(super) async fn remove(invocation: &mut Invocation, name: Name) -> Result<Exit, CommandError> {
    authorize(invocation, "agents rm")?;
    let agent = decide(invocation, name, Decision::Remove).await?;
    let name = agent.view.name.as_str();
    match invocation.output.format() {
        Format::Json => {
            invocation.output.json(&Removed { agent: name, state: "removed" }).await?;
        }
        Format::Text => invocation.output.line(&format!("{name} removed")).await?,
    }
    if agent.principal.is_some() {
        let text = format!(
            "it still has a key and is known again when it connects: to keep it out, remove \
             keys/agents/{name}.pub from the state directory"
        );
        invocation.output.message(&text).await?;
    }
    Ok(Exit::Done)
}

fn authorize(invocation: &Invocation, verb: &'static str) -> Result<(), CommandError> {
    let (have, needed) = (invocation.principal.role, Role::Operator);
    if have.includes(needed) { Ok(()) } else { Err(CommandError::Role { have, verb, needed }) }
}

fn checked(reason: Option<String>) -> Result<Option<String>, CommandError> {
    match reason {
        Some(reason) if reason.len() > SUSPENSION_REASON_BYTES_MAX => Err(CommandError::Refused(
            format!("a reason has at most {SUSPENSION_REASON_BYTES_MAX} bytes"),
        )),
        reason => Ok(reason.filter(|words| !words.trim().is_empty())),
    }
}

fn ahead(
    invocation: &Invocation,
    deadline: Option<Deadline>,
) -> Result<Option<Timestamp>, CommandError> {
    let now = invocation.coordinator.clock.now().wall;
    match deadline.map(|deadline| deadline.from(now)) {
        Some(at) if at <= now => {
            Err(CommandError::Refused("the deadline is over already".to_owned()))
        }
        at => Ok(at),
    }
}

/// Tells the engine, and returns the agent as it is then; a removed one as it was before.
async fn decide(
    invocation: &mut Invocation,
    name: Name,
    decision: Decision,
) -> Result<Known, CommandError> {
    let before = find(invocation, &name).await?;
    let removing = decision == Decision::Remove;
    if removing && before.view.connected {
        return Err(connected(&name));
    }
    invocation.audit().await?;
    let (agent, by) = (name.clone(), invocation.principal.name.clone());
    let answer = invocation
        .coordinator
        .engine
        .request(move |token| Input::Administer { token, agent, decision, by })
        .await?;
    match answer {
        Answer::Administered(Administered::Done) if removing => Ok(before),
        // An agent that was removed meanwhile is no such agent.
        Answer::Administered(Administered::Done | Administered::NoSuch) => {
            find(invocation, &name).await
        }
        Answer::Administered(Administered::Connected) => Err(connected(&name)),
        Answer::Submitted { .. }
        | Answer::TooMany(_)
        | Answer::Canceled(_)
        | Answer::Amended(_)
        | Answer::Retried(_)
        | Answer::Configured
        | Answer::Recorded
        | Answer::Forgotten(_)
        | Answer::Offer { .. }
        | Answer::Delivered { .. } => {
            Err(CommandError::TryAgain("the engine answered another question".to_owned()))
        }
    }
}

fn connected(name: &Name) -> CommandError {
    CommandError::Refused(format!(
        "{name} is connected, and only an agent that is away can be forgotten: stop it, or take \
         its key away; ‘agents pause {name}’ gives it no builds"
    ))
}

async fn print(invocation: &mut Invocation, agent: &Known) -> Result<Exit, CommandError> {
    if invocation.output.format() == Format::Json {
        invocation.output.json(&agent.object()).await?;
        return Ok(Exit::Done);
    }
    let name = &agent.view.name;
    let words = obstacles::limit(&agent.view).unwrap_or_else(|| "takes builds".to_owned());
    invocation.output.line(&format!("{name} {words}")).await?;
    Ok(Exit::Done)
}
