//! One attempt's life in the agent: prepare, start or adopt its process, follow it, deliver.
//!
//! It ends when the coordinator has everything or wants nothing of it, and then leaves nothing
//! behind. When the agent stops it is merely dropped: the spool tells the next agent how to go on.

use super::{
    Equipment,
    attempt::{limited, spool_failure},
    backoff::Backoff,
    blocking::on_thread,
    child,
    prepare::{self, Prepared},
    report::{Acknowledged, Link, Progress, Reporter, connected},
    spool::{AttemptResult, Order, Spool, Stage},
    upload::{self, Delivery, UploadError},
};
use crate::{
    builders::Builder,
    core::{
        id::AttemptId,
        outcome::{Outcome, SetupFailure},
    },
    protocol::{bulk::OfferedOutput, handshake::HeldPhase, message::Allocation},
    telemetry,
};
use bytes::Bytes;
use std::{convert::Infallible, io, process::Child, sync::Arc, time::Duration};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How long to wait after the log grew before looking at it: a builder that prints one line after
/// the other makes one message of them.
const LOG_PAUSE: Duration = Duration::from_millis(50);

/// One attempt and what its life needs.
pub(super) struct Life {
    /// Which attempt.
    pub(super) attempt: AttemptId,
    /// What the coordinator asked for.
    pub(super) allocation: Allocation,
    /// Its directory.
    pub(super) spool: Spool,
    /// What all lives share.
    pub(super) equipment: Arc<Equipment>,
    /// The session with the coordinator, while there is one.
    pub(super) link: watch::Receiver<Option<Link>>,
    /// What the coordinator last said of the log.
    pub(super) acknowledged: watch::Receiver<Acknowledged>,
    /// Notified when something is written in the spool.
    pub(super) changes: Arc<Notify>,
    /// Takes every new phase.
    pub(super) phases: mpsc::Sender<(AttemptId, HeldPhase)>,
    /// Fires when nothing of the attempt is wanted any more.
    pub(super) forget: CancellationToken,
}

/// Nothing of the attempt is wanted any more.
struct Unwanted;

impl Life {
    /// Lives until nothing of the attempt is wanted any more, and cleans up.
    pub(super) async fn run(self) {
        let (progress, seen) = watch::channel(Progress::default());
        let (told, is_told) = watch::channel(false);
        let reporter = Reporter {
            attempt: self.attempt,
            spool: &self.spool,
            progress: seen,
            link: self.link.clone(),
            acknowledged: self.acknowledged.clone(),
            told,
        };
        tokio::select! {
            () = self.forget.cancelled() => {}
            () = reporter.run() => {}
            Unwanted = self.advance(&progress, is_told) => {}
        }
        self.clear().await;
    }

