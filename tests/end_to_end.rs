//! The whole farm with real Nix daemons and the stock `ssh`: a coordinator without any Nix store,
//! two agents with a store of their own each, a machine that submits and one that substitutes.
//! Skipped, and said so, where there is no Nix daemon to start.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is a test; a failure names its place, and what was measured is printed"
)]

#[path = "common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/sftp.rs"]
mod sftp;
#[path = "common/wait.rs"]
mod wait;

use private_nix::PrivateNix;
use processes::{Farm, lines_of, until_some_build_is};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};
use steading::{core::store_path::StorePath, telemetry::Clock};

/// What is asked for, and how it must end.
const GRAPHS: [(&str, &str); 14] = [
    ("wide", "succeeded"),
    ("ticking", "succeeded"),
    ("chain", "succeeded"),
    ("diamond", "succeeded"),
    ("multi", "succeeded"),
    ("usesLib", "succeeded"),
    ("fixed", "succeeded"),
    ("selfReference", "succeeded"),
    ("manyFiles", "succeeded"),
    ("big", "succeeded"),
    ("archive", "succeeded"),
    ("usesArchive", "succeeded"),
    ("failing", "failed"),
    ("dependsOnFailing", "blocked"),
];
/// Real packages, built with the machine's compiler.
const PACKAGES: [(&str, &str); 3] =
    [("zlib", "succeeded"), ("gzrt", "succeeded"), ("hello", "succeeded")];
/// The tarballs that the packages are made of.
const TARBALLS: [&str; 3] =
    ["zlib_1.2.13.dfsg.orig.tar.bz2", "gzrt_0.8.orig.tar.gz", "hello_2.10.orig.tar.gz"];

/// One derivation that was asked for.
struct Asked {
    attribute: &'static str,
    derivation: StorePath,
    ends: &'static str,
    build: String,
}

#[test]
fn a_real_graph_is_built_by_two_agents_and_read_back_by_a_stock_nix() {
    let machine = || PrivateNix::start();
    let (home, amber, birch, reader) = match (machine(), machine(), machine(), machine()) {
        (Ok(home), Ok(amber), Ok(birch), Ok(reader)) => (home, amber, birch, reader),
        (Err(reason), ..) | (_, Err(reason), ..) | (_, _, Err(reason), _) | (.., Err(reason)) => {
            println!("skipped: the farm with real Nix daemons: {reason}");
            return;
        }
    };
    let clock = Clock::start();
    let mut farm = Farm::start();
    farm.start_nix_agent("amber", &amber.socket());
    farm.start_nix_agent("birch", &birch.socket());

    let gate = tempfile::tempdir_in("/tmp").unwrap();
    let gate = gate.path().join("gate");
    let mut asked = instantiate(&home, &gate);
    wait::until("both agents are connected", || {
        farm.objects("agents").iter().filter(|agent| agent["connected"] == true).count() == 2
    });
    // Many small builds first, which both agents share whatever else takes long.
    let (mut first, mut ids) = submit(&farm, &home, &asked[..1]);
    assert!(first.wait().unwrap().success(), "the first graph was built while somebody waited");
    let (mut submission, more) = submit(&farm, &home, &asked[1..]);
    ids.extend(more);
    for (asked, id) in asked.iter_mut().zip(&ids) {
        asked.build.clone_from(id);
    }
    a_log_is_readable_while_its_build_runs(&farm, &asked);
    until_some_build_is(&farm, "building");

    farm.kill_coordinator();
    assert!(!submission.wait().unwrap().success(), "nobody can wait for a dead coordinator");
    fs_err::write(&gate, "").unwrap();
    farm.restart_coordinator();

    let waited = farm.run(&format!("wait {}", ids.join(" ")));
    assert_eq!(waited.status.code(), Some(1), "{}", waited.stderr.escape_ascii());
    everything_ended_as_it_should(&farm, &asked);
    nothing_was_run_twice(&farm);
    let check = farm.run("check");
    assert!(check.status.success(), "{}", check.stdout.escape_ascii());
    a_stock_nix_substitutes_everything(&farm, &home, &reader, &asked);
    what_is_compressed_already_is_published_as_it_is(&farm, &asked);
    compare_the_upload_with_sftp(&farm, &asked);
    println!(
        "measured: {} ms from the first process to the last substitution, coordinator {} KiB",
        clock.now().mono.as_ms(),
        farm.coordinator_peak_kib()
    );
}

