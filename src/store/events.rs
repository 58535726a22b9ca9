//! The table of events: written with the changes that they tell of, read in pages, forgotten in
//! slices.
//!
//! Events of one transaction that have nothing but a build or a path to tell them apart share a
//! row: a submission of a hundred thousand builds writes some two thousand rows of a kilobyte.

use super::{Reader, StoreError, doing, row};
use crate::core::{
    event::{Cursor, Event, EventKind, Subject},
    id::{AttemptId, BuildId},
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

const TABLE: &str = "events";

/// How many events share a row at most: with builds, a row of a kilobyte, of which three fit a
/// page of the database.
pub const EVENTS_PER_ROW_MAX: usize = 64;
/// How many rows one read looks at.
const ROWS_PER_READ: i64 = 128;
/// How many rows are forgotten at a time: a transaction of a few milliseconds.
const FORGOTTEN_AT_ONCE: i64 = 2_000;

/// An event as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its place.
    pub cursor: Cursor,
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// To which build.
    pub build: Option<BuildId>,
    /// To which path; just its hash when its nar is not held any more.
    pub path: Option<(PathHash, Option<StorePath>)>,
    /// In which attempt.
    pub attempt: Option<AttemptId>,
    /// Of which agent.
    pub agent: Option<String>,
    /// JSON of [`crate::core::event::Detail`].
    pub detail: Option<String>,
}

/// From where to where events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// The first that is kept; behind the last when there is none at all.
    pub first: Cursor,
    /// The last that happened.
    pub last: Cursor,
}

/// Some events, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    /// Which ones.
    pub events: Vec<EventRow>,
    /// How far was looked: what is wanted and not among them comes behind this place.
    pub through: Cursor,
    /// What was kept at that time.
    pub extent: Extent,
}

/// Returns the place of the last event.
pub(super) fn last(connection: &Connection) -> Result<Cursor, StoreError> {
    connection
        .prepare_cached("SELECT cursor + count - 1 FROM events ORDER BY cursor DESC LIMIT 1")
        .and_then(|mut select| select.query_row([], |row| row.get(0)).optional())
        .map(|last| Cursor(last.unwrap_or(0)))
        .map_err(doing("find the last event"))
}

/// Writes events behind the last one; returns the place of the last one then.
pub(super) fn append(
    connection: &Connection,
    last: Cursor,
    events: &[Event],
) -> Result<Cursor, StoreError> {
    let mut last = last;
    for events in events.chunk_by(share_a_row).flat_map(|run| run.chunks(EVENTS_PER_ROW_MAX)) {
        insert(connection, last.plus(1), events)?;
        last = last.plus(i64::try_from(events.len()).unwrap_or(i64::MAX));
    }
    Ok(last)
}

/// Tells whether two events that follow each other differ in what they are about only.
fn share_a_row(one: &Event, next: &Event) -> bool {
    let is_bare = |event: &Event| {
        event.attempt.is_none()
            && event.agent.is_none()
            && event.detail.is_none()
            && event.subject != Subject::Farm
    };
    (one.kind, one.at) == (next.kind, next.at) && is_bare(one) && is_bare(next)
}

fn insert(connection: &Connection, cursor: Cursor, events: &[Event]) -> Result<(), StoreError> {
    let Some(first) = events.first() else { return Ok(()) };
    let mut subject = Vec::new();
    for event in events {
        match &event.subject {
            Subject::Build(build) => subject.extend_from_slice(build.as_bytes()),
            Subject::Path(path) => subject.extend_from_slice(path.as_bytes()),
            Subject::Farm => {}
        }
    }
    let detail = first.detail.as_ref().map(serde_json::to_string).transpose();
    let detail = detail
        .map_err(|error| StoreError::Diverged(format!("an event cannot be written: {error}")))?;
    connection
        .prepare_cached(
            "INSERT INTO events (cursor, at, kind, count, subject, attempt, agent, detail)
             VALUES (:cursor, :at, :kind, :count, :subject, :attempt, :agent, :detail)",
        )
        .and_then(|mut insert| {
            insert.execute(named_params! {
                ":cursor": cursor.0, ":at": first.at.as_ms(), ":kind": first.kind.number(),
                ":count": i64::try_from(events.len()).unwrap_or(i64::MAX),
                ":subject": Some(subject).filter(|all| !all.is_empty()),
                ":attempt": first.attempt.as_ref().map(AttemptId::as_bytes),
                ":agent": first.agent.as_ref().map(crate::core::id::Name::as_str),
                ":detail": detail,
            })
        })
        .map(drop)
        .map_err(doing("note an event"))
}

