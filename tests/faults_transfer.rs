//! Large uploads over connections that break: nothing is lost, little is sent twice.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have sources")]
mod closure;
#[path = "common/graphs.rs"]
#[expect(dead_code, reason = "other tests build whole graphs")]
mod graphs;
#[path = "common/processes.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod processes;
#[path = "common/proxy.rs"]
#[expect(dead_code, reason = "other tests count connections")]
mod proxy;
#[path = "common/published.rs"]
mod published;
#[path = "common/random.rs"]
#[expect(dead_code, reason = "other tests shuffle")]
mod random;
#[path = "common/scene.rs"]
#[expect(dead_code, reason = "other tests have two agents")]
mod scene;
#[path = "common/wait.rs"]
mod wait;
#[path = "common/witness.rs"]
#[expect(dead_code, reason = "other tests judge what builders say")]
mod witness;

use graphs::gated;
use processes::{Conditions, DirectAgent, Farm, feed, obstacle};
use proxy::{Rule, Way};
use published::Hashing;
use random::Random;
use scene::{AMBER, Scene};
use std::{env, io, path::Path};
use steading::{
    core::{hash::Sha256, store_path::StoreDir},
    formats::nar::{NarWriter, Regular},
    ssh::OWN_WINDOW_BYTES,
    telemetry::Clock,
};

/// How large the nar is unless `STEADING_FAULT_NAR_MIB` says otherwise.
const NAR_MIB: u64 = 256;
/// How often its upload is broken off.
const CUTS: usize = 20;
/// After how many bytes it is surely under way: all else that an agent says before is far less.
const BEGUN_BYTES: u64 = 1 << 20;
/// What a cut may cost at most: all that is on its way in one window, and what the coordinator
/// has received but not written, in queues of 8 MiB and a socket's buffer of 6 MiB.
const SENT_AGAIN_BYTES_MAX: u64 = OWN_WINDOW_BYTES as u64 + (14 << 20);
/// Bytes that are not of the nar: frames, packets, key exchanges and control messages.
const AROUND_PERCENT: u64 = 2;

/// How an upload is broken off.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Network,
    Agent,
    Coordinator,
}

#[test]
fn a_large_nar_survives_cuts_and_kills_and_arrives_bit_exact() {
    if let Some(reason) = obstacle() {
        println!("skipped: the upload that is broken off: {reason}");
        return;
    }
    let mib = env::var("STEADING_FAULT_NAR_MIB").map_or(NAR_MIB, |text| text.parse().unwrap());
    let bytes = mib << 20;
    let mut scene = Scene::start(Conditions::default());
    // It goes no further than it should before a cut, however late this test has its turn.
    scene.proxy.stall_after(Way::Up, BEGUN_BYTES);
    scene.open_gate(AMBER);
    // Noise, which cannot be compressed, so that it is as much on the wire.
    let body = format!("/usr/bin/head -c {bytes} /dev/urandom > $out\n");
    let (build, member) = scene.submit("large", &body);
    let clock = Clock::start();
    let mut random = Random::new(1);
    let cuts = [Cut::Network, Cut::Agent, Cut::Network, Cut::Coordinator].into_iter().cycle();
    scene.until_state(&build, "receiving");
    for cut in cuts.take(CUTS) {
        wait::until("the upload has come so far", || !scene.proxy.will_stall(Way::Up));
        break_off(&mut scene, cut);
        // The last cut comes when a quarter of the nar is through, or half of it at most.
        scene.proxy.stall_after(Way::Up, random.below(bytes / CUTS as u64 / 2));
        scene.proxy.rule(Way::Up, Rule::Pass);
    }
    wait::until("the upload has come so far", || !scene.proxy.will_stall(Way::Up));
    scene.proxy.rule(Way::Up, Rule::Pass);
    scene.until_state(&build, "succeeded");
    let elapsed_ms = clock.now().mono.as_ms();
    let passed = scene.proxy.passed(Way::Up);

    assert_eq!(scene.attempts(&build).len(), 1);
    wait::until("the nar is published", || {
        scene.farm.objects(&format!("show {build}"))[0]["outputs"][0]["url"].is_string()
    });
    let published = published::read(&scene.farm.state().join("public"), &scene.store_dir);
    let out = member.drv.out.to_string();
    assert_eq!(published[&out], nar_hash(&scene.output(AMBER, &member)));
    let again = passed.saturating_sub(bytes + bytes * AROUND_PERCENT / 100);
    println!(
        "measured: {mib} MiB with {CUTS} cuts in {elapsed_ms} ms, {} KiB sent again per cut",
        again / CUTS as u64 / 1024
    );
    assert!(again <= CUTS as u64 * SENT_AGAIN_BYTES_MAX, "{again} bytes were sent again");
    scene.until_nothing_kept(AMBER);
    scene.all_is_well();
}

