//! What a step writes down: rows for the database, in the order they must be applied.

use super::{
    agent::{Abilities, Suspension},
    attempt::AttemptState,
    audit::AuditChange,
    build::{Blame, BuildState, Hold},
    care::CareChange,
    compression::Compression,
    demands::Demands,
    enrollment::EnrollmentChange,
    event::{Cursor, Event},
    hash::Sha256,
    hook::HookChange,
    id::{AttemptId, BuildId, InstanceId, Name},
    path_info::PathInfo,
    plan::Usage,
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use std::sync::Arc;

/// One thing that becomes durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A verified derivation is known.
    Derivation(Arc<DerivationRecord>),
    /// A verified nar is in the depot.
    Nar(Arc<NarRecord>),
    /// The file of a verified nar, which is small: kept in the database until it is in the depot.
    UnwrittenNar(NarFile),
    /// All unwritten nars up to this one are in the depot, durably.
    NarsWritten {
        /// The last of them.
        through: UnwrittenMark,
    },
    /// A nar that was committed without signatures has some now.
    Signed {
        /// Its path.
        path: PathHash,
        /// What vouches for it.
        signatures: Vec<String>,
    },
    /// A build was asked for.
    Build(Box<BuildRecord>),
    /// A build moved.
    BuildMoved {
        /// Which one.
        build: BuildId,
        /// The state it was in: nothing changes when the row says otherwise, and that is a bug.
        from: BuildState,
        /// The state it is in now.
        to: BuildState,
        /// Whose fault it was, when an attempt ended and the build is tried again: that is counted,
        /// and the agent of the attempt is to be avoided.
        blame: Option<Blame>,
        /// When.
        at: Timestamp,
    },
    /// Something of an open build was changed that has nothing to do with how far it is.
    BuildAmended {
        /// Which one.
        build: BuildId,
        /// What.
        amendment: BuildAmendment,
    },
    /// An agent was given a build.
    Attempt {
        /// Which attempt.
        attempt: AttemptId,
        /// Of which build.
        build: BuildId,
        /// By which agent.
        agent: Name,
        /// Whether the agent emulates the system it is for.
        emulated: bool,
        /// When.
        at: Timestamp,
    },
    /// An attempt went on or ended.
    AttemptMoved {
        /// Which one.
        attempt: AttemptId,
        /// The state it is in now.
        to: AttemptState,
        /// When.
        at: Timestamp,
    },
    /// The agent of an attempt that was given up came back with it, and nobody else had the build:
    /// the attempt lives again, as allocated. What it was before stays written down.
    AttemptReadopted {
        /// Which one.
        attempt: AttemptId,
        /// When.
        at: Timestamp,
    },
    /// A verified nar that differs from what is held under its path, or came with one that does: it
    /// is kept beside the others and never published.
    DisputedNar {
        /// The attempt that made it.
        attempt: AttemptId,
        /// What it is.
        nar: Arc<NarRecord>,
    },
    /// What an agent made in an attempt that was not its own any more. Nothing was received; the
    /// hashes are compared with those of what is held, now and when that is committed.
    Reported {
        /// Which attempt. Nothing may be known of it, as after a restore from an older backup.
        attempt: AttemptId,
        /// Who reports.
        agent: Name,
        /// What it says it made.
        outputs: Vec<OutputRecord>,
        /// When.
        at: Timestamp,
    },
    /// The outputs of a successful attempt, all together.
    Outputs {
        /// Which attempt.
        attempt: AttemptId,
        /// What it made.
        outputs: Vec<OutputRecord>,
        /// Whether an output differs from what was already held under the same path.
        verdict: Verdict,
    },
    /// An agent's session began or ended.
    Agent {
        /// Which agent.
        name: Name,
        /// Which installation.
        instance: InstanceId,
        /// What it can build.
        abilities: Abilities,
        /// When.
        at: Timestamp,
    },
    /// It was decided that an agent gets no new builds, or that it does again.
    AgentSuspended {
        /// Which agent.
        name: Name,
        /// The decision; absent when there is none any more.
        suspension: Option<Suspension>,
    },
    /// The builds that ended through an agent's fault since the last that did not.
    AgentFailures {
        /// Which agent.
        name: Name,
        /// Which builds, in order.
        builds: Vec<BuildId>,
    },
    /// What a submitter has used of the farm.
    Account {
        /// Who.
        name: Name,
        /// How much.
        usage: Usage,
    },
    /// An agent is forgotten.
    AgentRemoved {
        /// Which agent.
        name: Name,
    },
    /// An agent could find an output neither here nor anywhere else.
    Missing {
        /// Which path.
        path: PathHash,
        /// When.
        at: Timestamp,
    },
    /// A path is visible in the published tree.
    Published {
        /// Which path.
        path: PathHash,
        /// When.
        at: Timestamp,
    },
    /// Something was done for the good of the database or the depot.
    Care(CareChange),
    /// Something happened that no other change tells.
    Event(Box<Event>),
    /// Events of long ago are forgotten; the last never is.
    EventsForgotten {
        /// The last of them.
        through: Cursor,
    },
    /// Something is written down of a hook.
    Hook(Box<HookChange>),
    /// The audit.
    Audit(Box<AuditChange>),
    /// A key is on its way into the keydir, or a token was made or revoked.
    Enrollment(Box<EnrollmentChange>),
}

