//! The logs of attempts: written by one thread, sealed and in the end removed by another, read by
//! anybody.
//!
//! `logs/live/ATTEMPT/` is a log that may grow, `logs/XX/ATTEMPT.log.zst` one that is over, where
//! `XX` are the last two digits of the attempt's id; what is in them is the matter of
//! [`logbook`](crate::logbook). `logs/removed` says until when logs were removed to make room.
//!
//! A log is never a reason to end anything: what cannot be written stays missing, and the agent is
//! told how far the log is, so that it sends that part again later.

mod keeper;
mod scribe;
#[cfg(test)]
mod tests;

use super::pressure::Pressure;
use crate::{
    core::{id::AttemptId, time::Timestamp},
    logbook::{self, Limits, View},
    telemetry::Clock,
};
use bytes::Bytes;
use fs_err as fs;
use keeper::Keeper;
use scribe::{Message, Scribe};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot, watch};

/// How many pieces may wait to be written; senders wait beyond that.
const PIECES_MAX: usize = 256;
/// The least that may be kept of one log, in bytes: less would hold no whole line of many builds.
pub const LOG_CAP_MIN: u64 = 64 * 1024;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRules {
    /// How much of one attempt's log is kept, in bytes: half of it of the beginning.
    pub cap: u64,
    /// For how many days a sealed log is kept.
    pub keep_days: u32,
    /// How many bytes all sealed logs may take on disk.
    pub keep_bytes: u64,
}

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, whatever is missing in it.
    pub bytes: u64,
    /// Whether no more will come.
    pub sealed: bool,
}

/// The way to the logs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    dir: Arc<Path>,
    messages: mpsc::Sender<Message>,
    seals: std::sync::mpsc::Sender<AttemptId>,
    removed_until: Arc<AtomicI64>,
    followers: Arc<AtomicUsize>,
}

/// Somebody who is told of a log's growth and of its end.
#[derive(Debug)]
pub struct Follower {
    extent: watch::Receiver<Extent>,
    followers: Arc<AtomicUsize>,
}

/// A reader's place in one log.
#[derive(Debug)]
pub struct Reading(Option<View>);

impl Logs {
    /// Starts the threads that write and keep. Logs that an earlier process left unsealed, of
    /// attempts that are not `live`, are sealed. A write that finds no room is told to `pressure`.
    ///
    /// # Errors
    /// When the directory cannot be read.
    ///
    /// # Panics
    /// When the system has no thread left.
    pub fn start(
        dir: &Path,
        rules: LogRules,
        clock: Clock,
        live: &BTreeSet<AttemptId>,
        pressure: Pressure,
    ) -> io::Result<Self> {
        fs::create_dir_all(dir.join("live"))?;
        let (messages, receiver) = mpsc::channel(PIECES_MAX);
        let (seals, ended) = std::sync::mpsc::channel();
        let (over, for_keeper) = std::sync::mpsc::channel();
        let closing = Arc::new(Mutex::default());
        let removed_until = Arc::new(AtomicI64::new(keeper::removed_until(dir)));
        let keeper = Keeper {
            dir: dir.to_owned(),
            rules,
            clock,
            closing: Arc::clone(&closing),
            removed_until: Arc::clone(&removed_until),
            bytes: 0,
        };
        for attempt in keeper::left_over(dir)? {
            if !live.contains(&attempt) {
                scribe::close(&closing, attempt, 0);
                // The keeper lives as long as there is a sender.
                over.send(attempt).ok();
            }
        }
        let limits = Limits::within(rules.cap);
        let scribe = Scribe {
            dir: dir.to_owned(),
            limits,
            open: BTreeMap::new(),
            ended,
            over,
            closing,
            pressure,
        };
        for (name, run) in [
            ("logs", Box::new(move || scribe.run(receiver)) as Box<dyn FnOnce() + Send>),
            ("log-keeper", Box::new(move || keeper.run(&for_keeper))),
        ] {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .expect("a thread can be started");
        }
        let followers = Arc::default();
        Ok(Self { dir: dir.into(), messages, seals, removed_until, followers })
    }

    /// Writes a piece and returns how long the log is. A piece without bytes asks just that, and
    /// says that what follows may leave a gap because there is nothing else.
    ///
    /// When a piece cannot be written, it and what comes behind it stays unwritten until that
    /// question is asked; the returned length tells.
    ///
    /// # Errors
    /// When the coordinator is stopping.
    pub async fn append(&self, attempt: AttemptId, offset: u64, bytes: Bytes) -> io::Result<u64> {
        self.ask(|written| Message::Append { attempt, offset, bytes, written }).await
    }

