//! The binary: arguments become configuration, rooms are wired together, nothing else.

mod arguments;

use anyhow::{Context as _, bail};
use arguments::{AgentAct, AgentSetup, Arguments, CoordinatorArguments, Part, StdioArguments};
use clap::{CommandFactory as _, Parser as _};
use std::{
    ffi::{OsStr, OsString},
    io::{IsTerminal as _, Write as _},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};
use steading::{
    agent::{self, doctor::Grade},
    builders::direct::sandbox,
    commands::{self, client},
    config::{Config, Presence, Source},
    coordinator::{Coordinator, care::reload, start},
    demo, guix_program,
    ssh::local,
    telemetry::{self, Clock},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// The exit status of what may succeed when it is tried again (`EX_TEMPFAIL` in sysexits.h).
const TRY_AGAIN: u8 = 75;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called_as = words.next().map(PathBuf::from).unwrap_or_default();
    // Before anything starts a thread: namespaces are entered by processes that have one.
    if words.next().is_some_and(|first| first == sandbox::SUBCOMMAND) {
        return sandbox::enter(words);
    }
    let result = if called_as.file_name() == Some(OsStr::new(guix_program::NAME)) {
        let words: Vec<OsString> = std::env::args_os().skip(1).collect();
        guix_program::run(&words).map_err(anyhow::Error::from)
    } else {
        run(Arguments::parse().part)
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // One line with all causes: the way to a terminal or the journal.
            print_error(&format!("steading: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run(part: Part) -> anyhow::Result<ExitCode> {
    match part {
        Part::Coordinator(arguments) => coordinator(&arguments),
        Part::Agent(arguments) => match arguments.act {
            None => run_agent(&arguments.setup),
            Some(AgentAct::Doctor { setup, json }) => doctor(&setup, json),
        },
        Part::Attempt { spool } => Ok(agent::attempt::main(&spool)),
        Part::Demo { keep } => {
            start_telemetry("steading=warn");
            demo::run(keep.as_deref()).context("the demo failed")?;
            Ok(ExitCode::SUCCESS)
        }
        Part::Stdio(arguments) => stdio(arguments),
        Part::Manual { folder } => manual(&folder),
        Part::Submit { words } => Ok(client::submit(&words)?),
        Part::Guix { words } => Ok(guix_program::run(&words)?),
        Part::Verb(words) => Ok(client::verb(&words)?),
    }
}

fn coordinator(arguments: &CoordinatorArguments) -> anyhow::Result<ExitCode> {
    start_telemetry("steading=info");
    let usual = arguments.state.join("steading.toml");
    let source = match &arguments.config {
        Some(path) => Source { path: path.clone(), presence: Presence::Required },
        None => Source { path: usual, presence: Presence::Optional },
    };
    let config = Config { source: Some(source), ..Config::default() };
    let config = config.reread().context("the configuration cannot be used")?;
    let listen = arguments.listen.unwrap_or(config.listen);
    let runtime = tokio::runtime::Runtime::new().context("threads cannot be started")?;
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        // From here on it ends nothing: whoever is told that all is ready may send one at once.
        let hangup = signal(SignalKind::hangup()).context("signals cannot be received")?;
        // Not the same: agents are told of a stop before connections end.
        let door = CancellationToken::new();
        let starting = start::start(&arguments.state, &config, listen, Clock::start(), door);
        let started = tokio::select! {
            started = starting => started.context("the coordinator cannot start")?,
            // A start can wait for room on the disk.
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        announce(&arguments.state, &started)?;
        tokio::spawn(reload_on_signal(hangup, started.coordinator.clone()));
        let stopping = stop.clone();
        tokio::spawn(async move {
            stopping.cancelled().await;
            // Without systemd there is nobody to tell.
            sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
        });
        match started.serve(stop, commands::run).await {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                let advice = if error.is_disk_full() {
                    "the disk of the state directory is full: make room and start it again, it \
                     goes on where it was"
                } else {
                    "the coordinator stopped because it could not note something: start it again"
                };
                print_error(&format!("steading: {advice}: {}\n", telemetry::chain(&error)));
                Ok(ExitCode::from(TRY_AGAIN))
            }
        }
    })
}

/// Has the configuration read again at every SIGHUP, as the verb ‘reload’ does.
async fn reload_on_signal(mut hangup: Signal, coordinator: Coordinator) {
    while hangup.recv().await.is_some() {
        match reload::reload(&coordinator).await {
            Ok(differences) => {
                let (now, later) = (differences.at_once, differences.at_restart);
                tracing::info!(
                    ?now,
                    ?later,
                    "configuration read again: what holds now, and what needs a restart"
                );
            }
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::error!(error, "configuration not read again: the old one holds");
            }
        }
    }
}

