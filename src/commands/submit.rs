//! `submit`: ask for builds.

use super::{
    advice::{self, Agents},
    asking,
    error::{CommandError, Exit},
    invocation::Invocation,
    lines::{self, BATCH_PATHS, Lines},
    output::Format,
    settings::{self, RequestKey, Settings, Tag, Wishes},
    table::count,
    times::Deadline,
    verb::Act,
    wait,
};
use crate::{
    coordinator::{
        engine_thread::{NotSubmitted, SubmitRequest, Submitted},
        submission::{self, Piece, SubmissionError, Trust},
    },
    core::{
        build::{PRIORITY_MAX, PRIORITY_MIN, ShownState},
        change::Limits,
        demands::Demands,
        engine::Inputs,
        id::{BuildId, Name},
        store_path::{PathHash, StorePath},
    },
    depot::IntakeSummary,
    ssh::Incoming,
    store::StoreError,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The longest limit of a build: a year, in seconds.
const LIMIT_S_MAX: u64 = 366 * 86_400;
/// How many things of a kind are named on standard error.
const NAMED_MAX: usize = 10;
/// Of how many builds it is said what they wait for.
const ADVISED_MAX: usize = 3;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Submit {
    /// The derivations, by store path; ‘-’ alone reads paths from standard input, one per line
    #[arg(value_name = "DRV")]
    paths: Vec<String>,
    /// Read an export stream with derivations and sources from standard input, and submit the
    /// derivations named, or without any those that no other in the stream uses
    #[arg(long)]
    closure: bool,
    /// Higher goes first
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser =
        clap::value_parser!(i32).range(i64::from(PRIORITY_MIN)..=i64::from(PRIORITY_MAX)))]
    priority: Option<i32>,
    /// What to find the builds by
    #[arg(long = "tag", value_name = "K=V")]
    tags: Vec<Tag>,
    /// Your own name for this request: the same one again gives the same builds
    #[arg(long, value_name = "K")]
    key: Option<RequestKey>,
    #[command(flatten)]
    inputs: InputsWish,
    /// How many seconds each build may take
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=LIMIT_S_MAX))]
    timeout: Option<u64>,
    /// How many seconds each build may print nothing
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=LIMIT_S_MAX))]
    max_silent: Option<u64>,
    #[command(flatten)]
    terms: Terms,
    /// Wait for the builds as ‘wait’ does
    #[arg(long)]
    wait: bool,
}

/// When, by whom and in whose place the named derivations are built.
#[derive(Debug, clap::Args)]
struct Terms {
    /// Try them at this time at the earliest: 2026-11-21T11:02:03Z, or how far off: 90s, 2h, 3d
    #[arg(long, value_name = "TIME")]
    defer_until: Option<Deadline>,
    /// The id of the build, which you choose: the same one again is the same build
    #[arg(long, value_name = "ID")]
    uuid: Option<BuildId>,
    /// Make none where one succeeded: that is the answer
    #[arg(long)]
    skip_if_built: bool,
    /// Make none where one has not ended: that is the answer
    #[arg(long)]
    skip_if_queued: bool,
    /// Only this agent may have them; given several times, any of these
    #[arg(long = "agent", value_name = "NAME")]
    agents: Vec<Name>,
    /// This agent may not have them
    #[arg(long = "not-agent", value_name = "NAME")]
    not_agents: Vec<Name>,
    /// Their agent must have this tag
    #[arg(long = "agent-tag", value_name = "K=V")]
    agent_tags: Vec<Tag>,
    /// Their agent must not emulate the system
    #[arg(long)]
    native_only: bool,
    /// Cancel your builds with this tag that nobody has begun; given several times, with all of
    /// these tags
    #[arg(long = "replaces", value_name = "K=V")]
    replaced_tags: Vec<Tag>,
}

