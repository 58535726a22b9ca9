//! What the operator may set about hooks: the table `[hooks]` of `steading.toml`.

use crate::core::event::EventKind;
use std::{
    collections::BTreeMap,
    num::{NonZeroU8, NonZeroU32},
};

/// How many runs of one hook may go on at a time, whatever is configured.
pub const PARALLEL_MAX: u8 = 16;
/// The longest pause before a run that failed is tried again, in milliseconds.
const PAUSE_MS_MAX: u64 = 60 * 60 * 1_000;
/// By how much each pause is longer than the one before.
const PAUSE_FACTOR: u64 = 3;

/// What the operator may set about hooks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct HookSettings {
    /// What the key of hooks may do.
    pub role: HookRole,
    /// How long one run may take, in seconds.
    pub time_limit: NonZeroU32,
    /// After how many tries an event is given up.
    pub tries: NonZeroU8,
    /// How long to wait before the second try, in seconds; each pause is three times the one
    /// before, and at most an hour.
    pub pause: NonZeroU32,
    /// How many runs of each hook of an event go on at a time; one where nothing is said, so that
    /// the hook gets the events one after the other.
    pub parallel: BTreeMap<EventKind, NonZeroU8>,
}

/// What the key of hooks may do: a role of people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookRole {
    /// Reads everything, changes nothing.
    Viewer,
    /// Submits builds, and cancels and retries those of hooks.
    Submitter,
    /// Changes everybody's builds, and agents.
    Operator,
    /// Changes keys and the coordinator itself.
    Admin,
}

impl Default for HookSettings {
    fn default() -> Self {
        Self {
            role: HookRole::Submitter,
            time_limit: NonZeroU32::MIN.saturating_add(59),
            tries: NonZeroU8::MIN.saturating_add(7),
            pause: NonZeroU32::MIN.saturating_add(9),
            parallel: BTreeMap::new(),
        }
    }
}

impl HookSettings {
    /// Returns how many runs of a hook of an event go on at a time.
    #[must_use]
    pub fn parallel_of(&self, event: EventKind) -> usize {
        let wish = self.parallel.get(&event).map_or(1, |parallel| parallel.get());
        usize::from(wish.min(PARALLEL_MAX))
    }

    /// Returns how long to wait after so many tries that failed, in milliseconds; `None` when the
    /// event is given up. Of 256 hooks that fail at the same time with different values of `chance`
    /// no two come back at the same time: pauses differ by up to a quarter.
    #[must_use]
    pub fn pause_ms(&self, tries: u32, chance: u8) -> Option<u64> {
        if tries >= u32::from(self.tries.get()) {
            return None;
        }
        let first = u64::from(self.pause.get()).saturating_mul(1_000);
        let grown = PAUSE_FACTOR.saturating_pow(tries.saturating_sub(1));
        let pause = first.saturating_mul(grown).min(PAUSE_MS_MAX.max(first));
        Some(pause.saturating_add((pause / 4).saturating_mul(u64::from(chance)) / 255))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_an_hour_and_end() {
        let settings = HookSettings::default();
        let pauses = |chance| (1..=8).map(move |tries| settings_pause(tries, chance));
        let seconds: Vec<_> = pauses(0).map(|ms| ms.map(|ms| ms / 1_000)).collect();
        let expected = [10, 30, 90, 270, 810, 2_430, 3_600].map(Some);
        assert_eq!(seconds[..7], expected);
        assert_eq!(seconds[7], None);
        assert_eq!(settings.pause_ms(1, 255), Some(12_500));
        assert_eq!(settings.pause_ms(u32::MAX, 0), None);
    }

    fn settings_pause(tries: u32, chance: u8) -> Option<u64> {
        HookSettings::default().pause_ms(tries, chance)
    }

    #[test]
    fn no_more_than_the_most_run_at_a_time() {
        let wish = BTreeMap::from([(EventKind::BuildSuccess, NonZeroU8::MAX)]);
        let settings = HookSettings { parallel: wish, ..HookSettings::default() };
        assert_eq!(settings.parallel_of(EventKind::BuildSuccess), usize::from(PARALLEL_MAX));
        assert_eq!(settings.parallel_of(EventKind::BuildFailure), 1);
    }
}
