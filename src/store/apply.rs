//! Group commit: all changes of a step in one transaction.
//!
//! Every transition names the state it starts from and must find exactly that row; anything else
//! means that memory and disk have parted, and the process must restart from the database.

use super::{Store, StoreError, agents, disputes, doing, nars, unwritten};
use crate::core::{
    attempt::AttemptState,
    build::BuildState,
    change::{BuildRecord, Change, Origin, OutputRecord, Verdict},
    id::{AttemptId, BuildId, Name},
    outcome::AttemptEnd,
    time::Timestamp,
};
use rusqlite::{Connection, named_params};

impl Store {
    /// Makes changes durable, all or none.
    ///
    /// # Errors
    /// Any [`StoreError`]: nothing was changed on disk, memory is ahead, so the process must stop
    /// and start again from the database.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(doing("begin a commit"))?;
        let applied = changes.iter().try_for_each(|change| self.apply(change));
        #[cfg(feature = "sim")]
        let applied = applied.and_then(|()| self.meet_fault());
        match applied {
            Ok(()) => self.connection.execute_batch("COMMIT").map_err(doing("commit")),
            Err(error) => {
                // Ids that were interned in this transaction go with it.
                self.dirs.clear();
                self.classes.clear();
                self.class_at.take();
                self.connection.execute_batch("ROLLBACK").map_err(doing("roll back"))?;
                Err(error)
            }
        }
    }

    fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::Derivation(record) => self.insert_derivation(record),
            Change::Nar(record) => {
                #[cfg(feature = "sim")]
                self.drop_what_is_held(record.info.path.hash())?;
                let dir = self.store_dir(record.info.path.dir())?;
                nars::insert(&self.connection, dir, record)
            }
            Change::UnwrittenNar(file) => unwritten::insert(&self.connection, file),
            Change::NarsWritten { through } => unwritten::remove(&self.connection, *through),
            Change::Signed { path, signatures } => {
                unwritten::sign(&self.connection, *path, signatures)
            }
            Change::Build(record) => insert_build(&self.connection, record),
            Change::BuildMoved { build, from, to, at } => {
                move_build(&self.connection, *build, from, to, *at)
            }
            Change::Attempt { attempt, build, agent, at } => {
                insert_attempt(&self.connection, *attempt, *build, agent, *at)
            }
            Change::AttemptMoved { attempt, to, at } => {
                move_attempt(&self.connection, *attempt, to, *at)
            }
            Change::AttemptReadopted { attempt, at } => {
                readopt_attempt(&self.connection, *attempt, *at)
            }
            Change::DisputedNar { attempt, nar } => {
                let dir = self.store_dir(nar.info.path.dir())?;
                disputes::insert(&self.connection, dir, *attempt, nar)
            }
            Change::Reported { attempt, agent, outputs, at } => {
                disputes::insert_report(&self.connection, *attempt, agent, outputs, *at)
            }
            Change::Outputs { attempt, outputs, verdict } => {
                insert_outputs(&self.connection, *attempt, outputs, *verdict)
            }
            Change::Agent { name, instance, abilities, at } => {
                agents::upsert(&self.connection, name, *instance, abilities, *at)
            }
            Change::AgentSuspended { name, suspension } => {
                agents::suspend(&self.connection, name, suspension.as_ref())
            }
            Change::AgentFailures { name, builds } => {
                agents::note_failures(&self.connection, name, builds)
            }
            Change::AgentRemoved { name } => agents::remove(&self.connection, name),
            Change::Missing { path, at } => nars::insert_missing(&self.connection, *path, *at),
            Change::Published { path, at } => nars::mark_published(&self.connection, *path, *at),
            Change::Audit { fingerprint, principal, line, at } => self
                .connection
                .prepare_cached(
                    "INSERT INTO audit (at, fingerprint, principal, line)
                     VALUES (:at, :fingerprint, :principal, :line)",
                )
                .and_then(|mut insert| {
                    insert.execute(named_params! {
                        ":at": at.as_ms(), ":fingerprint": fingerprint,
                        ":principal": principal.as_str(), ":line": line,
                    })
                })
                .map(drop)
                .map_err(doing("note an audit line")),
        }
    }
}

