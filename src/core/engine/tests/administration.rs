//! Who takes builds just now, and who does not.

use super::world::{Wish, World};
use crate::core::id::BuildId;

fn reason(world: &World, build: BuildId, agent: &str) -> String {
    let explanation = world.why(build);
    let found = explanation.agents.iter().find(|reason| reason.name.as_str() == agent);
    found.unwrap().reason.clone()
}

super::stories! {
    fn an_agent_gets_no_more_builds_than_it_wants(world: &mut World) {
        world.graph("a; b; c");
        world.join("amber", 3);
        world.wants("amber", 1, "the load is high");
        world.forget();
        let builds = world.submit_all(&["a", "b", "c"], Wish::ALONE);
        assert_eq!(world.shown(), "a allocated, b ready, c ready");
        assert_eq!(
            reason(world, builds[1], "amber"),
            "it takes at most 1 build just now: the load is high"
        );
        world.wants("amber", 9, "more than it has");
        assert_eq!(world.shown(), "a allocated, b allocated, c allocated");
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
        world.step(vec![crate::core::engine::Input::Capacity {
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
}
