//! Networks that divide, flap and fall silent, and peers that stop without a word: what is built
//! is kept as long as the lease, and nothing waits for ever.
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
#[expect(dead_code, reason = "other tests count what passes")]
mod proxy;
#[path = "common/scene.rs"]
#[expect(dead_code, reason = "other tests look at outputs")]
mod scene;
#[path = "common/wait.rs"]
mod wait;
#[path = "common/witness.rs"]
#[expect(dead_code, reason = "other tests judge what builders say")]
mod witness;

use graphs::Member;
use processes::{Conditions, obstacle};
use proxy::{Rule, Way};
use rustix::process::{Pid, Signal};
use scene::{AMBER, BIRCH, Scene};
use std::{collections::BTreeSet, process::Stdio, thread, time::Duration};
use steading::{core::outcome::AttemptEnd, telemetry::Clock};

/// How long a peer may be silent before it counts as dead, and how long until everything that
/// waited for it has ended: a minute of keepalives, half a minute for a socket that takes nothing,
/// and a minute in which a busy machine may let nobody have a turn.
const SILENCE_MS_MAX: u64 = 150_000;
/// A lease that partitions of these tests outlast.
const SHORT_LEASE: &str = "lease = 2\n";
/// A build whose result depends on nothing.
const WRITES_ITS_NAME: &str = "echo $name > $out\n";
/// A build with 64 MiB that cannot be compressed.
const WRITES_NOISE: &str = "/usr/bin/head -c 67108864 /dev/urandom > $out\n";
/// How much of that has passed when the upload is disturbed.
const DISTURBED_AT_BYTES: u64 = 8 << 20;

fn conditions(configuration: &str) -> Conditions {
    Conditions { configuration: configuration.to_owned(), ..Conditions::default() }
}

/// Runs a test, or says why it cannot be run here.
fn unless_hindered(what: &str, test: impl FnOnce()) {
    match obstacle() {
        Some(reason) => println!("skipped: {what}: {reason}"),
        None => test(),
    }
}

/// Divides the network between amber and the coordinator, as both notice at once.
fn divide(scene: &Scene) {
    scene.proxy.rules(Rule::Stall);
    scene.proxy.cut();
    wait::until("amber is away", || !scene.is_connected(AMBER));
}

fn heal(scene: &Scene) {
    scene.proxy.rules(Rule::Pass);
    // Those who dialed meanwhile would wait for their answer longer than the test wants to.
    scene.proxy.cut();
    wait::until("amber is back", || scene.is_connected(AMBER));
}

#[test]
fn a_build_outlives_a_partition_that_is_shorter_than_the_lease() {
    unless_hindered("a short partition", || {
        let scene = Scene::start(conditions("lease = 600\n"));
        let (build, member) = scene.submit("short-partition", WRITES_ITS_NAME);
        scene.until_begun(AMBER, &member);
        divide(&scene);
        // It ends while nobody can be told.
        scene.open_gate(AMBER);
        wait::until("the build has ended", || scene.runs(&member)[0].ended.is_some());
        assert_ne!(scene.state(&build), "succeeded");
        heal(&scene);
        scene.until_state(&build, "succeeded");
        ran_once(&scene, &build, &member);
    });
}

/// Asserts that a build needed one attempt and one run.
fn ran_once(scene: &Scene, build: &str, member: &Member) {
    let attempts = scene.attempts(build);
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    begun_once(scene, build, member);
}

/// Asserts that one attempt of a build was begun, and succeeded. Others may have been given out
/// into a connection that was cut before they arrived: such an attempt ends when the agent comes
/// back without it.
fn begun_once(scene: &Scene, build: &str, member: &Member) {
    let attempts = scene.attempts(build);
    let (begun, lost): (Vec<_>, Vec<_>) =
        attempts.iter().partition(|attempt| attempt.started.is_some());
    assert_eq!(begun.len(), 1, "{attempts:?}");
    assert_eq!(begun[0].end, Some(AttemptEnd::Succeeded), "{attempts:?}");
    assert!(lost.iter().all(|attempt| attempt.end == Some(AttemptEnd::AgentLost)), "{attempts:?}");
    let runs = scene.runs(member);
    assert_eq!(runs.len(), 1, "{runs:?}");
    scene.until_nothing_kept(AMBER);
    scene.all_is_well();
}

#[test]
fn a_build_goes_to_another_agent_when_a_partition_outlasts_the_lease() {
    unless_hindered("a long partition", || {
        let disputed = both_build("long-partition", WRITES_ITS_NAME);
        assert_eq!(disputed, [false, false], "both made the same");
    });
}

