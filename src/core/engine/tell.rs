//! Tells what no other change tells: see [`crate::core::event`].

use super::{Engine, Turn};
use crate::core::{
    agent::{Suspension, SuspensionKind},
    change::Change,
    event::{Detail, Event, EventKind},
    id::{BuildId, Name},
};

impl Turn<'_> {
    /// Tells something of the farm or of one of its builds.
    pub(super) fn tell(&mut self, event: Event) {
        self.out.changes.push(Change::Event(Box::new(event)));
    }

    /// Tells something of an agent.
    pub(super) fn tell_of(&mut self, agent: &Name, kind: EventKind) {
        self.tell(Event::new(kind, self.now.wall).of_agent(agent.clone()));
    }

    /// Tells that builds cannot be begun because one failed. However many they are, this is all.
    pub(super) fn tell_blocked(&mut self, failed: BuildId, builds: usize) {
        if builds > 0 {
            let detail = Detail { builds: Some(builds), ..Detail::default() };
            let event = Event::new(EventKind::BuildBlocked, self.now.wall);
            self.tell(event.of_build(failed).with(detail));
        }
    }

    /// Tells what was decided about an agent.
    pub(super) fn tell_decision(&mut self, agent: &Name, suspension: Option<&Suspension>) {
        let Some(suspension) = suspension else {
            return self.tell_of(agent, EventKind::AgentResumed);
        };
        let kind = match suspension.kind {
            SuspensionKind::Paused => EventKind::AgentPaused,
            SuspensionKind::Draining => EventKind::AgentDraining,
            SuspensionKind::Quarantined => EventKind::AgentQuarantined,
        };
        let detail = Detail {
            reason: suspension.reason.clone(),
            by: suspension.by.clone(),
            until_ms: suspension.until.map(crate::core::time::Timestamp::as_ms),
            ..Detail::default()
        };
        self.tell(Event::new(kind, self.now.wall).of_agent(agent.clone()).with(detail));
    }

    /// Tells that builds were submitted, behind all of them.
    pub(super) fn tell_submission(&mut self, by: &Name, builds: usize, implied: usize) {
        if builds > 0 {
            let detail = Detail {
                by: Some(by.clone()),
                builds: Some(builds),
                implied: Some(implied),
                ..Detail::default()
            };
            self.tell(Event::new(EventKind::Submission, self.now.wall).with(detail));
        }
    }
}

impl Engine {
    /// Notes why results cannot be taken in now, or that they can again.
    pub(super) fn close_intake(&mut self, turn: &mut Turn<'_>, reason: Option<String>) {
        match (&self.intake_closed, &reason) {
            (None, Some(reason)) => {
                let detail = Detail { reason: Some(reason.clone()), ..Detail::default() };
                let event = Event::new(EventKind::IntakeClosed, turn.now.wall);
                turn.tell(event.with(detail));
            }
            (Some(_), None) => turn.tell(Event::new(EventKind::IntakeOpened, turn.now.wall)),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.intake_closed = reason;
    }
}
