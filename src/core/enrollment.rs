//! What is written down of keys on their way into the keydir, which stays the one truth about who
//! may come in.

use super::{hash::Sha256, id::Name, time::Timestamp};

/// A token, with which keys become known without waiting for an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its public half, by which it is listed and revoked.
    pub id: String,
    /// HMAC-SHA256 of its secret half.
    pub hash: Sha256,
    /// What its bearers become: the word of a role.
    pub role: String,
    /// How many keys it is good for.
    pub uses: u32,
    /// Who made it.
    pub made_by: Name,
    /// When.
    pub made: Timestamp,
    /// From when on it is worth nothing.
    pub expires: Timestamp,
    /// Since when it is revoked.
    pub revoked: Option<Timestamp>,
}

/// A key that came in with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// The token.
    pub token: String,
    /// The key's fingerprint.
    pub fingerprint: String,
    /// What the key is called since.
    pub name: Name,
    /// When.
    pub at: Timestamp,
}

/// A key that waits for an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingKey {
    /// Its fingerprint.
    pub fingerprint: String,
    /// The key itself, as `ssh-ed25519 AAAA…`.
    pub key: String,
    /// What its owner would like to be called.
    pub name: Option<Name>,
    /// Where it came from, without the port.
    pub address: String,
    /// When it asked last.
    pub asked: Timestamp,
}

/// Something of it that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrollmentChange {
    /// A token was made.
    TokenMade(TokenRecord),
    /// A key came in with a token.
    TokenUsed(TokenUse),
    /// A token is worth nothing any more.
    TokenRevoked {
        /// Which one.
        id: String,
        /// Since when.
        at: Timestamp,
    },
    /// A token and all that was noted of it is forgotten.
    TokenForgotten {
        /// Which one.
        id: String,
    },
    /// A key waits, or asked again.
    Pending(PendingKey),
    /// A key waits no more.
    PendingGone {
        /// The fingerprint.
        fingerprint: String,
    },
}
