//! Where the compressed file of a nar is: with the database while it is to be written out, in the
//! depot ever after.

use crate::{
    core::hash::Sha256,
    depot::{Depot, DepotError, OpenNar},
    store::{Reader, StoreError},
};
use std::io::Cursor;

/// Why the file of a nar cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not there, or the depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
}

/// Opens the file of a nar that is held.
///
/// # Errors
/// [`OpenError`]; a lost file is a [`DepotError::NotHeld`].
pub fn open_nar(reader: &Reader, depot: &Depot, hash: &Sha256) -> Result<OpenNar, OpenError> {
    // In this order: what is being written out is in the depot torn, and leaves the database when
    // it is there as a whole.
    match reader.unwritten_file(hash)? {
        Some(bytes) => Ok(OpenNar::Unwritten(Cursor::new(bytes))),
        None => Ok(depot.open_nar(hash)?),
    }
}
