//! Real processes, killed and stopped at any moment: whatever was acknowledged is there, and the
//! farm ends with exactly what it would have made undisturbed.
//!
//! Each round is a farm of its own, with faults drawn from a seed. `STEADING_FAULT_ROUNDS` says
//! how many rounds the coordinator is killed in (agents: half as many), and `STEADING_FAULT_SEED`
//! the seed of the first; a round that fails prints what repeats it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of it is a test; a failure names its place, and what was measured is printed"
)]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have sources")]
mod closure;
#[path = "common/graphs.rs"]
#[expect(dead_code, reason = "other tests hold builds up")]
mod graphs;
#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/published.rs"]
mod published;
#[path = "common/random.rs"]
mod random;
#[path = "common/wait.rs"]
mod wait;
#[path = "common/witness.rs"]
mod witness;

use graphs::{Ends, Graph};
use private_nix::PrivateNix;
use processes::{DirectAgent, Farm, feed, obstacle};
use random::Random;
use rustix::process::Signal;
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
    thread,
};
use steading::{
    core::{hash::Sha256, outcome::AttemptEnd, store_path::StoreDir},
    store::{BuildFilter, BuildRow, First, Reader},
    telemetry::Clock,
};
use witness::Death;

/// The machines that build.
const AGENTS: [&str; 2] = ["amber", "birch"];
/// Rounds in which the coordinator is killed, unless the environment says otherwise; agents are
/// killed in fewer because their rounds are more alike.
const COORDINATOR_ROUNDS: u64 = 25;
const AGENT_ROUNDS: u64 = 15;
/// Rounds with real daemons, which show that nothing above rests on the embedded executor.
const NIX_ROUNDS: u64 = 2;
/// Faults of one round.
const STRIKES: u64 = 3;
/// How long a round may take to end after the last fault; each takes a few seconds.
const ENDED_SECONDS_MAX: u64 = 300;
/// More builds than a round has.
const BUILDS_MAX: usize = 1_000;

/// What is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Faults {
    None,
    Coordinator,
    Agents,
}

/// Where builds are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machines {
    /// By agents that have no daemon.
    Direct,
    /// By the daemons of private stores, one per agent.
    Nix,
}

/// What all rounds of a test have in common.
struct Setting {
    machines: Machines,
    store_dir: StoreDir,
    graphs: Vec<Graph>,
}

impl Setting {
    fn new(machines: Machines, store_dir: StoreDir) -> Self {
        let graphs = graphs::all(&store_dir);
        Self { machines, store_dir, graphs }
    }
}

/// What a round ended with.
struct Result {
    published: BTreeMap<String, Sha256>,
    machines_killed: usize,
}

#[test]
fn a_coordinator_killed_at_any_moment_has_lost_nothing() {
    let mount = tempfile::tempdir_in("/tmp").unwrap();
    let store_dir = mount.path().to_str().unwrap().parse().unwrap();
    let setting = Setting::new(Machines::Direct, store_dir);
    let name = "a_coordinator_killed_at_any_moment_has_lost_nothing";
    rounds(name, &setting, Faults::Coordinator, asked_rounds(COORDINATOR_ROUNDS));
}

#[test]
fn agents_and_machines_killed_at_any_moment_have_lost_nothing() {
    let mount = tempfile::tempdir_in("/tmp").unwrap();
    let store_dir = mount.path().to_str().unwrap().parse().unwrap();
    let setting = Setting::new(Machines::Direct, store_dir);
    let rounds_asked = asked("STEADING_FAULT_ROUNDS").map(|rounds| rounds.div_ceil(2));
    let name = "agents_and_machines_killed_at_any_moment_have_lost_nothing";
    rounds(name, &setting, Faults::Agents, rounds_asked.unwrap_or(AGENT_ROUNDS));
}

