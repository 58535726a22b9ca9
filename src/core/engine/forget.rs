//! Takes out what no open build has a use for.

use super::{Answer, Effect, Engine, Token, Turn};
use crate::core::{
    care::{CareChange, Forget, Forgotten, LostNar, OverBuildToForget, Withdrawal},
    change::Change,
    outcome::OutputPolicy,
    store_path::PathHash,
    time::Timestamp,
};
use std::collections::BTreeSet;

impl Engine {
    /// Takes out what may go, and answers with it.
    pub(super) fn forget(&mut self, turn: &mut Turn<'_>, token: Token, what: Forget) {
        let forgotten = match what {
            Forget::Builds(builds) => self.forget_builds(turn, builds),
            Forget::Nars { nars, remove_at } => self.forget_nars(turn, nars, remove_at),
            Forget::Lost(nars) => self.lose_nars(turn, nars),
        };
        let answer = Answer::Forgotten(forgotten);
        turn.out.effects.push(Effect::Reply { token, answer });
    }

    /// How its last build ended says how a derivation stands, and when outputs are only recorded,
    /// its attempts say what is held: so whatever is in memory keeps its builds.
    fn forget_builds(&mut self, turn: &mut Turn<'_>, builds: Vec<OverBuildToForget>) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for OverBuildToForget { build, derivation, outputs } in builds {
            let in_use = self.find(build).is_some()
                || self.graph.find(derivation).is_some()
                || outputs.iter().any(|output| self.is_concerned(*output));
            if !in_use {
                turn.out.changes.push(Change::Care(CareChange::Pruned { build }));
                forgotten.builds.push(build);
            }
        }
        forgotten
    }

    fn forget_nars(
        &mut self,
        turn: &mut Turn<'_>,
        nars: Vec<Withdrawal>,
        remove_at: Timestamp,
    ) -> Forgotten {
        let at = turn.now.wall;
        let mut forgotten = Forgotten::default();
        let mut staying: BTreeSet<PathHash> = BTreeSet::new();
        for Withdrawal { path, references } in nars {
            if staying.contains(&path) || self.is_concerned(path) {
                staying.extend(references);
                continue;
            }
            let withdrawn = CareChange::Withdrawn { path, at, remove_at };
            turn.out.changes.push(Change::Care(withdrawn));
            forgotten.paths.push(path);
        }
        forgotten
    }

    /// Notes that nars are gone. What needs them waits for them again, and as they are missing,
    /// builds are made for them as for whatever an agent finds nowhere.
    fn lose_nars(&mut self, turn: &mut Turn<'_>, nars: Vec<LostNar>) -> Forgotten {
        let at = turn.now.wall;
        let mut forgotten = Forgotten::default();
        for LostNar { path, last_ends } in nars {
            turn.out.changes.push(Change::Care(CareChange::Lost { path, at }));
            // Where only the word of attempts counts, that still holds.
            if self.settings.outputs == OutputPolicy::Take {
                self.graph.lose(path, &last_ends);
            }
            forgotten.paths.push(path);
        }
        forgotten
    }

    /// Tells whether a derivation that open builds concern makes a path.
    fn is_concerned(&self, path: PathHash) -> bool {
        self.graph.makers_of(path).next().is_some()
    }
}
