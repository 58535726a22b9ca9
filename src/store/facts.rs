//! What the engine needs to know of derivations: those of a submission, and any other.

use super::{Store, StoreError, doing, row};
use crate::core::{
    engine::{Inputs, Root},
    graph::{EndResult, Facts, Held, LastEnd},
    id::{BuildId, Name},
    outcome::{AttemptEnd, OutputPolicy},
    plan::Class,
    store_path::PathHash,
    time::Timestamp,
};
use rusqlite::{OptionalExtension as _, Row, named_params};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

const TABLE: &str = "derivations";

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
        // One view of the database for all of it, or each question would begin with a lock.
        let view = self.connection.unchecked_transaction().map_err(doing("begin to read"))?;
        let mut found = SubmissionFacts { roots: Vec::new(), facts: Vec::new(), unknown: vec![] };
        for derivation in roots {
            let existing = match key {
                Some(key) => self.build_by_key(submitter, *derivation, key)?,
                None => None,
            };
            found.roots.push(Root { derivation: *derivation, existing, id: None });
        }
        self.find_facts(roots, inputs, &mut found)?;
        view.finish().map_err(doing("end to read"))?;
        Ok(found)
    }

    /// Reads the facts of roots and of what belongs to them.
    fn find_facts(
        &self,
        roots: &[PathHash],
        inputs: Inputs,
        found: &mut SubmissionFacts,
    ) -> Result<(), StoreError> {
        // A root may be met as an input of another first, and is a root all the same.
        let is_root: BTreeSet<PathHash> = roots.iter().copied().collect();
        let mut seen: HashSet<PathHash> = HashSet::new();
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
        Ok(())
    }

    /// Returns the facts of derivations and their inputs, as for a submission; what is not known is
    /// left out.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn facts_for(
        &self,
        derivations: &[PathHash],
        inputs: Inputs,
    ) -> Result<Vec<Facts>, StoreError> {
        let view = self.connection.unchecked_transaction().map_err(doing("begin to read"))?;
        let mut found = SubmissionFacts { roots: Vec::new(), facts: Vec::new(), unknown: vec![] };
        self.find_facts(derivations, inputs, &mut found)?;
        view.finish().map_err(doing("end to read"))?;
        Ok(found.facts)
    }

    /// Returns the facts of one derivation; `None` when it is not known.
    pub(super) fn facts(&self, hash: PathHash) -> Result<Option<Facts>, StoreError> {
        self.facts_without(hash, &BTreeSet::new())
    }

    /// Returns what [`Store::facts`] does, as if some builds had never ended.
    pub(super) fn facts_without(
        &self,
        hash: PathHash,
        except: &BTreeSet<BuildId>,
    ) -> Result<Option<Facts>, StoreError> {
        let found = self
            .connection
            .prepare_cached("SELECT id, hash, name, class, inputs, store_dir FROM derivations WHERE hash = :hash")
            .and_then(|mut select| {
                let hash = named_params! { ":hash": hash.as_bytes() };
                select.query_row(hash, |row| Ok(self.derivation(row))).optional()
            })
            .map_err(doing("read a derivation"))?;
        self.complete(found.transpose()?, except)
    }

    /// Returns the facts of the derivation in a row; `None` when there is no such row.
    pub(super) fn facts_at(&self, id: i64) -> Result<Option<Facts>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT id, hash, name, class, inputs, store_dir FROM derivations WHERE id = :id",
            )
            .and_then(|mut select| {
                let id = named_params! { ":id": id };
                select.query_row(id, |row| Ok(self.derivation(row))).optional()
            })
            .map_err(doing("read a derivation"))?;
        self.complete(found.transpose()?, &BTreeSet::new())
    }

    fn complete(
        &self,
        found: Option<(i64, Facts)>,
        except: &BTreeSet<BuildId>,
    ) -> Result<Option<Facts>, StoreError> {
        let Some((id, mut facts)) = found else { return Ok(None) };
        self.add_outputs(id, &mut facts)?;
        self.add_last_end(id, &mut facts, except)?;
        Ok(Some(facts))
    }

    /// Reads a derivation from the columns id, hash, name, class, inputs and `store_dir`. Its
    /// outputs and its last end are not in them.
    pub(super) fn derivation(&self, row: &Row<'_>) -> Result<(i64, Facts), StoreError> {
        let class = self.known_class(row::integer(TABLE, row, 3)?, row::integer(TABLE, row, 5)?)?;
        let hash = PathHash::from_bytes(row::bytes(TABLE, row::blob(TABLE, row, 1)?)?);
        let path = class
            .store_dir
            .path(hash, row::text(TABLE, row, 2)?)
            .map_err(|error| StoreError::Damaged { table: TABLE, what: error.to_string() })?;
        let inputs = row::path_hashes(TABLE, row::blob(TABLE, row, 4)?)?;
        let facts = Facts { path, class, outputs: Vec::new(), inputs, last_end: None };
        Ok((row::integer(TABLE, row, 0)?, facts))
    }

    /// Returns the class of a derivation in this store directory. There are few of both.
    fn known_class(&self, id: i64, dir: i64) -> Result<Arc<Class>, StoreError> {
        if let Some(class) = self.class_at.borrow().get(&(id, dir)) {
            return Ok(Arc::clone(class));
        }
        let (class, path): (String, String) = self
            .connection
            .prepare_cached(
                "SELECT c.class, s.path FROM classes c, store_dirs s
                 WHERE c.id = :id AND s.id = :dir",
            )
            .and_then(|mut select| {
                let rows = named_params! { ":id": id, ":dir": dir };
                select.query_row(rows, |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .map_err(doing("read a class"))?;
        let class = Arc::new(row::json::<Class>("classes", &class)?);
        if class.store_dir != row::parsed(TABLE, &path)? {
            let what = format!("one in {path} is of a class of {}", class.store_dir);
            return Err(StoreError::Damaged { table: TABLE, what });
        }
        self.class_at.borrow_mut().insert((id, dir), Arc::clone(&class));
        Ok(class)
    }

    /// Adds a derivation's outputs, and which of them are held or reported missing.
    fn add_outputs(&self, derivation: i64, facts: &mut Facts) -> Result<(), StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT o.path, EXISTS (SELECT 1 FROM nars n WHERE n.path = o.path)
                        OR (:recorded AND EXISTS (SELECT 1 FROM attempt_outputs made
                            JOIN attempts a ON a.id = made.attempt
                            WHERE made.path = o.path AND a.ended = :succeeded)),
                    EXISTS (SELECT 1 FROM missing_outputs m WHERE m.path = o.path)
                 FROM derivation_outputs o WHERE o.derivation = :derivation
                 ORDER BY o.position LIMIT 10000",
            )
            .map_err(doing("read outputs"))?;
        let mut rows = select
            .query(named_params! {
                ":derivation": derivation,
                ":recorded": self.outputs == OutputPolicy::Record,
                ":succeeded": AttemptEnd::Succeeded.word(),
            })
            .map_err(doing("read outputs"))?;
        while let Some(row) = rows.next().map_err(doing("read outputs"))? {
            facts.outputs.push(read_output(row, 0)?);
        }
        Ok(())
    }

    /// Adds the last end of a derivation's builds, in the order that [`LastEnd`] describes, as if
    /// some had never ended. Of a derivation whose outputs are all held it tells nothing.
    pub(super) fn add_last_end(
        &self,
        derivation: i64,
        facts: &mut Facts,
        except: &BTreeSet<BuildId>,
    ) -> Result<(), StoreError> {
        if facts.outputs.iter().all(|(_, held)| *held == Held::Yes) {
            return Ok(());
        }
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT state_at, id, state = 'failed' FROM builds
                 WHERE derivation = :derivation AND state IN ('succeeded', 'failed')
                 ORDER BY state_at DESC, id DESC LIMIT :limit",
            )
            .map_err(doing("read the last end of a derivation"))?;
        let limit = i64::try_from(except.len()).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = select
            .query(named_params! { ":derivation": derivation, ":limit": limit })
            .map_err(doing("read the last end of a derivation"))?;
        while let Some(row) = rows.next().map_err(doing("read the last end of a derivation"))? {
            let id = BuildId::from_bytes(row::bytes("builds", row::blob("builds", row, 1)?)?);
            if except.contains(&id) {
                continue;
            }
            let failed = row::integer("builds", row, 2)? != 0;
            facts.last_end = Some(LastEnd {
                at: Timestamp::from_ms(row::integer("builds", row, 0)?),
                build: id,
                result: if failed { EndResult::Failed } else { EndResult::Succeeded },
            });
            break;
        }
        Ok(())
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
}

/// Reads an output from the columns path, held and missing, of which the first is given.
pub(super) fn read_output(row: &Row<'_>, first: usize) -> Result<(PathHash, Held), StoreError> {
    const TABLE: &str = "derivation_outputs";
    let path = PathHash::from_bytes(row::bytes(TABLE, row::blob(TABLE, row, first)?)?);
    let held = row::integer(TABLE, row, first + 1)? != 0;
    let missing = row::integer(TABLE, row, first + 2)? != 0;
    Ok(match (held, missing) {
        (true, _) => (path, Held::Yes),
        (false, true) => (path, Held::Missing),
        (false, false) => (path, Held::No),
    })
}
