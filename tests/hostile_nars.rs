//! Outputs that are not what they should be, offered and sent over real SSH connections.
//!
//! One table names every attack and what is said to it. For each of them it is checked that
//! nothing of it is kept or published, that the attempt is over and charged to its agent, and that
//! another agent gets the build.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/door.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod door;
#[path = "common/nars.rs"]
mod nars;
#[path = "common/wait.rs"]
mod wait;

use bytes::Bytes;
use closure::{drv, export, file_nar, stream};
use door::{World, committed, hello, output, plan, refusal};
use nars::{Made, Met, Target, attacks};
use std::{collections::BTreeMap, path::PathBuf, slice::from_ref};
use steading::{
    config::Config,
    core::{
        agent::SuspensionKind,
        engine::{Ask, Told},
        hash::Sha256,
        id::{AttemptId, BuildId},
        outcome::AttemptEnd,
        store_path::StorePath,
    },
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, OutputPlan, RefusalCode},
        handshake::Hello,
    },
};

/// How much more memory than before all attacks together may take, in KiB. They come one after the
/// other, and the larger half is what this process needs to send them.
const PEAK_KIB_MAX: u64 = 64 * 1024;
/// The longest words that a refusal may have, in bytes.
const REASON_BYTES_MAX: usize = 2_000;

/// Returns a value of `/proc/self/status` in KiB.
fn memory_kib(name: &str) -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Says hello for an agent with so many slots.
fn with_slots(slots: usize) -> Hello {
    let mut hello = hello();
    hello.capabilities.slots = slots.try_into().unwrap();
    hello
}

