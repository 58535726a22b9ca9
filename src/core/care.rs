//! What is taken out of the database again, and what is noted of the care for it.
//!
//! Whatever is taken out must be of no use to any open build. What memory knows of open builds
//! decides: who asks has looked at the database, and is told what could not go.

use super::{
    graph::LastEnd,
    hash::Sha256,
    id::{BuildId, Name},
    store_path::PathHash,
    time::Timestamp,
};
/// A row that is written for the good of the database or the depot, and that open state does not
/// depend on beyond what the engine has looked at.
#[derive(Debug, Clone, PartialEq)]
pub enum CareChange {
    /// A build that is over is forgotten, with all its attempts.
    Pruned {
        /// Which one.
        build: BuildId,
    },
    /// A nar is held no more. Its files stay until `remove_at`.
    Withdrawn {
        /// Its path.
        path: PathHash,
        /// When.
        at: Timestamp,
        /// When its files may go.
        remove_at: Timestamp,
    },
    /// A nar is held no more, because its file is gone or damaged.
    Lost {
        /// Its path.
        path: PathHash,
        /// When.
        at: Timestamp,
    },
    /// A nar is not published after all: it is to be published again.
    Unpublished {
        /// Its path.
        path: PathHash,
    },
    /// The narinfos of withdrawn nars are gone, durably.
    Unlisted {
        /// The rows.
        rows: Vec<WithdrawnRow>,
        /// When.
        at: Timestamp,
    },
    /// The files of withdrawn nars are gone.
    Expunged {
        /// The rows.
        rows: Vec<WithdrawnRow>,
    },
    /// A nar that was kept to be compared is gone.
    DisputeForgotten {
        /// Its path.
        path: PathHash,
        /// Which of them.
        nar_hash: Sha256,
    },
    /// Nars were given to agents or named by submissions.
    Used {
        /// Their paths.
        paths: Vec<PathHash>,
        /// When.
        at: Timestamp,
    },
    /// Somebody took a copy of the database away.
    BackedUp {
        /// When the copy was made.
        at: Timestamp,
        /// The length of the database in it.
        bytes: u64,
        /// Who.
        principal: Name,
    },
}

/// The row of a withdrawn nar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WithdrawnRow(pub i64);

/// What is to be taken out.
#[derive(Debug, Clone, PartialEq)]
pub enum Forget {
    /// Builds that are over. Those stay whose derivations open builds concern.
    Builds(Vec<OverBuildToForget>),
    /// Nars. Those stay that are outputs of derivations which open builds concern, and what they
    /// refer to.
    Nars {
        /// Which ones, each before all that it refers to.
        nars: Vec<Withdrawal>,
        /// When their files may go.
        remove_at: Timestamp,
    },
    /// Nars whose files are gone or damaged. None stays.
    Lost(Vec<LostNar>),
}

/// A build that is over, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverBuildToForget {
    /// Its id.
    pub build: BuildId,
    /// Its derivation.
    pub derivation: PathHash,
    /// The outputs of its derivation.
    pub outputs: Vec<PathHash>,
}

/// A nar that is to be withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Its path.
    pub path: PathHash,
    /// What it refers to.
    pub references: Vec<PathHash>,
}

/// A nar whose file is gone or damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostNar {
    /// Its path.
    pub path: PathHash,
    /// How builds of the derivations in memory that make it ended last.
    pub last_ends: Vec<(PathHash, LastEnd)>,
}

/// What was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Builds.
    pub builds: Vec<BuildId>,
    /// Nars, by path.
    pub paths: Vec<PathHash>,
}
