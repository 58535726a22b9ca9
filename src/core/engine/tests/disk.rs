//! What keeps the changes: the database, or here a model of it.

use crate::core::{
    attempt::AttemptState,
    build::{Blame, BuildState},
    care::CareChange,
    change::{BuildAmendment, BuildRecord, Change, DerivationRecord, Origin, OutputRecord},
    engine::{
        Authority, Engine, Extras, Inputs, LostAttempt, OpenBuild, OverBuild, Retrial, RetryWish,
        Root, Saved, SavedAgent, Settings,
    },
    graph::{EndResult, Facts, Held, LastEnd},
    hash::Sha256,
    id::{AttemptId, BuildId, Name},
    outcome::AttemptEnd,
    plan::Usage,
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
    /// Returns the rows that a start is about.
    fn saved(&self) -> Saved;
    fn submission_facts(
        &self,
        roots: &[PathHash],
        inputs: Inputs,
        submitter: &Name,
        key: Option<&str>,
    ) -> (Vec<Root>, Vec<Facts>);
    fn retrial(&self, builds: &[BuildId], by: Authority, wish: RetryWish) -> Retrial;
    fn last_end(&self, derivation: PathHash) -> Option<LastEnd>;
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
    accounts: BTreeMap<Name, Usage>,
    /// Whether outputs count as held that are only noted.
    records: bool,
}

struct BuildRow {
    record: BuildRecord,
    since: Timestamp,
    infrastructure_ends: u32,
    avoid: Option<Name>,
    extras: Extras,
}

/// An attempt, and whether it was given up because its agent was lost.
struct AttemptRow {
    build: BuildId,
    agent: Name,
    is_lost: bool,
}

impl BuildRow {
    fn amend(&mut self, amendment: BuildAmendment) {
        match amendment {
            BuildAmendment::Priority(priority) => self.record.priority = priority,
            BuildAmendment::Hold(hold) => self.extras.hold = hold,
            BuildAmendment::Demands(demands) => self.extras.demands = demands,
            BuildAmendment::NotDeferred => self.extras.not_before = None,
            BuildAmendment::Implied => self.record.origin = Origin::Implied,
            BuildAmendment::Tags(_) => {}
        }
    }

    fn move_to(
        &mut self,
        (from, to): (&BuildState, BuildState),
        blamed: Option<(Blame, Name)>,
        at: Timestamp,
    ) {
        assert_eq!(self.record.state, *from, "a build is not where it moves from");
        match blamed {
            None => {}
            Some((Blame::Infrastructure, agent)) => {
                self.infrastructure_ends += 1;
                self.avoid = Some(agent);
            }
            Some((Blame::Build, agent)) => {
                self.extras.failures += 1;
                self.avoid = Some(agent);
            }
        }
        (self.record.state, self.since) = (to, at);
    }

    fn open(&self) -> OpenBuild {
        OpenBuild {
            id: self.record.id,
            derivation: self.record.derivation,
            state: self.record.state.clone(),
            origin: self.record.origin,
            submitter: self.record.submitter.clone(),
            priority: self.record.priority,
            submitted: self.record.submitted,
            limits: self.record.limits,
            infrastructure_ends: self.infrastructure_ends,
            avoid: self.avoid.clone(),
            extras: self.extras.clone(),
        }
    }
}

impl Model {
    pub(crate) fn recording() -> Self {
        Self { records: true, ..Self::default() }
    }

    fn note(&mut self, outputs: &[OutputRecord]) {
        let noted = outputs.iter().filter(|_| self.records);
        self.held.extend(noted.map(|output| (output.path.hash(), output.nar_hash)));
    }

    fn take_out(&mut self, change: CareChange) {
        match change {
            CareChange::Pruned { build } => {
                let row = self.builds.remove(&build).unwrap();
                assert!(row.record.state.is_final(), "a build was pruned that is open");
                self.attempts.retain(|_, row| row.build != build);
            }
            CareChange::Withdrawn { path, .. } => {
                self.held.remove(&path);
            }
            CareChange::Lost { path, .. } => {
                if self.held.remove(&path).is_some() {
                    self.missing.insert(path);
                }
            }
            other => unreachable!("no story has {other:?}"),
        }
    }

    fn facts(&self, derivation: PathHash) -> Facts {
        self.facts_without(derivation, &BTreeSet::new())
    }

