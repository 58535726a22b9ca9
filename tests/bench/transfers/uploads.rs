//! Outputs from an agent into the depot: verified, durable, committed.

use super::{
    Bench,
    farm::{Farm, seconds_between},
    graph::{self, Member},
    measure::{Measured, Sample, Series, alternate, cpu_of, mib},
    payload::{self, Kind},
    proxy,
    report::{Bar, Peer, Row, Section, compare},
    sshd::Sshd,
    stores::Stores,
};
use std::{cell::RefCell, net::SocketAddr, path::Path, time::Duration};

/// How far away the coordinator is in the second half of both parts.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// How many outputs one build of the small ones has: as many as one offer takes.
const OUTPUTS_PER_BUILD: usize = 250;

/// The bars of large nars: time, and no more processor time than without any verification.
const LARGE: (Bar, Bar) = (Bar::Faster(1.5), Bar::None);

/// Servers of others, as far as this machine has them.
struct Peers {
    sshd: Result<Sshd, String>,
    stores: Result<Stores, String>,
}

/// Measures one large nar of each kind.
pub(crate) fn large(bench: &Bench) -> Section {
    let mut rows = Vec::new();
    let peers = Peers { sshd: Sshd::start(&bench.scratch, None), stores: Stores::start(bench) };
    for kind in [Kind::Random, Kind::HalfCompressible] {
        let file = payload::write(&bench.scratch, kind, bench.options.bytes);
        rows.extend(large_file(bench, &peers, kind, &file));
        fs_err::remove_file(file).unwrap();
    }
    let about = format!(
        "One output of {} MiB. Ours: from the agent's report that it is built to its commit, \
         verified and durable; packing it (zstd) is part of the build. `sftp put` writes the \
         same bytes unpacked, and does not wait for the disk. {} rounds.",
        bench.options.bytes >> 20,
        bench.options.rounds
    );
    Section { part: "upload", about, rows }
}

fn large_file(bench: &Bench, peers: &Peers, kind: Kind, file: &Path) -> Vec<Row> {
    let mut farm = Farm::start(bench, &["amber".to_owned(), "birch".to_owned()]);
    let (near, rounds) = (farm.address(), bench.options.rounds);
    let pid = farm.start_agent("amber", near);
    // What the build leaves unwritten must not be written while its upload is committed.
    let file_name = file.display();
    let script = format!(r#"{{ echo "$name" && /bin/cat {file_name}; }} > "$out" && /bin/sync"#);
    let store_paths = peers.stores.as_ref().map(|stores| stores.add(&[file.to_owned()]));
    let mut measured: Vec<Measured<'_>> = vec![("ours", {
        let (farm, script) = (&farm, script.clone());
        Box::new(move |round| upload(farm, pid, &nar(farm, &format!("near-{round}"), &script)))
    })];
    if let Ok(sshd) = &peers.sshd {
        measured.push(("sftp put", Box::new(|_| sshd.put(file, sshd.address))));
    }
    if let (Ok(stores), Ok(paths)) = (&peers.stores, &store_paths) {
        measured.push(("nix copy", Box::new(|_| stores.copy(paths, stores.address()))));
        let scratch = &bench.scratch;
        let export = move |_| stores.export(scratch, paths, stores.address());
        measured.push(("export, import", Box::new(export)));
    }
    let near_series = Named::of(measured, rounds);
    let word = kind.word();
    let what = format!("{word}, {:.0} MiB", mib(file));
    let mut rows = near_series.rows(&what, peers, "sftp put", LARGE);
    rows.extend(near_series.rows(&what, peers, "nix copy", (Bar::Faster(1.5), Bar::None)));
    let information = (Bar::None, Bar::None);
    rows.extend(near_series.rows(&what, peers, "export, import", information));

    // The same from further away, by another agent, since one agent has one coordinator.
    let far = proxy::start(near, ROUND_TRIP);
    farm.stop_agents();
    let pid = farm.start_agent("birch", far);
    let mut measured: Vec<Measured<'_>> = vec![("ours, 20 ms", {
        let (farm, script) = (&farm, script);
        Box::new(move |round| upload(farm, pid, &nar(farm, &format!("far-{round}"), &script)))
    })];
    if let Ok(sshd) = &peers.sshd {
        let far = proxy::start(sshd.address, ROUND_TRIP);
        measured.push(("sftp put, 20 ms", Box::new(move |_| sshd.put(file, far))));
    }
    if let (Ok(stores), Ok(paths)) = (&peers.stores, &store_paths) {
        let far = proxy::start(stores.address(), ROUND_TRIP);
        measured.push(("nix copy, 20 ms", Box::new(move |_| stores.copy(paths, far))));
    }
    let far_series = Named::of(measured, rounds);
    let what = format!("{what}, 20 ms");
    rows.extend(far_series.rows(&what, peers, "sftp put, 20 ms", (Bar::Faster(2.0), Bar::None)));
    rows.extend(far_series.rows(&what, peers, "nix copy, 20 ms", information));
    rows
}

