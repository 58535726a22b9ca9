//! Delivers small outputs: their files travel inside the offers, many offers at a time on one
//! channel, so that a small result costs one round trip, and many of them not many.

use super::{
    bulk::{BulkError, Exchange, Pool},
    rate::Throttle,
    upload::{Delivery, UploadError, judge},
};
use crate::{
    core::{hash::Sha256, id::AttemptId},
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, EAGER_BYTES_MAX, OfferedOutput, OutputPlan},
        frame,
    },
    telemetry,
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot};

/// How many attempts may wait to be sent; more wait in their own lives.
const PARCELS_MAX: usize = 64;
/// How many attempts are sent before the channel is given back: others may wait for one.
const PARCELS_PER_TURN: usize = 4_096;
/// How many bytes of offers are written at once, and at most one offer more.
const WRITE_BYTES: usize = 256 << 10;
/// How many bytes of offers may be without an answer, and at most one offer more.
const UNANSWERED_BYTES_MAX: usize = 4 << 20;

/// All outputs of an attempt, with their files.
struct Parcel {
    offer: Bytes,
    sent: Sent,
}

/// An offer without an answer so far.
struct Sent {
    attempt: AttemptId,
    /// The files, for a coordinator that has passed over them in the offer.
    files: Vec<(Bytes, Sha256)>,
    answer: oneshot::Sender<Result<Delivery, UploadError>>,
}

/// The offers without an answer so far, in their order.
#[derive(Default)]
struct Window {
    offers: VecDeque<(Sent, usize)>,
    bytes: usize,
}

impl Window {
    fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// Tells whether one more may be sent.
    fn takes(&self, exchange: &Exchange) -> bool {
        self.offers.len() < exchange.ahead() && self.bytes < UNANSWERED_BYTES_MAX
    }

    fn push(&mut self, sent: Sent, bytes: usize) {
        self.bytes += bytes;
        self.offers.push_back((sent, bytes));
    }

    fn first(&self) -> Option<&Sent> {
        self.offers.front().map(|(first, _)| first)
    }

    fn pop(&mut self) -> Option<Sent> {
        let (first, bytes) = self.offers.pop_front()?;
        self.bytes -= bytes;
        Some(first)
    }
}

/// The way to the channel for small outputs.
#[derive(Debug)]
pub(super) struct Express {
    parcels: mpsc::Sender<Parcel>,
    /// Whether the coordinator passes over files in offers.
    is_refused: Arc<AtomicBool>,
}

impl Express {
    /// Starts the task that sends. It ends with this value.
    pub(super) fn start(pool: Pool, throttle: Arc<Throttle>) -> Self {
        let (parcels, waiting) = mpsc::channel(PARCELS_MAX);
        let is_refused = Arc::new(AtomicBool::new(false));
        let courier = Courier { pool, throttle, waiting, is_refused: Arc::clone(&is_refused) };
        drop(tokio::spawn(courier.run()));
        Self { parcels, is_refused }
    }

    /// Tells whether outputs are small enough, and the coordinator takes them so.
    pub(super) fn takes(&self, outputs: &[OfferedOutput]) -> bool {
        let bytes = outputs.iter().fold(0, |sum: u64, out| sum.saturating_add(out.file_bytes));
        !outputs.is_empty() && bytes <= EAGER_BYTES_MAX && !self.is_refused.load(Ordering::Relaxed)
    }

    /// Sends outputs, whose files are given in their order.
    ///
    /// # Errors
    /// [`UploadError`]. When the coordinator passes over files in offers, [`Express::takes`] says
    /// no from then on.
    pub(super) async fn deliver(
        &self,
        attempt: AttemptId,
        outputs: &[OfferedOutput],
        files: Vec<Bytes>,
    ) -> Result<Delivery, UploadError> {
        let hashes = outputs.iter().map(|output| output.file_hash);
        let (answer, answered) = oneshot::channel();
        let sent = Sent { attempt, files: files.iter().cloned().zip(hashes).collect(), answer };
        let offer =
            BulkFromAgent::Offer { attempt, outputs: outputs.to_vec(), eager: files, signs: true };
        let parcel = Parcel { offer: frame::encode(&offer).map_err(BulkError::from)?, sent };
        self.parcels.send(parcel).await.map_err(|_| BulkError::Lost)?;
        answered.await.map_err(|_| BulkError::Lost)?
    }
}

/// The task.
struct Courier {
    pool: Pool,
    throttle: Arc<Throttle>,
    waiting: mpsc::Receiver<Parcel>,
    is_refused: Arc<AtomicBool>,
}

