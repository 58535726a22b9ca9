//! Who is let in: enrollment, tokens, certificates, revocation and the audit, with the stock `ssh`
//! and `ssh-keygen` against a coordinator in this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/farm.rs"]
mod farm;
#[path = "common/wait.rs"]
mod wait;

use closure::{drv, export};
use farm::{Answered, Farm, answer};
use serde_json::Value;
use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command as Program};
use steading::{
    config::Config,
    ssh::{ClientConfig, ConnectError, Incoming, KeyPair, Role, connect, host_key},
};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

const PEOPLE: [(Role, &str, &str); 4] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", "max-open-builds=2,max-submissions-per-hour=6"),
    (Role::Operator, "olga", ""),
    (Role::Admin, "ada", ""),
];

async fn farm() -> Option<Farm> {
    Farm::start(&Config::default(), &PEOPLE).await
}

/// Makes a key that the keydir does not know, beside those of the people whom it knows.
fn stranger(farm: &Farm, name: &str) -> KeyPair {
    host_key::load_or_create(&key_file(farm, name)).unwrap()
}

fn key_file(farm: &Farm, name: &str) -> PathBuf {
    farm.state_dir().parent().unwrap().join("clients").join(name)
}

/// Runs a line with somebody's key, as the SSH user for unknown keys.
async fn enroll(farm: &Farm, name: &str, line: &str) -> Answered {
    answer(farm.ssh(name, &["-l", "enroll"], line), &[]).await
}

/// Runs a line as admin and returns the objects of its answer.
async fn objects(farm: &Farm, line: &str) -> Vec<Value> {
    farm.run("ada", &format!("{line} --json")).await.expect(0).objects()
}

/// Returns what the audit has: who, line and result.
async fn audit(farm: &Farm) -> Vec<(String, String, String)> {
    let rows = objects(farm, "audit --limit 10000").await;
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| (text(row, "principal"), text(row, "line"), text(row, "result")))
        .collect()
}

/// Waits until somebody is let in, or is not any more.
fn until_known(farm: &Farm, name: &str, known: bool) {
    let config = client(farm, name);
    wait::until(&format!("{name} is known: {known}"), || {
        let (config, cancel) = (config.clone(), CancellationToken::new());
        let runtime = tokio::runtime::Handle::current();
        let connected = std::thread::scope(|scope| {
            scope.spawn(|| runtime.block_on(connect(&config, &cancel)).is_ok()).join().unwrap()
        });
        connected == known
    });
}

