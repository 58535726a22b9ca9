//! Messages that change nothing, by kind: those of attempts that do not hold their lease, and those
//! that say again what is known.

use super::Engine;

/// A message of an agent that changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ignored {
    /// That an attempt started, which does not hold its lease.
    StaleStarted,
    /// That an attempt is over, which does not hold its lease.
    StaleFinished,
    /// Outputs were offered in an attempt that does not hold its lease.
    StaleOffer,
    /// They were even sent: the lease went meanwhile, or they came twice.
    StaleDelivery,
    /// What was built in an attempt that is alive, or by nobody who is connected.
    StaleReport,
    /// That an attempt started, once more.
    RepeatedStarted,
    /// That an attempt is over, once more.
    RepeatedFinished,
}

impl Ignored {
    /// Returns the word that commands print.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::StaleStarted => "stale-started",
            Self::StaleFinished => "stale-finished",
            Self::StaleOffer => "stale-offer",
            Self::StaleDelivery => "stale-delivery",
            Self::StaleReport => "stale-report",
            Self::RepeatedStarted => "repeated-started",
            Self::RepeatedFinished => "repeated-finished",
        }
    }

    /// Tells whether the attempt did not hold its lease.
    #[must_use]
    pub const fn is_stale(self) -> bool {
        match self {
            Self::StaleStarted
            | Self::StaleFinished
            | Self::StaleOffer
            | Self::StaleDelivery
            | Self::StaleReport => true,
            Self::RepeatedStarted | Self::RepeatedFinished => false,
        }
    }
}

impl Engine {
    /// Counts a message that changes nothing.
    pub(super) fn ignore(&mut self, message: Ignored) {
        *self.ignored.entry(message).or_default() += 1;
    }
}
