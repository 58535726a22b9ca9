//! Cancels what was submitted by a process that was killed.
//!
//! When a client goes away, its daemon kills the process group of `offload` at once, so nothing in
//! there can say that the build is not wanted any more. A process in a group of its own waits for
//! the end of a pipe that the other one holds.

use super::{
    ANSWERS, GuixProgramError, KEEPING,
    farm::{Farm, FarmError},
    remark,
    settings::Settings,
};
use std::{
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitCode, Stdio},
};

/// The tag of a build that goes when the process that submitted it does.
pub(super) const TAG: &str = "guix-offload";
/// This program, also after an upgrade took its file away (proc(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";
/// What is said when there is nothing to cancel any more.
const OVER: &[u8] = b"over\n";

/// The process that waits.
#[derive(Debug)]
pub(super) struct Keeping(Child);

impl Keeping {
    /// Has the builds with this value of [`TAG`] canceled if this process ends before
    /// [`Keeping::over`].
    pub(super) fn start(key: &str) -> Result<Self, FarmError> {
        let mut command = Command::new(THIS_PROGRAM);
        command.args(["guix", KEEPING, key]).process_group(0);
        // The daemon waits for the end of standard error.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().map_err(FarmError::Run)?))
    }

    /// The build is over: nothing is canceled.
    pub(super) fn over(mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            // Where it has gone already, nothing can be canceled any more, either.
            stdin.write_all(OVER).ok();
        }
        self.0.wait().ok();
    }
}

/// Waits, in the process that is kept, for the end of the other one.
pub(super) fn serve(settings: &Settings, key: &str) -> Result<ExitCode, GuixProgramError> {
    // The daemon waits for the end of what it is told there. Without it nothing is missing.
    nix::unistd::close(ANSWERS).ok();
    let mut said = Vec::new();
    io::stdin().read_to_end(&mut said).map_err(GuixProgramError::Daemon)?;
    if said == OVER {
        return Ok(ExitCode::SUCCESS);
    }
    let farm = Farm::new(settings);
    let tag = format!("{TAG}={key}");
    let canceled: Result<Vec<serde_json::Value>, _> =
        farm.persist(|| farm.ask(&["cancel", "--where-tag", &tag], ""));
    match canceled {
        // Status 1: others need it, or it is over.
        Ok(_) | Err(FarmError::NoSuch(_) | FarmError::Refused(_)) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            remark(&format!("the build was not canceled: {}", crate::telemetry::chain(&error)));
            Ok(ExitCode::FAILURE)
        }
    }
}
