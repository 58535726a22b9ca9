//! A naive account of what was committed, and what must be true of it.
//!
//! The letters name the invariants: S1 nothing promised is lost; S2 one live attempt per build, and
//! only its holder moves it; S3 what is final stays; S4 what is visible is in the database, and
//! stays what it was; S5 no build begins before its inputs allow; S6 an agent gets only what it can
//! build, as much as it wants, and while nothing was decided against it, in the session it has; S7
//! nothing goes before what is first in rank; S8 every counter is what a recount gives; S9 memory is
//! what a reload gives; S10 logs have no gap; L4 pauses are kept.
//!
//! An attempt that was given up because its agent was lost may live again, when the agent comes with
//! it while nobody else has the build. That it must then be taken back is not checked.

mod heard;
mod rules;
mod told;

pub(super) use heard::Heard;

use super::{Report, farm::Farm};
use crate::core::{
    agent::{Abilities, SessionId, SuspensionKind},
    build::BuildState,
    change::{Change, Origin, OutputRecord},
    engine::{Engine, Settings},
    hash::Sha256,
    id::{AttemptId, BuildId, InstanceId, Name},
    outcome::{AttemptEnd, SetupFailure},
    store_path::PathHash,
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// How much later than its lease an agent may be given up, in milliseconds.
const SLACK_MS: u64 = 5_000;
/// The first pause after an end that was not the build's fault, and the longest one.
const PAUSES_MS: (i64, i64) = (10_000, 3_600_000);

/// A build as it was committed.
#[derive(Debug)]
pub(super) struct KnownBuild {
    pub(super) recipe: usize,
    pub(super) state: BuildState,
    pub(super) origin: Origin,
    pub(super) priority: i32,
    ends: u32,
}

/// An attempt as it was committed.
#[derive(Debug)]
pub(super) struct KnownAttempt {
    pub(super) build: BuildId,
    pub(super) agent: Name,
    pub(super) end: Option<AttemptEnd>,
    step: u64,
}

/// A session that an agent asked for.
#[derive(Debug)]
struct Joined {
    name: Name,
    instance: InstanceId,
    abilities: Abilities,
    held: BTreeSet<AttemptId>,
    /// How many builds it wants at a time.
    slots: u32,
    step: u64,
}

impl Joined {
    fn is_noted_by(&self, change: &Change) -> bool {
        matches!(change, Change::Agent { name, instance, .. }
            if *name == self.name && *instance == self.instance)
    }
}

/// The account.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    pub(super) steps: u64,
    /// What else is worth being counted.
    pub(super) counts: Report,
    pub(super) builds: BTreeMap<BuildId, KnownBuild>,
    pub(super) attempts: BTreeMap<AttemptId, KnownAttempt>,
    /// What was first held under each path.
    pub(super) held: BTreeMap<PathHash, Sha256>,
    keyed: BTreeMap<(Name, PathHash, String), BuildId>,
    joined: BTreeMap<SessionId, Joined>,
    /// Sessions that ended; a step may welcome one that ended in it.
    gone: BTreeSet<SessionId>,
    current: BTreeMap<Name, SessionId>,
    away_ms: BTreeMap<Name, u64>,
    started_ms: u64,
    /// Which agents get no builds.
    pub(super) suspended: BTreeMap<Name, SuspensionKind>,
    /// Whether results can be taken in now.
    pub(super) is_intake_closed: bool,
    /// The attempts that were taken back in the last step.
    readopted: BTreeSet<AttemptId>,
    /// What was made in each attempt, as it was committed or reported.
    made: BTreeMap<AttemptId, Vec<OutputRecord>>,
    /// What of it was kept beside what is held.
    disputed: BTreeSet<AttemptId>,
}

/// One committed step.
pub(super) struct Step<'a> {
    pub(super) now_ms: u64,
    pub(super) settings: &'a Settings,
    pub(super) heard: &'a Heard,
    pub(super) changes: &'a [Change],
}

