//! Compares memory, database, depot and published trees with one another.

use super::{
    super::{
        Coordinator,
        engine_thread::EngineGone,
        files::{OpenError, open_nar},
        hygiene::{ORPHAN_AGE_MS, forget_recorded},
    },
    loss::Loss,
    repair::Remedy,
};
use crate::{
    core::{
        change::NarRecord,
        engine::{Ask, Told},
        hash::Sha256,
        store_path::{PathHash, StoreDir},
        time::Timestamp,
    },
    depot::{Depot, DepotError, OpenNar, PublishPolicy, Shown, Surplus, Tree},
    store::{Reader, StoreError},
    telemetry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How many findings one check has at most: whoever has more begins with these.
const FINDINGS_MAX: usize = 100_000;
/// How many files of a tree are compared with all rows at a time.
const FILES_PER_LOOK: usize = 100_000;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What memory has of open builds.
    Memory,
    /// Memory, and what the database would give.
    MemoryAndDisk,
    /// The database.
    Database,
    /// The files that rows speak of.
    Depot,
    /// What others see.
    Published,
}

impl Part {
    /// Returns the word that commands print.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::MemoryAndDisk => "memory-and-disk",
            Self::Database => "database",
            Self::Depot => "depot",
            Self::Published => "published",
        }
    }
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names and lengths of nars.
    Shallow,
    /// All of every nar.
    Deep,
}

/// Something that is not as it should be.
#[derive(Debug)]
pub struct Finding {
    /// Where.
    pub part: Part,
    /// What, in one line.
    pub what: String,
    /// What to do about it, in one line.
    pub advice: String,
    /// What can be done by itself.
    pub(super) remedy: Option<Remedy>,
}

impl Finding {
    /// Returns a finding that nothing can be done about by itself.
    #[must_use]
    pub fn new(part: Part, what: String, advice: &str) -> Self {
        Self { part, what, advice: advice.to_owned(), remedy: None }
    }
}

/// What a check came to.
#[derive(Debug, Default)]
pub struct Checked {
    /// How many nars are held, and how many of them lack their file.
    pub loss: Loss,
    /// What was found, at most so many as are looked for.
    pub findings: Vec<Finding>,
}

/// Why a check, or a repair, was given up.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The process is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
}

impl From<OpenError> for CheckError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(error) => Self::Store(error),
            OpenError::Depot(error) => Self::Depot(error),
        }
    }
}

/// Compares everything. What is being received, built or published meanwhile is nothing to find.
///
/// # Errors
/// [`CheckError`].
pub async fn check(coordinator: &Coordinator, depth: Depth) -> Result<Checked, CheckError> {
    let memory = match coordinator.engine.ask(Ask::Check).await? {
        Told::Check(findings) => findings,
        _ => Vec::new(),
    };
    let compared = coordinator.engine.compare_with_disk().await?;
    let integrity = coordinator.readers.read(Reader::integrity).await?;
    let mut findings = Vec::new();
    let restart = "restart the coordinator, which reads the database anew, and report this as a \
                   mistake in steading";
    let restore = "put the last backup in its place, as ‘help backup’ says";
    for (part, advice, texts) in [
        (Part::Memory, restart, memory),
        (Part::MemoryAndDisk, restart, compared),
        (Part::Database, restore, integrity),
    ] {
        findings.extend(texts.into_iter().map(|what| Finding::new(part, what, advice)));
    }
    let depot = coordinator.depot.clone();
    let policies = coordinator.config.lock().await.publish.clone();
    let now = coordinator.clock.now().wall.as_ms();
    let before = Timestamp::from_ms(now.saturating_sub(ORPHAN_AGE_MS));
    coordinator
        .readers
        .read(move |reader| {
            let mut look = Look {
                reader,
                depot: &depot,
                policies: &policies,
                depth,
                before,
                checked: Checked { loss: Loss::default(), findings },
                adoptable: BTreeSet::new(),
            };
            look.checked.loss.is_all_gone = depot.is_empty()?;
            look.nars()?;
            look.disputed()?;
            look.trees()?;
            look.orphans()?;
            Ok(look.checked)
        })
        .await
}

