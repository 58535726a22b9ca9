//! `nar`: a store path's content, or what is known of the nars of many.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    lines::{self, Lines},
    output::Format,
    verb::Act,
};
use crate::{
    coordinator::files::open_nar,
    core::{change::NarRecord, id::AttemptId},
    store::{Reader, StoreError},
};
use bytes::Bytes;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use tokio::sync::mpsc;

/// How many pieces of a nar wait for a slow client.
const PIECES_MAX: usize = 8;
/// How long a piece is, in bytes.
const PIECE_BYTES: usize = 128 * 1024;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Nar {
    /// The store path. With --json, what is known of the nar is printed instead of the nar; then
    /// ‘-’ reads store paths from standard input, one per line, and prints those that are held
    path: String,

    /// What this attempt made, where it differs from what is held and was kept to be compared
    #[arg(long, value_name = "ID")]
    attempt: Option<AttemptId>,
}

#[derive(Serialize)]
struct Object {
    path: String,
    nar_hash: String,
    nar_bytes: u64,
    references: Vec<String>,
    deriver: Option<String>,
    signatures: Vec<String>,
    content_address: Option<String>,
    file_hash: String,
    file_bytes: u64,
    origin: &'static str,
}

impl From<NarRecord> for Object {
    fn from(record: NarRecord) -> Self {
        let info = record.info;
        Self {
            path: info.path.to_string(),
            nar_hash: info.nar_hash.to_string(),
            nar_bytes: info.nar_bytes,
            references: info.references.iter().map(ToString::to_string).collect(),
            deriver: info.deriver.map(String::from),
            signatures: info.signatures,
            content_address: info.content_address,
            file_hash: record.file_hash.to_string(),
            file_bytes: record.file_bytes,
            origin: record.origin.word(),
        }
    }
}

impl Act for Nar {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        if self.path == "-" {
            if self.attempt.is_some() || invocation.output.format() != Format::Json {
                let text = "‘-’ goes with --json, and without --attempt: nars come one by one";
                return Err(CommandError::Usage(text.to_owned()));
            }
            return tell_many(invocation).await;
        }
        let path = lines::store_path(&self.path)?;
        let hash = path.hash();
        let attempt = self.attempt;
        let record = invocation
            .coordinator
            .readers
            .read(move |reader| match attempt {
                None => reader.nar(hash),
                Some(attempt) => {
                    let kept = reader.disputed_nars(hash)?.into_iter();
                    Ok(kept.filter(|(by, _)| *by == attempt).map(|(_, nar)| nar).next())
                }
            })
            .await?;
        let Some(record) = record.filter(|record| record.info.path == path) else {
            let which = if attempt.is_some() { "no differing nar of it" } else { "it" };
            return Err(CommandError::NoSuch(format!(
                "{which} is held here under {path}: ‘outputs {path}’ says what is known"
            )));
        };
        if invocation.output.format() == Format::Json {
            let mut record = record;
            if attempt.is_none() {
                record.info = invocation.coordinator.depot.signed(record.info);
            }
            invocation.output.json(&Object::from(record)).await?;
            return Ok(Exit::Done);
        }
        let (pieces, mut received) = mpsc::channel(PIECES_MAX);
        let depot = invocation.coordinator.depot.clone();
        let file_hash = record.file_hash;
        let open = move |reader: &Reader| open_nar(reader, &depot, &file_hash);
        let file = invocation.coordinator.readers.read(open).await?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut sink = BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
            file.unpack(&file_hash, record.info.nar_bytes, &mut sink)?;
            Ok(sink.flush()?)
        });
        while let Some(piece) = received.recv().await {
            invocation.output.bytes(piece).await?;
        }
        match reading.await {
            Ok(result) => result.map(|()| Exit::Done).map_err(CommandError::Depot),
            Err(_) => Err(CommandError::TryAgain("reading the nar broke off".to_owned())),
        }
    }
}

/// Says what is known of the nars whose paths are on standard input, of those that are held.
async fn tell_many(invocation: &mut Invocation) -> Result<Exit, CommandError> {
    let mut lines = Lines::new(&mut invocation.input);
    loop {
        let paths = lines.paths(lines::store_path).await?;
        if paths.is_empty() {
            return Ok(Exit::Done);
        }
        let read = move |reader: &Reader| {
            let mut held = Vec::new();
            for path in paths {
                held.extend(reader.nar(path.hash())?.filter(|nar| nar.info.path == path));
            }
            Ok::<_, StoreError>(held)
        };
        for mut record in invocation.coordinator.readers.read(read).await? {
            record.info = invocation.coordinator.depot.signed(record.info);
            invocation.output.json(&Object::from(record)).await?;
        }
    }
}

/// Hands what is written to it to a task.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Bytes::copy_from_slice(bytes))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
