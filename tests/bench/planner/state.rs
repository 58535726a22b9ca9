//! State directories with any number of builds, written through the store as the coordinator does.

use super::{
    derivations::{Made, Maker},
    shape::Shape,
};
use std::{path::Path, sync::Arc};
use steading::{
    core::{
        attempt::AttemptState,
        build::BuildState,
        change::{
            BuildRecord, Change, Limits, NarOrigin, NarRecord, Origin, OutputRecord, Verdict,
        },
        demands::Demands,
        hash::Sha256,
        id::{AttemptId, BuildId, Name},
        outcome::AttemptEnd,
        path_info::PathInfo,
        store_path::{PathHash, StorePath},
        time::Timestamp,
    },
    store::Store,
    telemetry::Clock,
};

/// How many changes are committed together.
const SLICE: usize = 20_000;
/// How many builds a derivation of the history had.
const BUILDS_EACH: usize = 10;
/// How many derivations without a build there are, to be submitted.
pub(crate) const SPARE: usize = 1_000;

/// The configuration of farms that keep no outputs.
pub(crate) const RECORDING: &str = "outputs = 'record'\nstrategy = 'derivation-ordered'\n";

/// What was put into a state directory.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// The open builds, in the order of the graph.
    pub(crate) builds: Vec<BuildId>,
    /// What each of them makes.
    pub(crate) outs: Vec<StorePath>,
    /// Derivations that nobody has asked for; they need what is on top of the graph.
    pub(crate) spare: Vec<StorePath>,
    spare_outs: Vec<StorePath>,
}

/// Writes the configuration.
pub(crate) fn configure(state_dir: &Path, text: &str) {
    fs_err::create_dir_all(state_dir).unwrap();
    fs_err::write(state_dir.join("steading.toml"), text).unwrap();
}

/// Makes a state directory in which the whole graph is queued and other builds are finished.
pub(crate) fn write(state_dir: &Path, shape: &Shape, finished: usize) -> Content {
    fs_err::create_dir_all(state_dir).unwrap();
    let store = Store::open(&state_dir.join("steading.db")).unwrap();
    let mut writer = Writer { store, pending: Vec::new(), ids: 0, now: Clock::start().now().wall };
    writer.history(finished);
    let mut content = Content::default();
    let mut maker = Maker::default();
    maker.make_all(shape, |_, made| {
        content.outs.push(made.out.clone());
        let derivation = writer.derivation(made);
        content.builds.push(writer.build(derivation.hash()));
    });
    let top: Vec<u32> =
        shape.top().take(super::INPUTS_EACH).map(|node| node.try_into().unwrap()).collect();
    for number in 0..SPARE {
        let made = maker.make(&format!("spare-{number}-1.0"), &top);
        content.spare_outs.push(made.out.clone());
        content.spare.push(writer.derivation(made));
    }
    writer.flush();
    content
}

impl Content {
    /// Returns what a derivation of the graph makes.
    pub(crate) fn out(&self, derivation: &StorePath) -> &StorePath {
        let (of, rest) = derivation.name().split_once('-').unwrap();
        let number: usize = rest.split('-').next().unwrap().parse().unwrap();
        if of == "spare" { &self.spare_outs[number] } else { &self.outs[number] }
    }
}

struct Writer {
    store: Store,
    pending: Vec<Change>,
    ids: u64,
    now: Timestamp,
}

impl Writer {
    fn add(&mut self, change: Change) {
        self.pending.push(change);
        if self.pending.len() >= SLICE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.store.commit(&std::mem::take(&mut self.pending)).unwrap();
    }

    /// Returns the next of the ids, which sort by creation.
    fn random(&mut self) -> [u8; 10] {
        self.ids += 1;
        let mut bytes = [0; 10];
        bytes[2..].copy_from_slice(&self.ids.to_be_bytes());
        bytes
    }

    fn derivation(&mut self, made: Made) -> StorePath {
        let path = made.path.clone();
        let record = made.record(self.now);
        self.add(Change::Derivation(Arc::new(record)));
        path
    }

    fn build(&mut self, derivation: PathHash) -> BuildId {
        let id = BuildId::at(self.now, self.random());
        self.add(Change::Build(Box::new(BuildRecord {
            id,
            derivation,
            origin: Origin::Asked,
            submitter: name("operator"),
            key: None,
            priority: 0,
            submitted: self.now,
            limits: Limits::default(),
            tags: Vec::new(),
            demands: Demands::default(),
            not_before: None,
            state: BuildState::Queued,
        })));
        id
    }

    /// Puts in builds that have succeeded long ago.
    fn history(&mut self, count: usize) {
        let mut maker = Maker::default();
        let today = self.now;
        for number in 0..count / BUILDS_EACH {
            let made = maker.make(&format!("old-{number}-1.0"), &[]);
            let out = made.out.clone();
            let nar = nar(&out, self.now);
            let derivation = self.derivation(made).hash();
            self.add(Change::Nar(Arc::new(nar)));
            self.add(Change::Published { path: out.hash(), at: self.now });
            for round in 0..BUILDS_EACH {
                // One day apart, ending yesterday.
                let days = i64::try_from(BUILDS_EACH - round).unwrap();
                self.now = today.plus_ms(-days * 86_400_000);
                self.finished(derivation, &out);
            }
        }
        self.now = today;
    }

    fn finished(&mut self, derivation: PathHash, out: &StorePath) {
        let (build, at) = (self.build(derivation), self.now);
        let attempt = AttemptId::at(at, self.random());
        self.add(Change::Attempt { attempt, build, agent: name("amber"), emulated: false, at });
        let to = AttemptState::Ended(AttemptEnd::Succeeded);
        self.add(Change::AttemptMoved { attempt, to, at });
        let output = OutputRecord {
            name: "out".to_owned(),
            path: out.clone(),
            nar_hash: Sha256::from_bytes([7; 32]),
            nar_bytes: 4_096,
        };
        self.add(Change::Outputs { attempt, outputs: vec![output], verdict: Verdict::Agreed });
        let (from, to) = (BuildState::Queued, BuildState::Succeeded { attempt });
        self.add(Change::BuildMoved { build, from, to, blame: None, at });
    }
}

/// Returns the facts of a nar that nobody reads.
fn nar(path: &StorePath, at: Timestamp) -> NarRecord {
    let info = PathInfo {
        path: path.clone(),
        nar_hash: Sha256::from_bytes([7; 32]),
        nar_bytes: 4_096,
        references: Vec::new(),
        deriver: None,
        signatures: vec!["bench-1:".to_owned() + &"A".repeat(86) + "=="],
        content_address: None,
    };
    let file_hash = Sha256::of(path.name().as_bytes());
    NarRecord { info, file_hash, file_bytes: 1_024, origin: NarOrigin::Built, at }
}

/// Returns a name.
pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}
