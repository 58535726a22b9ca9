//! The logs of attempts: one file each, written by one thread, read by anybody.
//!
//! `logs/XX/ATTEMPT.log`, where `XX` are the last two digits of the attempt's id. Pieces come with
//! their offset, so that a piece that came twice changes nothing.

use crate::core::id::AttemptId;
use bytes::Bytes;
use fs_err as fs;
use std::{
    collections::BTreeMap,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};
use tokio::sync::{mpsc, oneshot, watch};

/// The longest log that is kept, in bytes. What comes behind is dropped, and a line says so.
pub const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How many pieces may wait to be written; senders wait beyond that.
const PIECES_MAX: usize = 256;
/// The line behind a log that was cut.
const MARKER: &[u8] = b"\n[steading: the log is longer than 64 MiB; the rest is not kept]\n";

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes can be read.
    pub bytes: u64,
    /// Whether no more will come.
    pub sealed: bool,
}

/// The way to the logs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    dir: PathBuf,
    messages: mpsc::Sender<Message>,
    seals: std::sync::mpsc::Sender<AttemptId>,
}

enum Message {
    Append {
        attempt: AttemptId,
        offset: u64,
        bytes: Bytes,
        written: oneshot::Sender<io::Result<u64>>,
    },
    Sync {
        attempt: AttemptId,
        done: oneshot::Sender<io::Result<()>>,
    },
    Follow {
        attempt: AttemptId,
        extent: oneshot::Sender<io::Result<watch::Receiver<Extent>>>,
    },
    Seal,
}

impl Logs {
    /// Starts the thread that writes.
    ///
    /// # Panics
    /// When the system has no thread left.
    #[must_use]
    pub fn start(dir: PathBuf) -> Self {
        let (messages, receiver) = mpsc::channel(PIECES_MAX);
        let (seals, sealed) = std::sync::mpsc::channel();
        let scribe = Scribe { dir: dir.clone(), open: BTreeMap::new(), sealed };
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || scribe.run(receiver))
            .expect("a thread can be started");
        Self { dir, messages, seals }
    }

    /// Returns the file of a log; it exists once something was logged.
    #[must_use]
    pub fn path(&self, attempt: AttemptId) -> PathBuf {
        path(&self.dir, attempt)
    }

    /// Writes a piece and returns how long the log is. A piece that would leave a gap is not
    /// written: the sender starts again from the returned length.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn append(&self, attempt: AttemptId, offset: u64, bytes: Bytes) -> io::Result<u64> {
        let (written, length) = oneshot::channel();
        self.send(Message::Append { attempt, offset, bytes, written }).await?;
        length.await.map_err(|_| gone())?
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn sync(&self, attempt: AttemptId) -> io::Result<()> {
        let (done, end) = oneshot::channel();
        self.send(Message::Sync { attempt, done }).await?;
        end.await.map_err(|_| gone())?
    }

    /// Returns a view of a live attempt's log that tells of growth and of its end.
    ///
    /// The attempt may have ended meanwhile, so that no end is ever told: look at its state once
    /// more behind this call.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn follow(&self, attempt: AttemptId) -> io::Result<watch::Receiver<Extent>> {
        let (extent, receiver) = oneshot::channel();
        self.send(Message::Follow { attempt, extent }).await?;
        receiver.await.map_err(|_| gone())?
    }

    /// Says that an attempt is over. Never waits; at most one message per attempt is queued.
    pub fn seal(&self, attempt: AttemptId) {
        // The thread is gone only when the process stops. A full queue wakes the thread anyway.
        self.seals.send(attempt).ok();
        self.messages.try_send(Message::Seal).ok();
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        self.messages.send(message).await.map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::other("the coordinator is stopping")
}

fn path(dir: &Path, attempt: AttemptId) -> PathBuf {
    let text = attempt.to_string();
    let shard = text.get(text.len().saturating_sub(2)..).unwrap_or("00");
    dir.join(shard).join(format!("{text}.log"))
}

/// The thread that writes.
struct Scribe {
    dir: PathBuf,
    open: BTreeMap<AttemptId, Log>,
    sealed: std::sync::mpsc::Receiver<AttemptId>,
}

