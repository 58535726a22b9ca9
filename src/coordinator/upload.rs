//! One offer: the outputs of an attempt, received, verified and committed together.

use super::{
    Coordinator,
    bulk::{BulkChannel, BulkEnd, Signs},
    engine_thread::EngineGone,
    hygiene,
    offer::{
        Closures, Plan, Planned, Prepared, Received, Refusal, plan, prepare, recorded, refusal_of,
    },
    transfers::NoRoom,
};
use crate::{
    core::{
        engine::{Answer, Delivery, Input},
        hash::Sha256,
        id::{AttemptId, Name},
        outcome::OutputPolicy,
        store_path::StorePath,
    },
    depot::{Fault, Upload, VerifiedNar, VerifyError},
    protocol::bulk::{
        BulkFromAgent, BulkToAgent, OFFERS_AHEAD_MAX, OfferedOutput, OutputPlan, RefusalCode,
    },
};
use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};

/// What is said when something panicked that must not.
pub(super) const NO_PANIC: &str = "receiving an output does not panic";
/// How many chunks may wait for the thread that verifies them.
const CHUNKS_MAX: usize = 32;
/// How long a file may be that is not marked as complete before the next one comes, in bytes. A
/// mark costs two syncs, sending it again after a crash costs this.
const UNMARKED_BYTES_MAX: u64 = 1 << 20;

/// Receives the outputs of an attempt.
pub(super) async fn receive(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
    attempt: AttemptId,
    outputs: Vec<OfferedOutput>,
    mut signs: Signs,
) -> Result<(), BulkEnd> {
    let asked = derivation_of(coordinator, agent, attempt);
    let Some(deriver) = channel.meanwhile(&mut signs, asked).await?? else {
        return channel.say(&stale(attempt)).await;
    };
    if coordinator.outputs == OutputPolicy::Record {
        return record(coordinator, agent, channel, (attempt, deriver, outputs), &mut signs).await;
    }
    let path = deriver.clone();
    let preparing = coordinator
        .readers
        .read(move |reader| prepare(reader, &mut Closures::default(), &path, outputs));
    let received = match channel.meanwhile(&mut signs, preparing).await?? {
        Ok(prepared) => {
            let offer = Accepted { attempt, deriver, prepared };
            receive_all(coordinator, agent, channel, offer, &mut signs).await?
        }
        Err(refusal) => Err(refusal),
    };
    // In a task of its own: now that everything is here, the connection is not needed any more.
    let concluding = tokio::spawn(conclude(coordinator.clone(), agent.clone(), attempt, received));
    let answer = channel.meanwhile(&mut signs, concluding).await?.expect(NO_PANIC)?;
    channel.say(&answer).await
}

/// Asks for no file of an offer, and commits what it says.
async fn record(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
    (attempt, deriver, outputs): (AttemptId, StorePath, Vec<OfferedOutput>),
    signs: &mut Signs,
) -> Result<(), BulkEnd> {
    let plan = vec![OutputPlan::Held; outputs.len()];
    let checking = coordinator.readers.read(move |reader| recorded(reader, &deriver, outputs));
    let received = channel.meanwhile(signs, checking).await??;
    if received.is_ok() {
        channel.say(&BulkToAgent::Plan { outputs: plan, signs: signs.are_wanted() }).await?;
    }
    let concluding = conclude(coordinator.clone(), agent.clone(), attempt, received);
    let answer = channel.meanwhile(signs, tokio::spawn(concluding)).await?.expect(NO_PANIC)?;
    channel.say(&answer).await
}

/// Makes what was received durable and hands it to the engine. Returns what the agent is told.
pub(super) async fn conclude(
    coordinator: Coordinator,
    agent: Name,
    attempt: AttemptId,
    received: Result<Received, Refusal>,
) -> Result<BulkToAgent, BulkEnd> {
    let Received { outputs, nars, verdict } = match received {
        Ok(received) => received,
        Err(Refusal::Tell(code, reason)) => return Ok(BulkToAgent::Refused { code, reason }),
        Err(Refusal::Reject(reason)) => {
            tracing::warn!(%agent, %attempt, reason, "outputs refused");
            let delivery = Delivery::Rejected(reason.clone());
            deliver(&coordinator, agent, attempt, delivery).await?;
            return Ok(BulkToAgent::Refused { code: RefusalCode::Rejected, reason });
        }
    };
    let nars = coordinator.transfers.keeper.keep(nars).await?;
    let outputs = outputs.into_iter().map(Planned::record).collect();
    let delivery = Delivery::Verified { outputs, nars, files: Vec::new(), verdict };
    deliver(&coordinator, agent, attempt, delivery).await
}

