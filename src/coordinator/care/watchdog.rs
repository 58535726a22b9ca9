//! Tells systemd that this process does what it is there for, as long as it does.

use super::super::engine_thread::EngineHandle;
use crate::core::{engine::Ask, id::AttemptId};
use sd_notify::NotifyState;
use std::{sync::mpsc, thread, time::Duration};
use tokio_util::sync::CancellationToken;

/// How many times within the watchdog's time it is fed: one that comes late does no harm.
const PER_TIMEOUT: u32 = 3;

/// How many feeds may wait for the thread that tells systemd.
const FEEDS_MAX: usize = 1;

/// Feeds the watchdog while the engine answers, until canceled. Returns at once when nobody
/// watches.
///
/// A process whose engine is stuck is restarted by systemd: what was acknowledged is on the disk,
/// and builds go on meanwhile.
pub(super) async fn run(engine: EngineHandle, cancel: CancellationToken) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let pause = timeout.checked_div(PER_TIMEOUT).unwrap_or(Duration::from_secs(1));
    // A thread of its own: whoever does not read what is said would hold up others here.
    let (sender, feeds) = mpsc::sync_channel::<()>(FEEDS_MAX);
    let feeding = thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        for () in feeds {
            if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                tracing::warn!(%error, "the watchdog cannot be fed");
            }
        }
    });
    if let Err(error) = feeding {
        return tracing::error!(%error, "the watchdog cannot be fed");
    }
    loop {
        // The cheapest question: about an attempt that nobody has. It waits in the same queue as
        // everything else, and behind the commit that is under way.
        let asked = engine.ask(Ask::Attempt(AttemptId::from_bytes([0; 16])));
        tokio::select! {
            () = cancel.cancelled() => return,
            answered = asked => if answered.is_err() { return },
        }
        // When the thread is held up, what waits for it says the same.
        sender.try_send(()).ok();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
