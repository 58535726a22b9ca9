//! Coordinators as processes that are watched, told to read their configuration again, and put back
//! from a backup while their agents have gone on.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is a test; a failure names its place, and what was skipped is printed"
)]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have sources")]
mod closure;
#[path = "common/graphs.rs"]
#[expect(dead_code, reason = "other tests build whole graphs")]
mod graphs;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/proxy.rs"]
#[expect(dead_code, reason = "other tests cut connections")]
mod proxy;
#[path = "common/scene.rs"]
#[expect(dead_code, reason = "other tests have two agents")]
mod scene;
#[path = "common/wait.rs"]
mod wait;
#[path = "common/witness.rs"]
#[expect(dead_code, reason = "other tests judge what builders say")]
mod witness;

use closure::export;
use graphs::Member;
use processes::{Conditions, Farm, feed, obstacle};
use rustix::process::Signal;
use scene::{AMBER, Scene};
use std::{io, os::unix::net::UnixDatagram, time::Duration};

/// A build whose result depends on nothing.
const WRITES_ITS_NAME: &str = "echo $name > $out\n";

/// Runs a test, or says why it cannot be run here.
fn unless_hindered(what: &str, test: impl FnOnce()) {
    match obstacle() {
        Some(reason) => println!("skipped: {what}: {reason}"),
        None => test(),
    }
}

/// Returns the database out of a backup.
fn backup(farm: &Farm) -> Vec<u8> {
    let output = farm.run("backup");
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    zstd::decode_all(&output.stdout[..]).unwrap()
}

/// Puts a database in the place of the one that is there.
fn put_back(farm: &Farm, database: &[u8]) {
    for suffix in ["-wal", "-shm"] {
        let path = farm.state().join(format!("steading.db{suffix}"));
        match fs_err::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            Ok(()) | Err(_) => {}
        }
    }
    fs_err::write(farm.state().join("steading.db"), database).unwrap();
}

fn is_published(scene: &Scene, member: &Member) -> bool {
    let found = &scene.farm.objects(&format!("outputs {}", member.drv.out))[0];
    found["published_at"].is_string()
}

fn check(scene: &Scene, options: &str) -> (Option<i32>, String) {
    let output = scene.farm.run(&format!("check {options}"));
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text)
}

#[test]
fn a_farm_goes_on_from_a_backup_that_is_older_than_its_agents() {
    unless_hindered("a restore", || {
        let mut scene = Scene::start(Conditions::default());
        scene.open_gate(AMBER);
        let (before, before_member) = scene.submit("before-backup", WRITES_ITS_NAME);
        scene.until_state(&before, "succeeded");
        wait::until("it is published", || is_published(&scene, &before_member));
        scene.until_nothing_kept(AMBER);
        let gate = graphs::gate(&scene.farm.files(AMBER));
        fs_err::remove_file(&gate).unwrap();
        // One is known to the backup, and is begun only behind it.
        assert!(scene.farm.run(&format!("agents pause {AMBER}")).status.success());
        let (known, known_member) = scene.submit("known-to-backup", WRITES_ITS_NAME);
        assert!(scene.farm.run(&format!("set {known} --hold")).status.success());
        let saved = backup(&scene.farm);

        // Two go on: one is over and published, the other one is built while nobody listens.
        fs_err::write(&gate, "").unwrap();
        assert!(scene.farm.run(&format!("agents resume {AMBER}")).status.success());
        let (_, after_member) = scene.submit("after-backup", WRITES_ITS_NAME);
        wait::until("it is published", || is_published(&scene, &after_member));
        scene.until_nothing_kept(AMBER);
        fs_err::remove_file(&gate).unwrap();
        assert!(scene.farm.run(&format!("set {known} --release")).status.success());
        scene.until_begun(AMBER, &known_member);
        scene.farm.kill_coordinator();
        fs_err::write(&gate, "").unwrap();
        wait::until("it is built", || scene.runs(&known_member)[0].ended.is_some());

        put_back(&scene.farm, &saved);
        scene.farm.restart_coordinator();
        wait::until("amber is back", || scene.is_connected(AMBER));
        // What was acknowledged before the backup is there.
        assert_eq!(scene.state(&before), "succeeded");
        assert!(is_published(&scene, &before_member));
        assert_eq!(scene.state(&known), "held");
        // What the agent made in an attempt that nobody knows is written down, and forgotten there.
        scene.until_nothing_kept(AMBER);
        let strays = || scene.farm.objects(&format!("outputs {}", known_member.drv.out));
        let strays = strays()[0]["strays"].as_array().unwrap().clone();
        assert_eq!((strays.len(), &strays[0]["agent"]), (1, &AMBER.into()), "{strays:?}");
        // What was published after it is found, and taken in again.
        let (status, text) = check(&scene, "");
        assert_eq!(status, Some(1), "{text}");
        let found = format!("{} is published and signed here", after_member.drv.out);
        assert_eq!((text.lines().count(), text.contains(&found)), (1, true), "{text}");
        let (status, text) = check(&scene, "--repair");
        assert_eq!(status, Some(0), "{text}");
        wait::until("it is known", || is_published(&scene, &after_member));
        scene.all_is_well();
        // And the farm goes on.
        assert!(scene.farm.run(&format!("agents resume {AMBER}")).status.success());
        assert!(scene.farm.run(&format!("set {known} --release")).status.success());
        scene.until_state(&known, "succeeded");
        wait::until("it is published", || is_published(&scene, &known_member));
        scene.all_is_well();
    });
}

