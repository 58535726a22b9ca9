//! The keydir: which key is whom.
//!
//! `keys/{agents,viewers,submitters,operators,admins}/NAME.pub`, more keys of the same principal
//! in further lines or in `NAME@place.pub`, options in front of each key. What cannot be read
//! without doubt refuses the key concerned and is reported; it never refuses the others.

use super::{
    authorize::{Credential, Principal, Quotas, Role},
    certificates::{self, Authority, Revocations},
    key_line::{self, KeyOptions},
    local::Forced,
};
use crate::core::{id::Name, time::Timestamp};
use russh::keys::{Certificate, HashAlg, PublicKey, ssh_key::public::KeyData};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    io::{self, ErrorKind},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The longest key file, in bytes: 1 MiB holds about 10,000 keys.
pub const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// The most keys in one keydir.
pub const KEYS_MAX: usize = 100_000;

/// The folder of those who vouch for keys.
pub(super) const AUTHORITIES: &str = "ca";

/// The list of what is worth nothing any more.
const REVOKED: &str = "revoked";

/// The name that all strangers share.
const STRANGER: &str = "stranger";

/// Something in the keydir that was not followed. The key concerned is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeydirProblem {
    /// The file or folder.
    pub path: PathBuf,
    /// The line, counted from 1; `None` where the whole file is meant.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for KeydirProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// One reading of the keydir.
#[derive(Debug, Default)]
pub struct Keydir {
    keys: HashMap<KeyData, Entry>,
    authorities: HashMap<KeyData, Authority>,
    revocations: Revocations,
}

/// What somebody has shown, and proved to hold the private key of.
#[derive(Debug, Clone)]
pub(super) enum Presented {
    /// A key.
    Key(KeyData),
    /// A certificate, on a connection from there.
    Certificate(Box<Certificate>, IpAddr),
    /// A key that is known nowhere, under the user name for such.
    Unknown(PublicKey),
    /// Nothing here: the host's own sshd has let somebody in, and its configuration says who that
    /// is.
    Forced(Forced),
}

/// A key as the keydir has it.
#[derive(Debug, Clone)]
pub struct ListedKey {
    /// Whose it is.
    pub principal: Arc<Principal>,
    /// From when on it is refused.
    pub expires: Option<Timestamp>,
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// Whether it is refused, because it stands in several places that differ.
    pub disputed: bool,
}

#[derive(Debug)]
struct Entry {
    principal: Arc<Principal>,
    expires: Option<Timestamp>,
    path: PathBuf,
    line: usize,
    /// Whether several files claim the key differently: it stays known so that a third claim is
    /// reported too, and nobody gets in with it.
    disputed: bool,
}

impl Keydir {
    /// Reads the keydir at `path`, and what in it was not followed. A missing keydir is an empty
    /// one with a problem.
    ///
    /// # Errors
    /// When the operating system fails to read something for a reason that is not the keydir's
    /// (too many open files, a broken disk): what was read before remains the better knowledge.
    pub fn load(path: &Path) -> io::Result<(Self, Vec<KeydirProblem>)> {
        let mut reading = Reading { keydir: Self::default(), problems: Vec::new() };
        reading.keydir_at(path)?;
        reading.refuse_revoked();
        Ok((reading.keydir, reading.problems))
    }

    /// Returns who somebody is, if anybody, at this time. The one place where what was shown
    /// becomes a principal.
    #[must_use]
    pub(super) fn principal(
        &self,
        presented: &Presented,
        now: Timestamp,
    ) -> Option<Arc<Principal>> {
        match presented {
            Presented::Key(key) => self.principal_of(key, now),
            Presented::Certificate(certificate, peer) => {
                let authority = self.authorities.get(certificate.signature_key())?;
                let judged =
                    certificates::principal(certificate, authority, &self.revocations, now, *peer);
                match judged {
                    Ok(principal) => Some(Arc::new(principal)),
                    Err(reason) => {
                        let key = fingerprint_of(certificate.public_key());
                        tracing::info!(%reason, key, authority = %authority.path.display(),
                            "certificate refused");
                        None
                    }
                }
            }
            Presented::Unknown(key) => Some(Arc::new(stranger(key))),
            Presented::Forced(forced) => self.principal_forced(forced, now),
        }
    }

    /// Returns whom a listed key belongs to, if anybody, at this time.
    #[must_use]
    pub(super) fn principal_of(&self, key: &KeyData, now: Timestamp) -> Option<Arc<Principal>> {
        let entry = self.keys.get(key)?;
        let expired = entry.expires.is_some_and(|end| end <= now);
        (!entry.disputed && !expired).then(|| Arc::clone(&entry.principal))
    }

