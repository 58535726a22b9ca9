//! One message of every kind, and of every kind within them.

use bytes::Bytes;
use std::collections::BTreeMap;
use steading::{
    core::{
        agent::Capacity,
        change::OutputRecord,
        hash::Sha256,
        id::{AttemptId, BuildId, InstanceId},
        outcome::{BuildFailure, Outcome, SetupFailure},
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    protocol::{
        bulk::{BulkFromAgent, BulkToAgent, OfferedOutput, OutputPlan, RefusalCode},
        frame,
        handshake::{Capabilities, Held, HeldPhase, Hello},
        message::{Allocation, FromAgent, ToAgent, Welcome},
    },
};

/// What the names of messages begin with: direction and kind.
pub(crate) const KINDS: [&str; 34] = [
    "from-agent hello",
    "from-agent started",
    "from-agent log",
    "from-agent finished",
    "from-agent capacity",
    "from-agent report",
    "from-agent heartbeat",
    "to-agent welcome",
    "to-agent refused",
    "to-agent allocate",
    "to-agent cancel",
    "to-agent log-received",
    "to-agent settled",
    "to-agent restarting",
    "to-agent heartbeat",
    "bulk-from-agent prepare",
    "bulk-from-agent fetch",
    "bulk-from-agent texts",
    "bulk-from-agent about",
    "bulk-from-agent offer",
    "bulk-from-agent data",
    "bulk-from-agent end",
    "bulk-from-agent probe",
    "bulk-to-agent derivation",
    "bulk-to-agent inputs",
    "bulk-to-agent nar",
    "bulk-to-agent data",
    "bulk-to-agent end",
    "bulk-to-agent plan",
    "bulk-to-agent probe",
    "bulk-to-agent wait",
    "bulk-to-agent taken",
    "bulk-to-agent committed",
    "bulk-to-agent refused",
];

/// The installation that says hello.
pub(crate) const INSTANCE: InstanceId = InstanceId::from_bytes([0x11; 16]);
const ATTEMPT: AttemptId = AttemptId::from_bytes([0x22; 16]);
const OTHER_ATTEMPT: AttemptId = AttemptId::from_bytes([0x33; 16]);
const BUILD: BuildId = BuildId::from_bytes([0x44; 16]);
const FILE_HASH: Sha256 = Sha256::from_bytes([0x66; 32]);
const WALL_MS: i64 = 1_800_000_000_000;

/// A message of any direction, with what tells it apart from others of its kind.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    Up(&'static str, FromAgent),
    Down(&'static str, ToAgent),
    BulkUp(&'static str, BulkFromAgent),
    BulkDown(&'static str, BulkToAgent),
}

impl Message {
    /// Returns its name in the golden file. A new kind of message needs a line here, in [`KINDS`]
    /// and in [`all`].
    pub(crate) fn name(&self) -> String {
        let (direction, kind, which) = match self {
            Self::Up(which, message) => ("from-agent", kind_from_agent(message), which),
            Self::Down(which, message) => ("to-agent", kind_to_agent(message), which),
            Self::BulkUp(which, message) => {
                ("bulk-from-agent", kind_bulk_from_agent(message), which)
            }
            Self::BulkDown(which, message) => ("bulk-to-agent", kind_bulk_to_agent(message), which),
        };
        format!("{direction} {kind} {which}").trim_end().to_owned()
    }

    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Up(_, message) => frame::encode(message),
            Self::Down(_, message) => frame::encode(message),
            Self::BulkUp(_, message) => frame::encode(message),
            Self::BulkDown(_, message) => frame::encode(message),
        }
        .unwrap()
    }

    /// Reads a message of the same direction.
    pub(crate) fn decode_same_kind(&self, body: &[u8]) -> Self {
        match self {
            Self::Up(which, _) => Self::Up(which, frame::decode(body).unwrap()),
            Self::Down(which, _) => Self::Down(which, frame::decode(body).unwrap()),
            Self::BulkUp(which, _) => Self::BulkUp(which, frame::decode(body).unwrap()),
            Self::BulkDown(which, _) => Self::BulkDown(which, frame::decode(body).unwrap()),
        }
    }
}

fn kind_from_agent(message: &FromAgent) -> &'static str {
    match message {
        FromAgent::Hello(_) => "hello",
        FromAgent::Started { .. } => "started",
        FromAgent::Log { .. } => "log",
        FromAgent::Finished { .. } => "finished",
        FromAgent::Capacity { .. } => "capacity",
        FromAgent::Report { .. } => "report",
        FromAgent::Heartbeat {} => "heartbeat",
    }
}

