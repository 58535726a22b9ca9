//! One build that was accepted: submitted, followed, fetched.

use super::{
    closure::{self, Outputs},
    farm::{Farm, FarmError},
    follow::follow,
    keeping::{self, Keeping},
    nars::{self, Keys, NotTaken},
    offload::Terms,
    remark,
    settings::Settings,
};
use crate::{builders::tree, core::store_path::StorePath, telemetry};
use std::{
    io::{BufWriter, Write},
    path::Path,
    process::{ChildStdin, ExitCode},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// What the daemon takes for a failure of the build (Guix `nix/libstore/build.cc`).
const FAILED: u8 = 100;
/// What the daemon takes for a build over its time.
const TIMED_OUT: u8 = 101;
/// What the daemon takes for something that passes by.
const TRANSIENT: u8 = 1;
/// The longest limit that `submit` takes: a year, in seconds.
const LIMIT_S_MAX: u64 = 366 * 86_400;
/// How often a build that somebody else canceled is asked for again.
const ASKED_MAX: u32 = 3;

/// What the daemon wants.
#[derive(Debug)]
pub(super) struct Order {
    /// The derivation.
    pub(super) drv: StorePath,
    /// All it needs, itself included.
    pub(super) closure: Vec<StorePath>,
    /// Whether what was built for it here is sent along.
    pub(super) inputs: Outputs,
    /// The outputs that are to be there in the end.
    pub(super) outputs: Vec<StorePath>,
    /// What holds for all builds of this daemon.
    pub(super) terms: Terms,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The outputs are there.
    Built,
    /// The derivation cannot be built, for this reason.
    Failed(String),
    /// It ran, or was silent, for too long.
    TimedOut(String),
    /// Another try may succeed.
    Transient(String),
}

impl Ended {
    /// Tells people and the daemon.
    pub(super) fn tell(self) -> ExitCode {
        let (status, reason) = match self {
            Self::Built => return ExitCode::SUCCESS,
            Self::Failed(reason) => (FAILED, reason),
            Self::TimedOut(reason) => (TIMED_OUT, reason),
            Self::Transient(reason) => (TRANSIENT, reason),
        };
        remark(&reason);
        ExitCode::from(status)
    }
}

/// What `submit` prints.
#[derive(serde::Deserialize)]
struct Submitted {
    build: String,
}

/// What `missing` prints.
#[derive(serde::Deserialize)]
struct Missing {
    path: StorePath,
}

/// What `show` prints, as far as it matters.
#[derive(serde::Deserialize)]
struct Shown {
    state: String,
    attempts: Vec<Attempt>,
}

#[derive(serde::Deserialize)]
struct Attempt {
    end: Option<String>,
    detail: Option<String>,
}

/// Has the farm build it, and brings the outputs.
pub(super) fn run(
    settings: &Settings,
    farm: &Farm<'_>,
    order: &Order,
    log: &mut impl Write,
) -> Ended {
    if order.terms.trace {
        let line = format!("@ build-remote {} {}\n", order.drv, settings.farm_name());
        // The daemon passes it on; where it has gone, the next thing said to it fails.
        std::io::stderr().write_all(line.as_bytes()).ok();
    }
    let (over, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || keep_patient(order, &waiting));
        let ended = brought(settings, farm, order, log);
        drop(over);
        ended
    })
}

/// Says now and then that it goes on: the daemon would take the time in which a build waits for an
/// agent for silence of the build. Of that, the farm takes care.
fn keep_patient(order: &Order, over: &mpsc::Receiver<()>) {
    if order.terms.max_silent_s == 0 {
        return;
    }
    let period = Duration::from_secs(order.terms.max_silent_s) / 2;
    while matches!(over.recv_timeout(period), Err(RecvTimeoutError::Timeout)) {
        remark(&format!("{} goes on", order.drv));
    }
}