/// Returns where the tarballs of real packages are, if they could be had.
fn sources() -> Option<PathBuf> {
    let dir = std::env::var_os("STEADING_TEST_SOURCES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sources"),
        PathBuf::from,
    );
    TARBALLS.iter().all(|name| dir.join(name).exists()).then_some(dir)
}

/// Writes the derivations on the machine that submits.
fn instantiate(home: &PrivateNix, gate: &Path) -> Vec<Asked> {
    let mut graphs = GRAPHS.to_vec();
    let mut arguments = format!("gate = \"{}\";", gate.display());
    match sources() {
        Some(dir) => {
            // Only the tarballs, as one source of the derivations.
            let own = gate.with_file_name("sources");
            fs_err::create_dir(&own).unwrap();
            for name in TARBALLS {
                fs_err::copy(dir.join(name), own.join(name)).unwrap();
            }
            write!(arguments, " sources = {};", own.display()).unwrap();
            graphs.extend(PACKAGES);
        }
        None => println!(
            "skipped: real packages: no tarballs in target/sources; tests/run fetches them"
        ),
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/farm.nix");
    let text = fs_err::read_to_string(file).unwrap();
    let wanted: Vec<String> = graphs.iter().map(|(name, _)| format!("g.{name}")).collect();
    let expression = format!("let g = ({text}) {{ {arguments} }}; in [ {} ]", wanted.join(" "));
    let derivations = home.instantiate(&expression);
    assert_eq!(derivations.len(), graphs.len());
    let asked = |((attribute, ends), derivation)| Asked {
        attribute,
        derivation,
        ends,
        build: String::new(),
    };
    graphs.into_iter().zip(derivations).map(asked).collect()
}

/// Submits everything the way the README says, and returns the waiting process and the ids.
fn submit(farm: &Farm, home: &PrivateNix, asked: &[Asked]) -> (std::process::Child, Vec<String>) {
    const PIPELINE: &str = r#"
        drvs=$1; shift
        nix-store --export $(nix-store --query --requisites $drvs) |
            "$@" "submit --closure --wait --tag run=1 $drvs"
    "#;
    let drvs: Vec<String> = asked.iter().map(|asked| asked.derivation.to_string()).collect();
    let mut child = home
        .command("sh")
        .args(["-c", PIPELINE, "submit", &drvs.join(" ")])
        .args(farm.ssh_words())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines_of(child.stdout.take().unwrap());
    let ids: Vec<String> = lines.take(asked.len()).collect();
    assert_eq!(ids.len(), asked.len(), "submit printed an id for each derivation");
    (child, ids)
}

fn a_log_is_readable_while_its_build_runs(farm: &Farm, asked: &[Asked]) {
    let ticking = asked.iter().find(|asked| asked.attribute == "ticking").unwrap();
    let verb = format!("log -f {}", ticking.build);
    let mut child = farm.ssh(&verb).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = lines_of(child.stdout.take().unwrap());
    assert!(lines.any(|line| line == "tick 3"), "the log was not followed");
    let shown = &farm.objects(&format!("show {}", ticking.build))[0];
    assert_eq!(shown["state"], "building");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn everything_ended_as_it_should(farm: &Farm, asked: &[Asked]) {
    for asked in asked {
        let shown = &farm.objects(&format!("show {}", asked.build))[0];
        assert_eq!(shown["state"], asked.ends, "{}", asked.attribute);
    }
    let builds = farm.objects("builds --limit 10000 --where-tag run=1");
    assert!(builds.len() >= 100, "the graphs have more than a hundred derivations");
    let mut by_agent: BTreeMap<&str, usize> = BTreeMap::new();
    for build in &builds {
        let unusual = ["failed", "blocked"].map(Value::from);
        assert!(
            build["state"] == "succeeded" || unusual.contains(&build["state"]),
            "{build} did not end"
        );
        if build["state"] == "succeeded" {
            *by_agent.entry(build["agent"].as_str().unwrap()).or_default() += 1;
        }
    }
    // When the first graph was submitted, both had a free slot, and there was something for each.
    assert_eq!(by_agent.len(), 2, "{by_agent:?}");
    println!("measured: {} builds, by agent {by_agent:?}", builds.len());
}

/// Every success has one committed attempt, and no builder was started twice.
fn nothing_was_run_twice(farm: &Farm) {
    for build in farm.objects("builds --limit 10000 --where-tag run=1") {
        let shown = &farm.objects(&format!("show {}", build["build"].as_str().unwrap()))[0];
        let attempts = shown["attempts"].as_array().unwrap();
        let started = attempts.iter().filter(|attempt| !attempt["started_at"].is_null()).count();
        assert!(started <= 1, "started {started} times: {shown}");
        let committed = attempts.iter().filter(|attempt| attempt["end"] == "succeeded").count();
        assert_eq!(committed, usize::from(build["state"] == "succeeded"), "{shown}");
    }
}

fn a_stock_nix_substitutes_everything(
    farm: &Farm,
    home: &PrivateNix,
    reader: &PrivateNix,
    asked: &[Asked],
) {
    let outputs: BTreeSet<String> = asked
        .iter()
        .filter(|asked| asked.ends == "succeeded")
        .flat_map(|asked| home.derivation(&asked.derivation).outputs)
        .map(|output| output.path.to_string())
        .collect();
    let tree = farm.state().join("public/nix-store");
    let realise = |key: &str| {
        reader
            .command("nix-store")
            .args(["--realise", "--option", "require-sigs", "true"])
            .args(["--option", "substituters", &format!("file://{}", tree.display())])
            .args(["--option", "trusted-public-keys", key])
            .args(&outputs)
            .output()
            .unwrap()
    };
    let foreign = "other-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert!(!realise(foreign).status.success(), "unsigned for this key, and taken all the same");
    let output = realise(&farm.run_file("signing-nix.pub"));
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    if let Some(hello) = asked.iter().find(|asked| asked.attribute == "hello") {
        let path = &home.derivation(&hello.derivation).outputs[0].path;
        let said = reader.command(format!("{path}/bin/hello")).output().unwrap();
        assert_eq!(said.stdout, b"Hello, world!\n");
    }
}

/// The stock Nix has read these, too.
fn what_is_compressed_already_is_published_as_it_is(farm: &Farm, asked: &[Asked]) {
    for (attribute, compression, suffix) in
        [("archive", "none", ".nar"), ("usesArchive", "none", ".nar"), ("big", "zstd", ".nar.zst")]
    {
        let narinfo = narinfo_of(farm, asked, attribute);
        let field = |name: &str| narinfo.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(field("Compression: "), compression, "{attribute}");
        assert_eq!(field("URL: ").split_once('.').unwrap().1, &suffix[1..], "{attribute}");
        assert_eq!(field("FileHash: ") == field("NarHash: "), compression == "none");
    }
}

/// Returns the published narinfo of a graph's only output.
fn narinfo_of(farm: &Farm, asked: &[Asked], attribute: &str) -> String {
    let found = asked.iter().find(|asked| asked.attribute == attribute).unwrap();
    let shown = &farm.objects(&format!("show {}", found.build))[0];
    let path = shown["outputs"][0]["path"].as_str().unwrap();
    let hash_part = &path["/nix/store/".len()..][..32];
    let tree = farm.state().join("public/nix-store");
    fs_err::read_to_string(tree.join(format!("{hash_part}.narinfo"))).unwrap()
}

/// Prints how long the largest upload took, verified and committed, and how long `sftp put` takes
/// with the same file. Nothing is asserted: one pair of times on a busy machine proves nothing.
fn compare_the_upload_with_sftp(farm: &Farm, asked: &[Asked]) {
    let big = asked.iter().find(|asked| asked.attribute == "big").unwrap();
    let shown = &farm.objects(&format!("show {}", big.build))[0];
    let time = |field: &str| -> jiff::Timestamp {
        shown["attempts"][0][field].as_str().unwrap().parse().unwrap()
    };
    let upload_ms = time("ended_at").as_millisecond() - time("built_at").as_millisecond();
    let narinfo = narinfo_of(farm, asked, "big");
    let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let file = farm.state().join("public/nix-store").join(url);
    let bytes = file.metadata().unwrap().len();
    match sftp::put_ms(&file) {
        Some(sftp_ms) => println!(
            "measured: {bytes} bytes uploaded, verified and committed in {upload_ms} ms; \
             sftp put {sftp_ms} ms"
        ),
        None => println!("skipped: the comparison with sftp: no /usr/sbin/sshd"),
    }
}
