//! Connections: one that writes, many that read.

use super::{StoreError, derivations::Texts, doing, events, migrate};
use crate::core::{event::Cursor, outcome::OutputPolicy, plan::Class};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a connection waits for a lock that a foreign program holds.
const BUSY_MS: u64 = 30_000;
/// How many prepared statements a connection keeps: more than there are kinds.
const STATEMENTS_KEPT: usize = 128;
/// How many KiB of pages the writing connection keeps. What it writes to is near what it wrote
/// before, but for two indexes by hash; what else it reads, the system keeps as well.
const CACHE_KIB: u32 = 16 * 1024;
/// After how many pages the log of writes is carried over into the database: 16 MiB, so that a
/// page that a large submission writes to again and again is carried over once in a while only.
const WAL_PAGES: u32 = 4_096;
/// How many findings one refusal names.
const FINDINGS_MAX: usize = 3;

/// The one connection that writes.
#[derive(Debug)]
pub struct Store {
    pub(super) connection: Connection,
    pub(super) dirs: BTreeMap<String, i64>,
    pub(super) classes: BTreeMap<Class, i64>,
    /// The classes that were read, by their rows and those of their store directories.
    pub(super) class_at: RefCell<BTreeMap<(i64, i64), Arc<Class>>>,
    pub(super) texts: Texts,
    pub(super) path: PathBuf,
    pub(super) outputs: OutputPolicy,
    /// The last event that is durable.
    pub(super) last_event: Cursor,
    #[cfg(feature = "sim")]
    pub(super) simulated: super::simulated::Simulated,
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
    /// [`StoreError::Open`], [`StoreError::Foreign`], [`StoreError::Corrupt`] and
    /// [`StoreError::TooNew`] tell the operator what to do; [`StoreError::Sql`] when a migration fails, after which the database is as before.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        prepare(&connection).map_err(open)?;
        if !is_ours(&connection).map_err(|error| named(path, open(error)))? {
            return Err(StoreError::Foreign { path: path.to_owned() });
        }
        // Vacuuming piece by piece must be chosen before the first table is made.
        connection
            .execute_batch(&format!(
                "PRAGMA auto_vacuum = INCREMENTAL;
                 PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = FULL;
                 PRAGMA foreign_keys = ON;
                 PRAGMA cell_size_check = ON;
                 PRAGMA wal_autocheckpoint = {WAL_PAGES};
                 PRAGMA cache_size = -{CACHE_KIB};",
            ))
            .map_err(|error| named(path, open(error)))?;
        migrate::migrate(&mut connection).map_err(|error| named(path, error))?;
        let strange = migrate::strange_definitions(&connection)
            .map_err(|error| named(path, doing("read its definitions")(error)))?;
        if !strange.is_empty() {
            let findings = format!("not as this program defines it: {}", strange.join(", "));
            return Err(StoreError::Corrupt { path: path.to_owned(), findings });
        }
        let last_event = events::last(&connection).map_err(|error| named(path, error))?;
        Ok(Self {
            connection,
            last_event,
            dirs: BTreeMap::new(),
            classes: BTreeMap::new(),
            class_at: RefCell::default(),
            texts: Texts::new().map_err(|error| out_of_memory(&error))?,
            path: path.to_owned(),
            outputs: OutputPolicy::default(),
            #[cfg(feature = "sim")]
            simulated: super::simulated::Simulated::default(),
        })
    }

    /// Sets by what an output counts as held from now on: by its nar, or by the word of the attempt
    /// that made it.
    #[must_use]
    pub fn with_outputs(self, outputs: OutputPolicy) -> Self {
        Self { outputs, ..self }
    }

    /// Returns a connection for reading the same database.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn reader(&self) -> Result<Reader, StoreError> {
        Reader::open(&self.path)
    }

    /// Gives back the memory that reading or writing very much has taken.
    pub(super) fn shrink(&self) -> Result<(), StoreError> {
        self.connection.execute_batch("PRAGMA shrink_memory").map_err(doing("give memory back"))
    }

    /// Returns an error of this database with what is damaged and how to go on, where that is
    /// what it is about; any other as it is.
    #[must_use]
    pub fn named(&self, error: StoreError) -> StoreError {
        named(&self.path, error)
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

    /// Runs queries that all see the database as it is at the first of them. Many short ones take
    /// half the time so.
    ///
    /// # Errors
    /// What `queries` returns, and [`StoreError::Sql`].
    pub fn together<T, E: From<StoreError>>(
        &self,
        queries: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let run = |sql| self.connection.execute_batch(sql).map_err(doing("read"));
        run("BEGIN DEFERRED")?;
        let answer = queries(self);
        run("COMMIT")?;
        answer
    }

    /// Runs SQLite's integrity check and the check of foreign keys; returns what they find.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when the check itself cannot run.
    pub fn integrity(&self) -> Result<Vec<String>, StoreError> {
        integrity(&self.connection)
    }
}

