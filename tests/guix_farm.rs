//! The whole farm with real Guix daemons and the stock `ssh`: a coordinator without any store, two
//! agents with a Guix of their own each, a machine that submits and one that substitutes. Skipped,
//! and said so, where there is no Debian sid to be had.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is a test; a failure names its place, and what was measured is printed"
)]

#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use private_guix::PrivateGuix;
use processes::{Farm, lines_of};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output, Stdio},
};
use steading::{
    core::{hash::Sha256, store_path::StorePath},
    telemetry::Clock,
};

/// What is asked for, and how it must end; in the order of `tests/graphs/farm.scm`.
const GRAPHS: [(&str, &str); 12] = [
    ("wide", "succeeded"),
    ("ticking", "succeeded"),
    ("chain", "succeeded"),
    ("diamond", "succeeded"),
    ("multi", "succeeded"),
    ("uses-lib", "succeeded"),
    ("fixed", "succeeded"),
    ("self-reference", "succeeded"),
    ("many-files", "succeeded"),
    ("big", "succeeded"),
    ("failing", "failed"),
    ("depends-on-failing", "blocked"),
];
/// How large the largest output is, in MiB, unless `STEADING_GUIX_BIG_MIB` says so.
const BIG_MIB: u32 = 16;

/// Starts a Guix, or ends the test with the reason why there is none.
macro_rules! guix_or_skip {
    () => {
        match PrivateGuix::start() {
            Ok(guix) => guix,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

/// Lets a machine believe the farm, as `guix archive --authorize` would.
fn believe(guix: &PrivateGuix, farm: &Farm) {
    guix.authorize(&[farm.run_file("signing-guix.pub")]);
}

/// Submits the closure of derivations as the README says; returns the builds, one for each.
fn submit(farm: &Farm, home: &PrivateGuix, drvs: &[StorePath]) -> Vec<String> {
    let words: Vec<String> = drvs.iter().map(ToString::to_string).collect();
    let mut export = home
        .command("guix")
        .args(["archive", "--export", "-r"])
        .args(&words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let verb = format!("submit --closure --tag run=1 {}", words.join(" "));
    let submitted = farm.ssh(&verb).stdin(export.stdout.take().unwrap()).output().unwrap();
    assert!(export.wait().unwrap().success());
    assert!(submitted.status.success(), "{}", submitted.stderr.escape_ascii());
    let ids = String::from_utf8(submitted.stdout).unwrap();
    let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
    assert_eq!(ids.len(), drvs.len());
    ids
}

/// Makes the key that `guix archive --export` signs with.
fn make_key(guix: &PrivateGuix) {
    let made = guix.command("guix").args(["archive", "--generate-key"]).output().unwrap();
    assert!(made.status.success(), "{}", made.stderr.escape_ascii());
}

fn text(output: &Output) -> String {
    format!("{}{}", output.stdout.escape_ascii(), output.stderr.escape_ascii())
}

#[test]
fn a_real_graph_is_built_by_two_guix_machines_and_read_back_by_a_stock_guix() {
    let (home, amber, birch) = (guix_or_skip!(), guix_or_skip!(), guix_or_skip!());
    let clock = Clock::start();
    make_key(&home);
    let mut farm = Farm::start();
    for (name, machine) in [("amber", &amber), ("birch", &birch)] {
        believe(machine, &farm);
        farm.start_guix_agent(name, &machine.socket());
    }
    let gate = tempfile::tempdir_in("/tmp").unwrap();
    let gate = gate.path().join("gate");
    let mib = std::env::var("STEADING_GUIX_BIG_MIB").map_or(BIG_MIB, |mib| mib.parse().unwrap());
    let graphs = include_str!("graphs/farm.scm");
    let drvs = home
        .derivations(&format!("(define gate \"{}\")(define mib {mib}){graphs}", gate.display()));
    assert_eq!(drvs.len(), GRAPHS.len());
    farm.until_connected(2);
    let ids = submit(&farm, &home, &drvs);

    let verb = format!("log -f {}", ids[1]);
    let mut following = farm.ssh(&verb).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = lines_of(following.stdout.take().unwrap());
    assert!(lines.any(|line| line == "tick 3"), "the log was not followed");
    assert_eq!(farm.objects(&format!("show {}", ids[1]))[0]["state"], "building");
    fs_err::write(&gate, "").unwrap();
    assert!(following.wait().unwrap().success());

    let waited = farm.run(&format!("wait {}", ids.join(" ")));
    assert_eq!(waited.status.code(), Some(1), "{}", text(&waited));
    for ((name, ends), id) in GRAPHS.iter().zip(&ids) {
        let shown = &farm.objects(&format!("show {id}"))[0];
        assert_eq!(shown["state"], *ends, "{name}: {shown}");
    }
    let log = farm.run(&format!("log {}", ids[10])).stdout;
    assert!(log.starts_with(b"about to fail\non stderr\n"), "{}", log.escape_ascii());
    both_have_built_everything_once(&farm);
    let check = farm.run("check");
    assert!(check.status.success(), "{}", text(&check));

    let succeeded = GRAPHS.iter().zip(&drvs).filter(|((_, ends), _)| *ends == "succeeded");
    let outputs: Vec<StorePath> = succeeded
        .flat_map(|(_, drv)| home.derivation(drv).outputs)
        .map(|output| output.path)
        .collect();
    a_stock_guix_substitutes(&farm, &outputs);
    a_tree_that_was_tampered_with_is_refused(&farm, &outputs[0]);
    println!("measured: {} ms in all", clock.now().mono.as_ms());
}

/// Every success has one committed attempt, and both machines have a part in it.
fn both_have_built_everything_once(farm: &Farm) {
    let builds = farm.objects("builds --limit 10000 --where-tag run=1");
    assert!(builds.len() >= 100, "the graphs have more than a hundred derivations");
    let mut by_agent: BTreeMap<String, usize> = BTreeMap::new();
    for build in &builds {
        let shown = &farm.objects(&format!("show {}", build["build"].as_str().unwrap()))[0];
        let attempts = shown["attempts"].as_array().unwrap();
        let has_end = |end: &str| attempts.iter().filter(|attempt| attempt["end"] == end).count();
        assert!(attempts.len() <= 1, "{shown}");
        assert_eq!(has_end("succeeded"), usize::from(build["state"] == "succeeded"), "{shown}");
        if build["state"] == "succeeded" {
            *by_agent.entry(build["agent"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    assert_eq!(by_agent.len(), 2, "{by_agent:?}");
    assert!(by_agent.values().all(|count| *count >= 10), "{by_agent:?}");
    println!("measured: {} builds, by agent {by_agent:?}", builds.len());
}

/// Substitutes paths on new machines: one that believes the farm and one that does not.
fn a_stock_guix_substitutes(farm: &Farm, outputs: &[StorePath]) {
    let tree = farm.state().join("public/gnu-store");
    wait::until("everything is published", || {
        let narinfo = |path: &StorePath| format!("{}.narinfo", path.hash().base32());
        outputs.iter().all(|path| tree.join(narinfo(path)).exists())
    });
    let reader = PrivateGuix::start().unwrap();
    substitute(&reader, &tree, outputs);
    let came = outputs.iter().filter(|path| reader.has(path)).count();
    assert_eq!(came, 0, "nobody is believed");
    believe(&reader, farm);
    let said = substitute(&reader, &tree, outputs);
    for path in outputs {
        assert!(reader.has(path), "{path} was not substituted: {said}");
    }
    let verified = reader.command("guix").args(["gc", "--verify=contents"]).output().unwrap();
    assert!(verified.status.success(), "{}", text(&verified));

    let without_zstd = PrivateGuix::start_without_zstd().unwrap();
    let known =
        without_zstd.scheme("(display (if (resolve-module '(zstd) #t #f #:ensure #f) 1 0))");
    assert_eq!(known, "0");
    believe(&without_zstd, farm);
    let said = substitute(&without_zstd, &tree, outputs);
    for path in outputs {
        assert!(without_zstd.has(path), "{path} was not substituted without zstd: {said}");
    }
}

/// A third machine gets nothing from a published tree that somebody has changed.
fn a_tree_that_was_tampered_with_is_refused(farm: &Farm, victim: &StorePath) {
    let tree = farm.state().join("public/gnu-store");
    let copy = tempfile::tempdir_in("/tmp").unwrap();
    let copied = Command::new("cp").args(["-r", "--"]).arg(tree).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let tree = copy.path().join("gnu-store");
    let narinfo = tree.join(format!("{}.narinfo", victim.hash().base32()));
    let good = fs_err::read_to_string(&narinfo).unwrap();
    let hash = good.lines().find(|line| line.starts_with("NarHash")).unwrap();
    let other = format!("NarHash: {}", Sha256::of(b"something else"));
    fs_err::write(&narinfo, good.replace(hash, &other)).unwrap();
    let reader = PrivateGuix::start().unwrap();
    believe(&reader, farm);
    let said = substitute(&reader, &tree, std::slice::from_ref(victim));
    assert!(!reader.has(victim), "{said}");
    fs_err::write(&narinfo, good).unwrap();
    believe(&reader, farm);
    let said = substitute(&reader, &tree, std::slice::from_ref(victim));
    assert!(reader.has(victim), "what was refused was refused for what was changed: {said}");
}

/// Asks a Guix for paths with this tree as its only substituter; returns what it said.
fn substitute(reader: &PrivateGuix, tree: &Path, paths: &[StorePath]) -> String {
    let url = format!("--substitute-urls=file://{}", tree.display());
    let paths = paths.iter().map(ToString::to_string);
    text(&reader.command("guix").args(["build", &url]).args(paths).output().unwrap())
}

/// Two derivations, one of which needs a file that is nobody's output.
const LEAF: &str = r#"
(define leaf (add-text-to-store store "leaf" "fallen"))
(define needs-leaf
  (say (make "needs-leaf" "busybox cat $leaf > $out" #:sources (list leaf) #:env `(("leaf" . ,leaf)))))
(say (make "above" "busybox cat $below > $out" #:inputs (list (list needs-leaf))
           #:env `(("below" . ,(derivation->output-path needs-leaf)))))
"#;

#[test]
fn a_leaf_that_was_left_out_is_named_by_the_setup_failure() {
    let (home, amber) = (guix_or_skip!(), guix_or_skip!());
    let mut farm = Farm::start();
    believe(&amber, &farm);
    farm.start_guix_agent("amber", &amber.socket());
    let drvs = home.derivations(LEAF);
    let leaf = home.derivation(&drvs[0]).input_sources.into_iter();
    let leaf = leaf.clone().find(|path| path.name() == "leaf").unwrap();
    let kept = home.export(&drvs).into_iter().filter(|(trailer, _)| trailer.path != leaf);
    let stream = private_guix::stream(kept);
    let verb = format!("submit --closure {}", drvs[1]);
    let submitted = processes::feed(&farm.ssh_words(), &verb, &stream);
    assert!(submitted.status.success(), "{}", text(&submitted));
    assert!(text(&submitted).contains(&leaf.to_string()), "{}", text(&submitted));
    let id = String::from_utf8(submitted.stdout).unwrap().trim_end().to_owned();
    let needs_leaf = drvs[0].to_string();
    let below = || {
        let builds = farm.objects("builds");
        let found = builds.into_iter().find(|build| build["derivation"] == needs_leaf.as_str());
        found.unwrap()["build"].as_str().unwrap().to_owned()
    };
    let shown = |id: &str| farm.objects(&format!("show {id}")).remove(0);
    wait::until("the setup failure is told", || {
        shown(&below())["attempts"].as_array().unwrap().iter().any(|attempt| {
            attempt["end"] == "missing-inputs" && attempt.to_string().contains(&leaf.to_string())
        })
    });
    // What was left out can come later.
    let stream = private_guix::stream(home.export(&drvs));
    let submitted = processes::feed(&farm.ssh_words(), "submit --closure", &stream);
    assert!(submitted.status.success(), "{}", text(&submitted));
    let waited = farm.run(&format!("wait {id}"));
    assert!(waited.status.success(), "{}", text(&waited));
}

#[test]
fn outputs_that_an_authorized_guix_signed_are_taken_and_built_with() {
    let (home, amber) = (guix_or_skip!(), guix_or_skip!());
    make_key(&home);
    let mut farm = Farm::start();
    believe(&amber, &farm);
    farm.start_guix_agent("amber", &amber.socket());
    let drvs = home.derivations(
        r#"
(define below (say (make "below" "echo $out > $out")))
(say (make "above" "busybox cat $below > $out" #:inputs (list (list below))
           #:env `(("below" . ,(derivation->output-path below)))))"#,
    );
    let built = home.command("guix").args(["build", &drvs[0].to_string()]).output().unwrap();
    assert!(built.status.success(), "{}", text(&built));
    let below = home.derivation(&drvs[0]).outputs[0].path.clone();
    let submit = || {
        let mut export = home
            .command("guix")
            .args(["archive", "--export", "-r", &below.to_string(), &drvs[1].to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let verb = format!("submit --closure --no-inputs {}", drvs[1]);
        let submitted = farm.ssh(&verb).stdin(export.stdout.take().unwrap()).output().unwrap();
        export.wait().unwrap();
        submitted
    };
    let refused = submit();
    assert!(!refused.status.success());
    assert!(text(&refused).contains("guix-acl"), "{}", text(&refused));
    let key = fs_err::read_to_string(home.outside("/etc/guix/signing-key.pub")).unwrap();
    let acl = format!("(acl (entry {key} (tag (guix import))))");
    fs_err::write(farm.state().join("guix-acl"), acl).unwrap();
    let submitted = submit();
    assert!(submitted.status.success(), "{}", text(&submitted));
    let id = String::from_utf8(submitted.stdout).unwrap();
    let waited = farm.run(&format!("wait {id}"));
    assert!(waited.status.success(), "{}", text(&waited));
    // It came from the farm, signed with the farm's key; nobody else hears of it.
    assert!(amber.has(&below));
    let tree = farm.state().join("public/gnu-store");
    assert!(!tree.join(format!("{}.narinfo", below.hash().base32())).exists());
}

#[test]
fn the_doctor_tells_how_a_guix_machine_is_made_to_believe_the_farm() {
    let amber = guix_or_skip!();
    let mut farm = Farm::start();
    farm.start_guix_agent("amber", &amber.socket());
    farm.until_connected(1);
    let find = |findings: &[Value], check: &str| {
        findings.iter().find(|finding| finding["check"] == check).cloned().unwrap()
    };
    let (status, findings) = farm.guix_doctor("amber", &amber.socket());
    assert_eq!(find(&findings, "daemon")["grade"], "ok", "{findings:?}");
    let finding = find(&findings, "signatures");
    assert_eq!((finding["grade"].as_str(), status), (Some("fail"), Some(1)), "{findings:?}");
    // What it says is done as it says it.
    let mend = finding["mend"].as_str().unwrap();
    let mended = amber.command("sh").args(["-c", mend]).output().unwrap();
    assert!(mended.status.success(), "{mend}: {}", text(&mended));
    let (status, findings) = farm.guix_doctor("amber", &amber.socket());
    assert_eq!(find(&findings, "signatures")["grade"], "ok", "{findings:?}");
    assert_eq!(status, Some(0), "{findings:?}");
    let (status, findings) = farm.guix_doctor("amber", Path::new("/nonexistent"));
    assert_eq!(find(&findings, "daemon")["grade"], "fail", "{findings:?}");
    assert_eq!(status, Some(1));
}

#[test]
fn a_guix_daemon_is_found_where_there_is_no_nix_daemon() {
    let amber = guix_or_skip!();
    let mut farm = Farm::start();
    farm.start_any_agent("amber", Path::new("/nonexistent"), &amber.socket());
    farm.start_any_agent("birch", Path::new("/nonexistent"), Path::new("/nonexistent"));
    farm.until_connected(2);
    let dialects: BTreeMap<String, String> = farm
        .objects("agents")
        .iter()
        .map(|agent| (agent["agent"].to_string(), agent["dialect"].to_string()))
        .collect();
    let dialects: Vec<&str> = dialects.values().map(String::as_str).collect();
    assert_eq!(dialects, ["\"guix\"", "\"direct\""]);
}

/// How many trivial builds are measured, unless `STEADING_GUIX_TRIVIAL` says so.
const TRIVIAL: u32 = 5;

/// Nothing is asserted of times: one pair on a busy machine proves nothing.
#[test]
fn trivial_builds_are_measured_beside_a_guix_daemon_alone() {
    let (home, amber, alone) = (guix_or_skip!(), guix_or_skip!(), guix_or_skip!());
    make_key(&home);
    let count = std::env::var("STEADING_GUIX_TRIVIAL").map_or(TRIVIAL, |n| n.parse().unwrap());
    let program = format!(
        "(for-each (lambda (n) (say (make (format #f \"trivial-~a\" n) \"echo $out > $out\")))
                   (iota {count}))"
    );
    let (drvs, same) = (home.derivations(&program), alone.derivations(&program));
    assert_eq!(drvs, same);
    let words: Vec<String> = drvs.iter().map(ToString::to_string).collect();
    let clock = Clock::start();
    let built = alone.command("guix").args(["build", "-M", "1"]).args(&words).output().unwrap();
    assert!(built.status.success(), "{}", text(&built));
    let alone_ms = clock.now().mono.as_ms();

    let mut farm = Farm::start();
    believe(&amber, &farm);
    farm.write_settings("amber", "gentle-start = 0\n");
    farm.start_guix_agent_with("amber", &amber.socket(), 1);
    farm.until_connected(1);
    let clock = Clock::start();
    let ids = submit(&farm, &home, &drvs);
    let submitted_ms = clock.now().mono.as_ms();
    let waited = farm.run(&format!("wait {}", ids.join(" ")));
    assert!(waited.status.success(), "{}", text(&waited));
    println!(
        "measured: {count} trivial builds, one at a time: {alone_ms} ms by guix-daemon alone, \
         {submitted_ms} ms to submit, {} ms in all with the farm",
        clock.now().mono.as_ms()
    );
}
