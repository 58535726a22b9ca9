//! What a build finds when it starts: its directory and its environment.

use super::{BuildOrder, BuilderError, Place, outputs, records, sandbox};
use crate::core::{derivation::Derivation, hash::Sha256, store_path::StorePath};
use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

/// The variables of structured attributes and of closures as files, which are not written here.
const UNSUPPORTED: &[&str] = &["__json", "exportReferencesGraph"];

/// Variables that ask Nix for checks on the closure of an output, which are not made here.
const UNSUPPORTED_CHECKS: &[&str] = &["allowedRequisites", "disallowedRequisites"];

/// Makes the directory of all workplaces, and removes those whose processes were killed: their
/// locks are gone with them.
pub(super) fn open(place: &Place) -> Result<(), BuilderError> {
    let all = place.state_dir.join("builds");
    fs_err::create_dir_all(&all)?;
    let _lock = records::wait_for_lock(fs_err::File::open(&all)?)?;
    for entry in fs_err::read_dir(&all)? {
        let entry = entry?;
        let dir = entry.path();
        // One whose build just ended may be gone by now.
        let Ok(file) = fs_err::File::open(&dir) else { continue };
        if let Some(_abandoned) = records::lock_unless_held(file)? {
            outputs::remove_tree(&scratch(place, &entry.file_name()))?;
            outputs::remove_tree(&dir)?;
        }
    }
    Ok(())
}

/// Returns the directory that becomes the store of the build in the workplace of that name.
fn scratch(place: &Place, name: &OsStr) -> PathBuf {
    let mut hidden = OsString::from(".build-");
    hidden.push(name);
    place.physical_dir.join(hidden)
}

/// Returns why such a derivation cannot be built here.
pub(super) fn unsupported(derivation: &Derivation<'_>) -> Option<String> {
    let builder = &derivation.builder;
    if builder.starts_with(b"builtin:") {
        let name = builder.escape_ascii();
        return Some(format!("{name} needs a Nix or Guix daemon"));
    }
    if let Some(fixed) = derivation.fixed_output()
        && fixed.algorithm != "sha256"
    {
        return Some(format!("fixed outputs with {} need a Nix or Guix daemon", fixed.algorithm));
    }
    let mut names = UNSUPPORTED.iter().chain(UNSUPPORTED_CHECKS);
    let name = names.find(|name| derivation.env(name.as_bytes()).is_some())?;
    Some(format!("derivations with {name} need a Nix or Guix daemon"))
}

/// The directory of one build, removed when dropped.
#[derive(Debug)]
pub(super) struct Workplace {
    dir: PathBuf,
    order_file: PathBuf,
    scratch: PathBuf,
    _lock: records::Lock,
}

impl Workplace {
    /// Makes the directory and writes the order for the processes that start the builder.
    /// `inputs` is the closure of what the build may read.
    pub(super) fn new(
        place: &Place,
        order: &BuildOrder<'_>,
        inputs: &BTreeSet<StorePath>,
    ) -> Result<Self, BuilderError> {
        let name = format!("{:016x}", super::random()?);
        let all = place.state_dir.join("builds");
        let dir = all.join(&name);
        let scratch = scratch(place, OsStr::new(&name));
        // Nobody may find the directory abandoned between its making and its locking.
        let lock_of_all = records::wait_for_lock(fs_err::File::open(&all)?)?;
        fs_err::create_dir(&dir)?;
        let lock = records::wait_for_lock(fs_err::File::open(&dir)?)?;
        drop(lock_of_all);
        let workplace = Self { order_file: dir.join("order"), dir, scratch, _lock: lock };
        let top = workplace.dir.join("top");
        let temporary = workplace.dir.join("tmp");
        for new in [&top, &temporary, &workplace.scratch] {
            fs_err::create_dir(new)?;
        }
        // The order repeats the environment of the derivation; other users need not read either.
        fs_err::set_permissions(&workplace.dir, std::fs::Permissions::from_mode(0o700))?;
        let derivation = order.derivation;
        let written = sandbox::Order {
            builder: derivation.builder.to_vec().into(),
            arguments: derivation.arguments.iter().map(|a| a.to_vec().into()).collect(),
            environment: environment(order, place, &top)?,
            directory: top,
            network: match derivation.fixed_output() {
                Some(_) => sandbox::Network::Host,
                None => sandbox::Network::Own,
            },
            temporary,
            shared: place.shared.clone(),
            store: sandbox::StoreView {
                logical: place.store_dir.as_str().into(),
                physical: place.physical_dir.clone(),
                scratch: workplace.scratch.clone(),
                inputs: inputs.iter().map(|path| path.base_name().clone()).collect(),
            },
        };
        let bytes = rmp_serde::to_vec_named(&written).map_err(io::Error::other)?;
        fs_err::write(&workplace.order_file, bytes)?;
        Ok(workplace)
    }

