//! Why a derivation is refused.

use crate::core::{
    aterm::SyntaxError,
    content::InvalidContent,
    store_path::{InvalidStorePath, StoreDir, StorePath},
};

/// Why a derivation is refused. Every variant is the fault of whoever sent it, except
/// [`DerivationError::MissingInput`], where the caller may have to look further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerivationError {
    /// The file is longer than [`super::DRV_BYTES_MAX`].
    #[error("the file has {bytes} bytes; at most {} are read", super::DRV_BYTES_MAX)]
    TooLarge {
        /// The length of the file.
        bytes: usize,
    },
    /// A list is longer than its limit.
    #[error("there are more than {max} {what}")]
    TooMany {
        /// What the list holds, in the plural.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The text is not an `ATerm` as the daemons write it.
    #[error("the text is not that of a derivation {0}")]
    Syntax(#[from] SyntaxError),
    /// A list that is sorted in every file the daemons write is not, or holds something twice.
    #[error("the {what} are not sorted, or one of them is there twice, at byte {at}")]
    Order {
        /// What the list holds, in the plural.
        what: &'static str,
        /// Where the offending item begins, in bytes.
        at: usize,
    },
    /// A path is not a store path.
    #[error(transparent)]
    Path(#[from] InvalidStorePath),
    /// A path is in another store than the outputs of the derivation.
    #[error("{path} is not in {dir}, where the outputs are")]
    OtherStore {
        /// The path.
        path: StorePath,
        /// The store directory of the outputs.
        dir: StoreDir,
    },
    /// A path that must be that of a derivation has another name.
    #[error("{path} is not a derivation: its name must end in ‘.drv’")]
    NotADerivation {
        /// The path.
        path: StorePath,
    },
    /// There are no outputs.
    #[error("the derivation has no outputs")]
    NoOutputs,
    /// The name of an output cannot be part of a store path.
    #[error("‘{0}’ is not the name of an output: use letters, digits and + - . _ ? =")]
    OutputName(String),
    /// The system is empty, too long, or has unusual characters.
    #[error("‘{0}’ is not a system: it must be a short name such as x86_64-linux")]
    System(String),
    /// The file has the syntax of the experimental feature `dynamic-derivations`.
    #[error("dynamic derivations are not supported: build without ‘dynamic-derivations’")]
    Dynamic,
    /// The path of an output follows from its content, which nobody knows yet.
    #[error(
        "the output ‘{0}’ is floating content-addressed, which is not supported: \
         build it without ‘__contentAddressed’"
    )]
    Floating(String),
    /// The output may differ each time it is built.
    #[error("the output ‘{0}’ is impure, which is not supported: build it without ‘__impure’")]
    Impure(String),
    /// The path of an output depends on the content of an input.
    #[error(
        "the path of the output ‘{0}’ depends on a floating content-addressed input, \
         which is not supported"
    )]
    Deferred(String),
    /// An output has a hash, but it is not the only one or is not called `out`.
    #[error("the output ‘{0}’ has a hash: it must be the only output, and be called ‘out’")]
    FixedOutputShape(String),
    /// The hash of an output has an algorithm that no daemon knows, or a method that is not
    /// supported.
    #[error("the output has the hash algorithm ‘{0}’, which is not supported")]
    HashAlgorithm(String),
    /// The hash of an output is not as many lower-case hexadecimal digits as its algorithm has.
    #[error("the output's {algorithm} is not {digits} lower-case hexadecimal digits")]
    OutputHash {
        /// The algorithm.
        algorithm: String,
        /// How many digits it has.
        digits: usize,
    },
    /// The derivation depends on itself.
    #[error("{path} depends on itself")]
    SelfEdge {
        /// The derivation.
        path: StorePath,
    },
    /// The hash of an input derivation is not known, so that nothing can be computed from it.
    #[error("the input derivation {path} is missing: submit it as well")]
    MissingInput {
        /// The input.
        path: StorePath,
    },
    /// The file belongs under another path.
    #[error("the content of {claimed} is not its own: it belongs to {computed}")]
    DerivationPath {
        /// The path that the file came under.
        claimed: StorePath,
        /// The path that follows from its content.
        computed: StorePath,
    },
    /// An output has another path than follows from the derivation.
    #[error("the output ‘{output}’ claims {claimed}, but its path is {computed}")]
    OutputPath {
        /// The name of the output.
        output: String,
        /// The path in the file.
        claimed: StorePath,
        /// The path that follows from the derivation. It is boxed to keep results small.
        computed: Box<StorePath>,
    },
    /// The environment variable named after an output does not hold the output's path.
    #[error("the environment variable ‘{output}’ is not the path of the output, {path}")]
    OutputVariable {
        /// The name of the output.
        output: String,
        /// Its path.
        path: StorePath,
    },
}

impl From<InvalidContent> for DerivationError {
    fn from(error: InvalidContent) -> Self {
        match error {
            // The only content that has no path for its hash is a recursive SHA-256.
            InvalidContent::Hash(_) => {
                Self::OutputHash { algorithm: "sha256".to_owned(), digits: 64 }
            }
            InvalidContent::Path(error) => Self::Path(error),
        }
    }
}
