//! The database: the durable truth, and the only room with SQL.
//!
//! [`Store`] is the one writing connection; the engine's thread owns it and commits the changes of
//! a step in one transaction. [`Reader`] is a read-only connection for queries, as many as there
//! are readers. Neither decides anything. Called by the coordinator and, through it, by commands.

mod agents;
mod apply;
mod derivations;
mod load;
mod migrate;
mod nars;
mod open;
mod read;
mod row;

pub use load::SubmissionFacts;
pub use open::{Reader, Store};
pub use read::{
    AttemptRow, BUILDS_PER_READ_MAX, BuildFilter, BuildRow, First, Holdings, OutputRow, PathBuild,
};

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

/// Adds to an SQL error what was being done.
fn doing(what: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sql { what, source }
}

#[cfg(test)]
mod tests;
