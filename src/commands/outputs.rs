//! `outputs`: where store paths come from and where they are to be had.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    lines,
    output::Format,
    table, times,
    verb::Act,
};
use crate::{
    core::{
        change::{NarOrigin, NarRecord},
        id::AttemptId,
        store_path::{StoreDir, StorePath},
    },
    depot::{Depot, PublishPolicy},
    store::{PathBuild, Reader, StoreError, StrayOutput},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How many references that are not published are named.
const NAMED_MAX: usize = 5;

/// When paths become visible, by store directory.
type Policies = BTreeMap<StoreDir, PublishPolicy>;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Outputs {
    /// Store paths; of a derivation, its outputs are meant
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
}

#[derive(Serialize)]
struct Object {
    path: String,
    held: bool,
    nar_hash: Option<String>,
    nar_bytes: Option<u64>,
    origin: Option<&'static str>,
    published_at: Option<String>,
    /// Within the published tree.
    url: Option<String>,
    /// Why it is held and not published.
    unpublished: Option<String>,
    /// Known derivations that make it.
    derivations: Vec<String>,
    builds: Vec<Built>,
    /// Nars that differ from what is held, and are kept to be compared.
    disputed: Vec<Disputed>,
    /// What agents said they had made in attempts that are not known here.
    strays: Vec<Stray>,
}

#[derive(Serialize)]
struct Disputed {
    attempt: String,
    nar_hash: String,
    nar_bytes: u64,
}

#[derive(Serialize)]
struct Stray {
    attempt: String,
    agent: String,
    nar_hash: String,
    nar_bytes: u64,
    reported_at: String,
}

#[derive(Serialize)]
struct Built {
    build: String,
    attempt: String,
    agent: String,
    nar_hash: String,
    nar_bytes: u64,
    /// The agent only said so, after the attempt had been given up.
    reported: bool,
}

impl From<PathBuild> for Built {
    fn from(one: PathBuild) -> Self {
        Self {
            build: one.build.to_string(),
            attempt: one.attempt.to_string(),
            agent: one.agent,
            nar_hash: one.output.nar_hash.to_string(),
            nar_bytes: one.output.nar_bytes,
            reported: one.reported,
        }
    }
}

impl From<(AttemptId, NarRecord)> for Disputed {
    fn from((attempt, nar): (AttemptId, NarRecord)) -> Self {
        Self {
            attempt: attempt.to_string(),
            nar_hash: nar.info.nar_hash.to_string(),
            nar_bytes: nar.info.nar_bytes,
        }
    }
}

impl From<StrayOutput> for Stray {
    fn from(one: StrayOutput) -> Self {
        Self {
            attempt: one.attempt.to_string(),
            agent: one.agent,
            nar_hash: one.nar_hash.to_string(),
            nar_bytes: one.nar_bytes,
            reported_at: times::rfc3339(one.at),
        }
    }
}

impl Act for Outputs {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let paths = self.paths.iter().map(|path| lines::store_path(path));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let mut unknown = Vec::new();
        for path in paths {
            let asked = path.clone();
            let policies = invocation.coordinator.config.lock().await.publish.clone();
            let look = move |reader: &Reader| look_up(reader, &asked, &policies);
            let found = invocation.coordinator.readers.read(look).await?;
            if found.is_empty() {
                unknown.push(path.to_string());
            }
            for object in found {
                match invocation.output.format() {
                    Format::Json => invocation.output.json(&object).await?,
                    Format::Text => invocation.output.text(&text(&object)).await?,
                }
            }
        }
        if unknown.is_empty() {
            return Ok(Exit::Done);
        }
        Err(CommandError::NoSuch(format!("nothing is known of {}", unknown.join(", "))))
    }
}

/// Returns what is known of a path, or of the outputs of a derivation.
fn look_up(
    reader: &Reader,
    path: &StorePath,
    policies: &Policies,
) -> Result<Vec<Object>, StoreError> {
    let mut paths = vec![path.clone()];
    if path.is_derivation() {
        paths = reader.outputs_of(path.hash())?.into_iter().map(|(_, output)| output).collect();
    }
    let mut objects = Vec::new();
    for path in paths {
        objects.extend(object(reader, &path, policies)?);
    }
    Ok(objects)
}

