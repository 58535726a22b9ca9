//! Who waits for whom, and what follows when something ends.

use super::world::{SYSTEM, Wish, World, nar};
use crate::core::{
    change::Change,
    engine::{Authority, Wanted},
    outcome::Outcome,
    plan::Strategy,
};

super::stories! {
    fn a_chain_is_built_in_order(world: &mut World) {
        world.graph("a: b; b: c; c");
        world.submit("a", Wish::WITH_INPUTS);
        assert_eq!(world.shown(), "a waiting, b waiting, c ready");
        world.join("amber", 9);
        for (built, next) in [("c.1", "b"), ("b.1", "a")] {
            world.forget();
            world.builds("amber", built);
            let last = world.effects().pop();
            assert_eq!(last, Some(format!("amber: build {next}.1")));
        }
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "");
        assert_eq!(world.engine.graph().iter().count(), 0);
    }

    fn one_build_tells_exactly_what_it_has_to(world: &mut World) {
        world.graph("a");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.forget();
        world.builds("amber", "a.1");
        assert_eq!(
            world.changes(),
            [
                "a allocated → building",
                "a.1 building",
                "a building → receiving",
                "a.1 receiving",
                "nar a",
                "a.1 outputs 1",
                "a.1 succeeded",
                "a receiving → succeeded",
            ]
        );
        assert_eq!(
            world.effects(),
            ["log of a.1 sealed", "a rests succeeded", "publish a", "delivery accepted"]
        );
    }

    fn both_sides_of_a_diamond_go_at_once(world: &mut World) {
        world.graph("top: left right; left: bottom; right: bottom; bottom");
        world.submit("top", Wish::WITH_INPUTS);
        world.join("amber", 9);
        world.builds("amber", "bottom.1");
        assert_eq!(world.shown(), "left allocated, right allocated, top waiting");
        world.builds("amber", "right.1");
        assert_eq!(world.shown(), "left allocated, top waiting");
        world.builds("amber", "left.1");
        assert_eq!(world.shown(), "top allocated");
    }

    fn a_failure_blocks_all_that_need_it_and_says_so_once(world: &mut World) {
        world.graph("top: middle other; middle: bottom; bottom; other");
        world.submit("top", Wish::WITH_INPUTS);
        world.join("amber", 2);
        world.forget();
        world.fails("amber", "bottom.1");
        assert_eq!(world.shown(), "middle blocked, other allocated, top blocked");
        let mut effects = world.effects();
        effects.sort();
        assert_eq!(
            effects,
            [
                "amber: settled bottom.1",
                "bottom rests failed",
                "log of bottom.1 sealed",
                "middle rests blocked",
                "top rests blocked"
            ]
        );
        world.fails("amber", "other.1");
        assert!(!world.effects().iter().any(|effect| effect.contains("blocked")));
        world.restart();
        assert_eq!(world.effects(), [""; 0]);
    }

    fn another_try_of_what_failed_unblocks(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::WITH_INPUTS);
        world.join("amber", 1);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "a blocked");
        world.submit("b", Wish::ALONE);
        assert_eq!(world.shown(), "a waiting, b#2 allocated");
        world.forget();
        world.fails("amber", "b#2.1");
        assert!(world.effects().contains(&"a rests blocked".to_owned()));
        world.submit("b", Wish::ALONE);
        world.builds("amber", "b#3.1");
        assert_eq!(world.shown(), "a allocated");
    }

    fn what_is_submitted_onto_a_failure_is_blocked_at_once(world: &mut World) {
        world.graph("a: b; b");
        world.submit("b", Wish::ALONE);
        world.join("amber", 1);
        world.fails("amber", "b.1");
        world.forget();
        world.submit("a", Wish::ALONE);
        assert_eq!(world.effects(), ["submitted a and 0 more", "a rests blocked"]);
        world.submit("a", Wish::WITH_INPUTS);
        assert_eq!(world.shown(), "a waiting, a#2 waiting, b#2 allocated");
    }

    /// Of two ends in one millisecond memory took the later one, the database the greater id.
    fn of_two_ends_at_once_the_younger_build_counts(world: &mut World) {
        world.graph("a: b; b");
        world.submit_all(&["b", "b"], Wish::ALONE);
        world.join("amber", 2);
        world.fails("amber", "b#2.1");
        world.builds("amber", "b.1");
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a allocated");
    }

    fn a_failure_beside_an_open_build_of_the_same_blocks_nobody(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::WITH_INPUTS);
        let second = world.submit("b", Wish::ALONE);
        world.join("amber", 1);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "a waiting, b#2 allocated");
        world.cancel_all(&[second], Authority::All, Wanted::Goes);
        assert_eq!(world.shown(), "a blocked");
    }

    /// A deferred build was once not told of as blocked when it was queued again.
    fn what_is_blocked_while_it_is_deferred_says_so_when_it_is_due(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::ALONE);
        world.join("amber", 2);
        world.cannot_begin("amber", "a.1");
        world.submit("b", Wish::ALONE);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "a deferred");
        world.forget();
        world.pass_ms(10_000);
        assert_eq!(world.effects(), ["a rests blocked"]);
        assert_eq!(world.changes(), ["a deferred → queued"]);
    }

    fn basic_lets_an_agent_try_without_inputs(world: &mut World) {
        world.graph("a: b; b");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a allocated");
    }

    fn basic_waits_for_an_input_that_was_missed_and_is_made_by_a_derivation(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.forget();
        world.misses("amber", "a.1", &["b"]);
        assert_eq!(world.shown(), "a waiting");
        assert_eq!(world.changes(), ["missing b", "a.1 missing-inputs", "a allocated → queued"]);
        world.submit("b", Wish::ALONE);
        world.builds("amber", "b.1");
        assert_eq!(world.shown(), "a allocated");
    }

    /// An agent that missed what nobody can wait for was once asked again at once, for ever.
    fn whoever_misses_what_is_held_or_unknown_is_not_asked_again_at_once(world: &mut World) {
        world.graph("a: b; b; other: far; far");
        world.record(vec![Change::Nar(nar("b"))]);
        world.submit_all(&["a", "other"], Wish::ALONE);
        world.join("amber", 2);
        world.misses("amber", "a.1", &["b", "far", "nowhere"]);
        assert_eq!(world.shown(), "a deferred, other allocated");
    }

    /// An agent could once have held up builds of others by what it said of its own.
    fn of_what_its_build_does_not_need_an_agent_has_nothing_to_say(world: &mut World) {
        world.graph("a; user: b; b");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.submit("user", Wish::ALONE);
        world.forget();
        world.misses("amber", "a.1", &["b", "user"]);
        assert!(!world.changes().iter().any(|change| change.starts_with("missing")));
        assert_eq!(world.shown(), "a deferred, user allocated");
    }

    fn what_was_missed_is_forgotten_once_it_is_held(world: &mut World) {
        world.derivation("two", SYSTEM, &["out", "doc"], &[]);
        world.graph("a: two");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.misses("amber", "a.1", &["out"]);
        assert_eq!(world.shown(), "a waiting");
        world.record(vec![Change::Nar(nar("out"))]);
        assert_eq!(world.shown(), "a allocated");
    }

    fn derivation_ordered_waits_for_inputs_that_nobody_builds(world: &mut World) {
        world.strategy(Strategy::DerivationOrdered);
        world.graph("a: b; b");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a waiting");
        world.forget();
        world.pass_ms(3_600_000);
        world.is_quiet();
        world.record(vec![Change::Nar(nar("b"))]);
        assert_eq!(world.shown(), "a allocated");
    }

    fn an_output_that_two_derivations_make_serves_both(world: &mut World) {
        world.strategy(Strategy::DerivationOrdered);
        world.derivation("mirror", SYSTEM, &["tar"], &[]);
        world.derivation("origin", SYSTEM, &["tar"], &[]);
        world.graph("a: mirror; b: origin");
        world.submit_all(&["a", "b", "origin"], Wish::ALONE);
        world.join("amber", 2);
        assert_eq!(world.shown(), "a waiting, b waiting, origin allocated");
        world.started("amber", "origin.1");
        world.builds("amber", "origin.1");
        assert_eq!(world.shown(), "a allocated, b allocated");
    }

    /// Memory once took every output of a success for held, the database only what came.
    fn what_the_depot_did_not_take_is_not_held(world: &mut World) {
        world.strategy(Strategy::DerivationOrdered);
        world.graph("a: b; b");
        world.submit("a", Wish::WITH_INPUTS);
        world.join("amber", 1);
        world.finished("amber", "b.1", Outcome::Built);
        world.forget();
        world.deliver_as("amber", "b.1", World::verified(&["b".to_owned()], Vec::new()));
        assert_eq!(world.shown(), "a waiting");
        assert!(!world.effects().iter().any(|effect| effect.starts_with("publish")));
    }
}
