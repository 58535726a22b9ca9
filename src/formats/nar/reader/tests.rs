//! Tests of the module above.

use super::super::sample::{ROOMY, Tree, any_tree, read};
use super::super::{NarError, NarLimits, NarReader, NarSink};
use crate::formats::tokens::{put_string, wide};
use proptest::prelude::*;

/// Returns the bytes of these strings, padded; a nar's magic goes before them.
fn nar(strings: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    put_string(&mut wire, b"nix-archive-1");
    for string in strings {
        put_string(&mut wire, string);
    }
    wire
}

/// Returns a nar of one directory with empty files of these names.
fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut strings: Vec<&[u8]> = vec![b"(", b"type", b"directory"];
    for name in names {
        strings.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
        strings.extend([&b"("[..], b"type", b"regular", b"contents", b"", b")", b")"]);
    }
    strings.push(b")");
    nar(&strings)
}

/// Returns a nar of one symbolic link.
fn symlink(target: &[u8]) -> Vec<u8> {
    nar(&[b"(", b"type", b"symlink", b"target", target, b")"])
}

/// Returns a nar of directories inside one another.
fn nested(depth: usize) -> Vec<u8> {
    let mut strings: Vec<&[u8]> = vec![b"(", b"type", b"directory"];
    for _ in 1..depth {
        strings.extend([&b"entry"[..], b"(", b"name", b"d", b"node", b"(", b"type", b"directory"]);
    }
    strings.push(b")");
    (1..depth).for_each(|_| strings.extend([&b")"[..], b")"]));
    nar(&strings)
}

/// Refuses the nar whole and byte by byte, and returns the variant's name.
#[track_caller]
fn refusal(wire: &[u8], limits: NarLimits) -> String {
    let variant = |piece| {
        let error = format!("{:?}", read(wire, piece, limits).expect_err("it was accepted"));
        error.split(' ').next().unwrap().to_owned()
    };
    let whole = variant(wire.len().max(1));
    assert_eq!(whole, variant(1));
    whole
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let file = |fields: &[&[u8]]| nar(&[&[&b"("[..], b"type", b"regular"], fields].concat());
    let long = [b'x'; 4096];
    let mut padding_of_name = directory(&[b"a"]);
    let name_at = padding_of_name.iter().position(|b| *b == b'a').unwrap();
    assert_eq!(padding_of_name[name_at], b'a');
    let name_at = padding_of_name.windows(9).position(|w| w == b"\x01\0\0\0\0\0\0\0a").unwrap();
    padding_of_name[name_at + 15] = 1;
    let mut padding_of_content = file(&[b"contents", b"abc", b")"]);
    let content_at = padding_of_content.windows(3).position(|w| w == b"abc").unwrap();
    padding_of_content[content_at + 3] = 1;
    let mut padding_of_magic = directory(&[]);
    padding_of_magic[21] = 1;
    let mut huge_word = nar(&[b"(", b"type"]);
    huge_word.extend_from_slice(&(1u64 << 46).to_le_bytes());

    for (rule, wire, expected) in [
        ("the magic stands first", b"\x0d\0\0\0\0\0\0\0nix-archive-2\0\0\0".to_vec(), "Unexpected"),
        ("a nar is no derivation", b"Derive([(\"out\",\"/nix/store".to_vec(), "Unexpected"),
        ("padding of the magic is zero", padding_of_magic, "Unexpected"),
        ("padding of a name is zero", padding_of_name, "Padding"),
        ("padding of a content is zero", padding_of_content, "Padding"),
        ("a word is short", huge_word, "StringTooLong"),
        ("a kind is known", nar(&[b"(", b"type", b"socket"]), "Unexpected"),
        ("a kind stands there once", nar(&[b"(", b"type", b"regular", b"type"]), "Unexpected"),
        ("a file has contents", file(&[b")"]), "Unexpected"),
        ("executable is empty", file(&[b"executable", b"1", b"contents", b"", b")"]), "Unexpected"),
        (
            "executable comes before contents",
            file(&[b"contents", b"", b"executable"]),
            "Unexpected",
        ),
        ("a file ends", file(&[b"contents", b"", b"("]), "Unexpected"),
        ("a link has a target", nar(&[b"(", b"type", b"symlink", b")"]), "Unexpected"),
        ("a target is not empty", symlink(b""), "Target"),
        ("a target has no NUL", symlink(b"a\0b"), "Target"),
        ("a target is at most 4095 bytes", symlink(&long), "StringTooLong"),
        ("a directory has entries", nar(&[b"(", b"type", b"directory", b"name"]), "Unexpected"),
        ("a name is not empty", directory(&[b""]), "Name"),
        ("a name is not a dot", directory(&[b"."]), "Name"),
        ("a name is not two dots", directory(&[b".."]), "Name"),
        ("a name has no slash", directory(&[b"a/../b"]), "Name"),
        ("a name has no NUL", directory(&[b"a\0"]), "Name"),
        ("a name is at most 255 bytes", directory(&[&long[..256]]), "StringTooLong"),
        ("names ascend", directory(&[b"b", b"a"]), "Order"),
        ("names ascend strictly", directory(&[b"a", b"a"]), "Order"),
        ("a prefix comes first", directory(&[b"ab", b"a"]), "Order"),
        ("names ascend as unsigned bytes", directory(&[b"\xff", b"a"]), "Order"),
    ] {
        assert_eq!(refusal(&wire, ROOMY), expected, "{rule}");
    }
}

