//! Who gets what: classes of builds, ready sets, strategies, and why a build is not built yet.

mod accounts;
mod basic;
mod derivation_ordered;
mod explain;
mod queue;

pub use accounts::{AccountIx, Accounts, CHARGED_AT_ONCE_MS, FairShare, Setbacks, Usage};
pub use explain::{AgentReason, Explanation, InputReason, NotTaken, explain};
pub use queue::{ClassIx, Kind, Novelty, Queue, Rank};

use super::{agent::Abilities, graph::Standing, store_path::StoreDir};

/// What an agent must offer to build something: builds of one class are interchangeable to agents.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Class {
    /// The store directory of the derivation.
    pub store_dir: StoreDir,
    /// The system; absent for `builtin` ones, which every agent of the store can build.
    pub system: Option<String>,
    /// The features it requires, sorted.
    pub features: Vec<String>,
}

impl Class {
    /// Tells whether an agent that can build this class does so through emulation only.
    #[must_use]
    pub fn is_emulated_by(&self, abilities: &Abilities) -> bool {
        self.system.as_ref().is_some_and(|system| !abilities.systems.contains(system))
    }

    /// Returns why an agent cannot build this class; `None` when it can.
    #[must_use]
    pub fn obstacle(&self, abilities: &Abilities) -> Option<String> {
        if self.store_dir != abilities.store_dir {
            return Some(format!("it builds in {}, not {}", abilities.store_dir, self.store_dir));
        }
        if let Some(system) = &self.system {
            let known = abilities.systems.iter().chain(&abilities.emulated_systems);
            if !known.into_iter().any(|offered| offered == system) {
                return Some(format!("it does not build for {system}"));
            }
        }
        let lacking: Vec<&str> = self
            .features
            .iter()
            .filter(|feature| !abilities.features.contains(feature))
            .map(String::as_str)
            .collect();
        (!lacking.is_empty()).then(|| format!("it lacks the feature {}", lacking.join(", ")))
    }
}

/// When an input holds a build back. The names and meanings are the Guix Build Coordinator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Does not assume that an input must have been built here.
    #[default]
    Basic,
    /// Waits until every input is held.
    DerivationOrdered,
}

impl Strategy {
    /// Tells whether a build waits for an input that stands so.
    #[must_use]
    pub const fn waits_for(self, standing: Standing) -> bool {
        match self {
            Self::Basic => basic::waits_for(standing),
            Self::DerivationOrdered => derivation_ordered::waits_for(standing),
        }
    }
}