/// One log that is being written.
struct Log {
    file: fs::File,
    cut: bool,
    extent: watch::Sender<Extent>,
}

impl Scribe {
    fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.blocking_recv() {
            // Whoever sent a message may have gone; its answer is then dropped.
            match message {
                Message::Append { attempt, offset, bytes, written } => {
                    let length = self.open(attempt).and_then(|log| log.append(offset, &bytes));
                    drop(written.send(length));
                }
                Message::Sync { attempt, done } => {
                    let result = match self.open.get(&attempt) {
                        Some(log) => log.file.sync_data(),
                        None => Ok(()),
                    };
                    drop(done.send(result));
                }
                Message::Follow { attempt, extent } => {
                    drop(extent.send(self.open(attempt).map(|log| log.extent.subscribe())));
                }
                Message::Seal => {}
            }
            while let Ok(attempt) = self.sealed.try_recv() {
                if let Some(log) = self.open.remove(&attempt) {
                    log.extent.send_modify(|extent| extent.sealed = true);
                }
            }
        }
    }

    fn open(&mut self, attempt: AttemptId) -> io::Result<&mut Log> {
        use std::collections::btree_map::Entry;
        match self.open.entry(attempt) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(Log::open(&path(&self.dir, attempt))?)),
        }
    }
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let (extent, _) = watch::channel(Extent { bytes, sealed: false });
        Ok(Self { file, cut: bytes > LOG_BYTES_MAX, extent })
    }

    /// Writes the part of a piece that is new.
    fn append(&mut self, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        let length = self.extent.borrow().bytes;
        let end = offset.saturating_add(bytes.len() as u64);
        if self.cut {
            return Ok(end);
        }
        if offset > length || end <= length {
            return Ok(length);
        }
        let known = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let mut fresh = bytes.get(known..).unwrap_or_default();
        let room = usize::try_from(LOG_BYTES_MAX.saturating_sub(length)).unwrap_or(usize::MAX);
        if fresh.len() > room {
            fresh = fresh.get(..room).unwrap_or_default();
            self.cut = true;
        }
        self.file.write_all(fresh)?;
        if self.cut {
            self.file.write_all(MARKER)?;
        }
        let marker = if self.cut { MARKER.len() } else { 0 };
        let bytes = length + fresh.len() as u64 + marker as u64;
        self.extent.send_modify(|extent| extent.bytes = bytes);
        Ok(if self.cut { end } else { bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> AttemptId {
        AttemptId::from_bytes([9; 16])
    }

    #[tokio::test]
    async fn a_piece_that_comes_twice_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path().to_owned());
        assert_eq!(logs.append(attempt(), 0, Bytes::from_static(b"one ")).await.unwrap(), 4);
        assert_eq!(logs.append(attempt(), 0, Bytes::from_static(b"one ")).await.unwrap(), 4);
        assert_eq!(logs.append(attempt(), 2, Bytes::from_static(b"e two")).await.unwrap(), 7);
        assert_eq!(logs.append(attempt(), 90, Bytes::from_static(b"gap")).await.unwrap(), 7);
        assert_eq!(fs::read(logs.path(attempt())).unwrap(), b"one two");
    }

    #[tokio::test]
    async fn a_follower_sees_growth_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path().to_owned());
        let mut extent = logs.follow(attempt()).await.unwrap();
        assert_eq!(*extent.borrow_and_update(), Extent { bytes: 0, sealed: false });
        logs.append(attempt(), 0, Bytes::from_static(b"hello")).await.unwrap();
        extent.changed().await.unwrap();
        assert_eq!(*extent.borrow_and_update(), Extent { bytes: 5, sealed: false });
        logs.seal(attempt());
        extent.changed().await.unwrap();
        assert_eq!(*extent.borrow_and_update(), Extent { bytes: 5, sealed: true });
    }

    #[tokio::test]
    async fn a_log_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path().to_owned());
        logs.append(attempt(), 0, Bytes::from_static(b"before ")).await.unwrap();
        let logs = Logs::start(dir.path().to_owned());
        logs.append(attempt(), 0, Bytes::from_static(b"before after")).await.unwrap();
        assert_eq!(fs::read(logs.path(attempt())).unwrap(), b"before after");
    }
}
