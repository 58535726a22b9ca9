//! One offer: the outputs of an attempt, received, verified and committed together.

use super::{
    Coordinator,
    bulk::{BulkChannel, BulkEnd, Signs},
    engine_thread::EngineGone,
    hygiene,
    inputs::{InputsError, direct_inputs},
    transfers::NoRoom,
};
use crate::{
    core::{
        change::{NarRecord, OutputRecord, Verdict},
        derivation::{Derivation, FixedOutput},
        engine::{Answer, Delivery, Input},
        hash::Sha256,
        id::{AttemptId, Name},
        outcome::OutputPolicy,
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
    },
    depot::{Candidates, Depot, Fault, Upload, UploadRules, VerifiedNar, VerifyError},
    formats::nar::NarLimits,
    protocol::bulk::{
        BulkFromAgent, BulkToAgent, OFFERED_OUTPUTS_MAX, OFFERS_AHEAD_MAX, OfferedOutput,
        OutputPlan, RefusalCode,
    },
    store::{DISPUTED_PER_PATH_MAX, Reader, StoreError},
    telemetry,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use tokio::{sync::mpsc, task::spawn_blocking};

/// What is said when something panicked that must not.
pub(super) const NO_PANIC: &str = "receiving an output does not panic";
/// How many chunks may wait for the thread that verifies them.
const CHUNKS_MAX: usize = 32;
/// How long a file may be that is not marked as complete before the next one comes, in bytes. A
/// mark costs two syncs, sending it again after a crash costs this.
const UNMARKED_BYTES_MAX: u64 = 1 << 20;
/// How many paths an output may refer to at most: the closure of its inputs.
const CANDIDATES_MAX: usize = 200_000;
/// What an output's nar may ask.
pub(super) const NAR_LIMITS: NarLimits =
    NarLimits { bytes_max: 64 << 30, entries_max: 10_000_000, depth_max: 512 };

/// Why an offer is not taken.
pub(super) enum Refusal {
    /// Tell the agent, change nothing.
    Tell(RefusalCode, String),
    /// The outputs are wrong: the attempt is over.
    Reject(String),
}

/// What the database says about an offer.
pub(super) struct Prepared {
    pub(super) outputs: Vec<Planned>,
    pub(super) candidates: Candidates,
    pub(super) fixed: Option<FixedOutput>,
}

/// One output of an offer, and what is held under its path.
pub(super) struct Planned {
    pub(super) offered: OfferedOutput,
    held: Option<NarRecord>,
    /// What is kept beside it, because it differs.
    disputed: Vec<Sha256>,
}

impl Planned {
    /// Tells whether the nar is to be sent: when none is held, or another one, so that people can
    /// compare the two. There is an end to that.
    pub(super) fn is_wanted(&self) -> bool {
        let hash = self.offered.info.nar_hash;
        self.held.as_ref().is_none_or(|held| held.info.nar_hash != hash)
            && !self.disputed.contains(&hash)
            && self.disputed.len() < DISPUTED_PER_PATH_MAX
    }

    /// Returns what is written down of it.
    pub(super) fn record(self) -> OutputRecord {
        let OfferedOutput { name, info, .. } = self.offered;
        let PathInfo { path, nar_hash, nar_bytes, .. } = info;
        OutputRecord { name, path, nar_hash, nar_bytes }
    }
}

impl Prepared {
    /// Returns whether all outputs agree with what is held.
    pub(super) fn verdict(&self, attempt: AttemptId) -> Verdict {
        let mut verdict = Verdict::Agreed;
        for planned in &self.outputs {
            if let Some(held) = &planned.held
                && held.info.nar_hash != planned.offered.info.nar_hash
            {
                verdict = Verdict::Disputed;
                let path = &planned.offered.info.path;
                tracing::warn!(%attempt, %path, "an output differs from what is held");
            }
        }
        verdict
    }

    /// Returns how long the files of all outputs are that must be sent.
    fn bytes_to_send(&self) -> u64 {
        let wanted = self.outputs.iter().filter(|planned| planned.is_wanted());
        wanted.fold(0, |sum, planned| sum.saturating_add(planned.offered.file_bytes))
    }
}

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

/// Returns what is noted of an offer when no nars are taken: all its outputs, on the agent's word.
pub(super) fn recorded(
    reader: &Reader,
    deriver: &StorePath,
    offered: Vec<OfferedOutput>,
) -> Result<Result<Received, Refusal>, StoreError> {
    let outputs = reader.outputs_of(deriver.hash())?;
    let expected = outputs.iter().map(|(name, path)| (name.as_str(), path));
    if let Err(reason) = check_names(expected, &offered) {
        return Ok(Err(Refusal::Reject(reason)));
    }
    let planned = |offered| Planned { offered, held: None, disputed: Vec::new() };
    let outputs = offered.into_iter().map(planned).collect();
    Ok(Ok(Received { outputs, nars: Vec::new(), verdict: Verdict::Agreed }))
}

/// What was received of an offer, and is all right.
pub(super) struct Received {
    pub(super) outputs: Vec<Planned>,
    /// Of the outputs that were to be taken.
    pub(super) nars: Vec<VerifiedNar>,
    pub(super) verdict: Verdict,
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

/// Checks what is offered against the derivation, before a byte is received.
pub(super) fn prepare(
    reader: &Reader,
    closures: &mut Closures,
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
    let expected = derivation.outputs.iter().map(|output| (output.name.as_str(), &output.path));
    if let Err(reason) = check_names(expected, &offered) {
        return Ok(Err(Refusal::Reject(reason)));
    }
    let direct = match direct_inputs(reader, &derivation) {
        Ok(direct) => direct,
        Err(InputsError::Store(error)) => return Err(error),
        Err(error) => return lost(telemetry::chain(&error)),
    };
    let declared = offered.iter().flat_map(|output| output.info.references.iter().cloned());
    let (mut candidates, extent) = closures.of(reader, direct.into_iter())?;
    if extent == Extent::Unknown {
        // What an input refers to that is not held here, only the agent can tell.
        candidates.extend(closures.of(reader, declared)?.0);
    }
    candidates.extend(derivation.outputs.iter().map(|output| output.path.clone()));
    let mut outputs = Vec::with_capacity(offered.len());
    for offered in offered {
        let hash = offered.info.path.hash();
        let held = reader.nar(hash)?;
        let disputed = match &held {
            Some(_) => reader.disputed_nars(hash)?,
            None => Vec::new(),
        };
        let disputed = disputed.into_iter().map(|(_, nar)| nar.info.nar_hash).collect();
        outputs.push(Planned { offered, held, disputed });
    }
    let (candidates, fixed) = (candidates.into(), derivation.fixed_output());
    Ok(Ok(Prepared { outputs, candidates, fixed }))
}

/// Checks that exactly the outputs of the derivation are offered, under their paths.
fn check_names<'a>(
    expected: impl Iterator<Item = (&'a str, &'a StorePath)>,
    offered: &[OfferedOutput],
) -> Result<(), String> {
    if offered.len() > OFFERED_OUTPUTS_MAX {
        return Err(format!("more than {OFFERED_OUTPUTS_MAX} outputs were offered"));
    }
    let mut expected: BTreeMap<&str, &StorePath> = expected.collect();
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

/// Whether it is known what is in a closure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it is held.
    Whole,
    /// Some paths are not held, and what they refer to is not known; or there are too many.
    Unknown,
}

/// What paths refer to: `None` of those that are not held. Offers that are worked on together have
/// many inputs in common.
#[derive(Default)]
pub(super) struct Closures(BTreeMap<PathHash, Option<Vec<StorePath>>>);

impl Closures {
    /// Returns paths and all they refer to, as far as they are held.
    fn of(
        &mut self,
        reader: &Reader,
        roots: impl Iterator<Item = StorePath>,
    ) -> Result<(Vec<StorePath>, Extent), StoreError> {
        let mut extent = Extent::Whole;
        let mut pending: Vec<StorePath> = roots.collect();
        let mut seen: BTreeSet<PathHash> = BTreeSet::new();
        let mut paths = Vec::new();
        while let Some(path) = pending.pop() {
            if !seen.insert(path.hash()) {
                continue;
            }
            if paths.len() >= CANDIDATES_MAX {
                return Ok((paths, Extent::Unknown));
            }
            match self.references(reader, path.hash())? {
                Some(references) => pending.extend(references.iter().cloned()),
                None => extent = Extent::Unknown,
            }
            paths.push(path);
        }
        Ok((paths, extent))
    }

    fn references(
        &mut self,
        reader: &Reader,
        path: PathHash,
    ) -> Result<Option<&[StorePath]>, StoreError> {
        if self.0.len() >= CANDIDATES_MAX {
            self.0.clear();
        }
        let references = match self.0.entry(path) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                unknown.insert(reader.nar(path)?.map(|nar| nar.info.references))
            }
        };
        Ok(references.as_deref())
    }
}

/// What is to be received of an offer.
pub(super) struct Plan {
    pub(super) outputs: Vec<Planned>,
    /// Of the outputs that are not held.
    pub(super) uploads: Vec<Upload>,
    answers: Vec<OutputPlan>,
    pub(super) verdict: Verdict,
}

/// Decides what is to be sent. What is held stays; a different result is kept beside it.
pub(super) fn plan(
    depot: &Depot,
    attempt: AttemptId,
    deriver: &StorePath,
    prepared: Prepared,
) -> Result<Plan, VerifyError> {
    let verdict = prepared.verdict(attempt);
    let Prepared { outputs, candidates, fixed } = prepared;
    let mut uploads = Vec::new();
    let mut answers = Vec::with_capacity(outputs.len());
    for planned in &outputs {
        if !planned.is_wanted() {
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

/// What an agent is told of a failed verification.
pub(super) fn refusal_of(error: &VerifyError) -> Refusal {
    let text = telemetry::chain(error);
    match error.code() {
        RefusalCode::Rejected => Refusal::Reject(text),
        code @ (RefusalCode::Stale | RefusalCode::TryLater | RefusalCode::NotHeld) => {
            Refusal::Tell(code, text)
        }
    }
}
