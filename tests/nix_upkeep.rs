//! What an agent does to a machine with a real Nix daemon, and what it keeps: collections of
//! garbage, outputs that are there already, processes that were left running, substituters.
//! Skipped, and said so, where there is no Nix daemon to start.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use private_nix::PrivateNix;
use processes::{Farm, until_some_build_is};
use rustix::process::Signal;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};
use steading::{
    builders::{self, BuildOrder, Builder, BuilderError, BuilderKind, Substituters},
    core::{
        outcome::{BuildFailure, Outcome},
        store_path::{StoreDir, StorePath},
    },
};

/// The shape of every derivation built here.
const MAKE: &str = r#"
let
  make = name: script: more: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  } // more);
in "#;

/// Starts a daemon, or ends the test with the reason why there is none.
macro_rules! nix_or_skip {
    () => {
        nix_or_skip!("")
    };
    ($more:expr) => {
        match PrivateNix::start_with($more) {
            Ok(nix) => nix,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

fn connect(nix: &PrivateNix) -> Box<dyn Builder> {
    let socket = nix.socket();
    builders::open(BuilderKind::Nix { socket, store_dir: StoreDir::nix() }).unwrap()
}

/// Builds a derivation like an attempt does: inputs are rooted first.
fn build(
    nix: &PrivateNix,
    builder: &mut dyn Builder,
    drv_path: &StorePath,
    timeout: Option<Duration>,
    log: &mut dyn FnMut(&[u8]),
) -> (Outcome, Vec<StorePath>) {
    let derivation = nix.derivation(drv_path);
    let input_paths = nix.input_paths(&derivation);
    builder.root(&input_paths).unwrap();
    let order = BuildOrder {
        drv_path,
        derivation: &derivation,
        input_paths: &input_paths,
        timeout,
        max_silent: None,
        cores: 1,
    };
    let outcome = builder.build(&order, log).unwrap();
    (outcome, derivation.outputs.iter().map(|output| output.path.clone()).collect())
}

/// Instantiates derivations, builds them all, and lets go of them.
fn built(nix: &PrivateNix, expression: &str) -> Vec<StorePath> {
    let mut outputs = Vec::new();
    for drv in nix.instantiate(&format!("{MAKE}{expression}")) {
        let (outcome, paths) = build(nix, connect(nix).as_mut(), &drv, None, &mut |_| {});
        assert_eq!(outcome, Outcome::Built);
        outputs.extend(paths);
    }
    outputs
}

fn make_fifo(dir: &Path) -> PathBuf {
    let fifo = dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fifo
}

/// Reads from a FIFO what a process says with it, and then tells when all that had it are gone.
fn listen(fifo: PathBuf) -> mpsc::Receiver<String> {
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let mut reader = loop {
            let mut reader = BufReader::new(fs_err::File::open(&fifo).unwrap());
            reader.read_line(&mut line).unwrap();
            // Who died before it said anything is not meant.
            if !line.is_empty() {
                break reader;
            }
        };
        said.send(line).unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap();
        said.send("gone".to_owned()).ok();
    });
    heard
}

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_mins(3);

#[test]
fn a_collection_takes_nothing_from_a_build_that_runs_or_is_being_packed() {
    let nix = nix_or_skip!();
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let fifo = make_fifo(place.path());
    let expression = format!(
        r#"{MAKE} let
          input = make "input" "echo content > $out" {{ }};
          other = make "other" "echo other > $out" {{ }};
        in [ input other
             (make "user" "echo begun; read go < {}; cat $input > $out" {{ inherit input; }}) ]"#,
        fifo.display()
    );
    let drvs = nix.instantiate(&expression);
    let [input, other] = [&drvs[0], &drvs[1]].map(|drv| {
        let (outcome, outputs) = build(&nix, connect(&nix).as_mut(), drv, None, &mut |_| {});
        assert_eq!(outcome, Outcome::Built);
        outputs
    });
    let mut attempt = connect(&nix);
    let mut freed = None;
    let (outcome, output) = build(&nix, attempt.as_mut(), &drvs[2], None, &mut |bytes| {
        if bytes == b"begun\n" {
            let mut collector = connect(&nix);
            // The daemon lets go of what other connections had rooted when it notices their end.
            wait::until("what nobody needs is collected", || {
                freed = Some(collector.collect(u64::MAX).unwrap());
                collector.valid(&other).unwrap().is_empty()
            });
            assert_eq!(collector.valid(&input).unwrap().len(), 1);
            fs_err::write(&fifo, "go\n").unwrap();
        }
    });
    assert_eq!(outcome, Outcome::Built);
    assert!(freed.is_some());

    connect(&nix).collect(u64::MAX).unwrap();
    let mut nar = Vec::new();
    attempt.dump(&output[0], &mut nar).unwrap();
    assert!(nar.windows(8).any(|part| part == b"content\n"));

    drop(attempt);
    let mut collector = connect(&nix);
    wait::until("a packed output is garbage like any other", || {
        collector.collect(u64::MAX).unwrap();
        collector.valid(&output).unwrap().is_empty()
    });
}

#[test]
fn a_collection_frees_about_what_was_asked_for() {
    let nix = nix_or_skip!();
    let big = r#"make name "dd if=/dev/zero of=$out bs=1M count=2" { }"#;
    let outputs =
        built(&nix, &format!(r#"map (name: {big}) [ "one" "two" "three" "four" "five" ]"#));
    let mut collector = connect(&nix);
    wait::until("enough is collected", || collector.collect(1 << 20).unwrap() >= 1 << 20);
    let left = collector.valid(&outputs).unwrap().len();
    assert!((1..5).contains(&left), "{left} of 5 are left");
}

#[test]
fn a_rooted_output_is_present_and_another_one_is_deleted() {
    let nix = nix_or_skip!();
    let outputs = built(&nix, r#"[ (make "kept" "echo x > $out" { }) ]"#);
    let link = "/nix/root";
    let kept = outputs[0].to_string();
    let added = nix
        .command("nix-store")
        .args(["--realise", &kept, "--add-root", link])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(added.success());
    let error = connect(&nix).remove(&outputs).unwrap_err();
    assert!(
        matches!(&error, BuilderError::OutputsPresent { path, .. } if *path == outputs[0]),
        "{error}"
    );
    assert!(nix.command("rm").arg(link).status().unwrap().success());
    let mut builder = connect(&nix);
    wait::until("nothing uses it any more", || builder.remove(&outputs).is_ok());
    assert!(builder.valid(&outputs).unwrap().is_empty());
}

/// Leaves a process behind in a session of its own, which holds the FIFO until it dies.
fn leaves_a_process_behind(fifo: &Path) -> String {
    format!(
        r#"make "orphan" "setsid sh -c 'exec 3>{0}; echo here >&3; sleep 100000' & echo begun; sleep 100000" {{ }}"#,
        fifo.display()
    )
}

#[test]
fn a_time_limit_ends_what_left_the_session_of_its_build_too() {
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let sandbox = format!(
        "sandbox = true\nsandbox-paths = /bin /usr /lib /lib64 {}\n",
        place.path().display()
    );
    let nix = nix_or_skip!(&sandbox);
    let fifo = make_fifo(place.path());
    let heard = listen(fifo.clone());
    let expression = format!("{MAKE}{}", leaves_a_process_behind(&fifo));
    let drv = nix.instantiate(&expression).remove(0);
    // Two seconds are plenty for the process to appear, unless the machine is busy.
    let mut limit = Duration::from_secs(2);
    let first = loop {
        let mut log = Vec::new();
        let (outcome, _) = build(&nix, connect(&nix).as_mut(), &drv, Some(limit), &mut |bytes| {
            log.write_all(bytes).unwrap();
        });
        assert_eq!(outcome, Outcome::Failed(BuildFailure::Timeout), "{}", log.escape_ascii());
        match heard.try_recv() {
            Ok(first) => break first,
            Err(_) => assert!(limit < PATIENCE, "the process never appeared"),
        }
        limit *= 2;
    };
    assert_eq!(first, "here\n");
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "gone");
}

#[test]
fn substituters_are_those_of_the_agent_and_different_for_derivations() {
    let nix = nix_or_skip!("require-sigs = false\n");
    let outputs = built(&nix, r#"[ (make "far" "echo far > $out" { }) ]"#);
    let drv = nix.instantiate(&format!(r#"{MAKE} make "far" "echo far > $out" {{ }}"#)).remove(0);
    let cache = "file:///nix/cache";
    for (path, more) in [(&outputs[0], None), (&drv, Some("--derivation"))] {
        let mut copy = nix.command("nix");
        copy.args(["copy", "--to", cache, &path.to_string()]).args(more);
        assert!(copy.status().unwrap().success());
    }
    let mut builder = connect(&nix);
    let both = [outputs[0].clone(), drv.clone()];
    wait::until("both are collected", || {
        builder.collect(u64::MAX).unwrap();
        builder.valid(&both).unwrap().is_empty()
    });
    let (none, some) = (|| Some(Vec::new()), || Some(vec![cache.to_owned()]));
    builder.root(&both).unwrap();

    builder.substitute(&both, &Substituters::default()).unwrap();
    assert!(builder.valid(&both).unwrap().is_empty());
    builder.substitute(&both, &Substituters { derivations: some(), others: none() }).unwrap();
    assert_eq!(builder.valid(&both).unwrap().into_iter().collect::<Vec<_>>(), [drv]);
    builder.substitute(&both, &Substituters { derivations: none(), others: some() }).unwrap();
    assert_eq!(builder.valid(&both).unwrap().len(), 2);
}

/// Submits a derivation and returns its build.
fn submit(farm: &Farm, nix: &PrivateNix, expression: &str) -> String {
    let drv = nix.instantiate(&format!("{MAKE}{expression}")).remove(0).to_string();
    let mut export = nix
        .command("sh")
        .arg("-c")
        .arg(format!("nix-store --export $(nix-store --query --requisites {drv})"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let submitted =
        farm.ssh("submit --closure").stdin(export.stdout.take().unwrap()).output().unwrap();
    assert!(export.wait().unwrap().success());
    assert!(submitted.status.success(), "{}", submitted.stderr.escape_ascii());
    String::from_utf8(submitted.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn what_waits_for_its_upload_survives_a_collection() {
    let nix = nix_or_skip!();
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let fifo = make_fifo(place.path());
    let mut farm = Farm::start();
    farm.start_nix_agent("amber", &nix.socket());
    let expression = format!(
        r#"make "late" "echo begun; read line < {}; echo $line > $out" {{ }}"#,
        fifo.display()
    );
    let id = submit(&farm, &nix, &expression);
    until_some_build_is(&farm, "building");
    farm.kill_coordinator();
    fs_err::write(&fifo, "content\n").unwrap();
    wait::until("the outputs are packed", || !farm.packed("amber").is_empty());
    let drv = nix.instantiate(&format!("{MAKE}{expression}")).remove(0);
    let output = nix.derivation(&drv).outputs[0].path.clone();
    let mut collector = connect(&nix);
    wait::until("the output is collected", || {
        collector.collect(u64::MAX).unwrap();
        collector.valid(std::slice::from_ref(&output)).unwrap().is_empty()
    });
    farm.restart_coordinator();
    let waited = farm.run(&format!("wait {id}"));
    assert!(waited.status.success(), "{}", waited.stdout.escape_ascii());
    let nar = farm.run(&format!("nar {output}")).stdout;
    assert!(nar.windows(8).any(|part| part == b"content\n"), "{}", nar.escape_ascii());
}

#[test]
fn a_machine_without_room_gets_no_builds_until_a_hangup_brings_other_limits() {
    let nix = nix_or_skip!();
    let mut farm = Farm::start();
    farm.write_settings("amber", "min-free = '900000T'\ncollect-garbage = 'never'\n");
    farm.start_nix_agent("amber", &nix.socket());
    let id = submit(&farm, &nix, r#"make "patient" "echo x > $out" { }"#);
    wait::until("the reason is known", || {
        let why = farm.run(&format!("why {id}")).stdout;
        String::from_utf8(why).unwrap().contains("the free space of the store is")
    });
    // Settings that cannot be used change nothing.
    farm.write_settings("amber", "min-fre = 1\n");
    farm.signal_agent("amber", Signal::HUP);
    let shown = &farm.objects(&format!("show {id}"))[0];
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 0, "{shown}");
    farm.write_settings("amber", "min-free = '1M'\n");
    farm.signal_agent("amber", Signal::HUP);
    let waited = farm.run(&format!("wait {id}"));
    assert!(waited.status.success(), "{}", waited.stdout.escape_ascii());
}

#[test]
fn a_canceled_build_leaves_no_process_behind() {
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let sandbox = format!(
        "sandbox = true\nsandbox-paths = /bin /usr /lib /lib64 {}\n",
        place.path().display()
    );
    let nix = nix_or_skip!(&sandbox);
    let fifo = make_fifo(place.path());
    let heard = listen(fifo.clone());
    let mut farm = Farm::start();
    farm.start_nix_agent("amber", &nix.socket());
    let id = submit(&farm, &nix, &leaves_a_process_behind(&fifo));
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "here\n");
    assert!(farm.run(&format!("cancel {id}")).status.success());
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "gone");
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let nix = nix_or_skip!();
    let mut farm = Farm::start();
    farm.start_nix_agent("amber", &nix.socket());
    wait::until("the agent is connected", || {
        farm.objects("agents").iter().any(|agent| agent["connected"] == true)
    });
    let grade = |findings: &[serde_json::Value], check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.map(|finding| finding["grade"].as_str().unwrap().to_owned())
    };
    let (status, findings) = farm.doctor("amber", &nix.socket(), &["--min-free", "1M"]);
    for check in ["key", "host key", "clock", "daemon", "trust", "state", "store disk", "systems"] {
        assert_eq!(grade(&findings, check).as_deref(), Some("ok"), "{check}: {findings:?}");
    }
    // The user is trusted, but the key is not: it works, and may be better.
    assert_eq!(grade(&findings, "signatures").as_deref(), Some("warn"), "{findings:?}");
    assert_eq!(status, Some(0));

    let key = farm.run_file("signing-nix.pub");
    let believing = nix_or_skip!(&format!("trusted-public-keys = {key}\n"));
    let (status, findings) = farm.doctor("amber", &believing.socket(), &[]);
    assert_eq!(grade(&findings, "signatures").as_deref(), Some("ok"), "{findings:?}");
    assert_eq!(status, Some(0));

    let emulated = ["--emulated-system", "vax-linux", "--min-free", "900000T"];
    let (status, findings) = farm.doctor("amber", Path::new("/nonexistent"), &emulated);
    for check in ["daemon", "store disk"] {
        assert_eq!(grade(&findings, check).as_deref(), Some("fail"), "{check}: {findings:?}");
    }
    let bad = findings.iter().filter(|finding| finding["grade"] == "fail");
    assert!(bad.clone().all(|finding| finding["mend"].is_string()), "{findings:?}");
    assert_eq!(status, Some(1));
    // Nobody made a key for this one.
    let (status, findings) = farm.doctor("birch", &nix.socket(), &[]);
    assert_eq!(grade(&findings, "key").as_deref(), Some("fail"), "{findings:?}");
    assert_eq!(grade(&findings, "host key").as_deref(), Some("ok"), "{findings:?}");
    assert_eq!(status, Some(1));
    // It was not disturbed meanwhile.
    let agents = farm.objects("agents");
    assert!(agents.iter().all(|agent| agent["connected"] == true), "{agents:?}");
}
