//! The thread that moves verified nars into the depot: many at a time, and synced once.
//!
//! A sync costs about the same for one small file as for a hundred. What arrives while one is
//! under way waits for the next, so a farm of small builds pays for one sync per batch, and a
//! single build does not wait for others.

use crate::{
    core::change::NarRecord,
    depot::{Depot, DepotError, VerifiedNar},
    telemetry::{self, Clock},
};
use std::{io, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// How many uploads may wait to be kept; more wait before they are handed over.
const WAITING_MAX: usize = 256;

/// The outputs of one attempt.
struct Keep {
    nars: Vec<VerifiedNar>,
    answer: oneshot::Sender<Result<Vec<Arc<NarRecord>>, DepotError>>,
}

/// The way to the thread; cheap to clone. The thread ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Keeper(mpsc::Sender<Keep>);

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(depot: Depot, clock: Clock) -> io::Result<Self> {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || run(&depot, clock, waiting))?;
        Ok(Self(sender))
    }

    /// Moves nars into the depot. They are durable when this returns.
    ///
    /// # Errors
    /// When a file cannot be moved or the disk fails. Nothing may be recorded then.
    pub(super) async fn keep(
        &self,
        nars: Vec<VerifiedNar>,
    ) -> Result<Vec<Arc<NarRecord>>, DepotError> {
        if nars.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        let ended = || DepotError::from(io::Error::other("the thread that keeps nars has ended"));
        self.0.send(Keep { nars, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn run(depot: &Depot, clock: Clock, mut waiting: mpsc::Receiver<Keep>) {
    let mut batch = Vec::with_capacity(WAITING_MAX);
    while waiting.blocking_recv_many(&mut batch, WAITING_MAX) > 0 {
        let at = clock.now().wall;
        let mut moved = Vec::with_capacity(batch.len());
        for Keep { nars, answer } in batch.drain(..) {
            let keep = |nar| depot.keep(nar, at).map(Arc::new);
            moved.push((nars.into_iter().map(keep).collect::<Result<Vec<_>, _>>(), answer));
        }
        let kept: Vec<&NarRecord> = moved
            .iter()
            .filter_map(|(kept, _)| kept.as_deref().ok())
            .flatten()
            .map(Arc::as_ref)
            .collect();
        let synced = depot.sync_nars(kept.into_iter()).map_err(|error| telemetry::chain(&error));
        for (kept, answer) in moved {
            let kept = match &synced {
                Ok(()) => kept,
                Err(text) => Err(DepotError::from(io::Error::other(text.clone()))),
            };
            if answer.send(kept).is_err() {
                // The agent went away; it offers again and finds the same bytes here.
                tracing::debug!("nars kept for an offer that was given up");
            }
        }
    }
}
