//! Queries of the commands: what is shown of builds, attempts and outputs.

use super::{Reader, StoreError, doing, row};
use crate::core::{
    change::Limits,
    engine::Extras,
    hash::Sha256,
    id::{AttemptId, BuildId},
    outcome::AttemptEnd,
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use rusqlite::{OptionalExtension as _, Row, ToSql, named_params};
use std::collections::BTreeSet;

/// The most rows one query of builds returns; more are asked for by `after`.
pub const BUILDS_PER_READ_MAX: usize = 10_000;
/// The most rows any other list of one build has.
const ROWS_MAX: i64 = 10_000;

/// A build as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRow {
    /// Its id.
    pub id: BuildId,
    /// The derivation.
    pub derivation: StorePath,
    /// What its agents must offer.
    pub class: crate::core::plan::Class,
    /// `asked` or `implied`.
    pub origin: String,
    /// Who asked for it.
    pub submitter: String,
    /// The submitter's own name for the request.
    pub key: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// When it was asked for.
    pub submitted: Timestamp,
    /// How long it may run and be silent.
    pub limits: Limits,
    /// The stored state's word; of open builds the engine knows more.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// The attempt that has it or ended it.
    pub attempt: Option<AttemptId>,
    /// The agent of that attempt.
    pub agent: Option<String>,
    /// When a deferred build is queued again.
    pub deferred_until: Option<Timestamp>,
    /// What few builds have.
    pub extras: Extras,
}

/// An attempt as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its id.
    pub id: AttemptId,
    /// Of which build.
    pub build: BuildId,
    /// By which agent.
    pub agent: String,
    /// The state's word.
    pub state: String,
    /// When it was given to the agent.
    pub allocated: Timestamp,
    /// When the builder started.
    pub started: Option<Timestamp>,
    /// When the outputs existed on the agent.
    pub built: Option<Timestamp>,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// How it ended.
    pub end: Option<AttemptEnd>,
    /// Whether its outputs differ from those that are held.
    pub disputed: bool,
    /// Whether the agent emulated the system.
    pub emulated: bool,
    /// When its agent came back with it after it had been given up, the last time.
    pub readopted: Option<Timestamp>,
    /// When its agent said what it had made instead of sending it.
    pub reported: Option<Timestamp>,
}

/// An output of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRow {
    /// Its name in the derivation.
    pub output: String,
    /// The hash of its path.
    pub path: PathHash,
    /// SHA-256 of its nar.
    pub nar_hash: Sha256,
    /// The length of its nar, in bytes.
    pub nar_bytes: u64,
}

/// Who built a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathBuild {
    /// The build.
    pub build: BuildId,
    /// The attempt.
    pub attempt: AttemptId,
    /// The agent.
    pub agent: String,
    /// Whether this is only what the agent said.
    pub reported: bool,
    /// What that attempt made.
    pub output: OutputRow,
}

/// Which builds a query is for. All conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct BuildFilter {
    /// Stored states, by word; any when empty.
    pub states: Vec<String>,
    /// Just these; any when absent.
    pub ids: Option<Vec<BuildId>>,
    /// Tags that it must have.
    pub tags: Vec<(String, String)>,
    /// The system of its derivation.
    pub system: Option<String>,
    /// The agent that has it or ended it.
    pub agent: Option<String>,
    /// A glob that the path of its derivation matches (`*`, `?`, `[…]`).
    pub derivation: Option<String>,
    /// Asked for at this time or later.
    pub since: Option<Timestamp>,
    /// Behind this one, in order of creation.
    pub after: Option<BuildId>,
    /// Before this one, in order of creation.
    pub before: Option<BuildId>,
    /// Which ones, when there are more than `limit`.
    pub first: First,
    /// How many; at most [`BUILDS_PER_READ_MAX`].
    pub limit: usize,
}

