//! Requests that have the same layout with both daemons.

use super::{ANSWER_MAX, Connection, PATHS_MAX, Patience, WORD_BYTES_MAX};
use crate::{builders::BuilderError, core::store_path::StorePath};
use std::time::Duration;

/// How long a daemon may say nothing while it collects garbage: finding out what is alive in a
/// store of terabytes on a slow disk takes an hour.
const COLLECTION_MAX: Duration = Duration::from_hours(4);
/// The numbers of the operations.
const ADD_TEMP_ROOT: u64 = 11;
const COLLECT_GARBAGE: u64 = 20;

/// What a request to collect garbage is for (`GCOptions::GCAction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::builders) enum GcAction {
    /// Delete what nothing needs.
    DeleteDead,
    /// Delete the named paths, and fail where something needs one.
    DeleteThese,
}

/// Asks the daemon to delete paths, and returns how many bytes that freed.
pub(in crate::builders) fn collect(
    connection: &mut Connection,
    action: GcAction,
    paths: &[StorePath],
    bytes_max: u64,
) -> Result<u64, BuilderError> {
    connection.wire.stream().patience = Patience { deadline: None, silence: Some(COLLECTION_MAX) };
    let freed = ask_to_collect(connection, action, paths, bytes_max);
    connection.wire.stream().patience = Patience { deadline: None, silence: Some(ANSWER_MAX) };
    freed
}

fn ask_to_collect(
    connection: &mut Connection,
    action: GcAction,
    paths: &[StorePath],
    bytes_max: u64,
) -> Result<u64, BuilderError> {
    connection.wire.put_u64(COLLECT_GARBAGE)?;
    connection.wire.put_u64(match action {
        GcAction::DeleteDead => 2,
        GcAction::DeleteThese => 3,
    })?;
    put_paths(connection, paths)?;
    connection.wire.put_u64(0)?; // do not ignore that something is alive
    connection.wire.put_u64(bytes_max)?;
    for _ in 0..3 {
        connection.wire.put_u64(0)?; // obsolete
    }
    connection.answer(&mut |_| {})?;
    connection.wire.list(PATHS_MAX, WORD_BYTES_MAX)?; // what was deleted
    let freed = connection.wire.u64()?;
    connection.wire.u64()?; // obsolete
    Ok(freed)
}

/// Keeps paths from being collected for as long as the connection lasts.
pub(in crate::builders) fn add_temp_roots(
    connection: &mut Connection,
    paths: &[StorePath],
) -> Result<(), BuilderError> {
    for path in paths {
        connection.wire.put_u64(ADD_TEMP_ROOT)?;
        connection.wire.put_bytes(path.to_string().as_bytes())?;
        connection.answer(&mut |_| {})?;
        connection.wire.u64()?;
    }
    Ok(())
}

/// Writes a list of paths.
pub(in crate::builders) fn put_paths(
    connection: &mut Connection,
    paths: &[StorePath],
) -> Result<(), BuilderError> {
    Ok(connection.wire.put_list(paths.iter().map(ToString::to_string))?)
}

/// Reads a list of at most `max` paths.
pub(in crate::builders) fn read_paths(
    connection: &mut Connection,
    max: u64,
) -> Result<Vec<StorePath>, BuilderError> {
    let paths = connection.wire.list(max, WORD_BYTES_MAX)?;
    paths.iter().map(|path| read_path(path)).collect()
}

/// Reads a path from the daemon's bytes.
pub(in crate::builders) fn read_path(bytes: &[u8]) -> Result<StorePath, BuilderError> {
    StorePath::from_bytes(bytes).map_err(|error| BuilderError::Protocol(error.to_string()))
}
