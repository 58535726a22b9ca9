//! The state of a build in as little room as most states need.

use crate::core::build::BuildState;
use std::ops::Deref;

/// A state that takes 8 bytes, and 48 more where it is not [`BuildState::Queued`], as nearly all
/// of a long queue are.
#[derive(Debug, Clone)]
pub struct KeptState(Option<Box<BuildState>>);

impl Deref for KeptState {
    type Target = BuildState;

    fn deref(&self) -> &BuildState {
        self.0.as_deref().unwrap_or(&BuildState::Queued)
    }
}

impl From<BuildState> for KeptState {
    fn from(state: BuildState) -> Self {
        Self((state != BuildState::Queued).then(|| Box::new(state)))
    }
}
