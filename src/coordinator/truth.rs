//! The rules and the database together: what a step decides is kept before anybody hears of it.

use super::engine_thread::SubmitRequest;
use crate::{
    core::{
        engine::{Effect, Engine, IdSource, Input, Settings, Step, Submission, Token},
        store_path::{PathHash, StorePath},
        time::Now,
    },
    store::{Store, StoreError},
};

/// Open state in memory, and the database that it is never ahead of.
pub struct Truth {
    /// The rules, for questions.
    pub engine: Engine,
    /// The one connection that writes.
    pub store: Store,
}

impl Truth {
    /// Begins with what is open in a database.
    ///
    /// # Errors
    /// [`StoreError::Sql`], and [`StoreError::Damaged`] when the open state does not fit together.
    pub fn restore(store: Store, settings: Settings, now: Now) -> Result<Self, StoreError> {
        let engine = store.restore(settings, now).map_err(|error| store.named(error))?;
        Ok(Self { engine, store })
    }

    /// Takes in what arrived. The step must be kept before anything else is asked or decided.
    pub fn decide(&mut self, now: Now, ids: &mut dyn IdSource, inputs: Vec<Input>) -> Step {
        self.engine.step(now, ids, inputs)
    }

    /// Makes a step durable and returns what may happen then.
    ///
    /// # Errors
    /// Any [`StoreError`]: memory is ahead of the disk, so this value must be dropped and the
    /// process start again from the database.
    pub fn keep(&mut self, step: Step) -> Result<Vec<Effect>, StoreError> {
        let Step { changes, effects } = step;
        self.store.commit(&changes)?;
        Ok(effects)
    }

    /// Turns a request for builds into an input, with what the database knows of it; or returns the
    /// derivations that are not known. Whatever was decided must have been kept.
    ///
    /// # Errors
    /// Any [`StoreError`] of reading.
    pub fn submission(
        &self,
        request: SubmitRequest,
        token: Token,
    ) -> Result<Result<Input, Vec<PathHash>>, StoreError> {
        let roots: Vec<PathHash> = request.roots.iter().map(StorePath::hash).collect();
        let key = request.key.as_deref();
        let found = self.store.submission_facts(&roots, request.inputs, &request.submitter, key)?;
        if !found.unknown.is_empty() {
            return Ok(Err(found.unknown));
        }
        let submission = Box::new(Submission {
            submitter: request.submitter,
            roots: found.roots,
            facts: found.facts,
            inputs: request.inputs,
            priority: request.priority,
            limits: request.limits,
            tags: request.tags,
            key: request.key,
        });
        Ok(Ok(Input::Submit { token, submission }))
    }

    /// Loads the open state anew and returns how memory differs from it.
    ///
    /// # Errors
    /// Any [`StoreError`] of reading.
    pub fn differences(&self, now: Now) -> Result<Vec<String>, StoreError> {
        let reloaded = match self.store.restore(*self.engine.settings(), now) {
            Ok(engine) => engine.snapshot(),
            Err(StoreError::Damaged { what, .. }) => return Ok(vec![what]),
            Err(error) => return Err(error),
        };
        let memory = self.engine.snapshot();
        let mut findings = Vec::new();
        for (id, build) in &memory.builds {
            if reloaded.builds.get(id) != Some(build) {
                findings.push(format!(
                    "build {id}: memory says {build:?}, the database {:?}",
                    reloaded.builds.get(id)
                ));
            }
        }
        for id in reloaded.builds.keys().filter(|id| !memory.builds.contains_key(id)) {
            findings.push(format!("build {id}: open in the database, not in memory"));
        }
        for (path, derivation) in &memory.derivations {
            if reloaded.derivations.get(path) != Some(derivation) {
                findings.push(format!(
                    "derivation {path:?}: memory says {derivation:?}, the database {:?}",
                    reloaded.derivations.get(path)
                ));
            }
        }
        if memory.agents != reloaded.agents {
            findings.push(format!(
                "agents: memory says {:?}, the database {:?}",
                memory.agents, reloaded.agents
            ));
        }
        Ok(findings)
    }
}
