//! `agents show`: everything about one agent.

use super::{
    super::{
        ends,
        error::{CommandError, Exit},
        invocation::Invocation,
        obstacles,
        output::Format,
        table::{self, Table},
        times,
    },
    Known, Object, find,
};
use crate::{
    core::{id::Name, outcome::AttemptEnd},
    store::AttemptRow,
};
use serde::Serialize;

/// How many attempts are shown.
const ATTEMPTS_MAX: u32 = 20;

#[derive(Serialize)]
struct Everything {
    #[serde(flatten)]
    agent: Object,
    /// Those it was given last, the latest first.
    attempts: Vec<Attempt>,
}

#[derive(Serialize)]
struct Attempt {
    #[serde(rename = "attempt")]
    id: String,
    build: String,
    state: String,
    allocated_at: String,
    ended_at: Option<String>,
    end: Option<&'static str>,
    detail: Option<String>,
}

pub(super) async fn run(invocation: &mut Invocation, name: &Name) -> Result<Exit, CommandError> {
    let agent = find(invocation, name).await?;
    let of = name.clone();
    let attempts = invocation
        .coordinator
        .readers
        .read(move |reader| reader.attempts_of_agent(&of, ATTEMPTS_MAX))
        .await?;
    if invocation.output.format() == Format::Json {
        let attempts = attempts.iter().map(Attempt::from).collect();
        let everything = Everything { agent: agent.object(), attempts };
        invocation.output.json(&everything).await?;
        return Ok(Exit::Done);
    }
    for line in lines(&agent) {
        let line = table::cut(&line, invocation.output.columns());
        invocation.output.line(&line).await?;
    }
    if !attempts.is_empty() {
        invocation.output.line("").await?;
        invocation.output.table(&attempts_table(&attempts)).await?;
    }
    Ok(Exit::Done)
}

impl From<&AttemptRow> for Attempt {
    fn from(row: &AttemptRow) -> Self {
        Self {
            id: row.id.to_string(),
            build: row.build.to_string(),
            state: row.state.clone(),
            allocated_at: times::rfc3339(row.allocated),
            ended_at: row.ended.map(times::rfc3339),
            end: row.end.as_ref().map(AttemptEnd::word),
            detail: row.end.as_ref().map(ends::sentence),
        }
    }
}

fn lines(agent: &Known) -> Vec<String> {
    let view = &agent.view;
    let connection = if view.connected { "connected" } else { "away" };
    let last_seen = times::shown(view.last_seen);
    let key = if agent.principal.is_some() { "in the keydir" } else { "none in the keydir" };
    let list = |items: &[String]| match items {
        [] => "none".to_owned(),
        items => items.iter().map(|item| table::plain(item)).collect::<Vec<_>>().join(", "),
    };
    let mut lines = vec![
        format!("agent      {}", view.name),
        format!("state      {}", obstacles::state(view)),
        format!("connection {connection} since {last_seen}"),
        format!("key        {key}"),
        format!(
            "slots      {} taken, {} free, of {}",
            view.running.len(),
            view.slots_free,
            view.abilities.slots
        ),
    ];
    if let Some(limit) = obstacles::limit(view) {
        lines.insert(2, format!("limit      {limit}"));
    }
    let abilities = &view.abilities;
    lines.extend([
        format!("store      {}, {}", abilities.store_dir, table::plain(&abilities.dialect)),
        format!("systems    {}", table::plain(&agent.systems())),
        format!("features   {}", list(&abilities.features)),
        format!("tags       {}", list(&agent.tags())),
        format!("today      {} built or found failing", agent.builds_today),
        format!("failures   {} in a row through its fault", view.failures_in_a_row),
    ]);
    lines.extend(view.running.iter().map(|build| format!("running    {build}")));
    lines.extend(view.sending.iter().map(|build| format!("sending    {build}")));
    lines
}

fn attempts_table(attempts: &[AttemptRow]) -> Table {
    let mut table = Table::new(&["given", "build", "state", "end"]);
    for row in attempts {
        let end = row.end.as_ref().map(ends::sentence).unwrap_or_default();
        table.row(vec![times::shown(row.allocated), row.build.to_string(), row.state.clone(), end]);
    }
    table
}
