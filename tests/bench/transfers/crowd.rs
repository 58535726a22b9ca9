//! Many agents that do nothing: what they cost, and how they all come back at once.

use super::{
    Bench,
    client::Agent,
    farm::Farm,
    measure::{self, cpu_of, memory_kib, seconds},
    report::{Bar, Peer, Row, Section},
    sshd::Sshd,
};
use crate::wait;
use std::{
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use steading::{
    core::store_path::StoreDir,
    protocol::message::{FromAgent, ToAgent},
    ssh::ClientConfig,
    telemetry::Clock,
};
use tokio::{
    sync::Semaphore,
    time::{interval, sleep},
};

/// How many connect at once. The door lets sixteen in per address that are not known yet, and here
/// all have the same address.
const CONNECTING_MAX: usize = 12;

/// How long an agent waits before it tries again.
const RETRY: Duration = Duration::from_millis(50);

/// How often an agent gives a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How many stock sessions are looked at.
const STOCK_SESSIONS: usize = 20;

/// How much memory one agent may cost, as a share of a stock session.
const SHARE_MAX: f64 = 0.2;

/// Agents that come back whenever they are thrown out.
struct Crowd {
    present: Arc<AtomicUsize>,
    members: Vec<tokio::task::JoinHandle<()>>,
}

/// Measures memory, and the way back after a crash.
pub(crate) fn measure(bench: &Bench) -> Section {
    let names: Vec<String> = (0..bench.options.agents).map(|number| format!("a{number}")).collect();
    let mut farm = Farm::start(bench, &names);
    let dir = farm.store_dir();
    let empty_kib = memory_kib(farm.coordinator_pid(), "status", "VmRSS");
    let clients = names.iter().map(|name| farm.client(name, farm.address())).collect();
    let clock = Clock::start();
    let crowd = Crowd::gather(bench, clients, &dir);
    crowd.until_all_are_here();
    let joined_s = seconds(clock.now().mono.as_ms());
    let joined_cpu = cpu_of(farm.coordinator_pid()).own_s;
    let full_kib = memory_kib(farm.coordinator_pid(), "status", "VmRSS");
    let count = crowd.count();

    farm.kill_coordinator();
    wait::until("all agents noticed", || crowd.present.load(Ordering::Relaxed) == 0);
    let clock = Clock::start();
    farm.restart_coordinator();
    crowd.until_all_are_here();
    let back_s = seconds(clock.now().mono.as_ms());
    let back_cpu = cpu_of(farm.coordinator_pid()).own_s;
    crowd.leave();

    let each = (full_kib - empty_kib) / count;
    let stock = match stock_session_kib(bench) {
        Ok(kib) => Peer::Measured("sshd, one session".to_owned(), kib, kib),
        Err(reason) => Peer::NotRun("sshd, one session".to_owned(), reason),
    };
    let row = |what: String, unit, value| {
        let (peer, bar) = (Peer::Nothing, Bar::None);
        Row { what, unit, ours: (value, value), peer, bar }
    };
    let all = names.len();
    let rows = vec![
        Row {
            what: "memory of the coordinator per idle agent".to_owned(),
            unit: "KiB",
            ours: (each, each),
            peer: stock,
            bar: Bar::Share(SHARE_MAX),
        },
        row(format!("{all} agents connect"), "s", joined_s),
        row(format!("{all} agents connect, coordinator"), "CPU s", joined_cpu),
        row(format!("kill -9, start, {all} agents are back"), "s", back_s),
        row(format!("{all} agents are back, coordinator"), "CPU s", back_cpu),
    ];
    let about = format!(
        "{all} control sessions from one process; growth of the coordinator's resident memory. \
         sshd: the proportional share of {STOCK_SESSIONS} idle sessions. {CONNECTING_MAX} connect \
         at a time, since all have one address."
    );
    Section { part: "agents", about, rows }
}

impl Crowd {
    fn gather(bench: &Bench, clients: Vec<ClientConfig>, dir: &StoreDir) -> Self {
        let present = Arc::new(AtomicUsize::new(0));
        let turns = Arc::new(Semaphore::new(CONNECTING_MAX));
        let member = |client| {
            let (present, turns) = (Arc::clone(&present), Arc::clone(&turns));
            bench.runtime.spawn(stay(client, dir.clone(), turns, present))
        };
        let members = clients.into_iter().map(member).collect();
        Self { present, members }
    }

    #[expect(clippy::cast_precision_loss, reason = "some thousand at most")]
    fn count(&self) -> f64 {
        self.members.len() as f64
    }

    fn until_all_are_here(&self) {
        wait::until("all agents are connected", || {
            self.present.load(Ordering::Relaxed) == self.members.len()
        });
    }

    fn leave(self) {
        self.members.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Connects again and again.
async fn stay(
    client: ClientConfig,
    dir: StoreDir,
    turns: Arc<Semaphore>,
    present: Arc<AtomicUsize>,
) {
    loop {
        let turn = turns.acquire().await.unwrap();
        let joined = Agent::join(&client, &dir, 1).await;
        drop(turn);
        if let Some(agent) = joined {
            present.fetch_add(1, Ordering::Relaxed);
            idle(agent).await;
            present.fetch_sub(1, Ordering::Relaxed);
        }
        sleep(RETRY).await;
    }
}

/// Does nothing until the session ends.
async fn idle(mut agent: Agent) {
    let mut beat = interval(HEARTBEAT);
    loop {
        tokio::select! {
            message = agent.control.next::<ToAgent>() => match message {
                Some(ToAgent::Heartbeat {}) => {}
                Some(other) => panic!("nothing was asked for: {other:?}"),
                None => return,
            },
            _ = beat.tick() => {
                if agent.control.say(&FromAgent::Heartbeat {}).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Returns what one idle session of the stock server takes.
fn stock_session_kib(bench: &Bench) -> Result<f64, String> {
    let sshd = Sshd::start(&bench.scratch, None)?;
    let client = || {
        let mut ssh = sshd.ssh("echo here; exec cat");
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut clients: Vec<Child> = (0..STOCK_SESSIONS).map(|_| client()).collect();
    for client in &mut clients {
        let mut line = [0; 5];
        std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut line).unwrap();
    }
    let is_server = |pid: &u32| {
        fs_err::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sshd")
    };
    let sessions = sshd.sessions();
    let servers = sessions.iter().filter(|pid| is_server(pid));
    let total: f64 = servers.map(|pid| memory_kib(*pid, "smaps_rollup", "Pss")).sum();
    clients.iter_mut().for_each(measure::kill);
    #[expect(clippy::cast_precision_loss, reason = "twenty")]
    Ok(total / STOCK_SESSIONS as f64)
}
