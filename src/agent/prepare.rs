//! Makes every input of an attempt valid on this machine: what the coordinator holds comes from
//! it, everything else from the machine's own substituters.

use super::{
    Equipment,
    blocking::on_thread,
    bulk::{BulkError, Exchange},
    pack, spool,
};
use crate::{
    builders::{self, Builder, BuilderError, BuilderKind, Substituters},
    core::{outcome::SetupFailure, path_info::PathInfo, store_path::StorePath},
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, RefusalCode},
        message::Allocation,
    },
};
use bytes::{Buf as _, Bytes};
use std::{
    collections::BTreeSet,
    io::{self, Read},
};
use tokio::sync::mpsc;

/// The longest derivation, in bytes. The longest of Guix has some 200 KB.
const DERIVATION_BYTES_MAX: usize = 64 << 20;
/// The most inputs with all they refer to: every package of a distribution at once.
const INPUTS_MAX: usize = 1_000_000;
/// How many chunks wait between the network and the builder: 4 MiB.
const CHUNKS_MAX: usize = 16;

/// How preparing an attempt ended.
pub(super) enum Prepared {
    /// Every input is valid.
    Ready(Box<Ready>),
    /// The machine cannot get what the build needs.
    Failed(SetupFailure),
    /// The attempt is not this agent's any more.
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
    /// The agent itself lacks something.
    #[error("no thread for the builder")]
    Thread(#[from] io::Error),
}

/// The coordinator's answer to `prepare`.
#[derive(Default)]
struct Asked {
    derivation: Vec<u8>,
    held: Vec<PathInfo>,
    not_held: Vec<StorePath>,
}

/// What keeps an attempt from being prepared at all.
enum Obstacle {
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
    let input_paths: Vec<StorePath> =
        asked.held.iter().map(|info| &info.path).chain(&asked.not_held).cloned().collect();

    let (kind, paths) = (equipment.config.builder.clone(), input_paths.clone());
    let substituters = equipment.config.substituters.clone();
    let look = move || look(kind, &substituters, &paths, asked.not_held);
    let (mut builder, valid) = on_thread(look).await?.map_err(Obstacle::Setup)?;
    let missing: Vec<_> = asked.held.iter().filter(|info| !valid.contains(&info.path)).collect();
    if !missing.is_empty() {
        let mut exchange = equipment.pool.exchange().await?;
        for info in missing {
            builder = fetch(&mut exchange, builder, info).await?;
        }
        exchange.finish();
    }
    let order = spool::Order {
        allocation: allocation.clone(),
        builder: equipment.config.builder.clone(),
        input_paths,
        cores: equipment.config.cores,
    };
    Ok(Ready { order, derivation: asked.derivation, roots: builder })
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
                asked.held.extend(held);
                asked.not_held.extend(not_held);
                if asked.held.len().saturating_add(asked.not_held.len()) > INPUTS_MAX {
                    return Err(BulkError::OutOfTurn("there are too many inputs").into());
                }
            }
            BulkToAgent::End {} => return Ok(asked),
            BulkToAgent::Refused { code, reason } => return Err((code, reason).into()),
            BulkToAgent::Nar { .. }
            | BulkToAgent::Data { .. }
            | BulkToAgent::Plan { .. }
            | BulkToAgent::Probe { .. }
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
    kind: BuilderKind,
    substituters: &Substituters,
    paths: &[StorePath],
    not_held: Vec<StorePath>,
) -> Result<(Box<dyn Builder>, BTreeSet<StorePath>), SetupFailure> {
    let failed = |error: BuilderError| error.setup_failure();
    let mut builder = builders::open(kind).map_err(failed)?;
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

/// Fetches one path from the coordinator into the builder's store.
async fn fetch(
    exchange: &mut Exchange,
    mut builder: Box<dyn Builder>,
    info: &PathInfo,
) -> Result<Box<dyn Builder>, Obstacle> {
    exchange.send(&BulkFromAgent::Fetch { path: info.path.clone(), offset: 0 }).await?;
    let file_bytes = match exchange.receive().await? {
        BulkToAgent::Nar { info: told, compression, file_bytes } => {
            if told.path != info.path || told.nar_hash != info.nar_hash {
                return Err(BulkError::OutOfTurn("another nar than the announced one").into());
            }
            if compression != pack::COMPRESSION {
                return Err(BulkError::OutOfTurn("a nar with unknown compression").into());
            }
            file_bytes
        }
        // It was held a moment ago; the coordinator decides what becomes of the build.
        BulkToAgent::Refused { code: RefusalCode::NotHeld, .. } => {
            return Err(Obstacle::Setup(SetupFailure::MissingInputs(vec![info.path.clone()])));
        }
        BulkToAgent::Refused { code, reason } => return Err((code, reason).into()),
        _ => return Err(BulkError::OutOfTurn("an answer to ‘fetch’ was expected").into()),
    };
    let (chunks, received) = mpsc::channel(CHUNKS_MAX);
    let expected = info.clone();
    let import = on_thread(move || {
        let chunks = Chunks { received, current: Bytes::new() };
        let imported = zstd::Decoder::new(chunks)
            .map_err(BuilderError::from)
            .and_then(|mut nar| builder.import(&expected, &mut nar));
        (builder, imported)
    });
    let receive = pass_on(exchange, chunks, file_bytes);
    let (received, imported) = tokio::join!(receive, import);
    // Without all bytes the import has failed too, and that says nothing about the path.
    received?;
    let (builder, imported) = imported?;
    imported.map_err(|error| Obstacle::Setup(pack::builder_failure(&error)))?;
    Ok(builder)
}

/// Passes the chunks of a nar on to whoever imports it, up to the end of the answer.
async fn pass_on(
    exchange: &mut Exchange,
    chunks: mpsc::Sender<Bytes>,
    file_bytes: u64,
) -> Result<(), BulkError> {
    let mut left = file_bytes;
    loop {
        match exchange.receive().await? {
            BulkToAgent::Data { bytes } => {
                let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let rest = left.checked_sub(count);
                left = rest.ok_or(BulkError::OutOfTurn("more bytes than announced"))?;
                // An importer that needs no more has its reasons; the rest is received and
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

/// Chunks from the network as something that a thread reads from.
struct Chunks {
    received: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.received.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let count = bytes.len().min(self.current.len());
        self.current.copy_to_slice(&mut bytes[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_read_as_one_stream() {
        let (sender, received) = mpsc::channel(CHUNKS_MAX);
        for chunk in [&b"one "[..], b"", b"two"] {
            sender.send(Bytes::from_static(chunk)).await.unwrap();
        }
        drop(sender);
        let read = on_thread(move || {
            let mut text = String::new();
            Chunks { received, current: Bytes::new() }.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(read.await.unwrap(), "one two");
    }
}
