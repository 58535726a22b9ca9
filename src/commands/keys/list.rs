//! `keys list`: every key, and what in the keydir is refused.

use super::super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::Table,
    times,
};
use crate::{
    core::{enrollment::PendingKey, time::Timestamp},
    ssh::{KeydirProblem, ListedKey},
};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize, Default)]
struct Object {
    /// `listed`, `expired`, `pending` or `refused`.
    state: &'static str,
    fingerprint: Option<String>,
    role: Option<&'static str>,
    name: Option<String>,
    /// File and line in the keydir.
    place: Option<String>,
    expires: Option<String>,
    /// Where a key that waits came from, and when it asked.
    address: Option<String>,
    asked: Option<String>,
    /// Why it is refused.
    reason: Option<String>,
}

pub(super) async fn run(invocation: &mut Invocation) -> Result<Exit, CommandError> {
    let coordinator = invocation.coordinator.clone();
    let now = coordinator.clock.now().wall;
    let base = coordinator.state_dir.clone();
    let (keydir, problems) = coordinator.monitor.keydir();
    let pending = coordinator.enrollment.pending().await?;
    let listed = keydir.listed();
    let objects = listed
        .iter()
        .filter(|one| !one.disputed)
        .map(|one| of_listed(one, &base, now))
        .chain(pending.iter().map(of_pending))
        .chain(problems.iter().map(|one| of_problem(one, &base)));
    let mut table = Table::new(&["state", "who", "fingerprint", "place", "remark"]);
    for object in objects {
        if invocation.output.format() == Format::Json {
            invocation.output.json(&object).await?;
            continue;
        }
        let remark = object.reason.clone().or_else(|| {
            let expires = object.expires.as_ref().map(|at| format!("until {at}"));
            let asked = object.asked.as_ref().map(|at| format!("asked {at}"));
            expires.or(asked)
        });
        let who = match (object.role, &object.name) {
            (Some(role), Some(name)) => format!("{role} {name}"),
            (None, Some(name)) => format!("wants to be {name}"),
            (_, None) => String::new(),
        };
        table.row(vec![
            object.state.to_owned(),
            who,
            object.fingerprint.unwrap_or_default(),
            object.place.or(object.address).unwrap_or_default(),
            remark.unwrap_or_default(),
        ]);
    }
    if invocation.output.format() == Format::Text {
        invocation.output.table(&table).await?;
        if let Some(first) = pending.first() {
            let name = first.name.as_ref().map_or("NAME", |name| name.as_str());
            let text =
                format!("let a key in with ‘keys approve {} agent {name}’", first.fingerprint);
            invocation.output.message(&text).await?;
        }
    }
    Ok(Exit::Done)
}

fn of_listed(one: &ListedKey, base: &Path, now: Timestamp) -> Object {
    let expired = one.expires.is_some_and(|end| end <= now);
    Object {
        state: if expired { "expired" } else { "listed" },
        fingerprint: Some(one.principal.fingerprint.clone()),
        role: Some(one.principal.role.word()),
        name: Some(one.principal.name.to_string()),
        place: Some(place(&one.path, Some(one.line), base)),
        expires: one.expires.map(times::rfc3339),
        ..Object::default()
    }
}

fn of_pending(one: &PendingKey) -> Object {
    Object {
        state: "pending",
        fingerprint: Some(one.fingerprint.clone()),
        name: one.name.as_ref().map(ToString::to_string),
        address: Some(one.address.clone()),
        asked: Some(times::rfc3339(one.asked)),
        ..Object::default()
    }
}

fn of_problem(one: &KeydirProblem, base: &Path) -> Object {
    Object {
        state: "refused",
        place: Some(place(&one.path, one.line, base)),
        reason: Some(one.message.clone()),
        ..Object::default()
    }
}

/// Returns a place as seen from the state directory.
fn place(path: &Path, line: Option<usize>, base: &Path) -> String {
    let path = path.strip_prefix(base).unwrap_or(path).display();
    match line {
        Some(line) => format!("{path}:{line}"),
        None => path.to_string(),
    }
}
