//! The outbox of hooks: every event goes to every hook of its kind at least once, whatever happens.
//!
//! There is no copy of an event for each hook. A hook has a durable place among the events, which
//! moves on when the hook has taken an event, or has failed on it and that is written down; so what
//! was under way when the process ended comes again. When nobody has a hook, nothing is written.
//!
//! Each hook has a lane of its own: its first tries in the order of the events ([`lane`]), and
//! beside them the further tries of what it failed on ([`again`]). No lane waits for another, and
//! nobody waits for a lane. A lane that has failed on very much stops reading events until some of
//! that was settled; they stay where they are.

mod again;
mod environment;
mod lane;

pub(super) use environment::{EnvironmentError, let_in};

use super::{Coordinator, engine_thread::EngineGone};
use crate::{
    core::{
        change::Change,
        engine::{Answer, Input},
        event::Cursor,
        hook::{HookChange, HookId, Tried},
        time::Timestamp,
    },
    hooks::{self, Call, End, Found, Hook, HookSettings, Ran},
    store::{Reader, StoreError},
    telemetry,
};
use lane::Lane;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

/// How long the folders are not looked at again, however many events there are.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How often the folders are looked at when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After how long a lane goes on whose reading of the database failed.
const FAULT_PAUSE: Duration = Duration::from_secs(5);
/// What there is to be tried again of a hook, so that no further events are read for it.
pub const WAITING_MAX: u32 = 1_000;

/// Why a lane cannot go on.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A run that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Of which event.
    pub cursor: Cursor,
    /// Since when.
    pub since: Timestamp,
}

/// The last run of a hook that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRun {
    /// Of which event.
    pub cursor: Cursor,
    /// When it ended.
    pub at: Timestamp,
    /// How, in words.
    pub end: String,
    /// What it printed.
    pub output: Vec<u8>,
}

/// What goes on in hooks, for those who ask; cheap to clone. It is not the truth about deliveries:
/// the database has that.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<State>);

#[derive(Debug)]
struct State {
    shown: Mutex<Shown>,
    /// Counts the wishes that something be tried again.
    wishes: watch::Sender<u64>,
}

/// Bounded by the number of hooks, and of runs of each.
#[derive(Debug, Default)]
struct Shown {
    running: BTreeMap<HookId, Vec<Running>>,
    last: BTreeMap<HookId, LastRun>,
    problems: Vec<String>,
}

impl Default for Outbox {
    fn default() -> Self {
        let (wishes, _) = watch::channel(0);
        Self(Arc::new(State { shown: Mutex::default(), wishes }))
    }
}

impl Outbox {
    /// Returns the runs of a hook that go on.
    #[must_use]
    pub fn running(&self, hook: &HookId) -> Vec<Running> {
        self.shown().running.get(hook).cloned().unwrap_or_default()
    }

    /// Returns the last run of a hook that ended, if any did since the start.
    #[must_use]
    pub fn last(&self, hook: &HookId) -> Option<LastRun> {
        self.shown().last.get(hook).cloned()
    }

    /// Returns what is wrong with the folders of hooks, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.shown().problems.clone()
    }

    /// Lets lanes look for what they are to try again, after that was written down.
    pub fn wish(&self) {
        self.0.wishes.send_modify(|wishes| *wishes = wishes.wrapping_add(1));
    }

    fn wishes(&self) -> watch::Receiver<u64> {
        self.0.wishes.subscribe()
    }

    fn begin(&self, hook: &HookId, running: Running) {
        self.shown().running.entry(hook.clone()).or_default().push(running);
    }

    fn end(&self, hook: &HookId, cursor: Cursor, last: Option<LastRun>) {
        let mut shown = self.shown();
        if let Some(running) = shown.running.get_mut(hook) {
            running.retain(|one| one.cursor != cursor);
        }
        if let Some(last) = last {
            shown.last.insert(hook.clone(), last);
        }
    }

    fn forget(&self, hook: &HookId) {
        let mut shown = self.shown();
        shown.running.remove(hook);
        shown.last.remove(hook);
    }

    /// A panic elsewhere leaves nothing half changed, so a poisoned lock is not an error.
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all lanes need.
struct Ground {
    coordinator: Coordinator,
    settings: HookSettings,
    /// The variables of every run.
    environment: Vec<(OsString, OsString)>,
}

impl Ground {
    /// Reads from the database.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.coordinator.readers.read(query).await
    }

    /// Writes something down of hooks, and waits until it is durable.
    async fn note(&self, changes: Vec<HookChange>) -> Result<(), EngineGone> {
        let changes = changes.into_iter().map(|change| Change::Hook(Box::new(change))).collect();
        let record = move |token| Input::Record { token: Some(token), changes };
        let _recorded: Answer = self.coordinator.engine.request(record).await?;
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.coordinator.clock.now().wall
    }

    /// Runs a hook for an event, and shows that while it goes on.
    async fn run(&self, hook: &Hook, cursor: Cursor, text: &str) -> Ran {
        let outbox = &self.coordinator.hooks;
        let shown = ShownRun { outbox, hook: &hook.id, cursor };
        outbox.begin(&hook.id, Running { cursor, since: self.now() });
        let mut environment = self.environment.clone();
        environment.push(("STEADING_EVENT".into(), hook.id.event.word().into()));
        environment.push(("STEADING_CURSOR".into(), cursor.to_string().into()));
        let time_limit = Duration::from_secs(u64::from(self.settings.time_limit.get()));
        let call = Call { path: &hook.path, text, environment: &environment, time_limit };
        let ran = hooks::run(call).await;
        drop(shown);
        let (at, end, output) = (self.now(), ran.end.words(), ran.output.clone());
        outbox.end(&hook.id, cursor, Some(LastRun { cursor, at, end, output }));
        if ran.end != End::Done {
            let output = telemetry::printable(&ran.output);
            tracing::warn!(hook = %hook.id, %cursor, end = ran.end.words(), output, "a hook failed");
        }
        ran
    }

    /// Returns what is written down of a try that failed, which was not the first if there were
    /// others before.
    fn tried(&self, ran: Ran, tries: u32) -> Tried {
        let mut chance = [0];
        // Without randomness, hooks that failed together come back together.
        getrandom::fill(&mut chance).ok();
        let at = self.now();
        let pause = self.settings.pause_ms(tries, chance[0]);
        let next_at = pause.map(|ms| at.plus_ms(i64::try_from(ms).unwrap_or(i64::MAX)));
        Tried { at, end: ran.end.words(), output: ran.output, next_at }
    }
}