#[test]
fn a_late_result_that_differs_is_disputed_and_changes_nothing() {
    unless_hindered("a disputed result", || {
        let disputed = both_build("disputed", "/usr/bin/head -c 99 /dev/urandom > $out\n");
        assert_eq!(disputed, [true, false], "the one that came late differs");
    });
}

/// Has a build done by both agents, amber's result coming late. Returns which is disputed.
fn both_build(name: &'static str, body: &str) -> Vec<bool> {
    let mut scene = Scene::start(conditions(SHORT_LEASE));
    let (build, member) = scene.submit(name, body);
    scene.until_begun(AMBER, &member);
    scene.start_birch();
    divide(&scene);
    done_by_birch(&scene, &build, &member);
    let held = |scene: &Scene| {
        let shown = &scene.farm.objects(&format!("show {build}"))[0];
        shown["outputs"][0]["nar_hash"].as_str().unwrap().to_owned()
    };
    let before = held(&scene);
    // Amber ends it, too, and comes back with a result that nobody waits for any more.
    scene.open_gate(AMBER);
    let is_late = |run: &witness::Run| run.agent == AMBER && run.ended.is_some();
    wait::until("amber has ended it, too", || scene.runs(&member).iter().any(is_late));
    heal(&scene);
    scene.until_nothing_kept(AMBER);

    assert_eq!((scene.state(&build).as_str(), held(&scene)), ("succeeded", before));
    let attempts = scene.attempts(&build);
    let ends: Vec<_> =
        attempts.iter().map(|attempt| (attempt.agent.as_str(), attempt.end.clone())).collect();
    let expected = [(AMBER, Some(AttemptEnd::AgentLost)), (BIRCH, Some(AttemptEnd::Succeeded))];
    assert_eq!(ends, expected);
    assert_eq!(scene.runs(&member).len(), 2);
    let shown = &scene.farm.objects(&format!("show {build}"))[0]["attempts"][0];
    assert!(shown["reported_at"].is_string(), "the late result was not noted: {shown}");
    scene.all_is_well();
    attempts.iter().map(|attempt| attempt.disputed).collect()
}

/// Waits until birch has done what amber began.
fn done_by_birch(scene: &Scene, build: &str, member: &Member) {
    scene.until_begun(BIRCH, member);
    scene.open_gate(BIRCH);
    scene.until_state(build, "succeeded");
}

#[test]
fn builds_go_on_while_the_network_flaps() {
    unless_hindered("a flapping network", || {
        let scene = Scene::start(conditions("lease = 600\n"));
        scene.open_gate(AMBER);
        let names = ["flap-1", "flap-2", "flap-3", "flap-4", "flap-5"];
        let builds = names.map(|name| scene.submit(name, WRITES_ITS_NAME));
        let begun = || builds.iter().filter(|(_, member)| !scene.runs(member).is_empty()).count();
        // Some come before anything can have happened. A build whose agent was lost for the fourth
        // time would be left alone for minutes, so behind the others one more build has begun.
        for flap in 0..8 {
            let before = begun();
            scene.proxy.rules(Rule::Stall);
            scene.proxy.cut();
            thread::park_timeout(Duration::from_millis(200));
            scene.proxy.rules(Rule::Pass);
            scene.proxy.cut();
            if flap < 2 {
                thread::park_timeout(Duration::from_millis(700));
            } else {
                wait::until("a build begins", || begun() > before || before == names.len());
            }
        }
        for (build, member) in &builds {
            scene.until_state(build, "succeeded");
            begun_once(&scene, build, member);
        }
    });
}

#[test]
fn a_network_that_pauses_or_is_slow_costs_no_session() {
    unless_hindered("a slow network", || {
        let scene = Scene::start(conditions(SHORT_LEASE));
        let (build, member) = scene.submit("slow-network", WRITES_ITS_NAME);
        scene.until_begun(AMBER, &member);
        // Longer than the lease, which does not run while there is a session.
        scene.proxy.rules(Rule::Stall);
        thread::park_timeout(Duration::from_secs(4));
        scene.proxy.rules(Rule::Delay(Duration::from_millis(50)));
        scene.open_gate(AMBER);
        scene.until_state(&build, "succeeded");
        ran_once(&scene, &build, &member);
        let log = fs_err::read_to_string(scene.farm.dir().join(format!("{AMBER}.log"))).unwrap();
        assert!(log.contains("agent started") && !log.contains("session lost"), "{log}");
    });
}