fn kind_to_agent(message: &ToAgent) -> &'static str {
    match message {
        ToAgent::Welcome(_) => "welcome",
        ToAgent::Refused { .. } => "refused",
        ToAgent::Allocate(_) => "allocate",
        ToAgent::Cancel { .. } => "cancel",
        ToAgent::LogReceived { .. } => "log-received",
        ToAgent::Settled { .. } => "settled",
        ToAgent::Restarting { .. } => "restarting",
        ToAgent::Heartbeat {} => "heartbeat",
    }
}

fn kind_bulk_from_agent(message: &BulkFromAgent) -> &'static str {
    match message {
        BulkFromAgent::Prepare { .. } => "prepare",
        BulkFromAgent::Fetch { .. } => "fetch",
        BulkFromAgent::Texts { .. } => "texts",
        BulkFromAgent::About { .. } => "about",
        BulkFromAgent::Offer { .. } => "offer",
        BulkFromAgent::Data { .. } => "data",
        BulkFromAgent::End { .. } => "end",
        BulkFromAgent::Probe { .. } => "probe",
    }
}

fn kind_bulk_to_agent(message: &BulkToAgent) -> &'static str {
    match message {
        BulkToAgent::Derivation { .. } => "derivation",
        BulkToAgent::Inputs { .. } => "inputs",
        BulkToAgent::Nar { .. } => "nar",
        BulkToAgent::Data { .. } => "data",
        BulkToAgent::End {} => "end",
        BulkToAgent::Plan { .. } => "plan",
        BulkToAgent::Probe { .. } => "probe",
        BulkToAgent::Wait {} => "wait",
        BulkToAgent::Taken { .. } => "taken",
        BulkToAgent::Committed { .. } => "committed",
        BulkToAgent::Refused { .. } => "refused",
    }
}

/// Returns the messages of the golden file, in its order.
pub(crate) fn all() -> Vec<Message> {
    let mut choosy = hello();
    choosy.capabilities.tags.insert("site".to_owned(), "lab".to_owned());
    choosy.capacity = Some(Capacity { slots: 1, reason: Some("why".to_owned()) });
    let mut all = vec![
        Message::Up("", FromAgent::Hello(hello())),
        Message::Up("choosy", FromAgent::Hello(choosy)),
    ];
    all.push(Message::Up("", FromAgent::Started { attempt: ATTEMPT }));
    let bytes = Bytes::from_static(b"checking for gcc... yes\n");
    all.push(Message::Up("", FromAgent::Log { attempt: ATTEMPT, offset: 4_096, bytes }));
    all.extend(outcomes().into_iter().map(|(which, outcome)| {
        let finished = FromAgent::Finished { attempt: ATTEMPT, outcome, log_bytes: 4_120 };
        Message::Up(which, finished)
    }));
    let reason = Some("8.2 runnable processes on 4 processors".to_owned());
    all.push(Message::Up("less", FromAgent::Capacity { slots: 1, reason }));
    all.push(Message::Up("whole", FromAgent::Capacity { slots: 4, reason: None }));
    let outputs = vec![OutputRecord {
        name: "out".to_owned(),
        path: path("hello-2.12"),
        nar_hash: Sha256::from_bytes([0x55; 32]),
        nar_bytes: 226_560,
    }];
    all.push(Message::Up("", FromAgent::Report { attempt: ATTEMPT, outputs }));
    all.push(Message::Up("", FromAgent::Heartbeat {}));
    all.extend(to_agent().into_iter().map(|message| Message::Down("", message)));
    all.extend(bulk_from_agent().map(|(which, message)| Message::BulkUp(which, message)));
    all.extend(bulk_to_agent().map(|(which, message)| Message::BulkDown(which, message)));
    let codes = [
        ("stale", RefusalCode::Stale),
        ("rejected", RefusalCode::Rejected),
        ("try-later", RefusalCode::TryLater),
        ("not-held", RefusalCode::NotHeld),
    ];
    all.extend(codes.map(|(which, code)| {
        Message::BulkDown(which, BulkToAgent::Refused { code, reason: "why".to_owned() })
    }));
    all
}