impl Shadow {
    /// A new process knows no session and gives everybody a whole lease.
    pub(super) fn process_started(&mut self, now_ms: u64) {
        self.current.clear();
        self.away_ms.clear();
        self.is_intake_closed = false;
        self.started_ms = now_ms;
    }

    /// Takes in a committed step, and returns what is wrong.
    pub(super) fn commit(&mut self, step: &Step<'_>, farm: &Farm, engine: &Engine) -> Vec<String> {
        self.steps += 1;
        self.readopted.clear();
        self.is_intake_closed = step.heard.intake.unwrap_or(self.is_intake_closed);
        let mut findings = Vec::new();
        for change in step.changes {
            self.apply(step, change, farm, &mut findings);
        }
        for session in &step.heard.left {
            self.gone.insert(*session);
            if let Some(joined) = self.joined.get(session)
                && self.current.get(&joined.name) == Some(session)
            {
                self.current.remove(&joined.name);
                self.away_ms.insert(joined.name.clone(), step.now_ms);
            }
            // One that came and went within the step was welcome if the agent was noted.
            if let Some(joined) =
                self.joined.get(session).filter(|joined| joined.step == self.steps)
                && step.changes.iter().any(|change| joined.is_noted_by(change))
                && !self.current.contains_key(&joined.name)
            {
                self.away_ms.insert(joined.name.clone(), step.now_ms);
            }
        }
        self.check_inputs(step, farm, &mut findings);
        self.check_rank(step, farm, engine, &mut findings);
        self.check_wants(step, farm, &mut findings);
        self.check_leases(step, &mut findings);
        findings.extend(engine.check().into_iter().map(|what| format!("S8: {what}")));
        findings
    }

    fn apply(&mut self, step: &Step<'_>, change: &Change, farm: &Farm, findings: &mut Vec<String>) {
        match change {
            Change::Build(record) => {
                let known = KnownBuild {
                    recipe: farm.find(record.derivation),
                    state: record.state.clone(),
                    origin: record.origin,
                    priority: record.priority,
                    ends: 0,
                };
                if self.builds.insert(record.id, known).is_some() {
                    findings.push(format!("S1: {} came into being twice", record.id));
                }
            }
            Change::Attempt { attempt, build, agent, .. } => {
                let (build, agent) = (*build, agent.clone());
                let known = KnownAttempt { build, agent, end: None, step: self.steps };
                if self.attempts.insert(*attempt, known).is_some() {
                    findings.push(format!("S2: {attempt} was given twice"));
                }
            }
            Change::AttemptMoved {
                attempt,
                to: crate::core::attempt::AttemptState::Ended(end),
                ..
            } => self.end_attempt(step, *attempt, end, findings),
            Change::AttemptReadopted { attempt, .. } => self.readopt(step, *attempt, findings),
            Change::BuildMoved { build, from, to, at, .. } => {
                self.move_build(step, *build, (from, to, *at), farm, findings);
            }
            Change::Nar(nar) => {
                self.held.entry(nar.info.path.hash()).or_insert(nar.info.nar_hash);
            }
            Change::AgentSuspended { name, suspension: Some(suspension) } => {
                self.counts.decisions += 1;
                self.suspended.insert(name.clone(), suspension.kind);
            }
            Change::AgentSuspended { name, suspension: None } | Change::AgentRemoved { name } => {
                self.suspended.remove(name);
            }
            Change::DisputedNar { attempt, .. } => {
                self.counts.disputed += 1;
                self.disputed.insert(*attempt);
            }
            Change::Outputs { attempt, outputs, .. } => {
                self.made.insert(*attempt, outputs.clone());
            }
            Change::Reported { attempt, agent, outputs, .. } => {
                self.report(*attempt, agent, outputs, findings);
            }
            Change::AgentFailures { .. }
            | Change::BuildAmended { .. }
            | Change::Account { .. }
            | Change::AttemptMoved { .. }
            | Change::Derivation(_)
            | Change::Agent { .. }
            | Change::Missing { .. }
            | Change::Published { .. }
            | Change::Care(_)
            | Change::UnwrittenNar(_)
            | Change::NarsWritten { .. }
            | Change::Signed { .. }
            | Change::Event(_)
            | Change::EventsForgotten { .. }
            | Change::Hook(_)
            | Change::Audit(_)
            | Change::Enrollment(_) => {}
        }
    }

