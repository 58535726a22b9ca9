//! What is wrong with a source, rule by rule.

use super::source::Source;
use std::fmt;

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

fn finding(source: &Source, at: usize, message: impl Into<String>) -> Finding {
    Finding { path: source.path.clone(), line: source.line(at), message: message.into() }
}

/// Rooms that think and do nothing else.
const PURE: [&str; 3] = ["core", "formats", "protocol"];

/// What [`PURE`] rooms never name: everything that does I/O, waits, asks for the time or for chance.
const IMPURE_WORDS: [&str; 9] = [
    "tokio",
    "tokio_util",
    "russh",
    "rusqlite",
    "fs_err",
    "getrandom",
    "rustix",
    "SystemTime",
    "Instant",
];

/// The modules of the standard library that [`PURE`] rooms never name.
const IMPURE_STD: [&str; 5] = ["env", "fs", "net", "process", "thread"];

/// Crates that only one room names.
const CONFINED: [(&str, &str); 2] = [("russh", "ssh"), ("rusqlite", "store")];

/// How a string begins that is SQL.
const SQL: [&str; 10] = [
    "ALTER", "BEGIN", "COMMIT", "CREATE", "DELETE", "DROP", "INSERT", "PRAGMA", "SELECT", "UPDATE",
];

/// Words that say nothing, or that our vocabulary has another word for.
const BANNED: [&str; 9] =
    ["handler", "helper", "job", "manager", "runner", "task", "util", "utility", "worker"];

/// The keywords that a name follows.
const ITEMS: [&str; 9] =
    ["const", "enum", "fn", "macro_rules", "mod", "static", "struct", "trait", "type"];

/// What rooms that touch the world may mention.
const LOW: &[&str] = &["core", "formats", "protocol", "telemetry"];

/// Every room with the rooms beside itself that it may mention, all of them further up in this
/// table, so that there is no way around in a circle. `arguments` belongs to the binary, which sees
/// rooms from outside.
pub(crate) const ROOMS: [(&str, &[&str]); 18] = [
    ("core", &[]),
    ("formats", &["core"]),
    ("protocol", &["core"]),
    ("telemetry", &["core"]),
    ("builders", LOW),
    ("depot", LOW),
    ("hooks", LOW),
    ("logbook", LOW),
    ("ssh", LOW),
    ("store", LOW),
    // Its values are the types of the rooms that they configure.
    ("config", &["core", "telemetry", "depot", "hooks", "ssh", "store"]),
    (
        "agent",
        &["core", "formats", "protocol", "telemetry", "builders", "logbook", "ssh", "config"],
    ),
    (
        "coordinator",
        &[
            "core",
            "formats",
            "protocol",
            "telemetry",
            "depot",
            "hooks",
            "logbook",
            "ssh",
            "store",
            "config",
        ],
    ),
    (
        "commands",
        &[
            "core",
            "formats",
            "protocol",
            "telemetry",
            "depot",
            "hooks",
            "logbook",
            "ssh",
            "store",
            "config",
            "coordinator",
        ],
    ),
    ("guix_program", &["core", "formats", "telemetry", "builders"]),
    (
        "demo",
        &[
            "core",
            "formats",
            "protocol",
            "telemetry",
            "builders",
            "depot",
            "hooks",
            "logbook",
            "ssh",
            "store",
            "config",
            "agent",
            "coordinator",
            "commands",
        ],
    ),
    ("sim", &["core", "formats", "protocol", "telemetry", "store", "logbook", "coordinator"]),
    ("arguments", &[]),
];

/// Returns the rooms that a room may mention beside itself; `None` when it is not in the table.
pub(crate) fn allowed_rooms(room: &str) -> Option<&'static [&'static str]> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed)
}

/// Finds mentions of rooms against the direction of imports.
pub(crate) fn imports(source: &Source) -> Vec<Finding> {
    let Some(room) = source.room() else { return Vec::new() };
    let allowed = allowed_rooms(room).unwrap_or_default();
    let mut findings = Vec::new();
    for mention in source.mentions() {
        let segments: Vec<&str> = mention.segments.iter().map(String::as_str).collect();
        let supers = segments.iter().take_while(|segment| **segment == "super").count();
        let target = match segments.as_slice() {
            ["crate", target, ..] => *target,
            _ if supers > 0 && supers == source.depth() => match segments.get(supers) {
                Some(target) => target,
                None => continue,
            },
            _ => continue,
        };
        if target != room && !allowed.contains(&target) {
            let message = format!("{room} may not mention {target}, only: {}", allowed.join(", "));
            findings.push(finding(source, mention.at, message));
        }
    }
    findings
}

