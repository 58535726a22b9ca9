//! The table of agents: who they are, and what is decided about them.

use super::{AttemptRow, Reader, Store, StoreError, doing, read::read_attempt, row};
use crate::core::{
    agent::{Abilities, Suspension, SuspensionKind},
    engine::SavedAgent,
    id::{BuildId, InstanceId, Name},
    time::Timestamp,
};
use rusqlite::{Connection, Row, named_params};

const TABLE: &str = "agents";
/// How long the id of a build is, in bytes.
const ID_BYTES: usize = 16;

/// Notes an agent's session. What is decided about the agent stays.
pub(super) fn upsert(
    connection: &Connection,
    name: &Name,
    instance: InstanceId,
    abilities: &Abilities,
    at: Timestamp,
) -> Result<(), StoreError> {
    let abilities = serde_json::to_string(abilities)
        .map_err(|error| StoreError::Diverged(format!("abilities cannot be written: {error}")))?;
    connection
        .prepare_cached(
            "INSERT INTO agents (name, instance, abilities, last_seen_at)
             VALUES (:name, :instance, :abilities, :at)
             ON CONFLICT (name) DO UPDATE SET instance = :instance, abilities = :abilities,
                last_seen_at = :at",
        )
        .and_then(|mut upsert| {
            upsert.execute(named_params! {
                ":name": name.as_str(), ":instance": instance.as_bytes(),
                ":abilities": abilities, ":at": at.as_ms(),
            })
        })
        .map(drop)
        .map_err(doing("note an agent"))
}

/// Notes what is decided about an agent.
pub(super) fn suspend(
    connection: &Connection,
    name: &Name,
    suspension: Option<&Suspension>,
) -> Result<(), StoreError> {
    let updated = connection
        .prepare_cached(
            "UPDATE agents SET suspended = :kind, suspended_at = :since, suspended_by = :by,
                suspended_until = :until, suspended_reason = :reason
             WHERE name = :name",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":name": name.as_str(),
                ":kind": suspension.map(|one| one.kind.word()),
                ":since": suspension.map(|one| one.since.as_ms()),
                ":by": suspension.and_then(|one| one.by.as_ref()).map(Name::as_str),
                ":until": suspension.and_then(|one| one.until).map(Timestamp::as_ms),
                ":reason": suspension.and_then(|one| one.reason.as_deref()),
            })
        })
        .map_err(doing("note what is decided about an agent"))?;
    one_row(updated, name)
}

/// Notes the builds that ended through an agent's fault.
pub(super) fn note_failures(
    connection: &Connection,
    name: &Name,
    builds: &[BuildId],
) -> Result<(), StoreError> {
    let ids: Vec<u8> = builds.iter().flat_map(|build| *build.as_bytes()).collect();
    let updated = connection
        .prepare_cached("UPDATE agents SET failures = :failures WHERE name = :name")
        .and_then(|mut update| {
            update.execute(named_params! { ":name": name.as_str(), ":failures": ids })
        })
        .map_err(doing("note an agent's failures"))?;
    one_row(updated, name)
}

/// Forgets an agent. Its attempts stay, by its name.
pub(super) fn remove(connection: &Connection, name: &Name) -> Result<(), StoreError> {
    let deleted = connection
        .prepare_cached("DELETE FROM agents WHERE name = :name")
        .and_then(|mut delete| delete.execute(named_params! { ":name": name.as_str() }))
        .map_err(doing("forget an agent"))?;
    one_row(deleted, name)
}

fn one_row(rows: usize, name: &Name) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Diverged(format!("it has no agent {name}"))) }
}

