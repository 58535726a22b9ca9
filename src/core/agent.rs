//! What the coordinator knows of an agent.

use super::{
    arena::Ix,
    engine::Build,
    id::{InstanceId, Name},
    plan::ClassIx,
    store_path::StoreDir,
    time::{Monotonic, Timestamp},
};
use std::collections::BTreeSet;

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
}

/// How many builds an agent wants to run at a time just now. Said anew in each session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// How many; never more than the slots of its abilities.
    pub slots: u32,
    /// Why they are fewer than its slots, in the agent's words.
    pub reason: Option<String>,
}

impl Capacity {
    /// Returns what counts until the agent says otherwise: all its slots.
    #[must_use]
    pub const fn whole(abilities: &Abilities) -> Self {
        Self { slots: abilities.slots, reason: None }
    }
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

    /// Returns how many more builds it can take now.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        match self.state {
            AgentState::Connected { .. } => {
                (self.capacity.slots as usize).saturating_sub(self.running.len())
            }
            AgentState::Away { .. } => 0,
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
