//! Store directories and store paths.
//!
//! A store path is `DIR/HASH-NAME`: a store directory such as `/nix/store`, 32 base-32 digits for
//! 20 bytes, and a name of 1 to 211 characters from `A-Za-z0-9+-._?=`.
//! Source: Nix `src/libstore/path.cc`, Guix `nix/libstore/store-api.cc` (`checkStoreName`).

use super::{base32, hash::Sha256};
use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

/// The longest name of a store path, in bytes.
pub const NAME_BYTES_MAX: usize = 211;
/// The longest store directory, in bytes. Real ones have ten; tests use temporary directories.
pub const STORE_DIR_BYTES_MAX: usize = 256;
/// The number of base-32 digits of the hash part.
pub const HASH_PART_LEN: usize = 32;

/// The 20 bytes that identify a store path within its store directory.
///
/// Its order is that of its text, so that sorting paths of one store directory sorts their texts:
/// the first digit of the text holds the last bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathHash([u8; 20]);

impl Ord for PathHash {
    fn cmp(&self, other: &Self) -> Ordering {
        // The last bytes count most: as numbers, the halves compare at once.
        let halves = |hash: &Self| {
            let [low @ .., _, _, _, _] = hash.0;
            let [_, _, _, _, high @ ..] = hash.0;
            (u128::from_le_bytes(high), u128::from_le_bytes(low))
        };
        halves(self).cmp(&halves(other))
    }
}

impl PartialOrd for PathHash {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PathHash {
    /// Returns the hash with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Returns some bits of it, which are as good as a hash of it.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        match self.0.first_chunk() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => 0,
        }
    }

    /// Returns the 32 digits of the hash part.
    #[must_use]
    pub fn base32(&self) -> String {
        base32::encode(&self.0)
    }

    /// Reads the 32 digits of a hash part.
    #[must_use]
    pub fn parse(digits: &[u8]) -> Option<Self> {
        base32::decode(digits).map(Self)
    }

    /// Folds a SHA-256 onto 20 bytes by exclusive or (Nix `compressHash`).
    #[must_use]
    pub fn fold(digest: &Sha256) -> Self {
        let mut folded = [0u8; 20];
        for (place, byte) in digest.as_bytes().iter().enumerate() {
            folded[place % 20] ^= byte;
        }
        Self(folded)
    }
}

impl fmt::Debug for PathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base32())
    }
}

/// The directory that store paths are children of, such as `/gnu/store`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreDir(Arc<str>);

impl StoreDir {
    /// Returns `/nix/store`.
    #[must_use]
    pub fn nix() -> Self {
        Self("/nix/store".into())
    }

    /// Returns `/gnu/store`.
    #[must_use]
    pub fn guix() -> Self {
        Self("/gnu/store".into())
    }

    /// Returns the text, without a slash at the end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the store path with this hash and name in this directory.
    ///
    /// # Errors
    /// [`InvalidStorePath::Name`] when the name breaks the rules above.
    pub fn path(&self, hash: PathHash, name: &str) -> Result<StorePath, InvalidStorePath> {
        check_name(name)?;
        Ok(StorePath { dir: self.clone(), hash, name: name.into() })
    }

    /// Makes the store path of a content: folds the SHA-256 of
    /// `KIND:sha256:HEX:DIR:NAME` (Nix `makeStorePath`).
    ///
    /// # Errors
    /// [`InvalidStorePath::Name`] when the name breaks the rules above.
    pub fn make_path(
        &self,
        kind: &str,
        digest: &Sha256,
        name: &str,
    ) -> Result<StorePath, InvalidStorePath> {
        let fingerprint = format!("{kind}:sha256:{}:{self}:{name}", digest.hex());
        self.path(PathHash::fold(&Sha256::of(fingerprint.as_bytes())), name)
    }
}

impl FromStr for StoreDir {
    type Err = InvalidStorePath;

    fn from_str(text: &str) -> Result<Self, InvalidStorePath> {
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        let rooted = text.starts_with('/') && !text.ends_with('/') && !text.contains("//");
        let dots = text.split('/').any(|part| part == "." || part == "..");
        if plain && rooted && !dots && text.len() <= STORE_DIR_BYTES_MAX {
            Ok(Self(text.into()))
        } else {
            Err(InvalidStorePath::Dir(excerpt(text)))
        }
    }
}

impl TryFrom<String> for StoreDir {
    type Error = InvalidStorePath;

    fn try_from(text: String) -> Result<Self, InvalidStorePath> {
        text.parse()
    }
}

impl From<StoreDir> for String {
    fn from(dir: StoreDir) -> Self {
        dir.as_str().to_owned()
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path directly below a store directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath {
    dir: StoreDir,
    hash: PathHash,
    name: Arc<str>,
}

impl StorePath {
    /// Returns the store directory.
    #[must_use]
    pub const fn dir(&self) -> &StoreDir {
        &self.dir
    }

    /// Returns the 20 bytes of the hash part.
    #[must_use]
    pub const fn hash(&self) -> PathHash {
        self.hash
    }

    /// Returns the name behind the hash part.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns `HASH-NAME`, as narinfo references have it.
    #[must_use]
    pub fn base_name(&self) -> String {
        format!("{}-{}", self.hash.base32(), self.name)
    }

    /// Appends the path to a text.
    pub fn write_to(&self, text: &mut String) {
        text.push_str(self.dir.as_str());
        text.push('/');
        base32::encode_into(text, &self.hash.0);
        text.push('-');
        text.push_str(&self.name);
    }

    /// Tells whether the name ends in `.drv`.
    #[must_use]
    pub fn is_derivation(&self) -> bool {
        self.name.len() > 4 && self.name.ends_with(".drv")
    }

    /// Reads a path from bytes of foreign origin.
    ///
    /// # Errors
    /// As for parsing from text; bytes that are not ASCII are an invalid name.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidStorePath> {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.parse(),
            Err(_) => Err(InvalidStorePath::Name(excerpt(&bytes.escape_ascii().to_string()))),
        }
    }
}

