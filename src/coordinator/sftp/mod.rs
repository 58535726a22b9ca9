//! The published tree and the logs over SFTP, for reading: `sftp`, `scp` and `sshfs` of whoever may
//! see builds.
//!
//! [`serve`] takes requests and answers them one after the other, so that a client costs one answer
//! of memory and waits only for itself; [`tree`] says what there is, and no path leads out of it.
//! How long a client may read nothing, and how many channels it has, is the door's to decide.

mod session;
mod tree;

use crate::{
    formats::sftp::{Decoder, Request as SftpRequest, SftpError},
    ssh::{ChannelReader, GuardedWriter, Incoming, Request, WriteError},
};
use session::Session;
use std::{io, path::PathBuf};
use tokio::{sync::mpsc, task::spawn_blocking, try_join};
use tree::Tree;

/// The subsystem's name, which is everybody's.
pub const SUBSYSTEM: &str = "sftp";

/// How many requests of one client wait for their answers; OpenSSH has 64 on the way. Whoever sends
/// more does not read, and loses the channel.
const REQUESTS_WAITING_MAX: usize = 1_024;

/// Why a conversation ended before the client ended it.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Packet(#[from] SftpError),
    #[error("more than {REQUESTS_WAITING_MAX} requests are waiting")]
    TooMany,
    #[error("the client does not read")]
    Write(#[from] WriteError),
    #[error("the tree cannot be read")]
    Tree(#[from] io::Error),
    #[error("an answer broke")]
    Panicked,
}

/// Serves one channel until the client ends it.
pub async fn serve(state_dir: PathBuf, request: Request) {
    let Request { principal, input, output, .. } = request;
    let (requests, waiting) = mpsc::channel(REQUESTS_WAITING_MAX);
    // At once, so that what arrives is always read; see `ChannelReader::next`.
    let served =
        try_join!(receive(input, requests), answer(state_dir, waiting, output.clone())).map(|_| ());
    let status = match served {
        Ok(()) => 0,
        Err(reason) => {
            tracing::debug!(name = %principal.name, %reason, "an sftp session was ended");
            1
        }
    };
    // `scp` wants to see a status; the client may have gone.
    output.exit(status).await.ok();
}

/// Passes requests on until the client has no more.
async fn receive(
    mut input: ChannelReader,
    requests: mpsc::Sender<SftpRequest>,
) -> Result<(), Broken> {
    let mut decoder = Decoder::default();
    loop {
        match input.next().await {
            Incoming::Data(bytes) => decoder.feed(&bytes),
            Incoming::Eof | Incoming::Lost => return Ok(()),
            Incoming::Stderr(_) | Incoming::Exited(_) => {}
        }
        while let Some(request) = decoder.next_request()? {
            requests.try_send(request).map_err(|_| Broken::TooMany)?;
        }
    }
}

/// Answers requests in their order.
async fn answer(
    state_dir: PathBuf,
    mut requests: mpsc::Receiver<SftpRequest>,
    output: GuardedWriter,
) -> Result<(), Broken> {
    let open = move || Ok::<_, io::Error>(Session::new(Tree::open(&state_dir)?));
    let mut session = spawn_blocking(open).await.map_err(|_| Broken::Panicked)??;
    while let Some(request) = requests.recv().await {
        let answering = spawn_blocking(move || (session.answer(&request), session));
        let (bytes, back) = answering.await.map_err(|_| Broken::Panicked)?;
        session = back;
        output.write(bytes).await?;
    }
    Ok(())
}
