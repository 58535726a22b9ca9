//! What those share who receive small outputs: room in the database, and memory to verify with.

use crate::depot::{SmallNars, VerifyError};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many bytes of files may be in the database to be written out. When there are more, the disk
/// does not keep up, and files go to the depot before they are committed.
const UNWRITTEN_BYTES_MAX: u64 = 64 << 20;

/// Room for files in the database.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// Room for the files of one offer. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Unwritten(OwnedSemaphorePermit);

impl Room {
    /// Returns the room that is left when so many bytes are there from before.
    pub(super) fn new(occupied: u64) -> Self {
        let left = usize::try_from(UNWRITTEN_BYTES_MAX.saturating_sub(occupied)).unwrap_or(0);
        Self(Arc::new(Semaphore::new(left)))
    }

    /// Reserves room for so many bytes, if there is as much.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Unwritten> {
        let permits = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(permits).ok().map(Unwritten)
    }

    /// So many bytes were written out.
    pub(super) fn vacate(&self, bytes: u64) {
        self.0.add_permits(usize::try_from(bytes).unwrap_or(0));
    }
}

impl Unwritten {
    /// Gives back what is more than so many bytes.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let excess = self.0.num_permits().saturating_sub(usize::try_from(bytes).unwrap_or(0));
        drop(self.0.split(excess));
    }

    /// The files are in the database now: the room is taken until [`Room::vacate`].
    pub(super) fn occupy(self) {
        self.0.forget();
    }
}

/// Verifiers that nobody uses just now. Any is as good as another.
#[derive(Debug, Clone, Default)]
pub(super) struct Verifiers(Arc<Mutex<Vec<SmallNars>>>);

impl Verifiers {
    /// Returns one that is free, or a new one. There are never more than reads at a time.
    pub(super) fn take(&self) -> Result<SmallNars, VerifyError> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(SmallNars::new, Ok)
    }

    /// Lets others use it.
    pub(super) fn put_back(&self, verifier: SmallNars) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(verifier);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_until_files_are_written_out_and_no_longer() {
        let room = Room::new(UNWRITTEN_BYTES_MAX - 100);
        let mut first = room.reserve(70).unwrap();
        assert!(room.reserve(40).is_none());
        first.shrink(60);
        first.shrink(65);
        let second = room.reserve(40).unwrap();
        first.occupy();
        drop(second);
        assert!(room.reserve(41).is_none());
        room.vacate(60);
        drop(room.reserve(100).unwrap());
        assert!(room.reserve(101).is_none());
        assert!(room.reserve(u64::MAX).is_none());
        assert!(Room::new(u64::MAX).reserve(1).is_none());
    }
}
