//! `/etc/steading/guix.toml`: what a machine's guix-daemon does with the farm.
//!
//! | key | unit | default | meaning |
//! |---|---|---|---|
//! | `coordinator` | words | none | how `ssh` reaches the coordinator: `-i KEY -p 2222 farm.example.org` |
//! | `ssh` | program | `ssh` | the OpenSSH client |
//! | `guix` | program | beside this program, then in `PATH` | the real guix |
//! | `offload` | yes or no | `true` | whether builds go to the farm |
//! | `substitute` | yes or no | `true` | whether what the farm has is taken from there |
//! | `systems` | list | those of the farm's agents | for which systems builds go there |
//! | `features` | list | those of the farm's agents | which required features builds may ask for there |
//! | `unreachable` | `local`, `wait` | `local` | what becomes of builds while the farm, or every agent that could build them, is away |
//! | `patience` | seconds | 900 | how long a lost farm is tried again in the middle of a build |
//! | `priority` | −1000 to 1000 | the key's | the priority of the builds |
//! | `tags` | list of `name=value` | none | tags of the builds |
//! | `acl` | file | `/etc/guix/acl` | the keys whose signatures count, as `guix archive --authorize` writes them |
//! | `daemon-socket` | file | `/var/guix/daemon-socket/socket` | where the daemon is asked what paths refer to |
//!
//! The variable `STEADING_GUIX_CONFIG` names another file, and `STEADING_COORDINATOR` counts where
//! the file has no `coordinator`.

use crate::core::build::{PRIORITY_MAX, PRIORITY_MIN};
use std::{env, io, path::PathBuf};

/// Where the file is.
const FILE: &str = "/etc/steading/guix.toml";
/// The variable that names another.
const FILE_VARIABLE: &str = "STEADING_GUIX_CONFIG";
/// The variable that says how ssh reaches the coordinator, as for all verbs.
const COORDINATOR_VARIABLE: &str = "STEADING_COORDINATOR";

/// The settings of one machine. Each field has the meaning of the key of its name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) coordinator: Option<String>,
    pub(super) ssh: PathBuf,
    pub(super) guix: Option<PathBuf>,
    pub(super) offload: bool,
    pub(super) substitute: bool,
    pub(super) systems: Option<Vec<String>>,
    pub(super) features: Option<Vec<String>>,
    pub(super) unreachable: Unreachable,
    /// In seconds.
    pub(super) patience: u32,
    pub(super) priority: Option<i32>,
    pub(super) tags: Vec<String>,
    pub(super) acl: PathBuf,
    pub(super) daemon_socket: PathBuf,
    /// The words of `coordinator`, split.
    #[serde(skip)]
    pub(super) destination: Vec<String>,
}

/// What becomes of builds that the farm cannot take just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Unreachable {
    /// This machine builds them.
    Local,
    /// The daemon asks again some seconds later.
    Wait,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    /// The file cannot be read.
    #[error("the settings cannot be read; is there a {FILE}?")]
    Read(#[source] io::Error),
    /// The file is not as it should be.
    #[error("{} is not understood", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// What and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Nobody said where the coordinator is.
    #[error(
        "where is the coordinator? write coordinator = \"-p 2222 farm.example.org\", or what else \
         ssh takes, into {}",
        file.display()
    )]
    NoCoordinator {
        /// The file.
        file: PathBuf,
    },
    /// The words for ssh cannot be split.
    #[error("coordinator = \"{0}\" has an unclosed quote")]
    Coordinator(String),
    /// The priority is none.
    #[error("priority must be from {PRIORITY_MIN} to {PRIORITY_MAX}")]
    Priority,
    /// A tag is none.
    #[error("‘{0}’ is no tag: write name=value, the name of letters, digits and . _ -")]
    Tag(String),
}

