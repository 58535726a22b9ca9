//! Delivers the outputs of a built attempt, until the coordinator has them or wants none.

use super::{
    bulk::{BulkError, Exchange, Pool, Sender},
    rate::Throttle,
    spool::Spool,
};
use crate::{
    core::id::AttemptId,
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, OfferedOutput, OutputPlan, RefusalCode, STALL_MAX},
        data::data_frame,
        frame,
    },
};
use bytes::Bytes;
use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};

/// How long the coordinator may take to verify what it received: it has hashed while receiving,
/// but its disk may have to catch up.
const COMMIT_MAX: Duration = Duration::from_mins(15);
/// How many messages are made ahead of what the coordinator takes: 2 MiB.
const FRAMES_MAX: usize = 8;
/// How many signs in a row may tell that nothing more was taken: they come every 10 s, and
/// nothing may stand still for 30 s.
const SIGNS_STILL_MAX: u32 = 3;

/// How an upload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The coordinator has all outputs.
    Committed,
    /// The coordinator wants none of it, now or later.
    Unwanted(String),
    /// The attempt was not this agent's any more when the coordinator looked.
    Stale(String),
}

/// Why an upload did not end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The exchange with the coordinator broke off: try again later.
    #[error("outputs not delivered")]
    Bulk(#[from] BulkError),
    /// The coordinator asks to come again.
    #[error("the coordinator cannot take the outputs now: {0}")]
    TryLater(String),
    /// A nar in the spool cannot be read. It is lost.
    #[error("the spool cannot be read")]
    Spool(#[source] io::Error),
}

/// Offers all outputs and sends what the coordinator wants of them.
///
/// # Errors
/// [`UploadError`].
pub(super) async fn upload(
    pool: &Pool,
    throttle: &Throttle,
    spool: &Spool,
    attempt: AttemptId,
    outputs: &[OfferedOutput],
) -> Result<Delivery, UploadError> {
    let mut exchange = pool.exchange().await?;
    let offer =
        BulkFromAgent::Offer { attempt, outputs: outputs.to_vec(), eager: vec![], signs: true };
    exchange.send(&offer).await?;
    let (plan, signs) = loop {
        match exchange.receive().await? {
            BulkToAgent::Plan { outputs, signs } => break (outputs, signs),
            // Others come first. As long as it says so, it lives.
            BulkToAgent::Wait {} => {}
            other => return conclude(exchange, &other, attempt),
        }
    };
    if plan.len() != outputs.len() {
        return Err(BulkError::OutOfTurn("the plan is not for this offer").into());
    }
    let files = wanted(spool, outputs, &plan)?;
    let (sender, sent) = (exchange.sender()?, AtomicU64::new(0));
    let answer = {
        let mut listening = pin!(listen(&mut exchange, &sent, signs));
        let mut sending = pin!(send_all(&sender, throttle, files, &sent));
        tokio::select! {
            biased;
            // The coordinator still expects the rest, so the channel is not given back.
            interruption = &mut listening => return judge(&interruption?, attempt),
            sent = &mut sending => sent?,
        }
        timeout(COMMIT_MAX, listening).await.map_err(|_| BulkError::Late(COMMIT_MAX))??
    };
    conclude(exchange, &answer, attempt)
}

/// Takes the message that ends an exchange, and gives the channel back.
fn conclude(
    exchange: Exchange,
    answer: &BulkToAgent,
    attempt: AttemptId,
) -> Result<Delivery, UploadError> {
    let delivery = judge(answer, attempt);
    if !matches!(delivery, Err(UploadError::Bulk(_))) {
        exchange.finish();
    }
    delivery
}

/// Reads the coordinator's verdict.
pub(super) fn judge(answer: &BulkToAgent, attempt: AttemptId) -> Result<Delivery, UploadError> {
    match answer {
        BulkToAgent::Committed { attempt: committed, .. } if *committed == attempt => {
            Ok(Delivery::Committed)
        }
        BulkToAgent::Refused { code, reason } => match code {
            RefusalCode::Stale => Ok(Delivery::Stale(reason.clone())),
            RefusalCode::Rejected => Ok(Delivery::Unwanted(reason.clone())),
            RefusalCode::TryLater | RefusalCode::NotHeld => {
                Err(UploadError::TryLater(reason.clone()))
            }
        },
        _ => Err(BulkError::OutOfTurn("a verdict on the offer was expected").into()),
    }
}

/// One file to send.
struct Wanted {
    path: PathBuf,
    offset: u64,
    /// How many bytes there are from the offset on.
    bytes: u64,
    /// What is said behind them.
    end: BulkFromAgent,
}

fn wanted(
    spool: &Spool,
    outputs: &[OfferedOutput],
    plan: &[OutputPlan],
) -> Result<Vec<Wanted>, BulkError> {
    let mut files = Vec::new();
    for (output, plan) in outputs.iter().zip(plan) {
        let OutputPlan::Send { offset } = *plan else { continue };
        let bytes = output.file_bytes.checked_sub(offset);
        let bytes = bytes.ok_or(BulkError::OutOfTurn("an offset behind the end of the file"))?;
        let end = BulkFromAgent::End { file_hash: output.file_hash };
        files.push(Wanted { path: spool.nar_path(&output.info.path), offset, bytes, end });
    }
    Ok(files)
}

/// Sends files, one after the other, and counts what was sent.
async fn send_all(
    sender: &Sender,
    throttle: &Throttle,
    files: Vec<Wanted>,
    sent: &AtomicU64,
) -> Result<(), UploadError> {
    let (frames, mut made) = mpsc::channel(FRAMES_MAX);
    let piece_bytes = throttle.piece_bytes();
    let read = move || {
        if let Err(error) = files.iter().try_for_each(|file| frames_of(file, piece_bytes, &frames))
            && frames.blocking_send(Err(error)).is_err()
        {
            tracing::trace!("a file was not read to its end: its upload was given up");
        }
    };
    std::thread::Builder::new()
        .name("reading".to_owned())
        .spawn(read)
        .map_err(UploadError::Spool)?;
    while let Some(frame) = made.recv().await {
        let frame: Bytes = frame?;
        let length = frame.len();
        throttle.pass(length).await;
        sender.send(frame).await?;
        sent.fetch_add(length as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Makes the messages that carry one file.
fn frames_of(
    file: &Wanted,
    piece_bytes: usize,
    frames: &mpsc::Sender<Result<Bytes, UploadError>>,
) -> Result<(), UploadError> {
    let given_up = |_| UploadError::Bulk(BulkError::Lost);
    let mut reader = fs_err::File::open(&file.path).map_err(UploadError::Spool)?;
    reader.seek(SeekFrom::Start(file.offset)).map_err(UploadError::Spool)?;
    let mut left = file.bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece_bytes);
        let frame = frame_of(&mut reader, length)?;
        left = left.saturating_sub(length as u64);
        frames.blocking_send(Ok(frame)).map_err(given_up)?;
    }
    let end = frame::encode(&file.end).map_err(BulkError::from)?;
    frames.blocking_send(Ok(end)).map_err(given_up)
}

/// Makes the message that carries the next `length` bytes.
fn frame_of(reader: &mut fs_err::File, length: usize) -> Result<Bytes, UploadError> {
    if let Ok((mut frame, start)) = data_frame(length) {
        // Read to where they are sent from.
        reader.read_exact(&mut frame[start..]).map_err(UploadError::Spool)?;
        return Ok(frame.into());
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).map_err(UploadError::Spool)?;
    let data = BulkFromAgent::Data { bytes: bytes.into() };
    Ok(frame::encode(&data).map_err(BulkError::from)?)
}

/// Listens while bytes are sent and verified. Returns what is said that is no sign of life, and
/// fails when the coordinator makes no progress although there is something to take.
async fn listen(
    exchange: &mut Exchange,
    sent: &AtomicU64,
    signs: bool,
) -> Result<BulkToAgent, BulkError> {
    let patience = if signs { STALL_MAX } else { Duration::MAX };
    let (mut taken, mut still) = (0, 0);
    loop {
        match exchange.receive_within(patience).await? {
            BulkToAgent::Wait {} => still = 0,
            BulkToAgent::Taken { bytes } => {
                let is_behind = bytes < sent.load(Ordering::Relaxed);
                still = if is_behind && bytes <= taken { still + 1 } else { 0 };
                taken = bytes.max(taken);
                if still >= SIGNS_STILL_MAX {
                    return Err(BulkError::Stalled);
                }
            }
            other => return Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT: AttemptId = AttemptId::from_bytes([1; 16]);

    fn refused(code: RefusalCode) -> Result<Delivery, UploadError> {
        judge(&BulkToAgent::Refused { code, reason: "why".to_owned() }, ATTEMPT)
    }

    #[test]
    fn only_the_own_attempts_commit_counts() {
        let committed = |attempt| judge(&BulkToAgent::Committed { attempt, ahead: 0 }, ATTEMPT);
        assert!(matches!(committed(ATTEMPT), Ok(Delivery::Committed)));
        assert!(committed(AttemptId::from_bytes([2; 16])).is_err());
        assert!(judge(&BulkToAgent::End {}, ATTEMPT).is_err());
    }

    #[test]
    fn refusals_say_whether_to_come_again() {
        assert!(matches!(refused(RefusalCode::Stale), Ok(Delivery::Stale(_))));
        assert!(matches!(refused(RefusalCode::Rejected), Ok(Delivery::Unwanted(_))));
        for code in [RefusalCode::TryLater, RefusalCode::NotHeld] {
            assert!(matches!(refused(code), Err(UploadError::TryLater(_))));
        }
    }
}
