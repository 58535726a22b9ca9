//! Builds come and go: submissions, cancellations, and facts that others verified.

use super::{
    Answer, Authority, Build, Canceled, Effect, Engine, Extras, Inputs, OverQuota, Request, Root,
    Submission, Token, Turn, Wanted, open::Rare, order::Known,
};
use crate::core::{
    agent::{Agent, SessionId},
    arena::Ix,
    attempt::AttemptState,
    build::{BuildEvent, BuildState, ShownState},
    change::{BuildAmendment, BuildRecord, Change, NarOrigin, Origin},
    defect::Defect,
    demands::Demands,
    engine::Order,
    graph::{EndResult, Facts, Held, LastEnd, Node, Standing},
    id::{AttemptId, BuildId, Name},
    outcome::AttemptEnd,
    plan::{Class, ClassIx, Novelty},
    store_path::PathHash,
    time::Now,
};
use std::{collections::BTreeMap, sync::Arc};

/// A submission, and what all its builds have in common.
pub(super) type Wish<'a> = (&'a Submission, &'a Arc<Request>);

/// Whether a build was asked for, and by which id.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// It was named; the id is the submitter's choice.
    For(Option<BuildId>),
    /// Something that was named needs it.
    No,
}

impl Asked {
    const fn origin(self) -> Origin {
        match self {
            Self::For(_) => Origin::Asked,
            Self::No => Origin::Implied,
        }
    }
}

impl Engine {
    /// Makes the builds of a submission, and those for its inputs where asked.
    pub(super) fn submit(&mut self, turn: &mut Turn<'_>, token: Token, submission: &Submission) {
        let facts = Known::new(&submission.facts);
        let forgets_keys = self.settings.planted.is(Defect::KeyForgotten);
        let existing = |root: &Root| root.existing.filter(|_| !forgets_keys);
        // How often each derivation is to be built because it was named.
        let mut named: BTreeMap<PathHash, usize> = BTreeMap::new();
        for root in submission.roots.iter().filter(|root| existing(root).is_none()) {
            let times = named.entry(root.derivation).or_default();
            // Named twice under one key is one request.
            *times = if submission.key.is_some() { 1 } else { *times + 1 };
        }
        let request = Arc::new(Request {
            submitter: submission.submitter.clone(),
            priority: submission.priority,
            submitted: turn.now.wall,
            limits: submission.limits,
        });
        let wish = (submission, &request);
        let needed = self.closure(&named, submission.inputs, &facts);
        let replaceable =
            submission.replaces.iter().filter(|id| self.may_replace(**id, submission));
        let (more, fewer) =
            (self.count_new(&needed, &named, submission.inputs), replaceable.count());
        let submitter = &submission.submitter;
        if let Err(over) = self.within_quota(submitter, fewer, more, submission.open_max) {
            turn.out.effects.push(Effect::Reply { token, answer: Answer::TooMany(over) });
            return;
        }
        let mut asked: BTreeMap<PathHash, Vec<BuildId>> = BTreeMap::new();
        let mut implied = 0;
        let chosen = submission.roots.iter().filter_map(|root| Some((root.derivation, root.id?)));
        let chosen: BTreeMap<PathHash, BuildId> = chosen.collect();
        for one in needed {
            let path = one.path.hash();
            for _ in 0..named.get(&path).copied().unwrap_or(0) {
                let ix = self.meet_new(one);
                let id = chosen.get(&path).copied();
                let build = self.add_build(turn, ix, Asked::For(id), wish, &facts);
                asked.entry(path).or_default().push(build);
            }
            if submission.inputs == Inputs::Build {
                implied += self.add_implied(turn, one, wish, &facts);
            }
        }
        let mut handed_out: BTreeMap<PathHash, usize> = BTreeMap::new();
        let build_of = |root: &Root| {
            existing(root).unwrap_or_else(|| {
                let made = &asked[&root.derivation];
                let place = handed_out.entry(root.derivation).or_default();
                *place += 1;
                made[(*place - 1).min(made.len() - 1)]
            })
        };
        let builds: Vec<BuildId> = submission.roots.iter().map(build_of).collect();
        let made = asked.values().map(Vec::len).sum::<usize>() + implied;
        turn.tell_submission(&submission.submitter, made, implied);
        let replaced = self.replace(turn, submission, &builds);
        let answer = Answer::Submitted { builds, implied, replaced };
        turn.out.effects.push(Effect::Reply { token, answer });
    }

    /// Tells whether somebody may have so many open builds more, after so many of them go.
    pub(super) fn within_quota(
        &self,
        submitter: &Name,
        fewer: usize,
        more: usize,
        most: Option<u32>,
    ) -> Result<(), OverQuota> {
        let Some(most) = most else { return Ok(()) };
        let open = self.open_of.get(submitter).copied().unwrap_or(0);
        let after = open.saturating_sub(fewer).saturating_add(more);
        // Whoever makes no builds is not stopped by having too many.
        if more == 0 || after <= usize::try_from(most).unwrap_or(usize::MAX) {
            return Ok(());
        }
        Err(OverQuota { open, more, most })
    }

