//! Store paths of the farm: whose word they have, and how they come here.

use super::{
    farm::{Farm, FarmError, judge, wait},
    settings::Settings,
};
use crate::{
    builders::tree::{self, TreeError},
    core::{
        hash::{Sha256, Sha256Hasher},
        path_info::PathInfo,
        store_path::StorePath,
    },
    formats::{
        nar::NarLimits,
        narinfo,
        signature::guix::{GuixKeyError, GuixPublicKey},
    },
};
use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::Path,
    process::Stdio,
};

/// What a nar may ask of this machine: as much as the coordinator takes.
const NAR_LIMITS: NarLimits =
    NarLimits { bytes_max: 64 << 30, entries_max: 10_000_000, depth_max: 512 };
/// The origin of a nar that the coordinator took on somebody's word (`nar --json`).
const ON_TRUST: &str = "trusted";

/// What `nar --json` says of a nar, but for what is not looked at here.
#[derive(Debug, Clone, serde::Deserialize)]
struct Told {
    path: String,
    nar_hash: String,
    nar_bytes: u64,
    references: Vec<String>,
    deriver: Option<String>,
    signatures: Vec<String>,
    origin: String,
}

impl Told {
    fn info(&self) -> Option<PathInfo> {
        let references = self.references.iter().map(|path| path.parse().ok());
        Some(PathInfo {
            path: self.path.parse().ok()?,
            nar_hash: self.nar_hash.strip_prefix("sha256:").and_then(Sha256::parse)?,
            nar_bytes: self.nar_bytes,
            references: references.collect::<Option<_>>()?,
            deriver: match &self.deriver {
                Some(path) => Some(path.parse().ok()?),
                None => None,
            },
            signatures: self.signatures.clone(),
            content_address: None,
        })
    }
}

/// A nar that the farm holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// What the farm says of it.
    pub(super) info: PathInfo,
    /// Whether the farm vouches for it, in contrast to somebody who sent it there.
    vouched: bool,
}

