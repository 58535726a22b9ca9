//! `hooks`: how far each hook has come, what it failed on, and trying that again.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::{self, Table},
    times,
    verb::Act,
};
use crate::{
    core::{
        change::Change,
        engine::Input,
        event::Cursor,
        hook::{DeliveryId, HookChange, HookId},
    },
    store::{DeliveryRow, HookRow, Reader, StoreError},
};
use serde::Serialize;

/// Up to how many events of a hook are counted that it is to have yet.
const QUEUED_MAX: usize = 10_000;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Hooks {
    /// List what hooks failed on instead
    #[arg(long)]
    failed: bool,
    #[command(subcommand)]
    what: Option<What>,
}

/// What to do with one failure.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Try again at once what a hook failed on, also what was given up
    Retry(Retry),
}

/// Which failure.
#[derive(Debug, clap::Args)]
struct Retry {
    /// The number that --failed lists
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    id: i64,
}

/// A hook as JSON has it.
#[derive(Serialize)]
struct Object {
    event: &'static str,
    hook: String,
    /// Everything up to this event was taken, or failed.
    cursor: Cursor,
    /// How many events it is to have yet; at most 10,000 are counted.
    queued: usize,
    running: Vec<RunningObject>,
    /// How many events it failed on and is to have again.
    waiting: u64,
    /// How many events were given up.
    dead: u64,
    /// How many events of all kinds were forgotten before it could have them.
    lost: i64,
    /// The last run since the coordinator started.
    last: Option<LastObject>,
}

#[derive(Serialize)]
struct RunningObject {
    cursor: Cursor,
    since: String,
}

#[derive(Serialize)]
struct LastObject {
    cursor: Cursor,
    at: String,
    end: String,
    output: String,
}

/// A failure as JSON has it.
#[derive(Serialize)]
struct Failure {
    id: i64,
    event: &'static str,
    hook: String,
    cursor: Cursor,
    /// `waiting`, or `dead`: only `hooks retry` tries it again.
    state: &'static str,
    tries: u32,
    tried_at: String,
    next_at: Option<String>,
    end: String,
    output: String,
}

impl Act for Hooks {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        match self.what {
            Some(_) if self.failed => {
                let text = "--failed lists, and ‘retry’ tries again: give one of them";
                Err(CommandError::Usage(text.to_owned()))
            }
            Some(What::Retry(retry)) => try_again(invocation, DeliveryId(retry.id)).await,
            None if self.failed => list_failed(invocation).await,
            None => list(invocation).await,
        }
    }
}

async fn list(invocation: &mut Invocation) -> Result<Exit, CommandError> {
    let read = |reader: &Reader| {
        let mut hooks = Vec::new();
        for row in reader.hooks()? {
            let queued = reader.count_events(row.cursor, row.hook.event, QUEUED_MAX)?;
            hooks.push((row, queued));
        }
        Ok::<_, StoreError>(hooks)
    };
    let rows = invocation.coordinator.readers.read(read).await?;
    let objects: Vec<Object> = rows.iter().map(|row| object(invocation, row)).collect();
    if invocation.output.format() == Format::Json {
        for object in &objects {
            invocation.output.json(object).await?;
        }
    } else {
        let headings =
            ["event", "hook", "cursor", "queued", "running", "waiting", "dead", "lost", "last"];
        let mut table = Table::new(&headings);
        for object in &objects {
            let last = object.last.as_ref().map_or_else(|| "-".to_owned(), |one| one.end.clone());
            table.row(vec![
                object.event.to_owned(),
                object.hook.clone(),
                object.cursor.to_string(),
                object.queued.to_string(),
                object.running.len().to_string(),
                object.waiting.to_string(),
                object.dead.to_string(),
                object.lost.to_string(),
                last,
            ]);
        }
        invocation.output.table(&table).await?;
    }
    for problem in invocation.coordinator.hooks.problems() {
        invocation.output.message(&table::plain(&problem)).await?;
    }
    Ok(Exit::Done)
}

