//! How long answers take, alone and while something else goes on.

use super::{Bench, derivations, number, shape::Shape, submit, timed};
use crate::transfers::{
    farm::Farm,
    measure::percentile,
    report::{Bar, Peer, Row},
};
use std::{
    io::BufWriter,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// How many builds there are that questions are about.
const BUILDS: usize = 100;
/// How often each question is asked while nothing else goes on.
const ALONE: usize = 500;
/// The pause between two questions: people and scripts ask now and then, and do not flood.
const PAUSE: Duration = Duration::from_millis(5);
/// How many times as long as alone the slowest of a hundred answers may take.
const SHARE_MAX: f64 = 5.0;

/// Questions that are asked in turn on one connection.
pub(crate) struct Questions {
    verbs: Vec<(&'static str, String)>,
    builds: Vec<String>,
    /// How long each answer took, in seconds.
    alone: Vec<Vec<f64>>,
    busy: Vec<Vec<f64>>,
}

impl Questions {
    /// Submits something to ask about, which no agent takes, and asks when nothing else goes on.
    pub(crate) fn new(bench: &Bench, farm: &Farm<'_>) -> Self {
        let stream = bench.scratch().join("asked-about");
        let shape = Shape::new(BUILDS, 0);
        derivations::export(&shape, BufWriter::new(fs_err::File::create(&stream).unwrap()));
        submit::submit(farm, &stream);
        let id = |build: &serde_json::Value| build["build"].as_str().unwrap().to_owned();
        let builds: Vec<String> = farm.objects("builds").iter().map(id).collect();
        assert!(!builds.is_empty());
        let verbs = vec![
            ("status", "status".to_owned()),
            ("why", format!("why {}", builds[0])),
            ("builds", format!("builds --limit {BUILDS}")),
        ];
        let none = vec![Vec::new(); verbs.len()];
        let mut questions = Self { verbs, builds, alone: none.clone(), busy: none };
        for _ in 0..ALONE {
            let took = questions.ask(farm);
            push(&mut questions.alone, &took);
        }
        questions
    }

    /// Asks as long as something goes on, and returns what that gave.
    pub(crate) fn while_busy<T>(&mut self, farm: &Farm<'_>, work: impl FnOnce() -> T) -> T {
        let is_over = AtomicBool::new(false);
        let (result, answers) = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut answers = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    answers.push(self.ask(farm));
                    thread::sleep(PAUSE);
                }
                answers
            });
            let result = work();
            is_over.store(true, Ordering::Relaxed);
            (result, asking.join().unwrap())
        });
        for took in answers {
            push(&mut self.busy, &took);
        }
        result
    }

    /// Cancels what was asked about, and returns a line per question.
    pub(crate) fn finish(mut self, farm: &Farm<'_>) -> Vec<Row> {
        farm.objects(&format!("cancel {}", self.builds.join(" ")));
        let mut rows = Vec::new();
        for (place, (name, _)) in self.verbs.iter().enumerate() {
            let mut of = |share| {
                let ms = |took: &mut Vec<f64>| percentile(took, share) * 1e3;
                (ms(&mut self.busy[place]), ms(&mut self.alone[place]))
            };
            let ((p50, p50_alone), (p99, p99_alone)) = (of(0.5), of(0.99));
            let row = |what: &str, busy, alone, bar| Row {
                what: format!("`{name}` meanwhile, {what}"),
                unit: "ms",
                ours: (busy, busy),
                peer: Peer::Measured("alone".to_owned(), alone, alone),
                bar,
            };
            rows.push(row("p50", p50, p50_alone, Bar::None));
            rows.push(row("p99", p99, p99_alone, Bar::Share(SHARE_MAX)));
        }
        let asked: usize = self.busy.iter().map(Vec::len).sum();
        rows.push(super::note("questions meanwhile", "", (number(asked), number(asked))));
        rows
    }

    fn ask(&self, farm: &Farm<'_>) -> Vec<f64> {
        let one = |(_, verb): &(&str, String)| timed(|| farm.objects(verb)).1;
        self.verbs.iter().map(one).collect()
    }
}

fn push(to: &mut [Vec<f64>], took: &[f64]) {
    for (to, took) in to.iter_mut().zip(took) {
        to.push(*took);
    }
}
