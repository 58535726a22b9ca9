//! Agents that break the protocol or go beyond what is theirs, over real SSH connections.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/door.rs"]
mod door;

use bytes::Bytes;
use closure::{Drv, drv, export, file_nar};
use door::{World, committed, hello, offer, output, plan, refusal};
use std::{slice::from_ref, time::Duration};
use steading::{
    config::Config,
    core::{
        agent::{Obstacle, SENDING_MAX},
        build::ShownState,
        engine::{AgentView, Ask, Told},
        id::{AttemptId, BuildId},
        outcome::{AttemptEnd, BuildFailure, Outcome, SetupFailure},
    },
    protocol::{
        BULK_SUBSYSTEM, CONTROL_SUBSYSTEM,
        bulk::{BulkFromAgent, BulkToAgent, OutputPlan, RefusalCode},
        frame::{self, FRAME_BYTES_MAX},
        handshake::{ABILITIES_MAX, Hello, PROTOCOL_MAX, SLOTS_MAX},
        message::{FromAgent, OUTCOME_WORDS_BYTES_MAX, ToAgent},
    },
    ssh::{ChannelReader, Connection, GuardedWriter, Incoming, OpenError},
};
use tokio::time::timeout;

/// How soon a channel must be closed. Sessions that are silent for a minute are closed anyway.
const AT_ONCE: Duration = Duration::from_secs(45);

/// Submits one derivation that needs nothing.
async fn submit(world: &World, name: &str) -> (Drv, BuildId) {
    let drv = drv(name, "true", &[], &[]);
    let builds = world.submit(export(&[&drv]), from_ref(&drv.path)).await;
    (drv, builds[0])
}

/// Returns how the last attempt at a build ended, if it did.
async fn last_end(world: &World, build: BuildId) -> Option<AttemptEnd> {
    world.attempts(build).await.pop().and_then(|attempt| attempt.end)
}

