//! Events have no gap, whatever happens: random commits, restarts, and forgetting in between.

use super::{AT, Fresh, attempt, build, build_id, derivation, lease, moved};
use crate::{
    core::{
        build::BuildState,
        change::Change,
        event::{Cursor, Detail, Event, EventKind, Subject},
        hook::{HookChange, HookId, Tried},
        id::BuildId,
        store_path::PathHash,
        time::Timestamp,
    },
    store::{EVENTS_PER_ROW_MAX, EventRow, Extent, Reader},
};
use proptest::prelude::*;

fn event(kind: EventKind, number: u8, at: Timestamp) -> Event {
    let event = Event::new(kind, at);
    match kind {
        EventKind::BuildSubmitted | EventKind::BuildCanceled | EventKind::BuildFailure => {
            event.of_build(BuildId::from_bytes([number; 16]))
        }
        EventKind::OutputPublished => {
            Event { subject: Subject::Path(PathHash::from_bytes([number; 20])), ..event }
        }
        _ => event.of_agent(super::world::name("amber")),
    }
}

fn told(event: Event) -> Change {
    Change::Event(Box::new(event))
}

/// Reads all events behind a place, page by page, and asserts that each follows on the one before.
fn read_all(reader: &Reader, after: Cursor, kind: Option<EventKind>) -> Vec<EventRow> {
    let (mut place, mut events) = (after, Vec::<EventRow>::new());
    loop {
        let page = reader.events(place, kind).unwrap();
        events.extend(page.events);
        assert!(page.through >= place);
        if page.through == page.extent.last {
            break;
        }
        place = page.through;
    }
    if kind.is_none() {
        for (place, event) in (after.0 + 1..).zip(&events) {
            assert_eq!(event.cursor, Cursor(place));
        }
    }
    events
}

/// What a test does with a database.
#[derive(Debug, Clone)]
enum Act {
    /// Commits so many events of these kinds.
    Commit(Vec<(u8, u8)>),
    /// Commits something that fails, behind events.
    CommitInVain,
    /// Opens the database anew.
    Restart,
    /// Keeps this many events only.
    Forget(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => prop::collection::vec((0u8..5, 1u8..150), 1..4).prop_map(Act::Commit),
        1 => Just(Act::CommitInVain),
        1 => Just(Act::Restart),
        1 => (0u64..300).prop_map(Act::Forget),
    ];
    prop::collection::vec(act, 1..20)
}

