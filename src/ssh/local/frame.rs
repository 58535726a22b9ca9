//! What goes over the socket: frames of a kind (one byte), a length (four bytes, big-endian) and
//! that many bytes.
//!
//! The one who connects sends `Call` first and then its input; the coordinator answers with output
//! and at last `Exit`. Both ends are the same program on the same machine, so there are no versions:
//! after an upgrade both are new.

use super::{Call, Forced};
use crate::ssh::{authorize::Role, request::RequestKind};
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The most bytes in a frame: a command line of 256 KiB with its variables, and no piece of output
/// is longer.
const FRAME_BYTES_MAX: u32 = 512 << 10;

/// How long the head of a frame is.
const HEAD_BYTES: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// What is asked; MessagePack.
    Call(Bytes),
    /// Standard input, or standard output.
    Data(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// No `Data` follows.
    End,
    /// The exit status.
    Exit(u32),
}

impl Frame {
    /// Returns the bytes of the frame.
    pub(super) fn encode(&self) -> Bytes {
        let (kind, payload) = match self {
            Self::Call(bytes) => (1, bytes.clone()),
            Self::Data(bytes) => (2, bytes.clone()),
            Self::Stderr(bytes) => (3, bytes.clone()),
            Self::End => (4, Bytes::new()),
            Self::Exit(status) => (5, Bytes::copy_from_slice(&status.to_be_bytes())),
        };
        let mut bytes = BytesMut::with_capacity(payload.len().saturating_add(HEAD_BYTES));
        bytes.put_u8(kind);
        // Nobody makes longer ones; the other end would refuse them.
        bytes.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        bytes.put(payload);
        bytes.freeze()
    }
}

/// Reads the next frame; `None` when the other end has closed the connection between two frames.
/// A future that is given up loses what it has read.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD_BYTES];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length);
    if length > FRAME_BYTES_MAX {
        return Err(invalid("a frame is too long"));
    }
    let mut payload = vec![0; usize::try_from(length).map_err(|_| invalid("no such length"))?];
    stream.read_exact(&mut payload).await?;
    let payload = Bytes::from(payload);
    Ok(Some(match kind {
        1 => Frame::Call(payload),
        2 => Frame::Data(payload),
        3 => Frame::Stderr(payload),
        4 if payload.is_empty() => Frame::End,
        5 => match <[u8; 4]>::try_from(&payload[..]) {
            Ok(status) => Frame::Exit(u32::from_be_bytes(status)),
            Err(_) => return Err(invalid("an exit status has four bytes")),
        },
        _ => return Err(invalid("there is no such frame")),
    }))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

/// A [`Call`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct WrittenCall {
    name: String,
    role: Option<String>,
    wanted: Wanted,
    env: Vec<(String, String)>,
}

/// A [`RequestKind`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
enum Wanted {
    Exec(#[serde(with = "serde_bytes")] Vec<u8>),
    Subsystem(String),
    Shell,
}

impl Call {
    /// Returns the frame that asks for this.
    pub(super) fn frame(&self) -> io::Result<Frame> {
        let written = WrittenCall {
            name: self.forced.name.to_string(),
            role: self.forced.role.map(|role| role.to_string()),
            wanted: match &self.kind {
                RequestKind::Exec(line) => Wanted::Exec(line.clone()),
                RequestKind::Subsystem(name) => Wanted::Subsystem(name.clone()),
                RequestKind::Shell => Wanted::Shell,
            },
            env: self.env.clone(),
        };
        let bytes = rmp_serde::to_vec_named(&written).map_err(io::Error::other)?;
        let room = u32::try_from(bytes.len()).is_ok_and(|length| length <= FRAME_BYTES_MAX);
        if room { Ok(Frame::Call(bytes.into())) } else { Err(invalid("the command is too long")) }
    }

    /// Reads what the frame `Call` holds.
    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let written: WrittenCall =
            rmp_serde::from_slice(bytes).map_err(|_| invalid("that is no call"))?;
        let role = match &written.role {
            Some(word) => Some(Role::of_word(word).ok_or_else(|| invalid("no such role"))?),
            None => None,
        };
        let name = written.name.parse().map_err(|_| invalid("that is no name"))?;
        let kind = match written.wanted {
            Wanted::Exec(line) => RequestKind::Exec(line),
            Wanted::Subsystem(name) => RequestKind::Subsystem(name),
            Wanted::Shell => RequestKind::Shell,
        };
        Ok(Self { forced: Forced { name, role }, kind, env: written.env })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    fn call() -> Call {
        Call {
            forced: Forced { name: "ann".parse().unwrap(), role: Some(Role::Viewer) },
            kind: RequestKind::Exec(b"show \xff".to_vec()),
            env: vec![("STEADING_KEY".to_owned(), "k".to_owned())],
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let asked = call();
        let frames = [
            asked.frame().unwrap(),
            Frame::Data(Bytes::from_static(b"in")),
            Frame::Stderr(Bytes::from_static(b"err")),
            Frame::End,
            Frame::Exit(75),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        let mut stream = &bytes[..];
        for frame in &frames {
            assert_eq!(runtime().block_on(read(&mut stream)).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(runtime().block_on(read(&mut stream)).unwrap(), None);
        let Frame::Call(bytes) = &frames[0] else { panic!("no call") };
        assert_eq!(Call::read(bytes).unwrap(), asked);
    }

    #[test]
    fn what_is_too_long_cut_short_or_unknown_is_an_error() {
        let wrong: [&[u8]; 5] =
            [&[2, 0xff, 0, 0, 0], &[2, 0, 0, 0, 9, 1], &[2, 0], &[9, 0, 0, 0, 0], &[5, 0, 0, 0, 0]];
        for bytes in wrong {
            assert!(runtime().block_on(read(&mut &*bytes)).is_err(), "{bytes:?}");
        }
        let long = Call { kind: RequestKind::Exec(vec![0; 1 << 20]), ..call() };
        assert!(long.frame().is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
            Call::read(&bytes).ok();
            runtime().block_on(async {
                let mut stream = &bytes[..];
                while let Ok(Some(_)) = read(&mut stream).await {}
            });
        }
    }
}
