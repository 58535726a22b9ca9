//! A whole distribution, submitted in one go and built in order by agents that answer at once.

use super::{
    Bench,
    agents::{Left, Member, gather, names, one_slot, together},
    note, number,
    questions::Questions,
    state::{self, RECORDING},
    submit, timed,
};
use crate::{
    archive,
    transfers::{
        farm::Farm,
        graph::file_nar,
        measure::{cpu_of, memory_kib},
        report::{Bar, Peer, Row, Section},
    },
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufWriter, Write as _},
    path::Path,
    sync::{Arc, Mutex},
};
use steading::{
    core::{
        derivation::Derivation,
        store_path::{StoreDir, StorePath},
    },
    formats::export::{entry_begin, entry_trailer, stream_end},
};

/// What an agent must know of a derivation to say that it built it.
#[derive(Debug)]
struct Entry {
    inputs: Vec<StorePath>,
    outputs: Vec<(String, StorePath)>,
}

/// Derivations with all that they need, inputs first.
pub(crate) struct Distribution {
    entries: BTreeMap<StorePath, Entry>,
    systems: BTreeSet<String>,
    order: Vec<(StorePath, Vec<u8>)>,
}

/// What building a distribution came to.
#[derive(Debug)]
pub(crate) struct Run {
    /// How long the submission took, and the building, in seconds.
    submit_s: f64,
    build_s: f64,
    /// Processor seconds of the coordinator meanwhile.
    submit_cpu: f64,
    build_cpu: f64,
    /// Resident memory of the coordinator when empty, with everything queued, and at the end.
    resident_mib: [f64; 3],
    /// The length of the database at the end.
    database_mib: f64,
    /// How long questions took while all of it was submitted.
    questions: Vec<Row>,
}

/// Measures one run of everything.
pub(crate) fn measure(bench: &Bench) -> Section {
    let distribution = match Distribution::read(bench.options.distribution) {
        Ok(distribution) => distribution,
        Err(reason) => {
            let row = Row {
                what: "submit and build".to_owned(),
                unit: "s",
                ours: (f64::NAN, f64::NAN),
                peer: Peer::NotRun("a distribution".to_owned(), reason),
                bar: Bar::None,
            };
            let about = "A real distribution.".to_owned();
            return Section { part: "planner distribution", about, rows: vec![row] };
        }
    };
    let count = number(distribution.count());
    let about = about(bench, &distribution);
    let run = build_all(bench, &Arc::new(distribution));
    let same = |value| (value, value);
    let [empty, queued, done] = run.resident_mib;
    let mut rows = vec![
        note("`ssh submit --closure`", "s", same(run.submit_s)),
        note("`ssh submit --closure`, coordinator", "CPU s", same(run.submit_cpu)),
        note("all built", "s", same(run.build_s)),
        note("all built, coordinator", "CPU s", same(run.build_cpu)),
        note("given out and completed", "/s", same(count / run.build_s)),
        note("the coordinator, per build", "CPU µs", same(run.build_cpu / count * 1e6)),
        note("resident memory, empty", "MiB", same(empty)),
        note("resident memory, everything queued", "MiB", same(queued)),
        note("resident memory, everything built", "MiB", same(done)),
        note("the database in the end", "MiB", same(run.database_mib)),
    ];
    rows.extend(run.questions);
    Section { part: "planner distribution", about, rows }
}

fn about(bench: &Bench, distribution: &Distribution) -> String {
    format!(
        "{} derivations of a real distribution with {} edges, submitted in one stream and built by \
         {} agents on real connections that answer at once; outputs are recorded, strategy \
         `derivation-ordered`. Every build was given out exactly once, and never before its inputs. While it was \
         submitted, somebody asked questions in turn on another connection.",
        distribution.count(),
        distribution.edge_count(),
        bench.options.agents
    )
}

impl Distribution {
    /// Reads at most so many derivations, and with each all that it needs.
    pub(crate) fn read(count: usize) -> Result<Self, String> {
        let mut texts: BTreeMap<StorePath, (Vec<u8>, Entry, String)> = BTreeMap::new();
        for file in archive::read()? {
            let derivation = Derivation::parse(&file.bytes).unwrap();
            let path = format!("{}/{}", derivation.store_dir(), file.name).parse().unwrap();
            let inputs =
                derivation.input_derivations.iter().map(|(path, _)| path.clone()).collect();
            let outputs =
                derivation.outputs.iter().map(|out| (out.name.clone(), out.path.clone())).collect();
            let system = derivation.system.clone();
            let entry = Entry { inputs, outputs };
            texts.insert(path, (file.bytes, entry, system));
        }
        let (entries, systems) = (BTreeMap::new(), BTreeSet::new());
        let mut chosen = Self { entries, systems, order: Vec::new() };
        let all: Vec<StorePath> = texts.keys().cloned().collect();
        for path in all {
            if chosen.order.len() >= count {
                break;
            }
            chosen.add(path, &mut texts);
        }
        Ok(chosen)
    }

