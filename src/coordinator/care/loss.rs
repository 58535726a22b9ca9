//! How much of the depot is gone: a few files, or so much that something else must be wrong.

/// How many nars may lack their file before anybody asks about the depot as a whole.
const LOST_MAX: usize = 100;
/// Which part of all nars may: more than this number and every tenth, and it is the depot.
const LOST_SHARE: usize = 10;

/// How many nars lack their file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    /// How many nars are held.
    pub nars: usize,
    /// How many of them have no file, or a wrong one.
    pub lost: usize,
    /// Whether the depot has nothing at all, as where no disk is mounted.
    pub is_all_gone: bool,
}

impl Loss {
    /// Tells whether it is more likely that the depot is away for now, as with a disk that is not
    /// mounted, than that so many files were lost one by one.
    #[must_use]
    pub const fn is_of_the_whole_depot(&self) -> bool {
        let is_large = self.lost > LOST_MAX && self.lost > self.nars / LOST_SHARE;
        self.lost > 0 && (self.is_all_gone || is_large)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depot_is_away_when_it_is_empty_or_lacks_much() {
        let is = |nars, lost, is_all_gone| Loss { nars, lost, is_all_gone }.is_of_the_whole_depot();
        assert!(!is(0, 0, true), "a farm that holds nothing yet");
        assert!(!is(3, 0, true), "what is in the database needs no file");
        assert!(is(1, 1, true) && is(5_000, 5_000, true));
        assert!(!is(1, 1, false) && !is(100, 100, false), "few are just that");
        assert!(is(101, 101, false) && is(1_009, 101, false));
        assert!(!is(1_010, 101, false), "every tenth is still few");
        assert!(is(1_000_000, 100_001, false) && !is(1_000_000, 100_000, false));
    }
}
