//! Who did what, and who was refused.

use super::{Reader, StoreError, doing};
use crate::core::{
    audit::{ActId, AuditChange, AuditRecord},
    time::Timestamp,
};
use rusqlite::{Connection, Row, named_params};

/// The most lines one query returns.
pub const AUDIT_LINES_PER_READ_MAX: usize = 10_000;

/// A line of the audit as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number; later lines have higher ones.
    pub id: i64,
    /// When it was written.
    pub at: Timestamp,
    /// Who.
    pub principal: String,
    /// What that principal was.
    pub role: Option<String>,
    /// The fingerprint of the key; empty for the coordinator itself.
    pub fingerprint: String,
    /// From where.
    pub address: Option<String>,
    /// The verb and its arguments.
    pub line: String,
    /// Whether it is being done.
    pub under_way: bool,
    /// The exit status, if it came to one.
    pub status: Option<u8>,
    /// Why it was not done.
    pub reason: Option<String>,
    /// How many lines it stands for.
    pub lines: u32,
}

/// Which lines a query is for. All conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Written at this time or later.
    pub since: Option<Timestamp>,
    /// Of this principal.
    pub principal: Option<String>,
    /// Behind the line with this number. Those that follow it at once are returned; without it the
    /// latest.
    pub after: Option<i64>,
    /// How many; at most [`AUDIT_LINES_PER_READ_MAX`].
    pub limit: usize,
}

/// Makes a change of the audit.
pub(super) fn apply(connection: &Connection, change: &AuditChange) -> Result<(), StoreError> {
    match change {
        AuditChange::Line(record) => insert(connection, record),
        AuditChange::Ended { act, status, reason } => {
            end(connection, *act, *status, reason.as_deref())
        }
        AuditChange::Interrupted { reason } => interrupt(connection, reason),
        AuditChange::Pruned { before, most } => prune(connection, *before, *most),
    }
}

/// Writes a line.
fn insert(connection: &Connection, record: &AuditRecord) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO audit
                (at, fingerprint, principal, line, act, role, address, status, reason, lines)
             VALUES (:at, :fingerprint, :principal, :line, :act, :role, :address, :status, :reason,
                :lines)",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":at": record.at.as_ms(), ":fingerprint": record.fingerprint,
                ":principal": record.principal.as_str(), ":line": record.line,
                ":act": record.act.map(ActId::number), ":role": record.role,
                ":address": record.address, ":status": record.status, ":reason": record.reason,
                ":lines": record.lines,
            })
        })
        .map(drop)
        .map_err(doing("note an audit line"))
}

/// Notes how an act ended. Its line may have gone with age meanwhile.
fn end(
    connection: &Connection,
    act: ActId,
    status: Option<u8>,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE audit SET act = NULL, status = :status, reason = :reason WHERE act = :act",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":act": act.number(), ":status": status, ":reason": reason,
            })
        })
        .map(drop)
        .map_err(doing("note how an act ended"))
}

/// Notes of all acts that are being done that they are not any more.
fn interrupt(connection: &Connection, reason: &str) -> Result<(), StoreError> {
    connection
        .execute("UPDATE audit SET act = NULL, reason = :reason WHERE act IS NOT NULL", [reason])
        .map(drop)
        .map_err(doing("note that acts were interrupted"))
}

/// Removes the oldest lines that are from before a time.
fn prune(connection: &Connection, before: Timestamp, most: u32) -> Result<(), StoreError> {
    // Numbers and times go up together, so that only the oldest are looked at.
    connection
        .prepare_cached(
            "DELETE FROM audit WHERE id IN (SELECT id FROM
                (SELECT id, at FROM audit ORDER BY id LIMIT :most) WHERE at < :before)",
        )
        .and_then(|mut delete| {
            delete.execute(named_params! { ":before": before.as_ms(), ":most": most })
        })
        .map(drop)
        .map_err(doing("remove old audit lines"))
}

impl Reader {
    /// Returns lines of the audit, the earliest first.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let reading = doing("read the audit");
        // Forwards from a line, or backwards from the end: either way the first ones are wanted.
        let order = if filter.after.is_some() { "id" } else { "id DESC" };
        let principal = if filter.principal.is_some() {
            "principal = :principal"
        } else {
            ":principal IS NULL"
        };
        let sql = format!(
            "SELECT id, at, principal, role, fingerprint, address, line, act IS NOT NULL, status,
                reason, lines
             FROM audit WHERE {principal} AND at >= :since AND id > :after
             ORDER BY {order} LIMIT :limit"
        );
        let mut select = self.connection.prepare_cached(&sql).map_err(&reading)?;
        let limit = filter.limit.min(AUDIT_LINES_PER_READ_MAX);
        let rows = select
            .query_map(
                named_params! {
                    ":since": filter.since.map_or(i64::MIN, Timestamp::as_ms),
                    ":principal": filter.principal, ":after": filter.after.unwrap_or(0),
                    ":limit": i64::try_from(limit).unwrap_or(i64::MAX),
                },
                read,
            )
            .map_err(&reading)?;
        let mut found = rows.collect::<Result<Vec<AuditRow>, _>>().map_err(&reading)?;
        if filter.after.is_none() {
            found.reverse();
        }
        Ok(found)
    }

    /// Returns whether lines of the audit are from before a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn audit_reaches_before(&self, before: Timestamp) -> Result<bool, StoreError> {
        self.connection
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM (SELECT at FROM audit ORDER BY id LIMIT 1)
                 WHERE at < :before)",
                [before.as_ms()],
                |row| row.get(0),
            )
            .map_err(doing("look for old audit lines"))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        id: row.get(0)?,
        at: Timestamp::from_ms(row.get(1)?),
        principal: row.get(2)?,
        role: row.get(3)?,
        fingerprint: row.get(4)?,
        address: row.get(5)?,
        line: row.get(6)?,
        under_way: row.get(7)?,
        status: row.get(8)?,
        reason: row.get(9)?,
        lines: row.get(10)?,
    })
}
