//! What must hold of what a step gives away: inputs, ranks, wants and leases.

use super::{SLACK_MS, Shadow, Step};
use crate::{
    core::{
        build::BuildState,
        change::{Change, Origin},
        engine::Engine,
        id::{BuildId, Name},
        plan::{Rank, Strategy},
    },
    sim::farm::Farm,
};
use std::collections::BTreeMap;

impl Shadow {
    pub(super) fn check_inputs(&self, step: &Step<'_>, farm: &Farm, findings: &mut Vec<String>) {
        for change in step.changes {
            let Some((build, _)) = self.given(change) else { continue };
            let Some(known) = self.builds.get(&build) else { continue };
            for input in &farm.recipes[known.recipe].inputs {
                let waits = match step.settings.strategy {
                    Strategy::DerivationOrdered => true,
                    Strategy::Basic => self.is_open(*input),
                };
                if waits && !self.is_available(*input, farm) {
                    findings.push(format!("S5: {build} begins before its input d{input}"));
                }
            }
        }
    }

    /// Returns the build that was given to an agent as something new, and the agent. What is taken
    /// back has begun long ago.
    fn given<'a>(&self, change: &'a Change) -> Option<(BuildId, &'a Name)> {
        match change {
            Change::BuildMoved { build, to: BuildState::Allocated(lease), .. }
                if !self.readopted.contains(&lease.attempt) =>
            {
                Some((*build, &lease.agent))
            }
            _ => None,
        }
    }

    /// Whatever was given to an agent goes before all that is left and that it could have had.
    pub(super) fn check_rank(
        &self,
        step: &Step<'_>,
        farm: &Farm,
        engine: &Engine,
        findings: &mut Vec<String>,
    ) {
        let given: Vec<(BuildId, &Name)> =
            step.changes.iter().filter_map(|change| self.given(change)).collect();
        if given.is_empty() {
            return;
        }
        let wanted = self.priorities(farm);
        let mut ranks = BTreeMap::new();
        let mut left = Vec::new();
        for (at, node) in engine.graph().iter() {
            for ix in engine.graph().builds(at) {
                let build = engine.build(*ix);
                let request = &build.request;
                let priority = request.priority.max(node.priority);
                let step = step.settings.priority_step;
                let rank = Rank::of(request.submitted, priority, step, node.height, build.id);
                ranks.insert(build.id, rank);
                if *build.state != BuildState::Queued || !node.is_ready() {
                    continue;
                }
                let recipe = farm.find(node.hash());
                if !self.is_available(recipe, farm) && priority < wanted[recipe] {
                    findings.push(format!("S7: {} does not inherit its priority", build.id));
                }
                left.push((rank, recipe, build.avoid().cloned()));
            }
        }
        for (build, agent) in given {
            let joined = self.current.get(agent).and_then(|session| self.joined.get(session));
            let (Some(joined), Some(rank)) = (joined, ranks.get(&build)) else { continue };
            let first = left.iter().find(|(other, recipe, avoid)| {
                other < rank
                    && avoid.as_ref() != Some(agent)
                    && farm.recipes[*recipe].record.class.obstacle(&joined.abilities).is_none()
            });
            if let Some((_, recipe, _)) = first {
                findings
                    .push(format!("S7: {agent} was given {build}, d{recipe} was first in rank"));
            }
        }
    }

    /// Returns the priority that each derivation has of itself or of what needs it.
    fn priorities(&self, farm: &Farm) -> Vec<i32> {
        let mut wanted = vec![i32::MIN; farm.recipes.len()];
        let mut open = vec![false; farm.recipes.len()];
        for build in self.builds.values().filter(|build| !build.state.is_final()) {
            wanted[build.recipe] = wanted[build.recipe].max(build.priority);
            open[build.recipe] = true;
        }
        for recipe in (0..farm.recipes.len()).rev() {
            if open[recipe] && !self.is_available(recipe, farm) {
                for input in &farm.recipes[recipe].inputs {
                    wanted[*input] = wanted[*input].max(wanted[recipe]);
                }
            }
        }
        wanted
    }

    /// Builds for inputs are canceled with the last that wants them, and not before.
    pub(super) fn check_wants(&self, step: &Step<'_>, farm: &Farm, findings: &mut Vec<String>) {
        if step.heard.canceled.is_empty() || step.heard.inputs != 1 {
            return;
        }
        let is_wanted = |recipe: usize| {
            (0..farm.recipes.len())
                .any(|other| farm.recipes[other].inputs.contains(&recipe) && self.is_open(other))
        };
        for change in step.changes {
            let Change::BuildMoved { build, to: BuildState::Canceled, .. } = change else {
                continue;
            };
            let Some(known) = self.builds.get(build) else { continue };
            let asked = step.heard.canceled.contains(build);
            if !asked && (known.origin == Origin::Asked || is_wanted(known.recipe)) {
                findings.push(format!("S1: {build} was canceled and is wanted"));
            }
            if self.is_open(known.recipe) {
                continue;
            }
            for input in &farm.recipes[known.recipe].inputs {
                let left = self.builds.iter().find(|(_, other)| {
                    let is_implied = other.origin == Origin::Implied && other.recipe == *input;
                    is_implied && !other.state.is_final()
                });
                if let Some((left, _)) = left.filter(|_| !is_wanted(*input)) {
                    findings.push(format!("S1: nobody wants {left} any more and it is open"));
                }
            }
        }
    }

    pub(super) fn check_leases(&self, step: &Step<'_>, findings: &mut Vec<String>) {
        let mut live = BTreeMap::new();
        for (attempt, known) in self.attempts.iter().filter(|(_, known)| known.end.is_none()) {
            if let Some(other) = live.insert(known.build, attempt) {
                findings.push(format!("S2: {attempt} and {other} are alive"));
            }
            if self.current.contains_key(&known.agent) {
                continue;
            }
            let away = self.away_ms.get(&known.agent).copied().unwrap_or(self.started_ms);
            if step.now_ms > away + step.settings.lease_ms + SLACK_MS
                && !step.heard.joined.contains_key(&known.agent)
            {
                findings.push(format!("L1: {attempt} is alive long after its lease"));
            }
        }
    }
}
