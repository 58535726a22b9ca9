//! What can go wrong with the depot itself.

use crate::{
    core::hash::Sha256,
    formats::{
        narinfo::NarInfoError,
        signature::{guix::GuixKeyError, nix::NixKeyError},
    },
};
use std::{error::Error, io, path::PathBuf};

/// Something around the depot failed: nobody who sent anything is to blame, and it may work later.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file could not be read or written.
    #[error("a file of the depot could not be read or written")]
    Io(#[from] io::Error),
    /// What is known could not be looked up.
    #[error("the database could not tell what is held")]
    Known(#[source] Box<dyn Error + Send + Sync>),
}

/// Why the depot cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// A directory cannot be made or written to.
    #[error(
        "cannot write to {}: give it to the user that runs this, or name another state directory",
        path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others can read or change what must be secret.
    #[error(
        "{} is open to other users (mode {mode:o}): run ‘chmod go= {}’, and replace the key if \
         somebody may have read it",
        path.display(),
        path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The signing key cannot be read or made.
    #[error("the signing key {} is of no use", path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: SigningKeyError,
    },
    /// There is no file with this hash.
    #[error("the depot has no file with the hash {0}")]
    NotHeld(Sha256),
    /// A file of the depot does not hold what it was verified to hold.
    #[error("the file with the hash {0} is damaged: restore it from a backup or build it again")]
    Damaged(Sha256),
    /// A record cannot be written as a narinfo.
    #[error("a narinfo could not be written")]
    NarInfo(#[from] NarInfoError),
    /// Something around the depot failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What is wrong with a signing key.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// That of the Nix dialect.
    #[error(transparent)]
    Nix(#[from] NixKeyError),
    /// That of the Guix dialect.
    #[error(transparent)]
    Guix(#[from] GuixKeyError),
}

impl From<io::Error> for DepotError {
    fn from(error: io::Error) -> Self {
        Self::Fault(Fault::Io(error))
    }
}
