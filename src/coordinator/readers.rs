//! Read-only connections, lent to one query at a time.

use crate::store::{Reader, StoreError};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// How many queries run at a time; each holds a connection of about two megabytes.
const READERS_MAX: usize = 8;

/// A free-list of read-only connections. It holds no truth: any connection is as good as another.
#[derive(Debug, Clone)]
pub struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Reader>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    /// Returns a lender of connections to this database.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let idle = Arc::new(Mutex::new(Vec::new()));
        Self { path, idle, permits: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// Runs a query on a thread that may wait.
    ///
    /// # Errors
    /// What the query returns, or [`StoreError::Open`].
    ///
    /// # Panics
    /// When the query panics.
    pub async fn read<T, E>(
        &self,
        query: impl FnOnce(&Reader) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let readers = self.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let reader = readers.lend()?;
            let answer = query(&reader);
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            answer
        })
        .await
        .expect("a query does not panic")
    }

    /// Returns a connection of its own for somebody who reads for long.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(&self) -> Result<Reader, StoreError> {
        Reader::open(&self.path)
    }

    /// Takes an idle connection or opens one.
    fn lend(&self) -> Result<Reader, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(reader) => Ok(reader),
            None => Reader::open(&self.path),
        }
    }
}
