//! What operators do to keep a farm in order, with the stock `ssh` against a coordinator in this
//! process: metrics, status, backup, check, prune and gc.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have derivations with several outputs")]
mod closure;
#[path = "common/exposition.rs"]
mod exposition;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod farm;
#[path = "common/wait.rs"]
mod wait;

use closure::{Drv, drv, export, file_nar, source, stream};
use farm::Farm;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use steading::{
    config::Config,
    coordinator::engine_thread::ORDERS_MAX,
    core::{
        agent::{Abilities, SessionId},
        change::{NarFile, NarOrigin, NarRecord, OutputRecord, Verdict},
        engine::{Answer, Delivery, Input, Order},
        hash::Sha256,
        id::{AttemptId, BuildId, InstanceId},
        outcome::{BuildFailure, Outcome},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
        time::Timestamp,
    },
    ssh::Role,
    store::Reader,
};
use tokio::{sync::mpsc, time::timeout};

const PEOPLE: [(Role, &str, &str); 5] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", ""),
    (Role::Operator, "olga", ""),
    (Role::Admin, "ada", ""),
    (Role::Agent, "amber", ""),
];

async fn farm() -> Option<Farm> {
    Farm::start(&Config::default(), &PEOPLE).await
}

/// An agent with one slot that does what a test says.
struct Agent {
    session: SessionId,
    orders: mpsc::Receiver<Order>,
}

impl Agent {
    async fn join(farm: &Farm) -> Self {
        let session = SessionId(1_000_000);
        let (outbox, orders) = mpsc::channel(ORDERS_MAX);
        let engine = &farm.coordinator.engine;
        engine.attach(session, outbox).await.unwrap();
        let abilities = Abilities {
            store_dir: StoreDir::nix(),
            dialect: "direct".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            slots: 1,
            tags: BTreeMap::new(),
        };
        let instance = InstanceId::from_bytes([7; 16]);
        let name = "amber".parse().unwrap();
        let join =
            Input::Join { session, name, instance, abilities, held: Vec::new(), capacity: None };
        engine.tell(join).await.unwrap();
        let mut agent = Self { session, orders };
        assert!(matches!(agent.order().await, Order::Welcome { .. }));
        agent
    }

    async fn order(&mut self) -> Order {
        timeout(farm::COMMAND_MAX, self.orders.recv()).await.unwrap().unwrap()
    }

    async fn begin(&mut self, farm: &Farm) -> AttemptId {
        let Order::Allocate { attempt, .. } = self.order().await else { panic!("another order") };
        let started = Input::Started { session: self.session, attempt };
        farm.coordinator.engine.tell(started).await.unwrap();
        attempt
    }

    async fn fails(&mut self, farm: &Farm) {
        let attempt = self.begin(farm).await;
        let outcome = Outcome::Failed(BuildFailure::Exit(3));
        let finished = Input::Finished { session: self.session, attempt, outcome };
        farm.coordinator.engine.tell(finished).await.unwrap();
        assert!(matches!(self.order().await, Order::Settled { .. }));
    }

