//! What people may ask of the planner, with the stock `ssh` against a coordinator in this process:
//! when, by whom and in which order builds are tried, held, changed, replaced and tried again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/closure.rs"]
#[expect(dead_code, reason = "other tests have derivations with several outputs")]
mod closure;
#[path = "common/farm.rs"]
#[expect(dead_code, reason = "other tests talk to agents and stop farms")]
mod farm;

use closure::{Drv, drv, export};
use farm::Farm;
use std::collections::BTreeMap;
use steading::{
    config::{Config, Presence, Source},
    coordinator::engine_thread::ORDERS_MAX,
    core::{
        agent::{Abilities, SessionId},
        engine::{Input, Order},
        id::{AttemptId, BuildId, InstanceId},
        outcome::{BuildFailure, Outcome, SetupFailure},
        retry::Retries,
        store_path::StoreDir,
    },
    ssh::Role,
};
use tokio::{sync::mpsc, time::timeout};

const PEOPLE: [(Role, &str, &str); 7] = [
    (Role::Admin, "ada", ""),
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", ""),
    (Role::Submitter, "sue", "max-priority=5"),
    (Role::Operator, "olga", ""),
    (Role::Agent, "amber", ""),
    (Role::Agent, "birch", ""),
];

async fn farm() -> Option<Farm> {
    Farm::start(&Config::default(), &PEOPLE).await
}

/// A derivation that needs nothing.
fn plain(name: &str) -> Drv {
    drv(name, "echo > $out", &[], &[])
}

/// Submits derivations as somebody, and returns the builds.
async fn submit(farm: &Farm, name: &str, drvs: &[&Drv], options: &str) -> Vec<BuildId> {
    let line = format!("submit --closure {options}");
    let answered = farm.feed(name, &line, &export(drvs)).await.expect(0);
    answered.lines().iter().map(|line| line.parse().unwrap()).collect()
}

/// Returns the printed state of a build.
async fn state(farm: &Farm, build: BuildId) -> String {
    let shown = farm.run("vera", &format!("show --json {build}")).await.expect(0);
    shown.objects()[0]["state"].as_str().unwrap().to_owned()
}

/// An agent that does what a test says.
struct Agent {
    session: SessionId,
    orders: mpsc::Receiver<Order>,
}

