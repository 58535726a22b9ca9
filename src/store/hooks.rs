//! The tables of hooks: how far each has come, and what it failed on.

use super::{Reader, StoreError, doing, row};
use crate::core::{
    event::{Cursor, EventKind},
    hook::{DEAD_PER_HOOK_MAX, DeliveryId, HookChange, HookId, Tried},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

const TABLE: &str = "hook_deliveries";
/// The most rows one list has.
const ROWS_MAX: i64 = 10_000;
/// The columns that [`read`] reads.
const COLUMNS: &str = "id, event, name, cursor, text, tries, tried_at, next_at, ended, output";

/// A hook as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRow {
    /// Which one.
    pub hook: HookId,
    /// Everything up to here was delivered, or is among what failed.
    pub cursor: Cursor,
    /// How many events were forgotten before it had them.
    pub lost: i64,
    /// How many events it failed on and is to have again.
    pub waiting: u64,
    /// How many events were given up.
    pub dead: u64,
}

/// An event on which a hook failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its own id.
    pub id: DeliveryId,
    /// Which hook.
    pub hook: HookId,
    /// Which event.
    pub cursor: Cursor,
    /// What the hook gets.
    pub text: String,
    /// How often it was tried, since it was last begun with.
    pub tries: u32,
    /// When it was tried last.
    pub tried_at: Timestamp,
    /// When it is tried again; absent when it was given up.
    pub next_at: Option<Timestamp>,
    /// How the last try ended.
    pub ended: String,
    /// What it printed.
    pub output: Vec<u8>,
}

/// Writes something down of a hook.
pub(super) fn write(connection: &Connection, change: &HookChange) -> Result<(), StoreError> {
    match change {
        HookChange::Found { hook, through } => found(connection, hook, *through),
        HookChange::Passed { hook, through, lost } => passed(connection, hook, *through, *lost),
        HookChange::Failed { hook, cursor, text, tried } => {
            failed(connection, (hook, *cursor), text, tried)
        }
        HookChange::FailedAgain { delivery, tried } => failed_again(connection, *delivery, tried),
        HookChange::Delivered { delivery } => connection
            .prepare_cached("DELETE FROM hook_deliveries WHERE id = :id")
            .and_then(|mut delete| delete.execute(named_params! { ":id": delivery.0 }))
            .map(drop)
            .map_err(doing("note a delivery to a hook")),
        HookChange::Again { delivery, at } => connection
            .prepare_cached("UPDATE hook_deliveries SET tries = 0, next_at = :at WHERE id = :id")
            .and_then(|mut update| {
                update.execute(named_params! { ":id": delivery.0, ":at": at.as_ms() })
            })
            .map(drop)
            .map_err(doing("try a delivery to a hook again")),
        HookChange::Forgotten { hook } => connection
            .prepare_cached("DELETE FROM hooks WHERE event = :event AND name = :name")
            .and_then(|mut delete| {
                delete.execute(named_params! {
                    ":event": hook.event.number(), ":name": hook.name.as_str(),
                })
            })
            .map(drop)
            .map_err(doing("forget a hook")),
    }
}

fn found(connection: &Connection, hook: &HookId, through: Cursor) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO hooks (event, name, cursor) VALUES (:event, :name, :cursor)
             ON CONFLICT (event, name) DO NOTHING",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":event": hook.event.number(), ":name": hook.name.as_str(),
                ":cursor": through.0,
            })
        })
        .map(drop)
        .map_err(doing("note a hook"))
}

fn passed(
    connection: &Connection,
    hook: &HookId,
    through: Cursor,
    lost: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE hooks SET cursor = max(cursor, :cursor), lost = lost + :lost
             WHERE event = :event AND name = :name",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":cursor": through.0, ":lost": lost, ":event": hook.event.number(),
                ":name": hook.name.as_str(),
            })
        })
        .map(drop)
        .map_err(doing("note how far a hook has come"))
}

