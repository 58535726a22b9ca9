//! An agent whose key is not known says so itself: with a token it is let in at once, without one
//! it waits, and its log has the line that an admin types.

use super::session::Dialer;
use crate::{
    core::id::{NAME_BYTES_MAX, Name},
    ssh::{self, ClientConfig, ConnectError, ENROLL_USER, Incoming, client::OpenError},
    telemetry,
};
use std::time::Duration;
use tokio::time::timeout;

/// How long the answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How much of the answer is read, in bytes.
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// With what an agent asks to be let in.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// A token of an admin.
    pub(super) token: Option<String>,
    /// What it would like to be called.
    pub(super) name: Option<Name>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error("no connection")]
    Connect(#[from] ConnectError),
    #[error("no channel")]
    Open(#[from] OpenError),
    #[error("no answer in time")]
    Silent,
}

/// What the coordinator answered.
struct Answered {
    status: Option<u32>,
    text: String,
}

/// Asks to be let in, and tells what came of it in the log. Returns whether the agent is let in.
pub(super) async fn ask(dialer: &Dialer, request: &Request) -> bool {
    match answer(dialer, request).await {
        Ok(Answered { status: Some(0), text }) => {
            tracing::info!(text, "the coordinator lets this agent in");
            true
        }
        Ok(Answered { status: Some(1), text }) => {
            tracing::warn!(text, "this agent waits until an admin lets it in");
            false
        }
        Ok(Answered { text, .. }) => {
            tracing::error!(text, "the coordinator does not let this agent in");
            false
        }
        Err(error) => {
            let error = telemetry::chain(&error);
            tracing::warn!(error, "the coordinator could not be asked to let this agent in");
            false
        }
    }
}

async fn answer(dialer: &Dialer, request: &Request) -> Result<Answered, EnrollError> {
    let client = ClientConfig { user: ENROLL_USER.to_owned(), ..dialer.client.clone() };
    let connection = ssh::connect(&client, &dialer.cancel).await?;
    let name = request.name.clone().or_else(host_name);
    let mut words = vec!["enroll".to_owned()];
    words.extend(name.into_iter().flat_map(|name| ["--name".to_owned(), name.to_string()]));
    let token = request.token.iter();
    words.extend(token.flat_map(|token| ["--token".to_owned(), token.clone()]));
    let (mut reader, writer) = connection.exec(shell_words::join(words)).await?;
    let reading = async {
        let mut answered = Answered { status: None, text: String::new() };
        let mut bytes = Vec::new();
        loop {
            match reader.next().await {
                Incoming::Data(piece) | Incoming::Stderr(piece) => {
                    let room = ANSWER_BYTES_MAX.saturating_sub(bytes.len());
                    bytes.extend_from_slice(piece.get(..room).unwrap_or(&piece));
                }
                Incoming::Exited(status) => answered.status = Some(status),
                Incoming::Eof | Incoming::Lost => break,
            }
        }
        // Words of the coordinator for people, on one line of the log.
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| error.as_bytes().escape_ascii().to_string());
        answered.text = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        answered
    };
    let answered = timeout(ANSWER_MAX, reading).await.map_err(|_| EnrollError::Silent);
    drop(writer);
    connection.close().await;
    answered
}

/// Returns the name of this host, as far as it is a name.
fn host_name() -> Option<Name> {
    let host = rustix::system::uname();
    let host = host.nodename().to_str().ok()?;
    let short = host.split('.').next()?;
    short.get(..short.len().min(NAME_BYTES_MAX))?.parse().ok()
}
