//! The coordinator under pressure: how full its disk is, and what goes on in this process.
//!
//! When little room is left on the state directory's filesystem, offers and submissions are put
//! off and nothing is allocated, so that what runs can still be committed. It goes on by itself
//! when there is room again. A write that finds no room does the same at once.

use super::{Coordinator, engine_thread::EngineHandle};
use crate::{
    core::time::Monotonic,
    telemetry::{self, Clock},
};
use rustix::fs::statvfs;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often the free room is looked at: a disk that takes 1 GB/s loses a fifth of the usual
/// reserve between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What has to stay free unless the configuration says otherwise, in bytes: room for what a few
/// agents still send when nothing new is begun, and for the database to note it.
const RESERVE_BYTES: u64 = 5 << 30;
/// The part of a small filesystem that has to stay free instead: one twentieth.
const RESERVE_PART: u64 = 20;
/// The room that a start needs: the database cannot be opened with less.
const START_BYTES_MIN: u64 = 16 << 20;
/// How much longer systemd is to wait for a start that waits for room, in microseconds.
const PATIENCE_USEC: u32 = 60_000_000;
/// How long a failed write counts, whatever the filesystem says of its free room: quotas and
/// reserves for the superuser are not in what it says.
const FULL_MS: u64 = 30_000;

/// How full the disk is; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pressure(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    min_free: Option<u64>,
    clock: Clock,
    state: Mutex<State>,
    /// Wakes the watcher when a write found no room.
    full: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Why nothing new is taken.
    reason: Option<String>,
    /// Until when a failed write counts.
    full_until: Option<Monotonic>,
}

/// The room of a filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What may still be written.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

impl Pressure {
    /// Looks at the filesystem of a directory, of which at least `min_free` bytes have to stay
    /// free; when absent, 5 GiB, or a twentieth of a smaller filesystem.
    #[must_use]
    pub fn new(dir: &Path, min_free: Option<u64>, clock: Clock) -> Self {
        let inner = Inner {
            dir: dir.to_owned(),
            min_free,
            clock,
            state: Mutex::default(),
            full: Notify::new(),
        };
        let pressure = Self(Arc::new(inner));
        pressure.look();
        pressure
    }