    /// Returns the facts as if some builds had never ended.
    fn facts_without(&self, derivation: PathHash, except: &BTreeSet<BuildId>) -> Facts {
        let record = &self.derivations[&derivation];
        let held = |path: PathHash| match () {
            () if self.held.contains_key(&path) => Held::Yes,
            () if self.missing.contains(&path) => Held::Missing,
            () => Held::No,
        };
        let ends = self.builds.values().filter(|row| row.record.derivation == derivation);
        let ends = ends.filter(|row| !except.contains(&row.record.id));
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

    /// Returns the lost attempts of builds.
    fn lost(&self, of: impl Fn(BuildId) -> bool) -> Vec<LostAttempt> {
        let lost = self.attempts.iter().filter(|(_, row)| row.is_lost && of(row.build));
        lost.map(|(attempt, row)| LostAttempt {
            attempt: *attempt,
            build: row.build,
            agent: row.agent.clone(),
        })
        .collect()
    }

    fn insert(&mut self, record: BuildRecord) {
        let (id, since) = (record.id, record.submitted);
        let (demands, not_before) = (record.demands.clone(), record.not_before);
        let row = BuildRow {
            record,
            since,
            infrastructure_ends: 0,
            avoid: None,
            extras: Extras { demands, not_before, ..Extras::default() },
        };
        let twin = self.builds.values().find(|other| {
            row.record.key.is_some()
                && other.record.key == row.record.key
                && other.record.submitter == row.record.submitter
                && other.record.derivation == row.record.derivation
        });
        assert!(twin.is_none(), "two builds with one key");
        assert!(self.builds.insert(id, row).is_none(), "two builds with one id");
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
                Change::Build(record) => self.insert(*record),
                Change::BuildMoved { build, from, to, blame, at } => {
                    let agent = || self.attempts[&from.attempt().unwrap()].agent.clone();
                    let blamed = blame.map(|blame| (blame, agent()));
                    self.builds.get_mut(&build).unwrap().move_to((&from, to), blamed, at);
                }
                Change::BuildAmended { build, amendment } => {
                    self.builds.get_mut(&build).unwrap().amend(amendment);
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
                Change::Account { name, usage } => {
                    self.accounts.insert(name, usage);
                }
                Change::AgentRemoved { name } => assert!(self.agents.remove(&name).is_some()),
                Change::Missing { path, .. } => {
                    self.missing.insert(path);
                }
                Change::Outputs { outputs, .. } => self.note(&outputs),
                Change::Care(change) => self.take_out(change),
                Change::DisputedNar { .. }
                | Change::Reported { .. }
                | Change::Published { .. }
                | Change::UnwrittenNar(_)
                | Change::NarsWritten { .. }
                | Change::Signed { .. }
                | Change::Event(_)
                | Change::EventsForgotten { .. }
                | Change::Hook(_)
                | Change::Audit(_)
                | Change::Enrollment(_) => {}
            }
        }
    }

    fn restore(&self, settings: Settings, now: Now) -> Engine {
        Engine::restore(settings, now, self.saved()).unwrap()
    }

    fn saved(&self) -> Saved {
        let roots: BTreeSet<PathHash> = self.open().map(|row| row.record.derivation).collect();
        let mut needed = roots.clone();
        for root in roots {
            needed.extend(&self.derivations[&root].inputs);
        }
        Saved {
            facts: needed.into_iter().map(|derivation| self.facts(derivation)).collect(),
            builds: self.open().map(BuildRow::open).collect(),
            agents: self.agents.values().cloned().collect(),
            lost: self.lost(|build| !self.builds[&build].record.state.is_final()),
            accounts: self.accounts.iter().map(|(name, usage)| (name.clone(), *usage)).collect(),
        }
    }

    fn last_end(&self, derivation: PathHash) -> Option<LastEnd> {
        self.facts(derivation).last_end
    }

    fn retrial(&self, builds: &[BuildId], by: Authority, wish: RetryWish) -> Retrial {
        let rows = builds.iter().filter_map(|id| self.builds.get(id));
        let rows = rows.filter(|row| row.record.state.is_final()).map(|row| {
            let attempt = row.record.state.attempt();
            let agent = attempt.map(|attempt| self.attempts[&attempt].agent.clone());
            OverBuild { build: row.open(), agent }
        });
        let mut retrial = Retrial::divide(builds, rows.collect(), by, wish);
        let reopened: BTreeMap<BuildId, PathHash> = retrial.reopened().collect();
        let except: BTreeSet<BuildId> = reopened.keys().copied().collect();
        let mut needed: BTreeSet<PathHash> = reopened.values().copied().collect();
        for derivation in reopened.values() {
            needed.extend(&self.derivations[derivation].inputs);
        }
        retrial.facts = needed.iter().map(|path| self.facts_without(*path, &except)).collect();
        retrial.lost = self.lost(|build| reopened.contains_key(&build));
        retrial
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
            .map(|root| Root { derivation: *root, existing: existing(*root), id: None })
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
