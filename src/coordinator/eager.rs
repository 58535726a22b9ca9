//! Offers with all their files in them: small outputs, which would cost a round trip each.
//!
//! Many of them are worked on together: looked up in one read, verified with the same memory, and
//! committed by the engine in one transaction, with the files in it. So there is one wait for the
//! disk for all of them, and no file; files are made of them later, by the thread that publishes.

use super::{
    Coordinator,
    bulk::BulkEnd,
    engine_thread::EngineGone,
    offer::{
        self, Closures, NAR_LIMITS, Planned, Prepared, Received, Refusal, prepare, recorded,
        refusal_of,
    },
    small::{Unwritten, Verifiers},
    upload::{self, conclude, stale},
};
use crate::{
    core::{
        change::{NarFile, NarRecord, Verdict},
        engine::{Answer, Delivery, Input},
        id::{AttemptId, Name},
        outcome::OutputPolicy,
        store_path::StorePath,
        time::Timestamp,
    },
    depot::{Depot, SmallNars, UploadRules, VerifyError},
    protocol::bulk::{BulkToAgent, EAGER_BYTES_MAX, OfferedOutput, RefusalCode},
    store::{Reader, StoreError},
};
use bytes::Bytes;
use std::sync::Arc;

/// How long all nars of an offer may be together to be verified with others, in bytes: as much as
/// is hashed in a few milliseconds. What a small file unpacks to can be anything.
const NARS_BYTES_MAX: u64 = 1 << 20;

/// The offer.
pub(super) struct Offer {
    pub(super) attempt: AttemptId,
    pub(super) outputs: Vec<OfferedOutput>,
    /// The file of each output.
    pub(super) files: Vec<Bytes>,
}

impl Offer {
    /// Returns how long the files are together, in bytes.
    fn file_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.len() as u64))
    }

    /// Tells whether the nars are to be verified with those of others.
    fn is_small(&self) -> bool {
        let nars = self.outputs.iter().map(|output| output.info.nar_bytes);
        nars.fold(0, u64::saturating_add) <= NARS_BYTES_MAX
    }

    /// Returns what is wrong with it, whatever it is about.
    fn fault(&self) -> Option<Refusal> {
        let is_whole = self.files.len() == self.outputs.len();
        (!is_whole || self.file_bytes() > EAGER_BYTES_MAX).then(|| {
            Refusal::Reject(format!(
                "an offer has the file of each of its outputs in it, at most {EAGER_BYTES_MAX} \
                 bytes, or none"
            ))
        })
    }
}

/// An offer of an attempt that is its agent's, with the derivation.
struct Known {
    offer: Offer,
    deriver: StorePath,
    /// Room in the database; absent when its files go to the depot at once.
    room: Option<Unwritten>,
}

/// Verifies and commits the outputs of all offers, and returns the answers in their order.
pub(super) async fn receive(
    coordinator: Coordinator,
    agent: Name,
    offers: Vec<Offer>,
) -> Result<Vec<BulkToAgent>, BulkEnd> {
    if let Some(reason) = coordinator.pressure.reason() {
        let later =
            |_| BulkToAgent::Refused { code: RefusalCode::TryLater, reason: reason.clone() };
        return Ok(offers.iter().map(later).collect());
    }
    let mut answers: Vec<Option<BulkToAgent>> = Vec::with_capacity(offers.len());
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    let derivers = derivers(&coordinator, &agent, &offers).await?;
    for (place, (offer, deriver)) in offers.into_iter().zip(derivers).enumerate() {
        let Some(deriver) = deriver else {
            answers.push(Some(stale(offer.attempt)));
            continue;
        };
        answers.push(None);
        let room = &coordinator.transfers.unwritten;
        let is_kept = coordinator.outputs == OutputPolicy::Take;
        let fits = is_kept && offer.is_small();
        let room = if fits { room.reserve(offer.file_bytes()) } else { None };
        let list = if room.is_some() || !is_kept { &mut together } else { &mut alone };
        list.push((place, Known { offer, deriver, room }));
    }
    let alone: Vec<_> = alone
        .into_iter()
        .map(|(place, known)| {
            (place, tokio::spawn(to_depot(coordinator.clone(), agent.clone(), known)))
        })
        .collect();
    for (place, answer) in to_database(&coordinator, &agent, together).await? {
        answers[place] = Some(answer);
    }
    for (place, work) in alone {
        answers[place] = Some(work.await.expect(upload::NO_PANIC)?);
    }
    Ok(answers.into_iter().flatten().collect())
}

