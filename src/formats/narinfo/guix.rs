//! Narinfos of the Guix dialect: one signature over what a path is, and behind it the places where
//! its nar lies, once for each compression.
//!
//! The text above the signature is what is signed, so where the nar lies can change without the
//! key. The hash of the compressed file is not told; what is unpacked is compared with the hash of
//! the nar. Source: Guix `guix/narinfo.scm`, `guix/scripts/publish.scm` (`narinfo-string`).

use super::{NarInfo, NarInfoError, PathInfo, Sha256, StoreDir, StorePath, put, sorted};
use crate::formats::signature::guix::NARINFO_SIGNATURE_FIELD;

/// One of the forms in which a nar is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarFile {
    /// Where it lies, relative to the narinfo.
    pub url: String,
    /// How it is compressed: `zstd`, `gzip`, `lzip`, `none`.
    pub compression: String,
    /// Its length, in bytes.
    pub file_bytes: u64,
}

/// Returns the lines that are signed: all that is said of a path, but not where its nar lies.
///
/// # Errors
/// As for [`text`].
pub fn facts(info: &PathInfo) -> Result<String, NarInfoError> {
    let mut text = String::with_capacity(1024);
    put(&mut text, "StorePath", &info.path.to_string())?;
    put(&mut text, "NarHash", &info.nar_hash.to_string())?;
    put(&mut text, "NarSize", &info.nar_bytes.to_string())?;
    let references = sorted(info.references.iter().map(StorePath::base_name));
    text.push_str("References: ");
    text.push_str(&references.join(" "));
    text.push('\n');
    if let Some(deriver) = &info.deriver {
        put(&mut text, "Deriver", &deriver.base_name())?;
    }
    Ok(text)
}

/// Returns the text of the narinfo file of a path whose first signature is over its [`facts`].
/// Readers take the first file whose compression they know, or the smallest.
///
/// # Errors
/// [`NarInfoError::Missing`] when there is no signature or no file, [`NarInfoError::Value`] when a
/// text is empty or has a line break in it, which would smuggle in another field.
pub fn text(info: &PathInfo, files: &[NarFile]) -> Result<String, NarInfoError> {
    let mut text = facts(info)?;
    let signature = info.signatures.first();
    let signature = signature.ok_or(NarInfoError::Missing(NARINFO_SIGNATURE_FIELD))?;
    put(&mut text, NARINFO_SIGNATURE_FIELD, signature)?;
    if files.is_empty() {
        return Err(NarInfoError::Missing("URL"));
    }
    for file in files {
        put(&mut text, "URL", &file.url)?;
        put(&mut text, "Compression", &file.compression)?;
        put(&mut text, "FileSize", &file.file_bytes.to_string())?;
    }
    Ok(text)
}

/// Reads the text of a narinfo file about a path in `dir`. Returns what it says of the path, and
/// where the first of its files lies.
///
/// What is above the signature has the fields of a narinfo of the other dialect, which reads it.
/// Nothing is verified.
///
/// # Errors
/// A [`NarInfoError`]; the narinfo is of no use then.
pub fn parse(text: &str, dir: &StoreDir) -> Result<(PathInfo, String), NarInfoError> {
    let missing = NarInfoError::Missing(NARINFO_SIGNATURE_FIELD);
    let (facts, rest) =
        text.split_once(&format!("\n{NARINFO_SIGNATURE_FIELD}: ")).ok_or(missing)?;
    let mut lines = rest.lines();
    let signature = lines.next().unwrap_or_default().to_owned();
    let url = lines
        .find_map(|line| line.strip_prefix("URL: "))
        .ok_or(NarInfoError::Missing("URL"))?
        .to_owned();
    let whole = format!(
        "{facts}\nURL: {url}\nCompression: none\nFileHash: {}\nFileSize: 1\n",
        Sha256::from_bytes([0; 32]),
    );
    let mut info = NarInfo::parse(&whole, dir)?.info;
    info.signatures = vec![signature];
    Ok((info, url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::store_path::PathHash;

    fn path(byte: u8, name: &str) -> StorePath {
        StoreDir::guix().path(PathHash::from_bytes([byte; 20]), name).unwrap()
    }

    fn info() -> PathInfo {
        PathInfo {
            path: path(1, "hello-2.12.1"),
            nar_hash: Sha256::of(b"nar"),
            nar_bytes: 226_560,
            references: vec![path(1, "hello-2.12.1"), path(2, "glibc-2.38")],
            deriver: Some(path(3, "hello-2.12.1.drv")),
            signatures: vec!["1;farm;KHNpZ25hdHVyZSk=".to_owned()],
            content_address: None,
        }
    }

    fn file(compression: &str) -> NarFile {
        NarFile {
            url: format!("nar/x.{compression}"),
            compression: compression.to_owned(),
            file_bytes: 50_184,
        }
    }

    #[test]
    fn the_text_is_the_one_that_guix_publish_writes() {
        insta::assert_snapshot!(text(&info(), &[file("zstd"), file("gzip")]).unwrap(), @r"
        StorePath: /gnu/store/040h2081040h2081040h2081040h2081-hello-2.12.1
        NarHash: sha256:0gsyc3g0w8wacg97wwm1iirigsl96k36iijdxiadn8cqcjmx18y1
        NarSize: 226560
        References: 040h2081040h2081040h2081040h2081-hello-2.12.1 081040h2081040h2081040h2081040h2-glibc-2.38
        Deriver: 0c1h60q30c1h60q30c1h60q30c1h60q3-hello-2.12.1.drv
        Signature: 1;farm;KHNpZ25hdHVyZSk=
        URL: nar/x.zstd
        Compression: zstd
        FileSize: 50184
        URL: nar/x.gzip
        Compression: gzip
        FileSize: 50184
        ");
    }

    #[test]
    fn what_was_written_is_read() {
        let text = text(&info(), &[file("zstd"), file("gzip")]).unwrap();
        let (read, url) = parse(&text, &StoreDir::guix()).unwrap();
        let mut expected = info();
        expected.references.sort();
        assert_eq!((read, url.as_str()), (expected, "nar/x.zstd"));
        for broken in ["", "Signature: x\n", &text.replace("URL", "LRU"), &text.replace('2', "e")] {
            assert!(parse(broken, &StoreDir::guix()).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_signed_is_all_above_the_signature() {
        let info = PathInfo { deriver: None, references: Vec::new(), ..info() };
        let text = text(&info, &[file("gzip")]).unwrap();
        let (above, _) = text.split_once("Signature: ").unwrap();
        assert_eq!(facts(&info).unwrap(), above);
        assert!(above.ends_with("References: \n"), "{above}");
    }

    #[test]
    fn nothing_is_written_without_a_signature_or_a_file() {
        let unsigned = PathInfo { signatures: Vec::new(), ..info() };
        assert!(matches!(
            text(&unsigned, &[file("gzip")]),
            Err(NarInfoError::Missing("Signature"))
        ));
        assert!(matches!(text(&info(), &[]), Err(NarInfoError::Missing("URL"))));
        let smuggled = PathInfo { signatures: vec!["1;a;b\nURL: x".to_owned()], ..info() };
        assert!(matches!(text(&smuggled, &[file("gzip")]), Err(NarInfoError::Value(_))));
    }
}
