//! A copy of the whole database, as it is at one moment, while it is written to.

use super::{Reader, StoreError, doing};
use rusqlite::params;
use std::path::Path;

/// How many findings about a copy are told.
const FINDINGS_MAX: usize = 3;

impl Reader {
    /// Writes a copy into a file that is not there yet, and looks whether it is sound. Others read
    /// and write meanwhile; what they write grows the log of writes until this is done.
    ///
    /// The copy has everything that is committed when this begins, in as little room as it takes:
    /// also nars that have no file yet.
    ///
    /// # Errors
    /// [`StoreError::Sql`] when it cannot be written, [`StoreError::Corrupt`] when it is not sound:
    /// then the database is damaged, too. The file must be removed then.
    pub fn copy_into(&self, file: &Path) -> Result<(), StoreError> {
        let name = file.to_str().ok_or_else(|| {
            StoreError::Diverged(
                "the state directory has a name that is no text, which a copy cannot be written to"
                    .to_owned(),
            )
        })?;
        self.connection.execute("VACUUM INTO ?1", params![name]).map_err(doing("copy itself"))?;
        let findings = Self::open(file)?.integrity()?;
        if findings.is_empty() {
            return Ok(());
        }
        let findings: Vec<String> = findings.into_iter().take(FINDINGS_MAX).collect();
        Err(StoreError::Corrupt { path: file.to_owned(), findings: findings.join(", ") })
    }
}
