//! Runs what blocks.

use std::{io, thread};
use tokio::sync::oneshot;

/// Runs something that blocks on a thread of its own. tokio's own threads for this would be waited
/// for when the agent stops, however long a daemon takes to answer.
///
/// # Errors
/// There is no thread, or it panicked.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    let run = move || {
        if answer.send(work()).is_err() {
            tracing::trace!("nobody waits for the result any more");
        }
    };
    thread::Builder::new().name("blocking".to_owned()).spawn(run)?;
    answered.await.map_err(|_| io::Error::other("a thread of the agent died"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_come_back_and_panics_are_errors() {
        assert_eq!(on_thread(|| 7).await.unwrap(), 7);
        assert!(on_thread(|| panic!("on purpose")).await.is_err());
    }
}
