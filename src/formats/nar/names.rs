//! The names of directory entries: which are allowed, and in what order.

/// The last name of every open directory, outermost first.
///
/// All names share one buffer: a directory costs no allocation of its own.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The last names, one behind the other.
    bytes: Vec<u8>,
    /// Where in `bytes` the last name of each open directory begins.
    starts: Vec<usize>,
}

/// Why a name cannot come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadName {
    /// No file can have it.
    Forbidden,
    /// It does not come after the name before it, by bytes.
    Order,
}

impl Names {
    /// Returns how many directories are open.
    pub(super) const fn depth(&self) -> usize {
        self.starts.len()
    }

    /// Enters a directory.
    pub(super) fn enter(&mut self) {
        self.starts.push(self.bytes.len());
    }

    /// Leaves the innermost directory.
    pub(super) fn leave(&mut self) {
        if let Some(start) = self.starts.pop() {
            self.bytes.truncate(start);
        }
    }

    /// Takes the next name of the innermost directory.
    pub(super) fn admit(&mut self, name: &[u8]) -> Result<(), BadName> {
        if !is_name(name) {
            return Err(BadName::Forbidden);
        }
        let start = self.starts.last().copied().unwrap_or_default();
        // No name is empty, so a first name comes after the nothing before it.
        if self.bytes.get(start..).unwrap_or_default() >= name {
            return Err(BadName::Order);
        }
        self.bytes.truncate(start);
        self.bytes.extend_from_slice(name);
        Ok(())
    }
}

/// Tells whether a file in a directory can have this name.
pub(super) fn is_name(name: &[u8]) -> bool {
    (1..=super::NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, b'/' | 0))
}

/// Tells whether a symbolic link can have this target.
pub(super) fn is_target(target: &[u8]) -> bool {
    (1..=super::TARGET_BYTES_MAX).contains(&target.len()) && !target.contains(&0)
}
