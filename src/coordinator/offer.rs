//! What an offer is judged by: the derivation, what is held under its paths, and what its outputs
//! may refer to. Nothing is received here.

use super::inputs::{InputsError, direct_inputs};
use crate::{
    core::{
        change::{NarRecord, OutputRecord, Verdict},
        derivation::{Derivation, FixedOutput},
        hash::Sha256,
        id::AttemptId,
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
    },
    depot::{Candidates, Depot, Upload, UploadRules, VerifiedNar, VerifyError},
    formats::nar::NarLimits,
    protocol::bulk::{OFFERED_OUTPUTS_MAX, OfferedOutput, OutputPlan, RefusalCode},
    store::{DISPUTED_PER_PATH_MAX, Reader, StoreError},
    telemetry,
};
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

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

/// What the database says about an offer.
pub(super) struct Prepared {
    pub(super) outputs: Vec<Planned>,
    pub(super) candidates: Candidates,
    pub(super) fixed: Option<FixedOutput>,
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
    pub(super) fn bytes_to_send(&self) -> u64 {
        let wanted = self.outputs.iter().filter(|planned| planned.is_wanted());
        wanted.fold(0, |sum, planned| sum.saturating_add(planned.offered.file_bytes))
    }
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

/// What was received of an offer, and is all right.
pub(super) struct Received {
    pub(super) outputs: Vec<Planned>,
    /// Of the outputs that were to be taken.
    pub(super) nars: Vec<VerifiedNar>,
    pub(super) verdict: Verdict,
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
    pub(super) answers: Vec<OutputPlan>,
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
