//! A build is not a connection: coordinator and agent stop, die, are replaced and restored while a
//! build runs. Real processes, the embedded builder, the stock `ssh`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is a test; a failure names its place, and what was skipped is printed"
)]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod closure;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod processes;
#[path = "common/wait.rs"]
mod wait;

use closure::{Drv, drv_in, export};
use processes::{Conditions, DirectAgent, Farm, STEADING, until_some_build_is};
use serde_json::Value;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use steading::core::store_path::StoreDir;

/// A farm with one agent, and a build on it that runs until the gate is opened.
struct Scene {
    farm: Farm,
    dir: PathBuf,
    build: String,
    drv: Drv,
}

impl Scene {
    /// Starts everything and waits until the build runs; `None`, with the reason printed, where
    /// there is no `ssh`. Leases are short when `lease` says so, in seconds.
    fn start(lease: Option<u32>) -> Option<Self> {
        let mut scene = Self::submitted(lease)?;
        scene.begin();
        Some(scene)
    }

    /// Starts the coordinator and submits the build.
    fn submitted(lease: Option<u32>) -> Option<Self> {
        if Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
            println!("skipped: there is no ssh in PATH");
            return None;
        }
        let configuration =
            lease.map_or_else(String::new, |seconds| format!("lease = {seconds}\n"));
        let farm = Farm::under(Conditions { configuration, ..Conditions::default() });
        // Builds reach nothing outside of the farm's directory.
        let dir = farm.dir().join("scene");
        let store = dir.join("store");
        fs_err::create_dir_all(&store).unwrap();
        let store_dir: StoreDir = store.to_str().unwrap().parse().unwrap();
        let script = format!(
            "echo begun; echo x >> {0}/runs; while [ -d {0} ] && [ ! -e {0}/gate ]; do /bin/sleep 0.02; done; \
             echo made > $out",
            dir.display()
        );
        let drv = drv_in(&store_dir, "slow", &script, &[], &[]);
        let mut scene = Self { farm, dir, build: String::new(), drv };
        scene.build = scene.submit();
        Some(scene)
    }

    /// Starts the agent and waits until the build runs.
    fn begin(&mut self) {
        self.start_agent(Path::new(STEADING));
        until_some_build_is(&self.farm, "building");
        wait::until("the builder runs", || self.runs() == 1);
    }

    /// Copies the files of the database of a coordinator that is not running.
    fn back_up(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = self.farm.state().read_dir().unwrap().map(|entry| entry.unwrap().path());
        let database = files
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("steading.db"));
        database.map(|path| (path.clone(), fs_err::read(path).unwrap())).collect()
    }

    /// Makes these the files of the database, and no others.
    fn put_back(&self, backup: &[(PathBuf, Vec<u8>)]) {
        for (path, _) in self.back_up() {
            fs_err::remove_file(path).unwrap();
        }
        for (path, bytes) in backup {
            fs_err::write(path, bytes).unwrap();
        }
    }

    fn start_agent(&mut self, program: &Path) {
        let store_dir = self.dir.join("store").to_str().unwrap().parse().unwrap();
        let agent = DirectAgent {
            name: "amber",
            store_dir: &store_dir,
            slots: 1,
            uploads: 1,
            through: None,
        };
        self.farm.start_direct_agent_as(&agent, program.to_owned());
    }

    fn submit(&self) -> String {
        let verb = format!("submit --closure {}", self.drv.path);
        let mut child =
            self.farm.ssh(&verb).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&export(&[&self.drv])).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Returns how often the builder was started.
    fn runs(&self) -> usize {
        fs_err::read_to_string(self.dir.join("runs")).map_or(0, |text| text.lines().count())
    }

    fn open_the_gate(&self) {
        fs_err::write(self.dir.join("gate"), "").unwrap();
    }

    fn until_connected(&self) {
        wait::until("the agent is connected", || {
            self.farm.objects("agents").iter().any(|agent| agent["connected"] == true)
        });
    }

    fn show(&self) -> Value {
        self.farm.objects(&format!("show {}", self.build)).remove(0)
    }

    /// Lets the build end, and looks whether it was built once, by its first attempt.
    fn ends_well(&self) -> Value {
        self.open_the_gate();
        let waited = self.farm.run(&format!("wait {}", self.build));
        assert_eq!(waited.status.code(), Some(0), "{}", waited.stderr.escape_ascii());
        let shown = self.show();
        assert_eq!(self.runs(), 1, "{shown}");
        assert_eq!(shown["attempts"].as_array().unwrap().len(), 1, "{shown}");
        assert_eq!(shown["attempts"][0]["end"], "succeeded", "{shown}");
        let check = self.farm.run("check");
        assert!(check.status.success(), "{}", check.stdout.escape_ascii());
        shown
    }
}

