//! Ed25519 key files: the coordinator's host key and an agent's identity.

use super::keys;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use russh::keys::{
    Algorithm, Certificate, PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use std::{
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The longest private key file, in bytes; an Ed25519 one has about 400.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// Why there is no usable key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file or its folder cannot be read or written.
    #[error("cannot read or make the key file {}", path.display())]
    File {
        /// The key file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The file is no private key that this program can use.
    #[error(
        "{} is not an unencrypted Ed25519 key in OpenSSH format: make one with \
         ‘ssh-keygen -t ed25519 -N \"\" -f FILE’, or remove the file and a new one is made",
        path.display()
    )]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },
    /// Others than the owner may read the file.
    #[error("{} may be read by others (mode {mode:03o}): chmod 600 it", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
}

/// An Ed25519 key pair. Cheap to clone; does not print its private half.
#[derive(Clone)]
pub struct KeyPair {
    pub(super) private: Arc<PrivateKey>,
    /// The file that a certificate for it would be in.
    certificate: Option<Arc<Path>>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyPair({})", self.fingerprint())
    }
}

impl KeyPair {
    /// Returns the key pair of 32 secret random bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let private = Arc::new(PrivateKey::from(Ed25519Keypair::from_seed(&seed)));
        Self { private, certificate: None }
    }

    /// Returns the public key as one line, `ssh-ed25519 AAAA…`, without a comment.
    #[must_use]
    pub fn public_line(&self) -> String {
        let mut public = self.private.public_key().clone();
        public.set_comment("");
        public.to_openssh().unwrap_or_default()
    }

    /// Returns the certificate that lies beside the key, if there is one for it: `KEY-cert.pub`, as
    /// `ssh-keygen -s` writes it. Read anew each time, since certificates are short-lived.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        let path = self.certificate.as_deref()?;
        let found = fs_err::metadata(path).ok().filter(|found| found.len() <= KEY_FILE_BYTES_MAX);
        let text = fs_err::read_to_string(found.map(|_| path)?).ok()?;
        let certificate = Certificate::from_openssh(&text).ok();
        let own = self.private.public_key().key_data();
        let fitting = certificate.filter(|certificate| certificate.public_key() == own);
        if fitting.is_none() {
            tracing::warn!(path = %path.display(), "not a certificate for the key beside it");
        }
        fitting
    }

    /// Returns the fingerprint as `ssh-keygen -l` prints it: `SHA256:` and base64.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        keys::fingerprint(self.private.public_key())
    }
}

/// Returns the key in the file, making file and folder (modes 0600 and 0700) when there is none.
/// Two processes that start at once end up with the same key. Blocks on the disk.
///
/// # Errors
/// [`KeyFileError`]; a file that is there is never replaced.
pub fn load_or_create(path: &Path) -> Result<KeyPair, KeyFileError> {
    match load(path) {
        Err(KeyFileError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let failed = |source| KeyFileError::File { path: path.to_owned(), source };
            create(path).map_err(failed)?;
            load(path)
        }
        other => other,
    }
}

/// Returns the key in the file.
///
/// # Errors
/// [`KeyFileError`], also when there is no file.
pub fn load(path: &Path) -> Result<KeyPair, KeyFileError> {
    let failed = |source| KeyFileError::File { path: path.to_owned(), source };
    let not_a_key = || KeyFileError::NotAKey { path: path.to_owned() };
    let found = fs_err::metadata(path).map_err(failed)?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    if !found.is_file() || found.len() > KEY_FILE_BYTES_MAX {
        return Err(not_a_key());
    }
    let text = fs_err::read(path).map_err(failed)?;
    let private = PrivateKey::from_openssh(text).map_err(|_| not_a_key())?;
    if private.is_encrypted() || private.algorithm() != Algorithm::Ed25519 {
        return Err(not_a_key());
    }
    let mut certificate = path.as_os_str().to_owned();
    certificate.push("-cert.pub");
    let certificate = Some(Path::new(&certificate).into());
    Ok(KeyPair { private: Arc::new(private), certificate })
}

/// Makes a new key file, unless one appears meanwhile.
fn create(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let text = KeyPair::from_seed(seed)
        .private
        .to_openssh(LineEnding::LF)
        .map_err(|error| io::Error::other(error.to_string()))?;

    let mut tag = [0; 8];
    getrandom::fill(&mut tag).map_err(io::Error::other)?;
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut draft = name.to_owned();
    draft.push(format!(".{:016x}.new", u64::from_ne_bytes(tag)));
    let draft = folder.join(draft);
    let written = write_private(&draft, text.as_bytes())
        // Unlike a rename, a link never replaces the key that another process has just made.
        .and_then(|()| match fs_err::hard_link(&draft, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    let removed = fs_err::remove_file(&draft);
    written?;
    removed?;
    fs_err::File::open(folder)?.sync_all()
}

fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file =
        fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets/host_ed25519");
        let made = load_or_create(&path).unwrap();
        let again = load_or_create(&path).unwrap();
        assert_eq!(made.public_line(), again.public_line());
        assert!(made.public_line().starts_with("ssh-ed25519 AAAA"));
        assert!(made.fingerprint().starts_with("SHA256:"));
        let bits = |path: &Path| fs_err::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(bits(&path), 0o600);
        assert_eq!(bits(path.parent().unwrap()), 0o700);
        assert_eq!(fs_err::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_exposed_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        load_or_create(&path).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load_or_create(&path), Err(KeyFileError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"hello").unwrap();
        assert!(matches!(load_or_create(&path), Err(KeyFileError::NotAKey { .. })));
        assert_eq!(fs_err::read(&path).unwrap(), b"hello");
    }
}
