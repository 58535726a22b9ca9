//! Whose signatures are believed on outputs that somebody submits: a file in the form of Guix's
//! own access list, so that the one of a Guix machine can be used as it is.

use super::Coordinator;
use crate::formats::signature::guix::{GuixKeyError, GuixPublicKey};
use std::{io, path::PathBuf};

/// The name of the list in the state directory.
const FILE_NAME: &str = "guix-acl";

/// Why it cannot be told whose signatures are believed.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// The list cannot be read.
    #[error("the coordinator's list of authorized keys cannot be read")]
    Read(#[from] io::Error),
    /// It is no such list.
    #[error("the coordinator's list of authorized keys, {}, is none", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: GuixKeyError,
    },
}

/// Reads the keys that are believed now: none where nobody made a list. Call it where waiting is
/// allowed.
pub(super) fn read(coordinator: &Coordinator) -> Result<Vec<GuixPublicKey>, AclError> {
    let named = coordinator.config.blocking_lock().guix_acl.clone();
    let path = named.clone().unwrap_or_else(|| coordinator.state_dir.join(FILE_NAME));
    let text = match fs_err::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
            return Ok(Vec::new());
        }
        text => text?,
    };
    GuixPublicKey::parse_acl(&text).map_err(|source| AclError::Keys { path, source })
}