/// Finds I/O, clocks and chance in pure rooms, and hashed collections in `core`.
pub(crate) fn purity(source: &Source) -> Vec<Finding> {
    let Some(room) = source.room().filter(|room| PURE.contains(room)) else { return Vec::new() };
    let mut findings = Vec::new();
    for (at, word) in source.words() {
        if source.is_for_tests(at) {
            continue;
        }
        if IMPURE_WORDS.contains(&word) {
            findings.push(finding(source, at, format!("{room} is pure: it may not name {word}")));
        }
        if room == "core" && ["HashMap", "HashSet"].contains(&word) {
            let message = format!("{word} has no fixed order: use the BTree one in core");
            findings.push(finding(source, at, message));
        }
    }
    for mention in source.mentions() {
        if let [std, module, ..] = mention.segments.as_slice()
            && std == "std"
            && IMPURE_STD.contains(&module.as_str())
        {
            let message = format!("{room} is pure: it may not name std::{module}");
            findings.push(finding(source, mention.at, message));
        }
    }
    findings
}

/// Finds crates outside the one room that may name them.
pub(crate) fn confined_crates(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, word) in source.words() {
        for (name, room) in CONFINED {
            if word == name && source.room() != Some(room) && !source.is_for_tests(at) {
                let message = format!("{name} is named in src/{room} only");
                findings.push(finding(source, at, message));
            }
        }
    }
    findings
}

/// Finds SQL outside of `store`.
pub(crate) fn sql(source: &Source) -> Vec<Finding> {
    if source.room() == Some("store") {
        return Vec::new();
    }
    let statements = source.strings().filter(|(_, text)| {
        let word = text.trim_start().split([' ', ';', '\n']).next().unwrap_or_default();
        SQL.contains(&word)
    });
    statements.map(|(at, _)| finding(source, at, "SQL belongs into src/store and schema")).collect()
}

/// Finds files and items whose name contains a banned word.
pub(crate) fn names(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in source.path.trim_end_matches(".rs").split('/') {
        if let Some(word) = banned_word(part) {
            findings.push(finding(source, 0, format!("a file is not called {word}")));
        }
    }
    let words = source.words();
    for pair in words.windows(2) {
        if let [(_, keyword), (at, name)] = pair
            && ITEMS.contains(keyword)
            && let Some(word) = banned_word(name)
        {
            // `type Handler = …` is what a trait of russh asks for.
            let foreign = *keyword == "type" && source.room() == Some("ssh");
            if !foreign {
                let message = format!("{name}: nothing is called {word}");
                findings.push(finding(source, *at, message));
            }
        }
    }
    findings
}

/// Returns the banned word in a name of whatever case, if there is one.
fn banned_word(name: &str) -> Option<&'static str> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for character in name.chars() {
        let begins = character.is_uppercase() && was_lower;
        if begins || !character.is_alphanumeric() {
            words.push(String::new());
        }
        if character.is_alphanumeric() {
            words.last_mut().unwrap().extend(character.to_lowercase());
        }
        was_lower = character.is_lowercase();
    }
    let plural = |word: &str| word.strip_suffix('s').map(ToOwned::to_owned);
    BANNED.into_iter().find(|banned| {
        words.iter().any(|word| word == banned || plural(word).is_some_and(|one| one == *banned))
    })
}

/// Finds what somebody meant to finish.
pub(crate) fn unfinished(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, word) in source.words() {
        let is_macro = source.code_from(at + word.len()).starts_with('!');
        if is_macro && ["todo", "unimplemented"].contains(&word) {
            findings.push(finding(source, at, format!("{word}! is not an implementation")));
        }
    }
    for (at, text) in source.comments() {
        let mut words = text.split(|character: char| !character.is_alphanumeric());
        if let Some(word) = words.find(|word| ["FIXME", "TODO", "XXX"].contains(word)) {
            findings.push(finding(source, at, format!("{word}: do it, or say why it is not done")));
        }
    }
    findings
}

/// Finds files that do not begin with what they are about.
pub(crate) fn opening(source: &Source) -> Vec<Finding> {
    let page = r#"#![doc = include_str!("README.md")]"#;
    // Fuzz targets begin with the attribute that takes `main` away.
    let text = source.text.trim_start_matches("#![no_main]\n");
    if text.starts_with("//! ") || (source.path == "src/lib.rs" && text.starts_with(page)) {
        Vec::new()
    } else {
        vec![finding(source, 0, "a file begins with `//! What it is.`")]
    }
}

/// Finds paths of the repository between backticks on a page that lead nowhere.
pub(crate) fn dead_mentions(page: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    const FOLDERS: [&str; 6] = [".ci/", "contrib/", "keys/", "schema/", "src/", "tests/"];
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        // Every second piece is between backticks.
        for name in line.split('`').skip(1).step_by(2) {
            let is_ours = FOLDERS.iter().any(|folder| name.starts_with(folder));
            // A name in capitals or an ellipsis stands for something, and so do words behind it.
            let is_plain = !name.contains([' ', '…', '*'])
                && (name.ends_with("README.md") || !name.contains(char::is_uppercase));
            if is_ours && is_plain && !exists(name) {
                let message = format!("{name} does not exist");
                findings.push(Finding { path: page.to_owned(), line: number, message });
            }
        }
    }
    findings
}
