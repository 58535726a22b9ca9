//! How the coordinator refuses to start: every refusal says what to do.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Starts a coordinator that must refuse, and returns what it says.
fn refusal(state: &Path, more: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_steading"))
        .arg("coordinator")
        .arg("--state")
        .arg(state)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "it must not say READY");
    String::from_utf8(output.stderr).unwrap()
}

/// Starts a coordinator that must get ready.
fn started(state: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_steading"))
        .arg("coordinator")
        .arg("--state")
        .arg(state)
        .args(["--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "READY"));
    child
}

#[test]
fn an_unknown_key_in_the_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("steading.toml"), "prioritystep = 3\n").unwrap();
    let said = refusal(dir.path(), &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("prioritystep") && said.contains("`priority-step`"), "{said}");
    assert!(said.contains("steading.toml"), "{said}");
}

#[test]
fn a_named_configuration_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusal(dir.path(), &["--config", "/nonexistent/steading.toml"]);
    assert!(said.contains("/nonexistent/steading.toml"), "{said}");
}

#[test]
fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refusal(dir.path(), &["--listen", &address]);
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("listen"), "it should say what to do: {said}");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs_err::write(&file, "").unwrap();
    // Root may write everywhere, but nobody can make a directory in a file.
    let said = refusal(&file.join("state"), &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("--state") && said.contains("file/state"), "{said}");
}

#[test]
fn a_second_coordinator_on_the_same_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = started(dir.path());
    let said = refusal(dir.path(), &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("another coordinator"), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn a_damaged_database_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("steading.db"), [b'x'; 8192]).unwrap();
    let said = refusal(dir.path(), &["--listen", "127.0.0.1:0"]);
    assert!(said.contains("steading.db"), "{said}");
}

#[test]
fn what_nobody_will_go_on_with_is_swept_away_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let stream = dir.path().join("incoming/stream-of-an-earlier-process");
    fs_err::create_dir_all(stream.parent().unwrap()).unwrap();
    fs_err::write(&stream, "half a nar").unwrap();
    let mut coordinator = started(dir.path());
    assert!(!stream.exists());
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
}
