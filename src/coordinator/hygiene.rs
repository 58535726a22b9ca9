//! Removes from time to time what nobody will go on with: uploads of attempts that are over, files
//! of the depot that no row speaks of, events of long ago, and old lines of the audit.

use super::{Coordinator, engine_thread::EngineGone};
use crate::{
    config::Config,
    core::{
        audit::AuditChange,
        change::Change,
        engine::{Ask, Input, Told},
        time::Timestamp,
    },
    depot::DepotError,
    store::{Reader, StoreError},
    telemetry,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often uploads are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);
/// How often the depot is looked through, which takes long when it is large: every so many sweeps,
/// beginning with the first.
const ORPHANS_EVERY: u64 = 24;
/// How old an orphan is before it is removed. Between a file and its row lies the rest of a
/// submission; this is more than any takes.
pub(super) const ORPHAN_AGE_MS: i64 = 24 * 60 * 60 * 1_000;

/// How often old events are looked for.
const FORGET_INTERVAL: Duration = Duration::from_mins(1);
/// The least number of events that is kept, whatever is configured: more than a lane of hooks
/// passes over before it writes that down.
const EVENTS_KEPT_MIN: u64 = 10_000;
/// How long a day is, in milliseconds.
const DAY_MS: i64 = 86_400_000;
/// How many lines of the audit go in one commit, so that builds do not wait for it.
const AUDIT_LINES_PER_SWEEP: u32 = 2_000;

/// Why a sweep was given up.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
}

/// Sweeps until canceled.
pub(super) async fn keep_clean(coordinator: Coordinator, cancel: CancellationToken) {
    let mut sweeps = interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0u64.. {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = sweeps.tick() => {}
        }
        let swept = async {
            sweep_uploads(&coordinator).await?;
            sweep_audit(&coordinator).await?;
            let now = coordinator.clock.now().wall;
            coordinator.care.uses.write_down(&coordinator.engine, now).await?;
            // Files of nars that were withdrawn long ago are due one day.
            coordinator.care.publish_again();
            if number % ORPHANS_EVERY == 0 {
                let before = coordinator.clock.now().wall.as_ms().saturating_sub(ORPHAN_AGE_MS);
                sweep_orphans(&coordinator, Timestamp::from_ms(before)).await?;
            }
            Ok::<_, SweepError>(())
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            swept = swept => if let Err(error) = swept {
                tracing::warn!(error = telemetry::chain(&error), "sweep given up until the next one");
            }
        }
    }
}

/// Forgets old events until canceled, a few at a time, so that no commit waits long.
pub(super) async fn forget_events(
    coordinator: Coordinator,
    config: Config,
    cancel: CancellationToken,
) {
    let mut looks = interval(FORGET_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = looks.tick() => {}
        }
        let age_ms = i64::from(config.events_keep_days).saturating_mul(DAY_MS);
        let before = coordinator.clock.now().wall.plus_ms(age_ms.saturating_neg());
        let keep = config.events_keep.max(EVENTS_KEPT_MIN);
        tokio::select! {
            () = cancel.cancelled() => return,
            forgotten = forget_events_before(&coordinator, before, keep) => {
                if let Err(error) = forgotten {
                    let error = telemetry::chain(&error);
                    tracing::warn!(error, "old events are kept until the next look");
                }
            }
        }
    }
}

/// Forgets the events before a time, and all but the last `keep`.
pub(super) async fn forget_events_before(
    coordinator: &Coordinator,
    before: Timestamp,
    keep: u64,
) -> Result<(), SweepError> {
    loop {
        let found = coordinator.readers.read(move |reader| reader.events_to_forget(before, keep));
        let Some(through) = found.await? else { return Ok(()) };
        let changes = vec![Change::EventsForgotten { through }];
        let record = move |token| Input::Record { token: Some(token), changes };
        coordinator.engine.request(record).await?;
    }
}

/// Removes lines of the audit that are old enough.
pub(super) async fn sweep_audit(coordinator: &Coordinator) -> Result<(), SweepError> {
    let days = i64::from(coordinator.config.lock().await.audit_keep_days);
    let now = coordinator.clock.now().wall;
    let before = now.plus_ms(days.saturating_mul(DAY_MS).saturating_neg());
    loop {
        let is_old = move |reader: &Reader| reader.audit_reaches_before(before);
        if !coordinator.readers.read(is_old).await? {
            return Ok(());
        }
        let prune = AuditChange::Pruned { before, most: AUDIT_LINES_PER_SWEEP };
        let changes = vec![Change::Audit(Box::new(prune))];
        coordinator.engine.request(|token| Input::Record { token: Some(token), changes }).await?;
    }
}

/// Removes what was received of attempts that are over.
pub(super) async fn sweep_uploads(coordinator: &Coordinator) -> Result<(), SweepError> {
    let depot = coordinator.depot.clone();
    let staged = spawn_blocking(move || depot.staged()).await.expect("listing does not panic")?;
    let mut over = coordinator.transfers.staging.attempts();
    over.extend(staged.keys());
    for attempt in over.clone() {
        let Told::Attempt(None) = coordinator.engine.ask(Ask::Attempt(attempt)).await? else {
            over.remove(&attempt);
            continue;
        };
    }
    if over.is_empty() {
        return Ok(());
    }
    coordinator.transfers.staging.release_all(&over);
    let depot = coordinator.depot.clone();
    // Only those: what began after the question is of an attempt that lives.
    let sweep = spawn_blocking(move || depot.sweep_incoming(|attempt| !over.contains(&attempt)));
    let found = sweep.await.expect("sweeping does not panic")?;
    if found.removed > 0 {
        tracing::info!(removed = found.removed, kept = found.files, "abandoned uploads removed");
    }
    Ok(())
}

/// Removes files of the depot that came before `before` and that no row speaks of.
pub(super) async fn sweep_orphans(
    coordinator: &Coordinator,
    before: Timestamp,
) -> Result<(), SweepError> {
    let depot = coordinator.depot.clone();
    let removed = coordinator
        .readers
        .read(move |reader| {
            // The rows are read behind the files: a row that comes later has a file that is newer.
            let mut orphans = depot.unpublished_files(before)?;
            forget_recorded(reader, &mut orphans)?;
            Ok::<_, SweepError>(depot.remove_orphans(&orphans, before)?)
        })
        .await?;
    if removed > 0 {
        tracing::info!(removed, "files of the depot removed that nothing speaks of");
    }
    Ok(())
}

/// Takes out the files that rows speak of.
pub(super) fn forget_recorded(
    reader: &Reader,
    files: &mut BTreeSet<crate::core::hash::Sha256>,
) -> Result<(), StoreError> {
    for file in reader.disputed_files()? {
        files.remove(&file);
    }
    let mut after = None;
    while !files.is_empty() {
        let page = reader.nar_files(after)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(*last);
        for (_, file) in &page {
            files.remove(file);
        }
    }
    Ok(())
}