impl FromStr for StorePath {
    type Err = InvalidStorePath;

    fn from_str(text: &str) -> Result<Self, InvalidStorePath> {
        let Some((dir, base)) = text.rsplit_once('/') else {
            return Err(InvalidStorePath::NoDir(excerpt(text)));
        };
        let dir: StoreDir = dir.parse()?;
        let (Some(digits), Some(b'-')) =
            (base.as_bytes().get(..HASH_PART_LEN), base.as_bytes().get(HASH_PART_LEN))
        else {
            return Err(InvalidStorePath::Hash(excerpt(text)));
        };
        let hash = PathHash::parse(digits).ok_or_else(|| InvalidStorePath::Hash(excerpt(text)))?;
        // The digits are ASCII, so the split falls on a character boundary.
        dir.path(hash, &base[HASH_PART_LEN + 1..])
    }
}

impl TryFrom<String> for StorePath {
    type Error = InvalidStorePath;

    fn try_from(text: String) -> Result<Self, InvalidStorePath> {
        text.parse()
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.to_string()
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.dir, self.hash.base32(), self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Checks the name of a store path.
fn check_name(name: &str) -> Result<(), InvalidStorePath> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b);
    let dots = matches!(name, "." | "..") || name.starts_with(".-") || name.starts_with("..-");
    if name.is_empty() || name.len() > NAME_BYTES_MAX || dots || !name.bytes().all(allowed) {
        return Err(InvalidStorePath::Name(excerpt(name)));
    }
    Ok(())
}

/// Returns at most 300 characters of a foreign text, fit for a message.
fn excerpt(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

/// Why a text is not a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStorePath {
    /// There is no slash in it.
    #[error("‘{0}’ is not a store path: give the whole path, such as /nix/store/HASH-NAME")]
    NoDir(String),
    /// The directory is relative, not normal, too long, or has unusual characters.
    #[error("‘{0}’ is not a store directory: it must be an absolute, plain path")]
    Dir(String),
    /// The hash part is not 32 digits and a hyphen.
    #[error("‘{0}’ is not a store path: its last part must start with 32 base-32 digits and ‘-’")]
    Hash(String),
    /// The name is empty, too long, or has other characters than allowed.
    #[error(
        "‘{0}’ is not the name of a store path: 1 to 211 characters from A-Z a-z 0-9 + - . _ ? ="
    )]
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HELLO: &str = "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello-2.12.1";

    #[test]
    fn a_path_is_taken_apart_and_put_together() {
        let path: StorePath = HELLO.parse().unwrap();
        assert_eq!(path.dir(), &StoreDir::guix());
        assert_eq!(path.name(), "hello-2.12.1");
        assert_eq!(path.to_string(), HELLO);
        assert!(!path.is_derivation());
    }

    #[test]
    fn what_is_no_store_path_is_refused() {
        let digits = "0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy";
        for text in [
            String::new(),
            "hello".to_owned(),
            format!("gnu/store/{digits}-x"),
            format!("/gnu/store/{digits}"),
            format!("/gnu/store/{digits}-"),
            format!("/gnu/store/{digits}-a,b"),
            format!("/gnu/store/{digits}-a/b"),
            format!("/gnu/store/{digits}-a b"),
            format!("/gnu/store/{digits}-."),
            format!("/gnu/store/{digits}-é"),
            format!("/gnu/../store/{digits}-x"),
            format!("/gnu//store/{digits}-x"),
            format!("/gnu/store/{}-x", digits.replace('0', "e")),
            format!("/gnu/store/{digits}-{}", "x".repeat(212)),
            "/gnu/store/éééééééééééééééé-x".to_owned(),
        ] {
            assert!(text.parse::<StorePath>().is_err(), "{text}");
        }
        assert!(format!("/gnu/store/{digits}-{}", "x".repeat(211)).parse::<StorePath>().is_ok());
    }

    proptest! {
        #[test]
        fn every_path_reads_back(hash: [u8; 20], name in "[A-Za-z0-9+_?=][A-Za-z0-9+._?=-]{0,210}") {
            let path = StoreDir::nix().path(PathHash::from_bytes(hash), &name).unwrap();
            prop_assert_eq!(path.to_string().parse::<StorePath>(), Ok(path));
        }

        #[test]
        fn paths_sort_like_their_texts(one: [u8; 20], other: [u8; 20], a in "[a-z]{1,3}", b in "[a-z]{1,3}") {
            let one = StoreDir::nix().path(PathHash::from_bytes(one), &a).unwrap();
            let other = StoreDir::nix().path(PathHash::from_bytes(other), &b).unwrap();
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            if let Ok(path) = text.parse::<StorePath>() {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
