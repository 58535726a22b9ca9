//! Signs exports for agents whose Guix daemons take nothing in without.

use super::{
    Coordinator,
    files::{OpenError, open_nar},
};
use crate::{
    core::{hash::Sha256, path_info::PathInfo},
    store::Reader,
};
use tokio::sync::Semaphore;

/// How many nars are read for that at a time: it takes a processor each, and the disk.
const READ_MAX: usize = 4;
static TURNS: Semaphore = Semaphore::const_new(READ_MAX);

/// Returns the signature of the export of a held nar, where the path's store has such.
///
/// # Errors
/// [`OpenError`]; a [`crate::depot::DepotError::Damaged`] file is not what was verified.
pub(super) async fn sign(
    coordinator: &Coordinator,
    info: PathInfo,
    file_hash: Sha256,
) -> Result<Option<String>, OpenError> {
    let depot = coordinator.depot.clone();
    let open = move |reader: &Reader| open_nar(reader, &depot, &file_hash);
    let file = coordinator.readers.read(open).await?;
    let depot = coordinator.depot.clone();
    let _turn = TURNS.acquire().await.expect("the semaphore is never closed");
    let sign = move || depot.export_signature(&info, &file_hash, file);
    let signed = tokio::task::spawn_blocking(sign).await.expect("signing does not panic");
    Ok(signed?)
}