impl Terms {
    fn demands(&self) -> Demands {
        let demands = Demands {
            agents: self.agents.clone(),
            not_agents: self.not_agents.clone(),
            tags: pairs(&self.agent_tags),
            native_only: self.native_only,
        };
        demands.sorted()
    }

    fn replaces(&self) -> Vec<(String, String)> {
        pairs(&self.replaced_tags)
    }
}

fn pairs(tags: &[Tag]) -> Vec<(String, String)> {
    tags.iter().map(|tag| (tag.name.clone(), tag.value.clone())).collect()
}

/// Whether builds are made for inputs.
#[derive(Debug, clap::Args)]
struct InputsWish {
    /// Make builds for inputs, too, where there are none
    #[arg(long, conflicts_with = "no_inputs")]
    with_inputs: bool,
    /// Make no builds for inputs, not even with --closure
    #[arg(long)]
    no_inputs: bool,
}

#[derive(Serialize)]
struct Object {
    build: String,
    derivation: String,
    /// Absent when it ended before it could be looked at.
    state: Option<&'static str>,
}

impl Act for Submit {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let named = self.named()?;
        if let Some(reason) = invocation.coordinator.pressure.reason() {
            return Err(CommandError::TryAgain(format!("nothing was submitted: {reason}")));
        }
        let wishes =
            Wishes { priority: self.priority, tags: self.tags.clone(), key: self.key.clone() };
        let settings =
            settings::gather(wishes, |name| invocation.env(name), &invocation.principal)?;
        if let Some(remark) = &settings.remark {
            invocation.output.message(remark).await?;
        }
        invocation.audit().await?;
        settings::take_submission(invocation)?;
        let roots = match named {
            Named::Paths(paths) => paths,
            Named::OnStdin => from_stdin(invocation).await?,
            Named::Closure(paths) => {
                let summary = receive(invocation).await?;
                tell_received(invocation, &summary).await?;
                if paths.is_empty() { summary.roots } else { paths }
            }
        };
        if roots.is_empty() {
            let text = "there is no derivation in it, so that nothing was submitted";
            invocation.output.message(text).await?;
            return Ok(Exit::Done);
        }
        let builds = self.submit(invocation, &roots, settings).await?;
        print(invocation, &roots, &builds).await?;
        advise(invocation, &builds).await?;
        if !self.wait {
            return Ok(Exit::Done);
        }
        wait::until_ended(invocation, builds.into_values().collect(), None).await
    }
}

/// Where the derivations come from.
enum Named {
    Paths(Vec<StorePath>),
    OnStdin,
    /// From a stream; those named, or none.
    Closure(Vec<StorePath>),
}

impl Submit {
    fn named(&self) -> Result<Named, CommandError> {
        let usage = |text: &str| Err(CommandError::Usage(text.to_owned()));
        if self.paths.iter().any(|path| path == "-") {
            if self.closure {
                return usage(
                    "‘-’ and --closure both read standard input: name the derivations behind \
                     --closure, or none",
                );
            }
            if self.paths.len() > 1 {
                return usage("‘-’ stands alone: give all paths as arguments, or all on stdin");
            }
            return Ok(Named::OnStdin);
        }
        let paths = self.paths.iter().map(|path| lines::derivation_path(path));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        match (self.closure, paths.is_empty()) {
            (true, _) => Ok(Named::Closure(paths)),
            (false, false) => Ok(Named::Paths(paths)),
            (false, true) => usage(
                "name a derivation, or ‘-’ to read paths from stdin, or --closure to read an \
                 export stream",
            ),
        }
    }

    fn inputs(&self) -> Inputs {
        let wanted = self.inputs.with_inputs || self.closure;
        if wanted && !self.inputs.no_inputs { Inputs::Build } else { Inputs::Leave }
    }

