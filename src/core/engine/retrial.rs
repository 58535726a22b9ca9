//! Builds that are tried again because somebody wants it, those that are over as well.
//!
//! Builds that are over are not in memory. Whoever brings the wish reads their rows from the
//! database, divides them with [`Retrial::divide`], and brings the facts of what is reopened.

use super::{
    Answer, Authority, Build, Effect, Engine, Extras, LostAttempt, OpenBuild, Token, Turn,
};
use crate::core::{
    arena::Ix,
    build::{Blame, BuildEvent, BuildState, next_state},
    change::{BuildAmendment, Change},
    defect::Defect,
    demands::Demands,
    graph::Facts,
    id::{BuildId, Name},
    store_path::PathHash,
};
use std::collections::BTreeMap;

/// A build that is over, and who had it last.
#[derive(Debug, Clone)]
pub struct OverBuild {
    /// The build as the database keeps it.
    pub build: OpenBuild,
    /// The agent whose attempt showed that it fails.
    pub agent: Option<Name>,
}

/// What is to be different when builds are tried again; what is absent or empty stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryWish {
    /// Only these agents may have them.
    pub agents: Vec<Name>,
    /// These agents may not have them.
    pub not_agents: Vec<Name>,
    /// Their own priority.
    pub priority: Option<i32>,
    /// How many open builds whoever asks may have with these; any number when absent.
    pub open_max: Option<u32>,
}

/// A wish that builds be tried again.
#[derive(Debug)]
pub struct Retrial {
    /// Those that were asked for and are not over, in the order of the answer.
    open: Vec<BuildId>,
    /// Those that are reopened.
    reopened: Vec<OverBuild>,
    /// What became of all others.
    answered: Vec<(BuildId, Retried)>,
    by: Authority,
    wish: RetryWish,
    /// The facts of the reopened builds' derivations and of their inputs, as if those builds had
    /// never ended.
    pub facts: Vec<Facts>,
    /// The attempts of the reopened builds that their agents may still come back with.
    pub lost: Vec<LostAttempt>,
}

impl Retrial {
    /// Divides builds by what can become of them. `rows` are those of `builds` that are over.
    #[must_use]
    pub fn divide(
        builds: &[BuildId],
        rows: Vec<OverBuild>,
        by: Authority,
        wish: RetryWish,
    ) -> Self {
        let mut rows: BTreeMap<BuildId, OverBuild> =
            rows.into_iter().map(|over| (over.build.id, over)).collect();
        let (mut open, mut reopened, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for id in builds {
            let Some(over) = rows.remove(id) else {
                open.push(*id);
                continue;
            };
            let own = match &by {
                Authority::All => true,
                Authority::Own(name) => over.build.submitter == *name,
            };
            match over.build.state {
                _ if !own => answered.push((*id, Retried::NotYours)),
                BuildState::Failed { .. } | BuildState::Canceled => reopened.push(over),
                BuildState::Succeeded { .. } => answered.push((*id, Retried::Succeeded)),
                BuildState::Deferred { .. }
                | BuildState::Queued
                | BuildState::Allocated(_)
                | BuildState::Building(_)
                | BuildState::Receiving(_) => open.push(*id),
            }
        }
        Self { open, reopened, answered, by, wish, facts: Vec::new(), lost: Vec::new() }
    }

    /// Returns the builds that are reopened, and their derivations.
    pub fn reopened(&self) -> impl Iterator<Item = (BuildId, PathHash)> {
        self.reopened.iter().map(|over| (over.build.id, over.build.derivation))
    }
}

/// What became of a build that was to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It was over and is open again.
    Reopened,
    /// It was deferred and is not any more.
    Hastened,
    /// It waits for its turn already; what was wished for holds from now on.
    Waits,
    /// An agent has it just now.
    Busy,
    /// It succeeded.
    Succeeded,
    /// There is no such build.
    NoSuch,
    /// It is somebody else's.
    NotYours,
}

