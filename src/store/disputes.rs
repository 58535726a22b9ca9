//! What attempts made that is not what is held: nars that are kept beside, and what agents only
//! reported.

use super::{Reader, StoreError, doing, nars, row};
use crate::core::{
    change::{NarRecord, OutputRecord},
    hash::Sha256,
    id::{AttemptId, Name},
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, named_params};

/// How many differing nars are kept of one path, and how many reports of unknown attempts. More of
/// them would tell nothing new, and an agent could fill the disk with them.
pub const DISPUTED_PER_PATH_MAX: usize = 8;

const COLUMNS: &str = "s.path, n.path, n.name, nar_hash, nar_bytes, file_hash, file_bytes, refs,
    deriver, content_address, '', 'built', verified_at, attempt";

/// Keeps a nar beside the one that is held, unless the same bytes are kept or held.
pub(super) fn insert(
    connection: &Connection,
    dir: i64,
    attempt: AttemptId,
    record: &NarRecord,
) -> Result<(), StoreError> {
    let info = &record.info;
    let refs: Vec<String> = info.references.iter().map(StorePath::base_name).collect();
    connection
        .prepare_cached(
            "INSERT INTO disputed_nars (path, nar_hash, attempt, store_dir, name, nar_bytes,
                file_hash, file_bytes, refs, deriver, content_address, verified_at)
             SELECT :path, :nar_hash, :attempt, :store_dir, :name, :nar_bytes, :file_hash,
                :file_bytes, :refs, :deriver, :content_address, :at
             WHERE NOT EXISTS
                (SELECT 1 FROM nars WHERE path = :path AND nar_hash = :nar_hash)
             ON CONFLICT (path, nar_hash) DO NOTHING",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":path": info.path.hash().as_bytes(), ":nar_hash": info.nar_hash.as_bytes(),
                ":attempt": attempt.as_bytes(), ":store_dir": dir, ":name": info.path.name(),
                ":nar_bytes": nars::stored_size(info.nar_bytes),
                ":file_hash": record.file_hash.as_bytes(),
                ":file_bytes": nars::stored_size(record.file_bytes), ":refs": refs.join(" "),
                ":deriver": info.deriver.as_ref().map(StorePath::base_name),
                ":content_address": info.content_address, ":at": record.at.as_ms(),
            })
        })
        .map(drop)
        .map_err(doing("keep a disputed nar"))
}

/// Forgets a nar that was kept to be compared.
pub(super) fn forget(
    connection: &Connection,
    path: PathHash,
    nar_hash: &Sha256,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM disputed_nars WHERE path = :path AND nar_hash = :nar_hash")
        .and_then(|mut delete| {
            delete.execute(named_params! {
                ":path": path.as_bytes(), ":nar_hash": nar_hash.as_bytes(),
            })
        })
        .map(drop)
        .map_err(doing("forget a disputed nar"))
}

/// Marks attempts that made something else of a path than what was just taken as held.
pub(super) fn mark_differing(
    connection: &Connection,
    path: PathHash,
    nar_hash: &Sha256,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE attempts SET disputed = 1 WHERE disputed = 0 AND id IN
                (SELECT attempt FROM attempt_outputs WHERE path = :path AND nar_hash <> :nar_hash)",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":path": path.as_bytes(), ":nar_hash": nar_hash.as_bytes(),
            })
        })
        .map(drop)
        .map_err(doing("note a dispute"))
}

/// Writes down what an agent says it made. Of an attempt that is known only what its derivation
/// makes, of any other only what some known derivation makes: the rest is nobody's business.
pub(super) fn insert_report(
    connection: &Connection,
    attempt: AttemptId,
    agent: &Name,
    outputs: &[OutputRecord],
    at: Timestamp,
) -> Result<(), StoreError> {
    let owner: Option<String> = connection
        .prepare_cached("SELECT agent FROM attempts WHERE id = :id")
        .and_then(|mut select| {
            select
                .query_row(named_params! { ":id": attempt.as_bytes() }, |row| row.get(0))
                .optional()
        })
        .map_err(doing("read an attempt"))?;
    match owner {
        Some(owner) if owner == agent.as_str() => note_known(connection, attempt, outputs, at),
        // Somebody else's attempt: this agent cannot say anything about it.
        Some(_) => Ok(()),
        None => note_stray(connection, attempt, agent, outputs, at),
    }
}

