//! Waiting for a condition in a test that is asynchronous, never for a time.

use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long any condition may take: generous, because it only costs time when a test fails.
pub(crate) const WAIT_MAX: Duration = Duration::from_mins(3);
/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until `condition` holds, and panics with `what` when it never does.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !condition().await {
            sleep(LOOK_EVERY).await;
        }
    };
    assert!(timeout(WAIT_MAX, reached).await.is_ok(), "waited in vain until {what}");
}
