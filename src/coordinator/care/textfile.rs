//! Writes the measurements into a file, for `node_exporter` to read (its textfile collector), which
//! a farm without any port for Prometheus has.

use super::{super::Coordinator, metrics};
use crate::telemetry;
use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a file is wanted, when none is.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Writes again and again until canceled, as the configuration in force says.
pub(super) async fn run(coordinator: Coordinator, cancel: CancellationToken) {
    let mut has_failed = false;
    loop {
        let (file, pause) = {
            let config = coordinator.config.lock().await;
            let pause = Duration::from_secs(u64::from(config.metrics_interval.get()));
            (config.metrics_file.clone(), pause)
        };
        if let Some(file) = &file {
            let written = async {
                let text = metrics::gather(&coordinator).await.map_err(io::Error::other)?.text();
                let file = file.clone();
                let write = move || replace(&file, text.as_bytes());
                tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
            };
            match written.await {
                Ok(()) => has_failed = false,
                // Once is enough: what reads the file sees its age.
                Err(error) if !has_failed => {
                    let path = file.display();
                    tracing::warn!(%path, error = telemetry::chain(&error), "metrics not written");
                    has_failed = true;
                }
                Err(_) => {}
            }
        }
        let pause = if file.is_some() { pause } else { LOOK_EVERY.min(pause) };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Puts a file in the place of another, so that whoever reads has the old one or the new one.
fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    // The collector reads only what ends with ‘.prom’.
    name.push(".new");
    let new = file.with_file_name(name);
    let mut draft = fs_err::File::create(&new)?;
    draft.write_all(text)?;
    draft.sync_all()?;
    fs_err::rename(new, file)
}
