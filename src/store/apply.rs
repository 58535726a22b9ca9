//! Group commit: all changes of a step in one transaction.
//!
//! Every transition names the state it starts from and must find exactly that row; anything else
//! means that memory and disk have parted, and the process must restart from the database.

use super::{
    Store, StoreError, accounts, agents, amendments, audit, disputes, doing, enrollment, events,
    hooks, nars, unwritten,
};
use crate::core::{
    attempt::AttemptState,
    build::{Blame, BuildState},
    change::{BuildRecord, Change, Origin, OutputRecord, Verdict},
    event::{self, Cursor},
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
        // In the same transaction, so that neither is ever without the other.
        let applied = applied.and_then(|()| {
            events::append(&self.connection, self.last_event, &event::told(changes))
        });
        #[cfg(feature = "sim")]
        let applied = applied.and_then(|last| self.meet_fault().map(|()| last));
        match applied {
            Ok(last) => {
                self.connection.execute_batch("COMMIT").map_err(doing("commit"))?;
                self.last_event = last;
                Ok(())
            }
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

    /// Returns the place of the last event that is durable.
    #[must_use]
    pub const fn last_event(&self) -> Cursor {
        self.last_event
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
            Change::BuildMoved { build, from, to, blame, at } => {
                move_build(&self.connection, *build, (from, to), *blame, *at)
            }
            Change::BuildAmended { build, amendment } => {
                amendments::amend(&self.connection, *build, amendment)
            }
            Change::Attempt { attempt, build, agent, emulated, at } => {
                let ids = (*attempt, *build);
                insert_attempt(&self.connection, ids, agent, *emulated, *at)
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
            Change::Account { name, usage } => accounts::charge(&self.connection, name, *usage),
            Change::AgentRemoved { name } => agents::remove(&self.connection, name),
            // Written behind all others, with those that other changes tell.
            Change::Event(_) => Ok(()),
            Change::EventsForgotten { through } => events::forget(&self.connection, *through),
            Change::Hook(change) => hooks::write(&self.connection, change),
            Change::Missing { path, at } => nars::insert_missing(&self.connection, *path, *at),
            Change::Published { path, at } => nars::mark_published(&self.connection, *path, *at),
            Change::Audit(change) => audit::apply(&self.connection, change),
            Change::Enrollment(change) => enrollment::apply(&self.connection, change),
            Change::Care(change) => self.apply_care(change),
        }
    }
}

fn insert_build(connection: &Connection, record: &BuildRecord) -> Result<(), StoreError> {
    let origin = match record.origin {
        Origin::Asked => "asked",
        Origin::Implied => "implied",
    };
    let demands = amendments::demands_json(&record.demands)?;
    let inserted = connection
        .prepare_cached(
            "INSERT INTO builds (id, derivation, origin, submitter, key, priority, submitted_at,
                timeout_ms, max_silent_ms, state, state_at, deferred_until, demands, not_before)
             SELECT :id, derivations.id, :origin, :submitter, :key, :priority, :submitted_at,
                :timeout_ms, :max_silent_ms, :state, :submitted_at, :until, :demands, :not_before
             FROM derivations WHERE hash = :derivation",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":id": record.id.as_bytes(), ":derivation": record.derivation.as_bytes(),
                ":origin": origin, ":submitter": record.submitter.as_str(), ":key": record.key,
                ":priority": record.priority, ":submitted_at": record.submitted.as_ms(),
                ":timeout_ms": record.limits.timeout_ms.map(nars::stored_size),
                ":max_silent_ms": record.limits.max_silent_ms.map(nars::stored_size),
                ":state": record.state.word(), ":until": deferred_until(&record.state),
                ":demands": demands, ":not_before": record.not_before.map(Timestamp::as_ms),
            })
        })
        .map_err(doing("insert a build"))?;
    if inserted != 1 {
        return Err(StoreError::Diverged(format!("build {} has no derivation", record.id)));
    }
    amendments::insert_tags(connection, record.id, &record.tags)
}

/// Returns when a deferred build is queued again, in milliseconds.
const fn deferred_until(state: &BuildState) -> Option<i64> {
    match state {
        BuildState::Deferred { until } => Some(until.as_ms()),
        BuildState::Queued
        | BuildState::Allocated(_)
        | BuildState::Building(_)
        | BuildState::Receiving(_)
        | BuildState::Succeeded { .. }
        | BuildState::Failed { .. }
        | BuildState::Canceled => None,
    }
}

/// Moves a build. When an attempt ended and the build is tried again, that counts, and its agent is
/// to be avoided.
fn move_build(
    connection: &Connection,
    build: BuildId,
    (from, to): (&BuildState, &BuildState),
    blame: Option<Blame>,
    at: Timestamp,
) -> Result<(), StoreError> {
    let (infrastructure, failures) = match blame {
        None => (0, 0),
        Some(Blame::Infrastructure) => (1, 0),
        Some(Blame::Build) => (0, 1),
    };
    let (holder, attempt) = (from.attempt(), to.attempt());
    let moved = connection
        .prepare_cached(
            "UPDATE builds SET state = :to, state_at = :at, attempt = :attempt,
                deferred_until = :until,
                infrastructure_ends = infrastructure_ends + :infrastructure,
                failures = failures + :failures,
                avoid = CASE :infrastructure + :failures WHEN 0 THEN avoid
                    ELSE (SELECT agent FROM attempts WHERE id = :holder) END
             WHERE id = :id AND state = :from AND attempt IS :holder",
        )
        .and_then(|mut update| {
            update.execute(named_params! {
                ":id": build.as_bytes(), ":from": from.word(), ":to": to.word(),
                ":at": at.as_ms(), ":attempt": attempt.as_ref().map(AttemptId::as_bytes),
                ":until": deferred_until(to), ":infrastructure": infrastructure,
                ":failures": failures, ":holder": holder.as_ref().map(AttemptId::as_bytes),
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
    (attempt, build): (AttemptId, BuildId),
    agent: &Name,
    emulated: bool,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO attempts (id, build, agent, state, allocated_at, emulated)
             VALUES (:id, :build, :agent, 'allocated', :at, :emulated)",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":id": attempt.as_bytes(), ":build": build.as_bytes(),
                ":agent": agent.as_str(), ":at": at.as_ms(), ":emulated": emulated,
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
