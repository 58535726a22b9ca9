//! Why an upload is not kept.

use crate::{
    core::{compression::Compression, hash::Sha256, store_path::StorePath},
    depot::{Fault, zstd_stream::BadFrame},
    formats::nar::NarError,
    protocol::bulk::RefusalCode,
};
use std::io;

/// Why an upload is not kept.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file is compressed in a way that is not known.
    #[error("the compression ‘{0}’ is not supported: send zstd or none")]
    Compression(String),
    /// The declared hashes of file and nar are equal though the file is compressed, or differ though
    /// it is not.
    #[error("the hashes of the nar and its file cannot both be right with the compression ‘{}’", .0.word())]
    OtherCompression(Compression),
    /// The nar is declared to be longer than allowed.
    #[error("a nar of {bytes} bytes is longer than the {max} allowed: raise the limit if wanted")]
    NarTooLong {
        /// Its declared length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The compressed file is declared to be longer than any encoder would make it.
    #[error("a file of {bytes} bytes is too long for its nar: at most {max} are taken")]
    FileTooLong {
        /// Its declared length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A declared reference is neither an input, nor in the closure of one, nor an output.
    #[error("the output is said to refer to {0}, which was not there when it was built")]
    StrangeReference(StorePath),
    /// The derivation promises a hash that cannot be computed here.
    #[error("the {0} of a fixed output cannot be verified here: use sha256 or sha512")]
    FixedAlgorithm(String),
    /// The file has another length than declared.
    #[error("{came} bytes of a file of {declared} came")]
    FileBytes {
        /// The declared length.
        declared: u64,
        /// How many bytes came.
        came: u64,
    },
    /// The file has another hash than declared.
    #[error("the file was said to have the hash {claimed}, but has {computed}")]
    FileHash {
        /// The declared hash.
        claimed: Sha256,
        /// The real one.
        computed: Sha256,
    },
    /// The file is not zstd, is damaged, or wants too large a window.
    #[error("the file cannot be decompressed")]
    Zstd(#[source] io::Error),
    /// The file ends before its only frame does.
    #[error("the file ends before its compressed content does")]
    ZstdTruncated,
    /// There are bytes behind the first frame of the file, or behind the nar in it.
    #[error("there are bytes behind the end of the nar")]
    TrailingBytes,
    /// The content of the file is not a nar that is allowed.
    #[error("the file does not hold a valid nar")]
    Nar(#[from] NarError),
    /// The nar has another length than declared.
    #[error("the nar was said to have {declared} bytes, but has {found}")]
    NarBytes {
        /// The declared length.
        declared: u64,
        /// The real one, or as much of it as was looked at.
        found: u64,
    },
    /// The nar has another hash than declared.
    #[error("the nar was said to have the hash {declared}, but has {computed}")]
    NarHash {
        /// The declared hash.
        declared: Sha256,
        /// The real one.
        computed: Sha256,
    },
    /// The nar refers to a path that was not declared.
    #[error("the output refers to {0}, which is not among its declared references")]
    UndeclaredReference(StorePath),
    /// A declared reference does not occur in the nar.
    #[error("the output is said to refer to {0}, but does not")]
    AbsentReference(StorePath),
    /// The content is not the one that the derivation promises.
    #[error("the derivation promises {promised}, but the output is {found}")]
    FixedOutput {
        /// The promise.
        promised: String,
        /// What came.
        found: String,
    },
    /// The upload was resumed and turned out wrong; whether the part that came earlier or the new
    /// one is to blame cannot be told.
    #[error("the resumed upload is wrong and was removed: send it again from the beginning")]
    EarlierPart(#[source] Box<VerifyError>),
    /// Another upload of the same output by the same attempt is under way.
    #[error("the same output is being received on another connection: try again later")]
    Busy,
    /// The upload was refused before.
    #[error("the upload was refused before: begin a new one")]
    Over,
    /// Something on this side failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<io::Error> for VerifyError {
    fn from(error: io::Error) -> Self {
        Self::Fault(Fault::Io(error))
    }
}

impl VerifyError {
    /// Returns what is wrong with a compressed file, or with what it decompresses to.
    pub(super) fn of_frame(bad: BadFrame<Self>) -> Self {
        match bad {
            BadFrame::Invalid(error) => Self::Zstd(error),
            BadFrame::Trailing => Self::TrailingBytes,
            BadFrame::Sink(error) => error,
        }
    }

    /// Returns what the agent is told to do.
    #[must_use]
    pub const fn code(&self) -> RefusalCode {
        match self {
            Self::EarlierPart(_) | Self::Busy | Self::Fault(_) => RefusalCode::TryLater,
            Self::Compression(_)
            | Self::OtherCompression(_)
            | Self::NarTooLong { .. }
            | Self::FileTooLong { .. }
            | Self::StrangeReference(_)
            | Self::FixedAlgorithm(_)
            | Self::FileBytes { .. }
            | Self::FileHash { .. }
            | Self::Zstd(_)
            | Self::ZstdTruncated
            | Self::TrailingBytes
            | Self::Nar(_)
            | Self::NarBytes { .. }
            | Self::NarHash { .. }
            | Self::UndeclaredReference(_)
            | Self::AbsentReference(_)
            | Self::FixedOutput { .. }
            | Self::Over => RefusalCode::Rejected,
        }
    }
}
