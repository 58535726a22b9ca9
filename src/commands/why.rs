//! `why`: the reason that a build is not built yet, or how it ended.

use super::{
    advice::{self, Agents},
    asking, ends,
    error::{CommandError, Exit},
    invocation::Invocation,
    obstacles,
    output::Format,
    shown::{self, ShownBuild},
    table::{self, count},
    times,
    verb::Act,
};
use crate::{
    coordinator::Coordinator,
    core::{
        build::ShownState,
        graph::Standing,
        id::BuildId,
        plan::{Explanation, InputReason},
    },
    store::AttemptRow,
};
use serde::Serialize;

/// How many blocked builds are followed to the one that failed.
const CHAIN_MAX: usize = 1_000;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Why {
    /// The build
    id: BuildId,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
    derivation: String,
    /// What the text form prints, line by line.
    sentences: Vec<String>,
    inputs: Vec<Input>,
    inputs_unlisted: usize,
    /// How many ready builds of its class go before it.
    before: Option<usize>,
    /// By how many minutes it goes back for what its submitter used lately.
    setback_minutes: i64,
    /// Why the coordinator gives nothing to agents just now.
    intake_closed: Option<String>,
    agents: Vec<Agent>,
    /// The agent and the attempt that have it or ended it.
    agent: Option<String>,
    attempt: Option<String>,
    deferred_until: Option<String>,
    /// Who holds it back, and since when.
    held_by: Option<String>,
    held_at: Option<String>,
    /// What it asks of its agent besides what its derivation does, in words.
    demands: Vec<String>,
    /// How many attempts found it failing, and it was tried again.
    failures: u32,
    /// The failed build that blocks it.
    failed_build: Option<String>,
}

#[derive(Serialize)]
struct Input {
    derivation: String,
    standing: &'static str,
    holds_back: bool,
    builds: Vec<String>,
}

#[derive(Serialize)]
struct Agent {
    agent: String,
    reason: String,
}

impl Act for Why {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let coordinator = &invocation.coordinator;
        // Open builds are the engine's to explain; whatever it does not know has ended.
        let explanation = asking::why(coordinator, self.id).await?;
        let build = shown::build(coordinator, self.id).await?;
        let object = match explanation {
            Some(explanation) => open(coordinator, &build, *explanation).await?,
            None => ended(coordinator, build).await?,
        };
        match invocation.output.format() {
            Format::Json => invocation.output.json(&object).await?,
            Format::Text => {
                for sentence in &object.sentences {
                    let line = table::cut(sentence, invocation.output.columns());
                    invocation.output.line(&line).await?;
                }
            }
        }
        Ok(Exit::Done)
    }
}

/// Explains a build that is not over.
async fn open(
    coordinator: &Coordinator,
    build: &ShownBuild,
    explanation: Explanation,
) -> Result<Object, CommandError> {
    let agents = Agents::ask(coordinator).await?;
    let failed = match explanation.state {
        ShownState::Blocked => root_failure(coordinator, &explanation).await?,
        ShownState::Deferred
        | ShownState::Held
        | ShownState::Waiting
        | ShownState::Ready
        | ShownState::Allocated
        | ShownState::Building
        | ShownState::Receiving
        | ShownState::Succeeded
        | ShownState::Failed
        | ShownState::Canceled => None,
    };
    let id = build.row.id;
    let derivation = &explanation.derivation;
    let mut sentences = vec![format!("Build {id} of {derivation} is {}.", explanation.state)];
    sentences.push(advice::headline(&explanation, &agents));
    if explanation.holder.is_some() {
        let since = times::shown(build.row.since);
        sentences.push(format!("It is in this state since {since}; ‘log -f {id}’ shows its log."));
    }
    if explanation.state != ShownState::Deferred && explanation.infrastructure_ends > 0 {
        let number = explanation.infrastructure_ends as usize;
        sentences.push(format!(
            "Before, {} ended through no fault of its own; ‘show {id}’ lists how.",
            count(number, "attempt")
        ));
    }
    sentences.extend(wishes(build, &explanation));
    let extras = &explanation.extras;
    if let Some(failed) = failed {
        sentences.push(format!("What failed in the end is build {failed}: see ‘why {failed}’."));
    }
    sentences.extend(explanation.inputs.iter().map(input_sentence));
    if explanation.inputs_unlisted > 0 {
        sentences.push(format!("  … and {}.", count(explanation.inputs_unlisted, "more input")));
    }
    if let Some(reason) = &explanation.intake_closed {
        let reason = table::plain(reason);
        sentences.push(format!("  the coordinator gives nothing to agents just now: {reason}"));
    }
    for agent in &explanation.agents {
        let reason = obstacles::not_taken(&agent.reason);
        sentences.push(format!("  agent {}: {reason}", agent.name));
    }
    let (attempt, agent) = explanation.holder.unzip();
    Ok(Object {
        build: id.to_string(),
        state: explanation.state.word(),
        derivation: derivation.to_string(),
        sentences,
        inputs: explanation.inputs.iter().map(Input::from).collect(),
        inputs_unlisted: explanation.inputs_unlisted,
        before: explanation.before,
        setback_minutes: explanation.setback_minutes,
        intake_closed: explanation.intake_closed,
        agents: explanation
            .agents
            .into_iter()
            .map(|agent| Agent {
                reason: obstacles::not_taken(&agent.reason),
                agent: agent.name.to_string(),
            })
            .collect(),
        agent: agent.map(String::from),
        attempt: attempt.map(|attempt| attempt.to_string()),
        deferred_until: explanation.until.map(times::rfc3339),
        held_by: extras.hold.as_ref().map(|hold| hold.by.to_string()),
        held_at: extras.hold.as_ref().map(|hold| times::rfc3339(hold.since)),
        demands: extras.demands.words(),
        failures: extras.failures,
        failed_build: failed.map(|id| id.to_string()),
    })
}

