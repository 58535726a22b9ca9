//! A small world around the engine: a clock, ids, agents and a disk, spoken of by name.
//!
//! After every step it compares every index with what it is derived from, and memory with what a
//! restart would find on the disk.

use super::{
    disk::Disk,
    naive::{Around, Naive, Ranks},
};
use crate::core::{
    agent::{Abilities, Capacity, SessionId},
    attempt::{AttemptState, Held, HeldPhase},
    audit::AuditChange,
    build::ShownState,
    care::{CareChange, Forget, LostNar, OverBuildToForget, Withdrawal},
    change::{Change, DerivationRecord, Limits, NarOrigin, NarRecord, OutputRecord, Verdict},
    demands::Demands,
    engine::{
        Amendment, Answer, Ask, Authority, Decision, Delivery, Effect, Engine, HoldWish, IdSource,
        Input, Inputs, Order, RetryWish, Settings, Submission, Supplies, Token, Told, Wanted,
    },
    hash::Sha256,
    id::{AttemptId, BuildId, InstanceId, Name},
    outcome::{BuildFailure, Outcome, SetupFailure},
    path_info::PathInfo,
    plan::{Class, Explanation, FairShare, Strategy},
    store_path::{PathHash, StoreDir, StorePath},
    time::{Monotonic, Now, Timestamp},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The system that derivations and agents have unless the story says otherwise.
pub(crate) const SYSTEM: &str = "x86_64-linux";
const START_MS: i64 = 1_700_000_000_000;

/// Ids that count up.
#[derive(Default)]
struct Counting(u64);

impl IdSource for Counting {
    fn random(&mut self) -> [u8; 10] {
        self.0 += 1;
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&self.0.to_be_bytes());
        bytes
    }
}

/// What a submission asks for besides the derivations.
#[derive(Clone)]
pub(crate) struct Wish {
    pub(crate) inputs: Inputs,
    pub(crate) priority: i32,
    pub(crate) key: Option<String>,
    pub(crate) demands: Demands,
    /// How far off the time is until which it is deferred, in milliseconds.
    pub(crate) defer_ms: Option<i64>,
    pub(crate) replaces: Vec<BuildId>,
    pub(crate) submitter: &'static str,
    pub(crate) open_max: Option<u32>,
}

impl Wish {
    /// Only what is named.
    pub(crate) const ALONE: Self = Self::new(Inputs::Leave);
    /// And its inputs.
    pub(crate) const WITH_INPUTS: Self = Self::new(Inputs::Build);

    const fn new(inputs: Inputs) -> Self {
        let demands = Demands {
            agents: Vec::new(),
            not_agents: Vec::new(),
            tags: Vec::new(),
            native_only: false,
        };
        let replaces = Vec::new();
        Self {
            inputs,
            priority: 0,
            key: None,
            demands,
            defer_ms: None,
            replaces,
            submitter: "ada",
            open_max: None,
        }
    }

    /// Of somebody who may have so many open builds.
    pub(crate) fn at_most(self, open_max: u32) -> Self {
        Self { open_max: Some(open_max), ..self }
    }

    pub(crate) fn demands(self, demands: Demands) -> Self {
        Self { demands, ..self }
    }

    pub(crate) fn defer_ms(self, ms: i64) -> Self {
        Self { defer_ms: Some(ms), ..self }
    }

    pub(crate) fn replaces(self, builds: &[BuildId]) -> Self {
        Self { replaces: builds.to_vec(), ..self }
    }

    pub(crate) fn by(self, submitter: &'static str) -> Self {
        Self { submitter, ..self }
    }

    pub(crate) fn priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    pub(crate) fn key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }
}

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) settings: Settings,
    pub(crate) now: Now,
    ids: Counting,
    tokens: u64,
    sessions: u64,
    /// Which agent opened each session, and which it has now.
    agent_of: BTreeMap<SessionId, String>,
    session_of: BTreeMap<String, SessionId>,
    /// What the next agent that joins wants to run at a time.
    pub(crate) joins_with: Option<Capacity>,
    derivations: BTreeMap<String, Arc<DerivationRecord>>,
    /// What stories call builds and attempts: `a`, the second build of it `a#2`; `a.1`.
    pub(crate) build_names: BTreeMap<BuildId, String>,
    pub(crate) attempt_names: BTreeMap<AttemptId, String>,
    attempts_of: BTreeMap<BuildId, Vec<AttemptId>>,
    given: Vec<(AttemptId, String)>,
    live: BTreeMap<BuildId, AttemptId>,
    told_blocked: BTreeSet<BuildId>,
    /// How many builds agents want at a time, and whether results can be taken in.
    wants: BTreeMap<String, u32>,
    is_intake_closed: bool,
    /// What the last step gave away, in order.
    given_away: Vec<(BuildId, Name)>,
    changes: Vec<String>,
    effects: Vec<String>,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn path(kind: &str, name: &str) -> StorePath {
    let digest = Sha256::of(format!("{kind} {name}").as_bytes());
    StoreDir::guix().path(PathHash::fold(&digest), name).unwrap()
}

