//! Resident memory of a coordinator with a queue, against ninja with the same graph.

use super::{
    Bench, INPUTS_EACH, derivations, note, number, peer,
    peers::{ninja, version},
    shape::Shape,
    state, submit,
};
use crate::transfers::{
    farm::Farm,
    measure::memory_kib,
    report::{Bar, Row, Section},
};
use std::io::BufWriter;

/// How much of ninja's memory we may need.
const SHARE_MAX: f64 = 0.4;
const KIB_PER_MIB: f64 = 1_024.0;

/// Measures what the queue adds to the memory of an empty coordinator.
pub(crate) fn measure(bench: &Bench) -> Section {
    let shape = Shape::new(bench.options.nodes, INPUTS_EACH);
    let farm = Farm::start(&bench.farm, &[]);
    let resident =
        |farm: &Farm<'_>| memory_kib(farm.coordinator_pid(), "status", "VmRSS") / KIB_PER_MIB;
    let empty = resident(&farm);
    let stream = bench.scratch().join("stream");
    derivations::export(&shape, BufWriter::new(fs_err::File::create(&stream).unwrap()));
    submit::submit(&farm, &stream);
    let submitted = resident(&farm) - empty;
    drop(farm);
    let farm = Farm::start_on(&bench.farm, &[], &|dir| drop(state::write(dir, &shape, 0)));
    let started = resident(&farm) - empty;
    drop(farm);
    let loaded = ninja(bench.scratch(), &shape, &["-t", "targets", "all"]);
    let planned = ninja(bench.scratch(), &shape, &["-n", "-v"]);
    let row = |what: &str, ours: f64| Row {
        what: what.to_owned(),
        unit: "MiB",
        ours: (ours, ours),
        peer: peer(
            "ninja, loaded",
            loaded.clone().map(|kib| (kib / KIB_PER_MIB, kib / KIB_PER_MIB)),
        ),
        bar: Bar::Share(SHARE_MAX),
    };
    let mut rows = vec![
        row("the queue, after a start", started),
        row("the queue, after `ssh submit`", submitted),
        note("the coordinator when empty", "MiB", (empty, empty)),
    ];
    if let Ok(kib) = planned {
        let mib = kib / KIB_PER_MIB;
        rows.push(note("ninja with a plan made (-n)", "MiB", (mib, mib)));
    }
    let bytes = started * KIB_PER_MIB * 1_024.0 / number(shape.count());
    rows.push(note("per build, after a start", "B", (bytes, bytes)));
    let about = format!(
        "{} builds with {} edges: growth of the coordinator's resident memory. ninja: resident \
         memory with the same graph loaded, one file per derivation; ninja {}.",
        shape.count(),
        shape.edge_count(),
        version("ninja", "--version")
    );
    Section { part: "planner memory", about, rows }
}
