//! The program `guix` as a guix-daemon calls it: builds go to the farm, and what the farm has comes
//! from there.
//!
//! A guix-daemon runs the program that the variable `GUIX` names with the verbs `offload`,
//! `substitute` and a few more. This room plays that program on a machine whose daemon is as Guix
//! made it: it owns what is said with the daemon over standard input, standard error and
//! descriptor 4, and what is asked of the coordinator with the stock `ssh`. It decides nothing
//! about builds, keeps no state of its own, and every verb that it does not play is the real
//! guix's.
//!
//! The one entry point is [`run`], called by `main` for `steading guix …` and for a program called
//! [`NAME`]. The table of what can be set is at the head of `settings.rs`. The daemon's side of the conversations
//! is in Guix `nix/libstore/build.cc` and `guix/scripts/{offload,substitute}.scm`; nothing here has
//! a thread that outlives its request, and all of it blocks.

mod build;
mod closure;
mod farm;
mod follow;
mod keeping;
mod nars;
mod offload;
mod real;
mod settings;
mod substitute;

use crate::core::store_path::StorePath;
use settings::Settings;
use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufRead, Read as _, Write as _},
    process::ExitCode,
};

/// The name under which the program is `steading guix`: the daemon runs one path, without words in
/// front of its verb.
pub const NAME: &str = "steading-guix";
/// The verb of the process that cancels what was submitted by one that was killed.
const KEEPING: &str = "offload-keeping";
/// The longest line of the daemon, in bytes: the closures of the largest packages are some
/// megabytes of names.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// Where answers and logs go besides standard error (Guix `nix/libutil/util.cc`, `Agent`).
const ANSWERS: i32 = 4;

/// Why a verb could not be played.
#[derive(Debug, thiserror::Error)]
pub enum GuixProgramError {
    /// There is no real guix to pass a verb on to.
    #[error(
        "the real guix cannot be run; is it in PATH? ‘guix’ in the file of settings names another"
    )]
    Real(#[source] io::Error),
    /// The daemon's side of a pipe cannot be used.
    #[error("the daemon cannot be spoken to; this is called by guix-daemon, not by people")]
    Daemon(#[source] io::Error),
    /// The daemon asked for something unknown.
    #[error("the daemon said what is not understood: {0}")]
    Request(String),
}

/// Plays the verb in `words`, or becomes the real guix.
///
/// # Errors
/// A [`GuixProgramError`]. What goes wrong with a build is told to the daemon in its own way.
pub fn run(words: &[OsString]) -> Result<ExitCode, GuixProgramError> {
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(error) => {
            // A daemon without its farm still builds: people should not be locked out of a machine
            // by a typing mistake.
            remark(&format!("nothing is taken to the farm: {}", crate::telemetry::chain(&error)));
            Settings::without_farm()
        }
    };
    let texts: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    match texts.as_deref() {
        Some(["offload", system, max_silent, trace, timeout])
            if let Some(terms) = offload::Terms::parse(system, max_silent, trace, timeout) =>
        {
            offload::serve(&settings, &terms)
        }
        Some([KEEPING, key]) => keeping::serve(&settings, key),
        Some(["substitute", "--query"]) if settings.substitutes() => {
            substitute::query(&settings, words)
        }
        Some(["substitute", "--substitute"]) if settings.substitutes() => {
            substitute::substitute(&settings, words)
        }
        _ => Err(real::become_it(&settings, words)),
    }
}

/// Says something to whoever builds; the daemon passes it on.
fn remark(text: &str) {
    // When nobody listens any more, nobody can be told.
    io::stderr().write_all(format!("steading: {text}\n").as_bytes()).ok();
}

/// Returns the daemon's next line without its end; nothing when it has said all.
fn next_line(daemon: &mut impl BufRead) -> Result<Option<String>, GuixProgramError> {
    let mut line = String::new();
    let mut limited = daemon.take(LINE_BYTES_MAX);
    let length = limited.read_line(&mut line).map_err(GuixProgramError::Daemon)?;
    if length == 0 {
        return Ok(None);
    }
    if line.pop() != Some('\n') {
        let what = "a line that is too long or has no end".to_owned();
        return Err(GuixProgramError::Request(what));
    }
    Ok(Some(line))
}

/// Returns paths as verbs read them: one on each line.
fn lines<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> String {
    let mut lines = String::new();
    for path in paths {
        path.write_to(&mut lines);
        lines.push('\n');
    }
    lines
}

/// Opens the descriptor for answers and logs anew: without unsafe code nothing can be made of its
/// number. The children of this process inherit the number itself, too, and end before it does.
fn answers() -> Result<File, GuixProgramError> {
    let path = format!("/proc/self/fd/{ANSWERS}");
    let opened = fs_err::OpenOptions::new().write(true).open(path);
    Ok(opened.map_err(GuixProgramError::Daemon)?.into_file())
}
