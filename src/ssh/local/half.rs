//! The writing half of a socket that is one channel.

use super::frame::Frame;
use crate::ssh::writer::STDERR;
use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, net::unix::OwnedWriteHalf, sync::Mutex};

/// Has the methods of russh's halves, which [`GuardedWriter`](crate::ssh::GuardedWriter) calls
/// under its own guards.
pub(in crate::ssh) struct LocalHalf(Mutex<OwnedWriteHalf>);

impl LocalHalf {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self(Mutex::new(half))
    }

    pub(in crate::ssh) async fn data_bytes(&self, bytes: Bytes) -> Result<(), russh::Error> {
        self.send(&Frame::Data(bytes)).await
    }

    pub(in crate::ssh) async fn extended_data_bytes(
        &self,
        stream: u32,
        bytes: Bytes,
    ) -> Result<(), russh::Error> {
        // There are no other streams (RFC 4254 section 5.2).
        if stream == STDERR { self.send(&Frame::Stderr(bytes)).await } else { Ok(()) }
    }

    pub(in crate::ssh) async fn eof(&self) -> Result<(), russh::Error> {
        self.send(&Frame::End).await
    }

    pub(in crate::ssh) async fn exit_status(&self, status: u32) -> Result<(), russh::Error> {
        self.send(&Frame::Exit(status)).await
    }

    pub(in crate::ssh) async fn close(&self) -> Result<(), russh::Error> {
        Ok(self.0.lock().await.shutdown().await?)
    }

    async fn send(&self, frame: &Frame) -> Result<(), russh::Error> {
        Ok(self.0.lock().await.write_all(&frame.encode()).await?)
    }
}