/// Forgets events of long ago, but for the last row.
pub(super) fn forget(connection: &Connection, through: Cursor) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "DELETE FROM events WHERE cursor + count - 1 <= :through AND cursor <= :through
                AND cursor < (SELECT max(cursor) FROM events)",
        )
        .and_then(|mut delete| delete.execute(named_params! { ":through": through.0 }))
        .map(drop)
        .map_err(doing("forget events"))
}

impl Reader {
    /// Returns from where to where events are kept.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn events_extent(&self) -> Result<Extent, StoreError> {
        let last = last(&self.connection)?;
        let first = self
            .connection
            .prepare_cached("SELECT cursor FROM events ORDER BY cursor LIMIT 1")
            .and_then(|mut select| select.query_row([], |row| row.get(0)).optional())
            .map_err(doing("find the first event"))?;
        Ok(Extent { first: first.map_or(last.plus(1), Cursor), last })
    }

    /// Returns events behind a place, of one kind or of all: some thousands at a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn events(&self, after: Cursor, kind: Option<EventKind>) -> Result<EventPage, StoreError> {
        self.together(|reader| {
            let extent = reader.events_extent()?;
            let sql = doing("read events");
            // A row may have begun before the place.
            let mut select = reader
                .connection
                .prepare_cached(
                    "SELECT cursor, at, kind, count, subject, attempt, agent, detail FROM events
                     WHERE cursor >= coalesce(
                            (SELECT cursor FROM events WHERE cursor <= :after + 1
                             ORDER BY cursor DESC LIMIT 1), 0)
                        AND (:kind IS NULL OR kind = :kind)
                     ORDER BY cursor LIMIT :limit",
                )
                .map_err(&sql)?;
            let mut rows = select
                .query(named_params! {
                    ":after": after.0, ":kind": kind.map(EventKind::number),
                    ":limit": ROWS_PER_READ,
                })
                .map_err(&sql)?;
            let (mut events, mut seen, mut through) = (Vec::new(), 0, after);
            while let Some(row) = rows.next().map_err(&sql)? {
                seen += 1;
                for event in read(row)? {
                    through = through.max(event.cursor);
                    if event.cursor > after {
                        events.push(event);
                    }
                }
            }
            if seen < ROWS_PER_READ {
                through = through.max(extent.last);
            }
            for event in &mut events {
                if let Some((hash, path)) = &mut event.path {
                    *path = reader.held_path(*hash)?;
                }
            }
            Ok(EventPage { events, through, extent })
        })
    }

    /// Returns the last event that is older than a time.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn last_event_before(&self, time: Timestamp) -> Result<Cursor, StoreError> {
        // From the end: whoever asks is interested in what has just happened.
        let found = self
            .connection
            .prepare_cached(
                "SELECT cursor + count - 1 FROM events WHERE at < :time
                 ORDER BY cursor DESC LIMIT 1",
            )
            .and_then(|mut select| {
                let row = select.query_row(named_params! { ":time": time.as_ms() }, |r| r.get(0));
                row.optional()
            })
            .map_err(doing("find an event by its time"))?;
        // Of what is not kept, nobody can be told.
        let before_all = || self.events_extent().map(|extent| extent.first.plus(-1));
        found.map_or_else(before_all, |cursor| Ok(Cursor(cursor)))
    }

    /// Counts the events of a kind behind a place, up to a number.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn count_events(
        &self,
        after: Cursor,
        kind: EventKind,
        most: usize,
    ) -> Result<usize, StoreError> {
        let mut count = 0;
        let mut place = after;
        loop {
            let page = self.events(place, Some(kind))?;
            count += page.events.len();
            if count >= most {
                return Ok(most);
            }
            if page.through >= page.extent.last {
                return Ok(count);
            }
            place = page.through;
        }
    }

    /// Returns up to where some old events may be forgotten: those from before a time, and those
    /// that would have gone if only the last `keep` were kept. Ask again when they are.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn events_to_forget(
        &self,
        before: Timestamp,
        keep: u64,
    ) -> Result<Option<Cursor>, StoreError> {
        let last = last(&self.connection)?;
        let too_many = last.plus(i64::try_from(keep).unwrap_or(i64::MAX).saturating_neg());
        let sql = doing("look for old events");
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT at, cursor + count - 1 FROM events
                 WHERE cursor < (SELECT max(cursor) FROM events) ORDER BY cursor LIMIT :limit",
            )
            .map_err(&sql)?;
        let mut rows = select.query(named_params! { ":limit": FORGOTTEN_AT_ONCE }).map_err(&sql)?;
        let mut through = None;
        while let Some(row) = rows.next().map_err(&sql)? {
            let (at, end): (i64, i64) = (row.get(0).map_err(&sql)?, row.get(1).map_err(&sql)?);
            if at >= before.as_ms() && end > too_many.0 {
                break;
            }
            through = Some(Cursor(end));
        }
        Ok(through)
    }

    /// Returns a path that is held, by its hash.
    ///
    /// # Errors
    /// [`StoreError::Sql`] and [`StoreError::Damaged`].
    pub fn held_path(&self, hash: PathHash) -> Result<Option<StorePath>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT s.path, n.name FROM nars n JOIN store_dirs s ON s.id = n.store_dir
                 WHERE n.path = :path",
            )
            .and_then(|mut select| {
                let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
                select.query_row(named_params! { ":path": hash.as_bytes() }, read).optional()
            });
        let found: Option<(String, String)> = found.map_err(doing("read the name of a path"))?;
        found.map(|(dir, name)| row::store_path("nars", &dir, hash.as_bytes(), &name)).transpose()
    }
}

