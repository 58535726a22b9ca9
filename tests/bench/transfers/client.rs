//! An agent as far as the coordinator can tell: it says what an agent says, and builds nothing.

use bytes::Bytes;
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use steading::{
    core::{
        hash::Sha256,
        id::{AttemptId, InstanceId},
        outcome::Outcome,
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    protocol::{
        BULK_SUBSYSTEM, CONTROL_SUBSYSTEM,
        bulk::{BulkFromAgent, BulkToAgent, CHUNK_BYTES_MAX, OfferedOutput, OutputPlan},
        frame::{self, Decoder},
        handshake::{Capabilities, Hello, PROTOCOL_MAX},
        message::{FromAgent, ToAgent},
    },
    ssh::{self, ChannelReader, ClientConfig, Connection, GuardedWriter, Incoming},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long any answer may take.
const ANSWER_MAX: Duration = Duration::from_mins(5);

/// A channel of frames, either way.
#[derive(Debug)]
pub(crate) struct Frames {
    reader: ChannelReader,
    writer: GuardedWriter,
    decoder: Decoder,
}

impl Frames {
    async fn open(connection: &Connection, subsystem: &str) -> Option<Self> {
        let (reader, writer) = connection.subsystem(subsystem).await.ok()?;
        Some(Self { reader, writer, decoder: Decoder::default() })
    }

    pub(crate) async fn say(&self, message: &impl serde::Serialize) -> Option<()> {
        self.writer.write(frame::encode(message).unwrap()).await.ok()
    }

    /// Returns the next message; `None` when the channel has ended.
    pub(crate) async fn next<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            match timeout(ANSWER_MAX, self.reader.next()).await.unwrap() {
                Incoming::Data(bytes) => self.decoder.feed(&bytes),
                Incoming::Eof | Incoming::Lost => return None,
                Incoming::Stderr(_) | Incoming::Exited(_) => {}
            }
        }
    }
}

/// A control session.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Kept open by its value.
    _connection: Connection,
    pub(crate) control: Frames,
}

impl Agent {
    /// Connects and waits for the welcome; `None` when the coordinator cannot be reached or turns
    /// the connection away.
    pub(crate) async fn join(config: &ClientConfig, dir: &StoreDir, slots: u32) -> Option<Self> {
        Self::join_saying(config, hello(dir, slots)).await
    }

    /// Does the same with another hello.
    pub(crate) async fn join_saying(config: &ClientConfig, hello: Hello) -> Option<Self> {
        let connection = ssh::connect(config, &CancellationToken::new()).await.ok()?;
        let mut control = Frames::open(&connection, CONTROL_SUBSYSTEM).await?;
        control.say(&FromAgent::Hello(hello)).await?;
        match control.next::<ToAgent>().await? {
            ToAgent::Welcome(_) => Some(Self { _connection: connection, control }),
            other => panic!("not welcomed: {other:?}"),
        }
    }

    /// Returns the next attempt that is allocated, and its derivation; `None` when the session is
    /// over.
    pub(crate) async fn allocation(&mut self) -> Option<(AttemptId, StorePath)> {
        loop {
            match self.control.next::<ToAgent>().await? {
                ToAgent::Allocate(allocation) => {
                    return Some((allocation.attempt, allocation.derivation));
                }
                ToAgent::Heartbeat {} | ToAgent::LogReceived { .. } => {}
                other => panic!("not an allocation: {other:?}"),
            }
        }
    }

    pub(crate) async fn started(&self, attempt: AttemptId) {
        self.control.say(&FromAgent::Started { attempt }).await.unwrap();
    }

    pub(crate) async fn built(&self, attempt: AttemptId) {
        let outcome = Outcome::Built;
        let message = FromAgent::Finished { attempt, outcome, log_bytes: 0 };
        self.control.say(&message).await.unwrap();
    }
}

/// Returns what an agent with so many slots says first.
pub(crate) fn hello(dir: &StoreDir, slots: u32) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MAX,
        protocol_max: PROTOCOL_MAX,
        version: "0".to_owned(),
        instance: InstanceId::from_bytes([1; 16]),
        wall_ms: jiff::Timestamp::now().as_millisecond(),
        capabilities: Capabilities {
            store_dir: dir.clone(),
            dialect: "direct".to_owned(),
            systems: vec![super::graph::SYSTEM.to_owned()],
            emulated_systems: Vec::new(),
            features: Vec::new(),
            tags: BTreeMap::new(),
            slots,
        },
        held: Vec::new(),
        capacity: None,
    }
}

