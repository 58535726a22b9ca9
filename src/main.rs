//! The binary; its parts arrive with their rooms.

use std::process::ExitCode;
use steading::builders::direct::sandbox;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // Before anything starts a thread: namespaces are entered by processes that have one.
    if words.next().is_some_and(|first| first == sandbox::SUBCOMMAND) {
        return sandbox::enter(words);
    }
    ExitCode::SUCCESS
}
