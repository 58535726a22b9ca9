//! People and scripts: they ask for builds, ask again when nobody answers, and change their minds.

use super::{
    chance::Chance,
    coordinator::Message,
    farm,
    trace::{Short, note},
    world::{Event, World},
};
use crate::{
    coordinator::engine_thread::SubmitRequest,
    core::{
        change::{Change, NarOrigin},
        engine::{Answer, Authority, Canceled, Input, Inputs},
        id::{AttemptId, BuildId, Name},
        store_path::StorePath,
    },
};
use std::collections::BTreeMap;

/// How long somebody waits before asking again, in milliseconds.
const PATIENCE_MS: u64 = 40_000;

/// A request, named so that its answer finds it.
pub(super) type RequestId = u64;

/// What people do.
#[derive(Debug)]
pub(super) enum PersonEvent {
    /// Somebody has a wish.
    Wish,
    /// A request is sent.
    Ask(RequestId),
    /// An answer arrives.
    Answered(RequestId, Answer),
    /// The connection ended without an answer.
    Lost(RequestId),
}

/// What was asked for.
#[derive(Debug, Clone)]
enum Wish {
    Submit(Box<SubmitRequest>),
    Cancel(Vec<BuildId>, Authority),
}

/// Everybody who asks.
#[derive(Debug)]
pub(super) struct People {
    wishes: u64,
    pause_ms: u64,
    open: BTreeMap<RequestId, Wish>,
    next: RequestId,
    /// Builds that somebody was told of.
    pub(super) promised: Vec<BuildId>,
}

impl People {
    pub(super) fn new(chance: &mut Chance) -> Self {
        Self {
            wishes: chance.between(2, 14),
            pause_ms: *chance.pick(&[3_000, 30_000, 150_000]),
            open: BTreeMap::new(),
            next: 0,
            promised: Vec::new(),
        }
    }
}

impl World {
    /// Plans the first wish.
    pub(super) fn people_begin(&mut self) {
        self.after(500, Event::Person(PersonEvent::Wish));
    }

    pub(super) fn person_event(&mut self, event: PersonEvent) {
        match event {
            PersonEvent::Wish => self.wish(),
            PersonEvent::Ask(request) => self.ask(request),
            PersonEvent::Answered(request, answer) => self.answered(request, answer),
            PersonEvent::Lost(request) => self.lost(request),
        }
    }

    fn wish(&mut self) {
        if self.people.wishes == 0 || self.weather.is_calm {
            return;
        }
        self.people.wishes -= 1;
        let pause = self.chance.between(1, 2 * self.people.pause_ms);
        self.after(pause, Event::Person(PersonEvent::Wish));
        let wish = match self.chance.below(10) {
            0..2 if !self.people.promised.is_empty() => {
                let build = *self.chance.pick(&self.people.promised.clone());
                let by = match self.chance.below(2) {
                    0 => Authority::All,
                    _ => Authority::Own(self.somebody()),
                };
                Wish::Cancel(vec![build], by)
            }
            2 => return self.bring_nar(),
            _ => Wish::Submit(Box::new(self.submission())),
        };
        self.people.next += 1;
        let request = self.people.next;
        self.people.open.insert(request, wish);
        self.ask(request);
    }

    fn somebody(&mut self) -> Name {
        self.chance.pick(&["ada", "grace"]).parse().expect("a plain name")
    }

    fn submission(&mut self) -> SubmitRequest {
        let count = self.chance.between(1, 3);
        let roots: Vec<StorePath> = (0..count)
            .map(|_| {
                // Mostly what needs much.
                let length = self.farm.recipes.len();
                let place = self.chance.place(length).max(self.chance.place(length));
                self.farm.recipes[place].record.path.clone()
            })
            .collect();
        let key = self.chance.permille(600).then(|| format!("k{}", self.chance.below(5)));
        let submitter = self.somebody();
        SubmitRequest {
            inputs: if self.chance.permille(800) { Inputs::Build } else { Inputs::Leave },
            priority: *self.chance.pick(&[0, 0, 0, 5, -3, 40]),
            key,
            ..SubmitRequest::new(submitter, roots)
        }
    }

