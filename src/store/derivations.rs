//! The tables of derivations: written once, never changed.

use super::{Reader, Store, StoreError, doing, row};
use crate::core::{
    change::DerivationRecord,
    hash::Sha256,
    plan::Class,
    store_path::{PathHash, StoreDir, StorePath},
};
use rusqlite::{OptionalExtension as _, named_params};

/// The zstd level of derivation texts: 400 MB/s, and a third of the size.
const TEXT_LEVEL: i32 = 1;
/// Compresses texts. To make what zstd works with costs more than a text, so it is kept.
pub(super) struct Texts(zstd::bulk::Compressor<'static>);

impl Texts {
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn new() -> std::io::Result<Self> {
        zstd::bulk::Compressor::new(TEXT_LEVEL).map(Self)
    }

    fn compress(&mut self, text: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.compress(text)
    }
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Texts")
    }
}

/// The longest derivation text read back, as a guard against a damaged frame.
const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many derivations of one output are looked up. The most known is some dozens.
const CLAIMANTS_MAX: i64 = 100;
const TABLE: &str = "derivations";

impl Store {
    /// Returns the row of a store directory, made when absent.
    pub(super) fn store_dir(&mut self, dir: &StoreDir) -> Result<i64, StoreError> {
        if let Some(id) = self.dirs.get(dir.as_str()) {
            return Ok(*id);
        }
        let id: i64 = self
            .connection
            .query_row(
                "INSERT INTO store_dirs (path) VALUES (:path)
                 ON CONFLICT (path) DO UPDATE SET path = :path RETURNING id",
                named_params! { ":path": dir.as_str() },
                |row| row.get(0),
            )
            .map_err(doing("note a store directory"))?;
        self.dirs.insert(dir.as_str().to_owned(), id);
        Ok(id)
    }

    fn class(&mut self, class: &Class) -> Result<i64, StoreError> {
        if let Some(id) = self.classes.get(class) {
            return Ok(*id);
        }
        let text = serde_json::to_string(class)
            .map_err(|error| StoreError::Diverged(format!("a class cannot be written: {error}")))?;
        let id: i64 = self
            .connection
            .query_row(
                "INSERT INTO classes (class) VALUES (:class)
                 ON CONFLICT (class) DO UPDATE SET class = :class RETURNING id",
                named_params! { ":class": text },
                |row| row.get(0),
            )
            .map_err(doing("note a class"))?;
        self.classes.insert(class.clone(), id);
        Ok(id)
    }

    /// Inserts a derivation, unless it is known.
    pub(super) fn insert_derivation(
        &mut self,
        record: &DerivationRecord,
    ) -> Result<(), StoreError> {
        let dir = self.store_dir(record.path.dir())?;
        let class = self.class(&record.class)?;
        let inputs: Vec<u8> = record.inputs.iter().flat_map(|hash| *hash.as_bytes()).collect();
        let inserted = self
            .connection
            .prepare_cached(
                "INSERT INTO derivations (hash, store_dir, name, class, inputs, modulo, received_at)
                 VALUES (:hash, :store_dir, :name, :class, :inputs, :modulo, :at)
                 ON CONFLICT (hash) DO NOTHING",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! {
                    ":hash": record.path.hash().as_bytes(), ":store_dir": dir,
                    ":name": record.path.name(), ":class": class, ":inputs": inputs,
                    ":modulo": record.modulo.as_bytes(), ":at": record.at.as_ms(),
                })
            })
            .map_err(doing("insert a derivation"))?;
        if inserted == 0 {
            return Ok(());
        }
        let id = self.connection.last_insert_rowid();
        let text = self.texts.compress(&record.text).map_err(|error| {
            StoreError::Diverged(format!("{} cannot be compressed: {error}", record.path))
        })?;
        self.connection
            .prepare_cached(
                "INSERT INTO derivation_texts (derivation, text) VALUES (:derivation, :text)",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! { ":derivation": id, ":text": text })
            })
            .map_err(doing("insert the text of a derivation"))?;
        for (position, (output, path)) in (0i64..).zip(&record.outputs) {
            self.connection
                .prepare_cached(
                    "INSERT INTO derivation_outputs (derivation, position, output, path, name)
                     VALUES (:derivation, :position, :output, :path, :name)",
                )
                .and_then(|mut insert| {
                    insert.execute(named_params! {
                        ":derivation": id, ":position": position, ":output": output,
                        ":path": path.hash().as_bytes(), ":name": path.name(),
                    })
                })
                .map_err(doing("insert an output"))?;
        }
        Ok(())
    }
}

