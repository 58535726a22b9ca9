//! Makes every input of an attempt valid on this machine: what the coordinator holds comes from
//! it, everything else from the machine's own substituters.

use super::{
    Equipment, below,
    blocking::on_thread,
    bulk::{BulkError, Exchange},
    inputs::{Complete, Download, DownloadError, compression_of},
    pack, spool,
};
use crate::{
    builders::{self, Builder, BuilderError, BuilderKind, Substituters, guix},
    core::{
        compression::Compression, hash::Sha256, outcome::SetupFailure, path_info::PathInfo,
        store_path::StorePath,
    },
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, RefusalCode, STALL_MAX},
        message::Allocation,
    },
    telemetry,
};
use bytes::Bytes;
use std::{collections::BTreeSet, io};
use tokio::sync::mpsc;

/// The longest derivation, in bytes. The longest of Guix has some 200 KB.
const DERIVATION_BYTES_MAX: usize = 64 << 20;
/// The most inputs with all they refer to: every package of a distribution at once.
const INPUTS_MAX: usize = 1_000_000;
/// How many chunks wait between the network and the disk: 4 MiB.
const CHUNKS_MAX: usize = 16;

/// How preparing an attempt ended.
pub(super) enum Prepared {
    /// Every input is valid.
    Ready(Box<Ready>),
    /// The machine cannot get what the build needs.
    Failed(SetupFailure),
    /// The attempt was not this agent's any more when the coordinator looked.
    Stale,
}

/// What the attempt's process needs.
pub(super) struct Ready {
    /// What it is to do.
    pub(super) order: spool::Order,
    /// The text of the derivation.
    pub(super) derivation: Vec<u8>,
    /// Keeps the inputs from garbage collection: hold it until the process does so itself.
    pub(super) roots: Box<dyn Builder>,
}

/// Why preparing did not end. Trying again may help.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// The exchange with the coordinator broke off.
    #[error("inputs not received")]
    Bulk(#[from] BulkError),
    /// The coordinator asks to come again.
    #[error("the coordinator cannot give the inputs now: {0}")]
    TryLater(String),
    /// What came is wrong, perhaps because of what came earlier.
    #[error("an input is fetched again from its beginning: {0}")]
    Again(String),
    /// The agent itself lacks something.
    #[error("the agent lacks threads or room on its disk")]
    Machine(#[from] io::Error),
}

/// The coordinator's answer to `prepare`.
#[derive(Default)]
struct Asked {
    derivation: Vec<u8>,
    inputs: Inputs,
}

/// What the coordinator says of paths.
#[derive(Default)]
pub(super) struct Inputs {
    /// What it can send, references first.
    pub(super) held: Vec<PathInfo>,
    /// What it cannot.
    pub(super) not_held: Vec<StorePath>,
}

impl Inputs {
    /// Takes a page in.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn extend(
        &mut self,
        held: Vec<PathInfo>,
        not_held: Vec<StorePath>,
    ) -> Result<(), BulkError> {
        self.held.extend(held);
        self.not_held.extend(not_held);
        if self.held.len().saturating_add(self.not_held.len()) > INPUTS_MAX {
            return Err(BulkError::OutOfTurn("there are too many inputs"));
        }
        Ok(())
    }

    /// Returns all paths.
    pub(super) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.held.iter().map(|info| &info.path).chain(&self.not_held)
    }
}

/// What keeps an attempt from being prepared at all.
pub(super) enum Obstacle {
    Stale,
    Setup(SetupFailure),
    Passing(PrepareError),
}

impl<E: Into<PrepareError>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

impl From<(RefusalCode, String)> for Obstacle {
    fn from((code, reason): (RefusalCode, String)) -> Self {
        match code {
            RefusalCode::Stale => Self::Stale,
            RefusalCode::TryLater => Self::Passing(PrepareError::TryLater(reason)),
            RefusalCode::Rejected | RefusalCode::NotHeld => {
                Self::Setup(SetupFailure::Refused(format!("the coordinator refused: {reason}")))
            }
        }
    }
}