/// Says what was asked for and what happened before, as far as it matters now.
fn wishes(build: &ShownBuild, explanation: &Explanation) -> Vec<String> {
    let mut sentences = Vec::new();
    let extras = &explanation.extras;
    if extras.failures > 0 {
        let number = count(extras.failures as usize, "attempt");
        sentences.push(format!("{number} found it failing, and it was tried again."));
    }
    let demands = extras.demands.words();
    if !demands.is_empty() {
        let demands = table::plain(&demands.join(", "));
        sentences.push(format!("It asks for {demands}."));
    }
    if let (Some(hold), true) = (&extras.hold, explanation.state != ShownState::Held) {
        sentences.push(format!("Besides, {} holds it back.", hold.by));
    }
    if explanation.setback_minutes > 0 && explanation.before.is_some() {
        let minutes = count_minutes(explanation.setback_minutes);
        sentences.push(format!(
            "It goes back by {minutes} for what {} used lately.",
            build.row.submitter
        ));
    }
    sentences
}

impl From<&InputReason> for Input {
    fn from(input: &InputReason) -> Self {
        Self {
            derivation: input.derivation.to_string(),
            standing: input.standing.word(),
            holds_back: input.holds_back,
            builds: input.builds.iter().map(ToString::to_string).collect(),
        }
    }
}

fn count_minutes(minutes: i64) -> String {
    count(usize::try_from(minutes).unwrap_or(usize::MAX), "minute")
}

fn input_sentence(input: &InputReason) -> String {
    let builds: Vec<String> = input.builds.iter().map(ToString::to_string).collect();
    let by = if builds.is_empty() { String::new() } else { format!(", {}", builds.join(", ")) };
    let role = if input.holds_back || input.standing.obstructs() {
        "held back by input"
    } else {
        "does not wait for input"
    };
    format!("  {role} {} ({}{by})", input.derivation, input.standing.word())
}

/// Follows blocked inputs to a build that failed.
async fn root_failure(
    coordinator: &Coordinator,
    explanation: &Explanation,
) -> Result<Option<BuildId>, CommandError> {
    let mut inputs = explanation.inputs.clone();
    for _ in 0..CHAIN_MAX {
        if let Some(input) = inputs.iter().find(|input| input.standing == Standing::Failed) {
            let hash = input.derivation.hash();
            return Ok(coordinator.readers.read(move |reader| reader.last_failed(hash)).await?);
        }
        let blocked = inputs.iter().find(|input| input.standing == Standing::Blocked);
        let Some(next) = blocked.and_then(|input| input.builds.first()) else { break };
        let Some(explanation) = asking::why(coordinator, *next).await? else { break };
        inputs = explanation.inputs;
    }
    Ok(None)
}

/// Tells how a build ended.
async fn ended(coordinator: &Coordinator, build: ShownBuild) -> Result<Object, CommandError> {
    let ShownBuild { row, state } = build;
    let id = row.id;
    let attempts = coordinator.readers.read(move |reader| reader.attempts(id)).await?;
    let at = times::shown(row.since);
    let mut sentences = vec![format!("Build {id} of {} is {state} since {at}.", row.derivation)];
    for (number, attempt) in (1..).zip(&attempts) {
        sentences.push(attempt_sentence(number, attempt));
    }
    if attempts.is_empty() {
        sentences.push("No agent ever had it.".to_owned());
    } else if state == ShownState::Failed {
        sentences.push(format!("Its log: ‘log {id}’; its end: ‘log --tail 50 {id}’."));
    }
    Ok(Object {
        build: id.to_string(),
        state: state.word(),
        derivation: row.derivation.to_string(),
        sentences,
        inputs: Vec::new(),
        inputs_unlisted: 0,
        before: None,
        setback_minutes: 0,
        intake_closed: None,
        agents: Vec::new(),
        agent: row.agent,
        attempt: row.attempt.map(|attempt| attempt.to_string()),
        deferred_until: None,
        held_by: None,
        held_at: None,
        demands: row.extras.demands.words(),
        failures: row.extras.failures,
        failed_build: None,
    })
}

fn attempt_sentence(number: usize, attempt: &AttemptRow) -> String {
    let end = attempt.end.as_ref().map_or_else(|| "goes on".to_owned(), ends::sentence);
    let disputed = if attempt.disputed { "; its outputs differ from those held" } else { "" };
    format!("Attempt {number}, on {}, {end}{disputed}.", attempt.agent)
}