impl Reader {
    /// Returns the text of a derivation; `None` when it is not known.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn derivation_text(&self, hash: PathHash) -> Result<Option<Vec<u8>>, StoreError> {
        let text: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT text FROM derivation_texts
                 JOIN derivations ON derivations.id = derivation WHERE hash = :hash",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": hash.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("read the text of a derivation"))?;
        let Some(text) = text else { return Ok(None) };
        zstd::bulk::decompress(&text, TEXT_BYTES_MAX).map(Some).map_err(|error| {
            StoreError::Damaged { table: "derivation_texts", what: format!("{hash:?}: {error}") }
        })
    }

    /// Returns the hash modulo of a derivation; `None` when it is not known.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn modulo(&self, hash: PathHash) -> Result<Option<Sha256>, StoreError> {
        let modulo: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT modulo FROM derivations WHERE hash = :hash")
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": hash.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("read a derivation"))?;
        modulo.map(|blob| row::sha256(TABLE, &blob)).transpose()
    }

    /// Returns the whole path of the derivation with this hash; `None` when it is not known.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn derivation_path(&self, hash: PathHash) -> Result<Option<StorePath>, StoreError> {
        let columns: Option<(String, String)> = self
            .connection
            .prepare_cached(
                "SELECT s.path, d.name FROM derivations d
                 JOIN store_dirs s ON s.id = d.store_dir WHERE d.hash = :hash",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": hash.as_bytes() }, |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()
            })
            .map_err(doing("read a derivation"))?;
        columns.map(|(dir, name)| row::store_path(TABLE, &dir, hash.as_bytes(), &name)).transpose()
    }

    /// Returns derivations that have an output with this hash, the first ones that came.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn derivations_of(&self, output: PathHash) -> Result<Vec<StorePath>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT s.path, d.hash, d.name FROM derivation_outputs o
                 JOIN derivations d ON d.id = o.derivation
                 JOIN store_dirs s ON s.id = d.store_dir
                 WHERE o.path = :path ORDER BY d.id LIMIT :limit",
            )
            .map_err(doing("look for derivations of an output"))?;
        let rows = select
            .query_map(
                named_params! { ":path": output.as_bytes(), ":limit": CLAIMANTS_MAX },
                |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?)),
            )
            .map_err(doing("look for derivations of an output"))?;
        let mut derivations = Vec::new();
        for columns in rows {
            let (dir, hash, name): (_, _, String) =
                columns.map_err(doing("look for derivations of an output"))?;
            derivations.push(row::store_path(TABLE, &dir, &hash, &name)?);
        }
        Ok(derivations)
    }

    /// Returns the outputs of a derivation, in its order; none when it is not known.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn outputs_of(&self, hash: PathHash) -> Result<Vec<(String, StorePath)>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT o.output, o.path, o.name, s.path FROM derivations d
                 JOIN derivation_outputs o ON o.derivation = d.id
                 JOIN store_dirs s ON s.id = d.store_dir
                 WHERE d.hash = :hash ORDER BY o.position LIMIT 10000",
            )
            .map_err(doing("read outputs"))?;
        let rows = statement
            .query_map(named_params! { ":hash": hash.as_bytes() }, |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, Vec<u8>>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, String>(3)?,
                ))
            })
            .map_err(doing("read outputs"))?;
        let mut outputs = Vec::new();
        for columns in rows {
            let (output, path, name, dir) = columns.map_err(doing("read outputs"))?;
            outputs.push((output, row::store_path("derivation_outputs", &dir, &path, &name)?));
        }
        Ok(outputs)
    }
}
