//! Builds are asked for, and nobody wants them any more.

use super::world::{SYSTEM, Wish, World, name, nar};
use crate::core::{change::Change, engine::Authority, plan::Strategy};

super::stories! {
    fn an_explicit_submit_always_makes_its_own_build(world: &mut World) {
        world.graph("a");
        world.submit("a", Wish::ALONE);
        world.submit("a", Wish::WITH_INPUTS);
        assert_eq!(world.shown(), "a ready, a#2 ready");
        assert_eq!(world.effects(), ["submitted a and 0 more", "submitted a#2 and 0 more"]);
        assert_eq!(world.changes(), ["build a", "build a#2"]);
    }

    fn builds_for_inputs_reuse_open_ones_and_skip_what_is_held(world: &mut World) {
        world.graph("a: open held new; open; held; new");
        world.record(vec![Change::Nar(nar("held"))]);
        world.submit("open", Wish::ALONE);
        world.forget();
        world.submit("a", Wish::WITH_INPUTS);
        assert_eq!(world.changes(), ["build a", "build new"]);
        assert_eq!(world.effects(), ["submitted a and 1 more"]);
        assert_eq!(world.shown(), "a waiting, new ready, open ready");
    }

    fn the_same_key_again_is_the_same_build(world: &mut World) {
        world.graph("a; b");
        let first = world.submit_all(&["a", "b", "a"], Wish::ALONE.key("nightly"));
        assert_eq!(first[0], first[2]);
        assert_eq!(world.changes(), ["build a", "build b"]);
        let second = world.submit_all(&["a", "b"], Wish::ALONE.key("nightly"));
        assert_eq!(second, first[..2]);
        assert_eq!(world.changes(), [""; 0]);
        assert_ne!(world.submit("a", Wish::ALONE.key("weekly")), first[0]);
    }

    fn a_key_is_for_what_was_named_not_for_its_inputs(world: &mut World) {
        world.graph("a: b; b: c; c");
        world.submit_all(&["b", "a"], Wish::WITH_INPUTS.key("nightly"));
        assert_eq!(world.changes(), ["build a", "build b", "build c"]);
        assert_eq!(world.effects(), ["submitted b a and 1 more"]);
        world.submit_all(&["c"], Wish::ALONE.key("nightly"));
        assert_eq!(world.effects(), ["submitted c#2 and 0 more"]);
    }

    fn a_cancel_takes_the_inputs_that_nobody_else_wants(world: &mut World) {
        world.graph("a: deep shared asked; b: shared; deep: deeper; deeper; shared; asked");
        world.submit("asked", Wish::ALONE);
        let a = world.submit("a", Wish::WITH_INPUTS);
        world.submit("b", Wish::WITH_INPUTS);
        world.forget();
        world.cancel(&[a]);
        assert_eq!(world.shown(), "asked ready, b waiting, shared ready");
        assert_eq!(
            world.effects(),
            [
                "a rests canceled",
                "deep rests canceled",
                "deeper rests canceled",
                "canceled: a Done"
            ]
        );
    }

    fn a_cancel_reaches_the_agent_that_builds(world: &mut World) {
        world.graph("a");
        let a = world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.started("amber", "a.1");
        world.forget();
        world.cancel(&[a]);
        assert_eq!(world.changes(), ["a.1 canceled", "a building → canceled"]);
        assert_eq!(
            world.effects(),
            ["log of a.1 sealed", "amber: cancel a.1", "a rests canceled", "canceled: a Done"]
        );
        world.cancel(&[a]);
        assert_eq!(world.effects(), ["canceled: a NotOpen"]);
        assert_eq!(world.changes(), [""; 0]);
    }

    fn nobody_cancels_what_is_somebody_elses(world: &mut World) {
        world.graph("a");
        let a = world.submit("a", Wish::ALONE);
        world.forget();
        world.cancel_by(&[a], Authority::Own(name("bea")));
        assert_eq!(world.effects(), ["canceled: a NotYours"]);
        assert_eq!(world.changes(), [""; 0]);
        world.cancel_by(&[a], Authority::Own(name("ada")));
        assert_eq!(world.effects(), ["a rests canceled", "canceled: a Done"]);
    }

    fn higher_priority_goes_first_and_lends_itself_to_inputs(world: &mut World) {
        world.graph("plain; urgent: needed; needed");
        world.submit("plain", Wish::ALONE);
        world.submit("needed", Wish::ALONE);
        world.submit("urgent", Wish::ALONE.priority(1));
        world.join("amber", 1);
        assert_eq!(world.shown(), "needed allocated, plain ready, urgent waiting");
    }

    fn whoever_waited_longer_goes_first_in_spite_of_a_little_priority(world: &mut World) {
        world.graph("old; new");
        world.submit("old", Wish::ALONE);
        world.pass_ms(6 * 60_000);
        world.submit("new", Wish::ALONE.priority(1));
        world.join("amber", 1);
        assert_eq!(world.shown(), "new ready, old allocated");
    }

    fn what_no_agent_can_build_is_counted_and_never_fails(world: &mut World) {
        world.graph("a");
        world.derivation("rare", "riscv64-linux", &["rare"], &[]);
        world.submit_all(&["rare", "a"], Wish::ALONE);
        assert_eq!(world.counts().unplaceable, 2);
        world.join("amber", 2);
        assert_eq!(world.counts().unplaceable, 1);
        world.leave("amber");
        assert_eq!(world.counts().unplaceable, 1);
        assert_eq!(world.shown(), "a allocated, rare ready");
    }

    fn one_system_does_not_wait_for_another(world: &mut World) {
        world.derivation("rare", "riscv64-linux", &["rare"], &[]);
        world.graph("a; b; c");
        world.submit_all(&["a", "b", "c"], Wish::ALONE.priority(9));
        world.submit("rare", Wish::ALONE);
        world.join("amber", 1);
        world.join_with("birch", 0, super::world::abilities(&["riscv64-linux"], 1), &[]);
        assert_eq!(world.shown(), "a allocated, b ready, c ready, rare allocated");
    }

    fn facts_of_what_is_in_memory_already_change_nothing(world: &mut World) {
        world.strategy(Strategy::DerivationOrdered);
        world.derivation("two", SYSTEM, &["out", "doc"], &[]);
        world.graph("a: two; b: two");
        world.submit("a", Wish::ALONE);
        world.record(vec![Change::Nar(nar("doc"))]);
        world.submit("b", Wish::ALONE);
        assert_eq!(world.shown(), "a waiting, b waiting");
        world.record(vec![Change::Nar(nar("out"))]);
        assert_eq!(world.shown(), "a ready, b ready");
    }

    /// The database once left out the inputs of `b` here, which it had met as an input first.
    fn a_root_that_another_root_needs_is_still_a_root(world: &mut World) {
        world.graph("a: b; b: c; c");
        world.submit_all(&["b", "a"], Wish::ALONE);
        assert_eq!(world.shown(), "a waiting, b ready");
        world.submit_all(&["a", "b"], Wish::ALONE);
        assert_eq!(world.shown(), "a waiting, a#2 waiting, b ready, b#2 ready");
    }

    /// A hold was once counted and not noted by output, so that the same nar twice passed for two.
    fn the_same_nar_twice_is_one_output(world: &mut World) {
        world.strategy(Strategy::DerivationOrdered);
        world.derivation("two", SYSTEM, &["out", "doc"], &[]);
        world.graph("a: two");
        world.submit("a", Wish::ALONE);
        world.record(vec![Change::Nar(nar("doc"))]);
        world.record(vec![Change::Nar(nar("doc"))]);
        assert_eq!(world.shown(), "a waiting");
    }
}
