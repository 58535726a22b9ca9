//! What is taken out of the database again: builds that are over, nars on their way out; and what
//! is counted and noted of it.

use super::{Reader, Store, StoreError, disputes, doing, nars, row};
use crate::core::{
    care::{CareChange, OverBuildToForget, WithdrawnRow},
    graph::{EndResult, LastEnd},
    hash::Sha256,
    id::{AttemptId, BuildId, Name},
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, ToSql, named_params};

/// How many builds one look for finished ones returns: a commit that prunes them holds up others
/// for some milliseconds.
const FINISHED_PER_READ: i64 = 500;
/// How many withdrawn nars one look returns.
const WITHDRAWN_PER_READ: i64 = 1_000;
/// How many nars one look through all of them returns.
const KEEPING_PER_READ: i64 = 10_000;
/// How exactly it is known when a nar was used: what many builds need is not written to for each.
const USE_RESOLUTION_MS: i64 = 24 * 60 * 60 * 1_000;
/// The most attempts, outputs or paths that belong to one thing.
const ROWS_MAX: i64 = 10_000;

impl Store {
    /// Writes down what was done for the good of the database.
    pub(super) fn apply_care(&self, change: &CareChange) -> Result<(), StoreError> {
        let connection = &self.connection;
        match change {
            CareChange::Pruned { build } => prune(connection, *build),
            CareChange::Withdrawn { path, at, remove_at } => {
                let moved = execute(
                    connection,
                    "withdraw a nar",
                    "INSERT INTO withdrawn_nars (path, store_dir, name, nar_hash, nar_bytes,
                        file_hash, file_bytes, content_address, withdrawn_at, remove_at)
                     SELECT path, store_dir, name, nar_hash, nar_bytes, file_hash, file_bytes,
                        content_address, :at, :remove_at FROM nars WHERE path = :path",
                    named_params! {
                        ":path": path.as_bytes(), ":at": at.as_ms(),
                        ":remove_at": remove_at.as_ms(),
                    },
                )?;
                if moved == 0 { Ok(()) } else { release(connection, *path).map(drop) }
            }
            CareChange::Lost { path, at } => {
                // What was never held, or went meanwhile, is not missing for that.
                if release(connection, *path)? == 0 {
                    return Ok(());
                }
                execute(
                    connection,
                    "note a missing output",
                    "INSERT INTO missing_outputs (path, reported_at) SELECT :path, :at
                     WHERE EXISTS (SELECT 1 FROM derivation_outputs WHERE path = :path)
                     ON CONFLICT (path) DO UPDATE SET reported_at = :at",
                    named_params! { ":path": path.as_bytes(), ":at": at.as_ms() },
                )
                .map(drop)
            }
            CareChange::Unpublished { path } => execute(
                connection,
                "have a nar published again",
                "UPDATE nars SET published_at = NULL WHERE path = :path",
                named_params! { ":path": path.as_bytes() },
            )
            .map(drop),
            CareChange::Unlisted { rows, at } => rows.iter().try_for_each(|row| {
                execute(
                    connection,
                    "note that a narinfo is gone",
                    "UPDATE withdrawn_nars SET unlisted_at = :at WHERE id = :id",
                    named_params! { ":id": row.0, ":at": at.as_ms() },
                )
                .map(drop)
            }),
            CareChange::Expunged { rows } => rows.iter().try_for_each(|row| {
                execute(
                    connection,
                    "forget a withdrawn nar",
                    "DELETE FROM withdrawn_nars WHERE id = :id",
                    named_params! { ":id": row.0 },
                )
                .map(drop)
            }),
            CareChange::DisputeForgotten { path, nar_hash } => {
                disputes::forget(connection, *path, nar_hash)
            }
            CareChange::Used { paths, at } => paths.iter().try_for_each(|path| {
                execute(
                    connection,
                    "note the use of a nar",
                    "UPDATE nars SET used_at = :at
                     WHERE path = :path AND coalesce(used_at, verified_at) < :at - :day",
                    named_params! {
                        ":path": path.as_bytes(), ":at": at.as_ms(), ":day": USE_RESOLUTION_MS,
                    },
                )
                .map(drop)
            }),
            CareChange::BackedUp { at, bytes, principal } => execute(
                connection,
                "note a backup",
                "INSERT INTO last_backup (id, at, bytes, principal)
                 VALUES (1, :at, :bytes, :principal)
                 ON CONFLICT (id) DO UPDATE SET at = :at, bytes = :bytes, principal = :principal",
                named_params! {
                    ":at": at.as_ms(), ":bytes": nars::stored_size(*bytes),
                    ":principal": principal.as_str(),
                },
            )
            .map(drop),
        }
    }

    /// Returns how the builds of a derivation ended last, whether its outputs are held or not;
    /// `None` when none succeeded or failed.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn last_end(&self, derivation: PathHash) -> Result<Option<LastEnd>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT b.state_at, b.id, b.state = 'failed' FROM builds b
                 JOIN derivations d ON d.id = b.derivation
                 WHERE d.hash = :hash AND b.state IN ('succeeded', 'failed')
                 ORDER BY b.state_at DESC, b.id DESC LIMIT 1",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": derivation.as_bytes() }, |row| {
                        Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?))
                    })
                    .optional()
            })
            .map_err(doing("read the last end of a derivation"))?;
        let Some((at, build, failed)) = found else { return Ok(None) };
        Ok(Some(LastEnd {
            at: Timestamp::from_ms(at),
            build: BuildId::from_bytes(row::bytes("builds", &build)?),
            result: if failed { EndResult::Failed } else { EndResult::Succeeded },
        }))
    }

    /// Gives so many pages that nothing uses back to the file system, and returns how many are
    /// left.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn give_back(&self, pages: u32) -> Result<u64, StoreError> {
        let sql = doing("give room back");
        let mut vacuum = self
            .connection
            .prepare(&format!("PRAGMA incremental_vacuum({pages})"))
            .map_err(&sql)?;
        // It does one page a row.
        let mut rows = vacuum.query([]).map_err(&sql)?;
        while rows.next().map_err(&sql)?.is_some() {}
        let left: i64 = self
            .connection
            .pragma_query_value(None, "freelist_count", |row| row.get(0))
            .map_err(&sql)?;
        nars::size("the list of free pages", left)
    }
}

