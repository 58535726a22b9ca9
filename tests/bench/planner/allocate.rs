//! Builds given out and completed over real connections, every step durable, against queues.

use super::{
    Bench,
    agents::{Left, Member, gather, names, together},
    derivations::store_dir,
    middle_and_least, note, number, peer,
    peers::{Rate, beanstalkd, hyperqueue, postgres, version},
    shape::Shape,
    state, timed,
};
use crate::transfers::{
    client::hello,
    farm::Farm,
    measure::cpu_of,
    report::{Bar, Peer, Row, Section},
    say,
};
use std::{cell::OnceCell, path::Path, sync::Arc};

/// How many times as fast as PostgreSQL we must be.
const SPEED_MIN: f64 = 5.0;
/// With how many clients PostgreSQL is tried, besides as many as there are agents.
const POSTGRES_CLIENTS: [usize; 2] = [16, 64];
/// How many processes `HyperQueue` runs; with fewer builds it is not worth its installation.
const PROCESSES: usize = 2_000;

/// Measures all in turn.
pub(crate) fn measure(bench: &Bench) -> Section {
    let (count, agents) = (bench.options.builds, bench.options.agents);
    let clients: Vec<usize> = POSTGRES_CLIENTS.into_iter().chain([agents]).collect();
    let [mut recorded, mut taken] = [const { Vec::new() }; 2];
    let [mut postgreses, mut beanstalkds, mut hyperqueues] =
        [const { Vec::<Result<Rate, String>>::new() }; 3];
    for _ in 0..bench.options.rounds {
        recorded.push(ours_once(bench, Outputs::Recorded));
        postgreses.push(postgres(bench.scratch(), count, &clients));
        taken.push(ours_once(bench, Outputs::Taken));
        beanstalkds.push(beanstalkd(bench.scratch(), count, agents));
        hyperqueues.push(if count < PROCESSES {
            Err("it is not installed for so few".to_owned())
        } else {
            hyperqueue(bench.scratch(), PROCESSES)
        });
        say(&format!(
            "  ours {:.0}/s, with outputs {:.0}/s, PostgreSQL {:?}, beanstalkd {:?}, HyperQueue {:?}",
            recorded.last().unwrap().0,
            taken.last().unwrap().0,
            postgreses.last().unwrap(),
            beanstalkds.last().unwrap(),
            hyperqueues.last().unwrap()
        ));
    }
    let rates = |ours: &[(f64, f64)]| middle_and_most(ours.iter().map(|(rate, _)| *rate).collect());
    let cpu = |ours: Vec<(f64, f64)>| {
        middle_and_least(ours.into_iter().map(|(_, cpu)| cpu * 1e6).collect())
    };
    let row = |peer, bar| Row {
        what: "given out and completed".to_owned(),
        unit: "/s",
        ours: rates(&recorded),
        peer,
        bar,
    };
    let mut rows = vec![
        row(of("PostgreSQL, SKIP LOCKED", postgreses), Bar::Faster(SPEED_MIN)),
        row(of("beanstalkd -f0", beanstalkds), Bar::None),
        row(of("HyperQueue", hyperqueues), Bar::None),
        note("the same with outputs taken", "/s", rates(&taken)),
    ];
    rows.push(note("the coordinator, per build", "CPU µs", cpu(recorded)));
    rows.push(note("the coordinator, per build with outputs taken", "CPU µs", cpu(taken)));
    let about = format!(
        "{count} builds without inputs. Ours: {agents} agents on real connections that answer at \
         once, each with one slot; outputs are recorded, or one small output per build is taken, \
         verified and signed; submitted before. PostgreSQL: one transaction to allocate and one to complete through `pgbench` and \
         a local socket, the best of {clients:?} clients, synchronous_commit on. beanstalkd: \
         `reserve` and `delete` by {agents} clients, log synced. HyperQueue: a process each on {} \
         cores, nothing durable. {}; {}. {} rounds.",
        std::thread::available_parallelism().map_or(1, usize::from),
        version("psql", "--version"),
        version("beanstalkd", "-v"),
        bench.options.rounds
    );
    Section { part: "planner allocate", about, rows }
}

/// Whether outputs are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outputs {
    Taken,
    Recorded,
}

/// Returns builds per second, and processor seconds of the coordinator per build.
fn ours_once(bench: &Bench, outputs: Outputs) -> (f64, f64) {
    let (count, agents) = (bench.options.builds, bench.options.agents);
    let shape = Shape::new(count, 0);
    let names = names(agents);
    let content = OnceCell::new();
    let put = |dir: &Path| {
        if outputs == Outputs::Recorded {
            state::configure(dir, state::RECORDING);
        }
        content.set(state::write(dir, &shape, 0)).unwrap();
    };
    let farm = Farm::start_on(&bench.farm, &names, &put);
    let content = Arc::new(content.into_inner().unwrap());
    let hello = hello(&store_dir(), 1);
    let members = bench.farm.runtime.block_on(gather(&farm, &names, &hello));
    let before = cpu_of(farm.coordinator_pid()).own_s;
    let left = Left::new(count);
    let life = |mut member: Member| {
        let (content, left) = (Arc::clone(&content), left.clone());
        async move {
            while let Some(derivation) = left.take(&mut member).await {
                let out = content.out(&derivation);
                match outputs {
                    Outputs::Taken => member.complete(out).await,
                    Outputs::Recorded => member.record(&[("out".to_owned(), out.clone())]).await,
                }
                left.completed();
            }
        }
    };
    let ((), seconds) = timed(|| bench.farm.runtime.block_on(together(members, life)));
    let used = cpu_of(farm.coordinator_pid()).own_s - before;
    let done = number(count);
    (done / seconds, used / done)
}

/// Returns what a peer came to in all rounds.
fn of(name: &str, rates: Vec<Result<Rate, String>>) -> Peer {
    let rates: Result<Vec<Rate>, String> = rates.into_iter().collect();
    let clients = rates.iter().flatten().map(|rate| rate.clients).max().unwrap_or_default();
    let both = rates.map(|rates| middle_and_most(rates.iter().map(|rate| rate.per_s).collect()));
    peer(format!("{name} ({clients} at a time)"), both)
}

fn middle_and_most(mut values: Vec<f64>) -> (f64, f64) {
    let middle = crate::transfers::measure::percentile(&mut values, 0.5);
    (middle, values.last().copied().unwrap_or(f64::NAN))
}
