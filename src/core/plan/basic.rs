//! The strategy `basic`: an input need not have been built here.
//!
//! A build waits only for inputs that are being built here or that an agent reported missing;
//! otherwise an agent may try, with what it has or can substitute.

use crate::core::graph::Standing;

/// Tells whether a build waits for an input that stands so.
pub(super) const fn waits_for(standing: Standing) -> bool {
    match standing {
        Standing::Available | Standing::Absent => false,
        Standing::Pending | Standing::Blocked | Standing::Failed | Standing::Missing => true,
    }
}