/// Gets the derivation and all inputs of an attempt.
///
/// # Errors
/// [`PrepareError`]: try again after a while.
pub(super) async fn prepare(
    equipment: &Equipment,
    allocation: &Allocation,
) -> Result<Prepared, PrepareError> {
    match try_prepare(equipment, allocation).await {
        Ok(ready) => Ok(Prepared::Ready(Box::new(ready))),
        Err(Obstacle::Stale) => Ok(Prepared::Stale),
        Err(Obstacle::Setup(failure)) => Ok(Prepared::Failed(failure)),
        Err(Obstacle::Passing(error)) => Err(error),
    }
}

async fn try_prepare(equipment: &Equipment, allocation: &Allocation) -> Result<Ready, Obstacle> {
    let mut exchange = equipment.pool.exchange().await?;
    let asked = ask(&mut exchange, allocation).await?;
    exchange.finish();
    let Asked { derivation, mut inputs } = asked;
    let kind = equipment.config.builder.clone();
    let opened = on_thread(move || builders::open(kind)).await?;
    let mut builder = opened.map_err(|error| Obstacle::Setup(error.setup_failure()))?;
    let by_path = builder.builds_by_path();
    if by_path {
        // A derivation that is used like a source comes with the others.
        inputs.not_held.retain(|path| !path.is_derivation());
    }
    let mut input_paths: Vec<StorePath> = inputs.paths().cloned().collect();
    builder = make_valid(equipment, builder, inputs).await?;
    if by_path {
        let direct = below::direct(&derivation)?;
        let (below, sources);
        (builder, below, sources) = below::gather(equipment, builder, &direct).await?;
        builder = make_valid(equipment, builder, sources).await?;
        builder = below.import(builder).await?;
        // What they refer to stays with them.
        input_paths.extend(direct);
    }
    let order = spool::Order {
        allocation: allocation.clone(),
        builder: equipment.config.builder.clone(),
        input_paths,
        cores: equipment.config.cores,
    };
    Ok(Ready { order, derivation, roots: builder })
}

/// Makes paths valid: what the coordinator does not hold by substitution, everything else from it.
async fn make_valid(
    equipment: &Equipment,
    mut builder: Box<dyn Builder>,
    inputs: Inputs,
) -> Result<Box<dyn Builder>, Obstacle> {
    let paths: Vec<StorePath> = inputs.paths().cloned().collect();
    if paths.is_empty() {
        return Ok(builder);
    }
    let Inputs { held, not_held } = inputs;
    let substituters = equipment.config.substituters.clone();
    let look = move || look(builder, &substituters, &paths, not_held);
    let valid;
    (builder, valid) = on_thread(look).await?.map_err(Obstacle::Setup)?;
    let missing: Vec<_> = held.iter().filter(|info| !valid.contains(&info.path)).collect();
    if !missing.is_empty()
        && let Err(error) = equipment.inputs.sweep(equipment.clock.now().wall)
    {
        tracing::warn!(error = telemetry::chain(&error), "old inputs not removed");
    }
    for info in missing {
        builder = obtain(equipment, builder, info).await?;
    }
    Ok(builder)
}

/// Asks for the derivation and what is known of its inputs.
async fn ask(exchange: &mut Exchange, allocation: &Allocation) -> Result<Asked, Obstacle> {
    exchange.send(&BulkFromAgent::Prepare { attempt: allocation.attempt }).await?;
    let mut asked = Asked::default();
    loop {
        match exchange.receive().await? {
            BulkToAgent::Derivation { bytes } => {
                asked.derivation.extend_from_slice(&bytes);
                if asked.derivation.len() > DERIVATION_BYTES_MAX {
                    return Err(BulkError::OutOfTurn("the derivation is too long").into());
                }
            }
            BulkToAgent::Inputs { held, not_held } => {
                asked.inputs.extend(held, not_held)?;
            }
            BulkToAgent::End {} => return Ok(asked),
            BulkToAgent::Refused { code, reason } => return Err((code, reason).into()),
            BulkToAgent::Nar { .. }
            | BulkToAgent::Data { .. }
            | BulkToAgent::Plan { .. }
            | BulkToAgent::Probe { .. }
            | BulkToAgent::Wait {}
            | BulkToAgent::Taken { .. }
            | BulkToAgent::Committed { .. } => {
                return Err(BulkError::OutOfTurn("an answer to ‘prepare’ was expected").into());
            }
        }
    }
}