/// Notes a first failure. A hook that is forgotten meanwhile has none; and what was delivered, and
/// not noted before a process ended, may fail another time.
fn failed(
    connection: &Connection,
    (hook, cursor): (&HookId, Cursor),
    text: &str,
    tried: &Tried,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO hook_deliveries (event, name, cursor, text, tries, tried_at, next_at,
                ended, output)
             SELECT event, name, :cursor, :text, 1, :at, :next_at, :ended, :output
             FROM hooks WHERE event = :event AND name = :name
             ON CONFLICT (event, name, cursor) DO NOTHING",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":event": hook.event.number(), ":name": hook.name.as_str(),
                ":cursor": cursor.0, ":text": text, ":at": tried.at.as_ms(),
                ":next_at": tried.next_at.map(Timestamp::as_ms), ":ended": tried.end,
                ":output": tried.output,
            })
        })
        .map_err(doing("note that a hook failed"))?;
    bury(connection, hook, tried)
}

fn failed_again(
    connection: &Connection,
    delivery: DeliveryId,
    tried: &Tried,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE hook_deliveries SET tries = tries + 1, tried_at = :at, next_at = :next_at,
                ended = :ended, output = :output
             WHERE id = :id",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":id": delivery.0, ":at": tried.at.as_ms(),
                ":next_at": tried.next_at.map(Timestamp::as_ms), ":ended": tried.end,
                ":output": tried.output,
            })
        })
        .map_err(doing("note that a hook failed again"))?;
    let hook = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM hook_deliveries WHERE id = :id"))
        .and_then(|mut select| {
            let row = |row: &Row<'_>| Ok(read(row));
            select.query_row(named_params! { ":id": delivery.0 }, row).optional()
        })
        .map_err(doing("read a delivery to a hook"))?
        .transpose()?;
    hook.map_or(Ok(()), |delivery| bury(connection, &delivery.hook, tried))
}

/// When a delivery was given up: keeps the number of those in bounds.
fn bury(connection: &Connection, hook: &HookId, tried: &Tried) -> Result<(), StoreError> {
    if tried.next_at.is_some() {
        return Ok(());
    }
    connection
        .prepare_cached(
            "DELETE FROM hook_deliveries WHERE id IN (
                SELECT id FROM hook_deliveries
                WHERE event = :event AND name = :name AND next_at IS NULL
                ORDER BY id DESC LIMIT -1 OFFSET :most)",
        )
        .and_then(|mut delete| {
            delete.execute(named_params! {
                ":event": hook.event.number(), ":name": hook.name.as_str(),
                ":most": DEAD_PER_HOOK_MAX,
            })
        })
        .map(drop)
        .map_err(doing("forget old failures of a hook"))
}

