//! `steading.toml`: every key, its unit and its default.
//!
//! | key | unit | default | meaning |
//! |---|---|---|---|
//! | `listen` | address and port | `[::]:2222` | where the coordinator listens; port 0 picks one |
//! | `strategy` | `basic`, `derivation-ordered` | `basic` | when an input holds a build back |
//! | `outputs` | `take`, `record` | `take` | whether the nars of outputs are taken, or only their hashes and sizes noted, and nothing published |
//! | `priority-step` | minutes | 5 | how much waiting one point of priority is worth |
//! | `fair-share` | minutes | 30 | by how much the builds go back of a submitter who used all that was used lately; who used a part goes back by that part, and 0 leaves everybody where priority and time put them |
//! | `fair-share-half-life` | hours | 24 | after how long use counts half as much |
//! | `lease` | seconds | 1200 | how long an agent may be away before its builds go to others |
//! | `quarantine-after` | builds, 0 to 255 | 5 | how many builds in a row must end through an agent's fault until it gets no more; 0: never |
//! | `build-missing-inputs` | `true`, `false` | `true` | whether inputs that an agent found nowhere are built here |
//! | `retry.KIND` | tries, 0 to 255 | 1 of `signal` and `oom`, else 0 | how often a build that failed is tried again by itself, where KIND is `exit`, `signal`, `timeout`, `silent`, `oom`, `no-output`, `hash-mismatch` or `output-rejected` |
//! | `retry.emulated` | `true`, `false` | `true` | whether what failed under emulation is tried once more where the system is native |
//! | `log-cap` | bytes | 67108864 | how much of one attempt's log is kept: half its beginning, half its end |
//! | `log-keep-days` | days | 365 | for how long logs are kept |
//! | `log-keep-bytes` | bytes | 53687091200 | how much disk all compressed logs may take; the oldest go first |
//! | `audit-keep-days` | days | 365 | for how long lines of the audit are kept |
//! | `min-free` | bytes | 5368709120, or a twentieth of a smaller disk | how much of the state directory's disk stays free; below, nothing new is taken |
//! | `uploads-max` | number | 16 | how many uploads are received at a time; more wait for their turn |
//! | `uploads-per-agent-max` | number | 4 | how many of them may be of one agent |
//! | `staged-gib-max` | GiB | 64 | how much one agent may have sent that is not committed |
//! | `gc-delay` | hours | 720 | how long the files of nars stay that are withdrawn: those who have seen a narinfo may ask for them as long |
//! | `backup-age` | days | 7 | after how long without a backup `status` asks for one; 0: never |
//! | `metrics-file` | path | none | where the text of `metrics` is written for `node_exporter` to read |
//! | `metrics-interval` | seconds | 15 | how often |
//! | `signing-key-name` | text | host name and `-1` | the name of a signing key made at first start |
//! | `guix-acl` | file | `guix-acl` in the state directory, if it is there | whose signatures are believed on outputs that a submitted export brings, in the form of Guix's `/etc/guix/acl`; read for each submission |
//! | `publish."STORE DIR"` | `complete`, `external-references-allowed`, `never` | `complete` | when a path becomes visible |
//! | `events-keep` | events | 1000000 | how many events are kept, at least 10,000; older ones are forgotten |
//! | `events-keep-days` | days | 30 | for how long events are kept |
//! | `hooks.role` | `viewer`, `submitter`, `operator`, `admin` | `submitter` | what the key of hooks may do |
//! | `hooks.time-limit` | seconds | 60 | how long one run of a hook may take |
//! | `hooks.tries` | tries, 1 to 255 | 8 | after how many tries an event is given up for a hook |
//! | `hooks.pause` | seconds | 10 | how long to wait before the second try; each pause is three times the one before, at most an hour |
//! | `hooks.parallel.EVENT` | runs, 1 to 16 | 1 | how many runs of each hook of an event go on at a time; with 1, one event after the other |
//!
//! The file is read at start. The verb `reload` and SIGHUP have it read again: `strategy`,
//! `priority-step`, `fair-share`, `fair-share-half-life`, `lease`, `quarantine-after`,
//! `build-missing-inputs`, `retry`, `guix-acl`, `audit-keep-days`, `gc-delay`, `backup-age`,
//! `metrics-file` and `metrics-interval` hold from then on, on a farm that goes on; all else needs a
//! restart.

