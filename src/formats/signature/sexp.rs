//! S-expressions as libgcrypt reads and prints them: the form of Guix's keys, signatures and
//! access list.
//!
//! An expression is an atom, which is any bytes, or a list of expressions. Read are Rivest's
//! canonical form (`5:hello`) and the advanced one (tokens, `"…"`, `#hex#`, `|base64|`), mixed as
//! they come; display hints, which no key or signature has, are refused.
//! Source: `draft-rivest-sexp`, libgcrypt `src/sexp.c`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use std::fmt;

/// The longest text that is read, in bytes. A signature over RSA-4096 has about three thousand.
pub const SEXP_BYTES_MAX: usize = 64 * 1024;
/// How deep lists may be nested. A signature needs 4.
pub const SEXP_DEPTH_MAX: usize = 16;
/// What a token may have in it beside letters and digits.
const TOKEN_SPECIALS: &[u8] = b"-./_:*+=";

/// An expression.
#[derive(Clone, PartialEq, Eq)]
pub enum Sexp {
    /// A string of bytes.
    Atom(Vec<u8>),
    /// A list.
    List(Vec<Self>),
}

/// Why a text is no S-expression that is read here. The text is never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SexpError {
    /// It is longer than [`SEXP_BYTES_MAX`].
    #[error("the S-expression is longer than {SEXP_BYTES_MAX} bytes")]
    TooLong,
    /// Its lists are nested deeper than [`SEXP_DEPTH_MAX`].
    #[error("the S-expression is nested deeper than {SEXP_DEPTH_MAX} lists")]
    TooDeep,
    /// It ends within a list or an atom, or there is nothing.
    #[error("the S-expression ends early: is the file cut off?")]
    Truncated,
    /// Something stands where it cannot.
    #[error("byte {at} of the S-expression cannot be there")]
    Unexpected {
        /// The place, from 0.
        at: usize,
    },
}

impl Sexp {
    /// Returns the list of these.
    #[must_use]
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self::List(items.into_iter().collect())
    }

    /// Returns the list of a word and one atom: `(word value)`.
    #[must_use]
    pub fn field(word: &str, value: &[u8]) -> Self {
        Self::list([word.into(), Self::Atom(value.to_vec())])
    }

    /// Reads one expression; nothing but blanks may stand around it.
    ///
    /// # Errors
    /// A [`SexpError`].
    pub fn parse(text: &[u8]) -> Result<Self, SexpError> {
        if text.len() > SEXP_BYTES_MAX {
            return Err(SexpError::TooLong);
        }
        let mut reader = Reader { text, at: 0 };
        let expression = reader.expression()?;
        // C programs leave the zero at the end of their strings there.
        match reader.peek_visible() {
            None | Some(0) => Ok(expression),
            Some(_) => Err(reader.unexpected()),
        }
    }

    /// Returns the text as libgcrypt prints it for people, with a newline at the end.
    ///
    /// Atoms that are no tokens are in hexadecimal digits; libgcrypt would quote those that can be
    /// read, which no key or signature has.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut printer = Printer::default();
        printer.put(self, Behind::End);
        printer.text.push('\n');
        printer.text
    }

    /// Returns the bytes of an atom.
    #[must_use]
    pub fn atom(&self) -> Option<&[u8]> {
        match self {
            Self::Atom(bytes) => Some(bytes),
            Self::List(_) => None,
        }
    }

    /// Returns what follows the word in a list that begins with it.
    #[must_use]
    pub fn after(&self, word: &str) -> Option<&[Self]> {
        match self {
            Self::List(items) => match items.split_first() {
                Some((Self::Atom(first), rest)) if first == word.as_bytes() => Some(rest),
                Some(_) | None => None,
            },
            Self::Atom(_) => None,
        }
    }

    /// Returns what follows `word` in the one list among `items` that begins with it; nothing when
    /// there is none or there are several.
    #[must_use]
    pub fn find<'a>(items: &'a [Self], word: &str) -> Option<&'a [Self]> {
        let mut found = items.iter().filter_map(|item| item.after(word));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Returns the atom of the one list `(word atom)` among `items`.
    #[must_use]
    pub fn value<'a>(items: &'a [Self], word: &str) -> Option<&'a [u8]> {
        match Self::find(items, word)? {
            [value] => value.atom(),
            _ => None,
        }
    }
}

impl From<&str> for Sexp {
    fn from(word: &str) -> Self {
        Self::Atom(word.as_bytes().to_vec())
    }
}

/// Shows the shape and no atoms, which may be secret.
impl fmt::Debug for Sexp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Atom(bytes) => write!(f, "[{}]", bytes.len()),
            Self::List(items) => f.debug_list().entries(items).finish(),
        }
    }
}

