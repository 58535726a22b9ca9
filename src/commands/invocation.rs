//! One command line on its way.

use super::{error::CommandError, output::Output};
use crate::{
    coordinator::{
        Coordinator,
        audit::{Act, Actor},
    },
    ssh::{ChannelReader, Principal},
};
use std::{net::SocketAddr, sync::Arc};

/// One command line on its way: what was said, by whom, and where the answer goes.
#[derive(Debug)]
pub(super) struct Invocation {
    /// Everything that can be asked or told.
    pub(super) coordinator: Coordinator,
    /// Who says it.
    pub(super) principal: Arc<Principal>,
    /// From where.
    pub(super) peer: SocketAddr,
    /// Variables of the session.
    pub(super) env: Vec<(String, String)>,
    /// The words, joined again so that they would split the same.
    pub(super) line: String,
    /// Standard input.
    pub(super) input: ChannelReader,
    /// Standard output and standard error.
    pub(super) output: Output,
    /// What it changes, as the audit has it.
    pub(super) act: Option<Act>,
}

impl Invocation {
    /// Returns a variable of the session; an empty one counts as absent.
    pub(super) fn env(&self, name: &str) -> Option<&str> {
        let found = self.env.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Notes who changes something, once. It is durable before anything that is asked of the engine
    /// behind it.
    pub(super) async fn audit(&mut self) -> Result<(), CommandError> {
        if self.act.is_none() {
            let actor = Actor::new(&self.principal, self.peer);
            self.act = Some(self.coordinator.audit.begin(&actor, &self.line).await?);
        }
        Ok(())
    }
}