fn client(farm: &Farm, name: &str) -> ClientConfig {
    let host_key = fs_err::read_to_string(farm.state_dir().join("run/host_key.pub")).unwrap();
    ClientConfig {
        address: farm.address.to_string(),
        host_keys: vec![host_key],
        identity: farm.key(name),
        user: "whoever".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_asks_waits_and_is_let_in() {
    let Some(farm) = farm().await else { return };
    let print = stranger(&farm, "amber").fingerprint();
    // Only under the one user name, and only to do that.
    assert_eq!(farm.run("amber", "whoami").await.status, 255);
    for line in ["whoami", "help", "version", "builds", "submit -", "keys list", "audit"] {
        let told = enroll(&farm, "amber", line).await.expect(4);
        assert!(told.err.contains("your key is not known here"), "{line}: {}", told.err);
    }
    let subsystem = answer(farm.ssh("amber", &["-l", "enroll", "-s"], "steading-control"), &[]);
    subsystem.await.expect(2);

    let told = enroll(&farm, "amber", "enroll --name amber").await.expect(1);
    assert_eq!(told.text(), format!("{print} waits for an admin\n"));
    let line = format!("keys approve {print} agent amber");
    assert!(told.err.contains(&line), "{}", told.err);
    let told = enroll(&farm, "amber", "enroll --name amber --json").await.expect(1);
    assert_eq!(told.objects()[0]["state"], "pending");
    let listed = objects(&farm, "keys list").await;
    let pending: Vec<&Value> = listed.iter().filter(|one| one["state"] == "pending").collect();
    assert_eq!(pending.len(), 1, "{listed:?}");
    assert_eq!(
        (&pending[0]["name"], &pending[0]["address"]),
        (&"amber".into(), &"127.0.0.1".into())
    );

    for who in ["vera", "sam", "olga"] {
        farm.run(who, &line).await.expect(4);
    }
    farm.run("ada", "keys approve SHA256:x agent amber").await.expect(2);
    farm.run("ada", &format!("keys approve {print} agents amber")).await.expect(2);
    farm.run("ada", &format!("keys approve {print} agent hooks")).await.expect(5);
    let taken = farm.run("ada", &format!("keys approve {print} agent sam")).await.expect(5);
    assert!(taken.err.contains("the name sam is taken"), "{}", taken.err);
    farm.run("ada", &line).await.expect(0);
    until_known(&farm, "amber", true);
    assert_eq!(farm.run("amber", "whoami --json").await.expect(0).objects()[0]["role"], "agent");
    let file = farm.state_dir().join("keys/agents/amber.pub");
    assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs_err::read_to_string(&file).unwrap().trim(), farm.key("amber").public_line());
    // Asking again does no harm, and there is nothing left to approve.
    assert_eq!(
        enroll(&farm, "amber", "enroll").await.expect(0).text(),
        format!("{print} is agent amber\n")
    );
    farm.run("ada", &line).await.expect(3);
    assert!(objects(&farm, "keys list").await.iter().all(|one| one["state"] == "listed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_of_the_same_principal_is_said_to_be_one() {
    let Some(farm) = farm().await else { return };
    let print = stranger(&farm, "laptop").fingerprint();
    let is_told = async || {
        let status = farm.run("ada", "status --json").await.expect(0).objects();
        status[0]["problems"].to_string().contains("1 key waits to be let in")
    };
    assert!(!is_told().await);
    enroll(&farm, "laptop", "enroll --name sam").await.expect(1);
    assert!(is_told().await, "status names keys that wait");
    let metrics = farm.run("ada", "metrics").await.expect(0);
    assert!(metrics.lines().contains(&"steading_pending_keys 1"), "{}", metrics.text());
    farm.run("ada", &format!("keys approve {print} submitter sam")).await.expect(5);
    farm.run("ada", &format!("keys approve {print} operator sam --also")).await.expect(5);
    farm.run("ada", &format!("keys approve {print} submitter sam --also")).await.expect(0);
    until_known(&farm, "laptop", true);
    assert!(!is_told().await);
    assert_eq!(farm.run("laptop", "whoami --json").await.expect(0).objects()[0]["name"], "sam");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_keys_that_wait_is_bounded_per_address() {
    let Some(farm) = farm().await else { return };
    let most = steading::coordinator::enrollment::PENDING_PER_ADDRESS_MAX;
    for number in 0..most {
        stranger(&farm, &format!("key{number}"));
        enroll(&farm, &format!("key{number}"), "enroll").await.expect(1);
    }
    stranger(&farm, "late");
    let told = enroll(&farm, "late", "enroll").await.expect(75);
    assert!(told.err.contains("too many keys wait"), "{}", told.err);
    // Who waits already may ask again, and a decision makes room.
    enroll(&farm, "key0", "enroll --name a").await.expect(1);
    let print = farm.key("key0").fingerprint();
    farm.run("ada", &format!("keys revoke {print}")).await.expect(0);
    enroll(&farm, "late", "enroll").await.expect(1);
    // What was turned down does not wait again.
    let told = enroll(&farm, "key0", "enroll").await.expect(5);
    assert!(told.err.contains("revoked"), "{}", told.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_as_many_keys_as_it_is_for() {
    let Some(farm) = farm().await else { return };
    for name in ["amber", "birch", "cedar"] {
        stranger(&farm, name);
    }
    for line in ["keys token new", "keys token list", "keys list"] {
        farm.run("olga", line).await.expect(4);
    }
    farm.run("ada", "keys token new --role admin").await.expect(5);
    farm.run("ada", "keys token new --uses 0").await.expect(2);
    farm.run("ada", "keys token new --expires 400d").await.expect(5);
    let token = objects(&farm, "keys token new --uses 2 --expires 1h").await.remove(0);
    let (id, text) = (token["id"].as_str().unwrap(), token["token"].as_str().unwrap());

    let told = enroll(&farm, "amber", &format!("enroll --token {text} --name sam")).await;
    assert!(told.expect(5).err.contains("taken"));
    enroll(&farm, "amber", &format!("enroll --token {text} --name amber")).await.expect(0);
    until_known(&farm, "amber", true);
    enroll(&farm, "birch", &format!("enroll --token {text}")).await.expect(0);
    let told = enroll(&farm, "cedar", &format!("enroll --token {text} --name cedar")).await;
    assert!(told.expect(4).err.contains("used-up"));
    until_known(&farm, "cedar", false);
    let listed = objects(&farm, "keys token list").await;
    assert_eq!((&listed[0]["state"], &listed[0]["uses"]), (&"used-up".into(), &2.into()));
    assert_eq!(listed[0]["used"].as_array().unwrap().len(), 2);

    // What is taken away stays away, whatever the token is worth.
    let wide = objects(&farm, "keys token new --uses 9").await.remove(0);
    let wide = wide["token"].as_str().unwrap();
    enroll(&farm, "cedar", &format!("enroll --token {wide} --name cedar")).await.expect(0);
    until_known(&farm, "cedar", true);
    let print = farm.key("cedar").fingerprint();
    farm.run("ada", &format!("keys revoke {print}")).await.expect(0);
    until_known(&farm, "cedar", false);
    enroll(&farm, "cedar", &format!("enroll --token {wide} --name cedar")).await.expect(4);

    farm.run("ada", "keys token revoke nosuch").await.expect(3);
    let other = objects(&farm, "keys token new --role viewer").await.remove(0);
    farm.run("ada", &format!("keys token revoke {}", other["id"].as_str().unwrap()))
        .await
        .expect(0);
    stranger(&farm, "dogwood");
    let line = format!("enroll --token {}", other["token"].as_str().unwrap());
    assert!(enroll(&farm, "dogwood", &line).await.expect(4).err.contains("revoked"));

    // Neither the database nor the audit has a secret in it.
    let secret = text.rsplit('-').next().unwrap();
    assert_eq!(secret.len(), 25);
    for name in ["steading.db", "steading.db-wal"] {
        let bytes = fs_err::read(farm.state_dir().join(name)).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{name}");
    }
    let noted = audit(&farm).await;
    let masked = format!("enroll --token steading-token-{id}-… --name amber");
    assert!(noted.contains(&("stranger".to_owned(), masked, "done".to_owned())), "{noted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_tokens_is_slowed_down() {
    let Some(farm) = farm().await else { return };
    stranger(&farm, "amber");
    let token = objects(&farm, "keys token new").await.remove(0);
    let text = token["token"].as_str().unwrap();
    let wrong = format!("{}{}", &text[..text.len() - 1], "0");
    let mut statuses = Vec::new();
    for _ in 0..14 {
        statuses.push(enroll(&farm, "amber", &format!("enroll --token {wrong}")).await.status);
    }
    assert_eq!(statuses[0], 4, "{statuses:?}");
    assert!(
        statuses.contains(&75) && statuses.iter().all(|one| [4, 75].contains(one)),
        "{statuses:?}"
    );
    assert_eq!(objects(&farm, "keys token list").await[0]["state"], "usable");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_keys_that_wait_outlast_a_restart() {
    let Some(farm) = farm().await else { return };
    stranger(&farm, "amber");
    enroll(&farm, "amber", "enroll --name amber").await.expect(1);
    let token = objects(&farm, "keys token new --uses 3").await.remove(0);
    stranger(&farm, "birch");
    let line = format!("enroll --token {} --name birch", token["token"].as_str().unwrap());
    enroll(&farm, "birch", &line).await.expect(0);
    let dir = farm.stop().await;
    let Some(farm) = Farm::start_in(dir, &Config::default(), &[]).await else { return };
    let listed = objects(&farm, "keys list").await;
    assert!(listed.iter().any(|one| one["state"] == "pending" && one["name"] == "amber"));
    let tokens = objects(&farm, "keys token list").await;
    assert_eq!(
        (&tokens[0]["state"], &tokens[0]["used"][0]["name"]),
        (&"usable".into(), &"birch".into())
    );
    enroll(&farm, "birch", &line).await.expect(0);
    assert_eq!(objects(&farm, "keys token list").await[0]["used"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_loses_its_sessions_in_the_middle_of_an_upload() {
    let Some(farm) = farm().await else { return };
    let mut uploading = farm.ssh("sam", &[], "submit --closure").spawn().unwrap();
    let mut stdin = uploading.stdin.take().unwrap();
    let stream = export(&[&drv("a", "echo", &[], &[])]);
    stdin.write_all(&stream[..stream.len() / 2]).await.unwrap();
    let sessions = || farm.coordinator.monitor.counters().sessions;
    wait::until("the upload has begun", || sessions() == 1);
    let print = farm.key("sam").fingerprint();
    let told = farm.run("ada", &format!("keys revoke {print} --json")).await.expect(0).objects();
    let place = told[0]["places"][0].as_str().unwrap();
    assert!(place.ends_with("keys/submitters/sam.pub:1"), "{place}");
    let ended = tokio::time::timeout(farm::COMMAND_MAX, uploading.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(255));
    assert_eq!(farm.run("sam", "whoami").await.status, 255);
    assert!(objects(&farm, "builds").await.is_empty());
    assert!(!farm.state_dir().join("keys/submitters/sam.pub").exists());
    farm.run("ada", &format!("keys revoke {print}")).await.expect(3);
    // Nobody locks themselves out.
    let own = farm.key("ada").fingerprint();
    farm.run("ada", &format!("keys revoke {own}")).await.expect(5);
    // The upload's line says that nobody waited for its end.
    wait::until("the end of the upload is noted", || {
        let rows = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(audit(&farm))
        });
        rows.iter().any(|(who, line, result)| {
            who == "sam" && line.starts_with("submit") && result == "unknown"
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_and_say_what_to_do() {
    let Some(farm) = farm().await else { return };
    let (base, top) = {
        let base = drv("base", "echo base > $out", &[], &[]);
        let top = drv("top", "echo top > $out", &[&base], &[]);
        (base, top)
    };
    let other = drv("other", "echo other > $out", &[], &[]);
    farm.feed("sam", "submit --closure", &export(&[&base, &top])).await.expect(0);
    let told = farm.feed("sam", "submit --closure", &export(&[&other])).await.expect(5);
    let words = "your key may have 2 open builds: there are 2, and this would make 1 more";
    assert!(told.err.contains(words), "{}", told.err);
    // Other people are not concerned.
    let submitted = farm.feed("olga", "submit --closure", &export(&[&other])).await.expect(0);
    farm.run("sam", &format!("cancel {}", submitted.text().trim())).await.expect(4);
    let own = farm.run("sam", "builds --json").await.expect(0).objects();
    let ids: Vec<&str> = own
        .iter()
        .filter(|one| one["submitter"] == "sam")
        .map(|one| one["build"].as_str().unwrap())
        .collect();
    farm.run("sam", &format!("cancel --force {}", ids.join(" "))).await.expect(0);
    farm.feed("sam", "submit --closure", &export(&[&other])).await.expect(0);
    let told = farm.run("sam", &format!("retry {}", ids.join(" "))).await.expect(5);
    assert!(
        told.err.contains("open builds") && told.err.contains("nothing is tried again"),
        "{}",
        told.err
    );
    // The tries count, whatever came of them.
    let mut last = 0;
    for _ in 0..6 {
        last = farm.feed("sam", "submit --closure", &export(&[&other])).await.status;
    }
    assert_eq!(last, 5);
    let told = farm.feed("sam", "submit --closure", &export(&[&other])).await.expect(5);
    assert!(told.err.contains("6 times in an hour"), "{}", told.err);
    let me = farm.run("sam", "whoami --json").await.expect(0).objects().remove(0);
    assert_eq!((&me["max_open_builds"], &me["max_submissions_per_hour"]), (&2.into(), &6.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_has_acts_with_their_ends_and_refusals() {
    let Some(farm) = farm().await else { return };
    farm.run("vera", "cancel --where-tag a=b").await.expect(4);
    farm.run("sam", "sumbit x").await.expect(2);
    farm.run("sam", "set --where-tag a=b --hold").await.expect(3);
    farm.feed("sam", "submit --closure", b"nonsense").await.expect(5);
    let drv = drv("a", "echo", &[], &[]);
    let id = farm.feed("sam", "submit --closure", &export(&[&drv])).await.expect(0);
    farm.run("olga", &format!("cancel {}", id.text().trim())).await.expect(0);
    farm.run("vera", "builds").await.expect(0);
    for who in ["vera", "sam", "olga"] {
        farm.run(who, "audit").await.expect(4);
    }
    let rows = audit(&farm).await;
    let row =
        |who: &str, line: &str, result: &str| (who.to_owned(), line.to_owned(), result.to_owned());
    let expected = [
        row("vera", "cancel --where-tag a=b", "refused"),
        row("sam", "sumbit x", "refused"),
        row("sam", "set --where-tag a=b --hold", "refused"),
        row("sam", "submit --closure", "refused"),
        row("sam", "submit --closure", "done"),
        row("olga", &format!("cancel {}", id.text().trim()), "done"),
        row("vera", "audit", "refused"),
        row("sam", "audit", "refused"),
        row("olga", "audit", "refused"),
    ];
    assert_eq!(rows, expected);
    let rows = objects(&farm, "audit --principal vera --limit 1").await;
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["role"], &rows[0]["status"]), (&"viewer".into(), &4.into()));
    assert_eq!(rows[0]["fingerprint"], farm.key("vera").fingerprint());
    assert!(rows[0]["address"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(rows[0]["reason"].as_str().unwrap().contains("audit needs admin"));
    let after = objects(&farm, "audit --after 1 --limit 2").await;
    assert_eq!(after[0]["line"], "sumbit x");
    assert_eq!(after.len(), 2);
    assert!(objects(&farm, "audit --since 1h").await.len() >= 9);
    farm.run("ada", "audit --since tomorrow").await.expect(2);
    let text = farm.run("ada", "audit").await.expect(0);
    assert!(text.text().contains("viewer vera"), "{}", text.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_without_end_cost_little_and_are_all_counted() {
    const LINES: usize = 1_300;
    let Some(farm) = farm().await else { return };
    let connection = connect(&client(&farm, "vera"), &CancellationToken::new()).await.unwrap();
    for number in 0..LINES {
        let (mut reader, _writer) = connection.exec(format!("no-verb-{number}")).await.unwrap();
        while !matches!(reader.next().await, Incoming::Eof | Incoming::Lost) {}
    }
    wait::until("all of them are counted", || {
        let rows = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current()
                .block_on(objects(&farm, "audit --principal vera --limit 10000"))
        });
        let lines: u64 = rows.iter().map(|row| row["lines"].as_u64().unwrap()).sum();
        assert!(rows.len() < LINES - 100, "{} rows", rows.len());
        lines == LINES as u64
    });
}

/// Runs `ssh-keygen`, which must succeed.
fn keygen(words: &[&str]) {
    let output = Program::new("ssh-keygen").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", output.stderr.escape_ascii());
}

/// An authority of the keydir, and a key that it certifies.
struct Certifying<'a> {
    farm: &'a Farm,
    serial: std::cell::Cell<u32>,
}

impl<'a> Certifying<'a> {
    fn new(farm: &'a Farm, options: &str) -> Self {
        let ca = key_file(farm, "ca");
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f", ca.to_str().unwrap()]);
        let public = fs_err::read_to_string(ca.with_extension("pub")).unwrap();
        fs_err::write(farm.state_dir().join("keys/ca/site.pub"), format!("{options} {public}"))
            .unwrap();
        wait::until("the authority is known", || {
            farm.coordinator.monitor.keydir().0.has_authorities()
        });
        Self { farm, serial: std::cell::Cell::new(0) }
    }

    /// Signs a new key, and returns what `whoami` says with it.
    async fn whoami(&self, options: &[&str]) -> Answered {
        self.sign(options);
        self.farm.run("user", "whoami --json").await
    }

    fn sign(&self, options: &[&str]) {
        self.sign_with("ca", options);
    }

    fn sign_with(&self, authority: &str, options: &[&str]) {
        let user = key_file(self.farm, "user");
        for suffix in ["", ".pub", "-cert.pub"] {
            fs_err::remove_file(format!("{}{suffix}", user.display())).ok();
        }
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f", user.to_str().unwrap()]);
        self.serial.set(self.serial.get() + 1);
        let serial = self.serial.get().to_string();
        let ca = key_file(self.farm, authority);
        let public = user.with_extension("pub");
        let mut words = vec!["-q", "-s", ca.to_str().unwrap(), "-I", "someone", "-z", &serial];
        words.extend(options);
        words.push(public.to_str().unwrap());
        keygen(&words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_listed_authority_says_who_somebody_is() {
    let Some(farm) = farm().await else { return };
    let options = "roles=\"submitter,agent\",tags=\"site=north\",max-priority=5,max-open-builds=7";
    let certifying = Certifying::new(&farm, options);
    let me = certifying.whoami(&["-n", "submitter/sue,root", "-V", "+1h"]).await.expect(0);
    let me = me.objects().remove(0);
    assert_eq!((&me["name"], &me["role"]), (&"sue".into(), &"submitter".into()));
    assert_eq!((&me["max_priority"], &me["max_open_builds"]), (&5.into(), &7.into()));
    assert_eq!(me["tags"], serde_json::json!(["site=north"]));
    assert_eq!(
        (&me["certificate"]["serial"], &me["certificate"]["key_id"]),
        (&1.into(), &"someone".into())
    );
    let told = farm.run("user", "agents pause x").await.expect(4);
    assert!(told.err.contains("submitter"), "{}", told.err);
    // A listed key still comes in without one, and an unknown one does not.
    farm.run("vera", "whoami").await.expect(0);
    stranger(&farm, "unknown");
    assert_eq!(farm.run("unknown", "whoami").await.status, 255);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_refused_for_whatever_speaks_against_it() {
    let Some(farm) = farm().await else { return };
    let certifying = Certifying::new(&farm, "roles=\"submitter\"");
    let good = ["-n", "submitter/sue"];
    certifying.whoami(&good).await.expect(0);
    for (why, options) in [
        ("another role", vec!["-n", "operator/sue"]),
        ("no principal", vec![]),
        ("no role", vec!["-n", "sue"]),
        ("an unknown role", vec!["-n", "root/sue"]),
        ("no name", vec!["-n", "submitter/../../x"]),
        ("two of ours", vec!["-n", "submitter/sue,submitter/sam"]),
        ("over", vec!["-n", "submitter/sue", "-V", "-2h:-1h"]),
        ("not yet", vec!["-n", "submitter/sue", "-V", "+1h:+2h"]),
        ("for hosts", vec!["-h", "-n", "submitter/sue"]),
        ("an unknown option", vec!["-n", "submitter/sue", "-O", "critical:x@y=z"]),
        ("a finger", vec!["-n", "submitter/sue", "-O", "verify-required"]),
        ("elsewhere", vec!["-n", "submitter/sue", "-O", "source-address=192.0.2.0/24"]),
    ] {
        let told = certifying.whoami(&options).await;
        assert_eq!(told.status, 255, "{why}: {}", told.text());
    }
    let here = ["-n", "submitter/sue", "-O", "source-address=192.0.2.0/24,127.0.0.0/8"];
    certifying.whoami(&here).await.expect(0);
    // Somebody else's authority.
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", key_file(&farm, "other").to_str().unwrap()]);
    certifying.sign_with("other", &good);
    assert_eq!(farm.run("user", "whoami").await.status, 255);
    // A forced command is what is run, and nothing else.
    certifying.sign(&["-n", "submitter/sue", "-O", "force-command=version"]);
    assert!(farm.run("user", "submit -").await.expect(0).text().starts_with("steading "));
    let told = answer(farm.ssh("user", &["-s"], "steading-control"), &[]).await;
    assert_ne!(told.status, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_loses_its_sessions_and_stays_out() {
    let Some(farm) = farm().await else { return };
    let certifying = Certifying::new(&farm, "roles=\"submitter\"");
    let revoked = farm.state_dir().join("keys/revoked");
    let good = ["-n", "submitter/sue"];
    certifying.whoami(&good).await.expect(0);
    let fails = || {
        let config = client(&farm, "user");
        async move { connect(&config, &CancellationToken::new()).await }
    };
    let held = fails().await.unwrap();
    fs_err::write(&revoked, "serial 99\nserial 1 # lost\n").unwrap();
    let ended = tokio::time::timeout(farm::COMMAND_MAX, held.lost().cancelled()).await;
    assert!(ended.is_ok(), "the session goes on");
    assert!(matches!(fails().await, Err(ConnectError::Refused { .. })));
    // The next certificate has another number; its key can be named, too.
    certifying.whoami(&good).await.expect(0);
    let held = fails().await.unwrap();
    let print = farm.key("user").fingerprint();
    farm.run("ada", &format!("keys revoke {print}")).await.expect(0);
    let ended = tokio::time::timeout(farm::COMMAND_MAX, held.lost().cancelled()).await;
    assert!(ended.is_ok(), "the session goes on");
    assert_eq!(farm.run("user", "whoami").await.status, 255);
    assert!(fs_err::read_to_string(&revoked).unwrap().ends_with(&format!("{print}\n")));
    // Where the list cannot be read, nobody comes in by certificate, and keys as before.
    certifying.whoami(&good).await.expect(0);
    fs_err::write(&revoked, "serial many\n").unwrap();
    wait::until("the list is read", || !farm.coordinator.monitor.keydir().1.is_empty());
    assert_eq!(farm.run("user", "whoami").await.status, 255);
    let listed = objects(&farm, "keys list").await;
    let problem = listed.iter().find(|one| one["state"] == "refused").unwrap();
    assert_eq!(problem["place"], "keys/revoked:1");
    fs_err::write(&revoked, "").unwrap();
    wait::until("the list is read", || farm.coordinator.monitor.keydir().1.is_empty());
    farm.run("user", "whoami").await.expect(0);
    // The authority itself can be taken away.
    let held = fails().await.unwrap();
    fs_err::remove_file(farm.state_dir().join("keys/ca/site.pub")).unwrap();
    let ended = tokio::time::timeout(farm::COMMAND_MAX, held.lost().cancelled()).await;
    assert!(ended.is_ok(), "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_certificate_ends_its_session_with_it() {
    let Some(farm) = farm().await else { return };
    let certifying = Certifying::new(&farm, "roles=\"submitter\"");
    certifying.sign(&["-n", "submitter/sue", "-V", "always:+6s"]);
    let held = connect(&client(&farm, "user"), &CancellationToken::new()).await.unwrap();
    let ended = tokio::time::timeout(farm::COMMAND_MAX, held.lost().cancelled()).await;
    assert!(ended.is_ok(), "the session goes on");
    assert_eq!(farm.run("user", "whoami").await.status, 255);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_the_keydir_are_listed_with_their_places() {
    let Some(farm) = farm().await else { return };
    let keys = farm.state_dir().join("keys");
    let line = farm.key("vera").public_line();
    fs_err::write(keys.join("operators/vera.pub"), &line).unwrap();
    fs_err::write(keys.join("viewers/bad.pub"), "\nhello\n").unwrap();
    fs_err::write(keys.join("ca/none.pub"), format!("{line}\n")).unwrap();
    let old = stranger(&farm, "old").public_line();
    fs_err::write(keys.join("viewers/old.pub"), format!("expiry-time=20200101 {old}")).unwrap();
    wait::until("they are noticed", || farm.coordinator.monitor.keydir().1.len() == 3);
    let listed = objects(&farm, "keys list").await;
    let places: Vec<&str> = listed
        .iter()
        .filter(|one| one["state"] == "refused")
        .map(|one| one["place"].as_str().unwrap())
        .collect();
    assert_eq!(places.len(), 3, "{listed:?}");
    for place in ["keys/viewers/bad.pub:2", "keys/ca/none.pub:1"] {
        assert!(places.contains(&place), "{places:?}");
    }
    let expired = listed.iter().find(|one| one["state"] == "expired").unwrap();
    assert_eq!(expired["name"], "old");
    // One key in two roles lets nobody in.
    assert_eq!(farm.run("vera", "whoami").await.status, 255);
    assert!(farm.run("ada", "keys list").await.expect(0).text().contains("refused in both places"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_key_changes_under_clients_that_have_pinned_both() {
    let Some(farm) = farm().await else { return };
    let secrets = farm.state_dir().join("secrets");
    let run = farm.state_dir().join("run");
    assert!(!run.join("host_key_next.pub").exists());
    let dir = farm.stop().await;
    // Made, announced at the next start, and pinned beside the old one.
    keygen(&[
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-f",
        secrets.join("host_ed25519.next").to_str().unwrap(),
    ]);
    fs_err::remove_file(secrets.join("host_ed25519.next.pub")).unwrap();
    let farm = Farm::start_in(dir, &Config::default(), &[]).await.unwrap();
    let old = fs_err::read_to_string(run.join("host_key.pub")).unwrap();
    let next = fs_err::read_to_string(run.join("host_key_next.pub")).unwrap();
    assert_ne!(old, next);
    let with = |farm: &Farm, host_keys: &[&String]| ClientConfig {
        host_keys: host_keys.iter().map(|key| (*key).clone()).collect(),
        ..client(farm, "vera")
    };
    connect(&with(&farm, &[&old, &next]), &CancellationToken::new()).await.unwrap();
    // Changed by a rename and a restart.
    let dir = farm.stop().await;
    fs_err::rename(secrets.join("host_ed25519.next"), secrets.join("host_ed25519")).unwrap();
    let farm = Farm::start_in(dir, &Config::default(), &[]).await.unwrap();
    assert_eq!(fs_err::read_to_string(run.join("host_key.pub")).unwrap(), next);
    assert!(!run.join("host_key_next.pub").exists());
    connect(&with(&farm, &[&old, &next]), &CancellationToken::new()).await.unwrap();
    let refused = connect(&with(&farm, &[&old]), &CancellationToken::new()).await;
    assert!(matches!(refused, Err(ConnectError::HostKeyMismatch { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_lets_itself_in_with_a_token_or_comes_with_a_certificate() {
    let Some(farm) = farm().await else { return };
    let token = objects(&farm, "keys token new").await.remove(0);
    let dir = farm.state_dir().parent().unwrap().to_owned();
    let spawn = |name: &str, more: &[&str]| {
        let state = dir.join(name);
        fs_err::create_dir_all(state.join("store")).unwrap();
        let mut agent = Program::new(env!("CARGO_BIN_EXE_steading"));
        agent
            .args(["agent", "--builder", "direct", "--coordinator", &farm.address.to_string()])
            .arg("--state")
            .arg(&state)
            .arg("--host-key")
            .arg(farm.state_dir().join("run/host_key.pub"))
            .args(more)
            .stderr(fs_err::File::create(dir.join(format!("{name}.log"))).unwrap().into_file());
        agent
    };
    let connected = |name: &str| {
        let agents = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(objects(&farm, "agents"))
        });
        agents.iter().any(|one| one["agent"] == name && one["connected"] == true)
    };
    let mut by_token = spawn("by-token", &["--name", "amber"]);
    by_token.env("STEADING_TOKEN", token["token"].as_str().unwrap());
    let by_token = Ended(by_token.spawn().unwrap());
    wait::until("the agent with the token is connected", || connected("amber"));
    drop(by_token);

    // Without a token, the agent waits, and the log has what the admin types.
    let waiting = Ended(spawn("waiting", &["--name", "birch"]).spawn().unwrap());
    let log = dir.join("waiting.log");
    wait::until("the agent says what to type", || {
        fs_err::read_to_string(&log).unwrap().contains("keys approve SHA256:")
    });
    let text = fs_err::read_to_string(&log).unwrap();
    let line = text.split("COORDINATOR ").nth(1).unwrap().split('’').next().unwrap().to_owned();
    farm.run("ada", &line).await.expect(0);
    wait::until("the agent that waited is connected", || connected("birch"));
    drop(waiting);

    let certifying = Certifying::new(&farm, "roles=\"agent\"");
    certifying.sign(&["-n", "agent/cedar"]);
    let identity = key_file(&farm, "user");
    let _certified =
        Ended(spawn("certified", &["--identity", identity.to_str().unwrap()]).spawn().unwrap());
    wait::until("the agent with the certificate is connected", || connected("cedar"));
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().unwrap();
    }
}
