//! Bulk channels of an agent: derivations and inputs down, nars up; one exchange at a time.

use super::{
    Coordinator,
    engine_thread::EngineGone,
    inputs::{InputsError, inputs_of},
    probe, upload,
};
use crate::{
    core::{
        engine::{Ask, Told},
        id::{AttemptId, Name},
        path_info::PathInfo,
        store_path::StorePath,
    },
    depot::DepotError,
    protocol::{
        bulk::{
            BulkFromAgent, BulkToAgent, CHUNK_BYTES_MAX, PATHS_PER_PAGE, REFERENCES_PER_PAGE,
            RefusalCode,
        },
        frame::{self, Decoder, FrameError},
    },
    ssh::{ChannelReader, GuardedWriter, Incoming, Request, WriteError},
    store::StoreError,
    telemetry,
};
use bytes::Bytes;
use std::io::{Read as _, Seek as _, SeekFrom};
use tokio::sync::mpsc;

/// How many chunks are read ahead of what the agent takes.
const CHUNKS_AHEAD: usize = 8;
/// How nars are compressed in the depot.
const COMPRESSION: &str = "zstd";

/// Why a bulk channel ended before its agent closed it.
#[derive(Debug, thiserror::Error)]
pub enum BulkEnd {
    /// Bytes that are no frame, or no message, or a message out of turn.
    #[error("the agent does not speak the protocol")]
    Protocol(#[from] FrameError),
    /// A message that does not belong here.
    #[error("the agent sent a message out of turn")]
    OutOfTurn,
    /// The connection was lost inside an exchange.
    #[error("the connection was lost inside an exchange")]
    Lost,
    /// Writing failed.
    #[error("writing failed")]
    Write(#[from] WriteError),
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// A file of the depot could not be read.
    #[error("a file of the depot could not be read")]
    Read(#[source] std::io::Error),
}

/// A bulk channel: frames instead of bytes.
pub(super) struct BulkChannel {
    input: ChannelReader,
    output: GuardedWriter,
    decoder: Decoder,
    turn: Turn,
}

/// Where a bulk channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing is owed by either side.
    Between,
    /// An exchange is under way.
    Inside,
}

impl BulkChannel {
    /// Returns the next message; `None` when the agent closed the channel between exchanges.
    pub(super) async fn next(&mut self) -> Result<Option<BulkFromAgent>, BulkEnd> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            match self.input.next().await {
                Incoming::Data(bytes) => self.decoder.feed(&bytes),
                Incoming::Stderr(_) | Incoming::Exited(_) => {}
                Incoming::Eof => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
                // Agents close connections that they need no more without ceremony.
                Incoming::Lost if self.turn == Turn::Between && self.decoder.is_empty() => {
                    return Ok(None);
                }
                Incoming::Lost => return Err(BulkEnd::Lost),
            }
        }
    }

    pub(super) async fn say(&self, message: &BulkToAgent) -> Result<(), BulkEnd> {
        Ok(self.output.write(frame::encode(message)?).await?)
    }

    pub(super) async fn refuse(&self, code: RefusalCode, reason: String) -> Result<(), BulkEnd> {
        self.say(&BulkToAgent::Refused { code, reason }).await
    }
}

/// Serves a bulk channel until it ends.
pub async fn serve(coordinator: Coordinator, request: Request) {
    let agent = request.principal.name.clone();
    let Request { input, output, .. } = request;
    let (decoder, turn) = (Decoder::default(), Turn::Between);
    let mut channel = BulkChannel { input, output, decoder, turn };
    match exchanges(&coordinator, &agent, &mut channel).await {
        // The agent may be gone already.
        Ok(()) => drop(channel.output.close().await),
        Err(end) => {
            tracing::info!(%agent, reason = telemetry::chain(&end), "bulk channel ended");
        }
    }
}

async fn exchanges(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
) -> Result<(), BulkEnd> {
    while let Some(message) = channel.next().await? {
        channel.turn = Turn::Inside;
        let _counted = coordinator.activity.transfer();
        match message {
            BulkFromAgent::Prepare { attempt } => {
                prepare(coordinator, agent, channel, attempt).await?;
            }
            BulkFromAgent::Fetch { path, offset } => {
                fetch(coordinator, channel, path, offset).await?;
            }
            BulkFromAgent::Offer { attempt, outputs } => {
                if let Some(reason) = coordinator.pressure.reason() {
                    channel.refuse(RefusalCode::TryLater, reason).await?;
                    channel.turn = Turn::Between;
                    continue;
                }
                upload::receive(coordinator, agent, channel, attempt, outputs).await?;
            }
            BulkFromAgent::Probe { store_dir } => {
                probe::answer(coordinator, channel, store_dir).await?;
            }
            BulkFromAgent::Data { .. } | BulkFromAgent::End { .. } => {
                return Err(BulkEnd::OutOfTurn);
            }
        }
        channel.turn = Turn::Between;
    }
    Ok(())
}

