//! Why a build is not built yet: every fact the planner looks at, in the order it looks.

use super::Kind;
use crate::core::{
    agent::{Agent, Obstacle},
    arena::Ix,
    build::{BuildState, ShownState},
    engine::{Build, Engine, Extras},
    graph::{Node, Standing},
    id::{AttemptId, BuildId, Name},
    store_path::StorePath,
    time::Timestamp,
};

/// How many inputs and agents an explanation lists; the rest is counted.
const LISTED_MAX: usize = 100;
/// How many ready builds that go before one are counted; more are said to be so many.
const BEFORE_MAX: usize = 100_000;

/// Why a build is not built yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// How it is shown.
    pub state: ShownState,
    /// Its derivation.
    pub derivation: StorePath,
    /// What its agents must offer.
    pub class: super::Class,
    /// What few builds have: what it asks of its agent besides, who holds it back, and since when it
    /// may be tried.
    pub extras: Extras,
    /// Who has it, while somebody has.
    pub holder: Option<(AttemptId, Name)>,
    /// When it is tried again, while it is deferred.
    pub until: Option<Timestamp>,
    /// How many attempts ended through no fault of its own.
    pub infrastructure_ends: u32,
    /// Its inputs that are not available, those that hold it back first.
    pub inputs: Vec<InputReason>,
    /// How many more such inputs there are.
    pub inputs_unlisted: usize,
    /// How many ready builds of its class go before it, once it is ready.
    pub before: Option<usize>,
    /// By how many minutes it goes back for what its submitter used lately.
    pub setback_minutes: i64,
    /// Why nothing at all is allocated now; absent when builds are given to agents.
    pub intake_closed: Option<String>,
    /// Why each agent that was ever seen does not take it now.
    pub agents: Vec<AgentReason>,
}

/// An input that is not available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputReason {
    /// Its derivation.
    pub derivation: StorePath,
    /// How it stands.
    pub standing: Standing,
    /// Whether the build waits for it, under the current strategy.
    pub holds_back: bool,
    /// Its open builds.
    pub builds: Vec<BuildId>,
}

/// Why an agent does not take a build now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentReason {
    /// The agent.
    pub name: Name,
    /// Why.
    pub reason: NotTaken,
}

/// Why an agent does not take one build now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// It cannot build such a thing, in words.
    Unable(String),
    /// It takes no build at all now.
    Not(Obstacle),
    /// Its last attempt at the build ended without a result, and others are asked first.
    Avoided,
    /// It could take it, when it is the build's turn.
    Free,
}

/// Explains an open build.
#[must_use]
pub fn explain(engine: &Engine, ix: Ix<Build>, now: Timestamp) -> Explanation {
    let build = engine.build(ix);
    let graph = engine.graph();
    let standing = |input: &Ix<Node>| graph.node(*input).standing;
    let mut inputs: Vec<InputReason> = graph
        .inputs(build.node)
        .iter()
        .filter(|input| standing(input) != Standing::Available)
        .map(|input| InputReason {
            derivation: graph.path(*input),
            standing: standing(input),
            holds_back: engine.settings().strategy.waits_for(standing(input)),
            builds: graph.builds(*input).iter().map(|other| engine.build(*other).id).collect(),
        })
        .collect();
    inputs.sort_by_key(|input| (!input.holds_back, !input.standing.obstructs()));
    let inputs_unlisted = inputs.len().saturating_sub(LISTED_MAX);
    inputs.truncate(LISTED_MAX);
    let setbacks = engine.setbacks(now);
    let setback = setbacks.of(engine.account_of(ix));
    let before = engine.queued_as(ix).map(|rank| {
        engine.queue().before(engine.kind_of(ix), rank.set_back(setback), &setbacks, BEFORE_MAX)
    });
    let kind = engine.queue().kind(engine.kind_of(ix));
    let state = engine.shown_state(ix);
    let looks_for_agent =
        !matches!(state, ShownState::Allocated | ShownState::Building | ShownState::Receiving);
    let agents = if looks_for_agent {
        engine.agents().take(LISTED_MAX).map(|agent| reason(engine, ix, agent, kind)).collect()
    } else {
        Vec::new()
    };
    Explanation {
        state,
        derivation: graph.path(build.node),
        class: kind.class.clone(),
        extras: build.extras(),
        holder: build.state.lease().map(|lease| (lease.attempt, lease.agent.clone())),
        until: match *build.state {
            BuildState::Deferred { until } => Some(until),
            BuildState::Queued
            | BuildState::Allocated(_)
            | BuildState::Building(_)
            | BuildState::Receiving(_)
            | BuildState::Succeeded { .. }
            | BuildState::Failed { .. }
            | BuildState::Canceled => None,
        },
        infrastructure_ends: build.infrastructure_ends(),
        inputs,
        inputs_unlisted,
        before,
        setback_minutes: setback,
        intake_closed: engine.intake_closed().map(str::to_owned),
        agents,
    }
}

fn reason(engine: &Engine, ix: Ix<Build>, agent: &Agent, kind: &Kind) -> AgentReason {
    let reason = if let Some(lacking) = kind.obstacle(&agent.name, &agent.abilities) {
        NotTaken::Unable(lacking)
    } else if let Some(obstacle) = agent.obstacle() {
        NotTaken::Not(obstacle)
    } else if engine.build(ix).avoid() == Some(&agent.name) {
        NotTaken::Avoided
    } else {
        NotTaken::Free
    };
    AgentReason { name: agent.name.clone(), reason }
}
