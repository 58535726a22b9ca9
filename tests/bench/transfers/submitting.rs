//! A submission through the stock `ssh`, against the same bytes into a sink.

use super::{
    Bench,
    farm::Farm,
    graph::{self, Member},
    measure::{Sample, Series, alternate, cpu_of, cpu_of_ended_children, timed},
    payload::{self, Kind},
    report::{Bar, Row, Section, compare},
    sshd::Sshd,
};
use std::{path::Path, process::Stdio};
use steading::core::{content::source_path, hash::Sha256};

/// Measures one submission with a large source, and one of many derivations.
pub(crate) fn measure(bench: &Bench) -> Section {
    let sshd = Sshd::start(&bench.scratch, None);
    let mut rows = Vec::new();
    let sized = format!("a source of {} MiB", bench.options.source_bytes >> 20);
    rows.extend(submission(bench, &sshd, &sized, |farm, _| with_source(bench, farm)));
    let many = format!("{} derivations", bench.options.count);
    rows.extend(submission(bench, &sshd, &many, |farm, round| {
        let dir = farm.store_dir();
        let member = |number: usize| {
            graph::derivation(&dir, &format!("many-{round}-{number}"), "false", &["out"], &[])
        };
        let members: Vec<Member> = (0..bench.options.count).map(member).collect();
        graph::export(&[], &members)
    }));
    let about = format!(
        "`ssh coordinator submit --closure < stream`, until the builds are durable and their ids \
         printed, against `ssh host 'cat > /dev/null' < stream`. The source is incompressible. {} \
         rounds.",
        bench.options.rounds
    );
    Section { part: "submit", about, rows }
}

fn submission(
    bench: &Bench,
    sshd: &Result<Sshd, String>,
    what: &str,
    stream: impl Fn(&Farm<'_>, usize) -> Vec<u8>,
) -> Vec<Row> {
    let farm = Farm::start(bench, &[]);
    let streams: Vec<_> = (0..bench.options.rounds)
        .map(|round| {
            let file = bench.scratch.join(format!("stream-{round}"));
            fs_err::write(&file, stream(&farm, round)).unwrap();
            file
        })
        .collect();
    let mut measured: Vec<super::measure::Measured<'_>> =
        vec![("ours", Box::new(|round: usize| ours(&farm, &streams[round])))];
    if let Ok(sshd) = sshd {
        let sink = |round: usize| {
            let mut ssh = sshd.ssh("cat > /dev/null");
            sshd.measure(ssh.stdin(fs_err::File::open(&streams[round]).unwrap().into_parts().0))
        };
        measured.push(("ssh cat", Box::new(sink)));
    }
    let series: Vec<Series> = alternate(bench.options.rounds, measured);
    for file in streams {
        fs_err::remove_file(file).unwrap();
    }
    let peer = sshd.as_ref().map_err(String::as_str).map(|_| &series[1]);
    compare(what, &series[0], "ssh cat", peer, (Bar::Faster(1.0), Bar::None))
}

fn ours(farm: &Farm<'_>, stream: &Path) -> Sample {
    let cpu = || cpu_of_ended_children() + cpu_of(farm.coordinator_pid()).own_s;
    let before = cpu();
    let mut ssh = farm.ssh("submit --closure");
    ssh.stdin(fs_err::File::open(stream).unwrap().into_parts().0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let (status, wall_s) = timed(|| ssh.status().unwrap());
    assert!(status.success(), "submit: {status}");
    Sample { wall_s, cpu_s: Some(cpu() - before) }
}

/// Returns a stream with a source that no other stream has, and a derivation that uses it.
fn with_source(bench: &Bench, farm: &Farm<'_>) -> Vec<u8> {
    let file = payload::write(&bench.scratch, Kind::Random, bench.options.source_bytes);
    let mut content = fs_err::read(&file).unwrap();
    fs_err::remove_file(file).unwrap();
    let now = jiff::Timestamp::now().as_nanosecond().to_string();
    content.extend_from_slice(now.as_bytes());
    let (nar, dir) = (graph::file_nar(&content), farm.store_dir());
    let path = source_path(&dir, "source", &Sha256::of(&nar), &[], false).unwrap();
    let name = format!("uses-{now}");
    let member = graph::derivation(&dir, &name, "false", &["out"], std::slice::from_ref(&path));
    graph::export(&[(path, nar)], &[member])
}
