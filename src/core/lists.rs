//! Many short lists in one piece of memory.
//!
//! A `Vec` takes 24 bytes before it holds anything and then up to twice what it holds, each piece
//! with an overhead of the allocator. With ten inputs and ten dependents per derivation that is
//! more than the edges themselves. Here a list takes 8 bytes and at most a quarter more than what
//! it holds: its room follows from its length, in four steps per doubling.

use std::marker::PhantomData;

/// A list of `T` in some [`Lists`], which has to be given to everything that is done with it.
///
/// Whoever owns it must give it back with [`Lists::drop_list`], or its room is lost.
#[derive(Debug)]
pub struct List<T> {
    start: u32,
    len: u32,
    values: PhantomData<fn() -> T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { start: 0, len: 0, values: PhantomData }
    }
}

/// The copy belongs to a copy of the [`Lists`].
impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        Self { start: self.start, len: self.len, values: PhantomData }
    }
}

impl<T> List<T> {
    /// Returns how many values are in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Tells whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns where its values are, for [`Lists::at`].
    #[must_use]
    pub const fn places(&self) -> std::ops::Range<u32> {
        self.start..self.start.saturating_add(self.len)
    }
}

/// The memory of lists.
#[derive(Debug, Clone)]
pub struct Lists<T> {
    pool: Vec<T>,
    /// Unused pieces by size class.
    free: Vec<Vec<u32>>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self { pool: Vec::new(), free: Vec::new() }
    }
}

impl<T: Copy> Lists<T> {
    /// Returns what is in a list.
    #[must_use]
    pub fn get(&self, list: &List<T>) -> &[T] {
        let start = list.start as usize;
        &self.pool[start..start + list.len()]
    }

    /// Returns what is in a list, to be changed.
    pub fn get_mut(&mut self, list: &List<T>) -> &mut [T] {
        let start = list.start as usize;
        &mut self.pool[start..start + list.len()]
    }

    /// Returns the value at one of the [`List::places`] of a list.
    #[must_use]
    pub fn at(&self, place: u32) -> T {
        self.pool[place as usize]
    }

    /// Returns the value at one of the [`List::places`] of a list, to be changed.
    pub fn at_mut(&mut self, place: u32) -> &mut T {
        &mut self.pool[place as usize]
    }

    /// Makes a list.
    pub fn list_of(&mut self, values: &[T]) -> List<T> {
        let Some(first) = values.first() else { return List::default() };
        let start = self.take(Room::of(values.len()), *first);
        self.pool[start as usize..start as usize + values.len()].copy_from_slice(values);
        List { start, len: length(values.len()), values: PhantomData }
    }

    /// Adds a value at the end.
    pub fn push(&mut self, list: &mut List<T>, value: T) {
        let (before, after) = (Room::of(list.len()), Room::of(list.len() + 1));
        if before.class != after.class || list.is_empty() {
            self.relocate(list, list.len(), after, value);
        }
        list.len += 1;
        let end = list.start as usize + list.len();
        self.pool[end - 1] = value;
    }

    /// Takes the value at a place of the list out; the last one takes its place.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn swap_remove(&mut self, list: &mut List<T>, place: usize) {
        let values = self.get_mut(list);
        let left = values.len() - 1;
        let moved = values[left];
        values[place] = moved;
        let (before, after) = (Room::of(list.len()), Room::of(left));
        if left == 0 {
            self.drop_list(list);
        } else if before.class == after.class {
            list.len -= 1;
        } else {
            self.relocate(list, left, after, moved);
            list.len -= 1;
        }
    }

    /// Empties a list and gives its room back.
    pub fn drop_list(&mut self, list: &mut List<T>) {
        if !list.is_empty() {
            self.give_back(list.start, Room::of(list.len()));
        }
        *list = List::default();
    }

    /// Moves the first values of a list into another room; the length is the caller's matter.
    fn relocate(&mut self, list: &mut List<T>, kept: usize, room: Room, filling: T) {
        let start = self.take(room, filling);
        let old = list.start as usize;
        self.pool.copy_within(old..old + kept, start as usize);
        if !list.is_empty() {
            self.give_back(list.start, Room::of(list.len()));
        }
        list.start = start;
    }

    fn take(&mut self, room: Room, filling: T) -> u32 {
        if let Some(start) = self.free.get_mut(room.class).and_then(Vec::pop) {
            return start;
        }
        let start = length(self.pool.len());
        self.pool.resize(self.pool.len() + room.places, filling);
        start
    }

    fn give_back(&mut self, start: u32, room: Room) {
        if self.free.len() <= room.class {
            self.free.resize(room.class + 1, Vec::new());
        }
        self.free[room.class].push(start);
    }
}

/// How much room a list of some length has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    class: usize,
    places: usize,
}

impl Room {
    /// 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …
    const fn of(len: usize) -> Self {
        if len <= 4 {
            return Self { class: len.saturating_sub(1), places: len };
        }
        let highest = len - 1;
        let octave = highest.ilog2() as usize;
        let step = (highest - (1 << octave)) >> (octave - 2);
        let places = (1 << octave) + ((step + 1) << (octave - 2));
        Self { class: 4 + (octave - 2) * 4 + step, places }
    }
}

fn length(number: usize) -> u32 {
    u32::try_from(number).expect("all lists together hold less than 2^32 values")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_wastes_at_most_a_quarter_of_what_it_holds() {
        let mut last = 0;
        for len in 1..5_000 {
            let room = Room::of(len);
            assert!(room.places >= len && room.places * 4 <= len * 5 + 4, "{len}: {room:?}");
            assert!(room.class == last || room.class == last + 1, "{len}: {room:?}");
            last = room.class;
        }
    }

    proptest! {
        /// Lists that share the memory hold what vectors hold that do not.
        #[test]
        fn lists_do_not_touch_each_other(
            acts in prop::collection::vec((0usize..5, 0u8..4, any::<u16>()), 0..400),
        ) {
            let mut lists = Lists::<u16>::default();
            let mut ours: Vec<List<u16>> = (0..5).map(|_| List::default()).collect();
            let mut theirs = vec![Vec::new(); 5];
            for (which, act, value) in acts {
                match act {
                    0 if !theirs[which].is_empty() => {
                        let place = usize::from(value) % theirs[which].len();
                        lists.swap_remove(&mut ours[which], place);
                        theirs[which].swap_remove(place);
                    }
                    1 if value % 8 == 0 => {
                        lists.drop_list(&mut ours[which]);
                        theirs[which].clear();
                        theirs[which].extend(0..value % 50);
                        ours[which] = lists.list_of(&theirs[which]);
                    }
                    _ => {
                        lists.push(&mut ours[which], value);
                        theirs[which].push(value);
                    }
                }
                for (list, values) in ours.iter().zip(&theirs) {
                    prop_assert_eq!(lists.get(list), values.as_slice());
                }
            }
        }
    }
}
