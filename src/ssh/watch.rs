//! Rereading the keydir when it changes.
//!
//! The kernel tells of most changes at once; what it does not tell of (network file systems, a
//! symbolic link that was exchanged, a keydir made later) is found by looking every second.

use super::{keys::Keydir, sessions::Sessions};
use notify::{RecursiveMode, Watcher as _};
use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

/// How often the keydir is looked at, and expired keys are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait after a notice, so that a file is not read while it is written.
const SETTLE: Duration = Duration::from_millis(50);

/// Keeps the sessions' keydir up to date until canceled.
pub(super) async fn follow(path: PathBuf, sessions: Arc<Sessions>, cancel: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let watcher = watch(&path, Arc::clone(&changed));
    if let Err(error) = &watcher {
        tracing::info!(%error, "keydir changes are found by looking every second only");
    }
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        let told = tokio::select! {
            () = cancel.cancelled() => return,
            () = changed.notified() => true,
            _ = look.tick() => false,
        };
        if told {
            sleep(SETTLE).await;
        }
        let known = if told { None } else { seen };
        match read_unless(path.clone(), known).await {
            Ok(Some((mark, keydir, problems))) => {
                seen = Some(mark);
                sessions.replace_keydir(keydir, problems);
            }
            Ok(None) => sessions.expire(),
            Err(error) => {
                // What was read last stays in force, and the next look tries again.
                seen = None;
                tracing::error!(%error, "keydir cannot be read");
                sessions.expire();
            }
        }
    }
}

type Read = (u64, Keydir, Vec<super::keys::KeydirProblem>);

/// Reads the keydir unless it still carries the mark.
async fn read_unless(path: PathBuf, seen: Option<u64>) -> std::io::Result<Option<Read>> {
    let read = spawn_blocking(move || {
        // Taken before reading: a change while reading changes the next mark.
        let mark = mark_of(&path);
        if seen == Some(mark) {
            return Ok(None);
        }
        let (keydir, problems) = Keydir::load(&path)?;
        Ok(Some((mark, keydir, problems)))
    });
    read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

fn watch(path: &Path, changed: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading makes access events; following those would never end.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    })?;
    watcher.watch(path, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Returns a number that changes when a file or folder of the keydir does.
fn mark_of(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    mark_folder(path, 0, &mut hasher);
    hasher.finish()
}

fn mark_folder(path: &Path, depth: u8, hasher: &mut DefaultHasher) {
    let Ok(found) = fs_err::metadata(path) else { return };
    (path, found.ino(), found.len(), found.mode()).hash(hasher);
    (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()).hash(hasher);
    // The keydir and its roles' folders; nothing below those is read.
    if found.is_dir() && depth < 2 {
        let Ok(entries) = fs_err::read_dir(path) else { return };
        let mut children: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        children.sort();
        for child in children {
            mark_folder(&child, depth.saturating_add(1), hasher);
        }
    }
}
