//! The first exchange: which protocol both ends speak, who the agent is and what it still holds.

use crate::core::{agent::Capacity, id::InstanceId, store_path::StoreDir};
use std::collections::BTreeMap;

pub use crate::core::attempt::{Held, HeldPhase};

/// The oldest protocol this program speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol this program speaks. Protocol 2 added reports of attempts that were given
/// up ([`REPORTS_SINCE`]), protocol 3 what builders need that build by path ([`TEXTS_SINCE`]).
pub const PROTOCOL_MAX: u16 = 3;
/// The first protocol in which a welcome may ask for a report.
pub const REPORTS_SINCE: u16 = 2;
/// The first protocol in which agents may ask for the texts of derivations below, for what is known
/// of other paths than inputs, and for signatures over exports.
pub const TEXTS_SINCE: u16 = 3;
/// How many attempts an agent may claim to hold.
pub const HELD_MAX: usize = 4_096;
/// How many tags an agent may give itself.
pub const TAGS_MAX: usize = 64;
/// How many systems, emulated systems and features an agent may name, all together.
pub const ABILITIES_MAX: usize = 256;
/// How many slots of an agent are used: so many orders at once still leave room in its outbox.
pub const SLOTS_MAX: u32 = 512;

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hello {
    /// The oldest protocol the agent speaks.
    pub protocol_min: u16,
    /// The newest protocol the agent speaks.
    pub protocol_max: u16,
    /// The agent program's version, for people.
    pub version: String,
    /// Which installation this is; survives restarts of the agent.
    pub instance: InstanceId,
    /// The agent's wall clock, in milliseconds since the epoch; a skew is shown, never corrected.
    pub wall_ms: i64,
    /// What the agent can build.
    pub capabilities: Capabilities,
    /// The attempts it still has, in any phase up to the confirmed commit.
    pub held: Vec<Held>,
    /// How many builds it wants to run at a time just now; all its slots when absent. Later
    /// changes come as `capacity` messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
}

/// What an agent can build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    /// The store directory its builds go to.
    pub store_dir: StoreDir,
    /// Which kind of builder it has: `nix`, `guix` or `direct`.
    pub dialect: String,
    /// Systems it builds natively, such as `x86_64-linux`.
    pub systems: Vec<String>,
    /// Systems it builds through emulation.
    #[serde(default)]
    pub emulated_systems: Vec<String>,
    /// What it offers to `requiredSystemFeatures`.
    #[serde(default)]
    pub features: Vec<String>,
    /// How many builds it runs at a time.
    pub slots: u32,
    /// What its operator says of it, for choosing among agents; at most [`TAGS_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// Returns the newest protocol that both ends speak.
#[must_use]
pub fn agree(hello: &Hello) -> Option<u16> {
    let newest = hello.protocol_max.min(PROTOCOL_MAX);
    (newest >= hello.protocol_min.max(PROTOCOL_MIN)).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaking(protocol_min: u16, protocol_max: u16) -> Hello {
        Hello {
            protocol_min,
            protocol_max,
            version: "0.1.0".to_owned(),
            instance: InstanceId::from_bytes([7; 16]),
            wall_ms: 0,
            capabilities: Capabilities {
                store_dir: StoreDir::nix(),
                dialect: "nix".to_owned(),
                systems: vec!["x86_64-linux".to_owned()],
                emulated_systems: vec![],
                features: vec![],
                slots: 1,
                tags: BTreeMap::new(),
            },
            held: vec![],
            capacity: None,
        }
    }

    #[test]
    fn the_newest_common_protocol_is_spoken() {
        assert_eq!(agree(&speaking(1, 1)), Some(1));
        assert_eq!(agree(&speaking(1, 9)), Some(PROTOCOL_MAX));
        assert_eq!(agree(&speaking(2, 2)), Some(2));
        assert_eq!(agree(&speaking(PROTOCOL_MAX + 1, 9)), None);
        assert_eq!(agree(&speaking(0, 0)), None);
        assert_eq!(agree(&speaking(9, 1)), None);
    }
}
