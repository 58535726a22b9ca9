//! What is lost, withdrawn or pruned, while builds are open that depend on it or do not.

use super::world::{Wish, World};

super::stories! {
    fn what_is_lost_is_waited_for_again_and_built_again(world: &mut World) {
        world.configure(|settings| settings.build_missing = true);
        world.graph("a: b; b; c: b");
        world.join("amber", 1);
        world.submit("b", Wish::ALONE);
        world.builds("amber", "b.1");
        world.leave("amber");
        world.submit("a", Wish::ALONE);
        world.submit("c", Wish::ALONE);
        assert_eq!(world.shown(), "a ready, c ready");
        world.forget();
        world.loses(&["b"]);
        assert_eq!(world.changes(), ["lost b", "build b#2"]);
        assert_eq!(world.shown(), "a waiting, b#2 ready, c waiting");
        world.join("amber", 1);
        world.builds("amber", "b#2.1");
        assert_eq!(world.shown(), "a allocated, c ready");
    }

    fn what_is_lost_and_nobody_needs_is_only_noted(world: &mut World) {
        world.configure(|settings| settings.build_missing = true);
        world.graph("a: b; b");
        world.join("amber", 1);
        world.submit("b", Wish::ALONE);
        world.builds("amber", "b.1");
        world.forget();
        world.loses(&["b"]);
        assert_eq!(world.changes(), ["lost b"]);
        assert_eq!(world.shown(), "");
        // Whoever needs it later has it built.
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a waiting, b#2 allocated");
    }

    fn a_build_that_is_given_away_goes_on_without_what_was_lost(world: &mut World) {
        world.graph("a: b; b");
        world.join("amber", 1);
        world.submit("b", Wish::ALONE);
        world.builds("amber", "b.1");
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a allocated");
        world.loses(&["b"]);
        assert_eq!(world.shown(), "a allocated");
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "");
    }

    fn the_last_failure_counts_again_when_what_was_held_is_lost(world: &mut World) {
        world.graph("a: b; b");
        world.join("amber", 1);
        world.submit("b", Wish::ALONE);
        world.builds("amber", "b.1");
        world.submit("b", Wish::ALONE);
        world.fails("amber", "b#2.1");
        world.leave("amber");
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a ready");
        world.loses(&["b"]);
        assert_eq!(world.shown(), "a blocked");
        world.restart();
        assert_eq!(world.shown(), "a blocked");
    }

    fn what_an_open_build_depends_on_is_not_pruned(world: &mut World) {
        world.graph("a: b; b");
        world.join("amber", 1);
        let b = world.submit("b", Wish::ALONE);
        world.fails("amber", "b.1");
        let a = world.submit("a", Wish::ALONE);
        world.forget();
        world.prunes(&[b, a]);
        assert_eq!(world.changes(), [""; 0]);
        assert_eq!(world.shown(), "a blocked");
        world.cancel(&[a]);
        world.forget();
        world.prunes(&[b, a]);
        assert_eq!(world.changes(), ["pruned b", "pruned a"]);
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a#2 allocated");
    }

    fn what_an_open_build_needs_is_not_withdrawn_nor_what_that_refers_to(world: &mut World) {
        world.graph("a: b; b; c");
        world.join("amber", 1);
        for name in ["b", "c"] {
            world.submit(name, Wish::ALONE);
            world.builds("amber", &format!("{name}.1"));
        }
        let a = world.submit("a", Wish::ALONE);
        world.forget();
        world.withdraws(&[("b", &["c"]), ("c", &[])]);
        assert_eq!(world.changes(), [""; 0]);
        world.cancel(&[a]);
        world.forget();
        world.withdraws(&[("b", &["c"]), ("c", &[])]);
        assert_eq!(world.changes(), ["withdrew b", "withdrew c"]);
    }
}