fn insert_build(connection: &Connection, record: &BuildRecord) -> Result<(), StoreError> {
    let origin = match record.origin {
        Origin::Asked => "asked",
        Origin::Implied => "implied",
    };
    let inserted = connection
        .prepare_cached(
            "INSERT INTO builds (id, derivation, origin, submitter, key, priority, submitted_at,
                timeout_ms, max_silent_ms, state, state_at)
             SELECT :id, derivations.id, :origin, :submitter, :key, :priority, :submitted_at,
                :timeout_ms, :max_silent_ms, :state, :submitted_at
             FROM derivations WHERE hash = :derivation",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":id": record.id.as_bytes(), ":derivation": record.derivation.as_bytes(),
                ":origin": origin, ":submitter": record.submitter.as_str(), ":key": record.key,
                ":priority": record.priority, ":submitted_at": record.submitted.as_ms(),
                ":timeout_ms": record.limits.timeout_ms.map(nars::stored_size),
                ":max_silent_ms": record.limits.max_silent_ms.map(nars::stored_size),
                ":state": record.state.word(),
            })
        })
        .map_err(doing("insert a build"))?;
    if inserted != 1 {
        return Err(StoreError::Diverged(format!("build {} has no derivation", record.id)));
    }
    for (name, value) in &record.tags {
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO build_tags (name, value, build)
                 VALUES (:name, :value, :build)",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! {
                    ":name": name, ":value": value, ":build": record.id.as_bytes(),
                })
            })
            .map_err(doing("tag a build"))?;
    }
    Ok(())
}

/// Moves a build. Leaving a lease without a result counts, and names the agent to avoid.
fn move_build(
    connection: &Connection,
    build: BuildId,
    from: &BuildState,
    to: &BuildState,
    at: Timestamp,
) -> Result<(), StoreError> {
    let attempt = match to {
        BuildState::Succeeded { attempt } | BuildState::Failed { attempt } => Some(*attempt),
        BuildState::Allocated(lease)
        | BuildState::Building(lease)
        | BuildState::Receiving(lease) => Some(lease.attempt),
        BuildState::Deferred { .. } | BuildState::Queued | BuildState::Canceled => None,
    };
    let until = match to {
        BuildState::Deferred { until } => Some(until.as_ms()),
        BuildState::Queued
        | BuildState::Allocated(_)
        | BuildState::Building(_)
        | BuildState::Receiving(_)
        | BuildState::Succeeded { .. }
        | BuildState::Failed { .. }
        | BuildState::Canceled => None,
    };
    let given_back = matches!(to, BuildState::Queued | BuildState::Deferred { .. });
    let avoid = from.lease().filter(|_| given_back).map(|lease| lease.agent.as_str());
    let moved = connection
        .prepare_cached(
            "UPDATE builds SET state = :to, state_at = :at, attempt = :attempt,
                deferred_until = :until,
                infrastructure_ends = infrastructure_ends + (:avoid IS NOT NULL),
                avoid = coalesce(:avoid, avoid)
             WHERE id = :id AND state = :from AND attempt IS :holder",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":id": build.as_bytes(), ":from": from.word(), ":to": to.word(),
                ":at": at.as_ms(), ":attempt": attempt.as_ref().map(AttemptId::as_bytes),
                ":until": until, ":avoid": avoid,
                ":holder": from.lease().map(|lease| lease.attempt.as_bytes()),
            })
        })
        .map_err(doing("move a build"))?;
    if moved == 1 {
        return Ok(());
    }
    Err(StoreError::Diverged(format!("build {build} is not {} in it", from.word())))
}

