//! From `kill -9` to the first build that an agent is given, against a scan of the same tables.

use super::{
    Bench, INPUTS_EACH, agents, bare, cpu_of_this_thread, middle_and_least, note, peer,
    shape::Shape, state, timed,
};
use crate::transfers::{
    farm::Farm,
    measure::cpu_of,
    report::{Bar, Row, Section},
    say,
};

/// How many times as long as the scan a start may take.
const SHARE_MAX: f64 = 3.0;

/// Measures kills with all builds open.
pub(crate) fn measure(bench: &Bench) -> Section {
    let shape = Shape::new(bench.options.open, INPUTS_EACH);
    let runtime = &bench.farm.runtime;
    let put = |dir: &std::path::Path| drop(state::write(dir, &shape, 0));
    let mut farm = Farm::start_on(&bench.farm, &["amber".to_owned()], &put);
    let config = farm.client("amber", farm.address());
    let mut agent = runtime.block_on(agents::join(&config));
    runtime.block_on(agent.allocation());
    let file = farm.state_dir().join("steading.db");
    let [mut ours, mut ours_cpu, mut raw, mut raw_cpu] = [const { Vec::new() }; 4];
    for _ in 0..bench.options.rounds {
        let before = cpu_of_this_thread();
        let (values, seconds) = timed(|| bare::scan(&file));
        assert!(values > shape.count(), "the scan saw all builds");
        raw.push(seconds);
        raw_cpu.push(cpu_of_this_thread() - before);
        farm.kill_coordinator();
        drop(agent);
        let (returned, seconds) = timed(|| {
            let waiting = runtime.spawn({
                let config = config.clone();
                async move {
                    let mut agent = agents::join(&config).await;
                    agent.allocation().await;
                    agent
                }
            });
            farm.restart_coordinator();
            runtime.block_on(waiting).unwrap()
        });
        agent = returned;
        ours.push(seconds);
        ours_cpu.push(cpu_of(farm.coordinator_pid()).own_s);
        say(&format!("  start {seconds:.2} s, scan {:.2} s", raw.last().unwrap()));
    }
    let row = |what: &str, unit, ours: Vec<f64>, raw: Vec<f64>, bar| Row {
        what: what.to_owned(),
        unit,
        ours: middle_and_least(ours),
        peer: peer("raw scan", Ok(middle_and_least(raw))),
        bar,
    };
    #[expect(clippy::cast_precision_loss, reason = "shown in MiB")]
    let mib = fs_err::metadata(file).unwrap().len() as f64 / f64::from(1 << 20);
    let rows = vec![
        row(
            "`kill -9`, start, first build given",
            "s on the clock",
            ours,
            raw,
            Bar::Share(SHARE_MAX),
        ),
        row("the same, coordinator", "CPU s", ours_cpu, raw_cpu, Bar::None),
        note("the database", "MiB", (mib, mib)),
    ];
    let about = format!(
        "{} open builds with {} edges. Ours: from the start of the process until an agent that \
         tries to connect all the time has a build. The scan reads every column of every table but \
         the texts of derivations and the audit log, in this process. The file is in the system's \
         cache for both. {} rounds.",
        shape.count(),
        shape.edge_count(),
        bench.options.rounds
    );
    Section { part: "planner recovery", about, rows }
}