    /// Builds what comes next, which must be this: its output is a file that names it.
    async fn builds(&mut self, farm: &Farm, drv: &Drv, references: &[&StorePath]) {
        let attempt = self.begin(farm).await;
        let outcome = Outcome::Built;
        let finished = Input::Finished { session: self.session, attempt, outcome };
        farm.coordinator.engine.tell(finished).await.unwrap();
        let nar = file_nar(drv.out.name().as_bytes());
        let file = zstd::bulk::compress(&nar, 3).unwrap();
        let (path, nar_hash, nar_bytes) = (drv.out.clone(), Sha256::of(&nar), nar.len() as u64);
        let references = references.iter().map(|&reference| reference.clone()).collect();
        let record = NarRecord {
            info: PathInfo {
                path: path.clone(),
                nar_hash,
                nar_bytes,
                references,
                deriver: Some(drv.path.clone()),
                signatures: Vec::new(),
                content_address: None,
            },
            file_hash: Sha256::of(&file),
            file_bytes: file.len() as u64,
            origin: NarOrigin::Built,
            at: farm.coordinator.clock.now().wall,
        };
        let delivery = Delivery::Verified {
            outputs: vec![OutputRecord { name: "out".to_owned(), path, nar_hash, nar_bytes }],
            files: vec![NarFile { hash: record.file_hash, bytes: file.into() }],
            nars: vec![Arc::new(record)],
            verdict: Verdict::Agreed,
        };
        let agent = "amber".parse().unwrap();
        let deliver = move |token| Input::Deliver { token, agent, attempt, delivery };
        let answer = farm.coordinator.engine.request(deliver).await.unwrap();
        assert_eq!(answer, Answer::Delivered { accepted: true });
        let narinfo = narinfo(farm, &drv.out);
        tokio::task::block_in_place(|| wait::until("it is published", || narinfo.exists()));
    }
}

async fn submit(farm: &Farm, drvs: &[&Drv], options: &str) -> BuildId {
    let line = format!("submit --closure --no-inputs {options}");
    farm.feed("sam", &line, &export(drvs)).await.expect(0).text().trim().parse().unwrap()
}

fn tree(farm: &Farm) -> PathBuf {
    farm.state_dir().join("public/nix-store")
}

fn narinfo(farm: &Farm, path: &StorePath) -> PathBuf {
    tree(farm).join(format!("{}.narinfo", path.hash().base32()))
}

/// Returns the file of the depot that a published path has.
fn file(farm: &Farm, path: &StorePath) -> PathBuf {
    let text = fs_err::read_to_string(narinfo(farm, path)).unwrap();
    let name = text.lines().find_map(|line| line.strip_prefix("URL: nar/")).unwrap();
    farm.state_dir().join("depot").join(&name[..2]).join(name)
}

fn until(what: &str, condition: impl FnMut() -> bool) {
    tokio::task::block_in_place(|| wait::until(what, condition));
}

fn database(farm: &Farm) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(farm.state_dir().join("steading.db")).unwrap();
    database.busy_timeout(farm::COMMAND_MAX).unwrap();
    database
}

async fn is_held(farm: &Farm, path: &StorePath) -> bool {
    object(farm, "vera", &format!("outputs {path}")).await["held"] == true
}

async fn object(farm: &Farm, who: &str, line: &str) -> Value {
    let mut objects = farm.run(who, &format!("{line} --json")).await.expect(0).objects();
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.pop().unwrap()
}

