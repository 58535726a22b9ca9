//! Events with the stock `ssh`: what is told, that nothing is missing, and that whoever does not
//! read costs nobody anything.

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
use steading::{
    config::Config,
    coordinator::engine_thread::ORDERS_MAX,
    core::{
        agent::{Abilities, SessionId},
        change::Change,
        engine::{Input, Order},
        event::{Cursor, Detail, Event, EventKind},
        id::{BuildId, InstanceId},
        outcome::{BuildFailure, Outcome, SetupFailure},
        store_path::StoreDir,
    },
    ssh::Role,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    sync::mpsc,
    time::timeout,
};

const PEOPLE: [(Role, &str, &str); 4] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", ""),
    (Role::Operator, "olga", ""),
    (Role::Agent, "amber", ""),
];

/// How many follow at a time, one of whom reads nothing.
const FOLLOWERS: usize = 20;

async fn farm() -> Option<Farm> {
    Farm::start(&Config::default(), &PEOPLE).await
}

/// Somebody who follows events.
struct Follower {
    lines: Lines<BufReader<ChildStdout>>,
    ssh: Child,
}

impl Follower {
    fn start(farm: &Farm, line: &str) -> Self {
        let mut ssh = farm.ssh("vera", &[], line).spawn().unwrap();
        let lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
        Self { lines, ssh }
    }

    async fn next(&mut self) -> Value {
        let line = timeout(farm::COMMAND_MAX, self.lines.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line.unwrap()).unwrap()
    }
}

async fn record(farm: &Farm, changes: Vec<Change>) {
    let record = move |token| Input::Record { token: Some(token), changes };
    farm.coordinator.engine.request(record).await.unwrap();
}

/// Lets so many events happen that say so much.
async fn let_happen(farm: &Farm, count: usize, bytes: usize) {
    let detail = Detail { reason: Some("x".repeat(bytes)), ..Detail::default() };
    // Now, or the first look for old events forgets it.
    let at = farm.coordinator.clock.now().wall;
    let event = Event::new(EventKind::IntakeClosed, at).with(detail);
    let changes = vec![Change::Event(Box::new(event)); count];
    record(farm, changes).await;
}

async fn submit(farm: &Farm, name: &str) -> BuildId {
    let drv = drv(name, "echo x > $out", &[], &[]);
    let submitted = farm.feed("sam", "submit --closure", &export(&[&drv])).await.expect(0);
    submitted.text().trim().parse().unwrap()
}

/// An agent with one slot, by hand.
struct Agent {
    session: SessionId,
    orders: mpsc::Receiver<Order>,
}

impl Agent {
    async fn join(farm: &Farm) -> Self {
        let session = SessionId(1_000_000);
        let (outbox, orders) = mpsc::channel(ORDERS_MAX);
        farm.coordinator.engine.attach(session, outbox).await.unwrap();
        let abilities = Abilities {
            store_dir: StoreDir::nix(),
            dialect: "direct".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            tags: std::collections::BTreeMap::default(),
            slots: 1,
        };
        let (instance, name) = (InstanceId::from_bytes([7; 16]), "amber".parse().unwrap());
        let (held, capacity) = (Vec::new(), None);
        let join = Input::Join { session, name, instance, abilities, held, capacity };
        farm.coordinator.engine.tell(join).await.unwrap();
        Self { session, orders }
    }

