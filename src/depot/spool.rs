//! Files in `incoming/`: what is being received.
//!
//! Two kinds of names are there. `stream-TAG-N` is a nar out of an export stream; it belongs to
//! the process with that tag and is worth nothing to another. `upload-ATTEMPT-PATH-FILE` is what
//! has come of an upload, and outlives the process so that the upload can be resumed.

use super::{
    Depot, DepotError,
    flusher::{FLUSH_BYTES, Flusher},
};
use crate::{
    core::{
        compression::Compression, hash::Sha256, hash::Sha256Hasher, id::AttemptId,
        store_path::StorePath,
    },
    formats::sample,
};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// How hard nars are compressed here: 232 MB of nar per second of one core.
const ZSTD_LEVEL: i32 = 3;
const STREAM: &str = "stream-";
const UPLOAD: &str = "upload-";

/// Makes the names of the files of export streams.
#[derive(Debug)]
pub(super) struct SpoolNames {
    /// Tells the files of this process from those that an earlier one left behind.
    tag: String,
    /// The number of the next file; only its uniqueness matters.
    next: AtomicU64,
}

impl SpoolNames {
    /// Returns names that nobody with another seed makes.
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        // The seed may become a key, so the tag must not tell anything about it.
        let mut hasher = Sha256Hasher::default();
        hasher.update(b"steading spool tag");
        hasher.update(seed);
        Self { tag: hasher.finish().base32()[..16].to_owned(), next: AtomicU64::new(0) }
    }

    pub(super) fn create_in(&self, dir: &Path) -> io::Result<(fs_err::File, TempFile)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{STREAM}{}-{number}", self.tag));
        let file = fs_err::OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok((file, TempFile(Some(path))))
    }
}

/// Returns the name of the file that an upload goes to. It holds all that must be equal for an
/// earlier try to be resumed.
pub(super) fn upload_name(attempt: AttemptId, path: &StorePath, file_hash: &Sha256) -> String {
    format!("{UPLOAD}{attempt}-{}-{}", path.hash().base32(), file_hash.base32())
}

/// A file that is removed when it is dropped, unless it was moved away.
#[derive(Debug)]
pub(super) struct TempFile(Option<PathBuf>);

impl TempFile {
    /// Reads the nar that was written to the file.
    pub(super) fn nar(&self) -> io::Result<impl io::Read + use<>> {
        super::uncompressed(fs_err::File::open(self.0.as_deref().unwrap_or(Path::new("")))?)
    }

    /// Moves the file into the depot.
    pub(super) fn settle(mut self, depot: &Depot, file_hash: &Sha256) -> io::Result<()> {
        let path = self.0.take().unwrap_or_default();
        depot.settle(&path, file_hash).inspect_err(|_| self.0 = Some(path))
    }

    /// Puts the file in the place of another one.
    pub(super) fn replace(mut self, place: &Path) -> io::Result<()> {
        let path = self.0.take().unwrap_or_default();
        fs_err::rename(&path, place).inspect_err(|_| self.0 = Some(path))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(fs_err::remove_file) {
            tracing::warn!(%error, "a file in incoming could not be removed");
        }
    }
}

/// A nar that was written to `incoming/`, compressed or not.
#[derive(Debug)]
pub(super) struct Compressed {
    pub(super) file: TempFile,
    pub(super) file_hash: Sha256,
    pub(super) file_bytes: u64,
}

/// Writes a nar that comes in pieces to a file, compressed if that is worth it.
pub(super) struct NarCompressor {
    out: NarFile,
    file: TempFile,
}

/// What the nar is written through.
enum NarFile {
    Zstd(Box<zstd::stream::write::Encoder<'static, Counting>>),
    None(Counting),
}

impl NarCompressor {
    /// Begins with a nar that begins like this; the beginning is fed as well.
    pub(super) fn new(depot: &Depot, begin: &[u8]) -> io::Result<Self> {
        let (out, file) = depot.new_spool()?;
        let flusher = Flusher::start(&out, |()| Ok(()))?;
        let out = Counting { out, hasher: None, bytes: 0, asked: 0, flusher };
        let out = match sample::choose(begin)? {
            Compression::None => NarFile::None(out),
            Compression::Zstd => {
                let out = Counting { hasher: Some(Sha256Hasher::default()), ..out };
                NarFile::Zstd(Box::new(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?))
            }
        };
        Ok(Self { out, file })
    }