/// A look through the depot and the trees.
struct Look<'a> {
    reader: &'a Reader,
    depot: &'a Depot,
    policies: &'a BTreeMap<StoreDir, PublishPolicy>,
    depth: Depth,
    /// What came later is left alone: its row may be on the way.
    before: Timestamp,
    checked: Checked,
    /// The files of nars that can be taken in again.
    adoptable: BTreeSet<Sha256>,
}

impl Look<'_> {
    fn find(&mut self, part: Part, what: String, advice: &str, remedy: Remedy) {
        if self.checked.findings.len() < FINDINGS_MAX {
            let (advice, remedy) = (advice.to_owned(), Some(remedy));
            self.checked.findings.push(Finding { part, what, advice, remedy });
        }
    }

    /// Compares all rows of nars with their files, and with what is published of them.
    fn nars(&mut self) -> Result<(), CheckError> {
        let mut after = None;
        loop {
            let nars = self.reader.nars(after)?;
            let Some(last) = nars.last() else { break };
            after = Some(last.info.path.hash());
            self.checked.loss.nars += nars.len();
            for nar in nars {
                if let Some(why) = self.wrong_file(&nar)? {
                    self.checked.loss.lost += 1;
                    let what = format!("{}: {why}", nar.info.path);
                    let advice = "check --repair notes it as not held, so that it is built or \
                                  fetched again when something needs it; restoring depot/ from a \
                                  copy of the disk saves that";
                    self.find(Part::Depot, what, advice, Remedy::Lose(Arc::new(nar)));
                }
            }
        }
        let mut after = None;
        loop {
            let nars = self.reader.published(after)?;
            let Some(last) = nars.last() else { return Ok(()) };
            after = Some(last.info.path.hash());
            for nar in nars {
                self.published(&nar)?;
            }
        }
    }

    /// Returns what is wrong with the file of a nar.
    fn wrong_file(&self, nar: &NarRecord) -> Result<Option<String>, CheckError> {
        let hash = &nar.file_hash;
        let file = match open_nar(self.reader, self.depot, hash) {
            Ok(file) => file,
            Err(OpenError::Depot(DepotError::NotHeld(hash))) => {
                return Ok(Some(format!("its file {hash} is gone")));
            }
            Err(error) => return Ok(Some(telemetry::chain(&error))),
        };
        let bytes = file.bytes().map_err(DepotError::from)?;
        if bytes != nar.file_bytes {
            let expected = nar.file_bytes;
            return Ok(Some(format!("its file has {bytes} bytes instead of {expected}")));
        }
        match (self.depth, file) {
            (Depth::Deep, OpenNar::Written(_)) => Ok(self.depot.examine_file(nar)?),
            (Depth::Deep, OpenNar::Unwritten(_)) | (Depth::Shallow, _) => Ok(None),
        }
    }

    fn published(&mut self, nar: &NarRecord) -> Result<(), CheckError> {
        let path = &nar.info.path;
        if self.depot.is_held(&nar.file_hash) && !self.depot.shows_rightly(nar)? {
            let what = if self.depot.shows(path) {
                format!("{path}: its narinfo or its file in the tree is not what it should be")
            } else {
                format!("{path} is marked as published, but its narinfo is gone")
            };
            let advice = "check --repair publishes it again";
            self.find(Part::Published, what, advice, Remedy::PublishAgain(path.hash()));
        }
        if self.policies.get(path.dir()).copied().unwrap_or_default() != PublishPolicy::Complete {
            return Ok(());
        }
        for reference in &nar.info.references {
            if self.depot.shows(reference) || self.checked.findings.len() >= FINDINGS_MAX {
                continue;
            }
            let what = format!("{path} is published and refers to {reference}, which is not");
            let advice = match &nar.info.deriver {
                Some(_) => "have it built again: submit what makes it",
                None => "have it sent again: submit what needs it",
            };
            self.checked.findings.push(Finding::new(Part::Published, what, advice));
        }
        Ok(())
    }

    fn disputed(&mut self) -> Result<(), CheckError> {
        for (path, nar_hash, file_hash) in self.reader.all_disputed()? {
            match open_nar(self.reader, self.depot, &file_hash) {
                Ok(_) => {}
                Err(OpenError::Depot(DepotError::NotHeld(_))) => {
                    let what = format!(
                        "{path}: the nar {nar_hash}, which was kept to be compared, is gone"
                    );
                    let advice = "check --repair forgets it";
                    self.find(Part::Depot, what, advice, Remedy::ForgetDispute(path, nar_hash));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Looks for what trees have and the database does not know.
    fn trees(&mut self) -> Result<(), CheckError> {
        for tree in self.depot.trees()? {
            let mut unknown = Vec::new();
            self.depot.each_shown(&tree, |path| {
                // Rows are read behind names, so that a row that comes later is no finding.
                if !self.reader.holds(path)? && !self.reader.is_being_withdrawn(path)? {
                    unknown.push(path);
                }
                Ok::<_, CheckError>(())
            })?;
            for path in unknown {
                self.unknown_narinfo(&tree, path)?;
            }
            let (mut files, depot) = (Vec::new(), self.depot);
            depot.each_tree_file(&tree, self.before, |file| {
                files.push(file);
                if files.len() >= FILES_PER_LOOK {
                    self.tree_files(std::mem::take(&mut files))?;
                }
                Ok::<_, CheckError>(())
            })?;
            self.tree_files(files)?;
        }
        Ok(())
    }

    fn unknown_narinfo(&mut self, tree: &Tree, path: PathHash) -> Result<(), CheckError> {
        match self.depot.examine_shown(tree, path)? {
            Shown::Ours(record) => {
                self.adoptable.insert(record.file_hash);
                let what =
                    format!("{} is published and signed here, and not known", record.info.path);
                let advice = "check --repair takes it in, as after a restore from a backup that \
                              is older";
                self.find(Part::Published, what, advice, Remedy::Adopt(Arc::new(*record)));
            }
            Shown::Useless(why) => {
                let digits = path.base32();
                let what = format!("{digits}.narinfo of {}: {why}", tree.store_dir);
                let advice = "check --repair removes it";
                let remedy = Remedy::Unlist(tree.clone(), path);
                self.find(Part::Published, what, advice, remedy);
            }
        }
        Ok(())
    }

    fn tree_files(&mut self, files: Vec<Surplus>) -> Result<(), CheckError> {
        let mut unknown: BTreeSet<Sha256> = files.iter().filter_map(|f| f.file_hash).collect();
        unknown.retain(|hash| !self.adoptable.contains(hash));
        forget_recorded(self.reader, &mut unknown)?;
        for file in files {
            let is_known = match &file.file_hash {
                Some(hash) => !unknown.contains(hash) || self.reader.is_withdrawn_file(hash)?,
                None => false,
            };
            if !is_known {
                let what = format!("{}: nothing published needs it", file.place.display());
                let advice = "check --repair removes it";
                self.find(Part::Published, what, advice, Remedy::RemoveTreeFile(file));
            }
        }
        Ok(())
    }

    fn orphans(&mut self) -> Result<(), CheckError> {
        let mut files = self.depot.unpublished_files(self.before)?;
        forget_recorded(self.reader, &mut files)?;
        for file in files {
            if self.adoptable.contains(&file) {
                continue;
            }
            let what = format!("file {file}: no row speaks of it");
            let advice = "check --repair removes it, and so does the coordinator within a day";
            self.find(Part::Depot, what, advice, Remedy::RemoveOrphan(file));
        }
        Ok(())
    }
}
