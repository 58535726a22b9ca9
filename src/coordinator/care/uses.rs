//! Which nars are used, so that those go first that nobody has wanted for long.

use super::super::engine_thread::{EngineGone, EngineHandle};
use crate::core::{
    care::CareChange, change::Change, engine::Input, store_path::PathHash, time::Timestamp,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// How many paths are remembered until they are written down; of more, the use is forgotten.
const PATHS_MAX: usize = 200_000;
/// How many are written down together.
const PATHS_PER_COMMIT: usize = 1_000;

/// The nars that were used since that was last written down; cheap to clone.
///
/// A process that dies forgets up to an hour of them, which matters little when nars are kept for
/// days after their last use.
#[derive(Debug, Clone, Default)]
pub struct Uses(Arc<Mutex<BTreeSet<PathHash>>>);

impl Uses {
    /// Notes that nars are used.
    pub fn note(&self, paths: impl Iterator<Item = PathHash>) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = PATHS_MAX.saturating_sub(noted.len());
        noted.extend(paths.take(room));
    }

    /// Writes down what was noted.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn write_down(&self, engine: &EngineHandle, at: Timestamp) -> Result<(), EngineGone> {
        let noted = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let noted: Vec<PathHash> = noted.into_iter().collect();
        for paths in noted.chunks(PATHS_PER_COMMIT) {
            let used = Change::Care(CareChange::Used { paths: paths.to_vec(), at });
            engine
                .request(move |token| Input::Record { token: Some(token), changes: vec![used] })
                .await?;
        }
        Ok(())
    }
}
