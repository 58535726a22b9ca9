//! Open state at start: a few scans, each row handed on as it is read.
//!
//! Derivations are written after their inputs, so a scan against the order of writing meets
//! whoever needs something before what is needed, and one pass finds all.

use super::{Store, StoreError, doing, facts, row};
use crate::core::{
    build::Hold,
    change::{Limits, Origin},
    demands::Demands,
    engine::{Engine, Extras, LostAttempt, OpenBuild, Restoring, Settings},
    graph::{Facts, Held},
    id::{AttemptId, BuildId},
    outcome::{AttemptEnd, OutputPolicy},
    store_path::PathHash,
    time::{Now, Timestamp},
};
use rusqlite::{Row, Rows, named_params};
use std::collections::BTreeSet;

/// When one derivation in so many or more has an open build, all of them are scanned; else those
/// that are needed are looked up. To look one up costs about as much as to scan four.
const SCANNED_SHARE: i64 = 8;

impl Store {
    /// Returns the engine with all open state.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn restore(&self, settings: Settings, now: Now) -> Result<Engine, StoreError> {
        let mut restoring = Restoring::new(settings, now);
        self.load_into(&mut restoring)?;
        self.shrink()?;
        restoring.finish().map_err(unfit)
    }

    fn load_into(&self, into: &mut Restoring) -> Result<(), StoreError> {
        self.accounts()?.iter().for_each(|(name, usage)| into.account(name, *usage));
        self.agents()?.into_iter().for_each(|agent| into.agent(agent));
        let (mut rows, retried) = self.load_builds(into)?;
        rows.sort_unstable();
        rows.dedup();
        if self.are_many(rows.len())? {
            self.scan_derivations(&rows, into)?;
        } else {
            for id in rows.into_iter().rev() {
                if let Some(facts) = self.facts_at(id)? {
                    into.derivation(&facts);
                }
            }
        }
        for lacking in into.lacking() {
            if let Some(facts) = self.facts(lacking)? {
                into.derivation(&facts);
            }
        }
        for build in retried {
            self.lost_attempts(build, |lost| into.lost(lost))?;
        }
        Ok(())
    }

    /// Hands all open builds on. Returns the rows of their derivations, and which of them may have
    /// lost attempts: to lose an agent counts, so most need not be asked about.
    fn load_builds(&self, into: &mut Restoring) -> Result<(Vec<i64>, Vec<BuildId>), StoreError> {
        let sql = builds_sql(
            "b.state IN ('deferred', 'queued', 'allocated', 'building', 'receiving')
             ORDER BY b.state, b.id LIMIT -1",
        );
        let mut select = self.connection.prepare(&sql).map_err(doing("read open builds"))?;
        let mut rows = select.query([]).map_err(doing("read open builds"))?;
        let (mut derivations, mut retried) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next().map_err(doing("read open builds"))? {
            let build = open_build(row)?;
            if build.infrastructure_ends > 0 {
                retried.push(build.id);
            }
            derivations.push(row::integer("builds", row, DERIVATION_COLUMN)?);
            into.build(build).map_err(unfit)?;
        }
        Ok((derivations, retried))
    }

    /// Tells whether so many derivations are better found by a scan.
    fn are_many(&self, derivations: usize) -> Result<bool, StoreError> {
        let all: i64 = self
            .connection
            .query_row("SELECT coalesce(max(id), 0) FROM derivations", [], |row| row.get(0))
            .map_err(doing("count derivations"))?;
        Ok(i64::try_from(derivations).unwrap_or(i64::MAX).saturating_mul(SCANNED_SHARE) > all)
    }

    /// Hands on the derivations in these rows, which are in order, and those that they need.
    fn scan_derivations(&self, rows: &[i64], into: &mut Restoring) -> Result<(), StoreError> {
        let sql = doing("read derivations");
        let mut derivations = self
            .connection
            .prepare(
                "SELECT id, hash, name, class, inputs, store_dir FROM derivations
                 ORDER BY id DESC LIMIT -1",
            )
            .map_err(&sql)?;
        let mut derivations = derivations.query([]).map_err(&sql)?;
        let mut outputs = self
            .connection
            .prepare(
                "SELECT o.derivation, o.path, EXISTS (SELECT 1 FROM nars n WHERE n.path = o.path)
                        OR (:recorded AND EXISTS (SELECT 1 FROM attempt_outputs made
                            JOIN attempts a ON a.id = made.attempt
                            WHERE made.path = o.path AND a.ended = :succeeded)),
                    EXISTS (SELECT 1 FROM missing_outputs m WHERE m.path = o.path)
                 FROM derivation_outputs o ORDER BY o.derivation DESC, o.position DESC LIMIT -1",
            )
            .map_err(&sql)?;
        let recorded = named_params! {
            ":recorded": self.outputs == OutputPolicy::Record,
            ":succeeded": AttemptEnd::Succeeded.word(),
        };
        let mut outputs = Outputs { rows: outputs.query(recorded).map_err(&sql)?, ahead: None };
        let mut rows = rows.iter().rev().copied().peekable();
        while let Some(row) = derivations.next().map_err(&sql)? {
            let id = row::integer("derivations", row, 0)?;
            let hash = row::bytes("derivations", row::blob("derivations", row, 1)?)?;
            if rows.next_if_eq(&id).is_none() && !into.lacks(PathHash::from_bytes(hash)) {
                continue;
            }
            let (id, mut facts) = self.derivation(row)?;
            outputs.add(id, &mut facts)?;
            self.add_last_end(id, &mut facts, &BTreeSet::new())?;
            into.derivation(&facts);
        }
        Ok(())
    }

    /// Hands on the attempts of a build that their agents may come back with.
    pub(super) fn lost_attempts(
        &self,
        build: BuildId,
        mut hand_on: impl FnMut(LostAttempt),
    ) -> Result<(), StoreError> {
        const TABLE: &str = "attempts";
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT id, agent FROM attempts WHERE build = :build AND ended = :lost
                 ORDER BY id LIMIT -1",
            )
            .map_err(doing("read lost attempts"))?;
        let rows = select
            .query_map(
                named_params! { ":build": build.as_bytes(), ":lost": AttemptEnd::AgentLost.word() },
                |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?)),
            )
            .map_err(doing("read lost attempts"))?;
        for columns in rows {
            let (attempt, agent) = columns.map_err(doing("read lost attempts"))?;
            let attempt = AttemptId::from_bytes(row::bytes(TABLE, &attempt)?);
            hand_on(LostAttempt { attempt, build, agent: row::parsed(TABLE, &agent)? });
        }
        Ok(())
    }
}