impl Reader {
    /// Returns all hooks that were found and have not gone.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn hooks(&self) -> Result<Vec<HookRow>, StoreError> {
        let sql = doing("read hooks");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT h.event, h.name, h.cursor, h.lost, count(d.next_at),
                    count(d.id) - count(d.next_at)
                 FROM hooks h LEFT JOIN hook_deliveries d USING (event, name)
                 GROUP BY h.event, h.name ORDER BY h.event, h.name LIMIT :limit",
            )
            .map_err(&sql)?;
        let mut rows = select.query(named_params! { ":limit": ROWS_MAX }).map_err(&sql)?;
        let mut hooks = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let count = |column| row.get::<_, u32>(column).map(u64::from);
            hooks.push(HookRow {
                hook: hook_id(
                    "hooks",
                    row::integer("hooks", row, 0)?,
                    row::text("hooks", row, 1)?,
                )?,
                cursor: Cursor(row::integer("hooks", row, 2)?),
                lost: row::integer("hooks", row, 3)?,
                waiting: count(4).map_err(&sql)?,
                dead: count(5).map_err(&sql)?,
            });
        }
        Ok(hooks)
    }

    /// Counts what hooks failed on and was given up at a time or later, by hook.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn given_up_since(&self, since: Timestamp) -> Result<Vec<(HookId, u64)>, StoreError> {
        let sql = doing("count what was given up");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT event, name, count(*) FROM hook_deliveries
                 WHERE next_at IS NULL AND tried_at >= :since
                 GROUP BY event, name ORDER BY event, name LIMIT :limit",
            )
            .map_err(&sql)?;
        let mut rows = select
            .query(named_params! { ":since": since.as_ms(), ":limit": ROWS_MAX })
            .map_err(&sql)?;
        let mut hooks = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let hook = hook_id(TABLE, row::integer(TABLE, row, 0)?, row::text(TABLE, row, 1)?)?;
            hooks.push((hook, u64::from(row.get::<_, u32>(2).map_err(&sql)?)));
        }
        Ok(hooks)
    }

    /// Returns what a hook is to have again first.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn next_delivery(&self, hook: &HookId) -> Result<Option<DeliveryRow>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM hook_deliveries
             WHERE event = :event AND name = :name AND next_at IS NOT NULL
             ORDER BY next_at, id LIMIT 1"
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut select| {
                let of = named_params! {
                    ":event": hook.event.number(), ":name": hook.name.as_str(),
                };
                select.query_row(of, |row| Ok(read(row))).optional()
            })
            .map_err(doing("find what a hook is to have again"))?
            .transpose()
    }

    /// Counts what a hook is to have again, up to a number.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn count_waiting(&self, hook: &HookId, most: u32) -> Result<u32, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM (SELECT 1 FROM hook_deliveries
                 WHERE event = :event AND name = :name AND next_at IS NOT NULL LIMIT :most)",
            )
            .and_then(|mut select| {
                let of = named_params! {
                    ":event": hook.event.number(), ":name": hook.name.as_str(), ":most": most,
                };
                select.query_row(of, |row| row.get(0))
            })
            .map_err(doing("count what a hook is to have again"))
    }

    /// Returns a delivery that failed.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM hook_deliveries WHERE id = :id");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut select| {
                select.query_row(named_params! { ":id": id.0 }, |row| Ok(read(row))).optional()
            })
            .map_err(doing("read a delivery to a hook"))?
            .transpose()
    }

    /// Returns the deliveries behind one that failed and were not made good, some hundreds at a
    /// time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn failed_deliveries(&self, after: DeliveryId) -> Result<Vec<DeliveryRow>, StoreError> {
        const PER_READ: i64 = 200;
        let sql = doing("read deliveries to hooks");
        let text =
            format!("SELECT {COLUMNS} FROM hook_deliveries WHERE id > :after ORDER BY id LIMIT :n");
        let mut select = self.connection.prepare_cached(&text).map_err(&sql)?;
        let mut rows =
            select.query(named_params! { ":after": after.0, ":n": PER_READ }).map_err(&sql)?;
        let mut deliveries = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            deliveries.push(read(row)?);
        }
        Ok(deliveries)
    }
}

fn hook_id(table: &'static str, event: i64, name: &str) -> Result<HookId, StoreError> {
    let unknown = || StoreError::Damaged { table, what: "a hook of no known event".to_owned() };
    let event = EventKind::of_number(event).ok_or_else(unknown)?;
    Ok(HookId { event, name: row::parsed(table, name)? })
}

fn read(row: &Row<'_>) -> Result<DeliveryRow, StoreError> {
    let tries = row::integer(TABLE, row, 5)?;
    Ok(DeliveryRow {
        id: DeliveryId(row::integer(TABLE, row, 0)?),
        hook: hook_id(TABLE, row::integer(TABLE, row, 1)?, row::text(TABLE, row, 2)?)?,
        cursor: Cursor(row::integer(TABLE, row, 3)?),
        text: row::text(TABLE, row, 4)?.to_owned(),
        tries: u32::try_from(tries).unwrap_or(u32::MAX),
        tried_at: Timestamp::from_ms(row::integer(TABLE, row, 6)?),
        next_at: row::optional_integer(TABLE, row, 7)?.map(Timestamp::from_ms),
        ended: row::text(TABLE, row, 8)?.to_owned(),
        output: row::blob(TABLE, row, 9)?.to_vec(),
    })
}
