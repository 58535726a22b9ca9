//! The thin clients: `steading VERB …` and `steading submit DRV…` run the stock `ssh`.
//!
//! Packing leaves the store to the program that owns it: `nix-store` or `guix` say what the closure
//! is and export it; only what the coordinator lacks is sent. No shell is run anywhere.

use crate::core::store_path::{InvalidStorePath, StorePath};
use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

/// The variable that says how ssh reaches the coordinator.
const DESTINATION: &str = "STEADING_COORDINATOR";
/// How many paths one export command is given: well below the 2 MiB that arguments may have.
const PATHS_PER_EXPORT: usize = 2_000;
/// The end of an export stream: a zero, as eight bytes.
const END_BYTES: usize = 8;

/// Why a client could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody said where the coordinator is.
    #[error(
        "where is the coordinator? set STEADING_COORDINATOR to what ssh takes, such as \
             ‘-p 2222 coordinator.example.org’, or use --to DEST"
    )]
    NoDestination,
    /// The destination cannot be split into words.
    #[error("‘{0}’ has an unclosed quote")]
    Destination(String),
    /// `--to` without a value.
    #[error("--to needs a destination")]
    NoTo,
    /// There is no derivation among the words.
    #[error("name at least one derivation: a store path that ends in .drv")]
    NoDerivation,
    /// What a program printed is not a store path.
    #[error("{program} printed what is not a store path")]
    Path {
        /// The program.
        program: String,
        /// What is wrong with it.
        #[source]
        source: InvalidStorePath,
    },
    /// A program could not be started or spoken to.
    #[error("{program} could not be run; is it installed?")]
    Run {
        /// The program.
        program: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {status}")]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
    },
}

/// Runs a verb on the coordinator and returns its exit status.
///
/// # Errors
/// [`ClientError`] when `ssh` cannot be run.
pub fn verb(words: &[String]) -> Result<ExitCode, ClientError> {
    let destination = destination(None)?;
    let status = ssh(&destination, words)
        .status()
        .map_err(|source| ClientError::Run { program: "ssh".to_owned(), source })?;
    Ok(exit_code(status))
}

/// Packs the closures of local derivations, sends what the coordinator lacks, and submits them.
/// `words` are derivations, options of the verb, and `--to DEST`.
///
/// # Errors
/// [`ClientError`].
pub fn submit(words: &[String]) -> Result<ExitCode, ClientError> {
    let Words { to, derivations, options } = sort_words(words)?;
    let destination = destination(to.as_deref())?;
    let tool = Tool::of(&derivations[0]);
    let closure = tool.closure(&derivations)?;
    let missing = missing(&destination, &closure)?;
    let mut line = vec!["submit".to_owned(), "--closure".to_owned()];
    if missing.is_empty() {
        // Everything is there: an ordinary submission, which builds inputs too, like a closure.
        line.pop();
        if !options.iter().any(|option| option == "--no-inputs") {
            line.push("--with-inputs".to_owned());
        }
    }
    line.extend(options);
    line.extend(derivations.iter().map(StorePath::to_string));
    let mut child = start(ssh(&destination, &line).stdin(Stdio::piped()), "ssh")?;
    let sent = match child.stdin.take() {
        Some(stdin) if !missing.is_empty() => tool.export(&missing, stdin),
        Some(_) | None => Ok(()),
    };
    let status = wait(&mut child, "ssh")?;
    // When the coordinator refused the stream, its own words have been printed: they say more than
    // the broken pipe does.
    if status.success() {
        sent?;
    }
    Ok(exit_code(status))
}

/// The words of `steading submit`, sorted.
struct Words {
    to: Option<String>,
    derivations: Vec<StorePath>,
    options: Vec<String>,
}

fn sort_words(words: &[String]) -> Result<Words, ClientError> {
    let mut sorted = Words { to: None, derivations: Vec::new(), options: Vec::new() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--to" {
            sorted.to = Some(words.next().ok_or(ClientError::NoTo)?.clone());
        } else if let Some(destination) = word.strip_prefix("--to=") {
            sorted.to = Some(destination.to_owned());
        } else {
            match word.parse::<StorePath>() {
                Ok(path) if path.is_derivation() => sorted.derivations.push(path),
                Ok(_) | Err(_) => sorted.options.push(word.clone()),
            }
        }
    }
    if sorted.derivations.is_empty() { Err(ClientError::NoDerivation) } else { Ok(sorted) }
}

/// Returns the words that `ssh` needs to reach the coordinator.
fn destination(to: Option<&str>) -> Result<Vec<String>, ClientError> {
    let text = match to {
        Some(to) => to.to_owned(),
        None => std::env::var(DESTINATION).map_err(|_| ClientError::NoDestination)?,
    };
    let words = shell_words::split(&text).map_err(|_| ClientError::Destination(text.clone()))?;
    if words.is_empty() { Err(ClientError::NoDestination) } else { Ok(words) }
}

/// Returns the command that runs a line on the coordinator. Words are quoted as the coordinator
/// splits them.
fn ssh(destination: &[String], words: &[String]) -> Command {
    let mut command = Command::new("ssh");
    command.args(destination).arg("--").arg(shell_words::join(words));
    command
}

