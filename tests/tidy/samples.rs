//! Small texts that each break one rule, and their neighbors that do not.

use super::{
    rules::{self, Finding},
    source::Source,
};

/// Asserts where a rule finds something in a text, as lines counted from 1.
fn check(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str, lines: &[usize]) {
    let source = Source::new(path, text);
    let found = rule(&source);
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    let expected: Vec<String> = lines.iter().map(|line| format!("{path}:{line}: ")).collect();
    assert_eq!(shown.len(), expected.len(), "{text}\n{shown:#?}");
    for (shown, expected) in shown.iter().zip(&expected) {
        assert!(shown.starts_with(expected), "{text}\n{shown}, not {expected}");
    }
}

#[test]
fn imports_against_the_direction_are_found() {
    let rule = rules::imports;
    check(rule, "src/core/build.rs", "use crate::store::Store;", &[1]);
    check(
        rule,
        "src/core/build.rs",
        "use crate::{\n    core::id,\n    ssh::{self, Role},\n};",
        &[1, 1],
    );
    check(rule, "src/store/open.rs", "fn f() { crate::coordinator::start() }", &[1]);
    check(rule, "src/ssh/mod.rs", "use super::coordinator::Coordinator;", &[1]);
    check(rule, "src/ssh/keys.rs", "\nuse super::super::commands;", &[2]);
    check(rule, "src/telemetry.rs", "use super::store::Store;", &[1]);
    check(rule, "src/store/open.rs", "use crate::Nonsense;", &[1]);
    check(rule, "src/agent/mod.rs", "use crate :: coordinator;", &[1]);
}

#[test]
fn the_table_of_imports_has_no_circle() {
    for (place, (room, allowed)) in rules::ROOMS.iter().enumerate() {
        let above: Vec<&str> = rules::ROOMS[..place].iter().map(|(room, _)| *room).collect();
        assert!(allowed.iter().all(|other| above.contains(other)), "{room}");
    }
}

#[test]
fn imports_in_the_direction_are_none_of_it() {
    let rule = rules::imports;
    check(rule, "src/store/open.rs", "use crate::{core::id, formats::nar, store::row};", &[]);
    check(rule, "src/ssh/keys.rs", "use super::authorize::Role;", &[]);
    check(rule, "src/store/open.rs", "// like crate::coordinator\nlet a = \"crate::agent\";", &[]);
    check(rule, "src/store/open.rs", "#[cfg(test)]\nmod tests { use crate::agent::Agent; }", &[]);
    check(rule, "src/main.rs", "use steading::{agent, commands};", &[]);
}

#[test]
fn impure_words_in_pure_rooms_are_found() {
    let rule = rules::purity;
    for text in [
        "use tokio::sync::mpsc;",
        "use fs_err as fs;",
        "use std::{collections::BTreeMap, fs};",
        "use std::{io, time::{Duration, Instant}};",
        "fn f() { std::process::exit(1) }",
        "use std::net::IpAddr;",
        "let now = time::SystemTime::now();",
    ] {
        check(rule, "src/formats/nar.rs", text, &[1]);
        check(rule, "src/coordinator/mod.rs", text, &[]);
    }
    check(rule, "src/core/graph.rs", "\nuse std::collections::{HashMap, BTreeMap};", &[2]);
    check(rule, "src/formats/nar.rs", "use std::collections::HashMap;", &[]);
    check(rule, "src/core/graph.rs", "#[cfg(test)]\nmod tests {\n use std::fs;\n}\n", &[]);
    check(rule, "src/core/graph.rs", "#[cfg(test)]\nmod tests {}\nuse std::fs;\n", &[3]);
    check(rule, "src/core/graph.rs", "/// Not in std::fs, nor tokio.\nstruct A;", &[]);
}

#[test]
fn confined_crates_elsewhere_are_found() {
    let rule = rules::confined_crates;
    check(rule, "src/coordinator/mod.rs", "use russh::keys;", &[1]);
    check(rule, "src/ssh/mod.rs", "use russh::keys;", &[]);
    check(rule, "src/commands/mod.rs", "use rusqlite::Connection;", &[1]);
    check(rule, "src/store/mod.rs", "use rusqlite::Connection;", &[]);
    check(rule, "src/main.rs", "use russh;", &[1]);
}

