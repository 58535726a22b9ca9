//! The thread that makes durable nars visible in the published tree.
//!
//! The nar files are in the tree before the database knows of them; what happens here is only the
//! small file that makes a path visible, when everything the path refers to is visible too. What
//! was interrupted is done again at the next start.

use super::engine_thread::EngineHandle;
use crate::{
    core::{
        change::{Change, NarRecord},
        engine::Input,
        store_path::StorePath,
    },
    depot::{DepotError, Publisher},
    store::{Reader, StoreError},
    telemetry::{self, Clock},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, SyncSender, sync_channel},
};

/// How many batches of paths may wait. Beyond that the thread looks through the database instead.
const BATCHES_MAX: usize = 1_024;

/// Where paths to publish are put; never waits.
#[derive(Debug, Clone)]
pub struct PublishQueue {
    batches: SyncSender<Vec<StorePath>>,
    missed: Arc<AtomicBool>,
}

impl PublishQueue {
    /// Hands paths over whose nars are durable.
    pub fn push(&self, paths: Vec<StorePath>) {
        if self.batches.try_send(paths).is_err() {
            self.missed.store(true, Ordering::Release);
        }
    }
}

/// What the thread will be started with, once the engine it reports to exists.
#[derive(Debug)]
pub struct Publishing {
    batches: Receiver<Vec<StorePath>>,
    missed: Arc<AtomicBool>,
}

/// Returns both ends of the queue.
#[must_use]
pub fn queue() -> (PublishQueue, Publishing) {
    let (sender, batches) = sync_channel(BATCHES_MAX);
    let missed = Arc::new(AtomicBool::new(false));
    (PublishQueue { batches: sender, missed: Arc::clone(&missed) }, Publishing { batches, missed })
}

/// Why publishing had to stop.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Depot(#[from] DepotError),
}

impl Publishing {
    /// Starts the thread: it first publishes what a stop has interrupted.
    ///
    /// # Panics
    /// When the system has no thread left.
    pub fn start(self, publisher: Publisher, reader: Reader, engine: EngineHandle, clock: Clock) {
        let publishing = Running { queue: self, publisher, reader, engine, clock };
        std::thread::Builder::new()
            .name("publishing".to_owned())
            .spawn(move || publishing.run())
            .expect("a thread can be started");
    }
}

struct Running {
    queue: Publishing,
    publisher: Publisher,
    reader: Reader,
    engine: EngineHandle,
    clock: Clock,
}

impl Running {
    fn run(mut self) {
        self.report("publishing what is left over", Self::everything);
        while let Ok(mut paths) = self.queue.batches.recv() {
            // What waits is published together: a sync costs the same for one path as for many.
            paths.extend(self.queue.batches.try_iter().take(BATCHES_MAX).flatten());
            self.report("publishing", |running| running.these(&paths));
            if self.queue.missed.swap(false, Ordering::AcqRel) {
                self.report("publishing what is left over", Self::everything);
            }
        }
    }

    /// A path that could not be published now is published at the next start.
    fn report(
        &mut self,
        doing: &'static str,
        what: impl FnOnce(&mut Self) -> Result<(), PublishError>,
    ) {
        if let Err(error) = what(self) {
            tracing::error!(doing, error = telemetry::chain(&error), "publishing failed");
        }
    }

    fn everything(&mut self) -> Result<(), PublishError> {
        let mut after = None;
        loop {
            let page = self.reader.unpublished(after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.info.path.hash());
            self.publish(page)?;
        }
    }

    fn these(&mut self, paths: &[StorePath]) -> Result<(), PublishError> {
        let mut records = Vec::with_capacity(paths.len());
        for path in paths {
            records.extend(self.reader.nar(path.hash())?);
        }
        self.publish(records)
    }

    fn publish(&mut self, records: Vec<NarRecord>) -> Result<(), PublishError> {
        let report = self.publisher.publish(records.into_iter().map(Arc::new).collect())?;
        for (path, why) in &report.unpublished {
            tracing::debug!(%path, ?why, "not published yet");
        }
        let visible = report.visible;
        if visible.is_empty() {
            return Ok(());
        }
        let at = self.clock.now().wall;
        let changes =
            visible.into_iter().map(|path| Change::Published { path: path.hash(), at }).collect();
        // When the engine is gone, the next start finds these rows unmarked and marks them.
        self.engine.tell_blocking(Input::Record { token: None, changes }).ok();
        Ok(())
    }
}