/// Returns those of `paths` that the coordinator does not hold.
fn missing(destination: &[String], paths: &[StorePath]) -> Result<Vec<StorePath>, ClientError> {
    let words = ["missing".to_owned(), "-".to_owned()];
    let mut command = ssh(destination, &words);
    let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()), "ssh")?;
    let failed = |source| ClientError::Run { program: "ssh".to_owned(), source };
    let stdin = child.stdin.take();
    let lines: Vec<String> = paths.iter().map(StorePath::to_string).collect();
    let text = lines.join("\n") + "\n";
    // Both pipes are served at once: the answer may begin before the question has ended.
    let writer = std::thread::spawn(move || match stdin {
        Some(mut stdin) => stdin.write_all(text.as_bytes()),
        None => Ok(()),
    });
    let answer = match child.stdout.take() {
        Some(stdout) => read_paths(stdout, "the coordinator"),
        None => Ok(Vec::new()),
    };
    let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
    check(wait(&mut child, "ssh")?, "ssh missing")?;
    written.map_err(failed)?;
    answer
}

/// The program that owns the local store.
#[derive(Clone, Copy)]
enum Tool {
    Nix,
    Guix,
}

impl Tool {
    fn of(path: &StorePath) -> Self {
        if path.dir().as_str() == "/gnu/store" { Self::Guix } else { Self::Nix }
    }

    /// Returns derivations and all they need to be built, what is needed first.
    fn closure(self, derivations: &[StorePath]) -> Result<Vec<StorePath>, ClientError> {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Nix => ("nix-store", &["--query", "--requisites", "--"]),
            Self::Guix => ("guix", &["gc", "--requisites"]),
        };
        let mut command = Command::new(program);
        command.args(arguments).args(derivations.iter().map(StorePath::to_string));
        let mut child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()), program)?;
        let paths = match child.stdout.take() {
            Some(stdout) => read_paths(stdout, program),
            None => Ok(Vec::new()),
        };
        check(wait(&mut child, program)?, program)?;
        paths
    }

    /// Writes one export stream of all `paths`: those of several commands, without the ends
    /// between them.
    fn export(self, paths: &[StorePath], mut sink: impl Write) -> Result<(), ClientError> {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Nix => ("nix-store", &["--export", "--"]),
            Self::Guix => ("guix", &["archive", "--export"]),
        };
        let failed = |source| ClientError::Run { program: program.to_owned(), source };
        for part in paths.chunks(PATHS_PER_EXPORT) {
            let mut command = Command::new(program);
            command.args(arguments).args(part.iter().map(StorePath::to_string));
            let mut child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()), program)?;
            if let Some(stdout) = child.stdout.take() {
                copy_but_the_end(stdout, &mut sink).map_err(failed)?;
            }
            check(wait(&mut child, program)?, program)?;
        }
        sink.write_all(&[0; END_BYTES]).and_then(|()| sink.flush()).map_err(failed)
    }
}

/// Copies a stream except for its last [`END_BYTES`] bytes.
fn copy_but_the_end(mut source: impl Read, sink: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    let mut kept = 0;
    loop {
        let length = source.read(&mut buffer[kept..])?;
        if length == 0 {
            return Ok(());
        }
        let filled = kept + length;
        let ready = filled.saturating_sub(END_BYTES);
        sink.write_all(&buffer[..ready])?;
        buffer.copy_within(ready..filled, 0);
        kept = filled - ready;
    }
}

fn read_paths(source: impl Read, program: &str) -> Result<Vec<StorePath>, ClientError> {
    let mut paths = Vec::new();
    for line in BufReader::new(source).lines() {
        let line =
            line.map_err(|source| ClientError::Run { program: program.to_owned(), source })?;
        let path = line
            .parse()
            .map_err(|source| ClientError::Path { program: program.to_owned(), source })?;
        paths.push(path);
    }
    Ok(paths)
}

fn start(command: &mut Command, program: &str) -> Result<Child, ClientError> {
    command.spawn().map_err(|source| ClientError::Run { program: program.to_owned(), source })
}

fn wait(child: &mut Child, program: &str) -> Result<ExitStatus, ClientError> {
    child.wait().map_err(|source| ClientError::Run { program: program.to_owned(), source })
}

fn check(status: ExitStatus, program: &str) -> Result<(), ClientError> {
    if status.success() {
        return Ok(());
    }
    Err(ClientError::Failed { program: program.to_owned(), status })
}

/// Passes an exit status on; a program that a signal ended counts as failed.
fn exit_code(status: ExitStatus) -> ExitCode {
    match status.code().map(u8::try_from) {
        Some(Ok(code)) => ExitCode::from(code),
        Some(Err(_)) | None => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello.drv";

    #[test]
    fn words_are_sorted_into_derivations_options_and_destination() {
        let words: Vec<String> =
            ["--priority", "5", DRV, "--to", "-p 2222 farm", "--wait"].map(str::to_owned).to_vec();
        let sorted = sort_words(&words).unwrap();
        assert_eq!(sorted.derivations.len(), 1);
        assert_eq!(sorted.options, ["--priority", "5", "--wait"]);
        assert_eq!(destination(sorted.to.as_deref()).unwrap(), ["-p", "2222", "farm"]);
        assert!(matches!(sort_words(&words[..2]), Err(ClientError::NoDerivation)));
    }

    #[test]
    fn the_end_of_a_stream_is_left_out_whatever_its_pieces() {
        struct Drip<'a>(&'a [u8]);
        impl Read for Drip<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.0.len().min(3).min(buffer.len());
                buffer[..length].copy_from_slice(&self.0[..length]);
                self.0 = &self.0[length..];
                Ok(length)
            }
        }
        let stream: Vec<u8> = (0..100).collect();
        let mut sink = Vec::new();
        copy_but_the_end(Drip(&stream), &mut sink).unwrap();
        assert_eq!(sink, &stream[..92]);
    }
}
