//! The thread that writes logs.

use super::{Extent, live_dir, sealed_path};
use crate::{
    coordinator::pressure::Pressure,
    core::id::AttemptId,
    logbook::{self, Limits, Writer},
    telemetry,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{mpsc, oneshot, watch};

/// What the thread is asked for.
pub(super) enum Message {
    Append { attempt: AttemptId, offset: u64, bytes: Bytes, written: oneshot::Sender<u64> },
    Complete { attempt: AttemptId, bytes: u64, done: oneshot::Sender<()> },
    Follow { attempt: AttemptId, extent: oneshot::Sender<watch::Receiver<Extent>> },
    Seal,
}

/// The logs that wait to be sealed or are being sealed, with their lengths: not to be touched.
pub(super) type Closing = Arc<Mutex<BTreeMap<AttemptId, u64>>>;

/// Enters a log among those that are not to be touched.
pub(super) fn close(closing: &Closing, attempt: AttemptId, bytes: u64) {
    closing.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt, bytes);
}

/// Lets a log be touched again.
pub(super) fn release(closing: &Closing, attempt: AttemptId) {
    closing.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
}

/// The thread that writes.
pub(super) struct Scribe {
    pub(super) dir: PathBuf,
    pub(super) limits: Limits,
    pub(super) open: BTreeMap<AttemptId, Log>,
    /// Attempts that are over.
    pub(super) ended: std::sync::mpsc::Receiver<AttemptId>,
    /// Takes what is to be sealed.
    pub(super) over: std::sync::mpsc::Sender<AttemptId>,
    pub(super) closing: Closing,
    pub(super) pressure: Pressure,
}

/// One log that may grow.
pub(super) struct Log {
    /// Absent until the first piece, and while the directory cannot be read.
    writer: Option<Writer>,
    /// Whether a piece could not be written, so that those behind it would leave a gap.
    broken: bool,
    extent: watch::Sender<Extent>,
}

impl Scribe {
    pub(super) fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.blocking_recv() {
            // Whoever sent a message may have gone; its answer is then lost.
            match message {
                Message::Append { attempt, offset, bytes, written } => {
                    written.send(self.append(attempt, offset, &bytes)).ok();
                }
                Message::Complete { attempt, bytes, done } => {
                    self.complete(attempt, bytes);
                    done.send(()).ok();
                }
                Message::Follow { attempt, extent } => {
                    drop(extent.send(self.log(attempt).extent.subscribe()));
                }
                Message::Seal => {}
            }
            while let Ok(attempt) = self.ended.try_recv() {
                self.end(attempt);
            }
        }
    }

    fn append(&mut self, attempt: AttemptId, offset: u64, bytes: &[u8]) -> u64 {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(length) = closing.get(&attempt) {
            // It is sealed at this moment; soon it can be made live again.
            return *length;
        }
        drop(closing);
        let (dir, limits, pressure) = (self.dir.clone(), self.limits, self.pressure.clone());
        let log = self.log(attempt);
        if bytes.is_empty() {
            log.broken = false;
        }
        if log.broken {
            return log.length();
        }
        let written = log.writer(&dir, attempt, limits).and_then(|writer| {
            if bytes.is_empty() { Ok(()) } else { writer.append(offset, bytes) }
        });
        if let Err(failure) = written {
            let error = telemetry::chain(&failure);
            tracing::warn!(%attempt, error, "a log cannot be written: its agent tries again");
            log.broken = true;
            pressure.note(&failure);
        }
        let length = log.length();
        log.extent.send_if_modified(|extent| {
            let grown = extent.bytes != length;
            extent.bytes = length;
            grown
        });
        length
    }

    fn complete(&mut self, attempt: AttemptId, bytes: u64) {
        let Some(log) = self.open.get_mut(&attempt) else { return };
        let Some(writer) = &mut log.writer else { return };
        if let Err(error) = writer.note_end(bytes).and_then(|()| writer.sync()) {
            let error = telemetry::chain(&error);
            tracing::warn!(%attempt, error, "a log is perhaps not durable");
        }
    }

    fn end(&mut self, attempt: AttemptId) {
        let length = self.open.remove(&attempt).map_or(0, |log| {
            log.extent.send_modify(|extent| extent.sealed = true);
            log.length()
        });
        close(&self.closing, attempt, length);
        // The keeper outlives this thread.
        self.over.send(attempt).ok();
    }

    fn log(&mut self, attempt: AttemptId) -> &mut Log {
        self.open.entry(attempt).or_insert_with(|| Log {
            writer: None,
            broken: false,
            extent: watch::Sender::new(Extent { bytes: 0, sealed: false }),
        })
    }
}

impl Log {
    /// Opens the log where its directory is, or where it was sealed too early.
    fn writer(
        &mut self,
        dir: &Path,
        attempt: AttemptId,
        limits: Limits,
    ) -> io::Result<&mut Writer> {
        let writer = if let Some(writer) = self.writer.take() {
            writer
        } else {
            let (live, sealed) = (live_dir(dir, attempt), sealed_path(dir, attempt));
            if sealed.exists() {
                logbook::unseal(&live, &sealed)?;
            }
            Writer::open(live, limits)?
        };
        Ok(self.writer.insert(writer))
    }

    fn length(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::end)
    }
}
