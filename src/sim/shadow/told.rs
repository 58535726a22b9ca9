//! What agents and people are told, and what the database says, against the account.

use super::{KnownAttempt, KnownBuild, Shadow};
use crate::{
    coordinator::engine_thread::SubmitRequest,
    core::{
        agent::SessionId,
        build::BuildState,
        change::{Change, OutputRecord},
        engine::Order,
        id::{AttemptId, BuildId, Name},
        store_path::StorePath,
    },
    sim::farm::Farm,
    store::Reader,
};

impl Shadow {
    /// Checks what an agent is told, and notes who is welcome.
    pub(in crate::sim) fn order(
        &mut self,
        session: SessionId,
        order: &Order,
        farm: &Farm,
    ) -> Option<String> {
        let joined = self.joined.get(&session).filter(|_| !self.gone.contains(&session))?;
        match order {
            Order::Welcome { keep, .. } => {
                let foreign = keep.iter().find(|attempt| {
                    self.attempts.get(attempt).is_none_or(|known| known.agent != joined.name)
                });
                if let Some(foreign) = foreign {
                    return Some(format!("S2: {} keeps {foreign} of another", joined.name));
                }
                let other = self.current.get(&joined.name).and_then(|other| self.joined.get(other));
                if other.is_some_and(|other| other.instance != joined.instance) {
                    return Some(format!("S2: there are two machines called {}", joined.name));
                }
                let alive = |(attempt, known): &(&AttemptId, &KnownAttempt)| {
                    let is_new = known.step == self.steps && !joined.held.contains(attempt);
                    known.end.is_none() && known.agent == joined.name && !is_new
                };
                for (attempt, _) in self.attempts.iter().filter(alive) {
                    if !joined.held.contains(attempt) {
                        return Some(format!("S2: {attempt} is alive, and its agent lost it"));
                    }
                    if !keep.contains(attempt) {
                        return Some(format!("S2: {attempt} is alive and not kept"));
                    }
                }
                self.away_ms.remove(&joined.name);
                self.current.insert(joined.name.clone(), session);
                None
            }
            Order::Allocate { attempt, derivation, .. } => {
                let known = self.attempts.get(attempt);
                let class = &farm.recipes[farm.find(derivation.hash())].record.class;
                let is_current = self.current.get(&joined.name) == Some(&session);
                match class.obstacle(&joined.abilities) {
                    Some(obstacle) => {
                        Some(format!("S6: {} got {attempt}: {obstacle}", joined.name))
                    }
                    None if self.running(&joined.name) > joined.slots as usize => {
                        Some(format!("S6: {} got more than it wants: {attempt}", joined.name))
                    }
                    None if !is_current => Some(format!("S6: {attempt} goes to an old session")),
                    None if known.is_none_or(|known| known.agent != joined.name) => {
                        Some(format!("S6: {attempt} goes to the wrong agent"))
                    }
                    None => None,
                }
            }
            Order::Refuse { .. }
            | Order::Replaced
            | Order::Restarting { .. }
            | Order::Cancel { .. }
            | Order::Settled { .. } => None,
        }
    }

    /// Returns how many builds an agent has that take a slot.
    fn running(&self, agent: &Name) -> usize {
        let takes_slot = |build: &&KnownBuild| match &build.state {
            BuildState::Allocated(lease) | BuildState::Building(lease) => lease.agent == *agent,
            _ => false,
        };
        self.builds.values().filter(takes_slot).count()
    }

    /// Tells whether a build ended well with something else than what is held: then what it made is
    /// kept beside, and need not be available.
    pub(in crate::sim) fn is_disputed(&self, attempt: AttemptId) -> bool {
        let made = self.made.get(&attempt).into_iter().flatten();
        self.disputed.contains(&attempt)
            || made.into_iter().any(|output| {
                let held = self.held.get(&output.path.hash());
                held.is_some_and(|held| *held != output.nar_hash)
            })
    }

    /// Checks that exactly those attempts are marked that made something else than what is held.
    pub(in crate::sim) fn compare_made(&self, reader: &Reader) -> Option<String> {
        self.made
            .iter()
            .find_map(|(attempt, outputs)| self.compare_outputs(reader, *attempt, outputs))
    }

    /// Checks that what was first held under a path still is, and that whoever made something else
    /// is marked.
    pub(in crate::sim) fn compare_nars(&self, reader: &Reader, changes: &[Change]) -> Vec<String> {
        let mut findings = Vec::new();
        for change in changes {
            if let Change::Outputs { attempt, .. } | Change::Reported { attempt, .. } = change
                && let Some(outputs) = self.made.get(attempt)
            {
                findings.extend(self.compare_outputs(reader, *attempt, outputs));
            }
            let Change::Nar(nar) = change else { continue };
            let path = &nar.info.path;
            match reader.nar(path.hash()) {
                Ok(Some(row)) if self.held.get(&path.hash()) == Some(&row.info.nar_hash) => {}
                Ok(_) => findings.push(format!("S4: {path} is not what it was")),
                Err(error) => findings.push(error.to_string()),
            }
        }
        findings
    }

    fn compare_outputs(
        &self,
        reader: &Reader,
        attempt: AttemptId,
        outputs: &[OutputRecord],
    ) -> Option<String> {
        let differs = |output: &OutputRecord| {
            self.held.get(&output.path.hash()).is_some_and(|held| *held != output.nar_hash)
        };
        let rows = reader.attempts(self.attempts.get(&attempt)?.build).ok()?;
        let row = rows.into_iter().find(|row| row.id == attempt)?;
        (row.disputed != outputs.iter().any(differs))
            .then(|| format!("S4: {attempt} made something else, and nobody says so"))
    }

    /// Notes what somebody was told, and returns what is wrong with it.
    pub(in crate::sim) fn promise(
        &mut self,
        wanted: &SubmitRequest,
        root: &StorePath,
        build: BuildId,
        farm: &Farm,
    ) -> Option<String> {
        let Some(known) = self.builds.get(&build) else {
            return Some(format!("S1: {build} was promised and is not there"));
        };
        if known.recipe != farm.find(root.hash()) {
            return Some(format!("S1: {build} builds something else"));
        }
        let key = (wanted.submitter.clone(), root.hash(), wanted.key.clone()?);
        let first = *self.keyed.entry(key).or_insert(build);
        (first != build).then(|| format!("S1: the same key gave {first} and {build}"))
    }
}
