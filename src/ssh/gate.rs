//! Flow control: a connection is not read while one of its channels is behind.
//!
//! russh grants a sender new room when data arrives, not when it is used, and when a channel's
//! queue is full its only task waits there, sending nothing for any channel meanwhile: a channel
//! whose reader waits for its own writer would then wait for ever. So the queues are kept from
//! filling: while too much is waiting, the socket pretends to have nothing to read. The kernel's
//! buffers fill, the peer stops, and the task goes on writing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::sync::Notify;

/// How much may wait for the reader of one channel before its connection is not read any more.
/// What russh has read already may come on top: one packet.
const BACKLOG_BYTES_MAX: usize = 2 << 20;

/// How far the reader must catch up before the connection is read again.
const BACKLOG_RESUME_BYTES: usize = 1 << 20;

/// What a waiting message costs beside its bytes, so that many small ones are not free.
const MESSAGE_BYTES: usize = 128;

/// Says whether a connection may be read.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<GateState>);

#[derive(Debug, Default)]
struct GateState {
    /// How many channels are behind.
    holds: usize,
    /// Who wanted to read meanwhile.
    waiting: Option<Waker>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self) {
        let mut state = self.state();
        state.holds = state.holds.saturating_add(1);
    }

    fn release(&self) {
        let mut state = self.state();
        state.holds = state.holds.saturating_sub(1);
        if state.holds == 0
            && let Some(waker) = state.waiting.take()
        {
            drop(state);
            waker.wake();
        }
    }

    /// Returns whether the connection may be read; otherwise the context is woken when it may.
    pub(super) fn poll_open(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.holds == 0 {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }
}

/// What waits for the reader of one channel.
#[derive(Debug)]
pub(super) struct Backlog {
    gate: Arc<Gate>,
    state: Mutex<BacklogState>,
    /// Told whenever the reader takes something while it is behind.
    pub(super) progressed: Notify,
}

#[derive(Debug, Default)]
struct BacklogState {
    bytes: usize,
    behind: bool,
    /// Whether nobody reads any more, so that nothing waits.
    abandoned: bool,
}

impl Backlog {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self { gate, state: Mutex::default(), progressed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, BacklogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a message of that many bytes that will wait.
    pub(super) fn add(&self, bytes: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_add(bytes).saturating_add(MESSAGE_BYTES);
        if state.bytes >= BACKLOG_BYTES_MAX && !state.behind && !state.abandoned {
            state.behind = true;
            self.gate.hold();
        }
    }

    /// Counts a message that no longer waits.
    pub(super) fn take(&self, bytes: usize) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes).saturating_sub(MESSAGE_BYTES);
        if state.behind {
            self.progressed.notify_one();
            if state.bytes <= BACKLOG_RESUME_BYTES {
                state.behind = false;
                self.gate.release();
            }
        }
    }

    /// Returns whether the connection is not read because of this channel.
    pub(super) fn is_behind(&self) -> bool {
        self.state().behind
    }

    /// Says that nothing will be taken or counted any more.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.abandoned = true;
        if state.behind {
            state.behind = false;
            self.gate.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(gate: &Gate) -> bool {
        gate.poll_open(&Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_gate_is_closed_while_any_channel_is_behind() {
        let gate = Arc::new(Gate::default());
        let (one, two) = (Backlog::new(Arc::clone(&gate)), Backlog::new(Arc::clone(&gate)));
        one.add(BACKLOG_BYTES_MAX);
        two.add(BACKLOG_BYTES_MAX);
        assert!(!is_open(&gate));
        one.take(BACKLOG_BYTES_MAX);
        assert!(!is_open(&gate));
        two.abandon();
        assert!(is_open(&gate));
        two.add(BACKLOG_BYTES_MAX);
        assert!(is_open(&gate));
    }

    #[test]
    fn a_gate_opens_only_when_the_reader_has_caught_up() {
        let gate = Arc::new(Gate::default());
        let backlog = Backlog::new(Arc::clone(&gate));
        let piece = 256 << 10;
        for _ in 0..8 {
            backlog.add(piece);
        }
        assert!(!is_open(&gate));
        for _ in 0..4 {
            assert!(backlog.is_behind());
            backlog.take(piece);
        }
        assert!(backlog.is_behind());
        backlog.take(piece);
        assert!(is_open(&gate));
    }

    #[test]
    fn small_messages_count_too() {
        let gate = Arc::new(Gate::default());
        let backlog = Backlog::new(Arc::clone(&gate));
        for _ in 0..BACKLOG_BYTES_MAX / MESSAGE_BYTES {
            backlog.add(0);
        }
        assert!(!is_open(&gate));
    }
}
