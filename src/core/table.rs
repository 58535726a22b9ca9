//! Finds the index of a value by its key, which is only kept where the index points.
//!
//! A map that keeps the keys as well takes 30 to 40 bytes per entry, this one 5 to 11. Keys are
//! hashes or ids, so that some of their bytes are as good as a hash of them.

/// A hash table of numbers. What it is asked with is the hash of a key; whose key it is, the caller
/// tells. Several numbers may have the same key.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// 0 where there is nothing. The length is a power of two, or 0.
    slots: Vec<u32>,
    len: usize,
}

impl Table {
    /// Returns the number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns all numbers that may have a key with this hash, and perhaps others: the caller
    /// compares the keys.
    pub fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> {
        let mut place = self.home(hash);
        std::iter::from_fn(move || {
            let number = *self.slots.get(place)?;
            place = self.next(place);
            Some(number).filter(|number| *number != 0)
        })
        .fuse()
    }

    /// Enters a number other than 0. `hash_of` returns the hash of the key of any number that is
    /// in the table, or enters it now.
    pub fn insert(&mut self, number: u32, hash_of: impl Fn(u32) -> u64) {
        debug_assert!(number != 0, "0 stands for nothing");
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            let grown = (self.slots.len() * 2).max(8);
            let old = std::mem::replace(&mut self.slots, vec![0; grown]);
            for number in old.into_iter().filter(|number| *number != 0) {
                self.place(number, hash_of(number));
            }
        }
        self.place(number, hash_of(number));
        self.len += 1;
    }

    /// Removes a number, if it is there. `hash_of` is as for [`Table::insert`].
    pub fn remove(&mut self, number: u32, hash_of: impl Fn(u32) -> u64) {
        let mut hole = self.home(hash_of(number));
        loop {
            match self.slots.get(hole) {
                None | Some(0) => return,
                Some(found) if *found == number => break,
                Some(_) => hole = self.next(hole),
            }
        }
        self.len -= 1;
        // Whatever was put behind the hole because its place was taken moves up.
        let mut place = self.next(hole);
        while self.slots[place] != 0 {
            let home = self.home(hash_of(self.slots[place]));
            let from_home = place.wrapping_sub(home) & (self.slots.len() - 1);
            let from_hole = place.wrapping_sub(hole) & (self.slots.len() - 1);
            if from_home >= from_hole {
                self.slots[hole] = self.slots[place];
                hole = place;
            }
            place = self.next(place);
        }
        self.slots[hole] = 0;
    }

    fn place(&mut self, number: u32, hash: u64) {
        let mut place = self.home(hash);
        while self.slots[place] != 0 {
            place = self.next(place);
        }
        self.slots[place] = number;
    }

    /// Returns where the search for a hash begins.
    fn home(&self, hash: u64) -> usize {
        // Fibonacci hashing: ids that count up must not lie side by side.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = self.slots.len().trailing_zeros();
        usize::try_from(mixed >> 32).unwrap_or(0) >> (32 - bits.min(32))
    }

    const fn next(&self, place: usize) -> usize {
        (place + 1) & (self.slots.len().wrapping_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Numbers whose keys often have the same hash are found as long as they are in it.
        #[test]
        fn what_is_in_it_is_found_and_nothing_else(
            acts in prop::collection::vec((any::<bool>(), 1u32..60), 0..300),
        ) {
            let hash_of = |number: u32| u64::from(number / 4);
            let mut table = Table::default();
            let mut set = BTreeSet::new();
            for (enters, number) in acts {
                if enters && set.insert(number) {
                    table.insert(number, hash_of);
                } else if !enters {
                    set.remove(&number);
                    table.remove(number, hash_of);
                }
                prop_assert_eq!(table.len(), set.len());
                for hash in 0..15 {
                    let found: BTreeSet<u32> =
                        table.candidates(hash).filter(|number| hash_of(*number) == hash).collect();
                    let there: BTreeSet<u32> =
                        set.iter().copied().filter(|number| hash_of(*number) == hash).collect();
                    prop_assert_eq!(found, there);
                }
            }
        }
    }
}
