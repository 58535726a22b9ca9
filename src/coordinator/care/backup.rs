//! Copies of the database, for somebody to take away.

use super::super::Coordinator;
use crate::{core::time::Timestamp, store::StoreError};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Where a copy is until it is opened, below the state directory; whoever takes it holds the file,
/// not the name.
const DRAFT: &str = "run/backup.db";
/// What stays free on the disk besides the copy, in bytes: what agents send meanwhile.
const RESERVE_BYTES: u64 = 64 << 20;

/// A copy of the database, as it was at one moment. Its room is given back when this is dropped.
#[derive(Debug)]
pub struct DatabaseCopy {
    /// The file, at its beginning.
    pub file: fs_err::File,
    /// Its length.
    pub bytes: u64,
    /// When copying began: what was acknowledged before is in it.
    pub at: Timestamp,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is not as much room.
    #[error(
        "a copy needs {needed} bytes on the disk of the state directory, and {free} are free: make \
         room"
    )]
    NoRoom {
        /// How much it would take.
        needed: u64,
        /// How much there is.
        free: u64,
    },
    /// The database cannot be copied, or the copy is not sound.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Files cannot be read or written.
    #[error("the copy cannot be written or read")]
    Io(#[from] io::Error),
}

/// Removes what an earlier process has left of a copy.
///
/// # Errors
/// When files cannot be removed.
pub fn remove_leftovers(state_dir: &Path) -> io::Result<()> {
    let draft = state_dir.join(DRAFT);
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut path = draft.clone().into_os_string();
        path.push(suffix);
        match fs_err::remove_file(PathBuf::from(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Makes a copy of the database beside it and checks it. Everything goes on meanwhile; another one
/// who wants a copy waits.
///
/// # Errors
/// [`BackupError`]; nothing is left on the disk then.
pub async fn copy(coordinator: &Coordinator) -> Result<DatabaseCopy, BackupError> {
    // Only one at a time has the draft, and its room.
    let turn = coordinator.care.copying.lock().await;
    let state_dir = coordinator.state_dir.clone();
    let room = coordinator.pressure.room()?;
    let at = coordinator.clock.now().wall;
    let copied = coordinator
        .readers
        .read(move |reader| {
            let needed = database_bytes(&state_dir)?.saturating_add(RESERVE_BYTES);
            if room.free < needed {
                return Err(BackupError::NoRoom { needed, free: room.free });
            }
            remove_leftovers(&state_dir)?;
            let draft = state_dir.join(DRAFT);
            let copied = reader.copy_into(&draft).map_err(BackupError::from);
            let opened = copied.and_then(|()| Ok(fs_err::File::open(&draft)?));
            remove_leftovers(&state_dir)?;
            let file = opened?;
            let bytes = file.metadata()?.len();
            Ok(DatabaseCopy { file, bytes, at })
        })
        .await;
    drop(turn);
    copied
}

/// Returns how long the database and its log of writes are.
///
/// # Errors
/// When the database cannot be looked at.
pub fn database_bytes(state_dir: &Path) -> io::Result<u64> {
    let database = fs_err::metadata(state_dir.join("steading.db"))?.len();
    let writes = fs_err::metadata(state_dir.join("steading.db-wal")).map_or(0, |found| found.len());
    Ok(database.saturating_add(writes))
}
