//! What a published tree of the Guix dialect shows of a nar beside the file of the depot.
//!
//! A Guix client without zstd crashes on a narinfo that has nothing else, so every nar is there in
//! gzip, too. What a fixed output contains is there as it is, under the name and hash that a
//! derivation gives, because Guix's download programs ask for it in this way. Both are made out of
//! the file of the depot, once, and are beside it only in the tree: with it they can be made again.

use super::{
    Depot, DepotError,
    layout::{Dialect, PUBLIC, WRITTEN_ONCE, make_dir, set_mode},
    publish::make_tree,
};
use crate::{
    core::{
        change::NarRecord,
        hash::{Sha256, Sha256Hasher},
    },
    formats::{
        nar::{NarError, NarLimits, NarReader, NarSink},
        narinfo::guix::NarFile,
    },
};
use flate2::{Compression, write::GzEncoder};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

/// How hard nars are compressed for clients that know gzip only: 67 MB of nar per second of one
/// core.
const GZIP_LEVEL: u32 = 6;
/// What precedes the SHA-256 of a fixed output that is one plain file.
const FLAT_SHA256: &str = "fixed:sha256:";

impl Depot {
    /// Makes the forms that the tree of this path's store shows beside the compressed nar. Does
    /// nothing when they are there, or the store's dialect has none.
    ///
    /// This takes a second of a processor for 67 MB of nar. The forms are durable when it returns.
    ///
    /// # Errors
    /// [`DepotError::NotHeld`] or [`DepotError::Damaged`] when there is nothing to make them of, or
    /// files cannot be written.
    pub fn make_other_forms(&self, record: &NarRecord) -> Result<(), DepotError> {
        if self.has_other_forms(record) {
            return Ok(());
        }
        make_tree(&self.0.places.tree(record.info.path.dir()), record.info.path.dir())?;
        if let Some((place, promised)) = self.content_place(record) {
            for dir in place.ancestors().skip(1).take(3).collect::<Vec<_>>().into_iter().rev() {
                make_dir(dir, PUBLIC)?;
            }
            write_once(&place, |file| {
                let mut content = Content::new(file);
                self.unpack(record, &mut content)?;
                let found = content.hasher.finish();
                if found == promised { Ok(()) } else { Err(DepotError::Damaged(record.file_hash)) }
            })?;
        }
        // The last one, because it stands for all of them.
        write_once(&self.gzip_place(record), |file| {
            let mut encoder = GzEncoder::new(file, Compression::new(GZIP_LEVEL));
            self.unpack(record, &mut encoder)?;
            encoder.finish()?;
            Ok(())
        })
    }

    /// Tells whether nothing is left to do for [`Depot::make_other_forms`].
    pub(super) fn has_other_forms(&self, record: &NarRecord) -> bool {
        match Dialect::of(record.info.path.dir()) {
            Dialect::Nix => true,
            Dialect::Guix => self.gzip_place(record).exists(),
        }
    }

    /// Returns the forms that a narinfo of the Guix dialect names, the fastest first.
    pub(super) fn forms(&self, record: &NarRecord) -> io::Result<[NarFile; 2]> {
        let gzip = self.gzip_place(record);
        let kept = NarFile {
            url: Self::url(record),
            compression: record.compression().word().to_owned(),
            file_bytes: record.file_bytes,
        };
        let gzip = NarFile {
            url: format!("nar/{}", gzip_name(&record.file_hash)),
            compression: "gzip".to_owned(),
            file_bytes: fs_err::metadata(gzip)?.len(),
        };
        Ok([kept, gzip])
    }

    fn unpack(&self, record: &NarRecord, sink: &mut impl Write) -> Result<(), DepotError> {
        let file = self.open_nar(&record.file_hash)?;
        file.unpack(&record.file_hash, record.info.nar_bytes, sink)
    }

    fn gzip_place(&self, record: &NarRecord) -> PathBuf {
        let tree = self.0.places.tree(record.info.path.dir());
        tree.join("nar").join(gzip_name(&record.file_hash))
    }

    /// Returns where the content of a fixed output is shown, and its hash; nothing when the path
    /// is none.
    fn content_place(&self, record: &NarRecord) -> Option<(PathBuf, Sha256)> {
        let info = &record.info;
        let hash = info.content_address.as_deref()?.strip_prefix(FLAT_SHA256)?;
        let hash = Sha256::parse(hash)?;
        // A name such as ‘..’ would lead elsewhere, and a web server may hide the others.
        let name = Some(info.path.name()).filter(|name| !name.starts_with('.'))?;
        let tree = self.0.places.tree(info.path.dir());
        Some((tree.join("file").join(name).join("sha256").join(hash.base32()), hash))
    }
}

/// Returns the name of a nar in gzip: that of the file it was made of, with another end.
fn gzip_name(file_hash: &Sha256) -> String {
    format!("{}.nar.gz", file_hash.base32())
}

/// Writes a file so that, whatever happens, it is whole when its name is there.
fn write_once(
    place: &Path,
    write: impl FnOnce(&mut fs_err::File) -> Result<(), DepotError>,
) -> Result<(), DepotError> {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = place.with_file_name(name);
    let mut file = fs_err::File::create(&new)?;
    if let Err(error) = write(&mut file) {
        fs_err::remove_file(&new)?;
        return Err(error);
    }
    set_mode(&new, WRITTEN_ONCE)?;
    file.sync_all()?;
    Ok(fs_err::rename(new, place)?)
}

/// Takes the nar of one plain file and passes on what the file contains.
struct Content<W> {
    reader: NarReader,
    found: Found,
    hasher: Sha256Hasher,
    out: W,
}

/// What was found in the last piece of a nar.
#[derive(Default)]
struct Found(Vec<u8>);

impl<W> Content<W> {
    fn new(out: W) -> Self {
        let limits = NarLimits { bytes_max: u64::MAX, entries_max: 0, depth_max: 0 };
        let (reader, found) = (NarReader::new(limits), Found::default());
        Self { reader, found, hasher: Sha256Hasher::default(), out }
    }
}

impl<W: Write> Write for Content<W> {
    fn write(&mut self, nar: &[u8]) -> io::Result<usize> {
        self.reader.feed(nar, &mut self.found).map_err(io::Error::other)?;
        self.hasher.update(&self.found.0);
        self.out.write_all(&self.found.0)?;
        self.found.0.clear();
        Ok(nar.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl NarSink for Found {
    fn content(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
