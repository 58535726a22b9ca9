//! `substitute`: what the farm has comes from there, everything else is the real guix's.
//!
//! The daemon says one line and reads the answer before it says the next. Answers go to
//! descriptor 4, which the real guix inherits: it is told only what remains, and ends the answer
//! itself. So nothing that it says passes through here. Source: Guix
//! `nix/libstore/local-store.cc` (`querySubstitutablePathInfos`), `nix/libstore/build.cc`
//! (`SubstitutionGoal`), `guix/scripts/substitute.scm`.

use super::{
    GuixProgramError, answers,
    farm::{Farm, FarmError},
    nars::{self, Held, Keys, NotTaken},
    next_line, real, remark,
    settings::Settings,
};
use crate::{core::store_path::StorePath, telemetry};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    path::Path,
    process::{ChildStdin, ExitCode, Stdio},
    thread::{self, JoinHandle},
};

/// For how long a farm that was away is left alone, in milliseconds.
const AWAY_MS: u64 = 60_000;

/// The farm as a place to fetch from, and the real guix for everything else.
struct Source<'a> {
    farm: Farm<'a>,
    keys: Keys<'a>,
    /// When the farm was not reached.
    away_at: Option<u64>,
    answers: File,
    rest: Rest<'a>,
}

/// The real guix, started when it is first needed.
struct Rest<'a> {
    settings: &'a Settings,
    words: &'a [OsString],
    running: Option<(ChildStdin, JoinHandle<()>)>,
}

impl Rest<'_> {
    /// Tells it a request, which it answers.
    fn tell(&mut self, line: &str) -> Result<(), GuixProgramError> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        running.0.write_all(format!("{line}\n").as_bytes()).map_err(GuixProgramError::Real)?;
        self.running = Some(running);
        Ok(())
    }

    fn start(&self) -> Result<(ChildStdin, JoinHandle<()>), GuixProgramError> {
        let mut command = real::command(self.settings, self.words);
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(GuixProgramError::Real)?;
        let Some(stdin) = child.stdin.take() else {
            return Err(GuixProgramError::Real(io::ErrorKind::BrokenPipe.into()));
        };
        // The daemon waits for its answers: when it ends early, so does this process.
        let waiting = thread::spawn(move || {
            let failed = child.wait().map_or(true, |status| !status.success());
            if failed {
                std::process::exit(1);
            }
        });
        Ok((stdin, waiting))
    }

    /// The daemon wants nothing more.
    fn end(self) {
        if let Some((stdin, waiting)) = self.running {
            drop(stdin);
            // It does not panic; how the other one ended was looked at there.
            waiting.join().ok();
        }
    }
}

impl<'a> Source<'a> {
    fn new(settings: &'a Settings, words: &'a [OsString]) -> Result<Self, GuixProgramError> {
        let keys = Keys::read(settings).or_else(|error| {
            remark(&format!("nothing is fetched from the farm: {}", telemetry::chain(&error)));
            Ok(Keys::none(settings))
        })?;
        let rest = Rest { settings, words, running: None };
        let farm = Farm::new(settings);
        Ok(Self { farm, keys, away_at: None, answers: answers()?, rest })
    }

    /// Returns those of the paths that the farm has and that may be taken from there.
    fn offered(&mut self, paths: &[StorePath]) -> Vec<Held> {
        if self.away_at.is_some_and(|at| self.farm.now_ms() < at + AWAY_MS) {
            return Vec::new();
        }
        match nars::held(&self.farm, paths) {
            Ok(mut held) => {
                held.retain(|held| match self.keys.check(held) {
                    Ok(()) => true,
                    // As it is for whoever has only heard of it.
                    Err(NotTaken::OnTrust(_)) => false,
                    Err(error) => {
                        remark(&telemetry::chain(&error));
                        false
                    }
                });
                held
            }
            Err(error) => {
                remark(&format!("nothing is fetched from the farm: {}", telemetry::chain(&error)));
                self.away_at = Some(self.farm.now_ms());
                Vec::new()
            }
        }
    }

    fn answer(&mut self, text: &str) -> Result<(), GuixProgramError> {
        self.answers.write_all(text.as_bytes()).map_err(GuixProgramError::Daemon)
    }
}

