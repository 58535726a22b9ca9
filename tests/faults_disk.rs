//! A disk that fills up under a running coordinator: everything pauses, says why, and goes on by
//! itself when there is room again.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have sources")]
mod closure;
#[path = "common/graphs.rs"]
#[expect(dead_code, reason = "other tests build whole graphs")]
mod graphs;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/small_disk.rs"]
mod small_disk;
#[path = "common/wait.rs"]
mod wait;

use graphs::gated;
use processes::{Conditions, DirectAgent, Farm, feed, obstacle};
use small_disk::SmallDisk;
use std::{os::unix::fs::symlink, process::Output, thread, time::Duration};
use steading::{core::store_path::StoreDir, telemetry::Clock};

/// Large enough to start on, small enough to be filled at once.
const DISK_MIB: u32 = 64;
/// What each build makes.
const OUTPUT_BYTES: u32 = 6 << 20;
/// How long the disk is full.
const FULL_MS: u64 = 5_000;
/// How often the coordinator may end and be started again meanwhile, as systemd would: once,
/// because a commit that failed has to be forgotten.
const RESTARTS_MAX: u32 = 1;

#[test]
fn a_full_disk_pauses_everything_and_loses_nothing() {
    if let Some(reason) = obstacle() {
        println!("skipped: a full disk: {reason}");
        return;
    }
    let disk = match SmallDisk::mount(DISK_MIB) {
        Ok(disk) => disk,
        Err(reason) => {
            println!("skipped: a full disk: {reason}");
            return;
        }
    };
    let mut world = World::start(&disk);
    let mut acknowledged = world.submit(&["full-1", "full-2", "full-3"]);
    assert_eq!(acknowledged.len(), 3);
    wait::until("two builds run", || world.building() == 2);

    disk.fill();
    fs_err::write(graphs::gate(&world.farm.files("amber")), "").unwrap();
    wait::until("it is said that there is no room", || {
        world.supervise();
        world.said().contains("room")
    });
    let clock = Clock::start();
    while clock.now().mono.as_ms() < FULL_MS {
        world.supervise();
        thread::park_timeout(Duration::from_millis(50));
    }
    // Whoever asks now is told to come again, or nobody answers; nothing is taken and lost.
    let output = world.try_submit(&["while-full"]);
    if output.status.success() {
        acknowledged.extend(ids(&output));
    } else {
        let words = output.stderr.escape_ascii().to_string();
        let later = matches!(output.status.code(), Some(75 | 255));
        assert!(later || words.contains("room"), "{}: {words}", output.status);
    }

    disk.make_room();
    let clock = Clock::start();
    wait::until("everything acknowledged is built", || {
        world.supervise();
        acknowledged.iter().all(|id| world.state(id).as_deref() == Some("succeeded"))
    });
    println!("measured: all built {} ms after there was room", clock.now().mono.as_ms());
    for id in &acknowledged {
        let shown = &world.farm.objects(&format!("show {id}"))[0];
        let attempts = shown["attempts"].as_array().unwrap();
        let begun = attempts.iter().filter(|attempt| !attempt["started_at"].is_null()).count();
        assert_eq!(begun, 1, "{shown}");
    }
    let later = world.submit(&["later"]);
    wait::until("what is asked for later is built", || {
        world.state(&later[0]).as_deref() == Some("succeeded")
    });
    let check = world.farm.run("check");
    assert!(check.status.success(), "{}", check.stdout.escape_ascii());
}

/// A farm whose coordinator is on the small disk.
struct World {
    farm: Farm,
    store_dir: StoreDir,
    restarts: u32,
    _mount: tempfile::TempDir,
}

impl World {
    fn start(disk: &SmallDisk) -> Self {
        let mount = tempfile::tempdir_in("/tmp").unwrap();
        let store_dir: StoreDir = mount.path().to_str().unwrap().parse().unwrap();
        let dir = tempfile::Builder::new().prefix("farm").tempdir_in("/tmp").unwrap();
        symlink(disk.outside(), dir.path().join("coordinator")).unwrap();
        let conditions = Conditions { enclosure: disk.enclosure(), ..Conditions::default() };
        let mut farm = Farm::inside(dir, conditions);
        farm.start_direct_agent(&DirectAgent {
            name: "amber",
            store_dir: &store_dir,
            slots: 2,
            uploads: 2,
            through: None,
        });
        farm.until_connected(1);
        Self { farm, store_dir, restarts: 0, _mount: mount }
    }

    /// Does what systemd does.
    fn supervise(&mut self) {
        if !self.farm.coordinator_lives() {
            self.restarts += 1;
            let said = self.said();
            assert!(self.restarts <= RESTARTS_MAX, "it stops again and again: {said}");
            self.farm.begin_coordinator();
        }
    }

    fn submit(&self, names: &[&'static str]) -> Vec<String> {
        let output = self.try_submit(names);
        assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        ids(&output)
    }

    fn try_submit(&self, names: &[&'static str]) -> Output {
        let body = format!("/usr/bin/head -c {OUTPUT_BYTES} /dev/urandom > $out\n");
        let members: Vec<_> =
            names.iter().map(|name| gated(&self.store_dir, name, &body)).collect();
        let drvs: Vec<_> = members.iter().map(|member| &member.drv).collect();
        feed(&self.farm.ssh_words(), "submit --closure", &closure::export(&drvs))
    }

    fn building(&self) -> usize {
        self.farm.objects("builds --state building").len()
    }

    /// Returns what the coordinator has said so far.
    fn said(&self) -> String {
        fs_err::read_to_string(self.farm.dir().join("coordinator.log")).unwrap()
    }

    /// Returns the state of a build; `None` when nobody answers.
    fn state(&self, build: &str) -> Option<String> {
        let output = self.farm.run(&format!("show {build} --json"));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(shown["state"].as_str().unwrap().to_owned())
    }
}

/// Returns the builds that were acknowledged.
fn ids(output: &Output) -> Vec<String> {
    std::str::from_utf8(&output.stdout).unwrap().lines().map(str::to_owned).collect()
}
