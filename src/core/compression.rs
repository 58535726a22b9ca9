//! How the file of a nar is compressed.

use super::hash::Sha256;

/// How the file of a nar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// One frame of zstd, with a window of at most 128 MiB.
    Zstd,
    /// Not at all: the file is the nar. For what is compressed already.
    None,
}

impl Compression {
    /// Returns the word of messages and narinfos.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::None => "none",
        }
    }

    /// Reads that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Zstd, Self::None].into_iter().find(|compression| compression.word() == word)
    }

    /// Returns how a file is compressed of which these are the hashes of the nar and of the file
    /// itself. A file is the nar when it has the same hash, and it cannot be a frame as well: nars
    /// do not begin like frames.
    #[must_use]
    pub fn of(nar_hash: &Sha256, file_hash: &Sha256) -> Self {
        if nar_hash == file_hash { Self::None } else { Self::Zstd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back_and_others_are_none_of_them() {
        for compression in [Compression::Zstd, Compression::None] {
            assert_eq!(Compression::parse(compression.word()), Some(compression));
        }
        for other in ["", "xz", "Zstd", "gzip", "bzip2"] {
            assert_eq!(Compression::parse(other), None);
        }
    }

    #[test]
    fn equal_hashes_mean_that_the_file_is_the_nar() {
        let (nar, file) = (Sha256::of(b"nar"), Sha256::of(b"file"));
        assert_eq!(Compression::of(&nar, &file), Compression::Zstd);
        assert_eq!(Compression::of(&nar, &nar), Compression::None);
    }
}