    /// Returns whom a forced command means, if anybody, at this time: the principal of that name,
    /// with the limits of the first of its keys. A name that several roles have needs the role;
    /// one that no key has is known by its role alone, without limits.
    #[must_use]
    pub(super) fn principal_forced(
        &self,
        forced: &Forced,
        now: Timestamp,
    ) -> Option<Arc<Principal>> {
        let of_name = |entry: &&Entry| {
            !entry.disputed
                && entry.principal.name == forced.name
                && forced.role.is_none_or(|role| role == entry.principal.role)
        };
        let entries: Vec<&Entry> = self.keys.values().filter(of_name).collect();
        if entries.is_empty() {
            return forced.role.map(|role| Arc::new(forced.unlisted(role)));
        }
        let role = entries[0].principal.role;
        if entries.iter().any(|entry| entry.principal.role != role) {
            return None;
        }
        let valid = entries.iter().filter(|entry| entry.expires.is_none_or(|end| end > now));
        let first = valid.min_by_key(|entry| entry.principal.fingerprint.as_str());
        first.map(|entry| Arc::clone(&entry.principal))
    }

    /// Returns whether time alone has changed nothing for a certificate that was believed.
    pub(super) fn still_holds(&self, presented: &Presented, now: Timestamp) -> bool {
        let Presented::Certificate(certificate, _) = presented else { return false };
        let Some(authority) = self.authorities.get(certificate.signature_key()) else {
            return false;
        };
        let seconds = u64::try_from(now.as_ms().div_euclid(1_000)).unwrap_or(0);
        certificate.valid_after() <= seconds
            && seconds < certificate.valid_before()
            && authority.options.expires.is_none_or(|end| end > now)
    }

    /// Returns whether somebody who is not listed may be known by a certificate.
    #[must_use]
    pub fn has_authorities(&self) -> bool {
        !self.authorities.is_empty()
    }

    /// Returns the names of agents that have a key that is let in at this time.
    pub(super) fn agents(&self, now: Timestamp) -> BTreeSet<Name> {
        let usable = self.keys.values().filter(|entry| {
            entry.principal.role == Role::Agent
                && !entry.disputed
                && entry.expires.is_none_or(|end| end > now)
        });
        usable.map(|entry| entry.principal.name.clone()).collect()
    }

    /// Returns every key with its place, ordered by role, name and fingerprint.
    #[must_use]
    pub fn listed(&self) -> Vec<ListedKey> {
        let mut all: Vec<ListedKey> = self
            .keys
            .values()
            .map(|entry| ListedKey {
                principal: Arc::clone(&entry.principal),
                expires: entry.expires,
                path: entry.path.clone(),
                line: entry.line,
                disputed: entry.disputed,
            })
            .collect();
        all.sort_by(|a, b| {
            let (a, b) = (&a.principal, &b.principal);
            (a.role, &a.name, &a.fingerprint).cmp(&(b.role, &b.name, &b.fingerprint))
        });
        all
    }

    /// Returns every principal with the time their key expires, ordered by role, name, fingerprint.
    #[must_use]
    pub fn principals(&self) -> Vec<(Arc<Principal>, Option<Timestamp>)> {
        let mut all: Vec<_> = self
            .keys
            .values()
            .filter(|entry| !entry.disputed)
            .map(|entry| (Arc::clone(&entry.principal), entry.expires))
            .collect();
        all.sort_by(|(a, _), (b, _)| {
            (a.role, &a.name, &a.fingerprint).cmp(&(b.role, &b.name, &b.fingerprint))
        });
        all
    }
}

struct Reading {
    keydir: Keydir,
    problems: Vec<KeydirProblem>,
}

impl Reading {
    fn report(&mut self, path: &Path, line: Option<usize>, message: impl Into<String>) {
        self.problems.push(KeydirProblem { path: path.to_owned(), line, message: message.into() });
    }

    fn keydir_at(&mut self, path: &Path) -> io::Result<()> {
        for (name, child) in self.children(path)? {
            if is_ignored(&name) {
                continue;
            }
            if let Some(role) = Role::of_folder(&name) {
                self.role_folder(&child, role)?;
            } else if name == AUTHORITIES {
                self.authorities_folder(&child)?;
            } else if name == REVOKED {
                self.revoked_file(&child)?;
            } else {
                let folders = Role::ALL.map(Role::folder).join(", ");
                self.report(
                    &child,
                    None,
                    format!("ignored: keys belong into {folders}, {AUTHORITIES}"),
                );
            }
        }
        Ok(())
    }

