//! Agents and coordinators that are stopped, upgraded and shut out while builds run.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is a test; a failure names its place, and what was measured is printed"
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

use graphs::Member;
use processes::{Conditions, DirectAgent, STEADING, obstacle};
use scene::{AMBER, Scene};
use std::path::Path;
use steading::telemetry::Clock;

/// A build whose result depends on nothing.
const WRITES_ITS_NAME: &str = "echo $name > $out\n";

/// How long a session may outlive its key.
const SHUT_OUT_MS_MAX: u64 = 30_000;

/// Runs a test, or says why it cannot be run here.
fn unless_hindered(what: &str, test: impl FnOnce()) {
    match obstacle() {
        Some(reason) => println!("skipped: {what}: {reason}"),
        None => test(),
    }
}

/// Asserts that a build needed one attempt and one run.
fn ran_once(scene: &Scene, build: &str, member: &Member) {
    scene.until_state(build, "succeeded");
    let (attempts, runs) = (scene.attempts(build), scene.runs(member));
    assert_eq!((attempts.len(), runs.len()), (1, 1), "{attempts:?} {runs:?}");
}

/// Puts a program at a path, in place of the one that may be running from there.
fn install(at: &Path) {
    let new = at.with_extension("new");
    fs_err::copy(STEADING, &new).unwrap();
    fs_err::rename(&new, at).unwrap();
}

#[test]
fn an_agent_is_upgraded_while_it_builds() {
    unless_hindered("the upgrade of an agent", || {
        let mut scene = Scene::start(Conditions::default());
        let program = scene.farm.dir().join("steading");
        install(&program);
        scene.farm.stop_agent(AMBER);
        // What is given to the old one would be lost with it.
        wait::until("amber is away", || !scene.is_connected(AMBER));
        let agent = DirectAgent {
            name: AMBER,
            store_dir: &scene.store_dir,
            slots: 2,
            uploads: 1,
            through: None,
        };
        scene.farm.start_direct_agent_as(&agent, program.clone());
        let (first, first_member) = scene.submit("before-upgrade", WRITES_ITS_NAME);
        scene.until_begun(AMBER, &first_member);
        install(&program);
        // The old program is no file any more and begins a build all the same.
        let (second, second_member) = scene.submit("during-upgrade", WRITES_ITS_NAME);
        scene.until_begun(AMBER, &second_member);
        for build in [&first, &second] {
            scene.until_state(build, "building");
        }
        scene.farm.stop_agent(AMBER);
        wait::until("amber is away", || !scene.is_connected(AMBER));
        for build in [&first, &second] {
            assert_eq!(scene.state(build), "building");
        }
        scene.farm.restart_agent(AMBER);
        wait::until("amber is back", || scene.is_connected(AMBER));
        scene.open_gate(AMBER);
        ran_once(&scene, &first, &first_member);
        ran_once(&scene, &second, &second_member);
        scene.until_nothing_kept(AMBER);
        scene.all_is_well();
    });
}

#[test]
fn a_coordinator_is_restarted_while_builds_run() {
    unless_hindered("the restart of a coordinator", || {
        let mut scene = Scene::start(Conditions::default());
        let (build, member) = scene.submit("over-restart", WRITES_ITS_NAME);
        scene.until_begun(AMBER, &member);
        scene.until_state(&build, "building");
        let clock = Clock::start();
        scene.farm.stop_coordinator();
        let stopped_ms = clock.now().mono.as_ms();
        scene.open_gate(AMBER);
        wait::until("the build has ended", || scene.runs(&member)[0].ended.is_some());
        scene.farm.restart_coordinator();
        ran_once(&scene, &build, &member);
        println!("measured: stopped in {stopped_ms} ms");
        let log = fs_err::read_to_string(scene.farm.dir().join("amber.log")).unwrap();
        assert!(log.contains("coordinator restarts"), "the stop was not announced");
        scene.until_nothing_kept(AMBER);
        scene.all_is_well();
    });
}

#[test]
fn an_agent_whose_key_is_removed_is_gone_in_a_moment() {
    unless_hindered("the removal of a key", || {
        let configuration = "lease = 1\n".to_owned();
        let mut scene = Scene::start(Conditions { configuration, ..Conditions::default() });
        let (build, member) = scene.submit("shut-out", WRITES_ITS_NAME);
        scene.until_begun(AMBER, &member);
        scene.start_birch();
        let key = scene.farm.state().join("keys/agents/amber.pub");
        fs_err::remove_file(key).unwrap();
        let clock = Clock::start();
        wait::until("amber is away", || !scene.is_connected(AMBER));
        let elapsed_ms = clock.now().mono.as_ms();
        println!("measured: shut out after {elapsed_ms} ms");
        // One second for the keydir, some for asking, and more where nothing gets its turn: but by
        // itself a session would go on, and be ended for silence after a minute only.
        assert!(elapsed_ms <= SHUT_OUT_MS_MAX, "shut out only after {elapsed_ms} ms");
        // What it had goes to the other agent, and what it makes reaches nobody.
        scene.open_gate(AMBER);
        scene.open_gate(scene::BIRCH);
        scene.until_state(&build, "succeeded");
        let last = scene.attempts(&build).pop().unwrap();
        assert_eq!(last.agent, scene::BIRCH);
        assert!(!scene.is_connected(AMBER));
        scene.all_is_well();
    });
}
