//! The table of small nars that have no file yet: durable with their rows, written out later.

use super::{Reader, StoreError, doing, nars, row};
use crate::core::{
    change::{NarFile, UnwrittenMark},
    hash::Sha256,
    store_path::PathHash,
};
use rusqlite::{Connection, OptionalExtension as _, named_params};

const TABLE: &str = "unwritten_nars";

/// How many files one read returns.
const FILES_PER_READ: i64 = 2_000;
/// How many bytes of files one read returns, and at most one file more.
const BYTES_PER_READ: usize = 8 << 20;

/// Keeps the file of a nar until it is written out.
pub(super) fn insert(connection: &Connection, file: &NarFile) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT INTO unwritten_nars (file_hash, file) VALUES (:hash, :file)")
        .and_then(|mut insert| {
            insert
                .execute(named_params! { ":hash": file.hash.as_bytes(), ":file": &file.bytes[..] })
        })
        .map(drop)
        .map_err(doing("keep the file of a nar"))
}

/// Forgets files that were written out.
pub(super) fn remove(connection: &Connection, through: UnwrittenMark) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM unwritten_nars WHERE id <= :through")
        .and_then(|mut delete| delete.execute(named_params! { ":through": through.0 }))
        .map(drop)
        .map_err(doing("forget files that were written out"))
}

/// Notes the signatures of a nar that was committed without.
pub(super) fn sign(
    connection: &Connection,
    path: PathHash,
    signatures: &[String],
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE nars SET signatures = :signatures WHERE path = :path AND signatures = ''",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":path": path.as_bytes(), ":signatures": signatures.join("\n"),
            })
        })
        .map(drop)
        .map_err(doing("note the signatures of a nar"))
}

impl Reader {
    /// Returns a file that is not in the depot yet; `None` means that it is there if it is held at
    /// all, because a file leaves this table only when it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn unwritten_file(&self, hash: &Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        self.connection
            .prepare_cached("SELECT file FROM unwritten_nars WHERE file_hash = :hash LIMIT 1")
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": hash.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("read the file of a nar"))
    }

    /// Returns the files that came first and are not in the depot yet, a few thousand or some MiB
    /// at a time, and how far that is.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn unwritten(&self) -> Result<Option<(UnwrittenMark, Vec<NarFile>)>, StoreError> {
        let sql = doing("read the files of nars");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT id, file_hash, file FROM unwritten_nars ORDER BY id LIMIT :limit",
            )
            .map_err(&sql)?;
        let mut rows = select.query(named_params! { ":limit": FILES_PER_READ }).map_err(&sql)?;
        let (mut mark, mut files, mut bytes) = (None, Vec::new(), 0);
        while bytes < BYTES_PER_READ
            && let Some(row) = rows.next().map_err(&sql)?
        {
            mark = Some(UnwrittenMark(row.get(0).map_err(&sql)?));
            let hash: Vec<u8> = row.get(1).map_err(&sql)?;
            let file: Vec<u8> = row.get(2).map_err(&sql)?;
            bytes += file.len();
            files.push(NarFile { hash: row::sha256(TABLE, &hash)?, bytes: file.into() });
        }
        Ok(mark.map(|mark| (mark, files)))
    }

    /// Returns the length of all files together that are not in the depot yet, in bytes.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn unwritten_bytes(&self) -> Result<u64, StoreError> {
        let sum: i64 = self
            .connection
            .prepare_cached("SELECT coalesce(sum(length(file)), 0) FROM unwritten_nars")
            .and_then(|mut select| select.query_row([], |row| row.get(0)))
            .map_err(doing("count the bytes of files"))?;
        nars::size(TABLE, sum)
    }
}
