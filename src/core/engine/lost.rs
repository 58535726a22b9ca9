//! Attempts that were given up because their agent was lost, while their builds are open.
//!
//! The agent may come back and still have them. Whoever is lost costs its build a pause after the
//! third time, so there are never many of one build.

use super::{Build, Effect, Engine, Order, Turn};
use crate::core::{
    agent::{Agent, SessionId},
    arena::Ix,
    attempt::{AttemptState, Held, HeldPhase},
    build::{BuildEvent, Lease},
    change::{Change, OutputRecord},
    defect::Defect,
    engine::Ignored,
    id::{AttemptId, Name},
    outcome::Outcome,
};
use std::collections::{BTreeMap, BTreeSet};

/// The lost attempts of open builds.
#[derive(Debug, Clone, Default)]
pub(super) struct LostAttempts {
    by_attempt: BTreeMap<AttemptId, (Ix<Build>, Name)>,
    of_build: BTreeMap<Ix<Build>, BTreeSet<AttemptId>>,
}

impl LostAttempts {
    /// Enters an attempt that was given up.
    pub(super) fn insert(&mut self, attempt: AttemptId, build: Ix<Build>, agent: Name) {
        self.by_attempt.insert(attempt, (build, agent));
        self.of_build.entry(build).or_default().insert(attempt);
    }

    /// Forgets all attempts of a build, which has ended.
    pub(super) fn forget_build(&mut self, build: Ix<Build>) {
        for attempt in self.of_build.remove(&build).unwrap_or_default() {
            self.by_attempt.remove(&attempt);
        }
    }

    /// Returns all lost attempts and their agents.
    pub(super) fn iter(&self) -> impl Iterator<Item = (AttemptId, &Name)> {
        self.by_attempt.iter().map(|(attempt, (_, agent))| (*attempt, agent))
    }

    /// Returns the lost attempts of a build and their agents.
    pub(super) fn of_build(&self, build: Ix<Build>) -> BTreeMap<AttemptId, Name> {
        let attempts = self.of_build.get(&build).into_iter().flatten();
        attempts.filter_map(|a| Some((*a, self.by_attempt.get(a)?.1.clone()))).collect()
    }

    /// Returns the build of an attempt that this agent lost.
    fn build_of(&self, attempt: AttemptId, agent: &Name) -> Option<Ix<Build>> {
        self.by_attempt.get(&attempt).filter(|(_, loser)| loser == agent).map(|(build, _)| *build)
    }

    fn remove(&mut self, attempt: AttemptId) {
        if let Some((build, _)) = self.by_attempt.remove(&attempt)
            && let Some(attempts) = self.of_build.get_mut(&build)
        {
            attempts.remove(&attempt);
            if attempts.is_empty() {
                self.of_build.remove(&build);
            }
        }
    }

    /// Returns what does not agree: a lost attempt is of an open build and holds no lease.
    pub(super) fn check(&self, engine: &Engine) -> Vec<String> {
        let mut findings = Vec::new();
        for (attempt, (build, _)) in &self.by_attempt {
            let listed = self.of_build.get(build).is_some_and(|all| all.contains(attempt));
            let open = engine.builds.get(*build).is_some();
            if !listed || !open || engine.holder(*attempt).is_some() {
                findings.push(format!("attempt {attempt}: lost, and something else as well"));
            }
        }
        if self.of_build.values().map(BTreeSet::len).sum::<usize>() != self.by_attempt.len() {
            findings.push("the lost attempts are listed differently by build".to_owned());
        }
        findings
    }
}

/// What an agent does with each attempt that it came with.
#[derive(Default)]
pub(super) struct Sorted {
    /// Go on.
    pub(super) keep: Vec<AttemptId>,
    /// Stop and forget.
    pub(super) drop: Vec<AttemptId>,
    /// Say what it made, then forget.
    pub(super) report: Vec<AttemptId>,
}

