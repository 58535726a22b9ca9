//! What the coordinator knows of an agent.

use super::{
    arena::Ix,
    engine::Build,
    id::{BuildId, InstanceId, Name},
    plan::ClassIx,
    store_path::StoreDir,
    time::{Monotonic, Timestamp},
};
use std::collections::{BTreeMap, BTreeSet};

/// One control session of an agent; counts up, never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What an agent can build, already cut down to what its key allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Abilities {
    /// The store directory its builds go to.
    pub store_dir: StoreDir,
    /// The kind of its builder: `nix`, `guix` or `direct`.
    pub dialect: String,
    /// Systems it builds natively.
    pub systems: Vec<String>,
    /// Systems it builds through emulation.
    pub emulated_systems: Vec<String>,
    /// What it offers to `requiredSystemFeatures`.
    pub features: Vec<String>,
    /// How many builds it runs at a time.
    pub slots: u32,
    /// What its operators say of it: of one name, what its key says before what it says itself.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// How many builds an agent wants to run at a time just now. Said anew in each session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capacity {
    /// How many; never more than the slots of its abilities.
    pub slots: u32,
    /// Why they are fewer than its slots, in the agent's words.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Capacity {
    /// Returns what counts until the agent says otherwise: all its slots.
    #[must_use]
    pub const fn whole(abilities: &Abilities) -> Self {
        Self { slots: abilities.slots, reason: None }
    }
}

/// Why it was decided that an agent gets no new builds. What it has goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// Which decision it is.
    pub kind: SuspensionKind,
    /// Why, in words for people; at most [`SUSPENSION_REASON_BYTES_MAX`] bytes.
    pub reason: Option<String>,
    /// Who decided it; absent when the coordinator did by itself.
    pub by: Option<Name>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends, or when a draining agent must be empty; absent: when somebody says so.
    pub until: Option<Timestamp>,
}

/// Of how many builds an agent may owe the outputs before it gets no more; more only where it has
/// more slots. Who says that everything is built and sends nothing would otherwise get it all.
pub const SENDING_MAX: usize = 64;

/// The longest reason of a [`Suspension`], in bytes.
pub const SUSPENSION_REASON_BYTES_MAX: usize = 512;

/// Which decision a [`Suspension`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SuspensionKind {
    /// Somebody paused it, perhaps for some time.
    Paused,
    /// It shall become empty, perhaps by some time, and stay so.
    Draining,
    /// Too many builds in a row ended through its fault.
    Quarantined,
}

impl SuspensionKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Paused, Self::Draining, Self::Quarantined];

    /// Returns the word that the database keeps.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Why an agent takes no build now, whichever build it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// It was decided so.
    Suspended {
        /// The decision.
        suspension: Suspension,
        /// Whether it has nothing left to do.
        is_empty: bool,
    },
    /// It has no session.
    Away {
        /// When its last session ended.
        since: Timestamp,
    },
    /// It has as many builds as it wants just now, which are fewer than its slots.
    Limited(Capacity),
    /// It has not yet sent the outputs of so many builds that it gets no more.
    Sending {
        /// How many.
        builds: usize,
    },
    /// All its slots are taken.
    Full {
        /// How many it has.
        slots: u32,
    },
}

/// Whether an agent can be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It has a control session.
    Connected {
        /// Which one.
        session: SessionId,
    },
    /// It has none. Its attempts live on until its lease runs out.
    Away {
        /// Since when; at a start of the coordinator that is the start.
        since: Monotonic,
    },
}

/// What happens to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentEvent {
    /// It opened a control session.
    Joined {
        /// Which one.
        session: SessionId,
    },
    /// A control session ended.
    Left {
        /// Which one.
        session: SessionId,
        /// When.
        at: Monotonic,
    },
}

/// Returns the state that follows. A session that was already replaced leaves without effect.
#[must_use]
pub fn next_state(state: AgentState, event: AgentEvent) -> AgentState {
    match (state, event) {
        (_, AgentEvent::Joined { session }) => AgentState::Connected { session },
        (AgentState::Connected { session: current }, AgentEvent::Left { session, at })
            if current == session =>
        {
            AgentState::Away { since: at }
        }
        (state, AgentEvent::Left { .. }) => state,
    }
}