/// A derivation as the database keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct DerivationRecord {
    /// Its path, recomputed from the text.
    pub path: StorePath,
    /// The bytes of the file.
    pub text: bytes::Bytes,
    /// The class of agents that can build it.
    pub class: super::plan::Class,
    /// Its input derivations, in file order.
    pub inputs: Vec<PathHash>,
    /// Its outputs.
    pub outputs: Vec<(String, StorePath)>,
    /// The hash modulo, by which derivations that use it compute their outputs.
    pub modulo: Sha256,
    /// When it was received.
    pub at: Timestamp,
}

/// Where a nar came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarOrigin {
    /// An attempt built it.
    Built,
    /// A submission brought it, and its path follows from its content.
    ContentAddressed,
    /// A trusted key brought an output that nobody can verify; it is never published.
    Trusted,
}

impl NarOrigin {
    /// Returns the word that the database keeps.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::ContentAddressed => "content-addressed",
            Self::Trusted => "trusted",
        }
    }
}

/// A nar in the depot.
#[derive(Debug, Clone, PartialEq)]
pub struct NarRecord {
    /// What it is. Small nars are committed without the coordinator's signature, and get it when
    /// they are written out.
    pub info: PathInfo,
    /// SHA-256 of the file, compressed or not, which names it in the depot.
    pub file_hash: Sha256,
    /// The length of the file, in bytes.
    pub file_bytes: u64,
    /// Where it came from.
    pub origin: NarOrigin,
    /// When it was verified.
    pub at: Timestamp,
}

impl NarRecord {
    /// Returns how the file is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        Compression::of(&self.info.nar_hash, &self.file_hash)
    }
}

/// The file of a nar, compressed or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarFile {
    /// SHA-256 of its bytes, which names it in the depot.
    pub hash: Sha256,
    /// All of it.
    pub bytes: bytes::Bytes,
}

/// How far unwritten nars were looked at, in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnwrittenMark(pub i64);

/// A build as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRecord {
    /// Its id.
    pub id: BuildId,
    /// The derivation.
    pub derivation: PathHash,
    /// Why it exists.
    pub origin: Origin,
    /// Who asked for it.
    pub submitter: Name,
    /// The submitter's own name for this request.
    pub key: Option<String>,
    /// Its priority; higher goes first.
    pub priority: i32,
    /// When it was asked for.
    pub submitted: Timestamp,
    /// How long it may run and be silent.
    pub limits: Limits,
    /// What the submitter wants to find it by.
    pub tags: Vec<(String, String)>,
    /// What it asks of its agent besides.
    pub demands: Demands,
    /// When it may be tried, if not at once.
    pub not_before: Option<Timestamp>,
    /// Where it stands.
    pub state: BuildState,
}

/// What is changed of an open build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildAmendment {
    /// Its own priority.
    Priority(i32),
    /// Who holds it back; nobody when absent.
    Hold(Option<Hold>),
    /// What it asks of its agent.
    Demands(Demands),
    /// It may be tried at once.
    NotDeferred,
    /// Whoever asked for it does so no more, but something else needs it.
    Implied,
    /// New values of these tags, in place of all others of the same names.
    Tags(Vec<(String, String)>),
}

/// Why a build exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody named the derivation.
    Asked,
    /// Something asked for needs it; it is canceled with the last that does.
    Implied,
}

/// How long a build may run and be silent, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Limits {
    /// From start to end.
    pub timeout_ms: Option<u64>,
    /// Between two lines of its log.
    pub max_silent_ms: Option<u64>,
}

/// One output that an attempt made. Its fields are also how agents report it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OutputRecord {
    /// Its name in the derivation.
    pub name: String,
    /// Its path.
    pub path: StorePath,
    /// SHA-256 of its nar.
    pub nar_hash: Sha256,
    /// The length of its nar, in bytes.
    pub nar_bytes: u64,
}

/// Whether an attempt's outputs agree with what was held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are new or equal.
    Agreed,
    /// One differs: the attempt is noted as disputed, and what was held stays.
    Disputed,
}