    /// Says that a log has this many bytes and all that its agent has of them came, and makes it
    /// durable, as far as that is possible.
    ///
    /// # Errors
    /// When the coordinator is stopping.
    pub async fn complete(&self, attempt: AttemptId, bytes: u64) -> io::Result<()> {
        self.ask(|done| Message::Complete { attempt, bytes, done }).await
    }

    /// Returns what tells of a live attempt's log when it grows and when it ends.
    ///
    /// The attempt may have ended meanwhile, so that no end is ever told: look at its state once
    /// more behind this call.
    ///
    /// # Errors
    /// When the coordinator is stopping.
    pub async fn follow(&self, attempt: AttemptId) -> io::Result<Follower> {
        let extent = self.ask(|extent| Message::Follow { attempt, extent }).await?;
        self.followers.fetch_add(1, Ordering::Relaxed);
        Ok(Follower { extent, followers: Arc::clone(&self.followers) })
    }

    /// Returns how many followers there are.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.followers.load(Ordering::Relaxed)
    }

    /// Says that an attempt is over. Never waits; at most one message per attempt is queued.
    pub fn seal(&self, attempt: AttemptId) {
        // The thread is gone only when the process stops. A full queue wakes the thread anyway.
        self.seals.send(attempt).ok();
        self.messages.try_send(Message::Seal).ok();
    }

    /// Begins to read a log.
    #[must_use]
    pub fn read(&self, attempt: AttemptId) -> Reading {
        Reading(Some(View::new(live_dir(&self.dir, attempt), sealed_path(&self.dir, attempt))))
    }

    /// Returns how many bytes a reader gets of a log; `None` when there is none.
    ///
    /// # Errors
    /// What the file system says, and damage of a sealed log.
    pub async fn bytes(&self, attempt: AttemptId) -> io::Result<Option<u64>> {
        let (live, sealed) = (live_dir(&self.dir, attempt), sealed_path(&self.dir, attempt));
        let look = move || match logbook::sealed_bytes(&sealed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pieces = logbook::pieces(&live)?;
                Ok((!pieces.is_empty()).then(|| logbook::text_bytes(&pieces)))
            }
            found => found.map(Some),
        };
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
    }

    /// Removes the logs of attempts that are forgotten.
    ///
    /// # Errors
    /// What the file system says; some may be gone then.
    pub async fn remove(&self, attempts: Vec<AttemptId>) -> io::Result<()> {
        let dir = self.dir.clone();
        let remove = move || {
            for attempt in attempts {
                match fs_err::remove_file(sealed_path(&dir, attempt)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        };
        tokio::task::spawn_blocking(remove).await.map_err(io::Error::other)?
    }

    /// Tells whether the log of an attempt that ended then may have been removed to make room.
    #[must_use]
    pub fn was_removed(&self, ended: Timestamp) -> bool {
        ended.as_ms() <= self.removed_until.load(Ordering::Relaxed)
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> io::Result<T> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

impl Follower {
    /// Returns how far the log is, and takes notice of it.
    pub fn extent(&mut self) -> Extent {
        *self.extent.borrow_and_update()
    }

    /// Returns when the log is further than was noticed. Returns at once, with an error, when the
    /// coordinator is stopping.
    ///
    /// # Errors
    /// When the coordinator is stopping.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.extent.changed().await.map_err(|_| gone())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reading {
    /// Returns the next bytes; none at the end of what is there by now.
    ///
    /// # Errors
    /// What the file system says, and damage of a sealed log.
    pub async fn next(&mut self) -> io::Result<Bytes> {
        self.with(View::read).await.map(Bytes::from)
    }

    /// Goes to the beginning of the last lines of what is there by now.
    ///
    /// # Errors
    /// As [`Reading::next`].
    pub async fn skip_to_last_lines(&mut self, lines: u64) -> io::Result<()> {
        self.with(move |view| view.skip_to_last_lines(lines)).await
    }

    /// Files are read where waiting for the disk stops nobody else.
    async fn with<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut View) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let Some(mut view) = self.0.take() else {
            return Err(io::Error::other("reading was given up in the middle"));
        };
        let work = move || {
            let result = step(&mut view);
            (view, result)
        };
        let (view, result) = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
        self.0 = Some(view);
        result
    }
}

fn gone() -> io::Error {
    io::Error::other("the coordinator is stopping")
}

/// Where the live log of an attempt is.
fn live_dir(dir: &Path, attempt: AttemptId) -> PathBuf {
    dir.join("live").join(attempt.to_string())
}

/// Where the sealed log of an attempt is.
fn sealed_path(dir: &Path, attempt: AttemptId) -> PathBuf {
    let text = attempt.to_string();
    let shard = text.get(text.len().saturating_sub(2)..).unwrap_or("00");
    dir.join(shard).join(format!("{text}.log.zst"))
}