/// An agent, as the engine keeps it. Only those that were ever seen exist.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its name in the keydir.
    pub name: Name,
    /// Which installation it is.
    pub instance: InstanceId,
    /// Whether it can be spoken to.
    pub state: AgentState,
    /// What it said of itself last.
    pub abilities: Abilities,
    /// How many builds it wants to run at a time; what it said in its last session.
    pub capacity: Capacity,
    /// Why it was decided that it gets no new builds, if it was.
    pub suspension: Option<Suspension>,
    /// The builds that ended through its fault since the last that did not, each once. At most as
    /// many as a quarantine can take.
    pub failures: Vec<BuildId>,
    /// When its last session began or ended.
    pub last_seen: Timestamp,
    /// The classes of builds it can take; follows from `abilities`.
    pub classes: Vec<ClassIx>,
    /// Builds that take a slot: allocated or building.
    pub running: BTreeSet<Ix<Build>>,
    /// Builds whose outputs it is sending.
    pub sending: BTreeSet<Ix<Build>>,
}

impl Agent {
    /// Returns the session, if there is one.
    #[must_use]
    pub const fn session(&self) -> Option<SessionId> {
        match self.state {
            AgentState::Connected { session } => Some(session),
            AgentState::Away { .. } => None,
        }
    }

    /// Tells whether it has nothing to do: no build, and no outputs to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.sending.is_empty()
    }

    /// Returns how many more builds it can take now.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        if self.takes_builds() && !self.owes_too_much() {
            (self.capacity.slots as usize).saturating_sub(self.running.len())
        } else {
            0
        }
    }

    /// Tells whether it must send outputs first.
    fn owes_too_much(&self) -> bool {
        self.sending.len() >= SENDING_MAX.max(self.capacity.slots as usize)
    }

    /// Tells whether it takes builds, once it has a free slot.
    #[must_use]
    pub const fn takes_builds(&self) -> bool {
        self.session().is_some() && self.suspension.is_none() && self.capacity.slots > 0
    }

    /// Returns why it takes no build now; `None` when it takes the next one that it can build.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        if let Some(suspension) = &self.suspension {
            let suspension = suspension.clone();
            Some(Obstacle::Suspended { suspension, is_empty: self.is_empty() })
        } else if self.session().is_none() {
            Some(Obstacle::Away { since: self.last_seen })
        } else if self.free_slots() > 0 {
            None
        } else if self.running.len() < self.capacity.slots as usize {
            Some(Obstacle::Sending { builds: self.sending.len() })
        } else if self.capacity.slots < self.abilities.slots {
            Some(Obstacle::Limited(self.capacity.clone()))
        } else {
            Some(Obstacle::Full { slots: self.abilities.slots })
        }
    }

    /// Returns an agent as it is when it is first heard of.
    #[must_use]
    pub fn new(
        name: Name,
        instance: InstanceId,
        abilities: Abilities,
        state: AgentState,
        last_seen: Timestamp,
    ) -> Self {
        Self {
            name,
            instance,
            state,
            capacity: Capacity::whole(&abilities),
            abilities,
            suspension: None,
            failures: Vec::new(),
            last_seen,
            classes: Vec::new(),
            running: BTreeSet::new(),
            sending: BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_current_session_can_take_an_agent_away() {
        let now = Monotonic::from_ms(9);
        let connected = AgentState::Connected { session: SessionId(2) };
        let stale = AgentEvent::Left { session: SessionId(1), at: now };
        assert_eq!(next_state(connected, stale), connected);
        let own = AgentEvent::Left { session: SessionId(2), at: now };
        assert_eq!(next_state(connected, own), AgentState::Away { since: now });
        let away = AgentState::Away { since: Monotonic::from_ms(1) };
        assert_eq!(next_state(away, own), away);
    }
}
