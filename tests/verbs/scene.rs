//! A farm in which something of everything has happened.

use crate::{
    closure::{Drv, drv, export, file_nar, source, stream},
    farm::{self, Answered, Farm, answer},
    wait,
};
use bytes::Bytes;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};
use steading::{
    config::Config,
    coordinator::engine_thread::ORDERS_MAX,
    core::{
        agent::{Abilities, SessionId},
        engine::{Input, Order},
        id::{AttemptId, BuildId, InstanceId},
        outcome::{BuildFailure, Outcome},
        store_path::{StoreDir, StorePath},
    },
    ssh::{Role, host_key},
};
use tokio::{process::Command, sync::mpsc, time::timeout};

/// Everybody, one of each role.
const PEOPLE: [(Role, &str, &str); 5] = [
    (Role::Viewer, "vera", ""),
    (Role::Submitter, "sam", ""),
    (Role::Operator, "olga", ""),
    (Role::Admin, "ada", ""),
    (Role::Agent, "amber", ""),
];

/// Who comes with a key of their own each time, which is known nowhere.
pub(crate) const STRANGER: &str = "a stranger";

/// The farm, and what lines may name.
pub(crate) struct Scene {
    pub(crate) farm: Farm,
    failed: BuildId,
    queued: BuildId,
    drv: Drv,
    source: StorePath,
    nowhere: StorePath,
    /// An event that a hook failed on.
    delivery: i64,
    /// Agents that are connected; their sessions end with their orders.
    _orders: Vec<mpsc::Receiver<Order>>,
    /// How many builds, agents and keys were made for one line each.
    made: AtomicU64,
}

impl Scene {
    /// Starts; `None`, with the reason printed, where there is no `ssh`.
    pub(crate) async fn start() -> Option<Self> {
        let farm = Farm::start(&Config::default(), &PEOPLE).await?;
        install_hook(&farm);
        let (mut amber, session) = (join(&farm, "amber", "x86_64-linux", 1).await, SessionId(1));
        let falls = drv("falls", "echo falls; exit 3", &[], &[]);
        let failed = submit(&farm, &falls, "").await;
        let attempt = allocated(&mut amber).await;
        let text = Bytes::from_static(b"the first line\nthe second line\n");
        farm.coordinator.logs.append(attempt, 0, text).await.unwrap();
        let engine = &farm.coordinator.engine;
        engine.tell(Input::Started { session, attempt }).await.unwrap();
        // So that it gets nothing more.
        farm.run("olga", "agents pause amber --reason 'for the test'").await.expect(0);
        let outcome = Outcome::Failed(BuildFailure::Exit(3));
        engine.tell(Input::Finished { session, attempt, outcome }).await.unwrap();
        farm.run("vera", &format!("wait {failed}")).await.expect(1);
        let birch = join(&farm, "birch", "riscv64-linux", 2).await;

        let (source, nar) = source("notes.txt", b"notes");
        let (nowhere, _) = crate::closure::source("nowhere.drv", b"nowhere");
        let held = drv("held", "cat notes", &[], &[&source]);
        let sent = stream([(&source, nar), (&held.path, file_nar(&held.text))]);
        let told = farm.feed("sam", "submit --closure", &sent).await.expect(0);
        let queued = told.text().trim().parse().unwrap();
        leave_spare(&farm).await;
        let nobody = drv("unplaceable", "true", &[], &[]);
        submit(&farm, &nobody, "--agent nobody").await;
        let delivery = failed_delivery(&farm);
        let (orders, made) = (vec![amber, birch], AtomicU64::new(0));
        let drv = held;
        Some(Self { farm, failed, queued, drv, source, nowhere, delivery, _orders: orders, made })
    }

    /// Puts what there is into a line.
    pub(crate) async fn fill(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (name, value) in [
            ("{failed}", self.failed.to_string()),
            ("{queued}", self.queued.to_string()),
            ("{drv}", self.drv.path.to_string()),
            ("{source}", self.source.to_string()),
            ("{nowhere}", self.nowhere.to_string()),
            ("{delivery}", self.delivery.to_string()),
            ("{absent}", "01890a5d-ac96-774b-bcce-b302099a8057".to_owned()),
            ("{uuid}", "01890a5d-ac96-774b-bcce-b302099a8058".to_owned()),
        ] {
            line = line.replace(name, &value);
        }
        if line.contains("{fresh}") {
            line = line.replace("{fresh}", &self.build().await.to_string());
        }
        if line.contains("{canceled}") {
            let build = self.build().await;
            self.farm.run("sam", &format!("cancel {build}")).await.expect(0);
            line = line.replace("{canceled}", &build.to_string());
        }
        if line.contains("{away}") {
            line = line.replace("{away}", &self.leaver().await);
        }
        if line.contains("{newcomer}") {
            line = line.replace("{newcomer}", &format!("newcomer{}", self.next()));
        }
        if line.contains("{pending}") {
            let name = self.stranger();
            self.enroll(&name, "enroll").await.expect(1);
            line = line.replace("{pending}", &self.farm.key(&name).fingerprint());
        }
        if line.contains("{token}") {
            line = line.replace("{token}", &self.token("token").await);
        }
        if line.contains("{token-id}") {
            line = line.replace("{token-id}", &self.token("id").await);
        }
        if line.contains("{stray}") {
            self.publish_stray();
            line = line.replace("{stray}", "");
        }
        line
    }

