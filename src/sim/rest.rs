//! When nothing goes wrong any more, everything that can end must have ended.

use super::{trace::Short, world::World};
use crate::{
    coordinator::engine_thread::SubmitRequest,
    core::{
        build::{BuildState, ShownState},
        graph::Standing,
        id::BuildId,
        plan::Strategy,
        store_path::StorePath,
    },
};
use std::collections::BTreeMap;

impl World {
    /// Checks what somebody was told, against the account and the database.
    pub(super) fn check_promise(
        &mut self,
        wanted: &SubmitRequest,
        root: &StorePath,
        build: BuildId,
    ) {
        if let Some(finding) = self.shadow.promise(wanted, root, build, &self.farm) {
            return self.violated(finding);
        }
        if !matches!(self.coordinator.reader.build(build), Ok(Some(_))) {
            self.violated(format!("S1: {build} was promised and is not in the database"));
        }
    }

    /// Tells whether nothing more happens by itself.
    pub(super) fn is_at_rest(&self) -> bool {
        self.unrest().is_empty()
    }

    /// Returns what still goes on.
    pub(super) fn unrest(&self) -> String {
        let Some(process) = &self.coordinator.process else {
            return "the coordinator is down".to_owned();
        };
        if self.is_anybody_waiting() {
            return "somebody waits for an answer".to_owned();
        }
        let spools: usize = self.machines.iter().map(|machine| machine.spools.len()).sum();
        if spools > 0 {
            return format!("agents still have {spools} attempts");
        }
        let away = (0..self.machines.len()).find(|machine| !self.is_welcome(*machine));
        if let Some(machine) = away {
            return format!("{} has no session", self.who(machine));
        }
        let shown = process.truth.engine.snapshot().builds;
        for (id, build) in &self.shadow.builds {
            if build.state.is_final() {
                continue;
            }
            let state = shown.get(id).map(|build| build.shown);
            if !self.may_rest(*id, state, &shown.iter().map(|(id, b)| (*id, b.shown)).collect()) {
                let (id, name) = (Short(id.as_bytes()), build.recipe);
                return format!("{id} of d{name} stays {state:?}");
            }
        }
        String::new()
    }

    /// Tells whether nothing more can happen to a build by itself.
    fn may_rest(
        &self,
        id: BuildId,
        state: Option<ShownState>,
        shown: &BTreeMap<BuildId, ShownState>,
    ) -> bool {
        let recipe = self.shadow.builds[&id].recipe;
        let open_of = |input: usize| {
            let builds = self.shadow.builds.iter();
            builds.filter(move |(_, other)| other.recipe == input && !other.state.is_final())
        };
        let inputs = &self.farm.recipes[recipe].inputs;
        let unavailable =
            || inputs.iter().filter(|input| !self.shadow.is_available(**input, &self.farm));
        match state {
            Some(ShownState::Ready) => {
                let class = &self.farm.recipes[recipe].record.class;
                !self.machines.iter().any(|machine| class.obstacle(&machine.abilities).is_none())
            }
            Some(ShownState::Blocked) => unavailable().any(|input| {
                let mut open = open_of(*input).peekable();
                // Without an open build its last one has failed; with one, that is blocked itself.
                open.peek().is_none()
                    || open.any(|(id, _)| shown.get(id) == Some(&ShownState::Blocked))
            }),
            Some(ShownState::Waiting) => unavailable().any(|input| {
                let mut open = open_of(*input).peekable();
                match open.peek() {
                    None => {
                        self.settings.strategy == Strategy::DerivationOrdered
                            || self.is_missing(*input)
                    }
                    Some(_) => {
                        open.all(|(id, _)| self.may_rest(*id, shown.get(id).copied(), shown))
                    }
                }
            }),
            Some(_) | None => false,
        }
    }

    fn is_missing(&self, recipe: usize) -> bool {
        let Some(process) = &self.coordinator.process else { return false };
        let graph = process.truth.engine.graph();
        let node = graph.find(self.farm.recipes[recipe].record.path.hash());
        node.is_some_and(|node| graph.node(node).standing == Standing::Missing)
    }

    /// Checks the whole account against the database, when all is at rest.
    pub(super) fn check_rest(&mut self) -> Result<(), String> {
        for build in self.people.promised.clone() {
            if !self.shadow.builds.contains_key(&build) {
                return Err(format!("S1: {build} was promised and is lost"));
            }
        }
        for (id, known) in &self.shadow.builds {
            let row = self.coordinator.reader.build(*id).map_err(|error| error.to_string())?;
            let Some(row) = row else { return Err(format!("S1: {id} is not in the database")) };
            if row.state != known.state.word() {
                return Err(format!("S3: {id} is {}, was {:?}", row.state, known.state));
            }
            if let BuildState::Succeeded { attempt } = known.state
                && !self.shadow.is_disputed(attempt)
                && !self.shadow.is_available(known.recipe, &self.farm)
            {
                return Err(format!("S4: {id} succeeded and its outputs are not held"));
            }
        }
        for (path, hash) in &self.shadow.held {
            match self.coordinator.reader.nar(*path) {
                Ok(Some(row)) if row.info.nar_hash == *hash => {}
                Ok(_) => return Err(format!("S4: {path:?} is not what it was")),
                Err(error) => return Err(error.to_string()),
            }
        }
        if let Some(finding) = self.shadow.compare_made(&self.coordinator.reader) {
            return Err(finding);
        }
        let now = self.coordinator_now();
        let process = self.coordinator.process.as_ref().ok_or("the coordinator is down")?;
        let differences = process.truth.differences(now).map_err(|error| error.to_string())?;
        match differences.first() {
            Some(difference) => Err(format!("S9: {difference}")),
            None => Ok(()),
        }
    }
}
