//! Every verb, run with the stock `ssh` against a coordinator in this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have derivations with several outputs")]
mod closure;
#[path = "common/farm.rs"]
mod farm;

use bytes::Bytes;
use closure::{Drv, drv, export, file_nar, source, stream};
use farm::{Farm, answer};
use serde_json::Value;
use std::{collections::BTreeMap, process::Stdio};
use steading::{
    config::Config,
    coordinator::engine_thread::ORDERS_MAX,
    core::{
        agent::{Abilities, SessionId},
        engine::{Input, Order},
        id::{AttemptId, BuildId, InstanceId},
        outcome::{BuildFailure, Outcome},
        store_path::StoreDir,
    },
    ssh::Role,
};
use tokio::{io::AsyncReadExt as _, sync::mpsc, time::timeout};

const PEOPLE: [(Role, &str, &str); 6] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", "tags=\"team=core\",max-priority=20"),
    (Role::Submitter, "sue", ""),
    (Role::Operator, "olga", ""),
    (Role::Admin, "ada", ""),
    (Role::Agent, "amber", "tags=\"site=lab\""),
];

/// A farm with everybody in it.
async fn farm() -> Option<Farm> {
    Farm::start(&Config::default(), &PEOPLE).await
}

/// A derivation that needs another.
fn pair(name: &str) -> (Drv, Drv) {
    let base = drv(&format!("{name}-base"), "echo base > $out", &[], &[]);
    let top = drv(name, "echo top > $out", &[&base], &[]);
    (base, top)
}

/// Submits a derivation that needs nothing, as somebody, and returns the build.
async fn submit(farm: &Farm, name: &str, drv: &Drv, options: &str) -> BuildId {
    let line = format!("submit --closure {options}");
    farm.feed(name, &line, &export(&[drv])).await.expect(0).text().trim().parse().unwrap()
}

/// An agent that does what a test says.
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

    async fn begin(&mut self, farm: &Farm) -> (BuildId, AttemptId) {
        let Order::Allocate { attempt, build, .. } = self.order().await else {
            panic!("another order")
        };
        let started = Input::Started { session: self.session, attempt };
        farm.coordinator.engine.tell(started).await.unwrap();
        (build, attempt)
    }

    async fn fail(&mut self, farm: &Farm, attempt: AttemptId) {
        let outcome = Outcome::Failed(BuildFailure::Exit(3));
        let finished = Input::Finished { session: self.session, attempt, outcome };
        farm.coordinator.engine.tell(finished).await.unwrap();
        assert!(matches!(self.order().await, Order::Settled { .. }));
    }
}