    /// Moves the outputs that the build made in a store of its own to where they belong. Without
    /// namespaces they are there already.
    pub(super) fn place_outputs(
        &self,
        place: &Place,
        derivation: &Derivation<'_>,
    ) -> Result<(), BuilderError> {
        for output in &derivation.outputs {
            let made = self.scratch.join(output.path.base_name());
            match fs_err::symlink_metadata(&made) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
                // A directory is moved only by who may write into it: rename(2).
                Ok(facts) if facts.is_dir() => {
                    fs_err::set_permissions(&made, std::fs::Permissions::from_mode(0o755))?;
                }
                Ok(_) => {}
            }
            fs_err::rename(&made, place.physical_dir.join(output.path.base_name()))?;
        }
        Ok(())
    }

    /// Returns the file that [`sandbox::enter`] reads.
    pub(super) fn order_file(&self) -> &Path {
        &self.order_file
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        for dir in [&self.scratch, &self.dir] {
            if let Err(error) = outputs::remove_tree(dir) {
                tracing::warn!(%error, "the directory of a build could not be removed");
            }
        }
    }
}

/// Returns the environment of a build: what Nix sets, the derivation's, and what Nix insists on.
///
/// Source: Nix `src/libstore/build/local-derivation-goal.cc`, `initEnv` and `initTmpDir`.
fn environment(
    order: &BuildOrder<'_>,
    place: &Place,
    top: &Path,
) -> io::Result<Vec<sandbox::Variable>> {
    let derivation = order.derivation;
    let mut variables = std::collections::BTreeMap::<Vec<u8>, Vec<u8>>::new();
    let mut set = |name: &str, value: &[u8]| {
        variables.insert(name.as_bytes().to_vec(), value.to_vec());
    };
    set("PATH", b"/path-not-set");
    set("HOME", b"/homeless-shelter");
    set("NIX_STORE", place.store_dir.as_str().as_bytes());
    set("NIX_BUILD_CORES", order.cores.to_string().as_bytes());
    let as_files: Vec<&[u8]> =
        derivation.env(b"passAsFile").map_or_else(Vec::new, |names| words(names).collect());
    for (name, value) in &derivation.env {
        if as_files.contains(&name.as_ref()) {
            let file = top.join(format!(".attr-{}", Sha256::of(name).base32()));
            fs_err::write(&file, value)?;
            let name = [name.as_ref(), b"Path"].concat();
            variables.insert(name, file.as_os_str().as_bytes().to_vec());
        } else {
            variables.insert(name.to_vec(), value.to_vec());
        }
    }
    let top = top.as_os_str().as_bytes();
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        variables.insert(name.into(), top.to_vec());
    }
    variables.insert(b"NIX_LOG_FD".into(), b"2".into());
    variables.insert(b"TERM".into(), b"xterm-256color".into());
    // What a fixed output may take from the machine, such as proxies: its hash is known.
    if derivation.fixed_output().is_some() {
        variables.insert(b"NIX_OUTPUT_CHECKED".into(), b"1".into());
        for name in derivation.env(b"impureEnvVars").map_or_else(Vec::new, |n| words(n).collect()) {
            let value = env::var_os(OsStr::from_bytes(name)).unwrap_or_default();
            variables.insert(name.to_vec(), value.as_bytes().to_vec());
        }
    }
    Ok(variables
        .into_iter()
        .map(|(name, value)| sandbox::Variable { name: name.into(), value: value.into() })
        .collect())
}

/// Returns the words of a list in a variable.
pub(super) fn words(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}
