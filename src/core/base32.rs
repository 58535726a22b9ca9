//! The base-32 text of store paths and hashes in Nix and Guix.
//!
//! Source: Nix `src/libutil/hash.cc` and Guix `guix/base32.scm`: the alphabet leaves out `e o u t`, and
//! digits run from the last five bits to the first. It lives in `core` because the text of a
//! store path needs it; the formats use it from here.

/// The 32 digits, in value order.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Returns the number of digits that `len` bytes take.
#[must_use]
pub const fn encoded_len(len: usize) -> usize {
    if len == 0 { 0 } else { (len * 8 - 1) / 5 + 1 }
}

/// Returns the base-32 text of `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(encoded_len(bytes.len()));
    encode_into(&mut text, bytes);
    text
}

/// Appends the base-32 text of `bytes`.
pub fn encode_into(text: &mut String, bytes: &[u8]) {
    let (groups, rest) = bytes.as_chunks::<5>();
    // Store paths have no rest: their 20 bytes are four groups of eight digits.
    let above = groups.len() * 8;
    let digits = (0..encoded_len(rest.len())).rev().map(|digit| digit_at(bytes, above + digit));
    text.extend(digits.map(char::from));
    for [a, b, c, d, e] in groups.iter().rev() {
        let bits = u64::from_le_bytes([*a, *b, *c, *d, *e, 0, 0, 0]);
        let digit = |place: u32| usize::from((bits >> (5 * place)).to_le_bytes()[0] & 0x1f);
        text.extend((0..8).rev().map(|place| char::from(ALPHABET[digit(place)])));
    }
}

/// Returns the character of the five bits that start at bit `5 * digit`.
fn digit_at(bytes: &[u8], digit: usize) -> u8 {
    let (byte, shift) = (digit * 5 / 8, digit * 5 % 8);
    let low = bytes.get(byte).copied().unwrap_or(0) >> shift;
    let high = if shift == 0 { 0 } else { bytes.get(byte + 1).map_or(0, |b| b << (8 - shift)) };
    ALPHABET[usize::from((low | high) & 0x1f)]
}

/// Decodes the base-32 text of exactly `N` bytes.
///
/// Returns `None` when the length is wrong, a character is not a digit, or bits beyond the last
/// byte are set.
#[must_use]
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != encoded_len(N) {
        return None;
    }
    let mut bytes = [0u8; N];
    if let (groups, []) = text.as_chunks::<8>()
        && N.is_multiple_of(5)
    {
        for (group, five) in groups.iter().rev().zip(bytes.chunks_exact_mut(5)) {
            let mut bits = 0u64;
            for character in group {
                bits = (bits << 5) | u64::from(value_of(*character)?);
            }
            five.copy_from_slice(&bits.to_le_bytes()[..5]);
        }
        return Some(bytes);
    }
    for (place, character) in text.iter().rev().enumerate() {
        let digit = value_of(*character)?;
        let (byte, shift) = (place * 5 / 8, place * 5 % 8);
        bytes[byte] |= digit << shift;
        let carry = if shift == 0 { 0 } else { digit >> (8 - shift) };
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= carry,
            None if carry != 0 => return None,
            None => {}
        }
    }
    Some(bytes)
}

/// What [`VALUES`] has for what is no digit.
const NO_DIGIT: u8 = 0xff;

/// The value of each character.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 32 {
        values[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// Returns the value of one digit.
const fn value_of(character: u8) -> Option<u8> {
    let value = VALUES[character as usize];
    if value == NO_DIGIT { None } else { Some(value) }
}

/// Tells whether `character` is one of the 32 digits.
#[must_use]
pub const fn is_digit(character: u8) -> bool {
    value_of(character).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_empty_file_has_the_text_that_nix_prints() {
        // `nix-hash --type sha256 --flat --base32 /dev/null`
        let empty = crate::core::hash::Sha256::of(b"");
        assert_eq!(
            encode(empty.as_bytes()),
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
        );
    }

    #[test]
    fn digits_and_values_agree() {
        for (value, character) in ALPHABET.iter().enumerate() {
            assert_eq!(value_of(*character).map(usize::from), Some(value));
        }
        assert!(ALPHABET.iter().all(|c| is_digit(*c)));
        assert!(b"eout-A".iter().all(|c| !is_digit(*c)));
    }

    #[test]
    fn bits_beyond_the_last_byte_are_refused() {
        let mut text = [b'0'; 52];
        text[0] = b'z';
        assert_eq!(decode::<32>(&text), None);
    }

    proptest! {
        #[test]
        fn every_hash_reads_back(bytes: [u8; 32]) {
            prop_assert_eq!(decode::<32>(encode(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn every_path_hash_reads_back(bytes: [u8; 20]) {
            prop_assert_eq!(decode::<20>(encode(&bytes).as_bytes()), Some(bytes));
        }
    }
}
