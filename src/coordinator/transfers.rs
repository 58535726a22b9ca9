//! How much may be received at a time: places for uploads, and room for what is not committed.

use super::{
    keeper::Keeper,
    small::{Room, Verifiers},
};
use crate::core::id::{AttemptId, Name};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits of what agents send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// How many uploads are received at a time.
    pub uploads_max: u32,
    /// How many of one agent.
    pub uploads_per_agent_max: u32,
    /// How many bytes of one agent may be there without being committed.
    pub staged_bytes_max: u64,
}

/// What sessions share that receive something.
#[derive(Debug)]
pub struct Transfers {
    pub(super) places: Places,
    pub(super) staging: Staging,
    pub(super) keeper: Keeper,
    /// For small outputs, whose files are committed with their rows.
    pub(super) unwritten: Room,
    pub(super) small: Verifiers,
}

impl Transfers {
    pub(super) fn new(limits: &TransferLimits, keeper: Keeper, unwritten: Room) -> Self {
        let (places, staging) = (Places::new(limits), Staging::new(limits));
        Self { places, staging, keeper, unwritten, small: Verifiers::default() }
    }
}

/// The places for uploads. Whoever asks for one gets it in the order of asking, except that those
/// behind whose agent has fewer than its limit do not wait for one that has reached it.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    per_agent: usize,
    /// Of agents that have or want a place; those of others are dropped.
    agents: Mutex<BTreeMap<Name, Weak<Semaphore>>>,
}

/// A place for one upload, as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(limits: &TransferLimits) -> Self {
        let count = |limit: u32| usize::try_from(limit).unwrap_or(Semaphore::MAX_PERMITS).max(1);
        Self {
            all: Arc::new(Semaphore::new(count(limits.uploads_max))),
            per_agent: count(limits.uploads_per_agent_max),
            agents: Mutex::default(),
        }
    }

    /// Returns a place as soon as there is one. Giving up the returned future gives up the turn.
    pub(super) async fn take(&self, agent: &Name) -> Place {
        let closed = "the semaphore is never closed";
        let own = self.of(agent).acquire_owned().await.expect(closed);
        let all = Arc::clone(&self.all).acquire_owned().await.expect(closed);
        Place { _own: own, _all: all }
    }

    /// Returns a place if there is one now.
    pub(super) fn try_take(&self, agent: &Name) -> Option<Place> {
        let own = self.of(agent).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Place { _own: own, _all: all })
    }

    fn of(&self, agent: &Name) -> Arc<Semaphore> {
        let mut agents = lock(&self.agents);
        if let Some(places) = agents.get(agent).and_then(Weak::upgrade) {
            return places;
        }
        agents.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.per_agent));
        agents.insert(agent.clone(), Arc::downgrade(&places));
        places
    }
}

/// How much each attempt may have in `incoming/`.
#[derive(Debug)]
pub(super) struct Staging {
    bytes_max: u64,
    attempts: Mutex<BTreeMap<AttemptId, (Name, u64)>>,
}

/// An agent wants to have more there than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// How much its other attempts have.
    pub(super) others: u64,
    /// How much it may have.
    pub(super) max: u64,
}

impl Staging {
    pub(super) fn new(limits: &TransferLimits) -> Self {
        Self { bytes_max: limits.staged_bytes_max, attempts: Mutex::default() }
    }

    /// Keeps room for all that an attempt will send; it replaces what was kept for it before.
    pub(super) fn reserve(
        &self,
        agent: &Name,
        attempt: AttemptId,
        bytes: u64,
    ) -> Result<(), NoRoom> {
        let mut attempts = lock(&self.attempts);
        let others: u64 = attempts
            .iter()
            .filter(|(other, (holder, _))| **other != attempt && holder == agent)
            .fold(0, |sum, (_, (_, bytes))| sum.saturating_add(*bytes));
        if others.saturating_add(bytes) > self.bytes_max {
            return Err(NoRoom { others, max: self.bytes_max });
        }
        attempts.insert(attempt, (agent.clone(), bytes));
        Ok(())
    }

