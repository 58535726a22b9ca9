//! Frames: a 4-byte big-endian length, then that many bytes of MessagePack with named fields.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// The largest frame, in bytes without its length. Checked before anything is allocated.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The number of bytes in front of a frame.
const LENGTH_BYTES: usize = 4;
/// How deep a message may nest. Ours nest six levels.
const DEPTH_MAX: usize = 32;

/// Why bytes are not a frame, or a frame is not the expected message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over the limit.
    #[error("frame of {0} bytes: at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(u64),
    /// The stream ended inside a frame.
    #[error("the stream ended {missing} bytes before the end of a frame")]
    Truncated {
        /// The least number of bytes that were still to come.
        missing: usize,
    },
    /// The bytes are not a message of the expected kind.
    #[error("frame is not a known message: {0}")]
    Malformed(String),
    /// There are bytes behind the message.
    #[error("{0} bytes behind the message in its frame")]
    TrailingBytes(usize),
    /// A message of ours could not be written; a message with too long a text, for example.
    #[error("message cannot be encoded: {0}")]
    Encode(String),
}

/// Returns the frame of `message`, length included.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit a frame: split it.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, FrameError> {
    let mut frame = vec![0u8; LENGTH_BYTES];
    rmp_serde::encode::write_named(&mut frame, message)
        .map_err(|error| FrameError::Encode(error.to_string()))?;
    let body = frame.len().saturating_sub(LENGTH_BYTES);
    let too_long = || FrameError::TooLong(u64::try_from(body).unwrap_or(u64::MAX));
    if body > FRAME_BYTES_MAX {
        return Err(too_long());
    }
    let length = u32::try_from(body).map_err(|_| too_long())?.to_be_bytes();
    for (place, byte) in frame.iter_mut().zip(length) {
        *place = byte;
    }
    Ok(frame.into())
}

/// Returns the frames of messages, one behind the other, to be sent at once.
///
/// # Errors
/// As for [`encode`].
pub fn encode_all<T: Serialize>(messages: &[T]) -> Result<Bytes, FrameError> {
    if let [message] = messages {
        return encode(message);
    }
    let frames = messages.iter().map(encode).collect::<Result<Vec<Bytes>, _>>()?;
    Ok(frames.concat().into())
}

/// Reads the message of one frame's body.
///
/// # Errors
/// [`FrameError::Malformed`] and [`FrameError::TrailingBytes`]: the peer does not speak this
/// protocol, and the connection should be closed.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let mut rest = body;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(DEPTH_MAX);
    let message =
        T::deserialize(&mut reader).map_err(|error| FrameError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::TrailingBytes(rest.len())) }
}

/// Cuts a byte stream into frames, however it is split.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Adds received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the body of the next whole frame; `None` until more bytes come.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as the length is seen.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.announced()? else { return Ok(None) };
        if self.buffer.len() < length.saturating_add(LENGTH_BYTES) {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Returns the next whole message; `None` until more bytes come.
    ///
    /// # Errors
    /// As for [`Decoder::next_frame`] and [`decode`].
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        match self.next_frame()? {
            Some(body) => decode(&body).map(Some),
            None => Ok(None),
        }
    }

    /// Tells whether every received byte was part of a frame that was returned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Tells that no more bytes will come.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when a frame was begun and not ended.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let whole = match self.announced()? {
            Some(length) => length.saturating_add(LENGTH_BYTES),
            None => LENGTH_BYTES,
        };
        match whole.saturating_sub(self.buffer.len()) {
            0 => Ok(()),
            missing => Err(FrameError::Truncated { missing }),
        }
    }

    /// Returns the length of the frame that starts here, once its four bytes are there.
    fn announced(&self) -> Result<Option<usize>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(length) if length <= FRAME_BYTES_MAX => Ok(Some(length)),
            Ok(_) | Err(_) => Err(FrameError::TooLong(length.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::FromAgent;
    use proptest::prelude::*;

    #[test]
    fn a_length_over_the_cap_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        decoder.feed(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(4_294_967_295))));
    }

    #[test]
    fn a_message_over_the_cap_is_not_sent() {
        let text = "x".repeat(FRAME_BYTES_MAX);
        assert!(matches!(encode(&text), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn garbage_is_not_a_message() {
        for body in [&b""[..], b"\xc1", b"\x81\xa5Hello\xc0", b"GET / HTTP/1.1", &[0x91; 4096]] {
            assert!(decode::<FromAgent>(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn bytes_behind_a_message_are_refused() {
        let frame = encode(&FromAgent::Heartbeat {}).unwrap();
        let mut body = frame.slice(LENGTH_BYTES..).to_vec();
        body.push(0);
        assert!(matches!(decode::<FromAgent>(&body), Err(FrameError::TrailingBytes(1))));
    }

    #[test]
    fn an_end_inside_a_frame_is_told() {
        let frame = encode(&FromAgent::Heartbeat {}).unwrap();
        for cut in 1..frame.len() {
            let mut decoder = Decoder::default();
            decoder.feed(&frame[..cut]);
            assert!(decoder.next_frame().unwrap().is_none());
            assert!(matches!(decoder.finish(), Err(FrameError::Truncated { .. })), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            texts in prop::collection::vec("\\PC{0,40}", 0..20),
            piece in 1usize..50,
        ) {
            let stream: Vec<u8> =
                texts.iter().flat_map(|text| encode(text).unwrap().to_vec()).collect();
            let mut decoder = Decoder::default();
            let mut read: Vec<String> = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.feed(bytes);
                while let Some(text) = decoder.next_message().unwrap() {
                    read.push(text);
                }
            }
            prop_assert!(decoder.finish().is_ok());
            prop_assert_eq!(read, texts);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next_message::<FromAgent>() {}
        }
    }
}
