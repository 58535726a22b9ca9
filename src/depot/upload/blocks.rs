//! The greater part of a long file: whole blocks, which go to the disk around the page cache.
//!
//! Through the cache every byte is copied once more into memory that has to be found first, and the
//! disk gets it later in bursts, which hold up everybody who syncs meanwhile: a log, the database.
//! Directly, 512 MiB took 0.45 s on a disk where writing and syncing them took 0.6 to 1.9 s. The
//! thread that brings the bytes fills one block while another thread writes those before it.

use super::spooled::Mark;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
};

/// How long a block is, and where it may begin in the file, in bytes. Disks want multiples of 512
/// or 4,096; with longer blocks than this the disk was not faster.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// What the address of a block's memory must be a multiple of, for any disk.
const ALIGNMENT: usize = 4_096;
/// How many blocks there are: one is filled, one is written, the others wait.
const BLOCKS_MAX: usize = 4;
/// How many orders and how many answers may wait: all blocks, a mark, and why it all ended.
const WAITING_MAX: usize = BLOCKS_MAX + 2;

/// The memory of a block.
struct Block {
    memory: Vec<u8>,
    /// Where in it the block begins.
    begin: usize,
    filled: usize,
}

impl Block {
    fn new() -> Self {
        let memory = vec![0; BLOCK_BYTES + ALIGNMENT];
        let begin = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, begin, filled: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.filled]
    }

    /// Takes as much as there is room for, and returns how much that was.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(BLOCK_BYTES - self.filled);
        let at = self.begin + self.filled;
        self.memory[at..at + len].copy_from_slice(&bytes[..len]);
        self.filled += len;
        len
    }
}

/// What the thread is to do, in this order.
enum Order {
    /// Write a block to this place of the file.
    Write(Block, u64),
    /// Make what was written durable, and note it.
    Mark(Mark),
}

/// What the thread has done.
enum Done {
    /// Written a block, which can be filled again.
    Written(Block),
    Marked(Mark),
}

/// Writes a file from a place on that is a multiple of [`BLOCK_BYTES`]. The thread ends with this.
pub(super) struct Blocks {
    orders: SyncSender<Order>,
    done: Receiver<io::Result<Done>>,
    thread: JoinHandle<()>,
    /// The one that is filled.
    block: Block,
    /// Those that nobody has.
    spare: Vec<Block>,
    /// Where the one that is filled will be in the file.
    offset: u64,
    /// Whether a mark was ordered that is not made yet.
    is_marking: bool,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Blocks {
    /// Starts the thread. It calls `note` when all bytes before a mark are durable.
    ///
    /// # Errors
    /// When the file cannot be opened, or the system has no thread left.
    pub(super) fn start(
        path: &Path,
        offset: u64,
        note: impl Fn(&Mark) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let file = open(path)?;
        let (orders, ordered) = mpsc::sync_channel(WAITING_MAX);
        let (answers, done) = mpsc::sync_channel(WAITING_MAX);
        let run = move || {
            for order in ordered {
                let answer = obey(&file, order, &note);
                let failed = answer.is_err();
                // Nobody listens any more when all of it was given up.
                if answers.send(answer).is_err() || failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("blocks".to_owned()).spawn(run)?;
        let spare = (1..BLOCKS_MAX).map(|_| Block::new()).collect();
        let block = Block::new();
        Ok(Self { orders, done, thread, block, spare, offset, is_marking: false })
    }

    /// Takes as much as the block has room for, and returns how much that was. A full one must be
    /// handed over before more is taken.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        self.block.fill(bytes)
    }

    /// Tells whether the block is full.
    pub(super) const fn is_full(&self) -> bool {
        self.block.filled == BLOCK_BYTES
    }

    /// Has the full block written. Waits for another one when all wait for the disk.
    ///
    /// # Errors
    /// When the disk failed.
    pub(super) fn hand_over(&mut self) -> io::Result<Option<Mark>> {
        let mut last = self.look()?;
        let next = loop {
            match self.spare.pop() {
                Some(block) => break block,
                None => last = self.wait()?.or(last),
            }
        };
        let full = std::mem::replace(&mut self.block, next);
        self.order(Order::Write(full, self.offset))?;
        self.offset += BLOCK_BYTES as u64;
        Ok(last)
    }

    /// Has what was handed over made durable and noted, unless that is being done.
    ///
    /// # Errors
    /// When the disk failed.
    pub(super) fn mark(&mut self, mark: Mark) -> io::Result<bool> {
        if self.is_marking {
            return Ok(false);
        }
        self.is_marking = true;
        self.order(Order::Mark(mark))?;
        Ok(true)
    }

    /// Tells whether a mark is being made.
    pub(super) const fn is_marking(&self) -> bool {
        self.is_marking
    }

    /// Waits for the thread to do something, and returns the mark if it was one.
    ///
    /// # Errors
    /// When the disk failed.
    pub(super) fn wait(&mut self) -> io::Result<Option<Mark>> {
        let done = self.done.recv().unwrap_or_else(|_| Err(died()))?;
        Ok(self.note(done))
    }

    /// Waits until all of it is written. Returns the last mark, and what the last block has, which
    /// is not written.
    ///
    /// # Errors
    /// When the disk failed.
    pub(super) fn finish(mut self) -> (io::Result<Option<Mark>>, Vec<u8>) {
        let (none, _) = mpsc::sync_channel(1);
        drop(std::mem::replace(&mut self.orders, none));
        let mut last = Ok(None);
        while let Ok(done) = self.done.recv() {
            last = match done {
                Ok(done) => last.map(|last| self.note(done).or(last)),
                Err(error) => Err(error),
            };
        }
        if self.thread.join().is_err() {
            last = Err(died());
        }
        let rest = self.block.bytes().to_vec();
        (last, rest)
    }

    /// Takes notice of what was done, without waiting.
    fn look(&mut self) -> io::Result<Option<Mark>> {
        let mut last = None;
        while let Ok(done) = self.done.try_recv() {
            last = self.note(done?).or(last);
        }
        Ok(last)
    }

    fn note(&mut self, done: Done) -> Option<Mark> {
        match done {
            Done::Written(mut block) => {
                block.filled = 0;
                self.spare.push(block);
                None
            }
            Done::Marked(mark) => {
                self.is_marking = false;
                Some(mark)
            }
        }
    }

    fn order(&mut self, order: Order) -> io::Result<()> {
        if self.orders.send(order).is_ok() {
            return Ok(());
        }
        // It has ended, and said why.
        loop {
            self.wait()?;
        }
    }
}

/// Opens the file for writing around the cache, where its filesystem can.
fn open(path: &Path) -> io::Result<fs_err::File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    let mut options = fs_err::OpenOptions::new();
    match options.write(true).custom_flags(direct).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            fs_err::OpenOptions::new().write(true).open(path)
        }
        other => other,
    }
}

