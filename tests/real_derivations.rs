//! Reads a whole distribution's derivations and recomputes every path in them.
//!
//! `STEADING_DRVS` names a directory of `.drv` files, or a `.tar.zst` archive of one. Without it the
//! archive is looked for beside the source tree; if that is not there, nothing is tested, and the
//! output says so. Run with `--nocapture` for the counts.

#![expect(clippy::unwrap_used, reason = "a test, whose functions are not all marked as one")]

use fs_err as fs;
use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use steading::core::{
    derivation::{self, Derivation},
    hash::Sha256,
    store_path::StorePath,
};

/// The archive, seen from the package's directory.
const ARCHIVE: &str = "../shared/data/drvs-guix.tar.zst";
/// The archive was made with `zstd --long=27`: 128 MiB of window.
const WINDOW_LOG_MAX: u32 = 27;
/// The threads that recompute paths.
const THREADS: usize = 2;

/// One file: its name and its bytes.
struct File {
    name: String,
    bytes: Vec<u8>,
}

/// What is kept of a checked file.
struct Checked {
    path: StorePath,
    inputs: Vec<StorePath>,
    output_count: usize,
}

#[test]
fn every_real_derivation_reads_back_and_every_path_in_it_is_right() {
    let source = match std::env::var_os("STEADING_DRVS") {
        Some(named) => PathBuf::from(named),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(ARCHIVE),
    };
    if std::env::var_os("STEADING_DRVS").is_none() && !source.exists() {
        println!("skipped: {} is not there, and STEADING_DRVS is not set", source.display());
        return;
    }
    let files = if source.is_dir() { read_directory(&source) } else { read_archive(&source) };
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

/// Reads the `.drv` files of a directory.
fn read_directory(directory: &Path) -> Vec<File> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let derivations = entries.filter(|path| path.extension().is_some_and(|e| e == "drv"));
    derivations
        .map(|path| File {
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            bytes: fs::read(&path).unwrap(),
        })
        .collect()
}

/// Reads the `.drv` files of a compressed tar archive, in memory.
fn read_archive(archive: &Path) -> Vec<File> {
    let mut decoder = zstd::Decoder::new(fs::File::open(archive).unwrap()).unwrap();
    decoder.window_log_max(WINDOW_LOG_MAX).unwrap();
    let mut files = Vec::new();
    let mut long_name = None;
    loop {
        let mut header = [0u8; 512];
        decoder.read_exact(&mut header).unwrap();
        if header == [0; 512] {
            return files;
        }
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        let mut bytes = vec![0; size.next_multiple_of(512)];
        decoder.read_exact(&mut bytes).unwrap();
        bytes.truncate(size);
        match header[156] {
            // GNU tar: the content is the name of the next entry.
            b'L' => long_name = Some(text(&bytes)),
            // POSIX tar: lines of `LENGTH KEY=VALUE`, one of which may be the name.
            b'x' => {
                let records = text(&bytes);
                let name = records.lines().find_map(|line| line.split_once(" path="));
                long_name = name.map(|(_, name)| name.to_owned()).or(long_name);
            }
            b'0' | 0 => {
                let short_name = || text(&header[..100]);
                let path = PathBuf::from(long_name.take().unwrap_or_else(short_name));
                if path.extension().is_some_and(|e| e == "drv") {
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    files.push(File { name, bytes });
                }
            }
            _ => long_name = None,
        }
    }
}

/// Returns a field of a tar header as text, without what pads it.
fn text(field: &[u8]) -> String {
    let text = field.split(|b| *b == 0).next().unwrap_or_default();
    std::str::from_utf8(text).unwrap().trim().to_owned()
}
