//! The agent's state directory: who it is, and where its spools are.
//!
//! `instance` holds the id that tells this installation from another that uses the same key;
//! `attempts/ATTEMPT-ID/` are the spools; `format` is the number of the form that they have;
//! `inputs/` holds inputs on their way; `lock` keeps a second agent out.

use super::{AgentError, spool};
use crate::{
    core::id::InstanceId,
    telemetry::{self, Clock},
};
use rustix::fs::{FlockOperation, flock};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The newest form of the spools that this program reads, and the one that it writes.
///
/// A form that an older program cannot read gets the next number. Fields that are added with a
/// default are no new form, so that a running attempt survives an upgrade and the way back.
const FORMAT: u32 = 1;

/// The opened state directory. It is locked for as long as this value lives.
#[derive(Debug)]
pub(super) struct State {
    /// Which installation this is.
    pub(super) instance: InstanceId,
    dir: PathBuf,
    lock: fs_err::File,
}

impl Drop for State {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is just being started has a copy of it,
        // and with it the lock, until it runs its program.
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!(%error, "the lock of the state directory ends with this process only");
        }
    }
}

impl State {
    /// Returns the directory of the spools.
    pub(super) fn attempts_dir(&self) -> PathBuf {
        self.dir.join("attempts")
    }

    /// Returns the directory of inputs on their way.
    pub(super) fn inputs_dir(&self) -> PathBuf {
        self.dir.join("inputs")
    }
}

/// Opens the state directory and makes what is missing in it. Blocks on the disk.
///
/// # Errors
/// [`AgentError::StateDir`], [`AgentError::InUse`], [`AgentError::Instance`].
pub(super) fn open(dir: &Path, clock: Clock) -> Result<State, AgentError> {
    let unusable = |source| AgentError::StateDir { path: dir.to_owned(), source };
    fs_err::create_dir_all(dir.join("attempts")).map_err(unusable)?;
    let lock = fs_err::File::create(dir.join("lock")).map_err(unusable)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(AgentError::InUse(dir.to_owned())),
        Err(error) => return Err(unusable(error.into())),
    }
    check_format(dir)?;
    let instance = match read_instance(dir)? {
        Some(instance) => instance,
        None => make_instance(dir, clock).map_err(unusable)?,
    };
    // The spools' paths are given to processes that may have another working directory.
    let dir = fs_err::canonicalize(dir).map_err(unusable)?;
    Ok(State { instance, dir, lock })
}

/// Makes sure that nothing newer than this program wrote the spools. Directories from before there
/// were numbers have the first form.
fn check_format(dir: &Path) -> Result<(), AgentError> {
    let path = dir.join("format");
    let unusable = |source| AgentError::StateDir { path: dir.to_owned(), source };
    let found = match fs_err::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(number) => Some(number),
            Err(_) => {
                return Err(AgentError::Format {
                    path,
                    found: telemetry::printable(text.trim().as_bytes()),
                });
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(unusable(source)),
    };
    match found {
        Some(FORMAT) => Ok(()),
        Some(newer) if newer > FORMAT => Err(AgentError::Format { path, found: newer.to_string() }),
        Some(_) | None => {
            spool::write_durably(dir, "format", format!("{FORMAT}\n").as_bytes()).map_err(unusable)
        }
    }
}

fn read_instance(dir: &Path) -> Result<Option<InstanceId>, AgentError> {
    let path = dir.join("instance");
    match fs_err::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(instance) => Ok(Some(instance)),
            Err(_) => Err(AgentError::Instance(path)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AgentError::StateDir { path: dir.to_owned(), source }),
    }
}

fn make_instance(dir: &Path, clock: Clock) -> io::Result<InstanceId> {
    let mut random = [0u8; 10];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let instance = InstanceId::at(clock.now().wall, random);
    spool::write_durably(dir, "instance", format!("{instance}\n").as_bytes())?;
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), Clock::start()).unwrap().instance;
        let second = open(dir.path(), Clock::start()).unwrap().instance;
        assert_eq!(first, second);
    }

    #[test]
    fn a_second_agent_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), Clock::start()).unwrap();
        assert!(matches!(open(dir.path(), Clock::start()), Err(AgentError::InUse(_))));
        drop(first);
        assert!(open(dir.path(), Clock::start()).is_ok());
    }

    #[test]
    fn what_a_newer_program_left_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), Clock::start()).unwrap());
        let format = dir.path().join("format");
        assert_eq!(fs_err::read_to_string(&format).unwrap(), "1\n");
        for found in ["2\n", "99999999999999999999", "one"] {
            fs_err::write(&format, found).unwrap();
            let error = open(dir.path(), Clock::start()).unwrap_err();
            assert!(matches!(error, AgentError::Format { .. }), "{error:?}");
            assert!(error.to_string().contains("start the steading that wrote"), "{error}");
            assert_eq!(fs_err::read_to_string(&format).unwrap(), found);
        }
    }

    #[test]
    fn what_was_left_before_there_were_numbers_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), Clock::start()).unwrap().instance;
        fs_err::remove_file(dir.path().join("format")).unwrap();
        assert_eq!(open(dir.path(), Clock::start()).unwrap().instance, first);
        assert_eq!(fs_err::read_to_string(dir.path().join("format")).unwrap(), "1\n");
    }

    #[test]
    fn a_changed_instance_file_is_told_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("instance"), "me").unwrap();
        assert!(matches!(open(dir.path(), Clock::start()), Err(AgentError::Instance(_))));
        assert_eq!(fs_err::read(dir.path().join("instance")).unwrap(), b"me");
    }
}
