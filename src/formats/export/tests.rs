//! Tests of the module above.

use super::super::nar::sample::{ROOMY, Tree, any_tree};
use super::*;
use crate::core::store_path::{PathHash, StoreDir};
use proptest::prelude::*;

const LIMITS: ExportLimits = ExportLimits { nar: ROOMY, entries_max: 8 };

/// Gathers what a stream holds.
#[derive(Default, Debug)]
struct Gathered {
    nar: Vec<u8>,
    entries: Vec<(Vec<u8>, ExportTrailer)>,
}

impl ExportSink for Gathered {
    type Error = std::convert::Infallible;
    fn entry_begin(&mut self) -> Result<(), Self::Error> {
        assert!(self.nar.is_empty());
        Ok(())
    }
    fn nar(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        assert!(!bytes.is_empty());
        self.nar.extend_from_slice(bytes);
        Ok(())
    }
    fn entry_end(&mut self, trailer: ExportTrailer) -> Result<(), Self::Error> {
        self.entries.push((std::mem::take(&mut self.nar), trailer));
        Ok(())
    }
}

type Refused = ExportError<std::convert::Infallible>;

fn read(stream: &[u8], piece: usize) -> Result<Gathered, Refused> {
    let (mut reader, mut sink) = (ExportReader::new(LIMITS), Gathered::default());
    for chunk in stream.chunks(piece) {
        reader.feed(chunk, &mut sink)?;
    }
    reader.finish()?;
    Ok(sink)
}

fn path(byte: u8, name: &str) -> StorePath {
    StoreDir::nix().path(PathHash::from_bytes([byte; 20]), name).unwrap()
}

fn file() -> Tree {
    Tree::Regular { executable: true, content: b"#!/bin/sh\n".to_vec() }
}

/// Returns a stream of these trees, in Nix's dialect.
fn stream(trees: &[Tree]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tree, byte) in trees.iter().zip(1..) {
        out.extend_from_slice(&entry_begin());
        out.extend_from_slice(&tree.nar());
        let references = [path(byte, "self"), path(0, "other")];
        let deriver = path(byte, "self.drv");
        out.extend_from_slice(&entry_trailer(&path(byte, "self"), &references, Some(&deriver)));
    }
    out.extend_from_slice(&stream_end());
    out
}

#[test]
fn the_trailer_of_an_entry_is_read() {
    let read = read(&stream(&[file()]), 1).unwrap();
    let [(nar, trailer)] = read.entries.as_slice() else { panic!("one entry was written") };
    assert_eq!(nar, &file().nar());
    assert_eq!(trailer.path, path(1, "self"));
    assert_eq!(trailer.references, vec![path(0, "other"), path(1, "self")]);
    assert_eq!(trailer.deriver, Some(path(1, "self.drv")));
    assert_eq!((trailer.nar_hash, trailer.nar_bytes), (Sha256::of(nar), wide(nar.len())));
    assert_eq!(trailer.signature, None);
}

#[test]
fn a_signed_entry_tells_what_is_signed() {
    let plain = stream(&[file()]);
    // Everything but the first number, and the numbers for no signature and no more entries.
    let signed = &plain[8..plain.len() - 16];
    let mut guix = plain[..plain.len() - 16].to_vec();
    guix.extend_from_slice(&MORE.to_le_bytes());
    put_string(&mut guix, b"(signature)");
    guix.extend_from_slice(&stream_end());
    for piece in [1, 7, guix.len()] {
        let read = read(&guix, piece).unwrap();
        let trailer = &read.entries[0].1;
        assert_eq!(trailer.signature.as_deref(), Some(&b"(signature)"[..]));
        assert_eq!(trailer.signed_hash, Sha256::of(signed));
    }
}

#[test]
fn what_is_written_with_a_signature_reads_back() {
    let (nar, own) = (file().nar(), path(1, "self"));
    let references = [own.clone(), path(0, "other")];
    let mut stream = entry_begin().to_vec();
    stream.extend_from_slice(&nar);
    stream.extend_from_slice(&signed_entry_trailer(&own, &references, None, "(signature)"));
    stream.extend_from_slice(&stream_end());
    let read = read(&stream, 9).unwrap();
    let trailer = &read.entries[0].1;
    assert_eq!(trailer.signature.as_deref(), Some(&b"(signature)"[..]));
    let signed = [nar, entry_facts(&own, &references, None)].concat();
    assert_eq!(trailer.signed_hash, Sha256::of(&signed));
}