fn note_known(
    connection: &Connection,
    attempt: AttemptId,
    outputs: &[OutputRecord],
    at: Timestamp,
) -> Result<(), StoreError> {
    for output in outputs {
        // What was committed or said before stays.
        connection
            .prepare_cached(
                "INSERT INTO attempt_outputs (attempt, output, path, nar_hash, nar_bytes)
                 SELECT a.id, o.output, o.path, :nar_hash, :nar_bytes
                 FROM attempts a JOIN builds b ON b.id = a.build
                 JOIN derivation_outputs o ON o.derivation = b.derivation
                 WHERE a.id = :attempt AND o.output = :output AND o.path = :path
                 ON CONFLICT (attempt, output) DO NOTHING",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! {
                    ":attempt": attempt.as_bytes(), ":output": output.name,
                    ":path": output.path.hash().as_bytes(),
                    ":nar_hash": output.nar_hash.as_bytes(),
                    ":nar_bytes": nars::stored_size(output.nar_bytes).max(1),
                })
            })
            .map_err(doing("note a reported output"))?;
    }
    connection
        .prepare_cached(
            "UPDATE attempts SET reported_at = CASE ended WHEN 'succeeded' THEN reported_at
                    ELSE :at END,
                disputed = max(disputed, EXISTS
                    (SELECT 1 FROM attempt_outputs o JOIN nars n ON n.path = o.path
                     WHERE o.attempt = :id AND o.nar_hash <> n.nar_hash))
             WHERE id = :id",
        )
        .and_then(|mut update| {
            update.execute(named_params! { ":id": attempt.as_bytes(), ":at": at.as_ms() })
        })
        .map(drop)
        .map_err(doing("note a report"))
}

fn note_stray(
    connection: &Connection,
    attempt: AttemptId,
    agent: &Name,
    outputs: &[OutputRecord],
    at: Timestamp,
) -> Result<(), StoreError> {
    let limit = i64::try_from(DISPUTED_PER_PATH_MAX).unwrap_or(i64::MAX);
    for output in outputs {
        connection
            .prepare_cached(
                "INSERT INTO stray_outputs (path, attempt, agent, output, nar_hash, nar_bytes,
                    reported_at)
                 SELECT :path, :attempt, :agent, :output, :nar_hash, :nar_bytes, :at
                 WHERE EXISTS (SELECT 1 FROM derivation_outputs WHERE path = :path)
                    AND (SELECT count(*) FROM stray_outputs WHERE path = :path) < :limit
                 ON CONFLICT (path, attempt) DO NOTHING",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! {
                    ":path": output.path.hash().as_bytes(), ":attempt": attempt.as_bytes(),
                    ":agent": agent.as_str(), ":output": output.name,
                    ":nar_hash": output.nar_hash.as_bytes(),
                    ":nar_bytes": nars::stored_size(output.nar_bytes).max(1),
                    ":at": at.as_ms(), ":limit": limit,
                })
            })
            .map_err(doing("note a reported output"))?;
    }
    Ok(())
}

/// A report of an attempt that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayOutput {
    /// The attempt, in the agent's words.
    pub attempt: AttemptId,
    /// Who reported it.
    pub agent: String,
    /// SHA-256 of what it made.
    pub nar_hash: Sha256,
    /// The length of its nar.
    pub nar_bytes: u64,
    /// When it was reported.
    pub at: Timestamp,
}