/// Roots all inputs, substitutes what the coordinator does not hold, and returns what is valid.
///
/// Substitution comes before fetching: what cannot be had is then known before anything large is
/// moved, and what is fetched may refer to what is substituted.
fn look(
    mut builder: Box<dyn Builder>,
    substituters: &Substituters,
    paths: &[StorePath],
    not_held: Vec<StorePath>,
) -> Result<(Box<dyn Builder>, BTreeSet<StorePath>), SetupFailure> {
    let failed = |error: BuilderError| error.setup_failure();
    // Roots first: what is found valid afterwards stays so.
    builder.root(paths).map_err(failed)?;
    let valid = builder.valid(paths).map_err(failed)?;
    let absent: Vec<StorePath> =
        not_held.into_iter().filter(|path| !valid.contains(path)).collect();
    if absent.is_empty() {
        return Ok((builder, valid));
    }
    builder.substitute(&absent, substituters).map_err(failed)?;
    let valid = builder.valid(paths).map_err(failed)?;
    let missing: Vec<StorePath> = absent.into_iter().filter(|path| !valid.contains(path)).collect();
    if missing.is_empty() {
        Ok((builder, valid))
    } else {
        Err(SetupFailure::MissingInputs(missing))
    }
}

/// Makes one path valid that the coordinator holds, unless another attempt has done so meanwhile.
async fn obtain(
    equipment: &Equipment,
    mut builder: Box<dyn Builder>,
    info: &PathInfo,
) -> Result<Box<dyn Builder>, Obstacle> {
    let failed = |error: &BuilderError| Obstacle::Setup(pack::builder_failure(error));
    let _claim = equipment.inputs.claim(&info.path).await;
    let path = info.path.clone();
    let (builder_again, valid) = on_thread(move || {
        let valid = builder.valid(std::slice::from_ref(&path));
        (builder, valid.map(|valid| valid.contains(&path)))
    })
    .await?;
    builder = builder_again;
    if valid.map_err(|error| failed(&error))? {
        return Ok(builder);
    }
    let (info, nar) = fetch(equipment, info).await?;
    let (builder, imported) = on_thread(move || {
        let imported = nar
            .open()
            .map_err(BuilderError::from)
            .and_then(|mut bytes| builder.import(&info, &mut bytes));
        (builder, imported)
    })
    .await?;
    imported.map_err(|error| failed(&error))?;
    Ok(builder)
}

