//! Finds the index of a value by its key, which is only kept where the index points.
//!
//! A map that keeps the keys as well takes 30 to 40 bytes per entry, this one 6 to 12. Keys are
//! hashes or ids, so that some of their bytes are as good as a hash of them.

/// The mark of a slot that was never used, at which every search ends.
const EMPTY: u8 = 0;
/// The mark of a slot whose number was removed.
const GONE: u8 = 1;

/// A hash table of numbers. What it is asked with is the hash of a key; whose key it is, the caller
/// tells. Several numbers may have the same key.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The length is a power of two, or 0.
    slots: Vec<u32>,
    /// For each slot eight bits of the hash, so that hardly a key is looked at in vain: most of
    /// the memory that a search touches is this.
    marks: Vec<u8>,
    len: usize,
    /// How many slots are marked as [`GONE`].
    gone: usize,
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
        self.places(hash).map(|place| self.slots[place])
    }

    /// Enters a number. `hash_of` returns the hash of the key of any number that is in the table,
    /// or enters it now.
    pub fn insert(&mut self, number: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.len + self.gone + 1) * 8 > self.marks.len() * 7 {
            let is_full = self.len * 2 >= self.marks.len();
            let grown = (self.marks.len() << usize::from(is_full)).max(8);
            let marks = std::mem::replace(&mut self.marks, vec![EMPTY; grown]);
            let slots = std::mem::replace(&mut self.slots, vec![0; grown]);
            self.gone = 0;
            for (mark, number) in marks.into_iter().zip(slots) {
                if mark > GONE {
                    self.place(number, hash_of(number));
                }
            }
        }
        self.place(number, hash_of(number));
        self.len += 1;
    }

    /// Removes a number, if it is there. `hash_of` returns the hash of its key.
    pub fn remove(&mut self, number: u32, hash_of: impl Fn(u32) -> u64) {
        let found = self.places(hash_of(number)).find(|place| self.slots[*place] == number);
        let Some(place) = found else { return };
        self.len -= 1;
        if self.marks[self.next(place)] == EMPTY {
            self.marks[place] = EMPTY;
        } else {
            self.marks[place] = GONE;
            self.gone += 1;
        }
    }

    /// Returns the slots in which a number with this hash may be.
    fn places(&self, hash: u64) -> impl Iterator<Item = usize> {
        let (mut next, sought) = self.home(hash);
        std::iter::from_fn(move || {
            loop {
                let (place, mark) = (next, *self.marks.get(next)?);
                next = self.next(place);
                match mark {
                    EMPTY => return None,
                    mark if mark == sought => return Some(place),
                    _ => {}
                }
            }
        })
        .fuse()
    }

    fn place(&mut self, number: u32, hash: u64) {
        let (mut place, mark) = self.home(hash);
        while self.marks[place] > GONE {
            place = self.next(place);
        }
        self.gone -= usize::from(self.marks[place] == GONE);
        self.marks[place] = mark;
        self.slots[place] = number;
    }

    /// Returns where the search for a hash begins, and the mark of its slot.
    fn home(&self, hash: u64) -> (usize, u8) {
        // Fibonacci hashing: ids that count up must not lie side by side.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let [mark, .., a, b, c, d] = mixed.to_le_bytes();
        let bits = self.marks.len().trailing_zeros();
        let place = u32::from_le_bytes([a, b, c, d]).checked_shr(32 - bits.min(32)).unwrap_or(0);
        (place as usize, mark.max(GONE + 1))
    }

    const fn next(&self, place: usize) -> usize {
        (place + 1) & (self.marks.len().wrapping_sub(1))
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
