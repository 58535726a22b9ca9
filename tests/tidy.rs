//! The rules of the house, executed: who may mention whom, and what is named how.
//!
//! Source files are read as text, so that a rule also holds for code that this machine's
//! configuration leaves out. `source` cuts a text into code, comments and strings; `rules` says
//! what is wrong with it; `samples` proves with small bad texts that every rule bites.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/samples.rs"]
mod samples;
#[path = "tidy/source.rs"]
mod source;

use rules::Finding;
use source::Source;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

/// The whole visible top level of the repository; settings are dotfiles.
const TOP_LEVEL: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "contrib",
    "keys",
    "schema",
    "src",
    "tests",
];

/// The folders that a forge shows with their own page.
const DESCRIBED_FOLDERS: [&str; 6] = ["contrib", "keys", "schema", "src", "src/protocol", "tests"];

/// The pages whose mentions of files must be true.
const PAGES: [&str; 7] = [
    "README.md",
    "contrib/README.md",
    "keys/README.md",
    "schema/README.md",
    "src/README.md",
    "src/protocol/README.md",
    "tests/README.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all files below a folder of the repository, relative to its root, sorted.
fn files_below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs_err::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let name = entry.file_name();
            // The fuzz package leaves its builds and findings beside its sources.
            let made = folder.ends_with("fuzz")
                && ["target", "corpus", "artifacts"].iter().any(|made| name == *made);
            if entry.file_type().unwrap().is_dir() {
                if !made {
                    open.push(path);
                }
            } else {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn sources_below(folder: &str) -> Vec<Source> {
    files_below(folder)
        .into_iter()
        .filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let text = fs_err::read_to_string(root().join(&path)).unwrap();
            Source::new(path, text)
        })
        .collect()
}

/// Returns the sources of the program: `src` without the files that exist for its tests only.
fn program() -> Vec<Source> {
    let mut sources = sources_below("src");
    let for_tests: Vec<String> = sources.iter().flat_map(Source::modules_for_tests_only).collect();
    sources.retain(|source| !for_tests.iter().any(|module| source.is_in_module(module)));
    sources
}

fn assert_none(findings: &[Finding]) {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} finding(s):\n{}", lines.len(), lines.join("\n"));
}

fn assert_rule(rule: fn(&Source) -> Vec<Finding>, sources: &[Source]) {
    assert!(!sources.is_empty());
    assert_none(&sources.iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn rooms_import_in_one_direction() {
    assert_rule(rules::imports, &program());
}

#[test]
fn pure_rooms_do_nothing_but_think() {
    assert_rule(rules::purity, &program());
}

#[test]
fn foreign_crates_stay_in_their_room() {
    assert_rule(rules::confined_crates, &program());
}

#[test]
fn sql_is_in_the_store_only() {
    assert_rule(rules::sql, &program());
}

#[test]
fn nothing_is_called_by_a_banned_word() {
    assert_rule(rules::names, &[sources_below("src"), sources_below("tests")].concat());
}

#[test]
fn nothing_is_left_for_later() {
    assert_rule(rules::unfinished, &[sources_below("src"), sources_below("tests")].concat());
}

#[test]
fn every_file_says_what_it_is() {
    assert_rule(rules::opening, &[sources_below("src"), sources_below("tests")].concat());
}

#[test]
fn every_room_is_in_the_table_of_imports() {
    let unknown: Vec<String> = program()
        .iter()
        .filter_map(Source::room)
        .filter(|room| rules::allowed_rooms(room).is_none())
        .map(ToOwned::to_owned)
        .collect();
    assert!(unknown.is_empty(), "say in tests/tidy/rules.rs what these may mention: {unknown:?}");
}

#[test]
fn the_top_level_is_what_the_map_says() {
    let git = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = match git {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => {
            let error = String::from_utf8(output.stderr).unwrap();
            println!("skipped: git does not list this folder: {}", error.trim());
            return;
        }
        Err(error) => {
            println!("skipped: there is no git to list the folder: {error}");
            return;
        }
    };
    let listed = String::from_utf8(listed).unwrap();
    let visible: BTreeSet<&str> = listed
        .split('\0')
        .filter_map(|path| path.split('/').next())
        .filter(|top| !top.is_empty() && !top.starts_with('.'))
        .collect();
    assert_eq!(visible, BTreeSet::from(TOP_LEVEL));
}

#[test]
fn folders_have_a_page() {
    for folder in DESCRIBED_FOLDERS {
        assert!(root().join(folder).join("README.md").is_file(), "{folder}/README.md is missing");
    }
}

#[test]
fn pages_mention_files_that_exist() {
    let mut findings = Vec::new();
    for page in PAGES {
        let text = fs_err::read_to_string(root().join(page)).unwrap();
        findings.extend(rules::dead_mentions(page, &text, |path| root().join(path).exists()));
    }
    assert_none(&findings);
}