impl Store {
    /// Returns all agents that were ever seen and not removed.
    pub(super) fn agents(&self) -> Result<Vec<SavedAgent>, StoreError> {
        let mut select = self
            .connection
            .prepare(
                "SELECT name, instance, abilities, last_seen_at, failures, suspended, suspended_at,
                    suspended_by, suspended_until, suspended_reason
                 FROM agents ORDER BY name LIMIT -1",
            )
            .map_err(doing("read agents"))?;
        let rows = select.query_map([], |row| Ok(read_agent(row))).map_err(doing("read agents"))?;
        let mut agents = Vec::new();
        for agent in rows {
            agents.push(agent.map_err(doing("read agents"))??);
        }
        Ok(agents)
    }
}

impl Reader {
    /// Returns how many attempts of an agent that were given to it since then told something of
    /// their builds: they succeeded, or the build failed.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn results_of_agent(&self, agent: &Name, since: Timestamp) -> Result<u64, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT count(*) FROM attempts WHERE agent = :agent AND allocated_at >= :since
                    AND (ended = 'succeeded' OR detail LIKE '{\"failed\":%')",
            )
            .and_then(|mut select| {
                select.query_row(
                    named_params! { ":agent": agent.as_str(), ":since": since.as_ms() },
                    |row| row.get::<_, i64>(0),
                )
            })
            .map(|count| u64::try_from(count).unwrap_or(0))
            .map_err(doing("count an agent's results"))
    }

    /// Returns the attempts that an agent was given last, the latest first.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn attempts_of_agent(
        &self,
        agent: &Name,
        limit: u32,
    ) -> Result<Vec<AttemptRow>, StoreError> {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT id, build, agent, state, allocated_at, started_at, built_at, ended_at,
                    detail, disputed, readopted_at, reported_at, emulated
                 FROM attempts WHERE agent = :agent
                 ORDER BY allocated_at DESC, id DESC LIMIT :limit",
            )
            .map_err(doing("read an agent's attempts"))?;
        let rows = select
            .query_map(named_params! { ":agent": agent.as_str(), ":limit": limit }, |row| {
                Ok(read_attempt(row))
            })
            .map_err(doing("read an agent's attempts"))?;
        let mut attempts = Vec::new();
        for attempt in rows {
            attempts.push(attempt.map_err(doing("read an agent's attempts"))??);
        }
        Ok(attempts)
    }
}

fn read_agent(row: &Row<'_>) -> Result<SavedAgent, StoreError> {
    let sql = doing("read an agent");
    let instance: Vec<u8> = row.get(1).map_err(&sql)?;
    let failures: Vec<u8> = row.get(4).map_err(&sql)?;
    let (ids, rest) = failures.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        return Err(StoreError::Damaged { table: TABLE, what: "half an id".to_owned() });
    }
    Ok(SavedAgent {
        name: row::parsed(TABLE, &row.get::<_, String>(0).map_err(&sql)?)?,
        instance: InstanceId::from_bytes(row::bytes(TABLE, &instance)?),
        abilities: row::json(TABLE, &row.get::<_, String>(2).map_err(&sql)?)?,
        last_seen: Timestamp::from_ms(row.get(3).map_err(&sql)?),
        suspension: read_suspension(row)?,
        failures: ids.iter().copied().map(BuildId::from_bytes).collect(),
    })
}

fn read_suspension(row: &Row<'_>) -> Result<Option<Suspension>, StoreError> {
    let sql = doing("read an agent");
    let Some(word) = row.get::<_, Option<String>>(5).map_err(&sql)? else { return Ok(None) };
    let kind =
        SuspensionKind::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| {
            StoreError::Damaged { table: TABLE, what: format!("‘{word}’ is no state") }
        })?;
    let by: Option<String> = row.get(7).map_err(&sql)?;
    Ok(Some(Suspension {
        kind,
        since: Timestamp::from_ms(row.get(6).map_err(&sql)?),
        by: by.as_deref().map(|name| row::parsed(TABLE, name)).transpose()?,
        until: row.get::<_, Option<i64>>(8).map_err(&sql)?.map(Timestamp::from_ms),
        reason: row.get(9).map_err(&sql)?,
    }))
}