const KINDS: [EventKind; 5] = [
    EventKind::BuildSubmitted,
    EventKind::BuildCanceled,
    EventKind::BuildFailure,
    EventKind::OutputPublished,
    EventKind::AgentAway,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn cursors_have_no_gap_whatever_happens(acts in acts()) {
        let mut fresh = Fresh::new();
        let mut all: Vec<Event> = Vec::new();
        for (number, act) in acts.into_iter().enumerate() {
            let at = AT.plus_ms(i64::try_from(number).unwrap());
            match act {
                Act::Commit(runs) => {
                    let mut events = Vec::new();
                    for (kind, count) in runs {
                        let kind = KINDS[usize::from(kind)];
                        events.extend((0..count).map(|number| event(kind, number, at)));
                    }
                    fresh.write(&events.iter().cloned().map(told).collect::<Vec<_>>());
                    all.extend(events);
                }
                Act::CommitInVain => {
                    let stranger = moved(&BuildState::Queued, &BuildState::Canceled);
                    let lost = told(event(EventKind::BuildCanceled, 1, at));
                    fresh.store.commit(&[lost, stranger]).unwrap_err();
                }
                Act::Restart => fresh.store = fresh.again().unwrap(),
                Act::Forget(keep) => {
                    let reader = fresh.store.reader().unwrap();
                    // By their number only: all are younger.
                    while let Some(through) = reader.events_to_forget(AT, keep).unwrap() {
                        fresh.write(&[Change::EventsForgotten { through }]);
                    }
                    let Extent { first, last } = reader.events_extent().unwrap();
                    let kept = u64::try_from(last.0 - first.0 + 1).unwrap();
                    let row = u64::try_from(EVENTS_PER_ROW_MAX).unwrap();
                    prop_assert!(kept <= keep.max(1) + row, "{kept} are kept instead of {keep}");
                }
            }
            let last = Cursor(i64::try_from(all.len()).unwrap());
            prop_assert_eq!(fresh.store.last_event(), last);
            let reader = fresh.store.reader().unwrap();
            let extent = reader.events_extent().unwrap();
            prop_assert_eq!(extent.last, last);
            let gone = usize::try_from(extent.first.0 - 1).unwrap();
            let kept = read_all(&reader, extent.first.plus(-1), None);
            let expected = &all[gone..];
            prop_assert_eq!(kept.len(), expected.len());
            for (row, event) in kept.iter().zip(expected) {
                prop_assert_eq!((row.kind, row.at), (event.kind, event.at));
                let subject = match (row.build, &row.path) {
                    (Some(build), None) => Subject::Build(build),
                    (None, Some((path, None))) => Subject::Path(*path),
                    (None, None) => Subject::Farm,
                    both => panic!("{both:?}"),
                };
                prop_assert_eq!(subject, event.subject);
                prop_assert_eq!(row.agent.is_some(), event.agent.is_some());
            }
            // From any place, also within a row.
            for after in [extent.first.0 - 1, i64::midpoint(extent.first.0, last.0), last.0] {
                let after = Cursor(after.max(extent.first.0 - 1));
                let rest = read_all(&reader, after, None);
                let skipped = usize::try_from(after.0 - extent.first.0 + 1).unwrap();
                prop_assert_eq!(&rest[..], &kept[skipped..]);
            }
            let published = read_all(&reader, extent.first.plus(-1), Some(KINDS[3]));
            let expected = kept.iter().filter(|event| event.kind == KINDS[3]);
            prop_assert!(published.iter().eq(expected));
        }
    }
}

#[test]
fn what_differs_in_its_subject_only_shares_a_row() {
    let mut fresh = Fresh::new();
    let submitted =
        |count: u8| (0..count).map(|number| told(event(EventKind::BuildSubmitted, number, AT)));
    fresh.write(&submitted(200).collect::<Vec<_>>());
    assert_eq!(fresh.count("events"), 4);
    fresh.write(&submitted(1).collect::<Vec<_>>());
    assert_eq!(fresh.count("events"), 5);
    let more = Detail { builds: Some(1), ..Detail::default() };
    let one = event(EventKind::BuildFailure, 1, AT).with(more);
    fresh.write(&[told(one.clone()), told(one)]);
    assert_eq!(fresh.count("events"), 7);
    assert_eq!(fresh.store.last_event(), Cursor(203));
}

#[test]
fn events_are_told_with_the_change_that_they_tell_of_or_not_at_all() {
    let mut fresh = Fresh::new();
    fresh.write(&[derivation(), build(None)]);
    let allocated = BuildState::Allocated(lease());
    fresh.write(&[super::agent(), attempt(), moved(&BuildState::Queued, &allocated)]);
    fresh.write(&[moved(&allocated, &BuildState::Building(lease()))]);
    // It is not allocated any more.
    fresh.store.commit(&[moved(&allocated, &BuildState::Building(lease()))]).unwrap_err();
    let events = read_all(&fresh.store.reader().unwrap(), Cursor(0), None);
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::BuildSubmitted, EventKind::BuildStarted]);
    assert_eq!(events[1].build, Some(build_id()));
    assert_eq!(events[1].attempt, Some(lease().attempt));
    assert_eq!(events[1].agent.as_deref(), Some("amber"));
}

#[test]
fn the_last_event_stays_and_with_it_the_place_of_the_next() {
    let mut fresh = Fresh::new();
    for number in 0..10 {
        fresh.write(&[told(event(EventKind::AgentAway, number, AT))]);
    }
    let reader = fresh.store.reader().unwrap();
    // All of them are from before this time.
    let through = reader.events_to_forget(AT.plus_ms(1), 1_000).unwrap();
    assert_eq!(through, Some(Cursor(9)));
    fresh.write(&[Change::EventsForgotten { through: Cursor(1_000) }]);
    assert_eq!(reader.events_extent().unwrap(), Extent { first: Cursor(10), last: Cursor(10) });
    assert_eq!(reader.events_to_forget(AT.plus_ms(1), 0).unwrap(), None);
    fresh.store = fresh.again().unwrap();
    fresh.write(&[told(event(EventKind::AgentAway, 0, AT))]);
    assert_eq!(fresh.store.last_event(), Cursor(11));
}

