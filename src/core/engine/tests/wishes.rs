//! What people want of builds besides that they be built: when, by whom, held, changed, again.

use super::world::{SYSTEM, Wish, World, abilities, name};
use crate::core::{
    build::ShownState,
    demands::Demands,
    engine::{Authority, RetryWish, Wanted},
    plan::Strategy,
};

fn only(agent: &str) -> Demands {
    Demands { agents: vec![name(agent)], ..Demands::default() }
}

fn not(agent: &str) -> Demands {
    Demands { not_agents: vec![name(agent)], ..Demands::default() }
}

super::stories! {
    fn a_build_for_one_agent_waits_for_it_and_holds_nobody_up(world: &mut World) {
        world.graph("a; b");
        world.submit("a", Wish::ALONE.demands(only("birch")).priority(9));
        world.submit("b", Wish::ALONE);
        world.join("amber", 2);
        assert_eq!(world.shown(), "a ready, b allocated");
        world.join("birch", 1);
        assert_eq!(world.shown(), "a allocated, b allocated");
        assert_eq!(world.snapshot_attempts().last().unwrap().1, "amber");
    }

    fn a_build_that_shuns_an_agent_goes_to_another(world: &mut World) {
        world.graph("a");
        world.submit("a", Wish::ALONE.demands(not("amber")));
        world.join("amber", 1);
        assert_eq!(world.shown(), "a ready");
        assert_eq!(world.counts().unplaceable, 1);
        world.join("birch", 1);
        assert_eq!(world.shown(), "a allocated");
    }

    fn a_build_may_ask_for_tags_and_for_no_emulation(world: &mut World) {
        world.graph("a; b");
        let tags = vec![("site".to_owned(), "lab".to_owned())];
        world.submit("a", Wish::ALONE.demands(Demands { tags, ..Demands::default() }));
        world.submit("b", Wish::ALONE.demands(Demands { native_only: true, ..Demands::default() }));
        let mut emulates = abilities(&[], 2);
        emulates.emulated_systems = vec![SYSTEM.to_owned()];
        world.join_with("amber", 0, emulates, &[]);
        assert_eq!(world.shown(), "a ready, b ready");
        let mut tagged = abilities(&[SYSTEM], 2);
        tagged.tags.insert("site".to_owned(), "lab".to_owned());
        world.join_with("birch", 0, tagged, &[]);
        assert_eq!(world.shown(), "a allocated, b allocated");
    }

    fn whoever_waits_with_demands_is_found_again_after_a_restart(world: &mut World) {
        world.graph("a; b");
        let a = world.submit("a", Wish::ALONE.demands(only("birch")));
        world.submit("b", Wish::ALONE.demands(only("birch")));
        world.restart();
        world.cancel(&[a]);
        world.join("amber", 2);
        world.join("birch", 2);
        assert_eq!(world.shown(), "b allocated");
    }

    fn a_deferred_build_waits_for_its_time_however_far(world: &mut World) {
        world.graph("a");
        world.join("amber", 1);
        world.submit("a", Wish::ALONE.defer_ms(5 * 3_600_000));
        for _ in 0..4 {
            world.pass_ms(3_600_000);
            assert_eq!(world.shown(), "a deferred");
        }
        world.restart();
        world.pass_ms(3_599_999);
        assert_eq!(world.shown(), "a deferred");
        world.join("amber", 1);
        world.pass_ms(1);
        assert_eq!(world.shown(), "a allocated");
    }

    fn a_deferred_build_is_tried_at_once_when_somebody_says_so(world: &mut World) {
        world.graph("a");
        let a = world.submit("a", Wish::ALONE.defer_ms(5 * 3_600_000));
        world.forget();
        world.retries(&[a], RetryWish::default());
        assert_eq!(world.changes(), ["a NotDeferred", "a deferred → queued"]);
        assert_eq!(world.effects(), ["retried: a Hastened"]);
        assert_eq!(world.shown(), "a ready");
    }

    fn a_held_build_goes_to_nobody_until_it_is_released(world: &mut World) {
        world.graph("a: b; b");
        let a = world.submit("a", Wish::WITH_INPUTS);
        world.holds(a);
        world.join("amber", 1);
        world.builds("amber", "b.1");
        assert_eq!(world.shown(), "a held");
        assert_eq!(world.why(a).extras.hold.unwrap().by, name("olga"));
        world.forget();
        world.holds(a);
        assert_eq!(world.changes(), [""; 0]);
        world.restart();
        world.join("amber", 1);
        assert_eq!(world.shown(), "a held");
        world.releases(a);
        assert_eq!(world.shown(), "a allocated");
    }

    fn a_build_that_is_held_while_it_is_built_goes_on(world: &mut World) {
        world.graph("a");
        let a = world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.holds(a);
        assert_eq!(world.shown(), "a allocated");
        world.cannot_begin("amber", "a.1");
        assert_eq!(world.shown(), "a held");
        world.pass_ms(10_000);
        assert_eq!(world.shown(), "a held");
    }

    fn a_lower_priority_takes_back_what_inputs_had_of_the_higher(world: &mut World) {
        world.graph("urgent: middle; middle: needed; needed; plain");
        world.submit("plain", Wish::ALONE.priority(1));
        let urgent = world.submit("urgent", Wish::WITH_INPUTS.priority(2));
        world.sets_priority(urgent, -1);
        // Those for inputs were made with the priority of the submission, and keep it.
        let inputs: Vec<_> = ["middle", "needed"].map(|called| world.build_called(called)).into();
        for input in inputs {
            world.sets_priority(input, -5);
        }
        world.join("amber", 1);
        assert_eq!(world.shown(), "middle waiting, needed ready, plain allocated, urgent waiting");
        world.sets_priority(urgent, 9);
        world.builds("amber", "plain.1");
        assert_eq!(world.shown(), "middle waiting, needed allocated, urgent waiting");
    }

    fn a_failed_build_is_tried_again_as_the_same_build(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::WITH_INPUTS);
        world.join("amber", 1);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "a blocked");
        let b = world.build_called("b");
        world.forget();
        world.retries(&[b], RetryWish::default());
        assert_eq!(world.changes(), ["b failed → queued", "attempt b.2", "b queued → allocated"]);
        assert_eq!(world.effects(), ["retried: b Reopened", "amber: build b.2"]);
        assert_eq!(world.shown(), "a waiting, b allocated");
        world.builds("amber", "b.2");
        assert_eq!(world.shown(), "a allocated");
    }

    fn a_retry_is_aimed_at_agents_and_away_from_them(world: &mut World) {
        world.graph("a; b");
        let builds = world.submit_all(&["a", "b"], Wish::ALONE);
        world.join("amber", 2);
        world.fails("amber", "a.1");
        world.fails("amber", "b.1");
        let wish = RetryWish { agents: vec![name("birch")], ..RetryWish::default() };
        world.retries(&builds[..1], wish);
        let wish = RetryWish { not_agents: vec![name("amber")], ..RetryWish::default() };
        world.retries(&builds[1..], wish);
        assert_eq!(world.shown(), "a ready, b ready");
        world.join("birch", 2);
        assert_eq!(world.shown(), "a allocated, b allocated");
    }

    fn a_failed_build_is_tried_on_another_agent_first(world: &mut World) {
        world.graph("a");
        let a = world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.fails("amber", "a.1");
        world.join("birch", 1);
        world.retries(&[a], RetryWish::default());
        assert_eq!(world.snapshot_attempts(), [("a.2".to_owned(), "birch".to_owned())]);
    }

    fn what_succeeded_or_is_being_built_is_not_tried_again(world: &mut World) {
        world.graph("a; b");
        let builds = world.submit_all(&["a", "b"], Wish::ALONE);
        world.join("amber", 2);
        world.builds("amber", "a.1");
        world.forget();
        world.retries(&builds, RetryWish::default());
        assert_eq!(world.effects(), ["retried: a Succeeded, b Busy"]);
        assert_eq!(world.changes(), [""; 0]);
    }

    /// The end of a build that is opened again does not count any more, on disk or in memory.
    fn a_retried_build_that_is_canceled_leaves_no_failure_behind(world: &mut World) {
        world.graph("a: b; b");
        let b = world.submit("b", Wish::ALONE);
        world.join("amber", 1);
        world.fails("amber", "b.1");
        world.submit("a", Wish::ALONE);
        assert_eq!(world.shown(), "a blocked");
        world.leave("amber");
        world.retries(&[b], RetryWish::default());
        world.cancel_all(&[b], Authority::All, Wanted::Goes);
        assert_eq!(world.shown(), "a ready");
    }

    fn to_cancel_leaves_what_others_need_and_takes_it_with_the_last(world: &mut World) {
        world.strategy(Strategy::DerivationOrdered);
        world.graph("a: b; c: b; b");
        let b = world.submit("b", Wish::ALONE);
        let a = world.submit("a", Wish::WITH_INPUTS);
        let c = world.submit("c", Wish::WITH_INPUTS);
        world.forget();
        world.cancel(&[b]);
        assert_eq!(world.effects(), ["canceled: b Stays"]);
        assert_eq!(world.changes(), ["b Implied"]);
        world.cancel(&[a]);
        assert_eq!(world.shown(), "b ready, c waiting");
        world.cancel(&[c]);
        assert_eq!(world.shown(), "");
    }

    fn whoever_cancels_all_gets_rid_of_all_in_any_order(world: &mut World) {
        world.graph("a: b; b: c; c");
        let mut builds = world.submit_all(&["c", "b", "a"], Wish::ALONE);
        world.forget();
        builds.swap(0, 1);
        world.cancel(&builds);
        assert_eq!(world.effects().last().unwrap(), "canceled: b Done, c Done, a Done");
        assert_eq!(world.shown(), "");
    }

    fn force_cancels_what_others_need(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::WITH_INPUTS);
        let b = world.build_called("b");
        world.cancel(&[b]);
        assert_eq!(world.shown(), "a waiting, b ready");
        world.cancel_all(&[b], Authority::All, Wanted::Goes);
        assert_eq!(world.shown(), "a ready");
    }

    fn a_submission_takes_the_place_of_what_nobody_has_begun(world: &mut World) {
        world.graph("old: shared; new: shared; begun; shared");
        let begun = world.submit("begun", Wish::ALONE);
        world.join("amber", 1);
        let old = world.submit("old", Wish::WITH_INPUTS);
        let bea = world.submit("old", Wish::ALONE.by("bea"));
        world.forget();
        world.submit("new", Wish::WITH_INPUTS.replaces(&[begun, old, bea]));
        // What both need is kept, and what somebody else asked for.
        assert_eq!(
            world.shown(),
            "begun allocated, new waiting, old#2 waiting, shared ready"
        );
        assert_eq!(world.effects()[0], "old rests canceled");
    }

    fn a_hold_ends_no_wait_and_a_block_does(world: &mut World) {
        world.graph("a: b; b");
        let a = world.submit("a", Wish::WITH_INPUTS);
        world.holds(a);
        assert!(!ShownState::Held.ends_a_wait());
        world.join("amber", 1);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "a blocked");
    }

    fn who_has_used_much_goes_behind_who_has_not(world: &mut World) {
        world.share_fairly(60, 60);
        world.graph("a; b; c; d");
        world.submit_all(&["a", "b", "c"], Wish::ALONE);
        world.submit("d", Wish::ALONE.by("bea"));
        world.join("amber", 1);
        world.pass_ms(600_000);
        world.fails("amber", "a.1");
        assert_eq!(world.shown(), "b ready, c ready, d allocated");
        world.restart();
        world.rejoin("amber", 1, &["d.1"]);
        world.fails("amber", "d.1");
        assert_eq!(world.shown().matches("allocated").count(), 1);
    }

    fn free_slots_are_divided_at_once(world: &mut World) {
        world.share_fairly(60, 60);
        world.graph("a; b; c; d; e; f");
        world.submit_all(&["a", "b", "c", "d"], Wish::ALONE);
        world.submit_all(&["e", "f"], Wish::ALONE.by("bea"));
        world.join("amber", 4);
        let shown = world.shown();
        assert!(shown.ends_with("e allocated, f allocated"), "{shown}");
        assert_eq!(shown.matches("allocated").count(), 4);
    }

    fn nobody_waits_longer_for_lack_of_use_than_the_weight(world: &mut World) {
        world.share_fairly(30, 600);
        world.graph("a; old; new");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.submit("old", Wish::ALONE);
        world.pass_ms(31 * 60_000);
        world.submit("new", Wish::ALONE.by("bea"));
        world.fails("amber", "a.1");
        assert_eq!(world.shown(), "new ready, old allocated");
    }

    fn priority_is_worth_its_minutes_beside_fair_share(world: &mut World) {
        world.share_fairly(30, 600);
        world.graph("a; urgent; new");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.pass_ms(600_000);
        world.submit("urgent", Wish::ALONE.priority(7));
        world.submit("new", Wish::ALONE.by("bea"));
        world.fails("amber", "a.1");
        assert_eq!(world.shown(), "new ready, urgent allocated");
    }

    fn inputs_that_an_agent_misses_are_built(world: &mut World) {
        world.settings.build_missing = true;
        world.restart();
        world.graph("a: b; b: c; c");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.forget();
        world.misses("amber", "a.1", &["b"]);
        assert_eq!(world.shown(), "a waiting, b allocated");
        assert!(world.effects().contains(&"a wants b".to_owned()));
        // What this one misses in turn.
        world.misses("amber", "b.1", &["c"]);
        world.builds("amber", "c.1");
        world.builds("amber", "b.2");
        assert_eq!(world.shown(), "a allocated");
    }

    fn inputs_that_were_missed_long_ago_are_built_for_whoever_comes(world: &mut World) {
        world.graph("a: b; later: b; b");
        let a = world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.misses("amber", "a.1", &["b"]);
        world.cancel(&[a]);
        world.settings.build_missing = true;
        world.restart();
        world.submit("later", Wish::ALONE);
        assert_eq!(world.shown(), "b ready, later waiting");
    }

    fn whoever_waited_for_missing_inputs_gets_them_when_that_is_switched_on(world: &mut World) {
        world.graph("a: b; b");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.misses("amber", "a.1", &["b"]);
        assert_eq!(world.shown(), "a waiting");
        world.configure(|settings| settings.build_missing = true);
        assert_eq!(world.shown(), "a waiting, b allocated");
    }

    fn another_strategy_judges_every_build_anew(world: &mut World) {
        world.graph("a: b; b; c");
        world.submit_all(&["a", "c"], Wish::ALONE);
        assert_eq!(world.shown(), "a ready, c ready");
        world.configure(|settings| settings.strategy = Strategy::DerivationOrdered);
        world.join("amber", 2);
        assert_eq!(world.shown(), "a waiting, c allocated");
        world.configure(|settings| settings.strategy = Strategy::Basic);
        assert_eq!(world.shown(), "a allocated, c allocated");
    }

    fn fair_share_can_be_switched_on_and_off(world: &mut World) {
        world.graph("a; b; c; d");
        world.share_fairly(60, 60);
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.submit("c", Wish::ALONE.by("bea"));
        world.join("amber", 1);
        world.configure(|settings| settings.fair_share.weight_minutes = 0);
        world.fails("amber", "a.1");
        assert_eq!(world.shown(), "b allocated, c ready");
        world.configure(|settings| settings.fair_share.weight_minutes = 60);
        world.submit("d", Wish::ALONE);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "c allocated, d ready");
    }

    fn a_failure_is_tried_again_as_often_as_is_wanted_elsewhere_first(world: &mut World) {
        world.settings.retries.exit = 1;
        world.restart();
        world.graph("a: b; b");
        world.submit("a", Wish::WITH_INPUTS);
        world.join("amber", 1);
        world.forget();
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "a waiting, b deferred");
        assert_eq!(world.changes(), ["b.1 exit", "b allocated → deferred"]);
        world.join("birch", 1);
        world.pass_ms(10_000);
        assert_eq!(world.snapshot_attempts(), [("b.2".to_owned(), "birch".to_owned())]);
        world.fails("birch", "b.2");
        assert_eq!(world.shown(), "a blocked");
    }

    fn a_success_after_a_failure_is_remembered(world: &mut World) {
        world.settings.retries.exit = 1;
        world.restart();
        world.graph("a");
        let a = world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.fails("amber", "a.1");
        assert_eq!(world.why(a).extras.failures, 1);
        world.pass_ms(10_000);
        world.builds("amber", "a.2");
        assert_eq!(world.shown(), "");
    }

    fn what_fails_under_emulation_is_tried_where_the_system_is_native(world: &mut World) {
        world.settings.retries.emulated = true;
        world.restart();
        world.graph("a; b");
        let mut emulates = abilities(&[], 1);
        emulates.emulated_systems = vec![SYSTEM.to_owned()];
        world.join_with("amber", 0, emulates.clone(), &[]);
        world.submit("a", Wish::ALONE);
        world.fails("amber", "a.1");
        // Nobody else is known: that is its end.
        assert_eq!(world.shown(), "");
        world.join("birch", 1);
        world.leave("birch");
        world.submit("b", Wish::ALONE);
        world.fails("amber", "b.1");
        assert_eq!(world.shown(), "b ready");
        world.join("birch", 1);
        world.fails("birch", "b.2");
        assert_eq!(world.shown(), "");
    }

    fn nobody_gets_more_open_builds_than_they_may_have(world: &mut World) {
        world.graph("a: b; b; c; d; e");
        // An input counts that is built for the submission.
        assert_eq!(world.submit_all(&["a"], Wish::WITH_INPUTS.at_most(1)), []);
        assert_eq!(world.shown(), "");
        world.submit_all(&["a"], Wish::WITH_INPUTS.at_most(2));
        world.forget();
        assert_eq!(world.submit_all(&["c"], Wish::ALONE.at_most(2)), []);
        assert_eq!(world.effects(), ["2 open and 1 more are over 2"]);
        assert_eq!(world.changes(), [] as [&str; 0]);
        // Other people's do not count, and neither does what makes no build.
        world.submit_all(&["d"], Wish::ALONE.by("bob").at_most(1));
        world.submit_all(&["c"], Wish::ALONE.key("k").at_most(3));
        assert_eq!(world.submit_all(&["c"], Wish::ALONE.key("k").at_most(1)).len(), 1);
        // Neither a restart nor the same name twice helps.
        world.restart();
        assert_eq!(world.submit_all(&["e"], Wish::ALONE.at_most(3)), []);
        assert_eq!(world.submit_all(&["e", "e"], Wish::ALONE.at_most(4)), []);
        assert_eq!(world.submit_all(&["e"], Wish::ALONE.at_most(4)).len(), 1);
    }

    fn what_is_replaced_makes_room_and_what_ended_as_well(world: &mut World) {
        world.graph("a; b; c");
        let old = world.submit_all(&["a", "b"], Wish::ALONE);
        assert_eq!(world.submit_all(&["c"], Wish::ALONE.at_most(2)), []);
        world.submit_all(&["c", "a"], Wish::ALONE.replaces(&old).at_most(2));
        assert_eq!(world.shown(), "a#2 ready, c ready");
        world.join("amber", 1);
        let first = world.snapshot_attempts()[0].0.clone();
        world.builds("amber", &first);
        assert_eq!(world.submit_all(&["b"], Wish::ALONE.at_most(2)).len(), 1);
    }

    fn trying_again_makes_no_room_for_more_than_there_may_be(world: &mut World) {
        world.graph("a; b; c; d");
        let old = world.submit_all(&["a", "b"], Wish::ALONE);
        world.cancel(&old);
        world.submit_all(&["c", "d"], Wish::ALONE.at_most(2));
        world.forget();
        let wish = RetryWish { open_max: Some(3), ..RetryWish::default() };
        let ada = Authority::Own(name("ada"));
        world.retries_by(&old, ada.clone(), wish.clone());
        assert_eq!(world.effects(), ["2 open and 2 more are over 3"]);
        assert_eq!(world.shown(), "c ready, d ready");
        world.retries_by(&old[..1], ada, wish);
        assert_eq!(world.shown(), "a ready, c ready, d ready");
    }
}
