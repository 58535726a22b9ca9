//! Seconds, processor seconds, and what is made of several runs.

use rustix::process::Pid;
use std::{path::Path, process::Child};
use steading::telemetry::Clock;

/// How many ticks of `/proc/PID/stat` a second has; the same on every Linux that people run.
const TICKS_PER_SECOND: f64 = 100.0;

/// One run of something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// How long it took.
    pub(crate) wall_s: f64,
    /// How much processor time both ends used; absent when it was not looked at.
    pub(crate) cpu_s: Option<f64>,
}

/// Several runs of the same thing.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Series(Vec<Sample>);

impl Series {
    pub(crate) fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    pub(crate) fn median_wall(&self) -> f64 {
        median(self.walls())
    }

    pub(crate) fn best_wall(&self) -> f64 {
        self.walls().into_iter().fold(f64::INFINITY, f64::min)
    }

    /// Returns the median of the processor seconds, if every run has them.
    pub(crate) fn median_cpu(&self) -> Option<f64> {
        self.0.iter().map(|sample| sample.cpu_s).collect::<Option<Vec<f64>>>().map(median)
    }

    fn walls(&self) -> Vec<f64> {
        self.0.iter().map(|sample| sample.wall_s).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(upper) if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], *upper),
        Some(value) => *value,
        None => f64::NAN,
    }
}

/// Returns the value below which `share` of the values lie.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list of some thousand"
    )]
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Something to measure, once per round.
pub(crate) type Measured<'a> = (&'a str, Box<dyn FnMut(usize) -> Sample + 'a>);

/// Runs everything in turn, round after round, so that what the machine does meanwhile meets all
/// alike. Each begins with an empty write queue of the disks.
pub(crate) fn alternate(rounds: usize, mut measured: Vec<Measured<'_>>) -> Vec<Series> {
    let mut all = vec![Series::default(); measured.len()];
    for round in 0..rounds {
        for ((name, run), series) in measured.iter_mut().zip(&mut all) {
            rustix::fs::sync();
            let sample = run(round);
            super::say(&format!(
                "  {name}: {:.2} s, cpu {}",
                sample.wall_s,
                sample.cpu_s.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.2} s"))
            ));
            series.push(sample);
        }
    }
    all
}

/// Measures how long something takes.
pub(crate) fn timed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let clock = Clock::start();
    let result = run();
    (result, seconds(clock.now().mono.as_ms()))
}

#[expect(clippy::cast_precision_loss, reason = "runs take less than a hundred thousand years")]
pub(crate) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

/// Processor time of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    /// Its own.
    pub(crate) own_s: f64,
    /// Of children that it has waited for, and theirs.
    pub(crate) children_s: f64,
}

/// Returns the processor time of a process so far.
pub(crate) fn cpu_of(pid: u32) -> Cpu {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in the second field may hold spaces; what follows it has none.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap() / TICKS_PER_SECOND;
    Cpu { own_s: ticks(11) + ticks(12), children_s: ticks(13) + ticks(14) }
}

/// Returns the processor time of this process's children that have ended, and theirs.
pub(crate) fn cpu_of_ended_children() -> f64 {
    cpu_of(std::process::id()).children_s
}

/// Returns the processor time that this process has used itself.
pub(crate) fn cpu_of_this_process() -> f64 {
    cpu_of(std::process::id()).own_s
}

/// Returns a number of KiB that the kernel notes about a process in `file`, such as `VmRSS`.
pub(crate) fn memory_kib(pid: u32, file: &str, field: &str) -> f64 {
    let text = fs_err::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Returns the direct children of a process.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default().split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Ends a child at once and waits for it.
pub(crate) fn kill(child: &mut Child) {
    // It may have ended by itself.
    child.kill().ok();
    child.wait().unwrap();
}

/// Ends a process that is not a direct child.
pub(crate) fn kill_process(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may have ended by itself.
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
}

/// Returns the length of a file in MiB.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit behind the point")]
pub(crate) fn mib(file: &Path) -> f64 {
    fs_err::metadata(file).unwrap().len() as f64 / f64::from(1 << 20)
}
