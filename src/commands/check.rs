//! `check`: whether memory, database and depot agree.

use super::{
    asking,
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table::{self, count},
    verb::Act,
};
use crate::{
    coordinator::{
        Coordinator,
        files::{OpenError, open_nar},
    },
    core::change::NarRecord,
    depot::{Depot, DepotError},
    store::Reader,
    telemetry,
};
use serde::Serialize;

/// The most findings of one kind that are listed.
const LISTED_MAX: usize = 1_000;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Check;

#[derive(Serialize)]
struct Object<'a> {
    /// `memory`, `memory-and-disk`, `database` or `depot`.
    part: &'a str,
    finding: &'a str,
}

impl Act for Check {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        let coordinator = invocation.coordinator.clone();
        let memory = asking::check(&coordinator).await?;
        let compared = coordinator.engine.compare_with_disk().await?;
        let integrity = coordinator.readers.read(Reader::integrity).await?;
        let (nars, depot) = depot(&coordinator).await?;
        let mut total = 0;
        for (part, findings) in [
            ("memory", memory),
            ("memory-and-disk", compared),
            ("database", integrity),
            ("depot", depot),
        ] {
            total += findings.len();
            for finding in findings.iter().take(LISTED_MAX) {
                match invocation.output.format() {
                    Format::Json => invocation.output.json(&Object { part, finding }).await?,
                    Format::Text => {
                        let line = format!("{part}: {}", table::plain(finding));
                        invocation.output.line(&line).await?;
                    }
                }
            }
            if findings.len() > LISTED_MAX {
                let text = format!("{part}: {} in all", count(findings.len(), "finding"));
                invocation.output.message(&text).await?;
            }
        }
        let looked = format!("looked at all open builds, the database and {}", count(nars, "nar"));
        if total == 0 {
            invocation.output.message(&format!("{looked}: all is well")).await?;
            return Ok(Exit::Done);
        }
        invocation.output.message(&format!("{looked}: {}", count(total, "finding"))).await?;
        Ok(Exit::Negative)
    }
}

/// Compares the nars of the database with the files. Returns how many there are, and the findings.
async fn depot(coordinator: &Coordinator) -> Result<(usize, Vec<String>), CommandError> {
    let depot = coordinator.depot.clone();
    coordinator
        .readers
        .read(move |reader| {
            let mut findings = Vec::new();
            let held = each_nar(reader, Reader::nars, |nar| {
                findings.extend(file_finding(reader, &depot, nar)?);
                Ok(())
            })?;
            each_nar(reader, Reader::published, |nar| {
                if !depot.shows(&nar.info.path) {
                    let path = &nar.info.path;
                    findings
                        .push(format!("{path} is marked as published, but its narinfo is gone"));
                }
                Ok(())
            })?;
            Ok((held, findings))
        })
        .await
}

/// Returns a page of nars behind a path.
type Page = fn(
    &Reader,
    Option<crate::core::store_path::PathHash>,
) -> Result<Vec<NarRecord>, crate::store::StoreError>;

/// Goes through nars page by page. Returns how many there are.
fn each_nar(
    reader: &Reader,
    page: Page,
    mut look: impl FnMut(&NarRecord) -> Result<(), CommandError>,
) -> Result<usize, CommandError> {
    let mut number = 0;
    let mut after = None;
    loop {
        let nars = page(reader, after)?;
        let Some(last) = nars.last() else { return Ok(number) };
        after = Some(last.info.path.hash());
        number += nars.len();
        nars.iter().try_for_each(&mut look)?;
    }
}

/// Returns what is wrong with the file of a nar.
fn file_finding(
    reader: &Reader,
    depot: &Depot,
    nar: &NarRecord,
) -> Result<Option<String>, CommandError> {
    let path = &nar.info.path;
    let file = match open_nar(reader, depot, &nar.file_hash) {
        Ok(file) => file,
        Err(OpenError::Depot(DepotError::NotHeld(hash))) => {
            return Ok(Some(format!("{path}: its file {hash} is gone")));
        }
        Err(error) => return Ok(Some(format!("{path}: {}", telemetry::chain(&error)))),
    };
    let bytes = file.bytes().map_err(DepotError::from)?;
    Ok((bytes != nar.file_bytes)
        .then(|| format!("{path}: its file has {bytes} bytes instead of {}", nar.file_bytes)))
}
