//! Columns to values. Whatever no program of ours writes is named as damage.

use super::{StoreError, doing};
use crate::core::{
    build::{BuildState, Lease},
    hash::Sha256,
    id::{AttemptId, Name},
    store_path::{PathHash, StoreDir, StorePath},
    time::Timestamp,
};
use rusqlite::Row;

/// Returns a number, without a copy of anything.
pub(super) fn integer(
    table: &'static str,
    row: &Row<'_>,
    column: usize,
) -> Result<i64, StoreError> {
    optional_integer(table, row, column)?.ok_or_else(|| absent(table))
}

/// Returns a number that may be absent.
pub(super) fn optional_integer(
    table: &'static str,
    row: &Row<'_>,
    column: usize,
) -> Result<Option<i64>, StoreError> {
    let value = row.get_ref(column).map_err(doing("read a column"))?;
    value.as_i64_or_null().map_err(|error| damaged(table, &error))
}

/// Returns the bytes of a column where they are.
pub(super) fn blob<'a>(
    table: &'static str,
    row: &'a Row<'_>,
    column: usize,
) -> Result<&'a [u8], StoreError> {
    optional_blob(table, row, column)?.ok_or_else(|| absent(table))
}

/// Returns bytes that may be absent.
pub(super) fn optional_blob<'a>(
    table: &'static str,
    row: &'a Row<'_>,
    column: usize,
) -> Result<Option<&'a [u8]>, StoreError> {
    let value = row.get_ref(column).map_err(doing("read a column"))?;
    value.as_blob_or_null().map_err(|error| damaged(table, &error))
}

/// Returns the text of a column where it is.
pub(super) fn text<'a>(
    table: &'static str,
    row: &'a Row<'_>,
    column: usize,
) -> Result<&'a str, StoreError> {
    optional_text(table, row, column)?.ok_or_else(|| absent(table))
}

/// Returns a text that may be absent.
pub(super) fn optional_text<'a>(
    table: &'static str,
    row: &'a Row<'_>,
    column: usize,
) -> Result<Option<&'a str>, StoreError> {
    let value = row.get_ref(column).map_err(doing("read a column"))?;
    value.as_str_or_null().map_err(|error| damaged(table, &error))
}

fn damaged(table: &'static str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Damaged { table, what: error.to_string() }
}

fn absent(table: &'static str) -> StoreError {
    StoreError::Damaged { table, what: "a value is absent".to_owned() }
}

/// Reads exactly `N` bytes.
pub(super) fn bytes<const N: usize>(
    table: &'static str,
    blob: &[u8],
) -> Result<[u8; N], StoreError> {
    blob.try_into().map_err(|_| StoreError::Damaged {
        table,
        what: format!("a value of {} bytes instead of {N}", blob.len()),
    })
}

/// Reads a list of path hashes, one behind the other.
pub(super) fn path_hashes(table: &'static str, blob: &[u8]) -> Result<Vec<PathHash>, StoreError> {
    blob.chunks(20).map(|hash| bytes(table, hash).map(PathHash::from_bytes)).collect()
}

/// Reads a hash.
pub(super) fn sha256(table: &'static str, blob: &[u8]) -> Result<Sha256, StoreError> {
    bytes(table, blob).map(Sha256::from_bytes)
}

/// Puts a store path together.
pub(super) fn store_path(
    table: &'static str,
    dir: &str,
    hash: &[u8],
    name: &str,
) -> Result<StorePath, StoreError> {
    let dir: StoreDir = parsed(table, dir)?;
    dir.path(PathHash::from_bytes(bytes(table, hash)?), name)
        .map_err(|error| StoreError::Damaged { table, what: error.to_string() })
}

/// Reads a value from its text.
pub(super) fn parsed<T>(table: &'static str, text: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|error: T::Err| StoreError::Damaged { table, what: error.to_string() })
}

/// Reads a value from JSON.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    table: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Damaged { table, what: error.to_string() })
}

/// The columns that make a build's state.
pub(super) struct StateColumns<'a> {
    pub(super) state: &'a str,
    pub(super) attempt: Option<&'a [u8]>,
    pub(super) agent: Option<&'a str>,
    pub(super) deferred_until: Option<i64>,
}

/// Reads the state of a build.
pub(super) fn build_state(columns: &StateColumns<'_>) -> Result<BuildState, StoreError> {
    const TABLE: &str = "builds";
    let damaged = |what: String| StoreError::Damaged { table: TABLE, what };
    let attempt = match columns.attempt {
        Some(blob) => Some(AttemptId::from_bytes(bytes(TABLE, blob)?)),
        None => None,
    };
    let lease = || -> Result<Lease, StoreError> {
        let attempt =
            attempt.ok_or_else(|| damaged("a leased build without attempt".to_owned()))?;
        let agent = columns.agent.ok_or_else(|| damaged(format!("{attempt} is no attempt")))?;
        Ok(Lease { attempt, agent: parsed::<Name>("attempts", agent)? })
    };
    let ended = || attempt.ok_or_else(|| damaged("an ended build without attempt".to_owned()));
    Ok(match columns.state {
        "deferred" => {
            let until = columns
                .deferred_until
                .ok_or_else(|| damaged("a deferred build without time".to_owned()))?;
            BuildState::Deferred { until: Timestamp::from_ms(until) }
        }
        "queued" => BuildState::Queued,
        "allocated" => BuildState::Allocated(lease()?),
        "building" => BuildState::Building(lease()?),
        "receiving" => BuildState::Receiving(lease()?),
        "succeeded" => BuildState::Succeeded { attempt: ended()? },
        "failed" => BuildState::Failed { attempt: ended()? },
        "canceled" => BuildState::Canceled,
        other => return Err(damaged(format!("‘{other}’ is no state"))),
    })
}