/// Returns the output path that stories call so.
pub(crate) fn output(name: &str) -> StorePath {
    path("output", name)
}

pub(crate) fn nar(name: &str) -> Arc<NarRecord> {
    let info = PathInfo {
        path: output(name),
        nar_hash: Sha256::of(name.as_bytes()),
        nar_bytes: 120,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    let (file_hash, at) = (Sha256::of(b"file"), Timestamp::from_ms(START_MS));
    Arc::new(NarRecord { info, file_hash, file_bytes: 60, origin: NarOrigin::Built, at })
}

/// Returns what an agent with so many slots for these systems says of itself.
pub(crate) fn abilities(systems: &[&str], slots: u32) -> Abilities {
    Abilities {
        store_dir: StoreDir::guix(),
        dialect: "guix".to_owned(),
        systems: systems.iter().map(|&system| system.to_owned()).collect(),
        emulated_systems: Vec::new(),
        features: Vec::new(),
        slots,
        tags: BTreeMap::new(),
    }
}

impl World {
    pub(crate) fn new(disk: Box<dyn Disk>) -> Self {
        let settings = Settings::default();
        Self {
            engine: Engine::new(settings),
            disk,
            settings,
            now: Now { wall: Timestamp::from_ms(START_MS), mono: Monotonic::from_ms(0) },
            ids: Counting::default(),
            tokens: 0,
            sessions: 0,
            agent_of: BTreeMap::new(),
            session_of: BTreeMap::new(),
            joins_with: None,
            derivations: BTreeMap::new(),
            build_names: BTreeMap::new(),
            attempt_names: BTreeMap::new(),
            attempts_of: BTreeMap::new(),
            given: Vec::new(),
            live: BTreeMap::new(),
            told_blocked: BTreeSet::new(),
            wants: BTreeMap::new(),
            is_intake_closed: false,
            given_away: Vec::new(),
            changes: Vec::new(),
            effects: Vec::new(),
        }
    }

    pub(crate) fn strategy(&mut self, strategy: Strategy) {
        self.settings.strategy = strategy;
        self.restart();
    }

    pub(crate) fn share_fairly(&mut self, weight_minutes: i64, half_life_minutes: i64) {
        self.settings.fair_share = FairShare { weight_minutes, half_life_minutes };
        self.restart();
    }

    /// Changes settings while everything goes on.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        let (token, settings) = (self.token(), self.settings);
        self.step(vec![Input::Configure { token, settings }]);
    }

    /// Kills the coordinator and starts it again: sessions are gone, monotonic time begins anew.
    pub(crate) fn restart(&mut self) {
        self.now.mono = Monotonic::from_ms(0);
        self.session_of.clear();
        self.wants.clear();
        self.is_intake_closed = false;
        self.engine = self.disk.restore(self.settings, self.now);
        let wakes_in_ms = self.engine.wakes_in_ms(self.now);
        let effects = self.step(Vec::new());
        if effects.iter().any(|effect| matches!(effect, Effect::Supply(_))) {
            assert_eq!(wakes_in_ms, Some(0), "nothing need arrive for what is wanted");
        }
    }

    // What is known.

    /// Makes derivations known: `a: b c; b; c` is `a` with the inputs `b` and `c`.
    pub(crate) fn graph(&mut self, text: &str) {
        for part in text.split(';').rev() {
            let (name, inputs) = part.split_once(':').unwrap_or((part, ""));
            let inputs: Vec<&str> = inputs.split_whitespace().collect();
            self.derivation(name.trim(), SYSTEM, &[name.trim()], &inputs);
        }
        self.forget();
    }

    /// Makes one derivation known.
    pub(crate) fn derivation(&mut self, name: &str, system: &str, outs: &[&str], inputs: &[&str]) {
        let named = |out: &&str| ((*out).to_owned(), output(out));
        let record = Arc::new(DerivationRecord {
            path: path("derivation", &format!("{name}.drv")),
            text: bytes::Bytes::from_static(b"Derive()"),
            class: Class {
                store_dir: StoreDir::guix(),
                system: Some(system.to_owned()),
                features: Vec::new(),
            },
            inputs: inputs
                .iter()
                .map(|input| path("derivation", &format!("{input}.drv")).hash())
                .collect(),
            outputs: outs.iter().map(named).collect(),
            modulo: Sha256::of(name.as_bytes()),
            at: self.now.wall,
        });
        self.derivations.insert(name.to_owned(), Arc::clone(&record));
        self.record(vec![Change::Derivation(record)]);
    }

    pub(crate) fn record(&mut self, changes: Vec<Change>) {
        let token = Some(self.token());
        self.step(vec![Input::Record { token, changes }]);
    }

    pub(crate) fn drv(&self, name: &str) -> &DerivationRecord {
        &self.derivations[name]
    }

    // What people do.

    pub(crate) fn submit(&mut self, root: &str, wish: Wish) -> BuildId {
        self.submit_all(&[root], wish)[0]
    }

    pub(crate) fn submit_all(&mut self, roots: &[&str], wish: Wish) -> Vec<BuildId> {
        let roots: Vec<PathHash> = roots.iter().map(|root| self.drv(root).path.hash()).collect();
        let submitter = name(wish.submitter);
        let (roots, facts) =
            self.disk.submission_facts(&roots, wish.inputs, &submitter, wish.key.as_deref());
        let token = self.token();
        let submission = Box::new(Submission {
            submitter,
            roots,
            facts,
            inputs: wish.inputs,
            priority: wish.priority,
            limits: Limits::default(),
            tags: Vec::new(),
            key: wish.key,
            open_max: wish.open_max,
            demands: wish.demands.sorted(),
            not_before: wish.defer_ms.map(|ms| self.now.wall.plus_ms(ms)),
            replaces: wish.replaces,
        });
        let effects = self.step(vec![Input::Submit { token, submission }]);
        effects
            .into_iter()
            .find_map(|effect| match effect {
                Effect::Reply { answer: Answer::Submitted { builds, .. }, .. } => Some(builds),
                Effect::Reply { answer: Answer::TooMany(_), .. } => Some(Vec::new()),
                _ => None,
            })
            .expect("a submission is answered")
    }

    pub(crate) fn cancel(&mut self, builds: &[BuildId]) {
        self.cancel_by(builds, Authority::All);
    }

    pub(crate) fn cancel_by(&mut self, builds: &[BuildId], by: Authority) {
        self.cancel_all(builds, by, Wanted::Stays);
    }

    pub(crate) fn cancel_all(&mut self, builds: &[BuildId], by: Authority, wanted: Wanted) {
        let (token, builds) = (self.token(), builds.to_vec());
        self.step(vec![Input::Cancel { token, builds, by, wanted }]);
    }

    pub(crate) fn amend(&mut self, builds: &[BuildId], amendment: Amendment) {
        let (token, builds, by) = (self.token(), builds.to_vec(), Authority::All);
        self.step(vec![Input::Amend { token, builds, by, amendment }]);
    }

    pub(crate) fn sets_priority(&mut self, build: BuildId, priority: i32) {
        self.amend(&[build], Amendment { priority: Some(priority), ..Amendment::default() });
    }

    pub(crate) fn holds(&mut self, build: BuildId) {
        let hold = Some(HoldWish::Hold(name("olga")));
        self.amend(&[build], Amendment { hold, ..Amendment::default() });
    }

    pub(crate) fn releases(&mut self, build: BuildId) {
        self.amend(&[build], Amendment { hold: Some(HoldWish::Release), ..Amendment::default() });
    }

    pub(crate) fn retries(&mut self, builds: &[BuildId], wish: RetryWish) {
        self.retries_by(builds, Authority::All, wish);
    }

    pub(crate) fn retries_by(&mut self, builds: &[BuildId], by: Authority, wish: RetryWish) {
        let retrial = Box::new(self.disk.retrial(builds, by, wish));
        let token = self.token();
        self.step(vec![Input::Retry { token, retrial }]);
    }

    pub(crate) fn decides(&mut self, agent: &str, decision: Decision) {
        let token = self.token();
        let by = name("olga");
        self.step(vec![Input::Administer { token, agent: name(agent), decision, by }]);
    }

    /// The key of an agent is taken away.
    pub(crate) fn expel(&mut self, agent: &str) {
        self.session_of.remove(agent);
        self.wants.remove(agent);
        self.step(vec![Input::Expel { agent: name(agent) }]);
    }

    // What agents do.

    pub(crate) fn join(&mut self, agent: &str, slots: u32) {
        self.join_with(agent, 0, abilities(&[SYSTEM], slots), &[]);
    }

    /// An agent comes; `held` are the attempts it still has.
    pub(crate) fn rejoin(&mut self, agent: &str, slots: u32, held: &[&str]) {
        let held: Vec<(&str, HeldPhase)> =
            held.iter().map(|attempt| (*attempt, HeldPhase::Building)).collect();
        self.comes_back(agent, slots, &held);
    }

    /// An agent comes; `held` are the attempts it still has, and how far each is.
    pub(crate) fn comes_back(&mut self, agent: &str, slots: u32, held: &[(&str, HeldPhase)]) {
        let held: Vec<Held> = held
            .iter()
            .map(|(called, phase)| Held { attempt: self.attempt(called), phase: phase.clone() })
            .collect();
        self.join_with(agent, 0, abilities(&[SYSTEM], slots), &held);
    }

    pub(crate) fn join_with(
        &mut self,
        agent: &str,
        instance: u8,
        abilities: Abilities,
        held: &[Held],
    ) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.agent_of.insert(session, agent.to_owned());
        let capacity = self.joins_with.take();
        let slots = capacity.as_ref().map_or(abilities.slots, |it| it.slots.min(abilities.slots));
        // It counts at once; the one who is refused has a session already.
        if !self.session_of.contains_key(agent) || instance == 0 {
            self.wants.insert(agent.to_owned(), slots);
        }
        let effects = self.step(vec![Input::Join {
            session,
            name: name(agent),
            instance: InstanceId::from_bytes([instance; 16]),
            abilities,
            held: held.to_vec(),
            capacity,
        }]);
        let welcome = |effect: &Effect| matches!(effect, Effect::Tell { session: to, order: Order::Welcome { .. } } if *to == session);
        if effects.iter().any(welcome) {
            self.session_of.insert(agent.to_owned(), session);
        }
    }

    pub(crate) fn leave(&mut self, agent: &str) {
        if let Some(session) = self.session_of.remove(agent) {
            self.wants.remove(agent);
            self.step(vec![Input::Leave { session }]);
        }
    }

    pub(crate) fn wants(&mut self, agent: &str, slots: u32, reason: &str) {
        let (session, reason) = (self.session(agent), Some(reason.to_owned()));
        let most = self.engine.agents().find(|known| known.name == name(agent));
        let most = most.map_or(0, |known| known.abilities.slots);
        if self.session_of.contains_key(agent) {
            self.wants.insert(agent.to_owned(), slots.min(most));
        }
        self.step(vec![Input::Capacity { session, slots, reason }]);
    }

    pub(crate) fn started(&mut self, agent: &str, attempt: &str) {
        let (session, attempt) = (self.session(agent), self.attempt(attempt));
        self.step(vec![Input::Started { session, attempt }]);
    }

    pub(crate) fn finished(&mut self, agent: &str, attempt: &str, outcome: Outcome) {
        let (session, attempt) = (self.session(agent), self.attempt(attempt));
        self.step(vec![Input::Finished { session, attempt, outcome }]);
    }

    /// Says what an attempt made; `salt` makes it something else.
    pub(crate) fn reports(&mut self, agent: &str, attempt: &str, salt: &str) {
        let outs = self.outputs_of(attempt);
        let (outputs, _) = Self::made(&outs, salt);
        let (session, attempt) = (self.session(agent), self.attempt(attempt));
        self.step(vec![Input::Report { session, attempt, outputs }]);
    }

    pub(crate) fn fails(&mut self, agent: &str, attempt: &str) {
        self.finished(agent, attempt, Outcome::Failed(BuildFailure::Exit(1)));
    }

    pub(crate) fn cannot_begin(&mut self, agent: &str, attempt: &str) {
        self.finished(agent, attempt, Outcome::SetupFailed(SetupFailure::DiskFull));
    }

    pub(crate) fn misses(&mut self, agent: &str, attempt: &str, paths: &[&str]) {
        let paths = paths.iter().map(|path| output(path)).collect();
        self.finished(agent, attempt, Outcome::SetupFailed(SetupFailure::MissingInputs(paths)));
    }

    pub(crate) fn offer(&mut self, agent: &str, attempt: &str) {
        let (token, attempt) = (self.token(), self.attempt(attempt));
        self.step(vec![Input::Offer { token, agent: name(agent), attempt }]);
    }

    /// Sends all outputs of an attempt.
    pub(crate) fn deliver(&mut self, agent: &str, attempt: &str) {
        let drv = attempt.split(['.', '#']).next().unwrap();
        let outs: Vec<String> = self.drv(drv).outputs.iter().map(|(out, _)| out.clone()).collect();
        let nars = outs.iter().map(|out| nar(out)).collect();
        self.deliver_as(agent, attempt, Self::verified(&outs, nars));
    }

    /// Returns the outputs of an attempt's derivation, by name.
    pub(crate) fn outputs_of(&self, attempt: &str) -> Vec<String> {
        let drv = attempt.split(['.', '#']).next().unwrap();
        self.drv(drv).outputs.iter().map(|(out, _)| out.clone()).collect()
    }

    /// Returns what is made of outputs when `salt` is in them, and the nars.
    pub(crate) fn made(outs: &[String], salt: &str) -> (Vec<OutputRecord>, Vec<Arc<NarRecord>>) {
        let hash = |out: &str| Sha256::of(format!("{out}{salt}").as_bytes());
        let record = |out: &String| OutputRecord {
            name: out.clone(),
            path: output(out),
            nar_hash: hash(out),
            nar_bytes: 120,
        };
        let salted = |out: &String| {
            let mut record = NarRecord::clone(&nar(out));
            record.info.nar_hash = hash(out);
            Arc::new(record)
        };
        (outs.iter().map(record).collect(), outs.iter().map(salted).collect())
    }

    /// Sends all outputs of an attempt, with `salt` in them, as it was planned before.
    pub(crate) fn deliver_salted(
        &mut self,
        agent: &str,
        attempt: &str,
        salt: &str,
        verdict: Verdict,
    ) {
        let (outputs, nars) = Self::made(&self.outputs_of(attempt), salt);
        self.deliver_as(
            agent,
            attempt,
            Delivery::Verified { outputs, nars, files: Vec::new(), verdict },
        );
    }

    pub(crate) fn verified(outs: &[String], nars: Vec<Arc<NarRecord>>) -> Delivery {
        let record = |out: &String| OutputRecord {
            name: out.clone(),
            path: output(out),
            nar_hash: Sha256::of(out.as_bytes()),
            nar_bytes: 120,
        };
        let outputs = outs.iter().map(record).collect();
        Delivery::Verified { outputs, nars, files: Vec::new(), verdict: Verdict::Agreed }
    }

    pub(crate) fn deliver_as(&mut self, agent: &str, attempt: &str, delivery: Delivery) {
        let (token, attempt) = (self.token(), self.attempt(attempt));
        self.step(vec![Input::Deliver { token, agent: name(agent), attempt, delivery }]);
    }

    /// Builds and delivers, from the first message to the last.
    pub(crate) fn builds(&mut self, agent: &str, attempt: &str) {
        self.started(agent, attempt);
        self.finished(agent, attempt, Outcome::Built);
        self.deliver(agent, attempt);
    }

    // What is taken out again.

    /// The files of outputs turn out to be gone.
    pub(crate) fn loses(&mut self, outs: &[&str]) {
        let lost = |out: &&str| {
            let path = output(out).hash();
            let makers = self.engine.graph().makers_of(path);
            let makers = makers.map(|ix| self.engine.graph().node(ix).hash());
            let ends = makers.filter_map(|of| Some((of, self.disk.last_end(of)?)));
            LostNar { path, last_ends: ends.collect() }
        };
        let what = Forget::Lost(outs.iter().map(lost).collect());
        let token = self.token();
        self.step(vec![Input::Forget { token, what }]);
    }

    /// Outputs are to go, each with what it refers to.
    pub(crate) fn withdraws(&mut self, outs: &[(&str, &[&str])]) {
        let withdrawal = |(out, references): &(&str, &[&str])| Withdrawal {
            path: output(out).hash(),
            references: references.iter().map(|one| output(one).hash()).collect(),
        };
        let nars = outs.iter().map(withdrawal).collect();
        let what = Forget::Nars { nars, remove_at: self.now.wall };
        let token = self.token();
        self.step(vec![Input::Forget { token, what }]);
    }

    /// Builds that are over are to go.
    pub(crate) fn prunes(&mut self, builds: &[BuildId]) {
        let over = |build: &BuildId| {
            let called = &self.build_names[build];
            let drv = self.drv(called.split('#').next().unwrap());
            OverBuildToForget {
                build: *build,
                derivation: drv.path.hash(),
                outputs: drv.outputs.iter().map(|(_, path)| path.hash()).collect(),
            }
        };
        let what = Forget::Builds(builds.iter().map(over).collect());
        let token = self.token();
        self.step(vec![Input::Forget { token, what }]);
    }

    // What the coordinator finds.

    pub(crate) fn close_intake(&mut self, reason: Option<&str>) {
        self.is_intake_closed = reason.is_some();
        self.step(vec![Input::Intake { closed: reason.map(str::to_owned) }]);
    }

    // What time does.

    pub(crate) fn pass_ms(&mut self, ms: u64) {
        self.now.wall = self.now.wall.plus_ms(i64::try_from(ms).unwrap());
        self.now.mono = self.now.mono.plus_ms(ms);
        self.step(Vec::new());
    }

    pub(crate) fn wall_clock_jumps(&mut self, ms: i64) {
        self.now.wall = self.now.wall.plus_ms(ms);
        self.step(Vec::new());
    }

    // What can be seen.

    /// Returns what came out since it was last asked, except that agents' rows were written.
    pub(crate) fn effects(&mut self) -> Vec<String> {
        std::mem::take(&mut self.effects)
    }

    pub(crate) fn changes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.changes)
    }

    /// Forgets what came out so far.
    pub(crate) fn forget(&mut self) {
        self.effects.clear();
        self.changes.clear();
    }

    /// Asserts that nothing came out since it was last asked.
    pub(crate) fn is_quiet(&self) {
        assert!(self.effects.is_empty(), "{:?}", self.effects);
        assert!(self.changes.is_empty(), "{:?}", self.changes);
    }

    /// Returns open builds and how they are shown: `a waiting, b ready`.
    pub(crate) fn shown(&self) -> String {
        let mut shown: Vec<String> = self
            .engine
            .snapshot()
            .builds
            .iter()
            .map(|(id, build)| format!("{} {}", self.build_names[id], build.shown))
            .collect();
        shown.sort();
        shown.join(", ")
    }

    pub(crate) fn counts(&self) -> crate::core::engine::Counts {
        match self.engine.ask(&Ask::Counts) {
            Told::Counts(counts) => counts,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn why(&self, build: BuildId) -> Explanation {
        match self.engine.ask(&Ask::Why(build, self.now.wall)) {
            Told::Why(Some(explanation)) => *explanation,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn session(&self, agent: &str) -> SessionId {
        // One that nobody has, when the agent is away.
        self.session_of.get(agent).copied().unwrap_or(SessionId(0))
    }

    pub(crate) fn session_is_open(&self, agent: &str) -> bool {
        self.session_of.contains_key(agent)
    }

    pub(crate) fn attempt(&self, called: &str) -> AttemptId {
        let found = self.attempt_names.iter().find(|(_, name)| *name == called);
        *found.unwrap_or_else(|| panic!("no attempt is called {called}")).0
    }

    /// Returns the build that stories call so.
    pub(crate) fn build_called(&self, called: &str) -> BuildId {
        *self.build_names.iter().find(|(_, name)| *name == called).unwrap().0
    }

    pub(crate) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Returns all attempts that were ever given to an agent, in order.
    pub(crate) fn given(&self) -> Vec<(AttemptId, String)> {
        self.given.clone()
    }

    /// Returns the live attempts and their agents.
    pub(crate) fn snapshot_attempts(&self) -> Vec<(String, String)> {
        let builds = self.engine.snapshot().builds;
        let leases = builds.values().filter_map(|build| build.state.lease());
        let named = leases
            .map(|lease| (self.attempt_names[&lease.attempt].clone(), lease.agent.to_string()));
        named.collect()
    }

    // What must always hold.

    /// Steps, makes the changes durable, and looks at everything.
    pub(crate) fn step(&mut self, inputs: Vec<Input>) -> Vec<Effect> {
        self.given_away.clear();
        let step = self.engine.step(self.now, &mut self.ids, inputs);
        self.disk.commit(&step.changes);
        for change in &step.changes {
            self.follow(change);
        }
        for effect in &step.effects {
            self.hear(effect);
        }
        self.look_at_everything();
        let wanting = step.effects.iter().filter_map(|effect| match effect {
            Effect::Supply(wanting) => Some(wanting.clone()),
            _ => None,
        });
        for wanting in wanting.collect::<Vec<_>>() {
            let (derivations, inputs) = (&wanting.derivations, wanting.inputs);
            let nobody = name("nobody");
            let (_, facts) = self.disk.submission_facts(derivations, inputs, &nobody, None);
            let tags = Vec::new();
            self.step(vec![Input::Supply(Box::new(Supplies { wanting, facts, tags }))]);
        }
        step.effects
    }

    fn look_at_everything(&mut self) {
        assert_eq!(self.engine.check(), Vec::<String>::new());
        let memory = self.engine.snapshot();
        let saved = self.disk.saved();
        let reloaded = self.disk.restore(self.settings, self.now);
        // Nobody has a session there, so that nothing is to be given away.
        assert_eq!(reloaded.check(), Vec::<String>::new());
        let around = self.around();
        let naive = Naive::new(&around, &saved);
        let none = Vec::<String>::new();
        assert_eq!(naive.differences(&self.engine, Ranks::HighEnough), none, "by the rules");
        assert_eq!(naive.differences(&reloaded, Ranks::Exact), none, "by the rules, reloaded");
        assert_eq!(naive.misgiven(&self.engine, &self.given_away), none, "by the rules");
        assert_eq!(memory, reloaded.snapshot(), "memory (left) is not what the disk says (right)");
        let leased: BTreeMap<BuildId, AttemptId> = memory
            .builds
            .iter()
            .filter_map(|(id, build)| Some((*id, build.state.lease()?.attempt)))
            .collect();
        assert_eq!(leased, self.live, "live attempts in memory, and by what was written down");
        let is_blocked =
            |id: &BuildId| memory.builds.get(id).is_some_and(|b| b.shown == ShownState::Blocked);
        self.told_blocked.retain(is_blocked);
        for id in memory.builds.keys().filter(|id| is_blocked(id)) {
            assert!(self.told_blocked.contains(id), "nobody was told that a build is blocked");
        }
    }

    /// Asserts that nobody waits for missing inputs that could be built.
    pub(crate) fn assert_supplied(&self) {
        if self.settings.build_missing {
            let saved = self.disk.saved();
            let around = self.around();
            let unsupplied = Naive::new(&around, &saved).unsupplied();
            assert_eq!(unsupplied, Vec::<String>::new());
        }
    }

    fn around(&self) -> Around<'_> {
        Around {
            settings: &self.settings,
            wants: self.wants.iter().map(|(agent, slots)| (name(agent), *slots)).collect(),
            is_intake_closed: self.is_intake_closed,
            now: self.now.wall,
        }
    }

    fn follow(&mut self, change: &Change) {
        let line = match change {
            Change::Derivation(record) => format!("derivation {}", record.path.name()),
            Change::Nar(record) => format!("nar {}", record.info.path.name()),
            Change::Build(record) => {
                let called = self.call(record.derivation);
                self.build_names.insert(record.id, called.clone());
                format!("build {called}")
            }
            Change::BuildMoved { build, from, to, .. } => {
                format!("{} {} → {}", self.build_names[build], from.word(), to.word())
            }
            Change::BuildAmended { build, amendment } => {
                format!("{} {amendment:?}", self.build_names[build])
            }
            Change::Attempt { attempt, build, agent, .. } => {
                self.given.push((*attempt, agent.to_string()));
                self.given_away.push((*build, agent.clone()));
                let before = self.live.insert(*build, *attempt);
                assert_eq!(before, None, "a build has two live attempts");
                if self.settings.strategy == Strategy::DerivationOrdered {
                    self.assert_inputs_are_held(*build);
                }
                let attempts = self.attempts_of.entry(*build).or_default();
                attempts.push(*attempt);
                let called = format!("{}.{}", self.build_names[build], attempts.len());
                let line = format!("attempt {called}");
                self.attempt_names.insert(*attempt, called);
                line
            }
            Change::AttemptMoved { attempt, to, .. } => {
                let word = match to {
                    AttemptState::Ended(end) => {
                        self.live.retain(|_, live| live != attempt);
                        end.word()
                    }
                    _ => to.word(),
                };
                format!("{} {word}", self.attempt_names[attempt])
            }
            Change::AttemptReadopted { attempt, .. } => {
                let of = self.attempts_of.iter().find(|(_, all)| all.contains(attempt));
                let before = self.live.insert(*of.unwrap().0, *attempt);
                assert_eq!(before, None, "a build has two live attempts");
                format!("{} readopted", self.attempt_names[attempt])
            }
            Change::DisputedNar { attempt, nar } => {
                format!("{} disputes {}", self.attempt_names[attempt], nar.info.path.name())
            }
            Change::Reported { attempt, agent, outputs, .. } => {
                let attempt = &self.attempt_names[attempt];
                format!("{attempt} reported by {agent}: {}", outputs.len())
            }
            Change::Outputs { attempt, outputs, verdict } => {
                let disputed = if *verdict == Verdict::Disputed { ", disputed" } else { "" };
                format!("{} outputs {}{disputed}", self.attempt_names[attempt], outputs.len())
            }
            Change::Agent { .. }
            | Change::AgentFailures { .. }
            | Change::Account { .. }
            | Change::Event(_) => return,
            Change::AgentSuspended { name, suspension: None } => format!("{name} takes builds"),
            Change::AgentSuspended { name, suspension: Some(suspension) } => {
                format!("{name} {}", suspension.kind.word())
            }
            Change::AgentRemoved { name } => format!("{name} removed"),
            Change::Audit(change) => match &**change {
                AuditChange::Line(record) => format!("audit {}: {}", record.principal, record.line),
                other => unreachable!("no story has {other:?}"),
            },
            Change::Missing { path, .. } => format!("missing {}", self.output_called(*path)),
            Change::UnwrittenNar(file) => format!("file of {} bytes", file.bytes.len()),
            Change::Care(CareChange::Pruned { build }) => {
                format!("pruned {}", self.build_names[build])
            }
            Change::Care(CareChange::Withdrawn { path, .. }) => {
                format!("withdrew {}", self.output_called(*path))
            }
            Change::Care(CareChange::Lost { path, .. }) => {
                format!("lost {}", self.output_called(*path))
            }
            Change::Published { .. }
            | Change::Care(_)
            | Change::NarsWritten { .. }
            | Change::Signed { .. }
            | Change::EventsForgotten { .. }
            | Change::Hook(_)
            | Change::Enrollment(_) => unreachable!("no story has it"),
        };
        self.changes.push(line);
    }

    /// Returns what a new build of a derivation is called.
    fn call(&self, derivation: PathHash) -> String {
        let drv = self.derivations.values().find(|d| d.path.hash() == derivation);
        let drv = drv.unwrap().path.name().trim_end_matches(".drv").to_owned();
        let same = |called: &&String| called.split('#').next() == Some(drv.as_str());
        match self.build_names.values().filter(same).count() {
            0 => drv,
            before => format!("{drv}#{}", before + 1),
        }
    }

    fn output_called(&self, path: PathHash) -> String {
        let known = self.derivations.values().flat_map(|d| &d.outputs);
        let named = known.map(|(_, path)| path).find(|known| known.hash() == path);
        named.unwrap().name().to_owned()
    }

    fn assert_inputs_are_held(&self, build: BuildId) {
        let called = &self.build_names[&build];
        let drv = self.drv(called.split('#').next().unwrap());
        for input in &drv.inputs {
            assert!(
                self.disk.holds_outputs_of(*input),
                "{called} was given away without its inputs"
            );
        }
    }

    fn hear(&mut self, effect: &Effect) {
        let list = |attempts: &[AttemptId]| {
            attempts.iter().map(|a| self.attempt_names[a].as_str()).collect::<Vec<_>>().join(" ")
        };
        let line = match effect {
            Effect::Tell { session, order } => {
                let agent = &self.agent_of[session];
                match order {
                    Order::Welcome { keep, drop, report } => {
                        let report = match report.as_slice() {
                            [] => String::new(),
                            report => format!(", report [{}]", list(report)),
                        };
                        let (keep, drop) = (list(keep), list(drop));
                        format!("{agent}: welcome, keep [{keep}], drop [{drop}]{report}")
                    }
                    Order::Restarting { .. } => unreachable!("the engine does not say that"),
                    Order::Refuse { .. } => format!("{agent}: refused"),
                    Order::Replaced => format!("{agent}: replaced"),
                    Order::Allocate { attempt, .. } => {
                        format!("{agent}: build {}", list(&[*attempt]))
                    }
                    Order::Cancel { attempt } => format!("{agent}: cancel {}", list(&[*attempt])),
                    Order::Settled { attempt } => format!("{agent}: settled {}", list(&[*attempt])),
                }
            }
            Effect::Reply { answer, .. } => match answer {
                Answer::Amended(results) => {
                    let each =
                        results.iter().map(|(b, r)| format!("{} {r:?}", self.build_names[b]));
                    format!("amended: {}", each.collect::<Vec<_>>().join(", "))
                }
                Answer::Retried(results) => {
                    let each =
                        results.iter().map(|(b, r)| format!("{} {r:?}", self.build_names[b]));
                    format!("retried: {}", each.collect::<Vec<_>>().join(", "))
                }
                Answer::Submitted { builds, implied, .. } => {
                    let builds: Vec<_> =
                        builds.iter().map(|b| self.build_names[b].as_str()).collect();
                    format!("submitted {} and {implied} more", builds.join(" "))
                }
                Answer::Canceled(results) => {
                    let each =
                        results.iter().map(|(b, r)| format!("{} {r:?}", self.build_names[b]));
                    format!("canceled: {}", each.collect::<Vec<_>>().join(", "))
                }
                Answer::Administered(result) => format!("administered: {result:?}"),
                Answer::TooMany(over) => {
                    format!("{} open and {} more are over {}", over.open, over.more, over.most)
                }
                Answer::Configured => "configured".to_owned(),
                Answer::Recorded | Answer::Forgotten(_) => return,
                Answer::Offer { derivation: Some(path) } => {
                    format!("offer of {} wanted", path.name())
                }
                Answer::Offer { derivation: None } => "offer not wanted".to_owned(),
                Answer::Delivered { accepted: true } => "delivery accepted".to_owned(),
                Answer::Delivered { accepted: false } => "delivery not accepted".to_owned(),
            },
            Effect::Rested { build, state } => {
                if *state == ShownState::Blocked {
                    assert!(self.told_blocked.insert(*build), "told twice that a build is blocked");
                }
                format!("{} rests {state}", self.build_names[build])
            }
            Effect::Supply(wanting) => {
                let called = |path: &PathHash| {
                    let known = self.derivations.values().find(|d| d.path.hash() == *path);
                    known.unwrap().path.name().trim_end_matches(".drv").to_owned()
                };
                let derivations: Vec<_> = wanting.derivations.iter().map(called).collect();
                let build = &self.build_names[&wanting.build];
                format!("{build} wants {}", derivations.join(" "))
            }
            Effect::SealLog { attempt } => format!("log of {} sealed", self.attempt_names[attempt]),
            Effect::Quarantined { agent, .. } => format!("{agent} quarantined"),
            Effect::Publish { paths } => {
                let names: Vec<_> = paths.iter().map(StorePath::name).collect();
                format!("publish {}", names.join(" "))
            }
        };
        self.effects.push(line);
    }
}
