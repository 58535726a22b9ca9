//! The syntax of `.drv` files, a part of `ATerm`: strings, lists and punctuation.
//!
//! There is one way to write each value, the one that Nix and Guix write: no white space between
//! tokens, and in strings the escapes `\"`, `\\`, `\n`, `\r` and `\t` for those five bytes and no
//! others. The daemons read a little more than that; here it is refused, so that whatever was read
//! is written back as the same bytes and its hash cannot change on the way.
//! Source: Nix `src/libstore/derivations.cc` (`printString`, `parseString`), Guix
//! `guix/derivations.scm` (`write-derivation`).

#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used
)]

use std::borrow::Cow;

/// What was missing in a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: expected {expected}")]
pub struct SyntaxError {
    /// Distance from the beginning of the text, in bytes.
    pub at: usize,
    /// The token or rule that the text breaks.
    pub expected: &'static str,
}

/// Reads tokens from the beginning of a text, without copying it.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    /// Returns a reader at the beginning of `text`.
    #[must_use]
    pub const fn new(text: &'a [u8]) -> Self {
        Self { rest: text, total: text.len() }
    }

    /// Returns how many bytes were read so far.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.total.saturating_sub(self.rest.len())
    }

    /// Returns what is not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads `token`.
    ///
    /// # Errors
    /// When the text goes on differently; nothing is read then.
    pub fn expect(&mut self, token: &'static str) -> Result<(), SyntaxError> {
        if self.accept(token) { Ok(()) } else { Err(self.expected(token)) }
    }

    /// Reads the end of the text.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn expect_end(&self) -> Result<(), SyntaxError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.expected("the end of the file")) }
    }

    /// Reads a string; it borrows from the text unless it has escapes.
    ///
    /// # Errors
    /// When there is no string, it does not end, or it is not escaped as the daemons do it.
    pub fn string(&mut self) -> Result<Cow<'a, [u8]>, SyntaxError> {
        self.expect("\"")?;
        let plain = self.plain_bytes();
        if self.accept("\"") {
            return Ok(Cow::Borrowed(plain));
        }
        let mut decoded = plain.to_vec();
        while !self.accept("\"") {
            decoded.push(self.escape()?);
            decoded.extend_from_slice(self.plain_bytes());
        }
        Ok(Cow::Owned(decoded))
    }

    /// Reads a list, calling `item` where each of its items begins.
    ///
    /// # Errors
    /// Those of `item`, or when brackets or commas are missing.
    pub fn list<E: From<SyntaxError>>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expect("[")?;
        if self.accept("]") {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.accept("]") {
                return Ok(());
            }
            if !self.accept(",") {
                return Err(self.expected("‘,’ or ‘]’").into());
            }
        }
    }

    /// Returns the error that `expected` does not follow here.
    #[must_use]
    pub const fn expected(&self, expected: &'static str) -> SyntaxError {
        SyntaxError { at: self.position(), expected }
    }

    /// Reads `token` if it follows, and tells whether it did.
    fn accept(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token.as_bytes());
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Reads up to the next byte that cannot stand for itself in a string, or to the end.
    fn plain_bytes(&mut self) -> &'a [u8] {
        let len = plain_len(self.rest);
        let (plain, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        plain
    }

    /// Reads one escape, and returns the byte it stands for.
    fn escape(&mut self) -> Result<u8, SyntaxError> {
        let (byte, rest) = match self.rest {
            [b'\\', b'"', rest @ ..] => (b'"', rest),
            [b'\\', b'\\', rest @ ..] => (b'\\', rest),
            [b'\\', b'n', rest @ ..] => (b'\n', rest),
            [b'\\', b'r', rest @ ..] => (b'\r', rest),
            [b'\\', b't', rest @ ..] => (b'\t', rest),
            [] | [b'\\'] => return Err(self.expected("the end of a string")),
            _ => return Err(self.expected("one of the escapes \\\" \\\\ \\n \\r \\t")),
        };
        self.rest = rest;
        Ok(byte)
    }
}

