//! Who said what before a step: only what was said may move anything.

use super::{Joined, Shadow};
use crate::core::{
    agent::SessionId,
    attempt::{Held, HeldPhase},
    engine::{Decision, Input},
    id::{AttemptId, BuildId, Name},
};
use std::collections::{BTreeMap, BTreeSet};

/// Who said what before a step.
#[derive(Debug, Default)]
pub(in crate::sim) struct Heard {
    pub(super) started: BTreeSet<(AttemptId, Name)>,
    pub(super) finished: BTreeSet<(AttemptId, Name)>,
    pub(super) delivered: BTreeSet<(AttemptId, Name)>,
    /// With what each agent came, as often as it did.
    pub(super) joined: BTreeMap<Name, Vec<Vec<Held>>>,
    pub(super) removed: BTreeSet<Name>,
    pub(super) intake: Option<bool>,
    pub(super) left: Vec<SessionId>,
    pub(super) canceled: BTreeSet<BuildId>,
    pub(super) inputs: usize,
}

impl Heard {
    fn joins(&self, agent: &Name) -> &[Vec<Held>] {
        self.joined.get(agent).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn came_with(&self, agent: &Name, attempt: AttemptId) -> bool {
        self.joins(agent).iter().flatten().any(|held| held.attempt == attempt)
    }

    pub(super) fn came_without(&self, agent: &Name, attempt: AttemptId) -> bool {
        self.joins(agent).iter().any(|all| all.iter().all(|held| held.attempt != attempt))
    }

    pub(super) fn came_building(&self, agent: &Name, attempt: AttemptId) -> bool {
        let mut held = self.joins(agent).iter().flatten();
        held.any(|held| held.attempt == attempt && held.phase == HeldPhase::Building)
    }
}

impl Shadow {
    /// Notes who said what.
    pub(in crate::sim) fn listen(&mut self, inputs: &[Input]) -> Heard {
        let mut heard = Heard { inputs: inputs.len(), ..Heard::default() };
        for input in inputs {
            match input {
                Input::Started { session, attempt } => {
                    let name = self.joined.get(session).map(|joined| joined.name.clone());
                    heard.started.extend(name.map(|name| (*attempt, name)));
                }
                Input::Finished { session, attempt, .. } => {
                    let name = self.joined.get(session).map(|joined| joined.name.clone());
                    heard.finished.extend(name.map(|name| (*attempt, name)));
                }
                Input::Deliver { agent, attempt, .. } => {
                    heard.delivered.insert((*attempt, agent.clone()));
                }
                Input::Join { session, name, instance, abilities, held, capacity } => {
                    heard.joined.entry(name.clone()).or_default().push(held.clone());
                    let held: BTreeSet<AttemptId> = held.iter().map(|held| held.attempt).collect();
                    let slots = capacity.as_ref().map_or(abilities.slots, |it| it.slots);
                    let (name, instance, abilities) = (name.clone(), *instance, abilities.clone());
                    // The step that follows takes it in.
                    let step = self.steps + 1;
                    let joined = Joined { name, instance, abilities, held, slots, step };
                    self.joined.insert(*session, joined);
                }
                Input::Leave { session } => heard.left.push(*session),
                Input::Cancel { builds, .. } => heard.canceled.extend(builds),
                Input::Capacity { session, slots, .. } => {
                    if let Some(joined) = self.joined.get_mut(session) {
                        joined.slots = *slots;
                    }
                }
                Input::Administer { agent, decision: Decision::Remove, .. } => {
                    heard.removed.insert(agent.clone());
                }
                Input::Intake { closed } => heard.intake = Some(closed.is_some()),
                Input::Submit { .. }
                | Input::Amend { .. }
                | Input::Retry { .. }
                | Input::Supply(_)
                | Input::Configure { .. }
                | Input::Record { .. }
                | Input::Forget { .. }
                | Input::Offer { .. }
                | Input::Administer { .. }
                | Input::Expel { .. }
                | Input::Report { .. } => {}
            }
        }
        heard
    }
}