use crate::{
    core::{
        engine::Settings,
        outcome::OutputPolicy,
        plan::{FairShare, Strategy},
        retry::Retries,
        store_path::StoreDir,
    },
    depot::PublishPolicy,
    hooks::HookSettings,
};
use fs_err as fs;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

/// The coordinator's configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Where the coordinator listens.
    pub listen: SocketAddr,
    /// When an input holds a build back.
    pub strategy: Strategy,
    /// What becomes of outputs.
    pub outputs: OutputPolicy,
    /// How many minutes of waiting one point of priority is worth.
    pub priority_step: u32,
    /// By how many minutes the builds go back of whoever used all that was used lately.
    pub fair_share: u32,
    /// After how many hours use counts half as much.
    pub fair_share_half_life: NonZeroU32,
    /// How long an agent may be away before its builds go to others, in seconds.
    pub lease: u32,
    /// After how many builds in a row that ended through its fault an agent gets no more; never
    /// when 0.
    pub quarantine_after: u8,
    /// Whether inputs that an agent found nowhere are built here.
    pub build_missing_inputs: bool,
    /// How often a build that failed is tried again by itself.
    pub retry: Retries,
    /// How much of one attempt's log is kept, in bytes.
    pub log_cap: u64,
    /// For how long logs are kept, in days.
    pub log_keep_days: u32,
    /// How much disk all compressed logs may take, in bytes.
    pub log_keep_bytes: u64,
    /// For how long lines of the audit are kept, in days.
    pub audit_keep_days: u32,
    /// How many bytes of the state directory's filesystem stay free.
    pub min_free: Option<u64>,
    /// How many uploads are received at a time.
    pub uploads_max: NonZeroU32,
    /// How many uploads of one agent are received at a time.
    pub uploads_per_agent_max: NonZeroU32,
    /// How much one agent may have sent that is not committed, in GiB.
    pub staged_gib_max: NonZeroU32,
    /// How long the files of withdrawn nars stay, in hours: the default is how long Nix believes a
    /// narinfo that it has seen.
    pub gc_delay: u32,
    /// After how many days without a backup `status` asks for one; never when 0.
    pub backup_age: u32,
    /// Where the text of `metrics` is written.
    pub metrics_file: Option<PathBuf>,
    /// How often, in seconds.
    pub metrics_interval: NonZeroU32,
    /// The name of a signing key made at first start.
    pub signing_key_name: Option<String>,
    /// Whose signatures are believed on outputs that a submitted export brings.
    pub guix_acl: Option<PathBuf>,
    /// When a path becomes visible, by store directory.
    pub publish: BTreeMap<StoreDir, PublishPolicy>,
    /// How many events are kept.
    pub events_keep: u64,
    /// For how long events are kept, in days.
    pub events_keep_days: u32,
    /// How hooks are run.
    pub hooks: HookSettings,
    /// The file it was read from, or would have been.
    #[serde(skip)]
    pub source: Option<Source>,
}

/// Where a configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Whether it must be there.
    pub presence: Presence,
}

/// What differs in another configuration, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    /// What holds as soon as the engine is told.
    pub at_once: Vec<&'static str>,
    /// What needs a restart.
    pub at_restart: Vec<&'static str>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0u16; 8], 2222)),
            strategy: Strategy::default(),
            outputs: OutputPolicy::default(),
            priority_step: 5,
            fair_share: 30,
            fair_share_half_life: NonZeroU32::MIN.saturating_add(23),
            lease: 1_200,
            quarantine_after: 5,
            build_missing_inputs: true,
            retry: Retries::default(),
            log_cap: 64 << 20,
            log_keep_days: 365,
            log_keep_bytes: 50 << 30,
            audit_keep_days: 365,
            min_free: None,
            uploads_max: NonZeroU32::MIN.saturating_add(15),
            uploads_per_agent_max: NonZeroU32::MIN.saturating_add(3),
            staged_gib_max: NonZeroU32::MIN.saturating_add(63),
            gc_delay: 720,
            backup_age: 7,
            metrics_file: None,
            metrics_interval: NonZeroU32::MIN.saturating_add(14),
            signing_key_name: None,
            guix_acl: None,
            publish: BTreeMap::new(),
            events_keep: 1_000_000,
            events_keep_days: 30,
            hooks: HookSettings::default(),
            source: None,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration")]
    Read(#[source] io::Error),
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: String,
        /// Where and what, as the TOML reader prints it.
        message: String,
    },
}