/// Appends `bytes` as a string.
pub fn write_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let mut rest = bytes;
    while let Some((before, special)) = rest.split_at_checked(plain_len(rest))
        && !special.is_empty()
    {
        out.extend_from_slice(before);
        let Some((byte, after)) = special.split_first() else { break };
        out.extend([b'\\', escape_of(*byte).unwrap_or(*byte)]);
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends a list, with `item` writing each of its items.
pub fn write_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut item: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (place, value) in items.into_iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        item(out, value);
    }
    out.push(b']');
}

/// Returns how many bytes come before the first that cannot stand for itself in a string.
fn plain_len(bytes: &[u8]) -> usize {
    // A whole block is compared at once, and most of a derivation is such blocks.
    let (blocks, _) = bytes.as_chunks::<32>();
    let is_plain =
        |block: &&[u8; 32]| !block.iter().fold(false, |any, byte| any | escape_of(*byte).is_some());
    let skipped = blocks.iter().take_while(is_plain).count().saturating_mul(32);
    let rest = bytes.get(skipped..).unwrap_or_default();
    let plain = rest.iter().position(|byte| escape_of(*byte).is_some());
    skipped.saturating_add(plain.unwrap_or(rest.len()))
}

/// Returns the letter of a byte's escape, for bytes that cannot stand for themselves in a string.
const fn escape_of(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' => Some(byte),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads `text` as nothing but one string.
    fn string(text: &[u8]) -> Result<Cow<'_, [u8]>, SyntaxError> {
        let mut reader = Reader::new(text);
        let string = reader.string()?;
        reader.expect_end()?;
        Ok(string)
    }

    #[test]
    fn only_strings_with_escapes_are_copied() {
        assert!(matches!(string(br#""plain""#), Ok(Cow::Borrowed(b"plain"))));
        assert!(matches!(string(br#""""#), Ok(Cow::Borrowed(b""))));
        let escaped = string(br#""a\"b\\c\nd\re\tf""#).unwrap();
        assert_eq!(escaped, Cow::<[u8]>::Owned(b"a\"b\\c\nd\re\tf".to_vec()));
    }

    #[test]
    fn strings_that_no_daemon_writes_are_refused() {
        for (name, text, at) in [
            ("nothing", &b""[..], 0),
            ("no quote", b"a", 0),
            ("no end", b"\"a", 2),
            ("no end after an escape", b"\"a\\n", 4),
            ("half an escape", b"\"a\\", 2),
            ("an escape of a letter", b"\"\\a\"", 1),
            ("an escaped line feed", b"\"\\\n\"", 1),
            ("a raw line feed", b"\"a\nb\"", 2),
            ("a raw carriage return", b"\"\r\"", 1),
            ("a raw tabulator", b"\"\\n\t\"", 3),
            ("bytes behind it", b"\"a\" ", 3),
        ] {
            assert_eq!(string(text).unwrap_err().at, at, "{name}");
        }
    }

    #[test]
    fn lists_have_brackets_and_commas_and_nothing_else() {
        let items = |text: &'static [u8]| -> Result<usize, SyntaxError> {
            let (mut reader, mut count) = (Reader::new(text), 0);
            reader.list(|r| r.string().map(|_| count += 1))?;
            reader.expect_end().map(|()| count)
        };
        assert_eq!(items(b"[]"), Ok(0));
        assert_eq!(items(br#"["a"]"#), Ok(1));
        assert_eq!(items(br#"["a","b"]"#), Ok(2));
        let refused: [&[u8]; 8] =
            [b"", b"[", b"[,]", br#"["a",]"#, br#"["a""b"]"#, br#"["a", "b"]"#, br#"["a""#, b"]"];
        for text in refused {
            assert!(items(text).is_err(), "{}", text.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn every_string_reads_back(bytes: Vec<u8>) {
            let mut text = Vec::new();
            write_string(&mut text, &bytes);
            prop_assert_eq!(string(&text).unwrap(), bytes);
        }

        #[test]
        fn what_reads_as_a_string_is_written_the_same(body in r#"[a"\\nrt\n\r]{0,12}"#) {
            let text = format!("\"{body}\"");
            if let Ok(bytes) = string(text.as_bytes()) {
                let mut again = Vec::new();
                write_string(&mut again, &bytes);
                prop_assert_eq!(again, text.as_bytes());
            }
        }
    }
}
