//! The signing key in `secrets/`.

use super::{
    DepotError,
    layout::{PRIVATE, check_secret, make_dir},
};
use crate::formats::signature::nix::NixSecretKey;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::{
    io::{self, Write as _},
    path::Path,
};

/// The name of the file.
const FILE_NAME: &str = "signing-nix.key";
/// Nobody but the coordinator reads or writes it.
const MODE: u32 = 0o600;

/// Reads the key, or makes it of `seed` when there is none. The name of a key that is there stays.
pub(super) fn load_or_make(
    secrets: &Path,
    name: &str,
    seed: [u8; 32],
) -> Result<NixSecretKey, DepotError> {
    make_dir(secrets, PRIVATE)?;
    let path = secrets.join(FILE_NAME);
    let unusable = |source| DepotError::Key { path: path.clone(), source };
    match fs_err::read_to_string(&path) {
        Ok(text) => {
            check_secret(&path)?;
            NixSecretKey::parse(&text).map_err(unusable)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = NixSecretKey::generate(name, seed).map_err(unusable)?;
            write_new(&path, &key.to_text())?;
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