/// Goes through a text.
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Reads one expression; the lists that are open are on a stack of its own.
    fn expression(&mut self) -> Result<Sexp, SexpError> {
        let mut open: Vec<Vec<Sexp>> = Vec::new();
        loop {
            let done = match self.peek_visible().ok_or(SexpError::Truncated)? {
                b'(' => {
                    if open.len() == SEXP_DEPTH_MAX {
                        return Err(SexpError::TooDeep);
                    }
                    self.advance();
                    open.push(Vec::new());
                    continue;
                }
                b')' => {
                    let list = open.pop().ok_or_else(|| self.unexpected())?;
                    self.advance();
                    Sexp::List(list)
                }
                first => Sexp::Atom(self.atom(first)?),
            };
            match open.last_mut() {
                Some(list) => list.push(done),
                None => return Ok(done),
            }
        }
    }

    fn atom(&mut self, first: u8) -> Result<Vec<u8>, SexpError> {
        match first {
            b'#' => self.hex(),
            b'|' => self.base64(),
            b'"' => self.quoted(),
            b'0'..=b'9' => self.counted(),
            _ if is_token(first) => Ok(self.take_while(is_token).to_vec()),
            _ => Err(self.unexpected()),
        }
    }

    /// Reads `LENGTH:BYTES`.
    fn counted(&mut self) -> Result<Vec<u8>, SexpError> {
        let start = self.at;
        let digits = self.take_while(|byte| byte.is_ascii_digit());
        let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let length: usize = length.ok_or(SexpError::Unexpected { at: start })?;
        match self.next()? {
            b':' => {}
            _ => return Err(SexpError::Unexpected { at: self.at.saturating_sub(1) }),
        }
        let end = self.at.saturating_add(length);
        let bytes = self.text.get(self.at..end).ok_or(SexpError::Truncated)?;
        self.at = end;
        Ok(bytes.to_vec())
    }

    /// Reads `#HEX#`; blanks among the digits do not matter.
    fn hex(&mut self) -> Result<Vec<u8>, SexpError> {
        let mut digits = self.enclosed(b'#')?;
        let start = self.at;
        digits.retain(|byte| !byte.is_ascii_whitespace());
        let bad = SexpError::Unexpected { at: start };
        let (pairs, []) = digits.as_chunks::<2>() else { return Err(bad) };
        let byte = |[high, low]: &[u8; 2]| {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
            Some((digit(*high)? << 4) | digit(*low)?)
        };
        pairs.iter().map(byte).collect::<Option<_>>().ok_or(bad)
    }

    /// Reads `|BASE64|`; blanks among the digits do not matter.
    fn base64(&mut self) -> Result<Vec<u8>, SexpError> {
        let mut digits = self.enclosed(b'|')?;
        digits.retain(|byte| !byte.is_ascii_whitespace());
        BASE64.decode(digits).map_err(|_| SexpError::Unexpected { at: self.at })
    }

    /// Reads `"TEXT"` with the escapes of C.
    fn quoted(&mut self) -> Result<Vec<u8>, SexpError> {
        self.advance();
        let mut bytes = Vec::new();
        loop {
            let byte = match self.next()? {
                b'"' => return Ok(bytes),
                b'\\' => match self.next()? {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'v' => 11,
                    b'f' => 12,
                    byte @ (b'"' | b'\'' | b'\\') => byte,
                    _ => return Err(SexpError::Unexpected { at: self.at.saturating_sub(1) }),
                },
                byte => byte,
            };
            bytes.push(byte);
        }
    }

    /// Takes what stands between two `mark`s.
    fn enclosed(&mut self, mark: u8) -> Result<Vec<u8>, SexpError> {
        self.advance();
        let inner = self.take_while(|byte| byte != mark).to_vec();
        self.next()?;
        Ok(inner)
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &[u8] {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len());
        self.at = self.at.saturating_add(length);
        rest.get(..length).unwrap_or_default()
    }

    /// Skips blanks and returns the byte behind them, without taking it.
    fn peek_visible(&mut self) -> Option<u8> {
        self.take_while(|byte| byte.is_ascii_whitespace());
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, SexpError> {
        let byte = self.text.get(self.at).copied().ok_or(SexpError::Truncated)?;
        self.advance();
        Ok(byte)
    }

    const fn advance(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    const fn unexpected(&self) -> SexpError {
        SexpError::Unexpected { at: self.at }
    }
}

/// What stands behind an expression; it decides about the blank between.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Atom,
    List,
    Close,
    End,
}

#[derive(Default)]
struct Printer {
    text: String,
    indent: usize,
}

impl Printer {
    fn put(&mut self, expression: &Sexp, behind: Behind) {
        match expression {
            Sexp::Atom(bytes) => {
                self.text.push_str(&atom_text(bytes));
                if matches!(behind, Behind::Atom | Behind::List) {
                    self.text.push(' ');
                }
            }
            Sexp::List(items) => {
                if self.indent > 0 {
                    self.line();
                }
                self.text.push('(');
                self.indent = self.indent.saturating_add(1);
                let mut items = items.iter().peekable();
                while let Some(item) = items.next() {
                    let behind = match items.peek() {
                        Some(Sexp::Atom(_)) => Behind::Atom,
                        Some(Sexp::List(_)) => Behind::List,
                        None => Behind::Close,
                    };
                    self.put(item, behind);
                }
                self.text.push(')');
                self.indent = self.indent.saturating_sub(1);
                if matches!(behind, Behind::Atom | Behind::Close) {
                    self.line();
                }
            }
        }
    }

