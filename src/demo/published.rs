//! Reads the published tree like a stranger: with nothing but the tree and the public key.

use super::{DemoError, Member, around, successes};
use crate::{
    core::{
        hash::{Sha256, Sha256Hasher},
        store_path::{StoreDir, StorePath},
    },
    formats::{
        nar::{NarLimits, NarReader},
        narinfo::{self, NarInfo},
        signature::nix::NixPublicKey,
    },
};
use fs_err as fs;
use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long publishing may take behind the commit.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(30);
/// How often a file is looked for that nobody announces.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// What a nar of the demo may ask.
const LIMITS: NarLimits = NarLimits { bytes_max: 1 << 20, entries_max: 100, depth_max: 10 };

/// Checks that every output of every success is published, signed and complete.
pub(super) async fn read_back(
    state_dir: &Path,
    store_dir: &StoreDir,
    members: &[Member],
) -> Result<(), DemoError> {
    let tree = find_tree(&state_dir.join("public"), store_dir)?;
    let key = fs::read_to_string(state_dir.join("run/signing-nix.pub"))
        .map_err(around("cannot read the public signing key"))?;
    let key = NixPublicKey::parse(key.trim_end())
        .map_err(|error| DemoError::Unexpected(error.to_string()))?;
    for member in successes(members) {
        for output in &member.derivation.outputs {
            let file = narinfo_file(&tree, &output.path);
            tokio::time::timeout(PUBLISH_DEADLINE, appears(&file))
                .await
                .map_err(|_| DemoError::Unexpected(format!("{} was not published", output.path)))?;
            check(&tree, &key, &output.path, store_dir, member)?;
        }
    }
    for member in members.iter().filter(|member| member.expected != super::Expected::Success) {
        for output in &member.derivation.outputs {
            if narinfo_file(&tree, &output.path).exists() {
                let text = format!("{} is published but was never built", output.path);
                return Err(DemoError::Unexpected(text));
            }
        }
    }
    Ok(())
}

async fn appears(file: &Path) {
    while !file.exists() {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Finds the tree whose `nix-cache-info` names the store directory.
fn find_tree(public: &Path, store_dir: &StoreDir) -> Result<PathBuf, DemoError> {
    let unread = || around("cannot read the published trees");
    for entry in fs::read_dir(public).map_err(unread())? {
        let tree = entry.map_err(unread())?.path();
        let info = fs::read_to_string(tree.join("nix-cache-info")).map_err(unread())?;
        if info.lines().any(|line| line.strip_prefix("StoreDir: ") == Some(store_dir.as_str())) {
            return Ok(tree);
        }
    }
    Err(DemoError::Unexpected(format!("no published tree is for {store_dir}")))
}

fn narinfo_file(tree: &Path, path: &StorePath) -> PathBuf {
    tree.join(format!("{}.narinfo", path.hash().base32()))
}

/// Checks one published path: signature, file, nar, references.
fn check(
    tree: &Path,
    key: &NixPublicKey,
    path: &StorePath,
    store_dir: &StoreDir,
    member: &Member,
) -> Result<(), DemoError> {
    let wrong = |what: &str| DemoError::Unexpected(format!("{path}: {what}"));
    let text =
        fs::read_to_string(narinfo_file(tree, path)).map_err(around("cannot read a narinfo"))?;
    let published = NarInfo::parse(&text, store_dir).map_err(|error| wrong(&error.to_string()))?;
    let info = &published.info;
    let fingerprint = narinfo::fingerprint(info);
    if !info.signatures.iter().any(|signature| key.verify(&fingerprint, signature)) {
        return Err(wrong("its signature is not the coordinator's"));
    }
    if info.deriver.as_ref() != Some(&member.path) {
        return Err(wrong("its deriver is another derivation"));
    }
    if let Some(lacking) =
        info.references.iter().find(|reference| !narinfo_file(tree, reference).exists())
    {
        return Err(wrong(&format!("{lacking}, which it refers to, is not published")));
    }
    let file = fs::read(tree.join(&published.url)).map_err(around("cannot read a nar"))?;
    if Sha256::of(&file) != published.file_hash || file.len() as u64 != published.file_bytes {
        return Err(wrong("its file is not the one that the narinfo describes"));
    }
    let mut nar = Vec::new();
    zstd::stream::read::Decoder::new(file.as_slice())
        .and_then(|decoder| decoder.take(LIMITS.bytes_max).read_to_end(&mut nar))
        .map_err(around("cannot decompress a nar"))?;
    let mut reader = NarReader::new(LIMITS);
    let whole = reader.feed(&nar, &mut ()).and_then(|_| reader.finish());
    whole.map_err(|error| wrong(&error.to_string()))?;
    let mut hasher = Sha256Hasher::default();
    hasher.update(&nar);
    if hasher.finish() != info.nar_hash || nar.len() as u64 != info.nar_bytes {
        return Err(wrong("its nar is not the one that was signed"));
    }
    Ok(())
}