impl Config {
    /// Reads a file; its absence means the defaults when `Presence::Optional`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path, presence: Presence) -> Result<Self, ConfigError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                // Where the directory is none, the start will say so in better words.
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                    && presence == Presence::Optional =>
            {
                return Ok(Self::default());
            }
            Err(error) => return Err(ConfigError::Read(error)),
        };
        toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.display().to_string(),
            message: error.to_string().trim_end().to_owned(),
        })
    }

    /// Reads the file again that this was read from.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn reread(&self) -> Result<Self, ConfigError> {
        let Some(source) = &self.source else { return Ok(self.clone()) };
        let read = Self::read(&source.path, source.presence)?;
        Ok(Self { source: self.source.clone(), ..read })
    }

    /// Returns which keys say something else in another configuration.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Differences {
        let at_once = [
            ("strategy", self.strategy != other.strategy),
            ("priority-step", self.priority_step != other.priority_step),
            ("fair-share", self.fair_share != other.fair_share),
            ("fair-share-half-life", self.fair_share_half_life != other.fair_share_half_life),
            ("lease", self.lease != other.lease),
            ("quarantine-after", self.quarantine_after != other.quarantine_after),
            ("build-missing-inputs", self.build_missing_inputs != other.build_missing_inputs),
            ("retry", self.retry != other.retry),
            ("guix-acl", self.guix_acl != other.guix_acl),
            ("audit-keep-days", self.audit_keep_days != other.audit_keep_days),
            ("gc-delay", self.gc_delay != other.gc_delay),
            ("backup-age", self.backup_age != other.backup_age),
            ("metrics-file", self.metrics_file != other.metrics_file),
            ("metrics-interval", self.metrics_interval != other.metrics_interval),
        ];
        let at_restart = [
            ("listen", self.listen != other.listen),
            ("outputs", self.outputs != other.outputs),
            ("log-cap", self.log_cap != other.log_cap),
            ("log-keep-days", self.log_keep_days != other.log_keep_days),
            ("log-keep-bytes", self.log_keep_bytes != other.log_keep_bytes),
            ("min-free", self.min_free != other.min_free),
            ("uploads-max", self.uploads_max != other.uploads_max),
            ("uploads-per-agent-max", self.uploads_per_agent_max != other.uploads_per_agent_max),
            ("staged-gib-max", self.staged_gib_max != other.staged_gib_max),
            ("signing-key-name", self.signing_key_name != other.signing_key_name),
            ("publish", self.publish != other.publish),
            ("events-keep", self.events_keep != other.events_keep),
            ("events-keep-days", self.events_keep_days != other.events_keep_days),
            ("hooks", self.hooks != other.hooks),
        ];
        let named = |keys: &[(&'static str, bool)]| {
            keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect()
        };
        Differences { at_once: named(&at_once), at_restart: named(&at_restart) }
    }

    /// Takes over what holds at once from another configuration.
    pub fn adopt_settings(&mut self, other: &Self) {
        self.strategy = other.strategy;
        self.priority_step = other.priority_step;
        self.fair_share = other.fair_share;
        self.fair_share_half_life = other.fair_share_half_life;
        self.lease = other.lease;
        self.quarantine_after = other.quarantine_after;
        self.build_missing_inputs = other.build_missing_inputs;
        self.retry = other.retry;
        self.guix_acl.clone_from(&other.guix_acl);
        self.audit_keep_days = other.audit_keep_days;
        self.gc_delay = other.gc_delay;
        self.backup_age = other.backup_age;
        self.metrics_file.clone_from(&other.metrics_file);
        self.metrics_interval = other.metrics_interval;
    }

    /// Returns what the engine needs of it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            strategy: self.strategy,
            outputs: self.outputs,
            priority_step: i64::from(self.priority_step),
            fair_share: FairShare {
                weight_minutes: i64::from(self.fair_share),
                half_life_minutes: i64::from(self.fair_share_half_life.get()) * 60,
            },
            lease_ms: u64::from(self.lease) * 1_000,
            quarantine_after: self.quarantine_after,
            build_missing: self.build_missing_inputs,
            retries: self.retry,
            ..Settings::default()
        }
    }
}

