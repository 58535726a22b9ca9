//! Forgets builds that ended long ago.

use super::super::{Coordinator, engine_thread::EngineGone};
use crate::{
    core::{
        care::Forget,
        engine::{Answer, Input},
        id::{AttemptId, BuildId},
        time::Timestamp,
    },
    store::{Reader, StoreError},
};
use std::{collections::BTreeSet, io};

/// How many pages of the database are given back at a time: a MiB, so that nobody waits long.
const PAGES_PER_STEP: u32 = 256;

/// What was pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Builds.
    pub builds: u64,
    /// Their attempts.
    pub attempts: u64,
    /// Builds that are as old and stay, because open builds concern their derivations.
    pub kept: u64,
    /// By how much the database is shorter, in bytes.
    pub bytes: u64,
}

/// Why not everything was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The process is stopping; what was pruned is.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Logs cannot be removed.
    #[error("logs cannot be removed")]
    Logs(#[source] io::Error),
}

/// Returns how many builds and attempts were over before a time.
///
/// # Errors
/// [`PruneError::Store`].
pub async fn count(coordinator: &Coordinator, before: Timestamp) -> Result<Pruned, PruneError> {
    coordinator
        .readers
        .read(move |reader: &Reader| {
            let (mut pruned, mut after) = (Pruned::default(), None);
            loop {
                let (found, mark) = reader.finished_before(before, after)?;
                if mark.is_none() {
                    return Ok(pruned);
                }
                after = mark;
                pruned.builds += found.len() as u64;
                pruned.attempts += found.iter().map(|one| one.attempts.len() as u64).sum::<u64>();
            }
        })
        .await
}

/// Forgets builds that were over before a time, with their attempts and logs, some hundreds at a
/// time, and gives back the room. Stopped anywhere, the rest is found the next time.
///
/// # Errors
/// [`PruneError`].
pub async fn prune(coordinator: &Coordinator, before: Timestamp) -> Result<Pruned, PruneError> {
    let (mut pruned, mut after) = (Pruned::default(), None);
    loop {
        let look = move |reader: &Reader| reader.finished_before(before, after);
        let (found, mark) = coordinator.readers.read(look).await?;
        if mark.is_none() {
            break;
        }
        after = mark;
        let builds: Vec<_> = found.iter().map(|one| one.over.clone()).collect();
        let asked = |token| Input::Forget { token, what: Forget::Builds(builds) };
        let forgotten: BTreeSet<BuildId> = match coordinator.engine.request(asked).await? {
            Answer::Forgotten(forgotten) => forgotten.builds.into_iter().collect(),
            _ => BTreeSet::new(),
        };
        let gone = found.iter().filter(|one| forgotten.contains(&one.over.build));
        let logs: Vec<AttemptId> = gone.flat_map(|one| one.attempts.iter().copied()).collect();
        pruned.builds += forgotten.len() as u64;
        pruned.kept += found.len().saturating_sub(forgotten.len()) as u64;
        pruned.attempts += logs.len() as u64;
        coordinator.logs.remove(logs).await.map_err(PruneError::Logs)?;
    }
    pruned.bytes = give_back(coordinator).await?;
    Ok(pruned)
}

/// Gives back what the database does not use. Returns by how much it is shorter.
async fn give_back(coordinator: &Coordinator) -> Result<u64, EngineGone> {
    // Of pages that are not free at the end of the file, SQLite moves others into their place.
    let before = coordinator.engine.give_back(0).await?;
    let mut left = before;
    while left > 0 {
        let now = coordinator.engine.give_back(PAGES_PER_STEP).await?;
        if now >= left {
            break;
        }
        left = now;
    }
    Ok(before.saturating_sub(left).saturating_mul(PAGE_BYTES))
}

/// How long a page is: what SQLite chooses unless it is told otherwise.
const PAGE_BYTES: u64 = 4_096;
