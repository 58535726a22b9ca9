//! Other settings on a farm that lives: everything is judged anew, once.

use super::{Answer, Effect, Engine, Settings, Token, Turn};
use crate::core::defect::Defect;

impl Engine {
    /// Takes other settings. This is the one input, besides a start, that looks at every open build:
    /// what waits, what goes first and whose account it is under may all have changed.
    pub(super) fn configure(&mut self, turn: &mut Turn<'_>, token: Token, settings: Settings) {
        // What becomes of outputs is the store's affair as well, until a restart; what a simulation
        // planted is not the operator's.
        let Settings { outputs, planted, .. } = self.settings;
        let settings = Settings { outputs, planted, ..settings };
        if settings != self.settings {
            for ix in self.builds.indices() {
                self.unqueue(ix);
            }
            let kept = settings.planted.is(Defect::StrategyKept);
            if settings.strategy != self.settings.strategy && !kept {
                self.graph.set_strategy(settings.strategy);
            }
            self.settings = settings;
            self.graph.touch_all();
        }
        turn.out.effects.push(Effect::Reply { token, answer: Answer::Configured });
    }
}
