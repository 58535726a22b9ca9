//! From the end of one build to the next one, against an echo that is synced to the disk.

use super::{Bench, agents, derivations, middle_and_least, peer, shape::Shape, state};
use crate::transfers::{
    client::Agent,
    farm::Farm,
    measure::percentile,
    report::{Bar, Row, Section},
    sshd::Sshd,
};
use bytes::Bytes;
use std::{
    io::{BufRead as _, Write as _},
    path::Path,
};
use steading::{
    core::{
        id::AttemptId,
        outcome::{BuildFailure, Outcome},
    },
    protocol::message::{FromAgent, ToAgent},
    ssh::{self, ChannelReader, Connection, GuardedWriter, Incoming},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The argument under which this program is the echo.
pub(crate) const ECHO: &str = "--echo-synced";
/// How many times as long as the echo the next build may take.
const SHARE_MAX: f64 = 3.0;
/// As long as the frame that says that a build is over.
const LINE: [u8; 100] = [b'.'; 100];

/// Repeats every line of standard input once it is in `file` and synced.
pub(crate) fn echo(file: &Path) {
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(file).unwrap();
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap() + "\n";
        file.write_all(line.as_bytes()).unwrap();
        file.file().sync_data().unwrap();
        output.write_all(line.as_bytes()).unwrap();
        output.flush().unwrap();
    }
}

/// Measures both in turn, one question at a time.
pub(crate) fn measure(bench: &Bench) -> Section {
    let questions = bench.options.builds.min(2_000);
    let total = questions * bench.options.rounds + 1;
    let shape = Shape::new(total, 0);
    let put = |dir: &Path| drop(state::write(dir, &shape, 0));
    let farm = Farm::start_on(&bench.farm, &["amber".to_owned()], &put);
    let runtime = &bench.farm.runtime;
    let config = farm.client("amber", farm.address());
    let (mut agent, mut attempt) = runtime.block_on(async {
        let mut agent = agents::join(&config).await;
        let (attempt, derivation) = agent.allocation().await.expect("the session goes on");
        assert_eq!(derivation.dir(), &derivations::store_dir());
        (agent, attempt)
    });
    let sshd = Sshd::start(bench.scratch(), None);
    let mut stock = sshd.as_ref().ok().map(|sshd| {
        let log = bench.scratch().join("echoed");
        runtime.block_on(Echo::connect(sshd, &log))
    });
    let (mut ours, mut echoed) = (Vec::new(), Vec::new());
    for _ in 0..bench.options.rounds {
        // In slices, so that what the machine does meanwhile meets both.
        for _ in 0..questions.div_ceil(100) {
            for _ in 0..100.min(questions) {
                if ours.len() + 1 < total {
                    ours.push(runtime.block_on(next(&mut agent, &mut attempt)));
                }
            }
            if let Some(stock) = &mut stock {
                for _ in 0..100.min(questions) {
                    echoed.push(runtime.block_on(stock.ask()));
                }
            }
        }
    }
    let of = |values: &[f64], share| {
        let value = percentile(&mut values.to_vec(), share) * 1e3;
        (value, value)
    };
    let row = |what: &str, share, bar| Row {
        what: what.to_owned(),
        unit: "ms",
        ours: of(&ours, share),
        peer: peer("echo, synced", sshd.as_ref().map(|_| of(&echoed, share)).map_err(Clone::clone)),
        bar,
    };
    let rows = vec![
        row("end of a build to the next, p50", 0.5, Bar::None),
        row("end of a build to the next, p99", 0.99, Bar::Share(SHARE_MAX)),
    ];
    let about = format!(
        "An agent with one slot says that its build has failed and gets the next one, {} times. \
         The echo: our client on a stock sshd, whose command appends each line of {} bytes to a \
         file, syncs it and sends it back, {} times, in turn. Best of all: ours {:.3} ms, echo \
         {:.3} ms.",
        ours.len(),
        LINE.len(),
        echoed.len(),
        middle_and_least(ours.clone()).1 * 1e3,
        middle_and_least(echoed.clone()).1 * 1e3,
    );
    Section { part: "planner next", about, rows }
}

/// Ends the build that the agent has, and returns how many seconds later it had the next one.
async fn next(agent: &mut Agent, attempt: &mut AttemptId) -> f64 {
    let outcome = Outcome::Failed(BuildFailure::Exit(1));
    let message = FromAgent::Finished { attempt: *attempt, outcome, log_bytes: 0 };
    let begun = Instant::now();
    agent.control.say(&message).await.unwrap();
    loop {
        match agent.control.next::<ToAgent>().await.unwrap() {
            ToAgent::Allocate(allocation) => {
                *attempt = allocation.attempt;
                return begun.elapsed().as_secs_f64();
            }
            ToAgent::Settled { .. } | ToAgent::Heartbeat {} => {}
            other => panic!("not an allocation: {other:?}"),
        }
    }
}

/// A command on the stock server that repeats what it hears.
struct Echo {
    /// Kept open by its value.
    _connection: Connection,
    reader: ChannelReader,
    writer: GuardedWriter,
}

impl Echo {
    async fn connect(sshd: &Sshd, log: &Path) -> Self {
        let connection = ssh::connect(&sshd.client(), &CancellationToken::new()).await.unwrap();
        let program = std::env::current_exe().unwrap();
        let line = format!("exec {} {ECHO} {}", program.display(), log.display());
        let (reader, writer) = connection.exec(&line).await.unwrap();
        let mut echo = Self { _connection: connection, reader, writer };
        echo.ask().await;
        echo
    }

    /// Says a line and returns how many seconds later it came back.
    async fn ask(&mut self) -> f64 {
        let line = Bytes::from([&LINE[..], b"\n"].concat());
        let begun = Instant::now();
        let mut missing = line.len();
        self.writer.write(line).await.unwrap();
        while missing > 0 {
            match self.reader.next().await {
                Incoming::Data(bytes) => missing -= bytes.len(),
                Incoming::Stderr(bytes) => panic!("{}", bytes.escape_ascii()),
                other => panic!("the echo ended: {other:?}"),
            }
        }
        begun.elapsed().as_secs_f64()
    }
}