fn object(
    reader: &Reader,
    path: &StorePath,
    policies: &Policies,
) -> Result<Option<Object>, StoreError> {
    let held = reader.nar(path.hash())?.filter(|nar| nar.info.path == *path);
    let derivations = reader.derivations_of(path.hash())?;
    let builds = reader.builds_of_path(path.hash())?;
    if held.is_none() && derivations.is_empty() && builds.is_empty() {
        return Ok(None);
    }
    let published_at = reader.published_at(path.hash())?;
    let unpublished = match (&held, published_at) {
        (Some(nar), None) => Some(obstacle(reader, nar, policies)?),
        (Some(_), Some(_)) | (None, _) => None,
    };
    let url = held.as_ref().filter(|_| published_at.is_some());
    Ok(Some(Object {
        path: path.to_string(),
        held: held.is_some(),
        nar_hash: held.as_ref().map(|nar| nar.info.nar_hash.to_string()),
        nar_bytes: held.as_ref().map(|nar| nar.info.nar_bytes),
        origin: held.as_ref().map(|nar| nar.origin.word()),
        published_at: published_at.map(times::rfc3339),
        url: url.map(Depot::url),
        unpublished,
        derivations: derivations.iter().map(ToString::to_string).collect(),
        builds: builds.into_iter().map(Built::from).collect(),
        disputed: reader.disputed_nars(path.hash())?.into_iter().map(Disputed::from).collect(),
        strays: reader.stray_outputs(path.hash())?.into_iter().map(Stray::from).collect(),
    }))
}

/// Returns why a nar that is held is not published.
fn obstacle(reader: &Reader, nar: &NarRecord, policies: &Policies) -> Result<String, StoreError> {
    let path = &nar.info.path;
    if nar.origin == NarOrigin::Trusted {
        return Ok("it was taken on its sender’s word, which is not passed on".to_owned());
    }
    if policies.get(path.dir()) == Some(&PublishPolicy::Never) {
        return Ok("its store is not published here, as publish in steading.toml says".to_owned());
    }
    let mut missing = Vec::new();
    for reference in nar.info.references.iter().filter(|reference| *reference != path) {
        if reader.published_at(reference.hash())?.is_none() {
            missing.push(reference.to_string());
        }
    }
    if missing.is_empty() {
        return Ok("it is about to be".to_owned());
    }
    let more = missing.len().saturating_sub(NAMED_MAX);
    missing.truncate(NAMED_MAX);
    if more > 0 {
        missing.push(format!("and {more} more"));
    }
    Ok(format!("it refers to what is not published: {}", missing.join(", ")))
}

fn text(object: &Object) -> String {
    let mut text = format!("{}\n", object.path);
    let mut line = |words: String| {
        text.push_str("  ");
        text.push_str(&words);
        text.push('\n');
    };
    match (&object.nar_hash, object.nar_bytes, object.origin) {
        (Some(hash), Some(size), Some(origin)) => {
            line(format!("held: {hash}, {size} bytes ({}), {origin}", table::bytes(size)));
        }
        _ => line("not held".to_owned()),
    }
    match (&object.url, &object.unpublished) {
        (Some(url), _) => line(format!("published: {url}")),
        (None, Some(reason)) => line(format!("not published: {reason}")),
        (None, None) => {}
    }
    for derivation in &object.derivations {
        line(format!("made by {derivation}"));
    }
    for built in &object.builds {
        let differs = object.nar_hash.as_ref().is_some_and(|hash| *hash != built.nar_hash);
        let note = if differs { format!(", as {}", built.nar_hash) } else { String::new() };
        let verb = if built.reported { "late, and not taken: built" } else { "built" };
        line(format!("{verb} by {} in build {}{note}", built.agent, built.build));
    }
    for disputed in &object.disputed {
        line(format!(
            "disputed: {}, {} bytes, which ‘nar {} --attempt {}’ prints",
            disputed.nar_hash, disputed.nar_bytes, object.path, disputed.attempt
        ));
    }
    for stray in &object.strays {
        line(format!(
            "{} says it built {} in attempt {}, which is not known here",
            stray.agent, stray.nar_hash, stray.attempt
        ));
    }
    text
}
