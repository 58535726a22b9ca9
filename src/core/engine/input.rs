//! What goes into a step and what comes out besides changes.

use super::{
    Settings, Supplies, Wanting,
    retrial::{Retrial, Retried},
};
use crate::core::{
    agent::{Abilities, Capacity, SessionId},
    attempt::Held,
    build::ShownState,
    care::{Forget, Forgotten},
    change::{Change, Limits, NarFile, NarRecord, OutputRecord, Verdict},
    demands::Demands,
    graph::Facts,
    id::{AttemptId, BuildId, InstanceId, Name},
    outcome::Outcome,
    store_path::{PathHash, StorePath},
    time::Timestamp,
};
use std::sync::Arc;

/// Names a request, so that its answer finds the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a step takes in.
#[derive(Debug)]
pub enum Input {
    /// Somebody asks for builds. Answered by [`Answer::Submitted`].
    Submit {
        /// Whom to answer.
        token: Token,
        /// What is asked for.
        submission: Box<Submission>,
    },
    /// Somebody wants builds no more. Answered by [`Answer::Canceled`].
    Cancel {
        /// Whom to answer.
        token: Token,
        /// Which builds.
        builds: Vec<BuildId>,
        /// Whose builds the asker may cancel.
        by: Authority,
        /// What becomes of builds that others need.
        wanted: Wanted,
    },
    /// Somebody changes something of open builds. Answered by [`Answer::Amended`].
    Amend {
        /// Whom to answer.
        token: Token,
        /// Which builds.
        builds: Vec<BuildId>,
        /// Whose builds the asker may change.
        by: Authority,
        /// What is changed.
        amendment: Amendment,
    },
    /// Somebody wants builds tried again. Answered by [`Answer::Retried`].
    Retry {
        /// Whom to answer.
        token: Token,
        /// Which ones, and what is known of them.
        retrial: Box<Retrial>,
    },
    /// What was asked for by [`Effect::Supply`].
    Supply(Box<Supplies>),
    /// Other settings hold from now on. Answered by [`Answer::Configured`].
    Configure {
        /// Whom to answer.
        token: Token,
        /// The settings.
        settings: Settings,
    },
    /// Facts that were verified elsewhere: derivations, nars, publications, audit lines. Answered
    /// by [`Answer::Recorded`] once they are durable.
    Record {
        /// Whom to answer; nobody waits for some facts.
        token: Option<Token>,
        /// The facts.
        changes: Vec<Change>,
    },
    /// Somebody wants things out of the database that no open build has a use for. Answered by
    /// [`Answer::Forgotten`].
    Forget {
        /// Whom to answer.
        token: Token,
        /// What.
        what: Forget,
    },
    /// An agent opened a control session. Answered by [`Order::Welcome`] or [`Order::Refuse`].
    Join {
        /// The session.
        session: SessionId,
        /// The agent, as its key says.
        name: Name,
        /// Which installation it is.
        instance: InstanceId,
        /// What it can build.
        abilities: Abilities,
        /// The attempts it still has.
        held: Vec<Held>,
        /// How many builds it wants to run at a time just now; all its slots when absent. Part of
        /// joining, because builds are allocated at the end of the same step.
        capacity: Option<Capacity>,
    },
    /// A control session ended.
    Leave {
        /// The session.
        session: SessionId,
    },
    /// An agent wants to run so many builds at a time from now on. Attempts beyond go on.
    Capacity {
        /// The session it was said on.
        session: SessionId,
        /// How many.
        slots: u32,
        /// Why not all its slots, in the agent's words.
        reason: Option<String>,
    },
    /// Somebody decides about an agent. Answered by [`Answer::Administered`].
    Administer {
        /// Whom to answer.
        token: Token,
        /// Which agent.
        agent: Name,
        /// What is decided.
        decision: Decision,
        /// Who decides.
        by: Name,
    },
    /// The key of an agent is known no more: whatever it has goes to others at once.
    Expel {
        /// Which agent.
        agent: Name,
    },
    /// The coordinator cannot take results in now, or can again. While it cannot, nothing is
    /// allocated; attempts that live go on. After a start it can until this says otherwise.
    Intake {
        /// Why it cannot, in words for people; absent when it can.
        closed: Option<String>,
    },
    /// The builder of an attempt runs.
    Started {
        /// The session it was said on.
        session: SessionId,
        /// Which attempt.
        attempt: AttemptId,
    },
    /// An attempt is over on the agent.
    Finished {
        /// The session it was said on.
        session: SessionId,
        /// Which attempt.
        attempt: AttemptId,
        /// How it ended.
        outcome: Outcome,
    },
    /// An agent says what it made in an attempt that the welcome asked a report of. Answered by
    /// [`Order::Settled`].
    Report {
        /// The session it was said on.
        session: SessionId,
        /// Which attempt.
        attempt: AttemptId,
        /// What it made, in its own words.
        outputs: Vec<OutputRecord>,
    },
    /// An agent wants to send the outputs of an attempt. Answered by [`Answer::Offer`].
    Offer {
        /// Whom to answer.
        token: Token,
        /// Who offers.
        agent: Name,
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The outputs of an attempt were received. Answered by [`Answer::Delivered`].
    Deliver {
        /// Whom to answer.
        token: Token,
        /// Who sent them.
        agent: Name,
        /// Which attempt.
        attempt: AttemptId,
        /// What verification says.
        delivery: Delivery,
    },
}

/// What somebody decides about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It gets no new builds until then, or until it is resumed.
    Pause {
        /// Why, in words for people.
        reason: Option<String>,
        /// When it ends by itself.
        until: Option<Timestamp>,
    },
    /// It gets no new builds, and what it still has then goes to others.
    Drain {
        /// Why, in words for people.
        reason: Option<String>,
        /// When it must be empty.
        until: Option<Timestamp>,
    },
    /// It gets builds again, whoever decided otherwise, and its failures are forgotten.
    Resume,
    /// It is forgotten, if it is away.
    Remove,
}

