//! What keeps the changes: the database, or here a model of it.

use crate::core::{
    attempt::AttemptState,
    build::BuildState,
    change::{BuildRecord, Change, DerivationRecord},
    engine::{Engine, Inputs, LostAttempt, OpenBuild, Root, Saved, SavedAgent, Settings},
    graph::{EndResult, Facts, Held, LastEnd},
    hash::Sha256,
    id::{AttemptId, BuildId, Name},
    outcome::AttemptEnd,
    store_path::PathHash,
    time::{Now, Timestamp},
};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

/// What a [`super::world::World`] needs of a database.
pub(crate) trait Disk {
    fn commit(&mut self, changes: &[Change]);
    fn restore(&self, settings: Settings, now: Now) -> Engine;
    fn submission_facts(
        &self,
        roots: &[PathHash],
        inputs: Inputs,
        submitter: &Name,
        key: Option<&str>,
    ) -> (Vec<Root>, Vec<Facts>);
    fn has_build(&self, build: BuildId) -> bool;
    fn holds_outputs_of(&self, derivation: PathHash) -> bool;
}

/// Rows in memory. It says the same as the database in fewer words, and is quick enough for many
/// thousand random histories.
#[derive(Default)]
pub(crate) struct Model {
    derivations: BTreeMap<PathHash, Arc<DerivationRecord>>,
    held: BTreeMap<PathHash, Sha256>,
    missing: BTreeSet<PathHash>,
    builds: BTreeMap<BuildId, BuildRow>,
    attempts: BTreeMap<AttemptId, AttemptRow>,
    agents: BTreeMap<Name, SavedAgent>,
}

struct BuildRow {
    record: BuildRecord,
    since: Timestamp,
    infrastructure_ends: u32,
    avoid: Option<Name>,
}

/// An attempt, and whether it was given up because its agent was lost.
struct AttemptRow {
    build: BuildId,
    agent: Name,
    is_lost: bool,
}

impl Model {
    fn facts(&self, derivation: PathHash) -> Facts {
        let record = &self.derivations[&derivation];
        let held = |path: PathHash| match () {
            () if self.held.contains_key(&path) => Held::Yes,
            () if self.missing.contains(&path) => Held::Missing,
            () => Held::No,
        };
        let ends = self.builds.values().filter(|row| row.record.derivation == derivation);
        let last_end = ends
            .filter_map(|row| {
                let result = match row.record.state {
                    BuildState::Succeeded { .. } => EndResult::Succeeded,
                    BuildState::Failed { .. } => EndResult::Failed,
                    _ => return None,
                };
                Some(LastEnd { at: row.since, build: row.record.id, result })
            })
            .max();
        Facts {
            path: record.path.clone(),
            class: Arc::new(record.class.clone()),
            outputs: record.outputs.iter().map(|(_, p)| (p.hash(), held(p.hash()))).collect(),
            inputs: record.inputs.clone(),
            last_end,
        }
    }

    fn open(&self) -> impl Iterator<Item = &BuildRow> {
        self.builds.values().filter(|row| !row.record.state.is_final())
    }
}