impl Agent {
    async fn join(
        farm: &Farm,
        name: &str,
        number: u8,
        change: impl FnOnce(&mut Abilities),
    ) -> Self {
        let session = SessionId(1_000_000 + u64::from(number));
        let (outbox, orders) = mpsc::channel(ORDERS_MAX);
        let engine = &farm.coordinator.engine;
        engine.attach(session, outbox).await.unwrap();
        let mut abilities = Abilities {
            store_dir: StoreDir::nix(),
            dialect: "direct".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            slots: 1,
            tags: BTreeMap::new(),
        };
        change(&mut abilities);
        let instance = InstanceId::from_bytes([number; 16]);
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

    /// Takes the next build.
    async fn takes(&mut self) -> (BuildId, AttemptId) {
        match self.order().await {
            Order::Allocate { attempt, build, .. } => (build, attempt),
            other => panic!("{other:?}"),
        }
    }

    async fn fails(&mut self, farm: &Farm, attempt: AttemptId) {
        let outcome = Outcome::Failed(BuildFailure::Exit(3));
        let finished = Input::Finished { session: self.session, attempt, outcome };
        farm.coordinator.engine.tell(finished).await.unwrap();
        assert!(matches!(self.order().await, Order::Settled { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_build_says_who_holds_it_and_waits_for_the_release() {
    let Some(farm) = farm().await else { return };
    let build = submit(&farm, "sam", &[&plain("a")], "").await[0];
    farm.run("sue", &format!("set {build} --hold")).await.expect(4);
    farm.run("sam", &format!("set {build}")).await.expect(2);
    let answered = farm.run("olga", &format!("set {build} --hold")).await.expect(0);
    assert_eq!(answered.text(), format!("{build} held\n"));
    let mut amber = Agent::join(&farm, "amber", 1, |_| ()).await;
    let why = farm.run("vera", &format!("why {build}")).await.expect(0);
    assert!(why.text().contains("olga holds it back since"), "{}", why.text());
    let why = farm.run("vera", &format!("why --json {build}")).await.expect(0);
    assert_eq!(why.objects()[0]["held_by"], "olga");
    assert_eq!(farm.run("vera", "builds --state held").await.lines().len(), 2);
    farm.run("sam", &format!("set {build} --release --tag note=free")).await.expect(0);
    assert_eq!(amber.takes().await.0, build);
    farm.run("vera", "wait --timeout 0 --where-tag note=free").await.expect(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_of_many_are_set_by_tag_and_under_the_ceiling_of_the_key() {
    // Otherwise sue's second build would go behind sam's first.
    let config = Config { fair_share: 0, ..Config::default() };
    let Some(farm) = Farm::start(&config, &PEOPLE).await else { return };
    let first = submit(&farm, "sam", &[&plain("a")], "").await[0];
    let others = submit(&farm, "sue", &[&plain("b"), &plain("c")], "--tag wave=1").await;
    let answered = farm.run("sue", "set --where-tag wave=1 --priority 50").await.expect(0);
    assert_eq!(answered.lines().len(), 2);
    assert!(answered.err.contains("the priority is 5"), "{}", answered.err);
    let mut amber = Agent::join(&farm, "amber", 1, |_| ()).await;
    let (build, attempt) = amber.takes().await;
    assert!(others.contains(&build));
    amber.fails(&farm, attempt).await;
    assert!(others.contains(&amber.takes().await.0));
    assert_eq!(state(&farm, first).await, "ready");
    let answered = farm.run("sue", &format!("set {build} --priority 1")).await.expect(1);
    assert!(answered.err.contains("over already: failed"), "{}", answered.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_is_tried_again_elsewhere_and_is_the_same_build() {
    let Some(farm) = farm().await else { return };
    let build = submit(&farm, "sam", &[&plain("a")], "--tag wave=1").await[0];
    let mut amber = Agent::join(&farm, "amber", 1, |_| ()).await;
    let (_, attempt) = amber.takes().await;
    amber.fails(&farm, attempt).await;
    farm.run("vera", &format!("wait {build}")).await.expect(1);
    farm.run("sue", &format!("retry {build}")).await.expect(4);
    let answered = farm.run("sam", &format!("retry {build} --not-agent amber")).await.expect(0);
    assert_eq!(answered.text(), format!("{build} ready\n"));
    let why = farm.run("vera", &format!("why {build}")).await.expect(0);
    assert!(why.text().contains("this agent does not get it"), "{}", why.text());
    let mut birch = Agent::join(&farm, "birch", 2, |_| ()).await;
    assert_eq!(birch.takes().await.0, build);
    let answered = farm.run("sam", "retry --where-tag wave=1").await.expect(1);
    assert!(answered.err.contains("with an agent just now"), "{}", answered.err);
    let shown = farm.run("vera", &format!("show --json {build}")).await.expect(0).objects();
    assert_eq!(shown[0]["failures"], 1);
    assert_eq!(shown[0]["attempts"].as_array().unwrap().len(), 2);
    farm.run("vera", "retry 00000000-0000-0000-0000-000000000000").await.expect(4);
    farm.run("sam", "retry 00000000-0000-0000-0000-000000000000").await.expect(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_says_when_and_by_whom_it_may_be_tried() {
    let Some(farm) = farm().await else { return };
    let mut amber = Agent::join(&farm, "amber", 1, |_| ()).await;
    let later = submit(&farm, "sam", &[&plain("later")], "--defer-until 2h").await[0];
    assert_eq!(state(&farm, later).await, "deferred");
    let why = farm.run("vera", &format!("why {later}")).await.expect(0);
    assert!(why.text().contains("not to be tried before"), "{}", why.text());
    let line = "submit --closure --agent birch --native-only";
    let answered = farm.feed("sam", line, &export(&[&plain("aimed")])).await.expect(0);
    let aimed: BuildId = answered.text().trim().parse().unwrap();
    assert!(answered.err.contains("the agent birch, no emulation"), "{}", answered.err);
    farm.run("sam", &format!("retry {later}")).await.expect(0);
    assert_eq!(amber.takes().await.0, later);
    let mut birch = Agent::join(&farm, "birch", 2, |it| {
        it.emulated_systems = std::mem::take(&mut it.systems);
    })
    .await;
    assert_eq!(state(&farm, aimed).await, "ready");
    let emulated = submit(&farm, "sam", &[&plain("emulated")], "--agent birch").await[0];
    assert_eq!(birch.takes().await.0, emulated);
    let shown = farm.run("vera", &format!("show --json {emulated}")).await.expect(0).objects();
    assert_eq!(shown[0]["attempts"][0]["emulated"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_may_be_answered_by_builds_that_are_there() {
    let Some(farm) = farm().await else { return };
    let a = plain("a");
    let chosen = "01890a5d-ac96-774b-bcce-b302099a8057";
    let made = submit(&farm, "sam", &[&a], &format!("--uuid {chosen}")).await[0];
    assert_eq!(made.to_string(), chosen);
    assert_eq!(submit(&farm, "sam", &[&a], &format!("--uuid {chosen}")).await, [made]);
    let line = format!("submit --closure --uuid {chosen}");
    farm.feed("sam", &line, &export(&[&plain("b")])).await.expect(5);
    farm.feed("sam", &line, &export(&[&a, &plain("b")])).await.expect(2);
    assert_eq!(submit(&farm, "sue", &[&a], "--skip-if-queued").await, [made]);
    assert_ne!(submit(&farm, "sue", &[&a], "--skip-if-built").await, [made]);
    assert_eq!(farm.run("vera", "builds --json").await.objects().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_superseded_or_needed_is_told_apart_from_the_rest() {
    let Some(farm) = farm().await else { return };
    let base = plain("base");
    let (old, new) = (drv("old", "true", &[&base], &[]), drv("new", "true", &[&base], &[]));
    let first = submit(&farm, "sam", &[&base, &old], "--tag branch=x").await;
    let line = "submit --closure --tag branch=x --replaces branch=x";
    let answered = farm.feed("sam", line, &export(&[&base, &new])).await.expect(0);
    assert!(answered.err.contains("1 build replaced by these"), "{}", answered.err);
    assert_eq!(state(&farm, first[0]).await, "canceled");
    let builds = farm.run("vera", "builds --json --drv *base.drv").await.objects();
    assert_eq!(builds.len(), 1);
    let needed = builds[0]["build"].as_str().unwrap();
    let answered = farm.run("sam", &format!("cancel {needed}")).await.expect(1);
    assert!(answered.err.contains("others need it"), "{}", answered.err);
    farm.run("sam", &format!("cancel --force {needed}")).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_build_is_grouped_by_what_it_asks_for() {
    let Some(farm) = farm().await else { return };
    let answered = farm.run("vera", "unplaceable").await.expect(0);
    assert!(answered.text().is_empty() && !answered.err.is_empty());
    let aimed = submit(&farm, "sam", &[&plain("a"), &plain("b")], "--agent nowhere").await;
    let _amber = Agent::join(&farm, "amber", 1, |it| it.slots = 0).await;
    submit(&farm, "sam", &[&plain("c")], "").await;
    let groups = farm.run("vera", "unplaceable --json").await.expect(0).objects();
    assert_eq!(groups.len(), 1);
    assert_eq!((&groups[0]["builds"], &groups[0]["ready"]), (&2.into(), &2.into()));
    assert_eq!(groups[0]["demands"][0], "the agent nowhere");
    assert_eq!(groups[0]["agents"][0]["agent"], "amber");
    let mut first = aimed.clone();
    first.sort();
    assert_eq!(groups[0]["first"][0], first[0].to_string());
    let text = farm.run("vera", "unplaceable").await.expect(0);
    assert!(text.text().contains("agent amber: only nowhere may have it"), "{}", text.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_strategy_is_switched_on_a_farm_that_goes_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let source = Source { path: file.path().to_owned(), presence: Presence::Required };
    let config = Config { source: Some(source), ..Config::default() };
    let Some(farm) = Farm::start(&config, &PEOPLE).await else { return };
    let base = plain("base");
    let top = drv("top", "true", &[&base], &[]);
    let line = "submit --closure --no-inputs";
    let answered =
        farm.feed("sam", &format!("{line} {}", top.path), &export(&[&base, &top])).await.expect(0);
    let build: BuildId = answered.text().trim().parse().unwrap();
    assert_eq!(state(&farm, build).await, "ready");
    fs_err::write(file.path(), "strategy = 'derivation-ordered'\nlog-cap = 1\n").unwrap();
    farm.run("olga", "reload").await.expect(4);
    let answered = farm.run("ada", "reload").await.expect(0);
    assert_eq!(answered.text(), "strategy holds from now on\nlog-cap needs a restart\n");
    assert_eq!(state(&farm, build).await, "waiting");
    fs_err::write(file.path(), "strategy = 'fast'\n").unwrap();
    let answered = farm.run("ada", "reload").await.expect(5);
    assert!(answered.err.contains("nothing was changed"), "{}", answered.err);
    fs_err::write(file.path(), "").unwrap();
    farm.run("ada", "reload").await.expect(0);
    assert_eq!(state(&farm, build).await, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_misses_is_built_and_what_fails_once_may_be_flaky() {
    let retry = Retries { exit: 1, ..Retries::default() };
    let Some(farm) = Farm::start(&Config { retry, ..Config::default() }, &PEOPLE).await else {
        return;
    };
    let base = plain("base");
    let top = drv("top", "true", &[&base], &[]);
    let line = format!("submit --closure --no-inputs --tag wave=7 {}", top.path);
    farm.feed("sam", &line, &export(&[&base, &top])).await.expect(0);
    let mut amber = Agent::join(&farm, "amber", 1, |_| ()).await;
    let (build, attempt) = amber.takes().await;
    let missing = SetupFailure::MissingInputs(vec![base.out.clone()]);
    let outcome = Outcome::SetupFailed(missing);
    let finished = Input::Finished { session: amber.session, attempt, outcome };
    farm.coordinator.engine.tell(finished).await.unwrap();
    assert!(matches!(amber.order().await, Order::Settled { .. }));
    let (implied, attempt) = amber.takes().await;
    assert_ne!(implied, build);
    assert_eq!(state(&farm, build).await, "waiting");
    let wave = farm.run("vera", "builds --where-tag wave=7 --json").await.objects();
    assert_eq!(wave.len(), 2);
    amber.fails(&farm, attempt).await;
    assert_eq!(state(&farm, implied).await, "deferred");
    let why = farm.run("vera", &format!("why {implied}")).await.expect(0);
    assert!(why.text().contains("1 attempt found it failing"), "{}", why.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ended_for_want_of_a_failed_build_is_tried_again_with_it() {
    let Some(farm) = farm().await else { return };
    let base = plain("base");
    let middle = drv("middle", "true", &[&base], &[]);
    let (top, other) = (drv("top", "true", &[&middle], &[]), plain("other"));
    let builds = submit(&farm, "sam", &[&base, &middle, &top, &other], "").await;
    farm.run("sam", &format!("cancel {} {}", builds[0], builds[1])).await.expect(0);
    let all = farm.run("vera", "builds --json").await.objects();
    let of = |drv: &Drv| {
        let found = all.iter().find(|build| build["derivation"] == drv.path.to_string());
        found.unwrap()["build"].as_str().unwrap().to_owned()
    };
    let answered = farm.run("sam", &format!("retry --with-dependents {}", of(&base))).await;
    let mut retried = answered.expect(0).lines().join("\n");
    retried.push('\n');
    assert!(retried.contains(&of(&base)) && retried.contains(&of(&middle)), "{retried}");
    assert!(retried.contains(&of(&top)) && !retried.contains(&of(&other)), "{retried}");
}