    /// Returns how many builds a submission would make.
    fn count_new(
        &self,
        needed: &[&Facts],
        named: &BTreeMap<PathHash, usize>,
        inputs: Inputs,
    ) -> usize {
        let implied = |facts: &Facts| match self.graph.find(facts.path.hash()) {
            Some(ix) => match self.graph.node(ix).standing {
                Standing::Available | Standing::Pending | Standing::Blocked => 0,
                Standing::Failed | Standing::Missing | Standing::Absent => 1,
            },
            None => usize::from(facts.outputs.iter().any(|(_, held)| *held != Held::Yes)),
        };
        needed
            .iter()
            .map(|facts| match named.get(&facts.path.hash()) {
                Some(times) => *times,
                None if inputs == Inputs::Build => implied(facts),
                None => 0,
            })
            .sum()
    }

    /// Tells whether a build is one whose place a submission of its submitter may take.
    fn may_replace(&self, id: BuildId, submission: &Submission) -> bool {
        let build = self.find(id).map(|ix| &self.builds[ix]);
        build.is_some_and(|build| {
            build.request.submitter == submission.submitter
                && matches!(*build.state, BuildState::Queued | BuildState::Deferred { .. })
        })
    }

    /// Cancels what a submission takes the place of: only now that all it needs itself is there.
    fn replace(
        &mut self,
        turn: &mut Turn<'_>,
        submission: &Submission,
        answer: &[BuildId],
    ) -> Vec<BuildId> {
        let may_go = |id: &&BuildId| self.may_replace(**id, submission) && !answer.contains(id);
        let old: Vec<BuildId> = submission.replaces.iter().filter(may_go).copied().collect();
        let results = self.cancel_all(turn, &old, &Authority::All, Wanted::Stays);
        let gone = results.into_iter().filter(|(_, result)| *result == Canceled::Done);
        gone.map(|(id, _)| id).collect()
    }

