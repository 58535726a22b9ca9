//! Schema versions: `user_version` counts the scripts of `schema/` that were run.
//!
//! To change the schema, add the next script; a script that was released is never edited.

use super::{StoreError, doing};
use rusqlite::{Connection, TransactionBehavior};
use std::collections::BTreeMap;

/// All scripts, in order. Script `n` leads from version `n` to version `n + 1`.
pub(super) const SCRIPTS: &[&str] = &[
    include_str!("../../schema/0001_initial.sql"),
    include_str!("../../schema/0002_agents.sql"),
    include_str!("../../schema/0003_leases.sql"),
    include_str!("../../schema/0004_unwritten_nars.sql"),
    include_str!("../../schema/0005_scale.sql"),
    include_str!("../../schema/0006_planner.sql"),
    include_str!("../../schema/0007_events.sql"),
    include_str!("../../schema/0008_keys.sql"),
    include_str!("../../schema/0009_care.sql"),
];

/// Brings the database to the newest version, one transaction per script.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(SCRIPTS.len()).unwrap_or(u32::MAX);
    let found = version(connection)?;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for (number, script) in (1u32..).zip(SCRIPTS).skip(found as usize) {
        let tx = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(doing("begin a migration"))?;
        tx.execute_batch(script).map_err(doing("migrate"))?;
        tx.pragma_update(None, "user_version", number).map_err(doing("note its version"))?;
        tx.commit().map_err(doing("commit a migration"))?;
    }
    Ok(())
}

/// Returns which tables and indexes are not defined as the scripts define them. What somebody
/// added is their own matter.
pub(super) fn strange_definitions(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let expected = Connection::open_in_memory()?;
    for script in SCRIPTS {
        expected.execute_batch(script)?;
    }
    let found = definitions(connection)?;
    let mut strange = definitions(&expected)?;
    strange.retain(|name, sql| found.get(name) != Some(sql));
    Ok(strange.into_keys().collect())
}

/// Returns the definition of each table, index and trigger that a script defines.
fn definitions(connection: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    let mut select = connection.prepare(
        "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY 1",
    )?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn version(connection: &Connection) -> Result<u32, StoreError> {
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(doing("tell its version"))
}
