//! `agent.toml` and the options of `steading agent`: the same settings under the same names.
//!
//! | key | unit | default | meaning |
//! |---|---|---|---|
//! | `coordinator` | host and port | none | where the coordinator listens |
//! | `host-key` | public keys or files | none | how the coordinator is recognized; two while its key is changed |
//! | `identity` | file | `identity` in the state directory | the agent's key, made on first start; a certificate for it is looked for beside it, as `identity-cert.pub` |
//! | `token` | token | none | with it the agent lets itself in when its key is not known |
//! | `name` | name | the host's | what it would like to be called then |
//! | `builder` | `auto`, `nix`, `guix`, `direct` | `auto` | what builds on this machine |
//! | `store-dir` | directory | `/nix/store`, `/gnu/store`, or `store` in the state directory | the store that is built into |
//! | `physical-store-dir` | directory | the store directory | where the direct builder keeps its files |
//! | `sandbox-paths` | list of directories | none | what builds of the direct builder may read and write beside their own |
//! | `systems` | list | the machine's own | what it builds for natively |
//! | `emulated-systems` | list | none | what it builds for by emulation |
//! | `features` | list | none | what it offers to `requiredSystemFeatures` |
//! | `tags` | list of `name=value` | none | what is said of it, for choosing among agents |
//! | `max-parallel-builds` | builds | 1 | how many builds run at a time, up to 1024 |
//! | `max-parallel-uploads` | attempts | 1 | how many attempts upload at a time, up to 3 |
//! | `max-upload-rate` | bytes per second | none | how much of the line outputs may fill, from 4096 on |
//! | `cores` | processors | 0 | how many one build should use; 0 leaves it to the builder |
//! | `max-1min-load-average` | processes | none | above it no build is wanted |
//! | `max-pressure` | list of `cpu=`, `memory=`, `io=` and a percentage | none | no build is wanted when processes waited for longer than this part of the last 10 seconds |
//! | `min-memory` | bytes, or with K, M, G, T | none | no build is wanted when less memory is available |
//! | `min-free` | bytes, or with K, M, G, T | none | no build is wanted when less is free where the store or the state directory is |
//! | `collect-garbage` | `auto`, `never` | `auto` | whether the store is collected below `min-free` |
//! | `gentle-start` | seconds | 10 | the pause between the first builds after a start; 0 for none |
//! | `substituters` | list of URLs | the daemon's own | where the daemon fetches inputs that the coordinator lacks |
//! | `substituters-for-derivations` | list of URLs | as `substituters` | the same for inputs that are derivations |
//!
//! On the command line, keys that take lists are options in the singular that may be repeated
//! (`--system`), except `--substituters`, which take several words. An option has precedence over
//! the file. On SIGHUP the agent reads the file again, and of it `max-1min-load-average`,
//! `max-pressure`, `min-memory`, `min-free`, `collect-garbage` and `gentle-start` hold from then
//! on; everything else needs a restart.

use super::{
    rate::RATE_MIN,
    upkeep::{
        Collection, Upkeep,
        gates::{Limits, Resource},
    },
};
use crate::{
    builders::Substituters,
    config::Presence,
    core::{id::Name, store_path::StoreDir},
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// The pause between the first builds after a start, in seconds: about what a build needs to show
/// in the pressure of the last ten seconds.
const GENTLE_START_S: u64 = 10;

/// What builds on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuilderChoice {
    /// The Nix daemon if it answers, else the Guix daemon if that does, else the embedded executor
    Auto,
    /// The Nix daemon
    Nix,
    /// The Guix daemon
    Guix,
    /// The embedded executor, without any daemon
    Direct,
}

