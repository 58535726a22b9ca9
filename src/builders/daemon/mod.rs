//! What the daemons of Nix and Guix have in common: the connection, and the requests whose layout
//! both kept from when they were one.

mod connection;
mod requests;

pub use connection::Trust;
pub(super) use connection::{
    ANSWER_MAX, Connection, Dialect, PATHS_MAX, Patience, TEXT_BYTES_MAX, WORD_BYTES_MAX, later,
    plain,
};
pub(super) use requests::{GcAction, add_temp_roots, collect, put_paths, read_path, read_paths};

use crate::builders::BuilderError;
use crate::core::store_path::{StoreDir, StorePath};
use std::time::Duration;

/// How long a log line may take from the daemon to us, when it is asked whether a build was silent.
pub(super) const LOG_DELAY_MAX: Duration = Duration::from_millis(500);
/// How much longer than its limits a build may take before the daemon, which enforces them, is
/// given up: it kills what the build started and collects the log first.
pub(super) const GRACE: Duration = Duration::from_mins(1);
/// The most references, signatures or built outputs of one path.
pub(super) const ITEMS_MAX: u64 = 100_000;

/// A connection that is given up when an error leaves it in the middle of a message.
#[derive(Debug)]
pub(super) struct Kept(Option<Connection>);

impl Kept {
    pub(super) const fn new(connection: Connection) -> Self {
        Self(Some(connection))
    }

    /// Returns the connection, if it was not given up.
    pub(super) const fn get(&self) -> Option<&Connection> {
        self.0.as_ref()
    }

    /// Lets `request` use the connection, and keeps it only when it is whole afterwards.
    pub(super) fn with<T>(
        &mut self,
        request: impl FnOnce(&mut Connection) -> Result<T, BuilderError>,
    ) -> Result<T, BuilderError> {
        let mut connection = self.0.take().ok_or(BuilderError::GivenUp)?;
        let result = request(&mut connection);
        // A refusal of the daemon is a complete answer; after everything else the position in the
        // stream is unknown.
        if matches!(result, Ok(_) | Err(BuilderError::Daemon(_))) {
            self.0 = Some(connection);
        }
        result
    }
}

/// Refuses paths of other stores before a daemon does so less clearly.
pub(super) fn check_store(store_dir: &StoreDir, paths: &[StorePath]) -> Result<(), BuilderError> {
    match paths.iter().find(|path| path.dir() != store_dir) {
        Some(path) => {
            Err(BuilderError::OtherStore { path: path.clone(), store_dir: store_dir.clone() })
        }
        None => Ok(()),
    }
}

/// Returns a limit in whole seconds, as the daemons count them: rounded up, because 0 means none.
pub(super) fn whole_seconds(limit: Duration) -> u64 {
    limit.as_secs().saturating_add(u64::from(limit.subsec_nanos() > 0)).max(1)
}
