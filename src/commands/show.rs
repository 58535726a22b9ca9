//! `show`: everything about a build.

use super::{
    ends,
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    shown::{self, ShownBuild},
    table::{self, Table},
    times,
    verb::Act,
};
use crate::{
    coordinator::Coordinator,
    core::{
        build::ShownState,
        change::NarRecord,
        id::{AttemptId, BuildId},
        store_path::StorePath,
    },
    depot::Depot,
    store::{AttemptRow, OutputRow, StoreError},
    telemetry,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The build
    id: BuildId,
}

#[derive(Serialize)]
struct Object {
    build: String,
    state: &'static str,
    since: String,
    derivation: String,
    store_dir: String,
    system: Option<String>,
    features: Vec<String>,
    priority: i32,
    submitter: String,
    submitted_at: String,
    origin: String,
    key: Option<String>,
    tags: BTreeMap<String, Vec<String>>,
    timeout_ms: Option<u64>,
    max_silent_ms: Option<u64>,
    deferred_until: Option<String>,
    /// What it asks of its agent besides, in words.
    demands: Vec<String>,
    held_by: Option<String>,
    held_at: Option<String>,
    /// How many attempts found it failing, and it was tried again.
    failures: u32,
    /// Whether it succeeded after that.
    flaky: bool,
    attempts: Vec<Attempt>,
    outputs: Vec<Output>,
}

#[derive(Serialize)]
struct Attempt {
    #[serde(rename = "attempt")]
    id: String,
    agent: String,
    state: String,
    allocated_at: String,
    started_at: Option<String>,
    built_at: Option<String>,
    ended_at: Option<String>,
    /// The word of its end, such as `exit` or `agent-lost`.
    end: Option<&'static str>,
    /// Its end in a sentence.
    detail: Option<String>,
    disputed: bool,
    /// Whether its agent emulated the system.
    emulated: bool,
    /// When its agent came back with it after it had been given up.
    readopted_at: Option<String>,
    /// When its agent said what it had made instead of sending it.
    reported_at: Option<String>,
    log_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Output {
    #[serde(rename = "output")]
    name: String,
    path: String,
    /// What is held under the path, whoever built it.
    nar_hash: Option<String>,
    nar_bytes: Option<u64>,
    /// What the build's own attempt made.
    built_nar_hash: Option<String>,
    published_at: Option<String>,
    /// Within the published tree.
    url: Option<String>,
}

impl Act for Show {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let build = shown::build(&invocation.coordinator, self.id).await?;
        let object = object(&invocation.coordinator, build).await?;
        if invocation.output.format() == Format::Json {
            invocation.output.json(&object).await?;
            return Ok(Exit::Done);
        }
        for line in lines(&object) {
            invocation.output.line(&line).await?;
        }
        for table in [attempts_table(&object.attempts), outputs_table(&object.outputs)] {
            invocation.output.line("").await?;
            invocation.output.table(&table).await?;
        }
        for (number, attempt) in (1..).zip(&object.attempts) {
            if let Some(detail) = &attempt.detail {
                invocation.output.line("").await?;
                let line = format!("Attempt {number}, on {}, {detail}.", attempt.agent);
                invocation.output.line(&line).await?;
            }
            for line in remarks(number, attempt) {
                invocation.output.line(&line).await?;
            }
        }
        Ok(Exit::Done)
    }
}

/// What the database has besides the build itself.
struct Found {
    tags: Vec<(String, String)>,
    attempts: Vec<AttemptRow>,
    outputs: Vec<FoundOutput>,
}

struct FoundOutput {
    name: String,
    path: StorePath,
    held: Option<NarRecord>,
    published_at: Option<String>,
    own: Option<OutputRow>,
}

async fn find(coordinator: &Coordinator, build: &ShownBuild) -> Result<Found, CommandError> {
    let (id, derivation, attempt) = (build.row.id, build.row.derivation.hash(), build.row.attempt);
    let found = coordinator
        .readers
        .read(move |reader| {
            let own = match attempt {
                Some(attempt) => reader.attempt_outputs(attempt)?,
                None => Vec::new(),
            };
            let mut outputs = Vec::new();
            for (name, path) in reader.outputs_of(derivation)? {
                outputs.push(FoundOutput {
                    held: reader.nar(path.hash())?,
                    published_at: reader.published_at(path.hash())?.map(times::rfc3339),
                    own: own.iter().find(|own| own.output == name).cloned(),
                    name,
                    path,
                });
            }
            let (tags, attempts) = (reader.tags(id)?, reader.attempts(id)?);
            Ok::<_, StoreError>(Found { tags, attempts, outputs })
        })
        .await?;
    Ok(found)
}

async fn object(coordinator: &Coordinator, build: ShownBuild) -> Result<Object, CommandError> {
    let found = find(coordinator, &build).await?;
    let ShownBuild { row, state } = build;
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in found.tags {
        tags.entry(name).or_default().push(value);
    }
    let mut attempts = Vec::new();
    for attempt in found.attempts {
        let log_bytes = log_bytes(coordinator, attempt.id).await;
        attempts.push(attempt_object(attempt, log_bytes));
    }
    Ok(Object {
        build: row.id.to_string(),
        state: state.word(),
        since: times::rfc3339(row.since),
        derivation: row.derivation.to_string(),
        store_dir: row.class.store_dir.to_string(),
        system: row.class.system,
        features: row.class.features,
        priority: row.priority,
        submitter: row.submitter,
        submitted_at: times::rfc3339(row.submitted),
        origin: row.origin,
        key: row.key,
        tags,
        timeout_ms: row.limits.timeout_ms,
        max_silent_ms: row.limits.max_silent_ms,
        deferred_until: row.deferred_until.map(times::rfc3339),
        demands: row.extras.demands.words(),
        held_by: row.extras.hold.as_ref().map(|hold| hold.by.to_string()),
        held_at: row.extras.hold.as_ref().map(|hold| times::rfc3339(hold.since)),
        failures: row.extras.failures,
        flaky: row.extras.failures > 0 && state == ShownState::Succeeded,
        attempts,
        outputs: found.outputs.into_iter().map(Output::from).collect(),
    })
}

