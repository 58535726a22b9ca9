//! Who takes builds just now, and who does not.

use super::Engine;
use crate::core::agent::{Capacity, SessionId};

impl Engine {
    /// An agent wants to run so many builds at a time. What an old session still had under way, or
    /// one that was refused, changes nothing.
    pub(super) fn note_capacity(&mut self, session: SessionId, slots: u32, reason: Option<String>) {
        let mut agents = self.agents.values_mut();
        let Some(agent) = agents.find(|agent| agent.session() == Some(session)) else { return };
        agent.capacity = if slots < agent.abilities.slots {
            Capacity { slots, reason }
        } else {
            Capacity::whole(&agent.abilities)
        };
    }

    /// Returns why the coordinator cannot take results in now; absent when it can.
    #[must_use]
    pub fn intake_closed(&self) -> Option<&str> {
        self.intake_closed.as_deref()
    }
}