/// A request for builds.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Who asks.
    pub submitter: Name,
    /// The derivations asked for, in the order of the answer.
    pub roots: Vec<Root>,
    /// What is known of the roots and their inputs; of the whole closure that is not yet available
    /// when builds for inputs are wanted.
    pub facts: Vec<Facts>,
    /// Whether builds are made for inputs that nobody has built or is building.
    pub inputs: Inputs,
    /// The priority of each build.
    pub priority: i32,
    /// The limits of each build.
    pub limits: Limits,
    /// The tags of each build.
    pub tags: Vec<(String, String)>,
    /// The submitter's own name for this request; the same one again gives the same builds.
    pub key: Option<String>,
    /// How many open builds the submitter may have with these; any number when absent.
    pub open_max: Option<u32>,
    /// What each build that was named asks of its agent. Builds for inputs ask for nothing.
    pub demands: Demands,
    /// When each build that was named may be tried, if not at once.
    pub not_before: Option<Timestamp>,
    /// Builds that this submission takes the place of: of the submitter's own, those that nobody has
    /// begun are canceled, unless they are an answer to it.
    pub replaces: Vec<BuildId>,
}

/// One derivation of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The derivation.
    pub derivation: PathHash,
    /// The build that is the answer, where none is to be made: of an earlier request with the same
    /// key, or one that makes another needless.
    pub existing: Option<BuildId>,
    /// The id that the submitter has chosen for the build, which nothing has yet.
    pub id: Option<BuildId>,
}

/// What becomes of a build that was to be canceled and that something open needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It stays, and goes with the last that needs it.
    Stays,
    /// It goes.
    Goes,
}

/// What is to be changed of open builds; what is absent or empty stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Amendment {
    /// Their own priority.
    pub priority: Option<i32>,
    /// Whether they are held back.
    pub hold: Option<HoldWish>,
    /// Tags, in place of all others of the same names.
    pub tags: Vec<(String, String)>,
}

/// Whether builds are held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldWish {
    /// They are, by this principal.
    Hold(Name),
    /// They are not any more.
    Release,
}

/// Whether a submission makes builds for inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inputs {
    /// It does.
    Build,
    /// It does not.
    Leave,
}

/// Whose builds a principal may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// Those it submitted.
    Own(Name),
    /// All.
    All,
}

/// What verification says of an attempt's outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// They are what they should be.
    Verified {
        /// What the attempt made.
        outputs: Vec<OutputRecord>,
        /// The nars that are new here.
        nars: Vec<Arc<NarRecord>>,
        /// The files of those that the depot has none of.
        files: Vec<NarFile>,
        /// Whether they agree with what was held when they were asked for. What was committed since
        /// is looked at again.
        verdict: Verdict,
    },
    /// They are wrong, for this reason.
    Rejected(String),
}

