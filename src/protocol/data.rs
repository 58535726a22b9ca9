//! `data` messages, made and read without copying the bytes that they carry.
//!
//! They are most of what goes over a bulk channel. What is written here is what the general encoder
//! writes, byte for byte, and what is not read here the general decoder reads.

use super::frame::{FRAME_BYTES_MAX, FrameError};
use bytes::Bytes;

/// How the message begins, from either side: `{"data": {"bytes": …`, and the mark of more than
/// 65,535 bytes, whose number follows in four.
const HEAD: &[u8] = b"\x81\xa4data\x81\xa5bytes\xc6";
/// The number of bytes of that number, and of the one in front of a frame.
const LENGTH_BYTES: usize = 4;
/// The least bytes that [`HEAD`] is for; fewer have a shorter mark.
const LONG: usize = 1 << 16;

/// Returns a frame that carries `length` bytes, and where in it they begin: they are still zero.
///
/// # Errors
/// [`FrameError::TooLong`] when so many do not fit a frame, [`FrameError::Encode`] when they are
/// fewer than 65,536: encode the message instead.
pub fn data_frame(length: usize) -> Result<(Vec<u8>, usize), FrameError> {
    let start = LENGTH_BYTES.saturating_add(HEAD.len()).saturating_add(LENGTH_BYTES);
    let total = start.saturating_add(length);
    let body = total.saturating_sub(LENGTH_BYTES);
    let too_long = || FrameError::TooLong(u64::try_from(body).unwrap_or(u64::MAX));
    if body > FRAME_BYTES_MAX {
        return Err(too_long());
    }
    if length < LONG {
        return Err(FrameError::Encode("too short for a long data message".to_owned()));
    }
    let number = |length: usize| u32::try_from(length).map(u32::to_be_bytes);
    let mut frame = Vec::with_capacity(total);
    frame.extend_from_slice(&number(body).map_err(|_| too_long())?);
    frame.extend_from_slice(HEAD);
    frame.extend_from_slice(&number(length).map_err(|_| too_long())?);
    frame.resize(total, 0);
    Ok((frame, start))
}

/// Returns the bytes that a frame's body carries, sharing its memory; nothing when it is another
/// message, or one for the general decoder.
#[must_use]
pub fn data_of(body: &Bytes) -> Option<Bytes> {
    let rest = body.strip_prefix(HEAD)?;
    let (length, bytes) = rest.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (bytes.len() == length).then(|| body.slice_ref(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        bulk::{BulkFromAgent, BulkToAgent},
        frame::{self, Decoder},
    };
    use proptest::prelude::*;

    fn body(frame: &[u8]) -> Bytes {
        let mut decoder = Decoder::default();
        decoder.feed(frame);
        decoder.next_frame().unwrap().unwrap()
    }

    #[test]
    fn a_frame_is_the_one_that_the_encoder_makes() {
        for length in [LONG, LONG + 1, 256 << 10, FRAME_BYTES_MAX - 64] {
            let content: Vec<u8> = (0u8..=255).cycle().take(length).collect();
            let bytes = Bytes::from(content.clone());
            let (mut made, start) = data_frame(length).unwrap();
            made[start..].copy_from_slice(&content);
            assert_eq!(made, frame::encode(&BulkFromAgent::Data { bytes: bytes.clone() }).unwrap());
            assert_eq!(made, frame::encode(&BulkToAgent::Data { bytes: bytes.clone() }).unwrap());
            assert_eq!(data_of(&body(&made)), Some(bytes));
        }
        assert!(matches!(data_frame(FRAME_BYTES_MAX), Err(FrameError::TooLong(_))));
        assert!(matches!(data_frame(LONG - 1), Err(FrameError::Encode(_))));
    }

    #[test]
    fn only_whole_data_messages_are_read() {
        let end = BulkFromAgent::Offer {
            attempt: crate::core::id::AttemptId::from_bytes([1; 16]),
            outputs: Vec::new(),
            eager: vec![vec![0; LONG].into()],
            signs: false,
        };
        assert_eq!(data_of(&body(&frame::encode(&end).unwrap())), None);
        let bytes = Bytes::from(vec![7; LONG]);
        let whole = body(&frame::encode(&BulkFromAgent::Data { bytes }).unwrap());
        assert!(data_of(&whole).is_some());
        for end in (0..HEAD.len() + LENGTH_BYTES + 2).chain([whole.len() - 1]) {
            assert_eq!(data_of(&whole.slice(..end)), None, "{end}");
        }
        assert_eq!(data_of(&Bytes::from([&whole[..], b"\0"].concat())), None);
    }

    proptest! {
        #[test]
        fn what_is_read_here_the_decoder_reads_too(
            length in 0usize..40,
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let length = u32::try_from(length).unwrap().to_be_bytes();
            let body = Bytes::from([HEAD, &length, &bytes].concat());
            if let Some(read) = data_of(&body) {
                let decoded: BulkFromAgent = frame::decode(&body).unwrap();
                prop_assert_eq!(decoded, BulkFromAgent::Data { bytes: read });
            }
        }
    }
}
