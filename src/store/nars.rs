//! The table of verified nars.

use super::{Reader, StoreError, disputes, doing, row};
use crate::core::{
    change::{NarOrigin, NarRecord},
    hash::Sha256,
    path_info::PathInfo,
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

const TABLE: &str = "nars";

/// How many unpublished nars one read returns.
pub(super) const UNPUBLISHED_PER_READ: i64 = 10_000;

const COLUMNS: &str = "s.path, n.path, n.name, nar_hash, nar_bytes, file_hash, file_bytes, refs,
    deriver, content_address, signatures, origin, verified_at";

/// Returns a size as the database keeps it. SQLite's integers end at 2^63, no nar comes near.
pub(super) fn stored_size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Returns a size that the database kept.
pub(super) fn size(table: &'static str, stored: i64) -> Result<u64, StoreError> {
    u64::try_from(stored)
        .map_err(|_| StoreError::Damaged { table, what: format!("a size of {stored}") })
}

/// Inserts a nar, unless one is held under the path; what is held stays. Attempts that were said to
/// have made something else of the path are disputed from now on.
pub(super) fn insert(
    connection: &Connection,
    dir: i64,
    record: &NarRecord,
) -> Result<(), StoreError> {
    let info = &record.info;
    let refs: Vec<String> = info.references.iter().map(StorePath::base_name).collect();
    let inserted = connection
        .prepare_cached(
            "INSERT INTO nars (path, store_dir, name, nar_hash, nar_bytes, file_hash, file_bytes,
                refs, deriver, content_address, signatures, origin, verified_at)
             VALUES (:path, :store_dir, :name, :nar_hash, :nar_bytes, :file_hash, :file_bytes,
                :refs, :deriver, :content_address, :signatures, :origin, :at)
             ON CONFLICT (path) DO NOTHING",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":path": info.path.hash().as_bytes(), ":store_dir": dir,
                ":name": info.path.name(), ":nar_hash": info.nar_hash.as_bytes(),
                ":nar_bytes": stored_size(info.nar_bytes),
                ":file_hash": record.file_hash.as_bytes(),
                ":file_bytes": stored_size(record.file_bytes), ":refs": refs.join(" "),
                ":deriver": info.deriver.as_ref().map(StorePath::base_name),
                ":content_address": info.content_address,
                ":signatures": info.signatures.join("\n"), ":origin": record.origin.word(),
                ":at": record.at.as_ms(),
            })
        })
        .map_err(doing("insert a nar"))?;
    if inserted == 1 {
        disputes::mark_differing(connection, info.path.hash(), &info.nar_hash)?;
    }
    connection
        .prepare_cached("DELETE FROM missing_outputs WHERE path = :path")
        .and_then(|mut delete| {
            delete.execute(named_params! { ":path": info.path.hash().as_bytes() })
        })
        .map(drop)
        .map_err(doing("note that a path is held"))
}

/// Notes that an output could be found nowhere.
pub(super) fn insert_missing(
    connection: &Connection,
    path: PathHash,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO missing_outputs (path, reported_at) VALUES (:path, :at)
             ON CONFLICT (path) DO UPDATE SET reported_at = :at",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! { ":path": path.as_bytes(), ":at": at.as_ms() })
        })
        .map(drop)
        .map_err(doing("note a missing output"))
}

/// Notes that a path is visible in the published tree.
pub(super) fn mark_published(
    connection: &Connection,
    path: PathHash,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE nars SET published_at = :at WHERE path = :path AND published_at IS NULL",
        )
        .and_then(|mut update| {
            update.execute(named_params! { ":path": path.as_bytes(), ":at": at.as_ms() })
        })
        .map(drop)
        .map_err(doing("note a publication"))
}

