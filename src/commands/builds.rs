//! `builds`: a list of builds.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    settings::Tag,
    shown::{self, ShownBuild},
    table::Table,
    times::{self, Since},
    verb::Act,
};
use crate::{
    core::{
        build::ShownState,
        id::{BuildId, Name},
    },
    store::{BUILDS_PER_READ_MAX, BuildFilter, First},
};
use serde::Serialize;

/// How many builds are listed when nobody says how many.
const LIMIT: u32 = 100;
/// The most builds that one list has.
const LIMIT_MAX: i64 = 10_000;
/// How many rows are read at a time to find builds in a state that the database does not have.
const PAGE_ROWS: usize = 1_000;
/// The longest value that a glob may have: SQLite takes long for long ones.
const GLOB_BYTES_MAX: usize = 256;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Builds {
    /// Only builds in this state: deferred, waiting, ready, blocked, allocated, building,
    /// receiving, succeeded, failed or canceled
    #[arg(long, value_parser = state)]
    state: Option<ShownState>,
    /// Only builds with this tag; given several times, with all of these tags
    #[arg(long, value_name = "K=V")]
    where_tag: Vec<Tag>,
    /// Only builds for this system
    #[arg(long)]
    system: Option<String>,
    /// Only builds that this agent has or ended
    #[arg(long)]
    agent: Option<Name>,
    /// Only builds of derivations whose name matches, such as ‘hello-*.drv’
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    drv: Option<String>,
    /// Only builds that were asked for since then: 2026-11-21T11:02:03Z, or 2h ago
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// How many builds at most
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
    /// The builds behind this one, the oldest first: with the last id of one page, the next page
    #[arg(long, value_name = "ID")]
    after: Option<BuildId>,
}

/// Reads a state.
fn state(text: &str) -> Result<ShownState, String> {
    ShownState::parse(text).ok_or_else(|| {
        let words: Vec<&str> = ShownState::ALL.iter().map(|state| state.word()).collect();
        format!("the states are {}", words.join(", "))
    })
}

/// Reads a glob.
fn glob(text: &str) -> Result<String, String> {
    if text.len() <= GLOB_BYTES_MAX {
        return Ok(text.to_owned());
    }
    Err(format!("a glob has at most {GLOB_BYTES_MAX} bytes"))
}

#[derive(Serialize)]
struct Object<'a> {
    build: String,
    state: &'static str,
    priority: i32,
    system: Option<&'a str>,
    features: &'a [String],
    derivation: String,
    agent: Option<&'a str>,
    attempt: Option<String>,
    since: String,
    submitted_at: String,
    deferred_until: Option<String>,
    submitter: &'a str,
    key: Option<&'a str>,
    origin: &'a str,
}

impl Act for Builds {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let wanted = usize::try_from(self.limit).unwrap_or(usize::MAX);
        // One more, to know whether there are more.
        let mut builds = self.find(invocation, wanted.saturating_add(1)).await?;
        let more = builds.len() > wanted;
        builds.truncate(wanted);
        if self.after.is_none() {
            builds.reverse();
        }
        match invocation.output.format() {
            Format::Json => {
                for build in &builds {
                    invocation.output.json(&object(build)).await?;
                }
            }
            Format::Text => invocation.output.table(&listed(&builds)).await?,
        }
        if more {
            invocation.output.message(&self.remark(&builds)).await?;
        }
        Ok(Exit::Done)
    }
}

impl Builds {
    fn filter(&self, invocation: &Invocation, limit: usize) -> BuildFilter {
        let now = invocation.coordinator.clock.now().wall;
        let tags = self.where_tag.iter().map(|tag| (tag.name.clone(), tag.value.clone())).collect();
        BuildFilter {
            states: self
                .state
                .map_or(&[][..], stored)
                .iter()
                .map(|&word| word.to_owned())
                .collect(),
            ids: None,
            tags,
            system: self.system.clone(),
            agent: self.agent.as_ref().map(ToString::to_string),
            derivation: self.drv.clone(),
            since: self.since.map(|since| since.from(now)),
            after: self.after,
            before: None,
            first: if self.after.is_some() { First::Oldest } else { First::Newest },
            limit,
        }
    }

    /// Returns up to `limit` builds, page by page: whether a queued build is waiting, ready or
    /// blocked is not in the database.
    async fn find(
        &self,
        invocation: &Invocation,
        limit: usize,
    ) -> Result<Vec<ShownBuild>, CommandError> {
        let page_rows = limit.clamp(PAGE_ROWS, BUILDS_PER_READ_MAX);
        let mut filter = self.filter(invocation, page_rows);
        let mut found: Vec<ShownBuild> = Vec::new();
        loop {
            let one = filter.clone();
            let rows =
                invocation.coordinator.readers.read(move |reader| reader.builds(&one)).await?;
            let last = rows.last().map(|row| row.id);
            let full = rows.len() == page_rows;
            for build in shown::resolve(&invocation.coordinator, rows).await? {
                if self.state.is_none_or(|state| state == build.state) && found.len() < limit {
                    found.push(build);
                }
            }
            if !full || found.len() == limit {
                return Ok(found);
            }
            match filter.first {
                First::Oldest => filter.after = last,
                First::Newest => filter.before = last,
            }
        }
    }

    /// Returns how to see the builds that are not listed.
    fn remark(&self, builds: &[ShownBuild]) -> String {
        match builds.last() {
            Some(last) if self.after.is_some() => {
                format!("there are more: go on with --after {}", last.row.id)
            }
            Some(_) | None => format!(
                "these are the newest {}, there are older ones: ask for more with --limit, or go \
                 through all with --after 00000000-0000-0000-0000-000000000000",
                builds.len()
            ),
        }
    }
}

/// Returns the words that the database may have for a state.
const fn stored(state: ShownState) -> &'static [&'static str] {
    match state {
        ShownState::Waiting | ShownState::Ready | ShownState::Blocked => &["queued"],
        ShownState::Held => &["deferred", "queued"],
        ShownState::Deferred => &["deferred"],
        ShownState::Allocated => &["allocated"],
        ShownState::Building => &["building"],
        ShownState::Receiving => &["receiving"],
        ShownState::Succeeded => &["succeeded"],
        ShownState::Failed => &["failed"],
        ShownState::Canceled => &["canceled"],
    }
}

fn listed(builds: &[ShownBuild]) -> Table {
    let mut table =
        Table::new(&["id", "state", "priority", "system", "agent", "since", "derivation"]);
    for build in builds {
        let row = &build.row;
        table.row(vec![
            row.id.to_string(),
            build.state.word().to_owned(),
            row.priority.to_string(),
            row.class.system.clone().unwrap_or_else(|| "any".to_owned()),
            row.agent.clone().unwrap_or_else(|| "-".to_owned()),
            times::shown(row.since),
            row.derivation.to_string(),
        ]);
    }
    table
}

fn object(build: &ShownBuild) -> Object<'_> {
    let row = &build.row;
    Object {
        build: row.id.to_string(),
        state: build.state.word(),
        priority: row.priority,
        system: row.class.system.as_deref(),
        features: &row.class.features,
        derivation: row.derivation.to_string(),
        agent: row.agent.as_deref(),
        attempt: row.attempt.map(|attempt| attempt.to_string()),
        since: times::rfc3339(row.since),
        submitted_at: times::rfc3339(row.submitted),
        deferred_until: row.deferred_until.map(times::rfc3339),
        submitter: &row.submitter,
        key: row.key.as_deref(),
        origin: &row.origin,
    }
}
