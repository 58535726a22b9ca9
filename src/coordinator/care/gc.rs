//! Chooses nars that nobody needs, and withdraws them.
//!
//! Nothing is withdrawn that something refers to which stays, so whatever stays published is
//! complete. What is withdrawn is out of the database at once, its narinfo goes within a moment,
//! and its files go when those have stopped asking for them who saw the narinfo. Each of these
//! steps is noted before the next one, and the publishing thread goes on with them after a start.

use super::super::{
    Coordinator,
    engine_thread::EngineGone,
    inputs::{InputsError, direct_inputs},
};
use crate::{
    core::{
        care::{Forget, Withdrawal},
        derivation::Derivation,
        engine::{Answer, Input},
        store_path::{PathHash, StorePath},
        time::Timestamp,
    },
    store::{Keeping, Reader, StoreError},
};
use std::collections::{BTreeMap, BTreeSet};

/// How many nars are withdrawn in one commit.
const NARS_PER_COMMIT: usize = 500;
/// The longest chain of references that is followed; nothing real comes near, and what refers to
/// itself around a corner must not be followed for ever.
const CHAIN_MAX: u32 = 100_000;

/// Which nars are to go. All conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Criteria {
    /// Neither they nor what refers to them was verified, published or used since.
    pub unused_since: Option<Timestamp>,
    /// They were made for a build with all of these tags.
    pub tags: Vec<(String, String)>,
    /// They were not made for a build with any of these tags, and nothing that was refers to them.
    pub keep_tags: Vec<(String, String)>,
    /// No more than it takes for the rest to have so many bytes; what was used longest ago goes
    /// first.
    pub bytes_max: Option<u64>,
}

impl Criteria {
    /// Tells whether nothing says how what is to go differs from the rest. Then it is what attempts
    /// made of which none is known any more, as after pruning.
    const fn is_plain(&self) -> bool {
        self.unused_since.is_none() && self.tags.is_empty() && self.bytes_max.is_none()
    }
}

/// A nar that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its path.
    pub path: StorePath,
    /// The length of its file.
    pub file_bytes: u64,
    /// When it, or what refers to it, was used last.
    pub used: Timestamp,
    references: Vec<PathHash>,
}

/// Why nothing, or no more, was withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The process is stopping; what was withdrawn is.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be told what an open build needs.
    #[error(transparent)]
    Inputs(#[from] InputsError),
}

/// How much something is needed: until when, and how far away what needs it is. What is referred
/// to is always needed more than what refers to it.
type Need = (Timestamp, u32);
/// Needed whatever the time.
const ALWAYS: Timestamp = Timestamp::from_ms(i64::MAX);

/// Returns the nars that are to go, each before all that it refers to.
///
/// # Errors
/// [`GcError`].
pub async fn choose(coordinator: &Coordinator, criteria: Criteria) -> Result<Vec<Chosen>, GcError> {
    let now = coordinator.clock.now().wall;
    coordinator.care.uses.write_down(&coordinator.engine, now).await?;
    coordinator.readers.read(move |reader| chosen(reader, &criteria)).await
}

fn chosen(reader: &Reader, criteria: &Criteria) -> Result<Vec<Chosen>, GcError> {
    let mut nars: BTreeMap<PathHash, (Keeping, Need)> = BTreeMap::new();
    let (mut after, mut total) = (None, 0u64);
    loop {
        let page = reader.keepings(after)?;
        let Some(last) = page.last() else { break };
        after = Some(last.path.hash());
        for keeping in page {
            total = total.saturating_add(keeping.file_bytes);
            let until =
                if is_candidate(reader, criteria, &keeping)? { keeping.used } else { ALWAYS };
            nars.insert(keeping.path.hash(), (keeping, (until, 0)));
        }
    }
    for path in needed_by_open_builds(reader)? {
        if let Some((_, need)) = nars.get_mut(&path) {
            *need = (ALWAYS, 0);
        }
    }
    hand_down(&mut nars);
    let before = criteria.unused_since.unwrap_or(ALWAYS);
    let mut going: Vec<(Need, Keeping)> = nars
        .into_values()
        .filter(|(_, (until, _))| *until < before)
        .map(|(keeping, need)| (need, keeping))
        .collect();
    // Whatever is referred to is needed more, and comes behind what refers to it.
    going.sort_by(|(one, a), (other, b)| one.cmp(other).then_with(|| a.path.cmp(&b.path)));
    let mut left = total;
    let enough = criteria.bytes_max.unwrap_or(0);
    let mut chosen = Vec::new();
    for ((used, _), keeping) in going {
        if left <= enough && criteria.bytes_max.is_some() {
            break;
        }
        let Keeping { path, file_bytes, references, .. } = keeping;
        left = left.saturating_sub(file_bytes);
        chosen.push(Chosen { path, file_bytes, used, references });
    }
    Ok(chosen)
}

