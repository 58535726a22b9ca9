//! F5: messages of agents that come twice, late, or in another order lead to the same end.
//!
//! The same farm lives twice: once each message comes as it should, once with others of the past
//! between them. Everything that is written down must be the same, in the same order.

use super::{
    disk::Model,
    world::{SYSTEM, Wish, World, abilities},
};
use crate::core::{
    attempt::{Held, HeldPhase},
    change::Verdict,
    engine::{Input, Snapshot},
    outcome::{BuildFailure, Outcome},
};
use proptest::prelude::*;

/// How long a history is.
const TURNS_MAX: usize = 40;
/// How many messages of the past come between two that should.
const REPLAYS_MAX: usize = 4;

/// What happens in one turn; numbers pick one of what there is, counted round and round.
#[derive(Debug, Clone)]
enum Turn {
    /// The agent of a live attempt says the next thing about it.
    Goes { attempt: usize, fails: bool },
    /// An agent loses its connection, stays away for so long, and comes again with what it has.
    Reconnects { agent: usize, away_ms: u64 },
}

/// A message that an agent said.
#[derive(Debug, Clone)]
enum Said {
    Started { agent: &'static str, attempt: String },
    Finished { agent: &'static str, attempt: String, outcome: Outcome },
    Offered { agent: &'static str, attempt: String },
    Delivered { agent: &'static str, attempt: String },
    Reported { agent: &'static str, attempt: String },
}

const AGENTS: [&str; 2] = ["amber", "birch"];

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => (any::<usize>(), prop::bool::weighted(0.1))
            .prop_map(|(attempt, fails)| Turn::Goes { attempt, fails }),
        2 => (0..2usize, prop_oneof![Just(1_000u64), Just(1_200_000)])
            .prop_map(|(agent, away_ms)| Turn::Reconnects { agent, away_ms }),
    ]
}

/// How far an attempt is on its agent.
#[derive(Debug, Clone)]
struct Own {
    attempt: String,
    agent: &'static str,
    phase: HeldPhase,
    offered: bool,
}

/// A farm and what its agents have.
struct Farm {
    world: World,
    own: Vec<Own>,
    said: Vec<Said>,
    written: Vec<String>,
}

impl Farm {
    fn new() -> Self {
        let mut world = World::new(Box::<Model>::default());
        world.graph("a: b c; b: d; c: d; d; e; f: e");
        let mut farm = Self { world, own: Vec::new(), said: Vec::new(), written: Vec::new() };
        for agent in AGENTS {
            farm.world.join(agent, 2);
        }
        farm.world.submit_all(&["a", "f"], Wish::WITH_INPUTS);
        farm.world.forget();
        farm.take_stock();
        farm
    }

    /// Gives the agents what they were told to build, and takes away what they were told to drop.
    fn take_stock(&mut self) {
        self.written.extend(self.world.changes());
        for (attempt, agent) in self.world.given() {
            let attempt = self.world.attempt_names[&attempt].clone();
            let agent = AGENTS.into_iter().find(|name| *name == agent).unwrap();
            let known = self.said.iter().any(|said| said.attempt() == attempt);
            if !known && !self.own.iter().any(|own| own.attempt == attempt) {
                let phase = HeldPhase::Preparing;
                self.own.push(Own { attempt, agent, phase, offered: false });
            }
        }
    }

    /// The next thing an agent says about an attempt that it has.
    fn goes(&mut self, pick: usize, fails: bool) {
        if self.own.is_empty() {
            return;
        }
        let place = pick % self.own.len();
        let Own { attempt, agent, phase, offered } = self.own[place].clone();
        let said = match (&phase, offered) {
            (HeldPhase::Preparing, _) => {
                self.own[place].phase = HeldPhase::Building;
                Said::Started { agent, attempt }
            }
            (HeldPhase::Building, _) => {
                let failed = Outcome::Failed(BuildFailure::Exit(1));
                let outcome = if fails { failed } else { Outcome::Built };
                self.own[place].phase = HeldPhase::Finished(outcome.clone());
                if fails {
                    self.own.remove(place);
                }
                Said::Finished { agent, attempt, outcome }
            }
            (HeldPhase::Finished(_), false) => {
                self.own[place].offered = true;
                Said::Offered { agent, attempt }
            }
            (HeldPhase::Finished(_), true) => {
                self.own.remove(place);
                Said::Delivered { agent, attempt }
            }
        };
        self.say(&said);
        self.said.push(said);
        self.take_stock();
    }

    fn reconnects(&mut self, agent: &'static str, away_ms: u64) {
        self.world.leave(agent);
        self.world.pass_ms(away_ms);
        let held: Vec<Held> = self
            .own
            .iter()
            .filter(|own| own.agent == agent)
            .map(|own| Held { attempt: self.world.attempt(&own.attempt), phase: own.phase.clone() })
            .collect();
        self.world.join_with(agent, 0, abilities(&[SYSTEM], 2), &held);
        // Everything is told again in a new session, or settled.
        let live = |own: &Own, world: &World| {
            world
                .snapshot_attempts()
                .iter()
                .any(|(attempt, by)| *attempt == own.attempt && by == agent)
        };
        let mut rest = Vec::new();
        for mut own in std::mem::take(&mut self.own) {
            if own.agent != agent {
                rest.push(own);
            } else if live(&own, &self.world) {
                own.offered = false;
                let attempt = own.attempt.clone();
                if let HeldPhase::Finished(outcome) = &own.phase {
                    let outcome = outcome.clone();
                    let said = Said::Finished { agent, attempt, outcome };
                    self.say(&said);
                }
                rest.push(own);
            } else if own.phase.has_outputs() {
                let said = Said::Reported { agent, attempt: own.attempt };
                self.say(&said);
                self.said.push(said);
            }
        }
        self.own = rest;
        self.take_stock();
    }

    fn say(&mut self, said: &Said) {
        match said {
            Said::Started { agent, attempt } => self.world.started(agent, attempt),
            Said::Finished { agent, attempt, outcome } => {
                self.world.finished(agent, attempt, outcome.clone());
            }
            Said::Offered { agent, attempt } => self.world.offer(agent, attempt),
            Said::Delivered { agent, attempt } => {
                self.world.deliver_salted(agent, attempt, "", Verdict::Agreed);
            }
            Said::Reported { agent, attempt } => self.world.reports(agent, attempt, ""),
        }
    }

    fn lives(&mut self, turns: &[(Turn, Vec<usize>)], replay: bool) {
        for (turn, replays) in turns {
            match turn {
                Turn::Goes { attempt, fails } => self.goes(*attempt, *fails),
                Turn::Reconnects { agent, away_ms } => {
                    self.reconnects(AGENTS[*agent], *away_ms);
                }
            }
            if replay {
                for pick in replays {
                    self.replays(*pick);
                }
            }
        }
    }

    /// Something that was said comes once more, on whatever session its agent has now.
    fn replays(&mut self, pick: usize) {
        let Some(said) = self.said.get(pick % self.said.len().max(1)).cloned() else { return };
        // What an agent reports is written down each time, and settles nothing any more.
        if matches!(said, Said::Reported { .. }) {
            return;
        }
        // Its attempt is at the same place still, or the agent has gone on with it.
        self.say(&said);
        let news = self.world.changes();
        assert_eq!(news, [""; 0], "{said:?} came twice");
    }

    fn end(mut self) -> (Vec<String>, Snapshot) {
        self.written.extend(self.world.changes());
        (self.written, self.world.engine.snapshot())
    }
}

impl Said {
    fn attempt(&self) -> &str {
        match self {
            Self::Started { attempt, .. }
            | Self::Finished { attempt, .. }
            | Self::Offered { attempt, .. }
            | Self::Delivered { attempt, .. }
            | Self::Reported { attempt, .. } => attempt,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn what_comes_twice_or_late_changes_nothing(
        turns in prop::collection::vec(
            (turn(), prop::collection::vec(any::<usize>(), 0..=REPLAYS_MAX)), 1..=TURNS_MAX,
        )
    ) {
        let (mut plain, mut noisy) = (Farm::new(), Farm::new());
        plain.lives(&turns, false);
        noisy.lives(&turns, true);
        prop_assert_eq!(plain.end(), noisy.end());
    }

    /// Control and bulk channels are two connections: an offer may come before the report that the
    /// attempt is finished, and after a replaced session anything may come before anything.
    #[test]
    fn the_order_of_what_is_said_about_an_attempt_does_not_matter(
        order in Just(vec![0usize, 1, 2]).prop_shuffle(),
        again in prop::collection::vec(0..3usize, 0..6),
    ) {
        let mut world = World::new(Box::<Model>::default());
        world.graph("a");
        world.submit("a", Wish::ALONE);
        world.join("amber", 1);
        let session = world.session("amber");
        let attempt = world.attempt("a.1");
        for message in order.iter().chain(&again) {
            let token = world.token();
            let agent = super::world::name("amber");
            let input = match message {
                0 => Input::Started { session, attempt },
                1 => Input::Finished { session, attempt, outcome: Outcome::Built },
                _ => Input::Offer { token, agent, attempt },
            };
            world.step(vec![input]);
        }
        prop_assert_eq!(world.shown(), "a receiving");
        world.deliver("amber", "a.1");
        prop_assert_eq!(world.shown(), "");
    }
}
