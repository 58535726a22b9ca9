//! Ready sets: one per class, so that a rare system never waits behind a common one, and one per
//! set of demands beside it, so that nobody looks at builds it may not take.

use super::{AccountIx, Class, Setbacks};
use crate::core::{
    agent::Abilities,
    arena::Ix,
    demands::Demands,
    engine::Build,
    id::{BuildId, Name},
    time::Timestamp,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// The place of a kind of builds in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ClassIx(u32);

/// The order of ready builds; smaller goes first.
///
/// It does not change as time passes, so nothing is sorted again, and nobody waits longer for
/// another's priority than the difference times the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Whole minutes of submission time, less the priority's worth of minutes.
    pub minute: i64,
    /// The longest chain of dependents; longer goes first.
    pub height: Reverse<u32>,
    /// Ids sort by creation.
    pub id: BuildId,
}

impl Rank {
    /// Returns the rank when it goes back by some minutes.
    #[must_use]
    pub const fn set_back(self, minutes: i64) -> Self {
        Self { minute: self.minute.saturating_add(minutes), ..self }
    }

    /// Returns the rank of a build. `priority_step` is how many minutes one point of priority is
    /// worth.
    #[must_use]
    pub const fn of(
        submitted: Timestamp,
        priority: i32,
        priority_step: i64,
        height: u32,
        id: BuildId,
    ) -> Self {
        let worth = (priority as i64).saturating_mul(priority_step);
        let minute = submitted.whole_minutes().saturating_sub(worth);
        Self { minute, height: Reverse(height), id }
    }
}

/// What builds of one ready set have in common: any agent that may take one of them may take all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// What their derivations ask of an agent.
    pub class: Class,
    /// What they ask of it themselves.
    pub demands: Demands,
}

impl Kind {
    /// Returns why an agent can never take such builds; `None` when it can.
    #[must_use]
    pub fn obstacle(&self, name: &Name, abilities: &Abilities) -> Option<String> {
        let class = self.class.obstacle(abilities);
        class.or_else(|| self.demands.obstacle(&self.class, name, abilities))
    }
}

/// A ready set.
#[derive(Debug, Clone)]
struct Lane {
    kind: Kind,
    ready: BTreeMap<AccountIx, BTreeSet<(Rank, Ix<Build>)>>,
    /// How many open builds ask for more than their derivations do, and are of this kind.
    demanding: usize,
}

/// All ready sets.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    by_kind: BTreeMap<Class, BTreeMap<Demands, ClassIx>>,
    lanes: Vec<Option<Lane>>,
    /// The places of ready sets that nobody needs any more.
    free: Vec<ClassIx>,
    ready: usize,
}

impl Queue {
    /// Returns the place of a class, and whether it is new: then the agents that can take it must
    /// be worked out. It is kept for good, for there are few.
    pub fn intern(&mut self, class: &Class) -> (ClassIx, Novelty) {
        self.intern_kind(class, &Demands::default())
    }

    /// Returns the place of builds of a class that ask for more, as [`Queue::intern`] does. Each
    /// must be given back with [`Queue::leave`].
    pub fn enter(&mut self, class: ClassIx, demands: &Demands) -> (ClassIx, Novelty) {
        let class = self.kind(class).class.clone();
        let (ix, novelty) = self.intern_kind(&class, demands);
        self.lane_mut(ix).demanding += 1;
        (ix, novelty)
    }

    /// Undoes [`Queue::enter`]. Returns whether nobody needs the place any more: then no agent may
    /// know it any longer.
    pub fn leave(&mut self, ix: ClassIx) -> Novelty {
        let lane = self.lane_mut(ix);
        lane.demanding -= 1;
        if lane.demanding > 0 {
            return Novelty::Known;
        }
        if let Some(lane) = self.lanes[ix.0 as usize].take() {
            if let Some(of_class) = self.by_kind.get_mut(&lane.kind.class) {
                of_class.remove(&lane.kind.demands);
            }
            self.free.push(ix);
        }
        Novelty::New
    }

    fn intern_kind(&mut self, class: &Class, demands: &Demands) -> (ClassIx, Novelty) {
        if let Some(ix) = self.by_kind.get(class).and_then(|of_class| of_class.get(demands)) {
            return (*ix, Novelty::Known);
        }
        let kind = Kind { class: class.clone(), demands: demands.clone() };
        let lane = Lane { kind, ready: BTreeMap::new(), demanding: 0 };
        let ix = self.free.pop().unwrap_or_else(|| {
            self.lanes.push(None);
            ClassIx(u32::try_from(self.lanes.len() - 1).unwrap_or(u32::MAX))
        });
        self.lanes[ix.0 as usize] = Some(lane);
        self.by_kind.entry(class.clone()).or_default().insert(demands.clone(), ix);
        (ix, Novelty::New)
    }