/// An output that can be offered, and the bytes of its file.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) offer: OfferedOutput,
    pub(crate) file: Bytes,
}

/// Packs one file as an output, as an agent does.
pub(crate) fn pack(name: &str, path: &StorePath, content: &[u8]) -> Packed {
    let nar = super::graph::file_nar(content);
    let file = zstd::bulk::compress(&nar, 3).unwrap();
    let info = PathInfo {
        path: path.clone(),
        nar_hash: Sha256::of(&nar),
        nar_bytes: nar.len() as u64,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    let offer = OfferedOutput {
        name: name.to_owned(),
        info,
        compression: "zstd".to_owned(),
        file_bytes: file.len() as u64,
        file_hash: Sha256::of(&file),
    };
    Packed { offer, file: file.into() }
}

/// A bulk connection.
#[derive(Debug)]
pub(crate) struct Bulk {
    /// Kept open by its value.
    _connection: Connection,
    channel: Frames,
}

impl Bulk {
    pub(crate) async fn connect(mut config: ClientConfig, address: SocketAddr) -> Self {
        config.address = address.to_string();
        let connection = ssh::connect(&config, &CancellationToken::new()).await.unwrap();
        let channel = Frames::open(&connection, BULK_SUBSYSTEM).await.unwrap();
        Self { _connection: connection, channel }
    }

    /// Delivers the only output of an attempt, its file behind the offer.
    pub(crate) async fn deliver(&mut self, attempt: AttemptId, packed: &Packed) {
        let (outputs, eager) = (vec![packed.offer.clone()], Vec::new());
        let offer = BulkFromAgent::Offer { attempt, outputs, eager, signs: false };
        self.channel.say(&offer).await.unwrap();
        let plan = self.channel.next::<BulkToAgent>().await.unwrap();
        let outputs = vec![OutputPlan::Send { offset: 0 }];
        assert_eq!(plan, BulkToAgent::Plan { outputs, signs: false });
        let file = &packed.file;
        for start in (0..file.len()).step_by(CHUNK_BYTES_MAX) {
            let bytes = file.slice(start..file.len().min(start + CHUNK_BYTES_MAX));
            self.channel.say(&BulkFromAgent::Data { bytes }).await.unwrap();
        }
        let file_hash = packed.offer.file_hash;
        self.channel.say(&BulkFromAgent::End { file_hash }).await.unwrap();
        self.committed().await;
    }

    /// Offers the only outputs of attempts, with their files in the offers, all at once, as agents
    /// do with what waits.
    pub(crate) async fn offer(&mut self, work: &[(AttemptId, Packed)]) {
        let offers: Vec<BulkFromAgent> = work
            .iter()
            .map(|(attempt, packed)| BulkFromAgent::Offer {
                attempt: *attempt,
                outputs: vec![packed.offer.clone()],
                eager: vec![packed.file.clone()],
                signs: true,
            })
            .collect();
        self.channel.writer.write(frame::encode_all(&offers).unwrap()).await.unwrap();
    }

    /// Offers outputs of which no file is wanted, and waits until they are noted.
    pub(crate) async fn record(&mut self, attempt: AttemptId, outputs: Vec<OfferedOutput>) {
        let held = vec![OutputPlan::Held; outputs.len()];
        let offer = BulkFromAgent::Offer { attempt, outputs, eager: Vec::new(), signs: false };
        self.channel.say(&offer).await.unwrap();
        let plan = self.channel.next::<BulkToAgent>().await.unwrap();
        assert_eq!(plan, BulkToAgent::Plan { outputs: held, signs: false });
        self.committed().await;
    }

    /// Waits for the answer to the offer that was sent first, which must be that it is committed,
    /// and takes what came with it. Returns how many answers that were, and how many may be
    /// unanswered.
    pub(crate) async fn committed(&mut self) -> (usize, usize) {
        let (mut answers, mut ahead) = (0, 1);
        let mut next = self.channel.next::<BulkToAgent>().await;
        while let Some(answer) = next {
            match answer {
                BulkToAgent::Committed { ahead: told, .. } => {
                    answers += 1;
                    ahead = told.try_into().unwrap();
                }
                BulkToAgent::Wait {} => {}
                other => panic!("not committed: {other:?}"),
            }
            next = self.channel.decoder.next_message().unwrap();
            if next.is_none() && answers == 0 {
                next = self.channel.next::<BulkToAgent>().await;
            }
        }
        assert!(answers > 0, "the channel has ended");
        (answers, ahead)
    }
}