impl Disk for Model {
    fn commit(&mut self, changes: &[Change]) {
        for change in changes {
            match change.clone() {
                Change::Derivation(record) => {
                    self.derivations.entry(record.path.hash()).or_insert(record);
                }
                Change::Nar(record) => {
                    self.missing.remove(&record.info.path.hash());
                    let (path, hash) = (record.info.path.hash(), record.info.nar_hash);
                    let held = *self.held.entry(path).or_insert(hash);
                    assert_eq!(held, hash, "what is held was to be replaced");
                }
                Change::Build(record) => {
                    let (id, since) = (record.id, record.submitted);
                    let row =
                        BuildRow { record: *record, since, infrastructure_ends: 0, avoid: None };
                    let twin = self.builds.values().find(|other| {
                        row.record.key.is_some()
                            && other.record.key == row.record.key
                            && other.record.derivation == row.record.derivation
                    });
                    assert!(twin.is_none(), "two builds with one key");
                    assert!(self.builds.insert(id, row).is_none(), "two builds with one id");
                }
                Change::BuildMoved { build, from, to, at } => {
                    let row = self.builds.get_mut(&build).unwrap();
                    assert_eq!(row.record.state, from, "a build is not where it moves from");
                    let back = matches!(to, BuildState::Queued | BuildState::Deferred { .. });
                    if let Some(lease) = from.lease().filter(|_| back) {
                        row.infrastructure_ends += 1;
                        row.avoid = Some(lease.agent.clone());
                    }
                    (row.record.state, row.since) = (to, at);
                }
                Change::Attempt { attempt, build, agent, .. } => {
                    let row = AttemptRow { build, agent, is_lost: false };
                    assert!(self.attempts.insert(attempt, row).is_none());
                }
                Change::AttemptMoved { attempt, to, .. } => {
                    let row = self.attempts.get_mut(&attempt).unwrap();
                    assert!(!row.is_lost, "a lost attempt went on by itself");
                    row.is_lost = to == AttemptState::Ended(AttemptEnd::AgentLost);
                }
                Change::AttemptReadopted { attempt, .. } => {
                    let row = self.attempts.get_mut(&attempt).unwrap();
                    assert!(row.is_lost, "an attempt was taken back that was not lost");
                    row.is_lost = false;
                }
                Change::Agent { name, instance, abilities, at } => {
                    let before = self.agents.remove(&name);
                    let (suspension, failures) =
                        before.map(|one| (one.suspension, one.failures)).unwrap_or_default();
                    let agent = SavedAgent {
                        name: name.clone(),
                        instance,
                        abilities,
                        last_seen: at,
                        suspension,
                        failures,
                    };
                    self.agents.insert(name, agent);
                }
                Change::AgentSuspended { name, suspension } => {
                    self.agents.get_mut(&name).unwrap().suspension = suspension;
                }
                Change::AgentFailures { name, builds } => {
                    self.agents.get_mut(&name).unwrap().failures = builds;
                }
                Change::AgentRemoved { name } => assert!(self.agents.remove(&name).is_some()),
                Change::Missing { path, .. } => {
                    self.missing.insert(path);
                }
                Change::DisputedNar { .. }
                | Change::Reported { .. }
                | Change::Outputs { .. }
                | Change::Published { .. }
                | Change::UnwrittenNar(_)
                | Change::NarsWritten { .. }
                | Change::Signed { .. }
                | Change::Audit { .. } => {}
            }
        }
    }

    fn restore(&self, settings: Settings, now: Now) -> Engine {
        Engine::restore(settings, now, self.saved()).unwrap()
    }

    fn submission_facts(
        &self,
        roots: &[PathHash],
        _inputs: Inputs,
        submitter: &Name,
        key: Option<&str>,
    ) -> (Vec<Root>, Vec<Facts>) {
        let existing = |derivation: PathHash| {
            let same = |row: &&BuildRow| {
                key.is_some()
                    && row.record.key.as_deref() == key
                    && row.record.submitter == *submitter
                    && row.record.derivation == derivation
            };
            self.builds.values().find(same).map(|row| row.record.id)
        };
        let found = roots
            .iter()
            .map(|root| Root { derivation: *root, existing: existing(*root) })
            .collect();
        let mut closure: BTreeMap<PathHash, Facts> = BTreeMap::new();
        let mut pending = roots.to_vec();
        while let Some(derivation) = pending.pop() {
            if let Entry::Vacant(place) = closure.entry(derivation) {
                let facts = place.insert(self.facts(derivation));
                pending.extend(&facts.inputs);
            }
        }
        (found, closure.into_values().collect())
    }

    fn has_build(&self, build: BuildId) -> bool {
        self.builds.contains_key(&build)
    }

    fn holds_outputs_of(&self, derivation: PathHash) -> bool {
        self.derivations[&derivation]
            .outputs
            .iter()
            .all(|(_, path)| self.held.contains_key(&path.hash()))
    }
}

impl Model {
    fn saved(&self) -> Saved {
        let roots: BTreeSet<PathHash> = self.open().map(|row| row.record.derivation).collect();
        let mut needed = roots.clone();
        for root in roots {
            needed.extend(&self.derivations[&root].inputs);
        }
        let build = |row: &BuildRow| OpenBuild {
            id: row.record.id,
            derivation: row.record.derivation,
            state: row.record.state.clone(),
            origin: row.record.origin,
            submitter: row.record.submitter.clone(),
            priority: row.record.priority,
            submitted: row.record.submitted,
            limits: row.record.limits,
            infrastructure_ends: row.infrastructure_ends,
            avoid: row.avoid.clone(),
        };
        Saved {
            facts: needed.into_iter().map(|derivation| self.facts(derivation)).collect(),
            builds: self.open().map(build).collect(),
            agents: self.agents.values().cloned().collect(),
            lost: self
                .attempts
                .iter()
                .filter(|(_, row)| row.is_lost)
                .filter(|(_, row)| !self.builds[&row.build].record.state.is_final())
                .map(|(attempt, row)| LostAttempt {
                    attempt: *attempt,
                    build: row.build,
                    agent: row.agent.clone(),
                })
                .collect(),
        }
    }
}
