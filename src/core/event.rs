//! What is told of the farm, to those who follow it and to hooks.
//!
//! Most events follow from the changes of a step alone ([`told`]), so that none can be forgotten
//! where a build moves; what no row says is a change of its own, [`Change::Event`]. Both become
//! durable with the step, each under the next cursor.
//!
//! There is no event for what is derived: that fifty thousand builds are blocked is one event of
//! the build that failed, with their number. Neither is there one for a build that was given to an
//! agent and not begun: the attempts of the build have that.

use super::{
    attempt::AttemptState,
    build::{Blame, BuildState, Lease},
    change::{Change, Verdict},
    id::{AttemptId, BuildId, Name},
    outcome::{AttemptEnd, SetupFailure},
    store_path::PathHash,
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// How many bytes of a reason an event has.
pub const EVENT_REASON_BYTES_MAX: usize = 1_024;
/// How many of the paths that an agent missed an event names.
pub const EVENT_PATHS_MAX: usize = 32;

/// The place of an event among all: the first is 1, and each has the number behind the one before
/// it, whatever happens in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
#[serde(transparent)]
pub struct Cursor(pub i64);

impl Cursor {
    /// Returns the place so many further on.
    #[must_use]
    pub const fn plus(self, places: i64) -> Self {
        Self(self.0.saturating_add(places))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A text that is no cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is the number of an event, and 0 stands before the first")]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        match text.parse() {
            Ok(number) if number >= 0 => Ok(Self(number)),
            Ok(_) | Err(_) => Err(InvalidCursor),
        }
    }
}

/// What happened. The first six are called as the Guix Build Coordinator calls them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A build was asked for, or is made because something that was asked for needs it.
    BuildSubmitted,
    /// An agent began building.
    BuildStarted,
    /// All outputs of a build are committed.
    BuildSuccess,
    /// A build failed for good.
    BuildFailure,
    /// Nobody wants a build any more.
    BuildCanceled,
    /// An agent could not begin because inputs were found nowhere.
    BuildMissingInputs,
    /// An attempt ended otherwise without a result, and the build is tried again.
    BuildDeferred,
    /// A build that was over was opened again, because somebody wants that.
    BuildRetried,
    /// Builds cannot be begun because this one failed.
    BuildBlocked,
    /// Somebody submitted builds: one event behind those of all its builds.
    Submission,
    /// A path is visible in the published tree.
    OutputPublished,
    /// An agent's session began.
    AgentConnected,
    /// An agent's session ended.
    AgentAway,
    /// Somebody paused an agent.
    AgentPaused,
    /// Somebody drains an agent.
    AgentDraining,
    /// The coordinator gives an agent no more builds, because too many ended through its fault.
    AgentQuarantined,
    /// An agent gets builds again.
    AgentResumed,
    /// An agent was forgotten.
    AgentRemoved,
    /// The coordinator takes nothing new, as when its disk is full.
    IntakeClosed,
    /// It takes everything again.
    IntakeOpened,
    /// The coordinator started: whatever agents were connected, are not until they say so.
    CoordinatorStarted,
}

impl EventKind {
    /// All kinds. The database keeps the place in this list, so it only ever grows at its end.
    pub const ALL: [Self; 21] = [
        Self::BuildSubmitted,
        Self::BuildStarted,
        Self::BuildSuccess,
        Self::BuildFailure,
        Self::BuildCanceled,
        Self::BuildMissingInputs,
        Self::BuildDeferred,
        Self::BuildRetried,
        Self::BuildBlocked,
        Self::Submission,
        Self::OutputPublished,
        Self::AgentConnected,
        Self::AgentAway,
        Self::AgentPaused,
        Self::AgentDraining,
        Self::AgentQuarantined,
        Self::AgentResumed,
        Self::AgentRemoved,
        Self::IntakeClosed,
        Self::IntakeOpened,
        Self::CoordinatorStarted,
    ];