impl Engine {
    /// Tries builds again.
    pub(super) fn retry(&mut self, turn: &mut Turn<'_>, token: Token, retrial: Retrial) {
        let Retrial { open, reopened, mut answered, by, wish, facts, lost } = retrial;
        if let Authority::Own(name) = &by
            && let Err(over) = self.within_quota(name, 0, reopened.len(), wish.open_max)
        {
            turn.out.effects.push(Effect::Reply { token, answer: Answer::TooMany(over) });
            return;
        }
        let facts: BTreeMap<PathHash, &Facts> =
            facts.iter().map(|facts| (facts.path.hash(), facts)).collect();
        for over in reopened {
            answered.push((over.build.id, Retried::Reopened));
            let ix = self.reopen(turn, over, &facts);
            self.grant(turn, ix, &wish);
        }
        for LostAttempt { attempt, build, agent } in lost {
            if let Some(ix) = self.find(build) {
                self.lost.insert(attempt, ix, agent);
            }
        }
        for id in open {
            let result = match self.find(id) {
                None => Retried::NoSuch,
                Some(ix) if !self.may_change(ix, &by) => Retried::NotYours,
                Some(ix) => self.hasten(turn, ix, &wish),
            };
            answered.push((id, result));
        }
        turn.out.effects.push(Effect::Reply { token, answer: Answer::Retried(answered) });
    }

    /// Opens a build again that was over.
    fn reopen(
        &mut self,
        turn: &mut Turn<'_>,
        over: OverBuild,
        facts: &BTreeMap<PathHash, &Facts>,
    ) -> Ix<Build> {
        let OverBuild { build: row, agent } = over;
        let failed = matches!(row.state, BuildState::Failed { .. });
        let to = next_state(&row.state, BuildEvent::Retried).expect("only such are reopened");
        let blame = failed.then_some(Blame::Build);
        let (id, from, at) = (row.id, row.state.clone(), turn.now.wall);
        turn.out.changes.push(Change::BuildMoved { build: id, from, to: to.clone(), blame, at });
        let own = facts[&row.derivation];
        let node = self.meet_new(own);
        // What it ended as does not hold any more.
        if !self.settings.planted.is(Defect::EndKept) {
            self.graph.correct_last_end(node, own.last_end);
        }
        let inputs = own.inputs.iter().map(|input| self.meet_new(facts[input])).collect();
        let failures = row.extras.failures + u32::from(failed);
        let is_deferred = row.extras.not_before.is_some();
        let extras = Extras { failures, not_before: None, ..row.extras.clone() };
        let avoid = agent.filter(|_| failed).or_else(|| row.avoid.clone());
        let row = OpenBuild { state: to, avoid, extras, ..row };
        let request = turn.requests.share(row.request());
        if is_deferred {
            let amendment = BuildAmendment::NotDeferred;
            turn.out.changes.push(Change::BuildAmended { build: id, amendment });
        }
        self.add_open(turn.now, row.into_build(node, request), inputs)
    }

    /// Ends the pause of an open build.
    fn hasten(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, wish: &RetryWish) -> Retried {
        match *self.builds[ix].state {
            BuildState::Deferred { .. } => {
                if self.builds[ix].not_before().is_some() {
                    self.builds[ix].change_extras(|extras| extras.not_before = None);
                    self.note_amendment(turn, ix, BuildAmendment::NotDeferred);
                }
                self.apply(turn, ix, BuildEvent::Due);
                self.grant(turn, ix, wish);
                Retried::Hastened
            }
            BuildState::Queued => {
                self.grant(turn, ix, wish);
                Retried::Waits
            }
            BuildState::Allocated(_)
            | BuildState::Building(_)
            | BuildState::Receiving(_)
            | BuildState::Succeeded { .. }
            | BuildState::Failed { .. }
            | BuildState::Canceled => Retried::Busy,
        }
    }

    fn grant(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, wish: &RetryWish) {
        if let Some(priority) = wish.priority {
            self.set_priority(turn, ix, priority);
        }
        if wish.agents.is_empty() && wish.not_agents.is_empty() {
            return;
        }
        let before = self.builds[ix].extras().demands;
        let (agents, not_agents) = (wish.agents.clone(), wish.not_agents.clone());
        let demands = Demands { agents, not_agents, ..before };
        self.set_demands(turn, ix, &demands.sorted());
    }
}
