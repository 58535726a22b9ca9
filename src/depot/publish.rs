//! The published trees: static files that any web server, `rsync` or `file://` can serve.
//!
//! For each store directory there is one tree, in the layout that stock clients read. The tree
//! itself is the memory of what was published: a path is visible exactly when its narinfo is
//! there. What is there wrong, as after a restore, is replaced; what is withdrawn is removed in
//! `withdraw.rs`, by the same thread.

use super::{
    Depot, DepotError,
    layout::{PUBLIC, PUBLIC_FILE, make_dir, set_mode},
};
use crate::core::{
    change::{NarOrigin, NarRecord},
    store_path::{StoreDir, StorePath},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
};

/// When a path of a store may become visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublishPolicy {
    /// When everything it refers to is visible too.
    #[default]
    Complete,
    /// At once: what it refers to may be published by others.
    ExternalReferencesAllowed,
    /// Never by this program: a hook, or nobody, publishes what the depot holds.
    Never,
}

/// Why a path is not visible.
#[derive(Debug, Clone, PartialEq)]
pub enum Unpublished {
    /// These paths, which it refers to, are not visible yet. It follows by itself.
    Waiting(Vec<StorePath>),
    /// It was taken on a sender's word, which is not passed on.
    Trusted,
    /// Its store is not published here, by [`PublishPolicy::Never`].
    Off,
    /// Its file is not in the depot: restore it from a backup, or build it again.
    NotHeld,
    /// The other forms in which its store's clients want it are not made yet: give this to
    /// [`Depot::make_other_forms`], and then publish it again.
    OtherForms(Arc<NarRecord>),
}

/// What came of publishing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PublishReport {
    /// Paths that are visible now; also some that waited since earlier calls, and some that were
    /// visible before. References come before what refers to them.
    pub visible: Vec<StorePath>,
    /// Paths of this call that are not visible, and why.
    pub unpublished: Vec<(StorePath, Unpublished)>,
}

/// Makes verified nars visible. There is one, owned by one thread.
#[derive(Debug)]
pub struct Publisher {
    depot: Depot,
    policies: BTreeMap<StoreDir, PublishPolicy>,
    /// Paths whose references are not all visible, with those that are not.
    waiting: BTreeMap<StorePath, (Arc<NarRecord>, BTreeSet<StorePath>)>,
    /// For each path that is waited for, those that wait.
    waited_for: BTreeMap<StorePath, Vec<StorePath>>,
    /// What an earlier call could not finish because the disk failed.
    unfinished: Vec<Arc<NarRecord>>,
}

impl Publisher {
    /// Returns a publisher with a policy for each store directory; stores without one get
    /// [`PublishPolicy::Complete`].
    #[must_use]
    pub fn new(depot: Depot, policies: BTreeMap<StoreDir, PublishPolicy>) -> Self {
        Self {
            depot,
            policies,
            waiting: BTreeMap::new(),
            waited_for: BTreeMap::new(),
            unfinished: Vec::new(),
        }
    }

    /// Publishes these nars, as far as their references allow.
    ///
    /// Call it when their rows are committed, and at start with all that are not marked as
    /// published. It may be repeated. What is `visible` is durable when this returns, and its rows
    /// may be marked. It costs two waits for the disk, so give it many at once.
    ///
    /// # Errors
    /// When files cannot be written. Nothing is lost: the next call tries again.
    pub fn publish(&mut self, records: Vec<Arc<NarRecord>>) -> Result<PublishReport, DepotError> {
        let mut report = PublishReport::default();
        let mut queue = std::mem::take(&mut self.unfinished);
        queue.extend(records);
        let chosen = self.choose(queue, &mut report);
        match self.write(&chosen) {
            Ok(()) => {
                report.visible = chosen.iter().map(|record| record.info.path.clone()).collect();
                Ok(report)
            }
            Err(error) => {
                self.unfinished = chosen;
                Err(error)
            }
        }
    }

    /// Returns the paths that `path` waits for; `None` when it does not wait.
    #[must_use]
    pub fn waits_for(&self, path: &StorePath) -> Option<&BTreeSet<StorePath>> {
        self.waiting.get(path).map(|(_, missing)| missing)
    }

    /// Forgets a path that waits for others, because it is held no more.
    pub fn forget(&mut self, path: &StorePath) {
        self.waiting.remove(path);
        self.unfinished.retain(|record| record.info.path != *path);
    }