impl BuildFilter {
    /// Returns the words of all stored states that are not final.
    #[must_use]
    pub fn open_states() -> Vec<String> {
        OPEN_STATES.map(str::to_owned).to_vec()
    }
}

/// From which end builds are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum First {
    /// In order of creation.
    #[default]
    Oldest,
    /// Against the order of creation.
    Newest,
}

/// The states of builds that are not final, in the order of the index `builds_open`.
const OPEN_STATES: [&str; 5] = ["deferred", "queued", "allocated", "building", "receiving"];

/// The states of the index `builds_unsuccessful`, in its order.
const UNSUCCESSFUL_STATES: [&str; 2] = ["failed", "canceled"];

const BUILD_COLUMNS: &str = "b.id, s.path, d.hash, d.name, c.class, b.origin, b.submitter, b.key,
    b.priority, b.submitted_at, b.timeout_ms, b.max_silent_ms, b.state, b.state_at, b.attempt,
    a.agent, b.deferred_until, b.demands, b.not_before, b.held_by, b.held_at, b.failures";
const BUILD_TABLES: &str = "builds b JOIN derivations d ON d.id = b.derivation
    JOIN store_dirs s ON s.id = d.store_dir JOIN classes c ON c.id = d.class
    LEFT JOIN attempts a ON a.id = b.attempt";