/// Hands a delivery to the engine, and returns what the agent is told.
async fn deliver(
    coordinator: &Coordinator,
    agent: Name,
    attempt: AttemptId,
    delivery: Delivery,
) -> Result<BulkToAgent, BulkEnd> {
    let input = move |token| Input::Deliver { token, agent, attempt, delivery };
    let answer = coordinator.engine.request(input).await?;
    coordinator.transfers.staging.release(attempt);
    Ok(match answer {
        Answer::Delivered { accepted: true } => committed(attempt),
        _ => stale(attempt),
    })
}

/// Returns the answer to an offer that is durable.
pub(super) const fn committed(attempt: AttemptId) -> BulkToAgent {
    BulkToAgent::Committed { attempt, ahead: OFFERS_AHEAD_MAX }
}

/// Returns the derivation of an attempt if it is this agent's and finished; waits for its report.
async fn derivation_of(
    coordinator: &Coordinator,
    agent: &Name,
    attempt: AttemptId,
) -> Result<Option<StorePath>, EngineGone> {
    let agent = agent.clone();
    let offer = move |token| Input::Offer { token, agent, attempt };
    Ok(match coordinator.engine.request(offer).await? {
        Answer::Offer { derivation } => derivation,
        _ => None,
    })
}

/// Returns the answer to an offer of an attempt that somebody else has by now.
pub(super) fn stale(attempt: AttemptId) -> BulkToAgent {
    let reason = format!("attempt {attempt} is not yours any more");
    BulkToAgent::Refused { code: RefusalCode::Stale, reason }
}

/// An offer that may be received.
struct Accepted {
    attempt: AttemptId,
    deriver: StorePath,
    prepared: Prepared,
}

/// Receives what is not held, as soon as there is a place and room for it.
async fn receive_all(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
    offer: Accepted,
    signs: &mut Signs,
) -> Result<Result<Received, Refusal>, BulkEnd> {
    let transfers = &coordinator.transfers;
    let bytes = offer.prepared.bytes_to_send();
    if bytes == 0 {
        return transfer(coordinator, channel, offer, signs).await;
    }
    let reserve = || transfers.staging.reserve(agent, offer.attempt, bytes);
    if reserve().is_err() {
        // Attempts that ended in another way have no need of their room any more.
        channel.meanwhile(signs, hygiene::sweep_uploads(coordinator)).await??;
        if let Err(no_room) = reserve() {
            return Ok(Err(without_room(no_room, bytes)));
        }
    }
    let _place = if signs.are_wanted() {
        channel.meanwhile(signs, transfers.places.take(agent)).await?
    } else if let Some(place) = transfers.places.try_take(agent) {
        place
    } else {
        let reason = "too many uploads are being received".to_owned();
        return Ok(Err(Refusal::Tell(RefusalCode::TryLater, reason)));
    };
    transfer(coordinator, channel, offer, signs).await
}

fn without_room(NoRoom { others, max }: NoRoom, bytes: u64) -> Refusal {
    if bytes > max {
        let reason = format!(
            "the outputs have {bytes} bytes, and one agent may have {max} under way: raise \
             staged-gib-max on the coordinator if they are wanted"
        );
        return Refusal::Reject(reason);
    }
    let reason = format!("{others} of {max} bytes of this agent wait to be complete: finish those");
    Refusal::Tell(RefusalCode::TryLater, reason)
}