    /// Takes the next build and says how it ends.
    async fn ends(&mut self, farm: &Farm, outcome: Outcome) {
        let attempt = loop {
            let order = timeout(farm::COMMAND_MAX, self.orders.recv()).await.unwrap().unwrap();
            if let Order::Allocate { attempt, .. } = order {
                break attempt;
            }
        };
        let session = self.session;
        farm.coordinator.engine.tell(Input::Started { session, attempt }).await.unwrap();
        let finished = Input::Finished { session, attempt, outcome };
        farm.coordinator.engine.tell(finished).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_builds_and_agents_is_told_in_order() {
    let Some(farm) = farm().await else { return };
    let mut vera = Follower::start(&farm, "events --since 0 --follow");
    assert_eq!(vera.next().await["type"], "coordinator-started");
    let build = submit(&farm, "plain").await;
    let mut amber = Agent::join(&farm).await;
    amber.ends(&farm, Outcome::SetupFailed(SetupFailure::DiskFull)).await;
    farm.run("sam", &format!("retry {build}")).await.expect(0);
    amber.ends(&farm, Outcome::Failed(BuildFailure::Exit(7))).await;
    farm.run("olga", "agents pause amber --reason 'new disk'").await.expect(0);
    farm.run("sam", &format!("retry {build}")).await.expect(0);
    farm.run("sam", &format!("cancel {build}")).await.expect(0);
    let left = Input::Leave { session: amber.session };
    farm.coordinator.engine.tell(left).await.unwrap();

    let mut told = Vec::new();
    let expected = [
        ("build-submitted", true, false),
        ("submission", false, false),
        ("agent-connected", false, true),
        ("build-started", true, true),
        ("build-deferred", true, true),
        ("build-started", true, true),
        ("build-failure", true, true),
        ("agent-paused", false, true),
        ("build-retried", true, false),
        ("build-canceled", true, false),
        ("agent-away", false, true),
    ];
    for (place, (kind, of_build, of_agent)) in (2..).zip(expected) {
        let event = vera.next().await;
        assert_eq!((&event["type"], &event["cursor"]), (&kind.into(), &place.into()), "{event}");
        let id = if of_build { build.to_string().into() } else { Value::Null };
        assert_eq!(event["build"], id, "{event}");
        let agent = if of_agent { "amber".into() } else { Value::Null };
        assert_eq!(event["agent"], agent, "{event}");
        assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
        told.push(event);
    }
    assert_eq!(told[1]["detail"]["by"], "sam");
    assert_eq!(told[4]["detail"]["end"], "disk-full");
    assert_eq!(told[4]["detail"]["blame"], "infrastructure");
    assert!(told[4]["detail"]["until"].as_str().unwrap().ends_with('Z'));
    assert_eq!(told[6]["detail"]["end"], "exit");
    assert!(told[6]["attempt"].is_string() && told[8]["attempt"].is_null());
    assert_eq!(told[7]["detail"]["reason"], "new disk");
    assert_eq!(told[7]["detail"]["by"], "olga");

    // The same for whoever asks later, of one type, and from any place.
    let all = farm.run("vera", "events").await.expect(0).objects();
    assert_eq!(all[1..], told);
    let starts = farm.run("vera", "events --type build-started --since 5").await.expect(0);
    assert_eq!(starts.objects(), [told[5].clone()]);
    farm.run("amber", "events").await.expect(4);
    let wrong = farm.run("vera", "events --type build-done").await.expect(2);
    assert!(wrong.err.contains("build-success"), "{}", wrong.err);
    vera.ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_blocks_many_is_told_once_with_their_number() {
    let Some(farm) = farm().await else { return };
    let bottom = drv("bottom", "exit 1", &[], &[]);
    let tops: Vec<_> = (0..20)
        .map(|number| drv(&format!("top-{number}"), "echo x > $out", &[&bottom], &[]))
        .collect();
    let mut all: Vec<_> = vec![&bottom];
    all.extend(&tops);
    farm.feed("sam", "submit --closure", &export(&all)).await.expect(0);
    let mut amber = Agent::join(&farm).await;
    let mut vera = Follower::start(&farm, "events --since 0 --follow --type build-blocked");
    amber.ends(&farm, Outcome::Failed(BuildFailure::Exit(1))).await;
    let blocked = vera.next().await;
    assert_eq!(blocked["detail"]["builds"], 20);
    let failed = farm.run("vera", "events --type build-failure").await.expect(0).objects();
    assert_eq!(failed[0]["build"], blocked["build"]);
    let again = farm.run("vera", "events --type build-blocked").await.expect(0).objects();
    assert_eq!(again.len(), 1);
    vera.ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_what_is_not_kept_any_more_is_told_so() {
    let Some(farm) = farm().await else { return };
    let_happen(&farm, 50, 10).await;
    record(&farm, vec![Change::EventsForgotten { through: Cursor(20) }]).await;
    let refused = farm.run("vera", "events --since 10").await.expect(5);
    assert!(refused.text().is_empty());
    assert!(refused.err.contains("behind 10 up to 20 are not kept"), "{}", refused.err);
    let kept = farm.run("vera", "events --since 20").await.expect(0).objects();
    assert_eq!((&kept[0]["cursor"], kept.len()), (&21.into(), 31));
    assert_eq!(farm.run("vera", "events --since 0").await.expect(0).objects(), kept);
    let ahead = farm.run("vera", "events --since 52 --follow").await.expect(5);
    assert!(ahead.err.contains("the last is 51"), "{}", ahead.err);
    farm.run("vera", "events --since -1").await.expect(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_follow_and_one_who_reads_nothing_costs_nobody_anything() {
    /// Far more than twenty connections need, and far less than what the idle one does not read.
    const GROWTH_KIB_MAX: u64 = 32 * 1024;
    const EVENTS: usize = 10_000;
    let Some(farm) = farm().await else { return };
    let idle = Follower::start(&farm, "events --since 0 --follow");
    let mut honest = Vec::new();
    for _ in 1..FOLLOWERS {
        let mut follower = Follower::start(&farm, "events --since 0 --follow");
        // One after the other: an address has only so many connections without a name.
        assert_eq!(follower.next().await["cursor"], 1);
        honest.push(follower);
    }
    let reading: Vec<_> = honest
        .into_iter()
        .map(|mut follower| {
            tokio::spawn(async move {
                for place in 2..=EVENTS {
                    assert_eq!(follower.next().await["cursor"], place, "a gap");
                }
                follower.ssh.kill().await.unwrap();
            })
        })
        .collect();
    for _ in 0..EVENTS / 100 {
        let_happen(&farm, 100, 400).await;
    }
    for follower in reading {
        follower.await.unwrap();
    }
    let before = resident_kib();
    // Of these, nobody takes any: 60 MiB and more would have to be somewhere.
    for _ in 0..120 {
        let_happen(&farm, 500, 1_000).await;
    }
    // Who follows now has them all, so the idle one was woken for them, too.
    let mut late = Follower::start(&farm, "events --since 69990 --follow");
    assert_eq!(late.next().await["cursor"], 69_991);
    let growth = resident_kib().saturating_sub(before);
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB more");
    let mut idle = idle;
    assert!(idle.ssh.try_wait().unwrap().is_none(), "it is still followed");
    idle.ssh.kill().await.unwrap();
    late.ssh.kill().await.unwrap();
}

/// Returns how much memory this process has, in KiB.
fn resident_kib() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