/// Whether a file must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It was named by the operator.
    Required,
    /// It is the usual one.
    Optional,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::event::EventKind, hooks::HookRole};

    fn parse(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steading.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path, Presence::Required).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "listen = '127.0.0.1:0'\nstrategy = 'derivation-ordered'\noutputs = 'record'\n\
             priority-step = 1\nfair-share = 10\nfair-share-half-life = 2\n\
             lease = 60\nquarantine-after = 3\nlog-cap = 65536\nlog-keep-days = 7\n\
             log-keep-bytes = 1\naudit-keep-days = 30\nmin-free = 9\nsigning-key-name = 'farm-2'\n\
             uploads-max = 3\nuploads-per-agent-max = 2\nstaged-gib-max = 1\n\
             build-missing-inputs = false\n\
             events-keep = 20000\nevents-keep-days = 2\n\
             gc-delay = 2\nbackup-age = 0\nmetrics-file = '/x'\nmetrics-interval = 5\n\
             [retry]\nexit = 2\nemulated = false\n\
             [publish]\n'/nix/store' = 'external-references-allowed'\n\
             [hooks]\nrole = 'viewer'\ntime-limit = 5\ntries = 2\npause = 1\n\
             [hooks.parallel]\nbuild-success = 4\n",
        )
        .unwrap();
        assert_eq!(config.strategy, Strategy::DerivationOrdered);
        assert_eq!(config.settings().outputs, OutputPolicy::Record);
        assert_eq!(config.settings().lease_ms, 60_000);
        let fair = FairShare { weight_minutes: 10, half_life_minutes: 120 };
        assert_eq!(config.settings().fair_share, fair);
        assert_eq!(config.settings().quarantine_after, 3);
        assert!(!config.settings().build_missing);
        let retries = Retries { exit: 2, emulated: false, ..Retries::default() };
        assert_eq!(config.settings().retries, retries);
        let logs = (config.log_cap, config.log_keep_days, config.log_keep_bytes);
        assert_eq!(logs, (65_536, 7, 1));
        assert_eq!(config.audit_keep_days, 30);
        assert_eq!(config.min_free, Some(9));
        assert_eq!((config.gc_delay, config.backup_age), (2, 0));
        let metrics = (config.metrics_file.as_deref(), config.metrics_interval.get());
        assert_eq!(metrics, (Some(Path::new("/x")), 5));
        let numbers = [config.uploads_max, config.uploads_per_agent_max, config.staged_gib_max];
        assert_eq!(numbers.map(NonZeroU32::get), [3, 2, 1]);
        assert_eq!(
            config.publish.get(&StoreDir::nix()),
            Some(&PublishPolicy::ExternalReferencesAllowed)
        );
        assert_eq!((config.events_keep, config.events_keep_days), (20_000, 2));
        let hooks = &config.hooks;
        assert_eq!(hooks.role, HookRole::Viewer);
        assert_eq!((hooks.time_limit.get(), hooks.tries.get(), hooks.pause.get()), (5, 2, 1));
        assert_eq!(hooks.parallel_of(EventKind::BuildSuccess), 4);
        assert_eq!(hooks.parallel_of(EventKind::BuildFailure), 1);
    }

    #[test]
    fn differences_are_named_by_when_they_hold() {
        let other = Config {
            strategy: Strategy::DerivationOrdered,
            log_cap: 1,
            outputs: OutputPolicy::Record,
            ..Config::default()
        };
        let differences = Config::default().differences(&other);
        assert_eq!(differences.at_once, ["strategy"]);
        assert_eq!(differences.at_restart, ["outputs", "log-cap"]);
        assert_eq!(other.differences(&other), Differences::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_the_known_ones() {
        let error = parse("stratgy = 'basic'\n").unwrap_err();
        assert!(error.contains("stratgy") && error.contains("`strategy`"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let error = parse("strategy = 'fast'\n").unwrap_err();
        assert!(error.contains("line 1") && error.contains("derivation-ordered"), "{error}");
    }
}
