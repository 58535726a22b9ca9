//! Files of small nars, which were durable in the database before they came here.

use super::{Depot, DepotError, layout};
use crate::core::change::NarFile;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::{
    io::{self, Write as _},
    path::Path,
    sync::PoisonError,
};

impl Depot {
    /// Writes files to their places in the depot and waits for the disk. Until this returns, any of
    /// them can be there torn; afterwards all of them are there to stay.
    ///
    /// # Errors
    /// When files cannot be written. It may be repeated.
    pub fn write_out(&self, files: &[NarFile]) -> Result<(), DepotError> {
        for file in files {
            self.write_one(file)?;
        }
        self.sync()
    }

    fn write_one(&self, file: &NarFile) -> Result<(), DepotError> {
        let place = self.0.places.nar(&file.hash);
        let _settling = self.0.settling.read().unwrap_or_else(PoisonError::into_inner);
        let written = match write_new(&place, &file.bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                layout::make_dir(&self.0.places.shard(&file.hash), layout::PRIVATE)?;
                write_new(&place, &file.bytes)
            }
            written => written,
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            written => return Ok(written?),
        }
        // Somebody else has brought it, or this was interrupted.
        if fs_err::read(&place)? == *file.bytes {
            // It counts as new, as after an upload.
            return Ok(layout::touch(&place)?);
        }
        let (mut out, draft) = self.new_spool()?;
        out.write_all(&file.bytes)?;
        drop(out);
        draft.replace(&place)?;
        Ok(layout::set_mode(&place, layout::WRITTEN_ONCE)?)
    }
}

/// Writes a file that is not there yet.
fn write_new(place: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs_err::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(layout::WRITTEN_ONCE).open(place)?;
    file.write_all(bytes)?;
    // The umask has its say in the mode of a new file.
    layout::set_mode_of(&file, layout::WRITTEN_ONCE)
}