    fn line(&mut self) {
        self.text.push('\n');
        self.text.extend(std::iter::repeat_n(' ', self.indent));
    }
}

/// Returns the text of an atom.
fn atom_text(bytes: &[u8]) -> String {
    match bytes.split_first() {
        Some((first, _)) if !first.is_ascii_digit() && bytes.iter().all(|b| is_token(*b)) => {
            bytes.iter().map(|byte| char::from(*byte)).collect()
        }
        Some(_) | None => {
            format!("#{}#", crate::core::hash::hex(bytes).to_ascii_uppercase())
        }
    }
}

/// Tells whether a token may have this byte in it.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || TOKEN_SPECIALS.contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A public key as `guix archive --generate-key` writes it.
    const KEY: &str = "(public-key \n (ecc \n  (curve Ed25519)\n  (q #00FF#)\n  )\n )\n";

    fn word(word: &str) -> Sexp {
        word.into()
    }

    #[test]
    fn a_key_is_printed_as_libgcrypt_prints_it() {
        let inner = Sexp::list([word("ecc"), Sexp::field("curve", b"Ed25519"), {
            Sexp::field("q", &[0, 0xff])
        }]);
        let key = Sexp::list([word("public-key"), inner]);
        assert_eq!(key.to_text(), KEY);
        assert_eq!(Sexp::parse(KEY.as_bytes()).unwrap(), key);
    }

    #[test]
    fn every_form_of_an_atom_is_read() {
        let text = b"( 3:a b token-1 \"q\\\"\\n\\\\\" #0 0f F# |AA E=| () ) \n\0";
        let Sexp::List(items) = Sexp::parse(text).unwrap() else { panic!("a list") };
        let atoms: Vec<_> = items.iter().filter_map(Sexp::atom).collect();
        let expected: [&[u8]; 5] = [b"a b", b"token-1", b"q\"\n\\", &[0, 0xff], &[0, 1]];
        assert_eq!(atoms, expected);
        assert_eq!(items.last(), Some(&Sexp::List(vec![])));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        use SexpError::{TooDeep, TooLong, Truncated};
        let deep = "(".repeat(SEXP_DEPTH_MAX + 1);
        let long = " ".repeat(SEXP_BYTES_MAX + 1);
        for (text, expected) in [
            ("", Some(Truncated)),
            ("(a", Some(Truncated)),
            ("(5:abc", Some(Truncated)),
            ("99999999999999999999999:a", None),
            ("18446744073709551615:a", Some(Truncated)),
            ("(\"a", Some(Truncated)),
            ("#00", Some(Truncated)),
            ("|AA", Some(Truncated)),
            (deep.as_str(), Some(TooDeep)),
            (long.as_str(), Some(TooLong)),
            (")", None),
            ("(a)b", None),
            ("#0#", None),
            ("#0g#", None),
            ("|A|", None),
            ("5a", None),
            ("\"\\q\"", None),
            ("([hint]a)", None),
            ("{KGEp}", None),
        ] {
            let error = Sexp::parse(text.as_bytes()).unwrap_err();
            match expected {
                Some(expected) => assert_eq!(error, expected, "{text:.40}"),
                None => assert!(matches!(error, SexpError::Unexpected { .. }), "{text}: {error}"),
            }
        }
    }

    #[test]
    fn fields_are_found_by_their_word_when_there_is_one() {
        let text = Sexp::parse(b"(key (a 1:x) (b (c)) (d 1:x) (d 1:y))").unwrap();
        let items = text.after("key").unwrap();
        assert_eq!(Sexp::value(items, "a"), Some(&b"x"[..]));
        assert_eq!(Sexp::value(items, "b"), None);
        assert!(Sexp::find(items, "b").is_some());
        assert_eq!(Sexp::value(items, "d"), None);
        assert_eq!(text.after("kez"), None);
    }

    #[test]
    fn debug_shows_no_atom() {
        let text = format!("{:?}", Sexp::parse(b"(secret (d #1234#))").unwrap());
        assert_eq!(text, "[[6], [[1], [2]]]");
    }

    fn expressions() -> impl Strategy<Value = Sexp> {
        let atom = prop_oneof![
            "[a-z-]{1,8}".prop_map(|word| word.as_str().into()),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(Sexp::Atom),
        ];
        atom.prop_recursive(5, 40, 5, |inner| {
            prop::collection::vec(inner, 0..5).prop_map(Sexp::List)
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(expression in expressions()) {
            prop_assert_eq!(Sexp::parse(expression.to_text().as_bytes()).unwrap(), expression);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            text in prop::collection::vec(
                prop_oneof![any::<u8>(), Just(b'('), Just(b')'), Just(b'#'), Just(b'1')], 0..60
            )
        ) {
            if let Ok(expression) = Sexp::parse(&text) {
                prop_assert_eq!(Sexp::parse(expression.to_text().as_bytes()).unwrap(), expression);
            }
        }
    }
}
