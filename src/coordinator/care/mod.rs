//! The care for what the coordinator keeps: copies of the database, what is checked and mended,
//! what is pruned and withdrawn, and what is measured.
//!
//! Nothing here decides about builds. What is taken out of the database is asked of the engine,
//! which refuses what open builds need; everything that takes long is done on threads that may
//! wait, in pieces between which others have their turn. It is called by `commands`, and by the
//! coordinator's start for what goes on all the time ([`begin`]).

pub mod backup;
pub mod check;
pub mod exposition;
pub mod gc;
pub mod loss;
pub mod meter;
pub mod metrics;
pub mod prune;
pub mod reload;
pub mod repair;
mod textfile;
mod uses;
mod watchdog;

use super::{Coordinator, hygiene, publishing::WeakPublishQueue};
use meter::Meter;
use std::{io, path::Path, sync::Arc};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
pub use uses::Uses;

/// What the care for the database and the depot shares; cheap to clone.
#[derive(Debug, Clone)]
pub struct Care {
    /// What the engine's thread measures of itself.
    pub meter: Meter,
    /// Which nars were used lately.
    pub uses: Uses,
    /// Held while the database is copied.
    pub(crate) copying: Arc<Mutex<()>>,
    /// Held while something goes through all there is: one at a time, or they would undo one
    /// another's work.
    pub(crate) one_at_a_time: Arc<Mutex<()>>,
    /// Where what may be published now is handed to.
    pub(crate) publish: WeakPublishQueue,
}

impl Care {
    /// Begins to care for a state directory: what an earlier process has left of a copy goes.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub(crate) fn new(state_dir: &Path, publish: WeakPublishQueue) -> io::Result<Self> {
        backup::remove_leftovers(state_dir)?;
        let (copying, one_at_a_time) = (Arc::default(), Arc::default());
        let (meter, uses) = (Meter::default(), Uses::default());
        Ok(Self { meter, uses, copying, one_at_a_time, publish })
    }

    /// Has the publishing thread look at everything that is not published, and at everything that
    /// is withdrawn.
    pub(crate) fn publish_again(&self) {
        self.publish.look_again();
    }
}

/// Begins what goes on until canceled.
pub(super) fn begin(coordinator: &Coordinator, cancel: &CancellationToken) {
    let Coordinator { engine, pressure, .. } = coordinator.clone();
    tokio::spawn(pressure.watch(engine.clone(), cancel.clone()));
    tokio::spawn(hygiene::keep_clean(coordinator.clone(), cancel.clone()));
    tokio::spawn(watchdog::run(engine, cancel.clone()));
    tokio::spawn(textfile::run(coordinator.clone(), cancel.clone()));
}
