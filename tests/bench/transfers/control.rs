//! How long an agent waits for an answer on its control connection while it uploads.

use super::{
    Bench,
    client::{Agent, Bulk, pack},
    farm::Farm,
    graph,
    measure::percentile,
    payload::{self, Kind},
    report::{Bar, Peer, Row, Section},
};
use bytes::Bytes;
use std::time::Duration;
use steading::{
    core::id::AttemptId,
    protocol::message::{FromAgent, ToAgent},
};
use tokio::time::{Instant, sleep};

/// The pause between two questions: an agent asks now and then, and does not flood.
const PAUSE: Duration = Duration::from_millis(1);

/// What one round measured, in seconds per question.
struct Round {
    idle: Vec<f64>,
    busy: Vec<f64>,
}

/// Measures questions alone, and while the same agent uploads on another connection.
pub(crate) fn measure(bench: &Bench) -> Section {
    let file = payload::write(&bench.scratch, Kind::Random, bench.options.bytes);
    let content = fs_err::read(&file).unwrap();
    fs_err::remove_file(file).unwrap();
    let mut rounds: Vec<Round> =
        (0..bench.options.rounds).map(|_| round(bench, &content)).collect();
    let rows = vec![
        row("p50", 0.5, Bar::None, &mut rounds),
        row("p99", 0.99, Bar::AtMost(10.0), &mut rounds),
    ];
    let about = format!(
        "An agent sends pieces of log and waits for their acknowledgement, one at a time, {} ms \
         apart, while it delivers a nar of {} MiB on a bulk connection: {} questions alone, {} \
         during the upload; {} rounds, each with a coordinator of its own.",
        PAUSE.as_millis(),
        bench.options.bytes >> 20,
        rounds.iter().map(|round| round.idle.len()).sum::<usize>(),
        rounds.iter().map(|round| round.busy.len()).sum::<usize>(),
        rounds.len(),
    );
    Section { part: "control", about, rows }
}

/// Returns the median and the best of what the rounds have at `share` of their questions.
fn row(name: &str, share: f64, bar: Bar, rounds: &mut [Round]) -> Row {
    let mut of = |questions: fn(&mut Round) -> &mut Vec<f64>| {
        let mut found: Vec<f64> =
            rounds.iter_mut().map(|round| percentile(questions(round), share) * 1e3).collect();
        (percentile(&mut found, 0.5), percentile(&mut found, 0.0))
    };
    let ours = of(|round| &mut round.busy);
    let (idle, best) = of(|round| &mut round.idle);
    let what = format!("answer on the control connection during an upload, {name}");
    let peer = Peer::Measured("without the upload".to_owned(), idle, best);
    Row { what, unit: "ms", ours, peer, bar }
}

fn round(bench: &Bench, content: &[u8]) -> Round {
    let farm = Farm::start(bench, &["amber".to_owned()]);
    let dir = farm.store_dir();
    let members =
        ["asked", "sent"].map(|name| graph::derivation(&dir, name, "false", &["out"], &[]));
    let config = farm.client("amber", farm.address());
    let mut agent = bench.runtime.block_on(Agent::join(&config, &dir, 2)).unwrap();
    farm.submit(&members);
    bench.runtime.block_on(async {
        let (asked, derivation) = agent.allocation().await.unwrap();
        let (sent, other) = agent.allocation().await.unwrap();
        let (asked, sent) =
            if derivation == members[0].path { (asked, sent) } else { (sent, asked) };
        assert_ne!(derivation, other);
        agent.started(asked).await;
        agent.started(sent).await;
        agent.built(sent).await;
        let packed = pack("out", &members[1].outputs[0].1, content);
        let mut bulk = Bulk::connect(config.clone(), farm.address()).await;
        let mut offset = 0;
        let mut idle = Vec::new();
        for _ in 0..bench.options.questions {
            idle.push(ask(&mut agent, asked, &mut offset).await);
        }
        let mut uploading = tokio::spawn(async move { bulk.deliver(sent, &packed).await });
        let mut busy = Vec::new();
        while !uploading.is_finished() {
            busy.push(ask(&mut agent, asked, &mut offset).await);
        }
        (&mut uploading).await.unwrap();
        Round { idle, busy }
    })
}

/// Asks one question and returns how many seconds the answer took.
async fn ask(agent: &mut Agent, attempt: AttemptId, offset: &mut u64) -> f64 {
    const LINE: &[u8] = b"a line of a log that is as long as most lines are\n";
    sleep(PAUSE).await;
    let begun = Instant::now();
    let bytes = Bytes::from_static(LINE);
    agent.control.say(&FromAgent::Log { attempt, offset: *offset, bytes }).await.unwrap();
    *offset += LINE.len() as u64;
    loop {
        match agent.control.next::<ToAgent>().await.unwrap() {
            ToAgent::LogReceived { offset: received, .. } if received == *offset => break,
            ToAgent::Heartbeat {} | ToAgent::LogReceived { .. } => {}
            other => panic!("not an answer: {other:?}"),
        }
    }
    begun.elapsed().as_secs_f64()
}
