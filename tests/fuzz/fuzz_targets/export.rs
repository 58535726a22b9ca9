//! An export stream is refused or accepted alike in any split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::convert::Infallible;
use steading::formats::{
    export::{ExportLimits, ExportReader, ExportSink, ExportTrailer},
    nar::NarLimits,
};

const LIMITS: ExportLimits = ExportLimits {
    nar: NarLimits { bytes_max: 1 << 20, entries_max: 1 << 12, depth_max: 32 },
    entries_max: 64,
};

/// Notes what every entry holds.
#[derive(Default)]
struct Notes {
    nar: Vec<u8>,
    entries: Vec<(Vec<u8>, ExportTrailer)>,
}

impl ExportSink for Notes {
    type Error = Infallible;
    fn entry_begin(&mut self) -> Result<(), Infallible> {
        assert!(self.nar.is_empty());
        Ok(())
    }
    fn nar(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.nar.extend_from_slice(bytes);
        Ok(())
    }
    fn entry_end(&mut self, trailer: ExportTrailer) -> Result<(), Infallible> {
        assert_eq!(trailer.nar_bytes, self.nar.len() as u64);
        self.entries.push((std::mem::take(&mut self.nar), trailer));
        Ok(())
    }
}

/// Reads a stream in pieces; returns its entries when it is valid.
fn read(bytes: &[u8], piece: usize) -> Option<Vec<(Vec<u8>, ExportTrailer)>> {
    let (mut reader, mut notes) = (ExportReader::new(LIMITS), Notes::default());
    for chunk in bytes.chunks(piece) {
        reader.feed(chunk, &mut notes).ok()?;
    }
    reader.finish::<Infallible>().ok()?;
    Some(notes.entries)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = (usize::from(input.0).max(1), input.1);
    assert_eq!(read(bytes, bytes.len().max(1)), read(bytes, piece));
});