/// Measures many small outputs.
pub(crate) fn small(bench: &Bench) -> Section {
    let count = bench.options.count;
    let mut rows = Vec::new();
    let stores = Stores::start(bench);
    let peers = Peers { sshd: Err("not a peer here".to_owned()), stores };
    let files = (0..count).map(|number| {
        let file = bench.scratch.join(format!("small-{number}"));
        fs_err::write(&file, small_content(number)).unwrap();
        file
    });
    let files: Vec<_> = files.collect();
    let paths = peers.stores.as_ref().map(|stores| stores.add(&files));
    for (place, delay) in [("", None), (", 20 ms", Some(ROUND_TRIP))] {
        let route = |address: SocketAddr| match delay {
            Some(delay) => proxy::start(address, delay),
            None => address,
        };
        // Of each kind, until everything is published: measured behind the delivery.
        let published = [RefCell::new(Series::default()), RefCell::new(Series::default())];
        let note = |(committed, visible): (Sample, Sample), series: &RefCell<Series>| {
            series.borrow_mut().push(visible);
            committed
        };
        let mut measured: Vec<Measured<'_>> = vec![
            ("ours", Box::new(|_| note(small_builds(bench, count, route), &published[0]))),
            (
                "one per build",
                Box::new(|_| note(super::singles::deliver(bench, count, route), &published[1])),
            ),
        ];
        if let (Ok(stores), Ok(paths)) = (&peers.stores, &paths) {
            let address = route(stores.address());
            let scratch = &bench.scratch;
            let export = move |_| stores.export(scratch, paths, address);
            measured.push(("export, import", Box::new(export)));
        }
        let series = Named::of(measured, bench.options.rounds);
        let bars = (Bar::Faster(5.0), Bar::None);
        let what = format!("{count} outputs in builds of {OUTPUTS_PER_BUILD}{place}");
        let until = |what: &str, series: &RefCell<Series>| {
            let (what, bars) = (format!("{what}, until published"), (Bar::None, Bar::None));
            let rows = compare(&what, &series.borrow(), "", Err(""), bars);
            rows.into_iter().map(|row| Row { peer: Peer::Nothing, ..row })
        };
        rows.extend(series.rows(&what, &peers, "export, import", bars));
        rows.extend(until(&what, &published[0]));
        let what = format!("{count} outputs, one per build{place}");
        rows.extend(series.rows_of("one per build", &what, &peers, "export, import", bars));
        rows.extend(until(&what, &published[1]));
    }
    for file in files {
        fs_err::remove_file(file).unwrap();
    }
    let about = format!(
        "{count} outputs of a few hundred bytes. Builds of {OUTPUTS_PER_BUILD}: an agent process \
         that has built all of them while there was no coordinator; from its first report to the \
         last commit. One per build: clients in the harness, one per 512 builds, that offer each \
         output by itself, each on one connection, as agents do; the processor time is that of the \
         harness. Until published: until the last signed narinfo is visible too, from the same \
         beginning; importing publishes nothing. {} rounds.",
        bench.options.rounds
    );
    Section { part: "small", about, rows }
}

