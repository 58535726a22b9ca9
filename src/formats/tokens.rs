//! The numbers and strings that nars and export streams are made of, from bytes in any split.
//!
//! A number is 8 bytes, little endian. A string is its length as a number, its bytes, and zero
//! bytes up to the next multiple of 8. Source: Nix `src/libutil/serialise.cc`.

/// Bytes of a number, and what strings are padded to a multiple of.
pub(super) const WORD_BYTES: usize = 8;

/// Takes numbers and short strings off a stream.
///
/// A token that lies whole in one piece of input is borrowed from there; only one that crosses
/// pieces is put together here, so no more is held than the longest string allowed.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// The beginning of a token whose end has not come, or the last token when `spent`.
    held: Vec<u8>,
    spent: bool,
}

/// What was taken off the input: a whole token, or the beginning of one.
pub(super) struct Taken<T> {
    /// How many bytes of the input are done with.
    pub(super) consumed: usize,
    /// The token, when its last byte has come.
    pub(super) token: Option<T>,
}

/// Why a string is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadToken {
    /// Its length, in bytes, is over the limit.
    Long(u64),
    /// A padding byte is not zero.
    Padding,
}

impl Tokens {
    /// Takes a number.
    pub(super) fn number(&mut self, input: &[u8]) -> Taken<u64> {
        self.forget_spent();
        if let ([], Some(word)) = (self.held.as_slice(), input.first_chunk()) {
            return Taken { consumed: WORD_BYTES, token: Some(u64::from_le_bytes(*word)) };
        }
        let consumed = self.top_up(input, WORD_BYTES);
        let token = self.held.first_chunk().map(|word| u64::from_le_bytes(*word));
        self.spent = token.is_some();
        Taken { consumed, token }
    }

    /// Takes a string of at most `bytes_max` bytes.
    pub(super) fn string<'a>(
        &'a mut self,
        input: &'a [u8],
        bytes_max: usize,
    ) -> Result<Taken<&'a [u8]>, BadToken> {
        self.forget_spent();
        if let ([], Some((word, tail))) = (self.held.as_slice(), input.split_first_chunk()) {
            let length = length(*word, bytes_max)?;
            if let Some(padded) = tail.get(..padded(length)) {
                let consumed = WORD_BYTES.saturating_add(padded.len());
                return Ok(Taken { consumed, token: Some(unpad(padded, length)?) });
            }
        }
        let head = self.top_up(input, WORD_BYTES);
        let Some(word) = self.held.first_chunk() else {
            return Ok(Taken { consumed: head, token: None });
        };
        let length = length(*word, bytes_max)?;
        let whole = WORD_BYTES.saturating_add(padded(length));
        let body = self.top_up(input.get(head..).unwrap_or_default(), whole);
        let consumed = head.saturating_add(body);
        if self.held.len() < whole {
            return Ok(Taken { consumed, token: None });
        }
        self.spent = true;
        let padded = self.held.get(WORD_BYTES..).unwrap_or_default();
        Ok(Taken { consumed, token: Some(unpad(padded, length)?) })
    }

    /// Tells whether no token has begun.
    pub(super) const fn is_idle(&self) -> bool {
        self.held.is_empty() || self.spent
    }

    /// Forgets the token that was handed out by the call before.
    fn forget_spent(&mut self) {
        if self.spent {
            self.held.clear();
            self.spent = false;
        }
    }

    /// Adds bytes until `len` are held or the input ends; returns how many it took.
    fn top_up(&mut self, input: &[u8], len: usize) -> usize {
        let taken = len.saturating_sub(self.held.len()).min(input.len());
        self.held.extend_from_slice(input.get(..taken).unwrap_or_default());
        taken
    }
}

/// Returns the length that a string declares, when it is within the limit.
fn length(word: [u8; WORD_BYTES], bytes_max: usize) -> Result<usize, BadToken> {
    let declared = u64::from_le_bytes(word);
    match usize::try_from(declared) {
        Ok(length) if length <= bytes_max => Ok(length),
        _ => Err(BadToken::Long(declared)),
    }
}

/// Returns a length rounded up to whole words.
const fn padded(length: usize) -> usize {
    length.next_multiple_of(WORD_BYTES)
}

/// Returns the first `length` bytes, if only zeros follow.
fn unpad(padded: &[u8], length: usize) -> Result<&[u8], BadToken> {
    match padded.split_at_checked(length) {
        Some((bytes, padding)) if padding.iter().all(|b| *b == 0) => Ok(bytes),
        _ => Err(BadToken::Padding),
    }
}

/// Returns how many zero bytes follow a string of `length` bytes.
pub(super) fn padding_len(length: u64) -> usize {
    let over = usize::try_from(length % 8).unwrap_or_default();
    WORD_BYTES.saturating_sub(over) % WORD_BYTES
}

/// Returns the zero bytes that follow a string of `length` bytes.
pub(super) fn padding(length: u64) -> &'static [u8] {
    const ZEROS: &[u8] = &[0; WORD_BYTES];
    ZEROS.get(..padding_len(length)).unwrap_or_default()
}

/// Returns `n` as the type of lengths on the wire; no machine has longer slices.
pub(super) fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Appends a string: length, bytes, padding.
pub(super) fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend_from_slice(&wide(string.len()).to_le_bytes());
    out.extend_from_slice(string);
    out.extend_from_slice(padding(wide(string.len())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_string_comes_out_however_it_is_split(
            text in prop::collection::vec(any::<u8>(), 0..40), piece in 1..60usize
        ) {
            let mut wire = Vec::new();
            put_string(&mut wire, &text);
            put_string(&mut wire, b"next");
            let mut tokens = Tokens::default();
            let mut strings = Vec::new();
            for chunk in wire.chunks(piece) {
                let mut rest = chunk;
                while !rest.is_empty() {
                    let taken = tokens.string(rest, 40).unwrap();
                    strings.extend(taken.token.map(<[u8]>::to_vec));
                    rest = &rest[taken.consumed..];
                }
            }
            prop_assert_eq!(strings, vec![text, b"next".to_vec()]);
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut tokens = Tokens::default();
        let wire = (1u64 << 46).to_le_bytes();
        assert_eq!(tokens.string(&wire, 255).err(), Some(BadToken::Long(1 << 46)));
        assert_eq!(tokens.held.capacity(), 0);
    }
}