fn execute(
    connection: &Connection,
    what: &'static str,
    sql: &str,
    values: &[(&str, &dyn ToSql)],
) -> Result<usize, StoreError> {
    connection
        .prepare_cached(sql)
        .and_then(|mut statement| statement.execute(values))
        .map_err(doing(what))
}

/// Deletes the row of a nar. Returns how many there were.
fn release(connection: &Connection, path: PathHash) -> Result<usize, StoreError> {
    execute(
        connection,
        "release a nar",
        "DELETE FROM nars WHERE path = :path",
        named_params! { ":path": path.as_bytes() },
    )
}

/// Deletes a build that is over, and all that belongs to it; what refers goes first.
fn prune(connection: &Connection, build: BuildId) -> Result<(), StoreError> {
    let id = build.as_bytes();
    execute(
        connection,
        "count a pruned build",
        "INSERT INTO totals (kind, word, number) SELECT 'pruned', state, 1 FROM builds
         WHERE id = :id ON CONFLICT (kind, word) DO UPDATE SET number = number + 1",
        named_params! { ":id": id },
    )?;
    for sql in [
        "DELETE FROM disputed_nars WHERE attempt IN (SELECT id FROM attempts WHERE build = :id)",
        "DELETE FROM attempt_outputs WHERE attempt IN
            (SELECT id FROM attempts WHERE build = :id)",
        "DELETE FROM attempts WHERE build = :id",
        "DELETE FROM build_tags WHERE build = :id",
    ] {
        execute(connection, "prune what belongs to a build", sql, named_params! { ":id": id })?;
    }
    let sql = "DELETE FROM builds WHERE id = :id AND state IN ('succeeded', 'failed', 'canceled')";
    match execute(connection, "prune a build", sql, named_params! { ":id": id })? {
        1 => Ok(()),
        _ => Err(StoreError::Diverged(format!("build {build} is not over in it"))),
    }
}

/// Where a look through finished builds has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinishedMark {
    ended: Timestamp,
    build: BuildId,
}

/// A build that ended long ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What the engine must know.
    pub over: OverBuildToForget,
    /// Its attempts, which have logs.
    pub attempts: Vec<AttemptId>,
}

/// What is known of a nar that may be withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeping {
    /// Its path.
    pub path: StorePath,
    /// What it refers to, itself included if it does.
    pub references: Vec<PathHash>,
    /// How long its file is.
    pub file_bytes: u64,
    /// When it was verified, published or used last.
    pub used: Timestamp,
    /// Whether an attempt made it.
    pub built: bool,
}

/// A nar on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its row.
    pub row: WithdrawnRow,
    /// Its path.
    pub path: StorePath,
    /// SHA-256 of its file.
    pub file_hash: Sha256,
    /// SHA-256 of what the file contains.
    pub nar_hash: Sha256,
    /// The length of its file.
    pub file_bytes: u64,
    /// How its path follows from its content.
    pub content_address: Option<String>,
    /// When its files may go.
    pub remove_at: Timestamp,
}

