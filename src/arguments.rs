//! The command lines of the processes.

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use steading::{
    agent::{
        AgentConfig,
        settings::{BuilderChoice, Settings},
        upkeep::Upkeep,
    },
    builders::{BuilderKind, direct, guix, nix},
    config::Presence,
    core::{id::Name, store_path::StoreDir},
    ssh::Role,
};
use tokio::sync::watch;

/// The environment variable with an agent's token, which other users of the machine cannot see.
const TOKEN_VARIABLE: &str = "STEADING_TOKEN";

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
    Agent(Box<AgentArguments>),
    /// Run one attempt in its spool directory; agents start this
    #[command(hide = true)]
    Attempt {
        /// The spool directory.
        spool: PathBuf,
    },
    /// Pass on what an SSH client asked of this host's sshd; for its forced commands
    Stdio(StdioArguments),
    /// Show the whole farm on loopback, in a temporary directory
    Demo {
        /// Keep everything in this directory instead of a temporary one
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// Write manual pages and completions into a folder; packages are made with this
    #[command(hide = true)]
    Manual {
        /// The folder; `man1`, `bash`, `zsh` and `fish` are made in it.
        folder: PathBuf,
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
    /// Play the program `guix` for a guix-daemon that has this in $GUIX: builds go to the farm, and
    /// what the farm has comes from there
    Guix {
        /// The words of the daemon; those of other verbs are the real guix's.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
        words: Vec<OsString>,
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

/// What a forced command says.
#[derive(Debug, Args)]
pub(crate) struct StdioArguments {
    /// Who the owner of the key is to the coordinator
    #[arg(long, value_name = "NAME")]
    pub(crate) principal: Name,
    /// What the principal may: agent, viewer, submitter, operator or admin [default: what the
    /// keydir says]
    #[arg(long, value_parser = role)]
    pub(crate) role: Option<Role>,
    /// The state directory of the coordinator
    #[arg(long, value_name = "DIR", default_value = "/var/lib/steading")]
    pub(crate) state: PathBuf,
}

/// Reads a role.
fn role(text: &str) -> Result<Role, String> {
    Role::of_word(text).ok_or_else(|| {
        let words = Role::ALL.map(|role| role.to_string());
        format!("the roles are {}", words.join(", "))
    })
}

/// `steading agent` without a subcommand runs the agent.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AgentArguments {
    #[command(subcommand)]
    pub(crate) act: Option<AgentAct>,
    #[command(flatten)]
    pub(crate) setup: AgentSetup,
}

/// What is done instead of running an agent.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentAct {
    /// Check everything an agent with these options needs, and say how to mend what is wrong
    Doctor {
        #[command(flatten)]
        setup: AgentSetup,
        /// Print one JSON object per check
        #[arg(long)]
        json: bool,
    },
}

/// Where an agent lives and how it is set up.
#[derive(Debug, Args)]
pub(crate) struct AgentSetup {
    /// The state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/steading-agent")]
    state: PathBuf,
    /// A file with the same settings as the options [default: DIR/agent.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Settings,
}

impl AgentSetup {
    /// Returns the settings: the options, and the file's where there is no option.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        self.options.check()?;
        let file = match &self.config {
            Some(path) => Settings::read(path, Presence::Required),
            None => Settings::read(&self.state.join("agent.toml"), Presence::Optional),
        };
        Ok(self.options.clone().or(file?))
    }

    /// Returns what an agent is started with.
    pub(crate) fn config(
        &self,
        settings: Settings,
        upkeep: watch::Receiver<Upkeep>,
    ) -> anyhow::Result<AgentConfig> {
        let (tags, substituters) = (settings.tags(), settings.substituters());
        let builder = self.builder_kind(&settings)?;
        let systems = if settings.systems.is_empty() {
            vec![format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)]
        } else {
            settings.systems
        };
        let missing = |what| format!("--{what} is needed, as an option or in agent.toml");
        if settings.host_keys.is_empty() {
            bail!(missing("host-key"));
        }
        let keys: Result<Vec<_>, _> = settings.host_keys.iter().map(|key| host_keys(key)).collect();
        let token = settings.token.or_else(|| std::env::var(TOKEN_VARIABLE).ok());
        Ok(AgentConfig {
            state_dir: self.state.clone(),
            coordinator: settings.coordinator.with_context(|| missing("coordinator"))?,
            host_keys: keys?.concat(),
            token: token.filter(|token| !token.is_empty()),
            name: settings.name,
            identity: settings.identity.unwrap_or_else(|| self.state.join("identity")),
            program: AgentConfig::THIS_PROGRAM.into(),
            builder,
            systems,
            emulated_systems: settings.emulated_systems,
            features: settings.features,
            slots: settings.max_parallel_builds.unwrap_or(1),
            uploads: settings.max_parallel_uploads.unwrap_or(1),
            upload_rate: settings.max_upload_rate,
            cores: settings.cores.unwrap_or(0),
            tags,
            substituters,
            upkeep,
        })
    }

    fn builder_kind(&self, settings: &Settings) -> anyhow::Result<BuilderKind> {
        let answers = |socket: &Path| std::os::unix::net::UnixStream::connect(socket).is_ok();
        let store_dir = settings.store_dir.clone();
        match settings.builder.unwrap_or(BuilderChoice::Auto) {
            BuilderChoice::Nix => {
                refuse_options_of_direct(settings)?;
                let store_dir = store_dir.unwrap_or_else(StoreDir::nix);
                Ok(BuilderKind::Nix { socket: nix::socket_path(), store_dir })
            }
            BuilderChoice::Guix => {
                refuse_options_of_direct(settings)?;
                let store_dir = store_dir.unwrap_or_else(StoreDir::guix);
                Ok(BuilderKind::Guix { socket: guix::socket_path(), store_dir })
            }
            BuilderChoice::Direct => self.direct(settings),
            BuilderChoice::Auto => {
                let builder = if answers(&nix::socket_path()) {
                    BuilderChoice::Nix
                } else if answers(&guix::socket_path()) {
                    BuilderChoice::Guix
                } else {
                    BuilderChoice::Direct
                };
                self.builder_kind(&Settings { builder: Some(builder), ..settings.clone() })
            }
        }
    }

    fn direct(&self, settings: &Settings) -> anyhow::Result<BuilderKind> {
        let own = self.state.join("store");
        let store_dir = match &settings.store_dir {
            Some(dir) => dir.clone(),
            None => own
                .to_str()
                .context("the state directory's name is not UTF-8; name a --store-dir")?
                .parse()
                .context("the state directory's name cannot be a store's; name a --store-dir")?,
        };
        let physical_dir = match &settings.physical_store_dir {
            Some(dir) => dir.clone(),
            None => PathBuf::from(store_dir.as_str()),
        };
        Ok(BuilderKind::Direct(direct::Place {
            store_dir,
            physical_dir,
            shared: settings.sandbox_paths.clone(),
            state_dir: self.state.join("direct"),
            program: direct::Place::THIS_PROGRAM.into(),
        }))
    }
}

/// Refuses settings that a daemon has in its own configuration.
fn refuse_options_of_direct(settings: &Settings) -> anyhow::Result<()> {
    if settings.physical_store_dir.is_some() {
        bail!("--physical-store-dir goes with --builder direct only");
    }
    if !settings.sandbox_paths.is_empty() {
        bail!(
            "--sandbox-path goes with --builder direct only; for nix set extra-sandbox-paths in \
             nix.conf, for guix give guix-daemon --chroot-directory"
        );
    }
    Ok(())
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
