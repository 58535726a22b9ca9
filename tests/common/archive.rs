//! A whole distribution's derivations, from a folder or an archive.
//!
//! `STEADING_DRVS` names a directory of `.drv` files, or a `.tar.zst` archive of one. Without it the
//! archive is looked for beside the source tree.

use fs_err as fs;
use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

/// The archive, seen from the package's directory.
const ARCHIVE: &str = "../shared/data/drvs-guix.tar.zst";
/// The archive was made with `zstd --long=27`: 128 MiB of window.
const WINDOW_LOG_MAX: u32 = 27;

/// One file: its name and its bytes.
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Returns all derivations; says why there are none.
pub(crate) fn read() -> Result<Vec<File>, String> {
    let named = std::env::var_os("STEADING_DRVS").map(PathBuf::from);
    let source =
        named.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(ARCHIVE));
    if named.is_none() && !source.exists() {
        return Err(format!("{} is not there, and STEADING_DRVS is not set", source.display()));
    }
    Ok(if source.is_dir() { read_directory(&source) } else { read_archive(&source) })
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