/// Returns what the coordinator thinks of an agent.
async fn view(world: &World, name: &str) -> AgentView {
    match world.coordinator.engine.ask(Ask::Agents).await.unwrap() {
        Told::Agents(agents) => agents.into_iter().find(|a| a.name.to_string() == name).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_instead_of_messagepack_ends_the_session_and_nothing_else() {
    let world = World::new().await;
    submit(&world, "one").await;
    let mut honest = world.agent("birch").await;
    honest.welcomed().await;
    honest.allocation().await;
    let mut hostile = world.agent("amber").await;
    hostile.welcomed().await;
    let mut garbage = 5u32.to_be_bytes().to_vec();
    garbage.extend(b"\xc1GET /");
    hostile.writer.write(garbage.into()).await.unwrap();
    assert_eq!(hostile.next().await, None);
    honest.say(&FromAgent::Heartbeat {}).await;
    assert_eq!(world.states().await, [ShownState::Allocated]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_cap_ends_the_session_before_its_bytes_come() {
    let world = World::new().await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let length = u32::try_from(FRAME_BYTES_MAX + 1).unwrap();
    agent.writer.write(Bytes::copy_from_slice(&length.to_be_bytes())).await.unwrap();
    assert_eq!(agent.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_common_protocol_is_told_what_to_upgrade() {
    let world = World::new().await;
    let (protocol_min, protocol_max) = (PROTOCOL_MAX + 1, PROTOCOL_MAX + 1);
    let hello = Hello { protocol_min, protocol_max, ..hello() };
    let mut agent = world.agent_saying("amber", hello).await;
    match agent.next().await {
        Some(ToAgent::Refused { reason }) => assert!(reason.contains("upgrade"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_that_are_right_are_committed_and_published() {
    let world = World::new().await;
    let (drv, build) = submit(&world, "one").await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    let (offered, file) = output(&drv.out, &file_nar(b"content"));
    let file_hash = offered.file_hash;
    let mut bulk = agent.bulk().await;
    let plan = plan(OutputPlan::Send { offset: 0 });
    assert_eq!(bulk.offer(attempt, &[offered]).await, plan);
    let answer = bulk.send(&file, file_hash).await;
    assert_eq!(answer, Some(committed(attempt)));
    assert_eq!(last_end(&world, build).await, Some(AttemptEnd::Succeeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_overtakes_the_report_is_answered_with_it() {
    let world = World::new().await;
    let (drv, _) = submit(&world, "one").await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.allocation().await.attempt;
    let (offered, _) = output(&drv.out, &file_nar(b"content"));
    let mut bulk = agent.bulk().await;
    bulk.say(&offer(attempt, vec![offered])).await;
    let outcome = Outcome::Built;
    agent.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert!(matches!(bulk.next().await, Some(BulkToAgent::Plan { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_not_of_this_build_is_refused_before_its_first_byte() {
    let world = World::new().await;
    let (drv, build) = submit(&world, "one").await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    // A path that exists, but is no output.
    let (offered, _) = output(&drv.path, &file_nar(b"content"));
    let mut bulk = agent.bulk().await;
    let (code, reason) = refusal(Some(bulk.offer(attempt, &[offered]).await));
    assert_eq!(code, RefusalCode::Rejected);
    assert!(reason.contains("of this build is"), "{reason}");
    assert!(matches!(last_end(&world, build).await, Some(AttemptEnd::Rejected(_))));
    assert_eq!(world.states().await, [ShownState::Deferred]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agents_attempt_cannot_be_offered_prepared_or_finished() {
    let world = World::new().await;
    let (drv, _) = submit(&world, "one").await;
    let mut honest = world.agent("amber").await;
    honest.welcomed().await;
    let attempt = honest.allocation().await.attempt;
    let mut thief = world.agent("birch").await;
    thief.welcomed().await;
    let outcome = Outcome::Failed(BuildFailure::Exit(1));
    thief.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert_eq!(thief.next().await, Some(ToAgent::Cancel { attempt }));
    let mut bulk = thief.bulk().await;
    bulk.say(&BulkFromAgent::Prepare { attempt }).await;
    assert_eq!(refusal(bulk.next().await).0, RefusalCode::Stale);
    let (offered, _) = output(&drv.out, &file_nar(b"content"));
    bulk.say(&offer(attempt, vec![offered])).await;
    assert_eq!(refusal(bulk.next().await).0, RefusalCode::Stale);
    assert_eq!(world.states().await, [ShownState::Allocated]);
}

/// Puts the length in front of a frame's body.
fn framed(body: &[u8]) -> Bytes {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat().into()
}

/// Writes bytes as a text of MessagePack, whatever they are.
fn text(bytes: &[u8]) -> Vec<u8> {
    [&[0xd9, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

/// A map with one key, as messages are.
fn tagged(key: &str, value: &[u8]) -> Vec<u8> {
    [&[0x81][..], &text(key.as_bytes()), value].concat()
}

/// Bodies of frames that are no message, whoever reads them.
fn bad_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let whole = frame::encode(&FromAgent::Heartbeat {}).unwrap().slice(4..).to_vec();
    let attempt = frame::encode(&FromAgent::Started { attempt: AttemptId::from_bytes([1; 16]) });
    let attempt = attempt.unwrap().slice(4..).to_vec();
    let id_at = attempt.windows(7).position(|window| window == b"attempt").unwrap() + 7;
    vec![
        ("an empty body", Vec::new()),
        ("a byte that MessagePack never uses", vec![0xc1]),
        ("nothing, as a value", vec![0xc0]),
        ("a number", vec![7]),
        ("an empty map", vec![0x80]),
        ("an empty array", vec![0x90]),
        ("a map of two messages", [&[0x82], &whole[1..], &whole[1..]].concat()),
        ("arrays inside one another", vec![0x91; 100_000]),
        ("maps inside one another", [0x81, 0xa0].repeat(100_000)),
        ("depth below a known name", tagged("heartbeat", &vec![0x91; 100_000])),
        ("an array of four billion", tagged("offer", b"\xdd\xff\xff\xff\xff")),
        ("a map of four billion", tagged("hello", b"\xdf\xff\xff\xff\xff")),
        ("a text of four billion bytes", b"\xdb\xff\xff\xff\xffheartbeat".to_vec()),
        ("bytes of four billion", tagged("data", b"\x81\xa5bytes\xc6\xff\xff\xff\xff")),
        ("an extension of four billion bytes", b"\xc9\xff\xff\xff\xff\x01".to_vec()),
        ("a name longer than the frame", b"\x81\xd9\xffheartbeat\x80".to_vec()),
        ("a name that is cut", b"\x81\xa9heart".to_vec()),
        ("a name without a value", tagged("heartbeat", b"")),
        ("an unknown name", tagged("reboot", b"\x80")),
        ("a name in other letters", tagged("Heartbeat", b"\x80")),
        ("a name that is not UTF-8", [&[0x81][..], &text(b"\xff\xfe"), &[0x80]].concat()),
        ("a number for a name", b"\x81\xcc\xff\x80".to_vec()),
        ("an extension for a value", tagged("started", b"\xd4\x01\x00")),
        ("fields that lack", tagged("started", b"\x80")),
        ("an id that is short", [&attempt[..id_at], b"\xc4\x04\x01\x01\x01\x01"].concat()),
        ("an id that is a number", [&attempt[..id_at], b"\x01"].concat()),
        ("an id of four billion bytes", [&attempt[..id_at], b"\xc6\xff\xff\xff\xff\x01"].concat()),
        ("bytes behind a message", [&whole[..], b"\x00"].concat()),
        ("two messages in one frame", [&whole[..], &whole].concat()),
        ("the coordinator’s own words", tagged("committed", &attempt[8..])),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ]
}

/// Waits until a channel is closed, and returns what came before.
async fn closed(reader: &mut ChannelReader) -> usize {
    let mut bytes = 0;
    loop {
        match timeout(AT_ONCE, reader.next()).await.unwrap() {
            Incoming::Data(data) => bytes += data.len(),
            Incoming::Eof | Incoming::Lost => return bytes,
            Incoming::Stderr(_) | Incoming::Exited(_) => {}
        }
    }
}

/// Opens a channel, as soon as those before it are counted out: a connection may have few.
async fn open(connection: &Connection, subsystem: &str) -> (ChannelReader, GuardedWriter) {
    let opening = async {
        loop {
            match connection.subsystem(subsystem).await {
                Ok(channel) => return channel,
                Err(OpenError::Refused) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(AT_ONCE, opening).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_frame_closes_its_channel_and_disturbs_nobody_else() {
    let world = World::new().await;
    let (_, build) = submit(&world, "one").await;
    let mut honest = world.agent("birch").await;
    honest.welcomed().await;
    let attempt = honest.allocation().await.attempt;
    let mut honest_bulk = honest.bulk().await;
    let mut logged = 0;
    let hostile = world.connect("amber").await;
    for (name, body) in bad_bodies() {
        let mut wires = vec![(name, framed(&body))];
        if body.len() > 2 {
            let half = framed(&body).slice(..body.len());
            wires.push(("half a frame and the end", half));
        }
        for (index, (name, wire)) in wires.into_iter().enumerate() {
            for subsystem in [CONTROL_SUBSYSTEM, BULK_SUBSYSTEM] {
                let (mut reader, writer) = open(&hostile, subsystem).await;
                writer.write(wire.clone()).await.unwrap();
                if index == 1 {
                    // Not a whole close: the answer to the end may come before its second half.
                    writer.end_data().await.unwrap();
                }
                assert_eq!(closed(&mut reader).await, 0, "{subsystem}: {name} was answered");
            }
        }
        logged = honest.log(attempt, logged, Bytes::from_static(b"still here\n")).await;
    }
    // Behind a hello, too.
    for (name, body) in bad_bodies() {
        let mut agent = world.agent("amber").await;
        agent.welcomed().await;
        agent.writer.write(framed(&body)).await.unwrap();
        let answer = timeout(AT_ONCE, agent.next()).await;
        assert_eq!(answer, Ok(None), "{name}");
        logged = honest.log(attempt, logged, Bytes::from_static(b"still here\n")).await;
    }
    assert_eq!(logged, 2 * 11 * bad_bodies().len() as u64);
    honest_bulk.say(&BulkFromAgent::Prepare { attempt }).await;
    assert!(matches!(honest_bulk.next().await, Some(BulkToAgent::Derivation { .. })));
    assert_eq!(world.attempts(build).await.len(), 1);
    assert_eq!(world.states().await, [ShownState::Allocated]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_out_of_turn_closes_its_channel_only() {
    let world = World::new().await;
    let (drv, _) = submit(&world, "one").await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.build().await;
    let (offered, file) = output(&drv.out, &file_nar(b"content"));
    let file_hash = offered.file_hash;
    let data = BulkFromAgent::Data { bytes: file.clone() };
    for message in [&data, &BulkFromAgent::End { file_hash }] {
        let mut bulk = agent.bulk().await;
        bulk.say(message).await;
        assert_eq!(bulk.next().await, None);
    }
    let mut bulk = agent.bulk().await;
    assert!(matches!(bulk.offer(attempt, from_ref(&offered)).await, BulkToAgent::Plan { .. }));
    bulk.say(&BulkFromAgent::Prepare { attempt }).await;
    assert_eq!(bulk.next().await, None);
    // The attempt is not over: the outputs can be sent on another channel.
    let mut bulk = agent.bulk().await;
    loop {
        match bulk.offer(attempt, from_ref(&offered)).await {
            BulkToAgent::Plan { .. } => break,
            // The end of the other channel need not have been noticed yet.
            other => assert_eq!(refusal(Some(other)).0, RefusalCode::TryLater),
        }
    }
    assert_eq!(bulk.send(&file, file_hash).await, Some(committed(attempt)));
    // A second hello ends the session.
    agent.say(&FromAgent::Hello(hello())).await;
    assert_eq!(agent.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_the_ceiling_of_what_an_agent_claims() {
    let options = "systems=\"aarch64-linux\",tags=\"site=lab\"";
    let world = World::with(Config::default(), options).await;
    submit(&world, "one").await;
    let mut claims = hello();
    let systems = ["x86_64-linux", "aarch64-linux", "builtin"].map(str::to_owned).to_vec();
    claims.capabilities.emulated_systems.clone_from(&systems);
    claims.capabilities.systems = systems;
    claims.capabilities.slots = u32::MAX;
    claims.capabilities.tags = [("site", "bank"), ("trusted", "yes")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let mut agent = world.agent_saying("amber", claims).await;
    agent.welcomed().await;
    let seen = view(&world, "amber").await;
    assert_eq!(seen.abilities.systems, ["aarch64-linux"]);
    assert_eq!(seen.abilities.emulated_systems, ["aarch64-linux"]);
    assert_eq!(seen.abilities.tags["site"], "lab");
    assert_eq!(seen.abilities.slots, SLOTS_MAX);
    assert_eq!(seen.running, []);
    assert_eq!(world.states().await, [ShownState::Ready]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_claims_too_much_is_refused() {
    let world = World::new().await;
    let many = |count: usize| (0..count).map(|n| format!("x{n}")).collect::<Vec<_>>();
    let mut systems = hello();
    systems.capabilities.systems = many(ABILITIES_MAX + 1);
    let mut features = hello();
    features.capabilities.features = many(ABILITIES_MAX + 1);
    let mut tags = hello();
    tags.capabilities.tags = many(65).into_iter().map(|name| (name, String::new())).collect();
    for claims in [systems, features, tags] {
        let mut agent = world.agent_saying("amber", claims).await;
        match agent.next().await {
            Some(ToAgent::Refused { reason }) => {
                assert!(reason.starts_with("more than"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(agent.next().await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_said_of_anothers_attempt_touches_it() {
    let world = World::new().await;
    let (drv, build) = submit(&world, "one").await;
    let mut honest = world.agent("amber").await;
    honest.welcomed().await;
    let attempt = honest.allocation().await.attempt;
    honest.say(&FromAgent::Started { attempt }).await;
    let mut logged = honest.log(attempt, 0, Bytes::from_static(b"begin\n")).await;
    let mut thief = world.agent("birch").await;
    thief.welcomed().await;
    for outcome in [
        Outcome::Built,
        Outcome::Failed(BuildFailure::Exit(1)),
        Outcome::SetupFailed(SetupFailure::DiskFull),
        Outcome::SetupFailed(SetupFailure::MissingInputs(vec![drv.out.clone()])),
        Outcome::Canceled,
    ] {
        thief.say(&FromAgent::Finished { attempt, outcome, log_bytes: u64::MAX }).await;
        assert_eq!(thief.next().await, Some(ToAgent::Cancel { attempt }));
        let bytes = Bytes::from_static(b"forged\n");
        thief.say(&FromAgent::Log { attempt, offset: logged, bytes }).await;
        thief.say(&FromAgent::Started { attempt }).await;
        assert_eq!(thief.next().await, Some(ToAgent::Cancel { attempt }));
        logged = honest.log(attempt, logged, Bytes::from_static(b"more\n")).await;
    }
    assert_eq!(logged, 6 + 5 * 5);
    let mut reading = world.coordinator.logs.read(attempt);
    assert_eq!(reading.next().await.unwrap(), "begin\nmore\nmore\nmore\nmore\nmore\n");
    // An honest end is still possible.
    assert_eq!(world.states().await, [ShownState::Building]);
    let outcome = Outcome::Failed(BuildFailure::Exit(3));
    honest.say(&FromAgent::Finished { attempt, outcome, log_bytes: logged }).await;
    assert_eq!(honest.next().await, Some(ToAgent::Settled { attempt }));
    assert_eq!(last_end(&world, build).await, Some(AttemptEnd::Failed(BuildFailure::Exit(3))));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_build_needs_can_be_reported_missing() {
    let world = World::new().await;
    let base = drv("base", "true", &[], &[]);
    let user = drv("user", "true", &[&base], &[]);
    let (other, _) = submit(&world, "other").await;
    let mut hostile = world.agent("amber").await;
    hostile.welcomed().await;
    let attempt = hostile.allocation().await.attempt;
    // It knows what is needed elsewhere, and says so of a build that needs nothing.
    let stream = export(&[&base, &user]);
    let builds = world.submit(stream, from_ref(&user.path)).await;
    let missing = vec![base.out.clone(), user.out.clone(), other.out.clone()];
    let outcome = Outcome::SetupFailed(SetupFailure::MissingInputs(missing));
    hostile.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert_eq!(hostile.next().await, Some(ToAgent::Settled { attempt }));
    // What needs it is given out all the same, and only who was given it is believed.
    let allocation = hostile.allocation().await;
    assert_eq!(allocation.build, builds[0]);
    let outcome = Outcome::SetupFailed(SetupFailure::MissingInputs(vec![base.out.clone()]));
    let attempt = allocation.attempt;
    hostile.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert_eq!(hostile.next().await, Some(ToAgent::Settled { attempt }));
    assert!(world.states().await.contains(&ShownState::Waiting));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_is_cut_and_holds_nobody_up() {
    let config = Config { log_cap: 65_536, ..Config::default() };
    let world = World::with(config, "").await;
    submit(&world, "one").await;
    submit(&world, "two").await;
    let mut hostile = world.agent("amber").await;
    hostile.welcomed().await;
    let attempt = hostile.allocation().await.attempt;
    let mut honest = world.agent("birch").await;
    honest.welcomed().await;
    let other = honest.allocation().await.attempt;
    let flood = Bytes::from(vec![b'x'; 256 * 1024]);
    let (mut length, mut logged) = (0, 0);
    for _ in 0..64 {
        length = hostile.log(attempt, length, flood.clone()).await;
        logged = honest.log(other, logged, Bytes::from_static(b"line\n")).await;
    }
    assert_eq!((length, logged), (64 * 256 * 1024, 5 * 64));
    let of = |attempt: AttemptId| world.files(&format!("logs/live/{attempt}"));
    let kept: u64 = of(attempt).iter().map(|file| fs_err::metadata(file).unwrap().len()).sum();
    assert!(kept <= 65_536, "{kept} bytes are kept");
    // A place far behind the end costs its own log only, and no room.
    let end = hostile.log(attempt, u64::MAX - 2, Bytes::from_static(b"beyond")).await;
    assert!(end >= length);
    assert_eq!(honest.log(other, logged, Bytes::from_static(b"line\n")).await, logged + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_claims_success_and_sends_nothing_gets_no_more_builds() {
    let world = World::new().await;
    let drvs: Vec<Drv> =
        (0..SENDING_MAX + 20).map(|n| drv(&format!("n{n}"), "true", &[], &[])).collect();
    let roots: Vec<_> = drvs.iter().map(|drv| drv.path.clone()).collect();
    world.submit(export(&drvs.iter().collect::<Vec<_>>()), &roots).await;
    let mut hostile = world.agent("amber").await;
    hostile.welcomed().await;
    for _ in 0..SENDING_MAX {
        hostile.build().await;
    }
    // Nothing comes behind the last: a log of a made-up attempt is not answered, a stale report is.
    let attempt = AttemptId::from_bytes([9; 16]);
    hostile.say(&FromAgent::Started { attempt }).await;
    assert_eq!(hostile.next().await, Some(ToAgent::Cancel { attempt }));
    let seen = view(&world, "amber").await;
    assert_eq!((seen.running.len(), seen.sending.len()), (0, SENDING_MAX));
    assert_eq!(seen.obstacle, Some(Obstacle::Sending { builds: SENDING_MAX }));
    let states = world.states().await;
    assert_eq!(states.iter().filter(|state| **state == ShownState::Ready).count(), 20);
    // The others go to whom can use them.
    let mut honest = world.agent("birch").await;
    honest.welcomed().await;
    honest.allocation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_a_hostile_agent_are_kept_short() {
    let world = World::new().await;
    let (_, build) = submit(&world, "one").await;
    let mut agent = world.agent("amber").await;
    agent.welcomed().await;
    let attempt = agent.allocation().await.attempt;
    let words = "\u{1b}[2J\u{1}ä".repeat(100_000);
    let outcome = Outcome::SetupFailed(SetupFailure::Refused(words));
    agent.say(&FromAgent::Finished { attempt, outcome, log_bytes: 0 }).await;
    assert_eq!(agent.next().await, Some(ToAgent::Settled { attempt }));
    let end = last_end(&world, build).await.unwrap();
    assert!(end.brief().len() <= OUTCOME_WORDS_BYTES_MAX + 100, "{} bytes", end.brief().len());
}