/// Answers with an attempt's derivation and inputs.
async fn prepare(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &BulkChannel,
    attempt: AttemptId,
) -> Result<(), BulkEnd> {
    let derivation = match coordinator.engine.ask(Ask::Attempt(attempt)).await? {
        Told::Attempt(Some((holder, derivation))) if holder == *agent => derivation,
        _ => {
            let reason = format!("attempt {attempt} is not yours any more");
            return channel.refuse(RefusalCode::Stale, reason).await;
        }
    };
    let inputs = coordinator.readers.read(move |reader| inputs_of(reader, &derivation)).await;
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(InputsError::Store(error)) => return Err(error.into()),
        Err(error) => {
            return channel.refuse(RefusalCode::NotHeld, telemetry::chain(&error)).await;
        }
    };
    let text = Bytes::from(inputs.text);
    for start in (0..text.len()).step_by(CHUNK_BYTES_MAX) {
        let bytes = text.slice(start..text.len().min(start + CHUNK_BYTES_MAX));
        channel.say(&BulkToAgent::Derivation { bytes }).await?;
    }
    for held in pages(inputs.held) {
        channel.say(&BulkToAgent::Inputs { held, not_held: Vec::new() }).await?;
    }
    for not_held in inputs.not_held.chunks(PATHS_PER_PAGE) {
        let not_held = not_held.to_vec();
        channel.say(&BulkToAgent::Inputs { held: Vec::new(), not_held }).await?;
    }
    channel.say(&BulkToAgent::End {}).await
}

/// Splits records so that each part fits a frame.
fn pages(infos: Vec<PathInfo>) -> Vec<Vec<PathInfo>> {
    let mut pages: Vec<Vec<PathInfo>> = Vec::new();
    let mut references = 0;
    for info in infos {
        let own = info.references.len();
        let fits = |page: &Vec<PathInfo>| {
            page.len() < PATHS_PER_PAGE && references + own <= REFERENCES_PER_PAGE
        };
        if let Some(page) = pages.last_mut().filter(|page| fits(page)) {
            references += own;
            page.push(info);
        } else {
            references = own;
            pages.push(vec![info]);
        }
    }
    pages
}

/// Answers with the file of a nar, from an offset on.
async fn fetch(
    coordinator: &Coordinator,
    channel: &BulkChannel,
    path: StorePath,
    offset: u64,
) -> Result<(), BulkEnd> {
    let hash = path.hash();
    let record = coordinator.readers.read(move |reader| reader.nar(hash)).await?;
    let Some(record) = record else {
        return channel.refuse(RefusalCode::NotHeld, format!("{path} is not held here")).await;
    };
    let (depot, file_hash) = (coordinator.depot.clone(), record.file_hash);
    let opened = tokio::task::spawn_blocking(move || depot.open_nar(&file_hash)).await;
    let mut file = match opened.expect("opening a file does not panic") {
        Ok(file) => file,
        Err(DepotError::NotHeld(_)) => {
            let reason = format!("the file of {path} is lost; run ‘check’ on the coordinator");
            tracing::error!(%path, "the file of a nar is lost");
            return channel.refuse(RefusalCode::NotHeld, reason).await;
        }
        Err(error) => return Err(error.into()),
    };
    channel
        .say(&BulkToAgent::Nar {
            info: record.info,
            compression: COMPRESSION.to_owned(),
            file_bytes: record.file_bytes,
        })
        .await?;
    let (sender, mut chunks) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES_MAX);
            let length = (&mut file).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut chunk)?;
            // The agent may have gone.
            if length == 0 || sender.blocking_send(Ok(chunk.into())).is_err() {
                return Ok(());
            }
        }
    });
    while let Some(chunk) = chunks.recv().await {
        let bytes = chunk.map_err(BulkEnd::Read)?;
        channel.say(&BulkToAgent::Data { bytes }).await?;
    }
    reading.await.expect("reading a file does not panic").map_err(BulkEnd::Read)?;
    channel.say(&BulkToAgent::End {}).await
}
