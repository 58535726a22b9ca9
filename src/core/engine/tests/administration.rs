//! Who takes builds just now, and who does not.

use super::world::{Wish, World};
use crate::core::{
    agent::{Capacity, Obstacle, SuspensionKind},
    engine::{AgentView, Ask, Decision, Delivery, Input, Told},
    id::BuildId,
    outcome::{Outcome, SetupFailure},
    plan::NotTaken,
    time::Timestamp,
};

const MINUTE_MS: u64 = 60_000;

fn not_taken(world: &World, build: BuildId, agent: &str) -> NotTaken {
    let explanation = world.why(build);
    let found = explanation.agents.iter().find(|reason| reason.name.as_str() == agent);
    found.unwrap().reason.clone()
}

fn view(world: &World, agent: &str) -> AgentView {
    let Told::Agents(views) = world.engine.ask(&Ask::Agents) else { panic!("another answer") };
    views.into_iter().find(|view| view.name.as_str() == agent).unwrap()
}

fn kind(world: &World, agent: &str) -> Option<SuspensionKind> {
    view(world, agent).suspension.map(|suspension| suspension.kind)
}

fn after(world: &World, minutes: u64) -> Timestamp {
    world.now.wall.plus_ms(i64::try_from(minutes * MINUTE_MS).unwrap())
}

fn pause(until: Option<Timestamp>) -> Decision {
    Decision::Pause { reason: Some("a new disk".to_owned()), until }
}

fn drain(until: Option<Timestamp>) -> Decision {
    Decision::Drain { reason: None, until }
}

/// Amber has six builds, `a` to `f`, and nothing else happens.
fn amber_has_six(world: &mut World) {
    world.graph("a; b; c; d; e; f");
    world.join("amber", 6);
    world.submit_all(&["a", "b", "c", "d", "e", "f"], Wish::ALONE);
    world.forget();
}