    /// Makes the builds. A derivation that is named twice gets one.
    async fn submit(
        &self,
        invocation: &mut Invocation,
        roots: &[StorePath],
        settings: Settings,
    ) -> Result<BTreeMap<PathHash, BuildId>, CommandError> {
        refuse_unknown(invocation, roots).await?;
        let mut unique: Vec<StorePath> = roots.to_vec();
        let mut seen = std::collections::BTreeSet::new();
        unique.retain(|path| seen.insert(path.hash()));
        let hashes: Vec<PathHash> = unique.iter().map(StorePath::hash).collect();
        if self.terms.uuid.is_some() && hashes.len() != 1 {
            let text = "--uuid names one build: give one derivation";
            return Err(CommandError::Usage(text.to_owned()));
        }
        let now = invocation.coordinator.clock.now().wall;
        let request = SubmitRequest {
            inputs: self.inputs(),
            priority: settings.priority,
            limits: Limits {
                timeout_ms: self.timeout.map(|seconds| seconds * 1_000),
                max_silent_ms: self.max_silent.map(|seconds| seconds * 1_000),
            },
            tags: settings.tags,
            key: settings.key,
            open_max: invocation.principal.quotas.open_builds,
            uuid: self.terms.uuid,
            demands: self.terms.demands(),
            not_before: self.terms.defer_until.map(|deadline| deadline.from(now)),
            skip_if_built: self.terms.skip_if_built,
            skip_if_queued: self.terms.skip_if_queued,
            replaces: self.terms.replaces(),
            ..SubmitRequest::new(invocation.principal.name.clone(), unique)
        };
        match invocation.coordinator.engine.submit(request).await? {
            Submitted::Not(NotSubmitted::Taken(id)) => Err(CommandError::Refused(format!(
                "the id {id} is that of a build of another derivation; nothing was submitted"
            ))),
            Submitted::Not(NotSubmitted::TooMany(over)) => {
                Err(settings::too_many(&over, "nothing was submitted"))
            }
            Submitted::Not(NotSubmitted::Unknown(_)) => {
                let text = "a derivation was removed meanwhile: submit again";
                Err(CommandError::TryAgain(text.to_owned()))
            }
            Submitted::Builds { builds, implied, replaced } => {
                if implied > 0 {
                    let text = format!("{} made for inputs", count(implied, "more build"));
                    invocation.output.message(&text).await?;
                }
                if !replaced.is_empty() {
                    let text = format!("{} replaced by these", count(replaced.len(), "build"));
                    invocation.output.message(&text).await?;
                }
                Ok(hashes.into_iter().zip(builds).collect())
            }
        }
    }
}

async fn from_stdin(invocation: &mut Invocation) -> Result<Vec<StorePath>, CommandError> {
    let mut lines = Lines::new(&mut invocation.input);
    let mut all = Vec::new();
    loop {
        let paths = lines.paths(lines::derivation_path).await?;
        if paths.is_empty() {
            return Ok(all);
        }
        all.extend(paths);
    }
}

/// Takes an export stream from standard input.
async fn receive(invocation: &mut Invocation) -> Result<IntakeSummary, CommandError> {
    let trust = if invocation.principal.trusted_import { Trust::Imports } else { Trust::None };
    let (pieces, taking) = submission::receive(&invocation.coordinator, trust);
    loop {
        let piece = match invocation.input.next().await {
            Incoming::Data(bytes) => Piece::Bytes(bytes),
            Incoming::Eof => Piece::End,
            Incoming::Lost => break,
            Incoming::Stderr(_) | Incoming::Exited(_) => continue,
        };
        let is_last = matches!(piece, Piece::End);
        // When nobody takes pieces any more, the reason is the task's result.
        if pieces.send(piece).await.is_err() || is_last {
            break;
        }
    }
    drop(pieces);
    match taking.await {
        Ok(result) => Ok(result?),
        Err(_) => Err(SubmissionError::Lost.into()),
    }
}

