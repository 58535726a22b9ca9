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
use std::time::Duration;

/// The longest chunk of bytes in one message.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// How many outputs one offer may have. The most in 71,817 real Guix derivations is 9.
pub const OFFERED_OUTPUTS_MAX: usize = 256;
/// How many paths one page of an answer holds: 1,000 records of 400 bytes stay well below a frame.
pub const PATHS_PER_PAGE: usize = 1_000;
/// How many references all paths of one page may have together, for the same reason.
pub const REFERENCES_PER_PAGE: usize = 5_000;
/// How long all files of an offer may be together to travel inside it, in bytes. Most outputs of a
/// distribution are larger; those that are not would cost a round trip each.
pub const EAGER_BYTES_MAX: u64 = 64 * 1024;
/// How many offers with all their files may be unanswered on one channel.
pub const OFFERS_AHEAD_MAX: u32 = 1_024;
/// How often the coordinator gives a sign of life while it owes an answer to an offer that asked
/// for signs.
pub const SIGN_INTERVAL: Duration = Duration::from_secs(10);
/// How long a transfer may make no progress before either end cuts the connection: three signs.
pub const STALL_MAX: Duration = Duration::from_secs(30);

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
        /// Of which file it has them. When the coordinator's file is another one, its bytes come
        /// from the beginning.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file_hash: Option<Sha256>,
        /// Whether the facts are to bear a signature over the path's export as well, which is what
        /// a Guix daemon takes in. `wait` may come before the answer then.
        #[serde(default, skip_serializing_if = "is_false")]
        export: bool,
    },
    /// Asks for the texts of derivations. Answered for each, in their order, by `derivation` chunks
    /// and `end`; `refused` ends the whole answer.
    Texts {
        /// At most [`PATHS_PER_PAGE`] derivations.
        paths: Vec<StorePath>,
    },
    /// Asks what is known of paths and all they refer to. Answered by `inputs` pages and `end`.
    About {
        /// At most [`PATHS_PER_PAGE`] paths that are no derivations.
        paths: Vec<StorePath>,
    },
    /// Offers all outputs of a finished attempt. Answered by `plan`, or at once by `committed` or
    /// `refused` when the offer has all files in it.
    Offer {
        /// The attempt.
        attempt: AttemptId,
        /// All outputs of the derivation.
        outputs: Vec<OfferedOutput>,
        /// The whole compressed files of all outputs, in their order, when they have at most
        /// [`EAGER_BYTES_MAX`] bytes together; else nothing.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        eager: Vec<Bytes>,
        /// Whether the agent understands `wait` and `taken`.
        #[serde(default, skip_serializing_if = "is_false")]
        signs: bool,
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
        /// How its bytes are compressed: `zstd`, or `none` when the file is the nar.
        compression: String,
        /// The length of the compressed file, in bytes.
        file_bytes: u64,
        /// SHA-256 of the compressed file: what a partial file must be of to be gone on with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file_hash: Option<Sha256>,
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
        /// Whether a `wait` or `taken` follows every [`SIGN_INTERVAL`] until the verdict.
        #[serde(default, skip_serializing_if = "is_false")]
        signs: bool,
    },
    /// A sign of life: the coordinator is at it, or the offer waits for its turn. Nothing is asked
    /// of the agent.
    Wait {},
    /// A sign of life while bytes are received.
    Taken {
        /// How many bytes came on the channel since the plan, framing included.
        bytes: u64,
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
        /// How many offers with all their files in them may be unanswered on this channel from
        /// here on; 0 means the same as 1.
        #[serde(default, skip_serializing_if = "is_zero")]
        ahead: u32,
    },
    /// The request cannot be met; the channel stays usable for another one.
    Refused {
        /// What kind of refusal it is: what the agent does next follows from it.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// One output of an offer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OfferedOutput {
    /// The output's name in the derivation, such as `out`.
    pub name: String,
    /// What its nar is.
    pub info: PathInfo,
    /// How its bytes are compressed: `zstd`, or `none` when the file is the nar.
    pub compression: String,
    /// The length of the file, in bytes.
    pub file_bytes: u64,
    /// SHA-256 of the file; the nar's own hash when it is not compressed.
    pub file_hash: Sha256,
}

/// What the coordinator wants of one offered output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputPlan {
    /// Nothing: it holds a nar of the path, or has seen enough different ones.
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