/// All of these mostly wait, so they do it together.
#[test]
fn whatever_falls_silent_is_parted_with_in_time() {
    unless_hindered("silent peers", || {
        let cases: [(&str, fn()); 5] = [
            ("nothing reaches the coordinator", || half_of_a_network(Way::Up)),
            ("nothing reaches the agent", || half_of_a_network(Way::Down)),
            ("a black hole", a_black_hole),
            ("an agent stops", an_agent_stops),
            ("the coordinator stops", the_coordinator_stops),
        ];
        thread::scope(|scope| {
            for (what, case) in cases {
                thread::Builder::new().name(what.to_owned()).spawn_scoped(scope, case).unwrap();
            }
        });
    });
}

/// One way of the network is gone: the build goes to the other agent, and comes back to nobody.
fn half_of_a_network(way: Way) {
    let mut scene = Scene::start(conditions(SHORT_LEASE));
    let (build, member) = scene.submit("half-network", WRITES_ITS_NAME);
    scene.until_begun(AMBER, &member);
    scene.start_birch();
    scene.proxy.rule(way, Rule::Stall);
    done_by_birch(&scene, &build, &member);
    scene.open_gate(AMBER);
    heal(&scene);
    scene.until_nothing_kept(AMBER);
    assert_eq!(scene.state(&build), "succeeded");
    scene.all_is_well();
}

/// Begins a large upload and returns its build when part of it has passed.
fn upload_under_way(scene: &Scene) -> (String, Member) {
    scene.open_gate(AMBER);
    let (build, member) = scene.submit("noise", WRITES_NOISE);
    scene.until_state(&build, "receiving");
    wait::until("part of the upload has passed", || {
        scene.proxy.passed(Way::Up) >= DISTURBED_AT_BYTES
    });
    (build, member)
}

/// Waits for something that must not take longer than a peer may be silent.
fn in_time(what: &str, condition: impl FnMut() -> bool) {
    let clock = Clock::start();
    wait::until(what, condition);
    let elapsed_ms = clock.now().mono.as_ms();
    println!("measured: {what} after {elapsed_ms} ms");
    assert!(elapsed_ms <= SILENCE_MS_MAX, "{what} only after {elapsed_ms} ms");
}

/// Waits until the coordinator holds nothing of its only agent.
fn parted_with_agent(scene: &Scene, quiet: &Held, what: &str) {
    let left = quiet.without_agent();
    in_time(what, || sockets(scene.farm.coordinator_process()) <= left.sockets);
    // What is counted is told a moment later.
    wait::until("the coordinator counts no agent", || Held::by(scene).is_no_more_than(&left));
}

/// The network takes everything and passes nothing, in the middle of an upload.
fn a_black_hole() {
    let scene = Scene::start(conditions("lease = 600\n"));
    let quiet = Held::by(&scene);
    let (build, member) = upload_under_way(&scene);
    scene.proxy.rules(Rule::Stall);
    parted_with_agent(&scene, &quiet, "the coordinator parts with an agent in a black hole");
    heal(&scene);
    scene.until_state(&build, "succeeded");
    ran_once(&scene, &build, &member);
    nothing_is_left(&scene, &quiet);
}

/// The agent stops in the middle of an upload, and goes on later.
fn an_agent_stops() {
    let scene = Scene::start(conditions("lease = 600\n"));
    let quiet = Held::by(&scene);
    let (build, member) = upload_under_way(&scene);
    scene.farm.signal_agent(AMBER, Signal::STOP);
    parted_with_agent(&scene, &quiet, "the coordinator parts with an agent that stopped");
    scene.farm.signal_agent(AMBER, Signal::CONT);
    scene.until_state(&build, "succeeded");
    ran_once(&scene, &build, &member);
    nothing_is_left(&scene, &quiet);
}

/// The coordinator stops in the middle of an upload, and goes on later.
fn the_coordinator_stops() {
    let scene = Scene::start(conditions("lease = 600\n"));
    let quiet = Held::by(&scene);
    let (build, member) = upload_under_way(&scene);
    let agent = scene.farm.agent_process(AMBER);
    let before = sockets(agent);
    assert!(before >= 2, "one connection for control and one for the upload");
    scene.farm.signal_coordinator(Signal::STOP);
    // It dials again and again, with one socket at a time for control and one for the upload.
    let log = scene.farm.dir().join(format!("{AMBER}.log"));
    in_time("the agent has parted with a coordinator that stopped", || {
        let log = fs_err::read_to_string(&log).unwrap();
        log.contains("session lost") && log.contains("outputs not delivered yet")
    });
    assert!(sockets(agent) <= before);
    scene.farm.signal_coordinator(Signal::CONT);
    scene.until_state(&build, "succeeded");
    ran_once(&scene, &build, &member);
    nothing_is_left(&scene, &quiet);
}

