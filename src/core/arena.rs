//! A table of values addressed by small typed indices.
//!
//! A million builds and ten million edges refer to each other; four bytes per reference instead
//! of sixteen, and no hashing, is what keeps them in memory.

use std::{cmp::Ordering, fmt, marker::PhantomData};

/// The index of a `T` in its [`Arena`].
pub struct Ix<T>(u32, PhantomData<fn() -> T>);

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
        write!(f, "#{}", self.0)
    }
}

/// Values with stable indices; the index of a removed value is used again.
#[derive(Debug, Clone)]
pub struct Arena<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
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
        if let Some(place) = self.free.pop() {
            self.slots[place as usize] = Some(value);
            return Ix(place, PhantomData);
        }
        let place = u32::try_from(self.slots.len()).expect("an arena holds at most 2^32 values");
        self.slots.push(Some(value));
        Ix(place, PhantomData)
    }

    /// Takes a value out.
    ///
    /// # Panics
    /// When nothing is there: an index was kept longer than its value.
    pub fn remove(&mut self, ix: Ix<T>) -> T {
        let value = self.slots[ix.0 as usize].take().expect("an index outlives its value");
        self.free.push(ix.0);
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
        self.slots.get(ix.0 as usize).and_then(Option::as_ref)
    }

    /// Returns all indices and values, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (Ix<T>, &T)> {
        self.slots.iter().enumerate().filter_map(|(place, slot)| {
            let place = u32::try_from(place).ok()?;
            slot.as_ref().map(|value| (Ix(place, PhantomData), value))
        })
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
        self.slots[ix.0 as usize].as_ref().expect("an index outlives its value")
    }
}

impl<T> std::ops::IndexMut<Ix<T>> for Arena<T> {
    fn index_mut(&mut self, ix: Ix<T>) -> &mut T {
        self.slots[ix.0 as usize].as_mut().expect("an index outlives its value")
    }
}