    /// Returns the word that is printed, and that folders of hooks are called by.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::BuildSubmitted => "build-submitted",
            Self::BuildStarted => "build-started",
            Self::BuildSuccess => "build-success",
            Self::BuildFailure => "build-failure",
            Self::BuildCanceled => "build-canceled",
            Self::BuildMissingInputs => "build-missing-inputs",
            Self::BuildDeferred => "build-deferred",
            Self::BuildRetried => "build-retried",
            Self::BuildBlocked => "build-blocked",
            Self::Submission => "submission",
            Self::OutputPublished => "output-published",
            Self::AgentConnected => "agent-connected",
            Self::AgentAway => "agent-away",
            Self::AgentPaused => "agent-paused",
            Self::AgentDraining => "agent-draining",
            Self::AgentQuarantined => "agent-quarantined",
            Self::AgentResumed => "agent-resumed",
            Self::AgentRemoved => "agent-removed",
            Self::IntakeClosed => "intake-closed",
            Self::IntakeOpened => "intake-opened",
            Self::CoordinatorStarted => "coordinator-started",
        }
    }

    /// Returns the number that the database keeps.
    #[must_use]
    pub fn number(self) -> i64 {
        let place = Self::ALL.iter().position(|kind| *kind == self);
        place.and_then(|place| i64::try_from(place).ok()).unwrap_or(i64::MAX)
    }

    /// Returns the kind with this number.
    #[must_use]
    pub fn of_number(number: i64) -> Option<Self> {
        usize::try_from(number).ok().and_then(|place| Self::ALL.get(place)).copied()
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A text that names no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no such event: the events are {}", EventKind::ALL.map(EventKind::word).join(", "))]
pub struct InvalidKind;

impl FromStr for EventKind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        Self::ALL.into_iter().find(|kind| kind.word() == text).ok_or(InvalidKind)
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A build.
    Build(BuildId),
    /// A store path.
    Path(PathHash),
    /// The farm, or the agent that the event names.
    Farm,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Timestamp,
    /// About what.
    pub subject: Subject,
    /// The attempt in which it happened, or that ended by it.
    pub attempt: Option<AttemptId>,
    /// The agent of that attempt, or the one that it is about.
    pub agent: Option<Name>,
    /// What else there is to say.
    pub detail: Option<Box<Detail>>,
}

/// What else there is to say of an event: the fields of `detail`, of which each event has few.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Detail {
    /// How the attempt ended: a word such as `exit` or `agent-lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<&'static str>,
    /// Why, in words for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the attempt found the build failing (`build`), or was given up for other reasons
    /// (`infrastructure`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blame: Option<&'static str>,
    /// Until when, in milliseconds since 1970: a pause, a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// Paths that were found nowhere, at most [`EVENT_PATHS_MAX`] of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// How many builds are concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builds: Option<usize>,
    /// How many of them nobody named: something that was named needs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implied: Option<usize>,
    /// Who did it; absent where the coordinator did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Name>,
    /// Whether the outputs differ from what was held; only ever true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disputed: Option<bool>,
}

impl Event {
    /// Returns an event that is about the farm as a whole.
    #[must_use]
    pub const fn new(kind: EventKind, at: Timestamp) -> Self {
        Self { kind, at, subject: Subject::Farm, attempt: None, agent: None, detail: None }
    }

    /// Says which build it is about.
    #[must_use]
    pub const fn of_build(mut self, build: BuildId) -> Self {
        self.subject = Subject::Build(build);
        self
    }

    /// Says which agent it is about.
    #[must_use]
    pub fn of_agent(mut self, agent: Name) -> Self {
        self.agent = Some(agent);
        self
    }

    /// Says more.
    #[must_use]
    pub fn with(mut self, detail: Detail) -> Self {
        self.detail = Some(Box::new(detail));
        self
    }

    fn of_path(mut self, path: PathHash) -> Self {
        self.subject = Subject::Path(path);
        self
    }

    fn of_lease(mut self, lease: &Lease) -> Self {
        self.attempt = Some(lease.attempt);
        self.agent = Some(lease.agent.clone());
        self
    }
}

/// Returns what the changes of one transaction tell, in their order.
#[must_use]
pub fn told(changes: &[Change]) -> Vec<Event> {
    let mut teller = Teller::default();
    for change in changes {
        teller.hear(change);
    }
    teller.events
}

/// What was heard so far of one transaction.
#[derive(Default)]
struct Teller<'a> {
    events: Vec<Event>,
    /// How attempts ended, whose builds move behind that.
    ends: BTreeMap<AttemptId, &'a AttemptEnd>,
    disputed: BTreeSet<AttemptId>,
}