/// Returns the derivation of each offered attempt that is this agent's and finished; waits for
/// their reports.
async fn derivers(
    coordinator: &Coordinator,
    agent: &Name,
    offers: &[Offer],
) -> Result<Vec<Option<StorePath>>, EngineGone> {
    let mut asked = Vec::with_capacity(offers.len());
    for attempt in offers.iter().map(|offer| offer.attempt) {
        let agent = agent.clone();
        let input = move |token| Input::Offer { token, agent, attempt };
        asked.push(coordinator.engine.post(input).await?);
    }
    let mut derivers = Vec::with_capacity(offers.len());
    for answer in asked {
        derivers.push(match answer.await.map_err(|_| EngineGone)? {
            Answer::Offer { derivation } => derivation,
            _ => None,
        });
    }
    Ok(derivers)
}

/// What was verified of an offer.
struct Checked {
    outputs: Vec<Planned>,
    nars: Vec<Arc<NarRecord>>,
    files: Vec<NarFile>,
    verdict: Verdict,
}

/// An offer, in its place among others, and what verification says of it.
type Looked = (usize, Known, Result<Checked, Refusal>);

/// Verifies offers together and commits them with their files.
async fn to_database(
    coordinator: &Coordinator,
    agent: &Name,
    offers: Vec<(usize, Known)>,
) -> Result<Vec<(usize, BulkToAgent)>, BulkEnd> {
    if offers.is_empty() {
        return Ok(Vec::new());
    }
    let (at, verifiers) = (coordinator.clock.now().wall, coordinator.transfers.small.clone());
    // All of it on one thread at once: the bytes are there, and there are few of them.
    let policy = coordinator.outputs;
    let verify = move |reader: &Reader| verify_all(reader, &verifiers, policy, offers, at);
    let looked: Vec<Looked> = coordinator.readers.read(verify).await?;
    let mut answers = Vec::with_capacity(looked.len());
    let mut delivered = Vec::with_capacity(looked.len());
    for (place, known, checked) in looked {
        let Known { offer: Offer { attempt, .. }, room, .. } = known;
        let (delivery, refusal) = match checked {
            Ok(checked) => (delivery_of(checked), None),
            Err(Refusal::Tell(code, reason)) => {
                answers.push((place, BulkToAgent::Refused { code, reason }));
                continue;
            }
            Err(Refusal::Reject(reason)) => {
                tracing::warn!(%agent, %attempt, reason, "outputs refused");
                (Delivery::Rejected(reason.clone()), Some(reason))
            }
        };
        let agent = agent.clone();
        let input = move |token| Input::Deliver { token, agent, attempt, delivery };
        delivered.push((place, attempt, room, refusal, coordinator.engine.post(input).await?));
    }
    for (place, attempt, room, refusal, answer) in delivered {
        let answer = answer.await.map_err(|_| EngineGone)?;
        coordinator.transfers.staging.release(attempt);
        let is_accepted = matches!(answer, Answer::Delivered { accepted: true });
        let said = match refusal {
            Some(reason) => BulkToAgent::Refused { code: RefusalCode::Rejected, reason },
            None if is_accepted => {
                room.into_iter().for_each(Unwritten::occupy);
                upload::committed(attempt)
            }
            None => stale(attempt),
        };
        answers.push((place, said));
    }
    Ok(answers)
}

/// Verifies offers, all of them against the database as it is now.
fn verify_all(
    reader: &Reader,
    verifiers: &Verifiers,
    policy: OutputPolicy,
    offers: Vec<(usize, Known)>,
    at: Timestamp,
) -> Result<Vec<Looked>, StoreError> {
    let mut small = match verifiers.take() {
        Ok(small) => small,
        Err(error) => {
            let again = |(place, known)| (place, known, Err(refusal_of(&error)));
            return Ok(offers.into_iter().map(again).collect());
        }
    };
    let looked = reader.together(|reader| {
        let mut closures = Closures::default();
        let mut looked = Vec::with_capacity(offers.len());
        for (place, mut known) in offers {
            let checked = match policy {
                OutputPolicy::Take => verify(reader, &mut closures, &mut small, &mut known, at)?,
                OutputPolicy::Record => note(reader, &mut known)?,
            };
            looked.push((place, known, checked));
        }
        Ok::<_, StoreError>(looked)
    })?;
    verifiers.put_back(small);
    Ok(looked)
}