fn obey(
    file: &fs_err::File,
    order: Order,
    note: impl Fn(&Mark) -> io::Result<()>,
) -> io::Result<Done> {
    match order {
        Order::Write(block, offset) => {
            match file.file().write_all_at(block.bytes(), offset) {
                // Some filesystems find out only now that they cannot, or not for this disk.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    let flags = fcntl_getfl(file)?;
                    fcntl_setfl(file, flags - OFlags::DIRECT)?;
                    file.file().write_all_at(block.bytes(), offset)?;
                }
                other => other?,
            }
            Ok(Done::Written(block))
        }
        Order::Mark(mark) => {
            file.sync_data()?;
            note(&mark)?;
            Ok(Done::Marked(mark))
        }
    }
}

/// Only a panic of the thread leads here.
fn died() -> io::Error {
    io::Error::other("the thread that writes a file has died")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::hash::Sha256;
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    fn full(blocks: &mut Blocks, byte: u8) {
        assert_eq!(blocks.fill(&vec![byte; BLOCK_BYTES + 1]), BLOCK_BYTES);
        assert!(blocks.is_full());
    }

    #[test]
    fn blocks_are_written_behind_what_there_is_and_marks_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs_err::write(&path, vec![1; BLOCK_BYTES]).unwrap();
        let marked = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&marked);
        let written = path.clone();
        let note = move |mark: &Mark| {
            assert_eq!(fs_err::metadata(&written)?.len(), mark.bytes);
            noted.store(mark.bytes, Ordering::Relaxed);
            Ok(())
        };
        let mut blocks = Blocks::start(&path, BLOCK_BYTES as u64, note).unwrap();
        for byte in 2..=9 {
            full(&mut blocks, byte);
            blocks.hand_over().unwrap();
        }
        let mark = Mark { bytes: 9 * BLOCK_BYTES as u64, hash: Sha256::of(b"") };
        assert!(blocks.mark(mark).unwrap());
        assert!(!blocks.mark(mark).unwrap(), "one at a time");
        assert_eq!(blocks.fill(b"rest"), 4);
        let (last, rest) = blocks.finish();
        assert_eq!((last.unwrap(), &rest[..]), (Some(mark), &b"rest"[..]));
        assert_eq!(marked.load(Ordering::Relaxed), mark.bytes);
        let content = fs_err::read(&path).unwrap();
        assert_eq!(content.len(), 9 * BLOCK_BYTES);
        for (byte, block) in (1..=9).zip(content.chunks(BLOCK_BYTES)) {
            assert!(block.iter().all(|found| *found == byte), "{byte}");
        }
    }

    #[test]
    fn a_failure_of_the_disk_is_told_and_ends_it() {
        let mut blocks = Blocks::start(Path::new("/dev/full"), 0, |_| Ok(())).unwrap();
        let error = loop {
            full(&mut blocks, 1);
            if let Err(error) = blocks.hand_over() {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
