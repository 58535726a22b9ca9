//! Makes room: removes valid paths that nothing needs, those that were not used for longest first.
//!
//! A path is needed when it is rooted ([`super::roots`]), when a needed path refers to it, or while
//! somebody moves or builds it. The record goes first, then the files; what an interrupted
//! collection left of the files is removed by the next one.

use super::{
    BuilderError, Direct, outputs,
    records::{self, Used},
    roots::Whose,
};
use crate::core::store_path::StorePath;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// How the name begins that files get when their path is not valid any more.
const DEAD: &str = ".dead-";

/// All valid paths of a store, with who refers to whom.
struct Graph {
    paths: BTreeMap<StorePath, Used>,
    referrers: BTreeMap<StorePath, BTreeSet<StorePath>>,
}

impl Graph {
    fn new(all: Vec<Used>) -> Self {
        let mut referrers: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
        for used in &all {
            for reference in &used.info.references {
                if *reference != used.info.path {
                    let known = referrers.entry(reference.clone()).or_default();
                    known.insert(used.info.path.clone());
                }
            }
        }
        let paths = all.into_iter().map(|used| (used.info.path.clone(), used)).collect();
        Self { paths, referrers }
    }

    /// Returns `roots` and all that they refer to, as far as it is valid.
    fn closure(&self, roots: BTreeSet<StorePath>) -> BTreeSet<StorePath> {
        let mut closure = BTreeSet::new();
        let mut open: Vec<StorePath> = roots.into_iter().collect();
        while let Some(path) = open.pop() {
            if let Some(used) = self.paths.get(&path)
                && closure.insert(path)
            {
                open.extend(used.info.references.iter().cloned());
            }
        }
        closure
    }

    /// Returns the paths outside of `live`, those unused for longest first, each behind all that
    /// refer to it.
    fn dead(&self, live: &BTreeSet<StorePath>) -> Vec<StorePath> {
        let mut oldest: Vec<&Used> =
            self.paths.values().filter(|used| !live.contains(&used.info.path)).collect();
        oldest.sort_by_key(|used| (used.at, &used.info.path));
        let (mut order, mut placed) = (Vec::new(), BTreeSet::new());
        for used in oldest {
            // A path whose referrers are all placed is placed; else they go first.
            let mut open = vec![&used.info.path];
            while let Some(path) = open.last().copied() {
                let referrers = self.referrers.get(path).into_iter().flatten();
                let before: Vec<_> = referrers.filter(|path| !placed.contains(*path)).collect();
                if before.is_empty() {
                    open.pop();
                    if placed.insert(path.clone()) {
                        order.push(path.clone());
                    }
                } else {
                    open.extend(before);
                }
            }
        }
        order
    }
}

impl Direct {
    /// Returns which of `paths` somebody else uses, while nobody roots anything.
    pub(super) fn used_by_others(
        &self,
        paths: &BTreeSet<StorePath>,
        held: &records::Lock,
    ) -> Result<Option<StorePath>, BuilderError> {
        let rooted = self.roots.read(Whose::Others, held)?;
        if rooted.is_empty() {
            return Ok(None);
        }
        let live = Graph::new(self.records.all()?).closure(rooted);
        Ok(paths.iter().find(|path| live.contains(*path)).cloned())
    }

    /// Removes unused paths until `bytes` are freed, and returns how many were.
    pub(super) fn make_room(&self, bytes: u64) -> Result<u64, BuilderError> {
        let (freed, dead) = self.make_invalid(bytes)?;
        for files in dead {
            outputs::remove_tree(&files)?;
        }
        Ok(freed)
    }

    /// Makes unused paths invalid, and returns how many bytes they have and where they are now.
    fn make_invalid(&self, bytes: u64) -> Result<(u64, Vec<PathBuf>), BuilderError> {
        let held = self.roots.hold()?;
        let mut dead = self.left_behind()?;
        let graph = Graph::new(self.records.all()?);
        let live = graph.closure(self.roots.read(Whose::All, &held)?);
        let (mut freed, mut removed) = (0u64, BTreeSet::new());
        for path in graph.dead(&live) {
            if freed >= bytes {
                break;
            }
            let mut referrers = graph.referrers.get(&path).into_iter().flatten();
            if !referrers.all(|referrer| removed.contains(referrer)) {
                continue;
            }
            // Somebody moves or builds it at this moment.
            let Some(_lock) = self.records.try_lock(&path)? else { continue };
            self.records.remove(&path)?;
            let name = format!("{DEAD}{:016x}", super::random()?);
            let away = self.place.physical_dir.join(name);
            fs_err::rename(self.physical(&path), &away)?;
            dead.push(away);
            let used = graph.paths.get(&path);
            freed = freed.saturating_add(used.map_or(0, |used| used.info.nar_bytes));
            removed.insert(path);
        }
        Ok((freed, dead))
    }