    /// Moves a derivation here, behind all that it needs.
    fn add(&mut self, path: StorePath, texts: &mut BTreeMap<StorePath, (Vec<u8>, Entry, String)>) {
        let mut pending = vec![path];
        while let Some(path) = pending.last() {
            let Some((_, entry, _)) = texts.get(path) else {
                pending.pop();
                continue;
            };
            let missing: Vec<StorePath> =
                entry.inputs.iter().filter(|input| texts.contains_key(*input)).cloned().collect();
            if missing.is_empty() {
                let (path, (text, entry, system)) = texts.remove_entry(path).unwrap();
                if system != "builtin" {
                    self.systems.insert(system);
                }
                self.entries.insert(path.clone(), entry);
                self.order.push((path, text));
                pending.pop();
            } else {
                pending.extend(missing);
            }
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.order.len()
    }

    fn edge_count(&self) -> usize {
        self.entries.values().map(|entry| entry.inputs.len()).sum()
    }

    fn store_dir(&self) -> StoreDir {
        self.order[0].0.dir().clone()
    }

    fn write(&self, to: &Path) {
        let mut to = BufWriter::new(fs_err::File::create(to).unwrap());
        for (path, text) in &self.order {
            to.write_all(&entry_begin()).unwrap();
            to.write_all(&file_nar(text)).unwrap();
            to.write_all(&entry_trailer(path, &[], None)).unwrap();
        }
        to.write_all(&stream_end()).unwrap();
        to.flush().unwrap();
    }
}

/// What agents were given, and what they have said of it.
#[derive(Debug, Default)]
struct Progress {
    given: BTreeSet<StorePath>,
    /// Outputs, not derivations: several of those make the same one, and any of them will do.
    made: BTreeSet<StorePath>,
}

impl Progress {
    /// Notes that a derivation was given to an agent, which builds it at once.
    fn give(&mut self, path: &StorePath, distribution: &Distribution) {
        let entry = &distribution.entries[path];
        assert!(self.given.insert(path.clone()), "{path} was given out twice");
        for input in &entry.inputs {
            for (_, output) in &distribution.entries[input].outputs {
                assert!(
                    self.made.contains(output),
                    "{path} was given out before {output} was there"
                );
            }
        }
        self.made.extend(entry.outputs.iter().map(|(_, output)| output.clone()));
    }
}

/// Builds everything once; panics when a build is given out twice, too early, or not at all.
pub(crate) fn build_all(bench: &Bench, distribution: &Arc<Distribution>) -> Run {
    let stream = bench.scratch().join("distribution");
    distribution.write(&stream);
    let names = names(bench.options.agents);
    let put = |dir: &Path| state::configure(dir, RECORDING);
    let farm = Farm::start_on(&bench.farm, &names, &put);
    let resident = || memory_kib(farm.coordinator_pid(), "status", "VmRSS") / 1_024.0;
    let cpu = || cpu_of(farm.coordinator_pid()).own_s;
    let mut questions = Questions::new(bench, &farm);
    let (empty, cpu_before) = (resident(), cpu());
    let ((), submit_s) = questions.while_busy(&farm, || timed(|| submit::submit(&farm, &stream)));
    let (submit_cpu, queued) = (cpu() - cpu_before, resident());
    let questions = questions.finish(&farm);
    let cpu_before = cpu();
    let hello = one_slot(&distribution.store_dir(), &distribution.systems);
    let progress = Arc::new(Mutex::new(Progress::default()));
    let left = Left::new(distribution.count());
    let life = |member| live(member, Arc::clone(distribution), Arc::clone(&progress), left.clone());
    let ((), build_s) = timed(|| {
        bench.farm.runtime.block_on(async {
            let members = gather(&farm, &names, &hello).await;
            together(members, life).await;
        });
    });
    let (build_cpu, done) = (cpu() - cpu_before, resident());
    let status = &farm.objects("status")[0];
    let open: u64 = status["builds"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    let given = progress.lock().unwrap().given.len();
    assert_eq!((open, given), (0, distribution.count()), "everything was built once");
    let database = farm.state_dir().join("steading.db");
    #[expect(clippy::cast_precision_loss, reason = "shown in MiB")]
    let database_mib = fs_err::metadata(database).unwrap().len() as f64 / f64::from(1 << 20);
    let resident_mib = [empty, queued, done];
    Run { submit_s, build_s, submit_cpu, build_cpu, resident_mib, database_mib, questions }
}

/// Takes builds and says at once that they are built, until all are.
async fn live(
    mut member: Member,
    distribution: Arc<Distribution>,
    progress: Arc<Mutex<Progress>>,
    left: Left,
) {
    while let Some(derivation) = left.take(&mut member).await {
        let entry = &distribution.entries[&derivation];
        progress.lock().unwrap().give(&derivation, &distribution);
        member.record(&entry.outputs).await;
        left.completed();
    }
}
