//! Why agents take no builds, in words.

use super::{
    table::{self, count},
    times,
};
use crate::core::{
    agent::{Capacity, Obstacle, Suspension, SuspensionKind},
    engine::AgentView,
    plan::NotTaken,
};

/// Returns why an agent does not take one build now.
pub(super) fn not_taken(reason: &NotTaken) -> String {
    match reason {
        NotTaken::Unable(words) => table::plain(words),
        NotTaken::Not(obstacle) => words(obstacle),
        NotTaken::Avoided => {
            "its last attempt ended without a result; other agents are asked first".to_owned()
        }
        NotTaken::Free => "it could take it".to_owned(),
    }
}

/// Returns why an agent takes no build at all now, or fewer than it has slots; `None` when it does
/// as much as it can.
pub(super) fn limit(view: &AgentView) -> Option<String> {
    match &view.obstacle {
        Some(
            obstacle @ (Obstacle::Suspended { .. }
            | Obstacle::Away { .. }
            | Obstacle::Sending { .. }),
        ) => Some(words(obstacle)),
        Some(Obstacle::Limited(_) | Obstacle::Full { .. }) | None => {
            (view.capacity.slots < view.abilities.slots).then(|| limited(&view.capacity))
        }
    }
}

/// Returns the word for how an agent is, as tables and JSON have it.
pub(super) fn state(view: &AgentView) -> &'static str {
    match &view.suspension {
        Some(suspension) => {
            suspended(suspension, view.running.is_empty() && view.sending.is_empty())
        }
        None if view.connected => "connected",
        None => "away",
    }
}

fn words(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Suspended { suspension, is_empty } => {
            format!("{} {}", suspended(suspension, *is_empty), decision(suspension))
        }
        Obstacle::Away { since } => format!("away since {}", times::shown(*since)),
        Obstacle::Limited(capacity) => limited(capacity),
        Obstacle::Sending { builds } => {
            format!("it has to send the outputs of {} first", count(*builds, "build"))
        }
        Obstacle::Full { slots } => match slots {
            0 => "it has no slots".to_owned(),
            slots => format!("all of its {} are taken", count(*slots as usize, "slot")),
        },
    }
}

fn limited(capacity: &Capacity) -> String {
    let most = match capacity.slots {
        0 => "it takes no builds just now".to_owned(),
        slots => format!("it takes at most {} just now", count(slots as usize, "build")),
    };
    match &capacity.reason {
        Some(reason) => format!("{most}: {}", table::plain(reason)),
        None => format!("{most}; it does not say why"),
    }
}

/// Returns the word for a decision about an agent.
fn suspended(suspension: &Suspension, is_empty: bool) -> &'static str {
    match suspension.kind {
        SuspensionKind::Draining if is_empty => "drained",
        kind => kind.word(),
    }
}

/// Returns who decided something, until when and why, to follow the word for it.
fn decision(suspension: &Suspension) -> String {
    let who = match &suspension.by {
        Some(by) => format!("by {by}"),
        None => format!("since {}", times::shown(suspension.since)),
    };
    let until = match (suspension.until.map(times::shown), suspension.kind) {
        (None, _) => String::new(),
        (Some(until), SuspensionKind::Draining) => format!(", to be empty by {until}"),
        (Some(until), SuspensionKind::Paused | SuspensionKind::Quarantined) => {
            format!(" until {until}")
        }
    };
    match &suspension.reason {
        Some(reason) => format!("{who}{until}: {}", table::plain(reason)),
        None => format!("{who}{until}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Timestamp;

    fn suspension(kind: SuspensionKind, by: Option<&str>, until: Option<i64>) -> Suspension {
        Suspension {
            kind,
            reason: Some("a new\ndisk".to_owned()),
            by: by.map(|name| name.parse().unwrap()),
            since: Timestamp::from_ms(0),
            until: until.map(Timestamp::from_ms),
        }
    }

    #[test]
    fn every_decision_says_by_whom_until_when_and_why() {
        let told = |kind, by, until, is_empty| {
            words(&Obstacle::Suspended { suspension: suspension(kind, by, until), is_empty })
        };
        let (paused, draining) = (SuspensionKind::Paused, SuspensionKind::Draining);
        assert_eq!(told(paused, Some("olga"), None, true), "paused by olga: a new\\ndisk");
        assert_eq!(
            told(paused, Some("olga"), Some(1_000), true),
            "paused by olga until 1970-01-01 00:00:01Z: a new\\ndisk"
        );
        assert_eq!(
            told(draining, Some("olga"), Some(1_000), false),
            "draining by olga, to be empty by 1970-01-01 00:00:01Z: a new\\ndisk"
        );
        assert_eq!(told(draining, Some("olga"), None, true), "drained by olga: a new\\ndisk");
        assert_eq!(
            told(SuspensionKind::Quarantined, None, None, true),
            "quarantined since 1970-01-01 00:00:00Z: a new\\ndisk"
        );
    }

    #[test]
    fn an_agent_that_wants_less_is_quoted() {
        let told = |slots, reason: Option<&str>| {
            words(&Obstacle::Limited(Capacity { slots, reason: reason.map(str::to_owned) }))
        };
        assert_eq!(
            told(0, Some("the disk is full")),
            "it takes no builds just now: the disk is full"
        );
        assert_eq!(told(1, None), "it takes at most 1 build just now; it does not say why");
    }
}