/// What is to be done once the changes are durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Say something to an agent.
    Tell {
        /// On which session.
        session: SessionId,
        /// What.
        order: Order,
    },
    /// Answer a request.
    Reply {
        /// Whose.
        token: Token,
        /// The answer.
        answer: Answer,
    },
    /// Tell those who wait that a build came to where a wait ends.
    Rested {
        /// Which build.
        build: BuildId,
        /// Where it is.
        state: ShownState,
    },
    /// Bring the facts of inputs that are missing, so that builds can be made for them: an
    /// [`Input::Supply`].
    Supply(Wanting),
    /// The attempt will log no more.
    SealLog {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// An agent was quarantined: somebody must look at it.
    Quarantined {
        /// Which one.
        agent: Name,
        /// Why, in words.
        reason: String,
    },
    /// These nars are durable and may be published; files may have to be written out for it.
    Publish {
        /// Which paths.
        paths: Vec<StorePath>,
    },
}

/// What an agent is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// It may work.
    Welcome {
        /// The held attempts to go on with.
        keep: Vec<AttemptId>,
        /// The held attempts to forget.
        drop: Vec<AttemptId>,
        /// The held attempts whose outputs are to be reported, and then forgotten.
        report: Vec<AttemptId>,
    },
    /// It may not work.
    Refuse {
        /// Why.
        reason: String,
    },
    /// Its session is over: it opened another one.
    Replaced,
    /// Its session is over, because the coordinator stops; the last order of all.
    Restarting {
        /// When it expects to be back, in milliseconds.
        back_in_ms: u64,
    },
    /// Build something.
    Allocate {
        /// The fence.
        attempt: AttemptId,
        /// The build.
        build: BuildId,
        /// The derivation.
        derivation: StorePath,
        /// How long it may take.
        limits: Limits,
    },
    /// Stop an attempt and forget it.
    Cancel {
        /// Which one.
        attempt: AttemptId,
    },
    /// The end of an attempt is durable.
    Settled {
        /// Which one.
        attempt: AttemptId,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The builds, one per root in the order of the request.
    Submitted {
        /// Their ids.
        builds: Vec<BuildId>,
        /// How many more were made for inputs.
        implied: usize,
        /// The builds whose place they took, which are canceled.
        replaced: Vec<BuildId>,
    },
    /// Nothing was submitted or tried again: the submitter would have too many open builds.
    TooMany(OverQuota),
    /// What became of each build that was to be canceled.
    Canceled(Vec<(BuildId, Canceled)>),
    /// What became of each build that was to be changed.
    Amended(Vec<(BuildId, Amended)>),
    /// What became of each build that was to be tried again.
    Retried(Vec<(BuildId, Retried)>),
    /// The settings hold.
    Configured,
    /// What became of a decision about an agent.
    Administered(Administered),
    /// The facts are durable.
    Recorded,
    /// What was taken out.
    Forgotten(Forgotten),
    /// Whether the outputs are wanted.
    Offer {
        /// The derivation whose outputs they must be; absent when the attempt is not this agent's
        /// any more.
        derivation: Option<StorePath>,
    },
    /// Whether the outputs are committed.
    Delivered {
        /// `false` when the attempt is not this agent's any more.
        accepted: bool,
    },
}

/// How many open builds somebody would have, who may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota {
    /// How many there are.
    pub open: usize,
    /// How many more were asked for.
    pub more: usize,
    /// How many there may be.
    pub most: u32,
}

/// What became of a decision about an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Administered {
    /// It holds.
    Done,
    /// No such agent was ever seen.
    NoSuch,
    /// The agent is connected: it cannot be forgotten.
    Connected,
}

/// What became of a build that was to be canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canceled {
    /// It is canceled.
    Done,
    /// Something open needs it: it stays, and goes with the last that does.
    Stays,
    /// There is no such open build.
    NotOpen,
    /// It is somebody else's.
    NotYours,
}

/// What became of a build that was to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amended {
    /// It is changed.
    Done,
    /// There is no such open build.
    NotOpen,
    /// It is somebody else's.
    NotYours,
}
