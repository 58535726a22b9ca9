//! The thread that makes durable nars visible in the published tree.
//!
//! The files of small nars are written out first, out of the database that has kept them so far.
//! Then comes the small file that makes a path visible, when everything the path refers to is
//! visible too. Nobody waits for either, so what comes shortly behind each other is done together,
//! and behind what is more urgent. What was interrupted is done again at the next start.

use super::{
    engine_thread::{EngineGone, EngineHandle, Recording},
    forms::FormQueue,
    hygiene::{ORPHAN_AGE_MS, forget_recorded},
    small::Room,
};
use crate::{
    core::{
        care::CareChange,
        change::{Change, NarRecord},
        engine::Input,
        hash::Sha256,
        store_path::StorePath,
        time::Timestamp,
    },
    depot::{Depot, DepotError, Publisher, Unpublished},
    store::{Reader, StoreError},
    telemetry::{self, Clock},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

/// How many batches of paths may wait. Beyond that the thread looks through the database instead.
const BATCHES_MAX: usize = 1_024;

/// How long nothing must come before what has come is published, in milliseconds: a farm that
/// delivers many small outputs is delivering the next ones.
const QUIET_MS: u64 = 20;
/// How long the first of them waits at most, in milliseconds.
const WAIT_MS_MAX: u64 = 500;
/// After how long it is tried again when the disk did not take everything, in milliseconds.
const RETRY_MS: u64 = 10_000;
/// How much less urgent this thread is than others; the scale ends at 19.
const NICENESS: i32 = 10;

/// Where paths to publish are put; never waits.
#[derive(Debug, Clone)]
pub struct PublishQueue {
    batches: Arc<SyncSender<Vec<StorePath>>>,
    missed: Arc<AtomicBool>,
}

/// The same queue, for a thread that must not keep it open.
#[derive(Debug, Clone)]
pub struct WeakPublishQueue {
    batches: Weak<SyncSender<Vec<StorePath>>>,
    missed: Arc<AtomicBool>,
}

impl WeakPublishQueue {
    /// Hands paths over that may be publishable now; without effect when nobody publishes any more.
    pub fn push(&self, paths: Vec<StorePath>) {
        if let Some(batches) = self.batches.upgrade() {
            PublishQueue { batches, missed: Arc::clone(&self.missed) }.push(paths);
        }
    }

    /// Lets all that is not published be looked at again.
    pub fn look_again(&self) {
        self.missed.store(true, Ordering::Release);
        self.push(Vec::new());
    }
}

impl PublishQueue {
    /// Returns the same queue without keeping it open.
    #[must_use]
    pub fn weak(&self) -> WeakPublishQueue {
        let batches = Arc::downgrade(&self.batches);
        WeakPublishQueue { batches, missed: Arc::clone(&self.missed) }
    }

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
    let queue = PublishQueue { batches: Arc::new(sender), missed: Arc::clone(&missed) };
    (queue, Publishing { batches, missed })
}

/// Why publishing had to stop.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Depot(#[from] DepotError),
    #[error(transparent)]
    Stopping(#[from] EngineGone),
}

/// What the thread works with.
pub(super) struct Outlet {
    pub(super) depot: Depot,
    /// A connection of its own.
    pub(super) reader: Reader,
    pub(super) engine: EngineHandle,
    /// What makes the other forms of nars.
    pub(super) forms: FormQueue,
    /// The room of what is not written out yet.
    pub(super) unwritten: Room,
}

impl Publishing {
    /// Starts the thread: it first publishes what a stop has interrupted.
    ///
    /// # Panics
    /// When the system has no thread left.
    pub(super) fn start(self, publisher: Publisher, outlet: Outlet, clock: Clock) {
        let publishing = Running { queue: self, publisher, outlet, clock, is_behind: true };
        std::thread::Builder::new()
            .name("publishing".to_owned())
            .spawn(move || publishing.run())
            .expect("a thread can be started");
    }
}

struct Running {
    queue: Publishing,
    publisher: Publisher,
    outlet: Outlet,
    clock: Clock,
    /// Whether there is more to do than what is handed over.
    is_behind: bool,
}

impl Running {
    fn run(mut self) {
        // Of this thread only; without it, it is merely as urgent as others.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "publishing is as urgent as everything else");
        }
        self.publish_all(&[]);
        loop {
            let first = if self.is_behind {
                self.queue.batches.recv_timeout(Duration::from_millis(RETRY_MS))
            } else {
                self.queue.batches.recv().map_err(RecvTimeoutError::from)
            };
            match first {
                Ok(paths) => {
                    let paths = self.gather(paths);
                    self.publish_all(&paths);
                }
                Err(RecvTimeoutError::Timeout) => self.publish_all(&[]),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Adds what comes shortly behind: a sync costs the same for one path as for many.
    fn gather(&self, mut paths: Vec<StorePath>) -> Vec<StorePath> {
        let now = || self.clock.now().mono.as_ms();
        let until = now().saturating_add(WAIT_MS_MAX);
        loop {
            let left = until.saturating_sub(now()).min(QUIET_MS);
            match self.queue.batches.recv_timeout(Duration::from_millis(left)) {
                Ok(more) => paths.extend(more),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return paths,
            }
        }
    }

    /// Writes out and publishes these paths, and all others when something was left before.
    fn publish_all(&mut self, paths: &[StorePath]) {
        let is_behind = self.queue.missed.swap(false, Ordering::AcqRel) || self.is_behind;
        let published = self
            .write_out()
            .and_then(|()| if is_behind { self.withdraw() } else { Ok(()) })
            .and_then(|()| if is_behind { self.everything() } else { self.these(paths) });
        self.is_behind = published.is_err();
        if let Err(error) = published {
            tracing::error!(
                error = telemetry::chain(&error),
                "publishing failed: it is tried again"
            );
        }
    }

    /// Makes files of what the database has kept.
    fn write_out(&self) -> Result<(), PublishError> {
        let Outlet { depot, reader, engine, unwritten, .. } = &self.outlet;
        while let Some((through, files)) = reader.unwritten()? {
            depot.write_out(&files)?;
            engine.record_blocking(vec![Change::NarsWritten { through }])?.wait()?;
            unwritten.vacate(files.iter().map(|file| file.bytes.len() as u64).sum());
        }
        Ok(())
    }

    /// Removes the narinfos of what is withdrawn, and the files that have stayed long enough. This
    /// thread does it because it is the one that makes them: whatever is held again meanwhile is
    /// published behind this.
    fn withdraw(&mut self) -> Result<(), PublishError> {
        let Outlet { depot, reader, engine, .. } = &self.outlet;
        let note =
            |change| engine.record_blocking(vec![Change::Care(change)]).and_then(Recording::wait);
        loop {
            let listed = reader.listed_withdrawn()?;
            if listed.is_empty() {
                break;
            }
            let mut gone = Vec::new();
            for withdrawn in &listed {
                self.publisher.forget(&withdrawn.path);
                if !reader.holds(withdrawn.path.hash())? {
                    gone.push(&withdrawn.path);
                }
            }
            depot.unlist(gone.into_iter())?;
            let rows = listed.iter().map(|withdrawn| withdrawn.row).collect();
            note(CareChange::Unlisted { rows, at: self.clock.now().wall })?;
        }
        loop {
            let now = self.clock.now().wall;
            let due = reader.due_withdrawn(now)?;
            if due.is_empty() {
                return Ok(());
            }
            let mut files: BTreeSet<Sha256> = due.iter().map(|one| one.file_hash).collect();
            forget_recorded(reader, &mut files)?;
            for withdrawn in &due {
                if files.contains(&withdrawn.file_hash) {
                    depot.unlink(&withdrawn.path, &withdrawn.file_hash)?;
                }
                if !reader.holds(withdrawn.path.hash())? {
                    depot.unlink_content(&withdrawn.path, withdrawn.content_address.as_deref())?;
                }
            }
            let rows = due.iter().map(|withdrawn| withdrawn.row).collect();
            note(CareChange::Expunged { rows })?;
            // Those that came again lately may have a row soon; the others are removed one day.
            let before = Timestamp::from_ms(now.as_ms().saturating_sub(ORPHAN_AGE_MS));
            depot.remove_orphans(&files, before)?;
        }
    }

    fn everything(&mut self) -> Result<(), PublishError> {
        let mut after = None;
        loop {
            let page = self.outlet.reader.unpublished(after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.info.path.hash());
            self.publish(page)?;
        }
    }

    fn these(&mut self, paths: &[StorePath]) -> Result<(), PublishError> {
        let records = self.outlet.reader.together(|reader| {
            let mut records = Vec::with_capacity(paths.len());
            for path in paths {
                records.extend(reader.nar(path.hash())?);
            }
            Ok::<_, StoreError>(records)
        })?;
        self.publish(records)
    }

    fn publish(&mut self, mut records: Vec<NarRecord>) -> Result<(), PublishError> {
        let mut changes = Vec::new();
        for record in records.iter_mut().filter(|record| record.info.signatures.is_empty()) {
            record.info = self.outlet.depot.signed(record.info.clone());
            let (path, signatures) = (record.info.path.hash(), record.info.signatures.clone());
            if !signatures.is_empty() {
                changes.push(Change::Signed { path, signatures });
            }
        }
        let report = self.publisher.publish(records.into_iter().map(Arc::new).collect())?;
        for (path, why) in report.unpublished {
            tracing::debug!(%path, ?why, "not published yet");
            if let Unpublished::OtherForms(record) = why {
                self.outlet.forms.push(record);
            }
        }
        let at = self.clock.now().wall;
        let visible = report.visible.into_iter();
        changes.extend(visible.map(|path| Change::Published { path: path.hash(), at }));
        if changes.is_empty() {
            return Ok(());
        }
        // When the engine is gone, the next start finds these rows unmarked and marks them.
        self.outlet.engine.tell_blocking(Input::Record { token: None, changes }).ok();
        Ok(())
    }
}
