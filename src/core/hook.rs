//! What is written down of hooks: how far each has come, and what could not be delivered to it.
//!
//! A hook is a file in the folder of an event. It has one row with its place among the events, and
//! a row for each event that it failed on; when nobody has a hook, nothing is written at all.

use super::{
    event::{Cursor, EventKind},
    id::Name,
    time::Timestamp,
};
use std::fmt;

/// How many deliveries that were given up are kept of one hook; the oldest go first.
pub const DEAD_PER_HOOK_MAX: u32 = 10_000;

/// Which hook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HookId {
    /// The event whose folder it is in.
    pub event: EventKind,
    /// What its file is called.
    pub name: Name,
}

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.d/{}", self.event, self.name)
    }
}

/// Names a delivery that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeliveryId(pub i64);

/// Something that is written down of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookChange {
    /// A hook is there now, and gets what is behind this place.
    Found {
        /// Which one.
        hook: HookId,
        /// The last event that it does not get.
        through: Cursor,
    },
    /// Everything up to this place was delivered to a hook, or is among what failed.
    Passed {
        /// Which one.
        hook: HookId,
        /// How far.
        through: Cursor,
        /// How many events were forgotten before it could have them.
        lost: i64,
    },
    /// A hook failed on an event for the first time.
    Failed {
        /// Which one.
        hook: HookId,
        /// The event.
        cursor: Cursor,
        /// What the hook gets.
        text: String,
        /// How the try went.
        tried: Tried,
    },
    /// A hook failed on an event once more.
    FailedAgain {
        /// Which delivery.
        delivery: DeliveryId,
        /// How the try went.
        tried: Tried,
    },
    /// A hook that had failed on an event has taken it.
    Delivered {
        /// Which delivery.
        delivery: DeliveryId,
    },
    /// Somebody wants a delivery tried again from the beginning.
    Again {
        /// Which one.
        delivery: DeliveryId,
        /// When.
        at: Timestamp,
    },
    /// A hook is not there any more: nothing of it is kept.
    Forgotten {
        /// Which one.
        hook: HookId,
    },
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// When.
    pub at: Timestamp,
    /// How it ended, in words.
    pub end: String,
    /// What it printed: at most the beginning and the end.
    pub output: Vec<u8>,
    /// When it is tried again; absent when it is given up.
    pub next_at: Option<Timestamp>,
}
