//! What operators decide about agents, with the stock `ssh` against a coordinator in this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod closure;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod farm;

use closure::{drv, export};
use farm::Farm;
use serde_json::Value;
use std::collections::BTreeMap;
use steading::{
    config::Config,
    coordinator::engine_thread::ORDERS_MAX,
    core::{
        agent::{Abilities, SessionId},
        engine::{Input, Order},
        id::{AttemptId, BuildId, InstanceId},
        outcome::{Outcome, SetupFailure},
        store_path::StoreDir,
    },
    ssh::Role,
};
use tokio::{sync::mpsc, time::timeout};

const PEOPLE: [(Role, &str, &str); 5] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", ""),
    (Role::Operator, "olga", ""),
    (Role::Agent, "amber", "tags=\"site=lab\""),
    (Role::Agent, "birch", ""),
];

async fn farm() -> Option<Farm> {
    let config = Config { quarantine_after: 2, ..Config::default() };
    Farm::start(&config, &PEOPLE).await
}

/// An agent with two slots that does what a test says.
struct Agent {
    session: SessionId,
    orders: mpsc::Receiver<Order>,
}

impl Agent {
    async fn join(farm: &Farm, name: &str, session: u64) -> Self {
        let session = SessionId(1_000_000 + session);
        let (outbox, orders) = mpsc::channel(ORDERS_MAX);
        let engine = &farm.coordinator.engine;
        engine.attach(session, outbox).await.unwrap();
        let abilities = Abilities {
            store_dir: StoreDir::nix(),
            dialect: "direct".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            tags: BTreeMap::default(),
            slots: 2,
        };
        let instance = InstanceId::from_bytes([7; 16]);
        let name = name.parse().unwrap();
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

    async fn given(&mut self) -> (BuildId, AttemptId) {
        match self.order().await {
            Order::Allocate { attempt, build, .. } => (build, attempt),
            other => panic!("{other:?}"),
        }
    }

    async fn cannot_begin(&mut self, farm: &Farm, attempt: AttemptId, failure: SetupFailure) {
        let outcome = Outcome::SetupFailed(failure);
        let finished = Input::Finished { session: self.session, attempt, outcome };
        farm.coordinator.engine.tell(finished).await.unwrap();
        assert!(matches!(self.order().await, Order::Settled { .. }));
    }

    async fn leave(self, farm: &Farm) {
        farm.coordinator.engine.tell(Input::Leave { session: self.session }).await.unwrap();
    }
}

async fn submit(farm: &Farm, name: &str) -> BuildId {
    let drv = drv(name, "echo x > $out", &[], &[]);
    let submitted = farm.feed("sam", "submit --closure", &export(&[&drv])).await.expect(0);
    submitted.text().trim().parse().unwrap()
}

/// Runs a line with `--json` and returns the one object of its answer.
async fn object(farm: &Farm, who: &str, line: &str) -> Value {
    let mut objects = farm.run(who, &format!("{line} --json")).await.expect(0).objects();
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.pop().unwrap()
}

/// Who changed what: principal and line, without those who were refused.
fn audit(farm: &Farm) -> Vec<(String, String)> {
    let database = rusqlite::Connection::open(farm.state_dir().join("steading.db")).unwrap();
    let mut select =
        database.prepare("SELECT principal, line FROM audit WHERE status < 2 ORDER BY id").unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_operators_decide_and_words_are_checked() {
    let Some(farm) = farm().await else { return };
    let _amber = Agent::join(&farm, "amber", 1).await;
    for verb in ["pause", "drain", "resume", "rm"] {
        for name in ["vera", "sam"] {
            // The role comes first: whoever may not, learns nothing.
            let told = farm.run(name, &format!("agents {verb} nobody")).await.expect(4);
            let needed = format!("agents {verb} needs operator");
            assert!(told.err.contains(&needed), "{}", told.err);
        }
        farm.run("amber", &format!("agents {verb} amber")).await.expect(4);
        let told = farm.run("olga", &format!("agents {verb} ambr")).await.expect(3);
        assert!(
            told.err.contains("there is no agent ‘ambr’; did you mean ‘amber’?"),
            "{}",
            told.err
        );
        let told = farm.run("olga", &format!("agents {verb} zelkova --json")).await.expect(3);
        assert!(told.err.contains("‘agents’ lists them") && told.text().is_empty(), "{}", told.err);
        let told = farm.run("olga", &format!("agents {verb} birch")).await.expect(3);
        assert!(told.err.contains("has a key, but was never seen"), "{}", told.err);
        farm.run("olga", &format!("agents {verb}")).await.expect(2);
        farm.run("olga", &format!("agents {verb} amber birch")).await.expect(2);
        farm.run("olga", &format!("agents {verb} 'a b'")).await.expect(2);
    }
    farm.run("vera", "agents show nobody").await.expect(3);
    farm.run("vera", "agents show").await.expect(2);
    for (line, status, part) in [
        ("agents puase amber", 2, "did you mean ‘pause’?"),
        ("agents pause amber --deadline tomorrow", 2, "write a deadline as"),
        ("agents pause amber --deadline 2020-01-01", 5, "over already"),
        ("agents drain amber --deadline 0s", 5, "over already"),
        ("agents resume amber --deadline 2h", 2, "--deadline"),
        ("agents rm amber", 5, "only an agent that is away can be forgotten"),
    ] {
        let told = farm.run("olga", line).await.expect(status);
        assert!(told.err.contains(part), "{line}: {}", told.err);
    }
    let long = "x".repeat(600);
    let told = farm.run("olga", &format!("agents pause amber --reason {long}")).await.expect(5);
    assert!(told.err.contains("at most 512 bytes"), "{}", told.err);
    assert_eq!(object(&farm, "vera", "agents").await["state"], "connected");
    assert_eq!(audit(&farm), []);
    let told = farm.run("vera", "help agents").await.expect(0);
    assert!(told.text().contains("quarantine") && told.text().contains("drain"), "{}", told.text());
    let told = farm.run("vera", "agents pause --help").await.expect(0);
    assert!(told.text().contains("--deadline"), "{}", told.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_agent_says_so_everywhere_and_goes_on_when_resumed() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1).await;
    let line = "agents pause amber --reason 'a new disk' --deadline 2h";
    let told = farm.run("olga", line).await.expect(0);
    assert!(told.text().starts_with("amber paused by olga until "), "{}", told.text());
    assert!(told.text().ends_with(": a new disk\n"), "{}", told.text());
    let build = submit(&farm, "paused").await;
    let why = farm.run("vera", &format!("why {build}")).await.expect(0);
    assert!(why.text().contains("amber could, but none takes builds just now"), "{}", why.text());
    assert!(why.text().contains("agent amber: paused by olga until "), "{}", why.text());
    let status = farm.run("vera", "status").await.expect(0);
    assert!(status.text().contains("agent     amber: paused by olga until"), "{}", status.text());
    let status = object(&farm, "vera", "status").await;
    assert_eq!((&status["agents_paused"], &status["slots_free"]), (&1.into(), &0.into()));
    assert_eq!(status["not_taking"][0]["agent"], "amber");
    let agents = farm.run("vera", "agents").await.expect(0);
    assert!(agents.text().contains("a new disk"), "{}", agents.text());
    let shown = object(&farm, "vera", "agents show amber").await;
    assert_eq!((&shown["state"], &shown["connected"]), (&"paused".into(), &true.into()));
    assert_eq!((&shown["reason"], &shown["decided_by"]), (&"a new disk".into(), &"olga".into()));
    assert!(shown["until"].as_str() > shown["decided_at"].as_str(), "{shown}");

    let told = object(&farm, "olga", "agents resume amber").await;
    assert_eq!((&told["state"], &told["reason"]), (&"connected".into(), &Value::Null));
    assert_eq!(amber.given().await.0, build);
    let shown = object(&farm, "vera", "agents show amber").await;
    assert_eq!(shown["running"], serde_json::json!([build.to_string()]));
    assert_eq!(shown["attempts"][0]["state"], "allocated");
    let lines: Vec<String> =
        audit(&farm).into_iter().map(|(who, line)| format!("{who} {line}")).collect();
    assert!(lines.contains(&format!("olga {line}")), "{lines:?}");
    assert!(lines.contains(&"olga agents resume amber --json".to_owned()), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_by_itself() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1).await;
    farm.run("olga", "agents pause amber --deadline 1s").await.expect(0);
    let build = submit(&farm, "later").await;
    // Nothing else wakes the engine.
    assert_eq!(amber.given().await.0, build);
    assert_eq!(object(&farm, "vera", "agents").await["state"], "connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_draining_agent_has_at_the_deadline_goes_to_another() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1).await;
    let build = submit(&farm, "drained").await;
    let (_, attempt) = amber.given().await;
    let told = farm.run("olga", "agents drain amber --reason moves").await.expect(0);
    assert_eq!(told.text(), "amber draining by olga: moves\n");
    assert!(told.err.contains("1 build left"), "{}", told.err);
    let mut birch = Agent::join(&farm, "birch", 2).await;
    let other = submit(&farm, "other").await;
    assert_eq!(birch.given().await.0, other);
    let told = object(&farm, "olga", "agents drain amber --deadline 1s").await;
    // Where answering takes longer than that, it is over already.
    assert!(["draining", "drained"].contains(&told["state"].as_str().unwrap()), "{told}");
    assert_eq!(amber.order().await, Order::Cancel { attempt });
    assert_eq!(birch.given().await.0, build);
    let shown = object(&farm, "vera", "agents show amber").await;
    assert_eq!((&shown["state"], &shown["failures_in_a_row"]), (&"drained".into(), &0.into()));
    assert_eq!(shown["attempts"][0]["end"], "drained");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_away_can_be_forgotten() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1).await;
    let build = submit(&farm, "forgotten").await;
    amber.given().await;
    amber.leave(&farm).await;
    let told = farm.run("vera", "agents show amber").await.expect(0);
    assert!(told.text().contains("limit      away since "), "{}", told.text());
    let told = farm.run("olga", "agents rm amber").await.expect(0);
    assert_eq!(told.text(), "amber removed\n");
    assert!(told.err.contains("still has a key"), "{}", told.err);
    let told = farm.run("vera", &format!("show {build}")).await.expect(0);
    assert!(told.text().contains("was lost"), "{}", told.text());
    farm.run("olga", "agents rm amber --json").await.expect(3);
    let mut again = Agent::join(&farm, "amber", 2).await;
    assert_eq!(again.given().await.0, build);
    again.leave(&farm).await;
    let told = object(&farm, "olga", "agents rm amber").await;
    assert_eq!(told, serde_json::json!({ "agent": "amber", "state": "removed" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_in_a_row_quarantine_an_agent_until_it_is_resumed() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1).await;
    for name in ["one", "two"] {
        submit(&farm, name).await;
        let (_, attempt) = amber.given().await;
        let failure = SetupFailure::DaemonUnreachable("no socket".to_owned());
        amber.cannot_begin(&farm, attempt, failure).await;
    }
    let shown = object(&farm, "vera", "agents show amber").await;
    assert_eq!((&shown["state"], &shown["decided_by"]), (&"quarantined".into(), &Value::Null));
    assert_eq!(shown["failures_in_a_row"], 2);
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.ends_with("the last: daemon-unreachable: no socket"), "{reason}");
    let waiting = submit(&farm, "three").await;
    let why = farm.run("vera", &format!("why {waiting}")).await.expect(0);
    assert!(why.text().contains("agent amber: quarantined since "), "{}", why.text());
    let status = farm.run("vera", "status").await.expect(0);
    assert!(status.text().contains("next      see what is wrong with quarantined"));
    let by_itself = ("coordinator".to_owned(), format!("agents quarantine amber: {reason}"));
    assert!(audit(&farm).contains(&by_itself), "{:?}", audit(&farm));
    let told = farm.run("olga", "agents resume amber").await.expect(0);
    assert_eq!(told.text(), "amber takes builds\n");
    assert_eq!(amber.given().await.0, waiting);
    assert_eq!(object(&farm, "vera", "agents").await["failures_in_a_row"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_less_just_now_is_said_in_its_words() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1).await;
    let engine = &farm.coordinator.engine;
    let reason = Some("the load is high".to_owned());
    let capacity = Input::Capacity { session: amber.session, slots: 0, reason };
    engine.tell(capacity).await.unwrap();
    let build = submit(&farm, "busy").await;
    let why = farm.run("vera", &format!("why {build}")).await.expect(0);
    let words = "agent amber: it takes no builds just now: the load is high";
    assert!(why.text().contains(words), "{}", why.text());
    let shown = object(&farm, "vera", "agents").await;
    assert_eq!((&shown["capacity"], &shown["slots"]), (&0.into(), &2.into()));
    assert_eq!(shown["capacity_reason"], "the load is high");

    engine.close_intake(Some("the disk is full".to_owned())).await.unwrap();
    let capacity = Input::Capacity { session: amber.session, slots: 2, reason: None };
    engine.tell(capacity).await.unwrap();
    let why = farm.run("vera", &format!("why {build}")).await.expect(0);
    assert!(why.text().contains("gives nothing to agents just now: the disk is full"));
    let status = farm.run("vera", "status").await.expect(0);
    assert!(status.text().contains("stopped   nothing is given to agents: the disk is full"));
    engine.close_intake(None).await.unwrap();
    assert_eq!(amber.given().await.0, build);
}
