//! Work on a stream by a thread beside the one that brings it.
//!
//! Of a long nar the coordinator hashes file and nar, compresses or decompresses, writes and
//! searches. No single thing of that takes most of the time, so two threads take half of it each.

use std::{
    io,
    sync::mpsc::{self, SyncSender},
    thread::{self, JoinHandle},
};

/// How many pieces may wait for the thread; the one who brings them waits beyond that.
const PIECES_MAX: usize = 8;

/// Something that takes pieces of a stream on a thread of its own. The thread ends with this, which
/// waits until it has taken what waits and dropped what takes it.
pub(super) struct Aside<Piece, Taker, Error> {
    /// Both are there until the end.
    pieces: Option<SyncSender<Piece>>,
    thread: Option<JoinHandle<Result<Taker, Error>>>,
}

impl<Piece, Taker, Error> Aside<Piece, Taker, Error>
where
    Piece: Send + 'static,
    Taker: Send + 'static,
    Error: From<io::Error> + Send + 'static,
{
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(
        mut taker: Taker,
        take: impl Fn(&mut Taker, Piece) -> Result<(), Error> + Send + 'static,
    ) -> io::Result<Self> {
        let (pieces, came) = mpsc::sync_channel(PIECES_MAX);
        let run = move || {
            for piece in came {
                take(&mut taker, piece)?;
            }
            Ok(taker)
        };
        let thread = thread::Builder::new().name("aside".to_owned()).spawn(run)?;
        Ok(Self { pieces: Some(pieces), thread: Some(thread) })
    }

    /// Hands a piece over. Returns whether it will be taken; it will not when an earlier one was
    /// refused, which [`Aside::finish`] tells.
    pub(super) fn give(&self, piece: Piece) -> bool {
        self.pieces.as_ref().is_some_and(|pieces| pieces.send(piece).is_ok())
    }

    /// Waits until all pieces were taken, and returns who took them.
    ///
    /// # Errors
    /// Why one was refused.
    pub(super) fn finish(mut self) -> Result<Taker, Error> {
        self.pieces = None;
        let ended = self.thread.take().and_then(|thread| thread.join().ok());
        let died = || io::Error::other("the thread that takes a stream has died").into();
        ended.unwrap_or_else(|| Err(died()))
    }
}

impl<Piece, Taker, Error> Drop for Aside<Piece, Taker, Error> {
    fn drop(&mut self) {
        self.pieces = None;
        // What it would tell, nobody wants to know any more.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adding() -> Aside<u32, u32, io::Error> {
        let add = |sum: &mut u32, piece| match sum.checked_add(piece) {
            Some(more) => {
                *sum = more;
                Ok(())
            }
            None => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
        };
        Aside::start(0, add).unwrap()
    }

    #[test]
    fn everything_is_taken_before_the_end() {
        let aside = adding();
        assert!((0..1_000).all(|piece| aside.give(piece)));
        assert_eq!(aside.finish().unwrap(), 499_500);
    }

    #[test]
    fn a_refusal_is_told_at_the_end_and_stops_what_follows() {
        let aside = adding();
        let given = (0..100).take_while(|_| aside.give(u32::MAX)).count();
        assert!(given <= 2 + PIECES_MAX, "{given}");
        assert_eq!(aside.finish().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn what_takes_is_gone_when_this_is() {
        let shared = std::sync::Arc::new(());
        let aside: Aside<(), _, io::Error> =
            Aside::start(std::sync::Arc::clone(&shared), |_, ()| Ok(())).unwrap();
        aside.give(());
        drop(aside);
        assert_eq!(std::sync::Arc::strong_count(&shared), 1);
    }

    #[test]
    fn a_panic_is_an_error() {
        let aside: Aside<(), (), io::Error> =
            Aside::start((), |(), ()| panic!("on purpose")).unwrap();
        aside.give(());
        assert!(aside.finish().is_err());
    }
}
