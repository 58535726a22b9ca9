//! Stories of attempts that outlive their lease, and of results that differ.

use super::world::{Wish, World};
use crate::core::{
    attempt::HeldPhase,
    change::{Change, NarFile, Verdict},
    engine::{Delivery, Ignored},
    hash::Sha256,
    outcome::{BuildFailure, Outcome, SetupFailure},
};

const LEASE_MS: u64 = 20 * 60 * 1_000;
const BUILT: HeldPhase = HeldPhase::Finished(Outcome::Built);

/// Amber builds `a`, goes away, and is given up; nobody else is there.
fn amber_is_given_up(world: &mut World) {
    world.graph("a");
    world.submit("a", Wish::ALONE);
    world.join("amber", 1);
    world.started("amber", "a.1");
    world.leave("amber");
    world.pass_ms(LEASE_MS);
    assert_eq!(world.shown(), "a ready");
    world.forget();
}

/// The same, and birch got the build.
fn birch_took_over(world: &mut World) {
    amber_is_given_up(world);
    world.join("birch", 1);
    assert_eq!(world.shown(), "a allocated");
    world.forget();
}

super::stories! {
    fn a_lost_attempt_goes_on_when_nobody_took_its_build(world: &mut World) {
        amber_is_given_up(world);
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(world.effects(), ["amber: welcome, keep [a.1], drop []"]);
        assert_eq!(
            world.changes(),
            ["a.1 readopted", "a queued → allocated", "a allocated → building", "a.1 building"]
        );
        world.started("amber", "a.1");
        world.is_quiet();
        world.builds("amber", "a.1");
        assert_eq!(world.shown(), "");
    }

    fn a_lost_attempt_goes_on_after_a_restart_as_well(world: &mut World) {
        amber_is_given_up(world);
        world.restart();
        world.forget();
        world.comes_back("amber", 1, &[("a.1", HeldPhase::Preparing)]);
        assert_eq!(world.changes(), ["a.1 readopted", "a queued → allocated"]);
        world.restart();
        world.comes_back("amber", 1, &[("a.1", BUILT)]);
        world.finished("amber", "a.1", Outcome::Built);
        world.deliver("amber", "a.1");
        assert_eq!(world.shown(), "");
    }

    fn a_finished_lost_attempt_delivers_its_outputs(world: &mut World) {
        amber_is_given_up(world);
        world.comes_back("amber", 1, &[("a.1", BUILT)]);
        assert_eq!(world.changes(), ["a.1 readopted", "a queued → allocated"]);
        world.finished("amber", "a.1", Outcome::Built);
        world.deliver("amber", "a.1");
        assert_eq!(world.shown(), "");
    }

    fn a_failure_found_while_away_counts(world: &mut World) {
        amber_is_given_up(world);
        let failed = Outcome::Failed(BuildFailure::Exit(1));
        world.comes_back("amber", 1, &[("a.1", HeldPhase::Finished(failed))]);
        world.fails("amber", "a.1");
        assert_eq!(world.changes().last().unwrap(), "a allocated → failed");
    }

    fn what_could_not_begin_is_not_taken_back(world: &mut World) {
        amber_is_given_up(world);
        let full = HeldPhase::Finished(Outcome::SetupFailed(SetupFailure::DiskFull));
        world.comes_back("amber", 1, &[("a.1", full)]);
        assert_eq!(
            world.effects(),
            ["amber: welcome, keep [], drop [a.1]", "amber: build a.2"]
        );
    }

    fn a_deferred_build_is_taken_back_too(world: &mut World) {
        amber_is_given_up(world);
        for attempt in ["a.2", "a.3"] {
            world.join("amber", 1);
            world.leave("amber");
            world.pass_ms(LEASE_MS);
            assert_eq!(world.attempt_names[&world.attempt(attempt)], attempt);
        }
        // The third loss is still tried at once; the fourth costs a pause.
        world.join("amber", 1);
        world.leave("amber");
        world.pass_ms(LEASE_MS);
        assert_eq!(world.shown(), "a deferred");
        world.forget();
        world.rejoin("amber", 1, &["a.2"]);
        assert_eq!(world.changes()[..2], ["a.2 readopted", "a deferred → allocated"]);
        assert_eq!(world.engine.wakes_in_ms(world.now), None);
    }

    fn of_several_lost_attempts_the_one_nearest_to_its_end_goes_on(world: &mut World) {
        amber_is_given_up(world);
        world.join("amber", 1);
        world.leave("amber");
        world.pass_ms(LEASE_MS);
        world.forget();
        world.comes_back("amber", 1, &[("a.2", HeldPhase::Building), ("a.1", BUILT)]);
        assert_eq!(world.effects(), ["amber: welcome, keep [a.1], drop [a.2]"]);
    }

    fn an_agent_that_lost_the_newer_attempt_goes_on_with_the_older(world: &mut World) {
        amber_is_given_up(world);
        world.join("amber", 1);
        world.forget();
        // A snapshot of the machine was put back, say.
        world.rejoin("amber", 1, &["a.1"]);
        let effects = world.effects();
        assert!(effects.contains(&"amber: welcome, keep [a.1], drop []".to_owned()), "{effects:?}");
        assert_eq!(world.shown(), "a building");
    }

    fn what_somebody_else_has_is_dropped_or_only_reported(world: &mut World) {
        birch_took_over(world);
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(world.effects(), ["amber: welcome, keep [], drop [a.1]"]);
        world.comes_back("amber", 1, &[("a.1", BUILT)]);
        assert_eq!(world.effects()[1], "amber: welcome, keep [], drop [], report [a.1]");
        world.forget();
        world.reports("amber", "a.1", "");
        assert_eq!(world.changes(), ["a.1 reported by amber: 1"]);
        assert_eq!(world.effects(), ["amber: settled a.1"]);
        assert_eq!(world.shown(), "a allocated");
        world.builds("birch", "a.2");
        assert_eq!(world.shown(), "");
    }

    fn nothing_brings_a_final_build_back(world: &mut World) {
        birch_took_over(world);
        world.builds("birch", "a.2");
        world.forget();
        for phase in [HeldPhase::Preparing, HeldPhase::Building] {
            world.comes_back("amber", 1, &[("a.1", phase)]);
        }
        world.comes_back("amber", 1, &[("a.1", BUILT)]);
        let effects = world.effects();
        assert_eq!(effects.last().unwrap(), "amber: welcome, keep [], drop [], report [a.1]");
        world.forget();
        world.reports("amber", "a.1", "other");
        world.started("amber", "a.1");
        world.finished("amber", "a.1", Outcome::Built);
        world.deliver("amber", "a.1");
        assert_eq!(world.changes(), ["a.1 reported by amber: 1"]);
        assert_eq!(world.shown(), "");
    }

    fn a_canceled_build_stays_canceled(world: &mut World) {
        amber_is_given_up(world);
        let build = *world.build_names.keys().next().unwrap();
        world.cancel(&[build]);
        world.forget();
        world.rejoin("amber", 1, &["a.1"]);
        assert_eq!(world.effects(), ["amber: welcome, keep [], drop [a.1]"]);
    }

    fn nobody_takes_over_the_attempt_of_another(world: &mut World) {
        amber_is_given_up(world);
        world.rejoin("birch", 0, &["a.1"]);
        assert_eq!(world.effects(), ["birch: welcome, keep [], drop [a.1]"]);
        assert_eq!(world.shown(), "a ready");
    }

    fn a_report_of_a_live_attempt_or_from_nowhere_is_ignored(world: &mut World) {
        birch_took_over(world);
        world.reports("birch", "a.2", "");
        world.reports("amber", "a.1", "");
        world.is_quiet();
        assert_eq!(world.counts().ignored[&Ignored::StaleReport], 2);
    }

    /// Both were told to send everything, because nothing was held then.
    fn the_files_of_small_nars_become_durable_with_their_attempt_or_not_at_all(world: &mut World) {
        let with_file = |text: &'static str, salt| {
            let (outputs, nars) = World::made(&["a".to_owned()], salt);
            let bytes = bytes::Bytes::from_static(text.as_bytes());
            let files = vec![NarFile { hash: Sha256::of(&bytes), bytes }];
            Delivery::Verified { outputs, nars, files, verdict: Verdict::Agreed }
        };
        birch_took_over(world);
        world.rejoin("amber", 1, &["a.1"]);
        world.started("birch", "a.2");
        world.finished("birch", "a.2", Outcome::Built);
        world.forget();
        world.deliver_as("amber", "a.1", with_file("four", ""));
        assert_eq!(world.changes(), Vec::<String>::new());
        world.record(vec![Change::Nar(super::world::nar("a"))]);
        world.forget();
        // Of what differs there is nothing to publish, but a file to be written out all the same.
        world.deliver_as("birch", "a.2", with_file("three", "salt"));
        let changes = world.changes();
        assert_eq!(changes[..2], ["file of 5 bytes", "a.2 disputes a"]);
        assert!(world.effects().contains(&"publish ".to_owned()));
    }

    fn the_second_of_two_different_results_in_flight_is_disputed(world: &mut World) {
        world.derivation("one", super::world::SYSTEM, &["shared", "one-doc"], &[]);
        world.derivation("two", super::world::SYSTEM, &["shared", "two-doc"], &[]);
        world.submit_all(&["one", "two"], Wish::ALONE);
        world.join("amber", 2);
        for attempt in ["one.1", "two.1"] {
            world.finished("amber", attempt, Outcome::Built);
            world.offer("amber", attempt);
        }
        world.forget();
        world.deliver_salted("amber", "one.1", "", Verdict::Agreed);
        assert_eq!(
            world.changes(),
            ["nar shared", "nar one-doc", "one.1 outputs 2", "one.1 succeeded",
             "one receiving → succeeded"]
        );
        world.forget();
        world.deliver_salted("amber", "two.1", "other", Verdict::Agreed);
        assert_eq!(
            world.changes(),
            ["two.1 disputes shared", "two.1 disputes two-doc", "two.1 outputs 2, disputed",
             "two.1 succeeded", "two receiving → succeeded"]
        );
        assert!(!world.effects().iter().any(|effect| effect.starts_with("publish")));
    }

    fn two_equal_results_in_flight_agree(world: &mut World) {
        world.derivation("one", super::world::SYSTEM, &["shared"], &[]);
        world.derivation("two", super::world::SYSTEM, &["shared"], &[]);
        world.submit_all(&["one", "two"], Wish::ALONE);
        world.join("amber", 2);
        for attempt in ["one.1", "two.1"] {
            world.finished("amber", attempt, Outcome::Built);
        }
        world.deliver_salted("amber", "one.1", "", Verdict::Agreed);
        world.forget();
        world.deliver_salted("amber", "two.1", "", Verdict::Agreed);
        assert_eq!(world.changes()[1], "two.1 outputs 1");
    }

    fn what_was_imported_meanwhile_disputes_a_result_as_well(world: &mut World) {
        world.graph("a");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.finished("amber", "a.1", Outcome::Built);
        let (_, nars) = World::made(&["a".to_owned()], "imported");
        world.record(nars.into_iter().map(Change::Nar).collect());
        world.forget();
        world.deliver_salted("amber", "a.1", "", Verdict::Agreed);
        assert_eq!(world.changes()[0], "a.1 disputes a");
    }

    /// What was planned before the restart cannot be delivered behind it: the connections are gone.
    fn what_was_planned_as_disputed_is_kept_beside(world: &mut World) {
        world.graph("a");
        let (_, nars) = World::made(&["a".to_owned()], "imported");
        world.record(nars.into_iter().map(Change::Nar).collect());
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        world.finished("amber", "a.1", Outcome::Built);
        world.forget();
        world.deliver_salted("amber", "a.1", "", Verdict::Disputed);
        assert_eq!(
            world.changes(),
            ["a.1 disputes a", "a.1 outputs 1, disputed", "a.1 succeeded",
             "a receiving → succeeded"]
        );
        assert_eq!(world.effects(), ["log of a.1 sealed", "a rests succeeded", "delivery accepted"]);
    }

    /// While a machine is suspended its monotonic clock stands still.
    fn a_suspended_coordinator_ends_no_lease(world: &mut World) {
        world.graph("a; b");
        world.submit_all(&["a", "b"], Wish::ALONE);
        world.join("amber", 2);
        world.leave("amber");
        world.forget();
        world.wall_clock_jumps(2 * 3_600_000);
        world.is_quiet();
        world.pass_ms(LEASE_MS - 1);
        world.is_quiet();
        world.pass_ms(1);
        assert_eq!(world.shown(), "a ready, b ready");
    }

    /// However the wall clock jumps, a lease is as long as it is, and attempts that are taken back
    /// have a whole one.
    fn the_wall_clock_decides_nothing_about_leases(world: &mut World) {
        const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;
        for jump in [3_600_000, -3_600_000, TEN_YEARS_MS, -TEN_YEARS_MS] {
            amber_is_given_up_after(world, jump);
        }
    }

    fn messages_that_change_nothing_are_counted_by_kind(world: &mut World) {
        birch_took_over(world);
        world.rejoin("amber", 0, &[]);
        world.started("amber", "a.1");
        world.finished("amber", "a.1", Outcome::Built);
        world.offer("amber", "a.1");
        world.deliver("amber", "a.1");
        world.started("birch", "a.2");
        world.started("birch", "a.2");
        world.finished("birch", "a.2", Outcome::Built);
        world.finished("birch", "a.2", Outcome::Built);
        let counts = world.counts();
        for kind in [
            Ignored::StaleStarted,
            Ignored::StaleFinished,
            Ignored::StaleOffer,
            Ignored::StaleDelivery,
            Ignored::RepeatedStarted,
            Ignored::RepeatedFinished,
        ] {
            assert_eq!(counts.ignored.get(&kind), Some(&1), "{}", kind.word());
        }
        assert_eq!(counts.stale_messages, 4);
    }
}

/// A build is lost and taken back around a jump of the wall clock.
fn amber_is_given_up_after(world: &mut World, jump: i64) {
    if world.build_names.is_empty() {
        amber_is_given_up(world);
    }
    world.rejoin("amber", 1, &["a.1"]);
    world.leave("amber");
    world.forget();
    world.wall_clock_jumps(jump);
    world.pass_ms(LEASE_MS - 1);
    world.is_quiet();
    world.pass_ms(1);
    assert_ne!(world.shown(), "a building");
}
