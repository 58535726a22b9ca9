//! The states of a build, and the one function that moves it between them.
//!
//! ```text
//! deferred ⇄ queued ─→ allocated ─→ building ─→ receiving ─→ succeeded
//!              ↑ └───────────┴──────────┴────────────┴─────→ failed, canceled
//!              └── given back after an infrastructure end
//! ```
//!
//! What failed or was canceled is queued again only by an explicit, recorded act.
//!
//! A build that was given back because its agent was lost, and that nobody took since, is allocated
//! again under the same attempt when that agent comes back with it.
//!
//! `queued` is what the database keeps of a build that nobody has yet. Whether it is shown as
//! `waiting`, `ready` or `blocked` follows from its derivation's inputs (see [`super::graph`]) and
//! is therefore never stored.

use super::{
    id::{AttemptId, Name},
    time::Timestamp,
};
use std::fmt;

/// The lowest and highest priority a build may have; the default is 0, higher goes first.
pub const PRIORITY_MIN: i32 = -1_000;
/// See [`PRIORITY_MIN`].
pub const PRIORITY_MAX: i32 = 1_000;

/// Where a build stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildState {
    /// Not to be tried before this time.
    Deferred {
        /// When it is queued again.
        until: Timestamp,
    },
    /// Nobody has it; it goes to an agent as soon as its inputs allow.
    Queued,
    /// Given to an agent that has not yet begun building.
    Allocated(Lease),
    /// The builder runs.
    Building(Lease),
    /// Built; its outputs are being sent.
    Receiving(Lease),
    /// Its outputs are committed. Final.
    Succeeded {
        /// The attempt that did it.
        attempt: AttemptId,
    },
    /// The build failed. Final.
    Failed {
        /// The attempt that showed it.
        attempt: AttemptId,
    },
    /// Nobody wants it any more. Final.
    Canceled,
}

/// Who has a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The attempt that fences what the agent sends.
    pub attempt: AttemptId,
    /// The agent.
    pub agent: Name,
}

/// What happens to a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// The planner gave it to an agent.
    Allocated(Lease),
    /// The agent of an attempt that was given up came back with it.
    Readopted(Lease),
    /// The agent started the builder.
    Started(AttemptId),
    /// The agent has the outputs.
    Built(AttemptId),
    /// The outputs are verified and durable.
    Committed(AttemptId),
    /// The build failed.
    Failed(AttemptId),
    /// The attempt ended, and the build is tried again.
    GivenBack {
        /// The attempt that ended.
        attempt: AttemptId,
        /// When to try again; at once when absent.
        until: Option<Timestamp>,
    },
    /// The time it was deferred to has come.
    Due,
    /// Nobody wants it any more.
    Canceled,
    /// Somebody wants it tried again although it was over.
    Retried,
}

/// Whose fault it was that an attempt ended and the build is tried again. Both are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The machine's, the network's, ours: the build was not found to fail.
    Infrastructure,
    /// The build failed.
    Build,
}

/// That somebody holds a build back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Who.
    pub by: Name,
    /// Since when.
    pub since: Timestamp,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a build that is {state} cannot be {event:?}")]
pub struct IllegalEvent {
    /// The state's word.
    pub state: &'static str,
    /// The event.
    pub event: BuildEvent,
}

/// Returns the state that follows from an event.
///
/// # Errors
/// [`IllegalEvent`] when the event does not belong to the state or comes from an attempt that does
/// not hold the lease; the caller counts it as stale and changes nothing.
pub fn next_state(state: &BuildState, event: BuildEvent) -> Result<BuildState, IllegalEvent> {
    use BuildState as S;
    let holder = state.lease().map(|lease| lease.attempt);
    let held_by = |attempt: AttemptId| holder == Some(attempt);
    Ok(match (state, event) {
        (S::Queued, BuildEvent::Allocated(lease))
        | (S::Queued | S::Deferred { .. }, BuildEvent::Readopted(lease)) => S::Allocated(lease),
        (S::Allocated(lease), BuildEvent::Started(by)) if held_by(by) => S::Building(lease.clone()),
        (S::Allocated(lease) | S::Building(lease), BuildEvent::Built(by)) if held_by(by) => {
            S::Receiving(lease.clone())
        }
        (S::Receiving(_), BuildEvent::Committed(by)) if held_by(by) => S::Succeeded { attempt: by },
        (S::Allocated(_) | S::Building(_), BuildEvent::Failed(by)) if held_by(by) => {
            S::Failed { attempt: by }
        }
        (
            S::Allocated(_) | S::Building(_) | S::Receiving(_),
            BuildEvent::GivenBack { attempt, until },
        ) if held_by(attempt) => match until {
            Some(until) => S::Deferred { until },
            None => S::Queued,
        },
        (S::Deferred { .. }, BuildEvent::Due)
        | (S::Failed { .. } | S::Canceled, BuildEvent::Retried) => S::Queued,
        (
            S::Deferred { .. } | S::Queued | S::Allocated(_) | S::Building(_) | S::Receiving(_),
            BuildEvent::Canceled,
        ) => S::Canceled,
        (state, event) => return Err(IllegalEvent { state: state.word(), event }),
    })
}

