//! The lane of one hook: the first try of each event, in order.

use super::{FAULT_PAUSE, Ground, LaneError, WAITING_MAX, again};
use crate::{
    coordinator::{engine_thread::EngineGone, event_line},
    core::{
        event::Cursor,
        hook::{HookChange, HookId},
    },
    hooks::{End, Hook, Ran},
    store::{EventRow, StoreError},
    telemetry,
};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How many events a lane passes over that are not of its kind before that is written down.
const UNNOTED_MAX: i64 = 4_096;
/// After how long without events it is written down all the same: what old events a lane has
/// passed must not look as if it had missed them when they are forgotten.
const NOTE_EVERY: Duration = Duration::from_mins(10);

/// A lane, on a task of its own.
pub(super) struct Lane {
    cancel: CancellationToken,
    ends: JoinHandle<()>,
}

/// How the two sides of a lane wake each other.
#[derive(Default)]
pub(super) struct Bells {
    /// Something failed for the first time.
    pub(super) failed: Notify,
    /// Something that had failed is settled.
    pub(super) settled: Notify,
}

impl Lane {
    /// Starts a lane behind a place.
    pub(super) fn start(
        ground: &Arc<Ground>,
        hook: Hook,
        place: Cursor,
        cancel: &CancellationToken,
    ) -> Self {
        let cancel = cancel.child_token();
        let ends = tokio::spawn(go_along(Arc::clone(ground), hook, place, cancel.clone()));
        Self { cancel, ends }
    }

    /// Ends a lane, and kills what it runs.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        if let Err(error) = self.ends.await {
            tracing::error!(%error, "the lane of a hook broke");
        }
    }
}

/// Goes along the events until canceled.
async fn go_along(ground: Arc<Ground>, hook: Hook, mut place: Cursor, cancel: CancellationToken) {
    loop {
        let bells = Bells::default();
        let mut passage = Passage::new(&ground, hook.clone(), place);
        let both = async {
            tokio::try_join!(passage.run(&bells), again::run(&ground, &hook, &bells)).map(drop)
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = both => ended,
        };
        match ended {
            Ok(()) | Err(LaneError::Stopping(EngineGone)) => return,
            Err(error @ LaneError::Store(_)) => {
                let error = telemetry::chain(&error);
                tracing::error!(error, hook = %hook.id, "the lane of a hook pauses");
            }
        }
        // What was not written down comes again.
        place = passage.noted;
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(FAULT_PAUSE) => {}
        }
    }
}

/// How a first try went.
struct Tried {
    cursor: Cursor,
    text: String,
    ran: Ran,
}

/// Where a lane is.
struct Passage {
    ground: Arc<Ground>,
    hook: Hook,
    /// What was read and not begun; at most what one read gives.
    queue: VecDeque<EventRow>,
    /// How far was read.
    read: Cursor,
    /// How far is written down.
    noted: Cursor,
    /// How many events were forgotten before they could be read, since that was last written down.
    lost: i64,
    /// What is being run.
    open: BTreeSet<Cursor>,
    runs: JoinSet<Result<Tried, StoreError>>,
    /// Whether so much is to be tried again that nothing is read.
    is_choked: bool,
}

impl Passage {
    fn new(ground: &Arc<Ground>, hook: Hook, place: Cursor) -> Self {
        Self {
            ground: Arc::clone(ground),
            hook,
            queue: VecDeque::new(),
            read: place,
            noted: place,
            lost: 0,
            open: BTreeSet::new(),
            runs: JoinSet::new(),
            is_choked: false,
        }
    }

    /// Goes along; ends with an error only.
    async fn run(&mut self, bells: &Bells) -> Result<(), LaneError> {
        let mut events = self.ground.coordinator.events.clone();
        let parallel = self.ground.settings.parallel_of(self.hook.id.event);
        loop {
            while self.runs.len() < parallel && self.begin() {}
            let is_idle = self.queue.is_empty() && self.runs.len() < parallel;
            if is_idle && *events.borrow_and_update() > self.read {
                self.is_choked = self.is_choked().await?;
                if !self.is_choked {
                    self.read_on().await?;
                    continue;
                }
            }
            let has_passed = self.passed() > self.noted;
            tokio::select! {
                Some(tried) = self.runs.join_next() => {
                    self.note_try(tried.expect("a run does not panic")?, bells).await?;
                }
                changed = events.changed(), if is_idle && !self.is_choked => {
                    changed.map_err(|_| EngineGone)?;
                }
                () = bells.settled.notified(), if self.is_choked => {}
                () = sleep(NOTE_EVERY), if has_passed => self.note(Vec::new()).await?,
            }
        }
    }

    /// Begins with the next event. Returns whether there was one.
    fn begin(&mut self) -> bool {
        let Some(row) = self.queue.pop_front() else { return false };
        let (ground, hook, cursor) = (Arc::clone(&self.ground), self.hook.clone(), row.cursor);
        self.open.insert(cursor);
        self.runs.spawn(async move {
            let text = ground.read(move |reader| event_line::for_hook(reader, &row)).await?;
            let ran = ground.run(&hook, cursor, &text).await;
            Ok(Tried { cursor, text, ran })
        });
        true
    }

    /// Tells whether so much is to be tried again that nothing new is begun with.
    async fn is_choked(&self) -> Result<bool, StoreError> {
        let hook: HookId = self.hook.id.clone();
        let waiting = self.ground.read(move |r| r.count_waiting(&hook, WAITING_MAX)).await?;
        Ok(waiting >= WAITING_MAX)
    }

    /// Reads the next events.
    async fn read_on(&mut self) -> Result<(), LaneError> {
        let (after, kind) = (self.read, self.hook.id.event);
        let page = self.ground.read(move |reader| reader.events(after, Some(kind))).await?;
        let lost = page.extent.first.0.saturating_sub(after.0).saturating_sub(1);
        if lost > 0 {
            tracing::error!(hook = %self.hook.id, lost, "events were forgotten before a hook had them");
            self.lost = self.lost.saturating_add(lost);
        }
        self.read = page.through;
        self.queue.extend(page.events);
        let ahead = self.passed().0.saturating_sub(self.noted.0);
        if ahead > UNNOTED_MAX || self.lost > 0 {
            self.note(Vec::new()).await?;
        }
        Ok(())
    }

    /// Returns up to where everything was tried.
    fn passed(&self) -> Cursor {
        let first = self.open.first().copied();
        let next = self.queue.front().map(|row| row.cursor);
        match first.into_iter().chain(next).min() {
            Some(first) => first.plus(-1),
            None => self.read,
        }
    }

    /// Writes down how a first try went.
    async fn note_try(&mut self, tried: Tried, bells: &Bells) -> Result<(), LaneError> {
        let Tried { cursor, text, ran } = tried;
        self.open.remove(&cursor);
        if ran.end == End::Done {
            return self.note(Vec::new()).await;
        }
        let tried = self.ground.tried(ran, 1);
        let hook = self.hook.id.clone();
        self.note(vec![HookChange::Failed { hook, cursor, text, tried }]).await?;
        bells.failed.notify_one();
        Ok(())
    }

    /// Writes down how far the hook is, behind other changes.
    async fn note(&mut self, mut changes: Vec<HookChange>) -> Result<(), LaneError> {
        let through = self.passed();
        let (hook, lost) = (self.hook.id.clone(), self.lost);
        changes.push(HookChange::Passed { hook, through, lost });
        self.ground.note(changes).await?;
        (self.noted, self.lost) = (through, 0);
        Ok(())
    }
}
