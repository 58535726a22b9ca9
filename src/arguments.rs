//! The command lines of the processes.

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};
use steading::{
    agent::AgentConfig,
    builders::{BuilderKind, direct, nix},
    core::store_path::StoreDir,
};

/// Builds Guix and Nix derivations on many machines, over SSH.
#[derive(Debug, Parser)]
#[command(name = "steading", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) part: Part,
}

/// Which part this process plays.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Own the queue, the database and the published nars; listen on one SSH port
    Coordinator(CoordinatorArguments),
    /// Build what the coordinator allocates, on this machine
    Agent(AgentArguments),
    /// Run one attempt in its spool directory; agents start this
    #[command(hide = true)]
    Attempt {
        /// The spool directory.
        spool: PathBuf,
    },
    /// Show the whole farm on loopback, in a temporary directory
    Demo {
        /// Keep everything in this directory instead of a temporary one
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// Pack the closure of local derivations and submit it: [--to DEST] DRV… [OPTION…]
    Submit {
        /// Derivations, and options of the verb `submit`; `--to DEST` says how ssh reaches the
        /// coordinator, instead of $`STEADING_COORDINATOR`
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "WORD"
        )]
        words: Vec<String>,
    },
    /// Run a verb on the coordinator: the same as `ssh $STEADING_COORDINATOR VERB …`
    #[command(external_subcommand)]
    Verb(Vec<String>),
}

#[derive(Debug, Args)]
pub(crate) struct CoordinatorArguments {
    /// The state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/steading")]
    pub(crate) state: PathBuf,
    /// Where to listen; port 0 picks one [default: what the configuration says, or [::]:2222]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// The configuration [default: DIR/steading.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Which builder an agent uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BuilderChoice {
    /// The Nix daemon if it answers, else the embedded executor
    Auto,
    /// The Nix daemon
    Nix,
    /// The embedded executor, without any daemon
    Direct,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    /// The state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/steading-agent")]
    state: PathBuf,
    /// The coordinator
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: String,
    /// The coordinator's public host key, or a file with one or two of them
    #[arg(long, value_name = "FILE|KEY")]
    host_key: String,
    /// This agent's key, made on first start [default: DIR/identity]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// What builds on this machine
    #[arg(long, value_enum, default_value = "auto")]
    builder: BuilderChoice,
    /// The store directory [default: /nix/store for nix, DIR/store for direct]
    #[arg(long, value_name = "DIR")]
    store_dir: Option<StoreDir>,
    /// Where the direct builder keeps what it shows to builds as the store directory
    #[arg(long, value_name = "DIR")]
    physical_store_dir: Option<PathBuf>,
    /// A directory that builds of the direct builder may read and write beside their own,
    /// repeatable
    #[arg(long = "sandbox-path", value_name = "DIR")]
    sandbox_paths: Vec<PathBuf>,
    /// A system this machine builds for, repeatable [default: its own]
    #[arg(long = "system", value_name = "SYSTEM")]
    systems: Vec<String>,
    /// A system this machine builds for by emulation, repeatable
    #[arg(long = "emulated-system", value_name = "SYSTEM")]
    emulated_systems: Vec<String>,
    /// A feature that builds may require, repeatable
    #[arg(long = "feature", value_name = "FEATURE")]
    features: Vec<String>,
    /// How many builds run at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_parallel_builds: u32,
    /// How many builds upload at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3))]
    max_parallel_uploads: u32,
    /// How many processors one build should use; 0 leaves it to the builder
    #[arg(long, value_name = "N", default_value_t = 0)]
    cores: u32,
}

impl AgentArguments {
    /// Returns what the agent is started with.
    pub(crate) fn config(&self) -> anyhow::Result<AgentConfig> {
        let systems = if self.systems.is_empty() {
            vec![format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)]
        } else {
            self.systems.clone()
        };
        Ok(AgentConfig {
            state_dir: self.state.clone(),
            coordinator: self.coordinator.clone(),
            host_keys: host_keys(&self.host_key)?,
            identity: self.identity.clone().unwrap_or_else(|| self.state.join("identity")),
            program: AgentConfig::THIS_PROGRAM.into(),
            builder: self.builder_kind()?,
            systems,
            emulated_systems: self.emulated_systems.clone(),
            features: self.features.clone(),
            slots: self.max_parallel_builds,
            uploads: self.max_parallel_uploads,
            cores: self.cores,
        })
    }

    fn builder_kind(&self) -> anyhow::Result<BuilderKind> {
        let socket = nix::socket_path();
        let answers = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        let choice = match self.builder {
            BuilderChoice::Auto if answers() => BuilderChoice::Nix,
            BuilderChoice::Auto => BuilderChoice::Direct,
            chosen => chosen,
        };
        if choice == BuilderChoice::Nix {
            if self.physical_store_dir.is_some() {
                bail!("--physical-store-dir goes with --builder direct only");
            }
            if !self.sandbox_paths.is_empty() {
                bail!(
                    "--sandbox-path goes with --builder direct only; for nix set \
                     extra-sandbox-paths in nix.conf"
                );
            }
            let store_dir = self.store_dir.clone().unwrap_or_else(StoreDir::nix);
            return Ok(BuilderKind::Nix { socket, store_dir });
        }
        let own = self.state.join("store");
        let store_dir = match &self.store_dir {
            Some(dir) => dir.clone(),
            None => own
                .to_str()
                .context("the state directory's name is not UTF-8; name a --store-dir")?
                .parse()
                .context("the state directory's name cannot be a store's; name a --store-dir")?,
        };
        let physical_dir = match &self.physical_store_dir {
            Some(dir) => dir.clone(),
            None => PathBuf::from(store_dir.as_str()),
        };
        Ok(BuilderKind::Direct(direct::Place {
            store_dir,
            physical_dir,
            shared: self.sandbox_paths.clone(),
            state_dir: self.state.join("direct"),
            program: direct::Place::THIS_PROGRAM.into(),
        }))
    }
}

/// Returns the pinned host keys: the argument itself, or the lines of the file it names.
fn host_keys(argument: &str) -> anyhow::Result<Vec<String>> {
    if argument.starts_with("ssh-") {
        return Ok(vec![argument.to_owned()]);
    }
    let text = fs_err::read_to_string(argument)
        .context("--host-key takes a public key or a file that holds it")?;
    let keys: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if keys.is_empty() {
        bail!("{argument} holds no host key");
    }
    Ok(keys)
}