/// Who changed what: principal, fingerprint, line; without those who were refused.
fn audit(farm: &Farm) -> Vec<(String, String, String)> {
    let database = rusqlite::Connection::open(farm.state_dir().join("steading.db")).unwrap();
    let mut select = database
        .prepare("SELECT principal, fingerprint, line FROM audit WHERE status < 2 ORDER BY id")
        .unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

async fn log(farm: &Farm, attempt: AttemptId, offset: u64, text: &'static str) {
    farm.coordinator
        .logs
        .append(attempt, offset, Bytes::from_static(text.as_bytes()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_answered_with_an_explanation() {
    let Some(farm) = farm().await else { return };
    for (line, part) in [
        ("sumbit x", "did you mean ‘submit’?"),
        ("show 'x", "quote is not closed"),
        ("\\ ", "no verb"),
        ("submit /nix/store/hello.drv", "32 base-32 digits"),
        ("submit", "name a derivation"),
        ("submit - --closure", "both read standard input"),
        ("show 7", "is not an id"),
        ("wait", "--where-tag"),
        ("builds --state done", "the states are"),
        ("builds --since tomorrow", "write a time as"),
        ("missing x", "write ‘-’"),
        ("help sumbit", "did you mean ‘submit’?"),
    ] {
        let answered = farm.run("sam", line).await.expect(2);
        assert!(answered.err.contains(part), "{line}: {}", answered.err);
        assert_eq!(answered.text(), "", "{line}");
    }
    for (name, subsystem) in [("sam", "netconf"), ("amber", "sftp")] {
        let answered = answer(farm.ssh(name, &["-s"], subsystem), &[]).await.expect(2);
        let text = format!("no subsystem ‘{subsystem}’");
        assert!(answered.err.contains(&text), "{}", answered.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_learns_who_they_are_and_what_there_is() {
    let Some(farm) = farm().await else { return };
    let told = &farm.run("sam", "whoami --json").await.expect(0).objects()[0];
    assert_eq!((&told["name"], &told["role"]), (&"sam".into(), &"submitter".into()));
    assert_eq!(told["tags"], serde_json::json!(["team=core"]));
    assert_eq!(told["max_priority"], 20);
    for name in ["vera", "sam", "olga", "ada", "amber"] {
        let told = farm.run(name, "whoami").await.expect(0);
        assert!(told.text().contains(&format!("name         {name}\n")), "{}", told.text());
        assert!(farm.run(name, "version").await.expect(0).text().starts_with("steading 0."));
        assert!(farm.run(name, "help").await.expect(0).text().contains("\nsubmit "));
    }
    let told = farm.run("vera", "version --json").await.expect(0);
    assert_eq!(told.objects()[0]["protocol_min"], 1);
    let told = farm.run("vera", "help wait").await.expect(0);
    assert!(told.text().contains("--timeout") && told.text().contains("Example: "));
    assert!(farm.run("vera", "wait --help").await.expect(0).text().contains("--timeout"));
    assert!(farm.run("vera", "help --json").await.expect(0).objects().len() > 10);
    // No command at all.
    let told = answer(farm.ssh("vera", &["-T"], ""), &[]).await.expect(0);
    assert!(told.text().contains("\nsubmit "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_do_only_what_its_role_may() {
    let Some(farm) = farm().await else { return };
    for (name, line, message) in [
        (
            "vera",
            "cancel --where-tag a=b",
            "your key is a viewer; cancel needs operator, or the submitter’s own key",
        ),
        ("vera", "submit -", "your key is a viewer; submit needs submitter"),
        ("amber", "builds", "your key is an agent; builds needs viewer"),
        ("olga", "check", "your key is an operator; check needs admin"),
    ] {
        let answered = farm.run(name, line).await.expect(4);
        assert!(answered.err.contains(message), "{}", answered.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_derivation_is_refused_with_the_way_to_send_it() {
    let Some(farm) = farm().await else { return };
    let (base, top) = pair("unknown");
    let answered = farm.run("sam", &format!("submit {}", top.path)).await.expect(3);
    assert!(answered.err.contains("steading submit") && answered.err.contains("--closure"));
    let listed = format!("{}\n\n{}\n", base.path, top.path);
    farm.feed("sam", "submit -", listed.as_bytes()).await.expect(3);
    let absent = "01890a5d-ac96-774b-bcce-b302099a8057";
    for verb in ["show", "why", "log", "wait", "cancel"] {
        let answered = farm.run("olga", &format!("{verb} {absent}")).await.expect(3);
        assert!(answered.err.contains("there is no build"), "{}", answered.err);
    }
    for verb in ["nar", "outputs"] {
        farm.run("vera", &format!("{verb} {}", base.out)).await.expect(3);
    }
    farm.run("vera", "wait --where-tag no=such").await.expect(3);
    assert_eq!(farm.run("vera", "builds --json").await.expect(0).text(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closure_is_submitted_and_its_builds_are_shown() {
    let Some(farm) = farm().await else { return };
    let (base, top) = pair("shown");
    let listed = format!("{}\n{}\n", base.path, top.path);
    let told = farm.feed("sam", "missing -", listed.as_bytes()).await.expect(0);
    assert_eq!(told.text(), listed);

    let closure = export(&[&base, &top]);
    let answered = farm
        .feed("sam", "submit --closure --tag branch=a --priority 50 --timeout 60", &closure)
        .await
        .expect(0);
    let ids = answered.lines();
    assert_eq!(ids.len(), 1);
    for part in ["received 2 new", "1 more build made for inputs", "priority is 20"] {
        assert!(answered.err.contains(part), "{}", answered.err);
    }
    assert!(answered.err.contains("waits for 1 input; even then, no agent can build this now"));
    let id = ids[0];
    assert_eq!(farm.feed("sam", "missing -", listed.as_bytes()).await.expect(0).text(), "");

    let builds = farm.run("vera", "builds --json").await.expect(0).objects();
    let states: Vec<&Value> = builds.iter().map(|build| &build["state"]).collect();
    assert_eq!(builds.len(), 2);
    assert!(states.contains(&&"waiting".into()) && states.contains(&&"ready".into()));
    for (state, drv) in [("waiting", &top), ("ready", &base)] {
        let told = farm.run("vera", &format!("builds --json --state {state}")).await.expect(0);
        assert_eq!(told.objects()[0]["derivation"], drv.path.to_string());
        assert_eq!(told.objects().len(), 1);
    }
    let told = farm.run("vera", "builds --drv shown-base* --where-tag branch=a").await.expect(0);
    assert!(told.text().contains("shown-base.drv") && told.lines().len() == 2);
    let told = farm.run("vera", "builds --limit 1").await.expect(0);
    assert!(told.lines().len() == 2 && told.err.contains("--limit"), "{}", told.err);
    let first = builds[0]["build"].as_str().unwrap();
    let told = farm.run("vera", &format!("builds --json --after {first}")).await.expect(0);
    assert_eq!(told.objects()[0]["build"], builds[1]["build"]);

    let shown = &farm.run("vera", &format!("show {id} --json")).await.expect(0).objects()[0];
    assert_eq!(shown["priority"], 20);
    assert_eq!(shown["tags"], serde_json::json!({ "branch": ["a"], "team": ["core"] }));
    assert_eq!(shown["timeout_ms"], 60_000);
    assert_eq!(shown["outputs"][0]["path"], top.out.to_string());
    let shown = farm.run("vera", &format!("show {id}")).await.expect(0);
    assert!(shown.text().contains("tag         branch=a\n"), "{}", shown.text());

    let why = &farm.run("vera", &format!("why {id} --json")).await.expect(0).objects()[0];
    assert_eq!(why["inputs"][0]["derivation"], base.path.to_string());
    assert_eq!(why["inputs"][0]["holds_back"], true);
    let why = farm.run("vera", &format!("why {id}")).await.expect(0);
    assert!(why.text().contains("held back by input"), "{}", why.text());
    assert!(why.text().contains("no agent was ever here"), "{}", why.text());

    let told = farm.run("vera", &format!("log {id}")).await.expect(3);
    assert!(told.err.contains("no agent ever had it"), "{}", told.err);
    let told = farm.run("vera", &format!("outputs {}", top.path)).await.expect(0);
    assert!(told.text().contains("not held"), "{}", told.text());
    let health = &farm.run("vera", "status --json").await.expect(0).objects()[0];
    assert_eq!(health["builds"], serde_json::json!({ "waiting": 1, "ready": 1 }));
    assert!(health["next"].as_str().unwrap().starts_with("start an agent"), "{health}");
    assert!(farm.run("vera", "status").await.expect(0).text().contains("1 waiting, 1 ready"));
    let checked = farm.run("ada", "check").await.expect(0);
    assert!(checked.text().is_empty() && checked.err.contains("all is well"), "{}", checked.err);
    let told = farm.run("vera", "agents").await.expect(0);
    assert!(told.err.contains("never seen: amber"), "{}", told.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_same_build() {
    let Some(farm) = farm().await else { return };
    let (base, _) = pair("keyed");
    let first = submit(&farm, "sam", &base, "--key nightly").await;
    let line = format!("submit --key nightly {} {}", base.path, base.path);
    let again = farm.run("sam", &line).await.expect(0);
    assert_eq!(again.lines(), [first.to_string(), first.to_string()]);
    // A derivation named twice in one request is one build, with a new key too.
    let line = format!("submit --key weekly {} {}", base.path, base.path);
    let twice = farm.run("sam", &line).await.expect(0);
    assert_eq!(twice.lines()[0], twice.lines()[1]);
    assert_ne!(twice.lines()[0], first.to_string());
    // Keys are everybody's own, and without one there is always a new build.
    let other = submit(&farm, "sue", &base, "--key nightly").await;
    let fresh = submit(&farm, "sam", &base, "").await;
    assert!(other != first && fresh != first);
    let told = answer(
        farm.ssh("sam", &["-o", "SetEnv=STEADING_KEY=nightly"], &format!("submit {}", base.path)),
        &[],
    )
    .await
    .expect(0);
    assert_eq!(told.text().trim(), first.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_wrong_is_refused_as_a_whole() {
    let Some(farm) = farm().await else { return };
    let (base, top) = pair("wrong");
    let closure = export(&[&base, &top]);
    let cut = &closure[..closure.len() - 20];
    let answered = farm.feed("sam", "submit --closure", cut).await.expect(5);
    assert!(answered.err.contains("ends early"), "{}", answered.err);
    let forged = stream([(&base.path, file_nar(&top.text))]);
    let answered = farm.feed("sam", "submit --closure", &forged).await.expect(5);
    assert!(answered.err.contains(&base.path.to_string()), "{}", answered.err);
    let alone = export(&[&top]);
    if farm.feed("sam", "missing -", base.path.to_string().as_bytes()).await.text().is_empty() {
        // The part of the cut stream that was verified stays known; nobody asked for builds.
        farm.feed("sam", "submit --closure", &alone).await.expect(0);
    } else {
        farm.feed("sam", "submit --closure", &alone).await.expect(5);
    }
    farm.feed("sam", "submit --closure", b"hello").await.expect(5);
    farm.feed("sam", "submit --closure", b"").await.expect(5);
    farm.run("ada", "check").await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn submitters_cancel_their_own_builds_and_operators_all() {
    let Some(farm) = farm().await else { return };
    let one = drv("one", "true", &[], &[]);
    let two = drv("two", "true", &[], &[]);
    let sams = submit(&farm, "sam", &one, "--tag round=1").await;
    let sues = submit(&farm, "sue", &two, "--tag round=1").await;
    let answered = farm.run("sue", &format!("cancel {sues} {sams}")).await.expect(4);
    assert!(answered.err.contains("sam’s"), "{}", answered.err);
    assert_eq!(farm.run("vera", "builds --state ready --json").await.objects().len(), 2);

    let answered = farm.run("sue", "cancel --where-tag round=1").await.expect(0);
    assert_eq!(answered.text(), format!("{sues} canceled\n"));
    assert!(answered.err.contains("1 build of other people"), "{}", answered.err);
    farm.run("sue", "cancel --where-tag round=1").await.expect(4);
    let answered = farm.run("sue", &format!("cancel {sues}")).await.expect(0);
    assert!(answered.text().is_empty() && answered.err.contains("over already: canceled"));
    let answered = farm.run("olga", &format!("cancel --json {sams}")).await.expect(0);
    assert_eq!(answered.objects()[0]["state"], "canceled");
    farm.run("olga", "cancel --where-tag round=1").await.expect(3);
    let why = farm.run("vera", &format!("why {sams}")).await.expect(0);
    assert!(why.text().contains("is canceled since"), "{}", why.text());
    let audit = audit(&farm);
    let line = format!("cancel --json {sams}");
    assert_eq!(audit.last().unwrap(), &("olga".to_owned(), farm.key("olga").fingerprint(), line));
    assert!(audit.iter().all(|(_, _, line)| !line.starts_with("why")), "{audit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_the_builds_or_with_the_time() {
    let Some(farm) = farm().await else { return };
    let (base, _) = pair("waited");
    let build = submit(&farm, "sam", &base, "--tag wave=1").await;
    let answered = farm.run("vera", &format!("wait {build} --timeout 0")).await.expect(1);
    assert!(answered.err.contains("the time is over; 1 build did not end"), "{}", answered.err);
    assert_eq!(answered.text(), "");

    let mut rested = farm.coordinator.rested.subscribe();
    let waiting = answer(farm.ssh("vera", &[], "wait --where-tag wave=1"), &[]);
    let line = format!("cancel {build}");
    let canceling = farm.run("sam", &line);
    let (waited, canceled) = tokio::join!(waiting, canceling);
    canceled.expect(0);
    assert_eq!(waited.expect(1).text(), format!("{build} canceled\n"));
    assert_eq!(rested.recv().await.unwrap().0, build);
    let waited = farm.run("vera", &format!("wait --json {build}")).await.expect(1);
    assert_eq!(waited.objects()[0]["state"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_is_followed_and_explained_with_what_it_blocks() {
    let Some(farm) = farm().await else { return };
    let (base, top) = pair("failing");
    let answered =
        farm.feed("sam", "submit --closure --tag r=1", &export(&[&base, &top])).await.expect(0);
    let blocked = answered.text().trim().to_owned();
    let builds = farm.run("vera", "builds --json --state ready").await.objects();
    let failing = builds[0]["build"].as_str().unwrap().to_owned();

    // Somebody follows before any agent has the build.
    let mut following = farm.ssh("vera", &[], &format!("log -f {failing}")).spawn().unwrap();
    let mut stderr = following.stderr.take().unwrap();
    let mut told = Vec::new();
    while !told.ends_with(b"\n") {
        assert_ne!(stderr.read_buf(&mut told).await.unwrap(), 0, "{}", told.escape_ascii());
    }
    assert!(String::from_utf8(told).unwrap().contains("is ready"));

    let mut agent = Agent::join(&farm).await;
    let (build, attempt) = agent.begin(&farm).await;
    assert_eq!(build.to_string(), failing);
    log(&farm, attempt, 0, "one\ntwo\n").await;
    let mut begun = [0; 4];
    following.stdout.as_mut().unwrap().read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"one\n");
    let why = farm.run("vera", &format!("why {failing}")).await.expect(0);
    assert!(why.text().contains("being built by amber"), "{}", why.text());
    let agents = &farm.run("vera", "agents --json").await.expect(0).objects()[0];
    assert_eq!(agents["running"], serde_json::json!([failing]));
    assert_eq!(agents["tags"], serde_json::json!(["site=lab"]));
    log(&farm, attempt, 8, "three").await;

    let waiting = answer(farm.ssh("vera", &[], "wait --where-tag r=1"), &[]);
    let (waited, ()) = tokio::join!(waiting, agent.fail(&farm, attempt));
    let waited = waited.expect(1);
    let mut ends = waited.lines();
    ends.sort_unstable();
    let mut expected = [format!("{failing} failed"), format!("{blocked} blocked")];
    expected.sort_unstable();
    assert_eq!(ends, expected);
    let followed = timeout(farm::COMMAND_MAX, following.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(followed.stdout, b"two\nthree");
    assert_eq!(followed.status.code(), Some(0));

    let why = farm.run("vera", &format!("why {failing}")).await.expect(0);
    assert!(why.text().contains("the builder exited with status 3"), "{}", why.text());
    let why = farm.run("vera", &format!("why {blocked} --json")).await.expect(0);
    assert_eq!(why.objects()[0]["failed_build"], failing);
    let told = farm.run("vera", &format!("log {failing} --tail 2 --attempt 1")).await.expect(0);
    assert_eq!(told.text(), "two\nthree");
    let told = farm.run("vera", &format!("log {failing} --json")).await.expect(0);
    assert_eq!(told.objects()[2]["line"], "three");
    farm.run("vera", &format!("log {failing} --attempt 2")).await.expect(3);
    let shown = &farm.run("vera", &format!("show --json {failing}")).await.objects()[0];
    assert_eq!(shown["attempts"][0]["end"], "exit");
    assert_eq!(shown["attempts"][0]["log_bytes"], 13);
    let answered = farm.run("olga", &format!("cancel {failing}")).await.expect(1);
    assert!(answered.err.contains("over already: failed"), "{}", answered.err);
    farm.run("ada", "check --json").await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_are_held_published_and_given_back() {
    let Some(farm) = farm().await else { return };
    let (path, nar) = source("notes.txt", &vec![b'x'; 300_000]);
    let (absent, _) = source("absent.txt", b"absent");
    let user = drv("user", "cat notes", &[], &[&path, &absent]);
    let sent = stream([(&path, nar.clone()), (&user.path, file_nar(&user.text))]);
    let answered = farm.feed("sam", "submit --closure", &sent).await.expect(0);
    assert!(answered.err.contains("1 source not held"), "{}", answered.err);
    assert!(answered.err.contains(&absent.to_string()), "{}", answered.err);

    let given = farm.run("vera", &format!("nar {path}")).await.expect(0);
    assert!(given.out == nar);
    let told = &farm.run("vera", &format!("nar {path} --json")).await.expect(0).objects()[0];
    assert_eq!(told["nar_bytes"], nar.len());
    let listed = format!("{path}\n{absent}\n");
    let many = farm.feed("vera", "nar - --json", listed.as_bytes()).await.expect(0).objects();
    assert_eq!(many, std::slice::from_ref(told));
    farm.feed("vera", "nar -", listed.as_bytes()).await.expect(2);
    let missing = farm.feed("sam", "missing - --json", listed.as_bytes()).await.expect(0);
    assert_eq!(missing.objects(), [serde_json::json!({ "path": absent.to_string() })]);
    let told = &farm.run("vera", &format!("outputs --json {path}")).await.expect(0).objects()[0];
    assert_eq!((&told["held"], &told["origin"]), (&true.into(), &"content-addressed".into()));
    assert!(told["url"].is_string() || told["unpublished"].is_string(), "{told}");

    // A file that is gone is found.
    farm.run("ada", "check").await.expect(0);
    let depot = farm.state_dir().join("depot");
    fs_err::rename(&depot, farm.state_dir().join("elsewhere")).unwrap();
    let checked = farm.run("ada", "check").await.expect(1);
    assert!(checked.text().contains("is gone"), "{}", checked.text());
    farm.run("vera", &format!("nar {path}")).await.expect(75);
    farm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing_behind() {
    let Some(farm) = farm().await else { return };
    let (base, _) = pair("left");
    let mut child = farm.ssh("sam", &[], "submit --closure").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let closure = export(&[&base]);
    tokio::io::AsyncWriteExt::write_all(&mut stdin, &closure[..100]).await.unwrap();
    child.kill().await.unwrap();
    drop(stdin);
    let build = submit(&farm, "sam", &base, "").await;
    let mut child = farm.ssh("vera", &[], &format!("wait {build}")).spawn().unwrap();
    child.kill().await.unwrap();
    assert_eq!(farm.run("vera", "builds --json").await.expect(0).objects().len(), 1);
    farm.stop().await;
}