impl Courier {
    async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let mut sent = Window::default();
            if let Err(error) = self.turn(first, &mut sent).await {
                let (error, unanswered) = (telemetry::chain(&error), sent.offers.len());
                tracing::debug!(error, unanswered, "small outputs not delivered");
            }
            // Without an answer they come again.
            while let Some(Sent { answer, .. }) = sent.pop() {
                tell(answer, Err(BulkError::Lost.into()));
            }
        }
    }

    /// Sends what waits, until nothing does or others should have the channel.
    async fn turn(&mut self, first: Parcel, sent: &mut Window) -> Result<(), UploadError> {
        let mut exchange = match self.pool.exchange().await {
            Ok(exchange) => exchange,
            Err(error) => {
                tell(first.sent.answer, Err(error.into()));
                return Ok(());
            }
        };
        let (mut room, mut next) = (PARCELS_PER_TURN, Some(first));
        loop {
            room -= self.send(&exchange, next.take(), room, sent).await?;
            if sent.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                Some(parcel) = self.waiting.recv(), if room > 0 && sent.takes(&exchange) => {
                    next = Some(parcel);
                }
                answer = exchange.receive() => {
                    self.take(&mut exchange, answer?, sent).await?;
                    // Answers come together, and so does what is sent in their places.
                    while let Some(answer) = exchange.received()? {
                        self.take(&mut exchange, answer, sent).await?;
                    }
                }
            }
        }
        exchange.finish();
        Ok(())
    }

    /// Sends a parcel and what waits behind it, at once. Returns how many that were.
    async fn send(
        &mut self,
        exchange: &Exchange,
        first: Option<Parcel>,
        room: usize,
        sent: &mut Window,
    ) -> Result<usize, UploadError> {
        let (mut frames, mut bytes, mut next) = (Vec::new(), 0, first);
        loop {
            let may_send = frames.len() < room && bytes < WRITE_BYTES && sent.takes(exchange);
            let waiting = || if may_send { self.waiting.try_recv().ok() } else { None };
            let Some(Parcel { offer, sent: unanswered }) = next.take().or_else(waiting) else {
                break;
            };
            bytes += offer.len();
            sent.push(unanswered, offer.len());
            frames.push(offer);
        }
        let number = frames.len();
        let together = match <[Bytes; 1]>::try_from(frames) {
            Ok([only]) => only,
            Err(frames) => frames.concat().into(),
        };
        if number > 0 {
            self.throttle.pass(together.len()).await;
            exchange.sender()?.send(together).await?;
        }
        Ok(number)
    }

    /// Takes an answer to the offer that was sent first.
    async fn take(
        &self,
        exchange: &mut Exchange,
        answer: BulkToAgent,
        sent: &mut Window,
    ) -> Result<(), UploadError> {
        match answer {
            BulkToAgent::Wait {} => return Ok(()),
            BulkToAgent::Committed { ahead, .. } => exchange.set_ahead(ahead),
            BulkToAgent::Plan { outputs, .. } => {
                // A coordinator of before this: files in offers only cost it time.
                self.is_refused.store(true, Ordering::Relaxed);
                let Some(Sent { files, .. }) = sent.first().filter(|_| sent.offers.len() == 1)
                else {
                    return Err(BulkError::OutOfTurn("a plan for one of many offers").into());
                };
                return send_as_planned(exchange, files, &outputs).await;
            }
            _ => {}
        }
        let Some(first) = sent.first() else {
            return Err(BulkError::OutOfTurn("an answer without an offer").into());
        };
        match judge(&answer, first.attempt) {
            Err(error @ UploadError::Bulk(_)) => Err(error),
            verdict => {
                if let Some(first) = sent.pop() {
                    tell(first.answer, verdict);
                }
                Ok(())
            }
        }
    }
}

/// Sends files that were passed over, in the ordinary way.
async fn send_as_planned(
    exchange: &Exchange,
    files: &[(Bytes, Sha256)],
    plan: &[OutputPlan],
) -> Result<(), UploadError> {
    for ((file, file_hash), plan) in files.iter().zip(plan) {
        let OutputPlan::Send { offset } = *plan else { continue };
        let rest = usize::try_from(offset).ok().filter(|offset| *offset <= file.len());
        let rest = rest.ok_or(BulkError::OutOfTurn("an offset behind the end of the file"))?;
        // All files together have no more bytes than one message may have.
        exchange.send(&BulkFromAgent::Data { bytes: file.slice(rest..) }).await?;
        exchange.send(&BulkFromAgent::End { file_hash: *file_hash }).await?;
    }
    Ok(())
}

fn tell(
    answer: oneshot::Sender<Result<Delivery, UploadError>>,
    verdict: Result<Delivery, UploadError>,
) {
    if answer.send(verdict).is_err() {
        tracing::trace!("verdict on an attempt that is not wanted any more");
    }
}
