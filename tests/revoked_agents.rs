//! An agent's key is taken away while it builds, while it uploads, or only changed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/door.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod door;

use bytes::Bytes;
use closure::{drv, export, file_nar};
use door::{Agent, World, hello, output, plan};
use std::path::PathBuf;
use steading::{
    core::{
        attempt::{Held, HeldPhase},
        outcome::AttemptEnd,
    },
    protocol::{
        bulk::{BulkFromAgent, OutputPlan},
        message::ToAgent,
    },
};

/// The key file of an agent.
fn key_of(world: &World, name: &str) -> PathBuf {
    let files = world.files("keys/agents");
    files.into_iter().find(|path| path.file_stem().unwrap() == name).unwrap()
}

/// Reads until the session is closed, and panics if something else is said.
async fn until_closed(agent: &mut Agent) {
    let said = agent.next().await;
    assert!(said.is_none(), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_builds_goes_to_others_when_its_key_is_taken_away() {
    let world = World::new().await;
    let drv = drv("a", "echo a > $out", &[], &[]);
    let mut amber = world.agent("amber").await;
    amber.welcomed().await;
    let build = world.submit(export(&[&drv]), std::slice::from_ref(&drv.path)).await[0];
    let first = amber.allocation().await.attempt;
    let mut birch = world.agent("birch").await;
    birch.welcomed().await;
    fs_err::remove_file(key_of(&world, "amber")).unwrap();
    until_closed(&mut amber).await;
    // Not only when a lease runs out.
    let second = birch.allocation().await;
    assert_eq!(second.build, build);
    let attempts = world.attempts(build).await;
    assert_eq!(attempts.len(), 2);
    assert_eq!((attempts[0].id, attempts[0].end.clone()), (first, Some(AttemptEnd::AgentLost)));
    assert_eq!(attempts[1].agent, "birch");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_upload_is_taken_after_the_key_is_taken_away() {
    let world = World::new().await;
    let drv = drv("a", "echo a > $out", &[], &[]);
    let mut amber = world.agent("amber").await;
    amber.welcomed().await;
    let build = world.submit(export(&[&drv]), std::slice::from_ref(&drv.path)).await[0];
    let attempt = amber.build().await;
    let nar = file_nar(&vec![7; 1 << 20]);
    let (offered, file) = output(&drv.out, &nar);
    let mut bulk = amber.bulk().await;
    let answer = bulk.offer(attempt, &[offered]).await;
    assert_eq!(answer, plan(OutputPlan::Send { offset: 0 }));
    let half: Bytes = file.slice(..file.len() / 2);
    bulk.say(&BulkFromAgent::Data { bytes: half }).await;
    let mut birch = world.agent("birch").await;
    birch.welcomed().await;
    fs_err::remove_file(key_of(&world, "amber")).unwrap();
    assert_eq!(bulk.next().await, None);
    assert_eq!(birch.allocation().await.build, build);
    assert!(world.files("depot").iter().all(|path| !path.to_str().unwrap().contains("nar")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_options_change_keeps_what_it_builds() {
    let world = World::new().await;
    let drv = drv("a", "echo a > $out", &[], &[]);
    let mut amber = world.agent("amber").await;
    amber.welcomed().await;
    let build = world.submit(export(&[&drv]), std::slice::from_ref(&drv.path)).await[0];
    let attempt = amber.allocation().await.attempt;
    let mut birch = world.agent("birch").await;
    birch.welcomed().await;
    let file = key_of(&world, "amber");
    let line = fs_err::read_to_string(&file).unwrap();
    fs_err::write(file, format!("tags=\"site=lab\" {line}")).unwrap();
    until_closed(&mut amber).await;
    let held = vec![Held { attempt, phase: HeldPhase::Building }];
    let mut amber =
        world.agent_saying("amber", steading::protocol::handshake::Hello { held, ..hello() }).await;
    match amber.next().await {
        Some(ToAgent::Welcome(welcome)) => assert_eq!(welcome.keep, [attempt]),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.attempts(build).await.len(), 1);
}
