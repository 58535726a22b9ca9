//! What there is to build and who can: derivations, their content, and agents' abilities.

use super::chance::Chance;
use crate::core::{
    agent::Abilities,
    change::{DerivationRecord, NarOrigin, NarRecord},
    hash::Sha256,
    id::AttemptId,
    path_info::PathInfo,
    plan::Class,
    store_path::{PathHash, StoreDir, StorePath},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The systems; nobody builds for the last one.
pub(super) const SYSTEMS: [&str; 3] = ["x86_64-linux", "aarch64-linux", "riscv64-linux"];
/// A feature that some derivations require and some agents offer.
pub(super) const FEATURE: &str = "kvm";

/// One derivation and how it behaves.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) record: Arc<DerivationRecord>,
    /// Its inputs, by place.
    pub(super) inputs: Vec<usize>,
    /// How often in a thousand its builder fails.
    pub(super) failures: u64,
    /// Whether every attempt gives other outputs.
    pub(super) is_moody: bool,
    /// Whether agents can get its outputs from elsewhere.
    pub(super) is_elsewhere: bool,
    /// The longest it takes.
    pub(super) duration_ms_max: u64,
}

/// All derivations, inputs before those that need them.
#[derive(Debug)]
pub(super) struct Farm {
    pub(super) recipes: Vec<Recipe>,
    by_path: BTreeMap<PathHash, usize>,
}

fn path(kind: &str, name: &str) -> StorePath {
    let digest = Sha256::of(format!("{kind} {name}").as_bytes());
    StoreDir::guix().path(PathHash::fold(&digest), name).expect("the names are plain")
}

impl Farm {
    pub(super) fn plant(chance: &mut Chance, at: Timestamp) -> Self {
        let count = usize::try_from(chance.between(4, 26)).unwrap_or(4);
        let mut farm = Self { recipes: Vec::new(), by_path: BTreeMap::new() };
        for place in 0..count {
            let recipe = farm.recipe(chance, place, at);
            farm.by_path.insert(recipe.record.path.hash(), place);
            farm.recipes.push(recipe);
        }
        farm
    }

    fn recipe(&self, chance: &mut Chance, place: usize, at: Timestamp) -> Recipe {
        let name = format!("d{place}");
        let mut inputs = BTreeSet::new();
        if place > 0 {
            for _ in 0..chance.below(4) {
                // Mostly the last ones, so that chains grow long.
                let reach = if chance.permille(600) { place.min(4) } else { place };
                inputs.insert(place - 1 - chance.place(reach));
            }
        }
        let outputs = match chance.below(10) {
            0 => vec![("out".to_owned(), path("output", &format!("shared{}", place % 2)))],
            1 | 2 => vec![
                ("out".to_owned(), path("output", &name)),
                ("doc".to_owned(), path("output", &format!("{name}-doc"))),
            ],
            _ => vec![("out".to_owned(), path("output", &name))],
        };
        let system = match chance.below(40) {
            0 => SYSTEMS[2],
            1..=9 => SYSTEMS[1],
            _ => SYSTEMS[0],
        };
        let features = if chance.permille(100) { vec![FEATURE.to_owned()] } else { Vec::new() };
        let inputs: Vec<usize> = inputs.into_iter().collect();
        let record = DerivationRecord {
            path: path("derivation", &format!("{name}.drv")),
            text: bytes::Bytes::from(format!("Derive({name})")),
            class: Class { store_dir: StoreDir::guix(), system: Some(system.to_owned()), features },
            inputs: inputs.iter().map(|input| self.recipes[*input].record.path.hash()).collect(),
            outputs,
            modulo: Sha256::of(name.as_bytes()),
            at,
        };
        Recipe {
            record: Arc::new(record),
            inputs,
            failures: *chance.pick(&[0, 0, 0, 100, 400, 1_000]),
            is_moody: chance.permille(150),
            is_elsewhere: chance.permille(500),
            duration_ms_max: *chance.pick(&[200, 5_000, 60_000, 300_000]),
        }
    }

    /// Returns the place of a derivation.
    pub(super) fn find(&self, derivation: PathHash) -> usize {
        self.by_path[&derivation]
    }

    /// Returns a derivation and all that it needs, inputs first.
    pub(super) fn closure(&self, roots: &[usize]) -> Vec<usize> {
        let mut found = BTreeSet::new();
        let mut pending = roots.to_vec();
        while let Some(place) = pending.pop() {
            if found.insert(place) {
                pending.extend(&self.recipes[place].inputs);
            }
        }
        found.into_iter().collect()
    }

    /// Returns what an attempt makes under an output path.
    pub(super) fn content(&self, recipe: usize, output: &StorePath, by: AttemptId) -> PathInfo {
        let recipe = &self.recipes[recipe];
        let mut seed = output.to_string().into_bytes();
        if recipe.is_moody {
            seed.extend(by.as_bytes());
        }
        PathInfo {
            path: output.clone(),
            nar_hash: Sha256::of(&seed),
            nar_bytes: 112 + seed.len() as u64,
            references: Vec::new(),
            deriver: Some(recipe.record.path.clone()),
            signatures: Vec::new(),
            content_address: None,
        }
    }
}

/// Returns the row of a nar.
pub(super) fn nar(info: PathInfo, origin: NarOrigin, at: Timestamp) -> Arc<NarRecord> {
    let file_hash = Sha256::of(info.nar_hash.as_bytes());
    Arc::new(NarRecord { info, file_hash, file_bytes: 64, origin, at })
}

/// Returns what an agent can build.
pub(super) fn abilities(chance: &mut Chance, place: usize) -> Abilities {
    let mut systems = vec![SYSTEMS[usize::from(place == 1)].to_owned()];
    if chance.permille(300) {
        systems = SYSTEMS[..2].iter().map(|system| (*system).to_owned()).collect();
    }
    let features = if chance.permille(400) { vec![FEATURE.to_owned()] } else { Vec::new() };
    Abilities {
        store_dir: StoreDir::guix(),
        dialect: "guix".to_owned(),
        systems,
        emulated_systems: Vec::new(),
        features,
        slots: u32::try_from(chance.between(1, 3)).unwrap_or(1),
        tags: BTreeMap::new(),
    }
}