#[test]
fn a_coordinator_of_real_nix_daemons_killed_at_any_moment_has_lost_nothing() {
    if let Err(reason) = PrivateNix::start() {
        println!("skipped: killing a coordinator of real Nix daemons: {reason}");
        return;
    }
    let setting = Setting::new(Machines::Nix, StoreDir::nix());
    let name = "a_coordinator_of_real_nix_daemons_killed_at_any_moment_has_lost_nothing";
    rounds(name, &setting, Faults::Coordinator, asked_rounds(NIX_ROUNDS).min(NIX_ROUNDS));
}

/// Returns a number from the environment.
fn asked(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn asked_rounds(usual: u64) -> u64 {
    asked("STEADING_FAULT_ROUNDS").unwrap_or(usual)
}

/// Says what repeats a round, when it fails.
struct Repeat<'a> {
    test: &'a str,
    seed: u64,
}

impl Drop for Repeat<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "to repeat: STEADING_FAULT_SEED={} STEADING_FAULT_ROUNDS=1 \
                 cargo test --test faults_kill {}",
                self.seed, self.test
            );
        }
    }
}

/// Runs the graphs once undisturbed, and then with faults, as often as asked for.
fn rounds(test: &str, setting: &Setting, faults: Faults, count: u64) {
    if let Some(reason) = obstacle() {
        println!("skipped: {test}: {reason}");
        return;
    }
    let first = asked("STEADING_FAULT_SEED").unwrap_or(1);
    let expected = Round::start(setting, Faults::None, first).run().published;
    let clock = Clock::start();
    let mut machines_killed = 0;
    for seed in first..first + count {
        let _repeat = Repeat { test, seed };
        let result = Round::start(setting, faults, seed).run();
        assert_eq!(result.published, expected);
        machines_killed += result.machines_killed;
    }
    let elapsed_ms = clock.now().mono.as_ms();
    println!("measured: {count} rounds in {elapsed_ms} ms, {machines_killed} machines killed");
}

/// One farm and what is done to it.
struct Round<'a> {
    setting: &'a Setting,
    farm: Farm,
    daemons: Vec<PrivateNix>,
    faults: Faults,
    random: Random,
    deaths: Vec<Death>,
    /// Builds that were seen to have ended, and how.
    ended: BTreeMap<String, String>,
}

impl<'a> Round<'a> {
    fn start(setting: &'a Setting, faults: Faults, seed: u64) -> Self {
        let mut farm = Farm::start();
        let mut daemons = Vec::new();
        for name in AGENTS {
            let store_dir = &setting.store_dir;
            match setting.machines {
                Machines::Direct => farm.start_direct_agent(&DirectAgent {
                    name,
                    store_dir,
                    slots: 2,
                    uploads: 2,
                    through: None,
                }),
                Machines::Nix => {
                    let daemon = PrivateNix::start().unwrap();
                    farm.start_nix_agent(name, &daemon.socket());
                    daemons.push(daemon);
                }
            }
        }
        let (deaths, ended) = (Vec::new(), BTreeMap::new());
        Self { setting, farm, daemons, faults, random: Random::new(seed), deaths, ended }
    }

    /// Returns where the builders of each agent leave their lines.
    fn witnesses(&self) -> Vec<(String, PathBuf)> {
        let any = &self.setting.graphs[0].root().drv.path;
        let file = |at: usize, name: &str| match self.setting.machines {
            Machines::Direct => graphs::witness(&self.farm.files(name)),
            Machines::Nix => graphs::witness(self.daemons[at].outside(any).parent().unwrap()),
        };
        let agents = AGENTS.iter().enumerate();
        agents.map(|(at, name)| ((*name).to_owned(), file(at, name))).collect()
    }

    /// Submits, strikes, and looks at what came of it.
    fn run(mut self) -> Result {
        let words = self.farm.ssh_words();
        let mut random = self.random.fork();
        let graphs = &self.setting.graphs;
        let acknowledged = thread::scope(|scope| {
            let submitting = scope.spawn(move || submit_all(&words, graphs, &mut random));
            if self.faults != Faults::None {
                for _ in 0..STRIKES {
                    self.random.let_time_pass(500);
                    self.strike();
                }
            }
            submitting.join().unwrap()
        });
        self.until_ended(&acknowledged);
        self.everything_acknowledged_is_there(&acknowledged);
        self.every_build_ended_once();
        self.no_builder_ran_needlessly();
        let check = self.farm.run("check");
        assert!(check.status.success(), "{}", check.stdout.escape_ascii());
        let published = self.published();
        Result { published, machines_killed: self.deaths.len() }
    }

