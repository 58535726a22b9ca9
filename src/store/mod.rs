//! The database: the durable truth, and the only room with SQL.
//!
//! [`Store`] is the one writing connection; the engine's thread owns it and commits the changes of
//! a step in one transaction. [`Reader`] is a read-only connection for queries, as many as there
//! are readers. Neither decides anything. Called by the coordinator and, through it, by commands.

mod accounts;
mod agents;
mod amendments;
mod apply;
mod audit;
mod backup;
mod care;
mod dependents;
mod derivations;
mod disputes;
mod enrollment;
mod events;
mod facts;
mod hooks;
mod load;
mod migrate;
mod nars;
mod open;
mod read;
mod retrial;
mod row;
#[cfg(feature = "sim")]
mod simulated;
mod unwritten;

pub use audit::{AUDIT_LINES_PER_READ_MAX, AuditFilter, AuditRow};
pub use care::{BackupMark, Finished, FinishedMark, Keeping, TotalKind, Withdrawn};
pub use dependents::{DEPENDENTS_LOOKED_AT_MAX, Unsuccessful};
pub use disputes::{DISPUTED_PER_PATH_MAX, StrayOutput};
pub use events::{EVENTS_PER_ROW_MAX, EventPage, EventRow, Extent};
pub use facts::SubmissionFacts;
pub use hooks::{DeliveryRow, HookRow};
pub use open::{Reader, Store};
pub use read::{
    AttemptRow, BUILDS_PER_READ_MAX, BuildFilter, BuildRow, First, Holdings, OutputRow, PathBuild,
};
#[cfg(feature = "sim")]
pub use simulated::Fault;

use std::path::PathBuf;

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or made.
    #[error("cannot open the database {path}: check that the directory exists and is writable")]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The file is no database, or another program's.
    #[error(
        "{path} is not a database of steading: name another state directory with --state, or move \
         the file away to begin with an empty database"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error(
        "the database {path} is damaged ({findings}): put the last backup in its place, or save \
         what can be read of a copy with ‘sqlite3 COPY .recover | sqlite3 NEW’, and start again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which tables and pages, as far as they can be told.
        findings: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the database has schema version {found}, this program knows up to {known}: start the \
         newer steading that wrote it"
    )]
    TooNew {
        /// Its version.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// A statement failed.
    #[error("the database refused to {what}")]
    Sql {
        /// What was being done.
        what: &'static str,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// A transition did not find the row as memory has it.
    #[error("the database does not agree with memory: {0}")]
    Diverged(String),
    /// A row holds something that no program of ours writes.
    #[error("table {table} is damaged: {what}; restore the last backup")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl StoreError {
    /// Tells whether there was no room on the disk.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Sql { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Foreign { .. }
            | Self::Corrupt { .. }
            | Self::TooNew { .. }
            | Self::Diverged(_)
            | Self::Damaged { .. } => false,
        }
    }
}

/// Adds to an SQL error what was being done.
fn doing(what: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { what, source }
}

#[cfg(test)]
mod tests;
