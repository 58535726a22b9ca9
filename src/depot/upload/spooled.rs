//! The file of an upload, and how much of it may be believed after a crash.
//!
//! A file that was being written when the machine stopped can be longer than what reached the
//! disk, with anything behind that. So while it grows the file is synced, and its length and the
//! hash of what is in it are written beside it: the mark. A later try believes as much as the mark
//! says, once the hash agrees, and nothing behind it.

use super::{
    VerifyError,
    blocks::{BLOCK_BYTES, Blocks},
};
use crate::{
    core::hash::{Sha256, Sha256Hasher},
    depot::{Fault, flusher::FLUSH_BYTES},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// How many bytes may be received behind the last mark: what a killed coordinator costs at most.
/// Where the disk is slower than the network, the network waits for it.
pub const SYNC_INTERVAL: u64 = 64 << 20;
/// How long a file is at least that is written in blocks, in bytes. They have four MiB of memory.
const LONG_BYTES_MIN: u64 = 8 << 20;
/// What the name of a mark ends with.
const MARK_SUFFIX: &str = ".mark";
/// A mark: the length, big-endian, and the hash.
const MARK_BYTES: usize = 8 + 32;

/// How much of a file is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) bytes: u64,
    pub(super) hash: Sha256,
}

/// The file that an upload goes to, open and locked.
///
/// When it is dropped it is marked, so that nothing that came is sent again; unless it was taken
/// away or removed.
#[derive(Debug)]
pub(crate) struct Spooled {
    path: PathBuf,
    file: fs_err::File,
    hasher: Sha256Hasher,
    /// How many bytes were looked at: those in the file, and in blocks on their way there.
    bytes: u64,
    /// How many of them are on the disk for certain.
    marked: u64,
    /// How many of them were asked to be brought there.
    asked: u64,
    way: Way,
    /// Whether the file is still there to be gone on with.
    fate: Fate,
}

/// How bytes come into the file.
#[derive(Debug)]
enum Way {
    /// Each when it comes: of short files, and behind everything else.
    AsTheyCome,
    /// The same as far as the next place where a block may begin, and in blocks from there on.
    ToBlocks,
    /// In blocks.
    Blocks(Box<Blocks>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Resumable,
    /// The disk failed: there is what the last mark says, if there is one.
    Failed,
    Gone,
}

impl Spooled {
    /// Opens the file of an upload, cuts off what is not marked, and returns its mark if it has
    /// one. Nothing is believed yet: see [`Spooled::reread`].
    ///
    /// The file is locked as long as it is open: an agent that reconnects can begin before the end
    /// of its old connection is noticed.
    pub(super) fn open(path: PathBuf, bytes_max: u64) -> Result<(Self, Option<Mark>), VerifyError> {
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&path).map_err(Fault::Io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(VerifyError::Busy),
            Err(errno) => return Err(Fault::Io(errno.into()).into()),
        }
        let metadata = file.metadata().map_err(Fault::Io)?;
        if metadata.nlink() == 0 {
            // The one who had the lock moved or removed the file before the lock was had here.
            return Err(VerifyError::Busy);
        }
        let length = metadata.len();
        let mark = if length == 0 { None } else { read_mark(&path).map_err(Fault::Io)? };
        let mark = mark.filter(|mark| mark.bytes <= length.min(bytes_max));
        let believed = mark.map_or(0, |mark| mark.bytes);
        if length > believed {
            file.set_len(believed).map_err(Fault::Io)?;
        }
        let spooled = Self {
            path,
            file,
            hasher: Sha256Hasher::default(),
            bytes: 0,
            marked: believed,
            asked: believed,
            way: if bytes_max >= LONG_BYTES_MIN { Way::ToBlocks } else { Way::AsTheyCome },
            fate: Fate::Resumable,
        };
        Ok((spooled, mark))
    }

    /// Reads what an earlier try brought, hands it on, and tells whether it is what was marked.
    pub(super) fn reread(
        &mut self,
        mark: Mark,
        mut pass_on: impl FnMut(&[u8]) -> Result<(), VerifyError>,
    ) -> Result<bool, VerifyError> {
        let mut file = fs_err::File::open(&self.path).map_err(Fault::Io)?;
        let mut buffer = vec![0; crate::depot::BUFFER_BYTES];
        while self.bytes < mark.bytes {
            let len = file.read(&mut buffer).map_err(Fault::Io)?;
            if len == 0 {
                return Ok(false);
            }
            self.hasher.update(&buffer[..len]);
            self.bytes = self.bytes.saturating_add(len as u64);
            pass_on(&buffer[..len])?;
        }
        Ok(self.hasher.clone().finish() == mark.hash)
    }

