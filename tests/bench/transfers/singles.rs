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
use std::net::SocketAddr;
use steading::{core::id::AttemptId, telemetry::Clock};

/// How many builds the client says it does at a time.
const SLOTS: u32 = 64;
/// How many offers are written at once: as many as fit what agents write at once.
const AT_ONCE: usize = 256;

/// Has all builds allocated and reported first, and measures their delivery, and how long it takes
/// until all are published.
pub(crate) fn deliver(
    bench: &Bench,
    count: usize,
    route: impl Fn(SocketAddr) -> SocketAddr,
) -> (Sample, Sample) {
    let farm = Farm::start(bench, &["amber".to_owned()]);
    let dir = farm.store_dir();
    let member =
        |number| graph::derivation(&dir, &format!("single-{number}"), "false", &["out"], &[]);
    let members: Vec<Member> = (0..count).map(member).collect();
    let config = farm.client("amber", farm.address());
    let mut agent = bench.runtime.block_on(Agent::join(&config, &dir, SLOTS)).unwrap();
    farm.submit(&members);
    let address = route(farm.address());
    bench.runtime.block_on(async {
        let mut attempts = Vec::new();
        for _ in 0..count {
            let (attempt, derivation) = agent.allocation().await;
            agent.started(attempt).await;
            agent.built(attempt).await;
            attempts.push((attempt, derivation));
        }
        let packed = |(number, (attempt, derivation))| {
            let member = members.iter().find(|member| member.path == derivation).unwrap();
            (attempt, pack("out", &member.outputs[0].1, small_content(number).as_bytes()))
        };
        let work: Vec<_> = attempts.into_iter().enumerate().map(packed).collect();
        let line = Bulk::connect(config.clone(), address).await;
        let coordinator = farm.coordinator_pid();
        let cpu = || cpu_of(coordinator).own_s + cpu_of_this_process();
        let (before, clock) = (cpu(), Clock::start());
        let now = || Sample {
            wall_s: super::measure::seconds(clock.now().mono.as_ms()),
            cpu_s: Some(cpu() - before),
        };
        deliver_all(line, &work).await;
        let committed = now();
        farm.until_published(count);
        (committed, now())
    })
}

async fn deliver_all(mut line: Bulk, mut work: &[(AttemptId, Packed)]) {
    let (mut ahead, mut unanswered) = (1, 0);
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