/// Has the farm build it as often as it takes, and brings the outputs.
fn brought(settings: &Settings, farm: &Farm<'_>, order: &Order, log: &mut impl Write) -> Ended {
    let farm_failed = |error: FarmError| {
        Ended::Transient(format!("{} is not built: {}", order.drv, telemetry::chain(&error)))
    };
    for _ in 0..ASKED_MAX {
        match built(settings, farm, order, log) {
            Ok(Some(Ended::Built)) => {
                return match fetch(settings, farm, &order.outputs) {
                    Ok(()) => Ended::Built,
                    Err(error) => Ended::Transient(telemetry::chain(&error)),
                };
            }
            Ok(Some(ended)) => return ended,
            // Somebody who had asked for it, too, did not want it any more.
            Ok(None) => remark(&format!("{} was canceled, and is asked for again", order.drv)),
            Err(error) => return farm_failed(error),
        }
    }
    Ended::Transient(format!("{} was canceled {ASKED_MAX} times", order.drv))
}

/// Submits it and waits for its end; nothing when it was canceled.
fn built(
    settings: &Settings,
    farm: &Farm<'_>,
    order: &Order,
    log: &mut impl Write,
) -> Result<Option<Ended>, FarmError> {
    let key = key()?;
    let keeping = Keeping::start(&key)?;
    // The same key asks for the same build, however often the connection breaks.
    let build = farm.persist(|| submit(settings, farm, order, &key))?;
    follow(farm, &build, log)?;
    let shown = farm.persist(|| farm.ask::<Shown>(&["show", &build], ""))?;
    let Some(shown) = shown.into_iter().next() else {
        return Err(FarmError::NoSuch(format!("build {build} is not shown")));
    };
    let canceled = shown.state == "canceled";
    let ended = judge(&order.drv, &build, shown);
    keeping.over();
    Ok(if canceled { None } else { Some(ended) })
}

/// Tells what the state of a build that came to rest means to the daemon.
fn judge(drv: &StorePath, build: &str, shown: Shown) -> Ended {
    let last = shown.attempts.into_iter().next_back();
    let (end, detail) = last.map_or((None, None), |attempt| (attempt.end, attempt.detail));
    let because = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    let reason = format!("{drv} {} on the farm, as build {build}{because}", shown.state);
    match (shown.state.as_str(), end.as_deref()) {
        ("succeeded", _) => Ended::Built,
        ("failed", Some("timeout" | "silent")) => Ended::TimedOut(reason),
        ("failed", _) => Ended::Failed(reason),
        // What is blocked waits for an input that failed there and is here.
        _ => Ended::Transient(reason),
    }
}

/// Returns a name for this request that no other has.
fn key() -> Result<String, FarmError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| FarmError::Input(error.to_string()))?;
    Ok(crate::core::hash::hex(&bytes))
}

/// Sends what is missing of the closure, and asks for the build; returns its id.
fn submit(
    settings: &Settings,
    farm: &Farm<'_>,
    order: &Order,
    key: &str,
) -> Result<String, FarmError> {
    let sendable = closure::sendable(&order.closure, order.inputs)?;
    let missing: Vec<Missing> = farm.ask(&["missing", "-"], &super::lines(&sendable))?;
    let missing: Vec<StorePath> = missing.into_iter().map(|missing| missing.path).collect();
    let mut words = submission(settings, order, key);
    let told = if missing.is_empty() {
        words.push("--with-inputs".to_owned());
        words.push(order.drv.to_string());
        farm.send::<Submitted>(&words, |_| Ok(()))?
    } else {
        words.push("--closure".to_owned());
        words.push(order.drv.to_string());
        farm.send::<Submitted>(&words, |stdin: ChildStdin| {
            closure::export(settings, &missing, &mut BufWriter::new(stdin))
        })?
    };
    let first = told.into_iter().next();
    first.map(|told| told.build).ok_or_else(|| FarmError::Refused("it named no build".to_owned()))
}

