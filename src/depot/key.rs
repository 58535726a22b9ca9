//! The signing keys in `secrets/`, one for each dialect.

use super::{
    DepotError, SigningKeyError,
    layout::{PRIVATE, check_secret, make_dir},
};
use crate::{
    core::hash::Sha256Hasher,
    formats::signature::{guix::GuixSecretKey, nix::NixSecretKey},
};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::{
    io::{self, Write as _},
    path::Path,
};
use zeroize::Zeroizing;

/// The name of the file of each dialect.
const NIX_FILE_NAME: &str = "signing-nix.key";
const GUIX_FILE_NAME: &str = "signing-guix.key";
/// Nobody but the coordinator reads or writes them.
const MODE: u32 = 0o600;

/// The secret keys of a coordinator.
#[derive(Debug)]
pub(super) struct SigningKeys {
    pub(super) nix: NixSecretKey,
    pub(super) guix: GuixSecretKey,
}

impl SigningKeys {
    /// Reads the keys, and makes those of `seed` that are not there. The name of a key that is
    /// there stays.
    pub(super) fn load_or_make(
        secrets: &Path,
        name: &str,
        seed: &[u8; 32],
    ) -> Result<Self, DepotError> {
        make_dir(secrets, PRIVATE)?;
        let nix = load_or_make(
            &secrets.join(NIX_FILE_NAME),
            |text| Ok(NixSecretKey::parse(text)?),
            || Ok(NixSecretKey::generate(name, *seed)?),
            |key| Zeroizing::new(key.to_text()),
        )?;
        let guix = load_or_make(
            &secrets.join(GUIX_FILE_NAME),
            |text| Ok(GuixSecretKey::parse(text)?),
            || Ok(GuixSecretKey::generate(seed_of_guix(seed))),
            GuixSecretKey::to_text,
        )?;
        Ok(Self { nix, guix })
    }
}

/// Returns a seed that tells nothing of the one that the Nix key is made of.
fn seed_of_guix(seed: &[u8; 32]) -> [u8; 32] {
    let mut hasher = Sha256Hasher::default();
    hasher.update(b"steading signing key of the Guix dialect");
    hasher.update(seed);
    *hasher.finish().as_bytes()
}

/// Reads a key, or makes it when there is none.
fn load_or_make<K>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<K, SigningKeyError>,
    generate: impl FnOnce() -> Result<K, SigningKeyError>,
    to_text: impl FnOnce(&K) -> Zeroizing<String>,
) -> Result<K, DepotError> {
    let unusable = |source| DepotError::Key { path: path.to_owned(), source };
    match fs_err::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => {
            check_secret(path)?;
            parse(&text).map_err(unusable)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = generate().map_err(unusable)?;
            write_new(path, to_text(&key).trim_ascii_end())?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the file so that after a crash it is whole or absent.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
    super::layout::set_mode(&new, MODE)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    // A link is refused when the name is taken, so that a key is never replaced.
    fs_err::hard_link(&new, path)?;
    fs_err::remove_file(&new)?;
    path.parent().map_or(Ok(()), |dir| fs_err::File::open(dir)?.sync_all())
}
