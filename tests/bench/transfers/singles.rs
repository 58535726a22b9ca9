//! Many builds with one small output each, delivered as agents do: in offers that hold the files,
//! many at a time on one connection.

use super::{
    Bench,
    client::{Agent, Bulk, Packed, pack},
    farm::Farm,
    graph::{self, Member},
    measure::{Sample, cpu_of, cpu_of_this_process},
    uploads::small_content,
};
use std::{collections::HashMap, net::SocketAddr};
use steading::{
    core::{id::AttemptId, store_path::StorePath},
    telemetry::Clock,
};
use tokio::{sync::mpsc, task::JoinSet};

/// How many builds a client says it does at a time, and so at most has to deliver: more than that
/// are done by several clients.
const SLOTS: u32 = 512;
/// How many offers are written at once: as many as fit what agents write at once.
const AT_ONCE: usize = 256;

/// Has all builds allocated and reported first, and measures their delivery, and how long it takes
/// until all are published.
pub(crate) fn deliver(
    bench: &Bench,
    count: usize,
    route: impl Fn(SocketAddr) -> SocketAddr,
) -> (Sample, Sample) {
    let names: Vec<String> =
        (0..count.div_ceil(SLOTS as usize)).map(|number| format!("amber-{number}")).collect();
    let farm = Farm::start(bench, &names);
    let dir = farm.store_dir();
    let member =
        |number| graph::derivation(&dir, &format!("single-{number}"), "false", &["out"], &[]);
    let members: Vec<Member> = (0..count).map(member).collect();
    let by_path: HashMap<StorePath, usize> =
        members.iter().enumerate().map(|(n, member)| (member.path.clone(), n)).collect();
    let address = route(farm.address());
    let (sender, mut built) = mpsc::channel(count);
    for (client, name) in names.iter().enumerate() {
        let config = farm.client(name, farm.address());
        let agent = bench.runtime.block_on(Agent::join(&config, &dir, SLOTS)).unwrap();
        bench.runtime.spawn(build_all(agent, client, sender.clone()));
    }
    farm.submit(&members);
    bench.runtime.block_on(async {
        let mut work: Vec<Vec<(AttemptId, Packed)>> = vec![Vec::new(); names.len()];
        for _ in 0..count {
            let (client, attempt, derivation) = built.recv().await.unwrap();
            let number = by_path[&derivation];
            let output = &members[number].outputs[0].1;
            work[client].push((attempt, pack("out", output, small_content(number).as_bytes())));
        }
        let mut lines = Vec::new();
        for name in &names {
            lines.push(Bulk::connect(farm.client(name, address), address).await);
        }
        let coordinator = farm.coordinator_pid();
        let cpu = || cpu_of(coordinator).own_s + cpu_of_this_process();
        let (before, clock) = (cpu(), Clock::start());
        let now = || Sample {
            wall_s: super::measure::seconds(clock.now().mono.as_ms()),
            cpu_s: Some(cpu() - before),
        };
        let mut deliveries = JoinSet::new();
        for (line, work) in lines.into_iter().zip(work) {
            deliveries.spawn(deliver_all(line, work));
        }
        deliveries.join_all().await;
        let committed = now();
        // From here on the harness does nothing but look.
        let own = || cpu_of(coordinator).own_s;
        let before = own();
        farm.until_published(count);
        let cpu_s = committed.cpu_s.map(|cpu| cpu + own() - before);
        (committed, Sample { cpu_s, ..now() })
    })
}

/// Says of every build that is allocated that it is built, as long as anybody wants to know.
async fn build_all(
    mut agent: Agent,
    client: usize,
    built: mpsc::Sender<(usize, AttemptId, StorePath)>,
) {
    while let Some((attempt, derivation)) = agent.allocation().await {
        agent.started(attempt).await;
        agent.built(attempt).await;
        if built.send((client, attempt, derivation)).await.is_err() {
            return;
        }
    }
}

async fn deliver_all(mut line: Bulk, work: Vec<(AttemptId, Packed)>) {
    let (mut ahead, mut unanswered, mut work) = (1, 0, &work[..]);
    while unanswered > 0 || !work.is_empty() {
        let (now, later) = work.split_at(work.len().min(ahead - unanswered).min(AT_ONCE));
        if !now.is_empty() {
            line.offer(now).await;
            (work, unanswered) = (later, unanswered + now.len());
        }
        if unanswered >= ahead || work.is_empty() {
            let (answers, told) = line.committed().await;
            (ahead, unanswered) = (told.max(1), unanswered - answers);
        }
    }
}
