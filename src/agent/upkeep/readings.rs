//! Reads what a machine's gates are judged by: `/proc` and the free space of filesystems.

use super::gates::{Reading, Resource};
use rustix::fs::statvfs;
use std::path::{Path, PathBuf};

/// Where everything is read from.
#[derive(Debug, Clone)]
pub(crate) struct Sensors {
    /// The mounted proc filesystem.
    pub(crate) proc: PathBuf,
    /// A directory on the store's filesystem.
    pub(crate) store: PathBuf,
    /// The state directory.
    pub(crate) state: PathBuf,
}

impl Sensors {
    /// Reads everything. What this kernel does not have (pressure) or tell is absent.
    pub(crate) fn read(&self) -> Reading {
        let pressure = Resource::ALL.into_iter().filter_map(|resource| {
            let text = self.proc_file(&format!("pressure/{resource}"))?;
            Some((resource, pressure(&text)?))
        });
        Reading {
            load: self.proc_file("loadavg").as_deref().and_then(load),
            pressure: pressure.collect(),
            memory_bytes: self.proc_file("meminfo").as_deref().and_then(available_memory),
            store_free_bytes: free_bytes(&self.store),
            state_free_bytes: free_bytes(&self.state),
        }
    }

    fn proc_file(&self, name: &str) -> Option<String> {
        // Kernels without pressure-stall information, or with it switched off, have no such files.
        fs_err::read_to_string(self.proc.join(name)).ok()
    }
}

/// Returns what a user without privileges can still write into a directory that exists or the
/// nearest one above that does, in bytes.
pub(crate) fn free_bytes(dir: &Path) -> Option<u64> {
    let found = dir.ancestors().find_map(|dir| statvfs(dir).ok())?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Reads the first number of `/proc/loadavg` (proc(5)).
fn load(text: &str) -> Option<f64> {
    number(text.split_ascii_whitespace().next()?)
}

/// Reads how long some process waited, of a file in `/proc/pressure` (kernel
/// `Documentation/accounting/psi.rst`).
fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    number(some.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?)
}

/// Reads `MemAvailable` of `/proc/meminfo` (proc(5)), in bytes.
fn available_memory(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sensors(dir: &Path) -> Sensors {
        Sensors { proc: dir.to_owned(), store: dir.join("not/yet"), state: dir.to_owned() }
    }

    #[test]
    fn the_kernels_files_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("pressure")).unwrap();
        let files = [
            ("loadavg", "12.34 0.46 1.12 3/512 4711\n"),
            ("meminfo", "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   24141668 kB\n"),
            ("pressure/cpu", "some avg10=4.97 avg60=1.60 avg300=1.68 total=1844816421\n"),
            ("pressure/io", "full avg10=9.00 avg60=0.00 avg300=0.00 total=0\nsome avg10=0.50 x\n"),
        ];
        for (name, text) in files {
            fs_err::write(dir.path().join(name), text).unwrap();
        }
        let reading = sensors(dir.path()).read();
        assert_eq!(reading.load, Some(12.34));
        assert_eq!(reading.memory_bytes, Some(24_141_668 * 1024));
        assert_eq!(reading.pressure, [(Resource::Cpu, 4.97), (Resource::Io, 0.5)].into());
        assert!(reading.store_free_bytes.is_some_and(|bytes| bytes > 0));
        assert_eq!(reading.store_free_bytes.is_some(), reading.state_free_bytes.is_some());
    }

    #[test]
    fn missing_and_broken_files_are_no_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = sensors(dir.path()).read();
        assert_eq!((nothing.load, nothing.memory_bytes), (None, None));
        assert!(nothing.pressure.is_empty());
        for text in ["", "x", "nan 1 2", "inf"] {
            assert_eq!(load(text), None);
        }
        assert_eq!(pressure("some total=3\n"), None);
        assert_eq!(available_memory("MemAvailable: 99999999999999999999 kB"), None);
        assert_eq!(available_memory("MemAvailable: 18446744073709551615 kB"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let sensors = Sensors { proc: "/proc".into(), store: "/tmp".into(), state: "/tmp".into() };
        let reading = sensors.read();
        assert!(reading.load.is_some() && reading.memory_bytes.is_some());
    }
}
