//! Reads one frame of zstd from anybody, piece by piece.

use super::{BUFFER_BYTES, WINDOW_LOG_MAX};
use std::io;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

/// Decompresses one frame. Memory is the frame's window, at most 128 MiB, and a buffer; a sink
/// that refuses ends the work before more is decompressed.
pub(super) struct FrameReader {
    decoder: Decoder<'static>,
    buffer: Vec<u8>,
    complete: bool,
}

/// Why a frame is refused.
#[derive(Debug)]
pub(super) enum BadFrame<E> {
    /// It is not zstd, is damaged, or wants too large a window.
    Invalid(io::Error),
    /// There are bytes behind the frame.
    Trailing,
    /// The sink refused.
    Sink(E),
}

impl FrameReader {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self { decoder, buffer: vec![0; BUFFER_BYTES], complete: false })
    }

    /// Begins another frame, with the memory of the last one.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.decoder.reinit()?;
        self.complete = false;
        Ok(())
    }

    /// Reads the next bytes and hands what they decompress to, in pieces, to `sink`.
    pub(super) fn feed<E>(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), BadFrame<E>> {
        let mut input = InBuffer::around(bytes);
        let mut filled = false;
        // A full buffer means that the decoder may have more to tell without any input.
        while input.pos() < bytes.len() || filled {
            if self.complete {
                return Err(BadFrame::Trailing);
            }
            let mut output = OutBuffer::around(self.buffer.as_mut_slice());
            let hint = self.decoder.run(&mut input, &mut output).map_err(BadFrame::Invalid)?;
            let len = output.pos();
            sink(&self.buffer[..len]).map_err(BadFrame::Sink)?;
            self.complete = hint == 0;
            filled = len == self.buffer.len() && !self.complete;
        }
        Ok(())
    }

    /// Tells whether the frame has ended.
    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }
}
