//! An offer with all its files in it: small outputs, which would cost a round trip each.

use super::{
    Coordinator,
    bulk::BulkEnd,
    upload::{Received, Refusal, conclude, derivation_of, plan, prepare, refusal_of, stale},
};
use crate::{
    core::{
        id::{AttemptId, Name},
        store_path::StorePath,
    },
    depot::{Depot, VerifyError},
    protocol::bulk::{BulkToAgent, EAGER_BYTES_MAX, OfferedOutput, RefusalCode},
    store::{Reader, StoreError},
};
use bytes::Bytes;

/// The offer.
pub(super) struct Offer {
    pub(super) agent: Name,
    pub(super) attempt: AttemptId,
    pub(super) outputs: Vec<OfferedOutput>,
    /// The file of each output.
    pub(super) files: Vec<Bytes>,
}

/// Verifies and commits the outputs, and returns the answer.
pub(super) async fn receive(
    coordinator: Coordinator,
    offer: Offer,
) -> Result<BulkToAgent, BulkEnd> {
    let Offer { agent, attempt, outputs, files } = offer;
    let Some(deriver) = derivation_of(&coordinator, &agent, attempt).await? else {
        return Ok(stale(attempt));
    };
    if let Some(reason) = coordinator.pressure.reason() {
        return Ok(BulkToAgent::Refused { code: RefusalCode::TryLater, reason });
    }
    let depot = coordinator.depot.clone();
    let verify =
        move |reader: &Reader| verify(reader, &depot, &Sent { attempt, deriver, files }, outputs);
    // All of it on one thread at once: the bytes are there, and there are few of them.
    let received = coordinator.readers.read(verify).await?;
    conclude(coordinator, agent, attempt, received).await
}

/// What `verify` looks at.
struct Sent {
    attempt: AttemptId,
    deriver: StorePath,
    files: Vec<Bytes>,
}

fn verify(
    reader: &Reader,
    depot: &Depot,
    sent: &Sent,
    outputs: Vec<OfferedOutput>,
) -> Result<Result<Received, Refusal>, StoreError> {
    let Sent { attempt, deriver, files } = sent;
    let bytes = files.iter().fold(0, |sum: u64, file| sum.saturating_add(file.len() as u64));
    if files.len() != outputs.len() || bytes > EAGER_BYTES_MAX {
        let reason = format!(
            "an offer has the file of each of its outputs in it, at most {EAGER_BYTES_MAX} bytes, \
             or none"
        );
        return Ok(Err(Refusal::Reject(reason)));
    }
    let prepared = match prepare(reader, deriver, outputs)? {
        Ok(prepared) => prepared,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let verified = plan(depot, *attempt, deriver, prepared).and_then(|mut plan| {
        let missing = plan.outputs.iter().zip(files).filter(|(planned, _)| planned.is_wanted());
        let uploads = std::mem::take(&mut plan.uploads);
        let mut verified = Vec::with_capacity(uploads.len());
        for (mut upload, (planned, file)) in uploads.into_iter().zip(missing) {
            // An earlier try may have brought a part, or all of it.
            let rest = usize::try_from(upload.offset()).ok().and_then(|offset| file.get(offset..));
            upload.write(rest.ok_or(VerifyError::Over)?)?;
            verified.push(upload.finish(planned.offered.file_hash)?);
        }
        Ok(Received { outputs: plan.outputs, nars: verified, verdict: plan.verdict })
    });
    Ok(verified.map_err(|error| refusal_of(&error)))
}
