//! The states of an attempt: one try of a build by one agent.
//!
//! While an attempt lives its state follows its build's; what is its own is how it ended. The
//! database keeps every attempt for good.

use super::{
    id::AttemptId,
    outcome::{AttemptEnd, Outcome},
};

/// Where an attempt stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptState {
    /// The agent has it and prepares.
    Allocated,
    /// The builder runs.
    Building,
    /// The outputs are being sent.
    Receiving,
    /// It is over.
    Ended(AttemptEnd),
}

impl AttemptState {
    /// Returns the word that the database keeps.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Allocated => "allocated",
            Self::Building => "building",
            Self::Receiving => "receiving",
            Self::Ended(_) => "ended",
        }
    }

    /// Returns the state after `next`, which must be later in an attempt's life; `None` when it is
    /// not, as for a message that came twice.
    #[must_use]
    pub fn followed_by(&self, next: Self) -> Option<Self> {
        (self.order() < next.order()).then_some(next)
    }

    const fn order(&self) -> u8 {
        match self {
            Self::Allocated => 0,
            Self::Building => 1,
            Self::Receiving => 2,
            Self::Ended(_) => 3,
        }
    }
}

/// One attempt that an agent still has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// The attempt.
    pub attempt: AttemptId,
    /// How far it is.
    pub phase: HeldPhase,
}

/// How far a held attempt is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldPhase {
    /// Inputs are being fetched.
    Preparing,
    /// The builder runs.
    Building,
    /// It is over; outputs, if any, wait in the spool.
    Finished(Outcome),
}

impl HeldPhase {
    /// Tells whether the agent has outputs to deliver.
    #[must_use]
    pub const fn has_outputs(&self) -> bool {
        matches!(self, Self::Finished(Outcome::Built))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_only_goes_forward() {
        use AttemptState as S;
        let ended = S::Ended(AttemptEnd::AgentLost);
        assert_eq!(S::Allocated.followed_by(S::Building), Some(S::Building));
        assert_eq!(S::Allocated.followed_by(ended.clone()), Some(ended.clone()));
        assert_eq!(S::Building.followed_by(S::Building), None);
        assert_eq!(S::Receiving.followed_by(S::Building), None);
        assert_eq!(ended.followed_by(S::Ended(AttemptEnd::Succeeded)), None);
    }
}
