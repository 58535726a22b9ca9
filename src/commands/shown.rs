//! Builds as they are shown: what the database has of them, and what the engine knows better.

use super::{asking, error::CommandError};
use crate::{
    coordinator::Coordinator,
    core::{build::ShownState, id::BuildId},
    store::{BUILDS_PER_READ_MAX, BuildFilter, BuildRow, StoreError},
};
use std::collections::{BTreeMap, BTreeSet};

/// A build and how it is shown.
#[derive(Debug)]
pub(super) struct ShownBuild {
    pub(super) row: BuildRow,
    pub(super) state: ShownState,
}

/// Returns one build.
pub(super) async fn build(
    coordinator: &Coordinator,
    id: BuildId,
) -> Result<ShownBuild, CommandError> {
    let row = coordinator.readers.read(move |reader| reader.build(id)).await?;
    let rows = resolve(coordinator, row.into_iter().collect()).await?;
    rows.into_iter().next().ok_or_else(|| no_such(id))
}

pub(super) fn no_such(id: BuildId) -> CommandError {
    CommandError::NoSuch(format!("there is no build {id}"))
}

/// Adds to rows of the database how their builds are shown.
///
/// A build may come to its end between the two questions: its row is then read again.
pub(super) async fn resolve(
    coordinator: &Coordinator,
    rows: Vec<BuildRow>,
) -> Result<Vec<ShownBuild>, CommandError> {
    let open: Vec<BuildId> =
        rows.iter().filter(|row| final_state(row).is_none()).map(|row| row.id).collect();
    let mut told = BTreeMap::new();
    let mut ended: BTreeMap<BuildId, BuildRow> = BTreeMap::new();
    if !open.is_empty() {
        told = asking::shown(coordinator, open.clone()).await?;
        let gone = open.into_iter().filter(|id| !told.contains_key(id)).collect();
        for row in rows_of(coordinator, gone).await? {
            ended.insert(row.id, row);
        }
    }
    let mut shown = |row: BuildRow| {
        let row = ended.remove(&row.id).unwrap_or(row);
        let state = match (told.get(&row.id), final_state(&row)) {
            (Some(state), _) => *state,
            (None, Some(state)) => state,
            // It was opened between the questions: nobody can have begun it.
            (None, None) => ShownState::Waiting,
        };
        ShownBuild { row, state }
    };
    Ok(rows.into_iter().map(&mut shown).collect())
}

/// Returns the states of builds; those that do not exist are left out.
pub(super) async fn states(
    coordinator: &Coordinator,
    ids: &BTreeSet<BuildId>,
) -> Result<BTreeMap<BuildId, ShownState>, CommandError> {
    let mut states = asking::shown(coordinator, ids.iter().copied().collect()).await?;
    let rest = ids.iter().copied().filter(|id| !states.contains_key(id)).collect();
    for row in rows_of(coordinator, rest).await? {
        states.insert(row.id, final_state(&row).unwrap_or(ShownState::Waiting));
    }
    Ok(states)
}

/// Returns the rows of builds; those that do not exist are left out.
pub(super) async fn rows_of(
    coordinator: &Coordinator,
    ids: Vec<BuildId>,
) -> Result<Vec<BuildRow>, CommandError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = coordinator
        .readers
        .read(move |reader| {
            let mut rows = Vec::new();
            for some in ids.chunks(BUILDS_PER_READ_MAX) {
                let filter = BuildFilter {
                    ids: Some(some.to_vec()),
                    limit: some.len(),
                    ..BuildFilter::default()
                };
                rows.extend(reader.builds(&filter)?);
            }
            Ok::<_, StoreError>(rows)
        })
        .await?;
    Ok(rows)
}

/// Returns the state of a build that is not open any more.
fn final_state(row: &BuildRow) -> Option<ShownState> {
    ShownState::parse(&row.state).filter(|state| is_final(*state))
}

/// Tells whether nothing but an explicit act changes a state any more.
pub(super) const fn is_final(state: ShownState) -> bool {
    match state {
        ShownState::Succeeded | ShownState::Failed | ShownState::Canceled => true,
        ShownState::Deferred
        | ShownState::Waiting
        | ShownState::Ready
        | ShownState::Blocked
        | ShownState::Held
        | ShownState::Allocated
        | ShownState::Building
        | ShownState::Receiving => false,
    }
}
