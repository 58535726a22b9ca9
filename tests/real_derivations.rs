//! Reads a whole distribution's derivations and recomputes every path in them.
//!
//! `STEADING_DRVS` names a directory of `.drv` files, or a `.tar.zst` archive of one. Without it the
//! archive is looked for beside the source tree; if that is not there, nothing is tested, and the
//! output says so. Run with `--nocapture` for the counts.

#![expect(clippy::unwrap_used, reason = "a test, whose functions are not all marked as one")]

#[path = "common/archive.rs"]
mod archive;

use archive::File;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use steading::core::{
    derivation::{self, Derivation},
    hash::Sha256,
    store_path::StorePath,
};

/// The threads that recompute paths.
const THREADS: usize = 2;

/// What is kept of a checked file.
struct Checked {
    path: StorePath,
    inputs: Vec<StorePath>,
    output_count: usize,
}

#[test]
fn every_real_derivation_reads_back_and_every_path_in_it_is_right() {
    let files = match archive::read() {
        Ok(files) => files,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let checked = in_parallel(&files, check_file);
    let hashes = hashes_modulo(&files, &checked);
    let verified = AtomicUsize::new(0);
    let pairs: Vec<_> = files.iter().zip(&checked).collect();
    in_parallel(&pairs, |(file, checked)| {
        let derivation = Derivation::parse(&file.bytes).unwrap();
        // Parts of a closure are welcome too; what is left out is counted below.
        if derivation.fixed_output().is_none()
            && checked.inputs.iter().any(|input| !hashes.contains_key(input))
        {
            return;
        }
        let name = checked.path.name().strip_suffix(".drv").unwrap();
        let result = derivation.verify_outputs(name, &mut |input| hashes.get(input).copied());
        result.unwrap_or_else(|error| panic!("{}: {error}", file.name));
        verified.fetch_add(checked.output_count, Ordering::Relaxed);
    });
    let outputs: usize = checked.iter().map(|c| c.output_count).sum();
    let inputs: usize = checked.iter().map(|c| c.inputs.len()).sum();
    let bytes: usize = files.iter().map(|f| f.bytes.len()).sum();
    let verified = verified.into_inner();
    println!(
        "{} derivations of {bytes} bytes with {inputs} input derivations read back and have the \
         right path; {verified} of {outputs} output paths are right, the others lack inputs",
        files.len()
    );
    assert!(!files.is_empty() && verified > 0, "there was nothing to test");
    let complete = checked.iter().flat_map(|c| &c.inputs).all(|i| hashes.contains_key(i));
    assert!(!complete || verified == outputs, "an output was left out");
}

/// Checks that a file reads back byte for byte and has the path that its name says.
fn check_file(file: &File) -> Checked {
    let derivation =
        Derivation::parse(&file.bytes).unwrap_or_else(|error| panic!("{}: {error}", file.name));
    assert!(derivation.to_bytes() == file.bytes, "{} is written differently", file.name);
    let path = format!("{}/{}", derivation.store_dir(), file.name).parse().unwrap();
    derivation::verify_path(&path, &file.bytes, &derivation)
        .unwrap_or_else(|error| panic!("{}: {error}", file.name));
    Checked {
        path,
        inputs: derivation.input_derivations.iter().map(|(input, _)| input.clone()).collect(),
        output_count: derivation.outputs.len(),
    }
}

/// Computes the hashes modulo of all derivations whose inputs are there, inputs first.
fn hashes_modulo(files: &[File], checked: &[Checked]) -> BTreeMap<StorePath, Sha256> {
    let places: BTreeMap<_, _> =
        checked.iter().enumerate().map(|(place, c)| (&c.path, place)).collect();
    let mut waiting: Vec<usize> = checked.iter().map(|c| c.inputs.len()).collect();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); files.len()];
    for (place, checked) in checked.iter().enumerate() {
        for input in checked.inputs.iter().filter_map(|input| places.get(input)) {
            dependents[*input].push(place);
        }
    }
    let mut hashes = BTreeMap::new();
    let mut ready: Vec<usize> = (0..files.len()).filter(|place| waiting[*place] == 0).collect();
    while let Some(place) = ready.pop() {
        let derivation = Derivation::parse(&files[place].bytes).unwrap();
        let hash = derivation.hash_modulo(&mut |input| hashes.get(input).copied()).unwrap();
        hashes.insert(checked[place].path.clone(), hash);
        for dependent in &dependents[place] {
            waiting[*dependent] -= 1;
            if waiting[*dependent] == 0 {
                ready.push(*dependent);
            }
        }
    }
    hashes
}

/// Applies `function` to all items, and returns the results in their order.
fn in_parallel<T: Sync, R: Send>(items: &[T], function: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let share = items.len().div_ceil(THREADS).max(1);
    thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(share)
            .map(|items| scope.spawn(|| items.iter().map(&function).collect::<Vec<R>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}
