//! The control messages: one enum per direction.

use super::handshake::Hello;
use crate::core::{
    change::OutputRecord,
    id::{AttemptId, BuildId},
    outcome::Outcome,
    store_path::StorePath,
};
use bytes::Bytes;

/// The longest piece of log in one message, in bytes.
pub const LOG_CHUNK_BYTES_MAX: usize = 256 * 1024;

/// The longest reason in a [`FromAgent::Capacity`], in bytes; what is longer is cut by the reader.
pub const CAPACITY_REASON_BYTES_MAX: usize = 512;

/// The longest words in an [`Outcome`], in bytes; what is longer is cut by the reader.
pub const OUTCOME_WORDS_BYTES_MAX: usize = 4_096;

/// How many paths one [`Outcome`] may report missing; what is more is passed over by the reader.
pub const MISSING_INPUTS_MAX: usize = 10_000;

/// What an agent says on its control channel.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromAgent {
    /// The first message of a session.
    Hello(Hello),
    /// The inputs are there and the builder was started.
    Started {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// A piece of the build log.
    Log {
        /// Which attempt.
        attempt: AttemptId,
        /// Where the piece starts in the log, in bytes.
        offset: u64,
        /// The piece, at most [`LOG_CHUNK_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// The attempt is over on the agent; what follows for outputs is an offer on a bulk channel.
    Finished {
        /// Which attempt.
        attempt: AttemptId,
        /// How it ended.
        outcome: Outcome,
        /// The length of the whole log, in bytes.
        log_bytes: u64,
    },
    /// How many builds the agent wants to run at a time from now on. Until it is said in a session,
    /// that is all slots of its [`Hello`].
    Capacity {
        /// How many, at most the slots of its [`Hello`].
        slots: u32,
        /// Why they are fewer than its slots, in words for people: at most
        /// [`CAPACITY_REASON_BYTES_MAX`] bytes. Absent when they are not fewer.
        #[serde(default)]
        reason: Option<String>,
    },
    /// What an attempt made that the welcome asked a report of, instead of its outputs. Since
    /// protocol 2.
    Report {
        /// Which attempt.
        attempt: AttemptId,
        /// All its outputs.
        outputs: Vec<OutputRecord>,
    },
    /// Nothing but a sign of life.
    Heartbeat {},
}

/// What the coordinator says on a control channel.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToAgent {
    /// The answer to an accepted [`Hello`].
    Welcome(Welcome),
    /// The answer to a refused [`Hello`]; the connection is closed behind it.
    Refused {
        /// Why, in words for the agent's operator.
        reason: String,
    },
    /// Build this.
    Allocate(Allocation),
    /// Stop the attempt, forget its outputs and report nothing more of it.
    Cancel {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The log is safe up to here. Advisory: the agent keeps the log until the attempt is over.
    LogReceived {
        /// Which attempt.
        attempt: AttemptId,
        /// Bytes from the start of the log that were received.
        offset: u64,
    },
    /// The attempt's end is durable at the coordinator; its spool may go. Attempts with outputs
    /// are settled on their bulk channel instead, by `committed` or `refused`.
    Settled {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The coordinator is about to stop and expects to be back; keep building and come again.
    Restarting {
        /// When it expects to be back, in milliseconds from now.
        back_in_ms: u64,
    },
    /// Nothing but a sign of life.
    Heartbeat {},
}

/// The coordinator's side of the handshake.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Welcome {
    /// The protocol both ends speak from here on.
    pub protocol: u16,
    /// The coordinator program's version, for people.
    pub version: String,
    /// The coordinator's wall clock, in milliseconds since the epoch.
    pub wall_ms: i64,
    /// Of the held attempts, those to go on with.
    pub keep: Vec<AttemptId>,
    /// Of the held attempts, those to stop and forget.
    pub drop: Vec<AttemptId>,
    /// Of the held attempts, those whose outputs are wanted no more but are to be reported, to be
    /// compared with what others built. Since protocol 2.
    #[serde(default)]
    pub report: Vec<AttemptId>,
}

/// One build given to an agent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Allocation {
    /// The fence of everything the agent sends about it.
    pub attempt: AttemptId,
    /// The build, for people.
    pub build: BuildId,
    /// The derivation; its text comes over a bulk channel.
    pub derivation: StorePath,
    /// The longest it may run, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The longest it may print nothing, in milliseconds.
    pub max_silent_ms: Option<u64>,
}
