//! One offer: the outputs of an attempt, received, verified and committed together.

use super::{
    Coordinator,
    bulk::{BulkChannel, BulkEnd},
    inputs::{InputsError, direct_inputs},
};
use crate::{
    core::{
        change::{NarRecord, OutputRecord, Verdict},
        derivation::{Derivation, FixedOutput},
        engine::{Answer, Delivery, Input},
        id::{AttemptId, Name},
        store_path::{PathHash, StorePath},
    },
    depot::{Depot, Upload, UploadRules, VerifiedNar, VerifyError},
    formats::nar::NarLimits,
    protocol::bulk::{
        BulkFromAgent, BulkToAgent, OFFERED_OUTPUTS_MAX, OfferedOutput, OutputPlan, RefusalCode,
    },
    store::{Reader, StoreError},
    telemetry,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::mpsc;

/// How many chunks may wait for the thread that verifies them.
const CHUNKS_MAX: usize = 32;
/// How many paths an output may refer to at most: the closure of its inputs.
const CANDIDATES_MAX: usize = 200_000;
/// What an output's nar may ask.
const NAR_LIMITS: NarLimits =
    NarLimits { bytes_max: 64 << 30, entries_max: 10_000_000, depth_max: 512 };

/// Why an offer is not taken.
enum Refusal {
    /// Tell the agent, change nothing.
    Tell(RefusalCode, String),
    /// The outputs are wrong: the attempt is over.
    Reject(String),
}

/// What the database says about an offer.
struct Prepared {
    outputs: Vec<Planned>,
    candidates: Vec<StorePath>,
    fixed: Option<FixedOutput>,
}

/// One output of an offer, and what is held under its path.
struct Planned {
    offered: OfferedOutput,
    held: Option<NarRecord>,
}

/// Receives the outputs of an attempt.
pub(super) async fn receive(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
    attempt: AttemptId,
    outputs: Vec<OfferedOutput>,
) -> Result<(), BulkEnd> {
    let answer = coordinator
        .engine
        .request({
            let agent = agent.clone();
            move |token| Input::Offer { token, agent, attempt }
        })
        .await?;
    let Answer::Offer { derivation: Some(derivation) } = answer else {
        let reason = format!("attempt {attempt} is not yours any more");
        return channel.refuse(RefusalCode::Stale, reason).await;
    };
    let deriver = derivation.clone();
    let prepared =
        coordinator.readers.read(move |reader| prepare(reader, &derivation, outputs)).await?;
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => return turn_down(coordinator, agent, channel, attempt, refusal).await,
    };
    match transfer(coordinator, channel, attempt, &deriver, prepared).await? {
        Ok(delivery) => deliver(coordinator, agent, channel, attempt, delivery).await,
        Err(refusal) => turn_down(coordinator, agent, channel, attempt, refusal).await,
    }
}

/// Checks what is offered against the derivation, before a byte is received.
fn prepare(
    reader: &Reader,
    path: &StorePath,
    offered: Vec<OfferedOutput>,
) -> Result<Result<Prepared, Refusal>, StoreError> {
    let lost = |what: String| Ok(Err(Refusal::Tell(RefusalCode::TryLater, what)));
    let Some(text) = reader.derivation_text(path.hash())? else {
        return lost(format!("the derivation {path} is not in the database"));
    };
    let derivation = match Derivation::parse(&text) {
        Ok(derivation) => derivation,
        Err(error) => return lost(format!("{path} cannot be read: {}", telemetry::chain(&error))),
    };
    if let Err(reason) = check_names(&derivation, &offered) {
        return Ok(Err(Refusal::Reject(reason)));
    }
    let direct = match direct_inputs(reader, &derivation) {
        Ok(direct) => direct,
        Err(InputsError::Store(error)) => return Err(error),
        Err(error) => return lost(telemetry::chain(&error)),
    };
    let declared = offered.iter().flat_map(|output| output.info.references.iter().cloned());
    let roots = direct.into_iter().chain(declared);
    let mut candidates = closure(reader, roots)?;
    candidates.extend(derivation.outputs.iter().map(|output| output.path.clone()));
    candidates.sort();
    candidates.dedup();
    let mut outputs = Vec::with_capacity(offered.len());
    for offered in offered {
        let held = reader.nar(offered.info.path.hash())?;
        outputs.push(Planned { offered, held });
    }
    Ok(Ok(Prepared { outputs, candidates, fixed: derivation.fixed_output() }))
}