/// The settings of an agent, as far as they were given.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// The coordinator
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: Option<String>,
    /// The coordinator's public host key, or a file with some; repeat it while the key is changed
    #[arg(long = "host-key", value_name = "FILE|KEY")]
    #[serde(rename = "host-key", deserialize_with = "one_or_several")]
    pub host_keys: Vec<String>,
    /// This agent's key, made on first start [default: DIR/identity]
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Lets this agent in when its key is not known; better in $`STEADING_TOKEN` or agent.toml
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// What this agent would like to be called when its key is not known [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,
    /// What builds on this machine [default: auto]
    #[arg(long, value_enum)]
    pub builder: Option<BuilderChoice>,
    /// The store directory [default: /nix/store for nix, /gnu/store for guix, DIR/store for direct]
    #[arg(long, value_name = "DIR")]
    pub store_dir: Option<StoreDir>,
    /// Where the direct builder keeps what it shows to builds as the store directory
    #[arg(long, value_name = "DIR")]
    pub physical_store_dir: Option<PathBuf>,
    /// A directory that builds of the direct builder may read and write beside their own,
    /// repeatable
    #[arg(long = "sandbox-path", value_name = "DIR")]
    pub sandbox_paths: Vec<PathBuf>,
    /// A system this machine builds for, repeatable [default: its own]
    #[arg(long = "system", value_name = "SYSTEM")]
    pub systems: Vec<String>,
    /// A system this machine builds for by emulation, repeatable
    #[arg(long = "emulated-system", value_name = "SYSTEM")]
    pub emulated_systems: Vec<String>,
    /// A feature that builds may require, repeatable
    #[arg(long = "feature", value_name = "FEATURE")]
    pub features: Vec<String>,
    /// Something to say of this agent, repeatable
    #[arg(long = "tag", value_name = "NAME=VALUE")]
    pub tags: Vec<Tag>,
    /// How many builds run at a time, up to 1024 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_parallel_builds: Option<u32>,
    /// How many builds upload at a time, up to 3 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3))]
    pub max_parallel_uploads: Option<u32>,
    /// How fast outputs are sent at most, in bytes per second, from 4096 on [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub max_upload_rate: Option<u64>,
    /// How many processors one build should use; 0 leaves it to the builder [default: 0]
    #[arg(long, value_name = "N")]
    pub cores: Option<u32>,
    /// Begin no build while the load average is above this
    #[arg(long = "max-1min-load-average", value_name = "X")]
    #[serde(rename = "max-1min-load-average")]
    pub max_1min_load_average: Option<f64>,
    /// Begin no build while processes wait for cpu, memory or io in more of the time, repeatable
    #[arg(long, value_name = "RESOURCE=PERCENT")]
    pub max_pressure: Vec<PressureLimit>,
    /// Begin no build while less memory is available; K, M, G and T are understood
    #[arg(long, value_name = "BYTES")]
    pub min_memory: Option<Bytes>,
    /// Begin no build, and collect garbage, while less is free on the store's or the state
    /// directory's filesystem; K, M, G and T are understood
    #[arg(long, value_name = "BYTES")]
    pub min_free: Option<Bytes>,
    /// Whether the store is collected while less than --min-free is free [default: auto]
    #[arg(long, value_enum)]
    pub collect_garbage: Option<Collection>,
    /// The pause between the first builds after a start; 0 for none [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub gentle_start: Option<u64>,
    /// Where the daemon fetches inputs that the coordinator lacks [default: its own setting]
    #[arg(long, value_name = "URL", num_args = 0..)]
    pub substituters: Option<Vec<String>>,
    /// The same for inputs that are derivations [default: as --substituters]
    #[arg(long, value_name = "URL", num_args = 0..)]
    pub substituters_for_derivations: Option<Vec<String>>,
}

/// Reads a value that is one text or a list of them.
fn one_or_several<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum OneOrSeveral {
        One(String),
        Several(Vec<String>),
    }
    let read = <OneOrSeveral as serde::Deserialize>::deserialize(value)?;
    Ok(match read {
        OneOrSeveral::One(one) => vec![one],
        OneOrSeveral::Several(several) => several,
    })
}

/// Why an agent's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("the agent's settings cannot be read")]
    Read(#[source] io::Error),
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: String,
        /// Where and what, as the TOML reader prints it.
        message: String,
    },
    /// A value is not one that the setting can have.
    #[error("{0}")]
    Value(&'static str),
}

