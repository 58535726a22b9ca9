//! Events as JSON has them: for those who follow them, and for hooks.

use crate::{
    core::{
        event::{Cursor, EventKind},
        id::BuildId,
        time::Timestamp,
    },
    store::{EventRow, Reader, StoreError},
    telemetry,
};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An event as `events` prints it.
#[derive(Debug, Serialize)]
pub struct EventLine {
    cursor: Cursor,
    time: String,
    #[serde(rename = "type")]
    kind: EventKind,
    build: Option<String>,
    attempt: Option<String>,
    agent: Option<String>,
    /// What there is to say of this kind of event; the documents of `events` list the fields.
    detail: Map<String, Value>,
}

impl EventLine {
    /// Returns the form that is printed.
    #[must_use]
    pub fn of(row: &EventRow) -> Self {
        Self {
            cursor: row.cursor,
            time: telemetry::rfc3339(row.at),
            kind: row.kind,
            build: row.build.as_ref().map(ToString::to_string),
            attempt: row.attempt.as_ref().map(ToString::to_string),
            agent: row.agent.clone(),
            detail: detail(row),
        }
    }
}

/// Returns what is said of an event, with times as people read them.
fn detail(row: &EventRow) -> Map<String, Value> {
    let stored = row.detail.as_deref().map(serde_json::from_str);
    // Whatever else the column has, nobody of ours wrote.
    let mut detail: Map<String, Value> = stored.and_then(Result::ok).unwrap_or_default();
    if let Some(until) = detail.remove("until_ms").and_then(|until| until.as_i64()) {
        let until = telemetry::rfc3339(Timestamp::from_ms(until));
        detail.insert("until".to_owned(), Value::String(until));
    }
    if let Some((hash, path)) = &row.path {
        detail.insert("hash_part".to_owned(), Value::String(hash.base32()));
        let path = path.as_ref().map(ToString::to_string);
        detail.insert("path".to_owned(), path.map_or(Value::Null, Value::String));
    }
    detail
}

/// An event as a hook gets it: what `events` prints, and what there is to know of the build, so
/// that most hooks need not ask.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    event: EventLine,
    #[serde(flatten)]
    build: Option<ToldBuild>,
}

/// What a hook is told of the build that an event is about.
#[derive(Debug, Serialize)]
struct ToldBuild {
    derivation: String,
    system: Option<String>,
    submitter: String,
    priority: i32,
    tags: BTreeMap<String, Vec<String>>,
    /// Of a success: what was made.
    outputs: Vec<ToldOutput>,
}

#[derive(Debug, Serialize)]
struct ToldOutput {
    output: String,
    path: Option<String>,
    nar_hash: String,
    nar_bytes: u64,
}

/// Returns what a hook gets: one line of JSON.
///
/// # Errors
/// Any [`StoreError`] of reading.
pub fn for_hook(reader: &Reader, row: &EventRow) -> Result<String, StoreError> {
    let build = row.build.map(|build| told_build(reader, row, build)).transpose()?.flatten();
    let told = Told { event: EventLine::of(row), build };
    serde_json::to_string(&told)
        .map_err(|error| StoreError::Diverged(format!("an event cannot be written: {error}")))
}

fn told_build(
    reader: &Reader,
    row: &EventRow,
    id: BuildId,
) -> Result<Option<ToldBuild>, StoreError> {
    let Some(build) = reader.build(id)? else { return Ok(None) };
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in reader.tags(id)? {
        tags.entry(name).or_default().push(value);
    }
    let mut outputs = Vec::new();
    if let (EventKind::BuildSuccess, Some(attempt)) = (row.kind, row.attempt) {
        for output in reader.attempt_outputs(attempt)? {
            outputs.push(ToldOutput {
                path: reader.held_path(output.path)?.map(|path| path.to_string()),
                output: output.output,
                nar_hash: output.nar_hash.to_string(),
                nar_bytes: output.nar_bytes,
            });
        }
    }
    Ok(Some(ToldBuild {
        derivation: build.derivation.to_string(),
        system: build.class.system.clone(),
        submitter: build.submitter,
        priority: build.priority,
        tags,
        outputs,
    }))
}
