//! Any bytes are a command line that calls a verb, or are refused in words that a terminal can show.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steading::commands::called;

/// The longest refusal, in bytes: what was wrong is repeated as an excerpt only, help included.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

fuzz_target!(|line: &[u8]| {
    if let Err(text) = called(line) {
        assert!(!text.trim().is_empty() && text.len() <= REFUSAL_BYTES_MAX);
        let unshowable = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(unshowable), "{}", text.escape_debug());
    }
});
