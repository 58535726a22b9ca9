//! The search for references: which store paths does a nar mention?
//!
//! A store path is referred to by the 32 digits of its hash part, wherever they stand in the nar:
//! in a script, in an ELF header, across two files. Source: Nix `src/libstore/references.cc`.

use crate::core::{
    base32,
    store_path::{HASH_PART_LEN, PathHash},
};
use std::collections::BTreeSet;

/// How many bits of the first digits select a place in the sieve: three digits of five bits.
const SIEVE_BITS: u32 = 15;
/// 64-bit words of the sieve.
const SIEVE_WORDS: usize = 1 << (SIEVE_BITS - 6);

/// For every byte, whether it is a base-32 digit.
static DIGITS: [bool; 256] = digits();

/// Searches a stream for the hash parts of candidates.
///
/// Memory is 4 KiB and 56 bytes for each candidate, whatever the length of the stream. Most bytes
/// of a stream are never looked at: where the last of 32 bytes is no digit, all 32 are skipped.
#[derive(Debug)]
pub struct ReferenceScanner {
    /// The texts of the candidates' hash parts, sorted.
    candidates: Vec<Candidate>,
    /// Has the bit of every candidate's first digits; most texts end their search here.
    sieve: Vec<u64>,
    /// The last bytes of the pieces before, at most one less than a hash part.
    tail: Vec<u8>,
    /// The candidates that were found, by their places.
    found: Vec<usize>,
}

#[derive(Debug)]
struct Candidate {
    digits: [u8; HASH_PART_LEN],
    hash: PathHash,
    found: bool,
}

impl ReferenceScanner {
    /// Returns a scanner that looks for these hash parts.
    #[must_use]
    pub fn new(candidates: impl IntoIterator<Item = PathHash>) -> Self {
        let mut scanner = Self {
            candidates: Vec::new(),
            sieve: vec![0; SIEVE_WORDS],
            tail: Vec::with_capacity(2 * HASH_PART_LEN),
            found: Vec::new(),
        };
        for hash in candidates {
            // A hash part always has this length.
            if let Ok(digits) = hash.base32().as_bytes().try_into() {
                let (word, bit) = sieve_place(digits);
                if let Some(word) = scanner.sieve.get_mut(word) {
                    *word |= bit;
                }
                scanner.candidates.push(Candidate { digits: *digits, hash, found: false });
            }
        }
        scanner.candidates.sort_unstable_by_key(|candidate| candidate.digits);
        scanner.candidates.dedup_by_key(|candidate| candidate.digits);
        scanner
    }

    /// Searches the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.candidates.is_empty() {
            return;
        }
        // Texts that begin in earlier pieces, and at most end in this one.
        let mut tail = std::mem::take(&mut self.tail);
        let joint = tail.len();
        let reach = bytes.len().min(HASH_PART_LEN.saturating_sub(1));
        tail.extend_from_slice(bytes.get(..reach).unwrap_or_default());
        if joint > 0 {
            self.scan(&tail);
        }
        self.scan(bytes);

        let kept = HASH_PART_LEN.saturating_sub(1);
        if bytes.len() >= kept {
            tail.clear();
            tail.extend_from_slice(
                bytes.get(bytes.len().saturating_sub(kept)..).unwrap_or_default(),
            );
        } else {
            tail.drain(..tail.len().saturating_sub(kept));
        }
        self.tail = tail;
    }

    /// Returns the candidates that were found, and begins anew with another stream.
    #[must_use]
    pub fn take_found(&mut self) -> BTreeSet<PathHash> {
        self.tail.clear();
        let Self { candidates, found, .. } = self;
        let mut hashes = BTreeSet::new();
        for place in found.drain(..) {
            if let Some(candidate) = candidates.get_mut(place) {
                candidate.found = false;
                hashes.insert(candidate.hash);
            }
        }
        hashes
    }

    /// Searches one piece for texts that lie whole within it.
    fn scan(&mut self, mut bytes: &[u8]) {
        // The first `known` bytes are known to be digits.
        let mut known = 0usize;
        while let Some(window) = bytes.first_chunk::<HASH_PART_LEN>() {
            let unknown = window.get(known..).unwrap_or_default();
            let obstacle = unknown.iter().rposition(|b| !is_digit(*b));
            let step = if let Some(place) = obstacle {
                let step = known.saturating_add(place).saturating_add(1);
                known = HASH_PART_LEN.saturating_sub(step);
                step
            } else {
                self.look_up(window);
                known = HASH_PART_LEN.saturating_sub(1);
                1
            };
            bytes = bytes.get(step..).unwrap_or_default();
        }
    }

    /// Notes that 32 digits were seen.
    fn look_up(&mut self, digits: &[u8; HASH_PART_LEN]) {
        let (word, bit) = sieve_place(digits);
        if self.sieve.get(word).is_none_or(|word| word & bit == 0) {
            return;
        }
        if let Ok(place) = self.candidates.binary_search_by_key(digits, |c| c.digits)
            && let Some(candidate) = self.candidates.get_mut(place).filter(|c| !c.found)
        {
            candidate.found = true;
            self.found.push(place);
        }
    }
}