async fn tell_received(
    invocation: &mut Invocation,
    summary: &IntakeSummary,
) -> Result<(), CommandError> {
    let counts = summary.counts;
    let text = format!(
        "received {} new and {} known derivations, {} new and {} known sources",
        counts.derivations, counts.derivations_known, counts.nars, counts.nars_held
    );
    invocation.output.message(&text).await?;
    let missing = &summary.sources_not_held;
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = format!(
        "{} not held: an agent must have it or substitute it:",
        count(missing.len(), "source")
    );
    for path in missing.iter().take(NAMED_MAX) {
        text.push_str("\n  ");
        text.push_str(&path.to_string());
    }
    if missing.len() > NAMED_MAX {
        text.push_str("\n  …");
    }
    Ok(invocation.output.message(&text).await?)
}

/// Refuses paths that are not exactly those of known derivations.
async fn refuse_unknown(invocation: &Invocation, roots: &[StorePath]) -> Result<(), CommandError> {
    let mut unknown = Vec::new();
    for some in roots.chunks(BATCH_PATHS) {
        let some = some.to_vec();
        let missing = invocation
            .coordinator
            .readers
            .read(move |reader| {
                let mut missing = Vec::new();
                for path in some {
                    if reader.derivation_path(path.hash())?.as_ref() != Some(&path) {
                        missing.push(path);
                    }
                }
                Ok::<_, StoreError>(missing)
            })
            .await?;
        unknown.extend(missing);
    }
    let Some(first) = unknown.first() else { return Ok(()) };
    let mut named: Vec<String> = unknown.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if unknown.len() > NAMED_MAX {
        named.push(format!("and {} more", unknown.len() - NAMED_MAX));
    }
    Err(CommandError::NoSuch(format!(
        "not known here: {}. Run ‘steading submit {first}’ where the derivation is, or send it \
         with all it needs: ‘nix-store --export $(nix-store -qR {first})’ or ‘guix archive \
         --export --recursive {first}’, piped into ‘ssh COORDINATOR submit --closure’. Nothing \
         was submitted",
        named.join(", ")
    )))
}

/// Prints the builds in the order in which the derivations were given.
async fn print(
    invocation: &mut Invocation,
    roots: &[StorePath],
    builds: &BTreeMap<PathHash, BuildId>,
) -> Result<(), CommandError> {
    let ids = roots.iter().filter_map(|path| Some((path, *builds.get(&path.hash())?)));
    match invocation.output.format() {
        Format::Text => {
            for (_, build) in ids {
                invocation.output.line(&build.to_string()).await?;
            }
        }
        Format::Json => {
            let all = builds.values().copied().collect();
            let shown = asking::shown(&invocation.coordinator, all).await?;
            for (path, build) in ids {
                let object = Object {
                    build: build.to_string(),
                    derivation: path.to_string(),
                    state: shown.get(&build).map(|state| ShownState::word(*state)),
                };
                invocation.output.json(&object).await?;
            }
        }
    }
    // Scripts that read the ids need not wait for what is said about them.
    Ok(invocation.output.flush().await?)
}

/// Says what the first builds wait for.
async fn advise(
    invocation: &mut Invocation,
    builds: &BTreeMap<PathHash, BuildId>,
) -> Result<(), CommandError> {
    let agents = Agents::ask(&invocation.coordinator).await?;
    let mut first: Vec<BuildId> = builds.values().copied().collect();
    first.sort();
    for build in first.iter().take(ADVISED_MAX) {
        let text = match asking::why(&invocation.coordinator, *build).await? {
            Some(explanation) => advice::headline(&explanation, &agents),
            None => "It is over already: the same request was made before.".to_owned(),
        };
        invocation.output.message(&format!("{build}: {text}")).await?;
    }
    if first.len() > ADVISED_MAX {
        let text = format!("{}: ‘why ID’ tells", count(first.len() - ADVISED_MAX, "more build"));
        invocation.output.message(&text).await?;
    }
    Ok(())
}