fn object(invocation: &Invocation, (row, queued): &(HookRow, usize)) -> Object {
    let outbox = &invocation.coordinator.hooks;
    let running: Vec<RunningObject> = outbox
        .running(&row.hook)
        .into_iter()
        .map(|one| RunningObject { cursor: one.cursor, since: times::rfc3339(one.since) })
        .collect();
    let last = outbox.last(&row.hook).map(|last| LastObject {
        cursor: last.cursor,
        at: times::rfc3339(last.at),
        end: last.end,
        output: text(&last.output),
    });
    Object {
        event: row.hook.event.word(),
        hook: row.hook.name.to_string(),
        cursor: row.cursor,
        queued: *queued,
        running,
        waiting: row.waiting,
        dead: row.dead,
        lost: row.lost,
        last,
    }
}

async fn list_failed(invocation: &mut Invocation) -> Result<Exit, CommandError> {
    let headings = ["id", "event", "hook", "cursor", "state", "tries", "tried", "end", "output"];
    let mut table = Table::new(&headings);
    let mut after = DeliveryId(0);
    loop {
        let read = move |reader: &Reader| reader.failed_deliveries(after);
        let rows = invocation.coordinator.readers.read(read).await?;
        let Some(last) = rows.last() else { break };
        after = last.id;
        for row in &rows {
            let failure = failure(row);
            if invocation.output.format() == Format::Json {
                invocation.output.json(&failure).await?;
                continue;
            }
            table.row(vec![
                failure.id.to_string(),
                failure.event.to_owned(),
                failure.hook.clone(),
                failure.cursor.to_string(),
                failure.state.to_owned(),
                failure.tries.to_string(),
                times::shown(row.tried_at),
                failure.end.clone(),
                table::excerpt(failure.output.trim_end().lines().next_back().unwrap_or_default()),
            ]);
        }
    }
    if invocation.output.format() == Format::Text {
        invocation.output.table(&table).await?;
    }
    Ok(Exit::Done)
}

fn failure(row: &DeliveryRow) -> Failure {
    Failure {
        id: row.id.0,
        event: row.hook.event.word(),
        hook: row.hook.name.to_string(),
        cursor: row.cursor,
        state: if row.next_at.is_some() { "waiting" } else { "dead" },
        tries: row.tries,
        tried_at: times::rfc3339(row.tried_at),
        next_at: row.next_at.map(times::rfc3339),
        end: row.ended.clone(),
        output: text(&row.output),
    }
}

/// Returns what a hook printed, with U+FFFD for what is no text.
fn text(output: &[u8]) -> String {
    let mut text = String::with_capacity(output.len());
    for chunk in output.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

async fn try_again(invocation: &mut Invocation, id: DeliveryId) -> Result<Exit, CommandError> {
    let found = invocation.coordinator.readers.read(move |reader| reader.delivery(id)).await?;
    let Some(DeliveryRow { hook, cursor, .. }) = found else {
        let text = format!("there is no failure {}: ‘hooks --failed’ lists them", id.0);
        return Err(CommandError::NoSuch(text));
    };
    invocation.audit().await?;
    let again = HookChange::Again { delivery: id, at: invocation.coordinator.clock.now().wall };
    let changes = vec![Change::Hook(Box::new(again))];
    let record = move |token| Input::Record { token: Some(token), changes };
    invocation.coordinator.engine.request(record).await?;
    invocation.coordinator.hooks.wish();
    say_again(invocation, id, &hook, cursor).await?;
    Ok(Exit::Done)
}

async fn say_again(
    invocation: &mut Invocation,
    id: DeliveryId,
    hook: &HookId,
    cursor: Cursor,
) -> Result<(), CommandError> {
    #[derive(Serialize)]
    struct Again<'a> {
        id: i64,
        event: &'static str,
        hook: &'a str,
        cursor: Cursor,
    }
    match invocation.output.format() {
        Format::Json => {
            let event = hook.event.word();
            let object = Again { id: id.0, event, hook: hook.name.as_str(), cursor };
            invocation.output.json(&object).await?;
        }
        Format::Text => {
            invocation.output.line(&format!("{hook} gets event {cursor} again")).await?;
        }
    }
    Ok(())
}