    /// Does one bad thing.
    fn strike(&mut self) {
        match self.faults {
            Faults::None => {}
            Faults::Coordinator => self.strike_coordinator(),
            Faults::Agents => self.strike_agent(),
        }
    }

    fn strike_coordinator(&mut self) {
        match self.random.below(10) {
            0..2 => {
                self.farm.signal_coordinator(Signal::STOP);
                self.random.let_time_pass(300);
                self.farm.signal_coordinator(Signal::CONT);
            }
            2..4 => {
                // Killed again while it starts.
                self.remember_ends();
                self.farm.kill_coordinator();
                self.farm.begin_coordinator();
                self.random.let_time_pass(150);
                self.farm.kill_coordinator();
                self.farm.restart_coordinator();
            }
            _ => {
                self.remember_ends();
                self.farm.kill_coordinator();
                self.farm.restart_coordinator();
            }
        }
    }

    fn strike_agent(&mut self) {
        let name = AGENTS[usize::try_from(self.random.below(2)).unwrap()];
        match self.random.below(10) {
            0..2 => {
                self.farm.signal_agent(name, Signal::STOP);
                self.random.let_time_pass(300);
                self.farm.signal_agent(name, Signal::CONT);
            }
            // Once a round: a build that loses a second machine waits before it is tried again.
            2..7 if self.deaths.is_empty() => {
                self.farm.kill_machine(name);
                self.deaths.push(Death { agent: name.to_owned(), at: witness::now() });
                self.farm.restart_agent(name);
            }
            _ => {
                self.farm.kill_agent(name);
                self.random.let_time_pass(100);
                self.farm.restart_agent(name);
            }
        }
    }

    /// Remembers every end that the coordinator has told to somebody.
    fn remember_ends(&mut self) {
        for state in ["succeeded", "failed"] {
            for build in self.farm.objects(&format!("builds --state {state} --limit 1000")) {
                let build = build["build"].as_str().unwrap().to_owned();
                self.ended.insert(build, state.to_owned());
            }
        }
    }

    /// Waits until nothing more will happen.
    fn until_ended(&self, acknowledged: &BTreeMap<&str, Vec<String>>) {
        let ids: Vec<&str> = acknowledged.values().flatten().map(String::as_str).collect();
        let verb = format!("wait --timeout {ENDED_SECONDS_MAX} {}", ids.join(" "));
        let waited = self.farm.run(&verb);
        let told = String::from_utf8(waited.stdout).unwrap();
        assert_eq!(told.lines().count(), ids.len(), "{told}{}", waited.stderr.escape_ascii());
        // One graph fails.
        assert_eq!(waited.status.code(), Some(1));
    }

    /// Returns all builds as the database has them.
    fn builds(&self) -> (Reader, Vec<BuildRow>) {
        let reader = Reader::open(&self.farm.state().join("steading.db")).unwrap();
        let filter =
            BuildFilter { limit: BUILDS_MAX, first: First::Oldest, ..BuildFilter::default() };
        let builds = reader.builds(&filter).unwrap();
        (reader, builds)
    }

    fn everything_acknowledged_is_there(&self, acknowledged: &BTreeMap<&str, Vec<String>>) {
        let (reader, builds) = self.builds();
        assert_eq!(reader.integrity().unwrap(), Vec::<String>::new());
        let known: BTreeMap<String, &BuildRow> =
            builds.iter().map(|build| (build.id.to_string(), build)).collect();
        for (graph, ids) in acknowledged {
            for id in ids {
                assert!(known.contains_key(id), "build {id} of {graph} was acknowledged");
            }
        }
        for (id, state) in &self.ended {
            assert_eq!(known[id].state, *state, "build {id} had ended");
        }
        // Nothing was made twice, not even by a submission that was repeated.
        let derivations: BTreeSet<String> =
            builds.iter().map(|build| build.derivation.to_string()).collect();
        let members: BTreeSet<String> = self
            .setting
            .graphs
            .iter()
            .flat_map(|graph| &graph.members)
            .map(|member| member.drv.path.to_string())
            .collect();
        assert_eq!(derivations, members);
        assert_eq!(builds.len(), members.len());
    }

