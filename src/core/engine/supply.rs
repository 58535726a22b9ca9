//! Builds for inputs that agents found missing.
//!
//! Of an input that nobody builds, memory does not know what it needs itself. So the engine asks
//! whoever owns it for the facts, and makes the builds when they come. If nobody answers, as when the
//! process ends between the two, it asks again after the next start: what is missing is durable.

use super::{Effect, Engine, Inputs, Request, Submission, Turn, order::Known};
use crate::core::{
    arena::Ix,
    change::Limits,
    defect::Defect,
    demands::Demands,
    graph::{Facts, Node},
    id::BuildId,
    plan::Strategy,
    store_path::PathHash,
};
use std::{collections::BTreeMap, sync::Arc};

/// Missing inputs that an open build needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanting {
    /// The build.
    pub build: BuildId,
    /// The derivations of the inputs.
    pub derivations: Vec<PathHash>,
    /// Whether builds are made for what these need in turn.
    pub inputs: Inputs,
}

/// What is known of missing inputs.
#[derive(Debug)]
pub struct Supplies {
    /// Which ones.
    pub wanting: Wanting,
    /// The facts of the derivations, as for a [`Submission`].
    pub facts: Vec<Facts>,
    /// The tags of the build that needs them, which its inputs get, too.
    pub tags: Vec<(String, String)>,
}

impl Engine {
    /// Asks for the facts of inputs that are missing and needed.
    pub(super) fn ask_for_supplies(&mut self, turn: &mut Turn<'_>) {
        let nodes = self.graph.take_unsupplied();
        if !self.settings.build_missing || self.settings.planted.is(Defect::SupplyForgotten) {
            return;
        }
        let mut wanted: BTreeMap<BuildId, Vec<PathHash>> = BTreeMap::new();
        for node in nodes {
            if let Some(build) = self.needed_by(node) {
                wanted.entry(build).or_default().push(self.graph.node(node).hash());
            }
        }
        let inputs = match self.settings.strategy {
            Strategy::Basic => Inputs::Leave,
            Strategy::DerivationOrdered => Inputs::Build,
        };
        for (build, derivations) in wanted {
            let wanting = Wanting { build, derivations, inputs };
            turn.out.effects.push(Effect::Supply(wanting));
        }
    }

    /// Returns an open build that needs a derivation.
    fn needed_by(&self, node: Ix<Node>) -> Option<BuildId> {
        let dependent = self.graph.dependents(node).first()?;
        let build = self.graph.builds(*dependent).first()?;
        Some(self.builds[*build].id)
    }

    /// Makes the builds for missing inputs.
    pub(super) fn supply(&mut self, turn: &mut Turn<'_>, supplies: Supplies) {
        let Supplies { wanting, facts, tags } = supplies;
        let Some(ix) = self.find(wanting.build) else {
            // It ended meanwhile. Others may need them as well.
            for derivation in &wanting.derivations {
                if let Some(node) = self.graph.find(*derivation) {
                    self.graph.want_supply(node);
                }
            }
            return;
        };
        let request = Arc::new(Request {
            submitted: turn.now.wall,
            limits: Limits::default(),
            ..Request::clone(&self.builds[ix].request)
        });
        let submission = Submission {
            submitter: request.submitter.clone(),
            roots: Vec::new(),
            facts: Vec::new(),
            inputs: wanting.inputs,
            priority: request.priority,
            limits: request.limits,
            tags,
            key: None,
            open_max: None,
            demands: Demands::default(),
            not_before: None,
            replaces: Vec::new(),
        };
        let facts = Known::new(&facts);
        // What nobody needs any more is not in memory, or not missing.
        let needed = wanting.derivations.into_iter().filter(|path| {
            self.graph.find(*path).is_some_and(|node| self.graph.is_unsupplied(node))
        });
        let needed: BTreeMap<PathHash, usize> = needed.map(|path| (path, 1)).collect();
        for one in self.closure(&needed, wanting.inputs, &facts) {
            if needed.contains_key(&one.path.hash()) || wanting.inputs == Inputs::Build {
                self.add_implied(turn, one, (&submission, &request), &facts);
            }
        }
    }
}
