//! Who somebody is and what that entitles them to.

use crate::core::id::Name;
use std::fmt;

/// What the owner of a key may do. Roles of people nest; those of agents and of strangers stand
/// apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The owner of a key that is known nowhere: may ask to become known, and nothing else.
    Stranger,
    /// A build machine: builds, and nothing that people do.
    Agent,
    /// Reads everything, changes nothing.
    Viewer,
    /// Submits builds, and cancels and retries its own.
    Submitter,
    /// Changes everybody's builds, and agents.
    Operator,
    /// Changes keys and the coordinator itself.
    Admin,
}

impl Role {
    /// All roles that the keydir gives, in the order of their folders in the documents.
    pub const ALL: [Self; 5] =
        [Self::Agent, Self::Viewer, Self::Submitter, Self::Operator, Self::Admin];

    /// Returns whether somebody of this role may do what `needed` may do.
    #[must_use]
    pub fn includes(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::Agent, Self::Agent) | (Self::Stranger, Self::Stranger) => true,
            (Self::Agent | Self::Stranger, _) | (_, Self::Agent | Self::Stranger) => false,
            // The variants after `Agent` are in the order in which they nest.
            (have, needed) => have >= needed,
        }
    }

    /// Returns the word for it, as in certificates, answers and the audit.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Agent => "agent",
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Returns the role that the keydir gives and that is called so.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.word() == word)
    }

    /// Returns the name of the role's folder in the keydir; strangers have none, and an empty name.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Stranger => "",
            Self::Agent => "agents",
            Self::Viewer => "viewers",
            Self::Submitter => "submitters",
            Self::Operator => "operators",
            Self::Admin => "admins",
        }
    }

    /// Returns the role whose folder has this name.
    #[must_use]
    pub fn of_folder(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.folder() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Who a key is: what the keydir says of it, or of the authority that certified it. A session
/// carries one only after the owner proved to hold the private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The name, from the name of the key's file. “Own” builds are those of the same name.
    pub name: Name,
    /// The role, from the folder of the key's file.
    pub role: Role,
    /// The key's fingerprint as `ssh-keygen -l` prints it: `SHA256:` and base64.
    pub fingerprint: String,
    /// The systems that an agent with this key may at most build for; `None` sets no ceiling.
    pub systems: Option<Vec<String>>,
    /// Tags given to whatever has this key: an agent, or the builds that a person submits.
    pub tags: Vec<(String, String)>,
    /// The highest priority that builds submitted with this key may have; `None` sets no ceiling.
    pub max_priority: Option<i32>,
    /// Whether outputs imported with this key are believed though they cannot be verified.
    pub trusted_import: bool,
    /// How much the principal may ask for with this key.
    pub quotas: Quotas,
    /// By what the key is known.
    pub credential: Credential,
}

/// How much a principal may ask for; what is absent has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quotas {
    /// How many builds of the principal may be open when it asks for more or tries some again.
    pub open_builds: Option<u32>,
    /// How many submissions it may make in an hour.
    pub submissions_per_hour: Option<u32>,
}

/// By what a key is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The keydir lists it.
    Listed,
    /// An authority of the keydir certified it.
    Certificate(Certified),
    /// Nothing yet.
    Unknown {
        /// The key itself, as `ssh-ed25519 AAAA…`.
        key: String,
    },
}

/// What a certificate says beside the name and the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Its serial number.
    pub serial: u64,
    /// What the authority calls it.
    pub key_id: String,
    /// The fingerprint of the authority's key.
    pub authority: String,
    /// From when on it is worth nothing, in seconds since 1970; absent when it always holds.
    pub expires_s: Option<u64>,
    /// The one command line that is run with it, whatever was asked for.
    pub forced: Option<String>,
}

impl Principal {
    /// Returns a principal that this program itself is, under a key of its own.
    #[must_use]
    pub const fn own(name: Name, role: Role, fingerprint: String) -> Self {
        Self {
            name,
            role,
            fingerprint,
            systems: None,
            tags: Vec::new(),
            max_priority: None,
            trusted_import: false,
            quotas: Quotas { open_builds: None, submissions_per_hour: None },
            credential: Credential::Listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_people_nest_and_agents_stand_apart() {
        let people = [Role::Viewer, Role::Submitter, Role::Operator, Role::Admin];
        for (rank, have) in people.into_iter().enumerate() {
            for (needed_rank, needed) in people.into_iter().enumerate() {
                assert_eq!(have.includes(needed), rank >= needed_rank, "{have} {needed}");
            }
            assert!(!have.includes(Role::Agent), "{have}");
            assert!(!Role::Agent.includes(have), "{have}");
            assert!(!Role::Stranger.includes(have) && !have.includes(Role::Stranger), "{have}");
        }
        assert!(Role::Agent.includes(Role::Agent));
    }

    #[test]
    fn every_role_has_a_folder_of_its_own() {
        for role in Role::ALL {
            assert_eq!(Role::of_folder(role.folder()), Some(role));
            assert_eq!(Role::of_word(role.word()), Some(role));
        }
        assert_eq!(Role::of_folder(Role::Stranger.folder()), None);
        assert_eq!(Role::of_word("stranger"), None);
        assert_eq!(Role::of_folder("root"), None);
    }
}