fn hello() -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 2,
        version: "0.1.0".to_owned(),
        instance: INSTANCE,
        wall_ms: WALL_MS,
        capabilities: Capabilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
            emulated_systems: vec!["aarch64-linux".to_owned()],
            features: vec!["kvm".to_owned()],
            slots: 4,
            tags: BTreeMap::new(),
        },
        held: vec![
            Held { attempt: ATTEMPT, phase: HeldPhase::Preparing },
            Held { attempt: OTHER_ATTEMPT, phase: HeldPhase::Building },
            Held { attempt: OTHER_ATTEMPT, phase: HeldPhase::Finished(Outcome::Built) },
        ],
        capacity: None,
    }
}

fn outcomes() -> Vec<(&'static str, Outcome)> {
    let words = || "in words".to_owned();
    let mismatch =
        BuildFailure::HashMismatch { expected: "sha256:1b8m…".to_owned(), actual: words() };
    let failed = [
        ("exit", BuildFailure::Exit(2)),
        ("signal", BuildFailure::Signal(9)),
        ("timeout", BuildFailure::Timeout),
        ("silent", BuildFailure::Silent),
        ("oom", BuildFailure::OutOfMemory),
        ("no-output", BuildFailure::NoOutput("doc".to_owned())),
        ("hash-mismatch", mismatch),
        ("output-rejected", BuildFailure::OutputRejected(words())),
    ];
    let setup = [
        ("missing-inputs", SetupFailure::MissingInputs(vec![path("source")])),
        ("disk-full", SetupFailure::DiskFull),
        ("outputs-present", SetupFailure::OutputsPresent(path("hello-2.12"))),
        ("daemon-unreachable", SetupFailure::DaemonUnreachable(words())),
        ("setup-refused", SetupFailure::Refused(words())),
        ("attempt-lost", SetupFailure::AttemptLost(words())),
    ];
    let mut outcomes = vec![("built", Outcome::Built)];
    outcomes.extend(failed.map(|(which, failure)| (which, Outcome::Failed(failure))));
    outcomes.extend(setup.map(|(which, failure)| (which, Outcome::SetupFailed(failure))));
    outcomes.push(("canceled", Outcome::Canceled));
    outcomes
}

fn to_agent() -> Vec<ToAgent> {
    vec![
        ToAgent::Welcome(Welcome {
            protocol: 2,
            version: "0.1.0".to_owned(),
            wall_ms: WALL_MS,
            keep: vec![ATTEMPT],
            drop: vec![OTHER_ATTEMPT],
            report: vec![],
        }),
        ToAgent::Refused { reason: "no common protocol".to_owned() },
        ToAgent::Allocate(Allocation {
            attempt: ATTEMPT,
            build: BUILD,
            derivation: path("hello-2.12.drv"),
            timeout_ms: Some(3_600_000),
            max_silent_ms: None,
        }),
        ToAgent::Cancel { attempt: ATTEMPT },
        ToAgent::LogReceived { attempt: ATTEMPT, offset: 4_120 },
        ToAgent::Settled { attempt: ATTEMPT },
        ToAgent::Restarting { back_in_ms: 5_000 },
        ToAgent::Heartbeat {},
    ]
}

