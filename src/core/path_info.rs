//! What is known of one valid store path: the record that narinfos, daemons and the wire share.

use super::{hash::Sha256, store_path::StorePath};

/// The facts about a store path whose nar somebody holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of the uncompressed nar.
    pub nar_hash: Sha256,
    /// Length of the uncompressed nar, in bytes.
    pub nar_bytes: u64,
    /// The store paths whose hash parts occur in the nar, sorted; may hold the path itself.
    pub references: Vec<StorePath>,
    /// The derivation that made it, when that is known.
    pub deriver: Option<StorePath>,
    /// Signatures in the text form of the store's dialect.
    pub signatures: Vec<String>,
    /// How the path follows from its content, in Nix's text form (`fixed:r:sha256:…`,
    /// `text:sha256:…`); absent for input-addressed outputs.
    pub content_address: Option<String>,
}