/// Fetches the nar of one path from the coordinator, and goes on where an earlier try ended. Returns
/// what is said of it with all signatures that the builder may want.
async fn fetch(equipment: &Equipment, info: &PathInfo) -> Result<(PathInfo, Complete), Obstacle> {
    // What is there is read before anything is asked for: the coordinator does not wait for disks.
    let (inputs, expected) = (equipment.inputs.clone(), info.clone());
    let begun = on_thread(move || inputs.begun(&expected)).await??;
    let mut exchange = equipment.pool.exchange().await?;
    exchange
        .send(&BulkFromAgent::Fetch {
            path: info.path.clone(),
            offset: begun.as_ref().map_or(0, Download::bytes),
            file_hash: begun.as_ref().and_then(Download::file_hash),
            export: matches!(equipment.config.builder, BuilderKind::Guix { .. })
                && guix::needs_signature(info),
        })
        .await?;
    let Announced { told, file_hash, file_bytes } = announced(&mut exchange, info).await?;
    let download = match begun {
        Some(begun) if begun.file_hash() == file_hash => begun,
        Some(begun) if file_hash.is_none() => {
            // Where in which file its bytes begin cannot be told.
            begun.discard();
            return Err(BulkError::OutOfTurn("a nar without the hash of its file").into());
        }
        Some(begun) => {
            begun.discard();
            equipment.inputs.begin(info, file_hash)?
        }
        None => equipment.inputs.begin(info, file_hash)?,
    };
    let left = file_bytes.checked_sub(download.bytes());
    let left = left.ok_or(BulkError::OutOfTurn("a file shorter than what it has sent of it"))?;
    let is_resumed = download.is_resumed();
    let (chunks, mut received) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let writing = on_thread(move || {
        let mut download = download;
        while let Some(bytes) = received.blocking_recv() {
            download.take(&bytes)?;
        }
        Ok::<_, DownloadError>(download)
    });
    let receiving = async {
        let passed = pass_on(&mut exchange, &chunks, left).await;
        drop(chunks);
        passed
    };
    let (passed, download) = tokio::join!(receiving, writing);
    passed?;
    exchange.finish();
    let complete = match download? {
        Ok(download) => on_thread(move || download.finish()).await?,
        Err(error) => Err(error),
    };
    let complete = complete.map_err(|error| match error {
        DownloadError::Disk(error) if error.kind() == io::ErrorKind::StorageFull => {
            Obstacle::Setup(SetupFailure::DiskFull)
        }
        DownloadError::Disk(error) => Obstacle::Passing(error.into()),
        wrong @ DownloadError::Wrong { .. } if is_resumed => {
            Obstacle::Passing(PrepareError::Again(telemetry::chain(&wrong)))
        }
        // It would be wrong again; others may have the path from elsewhere.
        wrong @ DownloadError::Wrong { .. } => {
            Obstacle::Setup(SetupFailure::Refused(telemetry::chain(&wrong)))
        }
    })?;
    Ok((told, complete))
}

/// A file that is going to be sent.
struct Announced {
    /// What is said of its path.
    told: PathInfo,
    file_hash: Option<Sha256>,
    file_bytes: u64,
}

/// Receives the announcement of a file.
async fn announced(exchange: &mut Exchange, info: &PathInfo) -> Result<Announced, Obstacle> {
    let answer = loop {
        match exchange.receive().await? {
            // All of a large nar is read before its export is signed.
            BulkToAgent::Wait {} => {}
            answer => break answer,
        }
    };
    match answer {
        BulkToAgent::Nar { info: told, compression, file_bytes, file_hash } => {
            let is = (&told.path, &told.nar_hash, told.nar_bytes);
            if is != (&info.path, &info.nar_hash, info.nar_bytes) {
                return Err(BulkError::OutOfTurn("another nar than the announced one").into());
            }
            if Compression::parse(&compression) != Some(compression_of(info, file_hash)) {
                return Err(BulkError::OutOfTurn("a nar with unknown compression").into());
            }
            Ok(Announced { told, file_hash, file_bytes })
        }
        // It was held a moment ago; the coordinator decides what becomes of the build.
        BulkToAgent::Refused { code: RefusalCode::NotHeld, .. } => {
            Err(Obstacle::Setup(SetupFailure::MissingInputs(vec![info.path.clone()])))
        }
        BulkToAgent::Refused { code, reason } => Err((code, reason).into()),
        _ => Err(BulkError::OutOfTurn("an answer to ‘fetch’ was expected").into()),
    }
}

/// Passes the chunks of a nar on to whoever keeps them, up to the end of the answer.
async fn pass_on(
    exchange: &mut Exchange,
    chunks: &mpsc::Sender<Bytes>,
    bytes: u64,
) -> Result<(), BulkError> {
    let mut left = bytes;
    loop {
        match exchange.receive_flowing(STALL_MAX).await? {
            BulkToAgent::Data { bytes } => {
                let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let rest = left.checked_sub(count);
                left = rest.ok_or(BulkError::OutOfTurn("more bytes than announced"))?;
                // Whoever needs no more has found something wrong; the rest is received and
                // dropped, so that the channel stays usable.
                if chunks.send(bytes).await.is_err() {
                    tracing::trace!("rest of a nar dropped");
                }
            }
            BulkToAgent::End {} if left == 0 => return Ok(()),
            BulkToAgent::End {} => return Err(BulkError::OutOfTurn("fewer bytes than announced")),
            _ => return Err(BulkError::OutOfTurn("bytes of a nar were expected")),
        }
    }
}
