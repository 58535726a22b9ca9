//! A database for simulations: in memory, outliving the process that uses it, and failing on demand.

use super::{Reader, Store, StoreError, derivations::Texts, doing, migrate, open::out_of_memory};
use crate::core::{
    defect::{Defect, Planted},
    event::Cursor,
    outcome::OutputPolicy,
    store_path::PathHash,
};
use rusqlite::{Connection, OpenFlags, named_params};
use std::{cell::RefCell, collections::BTreeMap, path::PathBuf};

/// What is wrong with the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk refuses what was written: nothing stays of it.
    Refused,
}

/// What a simulation has in store for a database.
#[derive(Debug, Default)]
pub(super) struct Simulated {
    next: Option<Fault>,
    planted: Planted,
}

impl Store {
    /// Makes an empty database in memory. It lives as long as this value, and connections of
    /// [`Reader::in_memory`] with the same name see it.
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::Sql`].
    pub fn in_memory(name: &str, planted: Planted) -> Result<Self, StoreError> {
        let mut connection = open(name)?;
        connection
            .execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF;")
            .map_err(doing("open"))?;
        connection.set_prepared_statement_cache_capacity(128);
        migrate::migrate(&mut connection)?;
        Ok(Self {
            connection,
            dirs: BTreeMap::new(),
            classes: BTreeMap::new(),
            class_at: RefCell::default(),
            texts: Texts::new().map_err(|error| out_of_memory(&error))?,
            path: PathBuf::from(name),
            outputs: OutputPolicy::default(),
            last_event: Cursor::default(),
            simulated: Simulated { next: None, planted },
        })
    }

    /// Returns what a process that starts anew finds: all that was committed and nothing else.
    #[must_use]
    pub fn reopened(mut self) -> Self {
        self.dirs.clear();
        self.classes.clear();
        self.class_at.take();
        self.simulated.next = None;
        self
    }

    /// Lets the next commit that changes something fail.
    pub fn fail_next(&mut self, fault: Fault) {
        self.simulated.next = Some(fault);
    }

    /// Fails when that was asked for.
    pub(super) fn meet_fault(&mut self) -> Result<(), StoreError> {
        match self.simulated.next.take() {
            None => Ok(()),
            Some(Fault::Refused) => {
                let source = rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
                    None,
                );
                Err(StoreError::Sql { what: "commit", source })
            }
        }
    }

    /// Makes room for another nar under the same path, which is a mistake.
    pub(super) fn drop_what_is_held(&self, path: PathHash) -> Result<(), StoreError> {
        if !self.simulated.planted.is(Defect::DisputedOverwrites) {
            return Ok(());
        }
        self.connection
            .prepare_cached("DELETE FROM nars WHERE path = :path")
            .and_then(|mut delete| delete.execute(named_params! { ":path": path.as_bytes() }))
            .map(drop)
            .map_err(doing("drop a nar"))
    }
}

impl Reader {
    /// Opens the database that [`Store::in_memory`] made under this name.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn in_memory(name: &str) -> Result<Self, StoreError> {
        let connection = open(name)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self { connection })
    }
}

fn open(name: &str) -> Result<Connection, StoreError> {
    let uri = format!("file:{name}?mode=memory&cache=shared");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(&uri, flags)
        .map_err(|source| StoreError::Open { path: PathBuf::from(name), source })
}