#[test]
fn a_backup_without_the_depot_says_what_is_lost_and_it_is_built_again() {
    unless_hindered("a restore without the depot", || {
        let mut scene = Scene::start(Conditions::default());
        scene.open_gate(AMBER);
        let (first, member) = scene.submit("lost", WRITES_ITS_NAME);
        scene.until_state(&first, "succeeded");
        wait::until("it is published", || is_published(&scene, &member));
        let saved = backup(&scene.farm);
        scene.farm.stop_coordinator();
        put_back(&scene.farm, &saved);
        for gone in ["depot", "public", "incoming", "logs"] {
            fs_err::remove_dir_all(scene.farm.state().join(gone)).unwrap();
        }
        scene.farm.restart_coordinator();
        wait::until("amber is back", || scene.is_connected(AMBER));
        let (status, text) = check(&scene, "");
        let found = format!("{}: its file", member.drv.out);
        assert_eq!((status, text.contains(&found)), (Some(1), true), "{text}");
        // Nobody said that it is lost for good.
        let (status, text) = check(&scene, "--repair");
        let refused = "depot: 1 of 1 files of the depot are missing or damaged: is it mounted?";
        assert_eq!((status, text.starts_with(refused)), (Some(1), true), "{text}");
        let (status, text) = check(&scene, "--repair --lost");
        assert_eq!(status, Some(0), "{text}");
        scene.all_is_well();
        assert_eq!(scene.state(&first), "succeeded", "what happened, happened");
        let again = feed(&scene.farm.ssh_words(), "submit --closure", &export(&[&member.drv]));
        let again = String::from_utf8(again.stdout).unwrap();
        scene.until_state(again.trim_end(), "succeeded");
        wait::until("it is published again", || is_published(&scene, &member));
        scene.all_is_well();
    });
}

#[test]
fn a_signal_has_the_configuration_read_again() {
    unless_hindered("SIGHUP", || {
        let mut farm = Farm::start();
        let log = farm.dir().join("coordinator.log");
        let said = |what: &str| {
            wait::until(what, || fs_err::read_to_string(&log).unwrap().contains(what));
        };
        let file = farm.dir().join("steading.toml");
        fs_err::write(&file, "lease = 77\nlog-cap = 70000\n").unwrap();
        farm.signal_coordinator(Signal::HUP);
        said("now=[\"lease\"]");
        said("later=[\"log-cap\"]");
        fs_err::write(&file, "lease = 'long'\n").unwrap();
        farm.signal_coordinator(Signal::HUP);
        said("configuration not read again");
        assert!(farm.coordinator_lives());
        farm.stop_coordinator();
    });
}

#[test]
fn the_watchdog_is_fed_while_the_engine_answers_and_only_then() {
    unless_hindered("the watchdog", || {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("notify");
        let notified = UnixDatagram::bind(&socket).unwrap();
        let environment = vec![
            ("NOTIFY_SOCKET", socket.to_str().unwrap().to_owned()),
            ("WATCHDOG_USEC", "300000".to_owned()),
        ];
        let mut farm = Farm::under(Conditions { environment, ..Conditions::default() });
        let hears = |within: Duration| -> Vec<String> {
            notified.set_read_timeout(Some(within)).unwrap();
            let mut buffer = [0; 512];
            match notified.recv(&mut buffer) {
                Ok(length) => {
                    let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                    text.lines().map(str::to_owned).collect()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
                Err(error) => panic!("{error}"),
            }
        };
        let long = Duration::from_mins(1);
        let until = |word: &str| {
            while !hears(long).iter().any(|line| line == word) {}
        };
        until("READY=1");
        until("WATCHDOG=1");
        until("WATCHDOG=1");
        // Somebody keeps the database locked, so that the engine's thread waits to commit.
        let database = rusqlite::Connection::open(farm.state().join("steading.db")).unwrap();
        database.busy_timeout(long).unwrap();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut stuck = farm.ssh("agents pause nobody");
        let mut reload = farm.ssh("reload").spawn().unwrap();
        // What was said before, and then nothing: ten times as long as it is said otherwise.
        while !hears(Duration::from_secs(1)).is_empty() {}
        database.execute_batch("ROLLBACK").unwrap();
        until("WATCHDOG=1");
        assert!(reload.wait().unwrap().success());
        assert_eq!(stuck.status().unwrap().code(), Some(3));
        farm.signal_coordinator(Signal::TERM);
        until("STOPPING=1");
        farm.stop_coordinator();
    });
}
