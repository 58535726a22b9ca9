//! The primitives of the daemons' worker protocol, over any stream.
//!
//! A number is an unsigned 64-bit little-endian integer; a string is its length, its bytes and
//! zeros up to a multiple of eight; a list is a count and that many strings.
//! Source: Nix `src/libutil/serialise.cc`, Guix `nix/libutil/serialise.cc`.

use std::io::{self, BufRead as _, BufReader, Read, Write};

/// How many bytes of a request are collected before they are written.
const OUT_BYTES_MAX: usize = 64 * 1024;
/// The size of the pieces in which a nar is sent and received.
const CHUNK_BYTES: usize = 64 * 1024;

/// One side of a connection: requests are collected and flushed, answers are read.
#[derive(Debug)]
pub struct Wire<S: Read + Write> {
    input: BufReader<S>,
    out: Vec<u8>,
}

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed or ended.
    #[error("the stream failed")]
    Stream(#[from] io::Error),
    /// The source of a nar failed; the message is incomplete, so the connection must be dropped.
    #[error("the source of the nar failed")]
    Source(#[source] io::Error),
    /// The place a nar goes to failed; the rest of it was not read, so the connection must be
    /// dropped.
    #[error("the nar could not be written")]
    Sink(#[source] io::Error),
    /// A string or list announces more than its limit.
    #[error("{what} of {length} where at most {max} are expected")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// What was announced.
        length: u64,
        /// The limit.
        max: u64,
    },
    /// The bytes behind a string are not zeros.
    #[error("a string is not padded with zeros")]
    Padding,
}

impl<S: Read + Write> Wire<S> {
    /// Returns the wire over this stream.
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self { input: BufReader::with_capacity(CHUNK_BYTES, stream), out: Vec::new() }
    }

    /// Returns the stream.
    pub fn stream(&mut self) -> &mut S {
        self.input.get_mut()
    }

    /// Adds a number to the request.
    ///
    /// # Errors
    /// The stream failed while older parts of the request were written.
    pub fn put_u64(&mut self, number: u64) -> Result<(), WireError> {
        self.put_raw(&number.to_le_bytes())
    }

    /// Adds a string to the request.
    ///
    /// # Errors
    /// As for [`Wire::put_u64`].
    pub fn put_bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let length = wide(bytes.len());
        self.put_u64(length)?;
        self.put_raw(bytes)?;
        let zeros = [0u8; 8];
        self.put_raw(zeros.get(..padding(length)).unwrap_or_default())
    }

    /// Adds a list of strings to the request.
    ///
    /// # Errors
    /// As for [`Wire::put_u64`].
    pub fn put_list<T: AsRef<[u8]>>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
    ) -> Result<(), WireError> {
        self.put_u64(wide(items.len()))?;
        for item in items {
            self.put_bytes(item.as_ref())?;
        }
        Ok(())
    }

    /// Adds `length` bytes of `source` as frames: each its length and its bytes, then a zero.
    ///
    /// # Errors
    /// [`WireError::Source`] when the source fails or ends early, as for [`Wire::put_u64`]
    /// otherwise.
    pub fn put_framed(&mut self, length: u64, source: &mut dyn Read) -> Result<(), WireError> {
        let mut source = source.take(length);
        let mut chunk = vec![0u8; CHUNK_BYTES];
        loop {
            let count = read_some(&mut source, &mut chunk).map_err(WireError::Source)?;
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            self.put_u64(wide(bytes.len()))?;
            self.put_raw(bytes)?;
        }
        if source.limit() != 0 {
            return Err(WireError::Source(io::ErrorKind::UnexpectedEof.into()));
        }
        self.put_u64(0)
    }

    /// Adds `length` bytes of `source` as they are.
    ///
    /// # Errors
    /// As for [`Wire::put_framed`].
    pub fn put_stream(&mut self, length: u64, source: &mut dyn Read) -> Result<(), WireError> {
        let mut source = source.take(length);
        let mut chunk = vec![0u8; CHUNK_BYTES];
        loop {
            let count = read_some(&mut source, &mut chunk).map_err(WireError::Source)?;
            let Some(bytes) = chunk.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            self.put_raw(bytes)?;
        }
        if source.limit() == 0 {
            Ok(())
        } else {
            Err(WireError::Source(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    /// Adds a string of at most `max` bytes of `source`, as many as come at once; an empty one at its
    /// end.
    ///
    /// # Errors
    /// [`WireError::Source`] when the source fails, as for [`Wire::put_u64`] otherwise.
    pub fn put_piece(&mut self, max: u64, source: &mut dyn Read) -> Result<(), WireError> {
        let length = usize::try_from(max).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut chunk = vec![0u8; length];
        let count = read_some(source, &mut chunk).map_err(WireError::Source)?;
        self.put_bytes(chunk.get(..count).unwrap_or_default())
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// The stream failed.
    pub fn flush(&mut self) -> Result<(), WireError> {
        let stream = self.input.get_mut();
        stream.write_all(&self.out)?;
        stream.flush()?;
        self.out.clear();
        Ok(())
    }

    /// Reads a number.
    ///
    /// # Errors
    /// The stream failed or ended.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        let mut bytes = [0u8; 8];
        self.input.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a string of at most `max` bytes.
    ///
    /// # Errors
    /// [`WireError::TooLong`] before anything is allocated, [`WireError::Padding`], or the stream
    /// failed.
    pub fn bytes(&mut self, max: u64) -> Result<Vec<u8>, WireError> {
        let length = self.u64()?;
        if length > max {
            return Err(WireError::TooLong { what: "a string", length, max });
        }
        let bytes = self.take(length)?;
        self.skip_padding(length)?;
        Ok(bytes)
    }

    /// Reads a string and keeps its first `max` bytes: for texts that people read, whose length
    /// a build decides.
    ///
    /// # Errors
    /// [`WireError::Padding`], or the stream failed.
    pub fn text(&mut self, max: u64) -> Result<Vec<u8>, WireError> {
        let length = self.u64()?;
        let kept = length.min(max);
        let bytes = self.take(kept)?;
        self.skip(length.saturating_sub(kept))?;
        self.skip_padding(length)?;
        Ok(bytes)
    }

    /// Reads the count of a list, which is at most `max`.
    ///
    /// # Errors
    /// [`WireError::TooLong`], or the stream failed.
    pub fn count(&mut self, max: u64) -> Result<u64, WireError> {
        let length = self.u64()?;
        if length > max {
            return Err(WireError::TooLong { what: "a list", length, max });
        }
        Ok(length)
    }

    /// Reads a list of at most `count_max` strings of at most `bytes_max` bytes each.
    ///
    /// # Errors
    /// As for [`Wire::count`] and [`Wire::bytes`].
    pub fn list(&mut self, count_max: u64, bytes_max: u64) -> Result<Vec<Vec<u8>>, WireError> {
        let count = self.count(count_max)?;
        (0..count).map(|_| self.bytes(bytes_max)).collect()
    }

    /// Copies exactly `length` raw bytes to `sink`.
    ///
    /// # Errors
    /// [`WireError::Sink`] when the sink fails, else the stream failed or ended.
    pub fn copy_to(&mut self, length: u64, sink: &mut dyn Write) -> Result<(), WireError> {
        let mut left = length;
        while left > 0 {
            let piece = self.input.fill_buf()?;
            if piece.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink.write_all(piece.get(..count).unwrap_or_default()).map_err(WireError::Sink)?;
            self.input.consume(count);
            left = left.saturating_sub(wide(count));
        }
        Ok(())
    }

    /// Copies a string whose length was read to `sink`.
    ///
    /// # Errors
    /// As for [`Wire::copy_to`], and [`WireError::Padding`].
    pub fn copy_string_to(&mut self, length: u64, sink: &mut dyn Write) -> Result<(), WireError> {
        self.copy_to(length, sink)?;
        self.skip_padding(length)
    }

    /// Adds raw bytes to the request, and writes it when it has grown long.
    fn put_raw(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.out.extend_from_slice(bytes);
        if self.out.len() >= OUT_BYTES_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Reads that many bytes, allocating as they come.
    fn take(&mut self, length: u64) -> Result<Vec<u8>, WireError> {
        let mut bytes = Vec::new();
        let count = self.input.by_ref().take(length).read_to_end(&mut bytes)?;
        if wide(count) < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }

    /// Reads that many bytes and drops them.
    fn skip(&mut self, length: u64) -> Result<(), WireError> {
        self.copy_to(length, &mut io::sink())
    }

    /// Reads the zeros behind a string.
    fn skip_padding(&mut self, length: u64) -> Result<(), WireError> {
        let mut zeros = [0u8; 8];
        let zeros = zeros.get_mut(..padding(length)).unwrap_or_default();
        self.input.read_exact(zeros)?;
        if zeros.iter().any(|byte| *byte != 0) { Err(WireError::Padding) } else { Ok(()) }
    }
}

/// Returns how many zeros follow a string of that length.
fn padding(length: u64) -> usize {
    usize::try_from(length.wrapping_neg() & 7).unwrap_or(0)
}

/// Returns a length in memory as the wire has it.
fn wide(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Reads once, again when interrupted by a signal.
fn read_some(source: &mut dyn Read, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// What one side wrote, as the other side's input.
    fn wire(bytes: &[u8]) -> Wire<Cursor<Vec<u8>>> {
        Wire::new(Cursor::new(bytes.to_vec()))
    }

    /// Returns the bytes that `write` puts on the wire.
    fn written(write: impl FnOnce(&mut Wire<Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut wire = wire(b"");
        write(&mut wire);
        wire.flush().unwrap();
        wire.stream().get_ref().clone()
    }

    #[test]
    fn numbers_and_strings_have_the_bytes_of_the_protocol() {
        let bytes = written(|wire| {
            wire.put_u64(0x6e69_7863).unwrap();
            wire.put_bytes(b"abc").unwrap();
            wire.put_bytes(b"12345678").unwrap();
        });
        assert_eq!(
            bytes,
            b"cxin\0\0\0\0\x03\0\0\0\0\0\0\0abc\0\0\0\0\0\x08\0\0\0\0\0\0\x0012345678"
        );
    }

    #[test]
    fn a_string_longer_than_its_limit_is_refused_before_it_is_read() {
        let mut wire = wire(&u64::MAX.to_le_bytes());
        assert!(matches!(wire.bytes(100), Err(WireError::TooLong { max: 100, .. })));
    }

    #[test]
    fn a_list_longer_than_its_limit_is_refused() {
        let mut wire = wire(&3u64.to_le_bytes());
        assert!(matches!(wire.list(2, 100), Err(WireError::TooLong { length: 3, .. })));
    }

    #[test]
    fn a_text_keeps_its_beginning_and_the_next_value_is_found() {
        let bytes = written(|wire| {
            wire.put_bytes(b"a long line of a log").unwrap();
            wire.put_u64(7).unwrap();
        });
        let mut wire = wire(&bytes);
        assert_eq!(wire.text(6).unwrap(), b"a long");
        assert_eq!(wire.u64().unwrap(), 7);
    }

    #[test]
    fn padding_must_be_zeros() {
        let mut wire = wire(b"\x01\0\0\0\0\0\0\0a\0\0\0\0\0\0!");
        assert!(matches!(wire.bytes(100), Err(WireError::Padding)));
    }

    #[test]
    fn an_end_in_the_middle_is_an_error() {
        let bytes = written(|wire| wire.put_bytes(b"whole").unwrap());
        for length in 0..bytes.len() {
            assert!(matches!(wire(&bytes[..length]).bytes(100), Err(WireError::Stream(_))));
        }
    }

    #[test]
    fn frames_end_with_a_zero() {
        let bytes = written(|wire| wire.put_framed(3, &mut &b"narrow"[..]).unwrap());
        assert_eq!(bytes, b"\x03\0\0\0\0\0\0\0nar\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_nar_that_ends_early_is_the_sources_fault() {
        let mut wire = wire(b"");
        assert!(matches!(wire.put_framed(9, &mut &b"narrow"[..]), Err(WireError::Source(_))));
    }

    #[test]
    fn a_raw_copy_stops_at_its_length() {
        let mut wire = wire(b"nar\x07\0\0\0\0\0\0\0");
        let mut nar = Vec::new();
        wire.copy_to(3, &mut nar).unwrap();
        assert_eq!(nar, b"nar");
        assert_eq!(wire.u64().unwrap(), 7);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(items: Vec<Vec<u8>>, number: u64) {
            let bytes = written(|wire| {
                wire.put_list(items.iter()).unwrap();
                wire.put_u64(number).unwrap();
            });
            let mut wire = wire(&bytes);
            prop_assert_eq!(wire.list(1000, 10_000).unwrap(), items);
            prop_assert_eq!(wire.u64().unwrap(), number);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _outcome = wire(&bytes).list(16, 64);
        }
    }
}
