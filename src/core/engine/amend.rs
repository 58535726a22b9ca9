//! What people change of open builds: priority, holds, tags, and what they ask of their agents.

use super::{
    Amended, Amendment, Answer, Authority, Build, Effect, Engine, HoldWish, Request, Token, Turn,
};
use crate::core::{
    arena::Ix,
    build::Hold,
    change::{BuildAmendment, Change},
    defect::Defect,
    demands::Demands,
    id::BuildId,
    plan::{ClassIx, Novelty},
};
use std::sync::Arc;

impl Engine {
    /// Changes open builds.
    pub(super) fn amend(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        builds: &[BuildId],
        by: &Authority,
        amendment: &Amendment,
    ) {
        let mut results = Vec::with_capacity(builds.len());
        for id in builds {
            let result = match self.find(*id) {
                None => Amended::NotOpen,
                Some(ix) if !self.may_change(ix, by) => Amended::NotYours,
                Some(ix) => {
                    self.amend_one(turn, ix, amendment);
                    Amended::Done
                }
            };
            results.push((*id, result));
        }
        turn.out.effects.push(Effect::Reply { token, answer: Answer::Amended(results) });
    }

    fn amend_one(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, amendment: &Amendment) {
        if let Some(priority) = amendment.priority {
            self.set_priority(turn, ix, priority);
        }
        match &amendment.hold {
            Some(HoldWish::Hold(by)) => {
                let hold = Hold { by: by.clone(), since: turn.now.wall };
                self.set_hold(turn, ix, Some(hold));
            }
            Some(HoldWish::Release) => self.set_hold(turn, ix, None),
            None => {}
        }
        if !amendment.tags.is_empty() {
            self.note_amendment(turn, ix, BuildAmendment::Tags(amendment.tags.clone()));
        }
    }

    pub(super) fn set_priority(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, priority: i32) {
        let request = Arc::clone(&self.builds[ix].request);
        if request.priority == priority {
            return;
        }
        let request = Request { priority, ..Request::clone(&request) };
        self.builds[ix].request = turn.requests.share(request);
        self.note_amendment(turn, ix, BuildAmendment::Priority(priority));
        let (builds, node) = (&self.builds, self.builds[ix].node);
        if !self.settings.planted.is(Defect::PriorityKept) {
            self.graph.reprioritize(node, |build| builds[build].request.priority);
        }
    }

    /// Sets or lifts a hold. Who holds first is who holds.
    fn set_hold(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, hold: Option<Hold>) {
        if self.builds[ix].hold().is_some() == hold.is_some() {
            return;
        }
        self.unqueue(ix);
        self.builds[ix].change_extras(|extras| extras.hold.clone_from(&hold));
        self.note_amendment(turn, ix, BuildAmendment::Hold(hold));
        self.graph.touch(self.builds[ix].node);
    }

    /// Sets what a build asks of its agent.
    pub(super) fn set_demands(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>, demands: &Demands) {
        if self.builds[ix].extras().demands == *demands {
            return;
        }
        self.unqueue(ix);
        self.leave_kind(ix);
        self.builds[ix].change_extras(|extras| extras.demands.clone_from(demands));
        self.enter_kind(ix);
        self.note_amendment(turn, ix, BuildAmendment::Demands(demands.clone()));
        self.graph.touch(self.builds[ix].node);
    }

    pub(super) fn note_amendment(
        &self,
        turn: &mut Turn<'_>,
        ix: Ix<Build>,
        amendment: BuildAmendment,
    ) {
        turn.out.changes.push(Change::BuildAmended { build: self.builds[ix].id, amendment });
    }

    /// Returns in which ready set a build belongs.
    #[must_use]
    pub fn kind_of(&self, ix: Ix<Build>) -> ClassIx {
        let build = &self.builds[ix];
        let own = build.rare.as_ref().and_then(|rare| rare.kind);
        own.unwrap_or_else(|| self.graph.node(build.node).class)
    }

    /// Works out in which ready set a build belongs.
    pub(super) fn enter_kind(&mut self, ix: Ix<Build>) {
        let class = self.graph.node(self.builds[ix].node).class;
        let Some(demands) = self.builds[ix].demands() else { return };
        let (kind, novelty) = self.queue.enter(class, demands);
        self.builds[ix].rare_mut().kind = Some(kind);
        if novelty == Novelty::New {
            self.tell_agents_of(kind);
        }
    }

    /// Takes a build out of where it belonged; it must not be queued.
    pub(super) fn leave_kind(&mut self, ix: Ix<Build>) {
        if let Some(kind) = self.builds[ix].take_kind() {
            self.leave_place(kind);
        }
    }

    /// Gives a place among the ready sets back that a build with demands had.
    pub(super) fn leave_place(&mut self, kind: ClassIx) {
        let gone = self.queue.leave(kind) == Novelty::New;
        if gone && !self.settings.planted.is(Defect::KindKept) {
            for agent in self.agents.values_mut() {
                agent.classes.retain(|known| *known != kind);
            }
        }
    }

    /// Notes which agents can take builds of a new kind.
    pub(super) fn tell_agents_of(&mut self, kind: ClassIx) {
        let known = self.queue.kind(kind);
        for agent in self.agents.values_mut() {
            let ignored = self.settings.planted.is(Defect::DemandsIgnored)
                && known.class.obstacle(&agent.abilities).is_none();
            if ignored || known.obstacle(&agent.name, &agent.abilities).is_none() {
                agent.classes.push(kind);
            }
        }
    }
}