/// Asserts that a check finds nothing.
async fn is_well(farm: &Farm) {
    let told = farm.run("ada", "check --deep").await.expect(0);
    assert!(told.text().is_empty() && told.err.contains("all is well"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_learns_so_and_words_are_checked() {
    let Some(farm) = farm().await else { return };
    for (who, line, status, part) in [
        ("olga", "backup", 4, "backup needs admin"),
        ("olga", "check --repair", 4, "check needs admin"),
        ("olga", "prune --older-than 1d", 4, "prune needs admin"),
        ("olga", "gc", 4, "gc needs admin"),
        ("amber", "metrics", 4, "metrics needs viewer"),
        ("ada", "prune", 2, "--older-than"),
        ("ada", "prune --older-than soon", 2, "write a time as"),
        ("ada", "prune --older-than 2999-01-01", 5, "a time that is over"),
        ("ada", "gc --max-bytes many", 2, "write a size"),
        ("ada", "gc --where-tag x", 2, "where-tag"),
        ("ada", "gc --delay yesterday", 2, "write a deadline"),
        ("ada", "check --depe", 2, "--deep"),
        ("ada", "check --lost", 2, "--repair"),
        ("ada", "backup x", 2, "unexpected"),
        ("ada", "metrics x", 2, "unexpected"),
    ] {
        let told = farm.run(who, line).await.expect(status);
        assert!(told.err.contains(part) && told.out.is_empty(), "{line}: {}", told.err);
    }
    for verb in ["backup", "check", "prune", "gc", "metrics"] {
        let told = farm.run("vera", &format!("help {verb}")).await.expect(0);
        assert!(told.text().contains("Example: ssh COORDINATOR"), "{}", told.text());
    }
    let told = farm.run("ada", "prune --older-than 1d --dry-run").await.expect(0);
    assert!(told.text().starts_with("0 builds and 0 attempts would be removed"), "{told:?}");
    let told = farm.run("ada", "gc --dry-run").await.expect(0);
    assert!(told.out.is_empty() && told.err.contains("nothing to withdraw"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_prometheus_reads() {
    let dir = tempfile::tempdir().unwrap();
    let textfile = dir.path().join("steading.prom");
    let config = Config { metrics_file: Some(textfile.clone()), ..Config::default() };
    let Some(farm) = Farm::start(&config, &PEOPLE).await else { return };
    let (lib, app) = (drv("lib", "", &[], &[]), drv("app", "", &[], &[]));
    submit(&farm, &[&lib], "").await;
    let mut amber = Agent::join(&farm).await;
    amber.builds(&farm, &lib, &[]).await;
    submit(&farm, &[&app], "").await;
    amber.fails(&farm).await;
    submit(&farm, &[&drv("more", "", &[], &[])], "").await;

    let text = farm.run("vera", "metrics").await.expect(0);
    let samples = exposition::read(text.text()).unwrap();
    for (sample, value) in [
        ("steading_builds{state=\"allocated\"}", 1.0),
        ("steading_builds{state=\"waiting\"}", 0.0),
        ("steading_builds_ended_total{state=\"succeeded\"}", 1.0),
        ("steading_builds_ended_total{state=\"failed\"}", 1.0),
        ("steading_attempts_ended_total{end=\"exit\"}", 1.0),
        ("steading_attempts_ended_total{end=\"succeeded\"}", 1.0),
        ("steading_agents{state=\"connected\"}", 1.0),
        ("steading_agents{state=\"registered\"}", 1.0),
        ("steading_agent_running{agent=\"amber\"}", 1.0),
        ("steading_slots", 1.0),
        ("steading_slots_free", 0.0),
        ("steading_nars", 1.0),
        ("steading_panics_total", 0.0),
        ("steading_pending_keys", 0.0),
        ("steading_hook_problems", 0.0),
        ("steading_audit_refusals_total", 0.0),
        ("steading_audit_refusals_summed_total", 0.0),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample}\n{}", text.text());
    }
    assert!(samples["steading_commit_seconds_count"] >= 4.0, "{}", text.text());
    assert!(samples["steading_disk_free_bytes"] > 0.0, "{}", text.text());
    assert!(samples["steading_database_bytes"] > 0.0, "{}", text.text());
    assert!(samples["steading_events_total"] >= 5.0, "{}", text.text());
    farm.run("vera", "check").await.expect(4);
    let refused = farm.run("vera", "metrics").await.expect(0);
    let refused = exposition::read(refused.text()).unwrap();
    assert_eq!(refused.get("steading_audit_refusals_total"), Some(&1.0));
    let objects = farm.run("vera", "metrics --json").await.expect(0).objects();
    let connected = objects
        .iter()
        .find(|one| one["name"] == "steading_agents" && one["labels"]["state"] == "connected");
    let connected = connected.unwrap();
    assert_eq!((&connected["kind"], &connected["value"]), (&"gauge".into(), &1.0.into()));

    until("the text is in a file", || textfile.exists());
    exposition::read(&fs_err::read_to_string(&textfile).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_of_status_is_health_and_the_last_what_to_do() {
    let Some(farm) = farm().await else { return };
    let told = farm.run("vera", "status").await.expect(0);
    assert_eq!(told.lines()[0], "health    healthy");
    submit(&farm, &[&drv("alone", "", &[], &[])], "").await;
    let told = farm.run("vera", "status").await.expect(0);
    assert_eq!(told.lines()[0], "health    not healthy: builds wait and no agent is connected");
    assert!(told.lines().last().unwrap().starts_with("next      start an agent"), "{told:?}");
    let status = object(&farm, "vera", "status").await;
    assert_eq!(status["healthy"], false);
    assert_eq!(status["problems"][0]["problem"], "builds wait and no agent is connected");
    // Nothing was saved since the farm began, which is long ago now.
    database(&farm).execute("UPDATE builds SET submitted_at = 1", []).unwrap();
    let problems = &object(&farm, "vera", "status").await["problems"];
    assert_eq!(problems[1]["problem"], "the database was never saved");
    farm.run("ada", "backup").await.expect(0);
    let status = object(&farm, "vera", "status").await;
    assert_eq!(status["problems"].as_array().unwrap().len(), 1, "{status}");
    assert!(status["last_backup"].is_string(), "{status}");
    // Its agent is known, and went away.
    let amber = Agent::join(&farm).await;
    let told = farm.run("vera", "status").await.expect(0);
    assert_eq!(told.lines()[0], "health    healthy");
    drop(amber);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_the_whole_database_as_it_was() {
    let Some(farm) = farm().await else { return };
    let empty = object(&farm, "ada", "backup").await;
    assert_eq!(empty["at"], Value::Null);
    let build = submit(&farm, &[&drv("saved", "", &[], &[])], "").await;
    let told = farm.run("ada", "backup").await.expect(0);
    assert!(told.err.contains("the database as of"), "{}", told.err);
    let later = submit(&farm, &[&drv("later", "", &[], &[])], "").await;
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.db");
    fs_err::write(&copy, zstd::decode_all(&told.out[..]).unwrap()).unwrap();
    let reader = Reader::open(&copy).unwrap();
    assert_eq!(reader.integrity().unwrap(), Vec::<String>::new());
    assert!(reader.build_exists(build) && !reader.build_exists(later));
    // Whoever gets half of it finds out.
    zstd::decode_all(&told.out[..told.out.len() - 1]).unwrap_err();
    let mut flipped = told.out.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    zstd::decode_all(&flipped[..]).unwrap_err();
    let last = object(&farm, "ada", "backup").await;
    assert_eq!((&last["principal"], last["at"].is_string()), (&"ada".into(), true));
    let left: Vec<PathBuf> = fs_err::read_dir(farm.state_dir().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.display().to_string().contains("backup"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    let told = farm::answer(farm.ssh("ada", &["-tt"], "backup"), &[]).await;
    assert_eq!(told.status, 2, "{told:?}");
}

/// What a test needs of a copy of the database.
trait Knows {
    fn build_exists(&self, build: BuildId) -> bool;
}

impl Knows for Reader {
    fn build_exists(&self, build: BuildId) -> bool {
        use steading::store::BuildFilter;
        let filter = BuildFilter { ids: Some(vec![build]), limit: 1, ..BuildFilter::default() };
        !self.builds(&filter).unwrap().is_empty()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pruned_is_gone_and_still_counted_and_what_is_needed_stays() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm).await;
    let (lib, bad) = (drv("lib", "", &[], &[]), drv("bad", "", &[], &[]));
    let good = submit(&farm, &[&lib], "--tag branch=core").await;
    amber.builds(&farm, &lib, &[]).await;
    let failed = submit(&farm, &[&bad], "").await;
    amber.fails(&farm).await;
    // An open build is blocked by the one that failed.
    let top = drv("top", "", &[&bad], &[]);
    let blocked = submit(&farm, &[&bad, &top], "").await;
    let state = object(&farm, "vera", &format!("show {blocked}")).await["state"].clone();
    assert_eq!(state, "blocked");
    let canceled = submit(&farm, &[&drv("unwanted", "", &[], &[])], "--defer-until 1d").await;
    farm.run("sam", &format!("cancel {canceled}")).await.expect(0);

    let none = object(&farm, "ada", "prune --older-than 1h").await;
    assert_eq!((&none["builds"], &none["kept"]), (&0.into(), &0.into()));
    let dry = object(&farm, "ada", "prune --older-than 0s --dry-run").await;
    assert_eq!((&dry["builds"], &dry["attempts"]), (&3.into(), &2.into()));
    farm.run("vera", &format!("show {good}")).await.expect(0);
    let pruned = object(&farm, "ada", "prune --older-than 0s").await;
    assert_eq!((&pruned["builds"], &pruned["attempts"]), (&2.into(), &1.into()), "{pruned}");
    assert_eq!(pruned["kept"], 1, "{pruned}");
    for gone in [good, canceled] {
        farm.run("vera", &format!("show {gone}")).await.expect(3);
    }
    farm.run("vera", &format!("show {failed}")).await.expect(0);
    is_well(&farm).await;
    let samples = farm.run("vera", "metrics").await.expect(0);
    let samples = exposition::read(samples.text()).unwrap();
    for (sample, value) in [
        ("steading_builds_ended_total{state=\"succeeded\"}", 1.0),
        ("steading_builds_ended_total{state=\"canceled\"}", 1.0),
        ("steading_builds_pruned_total{state=\"succeeded\"}", 1.0),
        ("steading_builds_pruned_total{state=\"canceled\"}", 1.0),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample}");
    }
    // What was built is held and published all the same, and the same derivation can be asked for.
    assert!(is_held(&farm, &lib.out).await && narinfo(&farm, &lib.out).exists());
    submit(&farm, &[&lib], "").await;
    amber.begin(&farm).await;
    is_well(&farm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withdrawn_loses_its_narinfo_first_and_its_files_later() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm).await;
    let names = ["lib", "app", "tool", "kept", "needed"];
    let [lib, app, tool, kept, needed] = names.map(|name| drv(name, "", &[], &[]));
    for (drv, references, options) in [
        (&lib, vec![], "--tag branch=core"),
        (&app, vec![&lib.out], "--tag branch=core"),
        (&tool, vec![], "--tag branch=core"),
        (&kept, vec![&tool.out], "--tag keep=yes"),
        (&needed, vec![], "--tag branch=core"),
    ] {
        submit(&farm, &[drv], options).await;
        amber.builds(&farm, drv, &references).await;
    }
    // Somebody needs one of them just now.
    submit(&farm, &[&needed, &drv("user", "", &[&needed], &[])], "").await;
    let paths = |told: &farm::Answered| {
        let mut lines: Vec<String> = told.lines().iter().map(|&line| line.to_owned()).collect();
        lines.sort();
        lines
    };
    let told = farm.run("ada", "gc").await.expect(0);
    assert_eq!(paths(&told), Vec::<String>::new(), "their builds are known");
    let line = "gc --older-than 0s --keep-tag keep=yes";
    let dry = farm.run("ada", &format!("{line} --dry-run")).await.expect(0);
    let expected: Vec<String> = {
        let mut expected = vec![lib.out.to_string(), app.out.to_string()];
        expected.sort();
        expected
    };
    assert_eq!(paths(&dry), expected);
    assert_eq!(dry.lines()[0], app.out.to_string(), "what refers to others goes first");
    let by_tag = farm.run("ada", "gc --where-tag branch=core --dry-run").await.expect(0);
    assert_eq!(paths(&by_tag), expected, "what is kept needs the tool");
    let size = fs_err::metadata(file(&farm, &app.out)).unwrap().len();
    let held: u64 = object(&farm, "vera", "status").await["nar_bytes"].as_u64().unwrap();
    let line_of_size = format!("gc --max-bytes {} --keep-tag keep=yes --dry-run", held - size);
    let by_size = farm.run("ada", &line_of_size).await.expect(0);
    assert_eq!(by_size.lines(), [app.out.to_string()]);

    let (app_file, app_narinfo) = (file(&farm, &app.out), narinfo(&farm, &app.out));
    let app_link = tree(&farm).join("nar").join(app_file.file_name().unwrap());
    let gone = farm.run("ada", line).await.expect(0);
    assert_eq!(paths(&gone), expected);
    assert!(!is_held(&farm, &app.out).await && is_held(&farm, &tool.out).await);
    until("its narinfo is gone", || !app_narinfo.exists());
    assert!(app_file.exists() && app_link.exists(), "its files stay for others");
    is_well(&farm).await;
    // A month later.
    let old = Timestamp::from_ms(farm.coordinator.clock.now().wall.as_ms() - 2 * 86_400_000);
    backdate(&app_file, old);
    database(&farm).execute("UPDATE withdrawn_nars SET remove_at = 1", []).unwrap();
    farm.run("ada", "gc").await.expect(0);
    until("its files are gone", || !app_file.exists() && !app_link.exists());
    is_well(&farm).await;
    // It can be built again, and is published again.
    submit(&farm, &[&lib], "").await;
    drop(amber);
    for drv in [&tool, &kept, &needed] {
        assert!(narinfo(&farm, &drv.out).exists());
    }
}

fn backdate(file: &Path, at: Timestamp) {
    let seconds = u64::try_from(at.as_ms() / 1_000).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    fs_err::File::open(file).unwrap().into_parts().0.set_modified(time).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_withdrawn_and_is_built_again_before_its_files_go_stays() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm).await;
    let lib = drv("lib", "", &[], &[]);
    submit(&farm, &[&lib], "").await;
    amber.builds(&farm, &lib, &[]).await;
    let (file, narinfo) = (file(&farm, &lib.out), narinfo(&farm, &lib.out));
    farm.run("ada", "gc --older-than 0s --delay 0s").await.expect(0);
    until("its files may go", || !narinfo.exists());
    submit(&farm, &[&lib], "").await;
    amber.builds(&farm, &lib, &[]).await;
    farm.run("ada", "gc").await.expect(0);
    let count = "SELECT count(*) FROM withdrawn_nars";
    let left = || database(&farm).query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
    until("nothing is on its way out", || left() == 0);
    assert!(file.exists() && narinfo.exists());
    is_well(&farm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_to_do_about_each_finding_and_repairs_what_is_safe() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm).await;
    let names = ["gone", "wrong", "damaged", "forgotten", "fine"];
    let [gone, wrong, damaged, forgotten, fine] = names.map(|name| drv(name, "", &[], &[]));
    for drv in [&gone, &wrong, &damaged, &forgotten, &fine] {
        submit(&farm, &[drv], "").await;
        amber.builds(&farm, drv, &[]).await;
    }
    is_well(&farm).await;
    fs_err::remove_file(narinfo(&farm, &gone.out)).unwrap();
    let right = fs_err::read(narinfo(&farm, &wrong.out)).unwrap();
    fs_err::write(narinfo(&farm, &wrong.out), "StorePath: nonsense\n").unwrap();
    let broken = file(&farm, &damaged.out);
    let mut bytes = fs_err::read(&broken).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&broken, bytes).unwrap();
    let hash = forgotten.out.hash();
    database(&farm).execute("DELETE FROM nars WHERE path = ?1", [hash.as_bytes()]).unwrap();
    let stranger = tree(&farm).join(format!("{}.narinfo", "0".repeat(32)));
    fs_err::write(&stranger, "StorePath: /nix/store/x\n").unwrap();

    let shallow = farm.run("ada", "check").await.expect(1);
    assert!(!shallow.text().contains("its file is damaged"), "{}", shallow.text());
    let told = farm.run("ada", "check --deep --json").await.expect(1);
    let found = |objects: &[Value], part: &str, words: &str| {
        let finding =
            |one: &&Value| one["part"] == part && one["finding"].as_str().unwrap().contains(words);
        objects.iter().filter(finding).count()
    };
    let findings = told.objects();
    for (part, words) in [
        ("published", &*format!("{} is marked as published, but its narinfo is gone", gone.out)),
        ("published", &*format!("{}: its narinfo or its file", wrong.out)),
        ("depot", &*format!("{}: its file is damaged", damaged.out)),
        ("published", &*format!("{} is published and signed here", forgotten.out)),
        ("published", "00000.narinfo of /nix/store: "),
    ] {
        assert_eq!(found(&findings, part, words), 1, "{words}: {findings:#?}");
    }
    assert!(findings.iter().all(|one| one["advice"].is_string() && one["repaired"].is_null()));
    assert_eq!(findings.len(), 5, "{findings:#?}");

    let told = farm.run("ada", "check --deep --repair").await.expect(0);
    assert!(told.err.contains("5 findings, all repaired"), "{}", told.err);
    assert!(!stranger.exists() && !narinfo(&farm, &damaged.out).exists());
    let mended = || fs_err::read(narinfo(&farm, &wrong.out)).is_ok_and(|text| text == right);
    until("narinfos are written again", || mended() && narinfo(&farm, &gone.out).exists());
    assert!(is_held(&farm, &forgotten.out).await && !is_held(&farm, &damaged.out).await);
    let unmarked = "SELECT count(*) FROM nars WHERE published_at IS NULL";
    let left = || database(&farm).query_row(unmarked, [], |row| row.get::<_, i64>(0)).unwrap();
    until("everything is marked as published", || left() == 0);
    is_well(&farm).await;
    // What was damaged is built again when somebody asks for it.
    submit(&farm, &[&damaged], "").await;
    amber.builds(&farm, &damaged, &[]).await;
    is_well(&farm).await;
}

/// Returns how many nars are held and published.
fn published(farm: &Farm) -> i64 {
    let count = "SELECT count(*) FROM nars WHERE published_at IS NOT NULL";
    database(farm).query_row(count, [], |row| row.get(0)).unwrap()
}

/// Everything that a repair could change.
fn rows_and_tree(farm: &Farm) -> (i64, Vec<PathBuf>) {
    let mut files = Vec::new();
    for dir in [tree(farm), tree(farm).join("nar")] {
        files.extend(fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.sort();
    (published(farm), files)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repaired_while_the_disk_of_the_depot_is_not_mounted() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm).await;
    let (known, forgotten) = (drv("known", "", &[], &[]), drv("forgotten", "", &[], &[]));
    for drv in [&known, &forgotten] {
        submit(&farm, &[drv], "").await;
        amber.builds(&farm, drv, &[]).await;
    }
    // As after a restore: it is published, its links are old, and no row knows it.
    let hash = forgotten.out.hash();
    database(&farm).execute("DELETE FROM nars WHERE path = ?1", [hash.as_bytes()]).unwrap();
    let old = Timestamp::from_ms(farm.coordinator.clock.now().wall.as_ms() - 2 * 86_400_000);
    backdate(&file(&farm, &forgotten.out), old);
    let (depot, mounted) = (farm.state_dir().join("depot"), farm.state_dir().join("mounted"));
    fs_err::rename(&depot, &mounted).unwrap();
    fs_err::create_dir(&depot).unwrap();
    let before = rows_and_tree(&farm);
    for line in ["check", "check --repair", "check --deep --repair"] {
        let told = farm.run("ada", line).await.expect(1);
        let first = "depot: 1 of 1 files of the depot are missing or damaged: is it mounted?: ";
        assert!(told.lines()[0].starts_with(first), "{}", told.text());
        assert!(told.lines()[0].contains("check --repair --lost"), "{}", told.text());
        assert!(!told.err.contains("left"), "nothing of it is repaired: {}", told.err);
        assert_eq!(rows_and_tree(&farm), before, "{line}");
    }
    fs_err::remove_dir(&depot).unwrap();
    fs_err::rename(&mounted, &depot).unwrap();
    let told = farm.run("ada", "check --repair").await.expect(0);
    assert!(told.err.contains("1 finding, all repaired"), "{}", told.err);
    until("it is marked as published", || published(&farm) == 2);
    is_well(&farm).await;
    // And now it is gone for good.
    fs_err::remove_dir_all(&depot).unwrap();
    fs_err::create_dir(&depot).unwrap();
    farm.run("ada", "check --repair --lost").await.expect(0);
    for path in [&known.out, &forgotten.out] {
        assert!(!is_held(&farm, path).await && !narinfo(&farm, path).exists());
    }
    is_well(&farm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_much_of_the_depot_is_lost_somebody_has_to_say_so() {
    let Some(farm) = farm().await else { return };
    let sources: Vec<(StorePath, Vec<u8>)> =
        (0..110).map(|n| source(&format!("s{n}"), format!("{n}").as_bytes())).collect();
    let stream = stream(sources.iter().map(|(path, nar)| (path, nar.clone())));
    farm.feed("sam", "submit --closure", &stream).await.expect(0);
    until("all are published", || published(&farm) == 110);
    for (path, _) in &sources[..100] {
        fs_err::remove_file(file(&farm, path)).unwrap();
    }
    // A hundred may be lost one by one.
    let told = farm.run("ada", "check --repair").await.expect(0);
    assert!(!told.text().contains("is it mounted"), "{}", told.text());
    assert!(told.text().contains(&format!("{}: its file ", sources[0].0)), "{}", told.text());
    farm.feed("sam", "submit --closure", &stream).await.expect(0);
    until("all are published again", || published(&farm) == 110);
    for (path, _) in &sources[..101] {
        fs_err::remove_file(file(&farm, path)).unwrap();
    }
    let told = farm.run("ada", "check --repair").await.expect(1);
    assert!(told.lines()[0].starts_with("depot: 101 of 110 files"), "{}", told.text());
    assert_eq!(published(&farm), 110);
    let told = farm.run("ada", "check --repair --lost").await.expect(0);
    assert_eq!(told.lines().len(), 101, "{}", told.text());
    assert_eq!(published(&farm), 9);
    is_well(&farm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_waiting_build_needs_and_is_lost_is_built_again_by_itself() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm).await;
    let lib = drv("lib", "", &[], &[]);
    submit(&farm, &[&lib], "").await;
    amber.builds(&farm, &lib, &[]).await;
    let app = drv("app", "", &[&lib], &[]);
    let build = submit(&farm, &[&lib, &app], "--defer-until 1d").await;
    fs_err::remove_file(file(&farm, &lib.out)).unwrap();
    let told = farm.run("ada", "check").await.expect(1);
    assert!(told.text().contains("is gone: check --repair notes it"), "{}", told.text());
    farm.run("ada", "check --repair").await.expect(0);
    assert!(!is_held(&farm, &lib.out).await);
    is_well(&farm).await;
    amber.builds(&farm, &lib, &[]).await;
    is_well(&farm).await;
    farm.run("sam", &format!("retry {build}")).await.expect(0);
    amber.builds(&farm, &app, &[&lib.out]).await;
    is_well(&farm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_open_builds_need_stay() {
    let Some(farm) = farm().await else { return };
    let (used, used_nar) = source("used", b"used");
    let (unused, unused_nar) = source("unused", b"unused");
    let top = drv("top", "", &[], &[&used]);
    let entries = [(&used, used_nar), (&unused, unused_nar), (&top.path, file_nar(&top.text))];
    farm.feed("sam", "submit --closure", &stream(entries)).await.expect(0);
    until("both are published", || {
        narinfo(&farm, &used).exists() && narinfo(&farm, &unused).exists()
    });
    let gone = farm.run("ada", "gc --older-than 0s").await.expect(0);
    assert_eq!(gone.lines(), [unused.to_string()]);
    assert!(is_held(&farm, &used).await);
    is_well(&farm).await;
}
