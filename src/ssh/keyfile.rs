//! Changing the keydir: a key enters in a file of its own, and leaves whatever file lists it.
//!
//! Files appear and change as wholes, by a link or a rename, as whoever reads the keydir expects.
//! Blocks on the disk; whoever calls sees to it that only one of these runs at a time.

use super::{authorize::Role, certificates, key_line, keys};
use crate::core::id::Name;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use russh::keys::{HashAlg, PublicKey};
use std::{
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

/// A key file is for everybody to read, as what is in it is public.
const MODE: u32 = 0o644;

/// A key that left a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The file.
    pub path: PathBuf,
    /// The line it was on, counted from 1.
    pub line: usize,
}

/// Whether a principal may be one that has a key already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// The principal must be new.
    NewPrincipal,
    /// The key may be another one of a principal of the same role.
    AnotherKey,
}

/// Why a key did not enter the keydir.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Another principal of some role is called so.
    #[error("the name is taken by {0}")]
    Taken(PathBuf),
    /// The line is none that the keydir would be read with.
    #[error("the key would be refused: {0}")]
    Line(String),
    /// The file cannot be written.
    #[error("the keydir cannot be written")]
    File(#[source] io::Error),
}

impl From<io::Error> for AddError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// Returns the fingerprint of a key and the key without options and comment, if it is one that may
/// come in.
///
/// # Errors
/// What is wrong with it, in words.
pub fn read_key(line: &str) -> Result<(String, String), String> {
    match key_line::parse(line) {
        Ok(Some((mut key, _))) => {
            key.set_comment("");
            let text = key.to_openssh().map_err(|_| "the key cannot be written down".to_owned())?;
            Ok((keys::fingerprint(&key), text))
        }
        Ok(None) => Err("there is no key".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Lists a key as that of a principal. It is durable when this returns.
///
/// # Errors
/// [`AddError`]; nothing is changed then.
pub fn add(
    keydir: &Path,
    role: Role,
    name: &Name,
    line: &str,
    addition: Addition,
) -> Result<PathBuf, AddError> {
    let (fingerprint, _) = read_key(line).map_err(AddError::Line)?;
    not_revoked(keydir, &fingerprint).map_err(AddError::Line)?;
    let folder = keydir.join(role.folder());
    fs::create_dir_all(&folder)?;
    let mut path = folder.join(format!("{name}.pub"));
    if let Some((known_role, known)) = file_of(keydir, name)? {
        if addition == Addition::NewPrincipal || known_role != role {
            return Err(AddError::Taken(known));
        }
        // A place that is not taken, and is the same when it is tried again.
        let place: String =
            fingerprint.chars().skip(7).filter(char::is_ascii_alphanumeric).take(12).collect();
        path = folder.join(format!("{name}@{place}.pub"));
    }
    let draft = write_draft(&folder, line)?;
    // Unlike a rename, a link never takes the place of a file that somebody has just made.
    let linked = fs::hard_link(&draft, &path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(AddError::Taken(path)),
        Err(error) => Err(error.into()),
        Ok(()) => {
            fs::File::open(&folder)?.sync_all()?;
            Ok(path)
        }
    }
}

/// Returns a file with keys of somebody of this name, and its role.
fn file_of(keydir: &Path, name: &Name) -> io::Result<Option<(Role, PathBuf)>> {
    for role in Role::ALL {
        for path in key_files(&keydir.join(role.folder()))? {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if stem.split('@').next() == Some(name.as_str()) {
                return Ok(Some((role, path)));
            }
        }
    }
    Ok(None)
}

/// Takes a key out of every file that lists it. It is durable when this returns. A file that lists
/// no other key goes.
///
/// # Errors
/// What the operating system says; the key may have left some files then.
pub fn remove(keydir: &Path, fingerprint: &str) -> io::Result<Vec<Removed>> {
    let mut removed = Vec::new();
    let folders = Role::ALL.map(Role::folder).into_iter().chain([keys::AUTHORITIES]);
    for folder in folders.map(|folder| keydir.join(folder)) {
        for path in key_files(&folder)? {
            remove_from(&path, fingerprint, &mut removed)?;
        }
    }
    Ok(removed)
}

/// Tells whether a key may be listed: whether it is not among what is revoked.
///
/// # Errors
/// Words for its owner.
pub fn not_revoked(keydir: &Path, fingerprint: &str) -> Result<(), String> {
    // What cannot be read now refuses certificates, and is reported, when the keydir is reread.
    let text = fs::read_to_string(certificates::revoked_file(keydir)).unwrap_or_default();
    if text.lines().any(|line| line.split_whitespace().next() == Some(fingerprint)) {
        return Err("it is revoked; an admin can take it out of keys/revoked".to_owned());
    }
    Ok(())
}

/// Notes that a key is worth nothing, whoever lists or certifies it.
///
/// # Errors
/// What the operating system says.
pub fn revoke(keydir: &Path, fingerprint: &str) -> io::Result<PathBuf> {
    let path = certificates::revoked_file(keydir);
    let mut text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if text.lines().any(|line| line.split_whitespace().next() == Some(fingerprint)) {
        return Ok(path);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(fingerprint);
    replace(&path, &text)?;
    Ok(path)
}

fn remove_from(path: &Path, fingerprint: &str, removed: &mut Vec<Removed>) -> io::Result<()> {
    // What is no text has no keys.
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let mut kept: Vec<&str> = Vec::new();
    let mut keys_kept: usize = 0;
    let before = removed.len();
    for (index, line) in text.lines().enumerate() {
        match key_of(line) {
            Some(key) if key.fingerprint(HashAlg::Sha256).to_string() == fingerprint => {
                removed.push(Removed { path: path.to_owned(), line: index.saturating_add(1) });
                continue;
            }
            Some(_) => keys_kept = keys_kept.saturating_add(1),
            None => {}
        }
        kept.push(line);
    }
    match (removed.len() > before, keys_kept) {
        (false, _) => Ok(()),
        (true, 0) => {
            fs::remove_file(path)?;
            sync_folder(path)
        }
        (true, _) => replace(path, &kept.join("\n")),
    }
}

/// Returns the key of a line, also where its options would refuse it.
fn key_of(line: &str) -> Option<PublicKey> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let starts = line.match_indices(|c: char| !c.is_whitespace());
    let mut words = starts.filter(|(at, _)| {
        *at == 0 || line.get(..*at).is_some_and(|before| before.ends_with([' ', '\t']))
    });
    words.find_map(|(at, _)| PublicKey::from_openssh(line.get(at..)?).ok())
}

/// Returns the key files of a folder, ordered by name; none when there is no folder.
fn key_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_hidden =
            path.file_name().and_then(|name| name.to_str()).is_none_or(|n| n.starts_with('.'));
        if !is_hidden && path.extension().is_some_and(|extension| extension == "pub") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Puts another text in the place of a file.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let draft = write_draft(folder, text)?;
    fs::rename(&draft, path)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::File::open(folder)?.sync_all()
}

/// Writes a file that readers of the keydir pass over.
fn write_draft(folder: &Path, text: &str) -> io::Result<PathBuf> {
    let mut tag = [0; 8];
    getrandom::fill(&mut tag).map_err(io::Error::other)?;
    let draft = folder.join(format!(".{:016x}.new", u64::from_ne_bytes(tag)));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(MODE).open(&draft)?;
    file.write_all(text.trim_end().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::KeyPair;
    use std::os::unix::fs::PermissionsExt as _;

    fn line(seed: u8) -> (String, String) {
        let pair = KeyPair::from_seed([seed; 32]);
        (pair.public_line(), pair.fingerprint())
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_enters_in_a_file_of_its_own_and_never_replaces_one() {
        let dir = tempfile::tempdir().unwrap();
        let (one, _) = line(1);
        let (two, _) = line(2);
        let amber = name("amber");
        let add = |role, key: &str, addition| add(dir.path(), role, &amber, key, addition);
        let path = add(Role::Agent, &one, Addition::NewPrincipal).unwrap();
        assert_eq!(path, dir.path().join("agents/amber.pub"));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{one}\n"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        for role in [Role::Agent, Role::Viewer] {
            let taken = add(role, &two, Addition::NewPrincipal);
            assert!(matches!(taken, Err(AddError::Taken(_))), "{taken:?}");
        }
        assert!(matches!(add(Role::Admin, &two, Addition::AnotherKey), Err(AddError::Taken(_))));
        let other = add(Role::Agent, &two, Addition::AnotherKey).unwrap();
        assert!(other.to_str().unwrap().contains("agents/amber@"), "{other:?}");
        assert_eq!(fs::read_dir(dir.path().join("agents")).unwrap().count(), 2);
        assert!(matches!(
            add(Role::Agent, "nonsense", Addition::AnotherKey),
            Err(AddError::Line(_))
        ));
    }

    #[test]
    fn a_key_leaves_every_file_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (one, print) = line(1);
        let (two, _) = line(2);
        fs::create_dir_all(dir.path().join("viewers")).unwrap();
        let both = dir.path().join("viewers/ada.pub");
        fs::write(&both, format!("# hers\ntags=\"a=b c\" {one} home\n\n{two}\n")).unwrap();
        let alone = dir.path().join("viewers/bob.pub");
        fs::write(&alone, format!("unknown-option {one}\n")).unwrap();
        let removed = remove(dir.path(), &print).unwrap();
        let expected =
            [Removed { path: both.clone(), line: 2 }, Removed { path: alone.clone(), line: 1 }];
        assert_eq!(removed, expected);
        assert_eq!(fs::read_to_string(&both).unwrap(), format!("# hers\n\n{two}\n"));
        assert!(!alone.exists());
        assert_eq!(remove(dir.path(), &print).unwrap(), []);
        assert_eq!(fs::read_dir(dir.path().join("viewers")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_revoked_is_added_to_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = revoke(dir.path(), "SHA256:a").unwrap();
        fs::write(&path, "SHA256:a\nserial 7").unwrap();
        revoke(dir.path(), "SHA256:b").unwrap();
        revoke(dir.path(), "SHA256:a").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "SHA256:a\nserial 7\nSHA256:b\n");
    }
}