#[test]
fn sql_elsewhere_is_found() {
    let rule = rules::sql;
    check(rule, "src/commands/mod.rs", "let a = \"SELECT id FROM builds\";", &[1]);
    check(rule, "src/commands/mod.rs", "let a = r#\"\n  UPDATE builds\"#;", &[1]);
    check(rule, "src/commands/mod.rs", "let a = \"SELECTED by nobody\";", &[]);
    check(rule, "src/store/read.rs", "let a = \"SELECT 1\";", &[]);
}

#[test]
fn banned_names_are_found() {
    let rule = rules::names;
    for text in [
        "fn helper() {}",
        "struct JobQueue;",
        "mod utils;",
        "enum WorkerState {}",
        "fn run_task() {}",
        "trait FrameHandler {}",
    ] {
        check(rule, "src/agent/mod.rs", text, &[1]);
    }
    check(rule, "src/agent/manager.rs", "", &[1]);
    check(rule, "tests/common/util.rs", "", &[1]);
    check(
        rule,
        "src/agent/mod.rs",
        "impl Handler for Session {}\nlet tasks = TaskTracker::new();",
        &[],
    );
    check(rule, "src/ssh/server.rs", "type Handler = Session;", &[]);
}

#[test]
fn unfinished_things_are_found() {
    let rule = rules::unfinished;
    check(rule, "src/agent/mod.rs", "fn f() {\n    todo!()\n}", &[2]);
    check(rule, "src/agent/mod.rs", "fn f() { unimplemented!(\"later\") }", &[1]);
    let mark = ["FIX", "ME"].concat();
    check(rule, "src/agent/mod.rs", &format!("\n// {mark}: it leaks"), &[2]);
    check(rule, "src/agent/mod.rs", &format!("let a = \"{mark}\"; let todo = 1;"), &[]);
}

#[test]
fn files_without_an_opening_are_found() {
    let rule = rules::opening;
    check(rule, "src/agent/mod.rs", "use std::io;", &[1]);
    check(rule, "src/agent/mod.rs", "//! What an agent is.\n", &[]);
    check(rule, "src/lib.rs", "#![doc = include_str!(\"README.md\")]\n", &[]);
    check(rule, "src/agent/mod.rs", "#![doc = include_str!(\"README.md\")]\n", &[1]);
}

#[test]
fn dead_mentions_are_found() {
    let text =
        "See `src/here.rs` and\n`src/gone.rs`, not `ssh/`, `src/NAME.rs` or `tests/run FILE`.";
    let exists = |path: &str| path != "src/gone.rs";
    let found = rules::dead_mentions("README.md", text, exists);
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["README.md:2: src/gone.rs does not exist"]);
}

#[test]
fn sources_are_cut_where_rust_cuts_them() {
    let text = r##"
        let a = '"'; let b = "std::fs /* no comment */"; // tokio
        let c = r#"a " std::net"#; /* /* russh */ still a comment */
        fn f<'a>(x: &'a str) { let d = '\''; let e = b"\"std::fs"; std::env::var("A"); }
    "##;
    let source = Source::new("src/formats/x.rs", text);
    let mentions: Vec<String> =
        source.mentions().into_iter().map(|mention| mention.segments.join("::")).collect();
    assert_eq!(mentions, ["std::env::var"]);
    let strings: Vec<&str> = source.strings().map(|(_, text)| text).collect();
    let expected = ["std::fs /* no comment */", "a \" std::net", "\\\"std::fs", "A"];
    assert_eq!(strings, expected);
    let comments: Vec<&str> = source.comments().map(|(_, text)| text).collect();
    assert_eq!(comments, ["// tokio", "/* /* russh */ still a comment */"]);
}

#[test]
fn files_of_test_modules_are_known() {
    let source = Source::new(
        "src/formats/nar/mod.rs",
        "pub mod reader;\n#[cfg(test)]\npub(crate) mod sample;\n#[cfg(test)]\nmod tests { fn f() {} }",
    );
    assert_eq!(source.modules_for_tests_only(), ["src/formats/nar/sample"]);
    let sample = Source::new("src/formats/nar/sample.rs", "");
    assert!(sample.is_in_module("src/formats/nar/sample"));
    assert!(!sample.is_in_module("src/formats/nar/sam"));
}
