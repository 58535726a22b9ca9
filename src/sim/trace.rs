//! What happened, for whoever has to understand a failure, and as a fingerprint of the whole run.

use std::{collections::VecDeque, fmt};

/// How many of the last lines are kept.
const LINES_MAX: usize = 400;

/// The last lines, and a hash over all of them (FNV-1a).
#[derive(Debug)]
pub(super) struct Trace {
    lines: VecDeque<String>,
    hash: u64,
}

impl Trace {
    pub(super) const fn new() -> Self {
        Self { lines: VecDeque::new(), hash: 0xcbf2_9ce4_8422_2325 }
    }

    pub(super) fn note(&mut self, now_ms: u64, line: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {line}", now_ms / 1_000, now_ms % 1_000);
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn last(&self, count: usize) -> Vec<String> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count)).cloned().collect()
    }
}

/// Writes one line into a world's trace.
macro_rules! note {
    ($world:expr, $($format:tt)*) => {
        $world.trace.note($world.now_ms, format_args!($($format)*))
    };
}
pub(super) use note;

/// An id in few letters: ids of one run differ in their last bytes.
pub(super) struct Short<'a>(pub(super) &'a [u8; 16]);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", u32::from_be_bytes([0, self.0[13], self.0[14], self.0[15]]))
    }
}