    fn role_folder(&mut self, path: &Path, role: Role) -> io::Result<()> {
        for (file, child) in self.children(path)? {
            if is_ignored(&file) {
                continue;
            }
            let Some(stem) = file.strip_suffix(".pub") else {
                self.report(&child, None, "ignored: key files are called NAME.pub");
                continue;
            };
            let (name, place) = match stem.split_once('@') {
                Some((name, place)) => (name, Some(place)),
                None => (stem, None),
            };
            match name.parse::<Name>() {
                Ok(_) if place == Some("") => {
                    let message = "keys refused: call the file NAME.pub or NAME@place.pub";
                    self.report(&child, None, message);
                }
                Ok(name) => self.key_file(&child, role, &name)?,
                Err(invalid) => {
                    self.report(&child, None, format!("keys refused: {invalid}: rename the file"));
                }
            }
        }
        Ok(())
    }

    fn authorities_folder(&mut self, path: &Path) -> io::Result<()> {
        for (file, child) in self.children(path)? {
            if is_ignored(&file) {
                continue;
            }
            if file.strip_suffix(".pub").is_none() {
                self.report(&child, None, "ignored: files of authorities are called NAME.pub");
                continue;
            }
            let Some(text) = self.text_of(&child)? else { continue };
            for (number, line) in numbered(&text) {
                match key_line::parse(line) {
                    Ok(None) => {}
                    Ok(Some((key, options))) => self.enter_authority(&child, number, &key, options),
                    Err(error) => {
                        self.report(&child, Some(number), format!("authority refused: {error}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn enter_authority(
        &mut self,
        path: &Path,
        line: usize,
        key: &PublicKey,
        mut options: KeyOptions,
    ) {
        let message = match options.roles.take() {
            None => "authority refused: say which roles it may give, as in roles=\"agent\"",
            Some(_) if self.keydir.authorities.contains_key(key.key_data()) => {
                "authority listed twice: the first line holds; remove one"
            }
            Some(roles) => {
                let path = path.to_owned();
                let authority = Authority { options, roles, path, line };
                self.keydir.authorities.insert(key.key_data().clone(), authority);
                return;
            }
        };
        self.report(path, Some(line), message);
    }

    /// Reads what is revoked. Where that cannot be told, no certificate is believed.
    fn revoked_file(&mut self, path: &Path) -> io::Result<()> {
        let Some(text) = self.text_of(path)? else {
            self.keydir.revocations.is_unknown = true;
            return Ok(());
        };
        for (number, line) in numbered(&text) {
            if let Err(message) = self.keydir.revocations.add_line(line) {
                self.keydir.revocations.is_unknown = true;
                let message = format!("all certificates refused until this is mended: {message}");
                self.report(path, Some(number), message);
            }
        }
        Ok(())
    }

    /// Takes out what is listed and revoked.
    fn refuse_revoked(&mut self) {
        let revocations = std::mem::take(&mut self.keydir.revocations);
        let mut problems = Vec::new();
        let mut report = |path: &Path, line: usize, what: &str| {
            let message = format!("{what} refused: it is in {REVOKED}; remove one of the two");
            problems.push(KeydirProblem { path: path.to_owned(), line: Some(line), message });
        };
        self.keydir.keys.retain(|key, entry| {
            let stays = !revocations.names(key);
            if !stays {
                report(&entry.path, entry.line, "key");
            }
            stays
        });
        self.keydir.authorities.retain(|key, authority| {
            let stays = !revocations.names(key);
            if !stays {
                report(&authority.path, authority.line, "authority");
            }
            stays
        });
        problems.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
        self.problems.extend(problems);
        self.keydir.revocations = revocations;
    }

    /// Returns the text of a file; `None`, with a problem, when it cannot be read.
    fn text_of(&mut self, path: &Path) -> io::Result<Option<String>> {
        match read_text(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_the_keydirs_fault(&error) => {
                self.report(path, None, format!("keys refused: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns what a folder holds, ordered by name so that problems are reported in a fixed order.
    fn children(&mut self, path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
        let entries = match fs_err::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if is_the_keydirs_fault(&error) => {
                self.report(path, None, format!("cannot be read: {}", error.kind()));
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut children = Vec::new();
        for entry in entries {
            let path = entry?.path();
            match path.file_name().and_then(|name| name.to_str()) {
                Some(name) => children.push((name.to_owned(), path.clone())),
                None => self.report(&path, None, "ignored: rename it in plain letters"),
            }
        }
        children.sort();
        Ok(children)
    }

    fn key_file(&mut self, path: &Path, role: Role, name: &Name) -> io::Result<()> {
        let Some(text) = self.text_of(path)? else { return Ok(()) };
        for (number, line) in numbered(&text) {
            match key_line::parse(line) {
                Ok(None) => {}
                Ok(Some((_, options))) if options.roles.is_some() => {
                    let message = "key refused: roles= is for authorities; the folder gives a role";
                    self.report(path, Some(number), message);
                }
                Ok(Some((key, options))) => {
                    let principal = principal(name, role, &key, &options);
                    let entry = Entry {
                        principal: Arc::new(principal),
                        expires: options.expires,
                        path: path.to_owned(),
                        line: number,
                        disputed: false,
                    };
                    self.enter(key.key_data().clone(), entry);
                }
                Err(error) => self.report(path, Some(number), format!("key refused: {error}")),
            }
        }
        Ok(())
    }

    fn enter(&mut self, key: KeyData, entry: Entry) {
        if let Some(first) = self.keydir.keys.get_mut(&key) {
            let same = first.principal == entry.principal && first.expires == entry.expires;
            if same && !first.disputed {
                return;
            }
            first.disputed = true;
            let message = format!(
                "key refused in both places: {} is also {} {} with other options or name in {}:{}: \
                 remove one",
                entry.principal.fingerprint,
                first.principal.role,
                first.principal.name,
                first.path.display(),
                first.line,
            );
            self.report(&entry.path, Some(entry.line), message);
        } else if self.keydir.keys.len() >= KEYS_MAX {
            let message = format!("key refused: the keydir holds more than {KEYS_MAX} keys");
            self.report(&entry.path, Some(entry.line), message);
        } else {
            self.keydir.keys.insert(key, entry);
        }
    }
}

/// Returns the fingerprint of a key as `ssh-keygen -l` prints it.
pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn fingerprint_of(key: &KeyData) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn principal(name: &Name, role: Role, key: &PublicKey, options: &KeyOptions) -> Principal {
    Principal {
        name: name.clone(),
        role,
        fingerprint: fingerprint(key),
        systems: options.systems.clone(),
        tags: options.tags.clone(),
        max_priority: options.max_priority,
        trusted_import: options.trusted_import,
        quotas: options.quotas,
        credential: Credential::Listed,
    }
}

/// Returns who somebody is whose key is known nowhere.
fn stranger(key: &PublicKey) -> Principal {
    let mut plain = key.clone();
    plain.set_comment("");
    Principal {
        name: STRANGER.parse().expect("the word is a name"),
        role: Role::Stranger,
        fingerprint: fingerprint(key),
        systems: None,
        tags: Vec::new(),
        max_priority: None,
        trusted_import: false,
        quotas: Quotas::default(),
        credential: Credential::Unknown { key: plain.to_openssh().unwrap_or_default() },
    }
}

/// Returns the lines of a text with their numbers, counted from 1.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines())
}

/// Returns whether a file is there for people or for version control.
fn is_ignored(name: &str) -> bool {
    name.starts_with('.') || name == "README.md" || name.ends_with('~')
}

fn is_the_keydirs_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::FileTooLarge
    )
}

fn read_text(path: &Path) -> io::Result<String> {
    let found = fs_err::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "not a file: key files are NAME.pub"));
    }
    if found.len() > KEY_FILE_BYTES_MAX {
        let message = format!("longer than {KEY_FILE_BYTES_MAX} bytes: split it");
        return Err(io::Error::new(ErrorKind::FileTooLarge, message));
    }
    String::from_utf8(fs_err::read(path)?)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "not text: expected public keys"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::host_key::KeyPair;

    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        fn with(files: &[(&str, String)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = dir.path().join(path);
                fs_err::create_dir_all(path.parent().unwrap()).unwrap();
                fs_err::write(path, text).unwrap();
            }
            Self { dir }
        }

        fn load(&self) -> (Keydir, Vec<String>) {
            let (keydir, problems) = Keydir::load(self.dir.path()).unwrap();
            let prefix = format!("{}/", self.dir.path().display());
            let texts = problems.iter().map(|one| one.to_string().replace(&prefix, "")).collect();
            (keydir, texts)
        }
    }

    fn key(seed: u8) -> (String, KeyData) {
        let pair = KeyPair::from_seed([seed; 32]);
        (pair.public_line(), PublicKey::from_openssh(&pair.public_line()).unwrap().into())
    }

    fn whom(keydir: &Keydir, key: &KeyData) -> Option<(Role, String)> {
        let found = keydir.principal_of(key, NOW)?;
        Some((found.role, found.name.to_string()))
    }

    #[test]
    fn folders_give_roles_and_files_give_names() {
        let (one, one_data) = key(1);
        let (two, two_data) = key(2);
        let (three, three_data) = key(3);
        let (_, unknown) = key(4);
        let world = World::with(&[
            ("agents/honeycomb.pub", format!("# the first\n\n{one}\n{two}\n")),
            ("admins/ada@laptop.pub", three),
            ("README.md", "hello".to_owned()),
            ("admins/.gitkeep", String::new()),
        ]);
        let (keydir, problems) = world.load();
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(whom(&keydir, &one_data), Some((Role::Agent, "honeycomb".to_owned())));
        assert_eq!(whom(&keydir, &two_data), Some((Role::Agent, "honeycomb".to_owned())));
        assert_eq!(whom(&keydir, &three_data), Some((Role::Admin, "ada".to_owned())));
        assert_eq!(whom(&keydir, &unknown), None);
        assert_eq!(keydir.principals().len(), 3);
    }

    #[test]
    fn a_key_in_two_roles_or_under_two_names_is_refused_everywhere() {
        let (line, data) = key(1);
        for other in ["admins/ada.pub", "viewers/bob.pub", "viewers/ada@x.pub"] {
            let options = if other.contains('@') { "trusted-import " } else { "" };
            let world = World::with(&[
                ("viewers/ada.pub", line.clone()),
                (other, format!("{options}{line}")),
            ]);
            let (keydir, problems) = world.load();
            assert_eq!(whom(&keydir, &data), None, "{other}");
            assert_eq!(problems.len(), 1, "{other}");
            assert!(problems[0].contains("refused in both places"), "{problems:?}");
            assert_eq!(keydir.principals().len(), 0);
        }
    }

    #[test]
    fn the_same_key_of_the_same_principal_twice_does_no_harm() {
        let (line, data) = key(1);
        let world = World::with(&[
            ("viewers/ada.pub", format!("{line} work\n{line} home")),
            ("viewers/ada@x.pub", line),
        ]);
        let (keydir, problems) = world.load();
        assert_eq!(problems, Vec::<String>::new());
        assert!(whom(&keydir, &data).is_some());
    }

    #[test]
    fn a_bad_line_refuses_only_its_own_key() {
        let (good, good_data) = key(1);
        let (bad, bad_data) = key(2);
        let world =
            World::with(&[("viewers/ada.pub", format!("nonsense\n{good}\nrestrict {bad}\n"))]);
        let (keydir, problems) = world.load();
        assert!(whom(&keydir, &good_data).is_some());
        assert_eq!(whom(&keydir, &bad_data), None);
        assert!(problems[0].starts_with("viewers/ada.pub:1: key refused: not a"), "{problems:?}");
        assert!(problems[1].starts_with("viewers/ada.pub:3: key refused: unk"), "{problems:?}");
    }

    #[test]
    fn misplaced_and_misnamed_files_are_reported() {
        let (line, data) = key(1);
        for path in ["ada.pub", "roots/ada.pub", "admins/-x.pub", "admins/ada", "admins/ada@.pub"] {
            let world = World::with(&[(path, line.clone())]);
            let (keydir, problems) = world.load();
            assert_eq!(whom(&keydir, &data), None, "{path}");
            assert_eq!(problems.len(), 1, "{path}: {problems:?}");
        }
    }

    #[test]
    fn keys_expire() {
        let (line, data) = key(1);
        let world = World::with(&[("viewers/ada.pub", format!("expiry-time=\"20270115\" {line}"))]);
        let (keydir, _) = world.load();
        let midnight = Timestamp::from_ms(1_799_971_200_000);
        assert!(keydir.principal_of(&data, midnight.plus_ms(-1)).is_some());
        assert!(keydir.principal_of(&data, midnight).is_none());
    }

    #[test]
    fn what_is_no_text_or_too_long_is_reported() {
        let world = World::with(&[("viewers/long.pub", "#".repeat(1 << 21))]);
        fs_err::write(world.dir.path().join("viewers/binary.pub"), [0xff, 0xfe]).unwrap();
        fs_err::create_dir(world.dir.path().join("viewers/folder.pub")).unwrap();
        let (keydir, problems) = world.load();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(keydir.principals().len(), 0);
    }

    #[test]
    fn a_missing_keydir_lets_nobody_in_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (keydir, problems) = Keydir::load(&dir.path().join("keys")).unwrap();
        assert_eq!(problems.len(), 1);
        assert_eq!(keydir.principals().len(), 0);
    }
}
