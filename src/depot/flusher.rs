//! Brings a file to the disk while it is still being written.
//!
//! A sync at the end waits for all that the disk has not taken yet, and whoever syncs in between
//! writes nothing meanwhile. So a thread beside the writer syncs, again and again, what was written
//! so far: the disk and the writer work at the same time, and little is left for the end.

use std::{
    io,
    sync::mpsc::{self, Receiver, SyncSender, TryRecvError},
    thread,
};

/// How many bytes are written between two requests to sync: a tenth of a second at 340 MB/s. Each
/// sync commits the journal of the filesystem, for which other writers wait, so more of them would
/// be felt by everybody.
pub(super) const FLUSH_BYTES: u64 = 32 << 20;
/// How many requests may wait while the thread is busy with one.
const REQUESTS_MAX: usize = 1;
/// How many answers may wait for the writer; the thread waits beyond that.
const ANSWERS_MAX: usize = REQUESTS_MAX + 1;

/// A thread that syncs a file whenever it is asked. What is asked with comes back when everything
/// that was written before the question is on the disk. The thread ends with this.
#[derive(Debug)]
pub(super) struct Flusher<T> {
    requests: SyncSender<T>,
    answers: Receiver<io::Result<T>>,
}

impl<T: Send + 'static> Flusher<T> {
    /// Starts the thread. It calls `note` behind every sync, before it answers.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor left.
    pub(super) fn start(
        file: &fs_err::File,
        note: impl Fn(&T) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (requests, asked) = mpsc::sync_channel(REQUESTS_MAX);
        let (answer, answers) = mpsc::sync_channel(ANSWERS_MAX);
        let run = move || {
            for request in asked {
                let synced = file.sync_data().and_then(|()| note(&request));
                if answer.send(synced.map(|()| request)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("flushing".to_owned()).spawn(run)?;
        Ok(Self { requests, answers })
    }

    /// Asks for a sync. Returns whether the question was taken; it is not when another one waits.
    pub(super) fn ask(&self, request: T) -> bool {
        self.requests.try_send(request).is_ok()
    }

    /// Returns what was brought to the disk, if anything was since the last call.
    ///
    /// # Errors
    /// When the disk failed.
    pub(super) fn synced(&self) -> io::Result<Option<T>> {
        match self.answers.try_recv() {
            Ok(answer) => answer.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(died()),
        }
    }

    /// Waits until the thread is done with all that it was asked, and returns the last answer.
    ///
    /// # Errors
    /// When the disk failed.
    pub(super) fn finish(self) -> io::Result<Option<T>> {
        let Self { requests, answers } = self;
        drop(requests);
        let mut last = None;
        for answer in answers {
            last = Some(answer?);
        }
        Ok(last)
    }
}

/// Only a panic of the thread leads here.
fn died() -> io::Error {
    io::Error::other("the thread that syncs a file has died")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    fn file() -> (tempfile::TempDir, fs_err::File) {
        let dir = tempfile::tempdir().unwrap();
        let file = fs_err::File::create(dir.path().join("file")).unwrap();
        (dir, file)
    }

    #[test]
    fn every_request_that_is_taken_is_noted_and_answered_in_its_turn() {
        let (_dir, file) = file();
        let noted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&noted);
        let flusher = Flusher::start(&file, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let flusher = flusher.unwrap();
        assert!(flusher.ask(1));
        let first = loop {
            if let Some(first) = flusher.synced().unwrap() {
                break first;
            }
            thread::yield_now();
        };
        assert_eq!(first, 1);
        assert_eq!(flusher.synced().unwrap(), None);
        assert!(flusher.ask(2));
        assert_eq!(flusher.finish().unwrap(), Some(2));
        assert_eq!(noted.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn no_more_than_one_request_waits_while_the_disk_is_busy() {
        let (_dir, file) = file();
        let busy = Arc::new(Mutex::new(()));
        let (held, gate) = (busy.lock().unwrap(), Arc::clone(&busy));
        let flusher = Flusher::start(&file, move |_| gate.lock().map(drop).map_err(|_| died()));
        let flusher = flusher.unwrap();
        let taken = (0..100).filter(|request| flusher.ask(*request)).count();
        assert!((1..=1 + REQUESTS_MAX).contains(&taken), "{taken}");
        drop(held);
        assert!(flusher.finish().unwrap().is_some());
    }

    #[test]
    fn a_failure_of_the_disk_is_told() {
        let (_dir, file) = file();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let flusher = Flusher::start(&file, move |()| Err(full())).unwrap();
        assert!(flusher.ask(()));
        assert_eq!(flusher.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