    /// Returns why nothing new is taken; `None` when it is.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).reason.clone()
    }

    /// Returns how much room the filesystem has.
    ///
    /// # Errors
    /// When it does not say.
    pub fn room(&self) -> io::Result<Room> {
        room_of(&self.0.dir)
    }

    /// Takes notice of a failed write: when it found no room, nothing new is taken from now on.
    pub fn note(&self, error: &io::Error) {
        if is_full(error) {
            let until = self.0.clock.now().mono.plus_ms(FULL_MS);
            self.0.state.lock().unwrap_or_else(PoisonError::into_inner).full_until = Some(until);
            self.look();
            self.0.full.notify_one();
        }
    }

    /// Looks again and again, and tells the engine what changes.
    pub async fn watch(self, engine: EngineHandle, cancel: CancellationToken) {
        let mut told = None;
        loop {
            let reason = self.look();
            if reason != told {
                if let Some(reason) = &reason {
                    tracing::warn!(reason, "nothing new is taken");
                } else {
                    tracing::info!("there is room again: everything goes on");
                }
                if engine.close_intake(reason.clone()).await.is_err() {
                    return;
                }
                told = reason;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.0.full.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Looks at the filesystem and decides.
    fn look(&self) -> Option<String> {
        let room = match room_of(&self.0.dir) {
            Ok(room) => room,
            Err(error) => {
                tracing::warn!(%error, "the free room is not known");
                return self.reason();
            }
        };
        let now = self.0.clock.now().mono;
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.full_until.is_some_and(|until| until <= now) {
            state.full_until = None;
        }
        let failed = state.full_until.is_some();
        state.reason = decide(room, self.0.min_free, state.reason.take(), failed, &self.0.dir);
        state.reason.clone()
    }
}

/// Decides whether there is room for anything new. Whoever has none gets going again only when
/// there is a quarter more than the least, so that it does not stop again at once; the words stay
/// as they were meanwhile.
fn decide(
    room: Room,
    min_free: Option<u64>,
    reason: Option<String>,
    failed: bool,
    dir: &Path,
) -> Option<String> {
    let least = min_free.unwrap_or(RESERVE_BYTES.min(room.total / RESERVE_PART));
    if failed {
        return reason.or_else(|| {
            Some(format!("a write found no room on the disk of {}: make room", dir.display()))
        });
    }
    let wanted = if reason.is_some() { least.saturating_add(least / 4) } else { least };
    if room.free >= wanted {
        return None;
    }
    reason.or_else(|| {
        Some(format!(
            "the disk of {} has {} MiB left, and {} MiB are to stay free (min-free): make room, \
             and everything goes on by itself",
            dir.display(),
            room.free >> 20,
            least >> 20
        ))
    })
}

fn room_of(dir: &Path) -> io::Result<Room> {
    let found = statvfs(dir)?;
    Ok(Room {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        total: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// Tells whether a write failed for want of room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Waits until a start can succeed, so that a coordinator on a full disk does not stop and start
/// for ever. Returns early when the token fires.
///
/// # Errors
/// When the filesystem does not say how much room it has.
pub async fn room_to_start(dir: &Path, cancel: &CancellationToken) -> io::Result<()> {
    let mut said = false;
    while room_of(dir)?.free < START_BYTES_MIN && !cancel.is_cancelled() {
        if !said {
            let path = dir.display();
            tracing::error!(%path, "no room to start: make room, and it starts by itself");
            said = true;
        }
        // Without systemd there is nobody to ask for patience.
        sd_notify::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(PATIENCE_USEC)]).ok();
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    Ok(())
}

/// Counts what goes on, for `status`; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    agent_sessions: Arc<AtomicUsize>,
    transfers: Arc<AtomicUsize>,
    received: Arc<AtomicU64>,
}

/// Something that goes on until this is dropped.
#[derive(Debug)]
pub struct Ongoing(Arc<AtomicUsize>);

impl Activity {
    /// Counts a control session of an agent.
    #[must_use]
    pub fn agent_session(&self) -> Ongoing {
        Ongoing::new(&self.agent_sessions)
    }

    /// Counts an exchange on a bulk channel.
    #[must_use]
    pub fn transfer(&self) -> Ongoing {
        Ongoing::new(&self.transfers)
    }
}

impl Activity {
    /// Counts bytes that agents send on bulk channels.
    pub fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes agents have sent on bulk channels since the start.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Ongoing {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What this process holds just now: what is left when everybody has gone is a leak.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Process {
    /// Asynchronous tasks that have not ended.
    pub tasks: usize,
    /// Open file descriptors.
    pub descriptors: Option<usize>,
    /// Control sessions of agents.
    pub agent_sessions: usize,
    /// Connections that have authenticated.
    pub connections: usize,
    /// Open channels.
    pub channels: usize,
    /// Exchanges on bulk channels that are under way.
    pub transfers: usize,
    /// Files of uploads and submissions that are not verified yet.
    pub staged_files: u64,
    /// Their bytes.
    pub staged_bytes: u64,
    /// Who follows a log.
    pub log_followers: usize,
    /// Panics since the start, each of which cost one connection at most.
    pub panics: u64,
}

impl Process {
    /// Counts what this process holds.
    ///
    /// # Errors
    /// When the directory of staged files cannot be read.
    pub async fn of(coordinator: &Coordinator) -> io::Result<Self> {
        let incoming = coordinator.state_dir.join("incoming");
        let look = move || -> io::Result<_> { Ok((staged(&incoming)?, descriptors())) };
        let looked = tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?;
        let ((staged_files, staged_bytes), descriptors) = looked?;
        let door = coordinator.monitor.counters();
        Ok(Self {
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            descriptors,
            agent_sessions: coordinator.activity.agent_sessions.load(Ordering::Relaxed),
            connections: door.sessions,
            channels: door.channels,
            transfers: coordinator.activity.transfers.load(Ordering::Relaxed),
            staged_files,
            staged_bytes,
            log_followers: coordinator.logs.followers(),
            panics: telemetry::panics(),
        })
    }
}

/// Returns how many files a directory has, and their bytes.
fn staged(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0u64, 0u64);
    for entry in fs_err::read_dir(dir)? {
        // A file can be moved away between the listing and here.
        let Ok(metadata) = entry?.metadata() else { continue };
        files = files.saturating_add(1);
        bytes = bytes.saturating_add(metadata.len());
    }
    Ok((files, bytes))
}

/// Returns how many file descriptors this process has open; `None` where `/proc` is not mounted.
fn descriptors() -> Option<usize> {
    // The listing itself has one open.
    fs_err::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn decided(free: u64, total: u64, reason: Option<&str>) -> Option<String> {
        decide(Room { free, total }, None, reason.map(str::to_owned), false, Path::new("/s"))
    }

    #[test]
    fn a_twentieth_of_a_small_disk_and_five_gibibytes_of_a_large_one_stay_free() {
        assert_eq!(decided(GIB, 20 * GIB, None), None);
        assert!(decided(GIB - 1, 20 * GIB, None).unwrap().contains("1023 MiB left, and 1024 MiB"));
        assert_eq!(decided(5 * GIB, 1_000 * GIB, None), None);
        assert!(decided(5 * GIB - 1, 1_000 * GIB, None).is_some());
    }

    #[test]
    fn it_goes_on_only_with_a_quarter_more() {
        let stopped = Some("stopped");
        assert_eq!(decided(GIB, 20 * GIB, stopped).as_deref(), stopped);
        assert_eq!(decided(GIB + GIB / 4 - 1, 20 * GIB, stopped).as_deref(), stopped);
        assert_eq!(decided(GIB + GIB / 4, 20 * GIB, stopped), None);
    }

    #[test]
    fn a_failed_write_counts_whatever_the_filesystem_says() {
        let dir = tempfile::tempdir().unwrap();
        let pressure = Pressure::new(dir.path(), Some(0), Clock::start());
        assert_eq!(pressure.reason(), None);
        pressure.note(&io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(pressure.reason(), None);
        pressure.note(&io::Error::from(io::ErrorKind::StorageFull));
        assert!(pressure.reason().unwrap().contains("found no room"));
    }
}
