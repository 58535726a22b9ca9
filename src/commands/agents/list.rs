//! `agents`: all of them.

use super::{
    super::{
        asking,
        error::{CommandError, Exit},
        invocation::Invocation,
        obstacles,
        output::Format,
        table::Table,
        times,
    },
    Known, known, registered,
};

/// The headings of the table; the last is as long as it must be.
const HEADINGS: [&str; 11] = [
    "agent",
    "state",
    "builds",
    "free",
    "sending",
    "today",
    "failures",
    "systems",
    "tags",
    "last seen",
    "limit",
];

pub(super) async fn run(invocation: &mut Invocation) -> Result<Exit, CommandError> {
    let views = asking::agents(&invocation.coordinator).await?;
    let agents = known(invocation, views).await?;
    if invocation.output.format() == Format::Json {
        for agent in &agents {
            invocation.output.json(&agent.object()).await?;
        }
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&HEADINGS);
    for agent in &agents {
        table.row(row(agent));
    }
    invocation.output.table(&table).await?;
    let registered = registered(invocation);
    let seen = |name: &String| agents.iter().any(|agent| agent.view.name.as_str() == name);
    let unseen: Vec<&str> =
        registered.keys().filter(|name| !seen(name)).map(String::as_str).collect();
    if !unseen.is_empty() {
        let text = format!("registered, but never seen: {}", unseen.join(", "));
        invocation.output.message(&text).await?;
    } else if agents.is_empty() {
        let text = "no agent is registered: put its public key into keys/agents/NAME.pub in the \
                    state directory";
        invocation.output.message(text).await?;
    }
    Ok(Exit::Done)
}

fn row(agent: &Known) -> Vec<String> {
    let view = &agent.view;
    let state = match obstacles::state(view) {
        state if view.connected || state == "away" => state.to_owned(),
        state => format!("{state}, away"),
    };
    vec![
        view.name.to_string(),
        state,
        view.running.len().to_string(),
        view.slots_free.to_string(),
        view.sending.len().to_string(),
        agent.builds_today.to_string(),
        view.failures_in_a_row.to_string(),
        agent.systems(),
        agent.tags().join(" "),
        times::shown(view.last_seen),
        obstacles::limit(view).unwrap_or_default(),
    ]
}