impl Engine {
    /// Decides about the attempts that an agent came with, and takes those back that were given up
    /// and whose builds nobody else has.
    pub(super) fn sort_held(&mut self, turn: &mut Turn<'_>, name: &Name, held: &[Held]) -> Sorted {
        let mut sorted = Sorted::default();
        // Several may be of one build: the one that is nearest to its end is taken back.
        let mut held: Vec<&Held> = held.iter().collect();
        held.sort_by_key(|held| (nearness(&held.phase), held.attempt));
        let mut seen = BTreeSet::new();
        for Held { attempt, phase } in held.into_iter().rev() {
            if !seen.insert(*attempt) {
                continue;
            }
            if let Some(ix) = self.holder(*attempt) {
                let own = self.builds[ix].state.lease().is_some_and(|lease| lease.agent == *name);
                if own {
                    sorted.keep.push(*attempt);
                } else {
                    sorted.drop.push(*attempt);
                }
                continue;
            }
            let free = self.lost.build_of(*attempt, name).filter(|ix| {
                tells_of_its_build(phase)
                    && (self.builds[*ix].state.lease().is_none()
                        || self.settings.planted.is(Defect::ReadoptionUnchecked))
            });
            match free {
                Some(ix) => {
                    self.readopt(turn, ix, *attempt, name, phase);
                    sorted.keep.push(*attempt);
                }
                None if phase.has_outputs() => sorted.report.push(*attempt),
                None => sorted.drop.push(*attempt),
            }
        }
        for list in [&mut sorted.keep, &mut sorted.drop, &mut sorted.report] {
            list.sort_unstable();
        }
        sorted
    }

    /// Gives a build back to an attempt that was given up.
    fn readopt(
        &mut self,
        turn: &mut Turn<'_>,
        ix: Ix<Build>,
        attempt: AttemptId,
        agent: &Name,
        phase: &HeldPhase,
    ) {
        self.lost.remove(attempt);
        turn.out.changes.push(Change::AttemptReadopted { attempt, at: turn.now.wall });
        let lease = Lease { attempt, agent: agent.clone() };
        self.apply(turn, ix, BuildEvent::Readopted(lease));
        // What is finished is reported again, which says the rest.
        if *phase == HeldPhase::Building {
            self.apply(turn, ix, BuildEvent::Started(attempt));
            Self::move_attempt(turn, attempt, AttemptState::Building);
        }
    }

    /// An agent says what it made in an attempt that is not its own any more. Nothing can change
    /// by it but what is written down of that attempt.
    pub(super) fn report(
        &mut self,
        turn: &mut Turn<'_>,
        session: SessionId,
        attempt: AttemptId,
        outputs: Vec<OutputRecord>,
    ) {
        let on = |agent: &&Agent| agent.session() == Some(session);
        let Some(agent) = self.agents.values().find(on).map(|agent| agent.name.clone()) else {
            return self.ignore(Ignored::StaleReport);
        };
        if self.holder(attempt).is_some() {
            return self.ignore(Ignored::StaleReport);
        }
        turn.out.changes.push(Change::Reported { attempt, agent, outputs, at: turn.now.wall });
        turn.out.effects.push(Effect::Tell { session, order: Order::Settled { attempt } });
    }
}

/// Tells whether an attempt is worth to be taken back. One that could not even begin is not: it was
/// given up once already, which is all that would become of it.
const fn tells_of_its_build(phase: &HeldPhase) -> bool {
    match phase {
        HeldPhase::Preparing
        | HeldPhase::Building
        | HeldPhase::Finished(Outcome::Built | Outcome::Failed(_)) => true,
        HeldPhase::Finished(Outcome::SetupFailed(_) | Outcome::Canceled) => false,
    }
}

/// Returns how near to its end an attempt is that may be taken back; more is nearer.
const fn nearness(phase: &HeldPhase) -> u8 {
    match phase {
        HeldPhase::Finished(Outcome::Built) => 3,
        HeldPhase::Building => 2,
        HeldPhase::Preparing => 1,
        HeldPhase::Finished(Outcome::Failed(_) | Outcome::SetupFailed(_) | Outcome::Canceled) => 0,
    }
}
