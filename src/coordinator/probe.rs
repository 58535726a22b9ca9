//! Something signed, for machines that want to know whether their daemon believes this
//! coordinator.
//!
//! The path is new each time, so that no daemon has it already, and of a kind that nothing else
//! has, so that no other path can be meant by it. It is kept and published nowhere.

use super::{
    Coordinator,
    bulk::{BulkChannel, BulkEnd},
};
use crate::{
    core::{hash::Sha256, path_info::PathInfo, store_path::StoreDir},
    depot::OpenNar,
    formats::nar,
    protocol::bulk::{BulkToAgent, RefusalCode},
    telemetry,
};
use std::io::{self, Cursor};

/// The name of all probes, and the kind of path that they are.
const NAME: &str = "steading-probe";

/// Answers with a small signed nar and the time.
pub(super) async fn answer(
    coordinator: &Coordinator,
    channel: &BulkChannel,
    store_dir: StoreDir,
) -> Result<(), BulkEnd> {
    let made = make(&store_dir);
    let (info, nar) = match made {
        Ok(made) => made,
        Err(error) => {
            let reason = format!("no probe can be made: {}", telemetry::chain(&error));
            return channel.refuse(RefusalCode::TryLater, reason).await;
        }
    };
    let depot = &coordinator.depot;
    let mut info = depot.signed(info);
    let file = OpenNar::Unwritten(Cursor::new(nar.clone()));
    match depot.export_signature(&info, &info.nar_hash, file) {
        Ok(signature) => info.signatures.extend(signature),
        Err(error) => {
            let reason = format!("no probe can be signed: {}", telemetry::chain(&error));
            return channel.refuse(RefusalCode::TryLater, reason).await;
        }
    }
    channel
        .say(&BulkToAgent::Probe {
            wall_ms: coordinator.clock.now().wall.as_ms(),
            signing_key: depot.public_key_of(&store_dir),
            info,
            nar: nar.into(),
        })
        .await
}

/// Makes a nar of random content and the facts about it.
fn make(store_dir: &StoreDir) -> io::Result<(PathInfo, Vec<u8>)> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let content = format!("{}\n", Sha256::of(&random).hex());
    let nar = nar::plain_file(content.as_bytes()).map_err(io::Error::other)?;
    let nar_hash = Sha256::of(&nar);
    let path = store_dir.make_path(NAME, &nar_hash, NAME).map_err(io::Error::other)?;
    let info = PathInfo {
        path,
        nar_hash,
        nar_bytes: u64::try_from(nar.len()).unwrap_or(u64::MAX),
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    Ok((info, nar))
}
