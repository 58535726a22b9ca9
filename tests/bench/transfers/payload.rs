//! What is transferred: files of any size that cannot be compressed, or by half.

use std::{
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

/// How much of a file is of one kind.
const PIECE_BYTES: usize = 4_096;

/// What a file is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As if it were compressed already.
    Random,
    /// Every second piece repeats itself.
    HalfCompressible,
}

impl Kind {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Random => "incompressible",
            Self::HalfCompressible => "half compressible",
        }
    }
}

/// Writes a file and returns its path.
pub(crate) fn write(dir: &Path, kind: Kind, bytes: u64) -> PathBuf {
    let path = dir.join(format!("payload-{}", kind.word().replace(' ', "-")));
    let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(&path).unwrap());
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut left = bytes;
    let mut is_random = true;
    while left > 0 {
        let length = left.min(PIECE_BYTES as u64);
        let mut piece = vec![b'a'; PIECE_BYTES];
        if is_random || kind == Kind::Random {
            piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&chance.next()));
        }
        file.write_all(&piece[..usize::try_from(length).unwrap()]).unwrap();
        is_random = !is_random;
        left -= length;
    }
    file.flush().unwrap();
    path
}

/// Numbers that no compressor sees through (xorshift64*).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> [u8; 8] {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    }
}
