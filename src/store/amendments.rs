//! What is changed of open builds besides their states.

use super::{StoreError, doing};
use crate::core::{
    change::BuildAmendment,
    demands::Demands,
    id::{BuildId, Name},
    time::Timestamp,
};
use rusqlite::{Connection, ToSql, named_params};

/// Writes an amendment down.
pub(super) fn amend(
    connection: &Connection,
    build: BuildId,
    amendment: &BuildAmendment,
) -> Result<(), StoreError> {
    let set = |sql: &str, value: &dyn ToSql| update(connection, build, sql, value);
    match amendment {
        BuildAmendment::Priority(priority) => {
            set("UPDATE builds SET priority = :value WHERE id = :id", priority)
        }
        BuildAmendment::Hold(None) => {
            set("UPDATE builds SET held_by = :value, held_at = :value WHERE id = :id", &None::<i64>)
        }
        BuildAmendment::Hold(Some(hold)) => hold_back(connection, build, &hold.by, hold.since),
        BuildAmendment::Demands(demands) => {
            set("UPDATE builds SET demands = :value WHERE id = :id", &demands_json(demands)?)
        }
        BuildAmendment::NotDeferred => {
            set("UPDATE builds SET not_before = :value WHERE id = :id", &None::<i64>)
        }
        BuildAmendment::Implied => {
            set("UPDATE builds SET origin = :value WHERE id = :id", &"implied")
        }
        BuildAmendment::Tags(tags) => replace_tags(connection, build, tags),
    }
}

/// Returns what is kept of demands; `None` when nothing is asked for.
pub(super) fn demands_json(demands: &Demands) -> Result<Option<String>, StoreError> {
    if demands.is_none() {
        return Ok(None);
    }
    let json = serde_json::to_string(demands);
    json.map(Some)
        .map_err(|error| StoreError::Diverged(format!("demands cannot be written: {error}")))
}

fn update(
    connection: &Connection,
    build: BuildId,
    sql: &str,
    value: &dyn ToSql,
) -> Result<(), StoreError> {
    let changed = connection
        .prepare_cached(sql)
        .and_then(|mut update| {
            update.execute(named_params! { ":id": build.as_bytes(), ":value": value })
        })
        .map_err(doing("change a build"))?;
    found(build, changed)
}

fn found(build: BuildId, changed: usize) -> Result<(), StoreError> {
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::Diverged(format!("build {build} is not in it")))
}

fn hold_back(
    connection: &Connection,
    build: BuildId,
    by: &Name,
    since: Timestamp,
) -> Result<(), StoreError> {
    let changed = connection
        .prepare_cached("UPDATE builds SET held_by = :by, held_at = :at WHERE id = :id")
        .and_then(|mut update| {
            update.execute(named_params! {
                ":id": build.as_bytes(), ":by": by.as_str(), ":at": since.as_ms(),
            })
        })
        .map_err(doing("hold a build back"))?;
    found(build, changed)
}

fn replace_tags(
    connection: &Connection,
    build: BuildId,
    tags: &[(String, String)],
) -> Result<(), StoreError> {
    for (name, _) in tags {
        connection
            .prepare_cached("DELETE FROM build_tags WHERE build = :build AND name = :name")
            .and_then(|mut delete| {
                delete.execute(named_params! { ":build": build.as_bytes(), ":name": name })
            })
            .map_err(doing("remove tags"))?;
    }
    insert_tags(connection, build, tags)
}

/// Adds tags to a build.
pub(super) fn insert_tags(
    connection: &Connection,
    build: BuildId,
    tags: &[(String, String)],
) -> Result<(), StoreError> {
    for (name, value) in tags {
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO build_tags (name, value, build)
                 VALUES (:name, :value, :build)",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! {
                    ":name": name, ":value": value, ":build": build.as_bytes(),
                })
            })
            .map_err(doing("tag a build"))?;
    }
    Ok(())
}
