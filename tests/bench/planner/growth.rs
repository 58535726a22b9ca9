//! What one operation costs with a hundred times the queue, and with a long history.

use super::{
    Bench, INPUTS_EACH,
    agents::Member,
    derivations::store_dir,
    middle_and_least, number,
    shape::Shape,
    state::{self, Content, SPARE},
    timed,
};
use crate::transfers::{
    client::hello,
    farm::Farm,
    measure::cpu_of,
    report::{Bar, Peer, Row, Section},
    say,
};
use std::{cell::OnceCell, sync::Arc};
use steading::core::store_path::StorePath;
use tokio::time::Instant;

/// How much more an operation may cost with the longest queue.
const QUEUE_MAX: f64 = 2.0;
/// How much more it may cost with the longest history.
const HISTORY_MAX: f64 = 1.3;
/// How many times as long the middle and the long queue are as the short one.
const LENGTHS: [usize; 2] = [10, 100];
/// How often each operation is done in one go; all queues take turns.
const TURN: usize = 20;
/// How many turns there are per round.
const TURNS: usize = 5;

/// What is measured.
const OPERATIONS: [(&str, Operation); 6] = [
    ("submit one", |queue| queue.submit()),
    ("why", |queue| queue.ask("why")),
    ("builds", |queue| queue.ask("builds")),
    ("status", |queue| queue.ask("status")),
    ("complete", |queue| queue.complete()),
    ("allocate", |queue| queue.allocate()),
];

/// Does something once and returns how many milliseconds it took.
type Operation = fn(&mut Queue<'_>) -> f64;

/// A coordinator with a queue.
struct Queue<'a> {
    what: String,
    bench: &'a Bench,
    farm: Farm<'a>,
    content: Arc<Content>,
    /// The agent of the turn, and the derivation of its build. It would be given up between turns,
    /// for it gives no signs of life.
    member: Option<(Member, StorePath)>,
    submitted: usize,
    asked: usize,
    /// Milliseconds of every operation so far, and processor milliseconds of every turn per
    /// operation.
    wall: [Vec<f64>; OPERATIONS.len()],
    cpu: [Vec<f64>; OPERATIONS.len()],
}

/// Measures all operations at all lengths, in turn.
pub(crate) fn measure(bench: &Bench) -> Section {
    let short = bench.options.open / LENGTHS[1];
    let mut sizes = vec![(short, 0)];
    sizes.extend(LENGTHS.map(|times| (short * times, 0)));
    sizes.push((short, bench.options.history));
    let mut queues: Vec<Queue<'_>> =
        sizes.into_iter().map(|(open, finished)| Queue::start(bench, open, finished)).collect();
    for round in 0..bench.options.rounds {
        say(&format!("  round {round}"));
        for _ in 0..TURNS {
            for queue in &mut queues {
                queue.turn();
            }
        }
    }
    let about = format!(
        "Each operation {} times, queues in turn; the middle of the times, and of the \
         coordinator's processor time in goes of {TURN}. Verbs run on a connection that is open; \
         `complete` is from the report of a build with one small output to its commit, `allocate` \
         from a free slot to the build. {INPUTS_EACH} inputs per build. Ratios are to the first \
         queue, of {}.",
        bench.options.rounds * TURNS * TURN,
        queues[0].what
    );
    Section { part: "planner growth", about, rows: rows(&queues) }
}

