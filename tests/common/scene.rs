//! A coordinator and an agent called `amber`, with a network between them that can be disturbed.

use crate::{
    closure::export,
    graphs::{self, Member},
    processes::{Conditions, DirectAgent, Farm, feed},
    proxy::Proxy,
    wait,
    witness::{self, Run},
};
use std::path::PathBuf;
use steading::{
    core::store_path::StoreDir,
    store::{AttemptRow, Reader},
};
use tempfile::TempDir;

/// The agent behind the network.
pub(crate) const AMBER: &str = "amber";
/// The agent beside the coordinator, when there is one.
pub(crate) const BIRCH: &str = "birch";

/// What there is.
pub(crate) struct Scene {
    pub(crate) farm: Farm,
    pub(crate) proxy: Proxy,
    pub(crate) store_dir: StoreDir,
    _mount: TempDir,
}

impl Scene {
    /// Starts everything and waits until the agent is connected.
    pub(crate) fn start(conditions: Conditions) -> Self {
        let mount = tempfile::tempdir_in("/tmp").unwrap();
        let store_dir: StoreDir = mount.path().to_str().unwrap().parse().unwrap();
        let mut farm = Farm::under(conditions);
        let proxy = Proxy::start(farm.port());
        farm.start_direct_agent(&DirectAgent {
            name: AMBER,
            store_dir: &store_dir,
            slots: 1,
            uploads: 1,
            through: Some(proxy.port()),
        });
        farm.until_connected(1);
        Self { farm, proxy, store_dir, _mount: mount }
    }

    /// Starts an agent that no disturbance reaches.
    pub(crate) fn start_birch(&mut self) {
        self.farm.start_direct_agent(&DirectAgent {
            name: BIRCH,
            store_dir: &self.store_dir,
            slots: 1,
            uploads: 1,
            through: None,
        });
    }

    /// Makes and submits a build that waits for its agent's gate and then does what `body` says.
    pub(crate) fn submit(&self, name: &'static str, body: &str) -> (String, Member) {
        let member = graphs::gated(&self.store_dir, name, body);
        let export = export(&[&member.drv]);
        let output = feed(&self.farm.ssh_words(), "submit --closure", &export);
        assert!(output.status.success(), "{}", output.stderr.escape_ascii());
        (String::from_utf8(output.stdout).unwrap().trim_end().to_owned(), member)
    }

    /// Lets the builds of an agent go on.
    pub(crate) fn open_gate(&self, agent: &str) {
        fs_err::write(graphs::gate(&self.farm.files(agent)), "").unwrap();
    }

    /// Returns where an agent has an output.
    pub(crate) fn output(&self, agent: &str, member: &Member) -> PathBuf {
        self.farm.files(agent).join(member.drv.out.base_name())
    }

    /// Waits until a build is in a state, as `show` has it.
    pub(crate) fn until_state(&self, build: &str, state: &str) {
        wait::until(&format!("a build is {state}"), || self.state(build) == state);
    }

    /// Returns the state of a build.
    pub(crate) fn state(&self, build: &str) -> String {
        let shown = &self.farm.objects(&format!("show {build}"))[0];
        shown["state"].as_str().unwrap().to_owned()
    }

    /// Waits until a build's builder has begun on an agent.
    pub(crate) fn until_begun(&self, agent: &str, member: &Member) {
        wait::until(&format!("{} runs on {agent}", member.name), || {
            self.runs(member).iter().any(|run| run.agent == agent)
        });
    }

    /// Returns the attempts of a build, in order.
    pub(crate) fn attempts(&self, build: &str) -> Vec<AttemptRow> {
        let reader = Reader::open(&self.farm.state().join("steading.db")).unwrap();
        reader.attempts(build.parse().unwrap()).unwrap()
    }

    /// Returns what the builders say of when they ran.
    pub(crate) fn runs(&self, member: &Member) -> Vec<Run> {
        let file = |agent: &str| (agent.to_owned(), graphs::witness(&self.farm.files(agent)));
        let mut runs = witness::read(&[file(AMBER), file(BIRCH)]);
        runs.remove(member.name).unwrap_or_default()
    }

    /// Returns whether the coordinator has a session of an agent.
    pub(crate) fn is_connected(&self, agent: &str) -> bool {
        let agents = self.farm.objects("agents");
        agents.iter().any(|known| known["agent"] == agent && known["connected"] == true)
    }

    /// Waits until an agent keeps nothing of any attempt.
    pub(crate) fn until_nothing_kept(&self, agent: &str) {
        let spools = self.farm.agent_state(agent).join("attempts");
        wait::until(&format!("{agent} keeps no attempt"), || {
            fs_err::read_dir(&spools).unwrap().next().is_none()
        });
    }

    /// Asserts that memory, database and depot agree.
    pub(crate) fn all_is_well(&self) {
        let check = self.farm.run("check");
        assert!(check.status.success(), "{}", check.stdout.escape_ascii());
    }
}
