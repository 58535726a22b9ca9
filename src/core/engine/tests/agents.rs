//! Agents come, go, and say how their attempts fare.

use super::world::{SYSTEM, Wish, World, abilities};
use crate::core::{
    agent::SENDING_MAX,
    build::ShownState,
    engine::{Delivery, Input},
    outcome::{BuildFailure, Outcome},
};

const LEASE_MS: u64 = 20 * 60 * 1_000;

/// Amber builds `a`; nothing else has happened.
fn amber_builds_a(world: &mut World) {
    world.graph("a");
    world.submit("a", Wish::ALONE);
    world.join("amber", 1);
    world.started("amber", "a.1");
    world.forget();
}

super::stories! {
    fn an_agent_that_stays_away_loses_its_builds_after_a_lease(world: &mut World) {
        amber_builds_a(world);
        world.join("birch", 1);
        world.leave("amber");
        world.forget();
        world.pass_ms(LEASE_MS - 1);
        world.is_quiet();
        world.pass_ms(1);
        assert_eq!(
            world.changes(),
            [
                "a.1 agent-lost",
                "a building → queued",
                "attempt a.2",
                "a queued → allocated"
            ]
        );
        assert_eq!(world.effects(), ["log of a.1 sealed", "birch: build a.2"]);
    }

    fn a_wall_clock_set_back_holds_no_deferred_build_back(world: &mut World) {
        amber_builds_a(world);
        world.cannot_begin("amber", "a.1");
        world.wall_clock_jumps(-10 * 365 * 24 * 3_600_000);
        assert_eq!(world.engine.wakes_in_ms(world.now), Some(10_000));
        world.forget();
        world.pass_ms(9_999);
        world.is_quiet();
        world.pass_ms(1);
        assert!(world.effects().contains(&"amber: build a.2".to_owned()));
    }

    fn a_restart_after_the_wall_clock_was_set_back_defers_no_longer_than_ever(world: &mut World) {
        amber_builds_a(world);
        world.cannot_begin("amber", "a.1");
        world.wall_clock_jumps(-10 * 365 * 24 * 3_600_000);
        world.restart();
        assert_eq!(world.engine.wakes_in_ms(world.now), Some(3_600_000));
    }

    fn the_engine_says_when_it_must_be_woken(world: &mut World) {
        amber_builds_a(world);
        assert_eq!(world.engine.wakes_in_ms(world.now), None);
        world.leave("amber");
        world.pass_ms(1_000);
        assert_eq!(world.engine.wakes_in_ms(world.now), Some(LEASE_MS - 1_000));
        world.rejoin("amber", 1, &["a.1"]);
        world.cannot_begin("amber", "a.1");
        assert_eq!(world.engine.wakes_in_ms(world.now), Some(10_000));
    }

    fn a_jump_of_the_wall_clock_ends_no_lease(world: &mut World) {
        amber_builds_a(world);
        world.leave("amber");
        world.forget();
        for jump in [3_600_000, -7_200_000, 315_000_000_000, -630_000_000_000] {
            world.wall_clock_jumps(jump);
        }
        world.is_quiet();
        assert_eq!(world.shown(), "a building");
    }

    fn a_restart_gives_every_attempt_a_fresh_lease(world: &mut World) {
        amber_builds_a(world);
        world.leave("amber");
        world.pass_ms(LEASE_MS - 1);
        world.restart();
        world.pass_ms(LEASE_MS - 1);
        assert_eq!(world.shown(), "a building");
        world.pass_ms(1);
        assert_eq!(world.shown(), "a ready");
    }

    fn an_agent_that_comes_back_goes_on_with_what_it_has(world: &mut World) {
        amber_builds_a(world);
        world.leave("amber");
        world.restart();
        world.forget();
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(world.effects(), ["amber: welcome, keep [a.1], drop []"]);
        assert_eq!(world.changes(), [""; 0]);
        world.started("amber", "a.1");
        world.is_quiet();
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "");
    }

    fn what_an_agent_comes_back_without_is_given_away_at_once(world: &mut World) {
        amber_builds_a(world);
        world.join("birch", 1);
        world.leave("amber");
        world.forget();
        world.rejoin("amber", 1, &[]);
        assert_eq!(
            world.effects(),
            ["amber: welcome, keep [], drop []", "log of a.1 sealed", "birch: build a.2"]
        );
    }

    fn an_agent_is_told_to_drop_what_is_not_its_own(world: &mut World) {
        amber_builds_a(world);
        world.forget();
        world.rejoin("birch", 1, &["a.1"]);
        assert_eq!(world.effects(), ["birch: welcome, keep [], drop [a.1]"]);
        assert_eq!(world.shown(), "a building");
    }

    fn another_machine_under_the_same_name_is_refused(world: &mut World) {
        amber_builds_a(world);
        world.join_with("amber", 1, abilities(&[SYSTEM], 1), &[]);
        assert_eq!(world.effects(), ["amber: refused"]);
        assert_eq!(world.changes(), [""; 0]);
        world.leave("amber");
        world.join_with("amber", 1, abilities(&[SYSTEM], 1), &[]);
        assert_eq!(
            world.effects(),
            ["amber: welcome, keep [], drop []", "log of a.1 sealed", "amber: build a.2"]
        );
    }

    fn a_second_session_of_the_same_machine_takes_the_place_of_the_first(world: &mut World) {
        amber_builds_a(world);
        let old = world.session("amber");
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(
            world.effects(),
            ["amber: replaced", "amber: welcome, keep [a.1], drop []"]
        );
        let attempt = world.attempt("a.1");
        world.step(vec![
            Input::Finished { session: old, attempt, outcome: Outcome::Built },
            Input::Leave { session: old },
        ]);
        world.is_quiet();
        assert_eq!(world.counts().stale_messages, 1);
        assert_eq!(world.counts().agents_connected, 1);
    }

    fn stale_messages_change_nothing_and_are_counted(world: &mut World) {
        amber_builds_a(world);
        world.join("birch", 1);
        world.leave("amber");
        world.pass_ms(LEASE_MS);
        world.rejoin("amber", 1, &[]);
        world.forget();
        world.started("amber", "a.1");
        world.finished("amber", "a.1", Outcome::Built);
        world.fails("amber", "a.1");
        assert_eq!(world.effects(), ["amber: cancel a.1"; 3]);
        world.offer("amber", "a.1");
        world.deliver("amber", "a.1");
        world.offer("amber", "a.2");
        assert_eq!(
            world.effects(),
            ["offer not wanted", "delivery not accepted", "offer not wanted"]
        );
        assert_eq!(world.changes(), [""; 0]);
        assert_eq!(world.counts().stale_messages, 6);
        assert_eq!(world.shown(), "a allocated");
    }

    fn what_comes_twice_changes_nothing_more(world: &mut World) {
        amber_builds_a(world);
        world.started("amber", "a.1");
        world.is_quiet();
        world.finished("amber", "a.1", Outcome::Built);
        world.offer("amber", "a.1");
        world.forget();
        world.finished("amber", "a.1", Outcome::Built);
        world.started("amber", "a.1");
        world.is_quiet();
        world.offer("amber", "a.1");
        assert_eq!(world.effects(), ["offer of a.drv wanted"]);
        world.deliver("amber", "a.1");
        world.forget();
        world.deliver("amber", "a.1");
        assert_eq!(world.effects(), ["delivery not accepted"]);
        assert_eq!(world.changes(), [""; 0]);
    }

    /// The report and the offer travel on two connections.
    fn an_offer_that_overtakes_the_report_is_answered_with_it(world: &mut World) {
        amber_builds_a(world);
        world.offer("amber", "a.1");
        world.is_quiet();
        world.finished("amber", "a.1", Outcome::Built);
        assert_eq!(world.changes(), ["a building → receiving", "a.1 receiving"]);
        assert_eq!(world.effects(), ["offer of a.drv wanted"]);
        assert_eq!(world.counts().stale_messages, 0);
    }

    fn an_early_offer_is_turned_down_by_the_next_one_and_by_the_end(world: &mut World) {
        amber_builds_a(world);
        world.offer("amber", "a.1");
        world.offer("amber", "a.1");
        assert_eq!(world.effects(), ["offer not wanted"]);
        world.fails("amber", "a.1");
        assert_eq!(world.effects()[0], "offer not wanted");
    }

    fn a_slot_is_free_as_soon_as_the_build_has_ended(world: &mut World) {
        world.graph("a; b");
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.join("amber", 1);
        assert_eq!(world.shown(), "a allocated, b ready");
        world.forget();
        world.finished("amber", "a.1", Outcome::Built);
        assert_eq!(world.shown(), "a receiving, b allocated");
        assert_eq!(world.effects(), ["amber: build b.1"]);
    }

    fn who_cannot_begin_is_avoided_after_a_pause(world: &mut World) {
        amber_builds_a(world);
        world.join("birch", 1);
        world.forget();
        world.cannot_begin("amber", "a.1");
        assert_eq!(world.changes(), ["a.1 disk-full", "a building → deferred"]);
        assert_eq!(world.effects(), ["log of a.1 sealed", "amber: settled a.1"]);
        world.pass_ms(9_999);
        world.is_quiet();
        world.pass_ms(1);
        assert_eq!(world.effects(), ["birch: build a.2"]);
        world.cannot_begin("birch", "a.2");
        world.pass_ms(29_999);
        assert_eq!(world.shown(), "a deferred");
        world.pass_ms(1);
        assert!(world.effects().contains(&"amber: build a.3".to_owned()));
    }

    fn who_is_alone_is_not_avoided(world: &mut World) {
        amber_builds_a(world);
        world.join("birch", 0);
        world.cannot_begin("amber", "a.1");
        world.forget();
        world.pass_ms(10_000);
        assert_eq!(world.effects(), ["amber: build a.2"]);
    }

    fn refused_outputs_are_no_failure_of_the_build(world: &mut World) {
        amber_builds_a(world);
        world.finished("amber", "a.1", Outcome::Built);
        world.forget();
        world.deliver_as("amber", "a.1", Delivery::Rejected("wrong hash".to_owned()));
        assert_eq!(world.changes(), ["a.1 rejected", "a receiving → deferred"]);
        assert_eq!(world.effects(), ["log of a.1 sealed", "delivery accepted"]);
    }

    fn a_failure_after_the_report_of_outputs_is_no_failure_of_the_build(world: &mut World) {
        amber_builds_a(world);
        world.finished("amber", "a.1", Outcome::Built);
        world.finished("amber", "a.1", Outcome::Failed(BuildFailure::Timeout));
        assert_eq!(world.shown(), "a deferred");
    }

    /// Who reported success at once and sent nothing once got every build there was.
    fn who_owes_the_outputs_of_too_many_builds_gets_no_more(world: &mut World) {
        let names: Vec<String> = (0..SENDING_MAX + 2).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        world.graph(&names.join("; "));
        world.join("amber", 1);
        let (built, others) = names.split_at(SENDING_MAX);
        for name in built {
            world.submit(name, Wish::ALONE);
            world.finished("amber", &format!("{name}.1"), Outcome::Built);
        }
        world.submit_all(others, Wish::ALONE);
        let ready = |world: &World| world.counts().builds.get(&ShownState::Ready).copied();
        assert_eq!(ready(world), Some(2));
        world.deliver("amber", "n0.1");
        assert_eq!(ready(world), Some(1));
        world.join("birch", 1);
        assert_eq!(ready(world), None);
    }

    fn builds_spread_over_the_farm(world: &mut World) {
        world.graph("a; b; c; d");
        for agent in ["amber", "birch"] {
            world.join(agent, 4);
        }
        world.submit_all(&["a", "b", "c", "d"], Wish::ALONE);
        let orders = world.effects();
        let to = |agent: &str| orders.iter().filter(|o| o.starts_with(agent) && o.contains("build")).count();
        assert_eq!((to("amber"), to("birch")), (2, 2));
    }
}
