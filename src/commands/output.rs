//! What a command says: the answer on stdout, messages on stderr.

use super::table;
use crate::ssh::{GuardedWriter, WriteError};
use bytes::Bytes;
use serde::Serialize;
use std::time::Duration;

/// How much of an answer is kept back to be sent together, in bytes.
const BUFFER_BYTES: usize = 32 * 1024;
/// How long a client may take nothing: people page through answers, and read slowly.
const PAUSE_MAX: Duration = Duration::from_hours(1);

/// In which form the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where a command's words go.
#[derive(Debug)]
pub(super) struct Output {
    writer: GuardedWriter,
    /// Of stdout, not sent yet.
    buffer: Vec<u8>,
    format: Format,
    columns: Option<u32>,
}

impl Output {
    /// Returns an output to this channel; `columns` is the width of its terminal, if it has one.
    pub(super) fn new(writer: &GuardedWriter, columns: Option<u32>) -> Self {
        let writer = writer.with_deadline(PAUSE_MAX);
        Self { writer, buffer: Vec::new(), format: Format::Text, columns }
    }

    pub(super) fn set_format(&mut self, format: Format) {
        self.format = format;
    }

    pub(super) const fn format(&self) -> Format {
        self.format
    }

    pub(super) const fn columns(&self) -> Option<u32> {
        self.columns
    }

    /// Adds text to the answer.
    pub(super) async fn text(&mut self, text: &str) -> Result<(), WriteError> {
        self.buffer.extend_from_slice(text.as_bytes());
        if self.buffer.len() >= BUFFER_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Adds a line to the answer.
    pub(super) async fn line(&mut self, line: &str) -> Result<(), WriteError> {
        self.text(&format!("{line}\n")).await
    }

    /// Adds an object to the answer.
    pub(super) async fn json(&mut self, object: &impl Serialize) -> Result<(), WriteError> {
        // Only maps with keys that are no strings could fail, and there are none.
        let line = serde_json::to_string(object).unwrap_or_else(|_| "{}".to_owned());
        self.line(&line).await
    }

    /// Adds a table to the answer.
    pub(super) async fn table(&mut self, table: &table::Table) -> Result<(), WriteError> {
        let text = table.text(self.columns);
        self.text(&text).await
    }

    /// Sends bytes as they are.
    pub(super) async fn bytes(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        self.flush().await?;
        self.writer.write(bytes).await
    }

    /// Says something about the answer, behind what was said of it so far.
    pub(super) async fn message(&mut self, text: &str) -> Result<(), WriteError> {
        self.flush().await?;
        let text = format!("steading: {}\n", text.trim_end());
        self.writer.write_stderr(text.into()).await
    }

    /// Sends what is kept back.
    pub(super) async fn flush(&mut self) -> Result<(), WriteError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.buffer);
        self.writer.write(bytes.into()).await
    }

    /// Ends the command.
    pub(super) async fn exit(mut self, status: u32) {
        // Whoever asked may have gone.
        self.flush().await.ok();
        self.writer.exit(status).await.ok();
    }
}
