//! The thread that seals logs, and removes the oldest when there are too many.

use super::{
    LogRules, live_dir,
    scribe::{Closing, release},
    sealed_path,
};
use crate::{
    core::id::AttemptId,
    logbook::{Sealed, seal},
    telemetry::{self, Clock},
};
use fs_err as fs;
use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

/// How often logs are looked for that are too old, when none is sealed.
const LOOK_EVERY: Duration = Duration::from_hours(1);
/// The file that says until when logs were removed.
const REMOVED: &str = "removed";
/// What a file takes on disk beside its blocks: about an inode and a name.
const FILE_BYTES: u64 = 512;

/// What seals and removes.
pub(super) struct Keeper {
    pub(super) dir: PathBuf,
    pub(super) rules: LogRules,
    pub(super) clock: Clock,
    pub(super) closing: Closing,
    pub(super) removed_until: Arc<AtomicI64>,
    /// What all sealed logs take, as far as it is known.
    pub(super) bytes: u64,
}

/// Returns the attempts whose logs are live on disk.
pub(super) fn left_over(dir: &Path) -> io::Result<Vec<AttemptId>> {
    let mut attempts = Vec::new();
    for entry in fs::read_dir(dir.join("live"))? {
        let attempt = entry?.file_name().to_str().and_then(|name| name.parse::<AttemptId>().ok());
        attempts.extend(attempt);
    }
    Ok(attempts)
}

/// Returns until when logs were removed, in milliseconds since the epoch.
pub(super) fn removed_until(dir: &Path) -> i64 {
    let text = fs::read_to_string(dir.join(REMOVED)).unwrap_or_default();
    text.trim().parse().unwrap_or(i64::MIN)
}

impl Keeper {
    pub(super) fn run(mut self, over: &Receiver<AttemptId>) {
        self.look();
        loop {
            match over.recv_timeout(LOOK_EVERY) {
                Ok(attempt) => {
                    self.seal(attempt);
                    if self.bytes > self.rules.keep_bytes {
                        self.look();
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn seal(&mut self, attempt: AttemptId) {
        let sealed = sealed_path(&self.dir, attempt);
        match seal(&live_dir(&self.dir, attempt), &sealed) {
            Ok(Sealed::Nothing) => {}
            Ok(Sealed::File { .. }) => {
                let taken = fs::metadata(&sealed).map_or(0, |metadata| taken(&metadata));
                self.bytes = self.bytes.saturating_add(taken);
            }
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::warn!(%attempt, error, "a log is not sealed: the next start tries again");
            }
        }
        release(&self.closing, attempt);
    }

    /// Removes what is too old or too much.
    fn look(&mut self) {
        if let Err(error) = self.try_look() {
            tracing::warn!(error = telemetry::chain(&error), "old logs are not removed");
        }
    }

    fn try_look(&mut self) -> io::Result<()> {
        let mut minutes: BTreeMap<i64, u64> = BTreeMap::new();
        let mut total = 0u64;
        for_each_sealed(&self.dir, |_, minute, bytes| {
            let sum = minutes.entry(minute).or_default();
            *sum = sum.saturating_add(bytes);
            total = total.saturating_add(bytes);
            Ok(())
        })?;
        self.bytes = total;
        let Some(last) = self.last_to_go(&minutes) else { return Ok(()) };
        // First the note: nobody may miss a log that no note explains. Where there is no room even
        // for that, removing makes some.
        let until = last.saturating_add(1).saturating_mul(60_000).saturating_sub(1);
        let noted = self.note(until);
        let (mut removed, mut bytes_removed) = (0u64, 0u64);
        for_each_sealed(&self.dir, |path, minute, bytes| {
            if minute <= last {
                fs::remove_file(path)?;
                removed += 1;
                bytes_removed = bytes_removed.saturating_add(bytes);
            }
            Ok(())
        })?;
        self.bytes = self.bytes.saturating_sub(bytes_removed);
        noted.or_else(|_| self.note(until))?;
        tracing::info!(removed, bytes = bytes_removed, "old logs removed");
        Ok(())
    }

    /// Returns the last minute whose logs go. When there is too much, a tenth more goes than has
    /// to, so that not every new log makes all be looked at.
    fn last_to_go(&self, minutes: &BTreeMap<i64, u64>) -> Option<i64> {
        let age = i64::from(self.rules.keep_days).saturating_mul(24 * 60);
        let now = self.clock.now().wall.whole_minutes();
        let old = now.saturating_sub(age).saturating_sub(1);
        let total: u64 = minutes.values().sum();
        let mut excess = match total.checked_sub(self.rules.keep_bytes) {
            Some(excess) if excess > 0 => excess.saturating_add(self.rules.keep_bytes / 10),
            Some(_) | None => 0,
        };
        let mut last = None;
        for (minute, bytes) in minutes {
            if excess == 0 && *minute > old {
                break;
            }
            excess = excess.saturating_sub(*bytes);
            last = Some(*minute);
        }
        last
    }

    fn note(&self, until: i64) -> io::Result<()> {
        let until = until.max(self.removed_until.load(Ordering::Relaxed));
        self.removed_until.store(until, Ordering::Relaxed);
        let draft = self.dir.join(format!("{REMOVED}.draft"));
        fs::write(&draft, format!("{until}\n"))?;
        fs::rename(&draft, self.dir.join(REMOVED))
    }
}

/// Calls `each` with the path, the minute and the size of every sealed log.
fn for_each_sealed(
    dir: &Path,
    mut each: impl FnMut(&Path, i64, u64) -> io::Result<()>,
) -> io::Result<()> {
    for shard in 0..=u8::MAX {
        let shard = dir.join(format!("{shard:02x}"));
        if !shard.exists() {
            continue;
        }
        for entry in fs::read_dir(shard)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => {
                    each(&entry.path(), metadata.mtime().div_euclid(60), taken(&metadata))?;
                }
                // It was made live again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Returns what a file takes on disk.
fn taken(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks().saturating_mul(512).saturating_add(FILE_BYTES)
}