super::stories! {
    fn an_agent_gets_no_more_builds_than_it_wants(world: &mut World) {
        world.graph("a; b; c");
        world.join("amber", 3);
        world.wants("amber", 1, "the load is high");
        world.forget();
        let builds = world.submit_all(&["a", "b", "c"], Wish::ALONE);
        assert_eq!(world.shown(), "a allocated, b ready, c ready");
        let capacity = Capacity { slots: 1, reason: Some("the load is high".to_owned()) };
        assert_eq!(
            not_taken(world, builds[1], "amber"),
            NotTaken::Not(Obstacle::Limited(capacity))
        );
        world.wants("amber", 9, "more than it has");
        assert_eq!(world.shown(), "a allocated, b allocated, c allocated");
    }

    fn an_agent_that_joins_gets_no_more_builds_than_it_wants_from_the_start(world: &mut World) {
        world.graph("a; b");
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.joins_with = Some(Capacity { slots: 0, reason: Some("the disk is full".to_owned()) });
        world.join("amber", 2);
        assert_eq!(world.shown(), "a ready, b ready");
        world.wants("amber", 1, "builds begin one by one");
        assert_eq!(world.shown(), "a allocated, b ready");
    }

    fn a_smaller_capacity_stops_nothing(world: &mut World) {
        world.graph("a; b");
        world.join("amber", 1);
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.forget();
        world.wants("amber", 0, "the disk is full");
        world.is_quiet();
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "b ready");
    }

    fn a_session_begins_with_all_slots_and_an_old_one_says_nothing(world: &mut World) {
        world.graph("a");
        world.join("amber", 1);
        let old = world.session("amber");
        world.wants("amber", 0, "the load is high");
        let build = world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a ready");
        world.rejoin("amber", 1, &[]);
        assert_eq!(world.shown(), "a allocated");
        world.cancel(&[build]);
        world.step(vec![Input::Capacity {
            session: old,
            slots: 0,
            reason: None,
        }]);
        assert_eq!(world.counts().slots_free, 1);
    }

    fn nothing_is_given_away_while_the_intake_is_closed(world: &mut World) {
        world.graph("a; b");
        world.join("amber", 2);
        world.submit("a", Wish::ALONE);
        world.close_intake(Some("the disk is full"));
        world.forget();
        let waiting = world.submit("b", Wish::ALONE);
        assert_eq!(world.shown(), "a allocated, b ready");
        let explanation = world.why(waiting);
        assert_eq!(explanation.intake_closed.as_deref(), Some("the disk is full"));
        assert_eq!(world.counts().intake_closed.as_deref(), Some("the disk is full"));
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "b ready");
        world.forget();
        world.close_intake(None);
        assert_eq!(world.effects(), ["amber: build b.1"]);
        assert_eq!(world.counts().intake_closed, None);
    }

    fn a_paused_agent_gets_nothing_until_its_pause_is_over(world: &mut World) {
        world.graph("a; b");
        world.join("amber", 2);
        world.submit("a", Wish::ALONE);
        let until = Some(after(world, 30));
        world.forget();
        world.decides("amber", pause(until));
        assert_eq!(world.changes(), ["amber paused"]);
        assert_eq!(world.effects(), ["administered: Done"]);
        let waiting = world.submit("b", Wish::ALONE);
        assert_eq!(world.shown(), "a allocated, b ready");
        let NotTaken::Not(Obstacle::Suspended { suspension, is_empty: false }) =
            not_taken(world, waiting, "amber")
        else {
            panic!("{:?}", not_taken(world, waiting, "amber"));
        };
        assert_eq!(suspension.by.unwrap().as_str(), "olga");
        assert_eq!(suspension.reason.as_deref(), Some("a new disk"));
        assert_eq!(suspension.until, until);
        // What it has goes on.
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "b ready");
        assert_eq!(world.engine.wakes_in_ms(world.now), Some(30 * MINUTE_MS));
        // A restart changes nothing, and neither does the agent's.
        world.restart();
        world.rejoin("amber", 2, &[]);
        world.pass_ms(30 * MINUTE_MS - 1);
        assert_eq!(world.shown(), "b ready");
        world.forget();
        world.pass_ms(1);
        assert_eq!(
            world.changes(),
            ["amber takes builds", "attempt b.1", "b queued → allocated"]
        );
        assert_eq!(world.engine.wakes_in_ms(world.now), None);
    }

    fn a_pause_without_end_ends_when_somebody_says_so(world: &mut World) {
        world.graph("a");
        world.join("amber", 1);
        world.decides("amber", pause(None));
        world.submit("a", Wish::ALONE);
        assert_eq!(world.engine.wakes_in_ms(world.now), None);
        assert_eq!(world.counts().suspended[&SuspensionKind::Paused], 1);
        world.forget();
        world.decides("amber", Decision::Resume);
        assert_eq!(world.effects(), ["administered: Done", "amber: build a.1"]);
        world.forget();
        world.decides("amber", Decision::Resume);
        assert_eq!(world.changes(), [""; 0]);
    }

    fn the_latest_decision_counts(world: &mut World) {
        world.join("amber", 1);
        let until = Some(after(world, 1));
        world.decides("amber", pause(until));
        world.decides("amber", drain(None));
        assert_eq!(kind(world, "amber"), Some(SuspensionKind::Draining));
        world.pass_ms(2 * MINUTE_MS);
        assert_eq!(kind(world, "amber"), Some(SuspensionKind::Draining));
    }

    fn what_a_draining_agent_still_has_at_the_deadline_goes_to_others(world: &mut World) {
        world.graph("a; b; c");
        world.join("amber", 2);
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.started("amber", "a.1");
        world.finished("amber", "b.1", Outcome::Built);
        world.join("birch", 2);
        let until = Some(after(world, 10));
        world.decides("amber", drain(until));
        world.submit("c", Wish::ALONE);
        assert_eq!(world.shown(), "a building, b receiving, c allocated");
        world.forget();
        world.pass_ms(10 * MINUTE_MS - 1);
        world.is_quiet();
        world.pass_ms(1);
        assert_eq!(
            world.changes(),
            [
                "a.1 drained",
                "a building → queued",
                "b.1 drained",
                "b receiving → queued",
                "attempt a.2",
                "a queued → allocated"
            ]
        );
        assert_eq!(
            world.effects(),
            [
                "log of a.1 sealed",
                "amber: cancel a.1",
                "log of b.1 sealed",
                "amber: cancel b.1",
                "birch: build a.2"
            ]
        );
        // It stays drained, and nothing has to be woken for it.
        assert_eq!(kind(world, "amber"), Some(SuspensionKind::Draining));
        assert_eq!(world.engine.wakes_in_ms(world.now), None);
        assert_eq!(view(world, "amber").failures_in_a_row, 0);
        world.deliver("amber", "b.1");
        assert_eq!(world.effects(), ["delivery not accepted"]);
    }

    fn a_deadline_that_passes_while_the_coordinator_is_down_is_kept_at_its_start(
        world: &mut World
    ) {
        world.graph("a");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        let until = Some(after(world, 1));
        world.decides("amber", drain(until));
        world.now.wall = world.now.wall.plus_ms(3_600_000);
        world.restart();
        assert_eq!(world.shown(), "a ready");
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(world.effects().last().unwrap(), "amber: welcome, keep [], drop [a.1]");
    }

    fn a_drained_agent_is_empty_and_gets_nothing(world: &mut World) {
        world.graph("a; b");
        world.join("amber", 1);
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.decides("amber", drain(None));
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "b ready");
        let obstacle = view(world, "amber").obstacle;
        assert!(matches!(obstacle, Some(Obstacle::Suspended { is_empty: true, .. })));
    }

    fn only_an_agent_that_is_away_is_forgotten(world: &mut World) {
        world.graph("a");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        world.forget();
        world.decides("amber", Decision::Remove);
        assert_eq!(world.effects(), ["administered: Connected"]);
        assert_eq!(world.changes(), [""; 0]);
        world.decides("amber", pause(None));
        world.leave("amber");
        world.join("birch", 1);
        world.forget();
        world.decides("amber", Decision::Remove);
        assert_eq!(
            world.changes(),
            [
                "a.1 agent-lost",
                "a allocated → queued",
                "amber removed",
                "attempt a.2",
                "a queued → allocated"
            ]
        );
        world.decides("amber", Decision::Remove);
        assert_eq!(world.effects().last().unwrap(), "administered: NoSuch");
        assert_eq!(world.counts().agents_known, 1);
        // It may come again, as one that was never here.
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(world.effects(), ["amber: welcome, keep [], drop [a.1]"]);
        assert_eq!(kind(world, "amber"), None);
    }

    fn nobody_decides_about_an_agent_that_was_never_here(world: &mut World) {
        for decision in [pause(None), drain(None), Decision::Resume, Decision::Remove] {
            world.decides("amber", decision);
        }
        assert_eq!(world.effects(), ["administered: NoSuch"; 4]);
        assert_eq!(world.changes(), [""; 0]);
    }

    fn an_agent_that_gets_nothing_is_no_reason_to_avoid_another(world: &mut World) {
        world.graph("a");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        world.join("birch", 1);
        world.decides("birch", pause(None));
        world.cannot_begin("amber", "a.1");
        world.forget();
        world.pass_ms(10_000);
        assert_eq!(world.effects(), ["amber: build a.2"]);
    }

    fn five_builds_in_a_row_quarantine_an_agent(world: &mut World) {
        amber_has_six(world);
        for attempt in ["a.1", "b.1", "c.1", "d.1"] {
            world.cannot_begin("amber", attempt);
        }
        assert_eq!(kind(world, "amber"), None);
        assert_eq!(view(world, "amber").failures_in_a_row, 4);
        world.forget();
        let failure = SetupFailure::DaemonUnreachable("no such socket".to_owned());
        world.finished("amber", "e.1", Outcome::SetupFailed(failure));
        let reason = "5 builds in a row ended through its fault; the last: daemon-unreachable: no \
                      such socket";
        assert_eq!(
            world.changes(),
            [
                "amber quarantined".to_owned(),
                format!("audit coordinator: agents quarantine amber: {reason}"),
                "e.1 daemon-unreachable".to_owned(),
                "e allocated → deferred".to_owned()
            ]
        );
        assert_eq!(world.effects()[0], "amber quarantined");
        let suspension = view(world, "amber").suspension.unwrap();
        assert_eq!((suspension.by, suspension.reason.as_deref()), (None, Some(reason)));
        // What it has goes on, and it gets nothing more, not after a restart either.
        world.builds("amber", "f.1");
        world.restart();
        world.rejoin("amber", 6, &[]);
        world.pass_ms(10 * MINUTE_MS);
        assert_eq!(world.shown(), "a ready, b ready, c ready, d ready, e ready");
        world.decides("amber", Decision::Resume);
        assert_eq!(view(world, "amber").running.len(), 5);
        assert_eq!(view(world, "amber").failures_in_a_row, 0);
    }

    fn one_bad_build_quarantines_nobody(world: &mut World) {
        world.graph("a");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        for attempt in 1..=20 {
            world.cannot_begin("amber", &format!("a.{attempt}"));
            world.pass_ms(60 * MINUTE_MS);
        }
        assert_eq!(kind(world, "amber"), None);
        assert_eq!(view(world, "amber").failures_in_a_row, 1);
    }

    fn a_build_that_tells_something_ends_the_row(world: &mut World) {
        amber_has_six(world);
        for attempt in ["a.1", "b.1"] {
            world.cannot_begin("amber", attempt);
        }
        world.fails("amber", "c.1");
        assert_eq!(view(world, "amber").failures_in_a_row, 0);
        world.cannot_begin("amber", "d.1");
        world.builds("amber", "e.1");
        assert_eq!(view(world, "amber").failures_in_a_row, 0);
        world.finished("amber", "f.1", Outcome::Built);
        world.deliver_as("amber", "f.1", Delivery::Rejected("another hash".to_owned()));
        assert_eq!(view(world, "amber").failures_in_a_row, 1);
    }

    fn missing_inputs_and_lost_agents_are_nobodys_fault(world: &mut World) {
        amber_has_six(world);
        for attempt in ["a.1", "b.1", "c.1"] {
            world.misses("amber", attempt, &["a"]);
        }
        world.rejoin("amber", 6, &[]);
        assert_eq!(view(world, "amber").failures_in_a_row, 0);
    }

    fn a_quarantine_outlasts_a_pause_and_leaves_a_drain_alone(world: &mut World) {
        amber_has_six(world);
        let until = Some(after(world, 1));
        world.decides("amber", pause(until));
        for attempt in ["a.1", "b.1", "c.1", "d.1", "e.1"] {
            world.cannot_begin("amber", attempt);
        }
        assert_eq!(kind(world, "amber"), Some(SuspensionKind::Quarantined));
        world.decides("amber", drain(until));
        world.cannot_begin("amber", "f.1");
        assert_eq!(kind(world, "amber"), Some(SuspensionKind::Draining));
    }

    fn nobody_is_quarantined_when_it_is_switched_off(world: &mut World) {
        world.settings.quarantine_after = 0;
        world.restart();
        amber_has_six(world);
        for attempt in ["a.1", "b.1", "c.1", "d.1", "e.1", "f.1"] {
            world.cannot_begin("amber", attempt);
        }
        assert_eq!(kind(world, "amber"), None);
        assert_eq!(view(world, "amber").failures_in_a_row, 6);
    }

    fn what_an_agent_has_whose_key_is_taken_away_goes_to_others(world: &mut World) {
        world.graph("a; b");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        world.join("birch", 1);
        world.forget();
        world.expel("amber");
        assert_eq!(
            world.changes(),
            [
                "a.1 agent-lost",
                "a allocated → queued",
                "audit coordinator: agents expel amber: its key is known no more; 1 build to others",
                "attempt a.2",
                "a queued → allocated"
            ]
        );
        assert_eq!(world.snapshot_attempts(), [("a.2".to_owned(), "birch".to_owned())]);
        // What it says later changes nothing, and it gets nothing more.
        world.forget();
        world.finished("amber", "a.1", Outcome::Built);
        world.submit("b", Wish::ALONE);
        assert_eq!(world.shown(), "a allocated, b ready");
    }

    fn nobody_notices_that_an_idle_or_unknown_agent_is_expelled(world: &mut World) {
        world.join("amber", 1);
        world.forget();
        world.expel("amber");
        world.expel("nobody");
        assert_eq!(world.changes(), [] as [&str; 0]);
        assert!(!view(world, "amber").connected);
        world.join("amber", 1);
        assert!(view(world, "amber").connected);
    }
}
