//! Narinfos of the Nix dialect: the public record of one path, and the text that is signed; those
//! of the Guix dialect are in [`guix`].
//!
//! Source: Nix `src/libstore/nar-info.cc` and `src/libstore/path-info.cc` (`fingerprint`).

pub mod guix;

use crate::core::{
    hash::Sha256,
    path_info::PathInfo,
    store_path::{InvalidStorePath, StoreDir, StorePath},
};
use std::fmt::Write as _;

/// The longest narinfo that is read, in bytes: some ten thousand references.
pub const NARINFO_BYTES_MAX: usize = 1 << 20;
/// What a substituter writes for a deriver it does not know.
const UNKNOWN_DERIVER: &str = "unknown-deriver";

/// One narinfo: what a path is, and where its nar lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path.
    pub info: PathInfo,
    /// Where the compressed nar lies, relative to the narinfo: `nar/HASH.nar.zst`.
    pub url: String,
    /// How it is compressed: `zstd`, `gzip`, `none`, …
    pub compression: String,
    /// SHA-256 of the compressed nar.
    pub file_hash: Sha256,
    /// Length of the compressed nar, in bytes.
    pub file_bytes: u64,
}

/// Why a text is not a narinfo, or a record cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum NarInfoError {
    /// The text is longer than [`NARINFO_BYTES_MAX`].
    #[error("the narinfo is longer than {NARINFO_BYTES_MAX} bytes")]
    TooLong,
    /// A line is not `Name: value` with a newline behind it.
    #[error("line {line} of the narinfo is not ‘Name: value’ and a newline")]
    Line {
        /// The line's number, from 1.
        line: usize,
    },
    /// A field that can be there once is there twice.
    #[error("the narinfo has ‘{0}’ twice")]
    Twice(&'static str),
    /// A field that must be there is not.
    #[error("the narinfo has no ‘{0}’")]
    Missing(&'static str),
    /// A value cannot be read.
    #[error("the narinfo has an invalid ‘{0}’")]
    Value(&'static str),
    /// A store path cannot be read.
    #[error("the narinfo has an invalid ‘{field}’")]
    Path {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidStorePath,
    },
    /// The path lies in another store directory than asked for.
    #[error("the narinfo is of {path}, which is not in {dir}")]
    OtherStore {
        /// The path.
        path: StorePath,
        /// The store directory asked for.
        dir: StoreDir,
    },
}

impl NarInfo {
    /// Returns the text of the narinfo file.
    ///
    /// # Errors
    /// [`NarInfoError::Value`] when a text in the record is empty or has a line break in it, which
    /// would smuggle in another field.
    pub fn to_text(&self) -> Result<String, NarInfoError> {
        let info = &self.info;
        let mut text = String::with_capacity(1024);
        put(&mut text, "StorePath", &info.path.to_string())?;
        put(&mut text, "URL", &self.url)?;
        put(&mut text, "Compression", &self.compression)?;
        put(&mut text, "FileHash", &self.file_hash.to_string())?;
        put(&mut text, "FileSize", &self.file_bytes.to_string())?;
        put(&mut text, "NarHash", &info.nar_hash.to_string())?;
        put(&mut text, "NarSize", &info.nar_bytes.to_string())?;
        let references = sorted(info.references.iter().map(StorePath::base_name));
        text.push_str("References: ");
        text.push_str(&references.join(" "));
        text.push('\n');
        if let Some(deriver) = &info.deriver {
            put(&mut text, "Deriver", &deriver.base_name())?;
        }
        for signature in &info.signatures {
            put(&mut text, "Sig", signature)?;
        }
        if let Some(content_address) = &info.content_address {
            put(&mut text, "CA", content_address)?;
        }
        Ok(text)
    }

    /// Reads the text of a narinfo file about a path in `dir`.
    ///
    /// Unknown fields are skipped, as Nix does. References come out in the order of
    /// [`StorePath`], each once. Nothing is verified: whether a signature is good is for
    /// [`signature`](super::signature) to say.
    ///
    /// # Errors
    /// A [`NarInfoError`]; the narinfo is of no use then.
    pub fn parse(text: &str, dir: &StoreDir) -> Result<Self, NarInfoError> {
        let fields = Fields::parse(text)?;
        let path: StorePath = mandatory("StorePath", fields.path)?
            .parse()
            .map_err(|source| NarInfoError::Path { field: "StorePath", source })?;
        if path.dir() != dir {
            return Err(NarInfoError::OtherStore { path, dir: dir.clone() });
        }
        let in_dir = |field, base: &str| {
            format!("{dir}/{base}").parse().map_err(|source| NarInfoError::Path { field, source })
        };
        let mut references = fields
            .references
            .unwrap_or_default()
            .split_ascii_whitespace()
            .map(|base| in_dir("References", base))
            .collect::<Result<Vec<StorePath>, _>>()?;
        references.sort();
        references.dedup();
        let deriver = fields
            .deriver
            .filter(|base| !base.is_empty() && *base != UNKNOWN_DERIVER)
            .map(|base| in_dir("Deriver", base))
            .transpose()?;
        let nar_bytes = number("NarSize", fields.nar_bytes)?;
        if nar_bytes == 0 {
            return Err(NarInfoError::Value("NarSize"));
        }
        Ok(Self {
            info: PathInfo {
                path,
                nar_hash: digest("NarHash", fields.nar_hash)?,
                nar_bytes,
                references,
                deriver,
                signatures: fields.signatures.into_iter().map(str::to_owned).collect(),
                content_address: fields.content_address.map(str::to_owned),
            },
            url: mandatory("URL", fields.url)?.to_owned(),
            compression: fields.compression.unwrap_or("bzip2").to_owned(),
            file_hash: digest("FileHash", fields.file_hash)?,
            file_bytes: number("FileSize", fields.file_bytes)?,
        })
    }
}

/// Returns the text that signatures of the Nix dialect are over.
///
/// References are in the order of their texts, which is not the order of [`StorePath`]: a
/// base-32 text begins with the last bits of its hash.
#[must_use]
pub fn fingerprint(info: &PathInfo) -> String {
    let references = sorted(info.references.iter().map(StorePath::to_string)).join(",");
    format!("1;{};{};{};{references}", info.path, info.nar_hash, info.nar_bytes)
}

/// Returns the texts in order, each once.
pub(super) fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<_> = texts.collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

/// The values of a narinfo as they stand there.
#[derive(Default)]
struct Fields<'a> {
    path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_bytes: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_bytes: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
    content_address: Option<&'a str>,
    signatures: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    /// Takes a text apart into fields.
    fn parse(text: &'a str) -> Result<Self, NarInfoError> {
        if text.len() > NARINFO_BYTES_MAX {
            return Err(NarInfoError::TooLong);
        }
        let mut fields = Self::default();
        for (line, number) in text.split_inclusive('\n').zip(1..) {
            let (name, value) = line
                .strip_suffix('\n')
                .and_then(|line| line.split_once(": "))
                .filter(|(name, _)| !name.is_empty())
                .ok_or(NarInfoError::Line { line: number })?;
            let (slot, name) = match name {
                "StorePath" => (&mut fields.path, "StorePath"),
                "URL" => (&mut fields.url, "URL"),
                "Compression" => (&mut fields.compression, "Compression"),
                "FileHash" => (&mut fields.file_hash, "FileHash"),
                "FileSize" => (&mut fields.file_bytes, "FileSize"),
                "NarHash" => (&mut fields.nar_hash, "NarHash"),
                "NarSize" => (&mut fields.nar_bytes, "NarSize"),
                "References" => (&mut fields.references, "References"),
                "Deriver" => (&mut fields.deriver, "Deriver"),
                "CA" => (&mut fields.content_address, "CA"),
                "Sig" => {
                    fields.signatures.push(value);
                    continue;
                }
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(NarInfoError::Twice(name));
            }
        }
        Ok(fields)
    }
}

/// Appends a line.
fn put(text: &mut String, name: &'static str, value: &str) -> Result<(), NarInfoError> {
    if value.is_empty() || value.contains(['\n', '\r']) {
        return Err(NarInfoError::Value(name));
    }
    // Writing to a string cannot fail.
    writeln!(text, "{name}: {value}").map_err(|_| NarInfoError::Value(name))
}

/// Returns a value that must be there and not be empty.
fn mandatory<'a>(name: &'static str, value: Option<&'a str>) -> Result<&'a str, NarInfoError> {
    match value {
        None => Err(NarInfoError::Missing(name)),
        Some("") => Err(NarInfoError::Value(name)),
        Some(value) => Ok(value),
    }
}

/// Reads a number of bytes.
fn number(name: &'static str, value: Option<&str>) -> Result<u64, NarInfoError> {
    let digits = mandatory(name, value)?;
    // The parser of numbers would accept a plus sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NarInfoError::Value(name));
    }
    digits.parse().map_err(|_| NarInfoError::Value(name))
}

/// Reads a SHA-256 with its prefix.
fn digest(name: &'static str, value: Option<&str>) -> Result<Sha256, NarInfoError> {
    let text = mandatory(name, value)?;
    text.strip_prefix("sha256:").and_then(Sha256::parse).ok_or(NarInfoError::Value(name))
}

#[cfg(test)]
mod tests;
