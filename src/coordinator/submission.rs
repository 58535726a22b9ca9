//! Export streams on their way in: verified piece by piece, written down in slices.

use super::{
    Coordinator, acl,
    care::Uses,
    engine_thread::{EngineGone, Recording},
};
use crate::{
    core::{
        change::{Change, NarRecord},
        hash::Sha256,
        store_path::StorePath,
    },
    depot::{DepotError, Fact, IntakeError, IntakeRules, IntakeSummary, Known},
    formats::{export::ExportLimits, nar::NarLimits},
    store::{Reader, StoreError},
};
use bytes::Bytes;
use std::{collections::VecDeque, error::Error, sync::Arc};
use tokio::sync::mpsc;

/// How many pieces of a stream may wait for the thread that verifies it.
const PIECES_MAX: usize = 64;
/// How many facts are written down together: enough to make the commit cheap for each, few enough
/// that nobody else waits long for it.
const SLICE_FACTS: usize = 500;
/// How many bytes of derivations are written down together.
const SLICE_BYTES: usize = 4 * 1024 * 1024;
/// How many slices may be on their way to the disk while more of the stream is verified: the disk
/// and the verification work at the same time, and slices that wait share a commit.
const SLICES_AHEAD_MAX: usize = 4;
/// What a submitted nar may ask. The largest sources of real distributions have 4 GB.
const NAR_LIMITS: NarLimits =
    NarLimits { bytes_max: 64 << 30, entries_max: 10_000_000, depth_max: 512 };
/// How many items one stream may have. All of Guix has 72,000 derivations and as many sources.
const ENTRIES_MAX: u64 = 5_000_000;

/// Why a stream was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// The stream is wrong, or the depot failed.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The connection was lost before the stream ended.
    #[error("the connection was lost before the stream had ended; nothing was submitted")]
    Lost,
    /// The depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// Nobody can tell whose signatures are believed.
    #[error(transparent)]
    Acl(#[from] acl::AclError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
}

/// A piece of a stream, or its end.
#[derive(Debug)]
pub enum Piece {
    /// Bytes.
    Bytes(Bytes),
    /// Nothing follows. A stream that breaks off has no end.
    End,
}

/// Where the pieces of a stream are put.
pub type Pieces = mpsc::Sender<Piece>;

/// Whether the outputs in a stream are taken on the sender's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// They are not.
    None,
    /// The sender's key has `trusted-import`.
    Imports,
}

/// Starts to take a stream. The result comes when all that was verified is durable, or with the
/// first thing that is wrong; what was written down before that stays as facts that nobody asked
/// for.
#[must_use]
pub fn receive(
    coordinator: &Coordinator,
    trust: Trust,
) -> (Pieces, tokio::task::JoinHandle<Result<IntakeSummary, SubmissionError>>) {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let coordinator = coordinator.clone();
    let task = tokio::task::spawn_blocking(move || take(&coordinator, trust, pieces));
    (sender, task)
}

/// What the database knows, for the depot.
struct InDatabase(Reader, Uses);

impl Known for InDatabase {
    fn modulo(&self, path: &StorePath) -> Result<Option<Sha256>, Box<dyn Error + Send + Sync>> {
        Ok(self.0.modulo(path.hash())?)
    }

    fn nar(&self, path: &StorePath) -> Result<Option<(Sha256, u64)>, Box<dyn Error + Send + Sync>> {
        let nar = self.0.nar(path.hash())?;
        self.1.note(nar.iter().map(|nar| nar.info.path.hash()));
        Ok(nar.map(|nar| (nar.info.nar_hash, nar.info.nar_bytes)))
    }
}

fn take(
    coordinator: &Coordinator,
    trust: Trust,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<IntakeSummary, SubmissionError> {
    let known = InDatabase(coordinator.readers.open()?, coordinator.care.uses.clone());
    let authorized = acl::read(coordinator)?;
    let rules = IntakeRules {
        trusted_import: trust == Trust::Imports,
        authorized: &authorized,
        limits: ExportLimits { nar: NAR_LIMITS, entries_max: ENTRIES_MAX },
        at: coordinator.clock.now().wall,
    };
    let mut intake = coordinator.depot.intake(&known, rules)?;
    let mut slice = Slice::default();
    let mut recordings = VecDeque::with_capacity(SLICES_AHEAD_MAX);
    loop {
        match pieces.blocking_recv() {
            None => return Err(SubmissionError::Lost),
            Some(Piece::End) => break,
            Some(Piece::Bytes(bytes)) => {
                intake.feed(&bytes)?;
                slice.add(intake.take_ready());
                if slice.is_full() {
                    if recordings.len() == SLICES_AHEAD_MAX {
                        recordings.pop_front().map_or(Ok(()), Recording::wait)?;
                    }
                    recordings.extend(slice.write(coordinator)?);
                }
            }
        }
    }
    let mut summary = intake.finish()?;
    slice.add(std::mem::take(&mut summary.ready));
    recordings.extend(slice.write(coordinator)?);
    recordings.into_iter().try_for_each(Recording::wait)?;
    Ok(summary)
}

/// Facts that are not written down yet.
#[derive(Default)]
struct Slice {
    facts: Vec<Fact>,
    bytes: usize,
    /// Those of the facts whose files must be on the disk first.
    nars: Vec<Arc<NarRecord>>,
}

impl Slice {
    fn add(&mut self, facts: Vec<Fact>) {
        for fact in &facts {
            match fact {
                Fact::Derivation(record) => self.bytes += record.text.len(),
                Fact::Nar(record) => self.nars.push(Arc::clone(record)),
            }
        }
        self.facts.extend(facts);
    }

    fn is_full(&self) -> bool {
        self.facts.len() >= SLICE_FACTS || self.bytes >= SLICE_BYTES
    }

    /// Has the facts written down, if there are any.
    fn write(&mut self, coordinator: &Coordinator) -> Result<Option<Recording>, SubmissionError> {
        if self.facts.is_empty() {
            return Ok(None);
        }
        if !self.nars.is_empty() {
            coordinator.depot.sync_nars(self.nars.iter().map(Arc::as_ref))?;
        }
        let slice = std::mem::take(self);
        let changes = slice.facts.into_iter().map(Change::from).collect();
        Ok(Some(coordinator.engine.record_blocking(changes)?))
    }
}