/// Returns a few hundred bytes that no other output has.
pub(crate) fn small_content(number: usize) -> String {
    format!("output {number}\n{}", "some text that outputs have in common\n".repeat(8))
}

/// Builds with many outputs, delivered by an agent process; and until all are published.
fn small_builds(
    bench: &Bench,
    count: usize,
    route: impl Fn(SocketAddr) -> SocketAddr,
) -> (Sample, Sample) {
    const SCRIPT: &str = r#"
        for output in $outputs; do
            eval "path=\$$output"
            for line in 1 2 3 4 5 6 7 8; do echo "$name $output some text in common"; done > "$path"
        done
    "#;
    let mut farm = Farm::start(bench, &["amber".to_owned()]);
    let builds = count.div_ceil(OUTPUTS_PER_BUILD);
    let pid = farm.start_agent_with("amber", route(farm.address()), builds);
    let (dir, gate) = (farm.store_dir(), farm.gate());
    let script = format!("while ! [ -e {} ]; do /bin/sleep 0.1; done\n{SCRIPT}", gate.display());
    let member = |number: usize| {
        let length = OUTPUTS_PER_BUILD.min(count - number * OUTPUTS_PER_BUILD);
        let names: Vec<String> = (0..length).map(|output| format!("o{output}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        graph::derivation(&dir, &format!("small-{number}"), &script, &names, &[])
    };
    let members: Vec<Member> = (0..builds).map(member).collect();
    let builds = farm.submit(&members);
    farm.until_spooled("amber", "started", builds.len());
    farm.kill_coordinator();
    fs_err::write(gate, "").unwrap();
    farm.until_spooled("amber", "result", builds.len());
    rustix::fs::sync();
    let before = cpu_of(pid).own_s;
    farm.restart_coordinator();
    let (wall_s, first) = farm.delivery(&builds);
    let committed = Sample { wall_s, cpu_s: Some(farm.cpu_with(pid) - before) };
    farm.until_published(count);
    let wall_s = seconds_between(first, jiff::Timestamp::now());
    (committed, Sample { wall_s, cpu_s: Some(farm.cpu_with(pid) - before) })
}

fn nar(farm: &Farm<'_>, name: &str, script: &str) -> Member {
    graph::derivation(&farm.store_dir(), name, script, &["out"], &[])
}

/// Has one build made and delivered by the farm's agent.
fn upload(farm: &Farm<'_>, agent: u32, member: &Member) -> Sample {
    let before = farm.cpu_with(agent);
    let builds = farm.submit(std::slice::from_ref(member));
    let wall_s = farm.upload_seconds(&builds[0]);
    Sample { wall_s, cpu_s: Some(farm.cpu_with(agent) - before) }
}

/// Series by name; the first one is ours.
struct Named(Vec<(String, Series)>);

impl Named {
    fn of(measured: Vec<Measured<'_>>, rounds: usize) -> Self {
        let names: Vec<String> = measured.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self(names.into_iter().zip(alternate(rounds, measured)).collect())
    }

    fn get(&self, name: &str) -> Option<&Series> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, series)| series)
    }

    fn rows(&self, what: &str, peers: &Peers, peer: &str, bars: (Bar, Bar)) -> Vec<Row> {
        self.rows_of(&self.0[0].0, what, peers, peer, bars)
    }

    fn rows_of(
        &self,
        ours: &str,
        what: &str,
        peers: &Peers,
        peer: &str,
        bars: (Bar, Bar),
    ) -> Vec<Row> {
        let absent = if peer.starts_with("sftp") {
            peers.sshd.as_ref().err()
        } else {
            peers.stores.as_ref().err()
        };
        let found = match self.get(peer) {
            Some(series) => Ok(series),
            None => Err(absent.map_or("not measured", String::as_str)),
        };
        compare(what, self.get(ours).unwrap(), peer, found, bars)
    }
}
