//! The rules and the database together: what a step decides is kept before anybody hears of it.

use super::engine_thread::{NotSubmitted, SubmitRequest};
use crate::{
    core::{
        care::{Forget, LostNar},
        engine::{
            Authority, Effect, Engine, IdSource, Input, RetryWish, Root, Settings, Step,
            Submission, Supplies, Token, Wanting,
        },
        id::BuildId,
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

    /// Turns a request for builds into an input, with what the database knows of it; or returns why
    /// that cannot be. Whatever was decided must have been kept.
    ///
    /// # Errors
    /// Any [`StoreError`] of reading.
    pub fn submission(
        &self,
        request: SubmitRequest,
        token: Token,
    ) -> Result<Result<Input, NotSubmitted>, StoreError> {
        let roots: Vec<PathHash> = request.roots.iter().map(StorePath::hash).collect();
        let key = request.key.as_deref();
        let mut found =
            self.store.submission_facts(&roots, request.inputs, &request.submitter, key)?;
        if !found.unknown.is_empty() {
            return Ok(Err(NotSubmitted::Unknown(found.unknown)));
        }
        for root in &mut found.roots {
            self.find_needless(root, &request)?;
            if let Some(id) = request.uuid {
                match self.store.derivation_of(id)? {
                    None => root.id = root.existing.is_none().then_some(id),
                    Some(known) if known == root.derivation => root.existing = Some(id),
                    Some(_) => return Ok(Err(NotSubmitted::Taken(id))),
                }
            }
        }
        let replaces = self.store.replaceable(&request.submitter, &request.replaces)?;
        let submission = Box::new(Submission {
            submitter: request.submitter,
            roots: found.roots,
            facts: found.facts,
            inputs: request.inputs,
            priority: request.priority,
            limits: request.limits,
            tags: request.tags,
            key: request.key,
            open_max: request.open_max,
            demands: request.demands.sorted(),
            not_before: request.not_before,
            replaces,
        });
        Ok(Ok(Input::Submit { token, submission }))
    }

    /// Looks for a build that makes another one needless, where that is enough for the submitter.
    fn find_needless(&self, root: &mut Root, request: &SubmitRequest) -> Result<(), StoreError> {
        if root.existing.is_none() && request.skip_if_built {
            root.existing = self.store.successful_build(root.derivation)?;
        }
        if root.existing.is_none() && request.skip_if_queued {
            root.existing = self.engine.open_build_of(root.derivation);
        }
        Ok(())
    }

    /// Turns a wish that builds be tried again into an input, with what the database knows of them.
    /// Whatever was decided must have been kept.
    ///
    /// # Errors
    /// Any [`StoreError`] of reading.
    pub fn retrial(
        &self,
        builds: &[BuildId],
        by: Authority,
        wish: RetryWish,
        token: Token,
    ) -> Result<Input, StoreError> {
        let retrial = Box::new(self.store.retrial(builds, by, wish)?);
        Ok(Input::Retry { token, retrial })
    }

    /// Brings what the engine wants to know of missing inputs. Whatever was decided must have been
    /// kept.
    ///
    /// # Errors
    /// Any [`StoreError`] of reading.
    pub fn supplies(&self, wanting: Wanting) -> Result<Input, StoreError> {
        let (derivations, inputs) = (&wanting.derivations, wanting.inputs);
        let found = self.store.facts_for(derivations, inputs)?;
        let tags = self.store.tags_of(wanting.build)?;
        Ok(Input::Supply(Box::new(Supplies { wanting, facts: found, tags })))
    }

    /// Turns the loss of nars into an input, with what the database knows of the derivations in
    /// memory that make them. Whatever was decided must have been kept.
    ///
    /// # Errors
    /// Any [`StoreError`] of reading.
    pub fn losses(&self, paths: Vec<PathHash>, token: Token) -> Result<Input, StoreError> {
        let mut nars = Vec::with_capacity(paths.len());
        for path in paths {
            let mut last_ends = Vec::new();
            for maker in self.engine.graph().makers_of(path) {
                let derivation = self.engine.graph().node(maker).hash();
                let end = self.store.last_end(derivation)?;
                last_ends.extend(end.map(|end| (derivation, end)));
            }
            nars.push(LostNar { path, last_ends });
        }
        Ok(Input::Forget { token, what: Forget::Lost(nars) })
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
        if memory.accounts != reloaded.accounts {
            findings.push(format!(
                "accounts: memory says {:?}, the database {:?}",
                memory.accounts, reloaded.accounts
            ));
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