fn mail() -> HookId {
    HookId { event: EventKind::BuildFailure, name: super::world::name("mail") }
}

fn hook(change: HookChange) -> Change {
    Change::Hook(Box::new(change))
}

fn fails(cursor: i64, next_at: Option<Timestamp>) -> Change {
    let (hook_id, cursor, text) = (mail(), Cursor(cursor), "{}".to_owned());
    let tried = Tried { at: AT, end: "exit status 1".to_owned(), output: vec![0xff], next_at };
    hook(HookChange::Failed { hook: hook_id, cursor, text, tried })
}

#[test]
fn a_hook_has_a_place_and_what_it_failed_on_until_it_goes() {
    let mut fresh = Fresh::new();
    let reader = fresh.store.reader().unwrap();
    fresh.write(&[hook(HookChange::Found { hook: mail(), through: Cursor(3) })]);
    fresh.write(&[
        fails(4, Some(AT.plus_ms(20))),
        fails(5, Some(AT.plus_ms(10))),
        fails(6, None),
        hook(HookChange::Passed { hook: mail(), through: Cursor(6), lost: 1 }),
    ]);
    // After a restart the same may fail once more, and a place never goes back.
    fresh.write(&[
        fails(5, None),
        hook(HookChange::Passed { hook: mail(), through: Cursor(5), lost: 0 }),
        hook(HookChange::Found { hook: mail(), through: Cursor(0) }),
    ]);
    let row = reader.hooks().unwrap().pop().unwrap();
    assert_eq!((row.cursor, row.lost, row.waiting, row.dead), (Cursor(6), 1, 2, 1));
    let next = reader.next_delivery(&mail()).unwrap().unwrap();
    assert_eq!((next.cursor, next.tries, next.output), (Cursor(5), 1, vec![0xff]));
    let tried =
        Tried { at: AT, end: "exit status 2".to_owned(), output: Vec::new(), next_at: None };
    fresh.write(&[hook(HookChange::FailedAgain { delivery: next.id, tried })]);
    let dead = reader.delivery(next.id).unwrap().unwrap();
    assert_eq!((dead.tries, dead.next_at, dead.ended.as_str()), (2, None, "exit status 2"));
    assert_eq!(reader.next_delivery(&mail()).unwrap().unwrap().cursor, Cursor(4));
    fresh.write(&[hook(HookChange::Again { delivery: next.id, at: AT })]);
    let again = reader.next_delivery(&mail()).unwrap().unwrap();
    assert_eq!((again.id, again.tries), (next.id, 0));
    fresh.write(&[hook(HookChange::Delivered { delivery: next.id })]);
    assert_eq!(reader.delivery(next.id).unwrap(), None);
    assert_eq!(reader.failed_deliveries(crate::core::hook::DeliveryId(0)).unwrap().len(), 2);
    fresh.write(&[hook(HookChange::Forgotten { hook: mail() }), fails(7, None)]);
    assert_eq!((reader.hooks().unwrap().len(), fresh.count("hook_deliveries")), (0, 0));
}

#[test]
fn a_new_hook_begins_with_what_happened_since_its_file_is_there() {
    let mut fresh = Fresh::new();
    let reader = fresh.store.reader().unwrap();
    assert_eq!(reader.last_event_before(AT).unwrap(), Cursor(0));
    for ms in 0..5 {
        fresh.write(&[told(event(EventKind::AgentAway, 0, AT.plus_ms(ms)))]);
    }
    assert_eq!(reader.last_event_before(AT.plus_ms(3)).unwrap(), Cursor(3));
    assert_eq!(reader.last_event_before(AT.plus_ms(99)).unwrap(), Cursor(5));
    fresh.write(&[Change::EventsForgotten { through: Cursor(2) }]);
    assert_eq!(reader.last_event_before(AT).unwrap(), Cursor(2));
}
