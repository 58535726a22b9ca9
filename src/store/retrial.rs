//! What the engine needs of builds that are to be tried again, or that make others needless.

use super::{Store, StoreError, doing, load, row};
use crate::core::{
    engine::{Authority, OverBuild, Retrial, RetryWish},
    id::{BuildId, Name},
    store_path::PathHash,
};
use rusqlite::{OptionalExtension as _, named_params};
use std::collections::BTreeSet;

/// The states are named twice because the index is of builds in these.
pub(super) const OWN_SUCCESS_SQL: &str = "SELECT b.id FROM builds b
    JOIN derivations d ON d.id = b.derivation
    WHERE d.hash = :hash AND b.state = 'succeeded' AND b.state IN ('succeeded', 'failed')
    ORDER BY b.state_at DESC, b.id DESC LIMIT 1";

/// The most builds that a submission replaces.
const REPLACED_MAX: usize = 1_000_000;

impl Store {
    /// Returns a wish that builds be tried again, with what the engine needs of them.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn retrial(
        &self,
        builds: &[BuildId],
        by: Authority,
        wish: RetryWish,
    ) -> Result<Retrial, StoreError> {
        let mut rows = Vec::new();
        for build in builds {
            rows.extend(self.over_build(*build)?);
        }
        let mut retrial = Retrial::divide(builds, rows, by, wish);
        let reopened: Vec<(BuildId, PathHash)> = retrial.reopened().collect();
        let except: BTreeSet<BuildId> = reopened.iter().map(|(build, _)| *build).collect();
        let mut seen = BTreeSet::new();
        for (build, derivation) in reopened {
            self.lost_attempts(build, |lost| retrial.lost.push(lost))?;
            let Some(own) = self.facts_without(derivation, &except)? else { continue };
            for input in &own.inputs {
                if seen.insert(*input) {
                    retrial.facts.extend(self.facts_without(*input, &except)?);
                }
            }
            if seen.insert(derivation) {
                retrial.facts.push(own);
            }
        }
        Ok(retrial)
    }

    /// Returns a build that is over; `None` when there is no such.
    fn over_build(&self, build: BuildId) -> Result<Option<OverBuild>, StoreError> {
        let sql = load::builds_sql("b.id = :id AND b.state IN ('succeeded', 'failed', 'canceled')");
        let found = self
            .connection
            .prepare_cached(&sql)
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":id": build.as_bytes() }, |row| {
                        let agent: Option<String> = row.get("agent")?;
                        Ok((load::open_build(row), agent))
                    })
                    .optional()
            })
            .map_err(doing("read a build that is over"))?;
        let Some((build, agent)) = found else { return Ok(None) };
        let agent = agent.as_deref().map(|name| row::parsed("attempts", name)).transpose()?;
        Ok(Some(OverBuild { build: build?, agent }))
    }

    /// Returns the builds of a submitter with all of these tags that nobody has begun.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn replaceable(
        &self,
        submitter: &Name,
        tags: &[(String, String)],
    ) -> Result<Vec<BuildId>, StoreError> {
        let Some(((name, value), others)) = tags.split_first() else { return Ok(Vec::new()) };
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT b.id FROM build_tags t JOIN builds b ON b.id = t.build
                 WHERE t.name = :name AND t.value = :value AND b.submitter = :submitter
                    AND b.state IN ('deferred', 'queued')
                 ORDER BY b.id LIMIT :limit",
            )
            .map_err(doing("look for builds to replace"))?;
        let limit = i64::try_from(REPLACED_MAX).unwrap_or(i64::MAX);
        let rows = select
            .query_map(
                named_params! {
                    ":name": name, ":value": value, ":submitter": submitter.as_str(),
                    ":limit": limit,
                },
                |row| row.get::<_, Vec<u8>>(0),
            )
            .map_err(doing("look for builds to replace"))?;
        let mut builds = Vec::new();
        for id in rows {
            let id = id.map_err(doing("look for builds to replace"))?;
            let id = BuildId::from_bytes(row::bytes("builds", &id)?);
            let mut has_all = true;
            for (name, value) in others {
                has_all &= self.has_tag(id, name, value)?;
            }
            builds.extend(has_all.then_some(id));
        }
        Ok(builds)
    }

    fn has_tag(&self, build: BuildId, name: &str, value: &str) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM build_tags
                    WHERE name = :name AND value = :value AND build = :build)",
            )
            .and_then(|mut select| {
                select.query_row(
                    named_params! { ":name": name, ":value": value, ":build": build.as_bytes() },
                    |row| row.get(0),
                )
            })
            .map_err(doing("read a tag"))
    }

    /// Returns the tags of a build.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn tags_of(&self, build: BuildId) -> Result<Vec<(String, String)>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT name, value FROM build_tags WHERE build = :build
                 ORDER BY name, value LIMIT -1",
            )
            .map_err(doing("read tags"))?;
        let rows = select
            .query_map(named_params! { ":build": build.as_bytes() }, |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(doing("read tags"))?;
        rows.collect::<Result<_, _>>().map_err(doing("read tags"))
    }

    /// Returns the derivation of a build; `None` when there is no such build.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn derivation_of(&self, build: BuildId) -> Result<Option<PathHash>, StoreError> {
        let hash: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT d.hash FROM builds b JOIN derivations d ON d.id = b.derivation
                 WHERE b.id = :id",
            )
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":id": build.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("look for a build"))?;
        hash.map(|hash| row::bytes("derivations", &hash).map(PathHash::from_bytes)).transpose()
    }

    /// Returns the build that made what a derivation makes: its own last success, or else that of
    /// another derivation with the same first output, while all of its outputs are held.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn successful_build(&self, derivation: PathHash) -> Result<Option<BuildId>, StoreError> {
        let own = self.first_build(OWN_SUCCESS_SQL, derivation)?;
        if own.is_some() {
            return Ok(own);
        }
        self.first_build(
            "SELECT b.id FROM derivations d
             JOIN derivation_outputs o ON o.derivation = d.id AND o.position = 0
             JOIN attempt_outputs made ON made.path = o.path
             JOIN attempts a ON a.id = made.attempt AND a.ended = 'succeeded'
             JOIN builds b ON b.id = a.build AND b.state = 'succeeded'
             WHERE d.hash = :hash AND NOT EXISTS (
                SELECT 1 FROM derivation_outputs other WHERE other.derivation = d.id
                    AND NOT EXISTS (SELECT 1 FROM nars n WHERE n.path = other.path))
             ORDER BY b.state_at DESC, b.id DESC LIMIT 1",
            derivation,
        )
    }

    fn first_build(&self, sql: &str, derivation: PathHash) -> Result<Option<BuildId>, StoreError> {
        let id: Option<Vec<u8>> = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut select| {
                select
                    .query_row(named_params! { ":hash": derivation.as_bytes() }, |row| row.get(0))
                    .optional()
            })
            .map_err(doing("look for a build"))?;
        id.map(|id| row::bytes("builds", &id).map(BuildId::from_bytes)).transpose()
    }
}