    fn every_build_ended_once(&self) {
        let (reader, builds) = self.builds();
        for member in self.setting.graphs.iter().flat_map(|graph| &graph.members) {
            let own = |build: &&BuildRow| build.derivation == member.drv.path;
            let build = builds.iter().find(own).unwrap();
            let attempts = reader.attempts(build.id).unwrap();
            let ends: Vec<&AttemptEnd> =
                attempts.iter().filter_map(|attempt| attempt.end.as_ref()).collect();
            assert_eq!(ends.len(), attempts.len(), "{}: an attempt has not ended", member.name);
            let own_ends = ends
                .iter()
                .filter(|end| matches!(end, AttemptEnd::Succeeded | AttemptEnd::Failed(_)))
                .count();
            let (state, count) = match member.ends {
                Ends::Succeeded => ("succeeded", 1),
                Ends::Failed => ("failed", 1),
                Ends::Blocked => ("queued", 0),
            };
            assert_eq!((build.state.as_str(), own_ends), (state, count), "{}", member.name);
            // What was allocated and never reached the agent costs nobody anything.
            let begun = attempts.iter().filter(|attempt| attempt.started.is_some()).count();
            assert!(
                begun <= count + self.deaths.len(),
                "{}: begun more often than machines died: {attempts:?}",
                member.name
            );
        }
    }

    fn no_builder_ran_needlessly(&self) {
        let runs = witness::read(&self.witnesses());
        for member in self.setting.graphs.iter().flat_map(|graph| &graph.members) {
            let runs = runs.get(member.name).map_or(&[][..], Vec::as_slice);
            if member.ends == Ends::Blocked {
                assert_eq!(runs, [], "{} was tried", member.name);
                continue;
            }
            assert!(!runs.is_empty(), "nobody saw {} run", member.name);
            let needless = witness::needless(runs, &self.deaths);
            let deaths = &self.deaths;
            assert_eq!(needless, None, "{}: {runs:?}, {deaths:?}", member.name);
        }
    }

    /// Returns what is published once all of it is.
    fn published(&self) -> BTreeMap<String, Sha256> {
        let outputs: usize = self
            .setting
            .graphs
            .iter()
            .flat_map(|graph| &graph.members)
            .filter(|member| member.ends == Ends::Succeeded)
            .map(|member| member.drv.output_count())
            .sum();
        let read = || published::read(&self.farm.state().join("public"), &self.setting.store_dir);
        wait::until("all outputs are published", || read().len() >= outputs);
        read()
    }
}

/// Submits every graph under a key of its own, again and again until the coordinator says that it
/// has it. Returns the ids that it has told, by graph.
fn submit_all<'a>(
    words: &[String],
    graphs: &'a [Graph],
    random: &mut Random,
) -> BTreeMap<&'a str, Vec<String>> {
    let mut acknowledged: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut order: Vec<&Graph> = graphs.iter().collect();
    random.shuffle(&mut order);
    for graph in order {
        let (export, path) = (graph.export(), &graph.root().drv.path);
        let verb = format!("submit --closure --key {} {path}", graph.name);
        wait::until("a submission is acknowledged", || {
            let output = feed(words, &verb, &export);
            let told = String::from_utf8(output.stdout).unwrap();
            // A line without an end may be part of one.
            let whole = told.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let ids = acknowledged.entry(graph.name).or_default();
            for id in whole {
                if !ids.iter().any(|known| known == id) {
                    ids.push(id.to_owned());
                }
            }
            assert!(ids.len() <= 1, "one key and two builds: {ids:?}");
            output.status.success()
        });
        random.let_time_pass(200);
    }
    acknowledged
}
