//! The published tree and the logs with the stock `sftp` and `scp`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/farm.rs"]
#[expect(dead_code, reason = "other tests run more verbs")]
mod farm;

use farm::{Answered, Farm, answer};
use std::{os::unix::fs::symlink, path::Path, process::Stdio};
use steading::{
    config::Config,
    ssh::{self, ClientConfig, Incoming, Role},
};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

const PEOPLE: [(Role, &str, &str); 2] = [(Role::Viewer, "vera", ""), (Role::Agent, "amber", "")];

/// A farm with a small published tree.
async fn farm() -> Option<Farm> {
    let farm = Farm::start(&Config::default(), &PEOPLE).await?;
    let public = farm.state_dir().join("public/nix-store");
    fs_err::create_dir_all(public.join("nar")).unwrap();
    fs_err::write(public.join("a.narinfo"), "StorePath: /nix/store/a\n").unwrap();
    // Longer than any window, so that a reader can get stuck in it.
    fs_err::write(public.join("nar/large.nar"), large()).unwrap();
    symlink(farm.state_dir().join("secrets"), public.join("secrets")).unwrap();
    let log = farm.state_dir().join("logs/ab");
    fs_err::create_dir_all(&log).unwrap();
    fs_err::write(log.join("01.log.zst"), "log").unwrap();
    Some(farm)
}

fn large() -> Vec<u8> {
    (0..3_u32 << 20).map(|number| number.to_le_bytes()[1]).collect()
}

/// Makes a stock client out of an `ssh` that gets in: the same options, another program.
fn client(farm: &Farm, name: &str, program: &str, words: &[String]) -> Command {
    let ssh = farm.ssh(name, &[], "");
    let mut options: Vec<String> =
        ssh.as_std().get_args().map(|word| word.to_str().unwrap().to_owned()).collect();
    // The destination and the empty line.
    options.truncate(options.len() - 2);
    let port = options.iter_mut().find(|word| *word == "-p").unwrap();
    "-P".clone_into(port);
    let mut client = Command::new(program);
    client
        .args(options)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    client
}

async fn batch(farm: &Farm, name: &str, lines: &str) -> Answered {
    let words = ["-b", "-", "whoever@127.0.0.1"].map(str::to_owned);
    answer(client(farm, name, "sftp", &words), lines.as_bytes()).await
}

fn read(path: &Path) -> Vec<u8> {
    fs_err::read(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_tree_is_mirrored_with_the_stock_client() {
    let Some(farm) = farm().await else { return };
    let target = tempfile::tempdir().unwrap();
    let to = target.path().display();
    let lines = format!("ls -l /public/nix-store\nget -r /public {to}\nget -r logs {to}\n");
    let answered = batch(&farm, "vera", &lines).await.expect(0);
    assert!(answered.text().contains("-r--r--r--"), "{}", answered.text());
    assert_eq!(read(&target.path().join("public/nix-store/nar/large.nar")), large());
    assert_eq!(read(&target.path().join("public/nix-store/a.narinfo")).len(), 24);
    assert_eq!(read(&target.path().join("logs/ab/01.log.zst")), b"log");
    assert!(!target.path().join("public/nix-store/secrets").exists());
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_is_copied_with_scp() {
    let Some(farm) = farm().await else { return };
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("copy");
    let from = "whoever@127.0.0.1:public/nix-store/nar/large.nar".to_owned();
    let words = ["-s".to_owned(), from, to.display().to_string()];
    answer(client(&farm, "vera", "scp", &words), &[]).await.expect(0);
    assert_eq!(read(&to), large());
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_can_be_read_and_nothing_written() {
    let Some(farm) = farm().await else { return };
    let target = tempfile::tempdir().unwrap();
    let to = target.path().display();
    let host_key = farm.state_dir().join("secrets/host_ed25519");
    for line in [
        format!("get {} {to}", host_key.display()),
        format!("get /public/../secrets/host_ed25519 {to}"),
        format!("get /public/nix-store/secrets/host_ed25519 {to}"),
        format!("put {} /public/nix-store/new", host_key.display()),
        "rm /public/nix-store/a.narinfo".to_owned(),
        "rename /public/nix-store/a.narinfo /public/nix-store/b".to_owned(),
        "mkdir /public/new".to_owned(),
        "chmod 777 /public/nix-store/a.narinfo".to_owned(),
        "ln -s /etc /public/nix-store/etc".to_owned(),
        "ls /secrets".to_owned(),
    ] {
        let answered = batch(&farm, "vera", &format!("{line}\n")).await;
        assert_ne!(answered.status, 0, "{line}: {}", answered.text());
    }
    assert_eq!(fs_err::read_dir(target.path()).unwrap().count(), 0);
    assert!(farm.state_dir().join("public/nix-store/a.narinfo").exists());
    // Agents are not people.
    assert_ne!(batch(&farm, "amber", "ls\n").await.status, 0);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_stuck_or_mad_costs_only_itself() {
    let Some(farm) = farm().await else { return };
    let host_key = fs_err::read_to_string(farm.state_dir().join("run/host_key.pub")).unwrap();
    let config = ClientConfig {
        address: farm.address.to_string(),
        host_keys: vec![host_key],
        identity: farm.key("vera"),
        user: "vera".to_owned(),
    };
    let connect = async || ssh::connect(&config, &CancellationToken::new()).await.unwrap();
    // Of its own, since our client reads nothing from a connection while one channel is behind.
    let connection = connect().await;
    // One that opens a large file, asks for all of it many times over, and reads nothing.
    let (_stuck, writer) = connection.subsystem("sftp").await.unwrap();
    let path = b"/public/nix-store/nar/large.nar";
    let mut packets = packet(1, &[&[0, 0, 0, 3]]);
    packets.extend(packet(3, &[&[0, 0, 0, 1, 0, 0, 0, 31], path, &[0, 0, 0, 1, 0, 0, 0, 0]]));
    for _ in 0..1_000 {
        let read: [&[u8]; 3] = [&[0, 0, 0, 2, 0, 0, 0, 4], &[0; 12], &[0, 2, 0, 0]];
        packets.extend(packet(5, &read));
    }
    writer.write(packets.into()).await.unwrap();
    // And three that are no clients at all.
    let others = connect().await;
    for bytes in [vec![0xff; 64], packet(5, &[&[0; 4]]), packet(1, &[&[0, 0, 0, 3]]).repeat(2)] {
        let (mut mad, writer) = others.subsystem("sftp").await.unwrap();
        writer.write(bytes.into()).await.unwrap();
        loop {
            match mad.next().await {
                Incoming::Exited(status) => assert_eq!(status, 1),
                Incoming::Eof | Incoming::Lost => break,
                Incoming::Data(_) | Incoming::Stderr(_) => {}
            }
        }
    }
    assert!(batch(&farm, "vera", "ls public\n").await.expect(0).text().contains("nix-store"));
    farm.run("vera", "status").await.expect(0);
    farm.stop().await;
}

fn packet(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let mut packet = u32::try_from(body.len() + 1).unwrap().to_be_bytes().to_vec();
    packet.push(kind);
    packet.extend(body);
    packet
}
