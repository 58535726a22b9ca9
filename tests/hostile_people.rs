//! Command lines and submissions that are meant to do harm, with the stock `ssh`.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod farm;
#[path = "common/lines.rs"]
mod lines;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use closure::{Drv, drv, export, file_nar, source, stream};
use farm::{Farm, answer};
use lines::hostile_lines;
use processes::{feed, obstacle};
use std::{path::Path, process::Command, sync::mpsc, thread, time::Duration};
use steading::{
    commands::called,
    config::Config,
    core::{derivation::Derivation, store_path::StorePath},
    ssh::{ClientConfig, Connection, Incoming, Role, connect, host_key},
};
use tokio_util::sync::CancellationToken;

/// How many hostile lines there are at least.
const LINES_MIN: usize = 1_000;
/// How many of them go through `ssh`.
const LINES_OVER_SSH: usize = 50;
/// The longest refusal, in bytes; help is part of it.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// How many `ssh` run at a time.
const CLIENTS: usize = 4;
/// How often the children of the coordinator are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The statuses of answers; others, such as 126 and 127 of a shell, mean that something broke.
const STATUSES: [i32; 6] = [0, 1, 2, 3, 4, 5];

const PEOPLE: [(Role, &str, &str); 4] = [
    (Role::Submitter, "sam", "max-priority=20"),
    (Role::Submitter, "sue", ""),
    (Role::Viewer, "vera", ""),
    (Role::Admin, "ada", ""),
];

#[test]
fn a_thousand_hostile_lines_call_a_verb_or_are_refused_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let lines = hostile_lines(marker.to_str().unwrap());
    assert!(lines.len() >= LINES_MIN, "{} lines", lines.len());
    let (mut verbs, mut refusals) = (0, 0);
    for line in &lines {
        match called(line.as_bytes()) {
            Ok(verb) => {
                verbs += 1;
                let words = shell_words::split(line).unwrap();
                let first = words.iter().find(|word| *word != "--json").unwrap();
                assert_eq!(verb, first, "{line:?}");
            }
            Err(text) => {
                refusals += 1;
                assert!(!text.trim().is_empty() && text.len() <= REFUSAL_BYTES_MAX, "{line:?}");
                let unshowable = |c: char| c.is_control() && c != '\n';
                assert!(!text.contains(unshowable), "{line:?}: {}", text.escape_debug());
            }
        }
    }
    assert!(verbs > 100 && refusals > 500, "{verbs} verbs, {refusals} refusals");
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0);
}

/// Returns the children that any thread of a process has at this moment.
fn children(process: u32) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(tasks) = fs_err::read_dir(format!("/proc/{process}/task")) else { return found };
    for task in tasks.flatten() {
        // The thread may have ended.
        let children = fs_err::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().map(str::to_owned));
    }
    found
}

/// Returns how many page faults all children had that a process has ever waited for. No process
/// lives without one.
fn faults_of_children(process: u32) -> u64 {
    let stat = fs_err::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(8).unwrap().parse().unwrap()
}

/// Runs the lines, several at a time. Each must get an answer of the coordinator, and no output of
/// another program.
fn run_all(words: &[String], lines: &[&String]) {
    thread::scope(|scope| {
        for part in lines.chunks(lines.len().div_ceil(CLIENTS)) {
            scope.spawn(move || {
                for line in part {
                    let output = feed(words, line, b"");
                    let status = output.status.code().unwrap();
                    let said = [output.stdout, output.stderr].concat();
                    let said = said.escape_ascii().to_string();
                    assert!(STATUSES.contains(&status), "{line:?}: {status}: {said}");
                    assert!(!said.contains("uid="), "{line:?}: {said}");
                }
            });
        }
    });
}

#[test]
fn no_hostile_line_starts_a_process() {
    if let Some(reason) = obstacle() {
        println!("skipped: {reason}");
        return;
    }
    // What is measured sees a process that was there only for a moment.
    assert!(Command::new("true").status().unwrap().success());
    assert!(faults_of_children(std::process::id()) > 0);

    let farm = processes::Farm::start();
    let coordinator = farm.coordinator_process().as_raw_nonzero().get().try_into().unwrap();
    let marker = farm.dir().join("marker");
    let lines = hostile_lines(marker.to_str().unwrap());
    let lines: Vec<&String> = lines.iter().filter(|line| !line.contains('\0')).collect();
    let sample: Vec<&String> =
        lines.iter().copied().step_by(lines.len() / LINES_OVER_SSH).take(LINES_OVER_SSH).collect();
    // A line that begins with a hyphen is for the coordinator, not for ssh.
    let mut words = farm.ssh_words();
    words.insert(words.len() - 1, "--".to_owned());
    let (over, end) = mpsc::channel::<()>();
    let looking = thread::spawn(move || {
        // The other end goes when the lines are through, or when one of them was a surprise.
        while end.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
            let found = children(coordinator);
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    });
    run_all(&words, &sample);
    submit_hostile_words(&farm, &words, &marker);
    drop(over);
    let seen = looking.join().unwrap();
    assert_eq!(seen, [] as [String; 0]);
    assert_eq!(faults_of_children(coordinator), 0, "the coordinator had a child");
    assert!(!marker.exists());
    assert!(farm.run("check").status.success());
}

