//! Ready sets: one per class, so that a rare system never waits behind a common one.

use super::Class;
use crate::core::{arena::Ix, engine::Build, id::BuildId, time::Timestamp};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// The place of a class in the queue.
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

/// All ready sets.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    by_class: BTreeMap<Class, ClassIx>,
    classes: Vec<Class>,
    ready: Vec<BTreeSet<(Rank, Ix<Build>)>>,
}

impl Queue {
    /// Returns the place of a class, and whether it is new: then the agents that can take it must
    /// be worked out.
    pub fn intern(&mut self, class: &Class) -> (ClassIx, Novelty) {
        if let Some(ix) = self.by_class.get(class) {
            return (*ix, Novelty::Known);
        }
        let ix = ClassIx(u32::try_from(self.classes.len()).unwrap_or(u32::MAX));
        self.by_class.insert(class.clone(), ix);
        self.classes.push(class.clone());
        self.ready.push(BTreeSet::new());
        (ix, Novelty::New)
    }

    /// Returns a class.
    #[must_use]
    pub fn class(&self, ix: ClassIx) -> &Class {
        &self.classes[ix.0 as usize]
    }

    /// Returns all classes.
    pub fn classes(&self) -> impl Iterator<Item = (ClassIx, &Class)> {
        (0..).map(ClassIx).zip(&self.classes)
    }

    /// Returns the ready builds of a class, first in rank first.
    #[must_use]
    pub fn ready(&self, ix: ClassIx) -> &BTreeSet<(Rank, Ix<Build>)> {
        &self.ready[ix.0 as usize]
    }

    /// Adds a ready build.
    pub fn insert(&mut self, ix: ClassIx, rank: Rank, build: Ix<Build>) {
        self.ready[ix.0 as usize].insert((rank, build));
    }

    /// Removes a build that was added under this rank.
    pub fn remove(&mut self, ix: ClassIx, rank: Rank, build: Ix<Build>) {
        self.ready[ix.0 as usize].remove(&(rank, build));
    }

    /// Returns the number of ready builds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready.iter().map(BTreeSet::len).sum()
    }

    /// Tells whether nothing is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.iter().all(BTreeSet::is_empty)
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
