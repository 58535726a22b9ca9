//! The real guix, which does all that is not done here.

use super::{GuixProgramError, NAME, settings::Settings};
use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
};

/// What the real guix is called.
const REAL: &str = "guix";

/// Becomes the real guix with these words; returns only when that cannot be.
pub(super) fn become_it(settings: &Settings, words: &[OsString]) -> GuixProgramError {
    GuixProgramError::Real(command(settings, words).exec())
}

/// Returns the command that runs the real guix with these words.
pub(super) fn command(settings: &Settings, words: &[OsString]) -> Command {
    let mut command = Command::new(program(settings));
    // It would call this program again, where it starts a daemon or asks for substitutes.
    command.args(words).env_remove("GUIX");
    command
}

/// Returns the path of the real guix: as set, or beside the name under which this program was
/// called, or what `PATH` has.
fn program(settings: &Settings) -> PathBuf {
    if let Some(program) = &settings.guix {
        return program.clone();
    }
    let called_as = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let is_ours = called_as.file_name() == Some(OsStr::new(NAME));
    let beside = called_as.parent().map(|dir| dir.join(REAL));
    match beside {
        Some(beside) if is_ours && beside.is_absolute() && beside.exists() => beside,
        Some(_) | None => PathBuf::from(REAL),
    }
}