fn bulk_from_agent() -> [(&'static str, BulkFromAgent); 12] {
    let small = vec![Bytes::from_static(b"\x28\xb5\x2f\xfd")];
    [
        ("", BulkFromAgent::Prepare { attempt: ATTEMPT }),
        ("", fetch(None, false)),
        ("resumed", fetch(Some(FILE_HASH), false)),
        ("export", fetch(None, true)),
        ("", BulkFromAgent::Texts { paths: vec![path("hello-2.12.drv")] }),
        ("", BulkFromAgent::About { paths: vec![path("source")] }),
        ("", offer(52_100, vec![], false)),
        ("with-signs", offer(52_100, vec![], true)),
        ("eager", offer(4, small, true)),
        ("", BulkFromAgent::Data { bytes: Bytes::from_static(b"\x28\xb5\x2f\xfd") }),
        ("", BulkFromAgent::End { file_hash: FILE_HASH }),
        ("", BulkFromAgent::Probe { store_dir: StoreDir::nix() }),
    ]
}

fn fetch(file_hash: Option<Sha256>, export: bool) -> BulkFromAgent {
    BulkFromAgent::Fetch { path: path("source"), offset: 65_536, file_hash, export }
}

fn offer(file_bytes: u64, eager: Vec<Bytes>, signs: bool) -> BulkFromAgent {
    let outputs = vec![OfferedOutput {
        name: "out".to_owned(),
        info: info(),
        compression: "zstd".to_owned(),
        file_bytes,
        file_hash: FILE_HASH,
    }];
    BulkFromAgent::Offer { attempt: ATTEMPT, outputs, eager, signs }
}

fn probe() -> BulkToAgent {
    BulkToAgent::Probe {
        wall_ms: WALL_MS,
        signing_key: "farm.example.org-1:c2VjcmV0".to_owned(),
        info: PathInfo {
            references: vec![],
            deriver: None,
            signatures: vec!["farm.example.org-1:c2ln".to_owned()],
            ..info()
        },
        nar: Bytes::from_static(b"nix-archive-1"),
    }
}

fn bulk_to_agent() -> [(&'static str, BulkToAgent); 13] {
    let derivation = Bytes::from_static(b"Derive([");
    let inputs = BulkToAgent::Inputs { held: vec![info()], not_held: vec![path("source")] };
    let outputs = vec![OutputPlan::Held, OutputPlan::Send { offset: 32_768 }];
    [
        ("", BulkToAgent::Derivation { bytes: derivation }),
        ("", inputs),
        ("", nar(None)),
        ("with-hash", nar(Some(FILE_HASH))),
        ("", BulkToAgent::Data { bytes: Bytes::from_static(b"\x28\xb5\x2f\xfd") }),
        ("", BulkToAgent::End {}),
        ("", BulkToAgent::Plan { outputs: outputs.clone(), signs: false }),
        ("with-signs", BulkToAgent::Plan { outputs, signs: true }),
        ("", probe()),
        ("", BulkToAgent::Wait {}),
        ("", BulkToAgent::Taken { bytes: 1_048_600 }),
        ("", BulkToAgent::Committed { attempt: ATTEMPT, ahead: 0 }),
        ("ahead", BulkToAgent::Committed { attempt: ATTEMPT, ahead: 64 }),
    ]
}

fn nar(file_hash: Option<Sha256>) -> BulkToAgent {
    let compression = "zstd".to_owned();
    BulkToAgent::Nar { info: info(), compression, file_bytes: 52_100, file_hash }
}

fn path(name: &str) -> StorePath {
    format!("/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-{name}").parse().unwrap()
}

fn info() -> PathInfo {
    PathInfo {
        path: path("hello-2.12"),
        nar_hash: Sha256::from_bytes([0x55; 32]),
        nar_bytes: 226_560,
        references: vec![path("glibc-2.39")],
        deriver: Some(path("hello-2.12.drv")),
        signatures: vec![],
        content_address: None,
    }
}
