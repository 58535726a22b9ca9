//! Every verb of the program, from one table: what it prints in a pipe, on a terminal and as JSON,
//! who may not use it, and how it answers what is no command and what does not exist.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "verbs/care.rs"]
mod care;
#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have derivations with several outputs")]
mod closure;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "other tests look into the state directory")]
mod farm;
#[path = "verbs/scene.rs"]
mod scene;
#[path = "verbs/schema.rs"]
mod schema;
#[path = "verbs/table.rs"]
mod table;
#[path = "common/wait.rs"]
mod wait;

use farm::answer;
use scene::Scene;
use serde_json::Value;
use std::collections::BTreeSet;
use table::{Done, Entry, Forms, entries};
use tokio::process::Command;

/// The width of a narrow terminal.
const NARROW_COLUMNS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_has_an_entry_and_every_schema_a_line() {
    let Some(scene) = Scene::start().await else { return };
    let listed = scene.farm.run("vera", "help --json").await.expect(0).objects();
    let of_program: BTreeSet<&str> =
        listed.iter().map(|verb| verb["verb"].as_str().unwrap()).collect();
    let first_word = |entry: &'static Entry| entry.name.split(' ').next().unwrap();
    let of_table: BTreeSet<&str> = entries().map(first_word).collect();
    assert_eq!(of_program, of_table, "the verbs of the program, and those of tests/verbs/table.rs");
    let lines = entries().flat_map(|entry| entry.done);
    let used: BTreeSet<String> = lines.map(|done| done.schema.to_owned()).collect();
    assert_eq!(schema::names(), used, "the schemas in schema/json, and those of the table");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_said_in_a_pipe_on_a_terminal_and_as_json() {
    let Some(scene) = Scene::start().await else { return };
    for entry in entries() {
        for done in entry.done {
            in_a_pipe(&scene, entry, done).await;
            on_a_terminal(&scene, entry, done).await;
            as_json(&scene, entry, done).await;
        }
    }
    scene.stop().await;
}

async fn in_a_pipe(scene: &Scene, entry: &Entry, done: &Done) {
    let (line, says) = (scene.fill(done.line).await, scene.fill(done.says).await);
    let input = scene.fill(done.input).await;
    let answered = answer(scene.ssh(entry.may, &[], &line), input.as_bytes()).await;
    if done.forms == Forms::JsonOnly {
        return is_refused(&line, &answered, "--json");
    }
    let answered = answered.expect(done.status);
    assert!(!answered.err.contains('\x1b') && !answered.err.contains("\r\n"), "{line}");
    if done.forms == Forms::Bytes {
        assert!(!answered.out.is_empty() && answered.err.contains(&says), "{line}");
        return;
    }
    let all = format!("{}{}", answered.text(), answered.err);
    assert!(all.contains(&says), "{line}: {all}");
    assert!(!all.contains('\x1b') && !all.contains("\r\n"), "{line}: {all:?}");
}

async fn on_a_terminal(scene: &Scene, entry: &Entry, done: &Done) {
    let (line, says) = (scene.fill(done.line).await, scene.fill(done.says).await);
    let input = scene.fill(done.input).await;
    let answered = answer(scene.ssh(entry.may, &["-tt"], &line), input.as_bytes()).await;
    match done.forms {
        Forms::Text => {}
        Forms::Bytes => return is_refused(&line, &answered, "terminal"),
        Forms::JsonOnly => return is_refused(&line, &answered, "--json"),
    }
    let answered = answered.expect(done.status);
    let all = format!("{}{}", answered.text(), answered.err);
    assert!(all.contains(&says), "{line}: {all}");
    // A terminal in raw mode needs both.
    let text = answered.text();
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{line}: {text:?}");
}

/// Sees to it that a form of an answer that there is not is refused with the way to another.
fn is_refused(line: &str, answered: &farm::Answered, advice: &str) {
    assert_eq!((answered.status, answered.text()), (2, ""), "{line}: {}", answered.err);
    assert!(answered.err.contains(advice), "{line}: {}", answered.err);
}

async fn as_json(scene: &Scene, entry: &Entry, done: &Done) {
    let line = format!("{} --json", scene.fill(done.line).await);
    let input = scene.fill(done.input).await;
    let answered = answer(scene.ssh(entry.may, &[], &line), input.as_bytes()).await;
    let answered = answered.expect(done.status);
    let objects: Vec<Value> = answered.objects();
    assert!(objects.len() >= done.objects, "{line}: {objects:?}");
    let schema = schema::read(done.schema);
    for object in &objects {
        let wrong = schema::violations(&schema, object);
        assert!(wrong.is_empty(), "{line}: {}\n{object}", wrong.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_is_told_what_is_needed() {
    let Some(scene) = Scene::start().await else { return };
    for entry in entries() {
        let (Some(name), [first, ..]) = (entry.may_not, entry.done) else { continue };
        let line = scene.fill(first.line).await;
        for line in [line.clone(), format!("{line} --json")] {
            let answered = scene.farm.run(name, &line).await.expect(4);
            assert!(answered.err.contains("needs") || answered.err.contains("operator"), "{line}");
            assert_eq!(answered.text(), "", "{line}");
        }
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_make_no_command_end_with_status_2_and_advice() {
    let Some(scene) = Scene::start().await else { return };
    for entry in entries() {
        for wrong in entry.wrong {
            let line = scene.fill(wrong).await;
            let answered = scene.run(entry.may, &line).await.expect(2);
            assert_eq!(answered.text(), "", "{line}");
            assert!(answered.err.starts_with("steading: "), "{line}: {}", answered.err);
            assert!(!answered.err.contains("try '--help'"), "{line}: {}", answered.err);
        }
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_ends_with_status_3() {
    let Some(scene) = Scene::start().await else { return };
    for entry in entries() {
        for absent in entry.absent {
            let line = scene.fill(absent).await;
            for line in [line.clone(), format!("{line} --json")] {
                let answered = scene.run(entry.may, &line).await.expect(3);
                assert!(answered.err.starts_with("steading: "), "{line}: {}", answered.err);
            }
        }
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_is_explained_with_an_example() {
    let Some(scene) = Scene::start().await else { return };
    for entry in entries().filter(|entry| !entry.name.contains(' ')) {
        let told = scene.farm.run("amber", &format!("help {}", entry.name)).await.expect(0);
        let example = told.text().split_once("Example: ").unwrap().1;
        assert!(example.contains(entry.name) && example.ends_with('\n'), "{example:?}");
        let same = scene.run(entry.may, &format!("{} --help", entry.name)).await.expect(0);
        assert_eq!(same.text().split_once("Example: ").unwrap().1, example);
    }
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_terminal_gets_narrow_lines() {
    let Some(scene) = Scene::start().await else { return };
    for (who, line) in [
        ("vera", "help"),
        ("vera", "builds"),
        ("vera", "agents"),
        ("vera", "help builds"),
        ("vera", "unplaceable"),
        ("vera", "status"),
        ("olga", "hooks"),
        ("olga", "hooks --failed"),
        ("ada", "keys list"),
        ("ada", "audit"),
        ("ada", "help keys"),
    ] {
        let ssh = scene.farm.ssh(who, &["-tt"], line);
        let Some(answered) = in_a_window(&ssh).await else { return };
        let text = answered.expect(0).text().replace('\r', "");
        assert!(text.lines().count() > 1, "{line}: {text}");
        for row in text.lines().filter(|row| !row.starts_with("Usage: ")) {
            assert!(row.chars().count() <= NARROW_COLUMNS, "{line}: {row}");
        }
    }
    scene.stop().await;
}

/// Runs a command on a terminal that is narrow; `None`, with the reason printed, where there is no
/// program that makes one.
#[expect(clippy::print_stdout, reason = "whoever reads the results has to know")]
async fn in_a_window(command: &Command) -> Option<farm::Answered> {
    if Command::new("script").arg("--version").output().await.is_err() {
        println!("skipped: there is no script(1) in PATH");
        return None;
    }
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let line = format!("stty cols {NARROW_COLUMNS} rows 24; {}", shell_words::join(words));
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    Some(answer(script, &[]).await)
}
