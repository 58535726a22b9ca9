//! Tests of the module above.

use super::*;
use crate::formats::nar::NarLimits;
use crate::formats::nar::sample::{ROOMY, Tree, any_tree};
use proptest::prelude::*;
use rustix::fs::{CWD, Mode, mknodat};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use tempfile::TempDir;

/// Returns the nar of the tree at `path`.
fn dumped(path: &Path) -> Result<Vec<u8>, TreeError> {
    let mut nar = Vec::new();
    dump(path, &mut nar).map(|()| nar)
}

/// Returns a directory with one of every kind that a nar can hold.
fn sample_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs_err::create_dir_all(at("tree/sub/empty")).unwrap();
    // In the order of bytes, but neither of letters nor of creation.
    for (name, content) in [("b", "two"), ("B", ""), ("a.b", "12345678"), ("é", "x"), ("a", "y")] {
        fs_err::write(at("tree").join(name), content).unwrap();
    }
    fs_err::write(at("tree/sub/large"), vec![7; 300_001]).unwrap();
    fs_err::write(at("tree/sub/run"), "#!/bin/sh\n").unwrap();
    fs_err::set_permissions(at("tree/sub/run"), PermissionsExt::from_mode(0o744)).unwrap();
    symlink("../a", at("tree/sub/link")).unwrap();
    symlink("/nowhere", at("tree/dangling")).unwrap();
    dir
}

/// Runs `nix-store`, or prints why it cannot.
pub(super) fn nix_store(arguments: &[&str], path: &Path, input: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    // A store of its own, although none is used: without one it makes `/nix`.
    let own = tempfile::tempdir().unwrap();
    let mut command = Command::new("nix-store");
    command.args(arguments).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.env("NIX_REMOTE", "").env("NIX_STORE_DIR", own.path().join("store"));
    command.env("NIX_STATE_DIR", own.path().join("var")).env("NIX_LOG_DIR", own.path().join("log"));
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: nix-store cannot be run here: {error}");
            return None;
        }
    };
    // Neither side of these commands both reads and writes much, so this cannot block.
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
fn the_nar_of_a_tree_is_the_one_that_nix_makes() {
    let dir = sample_dir();
    for name in ["tree", "tree/a", "tree/B", "tree/sub/run", "tree/dangling", "tree/sub/empty"] {
        let path = dir.path().join(name);
        if let Some(expected) = nix_store(&["--dump"], &path, b"") {
            assert!(dumped(&path).unwrap() == expected, "{name}");
        }
    }
}

#[test]
fn nix_restores_the_tree_that_was_dumped() {
    let dir = sample_dir();
    let nar = dumped(&dir.path().join("tree")).unwrap();
    let path = dir.path().join("restored");
    if nix_store(&["--restore"], &path, &nar).is_some() {
        assert!(dumped(&path).unwrap() == nar);
    }
}

#[test]
fn a_restored_tree_has_the_modes_and_times_of_a_store() {
    let dir = sample_dir();
    let nar = dumped(&dir.path().join("tree")).unwrap();
    restore(&mut nar.as_slice(), dir.path(), "new", ROOMY).unwrap();
    assert!(dumped(&dir.path().join("new")).unwrap() == nar);
    for (name, mode) in [
        ("", 0o40555),
        ("a", 0o100_444),
        ("sub", 0o40555),
        ("sub/run", 0o100_555),
        ("dangling", 0o120_777),
    ] {
        let stat = fs_err::symlink_metadata(dir.path().join("new").join(name)).unwrap();
        assert_eq!((stat.mode(), stat.mtime()), (mode, 1), "{name}");
    }
    remove(dir.path(), "new").unwrap();
    assert!(!dir.path().join("new").exists());
    assert!(dir.path().join("tree/a").exists());
}

