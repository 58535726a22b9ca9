//! Delivers the outputs of a built attempt, until the coordinator has them or wants none.

use super::{
    bulk::{BulkError, Exchange, Pool},
    spool::Spool,
};
use crate::{
    core::id::AttemptId,
    protocol::bulk::{
        BulkFromAgent, BulkToAgent, CHUNK_BYTES_MAX, OfferedOutput, OutputPlan, RefusalCode,
    },
};
use bytes::Bytes;
use std::{io, io::SeekFrom, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// How long the coordinator may take to verify what it received: it has hashed while receiving,
/// but its disk may have to catch up.
const COMMIT_MAX: Duration = Duration::from_mins(15);

/// How an upload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The coordinator has all outputs.
    Committed,
    /// The coordinator wants none of it, now or later.
    Unwanted(String),
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
    spool: &Spool,
    attempt: AttemptId,
    outputs: &[OfferedOutput],
) -> Result<Delivery, UploadError> {
    let mut exchange = pool.exchange().await?;
    exchange.send(&BulkFromAgent::Offer { attempt, outputs: outputs.to_vec() }).await?;
    let plan = match exchange.receive().await? {
        BulkToAgent::Plan { outputs } => outputs,
        other => return conclude(exchange, other, attempt),
    };
    if plan.len() != outputs.len() {
        return Err(BulkError::OutOfTurn("the plan is not for this offer").into());
    }
    for (output, plan) in outputs.iter().zip(plan) {
        let offset = match plan {
            OutputPlan::Held => continue,
            OutputPlan::Send { offset } => offset,
        };
        if let Some(interruption) = send(&mut exchange, spool, output, offset).await? {
            // The coordinator still expects the rest, so the channel is not given back.
            return judge(interruption, attempt);
        }
    }
    let answer = exchange.receive_within(COMMIT_MAX).await?;
    conclude(exchange, answer, attempt)
}

/// Takes the message that ends an exchange, and gives the channel back.
fn conclude(
    exchange: Exchange,
    answer: BulkToAgent,
    attempt: AttemptId,
) -> Result<Delivery, UploadError> {
    let delivery = judge(answer, attempt);
    if !matches!(delivery, Err(UploadError::Bulk(_))) {
        exchange.finish();
    }
    delivery
}

/// Reads the coordinator's verdict.
fn judge(answer: BulkToAgent, attempt: AttemptId) -> Result<Delivery, UploadError> {
    match answer {
        BulkToAgent::Committed { attempt: committed } if committed == attempt => {
            Ok(Delivery::Committed)
        }
        BulkToAgent::Refused { code, reason } => match code {
            RefusalCode::Stale | RefusalCode::Rejected => Ok(Delivery::Unwanted(reason)),
            RefusalCode::TryLater | RefusalCode::NotHeld => Err(UploadError::TryLater(reason)),
        },
        _ => Err(BulkError::OutOfTurn("a verdict on the offer was expected").into()),
    }
}

/// Sends one file from an offset on. Returns what the coordinator says meanwhile, if anything.
async fn send(
    exchange: &mut Exchange,
    spool: &Spool,
    output: &OfferedOutput,
    offset: u64,
) -> Result<Option<BulkToAgent>, UploadError> {
    let mut left = output
        .file_bytes
        .checked_sub(offset)
        .ok_or(BulkError::OutOfTurn("an offset behind the end of the file"))?;
    let path = spool.nar_path(&output.info.path);
    let mut file = fs_err::tokio::File::open(path).await.map_err(UploadError::Spool)?;
    file.seek(SeekFrom::Start(offset)).await.map_err(UploadError::Spool)?;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES_MAX);
        let mut bytes = vec![0u8; length];
        file.read_exact(&mut bytes).await.map_err(UploadError::Spool)?;
        left = left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
        let data = BulkFromAgent::Data { bytes: Bytes::from(bytes) };
        if let Some(interruption) = exchange.send_unless_told(&data).await? {
            return Ok(Some(interruption));
        }
    }
    exchange.send(&BulkFromAgent::End { file_hash: output.file_hash }).await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT: AttemptId = AttemptId::from_bytes([1; 16]);

    fn refused(code: RefusalCode) -> Result<Delivery, UploadError> {
        judge(BulkToAgent::Refused { code, reason: "why".to_owned() }, ATTEMPT)
    }

    #[test]
    fn only_the_own_attempts_commit_counts() {
        let committed = |attempt| judge(BulkToAgent::Committed { attempt }, ATTEMPT);
        assert!(matches!(committed(ATTEMPT), Ok(Delivery::Committed)));
        assert!(committed(AttemptId::from_bytes([2; 16])).is_err());
        assert!(judge(BulkToAgent::End {}, ATTEMPT).is_err());
    }

    #[test]
    fn refusals_say_whether_to_come_again() {
        for code in [RefusalCode::Stale, RefusalCode::Rejected] {
            assert!(matches!(refused(code), Ok(Delivery::Unwanted(_))));
        }
        for code in [RefusalCode::TryLater, RefusalCode::NotHeld] {
            assert!(matches!(refused(code), Err(UploadError::TryLater(_))));
        }
    }
}
