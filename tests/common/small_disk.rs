//! A small filesystem that can be filled, in a mount namespace of its own.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Mounts the filesystem and then lives as long as its standard input is open.
const MOUNT: &str = r#"
set -eu
mount -t tmpfs -o "size=$2m,mode=0755" tmpfs "$1"
echo mounted
exec cat
"#;

/// The filesystem. It is gone when this is.
pub(crate) struct SmallDisk {
    keeper: Child,
    dir: TempDir,
}

impl SmallDisk {
    /// Makes a filesystem of so many MiB, or says why there can be none here.
    pub(crate) fn mount(mib: u32) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("disk").tempdir_in("/tmp").unwrap();
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--", "sh", "-c", MOUNT, "mount"])
            .arg(dir.path())
            .arg(mib.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare cannot be run: {error}"))?;
        let mut said = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        if said != "mounted\n" {
            let output = keeper.wait_with_output().unwrap();
            return Err(format!("no tmpfs can be mounted: {}", output.stderr.escape_ascii()));
        }
        Ok(Self { keeper, dir })
    }

    /// Returns where the filesystem is seen from outside; inside, the rest of the path is enough.
    pub(crate) fn outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(self.dir.path().strip_prefix("/").unwrap())
    }

    /// Returns the words in front of a command that is to see the filesystem.
    pub(crate) fn enclosure(&self) -> Vec<OsString> {
        let target = format!("--target={}", self.keeper.id());
        ["nsenter", &target, "--mount", "--"].map(OsString::from).to_vec()
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut filler = fs_err::File::create(self.filler()).unwrap();
        let mut piece = vec![0; 64 << 10];
        while !piece.is_empty() {
            while filler.write_all(&piece).is_ok() {}
            piece.truncate(piece.len() / 2);
        }
    }

    /// Makes room again.
    pub(crate) fn make_room(&self) {
        fs_err::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.outside().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The end of its input ends it, and that the namespace, when nobody else is in it.
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
    }
}
