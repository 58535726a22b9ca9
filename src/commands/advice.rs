//! What a build waits for, in one sentence.

use super::{
    asking,
    error::CommandError,
    table::{self, count},
    times,
};
use crate::{
    coordinator::Coordinator,
    core::{
        build::ShownState,
        demands::Demands,
        engine::AgentView,
        plan::{Class, Explanation},
    },
};

/// How many agents are named in one sentence.
const NAMED_MAX: usize = 5;

/// The agents, asked who could build something.
pub(super) struct Agents(Vec<AgentView>);

impl Agents {
    pub(super) async fn ask(coordinator: &Coordinator) -> Result<Self, CommandError> {
        Ok(Self(asking::agents(coordinator).await?))
    }

    /// Returns why no agent can build a class now; `None` when one can.
    fn obstacle(&self, class: &Class, demands: &Demands) -> Option<String> {
        let is_able = |agent: &&AgentView| {
            let class_obstacle = class.obstacle(&agent.abilities);
            class_obstacle.is_none()
                && demands.obstacle(class, &agent.name, &agent.abilities).is_none()
        };
        let able: Vec<&AgentView> = self.0.iter().filter(is_able).collect();
        let takes = |agent: &&AgentView| {
            agent.connected && agent.suspension.is_none() && agent.capacity.slots > 0
        };
        if able.iter().any(takes) {
            return None;
        }
        let what = needs(class, demands);
        let why = if self.0.is_empty() {
            "no agent was ever here".to_owned()
        } else if able.is_empty() {
            format!("it needs {what}, which none of the known agents ({}) offers", self.0.len())
        } else {
            let mut names: Vec<&str> =
                able.iter().take(NAMED_MAX).map(|agent| agent.name.as_str()).collect();
            if able.len() > NAMED_MAX {
                names.push("…");
            }
            let connected = able.iter().any(|agent| agent.connected);
            let lack = if connected { "takes builds just now" } else { "is connected" };
            format!("it needs {what}; {} could, but none {lack}", names.join(", "))
        };
        Some(format!("no agent can build this now ({why})"))
    }
}

/// Returns what a class asks of agents.
pub(super) fn needs(class: &Class, demands: &Demands) -> String {
    let system = class.system.as_deref().unwrap_or("any system");
    let features = match class.features.as_slice() {
        [] => String::new(),
        features => format!(" with {}", features.join(", ")),
    };
    let mut needs = format!("{system}{features} in {}", class.store_dir);
    for words in demands.words() {
        needs.push_str(", ");
        needs.push_str(&table::plain(&words));
    }
    needs
}

/// Returns the most important thing to know of an open build, as a sentence.
pub(super) fn headline(explanation: &Explanation, agents: &Agents) -> String {
    let holder = || match &explanation.holder {
        Some((attempt, agent)) => format!("{agent} (attempt {attempt})"),
        None => "an agent".to_owned(),
    };
    match explanation.state {
        ShownState::Held => match &explanation.extras.hold {
            Some(hold) => {
                let since = times::shown(hold.since);
                format!("{} holds it back since {since}; ‘set ID --release’ ends that.", hold.by)
            }
            None => "It is held back.".to_owned(),
        },
        ShownState::Deferred if explanation.infrastructure_ends == 0 => {
            let until = explanation.until.map_or_else(|| "later".to_owned(), times::shown);
            format!("It is not to be tried before {until}; ‘retry ID’ ends that.")
        }
        ShownState::Deferred => {
            let until = explanation.until.map_or_else(|| "later".to_owned(), times::shown);
            let number = explanation.infrastructure_ends as usize;
            let attempts = count(number, "attempt");
            format!("It is tried again at {until}: {attempts} ended through no fault of its own.")
        }
        ShownState::Waiting => {
            let listed = explanation.inputs.iter().filter(|input| input.holds_back).count();
            let inputs = count(listed + explanation.inputs_unlisted, "input");
            match agents.obstacle(&explanation.class, &explanation.extras.demands) {
                Some(obstacle) => format!("It waits for {inputs}; even then, {obstacle}."),
                None => format!("It waits for {inputs}."),
            }
        }
        ShownState::Ready if explanation.intake_closed.is_some() => {
            "It is ready, but nothing is given to agents just now.".to_owned()
        }
        ShownState::Ready => match (
            agents.obstacle(&explanation.class, &explanation.extras.demands),
            explanation.before,
        ) {
            (Some(obstacle), _) => format!("Its inputs hold nothing up, but {obstacle}."),
            (None, None | Some(0)) => "It is the next one for a free agent.".to_owned(),
            (None, Some(before)) => {
                format!("It is ready; {} of its kind before it.", count(before, "build"))
            }
        },
        ShownState::Blocked => "An input failed, so that it cannot be built.".to_owned(),
        ShownState::Allocated => format!("It was given to {}.", holder()),
        ShownState::Building => format!("It is being built by {}.", holder()),
        ShownState::Receiving => format!("It is built; its outputs come from {}.", holder()),
        ShownState::Succeeded | ShownState::Failed | ShownState::Canceled => {
            format!("It is {}.", explanation.state)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        agent::{Abilities, Capacity},
        store_path::StoreDir,
        time::Timestamp,
    };
    use std::collections::BTreeMap;

    fn class(features: &[&str]) -> Class {
        Class {
            store_dir: StoreDir::nix(),
            system: Some("x86_64-linux".to_owned()),
            features: features.iter().map(|&feature| feature.to_owned()).collect(),
        }
    }

    fn agent(name: &str, connected: bool) -> AgentView {
        let abilities = Abilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            slots: 1,
            tags: BTreeMap::new(),
        };
        AgentView {
            name: name.parse().unwrap(),
            connected,
            capacity: Capacity::whole(&abilities),
            slots_free: 1,
            abilities,
            suspension: None,
            obstacle: None,
            failures_in_a_row: 0,
            running: Vec::new(),
            sending: Vec::new(),
            last_seen: Timestamp::from_ms(0),
        }
    }

    #[test]
    fn it_is_said_whether_an_agent_is_missing_away_or_unable() {
        let told = |agents: Vec<AgentView>, class: Class| {
            Agents(agents).obstacle(&class, &Demands::default())
        };
        assert!(told(vec![], class(&[])).unwrap().contains("no agent was ever here"));
        let away = told(vec![agent("amber", false)], class(&[])).unwrap();
        assert!(away.contains("amber could, but none is connected"), "{away}");
        let unable = told(vec![agent("amber", true)], class(&["kvm"])).unwrap();
        assert!(unable.contains("x86_64-linux with kvm in /nix/store"), "{unable}");
        assert_eq!(told(vec![agent("amber", true)], class(&[])), None);
        let mut idle = agent("amber", true);
        idle.capacity.slots = 0;
        let idle = told(vec![idle], class(&[])).unwrap();
        assert!(idle.contains("amber could, but none takes builds just now"), "{idle}");
    }
}
