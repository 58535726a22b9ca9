//! Times as values. `core` never asks a clock: the caller says what time it is.

use std::fmt;

/// A point of wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Returns the time that many milliseconds after the epoch.
    #[must_use]
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Returns the milliseconds since the epoch.
    #[must_use]
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// Returns the whole minutes since the epoch, as the rank of a build counts them.
    #[must_use]
    pub const fn whole_minutes(self) -> i64 {
        self.0.div_euclid(60_000)
    }

    /// Returns the time `ms` later; the end of time instead of an overflow.
    #[must_use]
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// A point of monotonic time, in milliseconds since some moment of this process's life.
///
/// Leases and deadlines run on it, so that a jump of the wall clock ends none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(u64);

impl Monotonic {
    /// Returns the moment `ms` milliseconds after the start of counting.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Returns the milliseconds since the start of counting.
    #[must_use]
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// Returns the moment `ms` later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// What time it is, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock: what is written down and shown.
    pub wall: Timestamp,
    /// The monotonic clock: what leases and deadlines are measured on.
    pub mono: Monotonic,
}

impl fmt::Display for Timestamp {
    /// Writes the plain number; people's forms of a time are made where they are printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