/// Checks that exactly the outputs of the derivation are offered, under their paths.
fn check_names(derivation: &Derivation<'_>, offered: &[OfferedOutput]) -> Result<(), String> {
    if offered.len() > OFFERED_OUTPUTS_MAX {
        return Err(format!("more than {OFFERED_OUTPUTS_MAX} outputs were offered"));
    }
    let mut expected: BTreeMap<&str, &StorePath> =
        derivation.outputs.iter().map(|output| (output.name.as_str(), &output.path)).collect();
    for output in offered {
        match expected.remove(output.name.as_str()) {
            Some(path) if *path == output.info.path => {}
            Some(path) => {
                return Err(format!(
                    "the output ‘{}’ of this build is {path}, not {}",
                    output.name, output.info.path
                ));
            }
            None => {
                return Err(format!(
                    "{} is not an output of this build, or was offered twice",
                    output.info.path
                ));
            }
        }
    }
    match expected.pop_first() {
        None => Ok(()),
        Some((name, path)) => Err(format!("the output ‘{name}’ ({path}) was not offered")),
    }
}

/// Returns paths and all they refer to, as far as they are held.
fn closure(
    reader: &Reader,
    roots: impl Iterator<Item = StorePath>,
) -> Result<Vec<StorePath>, StoreError> {
    let mut pending: Vec<StorePath> = roots.collect();
    let mut seen: BTreeSet<PathHash> = BTreeSet::new();
    let mut paths = Vec::new();
    while let Some(path) = pending.pop() {
        if paths.len() >= CANDIDATES_MAX || !seen.insert(path.hash()) {
            continue;
        }
        if let Some(nar) = reader.nar(path.hash())? {
            pending.extend(nar.info.references);
        }
        paths.push(path);
    }
    Ok(paths)
}

/// What is to be received of an offer.
struct Plan {
    outputs: Vec<Planned>,
    uploads: Vec<Upload>,
    answers: Vec<OutputPlan>,
    verdict: Verdict,
}

/// Decides what is to be sent. What is held stays; a different result is only noted.
fn plan(
    depot: &Depot,
    attempt: AttemptId,
    deriver: &StorePath,
    prepared: Prepared,
) -> Result<Plan, VerifyError> {
    let Prepared { outputs, candidates, fixed } = prepared;
    let mut uploads = Vec::new();
    let mut answers = Vec::with_capacity(outputs.len());
    let mut verdict = Verdict::Agreed;
    for planned in &outputs {
        if let Some(held) = &planned.held {
            if held.info.nar_hash != planned.offered.info.nar_hash {
                verdict = Verdict::Disputed;
            }
            answers.push(OutputPlan::Held);
            continue;
        }
        let upload = depot.upload(&UploadRules {
            attempt,
            expected: &planned.offered,
            deriver: deriver.clone(),
            candidates: candidates.clone(),
            fixed: fixed.clone(),
            limits: NAR_LIMITS,
        })?;
        answers.push(OutputPlan::Send { offset: upload.offset() });
        uploads.push(upload);
    }
    Ok(Plan { outputs, uploads, answers, verdict })
}

/// Receives what is not held and verifies it.
async fn transfer(
    coordinator: &Coordinator,
    channel: &mut BulkChannel,
    attempt: AttemptId,
    deriver: &StorePath,
    prepared: Prepared,
) -> Result<Result<Delivery, Refusal>, BulkEnd> {
    let (depot, deriver) = (coordinator.depot.clone(), deriver.clone());
    // What an earlier try has brought is read again, which can take long.
    let planned = tokio::task::spawn_blocking(move || plan(&depot, attempt, &deriver, prepared))
        .await
        .expect("planning an upload does not panic");
    let Plan { outputs, uploads, answers, verdict } = match planned {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(refusal_of(&error))),
    };
    channel.say(&BulkToAgent::Plan { outputs: answers }).await?;
    let mut verified = Vec::with_capacity(uploads.len());
    for upload in uploads {
        match receive_one(channel, upload).await? {
            Ok(nar) => verified.push(nar),
            Err(error) => return Ok(Err(refusal_of(&error))),
        }
    }
    let kept = keep(coordinator, verified).await?;
    Ok(Ok(Delivery::Verified {
        outputs: outputs
            .into_iter()
            .map(|planned| OutputRecord {
                name: planned.offered.name,
                path: planned.offered.info.path,
                nar_hash: planned.offered.info.nar_hash,
                nar_bytes: planned.offered.info.nar_bytes,
            })
            .collect(),
        nars: kept,
        verdict,
    }))
}