    /// Notes what an earlier process has received of an attempt.
    pub(super) fn restore(&self, agent: &Name, attempt: AttemptId, bytes: u64) {
        lock(&self.attempts).insert(attempt, (agent.clone(), bytes));
    }

    /// An attempt has nothing there any more.
    pub(super) fn release(&self, attempt: AttemptId) {
        lock(&self.attempts).remove(&attempt);
    }

    /// These attempts have nothing there any more.
    pub(super) fn release_all(&self, attempts: &BTreeSet<AttemptId>) {
        lock(&self.attempts).retain(|attempt, _| !attempts.contains(attempt));
    }

    /// Returns the attempts that room is kept for.
    pub(super) fn attempts(&self) -> BTreeSet<AttemptId> {
        lock(&self.attempts).keys().copied().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(uploads_max: u32, uploads_per_agent_max: u32) -> TransferLimits {
        TransferLimits { uploads_max, uploads_per_agent_max, staged_bytes_max: 100 }
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn an_agent_at_its_limit_does_not_hold_up_others() {
        let places = Places::new(&limits(3, 2));
        let (amber, birch) = (name("amber"), name("birch"));
        let held = [places.take(&amber).await, places.take(&amber).await];
        assert!(places.try_take(&amber).is_none());
        let other = places.take(&birch).await;
        assert!(places.try_take(&birch).is_none(), "there are three in all");
        drop(held);
        assert!(places.try_take(&birch).is_some());
        drop(other);
        assert!(places.try_take(&amber).is_some());
        drop(places.of(&name("cedar")));
        assert_eq!(lock(&places.agents).len(), 1, "agents that left are forgotten");
    }

    #[tokio::test]
    async fn places_go_to_those_who_wait_in_their_order() {
        let places = Arc::new(Places::new(&limits(1, 4)));
        let held = places.take(&name("amber")).await;
        let (sender, mut got) = tokio::sync::mpsc::channel(4);
        for who in ["amber", "birch", "cedar"] {
            let (places, sender) = (Arc::clone(&places), sender.clone());
            let wait = tokio::spawn(async move {
                let place = places.take(&name(who)).await;
                sender.send(who).await.unwrap();
                drop(place);
            });
            tokio::task::yield_now().await;
            if who == "birch" {
                // Who gives up has no turn any more.
                wait.abort();
                wait.await.unwrap_err();
            }
        }
        drop((held, sender));
        assert_eq!(got.recv().await, Some("amber"));
        assert_eq!(got.recv().await, Some("cedar"));
        assert_eq!(got.recv().await, None);
    }

    #[test]
    fn staged_bytes_are_counted_per_agent() {
        let staging = Staging::new(&limits(1, 1));
        let (amber, birch) = (name("amber"), name("birch"));
        let [one, two, three] = [1, 2, 3].map(|n| AttemptId::from_bytes([n; 16]));
        assert_eq!(staging.reserve(&amber, one, 60), Ok(()));
        assert_eq!(staging.reserve(&amber, two, 41), Err(NoRoom { others: 60, max: 100 }));
        assert_eq!(staging.reserve(&birch, three, 100), Ok(()));
        // The same attempt again replaces what it had.
        assert_eq!(staging.reserve(&amber, one, 59), Ok(()));
        assert_eq!(staging.reserve(&amber, two, 41), Ok(()));
        staging.release(one);
        assert_eq!(staging.attempts(), BTreeSet::from([two, three]));
        staging.release_all(&BTreeSet::from([three]));
        assert_eq!(staging.reserve(&birch, three, u64::MAX), Err(NoRoom { others: 0, max: 100 }));
        assert_eq!(staging.attempts(), BTreeSet::from([two]));
    }
}
