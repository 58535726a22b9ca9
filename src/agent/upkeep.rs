//! Looks after the machine: how many builds it wants just now, and room for them.
//!
//! Everything is looked at again and again, because the load of a machine has no event. What is
//! wanted changes seldom ([`gates`]), and only changes are told.

pub mod gates;
pub(crate) mod readings;

use super::{AgentConfig, blocking::on_thread};
use crate::{
    builders::{self, BuilderKind},
    core::{agent::Capacity, time::Monotonic},
    telemetry::{self, Clock},
};
use gates::{Gates, Limits, Reading};
use readings::Sensors;
use std::{path::PathBuf, time::Duration};
use tokio::sync::watch;

/// The pause between two looks at the machine.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// The pause between the end of one garbage collection and the next: what could be freed is gone
/// then, and searching a large store again costs minutes.
const COLLECTION_PAUSE: Duration = Duration::from_mins(5);

/// How the machine is looked after. It may change while the agent runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Upkeep {
    /// What keeps the machine from taking builds.
    pub limits: Limits,
    /// Whether the store may be collected when there is too little room in it.
    pub collection: Collection,
}

impl Upkeep {
    /// Returns these settings as ones that do not change.
    #[must_use]
    pub fn fixed(self) -> watch::Receiver<Self> {
        watch::channel(self).1
    }
}

/// Whether the agent collects garbage.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Collection {
    /// When less is free than should be, as much as is missing and some more
    #[default]
    Auto,
    /// Never: somebody else sees to it
    Never,
}

/// Returns where the machine is read, for this configuration.
pub(crate) fn sensors(config: &AgentConfig) -> Sensors {
    let store = match &config.builder {
        BuilderKind::Nix { store_dir, .. } | BuilderKind::Guix { store_dir, .. } => {
            PathBuf::from(store_dir.as_str())
        }
        BuilderKind::Direct(place) => place.physical_dir.clone(),
    };
    Sensors { proc: "/proc".into(), store, state: config.state_dir.clone() }
}

/// Looks after one machine.
pub(super) struct Caretaker {
    sensors: Sensors,
    builder: BuilderKind,
    clock: Clock,
    settings: watch::Receiver<Upkeep>,
    running: watch::Receiver<u32>,
    gates: Gates,
    capacity: watch::Sender<Capacity>,
    /// How many bytes were free in the store at the last look.
    store_free: Option<u64>,
    /// When the store may be collected next.
    collects_at: Monotonic,
}

impl Caretaker {
    /// Looks at the machine for the first time, and returns who goes on with that, and what it
    /// says. `running` tells how many builds run.
    pub(super) fn new(
        config: &AgentConfig,
        clock: Clock,
        running: watch::Receiver<u32>,
    ) -> (Self, watch::Receiver<Capacity>) {
        let slots = config.slots.max(1);
        let mut settings = config.upkeep.clone();
        let limits = settings.borrow_and_update().limits.clone();
        let (capacity, told) = watch::channel(Capacity { slots, reason: None });
        let mut caretaker = Self {
            sensors: sensors(config),
            builder: config.builder.clone(),
            clock,
            settings,
            running,
            gates: Gates::new(slots, limits),
            capacity,
            store_free: None,
            collects_at: Monotonic::default(),
        };
        caretaker.judge(&caretaker.sensors.read());
        (caretaker, told)
    }

    /// Looks at the machine again and again. Never returns.
    pub(super) async fn run(mut self) {
        loop {
            self.make_room().await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_PAUSE) => {}
                Ok(()) = self.settings.changed() => {
                    let limits = self.settings.borrow_and_update().limits.clone();
                    tracing::info!(?limits, "limits of this machine changed");
                    self.gates.set_limits(limits);
                }
            }
            self.look().await;
        }
    }

    /// Looks at the machine. A filesystem that does not answer holds up nothing else.
    async fn look(&mut self) {
        let sensors = self.sensors.clone();
        match on_thread(move || sensors.read()).await {
            Ok(reading) => self.judge(&reading),
            Err(error) => tracing::warn!(%error, "the machine was not looked at"),
        }
    }

    /// Tells what is wanted, if that changed.
    fn judge(&mut self, reading: &Reading) {
        self.store_free = reading.store_free_bytes;
        let running = *self.running.borrow();
        let wanted = self.gates.judge(self.clock.now().mono, reading, running);
        self.capacity.send_if_modified(|told| {
            let changed = *told != wanted;
            if changed {
                let (slots, reason) = (wanted.slots, wanted.reason.as_deref().unwrap_or("none"));
                tracing::info!(slots, reason, "builds wanted at a time");
                *told = wanted;
            }
            changed
        });
    }

    /// Collects garbage when there is too little room in the store.
    async fn make_room(&mut self) {
        let (allowed, floor) = {
            let settings = self.settings.borrow();
            (settings.collection, settings.limits.free_bytes)
        };
        let now = self.clock.now().mono;
        let due = allowed == Collection::Auto && self.gates.wants_room() && now >= self.collects_at;
        let (true, Some(floor), Some(free)) = (due, floor, self.store_free) else { return };
        let bytes = missing_bytes(floor, free);
        tracing::info!(bytes, "too little room in the store: collecting garbage");
        let builder = self.builder.clone();
        let collected =
            on_thread(move || builders::open(builder).and_then(|mut open| open.collect(bytes)));
        // Looking goes on meanwhile: the gate is shut, but others may change.
        match self.looking_until(collected).await {
            Ok(Ok(freed_bytes)) => tracing::info!(freed_bytes, "garbage collected"),
            Ok(Err(error)) => {
                tracing::warn!(error = telemetry::chain(&error), "garbage not collected");
            }
            Err(error) => {
                tracing::warn!(error = telemetry::chain(&error), "garbage not collected");
            }
        }
        let pause = u64::try_from(COLLECTION_PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.collects_at = self.clock.now().mono.plus_ms(pause);
        self.look().await;
    }

    /// Goes on looking until `other` is done.
    async fn looking_until<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                () = tokio::time::sleep(LOOK_PAUSE) => self.look().await,
            }
        }
    }
}

/// Returns how many bytes to free so that the gate opens and does not shut again at once: a
/// quarter of the floor more than the floor.
const fn missing_bytes(floor: u64, free: u64) -> u64 {
    floor.saturating_add(floor / 4).saturating_sub(free)
}

/// Returns a number of bytes as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, bits) in UNITS {
        let whole = count >> bits;
        if whole > 0 {
            let tenths = ((count >> (bits - 10)) & 0x3ff) * 10 / 1024;
            return format!("{whole}.{tenths} {unit}");
        }
    }
    format!("{count} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_by_people() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1_023), "1023 bytes");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(bytes(20 << 30), "20.0 GiB");
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
    }

    #[test]
    fn more_is_freed_than_is_missing() {
        assert_eq!(missing_bytes(100, 90), 35);
        assert_eq!(missing_bytes(100, 200), 0);
        assert_eq!(missing_bytes(u64::MAX, 0), u64::MAX);
    }
}
