//! The database by itself, and together with the engine: the engine's stories are told again here,
//! and after every step a reload must give what is in memory.

mod agents;
mod care;
mod commit;
mod damage;
mod events;
mod late;
mod plans;
mod together;
mod unwritten;

use super::{Store, StoreError};
use crate::core::{
    agent::Abilities,
    build::{Blame, BuildState, Lease},
    change::{BuildRecord, Change, DerivationRecord, Limits, Origin},
    demands::Demands,
    engine::{
        Engine, Settings,
        tests::world::{self, SYSTEM},
    },
    hash::Sha256,
    id::{AttemptId, BuildId, InstanceId},
    plan::Class,
    store_path::{PathHash, StoreDir},
    time::{Monotonic, Now, Timestamp},
};
use std::sync::Arc;
use tempfile::TempDir;

/// A database in a directory of its own.
struct Fresh {
    store: Store,
    dir: TempDir,
}

const AT: Timestamp = Timestamp::from_ms(1_700_000_000_000);

impl Fresh {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("steading.db")).unwrap();
        Self { store, dir }
    }

    /// Opens it a second time.
    fn again(&self) -> Result<Store, StoreError> {
        Store::open(&self.dir.path().join("steading.db"))
    }

    /// Runs SQL that no program of ours runs.
    fn tamper(&self, sql: &str) -> rusqlite::Result<()> {
        self.store.connection.execute_batch(sql)
    }

    fn write(&mut self, changes: &[Change]) {
        self.store.commit(changes).unwrap();
    }

    /// Returns what the engine would know after a start.
    fn loaded(&self) -> Result<Engine, StoreError> {
        loaded(&self.store)
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        self.store.connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    /// Returns a database with a build of one derivation that amber has.
    fn with_a_leased_build() -> Self {
        let mut fresh = Self::new();
        fresh.write(&[derivation(), build(None), agent()]);
        fresh.write(&[attempt(), moved(&BuildState::Queued, &BuildState::Allocated(lease()))]);
        fresh
    }
}

fn loaded(store: &Store) -> Result<Engine, StoreError> {
    let now = Now { wall: AT, mono: Monotonic::from_ms(0) };
    store.restore(Settings::default(), now)
}

fn derivation() -> Change {
    let dir = StoreDir::guix();
    Change::Derivation(Arc::new(DerivationRecord {
        path: dir.path(PathHash::from_bytes([1; 20]), "a.drv").unwrap(),
        text: bytes::Bytes::from_static(b"Derive()"),
        class: Class { store_dir: dir, system: Some(SYSTEM.to_owned()), features: Vec::new() },
        inputs: Vec::new(),
        outputs: vec![("out".to_owned(), world::output("a"))],
        modulo: Sha256::of(b"a"),
        at: AT,
    }))
}

fn build_id() -> BuildId {
    BuildId::from_bytes([2; 16])
}

fn lease() -> Lease {
    Lease { attempt: AttemptId::from_bytes([3; 16]), agent: world::name("amber") }
}

fn build(key: Option<&str>) -> Change {
    Change::Build(Box::new(BuildRecord {
        id: build_id(),
        derivation: PathHash::from_bytes([1; 20]),
        origin: Origin::Asked,
        submitter: world::name("ada"),
        key: key.map(str::to_owned),
        priority: 0,
        submitted: AT,
        limits: Limits { timeout_ms: Some(60_000), max_silent_ms: None },
        tags: vec![("branch".to_owned(), "main".to_owned())],
        demands: Demands::default(),
        not_before: None,
        state: BuildState::Queued,
    }))
}

fn agent() -> Change {
    let abilities: Abilities = world::abilities(&[SYSTEM], 2);
    let instance = InstanceId::from_bytes([4; 16]);
    Change::Agent { name: world::name("amber"), instance, abilities, at: AT }
}

fn attempt() -> Change {
    let Lease { attempt, agent } = lease();
    Change::Attempt { attempt, build: build_id(), agent, emulated: false, at: AT }
}

fn moved(from: &BuildState, to: &BuildState) -> Change {
    let back = matches!(to, BuildState::Queued | BuildState::Deferred { .. });
    let blame = from.lease().filter(|_| back).map(|_| Blame::Infrastructure);
    Change::BuildMoved { build: build_id(), from: from.clone(), to: to.clone(), blame, at: AT }
}