fn delivery_of(Checked { outputs, nars, files, verdict }: Checked) -> Delivery {
    let outputs = outputs.into_iter().map(Planned::record).collect();
    Delivery::Verified { outputs, nars, files, verdict }
}

/// Takes the agent's word for one offer.
fn note(
    reader: &Reader,
    Known { offer, deriver, .. }: &mut Known,
) -> Result<Result<Checked, Refusal>, StoreError> {
    let noted = recorded(reader, deriver, std::mem::take(&mut offer.outputs))?;
    Ok(noted.map(|Received { outputs, verdict, .. }| Checked {
        outputs,
        nars: Vec::new(),
        files: Vec::new(),
        verdict,
    }))
}

/// Verifies one offer.
fn verify(
    reader: &Reader,
    closures: &mut Closures,
    small: &mut SmallNars,
    Known { offer, deriver, room }: &mut Known,
    at: Timestamp,
) -> Result<Result<Checked, Refusal>, StoreError> {
    if let Some(refusal) = offer.fault() {
        return Ok(Err(refusal));
    }
    let offered = std::mem::take(&mut offer.outputs);
    let prepared = match prepare(reader, closures, deriver, offered)? {
        Ok(prepared) => prepared,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let checked = check(small, offer, deriver, prepared, at);
    if let (Ok(checked), Some(room)) = (&checked, room) {
        room.shrink(checked.files.iter().fold(0, |sum, file| sum + file.bytes.len() as u64));
    }
    Ok(checked.map_err(|error| refusal_of(&error)))
}

/// Verifies what is not held.
fn check(
    small: &mut SmallNars,
    offer: &Offer,
    deriver: &StorePath,
    prepared: Prepared,
    at: Timestamp,
) -> Result<Checked, VerifyError> {
    let verdict = prepared.verdict(offer.attempt);
    let Prepared { outputs, candidates, fixed } = prepared;
    let mut of_attempt = small.of_attempt(&candidates);
    let (mut nars, mut files) = (Vec::new(), Vec::new());
    for (planned, file) in outputs.iter().zip(&offer.files) {
        if !planned.is_wanted() {
            continue;
        }
        let rules = UploadRules {
            attempt: offer.attempt,
            expected: &planned.offered,
            deriver: deriver.clone(),
            candidates: candidates.clone(),
            fixed: fixed.clone(),
            limits: NAR_LIMITS,
        };
        nars.push(Arc::new(of_attempt.verify(&rules, file, at)?));
        // Of its own: what it is a piece of has the whole offer in it.
        let bytes = Bytes::copy_from_slice(file);
        files.push(NarFile { hash: planned.offered.file_hash, bytes });
    }
    Ok(Checked { outputs, nars, files, verdict })
}

/// Verifies and commits an offer whose files go to the depot.
async fn to_depot(
    coordinator: Coordinator,
    agent: Name,
    known: Known,
) -> Result<BulkToAgent, BulkEnd> {
    let (depot, attempt) = (coordinator.depot.clone(), known.offer.attempt);
    let receive = move |reader: &Reader| receive_files(reader, &depot, known);
    let received = coordinator.readers.read(receive).await?;
    conclude(coordinator, agent, attempt, received).await
}

fn receive_files(
    reader: &Reader,
    depot: &Depot,
    Known { offer, deriver, .. }: Known,
) -> Result<Result<Received, Refusal>, StoreError> {
    if let Some(refusal) = offer.fault() {
        return Ok(Err(refusal));
    }
    let Offer { attempt, outputs, files } = offer;
    let prepared = match prepare(reader, &mut Closures::default(), &deriver, outputs)? {
        Ok(prepared) => prepared,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let verified = offer::plan(depot, attempt, &deriver, prepared).and_then(|mut plan| {
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