impl Reader {
    /// Returns a build; `None` when there is no such.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn build(&self, id: BuildId) -> Result<Option<BuildRow>, StoreError> {
        let filter = BuildFilter { ids: Some(vec![id]), limit: 1, ..BuildFilter::default() };
        Ok(self.builds(&filter)?.pop())
    }

    /// Returns builds in the order that the filter names.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn builds(&self, filter: &BuildFilter) -> Result<Vec<BuildRow>, StoreError> {
        if filter.states.len() < 2 || filter.ids.is_some() {
            return self.builds_of_one_state(filter);
        }
        // Within one state, an index has them in order, so that only those are read that are
        // returned; all states together would have to be read whole and sorted.
        let mut builds = Vec::new();
        let states: BTreeSet<&String> = filter.states.iter().collect();
        for state in states {
            let of_one = BuildFilter { states: vec![state.clone()], ..filter.clone() };
            builds.extend(self.builds_of_one_state(&of_one)?);
        }
        builds.sort_by_key(|build| build.id);
        if filter.first == First::Newest {
            builds.reverse();
        }
        builds.truncate(filter.limit.min(BUILDS_PER_READ_MAX));
        Ok(builds)
    }

    fn builds_of_one_state(&self, filter: &BuildFilter) -> Result<Vec<BuildRow>, StoreError> {
        let (sql, values) = builds_sql(filter);
        let mut select = self.connection.prepare(&sql).map_err(doing("read builds"))?;
        let values: Vec<&dyn ToSql> = values.iter().map(Box::as_ref).collect();
        let rows = select
            .query_map(values.as_slice(), |row| Ok(read_build(row)))
            .map_err(doing("read builds"))?;
        let mut builds = Vec::new();
        for build in rows {
            builds.push(build.map_err(doing("read builds"))??);
        }
        Ok(builds)
    }

    /// Returns the last failed build of a derivation; `None` when none ever failed.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn last_failed(&self, derivation: PathHash) -> Result<Option<BuildId>, StoreError> {
        let build: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT b.id FROM builds b JOIN derivations d ON d.id = b.derivation
                 WHERE d.hash = :hash AND b.state = 'failed'
                    AND b.state IN ('succeeded', 'failed')
                 ORDER BY b.state_at DESC LIMIT 1",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": derivation.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("look for a failed build"))?;
        build.map(|id| row::bytes("builds", &id).map(BuildId::from_bytes)).transpose()
    }

    /// Returns the tags of a build.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn tags(&self, build: BuildId) -> Result<Vec<(String, String)>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT name, value FROM build_tags WHERE build = :build
                 ORDER BY name, value LIMIT :limit",
            )
            .map_err(doing("read tags"))?;
        let rows = select
            .query_map(named_params! { ":build": build.as_bytes(), ":limit": ROWS_MAX }, |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(doing("read tags"))?;
        rows.collect::<Result<_, _>>().map_err(doing("read tags"))
    }

    /// Returns the attempts of a build, the first one first.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn attempts(&self, build: BuildId) -> Result<Vec<AttemptRow>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT id, build, agent, state, allocated_at, started_at, built_at, ended_at,
                    detail, disputed, readopted_at, reported_at, emulated
                 FROM attempts WHERE build = :build ORDER BY allocated_at, id LIMIT :limit",
            )
            .map_err(doing("read attempts"))?;
        let rows = select
            .query_map(named_params! { ":build": build.as_bytes(), ":limit": ROWS_MAX }, |row| {
                Ok(read_attempt(row))
            })
            .map_err(doing("read attempts"))?;
        let mut attempts = Vec::new();
        for attempt in rows {
            attempts.push(attempt.map_err(doing("read attempts"))??);
        }
        Ok(attempts)
    }

    /// Returns the outputs that an attempt made.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn attempt_outputs(&self, attempt: AttemptId) -> Result<Vec<OutputRow>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT output, path, nar_hash, nar_bytes FROM attempt_outputs
                 WHERE attempt = :attempt ORDER BY output LIMIT :limit",
            )
            .map_err(doing("read outputs"))?;
        let rows = select
            .query_map(
                named_params! { ":attempt": attempt.as_bytes(), ":limit": ROWS_MAX },
                |row| Ok(read_output(row, 0)),
            )
            .map_err(doing("read outputs"))?;
        let mut outputs = Vec::new();
        for output in rows {
            outputs.push(output.map_err(doing("read outputs"))??);
        }
        Ok(outputs)
    }

    /// Returns who built a path, the latest first.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn builds_of_path(&self, path: PathHash) -> Result<Vec<PathBuild>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT o.output, o.path, o.nar_hash, o.nar_bytes, a.id, a.build, a.agent,
                    a.reported_at IS NOT NULL AND a.ended IS NOT 'succeeded'
                 FROM attempt_outputs o JOIN attempts a ON a.id = o.attempt
                 WHERE o.path = :path ORDER BY a.ended_at DESC, a.id LIMIT :limit",
            )
            .map_err(doing("read who built a path"))?;
        let rows = select
            .query_map(named_params! { ":path": path.as_bytes(), ":limit": ROWS_MAX }, |row| {
                let ids = (row.get::<_, Vec<u8>>(4)?, row.get::<_, Vec<u8>>(5)?);
                Ok((read_output(row, 0), ids, row.get::<_, String>(6)?, row.get::<_, bool>(7)?))
            })
            .map_err(doing("read who built a path"))?;
        let mut builds = Vec::new();
        for columns in rows {
            let (output, (attempt, build), agent, reported) =
                columns.map_err(doing("read who built a path"))?;
            builds.push(PathBuild {
                build: BuildId::from_bytes(row::bytes("attempts", &build)?),
                attempt: AttemptId::from_bytes(row::bytes("attempts", &attempt)?),
                agent,
                reported,
                output: output?,
            });
        }
        Ok(builds)
    }

    /// Returns how much the depot holds.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn holdings(&self) -> Result<Holdings, StoreError> {
        self.connection
            .query_row("SELECT nars, file_bytes FROM holdings", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .map(|(nars, bytes)| Holdings {
                nars: u64::try_from(nars).unwrap_or(0),
                bytes: u64::try_from(bytes).unwrap_or(0),
            })
            .map_err(doing("count nars"))
    }

    /// Tells whether an attempt made something else than what is held; `None` when there is no such
    /// attempt.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn is_disputed(&self, attempt: AttemptId) -> Result<Option<bool>, StoreError> {
        self.connection
            .prepare_cached("SELECT disputed FROM attempts WHERE id = :id")
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":id": attempt.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("read an attempt"))
    }

    /// Returns the build of an attempt; `None` when there is no such attempt.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn build_of_attempt(&self, attempt: AttemptId) -> Result<Option<BuildId>, StoreError> {
        let build: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT build FROM attempts WHERE id = :id")
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":id": attempt.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("read an attempt"))?;
        build.map(|id| row::bytes("attempts", &id).map(BuildId::from_bytes)).transpose()
    }
}