impl Reader {
    /// Returns the nars that differ from what is held under a path, each with the first attempt
    /// that made it.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn disputed_nars(&self, path: PathHash) -> Result<Vec<(AttemptId, NarRecord)>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM disputed_nars n JOIN store_dirs s ON s.id = n.store_dir
             WHERE n.path = :path ORDER BY verified_at, nar_hash LIMIT 1000"
        );
        let mut select =
            self.connection.prepare_cached(&sql).map_err(doing("read disputed nars"))?;
        let rows = select
            .query_map(named_params! { ":path": path.as_bytes() }, |row| {
                Ok((row.get::<_, Vec<u8>>(13)?, nars::read(row)))
            })
            .map_err(doing("read disputed nars"))?;
        let mut found = Vec::new();
        for columns in rows {
            let (attempt, nar) = columns.map_err(doing("read disputed nars"))?;
            found.push((AttemptId::from_bytes(row::bytes("disputed_nars", &attempt)?), nar?));
        }
        Ok(found)
    }

    /// Returns the hashes of all files that disputed nars are in: few, or something is wrong with
    /// the farm.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn disputed_files(&self) -> Result<Vec<Sha256>, StoreError> {
        const TABLE: &str = "disputed_nars";
        let mut select = self
            .connection
            .prepare("SELECT DISTINCT file_hash FROM disputed_nars LIMIT -1")
            .map_err(doing("read disputed nars"))?;
        let rows = select
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .map_err(doing("read disputed nars"))?;
        rows.map(|hash| {
            let hash = hash.map_err(doing("read disputed nars"))?;
            Ok(Sha256::from_bytes(row::bytes(TABLE, &hash)?))
        })
        .collect()
    }

    /// Returns the path, nar and file of all disputed nars: few, or something is wrong with the
    /// farm.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn all_disputed(&self) -> Result<Vec<(StorePath, Sha256, Sha256)>, StoreError> {
        const TABLE: &str = "disputed_nars";
        let sql = doing("read disputed nars");
        let mut select = self
            .connection
            .prepare(
                "SELECT s.path, n.path, n.name, n.nar_hash, n.file_hash FROM disputed_nars n
                 JOIN store_dirs s ON s.id = n.store_dir ORDER BY n.path, n.nar_hash LIMIT -1",
            )
            .map_err(&sql)?;
        let mut rows = select.query([]).map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let (dir, name) = (row::text(TABLE, row, 0)?, row::text(TABLE, row, 2)?);
            let path = row::store_path(TABLE, dir, row::blob(TABLE, row, 1)?, name)?;
            let nar_hash = row::sha256(TABLE, row::blob(TABLE, row, 3)?)?;
            found.push((path, nar_hash, row::sha256(TABLE, row::blob(TABLE, row, 4)?)?));
        }
        Ok(found)
    }

    /// Returns what agents reported of a path under attempts that are not known.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn stray_outputs(&self, path: PathHash) -> Result<Vec<StrayOutput>, StoreError> {
        const TABLE: &str = "stray_outputs";
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT attempt, agent, nar_hash, nar_bytes, reported_at FROM stray_outputs
                 WHERE path = :path ORDER BY reported_at, attempt LIMIT 1000",
            )
            .map_err(doing("read reported outputs"))?;
        let rows = select
            .query_map(named_params! { ":path": path.as_bytes() }, |row| {
                Ok((
                    row.get::<_, Vec<u8>>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, Vec<u8>>(2)?,
                    row.get::<_, i64>(3)?,
                    row.get::<_, i64>(4)?,
                ))
            })
            .map_err(doing("read reported outputs"))?;
        let mut found = Vec::new();
        for columns in rows {
            let (attempt, agent, nar_hash, nar_bytes, at) =
                columns.map_err(doing("read reported outputs"))?;
            found.push(StrayOutput {
                attempt: AttemptId::from_bytes(row::bytes(TABLE, &attempt)?),
                agent,
                nar_hash: row::sha256(TABLE, &nar_hash)?,
                nar_bytes: u64::try_from(nar_bytes).map_err(|_| StoreError::Damaged {
                    table: TABLE,
                    what: format!("a size of {nar_bytes}"),
                })?,
                at: Timestamp::from_ms(at),
            });
        }
        Ok(found)
    }
}
