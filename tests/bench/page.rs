//! The page with the results, `tests/bench/RESULTS.md`.

use crate::transfers::report::{Section, table};
use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::Command};

/// Writes a section into the page; those of other parts stay as they are.
pub(crate) fn write(page: &Path, section: &Section) {
    let old = fs_err::read_to_string(page).unwrap_or_default();
    let mut parts: BTreeMap<String, String> = old
        .split("\n## ")
        .skip(1)
        .filter_map(|text| text.split_once('\n'))
        .map(|(part, body)| (part.trim().to_owned(), body.trim().to_owned()))
        .collect();
    parts.insert(section.part.to_owned(), format!("{}\n\n{}", conditions(), table(section)));
    let mut text = match old.split_once("\n## ") {
        Some((head, _)) => head.to_owned(),
        None => HEAD.to_owned(),
    };
    for (part, body) in parts {
        write!(text, "\n## {part}\n\n{}\n", body.trim()).unwrap();
    }
    fs_err::write(page, text).unwrap();
}

const HEAD: &str = "\
# Measured

Written by `tests/bench/run`; run it again instead of changing it.
Ours and the peer ran in turn on the same machine; transfers with the same file and the same cipher (aes128-gcm).
A ratio belongs to the medians: how many times as long the peer takes, or which share of the peer's processor time or memory we use.
“Not run” is not passed.
";

/// Returns machine, date, versions and commit.
fn conditions() -> String {
    let first = |file: &str, field: &str| {
        let text = fs_err::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = first("/proc/meminfo", "MemTotal");
    let load = fs_err::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    let date = printed("date", &["-u", "+%Y-%m-%d %H:%MZ"]);
    let commit = printed("git", &["describe", "--always", "--dirty", "--abbrev=12"]);
    format!(
        "{date}, commit {commit}, {} profile.\n{processors} × {}, {memory}, Linux {}, load {}.\n{}; {}; {}.",
        if cfg!(debug_assertions) { "dev" } else { "release" },
        first("/proc/cpuinfo", "model name"),
        fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        load.join(" "),
        printed("ssh", &["-V"]),
        printed("nix", &["--version"]),
        printed("rustc", &["--version"]),
    )
}

/// Returns the first line that a command prints, or that it is not there.
fn printed(command: &str, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(command).args(arguments).output() else {
        return format!("no {command}");
    };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap().lines().next().unwrap_or_default().to_owned()
}