    /// Returns the command of a stock `ssh` as somebody, who may be a [`STRANGER`].
    pub(crate) fn ssh(&self, name: &str, options: &[&str], line: &str) -> Command {
        if name != STRANGER {
            return self.farm.ssh(name, options, line);
        }
        let options = [&["-l", "enroll"], options].concat();
        self.farm.ssh(&self.stranger(), &options, line)
    }

    /// Runs a line as somebody, who may be a [`STRANGER`].
    pub(crate) async fn run(&self, name: &str, line: &str) -> Answered {
        answer(self.ssh(name, &[], line), &[]).await
    }

    /// Ends the farm.
    pub(crate) async fn stop(self) {
        drop(self.farm.stop().await);
    }

    fn next(&self) -> u64 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns a build that nobody else knows.
    async fn build(&self) -> BuildId {
        submit(&self.farm, &drv(&format!("fresh-{}", self.next()), "true", &[], &[]), "").await
    }

    /// Makes a key that is known nowhere, and returns the name of its file.
    fn stranger(&self) -> String {
        let name = format!("stranger{}", self.next());
        drop(host_key::load_or_create(&self.key_file(&name)).unwrap());
        name
    }

    async fn enroll(&self, name: &str, line: &str) -> Answered {
        answer(self.farm.ssh(name, &["-l", "enroll"], line), &[]).await
    }

    /// Returns a field of a token that nobody has used.
    async fn token(&self, field: &str) -> String {
        let made = self.farm.run("ada", "keys token new --json").await.expect(0).objects();
        made[0][field].as_str().unwrap().to_owned()
    }

    /// Puts something among what is published that nobody has published.
    fn publish_stray(&self) {
        let name = format!("public/nix-store/{}.narinfo", "0".repeat(32));
        fs_err::write(self.farm.state_dir().join(name), "StorePath: /nix/store/x\n").unwrap();
    }

    /// Returns where the farm looks for somebody's key.
    fn key_file(&self, name: &str) -> PathBuf {
        self.farm.state_dir().parent().unwrap().join("clients").join(name)
    }

    /// Returns an agent that has been there.
    async fn leaver(&self) -> String {
        let number = self.next();
        let name = format!("cedar{number}");
        let session = 100 + number;
        drop(join(&self.farm, &name, "riscv64-linux", session).await);
        let leave = Input::Leave { session: SessionId(session) };
        self.farm.coordinator.engine.tell(leave).await.unwrap();
        name
    }
}

/// Sends something that nothing needs any more.
async fn leave_spare(farm: &Farm) {
    let (path, nar) = source("spare.txt", b"spare");
    let spare = drv("spare", "cat spare", &[], &[&path]);
    let sent = stream([(&path, nar), (&spare.path, file_nar(&spare.text))]);
    let build = farm.feed("sam", "submit --closure", &sent).await.expect(0);
    farm.run("sam", &format!("cancel {}", build.text().trim())).await.expect(0);
}

/// Puts a hook in place that fails on every build that fails.
fn install_hook(farm: &Farm) {
    let folder = farm.state_dir().join("hooks/build-failure.d");
    fs_err::create_dir_all(&folder).unwrap();
    let executable = || std::fs::Permissions::from_mode(0o755);
    for dir in [&folder, folder.parent().unwrap()] {
        fs_err::set_permissions(dir, executable()).unwrap();
    }
    let fresh = folder.join(".mail");
    fs_err::write(&fresh, "#!/bin/sh\necho no mail today\nexit 7\n").unwrap();
    fs_err::set_permissions(&fresh, executable()).unwrap();
    fs_err::rename(fresh, folder.join("mail")).unwrap();
}

/// Waits until the hook has failed, and returns what `hooks retry` calls that.
fn failed_delivery(farm: &Farm) -> i64 {
    let mut failed: Vec<Value> = Vec::new();
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        wait::until("the hook has failed", || {
            let told = runtime.block_on(farm.run("olga", "hooks --failed --json"));
            failed = told.expect(0).objects();
            !failed.is_empty()
        });
    });
    failed[0]["id"].as_i64().unwrap()
}

/// Submits as `sam`, and returns the build.
async fn submit(farm: &Farm, drv: &Drv, options: &str) -> BuildId {
    let line = format!("submit --closure {options}");
    farm.feed("sam", &line, &export(&[drv])).await.expect(0).text().trim().parse().unwrap()
}

/// Lets an agent with one slot join.
async fn join(farm: &Farm, name: &str, system: &str, session: u64) -> mpsc::Receiver<Order> {
    let (outbox, mut orders) = mpsc::channel(ORDERS_MAX);
    let engine = &farm.coordinator.engine;
    let session = SessionId(session);
    engine.attach(session, outbox).await.unwrap();
    let abilities = Abilities {
        store_dir: StoreDir::nix(),
        dialect: "direct".to_owned(),
        systems: vec![system.to_owned()],
        emulated_systems: Vec::new(),
        features: Vec::new(),
        slots: 1,
        tags: BTreeMap::new(),
    };
    let (name, instance) = (name.parse().unwrap(), InstanceId::from_bytes([7; 16]));
    let join = Input::Join { session, name, instance, abilities, held: Vec::new(), capacity: None };
    engine.tell(join).await.unwrap();
    let welcome = timeout(farm::COMMAND_MAX, orders.recv()).await.unwrap();
    assert!(matches!(welcome, Some(Order::Welcome { .. })));
    orders
}

async fn allocated(orders: &mut mpsc::Receiver<Order>) -> AttemptId {
    match timeout(farm::COMMAND_MAX, orders.recv()).await.unwrap() {
        Some(Order::Allocate { attempt, .. }) => attempt,
        other => panic!("{other:?}"),
    }
}