impl<'a> Teller<'a> {
    fn hear(&mut self, change: &'a Change) {
        match change {
            Change::Build(record) => {
                let event = Event::new(EventKind::BuildSubmitted, record.submitted);
                self.events.push(event.of_build(record.id));
            }
            Change::BuildMoved { build, from, to, blame, at } => {
                let event = self.moved(from, to, *blame, *at);
                self.events.extend(event.map(|event| event.of_build(*build)));
            }
            Change::AttemptMoved { attempt, to: AttemptState::Ended(end), .. } => {
                self.ends.insert(*attempt, end);
            }
            Change::Outputs { attempt, verdict: Verdict::Disputed, .. } => {
                self.disputed.insert(*attempt);
            }
            Change::Published { path, at } => {
                self.events.push(Event::new(EventKind::OutputPublished, *at).of_path(*path));
            }
            Change::Event(event) => self.events.push(Event::clone(event)),
            Change::Derivation(_)
            | Change::Nar(_)
            | Change::UnwrittenNar(_)
            | Change::NarsWritten { .. }
            | Change::Signed { .. }
            | Change::BuildAmended { .. }
            | Change::Attempt { .. }
            | Change::AttemptMoved { .. }
            | Change::AttemptReadopted { .. }
            | Change::DisputedNar { .. }
            | Change::Reported { .. }
            | Change::Outputs { .. }
            | Change::Agent { .. }
            | Change::AgentSuspended { .. }
            | Change::AgentFailures { .. }
            | Change::Account { .. }
            | Change::AgentRemoved { .. }
            | Change::Missing { .. }
            | Change::EventsForgotten { .. }
            | Change::Hook(_)
            | Change::Care(_)
            | Change::Audit(_)
            | Change::Enrollment(_) => {}
        }
    }

    /// Returns what the move of a build tells.
    fn moved(
        &self,
        from: &BuildState,
        to: &BuildState,
        blame: Option<Blame>,
        at: Timestamp,
    ) -> Option<Event> {
        let event = |kind| {
            let event = Event::new(kind, at);
            match from.lease() {
                Some(lease) => event.of_lease(lease),
                None => event,
            }
        };
        match to {
            BuildState::Allocated(_) | BuildState::Receiving(_) => None,
            BuildState::Building(_) => Some(event(EventKind::BuildStarted)),
            BuildState::Succeeded { attempt } => {
                let event = event(EventKind::BuildSuccess);
                Some(if self.disputed.contains(attempt) {
                    event.with(Detail { disputed: Some(true), ..Detail::default() })
                } else {
                    event
                })
            }
            BuildState::Failed { .. } => {
                Some(event(EventKind::BuildFailure).with(self.end_of(from)))
            }
            BuildState::Canceled => Some(event(EventKind::BuildCanceled)),
            BuildState::Queued | BuildState::Deferred { .. } => match from {
                BuildState::Allocated(_) | BuildState::Building(_) | BuildState::Receiving(_) => {
                    let detail = self.end_of(from);
                    Some(if detail.missing.is_empty() {
                        let until_ms = until_ms(to);
                        let blame = blame.map(blame_word);
                        event(EventKind::BuildDeferred).with(Detail { blame, until_ms, ..detail })
                    } else {
                        let until_ms = until_ms(to);
                        event(EventKind::BuildMissingInputs).with(Detail { until_ms, ..detail })
                    })
                }
                BuildState::Failed { .. } | BuildState::Canceled => {
                    Some(event(EventKind::BuildRetried))
                }
                // Its time has come, which was told when it was deferred.
                BuildState::Deferred { .. } | BuildState::Queued | BuildState::Succeeded { .. } => {
                    None
                }
            },
        }
    }

    /// Returns how the attempt ended that held a build.
    fn end_of(&self, from: &BuildState) -> Detail {
        let Some(end) = from.lease().and_then(|lease| self.ends.get(&lease.attempt)) else {
            return Detail::default();
        };
        let missing = match end {
            AttemptEnd::SetupFailed(SetupFailure::MissingInputs(paths)) => {
                paths.iter().take(EVENT_PATHS_MAX).map(ToString::to_string).collect()
            }
            _ => Vec::new(),
        };
        let mut reason = end.brief();
        reason.truncate(reason.floor_char_boundary(EVENT_REASON_BYTES_MAX));
        Detail { end: Some(end.word()), reason: Some(reason), missing, ..Detail::default() }
    }
}

