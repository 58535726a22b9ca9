//! `steading stdio` behind a stock `sshd`: what people and agents reach through port 22.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have more derivations")]
mod closure;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "other tests go through the port")]
mod farm;
#[path = "common/sshd.rs"]
mod sshd;
#[path = "common/wait.rs"]
mod wait;

use closure::{drv, export};
use farm::{Answered, Farm, answer};
use sshd::Sshd;
use std::{os::unix::fs::PermissionsExt as _, process::Stdio};
use steading::{
    config::Config,
    protocol::CONTROL_SUBSYSTEM,
    ssh::{self, ClientConfig, Incoming, Role},
};
use tokio_util::sync::CancellationToken;

const STEADING: &str = env!("CARGO_BIN_EXE_steading");

const PEOPLE: [(Role, &str, &str); 4] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", "max-priority=20"),
    (Role::Agent, "amber", ""),
    (Role::Viewer, "both", ""),
];

/// A farm, and an sshd of this user in front of it.
struct Scene {
    farm: Farm,
    sshd: Sshd,
}

impl Scene {
    async fn start() -> Option<Self> {
        let farm = Farm::start(&Config::default(), &PEOPLE).await?;
        let sshd = Sshd::start()?;
        for name in ["vera", "sam", "amber", "nobody"] {
            let words = format!("--principal {name}");
            sshd.admit(name, &forced(&farm, &words));
        }
        sshd.admit("guest", &forced(&farm, "--principal guest --role viewer"));
        Some(Self { farm, sshd })
    }

    async fn run(&self, name: &str, line: &str) -> Answered {
        answer(self.sshd.ssh(name, &[], line), &[]).await
    }
}

fn forced(farm: &Farm, words: &str) -> String {
    format!("{STEADING} stdio --state {} {words}", farm.state_dir().display())
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_work_behind_the_hosts_own_sshd() {
    let Some(scene) = Scene::start().await else { return };
    let told = &scene.run("sam", "whoami --json").await.expect(0).objects()[0];
    assert_eq!((&told["name"], &told["role"]), (&"sam".into(), &"submitter".into()));
    assert_eq!(told["max_priority"], 20, "the limits of the keydir hold");
    let one = drv("one", "true", &[], &[]);
    let ssh = scene.sshd.ssh("sam", &[], "submit --closure --tag 'branch=a b'");
    let build = answer(ssh, &export(&[&one])).await.expect(0).text().trim().to_owned();
    let shown = &scene.run("vera", &format!("show {build} --json")).await.expect(0).objects()[0];
    assert_eq!(shown["submitter"], "sam");
    assert_eq!(shown["tags"]["branch"][0], "a b");
    // Exit statuses and both streams pass.
    let refused = scene.run("vera", &format!("cancel {build}")).await.expect(4);
    assert!(refused.err.contains("cancel needs operator"), "{}", refused.err);
    let wrong = scene.run("vera", "sumbit").await.expect(2);
    assert!(wrong.err.contains("did you mean ‘submit’") && wrong.out.is_empty());
    scene.run("vera", &format!("wait {build} --timeout 0")).await.expect(1);
    // No command at all, and a terminal.
    assert!(scene.run("vera", "").await.expect(0).text().contains("\nsubmit "));
    let told = answer(scene.sshd.ssh("vera", &["-tt"], "status"), &[]).await.expect(0);
    assert!(told.text().contains("agents"), "{}", told.text());
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_cannot_change_who_it_is() {
    let Some(scene) = Scene::start().await else { return };
    for line in [
        "whoami --principal ada",
        "stdio --principal sam whoami",
        "$(steading stdio --principal sam)",
        "`id` ; id",
    ] {
        scene.run("vera", line).await.expect(2);
    }
    let told = &scene.run("guest", "whoami --json").await.expect(0).objects()[0];
    assert_eq!((&told["name"], &told["role"]), (&"guest".into(), &"viewer".into()));
    let refused = scene.run("nobody", "whoami").await.expect(4);
    assert!(refused.err.contains("nobody is called nobody here"), "{}", refused.err);
    let socket = scene.farm.state_dir().join(ssh::local::SOCKET);
    let mode = fs_err::metadata(socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_tree_is_read_through_port_22_too() {
    let Some(scene) = Scene::start().await else { return };
    // The first packet of SFTP, and the answer to it.
    let hello = [0, 0, 0, 5, 1, 0, 0, 0, 3];
    let told = answer(scene.sshd.ssh("vera", &["-s"], "sftp"), &hello).await.expect(0);
    assert!(told.out.starts_with(&[0, 0, 0, 32, 2, 0, 0, 0, 3]), "{told:?}");
    answer(scene.sshd.ssh("amber", &["-s"], "sftp"), &hello).await.expect(2);
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_out_of_the_keydir_loses_its_sessions() {
    let Some(scene) = Scene::start().await else { return };
    let one = drv("one", "true", &[], &[]);
    let ssh = scene.sshd.ssh("sam", &[], "submit --closure");
    let build = answer(ssh, &export(&[&one])).await.expect(0).text().trim().to_owned();
    let mut waiting = scene.sshd.ssh("vera", &[], &format!("wait {build}"));
    let waiting = waiting.stdin(Stdio::null()).spawn().unwrap();
    let monitor = scene.farm.coordinator.monitor.clone();
    wait::until("somebody waits", || monitor.counters().sessions == 1);
    fs_err::remove_file(scene.farm.state_dir().join("keys/viewers/vera.pub")).unwrap();
    let ended = waiting.wait_with_output().await.unwrap();
    assert_ne!(ended.status.code(), Some(0));
    scene.run("vera", "whoami").await.expect(4);
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_no_session() {
    let Some(scene) = Scene::start().await else { return };
    let one = drv("one", "true", &[], &[]);
    let ssh = scene.sshd.ssh("sam", &[], "submit --closure");
    let build = answer(ssh, &export(&[&one])).await.expect(0).text().trim().to_owned();
    let mut waiting = scene.sshd.ssh("vera", &[], &format!("wait {build}")).spawn().unwrap();
    let monitor = scene.farm.coordinator.monitor.clone();
    wait::until("somebody waits", || monitor.counters().sessions == 1);
    waiting.kill().await.unwrap();
    wait::until("nobody waits", || monitor.counters().sessions == 0);
    scene.farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_reach_the_coordinator_through_port_22_too() {
    let Some(scene) = Scene::start().await else { return };
    let config = ClientConfig {
        address: scene.sshd.address(),
        host_keys: vec![scene.sshd.host_key()],
        identity: scene.sshd.key("amber"),
        user: scene.sshd.user(),
    };
    let connection = ssh::connect(&config, &CancellationToken::new()).await.unwrap();
    let (mut reader, writer) = connection.subsystem(CONTROL_SUBSYSTEM).await.unwrap();
    // No frame of the protocol begins so; the coordinator says what is wrong, in a frame, or ends.
    writer.write(vec![0, 0, 0, 1, 0xc1].into()).await.unwrap();
    let deadline = farm::COMMAND_MAX;
    let answered = tokio::time::timeout(deadline, reader.next()).await.unwrap();
    assert!(!matches!(answered, Incoming::Exited(_) | Incoming::Stderr(_)), "{answered:?}");
    let dropped = scene.farm.coordinator.monitor.counters();
    assert_eq!(dropped.connections, 0, "nobody came through the port");
    scene.farm.stop().await;
}
