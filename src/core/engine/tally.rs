//! How many builds are shown in each state, counted as they move.

use crate::core::build::ShownState;
use std::collections::BTreeMap;

/// The counts; those of final states stay 0 between steps, for who is final is not open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally([usize; ShownState::ALL.len()]);

impl Tally {
    /// Counts a build that became open.
    pub(super) fn enters(&mut self, state: ShownState) {
        self.0[state as usize] += 1;
    }

    /// Counts a build no more.
    pub(super) fn leaves(&mut self, state: ShownState) {
        self.0[state as usize] -= 1;
    }

    /// Counts a build that is shown differently from now on.
    pub(super) fn moves(&mut self, before: ShownState, now: ShownState) {
        self.leaves(before);
        self.enters(now);
    }

    /// Returns the counts of those states that builds are in.
    pub(super) fn all(&self) -> BTreeMap<ShownState, usize> {
        let counts = ShownState::ALL.into_iter().map(|state| (state, self.0[state as usize]));
        counts.filter(|(_, number)| *number > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_their_places() {
        for (place, state) in ShownState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, place);
        }
    }
}
