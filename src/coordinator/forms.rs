//! The thread that makes the other forms in which nars are published, at low priority.
//!
//! A path of the Guix dialect becomes visible when its nar is there in gzip, too. That takes longer
//! than everything else about publishing, so it is done beside it, and the path is given back to
//! the publishing thread afterwards.

use super::publishing::WeakPublishQueue;
use crate::{core::change::NarRecord, depot::Depot, telemetry};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// How many nars may wait. Beyond that they are looked for again when these are done.
const RECORDS_MAX: usize = 4_096;
/// How little the thread's share of a busy processor is: the least there is.
const NICENESS: i32 = 19;

/// Where nars are put whose other forms are missing; never waits.
#[derive(Debug)]
pub struct FormQueue {
    records: SyncSender<Arc<NarRecord>>,
    missed: Arc<AtomicBool>,
}

impl FormQueue {
    /// Starts the thread, which ends when this queue is dropped.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(depot: Depot, publish: WeakPublishQueue) -> io::Result<Self> {
        let (sender, records) = sync_channel(RECORDS_MAX);
        let missed = Arc::new(AtomicBool::new(false));
        let making = Making { records, missed: Arc::clone(&missed), depot, publish };
        std::thread::Builder::new().name("forms".to_owned()).spawn(move || making.run())?;
        Ok(Self { records: sender, missed })
    }

    /// Hands a nar over.
    pub fn push(&self, record: Arc<NarRecord>) {
        if self.records.try_send(record).is_err() {
            self.missed.store(true, Ordering::Release);
        }
    }
}

struct Making {
    records: Receiver<Arc<NarRecord>>,
    missed: Arc<AtomicBool>,
    depot: Depot,
    publish: WeakPublishQueue,
}

impl Making {
    fn run(self) {
        let thread = rustix::thread::gettid();
        // On Linux the number of a thread stands for this thread alone.
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICENESS) {
            tracing::warn!(%error, "nars are compressed again at the usual priority");
        }
        while let Ok(first) = self.records.recv() {
            let mut next = Some(first);
            while let Some(record) = next {
                self.make(&record);
                next = self.records.try_recv().ok();
            }
            if self.missed.swap(false, Ordering::AcqRel) {
                self.publish.look_again();
            }
        }
    }

    /// Forms that could not be made now are made after the next start.
    fn make(&self, record: &NarRecord) {
        let path = &record.info.path;
        match self.depot.make_other_forms(record) {
            Ok(()) => self.publish.push(vec![path.clone()]),
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::error!(%path, error, "a nar could not be compressed again");
            }
        }
    }
}
