//! A table of values addressed by small typed indices.
//!
//! A million builds and ten million edges refer to each other; four bytes per reference instead
//! of sixteen, and no hashing, is what keeps them in memory.

use std::{cmp::Ordering, fmt, marker::PhantomData, num::NonZeroU32};

/// The index of a `T` in its [`Arena`]. An `Option` of it is as small as itself.
pub struct Ix<T>(NonZeroU32, PhantomData<fn() -> T>);

impl<T> Ix<T> {
    /// Returns the index of a place in the table.
    fn at(place: usize) -> Self {
        let number = u32::try_from(place).ok().and_then(|place| place.checked_add(1));
        let number = number.and_then(NonZeroU32::new);
        Self(number.expect("an arena holds less than 2^32 values"), PhantomData)
    }

    /// Returns the place in the table.
    const fn place(self) -> usize {
        (self.0.get() - 1) as usize
    }

    /// Returns the index as a number, for a [`super::table::Table`].
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// Returns the index that [`Ix::number`] gave.
    ///
    /// # Panics
    /// At 0, which is no index.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(NonZeroU32::new(number).expect("an index is never 0"), PhantomData)
    }
}

impl<T> Clone for Ix<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ix<T> {}
impl<T> PartialEq for Ix<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Ix<T> {}
impl<T> PartialOrd for Ix<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Ix<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> fmt::Debug for Ix<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.place())
    }
}

/// Values with stable indices; the index of a removed value is used again.
#[derive(Debug, Clone)]
pub struct Arena<T> {
    slots: Vec<Option<T>>,
    free: Vec<Ix<T>>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    /// Puts a value in and returns its index.
    ///
    /// # Panics
    /// At more than four thousand million values.
    pub fn insert(&mut self, value: T) -> Ix<T> {
        if let Some(ix) = self.free.pop() {
            self.slots[ix.place()] = Some(value);
            return ix;
        }
        let ix = Ix::at(self.slots.len());
        self.slots.push(Some(value));
        ix
    }

    /// Takes a value out.
    ///
    /// # Panics
    /// When nothing is there: an index was kept longer than its value.
    pub fn remove(&mut self, ix: Ix<T>) -> T {
        let value = self.slots[ix.place()].take().expect("an index outlives its value");
        self.free.push(ix);
        value
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Tells whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the value at an index, unless it was removed.
    #[must_use]
    pub fn get(&self, ix: Ix<T>) -> Option<&T> {
        self.slots.get(ix.place()).and_then(Option::as_ref)
    }

    /// Returns all indices and values, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (Ix<T>, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(place, slot)| slot.as_ref().map(|value| (Ix::at(place), value)))
    }

    /// Returns all values, in index order, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(Option::as_mut)
    }

    /// Returns all indices, in order.
    #[must_use]
    pub fn indices(&self) -> Vec<Ix<T>> {
        self.iter().map(|(ix, _)| ix).collect()
    }
}

impl<T> std::ops::Index<Ix<T>> for Arena<T> {
    type Output = T;

    fn index(&self, ix: Ix<T>) -> &T {
        self.slots[ix.place()].as_ref().expect("an index outlives its value")
    }
}

impl<T> std::ops::IndexMut<Ix<T>> for Arena<T> {
    fn index_mut(&mut self, ix: Ix<T>) -> &mut T {
        self.slots[ix.place()].as_mut().expect("an index outlives its value")
    }
}