#[test]
fn an_empty_input_is_told_from_an_empty_stream() {
    assert!(matches!(read(b"", 1), Err(ExportError::Empty)));
    assert!(matches!(read(&[0; 4], 1), Err(ExportError::Truncated { entry: 1 })));
    assert!(read(&stream_end(), 1).unwrap().entries.is_empty());
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let whole = stream(&[file()]);
    let nar_end = 8 + file().nar().len();
    let changed = |at: usize, word: u64| {
        let mut wire = whole.clone();
        wire[at..at + 8].copy_from_slice(&word.to_le_bytes());
        wire
    };
    let trailer = |path: &[u8], reference: &[u8], deriver: &[u8]| {
        let mut wire = whole[..nar_end + 8].to_vec();
        put_string(&mut wire, path);
        wire.extend_from_slice(&1u64.to_le_bytes());
        put_string(&mut wire, reference);
        put_string(&mut wire, deriver);
        wire.extend_from_slice(&[0; 16]);
        wire
    };
    let (nix, guix) = (path(1, "x").to_string(), path(1, "x").to_string().replace("nix", "gnu"));
    let (nix, guix) = (nix.as_bytes(), guix.as_bytes());
    assert!(read(&trailer(nix, nix, b""), 9).is_ok());
    let count_at = nar_end + 8 + 8 + path(1, "self").to_string().len().next_multiple_of(8);
    let unsigned_at = whole.len() - 16;
    for (rule, wire, expected) in [
        ("it is an export stream", b"Derive([(\"out\"".to_vec(), "NotExport"),
        ("it is not a nar", file().nar(), "NotExport"),
        ("one stream only", [whole.clone(), vec![0]].concat(), "TrailingBytes"),
        ("an entry has a nar", changed(8, 12), "Nar"),
        ("the magic number follows", changed(nar_end, 7), "Damaged"),
        ("references are few", changed(count_at, REFERENCES_MAX + 1), "TooManyReferences"),
        ("a flag is 0 or 1", changed(unsigned_at, 2), "Damaged"),
        ("the end is 0", changed(unsigned_at + 8, 2), "Damaged"),
        ("a path is a store path", trailer(b"/nix/store/x", nix, b""), "Path"),
        ("a path is not empty", trailer(b"", nix, b""), "Path"),
        ("a path is short", trailer(&[b'x'; 600], nix, b""), "Damaged"),
        ("a reference is a store path", trailer(nix, b"x", b""), "Path"),
        ("a deriver is a store path", trailer(nix, nix, b"x"), "Path"),
        ("references are in the same store", trailer(nix, guix, b""), "OtherStore"),
        ("a deriver is in the same store", trailer(nix, nix, guix), "OtherStore"),
        ("entries are few", stream(&vec![file(); 9]), "TooManyEntries"),
    ] {
        for piece in [1, wire.len()] {
            let error = format!("{:?}", read(&wire, piece).expect_err(rule));
            assert!(error.starts_with(expected), "{rule}: {error}");
        }
    }
}

#[test]
fn a_failing_sink_ends_the_reading() {
    struct Full;
    impl ExportSink for Full {
        type Error = &'static str;
        fn entry_begin(&mut self) -> Result<(), &'static str> {
            Ok(())
        }
        fn nar(&mut self, _bytes: &[u8]) -> Result<(), &'static str> {
            Err("no space")
        }
        fn entry_end(&mut self, _trailer: ExportTrailer) -> Result<(), &'static str> {
            Ok(())
        }
    }
    let mut reader = ExportReader::new(LIMITS);
    let wire = stream(&[file()]);
    assert!(matches!(reader.feed(&wire, &mut Full), Err(ExportError::Sink("no space"))));
    assert!(matches!(reader.feed(b"x", &mut Full), Err(ExportError::Refused)));
    assert!(matches!(reader.finish::<()>(), Err(ExportError::Refused)));
}

proptest! {
    #[test]
    fn every_stream_reads_back_however_it_is_split(
        trees in prop::collection::vec(any_tree(), 0..4), piece in 1..500usize
    ) {
        let read = read(&stream(&trees), piece).unwrap();
        let nars: Vec<_> = read.entries.iter().map(|(nar, _)| nar.clone()).collect();
        prop_assert_eq!(nars, trees.iter().map(Tree::nar).collect::<Vec<_>>());
    }

    #[test]
    fn no_prefix_of_a_stream_is_a_stream(tree in any_tree(), cut: prop::sample::Index) {
        let wire = stream(&[tree]);
        let cut = cut.index(wire.len());
        let error = read(&wire[..cut], 50).unwrap_err();
        let early = matches!(error, ExportError::Truncated { .. } | ExportError::Empty);
        prop_assert!(early, "{}", error);
    }
}