/// Tells the daemon which paths are to be had.
pub(super) fn query(settings: &Settings, words: &[OsString]) -> Result<ExitCode, GuixProgramError> {
    let mut source = Source::new(settings, words)?;
    let mut daemon = io::stdin().lock();
    while let Some(line) = next_line(&mut daemon)? {
        let Some((verb @ ("have" | "info"), paths)) = line.split_once(' ') else {
            source.rest.tell(&line)?;
            continue;
        };
        let asked: Vec<&str> = paths.split_ascii_whitespace().collect();
        let known: Vec<StorePath> = asked.iter().filter_map(|path| path.parse().ok()).collect();
        let offered = source.offered(&known);
        for held in &offered {
            let text = if verb == "have" { format!("{}\n", held.info.path) } else { record(held) };
            source.answer(&text)?;
        }
        let found: BTreeSet<String> =
            offered.iter().map(|held| held.info.path.to_string()).collect();
        let others: Vec<&str> = asked.into_iter().filter(|path| !found.contains(*path)).collect();
        if others.is_empty() {
            source.answer("\n")?;
        } else {
            source.rest.tell(&format!("{verb} {}", others.join(" ")))?;
        }
    }
    source.rest.end();
    Ok(ExitCode::SUCCESS)
}

/// Returns what the daemon reads of one path: it, its deriver, its references and their number, and
/// what is to be fetched and to be stored, in bytes.
fn record(held: &Held) -> String {
    let info = &held.info;
    let deriver = info.deriver.as_ref().map(StorePath::to_string).unwrap_or_default();
    let references = super::lines(&info.references);
    // It comes as it is: ssh compresses, where that is wanted.
    format!(
        "{}\n{deriver}\n{}\n{references}{bytes}\n{bytes}\n",
        info.path,
        info.references.len(),
        bytes = info.nar_bytes
    )
}

/// Brings the paths that the daemon asks for.
pub(super) fn substitute(
    settings: &Settings,
    words: &[OsString],
) -> Result<ExitCode, GuixProgramError> {
    let mut source = Source::new(settings, words)?;
    let mut daemon = io::stdin().lock();
    while let Some(line) = next_line(&mut daemon)? {
        let Some((path, place)) = wanted(&line) else {
            source.rest.tell(&line)?;
            continue;
        };
        match source.offered(std::slice::from_ref(&path)).into_iter().next() {
            Some(held) => bring(&mut source, &held, Path::new(place), &line)?,
            None => source.rest.tell(&line)?,
        }
    }
    source.rest.end();
    Ok(ExitCode::SUCCESS)
}

/// Reads `substitute PATH PLACE`.
fn wanted(line: &str) -> Option<(StorePath, &str)> {
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("substitute"), Some(path), Some(place), None) => Some((path.parse().ok()?, place)),
        _ => None,
    }
}

/// Brings one path and tells the daemon.
fn bring(
    source: &mut Source<'_>,
    held: &Held,
    place: &Path,
    line: &str,
) -> Result<(), GuixProgramError> {
    let info = &held.info;
    match nars::unpack(&source.farm, info, place) {
        Ok(()) => source.answer(&format!("success {} {}\n", info.nar_hash, info.nar_bytes)),
        Err(NotTaken::Differs { expected, actual, .. }) => {
            let (expected, actual) = (expected.base32(), actual.base32());
            source.answer(&format!("hash-mismatch sha256 {expected} {actual}\n"))
        }
        Err(error) => {
            remark(&telemetry::chain(&error));
            if matches!(error, NotTaken::Farm(FarmError::Unreachable(_))) {
                source.away_at = Some(source.farm.now_ms());
            }
            // Somebody else may have it.
            source.rest.tell(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_path_and_a_place() {
        let path = "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello";
        let line = format!("substitute {path} {path}");
        let (read, place) = wanted(&line).unwrap();
        assert_eq!((read.to_string(), place), (path.to_owned(), path));
        for line in ["", "substitute", "substitute x y", "substitute /gnu/store/x"] {
            assert_eq!(wanted(line), None, "{line}");
        }
    }
}