    fn lane(&self, ix: ClassIx) -> &Lane {
        self.lanes[ix.0 as usize].as_ref().expect("a place outlives its ready set")
    }

    fn lane_mut(&mut self, ix: ClassIx) -> &mut Lane {
        self.lanes[ix.0 as usize].as_mut().expect("a place outlives its ready set")
    }

    /// Returns what the builds of a ready set have in common.
    #[must_use]
    pub fn kind(&self, ix: ClassIx) -> &Kind {
        &self.lane(ix).kind
    }

    /// Returns all ready sets and what their builds have in common.
    pub fn kinds(&self) -> impl Iterator<Item = (ClassIx, &Kind)> {
        let lanes = (0..).map(ClassIx).zip(&self.lanes);
        lanes.filter_map(|(ix, lane)| Some((ix, &lane.as_ref()?.kind)))
    }

    /// Returns the ready builds of a kind by account, first in rank first.
    pub fn ready(
        &self,
        ix: ClassIx,
    ) -> impl Iterator<Item = (AccountIx, &BTreeSet<(Rank, Ix<Build>)>)> {
        self.lane(ix).ready.iter().map(|(account, ready)| (*account, ready))
    }

    /// Returns how many builds of a kind are ready.
    #[must_use]
    pub fn ready_count(&self, ix: ClassIx) -> usize {
        self.lane(ix).ready.values().map(BTreeSet::len).sum()
    }

    /// Returns how many ready builds go before the one that would have this rank, at most `max`.
    #[must_use]
    pub fn before(&self, ix: ClassIx, rank: Rank, setbacks: &Setbacks, max: usize) -> usize {
        let before = |(account, ready): (AccountIx, &BTreeSet<(Rank, Ix<Build>)>)| {
            let minute = rank.minute.saturating_sub(setbacks.of(account));
            let bound = Rank { minute, ..rank };
            ready.iter().take_while(|(other, _)| *other < bound).take(max).count()
        };
        self.ready(ix).map(before).sum::<usize>().min(max)
    }

    /// Tells whether a build is ready under this rank.
    #[must_use]
    pub fn has(&self, ix: ClassIx, account: AccountIx, rank: Rank, build: Ix<Build>) -> bool {
        self.lane(ix).ready.get(&account).is_some_and(|ready| ready.contains(&(rank, build)))
    }

    /// Adds a ready build.
    pub fn insert(&mut self, ix: ClassIx, account: AccountIx, rank: Rank, build: Ix<Build>) {
        let ready = self.lane_mut(ix).ready.entry(account).or_default();
        self.ready += usize::from(ready.insert((rank, build)));
    }

    /// Removes a build that was added under this rank.
    pub fn remove(&mut self, ix: ClassIx, account: AccountIx, rank: Rank, build: Ix<Build>) {
        let lane = &mut self.lane_mut(ix).ready;
        let Some(ready) = lane.get_mut(&account) else { return };
        let removed = ready.remove(&(rank, build));
        if ready.is_empty() {
            lane.remove(&account);
        }
        self.ready -= usize::from(removed);
    }

    /// Returns the number of ready builds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ready
    }

    /// Tells whether nothing is ready.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ready == 0
    }
}

/// Whether something was already known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// It was not.
    New,
    /// It was.
    Known,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(minute: i64, priority: i32, height: u32) -> Rank {
        let submitted = Timestamp::from_ms(minute * 60_000 + 59_999);
        Rank::of(submitted, priority, 5, height, BuildId::from_bytes([0; 16]))
    }

    #[test]
    fn a_point_of_priority_is_worth_its_minutes_and_no_more() {
        assert!(rank(104, 1, 0) < rank(100, 0, 0));
        assert!(rank(106, 1, 0) > rank(100, 0, 0));
        assert!(rank(100, -1, 0) > rank(104, 0, 0));
    }

    #[test]
    fn within_a_minute_the_longest_chain_goes_first() {
        assert!(rank(100, 0, 9) < rank(100, 0, 3));
        assert!(rank(101, 0, 9) > rank(100, 0, 3));
    }
}
