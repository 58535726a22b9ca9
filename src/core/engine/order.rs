//! Dependents before what they need.
//!
//! Builds that enter memory in this order are given their height once. In any other order each
//! would raise all that it needs again, which for a thousand steps of depth is a thousand times.

use crate::core::{graph::Facts, store_path::PathHash, table::Table};

/// The facts of a submission, found by path.
pub(super) struct Known<'a> {
    facts: &'a [Facts],
    by_path: Table,
}

impl<'a> Known<'a> {
    /// # Panics
    /// At four thousand million facts.
    pub(super) fn new(facts: &'a [Facts]) -> Self {
        let mut by_path = Table::default();
        for number in 1..=facts.len() {
            let number = u32::try_from(number).expect("a submission has less than 2^32 facts");
            by_path.insert(number, |number| facts[number as usize - 1].path.hash().digest());
        }
        Self { facts, by_path }
    }

    /// Returns what is known of a derivation.
    pub(super) fn get(&self, path: PathHash) -> Option<&'a Facts> {
        self.place(path).map(|place| &self.facts[place])
    }

    fn place(&self, path: PathHash) -> Option<usize> {
        let mut places = self.by_path.candidates(path.digest()).map(|number| number as usize - 1);
        places.find(|place| self.facts[*place].path.hash() == path)
    }

    /// Returns the derivations that can be reached from `starts` along `inputs`, each behind all
    /// of those that need it. What nothing is known of is left out.
    pub(super) fn dependents_first(
        &self,
        starts: impl Iterator<Item = PathHash>,
        inputs: impl Fn(&'a Facts) -> &'a [PathHash],
    ) -> Vec<&'a Facts> {
        let mut seen = vec![false; self.facts.len()];
        let mut meet = |path: PathHash| {
            let place = self.place(path)?;
            (!std::mem::replace(&mut seen[place], true)).then(|| &self.facts[place])
        };
        let mut order = Vec::new();
        let mut open: Vec<(&'a Facts, std::slice::Iter<'a, PathHash>)> = Vec::new();
        for start in starts {
            open.extend(meet(start).map(|facts| (facts, inputs(facts).iter())));
            while let Some((facts, rest)) = open.last_mut() {
                if let Some(input) = rest.find_map(|input| meet(*input)) {
                    open.push((input, inputs(input).iter()));
                } else {
                    order.push(*facts);
                    open.pop();
                }
            }
        }
        order.reverse();
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{plan::Class, store_path::StoreDir};
    use std::sync::Arc;

    #[test]
    fn whoever_needs_something_comes_before_it() {
        let path = |byte: u8| PathHash::from_bytes([byte; 20]);
        let needs = [vec![], vec![path(0)], vec![path(0), path(1)], vec![path(1), path(2)]];
        let dir = StoreDir::guix();
        let class = Arc::new(Class { store_dir: dir.clone(), system: None, features: Vec::new() });
        let facts: Vec<Facts> = (0..)
            .zip(needs)
            .map(|(byte, inputs)| Facts {
                path: dir.path(path(byte), "a.drv").unwrap(),
                class: Arc::clone(&class),
                outputs: Vec::new(),
                inputs,
                last_end: None,
            })
            .collect();
        let known = Known::new(&facts);
        for starts in [vec![3], vec![0, 3], vec![1, 2, 3], vec![2, 3, 2]] {
            let order =
                known.dependents_first(starts.iter().map(|byte| path(*byte)), |one| &one.inputs);
            let order: Vec<PathHash> = order.iter().map(|facts| facts.path.hash()).collect();
            assert_eq!(order, [path(3), path(2), path(1), path(0)], "{starts:?}");
        }
    }
}
