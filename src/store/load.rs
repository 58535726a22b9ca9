//! What the engine needs from the database: open state at start, and the facts of a submission.

use super::{Store, StoreError, doing, row};
use crate::core::{
    change::{Limits, Origin},
    engine::{Inputs, LostAttempt, OpenBuild, Root, Saved},
    graph::{EndResult, Facts, Held, LastEnd},
    id::{AttemptId, BuildId, Name},
    outcome::AttemptEnd,
    plan::Class,
    store_path::PathHash,
    time::Timestamp,
};
use rusqlite::{OptionalExtension as _, named_params};
use std::collections::{BTreeMap, BTreeSet};

/// What a submission needs from the database.
#[derive(Debug)]
pub struct SubmissionFacts {
    /// The roots, with the builds that an earlier request with the same key made.
    pub roots: Vec<Root>,
    /// The facts of roots and inputs.
    pub facts: Vec<Facts>,
    /// Derivations that are not known: the submission must be refused.
    pub unknown: Vec<PathHash>,
}

impl Store {
    /// Returns all open state.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn load(&self) -> Result<Saved, StoreError> {
        let builds = self.open_builds()?;
        let mut facts: BTreeMap<PathHash, Facts> = BTreeMap::new();
        for build in &builds {
            if facts.contains_key(&build.derivation) {
                continue;
            }
            if let Some(found) = self.facts(build.derivation)? {
                facts.insert(build.derivation, found);
            }
        }
        let inputs: BTreeSet<PathHash> = facts
            .values()
            .flat_map(|facts| facts.inputs.iter().copied())
            .filter(|input| !facts.contains_key(input))
            .collect();
        for input in inputs {
            if let Some(found) = self.facts(input)? {
                facts.insert(input, found);
            }
        }
        let mut lost = Vec::new();
        // To lose an agent counts, so most builds need not be asked about.
        for build in builds.iter().filter(|build| build.infrastructure_ends > 0) {
            self.lost_attempts(build.id, &mut lost)?;
        }
        let (facts, agents) = (facts.into_values().collect(), self.agents()?);
        Ok(Saved { facts, builds, agents, lost })
    }

    /// Returns what a submission needs: the roots and their inputs, and with builds for inputs the
    /// whole closure up to what is held.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn submission_facts(
        &self,
        roots: &[PathHash],
        inputs: Inputs,
        submitter: &Name,
        key: Option<&str>,
    ) -> Result<SubmissionFacts, StoreError> {
        let mut found = SubmissionFacts { roots: Vec::new(), facts: Vec::new(), unknown: vec![] };
        for derivation in roots {
            let existing = match key {
                Some(key) => self.build_by_key(submitter, *derivation, key)?,
                None => None,
            };
            found.roots.push(Root { derivation: *derivation, existing });
        }
        // A root may be met as an input of another first, and is a root all the same.
        let is_root: BTreeSet<PathHash> = roots.iter().copied().collect();
        let mut seen: BTreeSet<PathHash> = BTreeSet::new();
        let mut pending: Vec<PathHash> = roots.to_vec();
        while let Some(path) = pending.pop() {
            if !seen.insert(path) {
                continue;
            }
            let Some(facts) = self.facts(path)? else {
                found.unknown.push(path);
                continue;
            };
            let held = facts.outputs.iter().all(|(_, held)| *held == Held::Yes);
            // Whatever gets a build needs the facts of its inputs, held or not.
            if is_root.contains(&path) || (inputs == Inputs::Build && !held) {
                pending.extend(&facts.inputs);
            }
            found.facts.push(facts);
        }
        Ok(found)
    }

    /// Returns the facts of one derivation; `None` when it is not known.
    pub(super) fn facts(&self, hash: PathHash) -> Result<Option<Facts>, StoreError> {
        const TABLE: &str = "derivations";
        let columns: Option<(i64, String, String, String, Vec<u8>)> = self
            .connection
            .prepare_cached(
                "SELECT d.id, s.path, d.name, c.class, d.inputs FROM derivations d
                 JOIN store_dirs s ON s.id = d.store_dir JOIN classes c ON c.id = d.class
                 WHERE d.hash = :hash",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": hash.as_bytes() }, |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                    })
                    .optional()
            })
            .map_err(doing("read a derivation"))?;
        let Some((id, dir, name, class, inputs)) = columns else { return Ok(None) };
        Ok(Some(Facts {
            path: row::store_path(TABLE, &dir, hash.as_bytes(), &name)?,
            class: row::json::<Class>("classes", &class)?,
            outputs: self.outputs_with_held(id)?,
            inputs: row::path_hashes(TABLE, &inputs)?,
            last_end: self.last_end(id)?,
        }))
    }

    /// Returns a derivation's outputs, and which of them are held or reported missing.
    fn outputs_with_held(&self, derivation: i64) -> Result<Vec<(PathHash, Held)>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT o.path, EXISTS (SELECT 1 FROM nars n WHERE n.path = o.path),
                    EXISTS (SELECT 1 FROM missing_outputs m WHERE m.path = o.path)
                 FROM derivation_outputs o WHERE o.derivation = :derivation
                 ORDER BY o.position LIMIT 10000",
            )
            .map_err(doing("read outputs"))?;
        let rows = select
            .query_map(named_params! { ":derivation": derivation }, |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?))
            })
            .map_err(doing("read outputs"))?;
        let mut outputs = Vec::new();
        for columns in rows {
            let (path, held, missing) = columns.map_err(doing("read outputs"))?;
            let path = PathHash::from_bytes(row::bytes("derivation_outputs", &path)?);
            let held = match (held, missing) {
                (true, _) => Held::Yes,
                (false, true) => Held::Missing,
                (false, false) => Held::No,
            };
            outputs.push((path, held));
        }
        Ok(outputs)
    }

    /// Returns the last end of a derivation's builds, in the order that [`LastEnd`] describes.
    fn last_end(&self, derivation: i64) -> Result<Option<LastEnd>, StoreError> {
        let columns: Option<(i64, Vec<u8>, bool)> = self
            .connection
            .prepare_cached(
                "SELECT state_at, id, state = 'failed' FROM builds
                 WHERE derivation = :derivation AND state IN ('succeeded', 'failed')
                 ORDER BY state_at DESC, id DESC LIMIT 1",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":derivation": derivation }, |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                    })
                    .optional()
            })
            .map_err(doing("read the last end of a derivation"))?;
        let Some((at, id, failed)) = columns else { return Ok(None) };
        Ok(Some(LastEnd {
            at: Timestamp::from_ms(at),
            build: BuildId::from_bytes(row::bytes("builds", &id)?),
            result: if failed { EndResult::Failed } else { EndResult::Succeeded },
        }))
    }

    fn build_by_key(
        &self,
        submitter: &Name,
        derivation: PathHash,
        key: &str,
    ) -> Result<Option<BuildId>, StoreError> {
        let id: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT b.id FROM builds b JOIN derivations d ON d.id = b.derivation
                 WHERE b.submitter = :submitter AND d.hash = :hash AND b.key = :key",
            )
            .and_then(|mut select| {
                select
                    .query_row(
                        named_params! {
                            ":submitter": submitter.as_str(), ":hash": derivation.as_bytes(),
                            ":key": key,
                        },
                        |row| row.get(0),
                    )
                    .optional()
            })
            .map_err(doing("look for an earlier request"))?;
        id.map(|id| row::bytes("builds", &id).map(BuildId::from_bytes)).transpose()
    }

    fn open_builds(&self) -> Result<Vec<OpenBuild>, StoreError> {
        let mut select = self
            .connection
            .prepare(
                "SELECT b.id, d.hash, b.origin, b.submitter, b.priority, b.submitted_at,
                    b.timeout_ms, b.max_silent_ms, b.infrastructure_ends, b.avoid,
                    b.state, b.attempt, a.agent, b.deferred_until
                 FROM builds b JOIN derivations d ON d.id = b.derivation
                 LEFT JOIN attempts a ON a.id = b.attempt
                 WHERE b.state IN ('deferred', 'queued', 'allocated', 'building', 'receiving')
                 ORDER BY b.id LIMIT -1",
            )
            .map_err(doing("read open builds"))?;
        let rows =
            select.query_map([], |row| Ok(open_build(row))).map_err(doing("read open builds"))?;
        let mut builds = Vec::new();
        for build in rows {
            builds.push(build.map_err(doing("read open builds"))??);
        }
        Ok(builds)
    }

    /// Adds the attempts of a build that their agents may come back with.
    fn lost_attempts(&self, build: BuildId, lost: &mut Vec<LostAttempt>) -> Result<(), StoreError> {
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
            lost.push(LostAttempt { attempt, build, agent: row::parsed(TABLE, &agent)? });
        }
        Ok(())
    }
}

