//! Is it worth compressing a nar?
//!
//! What is compressed already (archives, images of disks, media) becomes no smaller, while whoever
//! makes it, verifies it and installs it hashes two files instead of one. Such things are single
//! files, mostly, and show at their beginning; trees have something to compress in them.

use super::nar::{NarError, NarLimits, NarReader, NarSink, Regular};
use crate::core::compression::Compression;
use std::io;

/// How much of the beginning of a nar is looked at, in bytes. Shorter nars are always compressed.
pub const SAMPLE_BYTES: usize = 1 << 20;
/// How hard the sample is compressed: what the fastest level does not shrink, the usual one does
/// not either.
const LEVEL: i32 = 1;
/// What share of a sample compression must save to be worth it: a sixteenth.
const SAVED_SHARE: usize = 16;

/// Decides how a nar is compressed that begins like this.
///
/// # Errors
/// When there is no memory.
pub fn choose(begin: &[u8]) -> io::Result<Compression> {
    let Some(sample) = begin.get(..SAMPLE_BYTES) else { return Ok(Compression::Zstd) };
    if !is_single_file(sample) {
        return Ok(Compression::Zstd);
    }
    let compressed = zstd::bulk::compress(sample, LEVEL)?.len();
    let worth = SAMPLE_BYTES.saturating_sub(SAMPLE_BYTES / SAVED_SHARE);
    Ok(if compressed > worth { Compression::None } else { Compression::Zstd })
}

/// Tells whether a nar that is longer than this begins with the file that is all of it.
fn is_single_file(begin: &[u8]) -> bool {
    #[derive(Default)]
    struct First(bool);
    impl NarSink for First {
        fn regular(&mut self, _head: Regular) -> Result<(), NarError> {
            self.0 = true;
            Ok(())
        }
    }
    let mut first = First::default();
    // With no depth allowed, nothing but a file or a link is read.
    let limits = NarLimits { bytes_max: u64::MAX, entries_max: 0, depth_max: 0 };
    NarReader::new(limits).feed(begin, &mut first).is_ok() && first.0
}

#[cfg(test)]
mod tests {
    use super::super::nar::sample::Tree;
    use super::*;
    use std::collections::BTreeMap;

    fn noise(bytes: usize) -> Vec<u8> {
        let word = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let mixed = |n| word(n).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes();
        (0u64..).flat_map(mixed).take(bytes).collect()
    }

    fn file(content: Vec<u8>) -> Tree {
        Tree::Regular { executable: false, content }
    }

    #[test]
    fn only_long_single_files_that_cannot_be_compressed_are_left_as_they_are() {
        let long = 2 * SAMPLE_BYTES;
        assert_eq!(choose(&file(noise(long)).nar()).unwrap(), Compression::None);
        let executable = Tree::Regular { executable: true, content: noise(long) };
        assert_eq!(choose(&executable.nar()).unwrap(), Compression::None);
        assert_eq!(choose(&file(noise(SAMPLE_BYTES / 2)).nar()).unwrap(), Compression::Zstd);
        assert_eq!(choose(&file(vec![7; long]).nar()).unwrap(), Compression::Zstd);
        let mut half = noise(long);
        half.chunks_mut(4096).step_by(2).for_each(|piece| piece.fill(7));
        assert_eq!(choose(&file(half).nar()).unwrap(), Compression::Zstd);
        let tree = BTreeMap::from([(b"a".to_vec(), file(noise(long)))]);
        assert_eq!(choose(&Tree::Directory(tree).nar()).unwrap(), Compression::Zstd);
        assert_eq!(choose(&noise(long)).unwrap(), Compression::Zstd);
    }
}