    /// Returns what is named, and with builds for inputs all that these need and that is not
    /// available, dependents first.
    pub(super) fn closure<'a>(
        &self,
        named: &BTreeMap<PathHash, usize>,
        inputs: Inputs,
        facts: &Known<'a>,
    ) -> Vec<&'a Facts> {
        let is_available = |facts: &Facts| match self.graph.find(facts.path.hash()) {
            Some(ix) => self.graph.node(ix).standing == Standing::Available,
            None => facts.outputs.iter().all(|(_, held)| *held == Held::Yes),
        };
        facts.dependents_first(named.keys().copied(), |facts| match () {
            () if named.contains_key(&facts.path.hash()) => &facts.inputs,
            () if inputs == Inputs::Build && !is_available(facts) => &facts.inputs,
            () => &[],
        })
    }

    /// Makes a build for an input that is neither available nor being built. Returns how many.
    pub(super) fn add_implied(
        &mut self,
        turn: &mut Turn<'_>,
        input: &Facts,
        wish: Wish<'_>,
        facts: &Known<'_>,
    ) -> usize {
        let ix = self.meet_new(input);
        match self.graph.node(ix).standing {
            Standing::Available | Standing::Pending | Standing::Blocked => 0,
            Standing::Failed | Standing::Missing | Standing::Absent => {
                self.add_build(turn, ix, Asked::No, wish, facts);
                1
            }
        }
    }

    /// Returns the node of a derivation.
    ///
    /// # Panics
    /// When the submission came without the facts of it: whoever prepares submissions reads them
    /// from the database together.
    fn meet(&mut self, path: PathHash, facts: &Known<'_>) -> Ix<Node> {
        if let Some(ix) = self.graph.find(path) {
            return ix;
        }
        self.meet_new(facts.get(path).expect("a submission brings the facts of its derivations"))
    }

    /// Returns the node of a derivation, putting it in when it is new.
    pub(super) fn meet_new(&mut self, facts: &Facts) -> Ix<Node> {
        let class = self.class(&facts.class);
        self.graph.meet(facts, class)
    }

    /// Returns the place of a class.
    pub(super) fn class(&mut self, class: &Arc<Class>) -> ClassIx {
        // Derivations that come together have the same few classes, in one piece of memory each.
        if let Some((known, ix)) = &self.last_class
            && Arc::ptr_eq(known, class)
        {
            return *ix;
        }
        let (ix, novelty) = self.queue.intern(class);
        if novelty == Novelty::New {
            self.tell_agents_of(ix);
        }
        self.last_class = Some((Arc::clone(class), ix));
        ix
    }

    fn add_build(
        &mut self,
        turn: &mut Turn<'_>,
        node: Ix<Node>,
        asked: Asked,
        (submission, request): Wish<'_>,
        facts: &Known<'_>,
    ) -> BuildId {
        let origin = asked.origin();
        let id = match asked {
            Asked::For(Some(id)) => id,
            Asked::For(None) | Asked::No => BuildId::at(turn.now.wall, turn.ids.random()),
        };
        let (demands, not_before) = match origin {
            Origin::Asked => (submission.demands.clone(), submission.not_before),
            Origin::Implied => (Demands::default(), None),
        };
        let not_before = not_before.filter(|not_before| *not_before > turn.now.wall);
        let state = not_before.map_or(BuildState::Queued, |until| BuildState::Deferred { until });
        let extras = Extras { demands: demands.clone(), not_before, ..Extras::default() };
        let build = Build {
            id,
            node,
            state: state.clone().into(),
            origin,
            request: Arc::clone(request),
            rare: Rare::of(0, None, extras),
            queued_as: None,
            shown: ShownState::Waiting,
        };
        let path = self.graph.node(node).hash();
        turn.out.changes.push(Change::Build(Box::new(BuildRecord {
            id,
            derivation: path,
            origin,
            submitter: request.submitter.clone(),
            key: submission.key.clone().filter(|_| origin == Origin::Asked),
            priority: request.priority,
            submitted: request.submitted,
            limits: request.limits,
            tags: submission.tags.clone(),
            demands,
            not_before,
            state,
        })));
        let inputs = match facts.get(path) {
            Some(facts) if self.graph.builds(node).is_empty() => facts.inputs.as_slice(),
            Some(_) | None => &[],
        };
        let inputs: Vec<Ix<Node>> = inputs.iter().map(|path| self.meet(*path, facts)).collect();
        self.add_open(turn.now, build, inputs);
        id
    }

    /// Enters an open build everywhere.
    pub(super) fn add_open(&mut self, now: Now, build: Build, inputs: Vec<Ix<Node>>) -> Ix<Build> {
        let (node, priority) = (build.node, build.request.priority);
        let state = BuildState::clone(&build.state);
        let ix = self.enter(build);
        self.enter_kind(ix);
        self.index_state(now, ix, &state);
        self.graph.attach(node, ix, priority, inputs.into_iter());
        ix
    }

    /// Cancels builds, and with them those for inputs that nobody else needs.
    pub(super) fn cancel(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        builds: &[BuildId],
        by: &Authority,
        wanted: Wanted,
    ) {
        let results = self.cancel_all(turn, builds, by, wanted);
        turn.out.effects.push(Effect::Reply { token, answer: Answer::Canceled(results) });
    }

    fn cancel_all(
        &mut self,
        turn: &mut Turn<'_>,
        builds: &[BuildId],
        by: &Authority,
        wanted: Wanted,
    ) -> Vec<(BuildId, Canceled)> {
        let open: Vec<(BuildId, Option<Ix<Build>>)> =
            builds.iter().map(|id| (*id, self.find(*id))).collect();
        // Those that need others first, so that nobody stays for one that goes as well.
        let mut order: Vec<(u32, BuildId, Ix<Build>)> = open
            .iter()
            .filter_map(|(id, ix)| {
                Some((self.graph.node(self.builds[(*ix)?].node).height, *id, (*ix)?))
            })
            .filter(|(_, _, ix)| self.may_change(*ix, by))
            .collect();
        order.sort_unstable();
        let mut done: BTreeMap<BuildId, Canceled> = BTreeMap::new();
        for (_, id, ix) in order {
            // An earlier one may have taken it along.
            let result = if self.find(id) != Some(ix) {
                Canceled::Done
            } else if wanted == Wanted::Stays && self.is_wanted(ix) {
                self.keep_for_others(turn, ix);
                Canceled::Stays
            } else {
                self.cancel_open(turn, ix);
                Canceled::Done
            };
            done.entry(id).or_insert(result);
        }
        open.into_iter()
            .map(|(id, ix)| match (ix, done.get(&id)) {
                (None, _) => (id, Canceled::NotOpen),
                (Some(_), None) => (id, Canceled::NotYours),
                (Some(_), Some(result)) => (id, *result),
            })
            .collect()
    }

    /// Tells whether something open needs what only this build makes.
    fn is_wanted(&self, ix: Ix<Build>) -> bool {
        let node = self.graph.node(self.builds[ix].node);
        let alone = self.graph.builds(self.builds[ix].node).len() == 1;
        node.is_used() && alone && node.standing != Standing::Available
    }

    /// Notes that whoever asked for a build does so no more.
    fn keep_for_others(&mut self, turn: &mut Turn<'_>, ix: Ix<Build>) {
        if self.builds[ix].origin == Origin::Asked {
            self.builds[ix].origin = Origin::Implied;
            self.note_amendment(turn, ix, BuildAmendment::Implied);
        }
    }

    pub(super) fn may_change(&self, ix: Ix<Build>, by: &Authority) -> bool {
        match by {
            Authority::All => true,
            Authority::Own(name) => self.builds[ix].request.submitter == *name,
        }
    }

    fn cancel_open(&mut self, turn: &mut Turn<'_>, start: Ix<Build>) {
        let mut pending = vec![start];
        while let Some(ix) = pending.pop() {
            if let Some(lease) = self.builds[ix].state.lease().cloned() {
                self.end_attempt(turn, lease.attempt, AttemptEnd::Canceled);
                if let Some(session) = self.agents.get(&lease.agent).and_then(Agent::session) {
                    let order = Order::Cancel { attempt: lease.attempt };
                    turn.out.effects.push(Effect::Tell { session, order });
                }
            }
            for node in self.finish(turn, ix, BuildEvent::Canceled) {
                let implied = |other: &Ix<Build>| self.builds[*other].origin == Origin::Implied;
                if !self.settings.planted.is(Defect::CancelForgetsInputs) {
                    pending.extend(self.graph.builds(node).iter().copied().filter(implied));
                }
            }
        }
    }

    /// Moves a build to a final state and lets it leave memory. Returns inputs that nobody with an
    /// open build needs any more but that have open builds.
    pub(super) fn finish(
        &mut self,
        turn: &mut Turn<'_>,
        ix: Ix<Build>,
        event: BuildEvent,
    ) -> Vec<Ix<Node>> {
        self.apply(turn, ix, event);
        self.leave_kind(ix);
        let builds = &self.builds;
        self.by_id.remove(ix.number(), |number| builds[Ix::from_number(number)].id.digest());
        let build = self.builds.remove(ix);
        self.tally.leaves(build.shown);
        self.disown(&build.request.submitter);
        self.lost.forget_build(ix);
        let (result, state) = match *build.state {
            BuildState::Failed { .. } => (Some(EndResult::Failed), ShownState::Failed),
            BuildState::Canceled => (None, ShownState::Canceled),
            BuildState::Succeeded { .. } => (Some(EndResult::Succeeded), ShownState::Succeeded),
            BuildState::Deferred { .. }
            | BuildState::Queued
            | BuildState::Allocated(_)
            | BuildState::Building(_)
            | BuildState::Receiving(_) => unreachable!("finish is called with final events only"),
        };
        turn.out.effects.push(Effect::Rested { build: build.id, state });
        let end = result.map(|result| LastEnd { at: turn.now.wall, build: build.id, result });
        // What was blocked before has other reasons.
        self.graph.take_newly_blocked();
        let unneeded = self.graph.detach(build.node, ix, end);
        let blocked = self.graph.take_newly_blocked();
        turn.tell_blocked(build.id, blocked);
        unneeded
    }

    /// Writes down that an attempt is over.
    pub(super) fn end_attempt(&mut self, turn: &mut Turn<'_>, attempt: AttemptId, end: AttemptEnd) {
        debug_assert!(self.by_attempt.contains_key(&attempt), "only live attempts end");
        if let Some(token) = self.early_offers.remove(&attempt) {
            let answer = Answer::Offer { derivation: None };
            turn.out.effects.push(Effect::Reply { token, answer });
        }
        self.judge(turn, attempt, &end);
        if let Some(submitter) =
            self.holder(attempt).map(|ix| self.builds[ix].request.submitter.clone())
        {
            self.charge_rest(turn, &submitter, attempt, &end);
        }
        turn.out.changes.push(Change::AttemptMoved {
            attempt,
            to: AttemptState::Ended(end),
            at: turn.now.wall,
        });
        turn.out.effects.push(Effect::SealLog { attempt });
    }

    /// Passes verified facts on to the database and notes what became available.
    pub(super) fn record(
        &mut self,
        turn: &mut Turn<'_>,
        token: Option<Token>,
        changes: Vec<Change>,
    ) {
        let mut publishable = Vec::new();
        for change in &changes {
            if let Change::Nar(nar) = change {
                self.hold(nar);
                if nar.origin != NarOrigin::Trusted {
                    publishable.push(nar.info.path.clone());
                }
            }
        }
        turn.out.changes.extend(changes);
        if !publishable.is_empty() {
            turn.out.effects.push(Effect::Publish { paths: publishable });
        }
        if let Some(token) = token {
            turn.out.effects.push(Effect::Reply { token, answer: Answer::Recorded });
        }
    }

    /// Tells an agent something on a session.
    pub(super) fn tell(turn: &mut Turn<'_>, session: SessionId, order: Order) {
        turn.out.effects.push(Effect::Tell { session, order });
    }
}
