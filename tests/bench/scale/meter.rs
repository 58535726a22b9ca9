//! Processor time of this thread and memory of this process.

use std::time::Duration;

/// What was used until now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    processor_ns: u64,
    resident_kib: u64,
}

impl Meter {
    /// Reads the counters. What is measured runs in the main thread, but for the engine's parts
    /// nothing here starts another.
    pub(crate) fn read() -> Self {
        let processor_ns = processor_ns();
        let status = fs_err::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let resident_kib = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self { processor_ns, resident_kib }
    }

    /// Returns the processor time since then.
    pub(crate) fn processor(self) -> Duration {
        Duration::from_nanos(processor_ns() - self.processor_ns)
    }

    /// Prints what was used since then.
    pub(crate) fn say(self, what: &str, number: usize) {
        let now = Self::read();
        let seconds = Duration::from_nanos(now.processor_ns - self.processor_ns).as_secs_f64();
        let each = seconds * 1e6 / f64::from(u32::try_from(number.max(1)).unwrap());
        let grown =
            i64::try_from(now.resident_kib).unwrap() - i64::try_from(self.resident_kib).unwrap();
        let (grown, resident) = (grown / 1024, now.resident_kib / 1024);
        println!(
            "{what:34} {seconds:9.3} CPU s {each:10.2} us each {grown:6} MiB more, {resident:5} \
             MiB"
        );
    }
}

/// Reads what the scheduler has noted, which it does some hundred times a second: short times are
/// right only when they are summed up.
fn processor_ns() -> u64 {
    let schedstat = fs_err::read_to_string("/proc/self/schedstat").unwrap();
    schedstat.split(' ').next().unwrap().parse().unwrap()
}

/// Prints a processor time that was summed up.
pub(crate) fn say(what: &str, spent: Duration, number: usize) {
    let each = spent.as_secs_f64() * 1e6 / f64::from(u32::try_from(number.max(1)).unwrap());
    println!("{what:34} {:9.3} CPU s {each:10.2} us each", spent.as_secs_f64());
}
