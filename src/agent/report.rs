//! Tells the coordinator of one attempt: that it started, its log, how it ended.
//!
//! Everything is told again in every new session, the log from where the coordinator last said it
//! has it; repetitions are harmless there.

use super::spool::Spool;
use crate::{
    core::{id::AttemptId, outcome::Outcome},
    protocol::message::{FromAgent, LOG_CHUNK_BYTES_MAX},
    telemetry,
};
use tokio::sync::{mpsc, watch};

/// A session that messages can be sent in.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Takes messages until the session is over.
    pub(super) outgoing: mpsc::Sender<FromAgent>,
}

/// How far an attempt is, as its reporter needs it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Progress {
    /// Whether the builder was started.
    pub(super) started: bool,
    /// How long the log is by now.
    pub(super) log_bytes: u64,
    /// How it ended, once it has; the log does not grow any more then.
    pub(super) outcome: Option<Outcome>,
}

/// Reports one attempt.
pub(super) struct Reporter<'a> {
    /// Which attempt.
    pub(super) attempt: AttemptId,
    /// Where its log is.
    pub(super) spool: &'a Spool,
    /// How far it is.
    pub(super) progress: watch::Receiver<Progress>,
    /// The session, while there is one.
    pub(super) link: watch::Receiver<Option<Link>>,
    /// How much of the log the coordinator has.
    pub(super) acknowledged: watch::Receiver<u64>,
    /// Is set to true as soon as the end was told once.
    pub(super) told: watch::Sender<bool>,
}

/// The session is over, or the agent stops.
struct Gone;

impl<E> From<mpsc::error::SendError<E>> for Gone {
    fn from(_: mpsc::error::SendError<E>) -> Self {
        Self
    }
}

impl Reporter<'_> {
    /// Reports in one session after the other. Never returns.
    pub(super) async fn run(mut self) {
        loop {
            let link = connected(&mut self.link).await;
            let Gone = self.report(&link).await;
            link.outgoing.closed().await;
        }
    }

    /// Reports in one session until it is over.
    async fn report(&mut self, link: &Link) -> Gone {
        match self.try_report(&link.outgoing).await {
            Ok(gone) | Err(gone) => gone,
        }
    }

    async fn try_report(&mut self, outgoing: &mpsc::Sender<FromAgent>) -> Result<Gone, Gone> {
        let attempt = self.attempt;
        let mut offset = *self.acknowledged.borrow();
        let mut told_started = false;
        let mut told_outcome = None;
        loop {
            let progress = self.progress.borrow_and_update().clone();
            if progress.started && !told_started {
                outgoing.send(FromAgent::Started { attempt }).await?;
                told_started = true;
            }
            offset = self.send_log(outgoing, offset, progress.log_bytes).await?;
            if progress.outcome.is_some() && progress.outcome != told_outcome {
                told_outcome.clone_from(&progress.outcome);
                if let Some(outcome) = progress.outcome {
                    let log_bytes = progress.log_bytes;
                    outgoing.send(FromAgent::Finished { attempt, outcome, log_bytes }).await?;
                    self.told.send_replace(true);
                }
            }
            tokio::select! {
                () = outgoing.closed() => return Ok(Gone),
                changed = self.progress.changed() => changed.map_err(|_| Gone)?,
            }
        }
    }

    /// Sends the log up to `end` and returns up to where it was sent.
    async fn send_log(
        &self,
        outgoing: &mpsc::Sender<FromAgent>,
        mut offset: u64,
        end: u64,
    ) -> Result<u64, Gone> {
        let attempt = self.attempt;
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let bytes = match self.spool.read_log(offset, left.min(LOG_CHUNK_BYTES_MAX)) {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => bytes,
                Err(error) => {
                    // A lost log is no reason to lose the build.
                    tracing::warn!(%attempt, error = telemetry::chain(&error), "log not read");
                    break;
                }
            };
            let next = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            outgoing.send(FromAgent::Log { attempt, offset, bytes: bytes.into() }).await?;
            offset = next;
        }
        Ok(offset)
    }
}

/// Waits until there is a session. Never returns when the agent stops, because what follows would
/// be taken for the attempt's end.
pub(super) async fn connected(link: &mut watch::Receiver<Option<Link>>) -> Link {
    let usable = |link: &Option<Link>| link.as_ref().is_some_and(|l| !l.outgoing.is_closed());
    let found = match link.wait_for(usable).await {
        Ok(link) => link.clone(),
        Err(_) => None,
    };
    match found {
        Some(link) => link,
        None => std::future::pending().await,
    }
}