/// What the depot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// How many nars.
    pub nars: u64,
    /// How many bytes they take, compressed.
    pub bytes: u64,
}

/// Puts the query for a filter together. Values are bound, never written into the text.
pub(super) fn builds_sql(filter: &BuildFilter) -> (String, Vec<Box<dyn ToSql>>) {
    let mut conditions = vec!["1".to_owned()];
    let mut values: Vec<Box<dyn ToSql>> = Vec::new();
    let mut bind = |value: Box<dyn ToSql>| {
        values.push(value);
        format!("?{}", values.len())
    };
    if !filter.states.is_empty() {
        let words: Vec<String> =
            filter.states.iter().map(|word| bind(Box::new(word.clone()))).collect();
        conditions.push(format!("b.state IN ({})", words.join(", ")));
        // Word for word the condition of a partial index, which is used only then.
        for indexed in [&OPEN_STATES[..], &UNSUCCESSFUL_STATES] {
            if filter.states.iter().all(|word| indexed.contains(&word.as_str())) {
                conditions.push(format!("b.state IN ('{}')", indexed.join("', '")));
            }
        }
    }
    if let Some(ids) = &filter.ids {
        let ids: Vec<String> =
            ids.iter().map(|id| bind(Box::new(id.as_bytes().to_vec()))).collect();
        conditions.push(format!("b.id IN ({})", ids.join(", ")));
    }
    for (name, value) in &filter.tags {
        let (name, value) = (bind(Box::new(name.clone())), bind(Box::new(value.clone())));
        conditions.push(format!(
            "b.id IN (SELECT build FROM build_tags WHERE name = {name} AND value = {value})"
        ));
    }
    if let Some(system) = &filter.system {
        let system = bind(Box::new(system.clone()));
        conditions.push(format!("json_extract(c.class, '$.system') = {system}"));
    }
    if let Some(agent) = &filter.agent {
        conditions.push(format!("a.agent = {}", bind(Box::new(agent.clone()))));
    }
    if let Some(glob) = &filter.derivation {
        // The digits of a path are not stored as text: globs see the directory and the name.
        conditions.push(format!("d.name GLOB {}", bind(Box::new(glob.clone()))));
    }
    if let Some(since) = filter.since {
        conditions.push(format!("b.submitted_at >= {}", bind(Box::new(since.as_ms()))));
        // Ids begin with the time of submission, so that older builds need not be looked at.
        let lowest = BuildId::at(since, [0; 10]);
        conditions.push(format!("b.id >= {}", bind(Box::new(lowest.as_bytes().to_vec()))));
    }
    if let Some(after) = filter.after {
        conditions.push(format!("b.id > {}", bind(Box::new(after.as_bytes().to_vec()))));
    }
    if let Some(before) = filter.before {
        conditions.push(format!("b.id < {}", bind(Box::new(before.as_bytes().to_vec()))));
    }
    let order = match filter.first {
        First::Oldest => "ASC",
        First::Newest => "DESC",
    };
    let limit = i64::try_from(filter.limit.min(BUILDS_PER_READ_MAX)).unwrap_or(i64::MAX);
    let limit = bind(Box::new(limit));
    let conditions = conditions.join(" AND ");
    let sql = format!(
        "SELECT {BUILD_COLUMNS} FROM {BUILD_TABLES} WHERE {conditions}
         ORDER BY b.id {order} LIMIT {limit}"
    );
    (sql, values)
}