    pub(super) fn feed(&mut self, nar: &[u8]) -> io::Result<()> {
        match &mut self.out {
            NarFile::Zstd(encoder) => encoder.write_all(nar),
            NarFile::None(out) => out.write_all(nar),
        }
    }

    /// Ends the file. `nar_hash` is the hash of all that was fed.
    pub(super) fn finish(self, nar_hash: Sha256) -> io::Result<Compressed> {
        let Counting { hasher, bytes, flusher, .. } = match self.out {
            NarFile::Zstd(encoder) => encoder.finish()?,
            NarFile::None(out) => out,
        };
        flusher.finish()?;
        let file_hash = hasher.map_or(nar_hash, Sha256Hasher::finish);
        Ok(Compressed { file: self.file, file_hash, file_bytes: bytes })
    }
}

/// Compresses whole nars. It is kept from one to the next, because its tables cost more to make
/// than a small nar takes to compress.
pub(super) struct SmallNarCompressor(zstd::bulk::Compressor<'static>);

impl SmallNarCompressor {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(ZSTD_LEVEL)?))
    }

    pub(super) fn compress(&mut self, depot: &Depot, nar: &[u8]) -> io::Result<Compressed> {
        let bytes = self.0.compress(nar)?;
        let (mut out, file) = depot.new_spool()?;
        out.write_all(&bytes)?;
        Ok(Compressed { file, file_hash: Sha256::of(&bytes), file_bytes: bytes.len() as u64 })
    }
}

/// Hashes and counts what goes into a file, and has it brought to the disk meanwhile.
struct Counting {
    out: fs_err::File,
    /// Absent when somebody else knows the hash.
    hasher: Option<Sha256Hasher>,
    bytes: u64,
    /// How many of them the flusher was asked for.
    asked: u64,
    flusher: Flusher<()>,
}

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..len]);
        }
        self.bytes += len as u64;
        if self.bytes - self.asked >= FLUSH_BYTES {
            self.flusher.synced()?;
            if self.flusher.ask(()) {
                self.asked = self.bytes;
            }
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What there is in `incoming/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IncomingFiles {
    /// How many files are there.
    pub files: u64,
    /// Their length together, in bytes.
    pub bytes: u64,
    /// How many files were removed.
    pub removed: u64,
}

impl Depot {
    /// Removes what will not be resumed from `incoming/`: uploads of attempts that are not live,
    /// and what earlier processes left of export streams. It may be called at any time.
    ///
    /// # Errors
    /// When the directory cannot be read or a file not be removed.
    pub fn sweep_incoming(
        &self,
        is_live: impl Fn(AttemptId) -> bool,
    ) -> Result<IncomingFiles, DepotError> {
        let own = format!("{STREAM}{}-", self.0.spool_names.tag);
        let mut found = IncomingFiles::default();
        for (name, path, bytes) in self.incoming()? {
            let wanted = match name.strip_prefix(UPLOAD) {
                Some(rest) => attempt_of(rest).is_some_and(&is_live),
                None => name.starts_with(&own) || !name.starts_with(STREAM),
            };
            if wanted {
                found.files += 1;
                found.bytes += bytes;
            } else if removed(&path)? {
                found.removed += 1;
            }
        }
        Ok(found)
    }

    /// Returns how much there is of each attempt in `incoming/`, in bytes.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn staged(&self) -> Result<BTreeMap<AttemptId, u64>, DepotError> {
        let mut staged = BTreeMap::new();
        for (name, _, bytes) in self.incoming()? {
            if let Some(attempt) = name.strip_prefix(UPLOAD).and_then(attempt_of) {
                *staged.entry(attempt).or_default() += bytes;
            }
        }
        Ok(staged)
    }

    /// Lists `incoming/`: names, paths and lengths.
    fn incoming(&self) -> Result<Vec<(String, PathBuf, u64)>, DepotError> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.0.places.incoming)? {
            let entry = entry?;
            // A file can be moved away between the listing and here.
            let Ok(metadata) = entry.metadata() else { continue };
            let name = entry.file_name().to_str().unwrap_or_default().to_owned();
            found.push((name, entry.path(), metadata.len()));
        }
        Ok(found)
    }
}

/// Returns the attempt that the name of an upload's file begins with.
fn attempt_of(rest: &str) -> Option<AttemptId> {
    // A UUID has 36 characters.
    rest.get(..36)?.parse().ok()
}

/// Removes a file. Returns whether it was there.
fn removed(path: &Path) -> io::Result<bool> {
    match fs_err::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