/// Returns how long a log is; `None` when nothing was printed.
async fn log_bytes(coordinator: &Coordinator, attempt: AttemptId) -> Option<u64> {
    match coordinator.logs.bytes(attempt).await {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(%attempt, error = telemetry::chain(&error), "a log cannot be read");
            None
        }
    }
}

fn attempt_object(attempt: AttemptRow, log_bytes: Option<u64>) -> Attempt {
    Attempt {
        id: attempt.id.to_string(),
        agent: attempt.agent,
        state: attempt.state,
        allocated_at: times::rfc3339(attempt.allocated),
        started_at: attempt.started.map(times::rfc3339),
        built_at: attempt.built.map(times::rfc3339),
        ended_at: attempt.ended.map(times::rfc3339),
        end: attempt.end.as_ref().map(crate::core::outcome::AttemptEnd::word),
        detail: attempt.end.as_ref().map(ends::sentence),
        disputed: attempt.disputed,
        emulated: attempt.emulated,
        readopted_at: attempt.readopted.map(times::rfc3339),
        reported_at: attempt.reported.map(times::rfc3339),
        log_bytes,
    }
}

impl From<FoundOutput> for Output {
    fn from(found: FoundOutput) -> Self {
        let url = found.published_at.as_ref().and(found.held.as_ref());
        Self {
            name: found.name,
            path: found.path.to_string(),
            url: url.map(Depot::url),
            nar_hash: found.held.as_ref().map(|nar| nar.info.nar_hash.to_string()),
            nar_bytes: found.held.as_ref().map(|nar| nar.info.nar_bytes),
            built_nar_hash: found.own.map(|own| own.nar_hash.to_string()),
            published_at: found.published_at,
        }
    }
}

fn lines(object: &Object) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        lines.push(format!("{name:<12}{}", table::plain(&value)));
    };
    line("build", object.build.clone());
    line("state", format!("{} since {}", object.state, object.since));
    line("derivation", object.derivation.clone());
    let system = object.system.as_deref().unwrap_or("any system").to_owned();
    line("needs", [vec![system], object.features.clone()].concat().join(", "));
    line("priority", object.priority.to_string());
    line("submitter", format!("{} ({}), {}", object.submitter, object.origin, object.submitted_at));
    if let Some(key) = &object.key {
        line("key", key.clone());
    }
    for (name, values) in &object.tags {
        for value in values {
            line("tag", format!("{name}={value}"));
        }
    }
    for (name, limit) in [("timeout", object.timeout_ms), ("max silent", object.max_silent_ms)] {
        if let Some(ms) = limit {
            line(name, format!("{} s", ms / 1_000));
        }
    }
    if let Some(until) = &object.deferred_until {
        line("deferred", format!("until {until}"));
    }
    for demand in &object.demands {
        line("asks for", demand.clone());
    }
    if let (Some(by), Some(at)) = (&object.held_by, &object.held_at) {
        line("held", format!("by {by} since {at}"));
    }
    if object.flaky {
        line("flaky", format!("failed before, {} times", object.failures));
    }
    lines
}

/// Returns what else is to be said of an attempt.
fn remarks(number: usize, attempt: &Attempt) -> Vec<String> {
    let mut lines = Vec::new();
    if attempt.emulated {
        lines.push(format!("Attempt {number} was on an agent that emulates the system."));
    }
    if let Some(at) = &attempt.readopted_at {
        lines
            .push(format!("Attempt {number} had been given up; its agent came back with it {at}."));
    }
    if let Some(at) = &attempt.reported_at {
        let what = if attempt.disputed { "something else" } else { "nothing else" };
        lines.push(format!(
            "Attempt {number} was over when its agent came back {at}; it had made {what} than what \
             is held."
        ));
    }
    if attempt.disputed {
        lines.push(format!(
            "Attempt {number} is disputed: what it made differs from what is held, which stays; see \
             ‘outputs’."
        ));
    }
    lines
}

fn attempts_table(attempts: &[Attempt]) -> Table {
    let mut table =
        Table::new(&["attempt", "agent", "allocated", "started", "ended", "end", "log", "id"]);
    let dash = || "-".to_owned();
    for (number, attempt) in (1..).zip(attempts) {
        let end = match (attempt.end, attempt.disputed) {
            (Some(end), false) => end.to_owned(),
            (Some(end), true) => format!("{end}, disputed"),
            (None, _) => attempt.state.clone(),
        };
        table.row(vec![
            number.to_string(),
            attempt.agent.clone(),
            attempt.allocated_at.clone(),
            attempt.started_at.clone().unwrap_or_else(dash),
            attempt.ended_at.clone().unwrap_or_else(dash),
            end,
            attempt.log_bytes.map_or_else(dash, table::bytes),
            attempt.id.clone(),
        ]);
    }
    table
}

fn outputs_table(outputs: &[Output]) -> Table {
    let mut table = Table::new(&["output", "size", "nar hash", "published", "path"]);
    let dash = || "-".to_owned();
    for output in outputs {
        table.row(vec![
            output.name.clone(),
            output.nar_bytes.map_or_else(dash, table::bytes),
            output.nar_hash.clone().unwrap_or_else(dash),
            output.url.clone().unwrap_or_else(dash),
            output.path.clone(),
        ]);
    }
    table
}