fn read_build(row: &Row<'_>) -> Result<BuildRow, StoreError> {
    const TABLE: &str = "builds";
    let sql = doing("read a build");
    let text = |column: usize| row.get::<_, String>(column).map_err(&sql);
    let blob = |column: usize| row.get::<_, Vec<u8>>(column).map_err(&sql);
    let limit = |column: usize| -> Result<Option<u64>, StoreError> {
        let ms: Option<i64> = row.get(column).map_err(&sql)?;
        Ok(ms.and_then(|ms| u64::try_from(ms).ok()))
    };
    let attempt: Option<Vec<u8>> = row.get(14).map_err(&sql)?;
    let until: Option<i64> = row.get(16).map_err(&sql)?;
    Ok(BuildRow {
        id: BuildId::from_bytes(row::bytes(TABLE, &blob(0)?)?),
        derivation: row::store_path("derivations", &text(1)?, &blob(2)?, &text(3)?)?,
        class: row::json("classes", &text(4)?)?,
        origin: text(5)?,
        submitter: text(6)?,
        key: row.get(7).map_err(&sql)?,
        priority: row.get(8).map_err(&sql)?,
        submitted: Timestamp::from_ms(row.get(9).map_err(&sql)?),
        limits: Limits { timeout_ms: limit(10)?, max_silent_ms: limit(11)? },
        state: text(12)?,
        since: Timestamp::from_ms(row.get(13).map_err(&sql)?),
        attempt: attempt
            .map(|blob| row::bytes(TABLE, &blob).map(AttemptId::from_bytes))
            .transpose()?,
        agent: row.get(15).map_err(&sql)?,
        deferred_until: until.map(Timestamp::from_ms),
        extras: super::load::extras(row, 17)?,
    })
}

pub(super) fn read_attempt(row: &Row<'_>) -> Result<AttemptRow, StoreError> {
    const TABLE: &str = "attempts";
    let sql = doing("read an attempt");
    let blob = |column: usize| row.get::<_, Vec<u8>>(column).map_err(&sql);
    let time = |column: usize| -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = row.get(column).map_err(&sql)?;
        Ok(at.map(Timestamp::from_ms))
    };
    let detail: Option<String> = row.get(8).map_err(&sql)?;
    Ok(AttemptRow {
        id: AttemptId::from_bytes(row::bytes(TABLE, &blob(0)?)?),
        build: BuildId::from_bytes(row::bytes(TABLE, &blob(1)?)?),
        agent: row.get(2).map_err(&sql)?,
        state: row.get(3).map_err(&sql)?,
        allocated: Timestamp::from_ms(row.get(4).map_err(&sql)?),
        started: time(5)?,
        built: time(6)?,
        ended: time(7)?,
        end: detail.as_deref().map(|text| row::json(TABLE, text)).transpose()?,
        disputed: row.get(9).map_err(&sql)?,
        readopted: time(10)?,
        reported: time(11)?,
        emulated: row.get(12).map_err(&sql)?,
    })
}

/// Reads an output whose four columns start at `first`.
fn read_output(row: &Row<'_>, first: usize) -> Result<OutputRow, StoreError> {
    const TABLE: &str = "attempt_outputs";
    let sql = doing("read an output");
    let blob = |column: usize| row.get::<_, Vec<u8>>(column).map_err(&sql);
    let size: i64 = row.get(first + 3).map_err(&sql)?;
    Ok(OutputRow {
        output: row.get(first).map_err(&sql)?,
        path: PathHash::from_bytes(row::bytes(TABLE, &blob(first + 1)?)?),
        nar_hash: row::sha256(TABLE, &blob(first + 2)?)?,
        nar_bytes: u64::try_from(size)
            .map_err(|_| StoreError::Damaged { table: TABLE, what: format!("a size of {size}") })?,
    })
}