/// Tells whether a text is a tag, as far as its name goes.
fn is_tag(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let parts = text.split_once('=');
    parts.is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(plain))
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            coordinator: None,
            ssh: PathBuf::from("ssh"),
            guix: None,
            offload: true,
            substitute: true,
            systems: None,
            features: None,
            unreachable: Unreachable::Local,
            patience: 900,
            priority: None,
            tags: Vec::new(),
            acl: PathBuf::from("/etc/guix/acl"),
            daemon_socket: PathBuf::from("/var/guix/daemon-socket/socket"),
            destination: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// A [`SettingsError`].
    pub(super) fn read() -> Result<Self, SettingsError> {
        let file = env::var_os(FILE_VARIABLE).map_or_else(|| FILE.into(), PathBuf::from);
        let coordinator = env::var(COORDINATOR_VARIABLE).ok();
        let text = match fs_err::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && coordinator.is_some() => {
                String::new()
            }
            text => text.map_err(SettingsError::Read)?,
        };
        Self::parse(&text, coordinator, file)
    }

    fn parse(
        text: &str,
        coordinator: Option<String>,
        file: PathBuf,
    ) -> Result<Self, SettingsError> {
        let mut settings: Self = match toml::from_str(text) {
            Ok(settings) => settings,
            Err(source) => return Err(SettingsError::Parse { file, source: Box::new(source) }),
        };
        let Some(words) = settings.coordinator.clone().or(coordinator) else {
            return Err(SettingsError::NoCoordinator { file });
        };
        let split = shell_words::split(&words);
        settings.destination = split.map_err(|_| SettingsError::Coordinator(words))?;
        if settings.destination.is_empty() {
            return Err(SettingsError::NoCoordinator { file });
        }
        // What a submission would be refused for is found before a build is taken.
        if settings.priority.is_some_and(|one| !(PRIORITY_MIN..=PRIORITY_MAX).contains(&one)) {
            return Err(SettingsError::Priority);
        }
        if let Some(tag) = settings.tags.iter().find(|tag| !is_tag(tag)) {
            return Err(SettingsError::Tag(tag.clone()));
        }
        Ok(settings)
    }

    /// Returns settings with which nothing goes to a farm or comes from one.
    pub(super) fn without_farm() -> Self {
        Self::default()
    }

    /// Tells whether builds go to the farm.
    pub(super) fn offloads(&self) -> bool {
        self.offload && !self.destination.is_empty()
    }

    /// Tells whether substitutes come from the farm.
    pub(super) fn substitutes(&self) -> bool {
        self.substitute && !self.destination.is_empty()
    }

    /// Returns the coordinator's name for messages.
    pub(super) fn farm_name(&self) -> &str {
        self.destination.last().map_or("the farm", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, coordinator: Option<&str>) -> Result<Settings, SettingsError> {
        Settings::parse(text, coordinator.map(str::to_owned), "guix.toml".into())
    }

    #[test]
    fn the_file_goes_before_the_variable() {
        let settings =
            parse("coordinator = \"-p 2222 'the farm'\"\nunreachable = \"wait\"", Some("other"));
        let settings = settings.unwrap();
        assert_eq!(settings.destination, ["-p", "2222", "the farm"]);
        assert_eq!(settings.unreachable, Unreachable::Wait);
        assert!(settings.offloads() && settings.substitutes());
        assert_eq!(parse("", Some("other")).unwrap().destination, ["other"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(matches!(parse("", None), Err(SettingsError::NoCoordinator { .. })));
        assert!(matches!(parse("", Some(" ")), Err(SettingsError::NoCoordinator { .. })));
        assert!(matches!(parse("", Some("'")), Err(SettingsError::Coordinator(_))));
        assert!(matches!(parse("farm = 1", Some("x")), Err(SettingsError::Parse { .. })));
        assert!(matches!(parse("priority = 1001", Some("x")), Err(SettingsError::Priority)));
        assert!(matches!(parse("tags = [\"a\"]", Some("x")), Err(SettingsError::Tag(_))));
        assert!(parse("priority = -5\ntags = [\"a=b\"]", Some("x")).is_ok());
    }

    #[test]
    fn without_a_farm_nothing_goes_there() {
        let settings = Settings::without_farm();
        assert!(!settings.offloads() && !settings.substitutes());
    }
}