/// Says where the coordinator is, which keys it has, and that it is ready.
fn announce(state: &Path, started: &start::Started) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let port = started.address.port();
    writeln!(out, "listening on {}", started.address)?;
    writeln!(out, "known_hosts line: [HOST]:{port} {}", started.host_public_key)?;
    if let Some(next) = &started.next_host_public_key {
        writeln!(out, "known_hosts line of the next host key: [HOST]:{port} {next}")?;
    }
    writeln!(out, "public signing key: {}", started.signing_public_key)?;
    let guix = state.join("run/signing-guix.pub");
    writeln!(out, "public signing key for guix archive --authorize: {}", guix.display())?;
    writeln!(out, "keys of people and agents: {}", state.join("keys").display())?;
    writeln!(out, "READY")?;
    out.flush()?;
    // Without systemd there is nobody to tell.
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    Ok(())
}

fn run_agent(setup: &AgentSetup) -> anyhow::Result<ExitCode> {
    start_telemetry("steading=info");
    let settings = setup.settings().context("the agent's settings cannot be used")?;
    let (upkeep, changes) = watch::channel(settings.upkeep());
    let config = setup.config(settings, changes)?;
    let runtime = tokio::runtime::Runtime::new().context("threads cannot be started")?;
    runtime.block_on(async {
        let cancel = stop_on_signal()?;
        let mut hangup = signal(SignalKind::hangup()).context("signals cannot be received")?;
        let rereading = async {
            while hangup.recv().await.is_some() {
                match setup.settings() {
                    Ok(settings) => drop(upkeep.send_replace(settings.upkeep())),
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::error!(error, "settings not read again: the old ones hold");
                    }
                }
            }
        };
        tokio::select! {
            ended = agent::run(config, Clock::start(), cancel) => {
                ended.context("the agent cannot run")?;
            }
            () = rereading => bail!("signals are not received any more"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes what packages install beside the program.
fn manual(folder: &Path) -> anyhow::Result<ExitCode> {
    for page in commands::manual::pages(Arguments::command()) {
        let path = folder.join(page.path);
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        fs_err::write(path, page.text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Passes on what a client asked of this host's own sshd.
fn stdio(arguments: StdioArguments) -> anyhow::Result<ExitCode> {
    let original = std::env::var_os("SSH_ORIGINAL_COMMAND");
    let call = local::Call {
        forced: local::Forced { name: arguments.principal, role: arguments.role },
        kind: local::asked(original.as_ref().map(|line| line.as_bytes())),
        env: local::session_variables(),
    };
    let socket = arguments.state.join(local::SOCKET);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("the system gives no event queue")?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("there is no output")?;
    let passed = runtime.block_on(async {
        let streams = local::Streams {
            input: tokio::io::stdin(),
            output: tokio::io::stdout(),
            errors: tokio::io::stderr(),
            abandoned: local::abandoned(output),
        };
        local::relay(&socket, &call, streams).await
    });
    // Its thread may be reading standard input, which nobody waits for any more.
    runtime.shutdown_background();
    match passed {
        Ok(status) => Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))),
        Err(error) => {
            print_error(&format!("steading: {}\n", telemetry::chain(&error)));
            Ok(ExitCode::from(TRY_AGAIN))
        }
    }
}

/// Prints what the doctor finds, as it is for people or, with `json`, for scripts.
fn doctor(setup: &AgentSetup, json: bool) -> anyhow::Result<ExitCode> {
    start_telemetry("steading=error");
    let settings = setup.settings().context("the agent's settings cannot be used")?;
    let upkeep = settings.upkeep().fixed();
    let config = setup.config(settings, upkeep)?;
    let runtime = tokio::runtime::Runtime::new().context("threads cannot be started")?;
    let findings = runtime.block_on(agent::doctor::examine(&config, Clock::start()));
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        if json {
            writeln!(out, "{}", serde_json::to_string(finding)?)?;
        } else {
            writeln!(out, "{finding}")?;
        }
    }
    let well = findings.iter().all(|finding| finding.grade != Grade::Fail);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns a token that is canceled by the signals that ask a process to stop.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let cancel = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let canceled = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        canceled.cancel();
    });
    Ok(cancel)
}

/// Sends diagnosis to standard error, filtered by `STEADING_LOG`.
fn start_telemetry(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STEADING_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn print_error(text: &str) {
    // When even standard error is closed, nobody can be told.
    std::io::stderr().write_all(text.as_bytes()).ok();
}
