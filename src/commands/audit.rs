//! `audit`: who changed what, who was refused, and how it ended.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::Table,
    times::{self, Since},
    verb::Act,
};
use crate::{
    core::id::Name,
    store::{AuditFilter, AuditRow},
};
use serde::Serialize;

/// How many lines are printed when it is not said.
const LIMIT: usize = 100;
/// The most lines one answer has.
const LIMIT_MAX: i64 = 10_000;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// From this time on: 2026-11-21T11:02:03Z, or how long ago: 90s, 2h, 3d
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Only what this principal did
    #[arg(long, value_name = "NAME")]
    principal: Option<Name>,
    /// How many lines at most, the latest [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: Option<u32>,
    /// The lines that follow the one with this number, instead of the latest
    #[arg(long, value_name = "NUMBER")]
    after: Option<i64>,
}

#[derive(Serialize)]
struct Object<'a> {
    number: i64,
    at: String,
    principal: &'a str,
    role: Option<&'a str>,
    fingerprint: Option<&'a str>,
    address: Option<&'a str>,
    line: &'a str,
    result: &'static str,
    status: Option<u8>,
    reason: Option<&'a str>,
    lines: u32,
}

impl Act for Audit {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let now = invocation.coordinator.clock.now().wall;
        let filter = AuditFilter {
            since: self.since.map(|since| since.from(now)),
            principal: self.principal.map(|name| name.to_string()),
            after: self.after,
            limit: self.limit.map_or(LIMIT, |limit| usize::try_from(limit).unwrap_or(LIMIT)),
        };
        let rows = invocation.coordinator.readers.read(move |reader| reader.audit(&filter)).await?;
        if invocation.output.format() == Format::Json {
            for row in &rows {
                invocation.output.json(&object(row)).await?;
            }
            return Ok(Exit::Done);
        }
        let mut table = Table::new(&["at", "who", "from", "result", "line"]);
        for row in &rows {
            let mut line = row.line.clone();
            if row.lines > 1 {
                line = format!("{} lines, the last: {line}", row.lines);
            }
            if let Some(reason) = &row.reason {
                line = format!("{line} ({reason})");
            }
            let who = match &row.role {
                Some(role) => format!("{role} {}", row.principal),
                None => row.principal.clone(),
            };
            let from = row.address.clone().unwrap_or_default();
            table.row(vec![times::shown(row.at), who, from, result(row).to_owned(), line]);
        }
        invocation.output.table(&table).await?;
        Ok(Exit::Done)
    }
}

fn object(row: &AuditRow) -> Object<'_> {
    Object {
        number: row.id,
        at: times::rfc3339(row.at),
        principal: &row.principal,
        role: row.role.as_deref(),
        fingerprint: Some(row.fingerprint.as_str()).filter(|text| !text.is_empty()),
        address: row.address.as_deref(),
        line: &row.line,
        result: result(row),
        status: row.status,
        reason: row.reason.as_deref(),
        lines: row.lines,
    }
}

/// The word for how it ended.
const fn result(row: &AuditRow) -> &'static str {
    match row.status {
        Some(0) => "done",
        Some(1) => "negative",
        Some(75) => "failed",
        Some(_) => "refused",
        None if row.under_way => "under-way",
        None => "unknown",
    }
}