    /// Only what its agent came with lives again, and only if nobody else has its build.
    fn readopt(&mut self, step: &Step<'_>, attempt: AttemptId, findings: &mut Vec<String>) {
        let Some(known) = self.attempts.get_mut(&attempt) else {
            return findings.push(format!("S2: {attempt} was taken back and never given"));
        };
        if known.end != Some(AttemptEnd::AgentLost) {
            findings.push(format!("S2: {attempt} was taken back and is {:?}", known.end));
        }
        if !step.heard.came_with(&known.agent, attempt) {
            findings.push(format!("S2: {attempt} was taken back, and its agent did not come"));
        }
        known.end = None;
        self.counts.readopted += 1;
        self.readopted.insert(attempt);
    }

    /// What is said of an attempt counts when it is its agent's and does not live.
    fn report(
        &mut self,
        attempt: AttemptId,
        agent: &Name,
        outputs: &[OutputRecord],
        findings: &mut Vec<String>,
    ) {
        let Some(known) = self.attempts.get(&attempt).filter(|known| known.agent == *agent) else {
            return;
        };
        if known.end.is_none() {
            findings.push(format!("S2: {attempt} is alive, and what it made was reported"));
        }
        self.counts.reported += 1;
        // What was committed or said first stays.
        self.made.entry(attempt).or_insert_with(|| outputs.to_vec());
    }

    fn end_attempt(
        &mut self,
        step: &Step<'_>,
        attempt: AttemptId,
        end: &AttemptEnd,
        findings: &mut Vec<String>,
    ) {
        let Some(known) = self.attempts.get_mut(&attempt) else {
            return findings.push(format!("S2: {attempt} ended and was never given"));
        };
        if known.end.replace(end.clone()).is_some() {
            findings.push(format!("S2: {attempt} ended twice"));
        }
        let holder = (attempt, known.agent.clone());
        let fits = match end {
            AttemptEnd::Succeeded | AttemptEnd::Rejected(_) => {
                step.heard.delivered.contains(&holder)
            }
            AttemptEnd::Failed(_) | AttemptEnd::SetupFailed(_) | AttemptEnd::UploadFailed(_) => {
                step.heard.finished.contains(&holder)
            }
            AttemptEnd::AgentLost => {
                let came_without = step.heard.came_without(&known.agent, attempt);
                let was_removed = step.heard.removed.contains(&known.agent);
                let away = self.away_ms.get(&known.agent).copied().unwrap_or(self.started_ms);
                let is_away = !self.current.contains_key(&known.agent);
                came_without
                    || was_removed
                    || (is_away && step.now_ms >= away + step.settings.lease_ms)
            }
            AttemptEnd::Drained => {
                self.suspended.get(&known.agent) == Some(&SuspensionKind::Draining)
            }
            AttemptEnd::Canceled => true,
        };
        if !fits {
            findings.push(format!("S2: {attempt} ended as {}, not by its holder", end.word()));
        }
    }

