//! Which builds a command is about: those named by id, or all that have some tags.

use super::{error::CommandError, invocation::Invocation, settings::Tag, shown, table::count};
use crate::{
    core::{engine::Authority, id::BuildId},
    ssh::Role,
    store::{BUILDS_PER_READ_MAX, BuildFilter, BuildRow, StoreError},
};
use std::collections::BTreeSet;

/// The most builds that one command is about.
const BUILDS_MAX: usize = 1_000_000;

/// Which builds.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Selection {
    /// The builds, by id
    #[arg(value_name = "ID")]
    ids: Vec<BuildId>,
    /// All builds with this tag; given several times, with all of these tags
    #[arg(long, value_name = "K=V")]
    where_tag: Vec<Tag>,
}

/// What of a build decides what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selected {
    pub(super) id: BuildId,
    pub(super) submitter: String,
}

impl From<BuildRow> for Selected {
    fn from(row: BuildRow) -> Self {
        Self { id: row.id, submitter: row.submitter }
    }
}

/// Which of the builds with a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tagged {
    /// All that there ever were.
    All,
    /// Those that have not ended.
    Open,
    /// Those that did not succeed: failed, canceled, or not ended.
    Unsuccessful,
}

impl Selection {
    /// Tells whether the builds were named one by one.
    pub(super) fn is_by_id(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Returns the builds, in order of creation. All that are named exist.
    pub(super) async fn find(
        &self,
        invocation: &Invocation,
        tagged: Tagged,
    ) -> Result<Vec<Selected>, CommandError> {
        if self.is_by_id() {
            let ids: BTreeSet<BuildId> = self.ids.iter().copied().collect();
            let rows = shown::rows_of(&invocation.coordinator, ids.into_iter().collect()).await?;
            let found: BTreeSet<BuildId> = rows.iter().map(|row| row.id).collect();
            if let Some(id) = self.ids.iter().find(|id| !found.contains(id)) {
                return Err(shown::no_such(*id));
            }
            return Ok(rows.into_iter().map(Selected::from).collect());
        }
        let selected = self.tagged(invocation, tagged).await?;
        if selected.is_empty() {
            let tags: Vec<String> =
                self.where_tag.iter().map(|tag| format!("{}={}", tag.name, tag.value)).collect();
            let open = match tagged {
                Tagged::All => "",
                Tagged::Open => "open ",
                Tagged::Unsuccessful => "unsuccessful ",
            };
            let text = format!("there is no {open}build with the tag {}", tags.join(" and "));
            return Err(CommandError::NoSuch(text));
        }
        Ok(selected)
    }

    /// Returns the builds that the asker may change, and whose those are. Builds of others are an
    /// error where they are named, and left alone where they are found.
    pub(super) async fn find_own(
        &self,
        invocation: &mut Invocation,
        tagged: Tagged,
    ) -> Result<(Vec<BuildId>, Authority), CommandError> {
        let principal = &invocation.principal;
        let by = if principal.role.includes(Role::Operator) {
            Authority::All
        } else {
            Authority::Own(principal.name.clone())
        };
        let selected = self.find(invocation, tagged).await?;
        let (own, others) = divide(selected, &by);
        if let Some(other) = others.first()
            && (self.is_by_id() || own.is_empty())
        {
            return Err(CommandError::NotPermitted(format!(
                "build {} is {}’s: submitters change their own builds, operators all; nothing was \
                 changed",
                other.id, other.submitter
            )));
        }
        if !others.is_empty() {
            let text = format!("{} of other people left alone", count(others.len(), "build"));
            invocation.output.message(&text).await?;
        }
        Ok((own, by))
    }

    async fn tagged(
        &self,
        invocation: &Invocation,
        tagged: Tagged,
    ) -> Result<Vec<Selected>, CommandError> {
        let tags = self.where_tag.iter().map(|tag| (tag.name.clone(), tag.value.clone())).collect();
        let states = match tagged {
            Tagged::All => Vec::new(),
            Tagged::Open => BuildFilter::open_states(),
            Tagged::Unsuccessful => {
                let over = ["failed", "canceled"].map(str::to_owned);
                BuildFilter::open_states().into_iter().chain(over).collect()
            }
        };
        let mut filter =
            BuildFilter { states, tags, limit: BUILDS_PER_READ_MAX, ..BuildFilter::default() };
        let read = move |reader: &crate::store::Reader| {
            let mut selected: Vec<Selected> = Vec::new();
            loop {
                let page = reader.builds(&filter)?;
                let full = page.len() == BUILDS_PER_READ_MAX;
                selected.extend(page.into_iter().map(Selected::from));
                if !full || selected.len() > BUILDS_MAX {
                    return Ok::<_, StoreError>(selected);
                }
                filter.after = selected.last().map(|last| last.id);
            }
        };
        let selected = invocation.coordinator.readers.read(read).await?;
        if selected.len() > BUILDS_MAX {
            let text = format!("more than {BUILDS_MAX} builds have these tags: name more tags");
            return Err(CommandError::Refused(text));
        }
        Ok(selected)
    }
}

/// Divides builds into those that may be changed and those that may not.
fn divide(selected: Vec<Selected>, by: &Authority) -> (Vec<BuildId>, Vec<Selected>) {
    let mut own = Vec::new();
    let mut others = Vec::new();
    for one in selected {
        match by {
            Authority::Own(name) if one.submitter != name.as_str() => others.push(one),
            Authority::Own(_) | Authority::All => own.push(one.id),
        }
    }
    (own, others)
}