impl Settings {
    /// Reads a file; its absence means no settings when `Presence::Optional`.
    ///
    /// # Errors
    /// [`SettingsError`]: correct the file.
    pub fn read(path: &Path, presence: Presence) -> Result<Self, SettingsError> {
        let text = match fs_err::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                if presence == Presence::Optional
                    && matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
            {
                return Ok(Self::default());
            }
            Err(error) => return Err(SettingsError::Read(error)),
        };
        let settings: Self = toml::from_str(&text).map_err(|error| SettingsError::Parse {
            path: path.display().to_string(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        settings.check()?;
        Ok(settings)
    }

    /// Returns these settings, and those of `others` where there are none of these.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        let list = |own: Vec<String>, other| if own.is_empty() { other } else { own };
        Self {
            coordinator: self.coordinator.or(others.coordinator),
            host_keys: list(self.host_keys, others.host_keys),
            identity: self.identity.or(others.identity),
            token: self.token.or(others.token),
            name: self.name.or(others.name),
            builder: self.builder.or(others.builder),
            store_dir: self.store_dir.or(others.store_dir),
            physical_store_dir: self.physical_store_dir.or(others.physical_store_dir),
            sandbox_paths: if self.sandbox_paths.is_empty() {
                others.sandbox_paths
            } else {
                self.sandbox_paths
            },
            systems: list(self.systems, others.systems),
            emulated_systems: list(self.emulated_systems, others.emulated_systems),
            features: list(self.features, others.features),
            tags: if self.tags.is_empty() { others.tags } else { self.tags },
            max_parallel_builds: self.max_parallel_builds.or(others.max_parallel_builds),
            max_parallel_uploads: self.max_parallel_uploads.or(others.max_parallel_uploads),
            max_upload_rate: self.max_upload_rate.or(others.max_upload_rate),
            cores: self.cores.or(others.cores),
            max_1min_load_average: self.max_1min_load_average.or(others.max_1min_load_average),
            max_pressure: if self.max_pressure.is_empty() {
                others.max_pressure
            } else {
                self.max_pressure
            },
            min_memory: self.min_memory.or(others.min_memory),
            min_free: self.min_free.or(others.min_free),
            collect_garbage: self.collect_garbage.or(others.collect_garbage),
            gentle_start: self.gentle_start.or(others.gentle_start),
            substituters: self.substituters.or(others.substituters),
            substituters_for_derivations: self
                .substituters_for_derivations
                .or(others.substituters_for_derivations),
        }
    }

    /// Returns how the machine is looked after.
    #[must_use]
    pub fn upkeep(&self) -> Upkeep {
        let pressure = self.max_pressure.iter().map(|limit| (limit.resource, limit.percent));
        Upkeep {
            limits: Limits {
                load: self.max_1min_load_average,
                pressure: pressure.collect(),
                memory_bytes: self.min_memory.map(|bytes| bytes.0),
                free_bytes: self.min_free.map(|bytes| bytes.0),
                gentle_start: Duration::from_secs(self.gentle_start.unwrap_or(GENTLE_START_S)),
            },
            collection: self.collect_garbage.unwrap_or_default(),
        }
    }

    /// Returns where the daemon fetches from.
    #[must_use]
    pub fn substituters(&self) -> Substituters {
        let others = self.substituters.clone();
        Substituters {
            derivations: self.substituters_for_derivations.clone().or_else(|| others.clone()),
            others,
        }
    }

    /// Returns the tags; of one name the last value holds.
    #[must_use]
    pub fn tags(&self) -> BTreeMap<String, String> {
        self.tags.iter().map(|tag| (tag.name.clone(), tag.value.clone())).collect()
    }

    /// Refuses values that the options would refuse, too.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let load = self.max_1min_load_average;
        if self.max_parallel_builds.is_some_and(|builds| !(1..=1024).contains(&builds)) {
            return Err(SettingsError::Value("max-parallel-builds is from 1 to 1024"));
        }
        if self.max_parallel_uploads.is_some_and(|uploads| !(1..=3).contains(&uploads)) {
            return Err(SettingsError::Value("max-parallel-uploads is from 1 to 3"));
        }
        if self.max_upload_rate.is_some_and(|rate| rate < RATE_MIN) {
            return Err(SettingsError::Value("max-upload-rate is from 4096 bytes per second on"));
        }
        if load.is_some_and(|load| !load.is_finite() || load <= 0.0) {
            return Err(SettingsError::Value("max-1min-load-average is a number above 0"));
        }
        Ok(())
    }
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Tag {
    /// The name: neither empty nor with blanks.
    pub name: String,
    /// The value: neither empty nor with blanks.
    pub value: String,
}

impl FromStr for Tag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |word: &str| {
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == ',')
        };
        match text.split_once('=') {
            Some((name, value)) if is_word(name) && is_word(value) => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("a tag is a name, ‘=’ and a value, without blanks and commas"),
        }
    }
}

/// The highest pressure on one resource.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct PressureLimit {
    /// What is waited for.
    pub resource: Resource,
    /// In how much of the last ten seconds some process may wait, from 0 to 100.
    pub percent: f64,
}

impl FromStr for PressureLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const USAGE: &str = "a limit of pressure is cpu, memory or io, ‘=’ and a percentage";
        let (name, percent) = text.split_once('=').ok_or(USAGE)?;
        let resource = Resource::ALL.into_iter().find(|resource| resource.name() == name);
        let percent: f64 = percent.trim_end_matches('%').parse().map_err(|_| USAGE)?;
        match resource {
            Some(resource) if (0.0..=100.0).contains(&percent) => Ok(Self { resource, percent }),
            _ => Err(USAGE),
        }
    }
}

/// A number of bytes: a plain number, or one behind which K, M, G or T stands for a power of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "BytesForm")]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let bits = match &text[digits.len()..] {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err("a number of bytes ends in nothing, K, M, G or T"),
        };
        let number: u64 = digits.trim_end().parse().map_err(|_| "a number of bytes is expected")?;
        number.checked_mul(1 << bits).map(Self).ok_or("that many bytes do not exist")
    }
}

/// How a number of bytes stands in the file.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes, or a text such as '20G'")]
enum BytesForm {
    Number(u64),
    Text(String),
}

impl TryFrom<BytesForm> for Bytes {
    type Error = &'static str;

    fn try_from(form: BytesForm) -> Result<Self, Self::Error> {
        match form {
            BytesForm::Number(number) => Ok(Self(number)),
            BytesForm::Text(text) => text.parse(),
        }
    }
}

impl TryFrom<String> for Tag {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for PressureLimit {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests;