/// Returns the events of a row.
fn read(row: &Row<'_>) -> Result<Vec<EventRow>, StoreError> {
    let damaged = |what: &str| StoreError::Damaged { table: TABLE, what: what.to_owned() };
    let cursor = Cursor(row::integer(TABLE, row, 0)?);
    let kind = EventKind::of_number(row::integer(TABLE, row, 2)?)
        .ok_or_else(|| damaged("an event of no known kind"))?;
    let attempt = row::optional_blob(TABLE, row, 5)?;
    let attempt = attempt.map(|id| row::bytes(TABLE, id).map(AttemptId::from_bytes)).transpose()?;
    let event = EventRow {
        cursor,
        at: Timestamp::from_ms(row::integer(TABLE, row, 1)?),
        kind,
        build: None,
        path: None,
        attempt,
        agent: row::optional_text(TABLE, row, 6)?.map(str::to_owned),
        detail: row::optional_text(TABLE, row, 7)?.map(str::to_owned),
    };
    let Some(subject) = row::optional_blob(TABLE, row, 4)? else { return Ok(vec![event]) };
    let mut events = Vec::new();
    let bytes_each = if kind == EventKind::OutputPublished { 20 } else { 16 };
    for (place, subject) in (0..).zip(subject.chunks(bytes_each)) {
        let mut event = EventRow { cursor: cursor.plus(place), ..event.clone() };
        if kind == EventKind::OutputPublished {
            event.path = Some((PathHash::from_bytes(row::bytes(TABLE, subject)?), None));
        } else {
            event.build = Some(BuildId::from_bytes(row::bytes(TABLE, subject)?));
        }
        events.push(event);
    }
    Ok(events)
}
