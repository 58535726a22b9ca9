//! What is written down of who did what, and who was refused.

use super::{id::Name, time::Timestamp};

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Names the act while it is being done, so that its end can be noted; absent for what is over
    /// already.
    pub act: Option<ActId>,
    /// Who did it.
    pub principal: Name,
    /// What that principal was; absent for the coordinator itself.
    pub role: Option<&'static str>,
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// Where the connection came from; absent for the coordinator itself.
    pub address: Option<String>,
    /// The verb and its arguments, made printable.
    pub line: String,
    /// The exit status, when it is known already.
    pub status: Option<u8>,
    /// Why it was not done.
    pub reason: Option<String>,
    /// How many lines this one stands for.
    pub lines: u32,
    /// When.
    pub at: Timestamp,
}

impl AuditRecord {
    /// Returns a line about what the coordinator decided by itself, which is done.
    #[must_use]
    pub const fn of_coordinator(principal: Name, line: String, at: Timestamp) -> Self {
        Self {
            act: None,
            principal,
            role: None,
            fingerprint: String::new(),
            address: None,
            line,
            status: Some(0),
            reason: None,
            lines: 1,
            at,
        }
    }
}

/// Something of the audit that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditChange {
    /// A principal does something that changes state, or was refused.
    Line(AuditRecord),
    /// An act is over.
    Ended {
        /// Which one.
        act: ActId,
        /// The exit status; absent when whoever asked did not wait for the end.
        status: Option<u8>,
        /// Why it was not done.
        reason: Option<String>,
    },
    /// Acts that were being done when the process ended are over.
    Interrupted {
        /// What is noted of how they ended.
        reason: String,
    },
    /// Lines are old enough to go.
    Pruned {
        /// Those from before this.
        before: Timestamp,
        /// How many at most, the oldest first.
        most: u32,
    },
}

/// Names an act that is being done: 63 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActId(i64);

impl ActId {
    /// Returns the id of these random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(i64::from_be_bytes(bytes) & i64::MAX)
    }

    /// Returns the number that the database keeps.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }
}
