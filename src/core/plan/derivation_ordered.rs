//! The strategy `derivation-ordered`: every input must be held before a build is allocated.

use crate::core::graph::Standing;

/// Tells whether a build waits for an input that stands so.
pub(super) const fn waits_for(standing: Standing) -> bool {
    match standing {
        Standing::Available => false,
        Standing::Absent
        | Standing::Pending
        | Standing::Blocked
        | Standing::Failed
        | Standing::Missing => true,
    }
}
