//! Connections: one that writes, many that read.

use super::{StoreError, doing, migrate};
use crate::core::plan::Class;
use rusqlite::{Connection, OpenFlags};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a connection waits for a lock that a foreign program holds.
const BUSY_MS: u64 = 30_000;
/// How many prepared statements a connection keeps: more than there are kinds.
const STATEMENTS_KEPT: usize = 128;

/// The one connection that writes.
#[derive(Debug)]
pub struct Store {
    pub(super) connection: Connection,
    pub(super) dirs: BTreeMap<String, i64>,
    pub(super) classes: BTreeMap<Class, i64>,
    path: PathBuf,
}

/// A connection that only reads.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
}

impl Store {
    /// Opens the database, makes it when there is none, and brings it to the newest schema.
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::TooNew`] tell the operator what to do;
    /// [`StoreError::Sql`] when a migration fails, after which the database is as before.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        // Vacuuming piece by piece must be chosen before the first table is made.
        connection
            .execute_batch(
                "PRAGMA auto_vacuum = INCREMENTAL;
                 PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = FULL;
                 PRAGMA foreign_keys = ON;
                 PRAGMA cache_size = -65536;",
            )
            .map_err(open)?;
        prepare(&connection).map_err(open)?;
        migrate::migrate(&mut connection)?;
        Ok(Self {
            connection,
            dirs: BTreeMap::new(),
            classes: BTreeMap::new(),
            path: path.to_owned(),
        })
    }

    /// Returns a connection for reading the same database.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn reader(&self) -> Result<Reader, StoreError> {
        Reader::open(&self.path)
    }

    /// Returns a view of the writing connection for reads that must see what was just written.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn integrity(&self) -> Result<Vec<String>, StoreError> {
        integrity(&self.connection)
    }
}

impl Reader {
    /// Opens an existing database for reading.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(open)?;
        prepare(&connection).map_err(open)?;
        Ok(Self { connection })
    }

    /// Runs SQLite's integrity check and the check of foreign keys; returns what they find.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when the check itself cannot run.
    pub fn integrity(&self) -> Result<Vec<String>, StoreError> {
        integrity(&self.connection)
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_millis(BUSY_MS))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(())
}

fn integrity(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut findings = Vec::new();
    let mut statement =
        connection.prepare("PRAGMA integrity_check").map_err(doing("check its integrity"))?;
    let rows = statement
        .query_map([], |row| row.get::<_, String>(0))
        .map_err(doing("check its integrity"))?;
    for row in rows {
        let line = row.map_err(doing("check its integrity"))?;
        if line != "ok" {
            findings.push(line);
        }
    }
    let mut statement =
        connection.prepare("PRAGMA foreign_key_check").map_err(doing("check its references"))?;
    let rows = statement
        .query_map([], |row| row.get::<_, String>(0))
        .map_err(doing("check its references"))?;
    for row in rows {
        let table = row.map_err(doing("check its references"))?;
        findings.push(format!("table {table} has a row that refers to nothing"));
    }
    Ok(findings)
}