fn open_build(row: &rusqlite::Row<'_>) -> Result<OpenBuild, StoreError> {
    const TABLE: &str = "builds";
    let sql = doing("read an open build");
    let limit = |column: usize| -> Result<Option<u64>, StoreError> {
        let ms: Option<i64> = row.get(column).map_err(&sql)?;
        Ok(ms.and_then(|ms| u64::try_from(ms).ok()))
    };
    let avoid: Option<String> = row.get(9).map_err(&sql)?;
    Ok(OpenBuild {
        id: BuildId::from_bytes(row::bytes(TABLE, &row.get::<_, Vec<u8>>(0).map_err(&sql)?)?),
        derivation: PathHash::from_bytes(row::bytes(
            TABLE,
            &row.get::<_, Vec<u8>>(1).map_err(&sql)?,
        )?),
        origin: match row.get::<_, String>(2).map_err(&sql)?.as_str() {
            "asked" => Origin::Asked,
            _ => Origin::Implied,
        },
        submitter: row::parsed(TABLE, &row.get::<_, String>(3).map_err(&sql)?)?,
        priority: row.get(4).map_err(&sql)?,
        submitted: Timestamp::from_ms(row.get(5).map_err(&sql)?),
        limits: Limits { timeout_ms: limit(6)?, max_silent_ms: limit(7)? },
        infrastructure_ends: row.get(8).map_err(&sql)?,
        avoid: avoid.as_deref().map(|name| row::parsed(TABLE, name)).transpose()?,
        state: row::build_state(&row::StateColumns {
            state: row.get(10).map_err(&sql)?,
            attempt: row.get(11).map_err(&sql)?,
            agent: row.get(12).map_err(&sql)?,
            deferred_until: row.get(13).map_err(&sql)?,
        })?,
    })
}
