//! Hooks: what they get, what becomes of those that fail, hang, fork or flood, and that nothing is
//! missing when the coordinator is killed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod farm;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use closure::{drv, export};
use farm::Farm;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use steading::{
    config::Config,
    core::{
        change::Change,
        engine::Input,
        event::{Event, EventKind},
        id::BuildId,
    },
    hooks::HookSettings,
    ssh::Role,
};

const PEOPLE: [(Role, &str, &str); 4] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", ""),
    (Role::Operator, "olga", ""),
    (Role::Admin, "ada", ""),
];

/// A farm whose hooks are given up after two tries.
async fn farm(time_limit: u32) -> Option<Farm> {
    let hooks = HookSettings {
        time_limit: time_limit.try_into().unwrap(),
        tries: 2.try_into().unwrap(),
        pause: 1.try_into().unwrap(),
        ..HookSettings::default()
    };
    Farm::start(&Config { hooks, ..Config::default() }, &PEOPLE).await
}

/// Puts a hook into the state directory, all of it at once.
fn install(state: &Path, event: &str, name: &str, script: &str) -> PathBuf {
    let folder = state.join("hooks").join(format!("{event}.d"));
    fs_err::create_dir_all(&folder).unwrap();
    for dir in [&folder, folder.parent().unwrap()] {
        fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let fresh = folder.join(format!(".{name}"));
    fs_err::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs_err::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.join(name);
    fs_err::rename(fresh, &path).unwrap();
    path
}

/// Returns what a hook that writes its input to a file has got: whole lines.
fn got(file: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for a condition without holding up the coordinator, which is in this process.
async fn until(what: &'static str, condition: impl FnMut() -> bool + Send + 'static) {
    tokio::task::spawn_blocking(move || wait::until(what, condition)).await.unwrap();
}

/// Lets builds fail that nobody knows, one commit each.
async fn let_fail(farm: &Farm, count: u8) {
    for number in 0..count {
        let at = farm.coordinator.clock.now().wall;
        let event = Event::new(EventKind::BuildFailure, at);
        let event = event.of_build(BuildId::from_bytes([number; 16]));
        let changes = vec![Change::Event(Box::new(event))];
        let record = move |token| Input::Record { token: Some(token), changes };
        farm.coordinator.engine.request(record).await.unwrap();
    }
}

/// Returns what is known of a hook.
async fn hook(farm: &Farm, name: &str) -> Value {
    let all = farm.run("olga", "hooks --json").await.expect(0).objects();
    all.into_iter().find(|hook| hook["hook"] == name).unwrap()
}

async fn failed(farm: &Farm) -> Vec<Value> {
    farm.run("olga", "hooks --failed --json").await.expect(0).objects()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_gets_every_event_of_its_kind_and_can_answer_with_its_own_key() {
    let Some(farm) = farm(60).await else { return };
    let state = farm.state_dir();
    let dir = tempfile::tempdir().unwrap();
    let (lines, who) = (dir.path().join("lines"), dir.path().join("who"));
    let script = format!(
        "cat >> {0}\nssh $STEADING_COORDINATOR whoami --json > {1}.new 2>&1\n\
         echo $STEADING_EVENT $STEADING_CURSOR $STEADING_KEY >> {1}.new\nmv {1}.new {1}",
        lines.display(),
        who.display()
    );
    install(&state, "build-submitted", "tell", &script);
    let drv = drv("told", "echo x > $out", &[], &[]);
    let line = "submit --closure --tag branch=core";
    let submitted = farm.feed("sam", line, &export(&[&drv])).await.expect(0);
    let (file, told) = (lines.clone(), who.clone());
    until("the hook has run", move || got(&file).len() == 1 && told.exists()).await;
    let event = got(&lines).pop().unwrap();
    assert_eq!(event["type"], "build-submitted");
    assert_eq!(event["build"], submitted.text().trim());
    assert_eq!(event["derivation"], drv.path.to_string());
    assert_eq!(event["submitter"], "sam");
    assert_eq!(event["tags"]["branch"][0], "core");
    let told = fs_err::read_to_string(who).unwrap();
    let (answer, variables) = told.split_once('\n').unwrap();
    let answer: Value = serde_json::from_str(answer).expect(&told);
    assert_eq!((&answer["name"], &answer["role"]), (&"hooks".into(), &"submitter".into()));
    let key = state.join("secrets/hooks_ed25519");
    let expected = format!("build-submitted {} {}", event["cursor"], key.display());
    assert_eq!(variables.trim_end(), expected);
    farm.run("sam", "hooks").await.expect(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_that_fail_hang_fork_or_flood_delay_nobody() {
    const EVENTS: u8 = 10;
    let Some(farm) = farm(3_600).await else { return };
    let state = farm.state_dir();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    install(&state, "build-failure", "1-hang", "sleep 100000");
    install(&state, "build-failure", "2-fork", "for i in 1 2 3 4 5 6 7 8; do sleep 100000 & done");
    install(&state, "build-failure", "3-flood", "exec yes");
    install(&state, "build-failure", "4-fail", "echo no such host >&2; exit 1");
    install(&state, "build-failure", "9-honest", &format!("cat >> {}", file.display()));
    let_fail(&farm, EVENTS).await;
    let lines = file.clone();
    until("the honest hook has everything", move || got(&lines).len() == usize::from(EVENTS)).await;
    let places: Vec<i64> =
        got(&file).iter().map(|event| event["cursor"].as_i64().unwrap()).collect();
    assert!(places.is_sorted_by(|one, next| one + 1 == *next), "{places:?}");
    // It hangs at the first all the while; and people are served.
    let hang = hook(&farm, "1-hang").await;
    assert_eq!(hang["running"][0]["cursor"], places[0]);
    assert_eq!(hang["queued"], EVENTS);
    let drv = drv("meanwhile", "echo x > $out", &[], &[]);
    farm.feed("sam", "submit --closure", &export(&[&drv])).await.expect(0);
    // The others come to the end of their events in the same order, each in its own way.
    for (name, waiting) in [("2-fork", false), ("3-flood", true), ("4-fail", true)] {
        loop {
            let hook = hook(&farm, name).await;
            if hook["queued"] == 0 && hook["running"].as_array().unwrap().is_empty() {
                let failed = hook["waiting"].as_i64().unwrap() + hook["dead"].as_i64().unwrap();
                assert_eq!(failed, if waiting { i64::from(EVENTS) } else { 0 }, "{hook}");
                break;
            }
        }
    }
    let all = failed(&farm).await;
    let of = |name: &str| all.iter().find(|one| one["hook"] == name).unwrap();
    assert!(of("3-flood")["end"].as_str().unwrap().contains("printed more than"));
    assert_eq!(of("4-fail")["end"], "exit status 1");
    assert_eq!(of("4-fail")["output"], "no such host\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_tried_again_when_somebody_says_so() {
    let Some(farm) = farm(1).await else { return };
    let state = farm.state_dir();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    install(&state, "build-failure", "mail", "sleep 100000");
    let_fail(&farm, 1).await;
    let dead = loop {
        if let Some(dead) = failed(&farm).await.into_iter().find(|one| one["state"] == "dead") {
            break dead;
        }
    };
    assert_eq!(dead["tries"], 2);
    assert!(dead["end"].as_str().unwrap().contains("time-limit"), "{dead}");
    assert_eq!(hook(&farm, "mail").await["dead"], 1);
    install(&state, "build-failure", "mail", &format!("cat >> {}", file.display()));
    farm.run("olga", "hooks retry 4711").await.expect(3);
    farm.run("sam", &format!("hooks retry {}", dead["id"])).await.expect(4);
    farm.run("olga", &format!("hooks retry {}", dead["id"])).await.expect(0);
    let lines = file.clone();
    until("the mended hook has it", move || got(&lines).len() == 1).await;
    assert_eq!(got(&file)[0]["cursor"], dead["cursor"]);
    while !failed(&farm).await.is_empty() {}
    // What is not there any more is forgotten, with all that it failed on.
    fs_err::remove_file(state.join("hooks/build-failure.d/mail")).unwrap();
    while !farm.run("olga", "hooks --json").await.expect(0).objects().is_empty() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_must_not_run_is_named_and_goes_on_where_it_was() {
    let Some(farm) = farm(60).await else { return };
    let state = farm.state_dir();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    let path = install(&state, "build-failure", "tell", &format!("cat >> {}", file.display()));
    let_fail(&farm, 2).await;
    let lines = file.clone();
    until("two came", move || got(&lines).len() == 2).await;
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o757)).unwrap();
    loop {
        let told = farm.run("olga", "hooks").await.expect(0);
        if told.err.contains("others may write to it") {
            break;
        }
    }
    let_fail(&farm, 3).await;
    assert_eq!(hook(&farm, "tell").await["queued"], 3);
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lines = file.clone();
    until("the others came, too", move || got(&lines).len() == 5).await;
}

/// Submits a build that nobody builds, and cancels it.
async fn submit_and_cancel(farm: &Farm, name: &str) -> String {
    let stream = export(&[&drv(name, "echo x > $out", &[], &[])]);
    let told = farm.feed("sam", "submit --closure", &stream).await.expect(0);
    let build = told.text().trim().to_owned();
    farm.run("sam", &format!("cancel {build}")).await.expect(0);
    build
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_a_build_that_was_pruned_is_told_all_the_same() {
    let Some(farm) = farm(60).await else { return };
    let state = farm.state_dir();
    let dir = tempfile::tempdir().unwrap();
    let [file, mended, late] = ["lines", "mended", "late"].map(|name| dir.path().join(name));
    let path = install(&state, "build-canceled", "tell", &format!("cat >> {}", file.display()));
    let fails = format!("test -e {} || exit 1\ncat >> {}", mended.display(), late.display());
    install(&state, "build-canceled", "fails", &fails);
    let first = submit_and_cancel(&farm, "first").await;
    let lines = file.clone();
    until("the first one came", move || got(&lines).len() == 1).await;
    loop {
        if failed(&farm).await.iter().any(|one| one["state"] == "dead") {
            break;
        }
    }
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    loop {
        if farm.run("olga", "hooks").await.expect(0).err.contains("not run") {
            break;
        }
    }
    // Both are signs, and numbers.
    let status = farm.run("vera", "status --json").await.expect(0).objects().remove(0);
    let problems = status["problems"].to_string();
    assert!(problems.contains("a hook does not run: "), "{problems}");
    assert!(problems.contains("1 event given up within a day"), "{problems}");
    let metrics = farm.run("vera", "metrics").await.expect(0);
    for line in [
        "steading_hook_dead{event=\"build-canceled\",hook=\"fails\"} 1",
        "steading_hook_dead{event=\"build-canceled\",hook=\"tell\"} 0",
        "steading_hook_waiting{event=\"build-canceled\",hook=\"fails\"} 0",
        "steading_hook_lost_total{event=\"build-canceled\",hook=\"tell\"} 0",
        "steading_hook_problems 1",
    ] {
        assert!(metrics.lines().contains(&line), "{line}: {}", metrics.text());
    }

    let second = submit_and_cancel(&farm, "second").await;
    let before = farm.run("vera", "events --since 0").await.expect(0).objects();
    let pruned = farm.run("ada", "prune --older-than 0s --json").await.expect(0).objects();
    assert_eq!(pruned[0]["builds"], 2, "{pruned:?}");
    farm.run("vera", &format!("show {second}")).await.expect(3);
    let after = farm.run("vera", "events --since 0").await.expect(0).objects();
    assert_eq!(after, before, "events are kept for as long as their own settings say");
    assert!(after.iter().any(|one| one["type"] == "build-canceled" && one["build"] == *second));
    // What comes now has its id; what was written down before is as it was.
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lines = file.clone();
    until("the second one came", move || got(&lines).len() == 2).await;
    let lines = got(&file);
    assert_eq!((&lines[0]["build"], &lines[1]["build"]), (&first.clone().into(), &second.into()));
    assert!(lines[0]["derivation"].is_string() && lines[1].get("derivation").is_none());
    fs_err::write(&mended, "").unwrap();
    for one in failed(&farm).await.iter().filter(|one| one["state"] == "dead") {
        farm.run("olga", &format!("hooks retry {}", one["id"])).await.expect(0);
    }
    until("it came late", move || {
        let lines = got(&late);
        lines.iter().any(|one| one["build"] == *first && one["derivation"].is_string())
    })
    .await;
}

/// Kills the coordinator again and again while builds are submitted.
#[test]
fn a_coordinator_killed_at_any_moment_loses_no_event() {
    const ROUNDS: usize = 6;
    let configuration = "[hooks]\ntries = 3\npause = 1\n".to_owned();
    let conditions = processes::Conditions { configuration, ..Default::default() };
    let mut farm = processes::Farm::under(conditions);
    let file = farm.dir().join("lines");
    let failing = farm.dir().join("failing");
    // One hook takes everything; one fails the first time that it gets an event.
    let script = format!("cat >> {}", file.display());
    install(&farm.state(), "build-submitted", "honest", &script);
    let script = format!(
        "mkdir -p {0}\ncat > {0}/$STEADING_CURSOR.new\n\
         if [ -e {0}/$STEADING_CURSOR.seen ]; then mv {0}/$STEADING_CURSOR.new \
         {0}/$STEADING_CURSOR.taken; else touch {0}/$STEADING_CURSOR.seen; exit 1; fi",
        failing.display()
    );
    install(&farm.state(), "build-submitted", "failing", &script);
    let drv = drv("again", "echo x > $out", &[], &[]);
    let output = processes::feed(&farm.ssh_words(), "submit --closure", &export(&[&drv]));
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    let mut builds = BTreeSet::from([String::from_utf8(output.stdout).unwrap()]);
    for _ in 0..ROUNDS {
        let seen = got(&file).len();
        for _ in 0..5 {
            let output = farm.run(&format!("submit {}", drv.path));
            assert!(output.status.success(), "{}", output.stderr.escape_ascii());
            builds.insert(String::from_utf8(output.stdout).unwrap());
        }
        // Some hooks run just now, others are to be run.
        wait::until("a hook got something", || got(&file).len() > seen);
        farm.kill_coordinator();
        farm.restart_coordinator();
    }
    let builds: BTreeSet<String> = builds.iter().map(|id| id.trim().to_owned()).collect();
    assert_eq!(builds.len(), ROUNDS * 5 + 1);
    let told = || -> BTreeSet<String> {
        got(&file).iter().map(|event| event["build"].as_str().unwrap().to_owned()).collect()
    };
    wait::until("the honest hook got every event", || told() == builds);
    let taken = || {
        let all = fs_err::read_dir(&failing).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|end| end == "taken")).count()
    };
    wait::until("the failing hook took every event", || taken() == builds.len());
    // Without those that came twice, they came in order.
    let mut places: Vec<i64> =
        got(&file).iter().map(|event| event["cursor"].as_i64().unwrap()).collect();
    let mut first = BTreeSet::new();
    places.retain(|place| first.insert(*place));
    assert!(places.is_sorted(), "{places:?}");
    // And there is no gap in what is told of it.
    let events = farm.objects("events");
    for (place, event) in (1..).zip(&events) {
        assert_eq!(event["cursor"], place);
    }
}
