//! The fixed words of nars as they stand in the bytes: length, text and padding.
//!
//! Between two places where a nar can vary lies a run of words that never does. Both sides treat
//! such a run as one piece of bytes.

/// The longest keyword a reader looks at, in bytes: one that is longer is no keyword.
pub(super) const KEYWORD_BYTES_MAX: usize = 16;

macro_rules! word {
    (magic) => {
        "\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0"
    };
    (open) => {
        "\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0"
    };
    (close) => {
        "\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0"
    };
    (kind) => {
        "\x04\0\0\0\0\0\0\0type\0\0\0\0"
    };
    (regular) => {
        "\x07\0\0\0\0\0\0\0regular\0"
    };
    (executable) => {
        "\x0a\0\0\0\0\0\0\0executable\0\0\0\0\0\0"
    };
    (empty) => {
        "\0\0\0\0\0\0\0\0"
    };
    (contents) => {
        "\x08\0\0\0\0\0\0\0contents"
    };
    (symlink) => {
        "\x07\0\0\0\0\0\0\0symlink\0"
    };
    (target) => {
        "\x06\0\0\0\0\0\0\0target\0\0"
    };
    (directory) => {
        "\x09\0\0\0\0\0\0\0directory\0\0\0\0\0\0\0"
    };
    (entry) => {
        "\x05\0\0\0\0\0\0\0entry\0\0\0"
    };
    (name) => {
        "\x04\0\0\0\0\0\0\0name\0\0\0\0"
    };
    (node) => {
        "\x04\0\0\0\0\0\0\0node\0\0\0\0"
    };
}

macro_rules! run {
    ($($word:tt)+) => { concat!($(word!($word)),+).as_bytes() };
}

/// The beginning of a nar. Its first node's kind follows.
pub(super) const START: &[u8] = run!(magic open kind);
/// The rest of `executable`, up to the content's size.
pub(super) const EXECUTABLE_SIZE: &[u8] = run!(empty contents);
/// What stands before a symbolic link's target.
pub(super) const TARGET: &[u8] = run!(target);
/// What stands between the keyword `entry` and the name.
pub(super) const ENTRY_NAME: &[u8] = run!(open name);
/// What stands between a name and its node's kind.
pub(super) const NAME_KIND: &[u8] = run!(node open kind);
/// The end of a node, or of an entry.
pub(super) const CLOSE: &[u8] = run!(close);
/// The end of a node and of the entry it is in.
pub(super) const CLOSE_ENTRY: &[u8] = run!(close close);

/// A plain file, up to the content's size.
pub(super) const REGULAR: &[u8] = run!(regular contents);
/// An executable file, up to the content's size.
pub(super) const EXECUTABLE: &[u8] = run!(regular executable empty contents);
/// A symbolic link, up to its target.
pub(super) const SYMLINK: &[u8] = run!(symlink target);
/// A directory, up to its first entry or its end.
pub(super) const DIRECTORY: &[u8] = run!(directory);
/// A directory's entry, up to its name.
pub(super) const ENTRY: &[u8] = run!(entry open name);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::tokens::put_string;

    #[test]
    fn every_run_is_made_of_padded_strings() {
        for (run, strings) in [
            (START, &["nix-archive-1", "(", "type"][..]),
            (EXECUTABLE_SIZE, &["", "contents"]),
            (TARGET, &["target"]),
            (ENTRY_NAME, &["(", "name"]),
            (NAME_KIND, &["node", "(", "type"]),
            (CLOSE, &[")"]),
            (CLOSE_ENTRY, &[")", ")"]),
            (REGULAR, &["regular", "contents"]),
            (EXECUTABLE, &["regular", "executable", "", "contents"]),
            (SYMLINK, &["symlink", "target"]),
            (DIRECTORY, &["directory"]),
            (ENTRY, &["entry", "(", "name"]),
        ] {
            let mut wire = Vec::new();
            for string in strings {
                put_string(&mut wire, string.as_bytes());
            }
            assert_eq!(run, wire, "{strings:?}");
        }
    }
}
