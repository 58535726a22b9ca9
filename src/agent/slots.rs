//! Which attempts may build now.
//!
//! The coordinator decides how much an agent gets; should it give more than fits (the slots were
//! lowered, two coordinators' words crossed), the surplus waits here instead of being refused.

use crate::core::id::AttemptId;
use std::collections::{BTreeSet, VecDeque};

/// The slots of this machine. A slot frees when the build ends, not when its upload does.
#[derive(Debug)]
pub(super) struct Slots {
    total: usize,
    busy: BTreeSet<AttemptId>,
    waiting: VecDeque<AttemptId>,
}

/// Whether an attempt may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has a slot.
    Now,
    /// [`Slots::next`] returns it when it is its turn.
    Later,
}

impl Slots {
    /// Returns that many free slots; at least one, since an agent without any is of no use.
    pub(super) fn new(total: u32) -> Self {
        let total = usize::try_from(total).unwrap_or(usize::MAX).max(1);
        Self { total, busy: BTreeSet::new(), waiting: VecDeque::new() }
    }

    /// Returns how many attempts have a slot.
    pub(super) fn busy(&self) -> u32 {
        u32::try_from(self.busy.len()).unwrap_or(u32::MAX)
    }

    /// Gives a slot to an attempt whose process runs already, even beyond the total.
    pub(super) fn occupy(&mut self, attempt: AttemptId) {
        self.busy.insert(attempt);
    }

    /// Asks for a slot.
    pub(super) fn ask(&mut self, attempt: AttemptId) -> Turn {
        if self.busy.len() < self.total && self.waiting.is_empty() {
            self.busy.insert(attempt);
            Turn::Now
        } else {
            self.waiting.push_back(attempt);
            Turn::Later
        }
    }

    /// Frees the attempt's slot, or its place among those that wait. Harmless when it has neither.
    pub(super) fn release(&mut self, attempt: AttemptId) {
        self.busy.remove(&attempt);
        self.waiting.retain(|waiting| *waiting != attempt);
    }

    /// Returns the next attempt that has waited and now has a slot. Call until `None`.
    pub(super) fn next(&mut self) -> Option<AttemptId> {
        if self.busy.len() >= self.total {
            return None;
        }
        let attempt = self.waiting.pop_front()?;
        self.busy.insert(attempt);
        Some(attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: u8) -> AttemptId {
        AttemptId::from_bytes([number; 16])
    }

    #[test]
    fn surplus_attempts_wait_in_order() {
        let mut slots = Slots::new(1);
        assert_eq!(slots.ask(attempt(1)), Turn::Now);
        assert_eq!(slots.ask(attempt(2)), Turn::Later);
        assert_eq!(slots.ask(attempt(3)), Turn::Later);
        assert_eq!(slots.next(), None);
        slots.release(attempt(1));
        assert_eq!(slots.next(), Some(attempt(2)));
        assert_eq!(slots.next(), None);
    }

    #[test]
    fn a_waiting_attempt_that_is_dropped_never_gets_a_slot() {
        let mut slots = Slots::new(1);
        assert_eq!(slots.ask(attempt(1)), Turn::Now);
        assert_eq!(slots.ask(attempt(2)), Turn::Later);
        slots.release(attempt(2));
        slots.release(attempt(1));
        assert_eq!(slots.next(), None);
        assert_eq!(slots.ask(attempt(3)), Turn::Now);
    }

    #[test]
    fn adopted_attempts_count_even_beyond_the_total() {
        let mut slots = Slots::new(1);
        slots.occupy(attempt(1));
        slots.occupy(attempt(2));
        assert_eq!(slots.ask(attempt(3)), Turn::Later);
        slots.release(attempt(1));
        assert_eq!(slots.next(), None);
        slots.release(attempt(2));
        assert_eq!(slots.next(), Some(attempt(3)));
    }
}
