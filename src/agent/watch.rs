//! Tells each attempt's life when the process has written something, without looking all the time.

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};
use tokio::sync::Notify;

/// Watches the spools. One for all, because the kernel limits how many a user may have.
pub(super) struct SpoolWatch {
    /// Absent where the kernel grants none: logs then come late, and nothing else is lost.
    watcher: Option<RecommendedWatcher>,
    registrations: mpsc::Sender<Registration>,
}

/// Says who wants to know of changes in a spool, or that nobody does any more.
type Registration = (PathBuf, Option<Arc<Notify>>);

impl SpoolWatch {
    /// Starts watching nothing.
    pub(super) fn start() -> Self {
        let (registrations, registered) = mpsc::channel();
        let mut audience = HashMap::new();
        let watcher = notify::recommended_watcher(move |event| {
            // A registration is sent before its spool is watched, so it is here before any of its
            // events.
            for (dir, listener) in registered.try_iter() {
                match listener {
                    Some(listener) => audience.insert(dir, listener),
                    None => audience.remove(&dir),
                };
            }
            tell(&audience, event);
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "spools cannot be watched: logs come when builds end");
                None
            }
        };
        Self { watcher, registrations }
    }

    /// Returns what is notified when a file of the spool appears or grows.
    pub(super) fn add(&mut self, dir: &Path) -> Arc<Notify> {
        let changes = Arc::new(Notify::new());
        if let Some(watcher) = &mut self.watcher
            && self.registrations.send((dir.to_owned(), Some(Arc::clone(&changes)))).is_ok()
            && let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive)
        {
            tracing::warn!(%error, "spool cannot be watched: its log comes when the build ends");
        }
        changes
    }

    /// Stops watching a spool.
    pub(super) fn remove(&mut self, dir: &Path) {
        if let Some(watcher) = &mut self.watcher
            && let Err(error) = watcher.unwatch(dir)
        {
            // Removing the directory has ended it already.
            tracing::trace!(%error, "spool was not watched any more");
        }
        if self.registrations.send((dir.to_owned(), None)).is_err() {
            tracing::trace!("no spool is watched");
        }
    }
}

/// Passes on one event.
fn tell(audience: &HashMap<PathBuf, Arc<Notify>>, event: notify::Result<Event>) {
    let event = match event {
        Ok(event) if !event.need_rescan() => event,
        unclear => {
            tracing::debug!(?unclear, "events of spools may be lost: all are looked at");
            for listener in audience.values() {
                listener.notify_one();
            }
            return;
        }
    };
    // Reading a file is an event too, and the reader is who would be told.
    if event.kind.is_create() || event.kind.is_modify() {
        let dirs = event.paths.iter().filter_map(|path| path.parent());
        for listener in dirs.filter_map(|dir| audience.get(dir)) {
            listener.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writing_in_a_spool_is_noticed_by_its_own_listener_only() {
        let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut watch = SpoolWatch::start();
        let first = watch.add(dirs.0.path());
        let second = watch.add(dirs.1.path());
        fs_err::write(dirs.0.path().join("log.0"), b"x").unwrap();
        first.notified().await;
        watch.remove(dirs.0.path());
        fs_err::write(dirs.1.path().join("log.0"), b"x").unwrap();
        second.notified().await;
    }
}