    fn move_build(
        &mut self,
        step: &Step<'_>,
        id: BuildId,
        (from, to, at): (&BuildState, &BuildState, Timestamp),
        farm: &Farm,
        findings: &mut Vec<String>,
    ) {
        let is_ready = |known: &KnownBuild| {
            let inputs = &farm.recipes[known.recipe].inputs;
            inputs.iter().all(|input| self.is_available(*input, farm))
        };
        let Some(known) = self.builds.get(&id) else {
            return findings.push(format!("S1: {id} moves and never came into being"));
        };
        if known.state.is_final() {
            findings.push(format!("S3: {id} leaves {}", known.state.word()));
        }
        if known.state != *from {
            findings.push(format!("S2: {id} moves from {from:?} and is {:?}", known.state));
        }
        let said = |by: &BTreeSet<(AttemptId, Name)>| {
            from.lease().is_some_and(|lease| by.contains(&(lease.attempt, lease.agent.clone())))
        };
        let fits = match to {
            BuildState::Allocated(lease) => {
                let attempt = self.attempts.get(&lease.attempt);
                from.lease().is_none()
                    && attempt.is_some_and(|a| a.build == id && a.agent == lease.agent)
            }
            BuildState::Building(lease) => {
                said(&step.heard.started)
                    || (self.readopted.contains(&lease.attempt)
                        && step.heard.came_building(&lease.agent, lease.attempt))
            }
            BuildState::Receiving(_) | BuildState::Failed { .. } => said(&step.heard.finished),
            BuildState::Succeeded { .. } => said(&step.heard.delivered),
            BuildState::Queued | BuildState::Deferred { .. } | BuildState::Canceled => true,
        };
        if !fits {
            findings.push(format!("S2: {id} becomes {}, not by its holder", to.word()));
        }
        if let BuildState::Allocated(lease) = to
            && !self.readopted.contains(&lease.attempt)
        {
            if let Some(kind) = self.suspended.get(&lease.agent) {
                findings.push(format!("S6: {} is {} and got {id}", lease.agent, kind.word()));
            }
            if self.is_intake_closed {
                findings.push(format!("S6: {id} begins, and its outputs could not be taken"));
            }
        }
        let ready = is_ready(known);
        let known = self.builds.get_mut(&id).expect("it was there a moment ago");
        if let (Some(lease), BuildState::Queued | BuildState::Deferred { .. }) = (from.lease(), to)
        {
            known.ends += 1;
            let end = self.attempts.get(&lease.attempt).and_then(|attempt| attempt.end.as_ref());
            if ready && end.is_some_and(|end| !is_pause_kept(end, known.ends, to, at)) {
                findings.push(format!("L4: {id} is tried again too soon after {end:?}: {to:?}"));
            }
        }
        known.state = to.clone();
    }

    /// Tells whether every output of a derivation is held.
    pub(super) fn is_available(&self, recipe: usize, farm: &Farm) -> bool {
        let outputs = &farm.recipes[recipe].record.outputs;
        outputs.iter().all(|(_, path)| self.held.contains_key(&path.hash()))
    }

    /// Tells whether a derivation has a build that is not final.
    pub(super) fn is_open(&self, recipe: usize) -> bool {
        self.builds.values().any(|build| build.recipe == recipe && !build.state.is_final())
    }
}

/// Tells whether a build that was given back while it could begin is paused as long as it must be.
fn is_pause_kept(end: &AttemptEnd, ends: u32, to: &BuildState, at: Timestamp) -> bool {
    let may_begin_at_once = match end {
        AttemptEnd::AgentLost => ends <= 3,
        AttemptEnd::Drained => true,
        AttemptEnd::SetupFailed(SetupFailure::AttemptLost(_)) => ends <= 1,
        AttemptEnd::Succeeded
        | AttemptEnd::Failed(_)
        | AttemptEnd::SetupFailed(_)
        | AttemptEnd::UploadFailed(_)
        | AttemptEnd::Rejected(_)
        | AttemptEnd::Canceled => false,
    };
    let (first, longest) = PAUSES_MS;
    let pause = first.saturating_mul(3_i64.saturating_pow(ends.saturating_sub(1))).min(longest);
    match to {
        BuildState::Deferred { until } => until.as_ms() - at.as_ms() >= pause,
        _ => may_begin_at_once,
    }
}