#[test]
fn a_planned_restart_of_the_coordinator_loses_nothing() {
    let Some(mut scene) = Scene::start(None) else { return };
    for _ in 0..2 {
        scene.farm.stop_coordinator();
        scene.farm.restart_coordinator();
        scene.until_connected();
        assert_eq!(scene.show()["state"], "building");
    }
    let shown = scene.ends_well();
    assert_eq!(shown["attempts"][0]["readopted_at"], Value::Null);
}

#[test]
fn a_build_that_ends_while_the_coordinator_is_away_is_delivered_to_the_next() {
    let Some(mut scene) = Scene::start(None) else { return };
    scene.farm.stop_coordinator();
    scene.open_the_gate();
    wait::until("the build has ended", || {
        scene
            .farm
            .files("amber")
            .read_dir()
            .unwrap()
            .any(|entry| entry.unwrap().file_name().to_str().unwrap().ends_with("-slow"))
    });
    scene.farm.restart_coordinator();
    scene.ends_well();
}

#[test]
fn a_killed_agent_and_another_program_in_its_place_go_on_with_the_build() {
    let Some(mut scene) = Scene::start(None) else { return };
    scene.farm.kill_agent("amber");
    let replaced: PathBuf = scene.dir.join("steading-next");
    fs_err::copy(STEADING, &replaced).unwrap();
    scene.start_agent(&replaced);
    scene.until_connected();
    scene.ends_well();
}

#[test]
fn a_build_that_was_given_up_goes_on_when_its_agent_comes_back() {
    let Some(mut scene) = Scene::start(Some(1)) else { return };
    scene.farm.kill_agent("amber");
    wait::until("the attempt is given up", || scene.show()["attempts"][0]["end"] == "agent-lost");
    assert_eq!(scene.show()["state"], "ready");
    // It must be remembered by the next process, too.
    scene.farm.kill_coordinator();
    scene.farm.restart_coordinator();
    scene.start_agent(Path::new(STEADING));
    wait::until("the build goes on", || scene.show()["state"] == "building");
    let shown = scene.ends_well();
    assert_ne!(shown["attempts"][0]["readopted_at"], Value::Null);
}

#[test]
fn after_a_restore_from_an_older_backup_late_results_are_told_and_compared() {
    let Some(mut scene) = Scene::submitted(None) else { return };
    // From before the build was given to anybody.
    scene.farm.stop_coordinator();
    let backup = scene.back_up();
    scene.farm.restart_coordinator();
    scene.begin();
    scene.farm.kill_agent("amber");
    scene.farm.kill_coordinator();
    scene.put_back(&backup);
    scene.open_the_gate();
    wait::until("the build has ended", || {
        let attempts = scene.farm.agent_state("amber").join("attempts");
        attempts.read_dir().unwrap().any(|entry| entry.unwrap().path().join("result").exists())
    });
    scene.farm.restart_coordinator();
    scene.start_agent(Path::new(STEADING));
    // The attempt is not known; its build is given away again, and the result of before compared.
    let waited = scene.farm.run(&format!("wait {}", scene.build));
    assert_eq!(waited.status.code(), Some(0), "{}", waited.stderr.escape_ascii());
    wait::until("the late result was told", || {
        let known = &scene.farm.objects(&format!("outputs {}", scene.drv.out))[0];
        let strays = known["strays"].as_array().unwrap();
        strays.len() == 1 && strays[0]["nar_hash"] == known["nar_hash"]
    });
    assert_eq!(scene.runs(), 2);
}
