//! Why an export stream is not taken.

use crate::{
    core::{derivation::DerivationError, store_path::StorePath},
    depot::Fault,
    formats::export::ExportError,
};
use std::io;

/// Why an export stream is not taken. One wrong entry refuses the whole.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It is not a valid export stream.
    #[error(transparent)]
    Stream(Box<ExportError<IntakeError>>),
    /// A path that ends in `.drv` is not a plain file.
    #[error("{0} is not a plain file, so it cannot be a derivation")]
    NotAFile(StorePath),
    /// A derivation is invalid, or not what its path says.
    #[error("the derivation {path} is refused")]
    Derivation {
        /// Its path.
        path: StorePath,
        /// What is wrong with it.
        source: Box<DerivationError>,
    },
    /// A derivation uses another that is neither in the stream nor known.
    #[error(
        "{user} needs {input}, which is neither in the stream nor known here: send the whole \
         closure, as ‘nix-store --export $(nix-store -qR DRV)’ or ‘guix archive --export \
         --recursive DRV’ print it"
    )]
    MissingInput {
        /// What is missing.
        input: StorePath,
        /// A derivation that uses it.
        user: StorePath,
    },
    /// Derivations use one another in a circle.
    #[error("{0} depends on itself by way of other derivations")]
    Cycle(StorePath),
    /// Too many derivations came before what they use.
    #[error(
        "more than {} MiB of derivations came before their inputs: send inputs first, as \
         ‘--export’ does with the paths that ‘nix-store -qR’ prints",
        max >> 20
    )]
    TooManyWaiting {
        /// The limit, in bytes.
        max: usize,
    },
    /// A path does not follow from its content, and the sender is not trusted.
    #[error(
        "{0} cannot be verified: its path does not follow from its content. Send derivations and \
         sources only, use a key with ‘trusted-import’, or let a Guix that is in the coordinator's \
         ‘guix-acl’ sign it"
    )]
    Unverifiable(StorePath),
    /// There is another content under the same path already.
    #[error("{0} has another content than the one that is held")]
    Differs(StorePath),
    /// The stream was refused before.
    #[error("the export stream was refused before: begin again")]
    Over,
    /// Something on this side failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl IntakeError {
    /// Tells whether the failure is on this side, so that the same stream may be taken later.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        matches!(self, Self::Fault(_))
    }
}

impl From<io::Error> for IntakeError {
    fn from(error: io::Error) -> Self {
        Self::Fault(Fault::Io(error))
    }
}

impl From<ExportError<IntakeError>> for IntakeError {
    fn from(error: ExportError<IntakeError>) -> Self {
        match error {
            ExportError::Sink(own) => own,
            other => Self::Stream(Box::new(other)),
        }
    }
}