    /// Somebody brings an output that was built elsewhere.
    fn bring_nar(&mut self) {
        let place = self.chance.place(self.farm.recipes.len());
        let output = self.farm.recipes[place].record.outputs[0].1.clone();
        let (at, by) = (self.wall(), AttemptId::from_bytes([7; 16]));
        let nar = farm::nar(self.farm.content(place, &output, by), NarOrigin::Trusted, at);
        note!(self, "somebody brings {}", output.base_name());
        self.coordinator_takes(Message::Input(Input::Record {
            token: None,
            changes: vec![Change::Nar(nar)],
        }));
    }

    fn ask(&mut self, request: RequestId) {
        let Some(wish) = self.people.open.get(&request).cloned() else { return };
        if !self.coordinator.is_up() {
            self.after(PATIENCE_MS / 4, Event::Person(PersonEvent::Ask(request)));
            return;
        }
        match wish {
            Wish::Submit(wanted) => {
                let roots: Vec<usize> =
                    wanted.roots.iter().map(|root| self.farm.find(root.hash())).collect();
                let closure = self.farm.closure(&roots);
                note!(
                    self,
                    "{} asks for {roots:?}, key {:?}, priority {}, {:?}",
                    wanted.submitter,
                    wanted.key,
                    wanted.priority,
                    wanted.inputs
                );
                let facts =
                    |place: &usize| Change::Derivation(self.farm.recipes[*place].record.clone());
                let changes = closure.iter().map(facts).collect();
                self.coordinator_takes(Message::Input(Input::Record { token: None, changes }));
                self.coordinator_takes(Message::Submit { request, wanted });
            }
            Wish::Cancel(builds, by) => {
                note!(self, "somebody cancels {}", Short(builds[0].as_bytes()));
                self.coordinator_takes(Message::Cancel { request, builds, by });
            }
        }
    }

    /// An answer arrives: from here on it is a promise.
    fn answered(&mut self, request: RequestId, answer: Answer) {
        let Some(wish) = self.people.open.remove(&request) else { return };
        match (wish, answer) {
            (Wish::Submit(wanted), Answer::Submitted { builds, .. }) => {
                if builds.len() != wanted.roots.len() {
                    self.violated("S1: not one build per derivation asked for");
                }
                for (root, build) in wanted.roots.iter().zip(&builds) {
                    self.check_promise(&wanted, root, *build);
                }
                self.people.promised.extend(builds);
            }
            (Wish::Cancel(..), Answer::Canceled(results)) => {
                for (build, result) in results {
                    let state = self.shadow.builds.get(&build).map(|build| build.state.clone());
                    let is_open = state.as_ref().is_some_and(|state| !state.is_final());
                    if result == Canceled::Done && is_open {
                        let id = Short(build.as_bytes());
                        self.violated(format!("S1: {id} was canceled, as somebody was told"));
                    }
                }
            }
            (_, answer) => self.violated(format!("{answer:?} is no answer to that")),
        }
    }

    /// Nobody knows whether it was done. Who has a key may ask again without harm.
    fn lost(&mut self, request: RequestId) {
        let again = match self.people.open.get(&request) {
            Some(Wish::Submit(wanted)) => wanted.key.is_some(),
            Some(Wish::Cancel(..)) | None => true,
        };
        if !again {
            self.people.open.remove(&request);
            return;
        }
        let pause = self.chance.between(100, PATIENCE_MS);
        self.after(pause, Event::Person(PersonEvent::Ask(request)));
    }

    /// Tells whether somebody still waits for an answer.
    pub(super) fn is_anybody_waiting(&self) -> bool {
        !self.people.open.is_empty()
    }
}
