//! Store paths that follow from a content: sources, fixed outputs and texts.
//!
//! Whoever receives a content under such a path recomputes the path and needs no signature. A path
//! does not tell which of the three kinds it is, so a reader of foreign contents tries them all.
//! Source: Nix `src/libstore/store-dir-config.cc` and `store-api.cc` (`makeFixedOutputPath`,
//! `makeTextPath`, `makeType`), Guix `nix/libstore/store-api.cc`.

#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used
)]

use super::{
    hash::{Sha256, unhex},
    store_path::{InvalidStorePath, StoreDir, StorePath},
};

/// Returns the path of a file tree that was added by the SHA-256 of its nar, the way of `local-file`
/// in Guix and of paths in Nix expressions.
///
/// The order and repetition of `references` do not matter. `self_reference` says that the content
/// holds its own path; the caller then gives the hash of the nar with that path's hash part zeroed,
/// and leaves the path itself out of `references`.
///
/// # Errors
/// When `name` cannot be the name of a store path.
pub fn source_path(
    dir: &StoreDir,
    name: &str,
    nar_hash: &Sha256,
    references: &[StorePath],
    self_reference: bool,
) -> Result<StorePath, InvalidStorePath> {
    let mut kind = kind_with_references("source", references);
    if self_reference {
        kind.push_str(":self");
    }
    dir.make_path(&kind, nar_hash, name)
}

/// Returns the path of a flat file or of a content under any other algorithm than SHA-256: of
/// `fixed-output` derivations and of what a client adds by hash. It has no references.
///
/// `hash_hex` is lower-case hexadecimal; `recursive` says whether it is the hash of the nar or of
/// the file's bytes. The recursive SHA-256 is the same as a [`source_path`].
///
/// # Errors
/// When `name` cannot be the name of a store path, or a recursive SHA-256 is not 64 digits.
pub fn fixed_output_path(
    dir: &StoreDir,
    name: &str,
    recursive: bool,
    algorithm: &str,
    hash_hex: &str,
) -> Result<StorePath, InvalidContent> {
    if recursive && algorithm == "sha256" {
        let digest = unhex(hash_hex.as_bytes())
            .map(Sha256::from_bytes)
            .ok_or_else(|| InvalidContent::Hash(hash_hex.to_owned()))?;
        return Ok(source_path(dir, name, &digest, &[], false)?);
    }
    let prefix = if recursive { "r:" } else { "" };
    let inner = Sha256::of(format!("fixed:out:{prefix}{algorithm}:{hash_hex}:").as_bytes());
    Ok(dir.make_path("output:out", &inner, name)?)
}

/// Returns the path of a text with references, such as a `.drv` file or what `plain-file` and
/// `builtins.toFile` make. `digest` is the SHA-256 of the text itself, not of its nar.
///
/// The order and repetition of `references` do not matter.
///
/// # Errors
/// When `name` cannot be the name of a store path.
pub fn text_path(
    dir: &StoreDir,
    name: &str,
    digest: &Sha256,
    references: &[StorePath],
) -> Result<StorePath, InvalidStorePath> {
    dir.make_path(&kind_with_references("text", references), digest, name)
}

/// Returns `kind` and the references, in the order of their texts, all joined by colons.
fn kind_with_references(kind: &str, references: &[StorePath]) -> String {
    let mut references: Vec<&StorePath> = references.iter().collect();
    let is_one_dir = references.windows(2).all(|pair| match pair {
        [one, other] => one.dir() == other.dir(),
        _ => true,
    });
    if is_one_dir {
        // There, paths are ordered as their texts are.
        references.sort();
    } else {
        references.sort_by_cached_key(ToString::to_string);
    }
    references.dedup();
    let mut joined = kind.to_owned();
    for path in references {
        joined.push(':');
        path.write_to(&mut joined);
    }
    joined
}

/// Why a content has no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContent {
    /// A SHA-256 is not 64 hexadecimal digits.
    #[error("‘{}’ is not a SHA-256: give 64 hexadecimal digits", .0.escape_debug())]
    Hash(String),
    /// The name breaks the rules.
    #[error(transparent)]
    Path(#[from] InvalidStorePath),
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix_derivation::{CAHash, NixHash, store_path::StoreDir as OtherDir};
    use proptest::prelude::*;

    /// Two references that stand in one order by their digits and in the other by their bytes.
    fn references() -> Vec<StorePath> {
        ["10000000000000000000000000000000-a", "0000000000000000000000000000000z-b"]
            .map(|base| format!("/gnu/store/{base}").parse().unwrap())
            .to_vec()
    }

    /// The path of a content according to the crate `nix-derivation`.
    fn other_path(content: &CAHash, references: &[StorePath], self_reference: bool) -> String {
        let dir = OtherDir::new("/gnu/store").unwrap();
        let references: Vec<_> =
            references.iter().map(|r| dir.parse_path(r.to_string().as_bytes()).unwrap()).collect();
        let path = dir.build_ca_path("x-1", content, references.iter(), self_reference).unwrap();
        dir.render_path(&path)
    }

    proptest! {
        #[test]
        fn sources_and_texts_are_named_as_elsewhere(digest: [u8; 32], self_reference: bool) {
            let (dir, hash) = (StoreDir::guix(), Sha256::from_bytes(digest));
            for references in [Vec::new(), references()] {
                let source = source_path(&dir, "x-1", &hash, &references, self_reference).unwrap();
                let nar = CAHash::Nar(NixHash::Sha256(digest));
                let other = other_path(&nar, &references, self_reference);
                prop_assert_eq!(source.to_string(), other);
                let text = text_path(&dir, "x-1", &hash, &references).unwrap();
                let other = other_path(&CAHash::Text(digest), &references, false);
                prop_assert_eq!(text.to_string(), other);
            }
        }

        #[test]
        fn fixed_outputs_are_named_as_elsewhere(digest: [u8; 32], sha1: [u8; 20]) {
            for hash in [NixHash::Sha256(digest), NixHash::Sha1(sha1)] {
                let algorithm = hash.algorithm().to_string();
                let hex = crate::core::hash::hex(hash.digest_as_bytes());
                for recursive in [true, false] {
                    let path =
                        fixed_output_path(&StoreDir::guix(), "x-1", recursive, &algorithm, &hex);
                    let content =
                        if recursive { CAHash::Nar(hash.clone()) } else { CAHash::Flat(hash.clone()) };
                    prop_assert_eq!(path.unwrap().to_string(), other_path(&content, &[], false));
                }
            }
        }
    }

    #[test]
    fn order_and_repetition_of_references_do_not_matter() {
        let (dir, hash, mut references) = (StoreDir::guix(), Sha256::of(b""), references());
        let path = text_path(&dir, "x", &hash, &references);
        references.reverse();
        references.extend_from_within(..);
        assert_eq!(text_path(&dir, "x", &hash, &references), path);
    }

    #[test]
    fn impossible_names_and_hashes_are_refused() {
        let (dir, hash) = (StoreDir::nix(), Sha256::of(b""));
        assert!(text_path(&dir, "a/b", &hash, &[]).is_err());
        assert!(source_path(&dir, "", &hash, &[], false).is_err());
        assert!(matches!(
            fixed_output_path(&dir, "x", true, "sha256", "00"),
            Err(InvalidContent::Hash(_))
        ));
        let flat = fixed_output_path(&dir, "a b", false, "sha1", &"0".repeat(40));
        assert!(matches!(flat, Err(InvalidContent::Path(_))));
    }
}