/// Tells whether a nar may go for its own sake.
fn is_candidate(
    reader: &Reader,
    criteria: &Criteria,
    keeping: &Keeping,
) -> Result<bool, StoreError> {
    let path = keeping.path.hash();
    if criteria.unused_since.is_some_and(|since| keeping.used >= since) {
        return Ok(false);
    }
    for tag in &criteria.keep_tags {
        if reader.was_made_for(path, tag)? {
            return Ok(false);
        }
    }
    for tag in &criteria.tags {
        if !reader.was_made_for(path, tag)? {
            return Ok(false);
        }
    }
    Ok(!criteria.is_plain() || (keeping.built && !reader.has_maker(path)?))
}

/// Returns what open builds need or make: what they refer to in turn follows.
fn needed_by_open_builds(reader: &Reader) -> Result<BTreeSet<PathHash>, GcError> {
    let mut needed = BTreeSet::new();
    for hash in reader.open_derivations()? {
        needed.extend(reader.outputs_of(hash)?.into_iter().map(|(_, path)| path.hash()));
        let Some(text) = reader.derivation_text(hash)? else { continue };
        // What cannot be read fails when it is to be built, and says so there.
        let Ok(derivation) = Derivation::parse(&text) else { continue };
        match direct_inputs(reader, &derivation) {
            Ok(inputs) => needed.extend(inputs.iter().map(StorePath::hash)),
            Err(InputsError::Unknown(path)) => {
                tracing::debug!(%path, "an open build needs a derivation that is not known");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(needed)
}

/// Has every nar needed more than what refers to it.
fn hand_down(nars: &mut BTreeMap<PathHash, (Keeping, Need)>) {
    let mut pending: Vec<PathHash> = nars.keys().copied().collect();
    while let Some(path) = pending.pop() {
        let Some((keeping, (until, chain))) = nars.get(&path) else { continue };
        if *chain >= CHAIN_MAX {
            continue;
        }
        let need = (*until, chain + 1);
        let references: Vec<PathHash> =
            keeping.references.iter().copied().filter(|one| *one != path).collect();
        for reference in references {
            if let Some((_, own)) = nars.get_mut(&reference)
                && *own < need
            {
                *own = need;
                pending.push(reference);
            }
        }
    }
}

/// Withdraws nars; their files go at `remove_at`. Returns those that were withdrawn: what an open
/// build came to need meanwhile stays, and all that it refers to.
///
/// # Errors
/// [`GcError`].
pub async fn withdraw(
    coordinator: &Coordinator,
    chosen: Vec<Chosen>,
    remove_at: Timestamp,
) -> Result<Vec<Chosen>, GcError> {
    let mut withdrawn = Vec::new();
    let mut staying: BTreeSet<PathHash> = BTreeSet::new();
    for chunk in chosen.chunks(NARS_PER_COMMIT) {
        let mut nars = Vec::with_capacity(chunk.len());
        for one in chunk {
            if staying.contains(&one.path.hash()) {
                staying.extend(&one.references);
            } else {
                let references = one.references.clone();
                nars.push(Withdrawal { path: one.path.hash(), references });
            }
        }
        let asked = move |token| Input::Forget { token, what: Forget::Nars { nars, remove_at } };
        let gone: BTreeSet<PathHash> = match coordinator.engine.request(asked).await? {
            Answer::Forgotten(forgotten) => forgotten.paths.into_iter().collect(),
            _ => BTreeSet::new(),
        };
        for one in chunk {
            if gone.contains(&one.path.hash()) {
                withdrawn.push(one.clone());
            } else {
                staying.extend(&one.references);
            }
        }
    }
    coordinator.care.publish_again();
    Ok(withdrawn)
}
