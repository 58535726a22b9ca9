//! A submission made durable, against the bare insert of the same graph.

use super::{
    Bench, INPUTS_EACH, bare, cpu_of_this_thread,
    derivations::{self, Maker},
    middle_and_least, peer,
    shape::Shape,
    state::name,
};
use crate::transfers::{
    farm::Farm,
    measure::cpu_of,
    report::{Bar, Row, Section},
    say,
};
use std::{io::BufWriter, path::Path, process::Stdio, sync::Arc};
use steading::{
    coordinator::{engine_thread::SubmitRequest, truth::Truth},
    core::{
        change::{Change, DerivationRecord},
        engine::{IdSource, Input, Inputs, Settings, Token},
    },
    store::Store,
    telemetry::Clock,
};

/// How many derivations are written down together, as the coordinator does it.
const SLICE: usize = 500;
/// How much more processor time we may take than the bare insert.
const SHARE_MAX: f64 = 2.0;

/// Measures the store and the engine alone, and a whole submission through `ssh`.
pub(crate) fn measure(bench: &Bench) -> Section {
    let shape = Shape::new(bench.options.nodes, INPUTS_EACH);
    let stream = bench.scratch().join("stream");
    derivations::export(&shape, BufWriter::new(fs_err::File::create(&stream).unwrap()));
    let (mut bare, mut inside, mut through) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bare_bytes, mut our_bytes) = (0, 0);
    for _ in 0..bench.options.rounds {
        let dir = tempfile::tempdir_in(bench.scratch()).unwrap();
        let file = dir.path().join("bare.db");
        bare.push(bare::insert(&file, &shape));
        bare_bytes = fs_err::metadata(file).unwrap().len();
        let file = dir.path().join("steading.db");
        inside.push(without_ssh(&file, &shape));
        our_bytes = fs_err::metadata(file).unwrap().len();
        through.push(with_ssh(bench, &stream));
        let last = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
        say(&format!(
            "  bare {:.2} CPU s, ours {:.2}, through ssh {:.2}",
            last(&bare),
            last(&inside),
            last(&through)
        ));
    }
    let bare = middle_and_least(bare);
    let row = |what: &str, ours| Row {
        what: what.to_owned(),
        unit: "CPU s",
        ours,
        peer: peer("bare insert", Ok(bare)),
        bar: Bar::Share(SHARE_MAX),
    };
    let rows = vec![
        row("the engine and the database", middle_and_least(inside)),
        row("`ssh submit`, all of the coordinator", middle_and_least(through)),
    ];
    let about = format!(
        "{} derivations with {} edges, until builds for all of them are durable. Bare: SQLite with \
         one row per derivation and one per edge, in one transaction ({} MiB). The engine and the \
         database: derivations that are verified already, texts included ({} MiB). `ssh submit`: \
         an export stream of {} MiB through the stock client, everything verified. {} rounds.",
        shape.count(),
        shape.edge_count(),
        bare_bytes >> 20,
        our_bytes >> 20,
        fs_err::metadata(stream).unwrap().len() >> 20,
        bench.options.rounds
    );
    Section { part: "planner submit", about, rows }
}

/// Ids that only have to differ.
#[derive(Default)]
pub(crate) struct Counted(u64);

impl IdSource for Counted {
    fn random(&mut self) -> [u8; 10] {
        self.0 += 1;
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&self.0.to_be_bytes());
        bytes
    }
}

/// Returns the processor seconds of writing derivations down and making builds of them.
fn without_ssh(file: &Path, shape: &Shape) -> f64 {
    let clock = Clock::start();
    let at = clock.now().wall;
    let mut records: Vec<Arc<DerivationRecord>> = Vec::with_capacity(shape.count());
    Maker::default().make_all(shape, |_, made| records.push(Arc::new(made.record(at))));
    let roots = records.iter().map(|record| record.path.clone()).collect();
    let before = cpu_of_this_thread();
    let store = Store::open(file).unwrap();
    let now = clock.now();
    let mut truth = Truth::restore(store, Settings::default(), now).unwrap();
    let mut ids = Counted::default();
    for slice in records.chunks(SLICE) {
        let changes = slice.iter().map(|record| Change::Derivation(Arc::clone(record))).collect();
        let input = Input::Record { token: None, changes };
        let step = truth.decide(clock.now(), &mut ids, vec![input]);
        drop(truth.keep(step).unwrap());
    }
    let request =
        SubmitRequest { inputs: Inputs::Build, ..SubmitRequest::new(name("operator"), roots) };
    let input = truth.submission(request, Token(1)).unwrap().unwrap();
    let step = truth.decide(clock.now(), &mut ids, vec![input]);
    assert!(step.changes.len() >= shape.count(), "a build each");
    drop(truth.keep(step).unwrap());
    cpu_of_this_thread() - before
}

/// Returns the processor seconds of a coordinator that takes the stream.
fn with_ssh(bench: &Bench, stream: &Path) -> f64 {
    let farm = Farm::start(&bench.farm, &[]);
    submit(&farm, stream);
    cpu_of(farm.coordinator_pid()).own_s
}

/// Submits a stream through the stock client.
pub(crate) fn submit(farm: &Farm<'_>, stream: &Path) {
    let mut ssh = farm.ssh("submit --closure");
    ssh.stdin(fs_err::File::open(stream).unwrap().into_parts().0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(ssh.status().unwrap().success(), "submit");
}