fn insert_attempt(
    connection: &Connection,
    attempt: AttemptId,
    build: BuildId,
    agent: &Name,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO attempts (id, build, agent, state, allocated_at)
             VALUES (:id, :build, :agent, 'allocated', :at)",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":id": attempt.as_bytes(), ":build": build.as_bytes(),
                ":agent": agent.as_str(), ":at": at.as_ms(),
            })
        })
        .map(drop)
        .map_err(doing("insert an attempt"))
}

fn move_attempt(
    connection: &Connection,
    attempt: AttemptId,
    to: &AttemptState,
    at: Timestamp,
) -> Result<(), StoreError> {
    let (word, detail) = match to {
        AttemptState::Ended(end) => (Some(end.word()), Some(end_json(end)?)),
        AttemptState::Allocated | AttemptState::Building | AttemptState::Receiving => (None, None),
    };
    let moved = connection
        .prepare_cached(
            "UPDATE attempts SET state = :to,
                started_at = CASE :to WHEN 'building' THEN coalesce(started_at, :at)
                    ELSE started_at END,
                built_at = CASE :to WHEN 'receiving' THEN coalesce(built_at, :at)
                    ELSE built_at END,
                ended_at = CASE :to WHEN 'ended' THEN :at END, ended = :ended, detail = :detail
             WHERE id = :id AND state <> 'ended' AND state <> :to",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":id": attempt.as_bytes(), ":to": to.word(), ":at": at.as_ms(),
                ":ended": word, ":detail": detail,
            })
        })
        .map_err(doing("move an attempt"))?;
    if moved == 1 {
        return Ok(());
    }
    Err(StoreError::Diverged(format!("attempt {attempt} cannot become {} in it", to.word())))
}

/// Lets an attempt live again that was given up because its agent was lost. It began when it began.
fn readopt_attempt(
    connection: &Connection,
    attempt: AttemptId,
    at: Timestamp,
) -> Result<(), StoreError> {
    let moved = connection
        .prepare_cached(
            "UPDATE attempts SET state = 'allocated', ended_at = NULL, ended = NULL, detail = NULL,
                readopted_at = :at
             WHERE id = :id AND state = 'ended' AND ended = :lost",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":id": attempt.as_bytes(), ":at": at.as_ms(),
                ":lost": AttemptEnd::AgentLost.word(),
            })
        })
        .map_err(doing("take an attempt back"))?;
    if moved == 1 {
        return Ok(());
    }
    Err(StoreError::Diverged(format!("attempt {attempt} was not lost in it")))
}

fn end_json(end: &AttemptEnd) -> Result<String, StoreError> {
    serde_json::to_string(end)
        .map_err(|error| StoreError::Diverged(format!("an end cannot be written: {error}")))
}

fn insert_outputs(
    connection: &Connection,
    attempt: AttemptId,
    outputs: &[OutputRecord],
    verdict: Verdict,
) -> Result<(), StoreError> {
    for output in outputs {
        // Its agent may have reported them before the attempt was taken back.
        connection
            .prepare_cached(
                "INSERT INTO attempt_outputs (attempt, output, path, nar_hash, nar_bytes)
                 VALUES (:attempt, :output, :path, :nar_hash, :nar_bytes)
                 ON CONFLICT (attempt, output) DO UPDATE SET path = :path, nar_hash = :nar_hash,
                    nar_bytes = :nar_bytes",
            )
            .and_then(|mut insert| {
                insert.execute(named_params! {
                    ":attempt": attempt.as_bytes(), ":output": output.name,
                    ":path": output.path.hash().as_bytes(),
                    ":nar_hash": output.nar_hash.as_bytes(),
                    ":nar_bytes": nars::stored_size(output.nar_bytes),
                })
            })
            .map_err(doing("note an output"))?;
    }
    if verdict == Verdict::Disputed {
        connection
            .prepare_cached("UPDATE attempts SET disputed = 1 WHERE id = :id")
            .and_then(|mut update| update.execute(named_params! { ":id": attempt.as_bytes() }))
            .map_err(doing("note a dispute"))?;
    }
    Ok(())
}