/// Why a path of the farm is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// The farm took it on somebody's word.
    #[error("{0} was not built by the farm: somebody sent it there")]
    OnTrust(StorePath),
    /// No signature by a key that counts.
    #[error(
        "the farm's signature of {path} is not by a key in {}: run ‘guix archive --authorize’ with \
         the signing-guix.pub of its coordinator",
        acl.display()
    )]
    NotAuthorized {
        /// The path.
        path: StorePath,
        /// The list of keys.
        acl: std::path::PathBuf,
    },
    /// The list of keys cannot be read.
    #[error("the keys that count cannot be read")]
    Acl(#[source] io::Error),
    /// The list of keys is damaged.
    #[error("the list of keys that count is damaged")]
    Key(#[from] GuixKeyError),
    /// The content is not what was signed.
    #[error("the farm sent another content for {path}: {actual} instead of {expected}")]
    Differs {
        /// The path.
        path: StorePath,
        /// What was signed.
        expected: Sha256,
        /// What came.
        actual: Sha256,
    },
    /// It could not be unpacked.
    #[error("{path} could not be unpacked")]
    Unpack {
        /// The path.
        path: StorePath,
        /// What went wrong.
        #[source]
        source: TreeError,
    },
    /// The place for it is none.
    #[error("{0} is no place in a store")]
    Place(String),
    /// The farm did not give it.
    #[error(transparent)]
    Farm(#[from] FarmError),
}

/// Asks which of these paths the farm holds. Derivations are none of them: they are not built.
pub(super) fn held(farm: &Farm<'_>, paths: &[StorePath]) -> Result<Vec<Held>, FarmError> {
    let asked: BTreeSet<&StorePath> = paths.iter().filter(|path| !path.is_derivation()).collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let lines = super::lines(asked.iter().copied());
    let told: Vec<Told> = farm.ask(&["nar", "-"], &lines)?;
    // What cannot be read could not be signed, either, and is as if it were not there.
    let held = told
        .iter()
        .filter_map(|told| Some(Held { info: told.info()?, vouched: told.origin != ON_TRUST }));
    Ok(held.filter(|held| asked.contains(&held.info.path)).collect())
}

/// The keys whose signatures count on this machine.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    settings: &'a Settings,
    keys: Vec<GuixPublicKey>,
}

impl<'a> Keys<'a> {
    /// Reads the machine's list; where there is none, nobody counts.
    pub(super) fn read(settings: &'a Settings) -> Result<Self, NotTaken> {
        let keys = match fs_err::read_to_string(&settings.acl) {
            Ok(text) => GuixPublicKey::parse_acl(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(NotTaken::Acl(error)),
        };
        Ok(Self { settings, keys })
    }

    /// Returns a list with which nobody counts.
    pub(super) const fn none(settings: &'a Settings) -> Self {
        Self { settings, keys: Vec::new() }
    }

    /// Checks that the farm built a path, and that a key that counts has signed that.
    pub(super) fn check(&self, held: &Held) -> Result<(), NotTaken> {
        let Held { info, vouched } = held;
        if !vouched {
            return Err(NotTaken::OnTrust(info.path.clone()));
        }
        let facts = narinfo::guix::facts(info).unwrap_or_default();
        let is_good = |signature: &String| {
            !facts.is_empty() && self.keys.iter().any(|key| key.verify_narinfo(&facts, signature))
        };
        if info.signatures.iter().any(is_good) {
            return Ok(());
        }
        Err(NotTaken::NotAuthorized { path: info.path.clone(), acl: self.settings.acl.clone() })
    }
}

/// Fetches a path whose signature was checked and unpacks it at `place`, where it must not be yet;
/// what is not what was signed is removed again.
pub(super) fn unpack(farm: &Farm<'_>, info: &PathInfo, place: &Path) -> Result<(), NotTaken> {
    let no_place = || NotTaken::Place(place.display().to_string());
    let (Some(dir), Some(name)) = (place.parent(), place.file_name().and_then(|n| n.to_str()))
    else {
        return Err(no_place());
    };
    let words = ["nar".to_owned(), info.path.to_string()];
    let mut command = farm.command(&words);
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(FarmError::Run)?;
    let stdout = child.stdout.take().ok_or_else(no_place)?;
    let mut nar = Hashed { source: stdout, hasher: Sha256Hasher::default() };
    let unpacked = tree::restore(&mut nar, dir, name, NAR_LIMITS);
    let Hashed { source, hasher } = nar;
    // Were it still sending, it would wait for ever.
    drop(source);
    let ended = judge(wait(&mut child)?, b"");
    let remove = || tree::remove(dir, name).map_err(|source| unpack_error(info, source));
    match (unpacked, ended) {
        (Ok(()), Ok(())) => {}
        (Ok(()), Err(error)) => {
            remove()?;
            return Err(error.into());
        }
        // A connection that broke is why the nar ends early.
        (Err(TreeError::Nar(_) | TreeError::Source(_)), Err(error @ FarmError::Unreachable(_))) => {
            return Err(error.into());
        }
        (Err(source), _) => return Err(unpack_error(info, source)),
    }
    let actual = hasher.finish();
    if actual == info.nar_hash {
        return Ok(());
    }
    remove()?;
    Err(NotTaken::Differs { path: info.path.clone(), expected: info.nar_hash, actual })
}

fn unpack_error(info: &PathInfo, source: TreeError) -> NotTaken {
    NotTaken::Unpack { path: info.path.clone(), source }
}

/// Hashes what is read.
struct Hashed<R> {
    source: R,
    hasher: Sha256Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::store_path::{PathHash, StoreDir},
        formats::signature::guix::GuixSecretKey,
    };

    #[test]
    fn only_what_the_farm_vouches_for_under_a_key_of_the_list_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let acl = dir.path().join("acl");
        let settings = Settings { acl: acl.clone(), ..Settings::default() };
        let key = GuixSecretKey::generate([1; 32]);
        let path = StoreDir::guix().path(PathHash::from_bytes([1; 20]), "x").unwrap();
        let mut info = PathInfo {
            path: path.clone(),
            nar_hash: Sha256::of(b"nar"),
            nar_bytes: 3,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
        };
        let facts = narinfo::guix::facts(&info).unwrap();
        info.signatures.push(key.sign_narinfo("farm", &facts));
        let held = Held { info, vouched: true };
        let refused = |held: &Held| Keys::read(&settings).unwrap().check(held).is_err();
        assert!(refused(&held), "there is no list");
        let list = |key: &GuixSecretKey| {
            let entry = format!("(acl (entry {} (tag (guix import))))", key.public().to_text());
            fs_err::write(&acl, entry).unwrap();
        };
        list(&GuixSecretKey::generate([2; 32]));
        assert!(refused(&held), "the list has another key");
        list(&key);
        assert!(!refused(&held));
        assert!(refused(&Held { vouched: false, ..held.clone() }), "somebody sent it there");
        let mut altered = held.clone();
        altered.info.nar_hash = Sha256::of(b"another");
        assert!(refused(&altered), "it is about another nar");
        altered = held;
        altered.info.references.push(path);
        assert!(refused(&altered), "it refers to something else");
    }
}