/// Tells whether a byte is a base-32 digit.
fn is_digit(byte: u8) -> bool {
    DIGITS.get(usize::from(byte)).copied().unwrap_or(false)
}

/// Returns the word and bit of the sieve that the first digits of a text select.
fn sieve_place(digits: &[u8; HASH_PART_LEN]) -> (usize, u64) {
    // Digits differ in the low five bits of their characters, but for a few; enough to sift.
    let [first, second, third, ..] = *digits;
    let [first, second, third] = [first, second, third].map(|digit| usize::from(digit & 0x1f));
    (first << 4 | second >> 1, 1 << ((second & 1) << 5 | third))
}

/// Makes the table of digits.
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "runs when this is compiled, where being out of range is an error of the build"
)]
const fn digits() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = base32::is_digit(byte as u8);
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(byte: u8) -> PathHash {
        PathHash::from_bytes([byte; 20])
    }

    /// Searches as plainly as possible.
    fn plain_search(text: &[u8], candidates: &[PathHash]) -> BTreeSet<PathHash> {
        let holds = |c: &&PathHash| text.windows(32).any(|w| w == c.base32().as_bytes());
        candidates.iter().filter(holds).copied().collect()
    }

    fn search(text: &[u8], candidates: &[PathHash], piece: usize) -> BTreeSet<PathHash> {
        let mut scanner = ReferenceScanner::new(candidates.iter().copied());
        text.chunks(piece).for_each(|chunk| scanner.feed(chunk));
        scanner.take_found()
    }

    #[test]
    fn a_hash_part_is_found_whatever_stands_around_it() {
        let wanted = PathHash::parse(b"0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy").unwrap();
        let candidates = [hash(3), wanted];
        for text in [
            "0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy",
            "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello/bin",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0c96x2i7vy7wb2jd0jlp1vlp1jvxijzyaaaa",
            "e0c96x2i7vy7wb2jd0jlp1vlp1jvxijzye",
        ] {
            for piece in 1..=text.len() {
                let found = search(text.as_bytes(), &candidates, piece);
                assert_eq!(found, BTreeSet::from([wanted]), "{text} in pieces of {piece}");
            }
        }
        assert!(search(b"0c96x2i7vy7wb2jd0jlp1vlp1jvxijz", &candidates, 5).is_empty());
        assert!(search(b"0c96x2i7vy7wb2jd0jlp1vlp1jvxijze", &candidates, 5).is_empty());
    }

    #[test]
    fn without_candidates_nothing_is_found() {
        assert!(search(&[b'0'; 100], &[], 10).is_empty());
    }

    #[test]
    fn nothing_of_a_stream_is_left_for_the_next_one() {
        let digits = hash(3).base32();
        let (begin, end) = digits.split_at(20);
        let mut scanner = ReferenceScanner::new([hash(3), hash(4)]);
        scanner.feed(digits.as_bytes());
        scanner.feed(digits.as_bytes());
        scanner.feed(begin.as_bytes());
        assert_eq!(scanner.take_found(), BTreeSet::from([hash(3)]));
        scanner.feed(end.as_bytes());
        scanner.feed(hash(4).base32().as_bytes());
        assert_eq!(scanner.take_found(), BTreeSet::from([hash(4)]));
    }

    proptest! {
        #[test]
        fn it_finds_what_a_plain_search_finds(
            parts in prop::collection::vec(prop_oneof![
                (0..6u8).prop_map(|byte| hash(byte).base32()),
                "[0-9a-df-np-sv-z]{0,40}",
                "[ -~]{0,40}",
            ], 0..12),
            piece in 1..100usize,
        ) {
            let text = parts.concat();
            let candidates: Vec<_> = (0..6).map(hash).collect();
            prop_assert_eq!(
                search(text.as_bytes(), &candidates, piece),
                plain_search(text.as_bytes(), &candidates)
            );
        }
    }
}