    /// Forgets what an earlier try brought.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hasher = Sha256Hasher::default();
        (self.bytes, self.marked, self.asked) = (0, 0, 0);
        Ok(())
    }

    /// Returns how many bytes there are.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the hash of all bytes.
    pub(super) fn hash(&self) -> Sha256 {
        self.hasher.clone().finish()
    }

    /// Adds bytes. Waits for the disk when it is [`SYNC_INTERVAL`] behind.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.add(bytes).inspect_err(|_| self.fate = Fate::Failed)
    }

    fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let to_block = BLOCK_BYTES - self.in_block();
            if matches!(self.way, Way::ToBlocks) && to_block == BLOCK_BYTES {
                let path = self.path.clone();
                let note = move |mark: &Mark| write_mark(&path, mark);
                self.way = Way::Blocks(Box::new(Blocks::start(&self.path, self.bytes, note)?));
            }
            let len = match &mut self.way {
                Way::Blocks(blocks) => blocks.fill(bytes),
                Way::ToBlocks | Way::AsTheyCome => {
                    let len = bytes.len().min(to_block);
                    self.file.write_all(&bytes[..len])?;
                    len
                }
            };
            self.hasher.update(&bytes[..len]);
            self.bytes = self.bytes.saturating_add(len as u64);
            bytes = &bytes[len..];
            self.hand_over()?;
        }
        Ok(())
    }

    /// Returns how far the last byte is behind a place where a block may begin.
    fn in_block(&self) -> usize {
        usize::try_from(self.bytes % BLOCK_BYTES as u64).unwrap_or(0)
    }

    /// Has a full block written, and marks made while more comes.
    fn hand_over(&mut self) -> io::Result<()> {
        let hash = (self.bytes.saturating_sub(self.asked) >= FLUSH_BYTES).then(|| self.hash());
        let Way::Blocks(blocks) = &mut self.way else { return Ok(()) };
        if !blocks.is_full() {
            return Ok(());
        }
        if let Some(mark) = blocks.hand_over()? {
            self.marked = mark.bytes;
        }
        if let Some(hash) = hash
            && blocks.mark(Mark { bytes: self.bytes, hash })?
        {
            self.asked = self.bytes;
        }
        while blocks.is_marking() && self.bytes.saturating_sub(self.marked) >= SYNC_INTERVAL {
            if let Some(mark) = blocks.wait()? {
                self.marked = mark.bytes;
            }
        }
        Ok(())
    }

    /// Waits until all bytes are on the disk. Nothing is noted of those that were not marked.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.settle_marks()?;
        self.file.sync_data()
    }

    /// Waits until all bytes are on the disk, and notes it.
    pub(super) fn mark(&mut self) -> io::Result<()> {
        self.settle_marks()?;
        if self.bytes == self.marked {
            return Ok(());
        }
        self.file.sync_data()?;
        write_mark(&self.path, &Mark { bytes: self.bytes, hash: self.hash() })?;
        self.marked = self.bytes;
        Ok(())
    }

    /// Waits until everything is in the file and no mark is being made any more.
    fn settle_marks(&mut self) -> io::Result<()> {
        let Way::Blocks(blocks) = std::mem::replace(&mut self.way, Way::AsTheyCome) else {
            return Ok(());
        };
        let (written, rest) = blocks.finish();
        let settled = written.and_then(|mark| {
            self.marked = mark.map_or(self.marked, |mark| mark.bytes);
            self.file.write_all(&rest)
        });
        settled.inspect_err(|_| self.fate = Fate::Failed)
    }

    /// Removes the file: nothing of it is of any use.
    pub(super) fn remove(&mut self) {
        self.fate = Fate::Gone;
        let settled = self.settle_marks();
        let removed = fs_err::remove_file(&self.path).and_then(|()| remove_mark(&self.path));
        if let Err(error) = settled.and(removed) {
            tracing::warn!(%error, "a refused upload could not be removed");
        }
    }

    /// Lets `take` take the file away, which has all bytes.
    pub(crate) fn settle(mut self, take: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        self.settle_marks()?;
        take(&self.path)?;
        self.fate = Fate::Gone;
        if self.marked > 0 { remove_mark(&self.path) } else { Ok(()) }
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if self.fate == Fate::Resumable
            && let Err(error) = self.mark()
        {
            tracing::warn!(%error, "an interrupted upload could not be marked");
        }
    }
}

fn mark_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(MARK_SUFFIX);
    name.into()
}

fn remove_mark(path: &Path) -> io::Result<()> {
    match fs_err::remove_file(mark_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes the mark of a file whose bytes are on the disk, over the earlier one.
fn write_mark(path: &Path, mark: &Mark) -> io::Result<()> {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&mark.bytes.to_be_bytes());
    bytes[8..].copy_from_slice(mark.hash.as_bytes());
    // Within one sector of the disk. Were it torn all the same, its hash would agree with nothing.
    let mut options = fs_err::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(mark_of(path))?;
    file.file().write_all_at(&bytes, 0)?;
    file.sync_data()
}

/// Reads the mark of a file. One that is no mark counts as none.
fn read_mark(path: &Path) -> io::Result<Option<Mark>> {
    let text = match fs_err::read(mark_of(path)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok(mark) = <[u8; MARK_BYTES]>::try_from(text) else { return Ok(None) };
    let (mut bytes, mut hash) = ([0; 8], [0; 32]);
    bytes.copy_from_slice(&mark[..8]);
    hash.copy_from_slice(&mark[8..]);
    Ok(Some(Mark { bytes: u64::from_be_bytes(bytes), hash: Sha256::from_bytes(hash) }))
}
