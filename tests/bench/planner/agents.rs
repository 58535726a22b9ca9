//! Agents that build nothing and answer at once, over real SSH connections.

use super::derivations::store_dir;
use crate::transfers::{
    client::{Agent, Bulk, hello, pack},
    farm::Farm,
};
use bytes::Bytes;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use steading::{
    core::{
        hash::Sha256,
        id::AttemptId,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    protocol::{bulk::OfferedOutput, handshake::Hello, message::FromAgent},
    ssh::ClientConfig,
};
use tokio::{
    task::JoinSet,
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;

/// How long to wait before a connection is tried again, while the coordinator starts.
const RETRY: Duration = Duration::from_millis(2);
/// How many connect at once; the door lets sixteen in per address that are not known yet.
const CONNECTING_MAX: usize = 12;
/// What every build makes.
const OUTPUT: &[u8] = b"built\n";

/// One agent with one slot.
pub(crate) struct Member {
    pub(crate) agent: Agent,
    bulk: Bulk,
    /// The build that it has.
    held: Option<(AttemptId, StorePath)>,
}

impl Member {
    /// Connects; a build may be on its way then.
    pub(crate) async fn join(config: ClientConfig, hello: Hello) -> Self {
        let agent = join_saying(&config, &hello).await;
        let address = config.address.parse().unwrap();
        let bulk = Bulk::connect(config, address).await;
        Self { agent, bulk, held: None }
    }

    /// Takes the build that it is given next, and returns its derivation.
    pub(crate) async fn take(&mut self) -> StorePath {
        assert_eq!(self.held, None, "an agent with one slot gets one build");
        let (attempt, derivation) = self.agent.allocation().await.expect("the session goes on");
        self.held = Some((attempt, derivation.clone()));
        derivation
    }

    /// Says how many builds it wants.
    pub(crate) async fn wants(&self, slots: u32) {
        let reason = (slots == 0).then(|| "measured".to_owned());
        self.agent.control.say(&FromAgent::Capacity { slots, reason }).await.unwrap();
    }

    /// Hands the only output of its build in, and returns when it is committed.
    pub(crate) async fn complete(&mut self, out: &StorePath) {
        let attempt = self.built().await;
        self.bulk.offer(&[(attempt, pack("out", out, OUTPUT))]).await;
        self.bulk.committed().await;
    }

    /// Says what it made, where nobody wants the bytes, and returns when that is noted.
    pub(crate) async fn record(&mut self, outputs: &[(String, StorePath)]) {
        let attempt = self.built().await;
        self.bulk.record(attempt, outputs.iter().map(described).collect()).await;
    }

    async fn built(&mut self) -> AttemptId {
        let (attempt, _) = self.held.take().expect("it has a build");
        self.agent.built(attempt).await;
        attempt
    }
}

/// Describes an output that does not exist.
fn described((name, path): &(String, StorePath)) -> OfferedOutput {
    let file = Bytes::from_static(OUTPUT);
    let info = PathInfo {
        path: path.clone(),
        nar_hash: Sha256::of(path.name().as_bytes()),
        nar_bytes: 4_096,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    OfferedOutput {
        name: name.clone(),
        info,
        compression: "zstd".to_owned(),
        file_bytes: file.len() as u64,
        file_hash: Sha256::of(&file),
    }
}

/// Returns what agents here say first.
pub(crate) fn one_slot(dir: &StoreDir, systems: &BTreeSet<String>) -> Hello {
    let mut hello = hello(dir, 1);
    hello.capabilities.systems = systems.iter().cloned().collect();
    hello
}

/// Connects, trying again until the coordinator is there.
pub(crate) async fn join(config: &ClientConfig) -> Agent {
    join_saying(config, &hello(&store_dir(), 1)).await
}

async fn join_saying(config: &ClientConfig, hello: &Hello) -> Agent {
    loop {
        match Agent::join_saying(config, hello.clone()).await {
            Some(agent) => return agent,
            None => sleep(RETRY).await,
        }
    }
}

/// Connects many agents, some at a time.
pub(crate) async fn gather(farm: &Farm<'_>, names: &[String], hello: &Hello) -> Vec<Member> {
    let mut members = Vec::with_capacity(names.len());
    for some in names.chunks(CONNECTING_MAX) {
        let mut joining = JoinSet::new();
        for name in some {
            joining.spawn(Member::join(farm.client(name, farm.address()), hello.clone()));
        }
        members.extend(joining.join_all().await);
    }
    members
}

/// Lets every agent do something at the same time, until all are done.
pub(crate) async fn together<F>(members: Vec<Member>, life: impl Fn(Member) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut lives = JoinSet::new();
    for member in members {
        lives.spawn(life(member));
    }
    lives.join_all().await;
}

/// How many builds are still to be completed, by all agents together.
#[derive(Debug, Clone)]
pub(crate) struct Left {
    count: Arc<AtomicUsize>,
    none: CancellationToken,
}

impl Left {
    pub(crate) fn new(count: usize) -> Self {
        Self { count: Arc::new(AtomicUsize::new(count)), none: CancellationToken::new() }
    }

    /// Takes a build for an agent; `None` when there is none left, which another agent notices.
    pub(crate) async fn take(&self, member: &mut Member) -> Option<StorePath> {
        tokio::select! {
            derivation = member.take() => Some(derivation),
            () = self.none.cancelled() => None,
        }
    }

    /// Notes that one is complete.
    pub(crate) fn completed(&self) {
        if self.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.none.cancel();
        }
    }
}

/// Returns names for so many agents.
pub(crate) fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("a{number}")).collect()
}
