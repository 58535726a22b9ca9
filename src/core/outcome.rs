//! How an attempt ends.
//!
//! Three kinds are kept apart for good: the build *failed* (the derivation's fault: final,
//! propagates to dependents), the *infrastructure* failed (the machine's, network's or our fault:
//! never final, never propagates), and it was *canceled*.

use super::store_path::StorePath;

/// What becomes of the outputs of a build that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputPolicy {
    /// Their nars are taken, verified and published; an output is available when it is held.
    #[default]
    Take,
    /// Their hashes and sizes are noted on the agent's word and no nar is taken; an output is
    /// available when an attempt that succeeded has made it. For farms that only test.
    Record,
}

/// A failure of the build itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildFailure {
    /// The builder exited with this status, which was not 0.
    Exit(i32),
    /// The builder was ended by this signal.
    Signal(i32),
    /// It ran longer than its limit.
    Timeout,
    /// It printed nothing for longer than its limit.
    Silent,
    /// It was ended for want of memory, as its cgroup tells.
    OutOfMemory,
    /// The builder exited with 0 but left this output out.
    NoOutput(String),
    /// The content of a fixed output is not the promised one.
    HashMismatch {
        /// What the derivation promises, as the builder's side prints it.
        expected: String,
        /// What was built.
        actual: String,
    },
    /// The daemon refused the outputs for another reason (forbidden references, wrong kind of
    /// file), in its own words.
    OutputRejected(String),
}

/// Why an agent could not begin a build. Never a failure of the build.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetupFailure {
    /// Neither the coordinator nor the machine's substituters have these paths.
    MissingInputs(Vec<StorePath>),
    /// There is too little free space on the machine.
    DiskFull,
    /// An output is already there and could not be removed.
    OutputsPresent(StorePath),
    /// The daemon did not answer, in the words of the error.
    DaemonUnreachable(String),
    /// The daemon or the kernel refused (trust, system, features, sandbox), in its own words.
    Refused(String),
    /// The attempt's process ended without a result: killed, or the machine restarted.
    AttemptLost(String),
}

/// What an agent reports of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All outputs exist on the agent; their nars are described in the offer that follows.
    Built,
    /// The build failed.
    Failed(BuildFailure),
    /// The agent could not begin, or its daemon went away meanwhile.
    SetupFailed(SetupFailure),
    /// The attempt was ended because the coordinator asked for it.
    Canceled,
}

impl Outcome {
    /// Returns the outcome with words of at most so many bytes each, and with at most so many
    /// missing paths.
    #[must_use]
    pub fn limited(mut self, words_bytes_max: usize, paths_max: usize) -> Self {
        let cut = |words: &mut String| words.truncate(words.floor_char_boundary(words_bytes_max));
        match &mut self {
            Self::Failed(BuildFailure::HashMismatch { expected, actual }) => {
                cut(expected);
                cut(actual);
            }
            Self::Failed(BuildFailure::NoOutput(words) | BuildFailure::OutputRejected(words))
            | Self::SetupFailed(
                SetupFailure::DaemonUnreachable(words)
                | SetupFailure::Refused(words)
                | SetupFailure::AttemptLost(words),
            ) => cut(words),
            Self::SetupFailed(SetupFailure::MissingInputs(paths)) => paths.truncate(paths_max),
            Self::Failed(
                BuildFailure::Exit(_)
                | BuildFailure::Signal(_)
                | BuildFailure::Timeout
                | BuildFailure::Silent
                | BuildFailure::OutOfMemory,
            )
            | Self::SetupFailed(SetupFailure::DiskFull | SetupFailure::OutputsPresent(_))
            | Self::Built
            | Self::Canceled => {}
        }
        self
    }
}

/// Why an attempt is over, as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptEnd {
    /// Its outputs are committed.
    Succeeded,
    /// The build failed.
    Failed(BuildFailure),
    /// The agent could not begin.
    SetupFailed(SetupFailure),
    /// The agent was not heard of for a whole lease, or came back without the attempt.
    AgentLost,
    /// The agent was to be empty by a deadline, so that the build went to another.
    Drained,
    /// The outputs could not be delivered, for this reason.
    UploadFailed(String),
    /// The outputs were delivered and refused by verification, for this reason.
    Rejected(String),
    /// The build was canceled.
    Canceled,
}

impl AttemptEnd {
    /// Returns the word that commands print and the database keeps.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed(failure) => failure.word(),
            Self::SetupFailed(failure) => failure.word(),
            Self::AgentLost => "agent-lost",
            Self::Drained => "drained",
            Self::UploadFailed(_) => "upload-failed",
            Self::Rejected(_) => "rejected",
            Self::Canceled => "canceled",
        }
    }
}

/// What the end of an attempt says of the machine it was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineVerdict {
    /// It built, or found out that the build fails.
    Sound,
    /// It could not do what others probably can.
    AtFault,
    /// Nothing.
    Unknown,
}

impl AttemptEnd {
    /// Returns what the end says of the machine.
    ///
    /// A lost agent says nothing: one loss of power ends all attempts of a good machine. Neither do
    /// missing inputs, which are missing for everybody.
    #[must_use]
    pub const fn machine_verdict(&self) -> MachineVerdict {
        match self {
            Self::Succeeded | Self::Failed(_) => MachineVerdict::Sound,
            Self::SetupFailed(SetupFailure::MissingInputs(_))
            | Self::AgentLost
            | Self::Drained
            | Self::Canceled => MachineVerdict::Unknown,
            Self::SetupFailed(
                SetupFailure::DiskFull
                | SetupFailure::OutputsPresent(_)
                | SetupFailure::DaemonUnreachable(_)
                | SetupFailure::Refused(_)
                | SetupFailure::AttemptLost(_),
            )
            | Self::UploadFailed(_)
            | Self::Rejected(_) => MachineVerdict::AtFault,
        }
    }

    /// Returns the word, and the words that whoever reported the end gave it: `disk-full`,
    /// `rejected: the hash is another`.
    #[must_use]
    pub fn brief(&self) -> String {
        let word = self.word();
        match self {
            Self::SetupFailed(
                SetupFailure::DaemonUnreachable(words)
                | SetupFailure::Refused(words)
                | SetupFailure::AttemptLost(words),
            )
            | Self::UploadFailed(words)
            | Self::Rejected(words) => format!("{word}: {words}"),
            Self::SetupFailed(SetupFailure::OutputsPresent(path)) => format!("{word}: {path}"),
            Self::SetupFailed(SetupFailure::MissingInputs(_) | SetupFailure::DiskFull)
            | Self::Succeeded
            | Self::Failed(_)
            | Self::AgentLost
            | Self::Drained
            | Self::Canceled => word.to_owned(),
        }
    }
}

impl BuildFailure {
    /// Returns the word that commands print and the database keeps.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::Signal(_) => "signal",
            Self::Timeout => "timeout",
            Self::Silent => "silent",
            Self::OutOfMemory => "oom",
            Self::NoOutput(_) => "no-output",
            Self::HashMismatch { .. } => "hash-mismatch",
            Self::OutputRejected(_) => "output-rejected",
        }
    }
}

impl SetupFailure {
    /// Returns the word that commands print and the database keeps.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::MissingInputs(_) => "missing-inputs",
            Self::DiskFull => "disk-full",
            Self::OutputsPresent(_) => "outputs-present",
            Self::DaemonUnreachable(_) => "daemon-unreachable",
            Self::Refused(_) => "setup-refused",
            Self::AttemptLost(_) => "attempt-lost",
        }
    }
}
