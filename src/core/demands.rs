//! What a build asks of its agent besides what its derivation does.

use super::{agent::Abilities, id::Name, plan::Class};

/// The most agents or tags that the demands of one build name.
pub const DEMANDS_MAX: usize = 64;

/// What a build asks of its agent besides what its derivation does. Nothing, of nearly all builds.
///
/// Builds that ask for the same are interchangeable to agents, so demands are a part of what ready
/// sets are kept by: nobody looks at a build that it may not take.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Demands {
    /// Only these agents may have it; any when empty. Sorted.
    pub agents: Vec<Name>,
    /// These agents may not have it. Sorted.
    pub not_agents: Vec<Name>,
    /// Its agent must have all of these tags. Sorted.
    pub tags: Vec<(String, String)>,
    /// Its agent must build for the system without emulation.
    pub native_only: bool,
}

impl Demands {
    /// Tells whether nothing is asked for.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the same demands in the one order in which they are kept, each once.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.agents.sort_unstable();
        self.agents.dedup();
        self.not_agents.sort_unstable();
        self.not_agents.dedup();
        self.tags.sort_unstable();
        self.tags.dedup();
        self
    }

    /// Returns why an agent may not have such a build; `None` when nothing of this stands against
    /// it.
    #[must_use]
    pub fn obstacle(&self, class: &Class, name: &Name, abilities: &Abilities) -> Option<String> {
        if !self.agents.is_empty() && !self.agents.contains(name) {
            let named: Vec<&str> = self.agents.iter().map(Name::as_str).collect();
            return Some(format!("only {} may have it", named.join(", ")));
        }
        if self.not_agents.contains(name) {
            return Some("it was asked that this agent does not get it".to_owned());
        }
        let lacking = self.tags.iter().find(|(tag, value)| abilities.tags.get(tag) != Some(value));
        if let Some((tag, value)) = lacking {
            return Some(format!("it lacks the tag {tag}={value}"));
        }
        if self.native_only && class.is_emulated_by(abilities) {
            return Some("it builds for this system only through emulation".to_owned());
        }
        None
    }

    /// Returns the demands in words, one by one, to follow “it asks for”.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let names =
            |names: &[Name]| names.iter().map(Name::as_str).collect::<Vec<_>>().join(" or ");
        let mut words = Vec::new();
        if !self.agents.is_empty() {
            words.push(format!("the agent {}", names(&self.agents)));
        }
        if !self.not_agents.is_empty() {
            words.push(format!("an agent other than {}", names(&self.not_agents)));
        }
        words.extend(self.tags.iter().map(|(tag, value)| format!("the tag {tag}={value}")));
        if self.native_only {
            words.push("no emulation".to_owned());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::store_path::StoreDir;
    use std::collections::BTreeMap;

    fn told(demands: &Demands, change: impl Fn(&mut Abilities)) -> Option<String> {
        let mut abilities = Abilities {
            store_dir: StoreDir::guix(),
            dialect: "guix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: vec!["riscv64-linux".to_owned()],
            features: Vec::new(),
            slots: 1,
            tags: BTreeMap::from([("site".to_owned(), "lab".to_owned())]),
        };
        change(&mut abilities);
        let system = Some("riscv64-linux".to_owned());
        let class = Class { store_dir: StoreDir::guix(), system, features: Vec::new() };
        demands.obstacle(&class, &"amber".parse().unwrap(), &abilities)
    }

    #[test]
    fn each_demand_is_asked_of_the_agent() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let none = Demands::default;
        let tag = |value: &str| vec![("site".to_owned(), value.to_owned())];
        let cases = [
            (none(), None),
            (Demands { agents: vec![name("amber")], ..none() }, None),
            (Demands { agents: vec![name("birch")], ..none() }, Some("only birch")),
            (Demands { not_agents: vec![name("birch")], ..none() }, None),
            (Demands { not_agents: vec![name("amber")], ..none() }, Some("does not get it")),
            (Demands { tags: tag("lab"), ..none() }, None),
            (Demands { tags: tag("roof"), ..none() }, Some("site=roof")),
            (Demands { native_only: true, ..none() }, Some("emulation")),
        ];
        for (demands, expected) in cases {
            let told = told(&demands, |_| ());
            match expected {
                None => assert_eq!(told, None, "{demands:?}"),
                Some(words) => assert!(told.unwrap().contains(words), "{demands:?}"),
            }
        }
        let native = Demands { native_only: true, ..none() };
        let also = |abilities: &mut Abilities| abilities.systems.push("riscv64-linux".to_owned());
        assert_eq!(told(&native, also), None);
    }

    #[test]
    fn what_is_kept_of_demands_is_read_back() {
        let demands = Demands { native_only: true, ..Demands::default() };
        let text = serde_json::to_string(&demands).unwrap();
        assert_eq!(serde_json::from_str::<Demands>(&text).unwrap(), demands);
        assert!(serde_json::from_str::<Demands>("{}").unwrap().is_none());
    }
}