/// Moves verified nars into the depot, durably.
async fn keep(
    coordinator: &Coordinator,
    verified: Vec<VerifiedNar>,
) -> Result<Vec<Arc<NarRecord>>, BulkEnd> {
    let at = coordinator.clock.now().wall;
    let depot = coordinator.depot.clone();
    tokio::task::spawn_blocking(move || {
        let mut records = Vec::with_capacity(verified.len());
        for nar in verified {
            records.push(Arc::new(depot.keep(nar, at)?));
        }
        if !records.is_empty() {
            depot.sync()?;
        }
        Ok(records)
    })
    .await
    .expect("keeping a nar does not panic")
}

/// Receives one output. The bytes are verified on a thread of their own while they come.
async fn receive_one(
    channel: &mut BulkChannel,
    upload: Upload,
) -> Result<Result<VerifiedNar, VerifyError>, BulkEnd> {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let verifying = tokio::task::spawn_blocking(move || {
        let mut upload = upload;
        while let Some(bytes) = chunks.blocking_recv() {
            upload.write(&bytes)?;
        }
        Ok::<_, VerifyError>(upload)
    });
    let file_hash = loop {
        match channel.next().await? {
            // A thread that has ended found something wrong; the rest is read and dropped, so that
            // the agent comes to the point where it hears of it.
            Some(BulkFromAgent::Data { bytes }) => drop(sender.send(bytes).await),
            Some(BulkFromAgent::End { file_hash }) => break file_hash,
            Some(
                BulkFromAgent::Prepare { .. }
                | BulkFromAgent::Fetch { .. }
                | BulkFromAgent::Offer { .. }
                | BulkFromAgent::Probe { .. },
            ) => return Err(BulkEnd::OutOfTurn),
            None => return Err(BulkEnd::Lost),
        }
    };
    drop(sender);
    match verifying.await.expect("verifying does not panic") {
        Ok(upload) => Ok(tokio::task::spawn_blocking(move || upload.finish(file_hash))
            .await
            .expect("verifying does not panic")),
        Err(error) => Ok(Err(error)),
    }
}

/// What an agent is told of a failed verification.
fn refusal_of(error: &VerifyError) -> Refusal {
    let text = telemetry::chain(error);
    match error.code() {
        RefusalCode::Rejected => Refusal::Reject(text),
        code @ (RefusalCode::Stale | RefusalCode::TryLater | RefusalCode::NotHeld) => {
            Refusal::Tell(code, text)
        }
    }
}

/// Hands verified outputs to the engine, and tells the agent what became of them.
async fn deliver(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &BulkChannel,
    attempt: AttemptId,
    delivery: Delivery,
) -> Result<(), BulkEnd> {
    let agent = agent.clone();
    let answer = coordinator
        .engine
        .request(move |token| Input::Deliver { token, agent, attempt, delivery })
        .await?;
    if answer == (Answer::Delivered { accepted: true }) {
        return channel.say(&BulkToAgent::Committed { attempt }).await;
    }
    let reason = format!("attempt {attempt} is not yours any more");
    channel.refuse(RefusalCode::Stale, reason).await
}

async fn turn_down(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &BulkChannel,
    attempt: AttemptId,
    refusal: Refusal,
) -> Result<(), BulkEnd> {
    match refusal {
        Refusal::Tell(code, reason) => channel.refuse(code, reason).await,
        Refusal::Reject(reason) => {
            tracing::warn!(%agent, %attempt, reason, "outputs refused");
            let agent = agent.clone();
            let delivery = Delivery::Rejected(reason.clone());
            coordinator
                .engine
                .request(move |token| Input::Deliver { token, agent, attempt, delivery })
                .await?;
            channel.refuse(RefusalCode::Rejected, reason).await
        }
    }
}