/// Runs a line over a connection of our own, which sends any bytes, and returns the status of the
/// answer.
async fn status_of(connection: &Connection, line: &[u8]) -> u32 {
    let (mut reader, writer) = connection.exec(line).await.unwrap();
    // Whoever wants input gets none.
    writer.end_data().await.ok();
    let mut status = None;
    loop {
        match tokio::time::timeout(farm::COMMAND_MAX, reader.next()).await.unwrap() {
            Incoming::Exited(code) => status = Some(code),
            Incoming::Eof | Incoming::Lost => return status.unwrap(),
            Incoming::Data(_) | Incoming::Stderr(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hostile_line_is_answered_without_a_process_and_each_refusal_is_noted() {
    if let Some(reason) = obstacle() {
        println!("skipped: {reason}");
        return;
    }
    let farm = processes::Farm::start();
    let coordinator = farm.coordinator_process().as_raw_nonzero().get().try_into().unwrap();
    let marker = farm.dir().join("marker");
    let mut lines: Vec<Vec<u8>> =
        hostile_lines(marker.to_str().unwrap()).into_iter().map(String::into_bytes).collect();
    lines.push(b"show \xff\xfe $(touch x)".to_vec());
    lines.push([b"builds --drv ".as_slice(), &[0xc3; 1000]].concat());
    lines.push([b"show ".as_slice(), &vec![b'A'; 200 << 10]].concat());
    lines.push("wait x ".repeat(10_000).into_bytes());
    assert!(lines.len() >= LINES_MIN);
    let config = ClientConfig {
        address: format!("127.0.0.1:{}", farm.port()),
        host_keys: vec![farm.run_file("host_key.pub")],
        identity: host_key::load(&farm.dir().join("identities/operator")).unwrap(),
        user: "$(id)".to_owned(),
    };
    let connection = connect(&config, &CancellationToken::new()).await.unwrap();
    let (mut refused, mut answered) = (0u64, 0u64);
    for line in &lines {
        match status_of(&connection, line).await {
            2..=5 => refused += 1,
            0 | 1 => answered += 1,
            other => panic!("{}: {other}", line.escape_ascii()),
        }
    }
    // What does not even fit into a packet costs its sender the connection, and nobody else.
    let too_long = [b"show ".as_slice(), &vec![b'A'; 1 << 20]].concat();
    assert!(connection.exec(too_long).await.is_err());
    assert!(refused > 1_000, "{refused} of {} refused", lines.len());
    println!("{refused} lines refused, {answered} questions answered");
    // Each of them is in the audit, if only as one of a sum.
    wait::until("all refusals are noted", || {
        let rows = farm.objects("audit --limit 10000");
        assert!(rows.iter().all(|row| row["result"] == "refused"), "{rows:?}");
        assert!(!rows.iter().any(|row| row["line"].as_str().unwrap().contains(char::is_control)));
        rows.iter().map(|row| row["lines"].as_u64().unwrap()).sum::<u64>() == refused
    });
    assert_eq!(children(coordinator), [] as [String; 0]);
    assert_eq!(faults_of_children(coordinator), 0, "the coordinator had a child");
    assert!(!marker.exists());
}

/// Submits a derivation that is hostile wherever it can be, names subsystems and variables.
fn submit_hostile_words(farm: &processes::Farm, words: &[String], marker: &Path) {
    let touch = format!("$(touch {0}); touch {0} #", marker.display());
    let hostile = drv("--help", &touch, &[], &[]);
    let tag = format!("submit --closure --tag 'a={touch}' --key '{touch}'");
    let output = feed(words, &tag, &export(&[&hostile]));
    assert_eq!(output.status.code(), Some(0), "{}", output.stderr.escape_ascii());
    let listed = farm.objects("builds");
    assert_eq!(listed.len(), 1);
    assert!(listed[0].to_string().contains("--help.drv"));
    let mut subsystem = words.to_vec();
    subsystem.insert(1, "-s".to_owned());
    let output = feed(&subsystem, &format!("../../../bin/sh -c '{touch}'"), b"");
    assert_eq!(output.status.code(), Some(2), "{}", output.stderr.escape_ascii());
    let mut variables = words.to_vec();
    let set =
        format!("SetEnv=STEADING_TAGS=\"{touch}\" LD_PRELOAD=/x BASH_ENV={}", marker.display());
    variables.splice(1..1, ["-o".to_owned(), set]);
    assert_eq!(feed(&variables, "whoami", b"").status.code(), Some(0));
}

/// A path, and what is said to be its nar.
type Entry = (StorePath, Vec<u8>);

/// A derivation under its path with these inputs added, which its path does not have.
fn with_inputs(drv: &Drv, inputs: &[&Drv]) -> Vec<u8> {
    let mut derivation = Derivation::parse(&drv.text).unwrap();
    derivation
        .input_derivations
        .extend(inputs.iter().map(|input| (input.path.clone(), vec!["out".to_owned()])));
    derivation.input_derivations.sort_by_key(|(path, _)| path.to_string());
    file_nar(&derivation.to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cycle_and_no_other_content_of_a_path_can_be_submitted() {
    let Some(farm) = Farm::start(&Config::default(), &PEOPLE).await else { return };
    let (a, b, c) = (drv("a", "1", &[], &[]), drv("b", "2", &[], &[]), drv("c", "3", &[], &[]));
    let (text, nar) = source("text", b"right");
    let user = drv("user", "4", &[], &[&text]);
    let drv_of = |drv: &Drv| (drv.path.clone(), file_nar(&drv.text));
    let attacks: Vec<(&str, Vec<Entry>)> = vec![
        ("an edge to itself", vec![(a.path.clone(), with_inputs(&a, &[&a]))]),
        (
            "a cycle of two",
            vec![
                (a.path.clone(), with_inputs(&a, &[&b])),
                (b.path.clone(), with_inputs(&b, &[&a])),
            ],
        ),
        (
            "a cycle of three",
            vec![
                (a.path.clone(), with_inputs(&a, &[&b])),
                (b.path.clone(), with_inputs(&b, &[&c])),
                (c.path.clone(), with_inputs(&c, &[&a])),
            ],
        ),
        (
            "an input more than its path has",
            vec![drv_of(&b), (a.path.clone(), with_inputs(&a, &[&b]))],
        ),
        ("another derivation", vec![(a.path.clone(), file_nar(&b.text))]),
        ("a path twice, with two contents", vec![drv_of(&a), (a.path.clone(), file_nar(&b.text))]),
        ("a source with another content", vec![(text.clone(), file_nar(b"wrong")), drv_of(&user)]),
        (
            "a source twice, with two contents",
            vec![(text.clone(), nar.clone()), (text.clone(), file_nar(b"wrong")), drv_of(&user)],
        ),
        ("a derivation that is a source", vec![(text.clone(), file_nar(&a.text))]),
        ("an output that is not trusted", vec![(a.out.clone(), file_nar(b"done")), drv_of(&a)]),
        ("a derivation cut short", vec![(a.path.clone(), file_nar(&a.text[..a.text.len() - 1]))]),
        ("no derivation", vec![(a.path.clone(), file_nar(b"#!/bin/sh\ntouch /tmp/x\n"))]),
    ];
    for (name, entries) in attacks {
        let bytes = stream(entries.iter().map(|(path, nar)| (path, nar.clone())));
        let answered = farm.feed("sam", "submit --closure", &bytes).await;
        assert_eq!(answered.status, 5, "{name}: {}", answered.err);
        assert!(answered.err.contains("/nix/store/"), "{name}: {}", answered.err);
        assert_eq!(answered.text(), "", "{name}");
    }
    assert_eq!(farm.run("vera", "builds --json").await.expect(0).text(), "");
    // The honest ones are none the worse for it.
    let honest = stream([(&text, nar), (&user.path, file_nar(&user.text))]);
    farm.feed("sue", "submit --closure", &honest).await.expect(0);
    farm.feed("sue", "submit --closure", &export(&[&a])).await.expect(0);
    farm.run("ada", "check").await.expect(0);
}

/// An entry of an export stream with any bytes for a path and any number of references.
fn entry(path: &[u8], references: u64) -> Vec<u8> {
    let mut wire = 1u64.to_le_bytes().to_vec();
    wire.extend(file_nar(b"content"));
    wire.extend(0x4558_494e_u64.to_le_bytes());
    wire.extend((path.len() as u64).to_le_bytes());
    wire.extend(path);
    wire.resize(wire.len().next_multiple_of(8), 0);
    wire.extend(references.to_le_bytes());
    wire.extend([0; 24]);
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_lengths_that_nothing_has_are_refused() {
    let Some(farm) = Farm::start(&Config::default(), &PEOPLE).await else { return };
    let hash = "/nix/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy";
    let path = |name: &str| entry(format!("{hash}{name}").as_bytes(), 0);
    let lying = |length: u64| {
        let mut wire = entry(b"", 0);
        let at = wire.len() - 40;
        wire[at..at + 8].copy_from_slice(&length.to_le_bytes());
        wire
    };
    let attacks = [
        ("a name of 212 characters", path(&format!("-{}", "x".repeat(212)))),
        ("a name of a megabyte", path(&format!("-{}", "x".repeat(1 << 20)))),
        ("no name", path("-")),
        ("no hyphen", path("")),
        ("a name that leads out", path("-x/../../../etc/passwd")),
        ("a name of two dots", entry(b"/nix/store/..", 0)),
        ("another root", entry(b"/etc/passwd", 0)),
        ("a name with NUL", path("-a\0b")),
        ("a name with a space", path("-a b")),
        ("a name with a shell in it", path("-$(id)")),
        ("a name that is not UTF-8", entry(&[hash.as_bytes(), b"-\xff"].concat(), 0)),
        ("a hash with a letter that no hash has", entry(&hash.replace('z', "u").into_bytes(), 0)),
        ("a path of 16 EiB", lying(u64::MAX)),
        ("a path of 8 EiB", lying(1 << 63)),
        ("references without number", entry(format!("{hash}-x").as_bytes(), u64::MAX)),
        ("a million references", entry(format!("{hash}-x").as_bytes(), 1_000_000)),
        ("entries without number", 2u64.to_le_bytes().repeat(1_000)),
        ("no magic behind the nar", [&1u64.to_le_bytes()[..], &file_nar(b"x"), &[0; 64]].concat()),
    ];
    for (name, bytes) in attacks {
        let answered = farm.feed("sam", "submit --closure", &bytes).await;
        assert_eq!(answered.status, 5, "{name}: {}", answered.err);
        let shown = answered.err.len();
        assert!(shown < 2_000, "{name}: {shown} bytes");
        let unshowable = |c: char| c.is_control() && !matches!(c, '\n' | '\r');
        assert!(!answered.err.contains(unshowable), "{name}: {}", answered.err.escape_debug());
    }
    assert_eq!(farm.run("vera", "builds --json").await.expect(0).text(), "");
    farm.run("ada", "check").await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_ahead_or_at_anothers_builds_by_what_they_claim() {
    let Some(farm) = Farm::start(&Config::default(), &PEOPLE).await else { return };
    let one = export(&[&drv("one", "true", &[], &[])]);
    let line = "submit --closure --key wave --tag owner=sam --priority 20";
    let sams = farm.feed("sam", line, &one).await.expect(0).text().trim().to_owned();
    let priority = async |build: &str| {
        farm.run("vera", &format!("show --json {build}")).await.objects()[0]["priority"].clone()
    };
    assert_eq!(priority(&sams).await, 20);
    // Another’s key is another key.
    let sues = farm.feed("sue", "submit --closure --key wave", &one).await.expect(0);
    let sues = sues.text().trim().to_owned();
    assert_ne!(sams, sues);
    // A ceiling holds wherever the wish comes from.
    for options in [&["-o", "SetEnv=STEADING_PRIORITY=1000"][..], &[]] {
        let line = if options.is_empty() {
            "submit --closure --priority 1000"
        } else {
            "submit --closure"
        };
        let answered = answer(farm.ssh("sam", options, line), &one).await.expect(0);
        assert!(answered.err.contains("the priority is 20"), "{}", answered.err);
        assert_eq!(priority(answered.text().trim()).await, 20);
    }
    for value in ["2147483648", "-2147483649", "1e9", "0x7f", "１", "1;2", "", "NaN"] {
        let line = format!("submit --closure --priority='{value}'");
        farm.feed("sue", &line, &one).await.expect(2);
    }
    for line in [
        format!("cancel {sams}"),
        format!("cancel {sues} {sams}"),
        "cancel --where-tag owner=sam".to_owned(),
        format!("cancel {}", sams.to_uppercase()),
    ] {
        farm.run("sue", &line).await.expect(4);
        farm.run("vera", &line).await.expect(4);
    }
    for line in ["agents pause sam", "agents drain amber", "check"] {
        farm.run("sue", line).await.expect(4);
    }
    let left = farm.run("vera", "builds --state ready --json").await.expect(0);
    assert_eq!(left.objects().len(), 4);
}
