//! Builds that did not succeed and that need what others make.
//!
//! There are no reverse edges on disk, so what may depend is gone through forwards: builds that
//! failed or were canceled since the others were asked for, and all that these need.

use super::{Reader, StoreError, doing, row};
use crate::core::{id::BuildId, store_path::PathHash};
use rusqlite::{OptionalExtension as _, named_params};
use std::collections::{BTreeMap, BTreeSet};

/// The most builds that are looked at; the first ones that ended.
pub const DEPENDENTS_LOOKED_AT_MAX: usize = 100_000;

/// The index is named because there is another one of the same builds, by state.
pub(super) const UNSUCCESSFUL_SQL: &str = "SELECT b.id, b.submitter, d.hash
    FROM builds b INDEXED BY builds_unsuccessful_since
    JOIN derivations d ON d.id = b.derivation
    WHERE b.state IN ('failed', 'canceled') AND b.state_at >= :since
    ORDER BY b.state_at LIMIT :limit";

/// A build that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsuccessful {
    /// Its id.
    pub id: BuildId,
    /// Who asked for it.
    pub submitter: String,
    derivation: PathHash,
}

impl Reader {
    /// Returns the builds that failed or were canceled and need, however far off, what one of these
    /// builds makes. Those that were over before the builds were asked for are not among them.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn unsuccessful_dependents(
        &self,
        builds: &[BuildId],
    ) -> Result<Vec<Unsuccessful>, StoreError> {
        let mut since = i64::MAX;
        // What is known to lead to one of the builds, or not to.
        let mut leads: BTreeMap<PathHash, bool> = BTreeMap::new();
        for build in builds {
            if let Some((submitted_at, derivation)) = self.asked_for(*build)? {
                since = since.min(submitted_at);
                leads.insert(derivation, true);
            }
        }
        let roots: BTreeSet<PathHash> = leads.keys().copied().collect();
        let mut dependents = Vec::new();
        for candidate in self.unsuccessful(since)? {
            let is_root = roots.contains(&candidate.derivation);
            if !is_root && self.leads_there(candidate.derivation, &mut leads)? {
                dependents.push(candidate);
            }
        }
        Ok(dependents)
    }

    fn asked_for(&self, build: BuildId) -> Result<Option<(i64, PathHash)>, StoreError> {
        let columns: Option<(i64, Vec<u8>)> = self
            .connection
            .prepare_cached(
                "SELECT b.submitted_at, d.hash FROM builds b
                 JOIN derivations d ON d.id = b.derivation WHERE b.id = :id",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":id": build.as_bytes() }, |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()
            })
            .map_err(doing("read a build"))?;
        let Some((at, hash)) = columns else { return Ok(None) };
        Ok(Some((at, PathHash::from_bytes(row::bytes("derivations", &hash)?))))
    }

    fn unsuccessful(&self, since: i64) -> Result<Vec<Unsuccessful>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(UNSUCCESSFUL_SQL)
            .map_err(doing("read unsuccessful builds"))?;
        let limit = i64::try_from(DEPENDENTS_LOOKED_AT_MAX).unwrap_or(i64::MAX);
        let rows = select
            .query_map(named_params! { ":since": since, ":limit": limit }, |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?))
            })
            .map_err(doing("read unsuccessful builds"))?;
        let mut builds = Vec::new();
        for columns in rows {
            let (id, submitter, hash) = columns.map_err(doing("read unsuccessful builds"))?;
            builds.push(Unsuccessful {
                id: BuildId::from_bytes(row::bytes("builds", &id)?),
                submitter,
                derivation: PathHash::from_bytes(row::bytes("derivations", &hash)?),
            });
        }
        Ok(builds)
    }

    /// Tells whether a derivation needs one that is known to lead there. Everything on the way is
    /// looked at once.
    fn leads_there(
        &self,
        start: PathHash,
        leads: &mut BTreeMap<PathHash, bool>,
    ) -> Result<bool, StoreError> {
        let mut open: Vec<(PathHash, Vec<PathHash>)> = Vec::new();
        let mut next = Some(start);
        loop {
            if let Some(path) = next.take() {
                let known = leads.get(&path).copied();
                match (known, open.last()) {
                    (None, _) => open.push((path, self.inputs(path)?)),
                    (Some(true), Some((above, _))) => {
                        leads.insert(*above, true);
                    }
                    (Some(_), _) => {}
                }
            }
            let Some((path, inputs)) = open.last_mut() else { break };
            next = inputs.pop();
            if next.is_none() {
                let (path, does) = (*path, leads.get(path).copied().unwrap_or(false));
                leads.insert(path, does);
                open.pop();
                if let (true, Some((above, _))) = (does, open.last()) {
                    leads.insert(*above, true);
                }
            }
        }
        Ok(leads.get(&start).copied().unwrap_or(false))
    }

    fn inputs(&self, derivation: PathHash) -> Result<Vec<PathHash>, StoreError> {
        let inputs: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT inputs FROM derivations WHERE hash = :hash")
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": derivation.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("read the inputs of a derivation"))?;
        row::path_hashes("derivations", &inputs.unwrap_or_default())
    }
}