/// Breaks an upload off while the network holds it up.
fn break_off(scene: &mut Scene, cut: Cut) {
    match cut {
        Cut::Network => scene.proxy.cut(),
        Cut::Agent => {
            scene.farm.kill_agent(AMBER);
            // What it had sent and nobody has received is gone with it.
            scene.proxy.cut();
            scene.farm.restart_agent(AMBER);
        }
        Cut::Coordinator => {
            scene.farm.kill_coordinator();
            scene.farm.restart_coordinator();
        }
    }
}

/// Returns the hash of the nar of a file that is not executable.
fn nar_hash(file: &Path) -> Sha256 {
    let mut content = fs_err::File::open(file).unwrap();
    let size = content.metadata().unwrap().len();
    let mut writer = NarWriter::new(Hashing::default());
    writer.begin().unwrap();
    writer.regular(Regular { executable: false, size }).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut content, &mut buffer).unwrap() {
            0 => return writer.finish().unwrap().0.finish(),
            count => writer.content(&buffer[..count]).unwrap(),
        }
    }
}

/// Agents, and uploads of each at a time.
const AGENTS: usize = 11;
const UPLOADS: u32 = 3;
/// The length of each output.
const OUTPUT_BYTES: usize = 8 << 20;
/// So that every upload meets several key exchanges on its connection.
const REKEY_BYTES: usize = 1 << 20;

#[test]
fn many_parallel_uploads_survive_frequent_key_exchanges() {
    if let Some(reason) = obstacle() {
        println!("skipped: uploads with many key exchanges: {reason}");
        return;
    }
    let mount = tempfile::tempdir_in("/tmp").unwrap();
    let store_dir: StoreDir = mount.path().to_str().unwrap().parse().unwrap();
    let mut farm = Farm::under(Conditions {
        environment: vec![
            ("STEADING_REKEY_BYTES", REKEY_BYTES.to_string()),
            ("STEADING_LOG", "steading=debug".to_owned()),
        ],
        ..Conditions::default()
    });
    let names: Vec<String> = (0..AGENTS).map(|number| format!("agent-{number}")).collect();
    for name in &names {
        farm.start_direct_agent(&DirectAgent {
            name,
            store_dir: &store_dir,
            slots: UPLOADS,
            uploads: UPLOADS,
            through: None,
        });
    }
    farm.until_connected(AGENTS);
    let count = AGENTS * usize::try_from(UPLOADS).unwrap();
    let body = format!("/usr/bin/head -c {OUTPUT_BYTES} /dev/urandom > $out\n");
    let members: Vec<_> = (0..count)
        .map(|number| gated(&store_dir, "noise", &format!(": {number}\n{body}")))
        .collect();
    let drvs: Vec<_> = members.iter().map(|member| &member.drv).collect();
    let output = feed(&farm.ssh_words(), "submit --closure", &closure::export(&drvs));
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    let ids = String::from_utf8(output.stdout).unwrap();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), count);
    wait::until("all builds run", || farm.objects("builds --state building").len() == count);
    let clock = Clock::start();
    for name in &names {
        fs_err::write(graphs::gate(&farm.files(name)), "").unwrap();
    }
    let waited = farm.run(&format!("wait {}", ids.join(" ")));
    assert!(waited.status.success(), "{}", waited.stderr.escape_ascii());
    let elapsed_ms = clock.now().mono.as_ms();
    for id in ids {
        let shown = &farm.objects(&format!("show {id}"))[0];
        assert_eq!(shown["attempts"].as_array().unwrap().len(), 1, "{shown}");
    }
    let logs = names.iter().map(|name| farm.dir().join(format!("{name}.log")));
    let log: String = logs.map(|log| fs_err::read_to_string(log).unwrap()).collect();
    let exchanges = log.matches("keys exchanged").count();
    println!("measured: {count} uploads with {exchanges} key exchanges in {elapsed_ms} ms");
    assert!(exchanges >= count * OUTPUT_BYTES / REKEY_BYTES / 2, "{exchanges} key exchanges");
    assert!(!log.contains("session lost"), "a key exchange cost a connection");
    let check = farm.run("check");
    assert!(check.status.success(), "{}", check.stdout.escape_ascii());
}
