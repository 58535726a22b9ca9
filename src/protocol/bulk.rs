//! The bulk messages: derivations and inputs down, nars up.
//!
//! A bulk channel carries one exchange at a time: the agent asks or offers, the coordinator
//! answers with one or more messages. Bytes travel in `bin` chunks between an explicit begin and
//! an explicit end with length and hash, because a dead connection looks like a clean end.

use crate::core::{
    hash::Sha256,
    id::AttemptId,
    path_info::PathInfo,
    store_path::{StoreDir, StorePath},
};
use bytes::Bytes;

/// The longest chunk of bytes in one message.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// How many outputs one offer may have. The most in 71,817 real Guix derivations is 9.
pub const OFFERED_OUTPUTS_MAX: usize = 256;
/// How many paths one page of an answer holds: 1,000 records of 400 bytes stay well below a frame.
pub const PATHS_PER_PAGE: usize = 1_000;
/// How many references all paths of one page may have together, for the same reason.
pub const REFERENCES_PER_PAGE: usize = 5_000;

/// What an agent says on a bulk channel.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BulkFromAgent {
    /// Asks for the derivation of an attempt and what is known of its inputs. Answered by
    /// `derivation` chunks, `inputs` pages and `end`.
    Prepare {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Asks for the stored nar of a path, from `offset` bytes of its compressed file on. Answered
    /// by `nar`, chunks of `data` and `end`.
    Fetch {
        /// The path, one that an `inputs` page named as held.
        path: StorePath,
        /// How many bytes of the file the agent already has.
        offset: u64,
    },
    /// Offers all outputs of a finished attempt. Answered by `plan`.
    Offer {
        /// The attempt.
        attempt: AttemptId,
        /// All outputs of the derivation.
        outputs: Vec<OfferedOutput>,
    },
    /// Bytes of the compressed nar of the output that the plan asks for next.
    Data {
        /// At most [`CHUNK_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// The end of that output's bytes. After the last output the answer is `committed` or
    /// `refused`.
    End {
        /// SHA-256 of the whole compressed file, of which `data` carried the part behind the
        /// agreed offset.
        file_hash: Sha256,
    },
    /// Asks for something signed, to see whether the machine's daemon believes it. Answered by
    /// `probe`.
    Probe {
        /// The store that the signed path is to be in.
        store_dir: StoreDir,
    },
}

/// What the coordinator says on a bulk channel.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BulkToAgent {
    /// A piece of the text of the attempt's derivation.
    Derivation {
        /// At most [`CHUNK_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// A page of inputs, references before the paths that refer to them.
    Inputs {
        /// Paths whose nars the coordinator holds: the inputs and all they refer to.
        held: Vec<PathInfo>,
        /// Inputs that the coordinator does not hold: the agent must have them or substitute them.
        not_held: Vec<StorePath>,
    },
    /// The facts of the nar whose bytes follow.
    Nar {
        /// What the nar must turn out to be.
        info: PathInfo,
        /// How its bytes are compressed: `zstd`.
        compression: String,
        /// The length of the compressed file, in bytes.
        file_bytes: u64,
    },
    /// Bytes of the compressed file.
    Data {
        /// At most [`CHUNK_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// The answer is complete.
    End {},
    /// For each offered output, in the order of the offer, what is to be sent.
    Plan {
        /// One answer per offered output.
        outputs: Vec<OutputPlan>,
    },
    /// A path that exists nowhere yet, signed as published paths are.
    Probe {
        /// The coordinator's wall clock, in milliseconds since the epoch.
        wall_ms: i64,
        /// Its public signing key, as `trusted-public-keys` has it.
        signing_key: String,
        /// The path, without references; without signatures where this store's are not made.
        info: PathInfo,
        /// The uncompressed nar of the path, a small file.
        nar: Bytes,
    },
    /// All outputs are verified and durable together.
    Committed {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The request cannot be met; the channel stays usable for another one.
    Refused {
        /// What kind of refusal it is: what the agent does next follows from it.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
}

/// One output of an offer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OfferedOutput {
    /// The output's name in the derivation, such as `out`.
    pub name: String,
    /// What its nar is.
    pub info: PathInfo,
    /// How its bytes are compressed: `zstd`.
    pub compression: String,
    /// The length of the compressed file, in bytes.
    pub file_bytes: u64,
    /// SHA-256 of the compressed file.
    pub file_hash: Sha256,
}

/// What the coordinator wants of one offered output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputPlan {
    /// Nothing: it holds a nar with the same hash.
    Held,
    /// The file from this offset on.
    Send {
        /// Bytes of the same file that the coordinator already has durably.
        offset: u64,
    },
}

/// What an agent does after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The attempt is not this agent's any more: drop it.
    Stale,
    /// What was sent is wrong and would be wrong again: drop it, the end is recorded.
    Rejected,
    /// The coordinator cannot now (disk, restart): try again later.
    TryLater,
    /// There is no such thing.
    NotHeld,
}
