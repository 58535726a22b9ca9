//! How a command ends.

use crate::{
    coordinator::{
        engine_thread::EngineGone, enrollment::EnrollmentError, files::OpenError,
        submission::SubmissionError,
    },
    depot::DepotError,
    ssh::{Role, WriteError},
    store::StoreError,
    telemetry,
};
use std::{error::Error, io};

/// An answer was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// What was asked is done.
    Done,
    /// What was asked is done, and the answer is negative.
    Negative,
}

impl Exit {
    pub(super) const fn status(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Negative => 1,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The words make no command.
    #[error("{0}")]
    Usage(String),
    /// Something that was named does not exist.
    #[error("{0}")]
    NoSuch(String),
    /// The verb needs more than the key gives.
    #[error("your key is {} {have}; {verb} needs {needed}", article(*.have))]
    Role {
        /// The key's role.
        have: Role,
        /// The verb.
        verb: &'static str,
        /// The least role that may.
        needed: Role,
    },
    /// The verb changes builds, and the key may not change any.
    #[error(
        "your key is {} {have}; {verb} needs operator, or the submitter’s own key",
        article(*.have)
    )]
    NeitherOwn {
        /// The key's role.
        have: Role,
        /// The verb.
        verb: &'static str,
    },
    /// The key is known nowhere.
    #[error("your key is not known here: ask for that with ‘ssh enroll@COORDINATOR enroll’")]
    Stranger,
    /// The key may use the verb, but not on this.
    #[error("{0}")]
    NotPermitted(String),
    /// A limit or bad input.
    #[error("{0}")]
    Refused(String),
    /// Nobody's fault for long.
    #[error("{0}")]
    TryAgain(String),
    /// An export stream was not taken.
    #[error("the stream was not taken")]
    Submission(#[source] Box<SubmissionError>),
    /// The process is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// A log cannot be read.
    #[error("the log cannot be read")]
    Log(#[source] io::Error),
    /// The client is gone, or does not read.
    #[error(transparent)]
    Gone(#[from] WriteError),
}

impl From<OpenError> for CommandError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(error) => Self::Store(error),
            OpenError::Depot(error) => Self::Depot(error),
        }
    }
}

impl From<EnrollmentError> for CommandError {
    fn from(error: EnrollmentError) -> Self {
        let text = telemetry::chain(&error);
        match error {
            EnrollmentError::NoToken | EnrollmentError::Spent(_) | EnrollmentError::Removed => {
                Self::NotPermitted(text)
            }
            EnrollmentError::NotWaiting(_) | EnrollmentError::NoSuchToken(_) => Self::NoSuch(text),
            EnrollmentError::TooManyTokens
            | EnrollmentError::Reserved(_)
            | EnrollmentError::Taken { .. }
            | EnrollmentError::Key(_) => Self::Refused(text),
            EnrollmentError::Guessing | EnrollmentError::ListFull(_) | EnrollmentError::File(_) => {
                Self::TryAgain(text)
            }
            EnrollmentError::Stopping(gone) => Self::Stopping(gone),
            EnrollmentError::Store(error) => Self::Store(error),
        }
    }
}

impl From<SubmissionError> for CommandError {
    fn from(error: SubmissionError) -> Self {
        Self::Submission(Box::new(error))
    }
}

/// The article before the name of a role.
const fn article(role: Role) -> &'static str {
    match role {
        Role::Agent | Role::Operator | Role::Admin => "an",
        Role::Stranger | Role::Viewer | Role::Submitter => "a",
    }
}

impl CommandError {
    /// Returns the exit status, as the README lists them.
    pub(super) fn status(&self) -> u32 {
        match self {
            Self::Usage(_) => 2,
            Self::NoSuch(_) => 3,
            Self::Role { .. }
            | Self::NeitherOwn { .. }
            | Self::Stranger
            | Self::NotPermitted(_) => 4,
            Self::Refused(_) => 5,
            Self::Submission(error) if is_refusal(error) => 5,
            Self::Submission(_)
            | Self::TryAgain(_)
            | Self::Stopping(_)
            | Self::Store(_)
            | Self::Depot(_)
            | Self::Log(_)
            | Self::Gone(_) => 75,
        }
    }

    /// Returns what the client is told: everything that the causes say, in one line.
    pub(super) fn text(&self) -> String {
        telemetry::chain(self)
    }

    /// Notes what somebody on this side has to know.
    pub(super) fn log(&self, line: &str) {
        match self {
            Self::Store(_) | Self::Depot(_) | Self::Log(_) => {
                let reason = telemetry::chain(self as &dyn Error);
                tracing::error!(line, reason, "a command failed");
            }
            Self::Submission(error) if !is_refusal(error) => {
                let reason = telemetry::chain(&**error);
                tracing::warn!(line, reason, "a submission was given up");
            }
            Self::Usage(_)
            | Self::NoSuch(_)
            | Self::Role { .. }
            | Self::NeitherOwn { .. }
            | Self::Stranger
            | Self::NotPermitted(_)
            | Self::Refused(_)
            | Self::TryAgain(_)
            | Self::Submission(_)
            | Self::Stopping(_)
            | Self::Gone(_) => {}
        }
    }
}

/// Tells whether the sender of a stream has to change it.
const fn is_refusal(error: &SubmissionError) -> bool {
    match error {
        SubmissionError::Intake(intake) => !intake.is_fault(),
        SubmissionError::Lost
        | SubmissionError::Acl(_)
        | SubmissionError::Depot(_)
        | SubmissionError::Store(_)
        | SubmissionError::Stopping(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_role_is_named_with_the_one_that_is_needed() {
        let error =
            CommandError::Role { have: Role::Viewer, verb: "submit", needed: Role::Submitter };
        assert_eq!(error.text(), "your key is a viewer; submit needs submitter");
        assert_eq!(error.status(), 4);
        let error = CommandError::NeitherOwn { have: Role::Viewer, verb: "cancel" };
        let text = "your key is a viewer; cancel needs operator, or the submitter’s own key";
        assert_eq!(error.text(), text);
        assert_eq!(error.status(), 4);
    }
}
