//! What submitters have used of the farm.

use super::{Store, StoreError, doing, row};
use crate::core::{id::Name, plan::Usage, time::Timestamp};
use rusqlite::{Connection, named_params};

/// Notes what a submitter has used.
pub(super) fn charge(connection: &Connection, name: &Name, usage: Usage) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO accounts (name, used_ms, used_at) VALUES (:name, :used_ms, :used_at)
             ON CONFLICT (name) DO UPDATE SET used_ms = :used_ms, used_at = :used_at",
        )
        .and_then(|mut upsert| {
            upsert.execute(named_params! {
                ":name": name.as_str(), ":used_at": usage.at.as_ms(),
                ":used_ms": i64::try_from(usage.used_ms).unwrap_or(i64::MAX),
            })
        })
        .map(drop)
        .map_err(doing("charge an account"))
}

impl Store {
    /// Returns what every submitter has used.
    pub(super) fn accounts(&self) -> Result<Vec<(Name, Usage)>, StoreError> {
        let mut select = self
            .connection
            .prepare("SELECT name, used_ms, used_at FROM accounts ORDER BY name LIMIT -1")
            .map_err(doing("read accounts"))?;
        let rows = select
            .query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .map_err(doing("read accounts"))?;
        let mut accounts = Vec::new();
        for columns in rows {
            let (name, used_ms, at) = columns.map_err(doing("read accounts"))?;
            let used_ms = u64::try_from(used_ms).unwrap_or(0);
            let usage = Usage { used_ms, at: Timestamp::from_ms(at) };
            accounts.push((row::parsed("accounts", &name)?, usage));
        }
        Ok(accounts)
    }
}
