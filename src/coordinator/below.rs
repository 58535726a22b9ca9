//! What agents need whose daemons build derivations by their paths: the texts of derivations below
//! an attempt's own, and what is known of the sources that those name.
//!
//! An agent asks level by level, and only for what its store lacks, so that a store that has most
//! of a distribution costs nothing here.

use super::{
    Coordinator,
    bulk::{BulkChannel, BulkEnd, say_inputs},
    inputs::{InputsError, known_of},
};
use crate::{
    core::store_path::StorePath,
    protocol::bulk::{BulkToAgent, CHUNK_BYTES_MAX, PATHS_PER_PAGE, RefusalCode},
    store::{Reader, StoreError},
    telemetry,
};
use bytes::Bytes;

/// How many texts are read and sent together.
const TEXTS_TOGETHER: usize = 64;

/// Answers with the texts of derivations.
pub(super) async fn texts(
    coordinator: &Coordinator,
    channel: &BulkChannel,
    paths: Vec<StorePath>,
) -> Result<(), BulkEnd> {
    if paths.len() > PATHS_PER_PAGE {
        return Err(BulkEnd::OutOfTurn);
    }
    for paths in paths.chunks(TEXTS_TOGETHER) {
        let wanted = paths.to_vec();
        let read = move |reader: &Reader| -> Result<Vec<Option<Vec<u8>>>, StoreError> {
            wanted.iter().map(|path| reader.derivation_text(path.hash())).collect()
        };
        let texts = coordinator.readers.read(read).await?;
        for (path, text) in paths.iter().zip(texts) {
            let Some(text) = text else {
                let reason = format!("the derivation {path} is not known here");
                return channel.refuse(RefusalCode::NotHeld, reason).await;
            };
            channel.say_all(&messages(text)).await?;
        }
    }
    Ok(())
}

/// Returns what says a text.
fn messages(text: Vec<u8>) -> Vec<BulkToAgent> {
    let text = Bytes::from(text);
    let pieces = (0..text.len()).step_by(CHUNK_BYTES_MAX);
    let piece = |start| text.slice(start..text.len().min(start + CHUNK_BYTES_MAX));
    let pieces = pieces.map(|start| BulkToAgent::Derivation { bytes: piece(start) });
    pieces.chain([BulkToAgent::End {}]).collect()
}

/// Answers with what is known of paths.
pub(super) async fn about(
    coordinator: &Coordinator,
    channel: &BulkChannel,
    paths: Vec<StorePath>,
) -> Result<(), BulkEnd> {
    if paths.len() > PATHS_PER_PAGE {
        return Err(BulkEnd::OutOfTurn);
    }
    match coordinator.readers.read(move |reader| known_of(reader, paths)).await {
        Ok((held, not_held)) => say_inputs(coordinator, channel, held, &not_held).await,
        Err(InputsError::Store(error)) => Err(error.into()),
        Err(error) => channel.refuse(RefusalCode::NotHeld, telemetry::chain(&error)).await,
    }
}