impl BuildState {
    /// Returns the word that the database keeps.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Deferred { .. } => "deferred",
            Self::Queued => "queued",
            Self::Allocated(_) => "allocated",
            Self::Building(_) => "building",
            Self::Receiving(_) => "receiving",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Returns who has the build, while an attempt is alive.
    #[must_use]
    pub const fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Allocated(lease) | Self::Building(lease) | Self::Receiving(lease) => Some(lease),
            Self::Deferred { .. }
            | Self::Queued
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::Canceled => None,
        }
    }

    /// Returns the attempt that has the build or ended it.
    #[must_use]
    pub const fn attempt(&self) -> Option<AttemptId> {
        match self {
            Self::Allocated(lease) | Self::Building(lease) | Self::Receiving(lease) => {
                Some(lease.attempt)
            }
            Self::Succeeded { attempt } | Self::Failed { attempt } => Some(*attempt),
            Self::Deferred { .. } | Self::Queued | Self::Canceled => None,
        }
    }

    /// Tells whether nothing but an explicit act changes it any more.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Succeeded { .. } | Self::Failed { .. } | Self::Canceled)
    }
}

/// A state as commands print it: `queued` is resolved by what its derivation waits for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ShownState {
    /// Not before a given time.
    Deferred,
    /// An input is not there yet.
    Waiting,
    /// The next free agent that can, takes it.
    Ready,
    /// An input failed, or an input of an input.
    Blocked,
    /// Somebody holds it back, and nothing else is in its way for good.
    Held,
    /// Given to an agent.
    Allocated,
    /// Being built.
    Building,
    /// Being sent to the coordinator.
    Receiving,
    /// Built, verified, committed.
    Succeeded,
    /// Failed.
    Failed,
    /// Canceled.
    Canceled,
}

impl ShownState {
    /// All of them, in the order of a build's life.
    pub const ALL: [Self; 11] = [
        Self::Deferred,
        Self::Waiting,
        Self::Ready,
        Self::Blocked,
        Self::Held,
        Self::Allocated,
        Self::Building,
        Self::Receiving,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
    ];

    /// Returns the printed word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Blocked => "blocked",
            Self::Held => "held",
            Self::Allocated => "allocated",
            Self::Building => "building",
            Self::Receiving => "receiving",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// Reads a printed word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }

    /// Tells whether a waited-for build in this state is over: final, or blocked, which nothing
    /// automatic undoes.
    #[must_use]
    pub const fn ends_a_wait(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled | Self::Blocked)
    }
}

impl fmt::Display for ShownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(byte: u8) -> Lease {
        Lease { attempt: AttemptId::from_bytes([byte; 16]), agent: "amber".parse().unwrap() }
    }

    #[test]
    fn a_build_goes_its_way() {
        let mine = lease(1).attempt;
        let mut state = BuildState::Queued;
        for (event, word) in [
            (BuildEvent::Allocated(lease(1)), "allocated"),
            (BuildEvent::Started(mine), "building"),
            (BuildEvent::Built(mine), "receiving"),
            (BuildEvent::Committed(mine), "succeeded"),
        ] {
            state = next_state(&state, event).unwrap();
            assert_eq!(state.word(), word);
        }
        assert!(state.is_final());
    }

    #[test]
    fn an_attempt_without_the_lease_changes_nothing() {
        let stale = lease(2).attempt;
        for state in [
            BuildState::Allocated(lease(1)),
            BuildState::Building(lease(1)),
            BuildState::Receiving(lease(1)),
        ] {
            for event in [
                BuildEvent::Started(stale),
                BuildEvent::Built(stale),
                BuildEvent::Committed(stale),
                BuildEvent::Failed(stale),
                BuildEvent::GivenBack { attempt: stale, until: None },
            ] {
                assert!(next_state(&state, event).is_err());
            }
        }
    }

    #[test]
    fn a_final_state_stays() {
        let mine = lease(1).attempt;
        for state in [
            BuildState::Succeeded { attempt: mine },
            BuildState::Failed { attempt: mine },
            BuildState::Canceled,
        ] {
            for event in [
                BuildEvent::Allocated(lease(1)),
                BuildEvent::Readopted(lease(1)),
                BuildEvent::Started(mine),
                BuildEvent::Built(mine),
                BuildEvent::Committed(mine),
                BuildEvent::Failed(mine),
                BuildEvent::GivenBack { attempt: mine, until: None },
                BuildEvent::Due,
                BuildEvent::Canceled,
            ] {
                assert!(next_state(&state, event).is_err());
            }
        }
    }

    #[test]
    fn an_infrastructure_end_is_never_a_failure() {
        let mine = lease(1).attempt;
        let later = Timestamp::from_ms(5);
        for state in [BuildState::Building(lease(1)), BuildState::Receiving(lease(1))] {
            let back = BuildEvent::GivenBack { attempt: mine, until: None };
            assert_eq!(next_state(&state, back), Ok(BuildState::Queued));
            let back = BuildEvent::GivenBack { attempt: mine, until: Some(later) };
            assert_eq!(next_state(&state, back), Ok(BuildState::Deferred { until: later }));
        }
    }

    #[test]
    fn only_what_nobody_has_is_readopted() {
        let back = || BuildEvent::Readopted(lease(1));
        for state in [BuildState::Queued, BuildState::Deferred { until: Timestamp::from_ms(5) }] {
            assert_eq!(next_state(&state, back()), Ok(BuildState::Allocated(lease(1))));
        }
        for state in [
            BuildState::Allocated(lease(2)),
            BuildState::Building(lease(2)),
            BuildState::Receiving(lease(2)),
        ] {
            assert!(next_state(&state, back()).is_err());
        }
    }

    #[test]
    fn every_printed_word_reads_back() {
        for state in ShownState::ALL {
            assert_eq!(ShownState::parse(state.word()), Some(state));
        }
        assert_eq!(ShownState::parse("queued"), None);
    }
}