const fn blame_word(blame: Blame) -> &'static str {
    match blame {
        Blame::Infrastructure => "infrastructure",
        Blame::Build => "build",
    }
}

const fn until_ms(state: &BuildState) -> Option<i64> {
    match state {
        BuildState::Deferred { until } => Some(until.as_ms()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::BuildFailure;

    const AT: Timestamp = Timestamp::from_ms(1_700_000_000_000);

    fn lease() -> Lease {
        Lease { attempt: AttemptId::from_bytes([3; 16]), agent: "amber".parse().unwrap() }
    }

    fn moves(from: BuildState, to: BuildState) -> Change {
        let blame = from.lease().map(|_| Blame::Infrastructure);
        Change::BuildMoved { build: BuildId::from_bytes([2; 16]), from, to, blame, at: AT }
    }

    fn ends(end: AttemptEnd) -> Change {
        let to = AttemptState::Ended(end);
        Change::AttemptMoved { attempt: lease().attempt, to, at: AT }
    }

    fn kinds(changes: &[Change]) -> Vec<&'static str> {
        told(changes).iter().map(|event| event.kind.word()).collect()
    }

    #[test]
    fn every_kind_has_a_number_and_a_word_of_its_own() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::of_number(kind.number()), Some(kind));
            assert_eq!(kind.word().parse(), Ok(kind));
            let written = serde_json::to_value(kind).unwrap();
            assert_eq!(written, kind.word());
        }
        // What the database has is never numbered anew.
        assert_eq!(EventKind::BuildMissingInputs.number(), 5);
        assert_eq!(EventKind::CoordinatorStarted.number(), 20);
        assert_eq!(EventKind::of_number(21), None);
        assert!("build-failed".parse::<EventKind>().is_err());
    }

    #[test]
    fn moves_of_builds_are_told_by_what_they_mean() {
        let attempt = lease().attempt;
        let deferred = BuildState::Deferred { until: AT };
        for (from, to, kind) in [
            (BuildState::Queued, BuildState::Allocated(lease()), None),
            (BuildState::Allocated(lease()), BuildState::Building(lease()), Some("build-started")),
            (BuildState::Building(lease()), BuildState::Receiving(lease()), None),
            (
                BuildState::Receiving(lease()),
                BuildState::Succeeded { attempt },
                Some("build-success"),
            ),
            (BuildState::Building(lease()), BuildState::Failed { attempt }, Some("build-failure")),
            (BuildState::Queued, BuildState::Canceled, Some("build-canceled")),
            (BuildState::Building(lease()), deferred.clone(), Some("build-deferred")),
            (deferred, BuildState::Queued, None),
            (BuildState::Failed { attempt }, BuildState::Queued, Some("build-retried")),
            (BuildState::Canceled, BuildState::Queued, Some("build-retried")),
        ] {
            let words = kinds(&[moves(from.clone(), to.clone())]);
            assert_eq!(words, Vec::from_iter(kind), "{} to {}", from.word(), to.word());
        }
    }

    #[test]
    fn how_an_attempt_ended_is_told_with_what_became_of_its_build() {
        let attempt = lease().attempt;
        let failed = ends(AttemptEnd::Failed(BuildFailure::Exit(7)));
        let events =
            told(&[failed, moves(BuildState::Building(lease()), BuildState::Failed { attempt })]);
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((event.attempt, event.agent.as_ref()), (Some(attempt), Some(&lease().agent)));
        assert_eq!(event.detail.as_ref().unwrap().end, Some("exit"));

        let path = "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x";
        let missing = SetupFailure::MissingInputs(vec![path.parse().unwrap(); 40]);
        let events = told(&[
            ends(AttemptEnd::SetupFailed(missing)),
            moves(BuildState::Allocated(lease()), BuildState::Queued),
        ]);
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(event.kind, EventKind::BuildMissingInputs);
        assert_eq!(event.detail.as_ref().unwrap().missing, vec![path; EVENT_PATHS_MAX]);
    }
}