/// What is counted since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TotalKind {
    /// Builds, by the state they ended in.
    Build,
    /// Attempts, by how they ended.
    Attempt,
    /// Builds that were pruned, by state.
    Pruned,
}

impl TotalKind {
    const fn word(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Attempt => "attempt",
            Self::Pruned => "pruned",
        }
    }
}

/// When the database was last saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupMark {
    /// When.
    pub at: Timestamp,
    /// How long the database was.
    pub bytes: u64,
    /// Who took it.
    pub principal: Name,
}

impl Reader {
    /// Returns builds that were over before a time, those first that ended first, behind a mark;
    /// and the mark behind them, `None` when there are no more.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn finished_before(
        &self,
        before: Timestamp,
        after: Option<FinishedMark>,
    ) -> Result<(Vec<Finished>, Option<FinishedMark>), StoreError> {
        let sql = doing("look for finished builds");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT b.id, b.state_at, d.hash, d.id FROM builds b INDEXED BY builds_over
                 JOIN derivations d ON d.id = b.derivation
                 WHERE b.state IN ('succeeded', 'failed', 'canceled') AND b.state_at < :before
                    AND (b.state_at, b.id) > (:ended, :build)
                 ORDER BY b.state_at, b.id LIMIT :limit",
            )
            .map_err(&sql)?;
        let (ended, build) =
            after.map_or((i64::MIN, [0; 16]), |mark| (mark.ended.as_ms(), *mark.build.as_bytes()));
        let mut rows = select
            .query(named_params! {
                ":before": before.as_ms(), ":ended": ended, ":build": build,
                ":limit": FINISHED_PER_READ,
            })
            .map_err(&sql)?;
        let (mut found, mut mark) = (Vec::new(), None);
        while let Some(row) = rows.next().map_err(&sql)? {
            let build = BuildId::from_bytes(row::bytes("builds", row::blob("builds", row, 0)?)?);
            let ended = Timestamp::from_ms(row::integer("builds", row, 1)?);
            let hash = row::bytes("derivations", row::blob("derivations", row, 2)?)?;
            let outputs = self.output_paths(row::integer("derivations", row, 3)?)?;
            let over = OverBuildToForget { build, derivation: PathHash::from_bytes(hash), outputs };
            found.push(Finished { over, attempts: self.attempts_of(build)? });
            mark = Some(FinishedMark { ended, build });
        }
        Ok((found, mark))
    }

    fn output_paths(&self, derivation: i64) -> Result<Vec<PathHash>, StoreError> {
        self.hashes(
            "SELECT path FROM derivation_outputs WHERE derivation = :of
             ORDER BY position LIMIT :limit",
            &derivation,
        )
    }

    fn attempts_of(&self, build: BuildId) -> Result<Vec<AttemptId>, StoreError> {
        let sql = doing("read attempts");
        let mut select = self
            .connection
            .prepare_cached("SELECT id FROM attempts WHERE build = :of ORDER BY id LIMIT :limit")
            .map_err(&sql)?;
        let mut rows = select
            .query(named_params! { ":of": build.as_bytes(), ":limit": ROWS_MAX })
            .map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let id = row::bytes("attempts", row::blob("attempts", row, 0)?)?;
            found.push(AttemptId::from_bytes(id));
        }
        Ok(found)
    }

    /// Returns the paths that a query with the parameters `:of` and `:limit` finds.
    fn hashes(&self, query: &str, of: &dyn ToSql) -> Result<Vec<PathHash>, StoreError> {
        let sql = doing("read paths");
        let mut select = self.connection.prepare_cached(query).map_err(&sql)?;
        let mut rows =
            select.query(named_params! { ":of": of, ":limit": ROWS_MAX }).map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let hash = row::bytes("derivation_outputs", row::blob("derivation_outputs", row, 0)?)?;
            found.push(PathHash::from_bytes(hash));
        }
        Ok(found)
    }

    /// Returns all nars as those who withdraw see them, in path order behind `after`, a page at a
    /// time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn keepings(&self, after: Option<PathHash>) -> Result<Vec<Keeping>, StoreError> {
        const TABLE: &str = "nars";
        let sql = doing("read nars");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT s.path, n.path, n.name, n.refs, n.file_bytes,
                    max(n.verified_at, coalesce(n.published_at, 0), coalesce(n.used_at, 0)),
                    n.origin = 'built'
                 FROM nars n JOIN store_dirs s ON s.id = n.store_dir
                 WHERE n.path > :after ORDER BY n.path LIMIT :limit",
            )
            .map_err(&sql)?;
        let after: &[u8] = after.as_ref().map_or(&[], |hash| hash.as_bytes());
        let mut rows = select
            .query(named_params! { ":after": after, ":limit": KEEPING_PER_READ })
            .map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let digits = |base: &str| PathHash::parse(base.as_bytes().get(..32)?);
            let refs = row::text(TABLE, row, 3)?.split_whitespace();
            found.push(Keeping {
                path: row::store_path(
                    TABLE,
                    row::text(TABLE, row, 0)?,
                    row::blob(TABLE, row, 1)?,
                    row::text(TABLE, row, 2)?,
                )?,
                references: refs.filter_map(digits).collect(),
                file_bytes: nars::size(TABLE, row::integer(TABLE, row, 4)?)?,
                used: Timestamp::from_ms(row::integer(TABLE, row, 5)?),
                built: row::integer(TABLE, row, 6)? != 0,
            });
        }
        Ok(found)
    }

    /// Tells whether some attempt that is known made a path.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn has_maker(&self, path: PathHash) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM attempt_outputs WHERE path = :path)")
            .and_then(|mut select| {
                select.query_row(named_params! { ":path": path.as_bytes() }, |row| row.get(0))
            })
            .map_err(doing("look for who made a path"))
    }

    /// Tells whether a path was made for a build with this tag.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn was_made_for(&self, path: PathHash, tag: &(String, String)) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM attempt_outputs o JOIN attempts a ON a.id = o.attempt
                    JOIN build_tags t ON t.build = a.build
                    WHERE o.path = :path AND t.name = :name AND t.value = :value)",
            )
            .and_then(|mut select| {
                let values = named_params! {
                    ":path": path.as_bytes(), ":name": tag.0, ":value": tag.1,
                };
                select.query_row(values, |row| row.get(0))
            })
            .map_err(doing("look for the tags of who made a path"))
    }

    /// Returns the derivations with open builds.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn open_derivations(&self) -> Result<Vec<PathHash>, StoreError> {
        let sql = doing("read open builds");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT DISTINCT d.hash FROM builds b JOIN derivations d ON d.id = b.derivation
                 WHERE b.state IN ('deferred', 'queued', 'allocated', 'building', 'receiving')
                 ORDER BY d.hash LIMIT -1",
            )
            .map_err(&sql)?;
        let mut rows = select.query([]).map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let hash = row::bytes("derivations", row::blob("derivations", row, 0)?)?;
            found.push(PathHash::from_bytes(hash));
        }
        Ok(found)
    }

    /// Returns withdrawn nars whose narinfos may still be there, some at a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn listed_withdrawn(&self) -> Result<Vec<Withdrawn>, StoreError> {
        self.withdrawn_where("w.unlisted_at IS NULL AND :now NOTNULL", Timestamp::from_ms(0))
    }

    /// Returns withdrawn nars whose files may go, some at a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn due_withdrawn(&self, now: Timestamp) -> Result<Vec<Withdrawn>, StoreError> {
        self.withdrawn_where("w.unlisted_at IS NOT NULL AND w.remove_at <= :now", now)
    }

    fn withdrawn_where(
        &self,
        condition: &str,
        now: Timestamp,
    ) -> Result<Vec<Withdrawn>, StoreError> {
        const TABLE: &str = "withdrawn_nars";
        let sql = doing("read withdrawn nars");
        let mut select = self
            .connection
            .prepare_cached(&format!(
                "SELECT w.id, s.path, w.path, w.name, w.file_hash, w.nar_hash, w.file_bytes,
                    w.content_address, w.remove_at
                 FROM withdrawn_nars w JOIN store_dirs s ON s.id = w.store_dir
                 WHERE {condition} ORDER BY w.id LIMIT :limit"
            ))
            .map_err(&sql)?;
        let mut rows = select
            .query(named_params! { ":now": now.as_ms(), ":limit": WITHDRAWN_PER_READ })
            .map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            found.push(Withdrawn {
                row: WithdrawnRow(row::integer(TABLE, row, 0)?),
                path: row::store_path(
                    TABLE,
                    row::text(TABLE, row, 1)?,
                    row::blob(TABLE, row, 2)?,
                    row::text(TABLE, row, 3)?,
                )?,
                file_hash: row::sha256(TABLE, row::blob(TABLE, row, 4)?)?,
                nar_hash: row::sha256(TABLE, row::blob(TABLE, row, 5)?)?,
                file_bytes: nars::size(TABLE, row::integer(TABLE, row, 6)?)?,
                content_address: row::optional_text(TABLE, row, 7)?.map(str::to_owned),
                remove_at: Timestamp::from_ms(row::integer(TABLE, row, 8)?),
            });
        }
        Ok(found)
    }

    /// Tells whether the narinfo of a withdrawn path may still be there.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn is_being_withdrawn(&self, path: PathHash) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM withdrawn_nars
                    WHERE path = :path AND unlisted_at IS NULL)",
            )
            .and_then(|mut select| {
                select.query_row(named_params! { ":path": path.as_bytes() }, |row| row.get(0))
            })
            .map_err(doing("look for a withdrawn nar"))
    }

    /// Tells whether a file is one of a withdrawn nar.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn is_withdrawn_file(&self, file_hash: &Sha256) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM withdrawn_nars WHERE file_hash = :hash)")
            .and_then(|mut select| {
                select.query_row(named_params! { ":hash": file_hash.as_bytes() }, |row| row.get(0))
            })
            .map_err(doing("look for a withdrawn nar"))
    }

    /// Returns how many nars are withdrawn, and how long their files are together.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn withdrawn(&self) -> Result<(u64, u64), StoreError> {
        const TABLE: &str = "withdrawn_nars";
        let (number, bytes): (i64, i64) = self
            .connection
            .prepare_cached("SELECT count(*), coalesce(sum(file_bytes), 0) FROM withdrawn_nars")
            .and_then(|mut select| select.query_row([], |row| Ok((row.get(0)?, row.get(1)?))))
            .map_err(doing("count withdrawn nars"))?;
        Ok((nars::size(TABLE, number)?, nars::size(TABLE, bytes)?))
    }

    /// Returns what is counted since the beginning, by word.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn totals(&self, kind: TotalKind) -> Result<Vec<(String, u64)>, StoreError> {
        let sql = doing("read totals");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT word, number FROM totals WHERE kind = :kind ORDER BY word LIMIT :limit",
            )
            .map_err(&sql)?;
        let mut rows = select
            .query(named_params! { ":kind": kind.word(), ":limit": ROWS_MAX })
            .map_err(&sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(&sql)? {
            let number = nars::size("totals", row::integer("totals", row, 1)?)?;
            found.push((row::text("totals", row, 0)?.to_owned(), number));
        }
        Ok(found)
    }

    /// Returns when the database was last saved.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn last_backup(&self) -> Result<Option<BackupMark>, StoreError> {
        const TABLE: &str = "last_backup";
        let found = self
            .connection
            .prepare_cached("SELECT at, bytes, principal FROM last_backup")
            .and_then(|mut select| {
                select
                    .query_row([], |row| {
                        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?))
                    })
                    .optional()
            })
            .map_err(doing("read when the database was saved"))?;
        let Some((at, bytes, principal)) = found else { return Ok(None) };
        let principal: String = principal;
        Ok(Some(BackupMark {
            at: Timestamp::from_ms(at),
            bytes: nars::size(TABLE, bytes)?,
            principal: row::parsed(TABLE, &principal)?,
        }))
    }

    /// Returns when the first build that is known was asked for.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn first_submission(&self) -> Result<Option<Timestamp>, StoreError> {
        self.connection
            .prepare_cached("SELECT submitted_at FROM builds ORDER BY id LIMIT 1")
            .and_then(|mut select| select.query_row([], |row| row.get(0)).optional())
            .map(|at: Option<i64>| at.map(Timestamp::from_ms))
            .map_err(doing("look for the first build"))
    }

    /// Returns how many attempts that an agent was given since a time ended through the fault of
    /// its machine or its connection, and how many ended in all.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn faults_of_agent(
        &self,
        agent: &Name,
        since: Timestamp,
    ) -> Result<(u64, u64), StoreError> {
        let (faults, all): (i64, i64) = self
            .connection
            .prepare_cached(
                "SELECT count(*) FILTER (WHERE ended IN ('disk-full', 'daemon-unreachable',
                    'setup-refused', 'attempt-lost', 'agent-lost', 'upload-failed', 'rejected')),
                    count(ended)
                 FROM attempts WHERE agent = :agent AND allocated_at >= :since",
            )
            .and_then(|mut select| {
                let values = named_params! { ":agent": agent.as_str(), ":since": since.as_ms() };
                select.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .map_err(doing("count the ends of attempts"))?;
        Ok((nars::size("attempts", faults)?, nars::size("attempts", all)?))
    }
}
