//! Derivations: what a `.drv` file says, and how it is checked.
//!
//! [`Derivation::parse`] reads the bytes of a file from anywhere; the original bytes stay the truth
//! and are what gets stored and sent. [`verify_path`] then proves that the file has the store path
//! it came under, and [`Derivation::verify_outputs`] that each output path is the one that follows
//! from the file and its inputs, so that nobody can submit a derivation that claims the output of
//! another.
//!
//! Floating content-addressed, impure and dynamic derivations are refused: the paths of their
//! outputs are not known before they are built.

#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used
)]

mod error;
mod features;
mod modulo;
mod parse;
mod write;

pub use error::DerivationError;

use super::{
    content::text_path,
    hash::Sha256,
    store_path::{InvalidStorePath, StoreDir, StorePath},
};
use std::borrow::Cow;

/// The longest `.drv` file that is read, in bytes. The largest one known from Guix and Nixpkgs has
/// 1.64 MB.
pub const DRV_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most input derivations of one derivation, and likewise the most input sources. The largest
/// derivation known has 4,551 inputs.
pub const INPUTS_MAX: usize = 65_536;
/// The most outputs of a derivation, and of one of its inputs. The most known is 114.
pub const OUTPUTS_MAX: usize = 4_096;
/// The most arguments of a builder.
pub const ARGUMENTS_MAX: usize = 65_536;
/// The most environment variables of a derivation.
pub const ENVIRONMENT_MAX: usize = 65_536;
/// The longest name of a system, in bytes. Real ones have about a dozen.
pub const SYSTEM_BYTES_MAX: usize = 64;

/// A derivation as its file says it, borrowing from the file's bytes where nothing is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation<'a> {
    /// The outputs in the order of the file, which is that of their names. There is at least one.
    pub outputs: Vec<Output>,
    /// The derivations whose outputs the build needs, with the names of those outputs; both in the
    /// order of their texts.
    pub input_derivations: Vec<(StorePath, Vec<String>)>,
    /// The store paths that the build needs and no derivation makes, in the order of their texts.
    pub input_sources: Vec<StorePath>,
    /// The system that the builder runs on, such as `x86_64-linux` or `builtin`.
    pub system: String,
    /// The program, or `builtin:` and a name.
    pub builder: Cow<'a, [u8]>,
    /// The program's arguments, without its own name.
    pub arguments: Vec<Cow<'a, [u8]>>,
    /// The environment variables in the order of their names.
    pub env: Vec<Variable<'a>>,
}

/// An environment variable and its value.
pub type Variable<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// One output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name, mostly `out`.
    pub name: String,
    /// The path it will have.
    pub path: StorePath,
    /// Empty, or for a fixed output the algorithm of its hash, with `r:` in front if the hash is
    /// that of a nar: `sha256`, `r:sha256`.
    pub hash_algorithm: String,
    /// Empty, or for a fixed output its hash in lower-case hexadecimal.
    pub hash: String,
}

/// The content that a fixed-output derivation promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedOutput {
    /// Whether the hash is that of the nar, rather than of a flat file's bytes.
    pub recursive: bool,
    /// The algorithm: `md5`, `sha1`, `sha256`, `sha512`, `sha3-256`, `sha3-512`, `blake2s-256` or
    /// `blake3`. Guix and Nix each know only some of these.
    pub algorithm: String,
    /// The hash in lower-case hexadecimal.
    pub hash_hex: String,
}

impl Derivation<'_> {
    /// Returns the derivation with its own copy of everything it borrowed.
    #[must_use]
    pub fn into_owned(self) -> Derivation<'static> {
        let own = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
        Derivation {
            outputs: self.outputs,
            input_derivations: self.input_derivations,
            input_sources: self.input_sources,
            system: self.system,
            builder: own(self.builder),
            arguments: self.arguments.into_iter().map(own).collect(),
            env: self.env.into_iter().map(|(name, value)| (own(name), own(value))).collect(),
        }
    }

    /// Returns the store directory that all paths of the derivation are in.
    ///
    /// # Panics
    /// When the derivation has no outputs, which [`Derivation::parse`] never returns.
    #[must_use]
    #[expect(clippy::expect_used, reason = "parse refuses derivations without outputs")]
    pub fn store_dir(&self) -> &StoreDir {
        self.outputs.first().expect("a derivation has at least one output").path.dir()
    }

    /// Returns the value of an environment variable.
    #[must_use]
    pub fn env(&self, name: &[u8]) -> Option<&[u8]> {
        let place = self.env.binary_search_by(|(key, _)| key.as_ref().cmp(name)).ok()?;
        self.env.get(place).map(|(_, value)| value.as_ref())
    }

    /// Returns what the output must contain, if this is a fixed-output derivation.
    #[must_use]
    pub fn fixed_output(&self) -> Option<FixedOutput> {
        let [output] = self.outputs.as_slice() else { return None };
        if output.hash.is_empty() {
            return None;
        }
        let (recursive, algorithm) = match output.hash_algorithm.strip_prefix("r:") {
            Some(algorithm) => (true, algorithm),
            None => (false, output.hash_algorithm.as_str()),
        };
        let (algorithm, hash_hex) = (algorithm.to_owned(), output.hash.clone());
        Some(FixedOutput { recursive, algorithm, hash_hex })
    }

    /// Returns the references of the `.drv` file itself: its input derivations and sources, in the
    /// order of their texts, each once.
    #[must_use]
    pub fn closure_references(&self) -> Vec<StorePath> {
        let derivations = self.input_derivations.iter().map(|(path, _)| path);
        let mut references: Vec<StorePath> =
            derivations.chain(&self.input_sources).cloned().collect();
        // They are in one store directory, where paths are ordered as their texts are.
        references.sort();
        references.dedup();
        references
    }
}

/// Computes the store path of a `.drv` file from its bytes and references.
///
/// `name` is the whole name of the path, with `.drv` at its end.
///
/// # Errors
/// When `name` cannot be the name of a store path.
pub fn derivation_path(
    dir: &StoreDir,
    name: &str,
    text: &[u8],
    references: &[StorePath],
) -> Result<StorePath, InvalidStorePath> {
    text_path(dir, name, &Sha256::of(text), references)
}

/// Proves that `text`, which was read as `derivation`, belongs under `path`.
///
/// # Errors
/// [`DerivationError::NotADerivation`], [`DerivationError::OtherStore`] or
/// [`DerivationError::SelfEdge`] when no content could make it right, and
/// [`DerivationError::DerivationPath`] when the content belongs under another path: refuse it.
pub fn verify_path(
    path: &StorePath,
    text: &[u8],
    derivation: &Derivation<'_>,
) -> Result<(), DerivationError> {
    if !path.is_derivation() {
        return Err(DerivationError::NotADerivation { path: path.clone() });
    }
    if path.dir() != derivation.store_dir() {
        let dir = derivation.store_dir().clone();
        return Err(DerivationError::OtherStore { path: path.clone(), dir });
    }
    let references = derivation.closure_references();
    if references.contains(path) {
        return Err(DerivationError::SelfEdge { path: path.clone() });
    }
    let computed = derivation_path(path.dir(), path.name(), text, &references)?;
    if computed == *path {
        Ok(())
    } else {
        Err(DerivationError::DerivationPath { claimed: path.clone(), computed })
    }
}

#[cfg(test)]
mod tests;