/// Does what an attack says, and returns the refusal.
async fn attempt(
    bulk: &mut door::Bulk,
    attempt: AttemptId,
    made: &Made,
    met: Met,
) -> (RefusalCode, String) {
    let answer = bulk.offer(attempt, &made.offered).await;
    match met {
        Met::BeforeTheFirstByte => refusal(Some(answer)),
        Met::WhileItCame => {
            let plan = plan(OutputPlan::Send { offset: 0 });
            assert_eq!(answer, plan);
            refusal(bulk.send(&made.file, made.end_hash).await)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hostile_output_is_kept_and_every_build_is_made_elsewhere() {
    let attacks = attacks();
    assert!(attacks.len() >= 50);
    // Never in quarantine, so that all of them are tried.
    let world = World::with(Config { quarantine_after: 0, ..Config::default() }, "").await;
    let targets: Vec<Target> =
        (0..attacks.len()).map(|number| (attacks[number].target)(&format!("t{number}"))).collect();
    let entries = targets.iter().map(|target| (&target.path, file_nar(&target.text)));
    let roots: Vec<StorePath> = targets.iter().map(|target| target.path.clone()).collect();
    let builds = world.submit(stream(entries), &roots).await;
    let before = (world.files("depot"), world.files("public"));

    let mut hostile = world.agent_saying("amber", with_slots(attacks.len())).await;
    hostile.welcomed().await;
    let mut attempts: BTreeMap<BuildId, AttemptId> = BTreeMap::new();
    for _ in &attacks {
        let allocation = hostile.allocation().await;
        attempts.insert(allocation.build, allocation.attempt);
    }
    let mut honest = world.agent_saying("birch", with_slots(attacks.len())).await;
    honest.welcomed().await;

    let mut bulk = hostile.bulk().await;
    let base = memory_kib("VmHWM:");
    for ((attack, target), build) in attacks.iter().zip(&targets).zip(&builds) {
        let id = attempts[build];
        hostile.claim_built(id).await;
        let made = (attack.make)(target);
        let (code, reason) = attempt(&mut bulk, id, &made, attack.met).await;
        let name = attack.name;
        assert_eq!(code, RefusalCode::Rejected, "{name}: {reason}");
        assert!(reason.contains(attack.words), "{name}: {reason}");
        assert!(reason.len() <= REASON_BYTES_MAX, "{name}: {} bytes", reason.len());
        assert_eq!(world.files("incoming"), [] as [PathBuf; 0], "{name}");
        let tried = world.attempts(*build).await;
        assert_eq!(tried[0].agent, "amber", "{name}");
        assert_eq!(tried[0].end, Some(AttemptEnd::Rejected(reason)), "{name}");
        // The same attempt with what is right comes too late.
        let (offered, _) = output(&target.out, &file_nar(b"right"));
        let late = bulk.offer(id, &[offered]).await;
        assert_eq!(refusal(Some(late)).0, RefusalCode::Stale, "{name}");
    }
    let grown = memory_kib("VmHWM:").saturating_sub(base);
    assert!(grown <= PEAK_KIB_MAX, "{grown} KiB more than before");
    assert_eq!((world.files("depot"), world.files("public")), before);

    // All builds come to the other agent, and none to the one that was refused.
    let mut left: BTreeMap<BuildId, &str> =
        builds.iter().copied().zip(attacks.iter().map(|attack| attack.name)).collect();
    while !left.is_empty() {
        let allocation = honest.allocation().await;
        let name = left.remove(&allocation.build).expect("each build is given once");
        let tried = world.attempts(allocation.build).await;
        assert_eq!((tried.len(), tried[1].agent.as_str()), (2, "birch"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_five_refused_builds_gets_no_more() {
    let world = World::new().await;
    let drvs: Vec<_> = (0..6).map(|n| drv(&format!("n{n}"), "true", &[], &[])).collect();
    let roots: Vec<StorePath> = drvs.iter().map(|drv| drv.path.clone()).collect();
    world.submit(export(&drvs.iter().collect::<Vec<_>>()), &roots).await;
    let mut hostile = world.agent("amber").await;
    hostile.welcomed().await;
    let mut bulk = hostile.bulk().await;
    for _ in 0..5 {
        let attempt = hostile.build().await;
        assert_eq!(refusal(Some(bulk.offer(attempt, &[]).await)).0, RefusalCode::Rejected);
    }
    let Told::Counts(counts) = world.coordinator.engine.ask(Ask::Counts).await.unwrap() else {
        panic!("another answer")
    };
    assert_eq!(counts.suspended, [(SuspensionKind::Quarantined, 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_content_of_a_path_that_is_held_changes_nothing_that_is_published() {
    let world = World::new().await;
    let drv = drv("twice", "true", &[], &[]);
    let roots = [drv.path.clone(), drv.path.clone()];
    let builds = world.submit(export(&[&drv]), &roots).await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    let (offered, file) = output(&drv.out, &file_nar(b"right"));
    let mut bulk = agent.bulk().await;
    assert!(matches!(bulk.offer(attempt, from_ref(&offered)).await, BulkToAgent::Plan { .. }));
    let answer = bulk.send(&file, offered.file_hash).await;
    assert_eq!(answer, Some(committed(attempt)));
    let narinfo = || {
        let is_narinfo = |file: &PathBuf| file.extension().is_some_and(|e| e == "narinfo");
        let found = world.files("public").into_iter().find(is_narinfo);
        found.map(|file| fs_err::read_to_string(file).unwrap())
    };
    wait::until("the path is published", || narinfo().is_some());
    let published = (narinfo(), world.files("depot"));

    // The second build of it is a lie.
    let attempt = agent.build().await;
    let (offered, file) = output(&drv.out, &file_nar(b"wrong"));
    assert_eq!(bulk.offer(attempt, from_ref(&offered)).await, plan(OutputPlan::Send { offset: 0 }));
    assert_eq!(bulk.send(&file, offered.file_hash).await, Some(committed(attempt)));
    assert!(world.attempts(builds[1]).await[0].disputed);
    // It is kept for people to compare, and nothing more.
    assert_eq!(narinfo(), published.0);
    let depot = world.files("depot");
    assert_eq!(depot.len(), published.1.len() + 1);
    assert!(published.1.iter().all(|file| depot.contains(file)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_upload_with_another_end_is_refused_and_begun_again() {
    let world = World::new().await;
    let drv = drv("resumed", "true", &[], &[]);
    world.submit(export(&[&drv]), from_ref(&drv.path)).await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    let content: Vec<u8> =
        (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (offered, file) = output(&drv.out, &file_nar(&content));
    let half = file.len() / 2;
    let mut bulk = agent.bulk().await;
    assert!(matches!(bulk.offer(attempt, from_ref(&offered)).await, BulkToAgent::Plan { .. }));
    for start in (0..half).step_by(65_536) {
        let bytes = file.slice(start..(start + 65_536).min(half));
        bulk.say(&BulkFromAgent::Data { bytes }).await;
    }
    bulk.writer.end_data().await.unwrap();
    assert_eq!(bulk.next().await, None);
    let mut bulk = agent.bulk().await;
    let offset = loop {
        match bulk.offer(attempt, from_ref(&offered)).await {
            BulkToAgent::Plan { outputs, .. } => match outputs[..] {
                [OutputPlan::Send { offset }] => break offset,
                _ => panic!("{outputs:?}"),
            },
            // The end of the other channel need not have been noticed yet.
            other => assert_eq!(refusal(Some(other)).0, RefusalCode::TryLater),
        }
    };
    assert!(offset > 0);
    let rest = file.len() - usize::try_from(offset).unwrap();
    let (code, reason) = refusal(bulk.send(&Bytes::from(vec![0; rest]), offered.file_hash).await);
    assert_eq!(code, RefusalCode::TryLater, "{reason}");
    assert!(world.files("incoming").is_empty());
    let plan = plan(OutputPlan::Send { offset: 0 });
    assert_eq!(bulk.offer(attempt, from_ref(&offered)).await, plan);
    let answer = bulk.send(&file, Sha256::of(&file)).await;
    assert_eq!(answer, Some(committed(attempt)));
}