    /// Ends the process, if it lives, and removes the spool.
    async fn clear(&self) {
        let spool = self.spool.clone();
        let clear = move || -> io::Result<()> {
            child::kill(&spool)?;
            spool.remove()
        };
        let error = match on_thread(clear).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) | Err(error) => telemetry::chain(&error),
        };
        tracing::warn!(attempt = %self.attempt, error, "attempt not cleared: the next start tries again");
    }

    /// Brings the attempt from where the spool says it is to its end.
    async fn advance(
        &self,
        progress: &watch::Sender<Progress>,
        mut is_told: watch::Receiver<bool>,
    ) -> Unwanted {
        let result = match self.obtain_result(progress).await {
            Ok(result) => result,
            Err(unwanted) => return unwanted,
        };
        self.conclude(progress, result.outcome.clone()).await;
        if result.outcome != Outcome::Built {
            return std::future::pending().await;
        }
        // The offer follows the report, so that the coordinator learns things in their order.
        if is_told.wait_for(|told| *told).await.is_err() {
            return std::future::pending().await;
        }
        match self.deliver(&result.outputs).await {
            Ok(unwanted) => unwanted,
            Err(failure) => {
                self.conclude(progress, Outcome::SetupFailed(failure)).await;
                std::future::pending().await
            }
        }
    }

    /// Makes the end of the attempt known.
    async fn conclude(&self, progress: &watch::Sender<Progress>, outcome: Outcome) {
        tracing::info!(attempt = %self.attempt, drv = %self.allocation.derivation, ?outcome, "attempt ended");
        self.enter(HeldPhase::Finished(outcome.clone())).await;
        let started = self.spool.is_started();
        let log_bytes = self.spool.log_bytes();
        progress.send_replace(Progress { started, log_bytes, outcome: Some(outcome) });
    }

    /// Tells the owner of all attempts how far this one is.
    async fn enter(&self, phase: HeldPhase) {
        if self.phases.send((self.attempt, phase)).await.is_err() {
            // The agent stops.
            std::future::pending::<()>().await;
        }
    }

    /// Returns how the attempt ended, once it has.
    async fn obtain_result(
        &self,
        progress: &watch::Sender<Progress>,
    ) -> Result<AttemptResult, Unwanted> {
        let stage = match self.spool.stage() {
            Ok(stage) => stage,
            Err(error) => return Ok(self.lost(&telemetry::chain(&error))),
        };
        match stage {
            Stage::Ended(result) => Ok(result),
            Stage::Lost => Ok(self.lost(&self.spool.diagnosis())),
            Stage::Running => match child::ended(&self.spool, None) {
                Ok(ended) => Ok(self.follow(progress, ended, None).await),
                Err(error) => Ok(self.lost(&telemetry::chain(&error))),
            },
            Stage::Preparing => {
                self.enter(HeldPhase::Preparing).await;
                match self.prepared().await {
                    Prepared::Stale => Err(Unwanted),
                    Prepared::Failed(failure) => Ok(self.record(limited(failure))),
                    Prepared::Ready(ready) => match self.start(&ready.order, &ready.derivation) {
                        Ok((child, ended)) => {
                            tracing::debug!(attempt = %self.attempt, pid = child, "attempt's process started");
                            Ok(self.follow(progress, ended, Some(ready.roots)).await)
                        }
                        Err(error) => Ok(self.record(limited(spool_failure(&error)))),
                    },
                }
            }
        }
    }

    /// Prepares until that ends, however often the connection is lost meanwhile.
    async fn prepared(&self) -> Prepared {
        let mut backoff = Backoff::default();
        loop {
            let link = connected(self.attempt, &mut self.link.clone()).await;
            match prepare::prepare(&self.equipment, &self.allocation).await {
                Ok(Prepared::Stale) if !self.is_in(&link) => {
                    tracing::info!(attempt = %self.attempt, "inputs refused in an earlier session");
                }
                Ok(prepared) => return prepared,
                Err(error) => {
                    let error = telemetry::chain(&error);
                    tracing::info!(attempt = %self.attempt, error, "inputs not there yet");
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Tells whether this is the session still. An attempt that was given up in an earlier one may
    /// have been taken back since: what was said of it on a bulk channel then says nothing now, and
    /// the next welcome says whether it is wanted.
    fn is_in(&self, link: &Link) -> bool {
        let now = self.link.borrow();
        now.as_ref().is_some_and(|now| now.outgoing.same_channel(&link.outgoing))
    }

    /// Starts the attempt's process.
    fn start(
        &self,
        order: &Order,
        derivation: &[u8],
    ) -> io::Result<(u32, oneshot::Receiver<Infallible>)> {
        self.spool.write_order(order, derivation)?;
        let child: Child = child::start(&self.equipment.config.program, &self.spool)?;
        let id = child.id();
        Ok((id, child::ended(&self.spool, Some(child))?))
    }

    /// Follows the process to its death. `roots` keeps the inputs until the process has begun.
    async fn follow(
        &self,
        progress: &watch::Sender<Progress>,
        mut ended: oneshot::Receiver<Infallible>,
        mut roots: Option<Box<dyn Builder>>,
    ) -> AttemptResult {
        // What an adopted process does is not known yet, but it does occupy the machine.
        self.enter(HeldPhase::Building).await;
        loop {
            let started = self.spool.is_started();
            let log_bytes = self.spool.log_bytes();
            if started {
                drop(roots.take());
            }
            let now = Progress { started, log_bytes, outcome: None };
            progress.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
            tokio::select! {
                () = self.changes.notified() => {}
                Err(_) = &mut ended => break,
            }
            if started {
                tokio::select! {
                    () = tokio::time::sleep(LOG_PAUSE) => {}
                    Err(_) = &mut ended => break,
                }
            }
        }
        match self.spool.result() {
            Ok(Some(result)) => result,
            Ok(None) => self.lost(&self.spool.diagnosis()),
            Err(error) => self.lost(&telemetry::chain(&error)),
        }
    }

    /// Returns, and keeps, that the process left no result.
    fn lost(&self, words: &str) -> AttemptResult {
        let text = format!("the attempt's process ended without a result: {words}");
        self.record(limited(SetupFailure::AttemptLost(text)))
    }

    /// Returns a result without outputs, and keeps it for the next agent.
    fn record(&self, outcome: Outcome) -> AttemptResult {
        let result = AttemptResult::without_outputs(outcome);
        if let Err(error) = self.spool.write_result(&result) {
            // The next agent would find out itself, or prepare the attempt again.
            tracing::warn!(attempt = %self.attempt, error = telemetry::chain(&error), "result not kept");
        }
        result
    }

    /// Delivers the outputs, however often the connection is lost meanwhile.
    ///
    /// Fails when they cannot be delivered at all, because the spool is damaged.
    async fn deliver(&self, outputs: &[OfferedOutput]) -> Result<Unwanted, SetupFailure> {
        let mut backoff = Backoff::default();
        loop {
            let link = connected(self.attempt, &mut self.link.clone()).await;
            let delivered = self.send(outputs).await;
            match delivered {
                Ok(Delivery::Stale(reason)) if !self.is_in(&link) => {
                    tracing::info!(attempt = %self.attempt, reason, "outputs refused in an earlier session");
                }
                Ok(Delivery::Committed) => {
                    tracing::info!(attempt = %self.attempt, "outputs committed");
                    return Ok(Unwanted);
                }
                Ok(Delivery::Stale(reason) | Delivery::Unwanted(reason)) => {
                    tracing::warn!(attempt = %self.attempt, reason, "outputs refused");
                    return Ok(Unwanted);
                }
                Err(error @ UploadError::Spool(_)) => {
                    let text = format!("outputs lost: {}", telemetry::chain(&error));
                    return Err(SetupFailure::AttemptLost(text));
                }
                Err(error) => {
                    let error = telemetry::chain(&error);
                    tracing::info!(attempt = %self.attempt, error, "outputs not delivered yet");
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Sends the outputs once: in the offer when they are small.
    async fn send(&self, outputs: &[OfferedOutput]) -> Result<Delivery, UploadError> {
        let Equipment { pool, throttle, express, uploads, .. } = &*self.equipment;
        if express.takes(outputs) {
            let paths: Vec<_> =
                outputs.iter().map(|output| self.spool.nar_path(&output.info.path)).collect();
            let read = move || paths.iter().map(|path| Ok(fs_err::read(path)?.into())).collect();
            let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other);
            let files: Vec<Bytes> = read.flatten().map_err(UploadError::Spool)?;
            return express.deliver(self.attempt, outputs, files).await;
        }
        // The semaphore is never closed.
        let _permit = uploads.acquire().await;
        upload::upload(pool, throttle, &self.spool, self.attempt, outputs).await
    }
}