#[test]
fn what_no_nar_can_hold_is_named() {
    let dir = sample_dir();
    let pipe = dir.path().join("tree/sub/pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let error = dumped(&dir.path().join("tree")).unwrap_err();
    assert!(matches!(&error, TreeError::Special(path) if *path == pipe), "{error}");
    assert!(error.to_string().contains("tree/sub/pipe"));
    let missing = dir.path().join("missing");
    let error = dumped(&missing).unwrap_err();
    assert!(matches!(&error, TreeError::Io { path, .. } if *path == missing), "{error}");
}

#[test]
fn a_file_that_changes_its_size_while_it_is_read_is_an_error() {
    /// Makes the file longer as soon as its first bytes are written.
    struct Meddler(PathBuf);
    impl io::Write for Meddler {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            fs_err::write(&self.0, vec![1; 500_000])?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = sample_dir();
    let path = dir.path().join("tree/sub/large");
    let error = dump(&path, &mut Meddler(path.clone())).unwrap_err();
    assert!(matches!(&error, TreeError::Changed(changed) if *changed == path), "{error}");
    // Files of the kernel say that they are empty and are not.
    let path = Path::new("/proc/self/status");
    assert!(matches!(dumped(path), Err(TreeError::Changed(_))));
}

#[test]
fn a_failing_sink_is_told_from_a_failing_file() {
    let dir = sample_dir();
    let mut full: &mut [u8] = &mut [0; 1000];
    let error = dump(&dir.path().join("tree"), &mut full).unwrap_err();
    assert!(matches!(error, TreeError::Sink(_)), "{error}");
}

#[test]
fn what_is_there_is_neither_overwritten_nor_removed() {
    let dir = sample_dir();
    fs_err::write(dir.path().join("kept"), "kept").unwrap();
    symlink("elsewhere", dir.path().join("link")).unwrap();
    for tree in [
        Tree::Regular { executable: false, content: b"new".to_vec() },
        Tree::Symlink(b"new".to_vec()),
        Tree::Directory(std::collections::BTreeMap::new()),
    ] {
        for name in ["kept", "link", "tree"] {
            let error = restore(&mut tree.nar().as_slice(), dir.path(), name, ROOMY).unwrap_err();
            assert!(matches!(error, TreeError::Io { .. }), "{error}");
        }
    }
    assert_eq!(fs_err::read_to_string(dir.path().join("kept")).unwrap(), "kept");
    assert!(dir.path().join("tree/a").exists());
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn a_refused_nar_leaves_nothing_behind() {
    let dir = sample_dir();
    let nar = dumped(&dir.path().join("tree")).unwrap();
    let (cut, longer) = (&nar[..nar.len() - 1], [nar.as_slice(), b"x"].concat());
    let few = NarLimits { entries_max: 5, ..ROOMY };
    for (mut nar, limits, expected) in [
        (cut, ROOMY, "Nar(Truncated"),
        (&longer, ROOMY, "TrailingBytes"),
        (&nar, few, "Nar(TooManyEntries"),
    ] {
        let error = format!("{:?}", restore(&mut nar, dir.path(), "new", limits).unwrap_err());
        assert!(error.starts_with(expected), "{error}");
        assert!(fs_err::symlink_metadata(dir.path().join("new")).is_err());
    }
}

#[test]
fn only_a_plain_name_is_restored_to_or_removed() {
    let dir = sample_dir();
    let nar = Tree::Symlink(b"x".to_vec()).nar();
    for name in ["", ".", "..", "a/b", "/a", "a\0"] {
        let restored = restore(&mut nar.as_slice(), dir.path(), name, ROOMY);
        assert!(matches!(restored, Err(TreeError::Name(_))), "{name}");
        assert!(matches!(remove(dir.path(), name), Err(TreeError::Name(_))), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_tree_is_restored_and_dumped_again(tree in any_tree()) {
        let dir = TempDir::new().unwrap();
        let nar = tree.nar();
        restore(&mut nar.as_slice(), dir.path(), "tree", ROOMY).unwrap();
        prop_assert!(dumped(&dir.path().join("tree")).unwrap() == nar);
        remove(dir.path(), "tree").unwrap();
        prop_assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0);
    }
}
