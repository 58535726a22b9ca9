//! The process of one attempt: `steading attempt SPOOL_DIR`, for the agent's own use.
//!
//! It reads its order from the spool, builds, packs the outputs and leaves the result there. It
//! talks to no coordinator and outlives the agent that started it. Standard input is the lock of
//! the spool, which tells agents that this process lives; it is held by doing nothing with it.

use super::{
    pack,
    spool::{AttemptResult, LOG_LIMITS, Order, Spool},
};
use crate::{
    builders::{self, BuildOrder, Builder},
    core::{
        derivation::Derivation,
        outcome::{Outcome, SetupFailure},
        store_path::StorePath,
    },
    logbook::Writer,
    telemetry,
};
use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

/// The hidden subcommand that [`main`] implements; the spool directory is its one argument.
pub const SUBCOMMAND: &str = "attempt";
/// How many missing paths one result names; the next attempt tells of the others.
const MISSING_MAX: usize = 500;
/// The longest text in a result, in characters; daemons can be wordy.
const TEXT_CHARS_MAX: usize = 4_000;

/// Runs the attempt whose spool this is. Every end of the build is a success of this process; it
/// fails only when it cannot leave a result, and then says why on standard error.
#[must_use]
pub fn main(spool_dir: &Path) -> ExitCode {
    let spool = Spool::at(spool_dir.to_owned());
    match run(&spool) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when this cannot be written either.
            let _written = writeln!(io::stderr(), "no result: {}", telemetry::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Builds, and writes the result.
fn run(spool: &Spool) -> io::Result<()> {
    // Signals to the agent's terminal or group must not end builds. It fails only where a person
    // started this process by hand, and then nothing is lost.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "attempt stays in the session it was started in");
    }
    // What a builder leaves behind becomes this process's child, wherever it hides, so that ending
    // the attempt finds it. Kernels have had this since 3.4.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (order, derivation) = spool.order()?;
    let result = match Derivation::parse(&derivation) {
        Ok(derivation) => perform(spool, &order, &derivation),
        Err(error) => {
            let refused = SetupFailure::Refused(telemetry::chain(&error));
            AttemptResult::without_outputs(Outcome::SetupFailed(refused))
        }
    };
    if result.outputs.is_empty() {
        // What was packed before an error would only fill the disk.
        remove_nars(spool)?;
    }
    spool.write_result(&result)
}

/// Does what the order says.
fn perform(spool: &Spool, order: &Order, derivation: &Derivation<'_>) -> AttemptResult {
    let built = || -> Result<(Outcome, Box<dyn Builder>), SetupFailure> {
        let mut builder =
            builders::open(order.builder.clone()).map_err(|error| error.setup_failure())?;
        let outcome = build(spool, order, derivation, builder.as_mut())?;
        Ok((outcome, builder))
    };
    let (outcome, mut builder) = match built() {
        Ok(built) => built,
        Err(failure) => return AttemptResult::without_outputs(limited(failure)),
    };
    match outcome {
        Outcome::Built => {}
        Outcome::SetupFailed(failure) => return AttemptResult::without_outputs(limited(failure)),
        Outcome::Failed(_) | Outcome::Canceled => return AttemptResult::without_outputs(outcome),
    }
    let outputs = derivation.outputs.iter();
    let packed = outputs
        .map(|output| pack::pack(builder.as_mut(), spool, &output.name, &output.path))
        .collect::<Result<Vec<_>, _>>();
    match packed {
        Ok(outputs) => AttemptResult { outcome: Outcome::Built, outputs },
        Err(error) => match error.outcome() {
            Outcome::SetupFailed(failure) => AttemptResult::without_outputs(limited(failure)),
            outcome => AttemptResult::without_outputs(outcome),
        },
    }
}

/// Makes the builder build, with its log going to the spool.
fn build(
    spool: &Spool,
    order: &Order,
    derivation: &Derivation<'_>,
    builder: &mut dyn Builder,
) -> Result<Outcome, SetupFailure> {
    let outputs: Vec<StorePath> =
        derivation.outputs.iter().map(|output| output.path.clone()).collect();
    builder.root(&order.input_paths).map_err(|error| error.setup_failure())?;
    builder.remove(&outputs).map_err(|error| error.setup_failure())?;
    let mut log = Log::open(spool).map_err(|error| spool_failure(&error))?;
    spool.mark_started().map_err(|error| spool_failure(&error))?;
    let build_order = BuildOrder {
        drv_path: &order.allocation.derivation,
        derivation,
        input_paths: &order.input_paths,
        timeout: order.allocation.timeout_ms.map(Duration::from_millis),
        max_silent: order.allocation.max_silent_ms.map(Duration::from_millis),
        cores: order.cores,
    };
    builder
        .build(&build_order, &mut |bytes| log.append(bytes))
        .map_err(|error| error.setup_failure())
}

/// Returns what is reported when the spool cannot be written.
pub(super) fn spool_failure(error: &io::Error) -> SetupFailure {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        SetupFailure::DiskFull
    } else {
        SetupFailure::Refused(format!("the spool cannot be written: {error}"))
    }
}

/// Returns the outcome with no more paths and text than fit into a message.
pub(super) fn limited(failure: SetupFailure) -> Outcome {
    let cut = |text: String| text.chars().take(TEXT_CHARS_MAX).collect();
    Outcome::SetupFailed(match failure {
        SetupFailure::MissingInputs(mut paths) => {
            paths.truncate(MISSING_MAX);
            SetupFailure::MissingInputs(paths)
        }
        SetupFailure::DaemonUnreachable(text) => SetupFailure::DaemonUnreachable(cut(text)),
        SetupFailure::Refused(text) => SetupFailure::Refused(cut(text)),
        SetupFailure::AttemptLost(text) => SetupFailure::AttemptLost(cut(text)),
        failure @ (SetupFailure::DiskFull | SetupFailure::OutputsPresent(_)) => failure,
    })
}

/// Removes the packed outputs.
fn remove_nars(spool: &Spool) -> io::Result<()> {
    for entry in fs_err::read_dir(spool.dir())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "zst") {
            fs_err::remove_file(path)?;
        }
    }
    Ok(())
}

/// The log. That it cannot be written is no reason to end a build: what the disk does not take is
/// missing, and what comes behind it is tried again.
struct Log {
    writer: Writer,
    /// How much was printed.
    bytes: u64,
    /// Whether the last bytes could not be written.
    broken: bool,
}

impl Log {
    fn open(spool: &Spool) -> io::Result<Self> {
        let writer = Writer::open(spool.dir().to_owned(), LOG_LIMITS)?;
        Ok(Self { bytes: writer.end(), writer, broken: false })
    }

    fn append(&mut self, bytes: &[u8]) {
        let written = self.writer.append(self.bytes, bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if let Err(error) = &written
            && !self.broken
        {
            let _written = writeln!(io::stderr(), "a part of the log is lost: {error}");
        }
        self.broken = written.is_err();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Readers then learn of what is missing at the end; nobody else would.
        if let Err(error) = self.writer.note_end(self.bytes) {
            let _written = writeln!(io::stderr(), "the end of the log is lost: {error}");
        }
    }
}