fn rows(queues: &[Queue<'_>]) -> Vec<Row> {
    let (base, others) = queues.split_first().unwrap();
    let mut rows = Vec::new();
    for (place, (operation, _)) in OPERATIONS.iter().enumerate() {
        for (number, queue) in others.iter().enumerate() {
            let most = if number + 1 == others.len() { HISTORY_MAX } else { QUEUE_MAX };
            let mut row = |unit, of: fn(&Queue<'_>, usize) -> (f64, f64), bar| {
                let (middle, least) = of(base, place);
                rows.push(Row {
                    what: format!("{operation}: {}", queue.what),
                    unit,
                    ours: of(queue, place),
                    peer: Peer::Measured(base.what.clone(), middle, least),
                    bar,
                });
            };
            row("ms", |queue, at| middle_and_least(queue.wall[at].clone()), Bar::Share(most));
            row("CPU ms", |queue, at| middle_and_least(queue.cpu[at].clone()), Bar::None);
        }
    }
    rows
}

impl<'a> Queue<'a> {
    fn start(bench: &'a Bench, open: usize, finished: usize) -> Self {
        let shape = Shape::new(open, INPUTS_EACH);
        let history = match finished {
            0 => String::new(),
            _ => format!(", {finished} finished"),
        };
        let what = format!("{open} open{history}");
        say(&format!("  {what} …"));
        let content = OnceCell::new();
        let put = |dir: &std::path::Path| {
            content.set(Arc::new(state::write(dir, &shape, finished))).unwrap();
        };
        let farm = Farm::start_on(&bench.farm, &["amber".to_owned()], &put);
        let content = content.into_inner().unwrap();
        let (wall, cpu) = (Default::default(), Default::default());
        Self { what, bench, farm, content, member: None, submitted: 0, asked: 0, wall, cpu }
    }

    /// Does everything some times.
    fn turn(&mut self) {
        self.join();
        for (place, (_, operation)) in OPERATIONS.iter().enumerate().take(4) {
            let before = self.cpu_ms();
            for _ in 0..TURN {
                let ms = operation(self);
                self.wall[place].push(ms);
            }
            let used = self.cpu_ms() - before;
            self.cpu[place].push(used / number(TURN));
        }
        let before = self.cpu_ms();
        for _ in 0..TURN {
            for place in [4, 5] {
                let ms = OPERATIONS[place].1(self);
                self.wall[place].push(ms);
            }
        }
        // Both together: they take turns.
        let used = (self.cpu_ms() - before) / number(TURN);
        for place in [4, 5] {
            self.cpu[place].push(used);
        }
        // So that the agent leaves without a build.
        self.complete();
        self.member = None;
    }

    fn cpu_ms(&self) -> f64 {
        cpu_of(self.farm.coordinator_pid()).own_s * 1e3
    }

    fn submit(&mut self) -> f64 {
        let path = &self.content.spare[self.submitted % SPARE];
        self.submitted += 1;
        self.verb(&format!("submit {path}"))
    }

    fn ask(&mut self, verb: &str) -> f64 {
        if verb != "why" {
            return self.verb(verb);
        }
        // Of the second half: the first is being built.
        let half = self.content.builds.len() / 2;
        let build = self.content.builds[half + self.asked % half];
        self.asked += 1;
        self.verb(&format!("why {build}"))
    }

    fn verb(&self, verb: &str) -> f64 {
        let (objects, seconds) = timed(|| self.farm.objects(verb));
        assert!(!objects.is_empty(), "{verb} says something");
        seconds * 1e3
    }

    /// Connects an agent with one slot and gives it a build.
    fn join(&mut self) {
        let config = self.farm.client("amber", self.farm.address());
        self.member = Some(self.bench.farm.runtime.block_on(async {
            let mut member = Member::join(config, hello(&store_dir(), 1)).await;
            let building = member.take().await;
            (member, building)
        }));
    }

    fn complete(&mut self) -> f64 {
        let (member, building) = self.member.as_mut().expect("a turn has an agent");
        self.bench.farm.runtime.block_on(async {
            member.wants(0).await;
            let begun = Instant::now();
            member.complete(self.content.out(building)).await;
            begun.elapsed().as_secs_f64() * 1e3
        })
    }

    fn allocate(&mut self) -> f64 {
        let (member, building) = self.member.as_mut().expect("a turn has an agent");
        self.bench.farm.runtime.block_on(async {
            let begun = Instant::now();
            member.wants(1).await;
            *building = member.take().await;
            begun.elapsed().as_secs_f64() * 1e3
        })
    }
}