impl Reader {
    /// Returns the nar held under a path.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn nar(&self, path: PathHash) -> Result<Option<NarRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM nars n JOIN store_dirs s ON s.id = n.store_dir
             WHERE n.path = :path"
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":path": path.as_bytes() }, |row| Ok(read(row)))
                    .optional()
            })
            .map_err(doing("read a nar"))?
            .transpose()
    }

    /// Tells whether a nar is held under a path.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn holds(&self, path: PathHash) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM nars WHERE path = :path)")
            .and_then(|mut select| {
                select.query_row(named_params! { ":path": path.as_bytes() }, |row| row.get(0))
            })
            .map_err(doing("look for a nar"))
    }

    /// Returns when a path became visible in the published tree.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn published_at(&self, path: PathHash) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<Option<i64>> = self
            .connection
            .prepare_cached("SELECT published_at FROM nars WHERE path = :path")
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":path": path.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("look for a publication"))?;
        Ok(at.flatten().map(Timestamp::from_ms))
    }

    /// Returns which files nars are in, in path order behind `after`, a page at a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn nar_files(
        &self,
        after: Option<PathHash>,
    ) -> Result<Vec<(PathHash, Sha256)>, StoreError> {
        let sql = doing("read the files of nars");
        let after: &[u8] = after.as_ref().map_or(&[], |hash| hash.as_bytes());
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT path, file_hash FROM nars WHERE path > :after ORDER BY path LIMIT :limit",
            )
            .map_err(&sql)?;
        let mut rows = select
            .query(named_params! { ":after": after, ":limit": UNPUBLISHED_PER_READ })
            .map_err(&sql)?;
        let mut files = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let path: Vec<u8> = row.get(0).map_err(&sql)?;
            let file: Vec<u8> = row.get(1).map_err(&sql)?;
            let path = PathHash::from_bytes(row::bytes(TABLE, &path)?);
            files.push((path, row::sha256(TABLE, &file)?));
        }
        Ok(files)
    }

    /// Returns nars that may be published and are not, in path order behind `after`, a page at
    /// a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn unpublished(&self, after: Option<PathHash>) -> Result<Vec<NarRecord>, StoreError> {
        self.nars_where("published_at IS NULL AND origin <> 'trusted'", after)
    }

    /// Returns all nars, in path order behind `after`, a page at a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn nars(&self, after: Option<PathHash>) -> Result<Vec<NarRecord>, StoreError> {
        self.nars_where("1", after)
    }

    /// Returns nars that are published, in path order behind `after`, a page at a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn published(&self, after: Option<PathHash>) -> Result<Vec<NarRecord>, StoreError> {
        self.nars_where("published_at IS NOT NULL", after)
    }

    fn nars_where(
        &self,
        condition: &str,
        after: Option<PathHash>,
    ) -> Result<Vec<NarRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM nars n JOIN store_dirs s ON s.id = n.store_dir
             WHERE {condition} AND n.path > :after ORDER BY n.path LIMIT :limit"
        );
        let after: &[u8] = after.as_ref().map_or(&[], |hash| hash.as_bytes());
        let mut select = self.connection.prepare_cached(&sql).map_err(doing("read nars"))?;
        let rows = select
            .query_map(named_params! { ":after": after, ":limit": UNPUBLISHED_PER_READ }, |row| {
                Ok(read(row))
            })
            .map_err(doing("read nars"))?;
        let mut nars = Vec::new();
        for nar in rows {
            nars.push(nar.map_err(doing("read nars"))??);
        }
        Ok(nars)
    }
}

/// Reads a nar from a row of [`COLUMNS`].
pub(super) fn read(row: &Row<'_>) -> Result<NarRecord, StoreError> {
    let sql = doing("read a nar");
    let blob = |column: usize| row.get::<_, Vec<u8>>(column);
    let text = |column: usize| row.get::<_, String>(column);
    let size = |column: usize| row.get::<_, i64>(column);
    let dir = text(0).map_err(&sql)?;
    let base = |base: &str| row::parsed::<StorePath>(TABLE, &format!("{dir}/{base}"));
    let refs = text(7).map_err(&sql)?;
    let deriver: Option<String> = row.get(8).map_err(&sql)?;
    let origin = match text(11).map_err(&sql)?.as_str() {
        "built" => NarOrigin::Built,
        "content-addressed" => NarOrigin::ContentAddressed,
        "trusted" => NarOrigin::Trusted,
        other => {
            let what = format!("‘{other}’ is no origin");
            return Err(StoreError::Damaged { table: TABLE, what });
        }
    };
    let bytes = |stored: i64| self::size(TABLE, stored);
    Ok(NarRecord {
        info: PathInfo {
            path: row::store_path(TABLE, &dir, &blob(1).map_err(&sql)?, &text(2).map_err(&sql)?)?,
            nar_hash: row::sha256(TABLE, &blob(3).map_err(&sql)?)?,
            nar_bytes: bytes(size(4).map_err(&sql)?)?,
            references: refs.split_whitespace().map(base).collect::<Result<_, _>>()?,
            deriver: deriver.as_deref().map(base).transpose()?,
            content_address: row.get(9).map_err(&sql)?,
            signatures: text(10).map_err(&sql)?.lines().map(str::to_owned).collect(),
        },
        file_hash: row::sha256(TABLE, &blob(5).map_err(&sql)?)?,
        file_bytes: bytes(size(6).map_err(&sql)?)?,
        origin,
        at: Timestamp::from_ms(size(12).map_err(&sql)?),
    })
}