/// A person asks for a large nar and reads none of it. That may last an hour, as with a pager; it
/// hinders nobody, takes little memory, and is over when the person has gone.
#[test]
fn a_reader_who_stops_reading_hinders_nobody() {
    /// What is on its way to one person: windows and queues of a few MiB each.
    const MORE_KIB_MAX: u64 = 32 << 10;
    unless_hindered("a reader that stops", || {
        let scene = Scene::start(conditions(""));
        let (build, member) = upload_under_way(&scene);
        scene.until_state(&build, "succeeded");
        scene.until_nothing_kept(AMBER);
        wait::until("the nar is published", || {
            scene.farm.objects(&format!("show {build}"))[0]["outputs"][0]["url"].is_string()
        });
        let coordinator = scene.farm.coordinator_process();
        wait::until("nobody reads a nar", || open_nars(coordinator).is_empty());
        let (quiet, peak_kib) = (Held::by(&scene), scene.farm.coordinator_peak_kib());
        let verb = format!("nar {}", member.drv.out);
        let mut reader = scene.farm.ssh(&verb).stdout(Stdio::piped()).spawn().unwrap();
        wait::until("the nar is being read", || !open_nars(coordinator).is_empty());
        let nar = open_nars(coordinator);
        assert_eq!(nar.len(), 1);
        let (other, other_member) = scene.submit("meanwhile", WRITES_ITS_NAME);
        scene.until_state(&other, "succeeded");
        ran_once(&scene, &other, &other_member);
        // The other nar may be open, too, as long as it is being written out.
        assert!(open_nars(coordinator).is_superset(&nar), "somebody read it after all");
        let more_kib = scene.farm.coordinator_peak_kib() - peak_kib;
        assert!(more_kib <= MORE_KIB_MAX, "{more_kib} KiB for a reader that stopped");
        reader.kill().unwrap();
        reader.wait().unwrap();
        wait::until("the nar is closed", || open_nars(coordinator).is_disjoint(&nar));
        nothing_is_left(&scene, &quiet);
    });
}

/// Waits until the coordinator holds no more than before, and nothing of any upload.
fn nothing_is_left(scene: &Scene, quiet: &Held) {
    wait::until("nothing is left of what was disturbed", || {
        // An agent keeps the connections that its uploads made.
        Held::by(scene).is_no_more_than(&quiet.with_bulk_lines())
    });
    let incoming = fs_err::read_dir(scene.farm.state().join("incoming")).unwrap();
    let left: Vec<_> = incoming.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    scene.all_is_well();
}

/// What the coordinator holds of others.
struct Held {
    sessions: u64,
    channels: u64,
    sockets: usize,
}

impl Held {
    /// Looks, and then asks; the asking itself is in what is told every time.
    fn by(scene: &Scene) -> Self {
        let sockets = sockets(scene.farm.coordinator_process());
        let status = &scene.farm.objects("status")[0];
        let number = |field: &str| status[field].as_u64().unwrap();
        Self { sessions: number("sessions"), channels: number("channels"), sockets }
    }

    /// Returns what is left when the only agent, without uploads, is gone. Each connection has two
    /// descriptors.
    fn without_agent(&self) -> Self {
        Self { sessions: self.sessions - 1, channels: self.channels - 1, sockets: self.sockets - 2 }
    }

    /// Returns what it is with as many further connections as an agent keeps for its uploads.
    fn with_bulk_lines(&self) -> Self {
        const LINES: u64 = 2;
        Self {
            sessions: self.sessions + LINES,
            channels: self.channels + LINES,
            sockets: self.sockets + 4,
        }
    }

    const fn is_no_more_than(&self, other: &Self) -> bool {
        self.sessions <= other.sessions
            && self.channels <= other.channels
            && self.sockets <= other.sockets
    }
}

/// Returns how many open sockets a process has.
fn sockets(process: Pid) -> usize {
    open(process).filter(|target| target.starts_with("socket:")).count()
}

/// Returns the nars that a process has open.
fn open_nars(process: Pid) -> BTreeSet<String> {
    open(process).filter(|target| target.ends_with(".nar.zst")).collect()
}

/// Returns what a process has open.
fn open(process: Pid) -> impl Iterator<Item = String> {
    let open = fs_err::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).unwrap();
    // A descriptor may be closed by now.
    let targets = open.filter_map(|entry| fs_err::read_link(entry.unwrap().path()).ok());
    targets.filter_map(|target| target.into_os_string().into_string().ok())
}
