//! `backup`: the database, to be kept elsewhere.

use super::{
    error::{CommandError, Exit},
    invocation::Invocation,
    output::Format,
    table, times,
    verb::Act,
};
use crate::{
    coordinator::care::backup::{BackupError, DatabaseCopy, copy},
    core::{care::CareChange, change::Change, engine::Input},
    store::Reader,
};
use bytes::Bytes;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use tokio::sync::mpsc;

/// How many pieces wait for a slow client.
const PIECES_MAX: usize = 8;
/// How long a piece is, in bytes.
const PIECE_BYTES: usize = 128 * 1024;
/// How hard zstd tries: a database of hashes does not become much smaller by more.
const LEVEL: i32 = 3;

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The database is printed as it was at the beginning, compressed with zstd and with a checksum; \
everything goes on meanwhile. Exit status 0 says that it is whole. depot/, public/, keys/ and \
secrets/ of the state directory are files that no program writes twice: copy them as they are. \
To restore, stop the coordinator, remove steading.db-wal and steading.db-shm, unpack the backup \
over steading.db with ‘zstd -dc’, start the coordinator, and run ‘check --repair’. With --json, \
when the database was last saved is printed instead of the database.")]
pub(super) struct Backup;

/// When the database was last saved; all `null` when it never was.
#[derive(Serialize)]
struct Object {
    at: Option<String>,
    /// Unpacked.
    bytes: Option<u64>,
    principal: Option<String>,
}

impl Act for Backup {
    async fn run(self, invocation: &mut Invocation) -> Result<Exit, CommandError> {
        if invocation.output.format() == Format::Json {
            let last = invocation.coordinator.readers.read(Reader::last_backup).await?;
            let object = Object {
                at: last.as_ref().map(|last| times::rfc3339(last.at)),
                bytes: last.as_ref().map(|last| last.bytes),
                principal: last.map(|last| last.principal.to_string()),
            };
            invocation.output.json(&object).await?;
            return Ok(Exit::Done);
        }
        if invocation.output.columns().is_some() {
            return Err(CommandError::Usage(
                "a backup is no text for a terminal: redirect it, and leave out ‘-t’".to_owned(),
            ));
        }
        invocation.audit().await?;
        let DatabaseCopy { file, bytes, at } =
            copy(&invocation.coordinator).await.map_err(refused)?;
        let (pieces, mut received) = mpsc::channel(PIECES_MAX);
        let reading = tokio::task::spawn_blocking(move || compress(file, pieces));
        while let Some(piece) = received.recv().await {
            invocation.output.bytes(piece).await?;
        }
        let broken = |_| {
            let text = "reading the copy broke off: what was printed is not whole";
            CommandError::TryAgain(text.to_owned())
        };
        reading.await.map_err(broken)?.map_err(|error| refused(error.into()))?;
        let principal = invocation.principal.name.clone();
        let noted = Change::Care(CareChange::BackedUp { at, bytes, principal });
        let note = move |token| Input::Record { token: Some(token), changes: vec![noted] };
        invocation.coordinator.engine.request(note).await?;
        let when = times::shown(at);
        let text = format!("the database as of {when}, {} unpacked", table::bytes(bytes));
        invocation.output.message(&text).await?;
        Ok(Exit::Done)
    }
}

fn refused(error: BackupError) -> CommandError {
    match error {
        BackupError::Store(error) => CommandError::Store(error),
        BackupError::Io(error) => CommandError::Depot(error.into()),
        BackupError::NoRoom { .. } => CommandError::TryAgain(error.to_string()),
    }
}

/// Compresses a copy, with a checksum, so that a broken one is found by whoever unpacks it.
fn compress(mut file: fs_err::File, pieces: mpsc::Sender<Bytes>) -> io::Result<()> {
    let sink = BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
    let mut encoder = zstd::stream::write::Encoder::new(sink, LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut file, &mut encoder)?;
    encoder.finish()?.flush()
}

/// Hands what is written to it to whoever sends it.
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