/// A run that is shown until this is dropped: it may be given up at any time.
struct ShownRun<'a> {
    outbox: &'a Outbox,
    hook: &'a HookId,
    cursor: Cursor,
}

impl Drop for ShownRun<'_> {
    fn drop(&mut self) {
        self.outbox.end(self.hook, self.cursor, None);
    }
}

/// Serves hooks until canceled; whatever runs then is killed, and comes again after the next start.
pub(super) async fn serve(
    coordinator: Coordinator,
    settings: HookSettings,
    environment: Vec<(OsString, OsString)>,
    cancel: CancellationToken,
) {
    let mut events = coordinator.events.clone();
    let dir = coordinator.state_dir.join("hooks");
    let ground = Arc::new(Ground { coordinator, settings, environment });
    let mut lanes = Lanes { ground, cancel: cancel.clone(), of: BTreeMap::new(), seen: None };
    loop {
        events.borrow_and_update();
        let dir = dir.clone();
        let own = rustix::process::getuid().as_raw();
        match spawn_blocking(move || hooks::look(&dir, own)).await {
            Ok(Ok(found)) => match lanes.follow(found).await {
                Ok(()) => {}
                Err(LaneError::Stopping(_)) => break,
                Err(error @ LaneError::Store(_)) => {
                    tracing::error!(error = telemetry::chain(&error), "hooks are not followed");
                    lanes.seen = None;
                }
            },
            Ok(Err(error)) => tracing::error!(%error, "the folders of hooks cannot be read"),
            Err(error) => tracing::error!(%error, "looking for hooks broke"),
        }
        let next = async {
            sleep(LOOK_PAUSE).await;
            tokio::select! {
                changed = events.changed() => changed.is_ok(),
                () = sleep(LOOK_EVERY) => true,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            goes_on = next => if !goes_on { break },
        }
    }
    lanes.stop().await;
}

/// The lanes of all hooks.
struct Lanes {
    ground: Arc<Ground>,
    cancel: CancellationToken,
    of: BTreeMap<HookId, Lane>,
    /// What was there when it was last looked.
    seen: Option<Found>,
}

impl Lanes {
    /// Begins with what is new, and ends what has gone.
    async fn follow(&mut self, found: Found) -> Result<(), LaneError> {
        if self.seen.as_ref() == Some(&found) {
            return Ok(());
        }
        let before = self.seen.take().map(|seen| seen.problems).unwrap_or_default();
        for problem in found.problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(problem, "a hook is not run");
        }
        self.ground.coordinator.hooks.shown().problems.clone_from(&found.problems);
        let wanted: BTreeSet<&HookId> = found.hooks.iter().map(|hook| &hook.id).collect();
        let gone: Vec<HookId> = self.of.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        for id in gone {
            if let Some(lane) = self.of.remove(&id) {
                lane.stop().await;
            }
        }
        let rows = self.ground.read(Reader::hooks).await?;
        let places: BTreeMap<HookId, Cursor> =
            rows.into_iter().map(|row| (row.hook, row.cursor)).collect();
        for hook in &found.hooks {
            if !self.of.contains_key(&hook.id) {
                let place = self.place(hook, places.get(&hook.id)).await?;
                let lane = Lane::start(&self.ground, hook.clone(), place, &self.cancel);
                self.of.insert(hook.id.clone(), lane);
            }
        }
        for hook in places.into_keys().filter(|id| !found.present.contains(id)) {
            tracing::info!(%hook, "a hook has gone");
            self.ground.coordinator.hooks.forget(&hook);
            self.ground.note(vec![HookChange::Forgotten { hook }]).await?;
        }
        self.seen = Some(found);
        Ok(())
    }

    /// Returns where a hook goes on. A new one begins with what happened since its file is there:
    /// so nothing is missing, however late it was seen.
    async fn place(&self, hook: &Hook, known: Option<&Cursor>) -> Result<Cursor, LaneError> {
        if let Some(place) = known {
            return Ok(*place);
        }
        let since = hook.since;
        let through = self.ground.read(move |reader| reader.last_event_before(since)).await?;
        tracing::info!(hook = %hook.id, %through, "a new hook");
        let found = HookChange::Found { hook: hook.id.clone(), through };
        self.ground.note(vec![found]).await?;
        Ok(through)
    }

    async fn stop(self) {
        for lane in self.of.into_values() {
            lane.stop().await;
        }
    }
}