/// Tells whether a database is new or has our tables. Nothing is written.
fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let (tables, ours): (u32, u32) = connection.query_row(
        "SELECT count(*), count(*) FILTER (WHERE name IN ('attempts', 'builds', 'nars'))
         FROM sqlite_schema WHERE type = 'table'",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(if version == 0 { tables == 0 } else { ours == 3 })
}

/// Adds to an error about damage what is damaged.
fn named(path: &Path, error: StoreError) -> StoreError {
    let code = match &error {
        StoreError::Open { source, .. } | StoreError::Sql { source, .. } => {
            source.sqlite_error_code()
        }
        StoreError::Foreign { .. }
        | StoreError::Corrupt { .. }
        | StoreError::TooNew { .. }
        | StoreError::Diverged(_)
        | StoreError::Damaged { .. } => None,
    };
    match code {
        Some(ErrorCode::NotADatabase) => StoreError::Foreign { path: path.to_owned() },
        Some(ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { path: path.to_owned(), findings: findings(path) }
        }
        _ => error,
    }
}

/// Returns which tables and pages of a database are damaged, as SQLite's quick check tells it.
fn findings(path: &Path) -> String {
    let look = || -> rusqlite::Result<Vec<String>> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let trees = roots(&connection).unwrap_or_default();
        let mut check = connection.prepare("PRAGMA quick_check(100)")?;
        let lines = check.query_map([], |row| row.get::<_, String>(0))?;
        let mut findings = Vec::new();
        for line in lines.take(FINDINGS_MAX) {
            // “Tree 7 page 12 cell 3: …” names a table by its first page only.
            let line = line?.replace('\n', "; ");
            let table = line
                .split_once("Tree ")
                .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
                .and_then(|root: i64| trees.get(&root));
            findings.push(match table {
                Some(table) => format!("{table}: {line}"),
                None => line,
            });
        }
        Ok(findings)
    };
    match look() {
        Ok(findings) => findings.join(", "),
        Err(error) => format!("its list of tables, on page 1 or behind it: {error}"),
    }
}

/// Returns the table or index of each first page.
fn roots(connection: &Connection) -> rusqlite::Result<BTreeMap<i64, String>> {
    let mut select =
        connection.prepare("SELECT rootpage, type || ' ' || name FROM sqlite_schema ORDER BY 1")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Returns what it is called when there is no memory to compress with.
pub(super) fn out_of_memory(error: &std::io::Error) -> StoreError {
    StoreError::Diverged(format!("texts cannot be compressed: {error}"))
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    // Without this, SQLite compiles a statement anew whenever another value is bound to a
    // parameter that it compared with the condition of a partial index: at nearly every step.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
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
    let agree: bool = connection
        .query_row(
            "SELECT (SELECT nars FROM holdings) IS (SELECT count(*) FROM nars)
                AND (SELECT file_bytes FROM holdings)
                    IS (SELECT coalesce(sum(file_bytes), 0) FROM nars)",
            [],
            |row| row.get(0),
        )
        .map_err(doing("count nars"))?;
    if !agree {
        findings.push("table holdings does not say how much table nars has".to_owned());
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