    /// Decides which nars become visible now, references first.
    fn choose(
        &mut self,
        mut queue: Vec<Arc<NarRecord>>,
        report: &mut PublishReport,
    ) -> Vec<Arc<NarRecord>> {
        let mut chosen: Vec<Arc<NarRecord>> = Vec::new();
        let mut chosen_paths = BTreeSet::new();
        let given: BTreeSet<StorePath> = queue.iter().map(|r| r.info.path.clone()).collect();
        while let Some(record) = queue.pop() {
            let path = record.info.path.clone();
            if chosen_paths.contains(&path) || self.waiting.contains_key(&path) {
                continue;
            }
            if let Some(reason) = self.obstacle(&record) {
                report.unpublished.push((path, reason));
                continue;
            }
            let missing = self.missing(&record, &chosen_paths);
            if !missing.is_empty() {
                for reference in &missing {
                    self.waited_for.entry(reference.clone()).or_default().push(path.clone());
                }
                self.waiting.insert(path, (record, missing));
                continue;
            }
            for waiter in self.waited_for.remove(&path).unwrap_or_default() {
                let Some((_, missing)) = self.waiting.get_mut(&waiter) else { continue };
                missing.remove(&path);
                if missing.is_empty()
                    && let Some((record, _)) = self.waiting.remove(&waiter)
                {
                    queue.push(record);
                }
            }
            chosen_paths.insert(path);
            chosen.push(record);
        }
        report.unpublished.extend(given.into_iter().filter_map(|path| {
            let (_, missing) = self.waiting.get(&path)?;
            let reason = Unpublished::Waiting(missing.iter().cloned().collect());
            Some((path, reason))
        }));
        chosen
    }

    /// Returns why a nar cannot be published, however long it waits for others.
    fn obstacle(&self, record: &Arc<NarRecord>) -> Option<Unpublished> {
        match record.origin {
            NarOrigin::Trusted => Some(Unpublished::Trusted),
            NarOrigin::Built | NarOrigin::ContentAddressed => {
                if self.policy_of(record) == PublishPolicy::Never {
                    return Some(Unpublished::Off);
                }
                // Seen before anything is written, so that a lost file holds up no others.
                if !self.depot.0.places.nar(&record.file_hash).exists() {
                    Some(Unpublished::NotHeld)
                } else if !self.depot.has_other_forms(record) {
                    Some(Unpublished::OtherForms(Arc::clone(record)))
                } else {
                    None
                }
            }
        }
    }

    fn policy_of(&self, record: &NarRecord) -> PublishPolicy {
        self.policies.get(record.info.path.dir()).copied().unwrap_or_default()
    }

    /// Returns the references that must become visible before the nar does.
    fn missing(&self, record: &NarRecord, chosen: &BTreeSet<StorePath>) -> BTreeSet<StorePath> {
        let path = &record.info.path;
        match self.policy_of(record) {
            PublishPolicy::ExternalReferencesAllowed | PublishPolicy::Never => BTreeSet::new(),
            PublishPolicy::Complete => {
                let references = record.info.references.iter();
                references
                    .filter(|r| *r != path && !chosen.contains(*r) && !self.is_visible(r))
                    .cloned()
                    .collect()
            }
        }
    }

    fn is_visible(&self, path: &StorePath) -> bool {
        self.depot.0.places.narinfo(path.dir(), path.hash()).exists()
    }

    /// Writes everything beside its place, waits for the disk, then moves it into place.
    fn write(&self, chosen: &[Arc<NarRecord>]) -> Result<(), DepotError> {
        let mut moves: Vec<(PathBuf, PathBuf)> = Vec::new();
        for record in chosen {
            // One that is there from before can be of another nar, as after a restore.
            if self.is_visible(&record.info.path) && self.depot.shows_rightly(record)? {
                continue;
            }
            moves.push(self.prepare(record)?);
        }
        if moves.is_empty() {
            return Ok(());
        }
        self.depot.sync()?;
        let mut trees = BTreeSet::new();
        for (new, place) in &moves {
            fs_err::rename(new, place)?;
            trees.extend(place.parent());
        }
        // A row that says “published” is never looked at again, so the names must last too.
        for tree in trees {
            fs_err::File::open(tree)?.sync_all()?;
        }
        Ok(())
    }

    /// Links the nar into the tree and writes its narinfo under another name.
    fn prepare(&self, record: &NarRecord) -> Result<(PathBuf, PathBuf), DepotError> {
        let places = &self.depot.0.places;
        let dir = record.info.path.dir();
        let tree = places.tree(dir);
        make_tree(&tree, dir)?;
        self.depot.link(record)?;
        let text = self.depot.narinfo(record)?;
        let place = places.narinfo(dir, record.info.path.hash());
        let new = place.with_extension("narinfo.new");
        fs_err::write(&new, text)?;
        set_mode(&new, PUBLIC_FILE)?;
        Ok((new, place))
    }
}

/// Makes what a tree consists of before anything is published in it.
pub(super) fn make_tree(tree: &std::path::Path, dir: &StoreDir) -> io::Result<()> {
    let about = tree.join("nix-cache-info");
    if about.exists() {
        return Ok(());
    }
    make_dir(tree, PUBLIC)?;
    make_dir(&tree.join("nar"), PUBLIC)?;
    let new = tree.join("nix-cache-info.new");
    // Nix's own cache has priority 40; a farm that is named beside it is asked first.
    fs_err::write(&new, format!("StoreDir: {dir}\nWantMassQuery: 1\nPriority: 30\n"))?;
    set_mode(&new, PUBLIC_FILE)?;
    fs_err::rename(new, about)
}