/// Receives what is not held and verifies it.
async fn transfer(
    coordinator: &Coordinator,
    channel: &mut BulkChannel,
    offer: Accepted,
    signs: &mut Signs,
) -> Result<Result<Received, Refusal>, BulkEnd> {
    let depot = coordinator.depot.clone();
    let Accepted { attempt, deriver, prepared } = offer;
    // What an earlier try has brought is read again, which can take long.
    let planning = spawn_blocking(move || plan(&depot, attempt, &deriver, prepared));
    let planned = channel.meanwhile(signs, planning).await?;
    let Plan { outputs, uploads, answers, verdict } = match planned.expect(NO_PANIC) {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(refusal_of(&error))),
    };
    channel.say(&BulkToAgent::Plan { outputs: answers, signs: signs.are_wanted() }).await?;
    channel.count_from_now();
    let mut verified = Vec::with_capacity(uploads.len());
    let mut uploads = uploads.into_iter();
    while let Some(upload) = uploads.next() {
        let follows = if uploads.len() > 0 { Follows::Another } else { Follows::Nothing };
        match receive_one(channel, upload, follows, signs).await {
            Ok(Ok(nar)) => verified.push(nar),
            ended => {
                // Dropping them waits for the disk.
                drop(spawn_blocking(move || drop((verified, uploads))));
                return ended
                    .map(|error| Err(refusal_of(&error.err().unwrap_or(VerifyError::Over))));
            }
        }
    }
    Ok(Ok(Received { outputs, nars: verified, verdict }))
}

/// What comes behind an output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    Another,
    Nothing,
}

/// Receives one output. The bytes are verified on a thread of their own while they come.
async fn receive_one(
    channel: &mut BulkChannel,
    upload: Upload,
    follows: Follows,
    signs: &mut Signs,
) -> Result<Result<VerifiedNar, VerifyError>, BulkEnd> {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let verifying = spawn_blocking(move || {
        let mut upload = upload;
        while let Some(bytes) = chunks.blocking_recv() {
            upload.write_aside(&bytes)?;
        }
        Ok::<_, VerifyError>(upload)
    });
    channel.wait_from_now();
    let file_hash = loop {
        let message = tokio::select! {
            biased;
            () = signs.due() => {
                channel.say(&BulkToAgent::Taken { bytes: channel.came() }).await?;
                continue;
            }
            message = channel.next_of_transfer() => message?,
        };
        match message {
            BulkFromAgent::Data { bytes } => hand_on(channel, &sender, bytes, signs).await?,
            BulkFromAgent::End { file_hash } => break file_hash,
            BulkFromAgent::Prepare { .. }
            | BulkFromAgent::Fetch { .. }
            | BulkFromAgent::Offer { .. }
            | BulkFromAgent::Texts { .. }
            | BulkFromAgent::About { .. }
            | BulkFromAgent::Probe { .. } => return Err(BulkEnd::OutOfTurn),
        }
    };
    drop(sender);
    let finishing = async {
        let upload = verifying.await.expect(NO_PANIC)?;
        spawn_blocking(move || finish(upload, file_hash, follows)).await.expect(NO_PANIC)
    };
    channel.meanwhile(signs, finishing).await
}

/// Hands bytes to the thread that verifies them, as soon as it has room.
async fn hand_on(
    channel: &mut BulkChannel,
    sender: &mpsc::Sender<Bytes>,
    bytes: Bytes,
    signs: &mut Signs,
) -> Result<(), BulkEnd> {
    let room = loop {
        tokio::select! {
            biased;
            room = sender.reserve() => break room,
            () = signs.due() => {
                channel.say(&BulkToAgent::Taken { bytes: channel.came() }).await?;
            }
        }
    };
    // A thread that has ended found something wrong; the rest is read and dropped, so that the
    // agent comes to the point where it hears of it.
    if let Ok(room) = room {
        room.send(bytes);
    }
    channel.wait_from_now();
    Ok(())
}

fn finish(upload: Upload, file_hash: Sha256, follows: Follows) -> Result<VerifiedNar, VerifyError> {
    let mut nar = upload.finish(file_hash)?;
    if follows == Follows::Another && nar.file_bytes() > UNMARKED_BYTES_MAX {
        nar.mark().map_err(Fault::Io)?;
    }
    Ok(nar)
}
