//! Reads the configuration again, on a farm that goes on.

use super::super::{Coordinator, engine_thread::EngineGone};
use crate::{
    config::{ConfigError, Differences},
    core::engine::Input,
};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be used.
    #[error("nothing was changed")]
    Config(#[from] ConfigError),
    /// The process is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
}

/// Reads `steading.toml` again. Returns what differs: of that, what can hold at once does. Keys need
/// no such call, they hold within a second.
///
/// # Errors
/// [`ReloadError`]: what held before still does.
pub async fn reload(coordinator: &Coordinator) -> Result<Differences, ReloadError> {
    // Two reloads at once would have to agree on what held before.
    let mut config = coordinator.config.lock().await;
    let read = config.reread()?;
    let differences = config.differences(&read);
    let settings = read.settings();
    coordinator.engine.request(move |token| Input::Configure { token, settings }).await?;
    config.adopt_settings(&read);
    Ok(differences)
}