#[test]
fn the_longest_names_and_targets_are_accepted() {
    let long = [b'x'; 4095];
    assert!(read(&directory(&[&long[..255]]), 100, ROOMY).is_ok());
    assert_eq!(read(&symlink(&long), 100, ROOMY).unwrap(), Tree::Symlink(long.to_vec()));
}

#[test]
fn every_limit_is_exact() {
    let wire = directory(&[b"a", b"b"]);
    let bytes = wide(wire.len());
    let exact = NarLimits { bytes_max: bytes, entries_max: 2, depth_max: 1 };
    assert!(read(&wire, 7, exact).is_ok());
    for (limits, expected) in [
        (NarLimits { bytes_max: bytes - 1, ..exact }, "TooManyBytes"),
        (NarLimits { entries_max: 1, ..exact }, "TooManyEntries"),
        (NarLimits { depth_max: 0, ..exact }, "TooDeep"),
    ] {
        assert_eq!(refusal(&wire, limits), expected);
    }
    assert!(read(&symlink(b"x"), 7, NarLimits { depth_max: 0, ..exact }).is_ok());
    assert!(read(&nested(64), 1000, ROOMY).is_ok());
    assert_eq!(refusal(&nested(65), ROOMY), "TooDeep");
}

#[test]
fn a_declared_length_reserves_nothing() {
    let mut wire = nar(&[b"(", b"type", b"regular", b"contents"]);
    wire.extend_from_slice(&(1u64 << 46).to_le_bytes());
    assert_eq!(refusal(&wire, ROOMY), "TooManyBytes");
    // Within the limit the content is passed on as it comes and never gathered.
    let roomy = NarLimits { bytes_max: u64::MAX, ..ROOMY };
    let mut reader = NarReader::new(roomy);
    assert_eq!(reader.feed(&wire, &mut ()).unwrap(), wire.len());
    assert_eq!(reader.feed(&[7; 1000], &mut ()).unwrap(), 1000);
    assert!(
        matches!(reader.finish(), Err(NarError::Truncated { offset }) if offset == wide(wire.len()) + 1000)
    );
}

#[test]
fn the_depth_of_a_nar_costs_no_stack() {
    let deep = NarLimits { depth_max: usize::MAX, entries_max: u64::MAX, ..ROOMY };
    let wire = nested(200_000);
    let mut reader = NarReader::new(deep);
    assert_eq!(reader.feed(&wire, &mut ()).unwrap(), wire.len());
    reader.finish().unwrap();
}

#[test]
fn what_follows_the_end_is_left_alone() {
    let mut wire = symlink(b"x");
    let len = wire.len();
    wire.extend_from_slice(b"more");
    let mut reader = NarReader::new(ROOMY);
    assert_eq!(reader.feed(&wire, &mut ()).unwrap(), len);
    assert!(reader.is_complete());
    assert_eq!(reader.feed(b"more", &mut ()).unwrap(), 0);
    reader.finish().unwrap();
}

#[test]
fn a_failing_sink_ends_the_reading() {
    struct Full;
    impl NarSink for Full {
        fn entry(&mut self, _name: &[u8]) -> Result<(), NarError> {
            Err(NarError::Sink("no space".into()))
        }
    }
    let mut reader = NarReader::new(ROOMY);
    let wire = directory(&[b"a"]);
    assert!(matches!(reader.feed(&wire, &mut Full), Err(NarError::Sink(_))));
    assert!(matches!(reader.feed(b"x", &mut Full), Err(NarError::Refused)));
    assert!(!reader.is_complete());
}

proptest! {
    #[test]
    fn every_tree_comes_out_of_its_nar_however_it_is_split(tree in any_tree(), piece in 1..300usize) {
        prop_assert_eq!(read(&tree.nar(), piece, ROOMY).unwrap(), tree);
    }

    #[test]
    fn no_prefix_of_a_nar_is_a_nar(tree in any_tree(), cut: prop::sample::Index) {
        let wire = tree.nar();
        let prefix = &wire[..cut.index(wire.len())];
        let error = read(prefix, 50, ROOMY).unwrap_err();
        prop_assert!(matches!(error, NarError::Truncated { .. }), "{error}");
    }

    /// There is one nar for each tree, so whatever is accepted must be what the writer writes.
    #[test]
    fn a_damaged_nar_is_refused_or_is_the_nar_of_another_tree(
        tree in any_tree(), at: prop::sample::Index, byte: u8
    ) {
        let mut wire = tree.nar();
        let at = at.index(wire.len());
        wire[at] = byte;
        let whole = read(&wire, wire.len(), ROOMY);
        prop_assert_eq!(whole.is_ok(), read(&wire, 5, ROOMY).is_ok());
        if let Ok(other) = whole {
            prop_assert!(wire.starts_with(&other.nar()));
        }
    }
}
