//! Dependents before what they need.
//!
//! Builds that enter memory in this order are given their height once. In any other order each
//! would raise all that it needs again, which for a thousand steps of depth is a thousand times.

use crate::core::store_path::PathHash;
use std::collections::BTreeSet;

/// Returns the derivations that can be reached from `starts` along `inputs`, each behind all of
/// those that need it.
pub(super) fn dependents_first<'a>(
    starts: impl Iterator<Item = PathHash>,
    inputs: impl Fn(PathHash) -> &'a [PathHash],
) -> Vec<PathHash> {
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    let mut open: Vec<(PathHash, std::slice::Iter<'a, PathHash>)> = Vec::new();
    for start in starts {
        if seen.insert(start) {
            open.push((start, inputs(start).iter()));
        }
        while let Some((path, rest)) = open.last_mut() {
            if let Some(input) = rest.find(|input| seen.insert(**input)) {
                open.push((*input, inputs(*input).iter()));
            } else {
                order.push(*path);
                open.pop();
            }
        }
    }
    order.reverse();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_needs_something_comes_before_it() {
        let path = |byte: u8| PathHash::from_bytes([byte; 20]);
        let needs = [vec![], vec![path(0)], vec![path(0), path(1)], vec![path(1), path(2)]];
        let inputs = |of: PathHash| needs[usize::from(of.as_bytes()[0])].as_slice();
        for starts in [vec![3], vec![0, 3], vec![1, 2, 3], vec![2, 3, 2]] {
            let order = dependents_first(starts.iter().map(|byte| path(*byte)), inputs);
            assert_eq!(order, [path(3), path(2), path(1), path(0)], "{starts:?}");
        }
    }
}
