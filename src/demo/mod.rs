//! `steading demo`: the whole farm on loopback, as real processes, with every result checked.
//!
//! This room plays the operator: it starts a coordinator and two agents, submits a graph of its
//! own, follows logs, waits, and reads the published tree back like a stranger would. It uses the
//! same door and verbs as anybody else, through the agents' SSH client, so that it works on a
//! machine without OpenSSH. Called by `main`.

mod farm;
pub mod graph;
mod published;

use crate::core::{id::BuildId, store_path::StoreDir};
use farm::{Answer, Farm, Kind};
use graph::{Expected, Graph, GraphError, Member};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Why a demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something around it failed.
    #[error("{what}")]
    Around {
        /// What was being done.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The coordinator could not be reached or spoken to.
    #[error("the coordinator could not be spoken to")]
    Ssh(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The graph could not be written.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Something is not as it should be.
    #[error("{0}")]
    Unexpected(String),
}

/// Returns a function that says what was being done when the system refused.
fn around(what: impl Into<String>) -> impl FnOnce(io::Error) -> DemoError {
    let what = what.into();
    move |source| DemoError::Around { what, source }
}

/// Runs the demo in a temporary directory, or in `keep`, which then stays.
///
/// # Errors
/// [`DemoError`] when anything was not built, verified, signed, published and read back.
pub fn run(keep: Option<&Path>) -> Result<(), DemoError> {
    let place = Place::make(keep)?;
    let runtime = tokio::runtime::Runtime::new().map_err(around("cannot start threads"))?;
    let result = runtime.block_on(play(&place.dir));
    if result.is_ok() && place.is_temporary {
        fs_err::remove_dir_all(&place.dir).map_err(around("cannot clean up"))?;
    } else {
        say(&format!("everything is kept in {}", place.dir.display()));
    }
    result
}

/// Where the demo keeps its files.
struct Place {
    dir: PathBuf,
    is_temporary: bool,
}

impl Place {
    fn make(keep: Option<&Path>) -> Result<Self, DemoError> {
        let dir = match keep {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("steading-demo-{}", salt()?)),
        };
        fs_err::create_dir_all(&dir).map_err(around("cannot make the demo's directory"))?;
        let dir = dir.canonicalize().map_err(around("cannot find the demo's directory"))?;
        if dir.join("coordinator").exists() {
            return Err(DemoError::Unexpected(format!(
                "{} holds an earlier demo: name an empty directory",
                dir.display()
            )));
        }
        Ok(Self { dir, is_temporary: keep.is_none() })
    }
}

/// Returns a word that no other run has.
fn salt() -> Result<String, DemoError> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| DemoError::Unexpected(error.to_string()))?;
    Ok(crate::core::hash::hex(&bytes))
}

async fn play(dir: &Path) -> Result<(), DemoError> {
    let kind = Kind::of_this_machine(dir)?;
    say(&format!("builder: {kind}"));
    let farm = Farm::start(dir, &kind).await?;
    say(&format!("coordinator on {}, agents: amber, birch", farm.address()));
    let store_dir: StoreDir = kind.store_dir().clone();
    let system = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let graph = Graph::write(store_dir.clone(), system, salt()?)?;
    let builds = submit(&farm, &graph).await?;
    follow_logs(&farm, &graph, &builds).await?;
    wait(&farm, &builds).await?;
    check_states(&farm, &graph, &builds).await?;
    let agents = farm.run("agents", None).await?;
    say("agents:");
    show(&agents.out);
    let check = farm.run("check", None).await?;
    if check.status != 0 {
        return Err(unexpected("check found something", &check));
    }
    say("check: nothing wrong in the database, the depot and the published tree");
    published::read_back(&farm.state_dir(), &store_dir, graph.members()).await?;
    say("published tree: every path is signed, complete and has the promised content");
    farm.stop().await?;
    say("done");
    Ok(())
}

/// Submits the graph as an export stream, like `nix-store --export … | ssh … submit --closure`.
async fn submit(farm: &Farm, graph: &Graph) -> Result<Vec<BuildId>, DemoError> {
    let paths: Vec<String> = graph.members().iter().map(|member| member.path.to_string()).collect();
    let line = format!("submit --closure --tag demo=1 {}", paths.join(" "));
    let answer = farm.run(&line, Some(graph.export()?)).await?;
    if answer.status != 0 {
        return Err(unexpected("submit was refused", &answer));
    }
    let builds: Result<Vec<BuildId>, _> = answer.out.lines().map(str::parse).collect();
    let builds = builds.map_err(|error| DemoError::Unexpected(error.to_string()))?;
    if builds.len() != graph.members().len() {
        return Err(unexpected("submit did not print one id per derivation", &answer));
    }
    say(&format!("submitted {} derivations:", builds.len()));
    for (build, member) in builds.iter().zip(graph.members()) {
        show(&format!("{build}  {}", member.path.name()));
    }
    Ok(builds)
}

/// Follows the log of each build that is tried, while it runs.
async fn follow_logs(farm: &Farm, graph: &Graph, builds: &[BuildId]) -> Result<(), DemoError> {
    for (build, member) in builds.iter().zip(graph.members()) {
        if member.expected == Expected::Blocked {
            continue;
        }
        say(&format!("log -f {build}  ({})", member.path.name()));
        let status = farm.stream(&format!("log -f {build}"), show).await?;
        if status != 0 {
            let text = format!("log -f {build} ended with status {status}");
            return Err(DemoError::Unexpected(text));
        }
    }
    Ok(())
}

async fn wait(farm: &Farm, builds: &[BuildId]) -> Result<(), DemoError> {
    let ids: Vec<String> = builds.iter().map(BuildId::to_string).collect();
    let answer = farm.run(&format!("wait {}", ids.join(" ")), None).await?;
    // One build fails and one is blocked: the answer must be negative, and nothing else.
    if answer.status == 1 { Ok(()) } else { Err(unexpected("wait did not exit with 1", &answer)) }
}

async fn check_states(farm: &Farm, graph: &Graph, builds: &[BuildId]) -> Result<(), DemoError> {
    say("results:");
    for (build, member) in builds.iter().zip(graph.members()) {
        let answer = farm.run(&format!("show {build} --json"), None).await?;
        let object: serde_json::Value = serde_json::from_str(&answer.out)
            .map_err(|_| unexpected("show --json did not print an object", &answer))?;
        let state = object.get("state").and_then(serde_json::Value::as_str).unwrap_or("?");
        show(&format!("{state:<10} {}", member.path.name()));
        let expected = match member.expected {
            Expected::Success => "succeeded",
            Expected::Failure => "failed",
            Expected::Blocked => "blocked",
        };
        if state != expected {
            let text = format!("{} is {state}, not {expected}", member.path.name());
            return Err(DemoError::Unexpected(text));
        }
    }
    Ok(())
}

fn unexpected(what: &str, answer: &Answer) -> DemoError {
    DemoError::Unexpected(format!(
        "{what} (status {}): {}{}",
        answer.status, answer.out, answer.err
    ))
}

/// Prints a step.
fn say(text: &str) {
    print(&format!("== {text}\n"));
}

/// Prints what a step showed.
fn show(text: &str) {
    for line in text.lines() {
        print(&format!("   {line}\n"));
    }
}

fn print(text: &str) {
    // A reader that has gone misses the rest.
    io::stdout().lock().write_all(text.as_bytes()).ok();
}

/// Returns the members that must be published.
fn successes(members: &[Member]) -> impl Iterator<Item = &Member> {
    members.iter().filter(|member| member.expected == Expected::Success)
}
