//! Mends what a check has found, where that is safe: nothing is removed that could still be of use,
//! and whatever is lost is noted as not held.

use super::{
    super::{Coordinator, hygiene::ORPHAN_AGE_MS},
    check::{CheckError, Finding},
};
use crate::{
    core::{
        care::CareChange,
        change::{Change, NarRecord},
        engine::Input,
        hash::Sha256,
        store_path::{PathHash, StorePath},
        time::Timestamp,
    },
    depot::{Surplus, Tree},
};
use std::{collections::BTreeSet, sync::Arc};

/// What can be done about a finding.
#[derive(Debug, Clone)]
pub(super) enum Remedy {
    /// The nar is held no more.
    Lose(Arc<NarRecord>),
    /// It is to be published again.
    PublishAgain(PathHash),
    /// It is held after all.
    Adopt(Arc<NarRecord>),
    /// Its narinfo goes.
    Unlist(Tree, PathHash),
    /// The file of the tree goes.
    RemoveTreeFile(Surplus),
    /// The file of the depot goes.
    RemoveOrphan(Sha256),
    /// What was kept to be compared is forgotten.
    ForgetDispute(StorePath, Sha256),
}

/// Does what can be done about a finding by itself. Returns what was done; `None` when nothing can
/// be.
///
/// # Errors
/// [`CheckError`]; it may be tried again.
pub async fn repair(
    coordinator: &Coordinator,
    finding: &Finding,
) -> Result<Option<&'static str>, CheckError> {
    let Some(remedy) = finding.remedy.clone() else { return Ok(None) };
    let depot = coordinator.depot.clone();
    let at = coordinator.clock.now().wall;
    let done = match remedy {
        Remedy::Lose(nar) => {
            // First the row: files without one do no harm, and are found by the next check.
            coordinator.engine.lose(vec![nar.info.path.hash()]).await?;
            blocking(move || depot.remove_damaged(&nar)).await?;
            "noted as not held"
        }
        Remedy::PublishAgain(path) => {
            record(coordinator, Change::Care(CareChange::Unpublished { path })).await?;
            coordinator.care.publish_again();
            "published again in a moment"
        }
        Remedy::Adopt(nar) => {
            record(coordinator, Change::Nar(nar)).await?;
            "taken in"
        }
        Remedy::Unlist(tree, path) => {
            let held = move |reader: &crate::store::Reader| reader.holds(path);
            if coordinator.readers.read(held).await? {
                // It came meanwhile, and is published as it should be.
                coordinator.care.publish_again();
            } else {
                blocking(move || depot.remove_narinfo(&tree, path)).await?;
            }
            "removed"
        }
        Remedy::RemoveTreeFile(file) => {
            blocking(move || depot.remove_tree_file(&file)).await?;
            "removed"
        }
        Remedy::RemoveOrphan(file) => {
            let before = Timestamp::from_ms(at.as_ms().saturating_sub(ORPHAN_AGE_MS));
            let orphans = BTreeSet::from([file]);
            blocking(move || depot.remove_orphans(&orphans, before)).await?;
            "removed"
        }
        Remedy::ForgetDispute(path, nar_hash) => {
            let forgotten = CareChange::DisputeForgotten { path: path.hash(), nar_hash };
            record(coordinator, Change::Care(forgotten)).await?;
            "forgotten"
        }
    };
    Ok(Some(done))
}

async fn record(coordinator: &Coordinator, change: Change) -> Result<(), CheckError> {
    let changes = vec![change];
    let asked = move |token| Input::Record { token: Some(token), changes };
    coordinator.engine.request(asked).await?;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::depot::DepotError> + Send + 'static,
) -> Result<T, CheckError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))?)
}
