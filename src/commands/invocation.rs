//! One command line on its way.

use super::{error::CommandError, output::Output, table};
use crate::{
    coordinator::Coordinator,
    core::{change::Change, engine::Input},
    ssh::{ChannelReader, Principal},
};
use std::{net::SocketAddr, sync::Arc};

/// The longest line in the audit, in characters; longer ones are cut.
const AUDIT_CHARACTERS_MAX: usize = 4_096;

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
}

impl Invocation {
    /// Returns a variable of the session; an empty one counts as absent.
    pub(super) fn env(&self, name: &str) -> Option<&str> {
        let found = self.env.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Notes who changes something. It is durable before anything that is asked of the engine
    /// behind it.
    pub(super) async fn audit(&self) -> Result<(), CommandError> {
        let mut line = table::plain(&self.line);
        if let Some((end, _)) = line.char_indices().nth(AUDIT_CHARACTERS_MAX) {
            line.truncate(end);
            line.push('…');
        }
        let change = Change::Audit {
            fingerprint: self.principal.fingerprint.clone(),
            principal: self.principal.name.clone(),
            line,
            at: self.coordinator.clock.now().wall,
        };
        let input = Input::Record { token: None, changes: vec![change] };
        Ok(self.coordinator.engine.tell(input).await?)
    }
}
