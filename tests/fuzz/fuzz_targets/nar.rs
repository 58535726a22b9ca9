//! A nar is refused or accepted alike in any split, and what is accepted is written the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steading::formats::nar::{NarError, NarLimits, NarReader, NarSink, NarWriter, Regular};

const LIMITS: NarLimits = NarLimits { bytes_max: 1 << 20, entries_max: 1 << 12, depth_max: 32 };

/// Writes again what is read.
struct Echo(NarWriter<Vec<u8>>);

impl NarSink for Echo {
    fn directory_begin(&mut self) -> Result<(), NarError> {
        self.0.directory_begin().expect("the reader checked it");
        Ok(())
    }
    fn entry(&mut self, name: &[u8]) -> Result<(), NarError> {
        self.0.entry(name).expect("the reader checked it");
        Ok(())
    }
    fn directory_end(&mut self) -> Result<(), NarError> {
        self.0.directory_end().expect("the reader checked it");
        Ok(())
    }
    fn regular(&mut self, head: Regular) -> Result<(), NarError> {
        self.0.regular(head).expect("the reader checked it");
        Ok(())
    }
    fn content(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.0.content(bytes).expect("the reader checked it");
        Ok(())
    }
    fn symlink(&mut self, target: &[u8]) -> Result<(), NarError> {
        self.0.symlink(target).expect("the reader checked it");
        Ok(())
    }
}

/// Reads a nar in pieces; returns its bytes written again when it is valid.
fn read(bytes: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut echo = Echo(NarWriter::new(Vec::new()));
    echo.0.begin().expect("a vector takes everything");
    let mut reader = NarReader::new(LIMITS);
    for chunk in bytes.chunks(piece) {
        reader.feed(chunk, &mut echo).ok()?;
    }
    reader.finish().ok()?;
    Some(echo.0.finish().expect("the reader saw the end"))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = (usize::from(input.0).max(1), input.1);
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, piece));
    if let Some(written) = whole {
        assert!(bytes.starts_with(&written));
    }
});