/// An output and the row of its derivation.
type OutputOf = (i64, (PathHash, Held));

/// The outputs of all derivations, behind one another against the order of derivations.
struct Outputs<'a> {
    rows: Rows<'a>,
    /// The first that was read but not yet asked for, and its derivation.
    ahead: Option<OutputOf>,
}

impl Outputs<'_> {
    /// Adds the outputs of a derivation, and passes over those of derivations behind it.
    fn add(&mut self, derivation: i64, facts: &mut Facts) -> Result<(), StoreError> {
        while let Some((of, output)) = self.next()? {
            if of < derivation {
                self.ahead = Some((of, output));
                break;
            }
            if of == derivation {
                facts.outputs.push(output);
            }
        }
        facts.outputs.reverse();
        Ok(())
    }

    fn next(&mut self) -> Result<Option<OutputOf>, StoreError> {
        if let Some(ahead) = self.ahead.take() {
            return Ok(Some(ahead));
        }
        let row = self.rows.next().map_err(doing("read outputs"))?;
        row.map(|row| {
            Ok((row::integer("derivation_outputs", row, 0)?, facts::read_output(row, 1)?))
        })
        .transpose()
    }
}

/// Returns what is wrong with rows that do not fit together.
fn unfit(what: String) -> StoreError {
    StoreError::Damaged { table: "builds", what }
}

/// Where [`builds_sql`] has the row of the derivation.
const DERIVATION_COLUMN: usize = 14;

/// Returns the query for builds that [`open_build`] reads.
pub(super) fn builds_sql(condition: &str) -> String {
    format!(
        "SELECT b.id, d.hash, b.origin, b.submitter, b.priority, b.submitted_at,
            b.timeout_ms, b.max_silent_ms, b.infrastructure_ends, b.avoid,
            b.state, b.attempt, a.agent, b.deferred_until, b.derivation,
            b.demands, b.not_before, b.held_by, b.held_at, b.failures
         FROM builds b JOIN derivations d ON d.id = b.derivation
         LEFT JOIN attempts a ON a.id = b.attempt
         WHERE {condition}"
    )
}

/// Reads what few builds have, from five columns.
pub(super) fn extras(row: &Row<'_>, first: usize) -> Result<Extras, StoreError> {
    const TABLE: &str = "builds";
    let held_by = row::optional_text(TABLE, row, first + 2)?;
    let held_at = row::optional_integer(TABLE, row, first + 3)?;
    let hold = match (held_by, held_at) {
        (Some(by), Some(since)) => {
            Some(Hold { by: row::parsed(TABLE, by)?, since: Timestamp::from_ms(since) })
        }
        (_, None) | (None, _) => None,
    };
    Ok(Extras {
        demands: match row::optional_text(TABLE, row, first)? {
            Some(json) => row::json(TABLE, json)?,
            None => Demands::default(),
        },
        hold,
        not_before: row::optional_integer(TABLE, row, first + 1)?.map(Timestamp::from_ms),
        failures: row.get(first + 4).map_err(doing("read an open build"))?,
    })
}

/// Reads a build from the columns of [`builds_sql`].
pub(super) fn open_build(row: &Row<'_>) -> Result<OpenBuild, StoreError> {
    const TABLE: &str = "builds";
    let limit = |column: usize| -> Result<Option<u64>, StoreError> {
        let ms = row::optional_integer(TABLE, row, column)?;
        Ok(ms.and_then(|ms| u64::try_from(ms).ok()))
    };
    let avoid = row::optional_text(TABLE, row, 9)?;
    Ok(OpenBuild {
        id: BuildId::from_bytes(row::bytes(TABLE, row::blob(TABLE, row, 0)?)?),
        derivation: PathHash::from_bytes(row::bytes(TABLE, row::blob(TABLE, row, 1)?)?),
        origin: match row::text(TABLE, row, 2)? {
            "asked" => Origin::Asked,
            _ => Origin::Implied,
        },
        submitter: row::parsed(TABLE, row::text(TABLE, row, 3)?)?,
        priority: row.get(4).map_err(doing("read an open build"))?,
        submitted: Timestamp::from_ms(row::integer(TABLE, row, 5)?),
        limits: Limits { timeout_ms: limit(6)?, max_silent_ms: limit(7)? },
        infrastructure_ends: row.get(8).map_err(doing("read an open build"))?,
        avoid: avoid.map(|name| row::parsed(TABLE, name)).transpose()?,
        state: row::build_state(&row::StateColumns {
            state: row::text(TABLE, row, 10)?,
            attempt: row::optional_blob(TABLE, row, 11)?,
            agent: row::optional_text(TABLE, row, 12)?,
            deferred_until: row::optional_integer(TABLE, row, 13)?,
        })?,
        extras: extras(row, DERIVATION_COLUMN + 1)?,
    })
}