    /// Returns what earlier collections did not remove.
    fn left_behind(&self) -> Result<Vec<PathBuf>, BuilderError> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.place.physical_dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(DEAD.as_bytes()) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        builders::{Builder as _, direct::Place},
        core::{hash::Sha256, path_info::PathInfo, store_path::StoreDir},
        formats::nar::{NarWriter, Regular},
    };
    use std::path::Path;

    /// Returns the nar of a file.
    fn nar_of(content: &[u8]) -> Vec<u8> {
        let mut nar = NarWriter::new(Vec::new());
        nar.begin().unwrap();
        let size = content.len().try_into().unwrap();
        nar.regular(Regular { executable: false, size }).unwrap();
        nar.content(content).unwrap();
        nar.finish().unwrap()
    }

    fn open(dir: &Path) -> Direct {
        let store_dir: StoreDir = dir.join("store").to_str().unwrap().parse().unwrap();
        Direct::open(Place {
            shared: vec![],
            physical_dir: dir.join("store"),
            store_dir,
            state_dir: dir.join("state"),
            program: "/nonexistent".into(),
        })
        .unwrap()
    }

    fn path(direct: &Direct, name: &str) -> StorePath {
        let hash = Sha256::of(name.as_bytes());
        direct.store_dir().make_path("source", &hash, name).unwrap()
    }

    /// Takes in a path, last used so many seconds after the epoch, and lets go of it.
    fn add(dir: &Path, name: &str, references: &[&str], used_s: i64) -> StorePath {
        let mut direct = open(dir);
        let nar = nar_of(name.as_bytes());
        let info = PathInfo {
            path: path(&direct, name),
            nar_hash: Sha256::of(&nar),
            nar_bytes: nar.len().try_into().unwrap(),
            references: references.iter().map(|name| path(&direct, name)).collect(),
            deriver: None,
            signatures: vec![],
            content_address: None,
        };
        direct.import(&info, &mut nar.as_slice()).unwrap();
        direct.records.set_used(&info.path, used_s).unwrap();
        info.path
    }

    fn valid(direct: &mut Direct, paths: &[&StorePath]) -> Vec<bool> {
        let all: Vec<StorePath> = paths.iter().map(|path| (*path).clone()).collect();
        let valid = direct.valid(&all).unwrap();
        paths.iter().map(|path| valid.contains(*path)).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_no_more_than_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let [new, old, middle] = [("new", 30), ("old", 10), ("middle", 20)]
            .map(|(name, at)| add(dir.path(), name, &[], at));
        let mut direct = open(dir.path());
        assert!(direct.collect(1).unwrap() > 1);
        assert_eq!(valid(&mut direct, &[&new, &old, &middle]), [true, false, true]);
        assert!(!direct.physical(&old).exists());
        assert!(direct.physical(&middle).exists());
        let left = fs_err::read_dir(dir.path().join("store")).unwrap().count();
        assert_eq!(left, 2);
        assert_eq!(direct.collect(0).unwrap(), 0);
        assert_eq!(valid(&mut direct, &[&new, &middle]), [true, true]);
    }

    #[test]
    fn what_is_rooted_stays_with_all_it_refers_to_until_its_builder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let low = add(dir.path(), "low", &[], 10);
        let high = add(dir.path(), "high", &["low"], 10);
        let other = add(dir.path(), "other", &[], 10);
        let mut user = open(dir.path());
        let later = path(&user, "later");
        user.root(&[high.clone(), later.clone()]).unwrap();
        add(dir.path(), "later", &[], 10);
        let mut collector = open(dir.path());
        collector.collect(u64::MAX).unwrap();
        assert_eq!(
            valid(&mut collector, &[&low, &high, &other, &later]),
            [true, true, false, true]
        );
        drop(user);
        collector.collect(u64::MAX).unwrap();
        assert_eq!(valid(&mut collector, &[&low, &high, &later]), [false, false, false]);
    }

    #[test]
    fn a_path_goes_only_behind_all_that_refer_to_it() {
        let dir = tempfile::tempdir().unwrap();
        // The oldest is what the others need.
        let low = add(dir.path(), "low", &[], 10);
        let high = add(dir.path(), "high", &["low", "high"], 20);
        let mut direct = open(dir.path());
        direct.collect(1).unwrap();
        assert_eq!(valid(&mut direct, &[&low, &high]), [true, false]);

        let high = add(dir.path(), "high", &["low"], 20);
        let _building = direct.records.try_lock(&high).unwrap().unwrap();
        direct.collect(u64::MAX).unwrap();
        assert_eq!(valid(&mut direct, &[&low, &high]), [true, true]);
    }

    #[test]
    fn use_is_noted_when_a_path_is_rooted() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] =
            [("one", 10), ("two", 20)].map(|(name, at)| add(dir.path(), name, &[], at));
        open(dir.path()).root(std::slice::from_ref(&one)).unwrap();
        let mut direct = open(dir.path());
        direct.collect(1).unwrap();
        assert_eq!(valid(&mut direct, &[&one, &two]), [true, false]);
    }

    #[test]
    fn what_somebody_else_uses_is_not_removed_for_a_new_build() {
        let dir = tempfile::tempdir().unwrap();
        let output = add(dir.path(), "output", &[], 10);
        let mut user = open(dir.path());
        user.root(std::slice::from_ref(&output)).unwrap();
        let mut direct = open(dir.path());
        let error = direct.remove(std::slice::from_ref(&output)).unwrap_err();
        assert!(matches!(&error, BuilderError::OutputsPresent { path, .. } if *path == output));
        drop(user);
        direct.remove(std::slice::from_ref(&output)).unwrap();
        assert_eq!(valid(&mut direct, &[&output]), [false]);
    }

    #[test]
    fn what_an_interrupted_collection_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut direct = open(dir.path());
        let left = dir.path().join("store").join(format!("{DEAD}0123"));
        fs_err::create_dir(&left).unwrap();
        fs_err::write(left.join("file"), "x").unwrap();
        direct.collect(0).unwrap();
        assert!(!left.exists());
    }
}