/// Returns the verb with all its options.
fn submission(settings: &Settings, order: &Order, key: &str) -> Vec<String> {
    // Somebody else's build of it is as good, and cancels with nobody but them.
    let mut words: Vec<String> =
        ["submit", "--skip-if-built", "--skip-if-queued", "--key", key].map(str::to_owned).to_vec();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--tag", format!("{}={key}", keeping::TAG));
    for tag in &settings.tags {
        option("--tag", tag.clone());
    }
    if let Some(priority) = settings.priority {
        option("--priority", priority.to_string());
    }
    let Terms { timeout_s, max_silent_s, trace: _ } = order.terms;
    for (name, seconds) in [("--timeout", timeout_s), ("--max-silent", max_silent_s)] {
        if seconds > 0 {
            option(name, seconds.min(LIMIT_S_MAX).to_string());
        }
    }
    words
}

/// Brings the outputs, once they were checked.
fn fetch(settings: &Settings, farm: &Farm<'_>, outputs: &[StorePath]) -> Result<(), NotTaken> {
    let keys = Keys::read(settings)?;
    let held = farm.persist(|| nars::held(farm, outputs))?;
    for path in outputs {
        let found = held.iter().find(|held| held.info.path == *path);
        let gone = || FarmError::NoSuch(format!("the farm does not hold {path}"));
        let found = found.ok_or_else(gone)?;
        keys.check(found)?;
        farm.persist(|| {
            remove_rest(path)?;
            match nars::unpack(farm, &found.info, Path::new(&path.to_string())) {
                // The one error that passes by.
                Err(NotTaken::Farm(error)) => Err(error),
                result => Ok(result),
            }
        })??;
    }
    Ok(())
}

/// Removes what an earlier try left. The daemon has the path locked, and it is not valid.
fn remove_rest(path: &StorePath) -> Result<(), FarmError> {
    if fs_err::symlink_metadata(path.to_string()).is_err() {
        return Ok(());
    }
    let dir = Path::new(path.dir().as_str());
    tree::remove(dir, &path.base_name()).map_err(|error| FarmError::Input(telemetry::chain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-hello.drv";

    fn order(timeout_s: u64) -> Order {
        let drv: StorePath = DRV.parse().unwrap();
        let terms = Terms { max_silent_s: 0, timeout_s, trace: true };
        let (closure, outputs) = (vec![drv.clone()], Vec::new());
        Order { drv, closure, inputs: Outputs::Left, outputs, terms }
    }

    #[test]
    fn the_limits_of_the_daemon_are_those_of_the_build() {
        let settings = Settings { priority: Some(7), ..Settings::default() };
        let words = submission(&settings, &order(60), "k").join(" ");
        assert_eq!(
            words,
            "submit --skip-if-built --skip-if-queued --key k --tag guix-offload=k --priority 7 \
             --timeout 60"
        );
        let long = submission(&settings, &order(u64::MAX), "k");
        assert_eq!(long.last().unwrap(), "31622400", "more than submit takes");
        assert!(!submission(&settings, &order(0), "k").contains(&"--timeout".to_owned()));
    }

    #[test]
    fn the_daemon_is_told_what_kind_of_end_it_was() {
        let ended = |state: &str, end: Option<&str>| {
            let attempt = Attempt { end: end.map(str::to_owned), detail: None };
            judge(
                &DRV.parse().unwrap(),
                "b",
                Shown { state: state.to_owned(), attempts: vec![attempt] },
            )
        };
        assert!(matches!(ended("succeeded", Some("succeeded")), Ended::Built));
        assert!(matches!(ended("failed", Some("exit")), Ended::Failed(_)));
        assert!(matches!(ended("failed", Some("timeout")), Ended::TimedOut(_)));
        assert!(matches!(ended("failed", Some("silent")), Ended::TimedOut(_)));
        assert!(matches!(ended("blocked", None), Ended::Transient(_)));
    }
}
