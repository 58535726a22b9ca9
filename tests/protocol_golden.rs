//! The bytes of every message, kept: what is on the wire is for ever.
//!
//! `golden/protocol.txt` holds each message three times over: its name, what it says in the
//! diagnostic notation of RFC 8949 section 8 (byte strings are h'…'), and its whole frame in
//! hexadecimal. Whoever changes a message sees here whether peers of yesterday still understand it.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "protocol_golden/diagnostic.rs"]
mod diagnostic;
#[path = "protocol_golden/messages.rs"]
mod messages;

use diagnostic::Diagnostic;
use messages::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};
use steading::{
    core::{id::AttemptId, store_path::StoreDir},
    protocol::{
        frame::{self, Decoder},
        handshake::{Capabilities, Hello},
        message::{FromAgent, ToAgent, Welcome},
    },
};

const GOLDEN: &str = include_str!("golden/protocol.txt");
const SPECIFICATION: &str = include_str!("../src/protocol/README.md");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// Returns the body of the one frame in these bytes.
fn body(frame: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::default();
    decoder.feed(frame);
    let body = decoder.next_frame().unwrap().unwrap();
    decoder.finish().unwrap();
    body.to_vec()
}

/// Returns the entry of a message in the golden file.
fn entry(message: &Message) -> String {
    let frame = message.encode();
    let says: Diagnostic = frame::decode(&body(&frame)).unwrap();
    format!("{}\n  {says}\n  {}\n", message.name(), hex(&frame))
}

#[test]
fn every_message_is_written_as_ever() {
    let all: String = messages::all().iter().map(entry).collect();
    assert!(all == GOLDEN, "the wire has changed; if that is meant, the golden file is:\n{all}");
}

#[test]
fn every_kept_message_is_read_as_ever() {
    let frames: Vec<Vec<u8>> = GOLDEN
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .skip(1)
        .step_by(2)
        .map(unhex)
        .collect();
    let all = messages::all();
    assert_eq!(frames.len(), all.len());
    for (frame, message) in frames.iter().zip(&all) {
        assert_eq!(message.decode_same_kind(&body(frame)), *message);
    }
}

#[test]
fn every_kind_of_message_is_kept() {
    let kept: BTreeSet<&str> = GOLDEN.lines().filter(|line| !line.starts_with(' ')).collect();
    let mut lacking: Vec<&str> = messages::KINDS.to_vec();
    lacking.retain(|kind| !kept.iter().any(|name| name.starts_with(kind)));
    assert!(lacking.is_empty(), "{lacking:?}");
}

#[test]
fn the_specification_shows_every_kept_message() {
    for says in GOLDEN.lines().filter_map(|line| line.strip_prefix("  ")).step_by(2) {
        assert!(SPECIFICATION.contains(says), "src/protocol/README.md does not show\n{says}");
    }
}

/// What peers of another version would send or expect: today's messages with a field more, and
/// without those that have a default.
mod other_version {
    use super::{AttemptId, StoreDir};
    use steading::core::id::InstanceId;

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct NewerWelcome {
        pub(super) protocol: u16,
        pub(super) version: String,
        pub(super) wall_ms: i64,
        pub(super) keep: Vec<AttemptId>,
        pub(super) drop: Vec<AttemptId>,
        #[serde(default)]
        pub(super) motto: Option<String>,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub(super) enum NewerToAgent {
        Welcome(NewerWelcome),
        Praise { words: String },
    }

    #[derive(serde::Serialize)]
    pub(super) struct OlderCapabilities {
        pub(super) store_dir: StoreDir,
        pub(super) dialect: String,
        pub(super) systems: Vec<String>,
        pub(super) slots: u32,
    }

    #[derive(serde::Serialize)]
    pub(super) struct OlderHello {
        pub(super) protocol_min: u16,
        pub(super) protocol_max: u16,
        pub(super) version: String,
        pub(super) instance: InstanceId,
        pub(super) wall_ms: i64,
        pub(super) capabilities: OlderCapabilities,
        pub(super) held: Vec<()>,
    }

    #[derive(serde::Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub(super) enum OlderFromAgent {
        Hello(OlderHello),
    }
}

#[test]
fn an_older_reader_passes_over_a_newer_writers_field() {
    use other_version::{NewerToAgent, NewerWelcome};
    let newer = NewerToAgent::Welcome(NewerWelcome {
        protocol: 1,
        version: "9.0.0".to_owned(),
        wall_ms: 5,
        keep: vec![],
        drop: vec![],
        motto: Some("build".to_owned()),
    });
    let read: ToAgent = frame::decode(&body(&frame::encode(&newer).unwrap())).unwrap();
    let expected = Welcome {
        protocol: 1,
        version: "9.0.0".to_owned(),
        wall_ms: 5,
        keep: vec![],
        drop: vec![],
        report: vec![],
    };
    assert_eq!(read, ToAgent::Welcome(expected));
}

#[test]
fn a_newer_reader_does_without_an_older_writers_field() {
    use other_version::NewerToAgent;
    let older = ToAgent::Welcome(Welcome {
        protocol: 1,
        version: "0.1.0".to_owned(),
        wall_ms: 5,
        keep: vec![],
        drop: vec![],
        report: vec![],
    });
    let read: NewerToAgent = frame::decode(&body(&frame::encode(&older).unwrap())).unwrap();
    assert!(matches!(read, NewerToAgent::Welcome(welcome) if welcome.motto.is_none()));
}

#[test]
fn an_older_agents_hello_without_optional_fields_is_read() {
    use other_version::{OlderCapabilities, OlderFromAgent, OlderHello};
    let instance = messages::INSTANCE;
    let older = OlderFromAgent::Hello(OlderHello {
        protocol_min: 1,
        protocol_max: 1,
        version: "0.0.9".to_owned(),
        instance,
        wall_ms: 5,
        capabilities: OlderCapabilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            slots: 1,
        },
        held: vec![],
    });
    let read: FromAgent = frame::decode(&body(&frame::encode(&older).unwrap())).unwrap();
    let expected = Hello {
        protocol_min: 1,
        protocol_max: 1,
        version: "0.0.9".to_owned(),
        instance,
        wall_ms: 5,
        capabilities: Capabilities {
            store_dir: StoreDir::nix(),
            dialect: "nix".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
            emulated_systems: vec![],
            features: vec![],
            slots: 1,
            tags: BTreeMap::new(),
        },
        held: vec![],
        capacity: None,
    };
    assert_eq!(read, FromAgent::Hello(expected));
}

#[test]
fn an_older_reader_refuses_a_message_it_does_not_know() {
    use other_version::NewerToAgent;
    let newer = NewerToAgent::Praise { words: "well built".to_owned() };
    let read: Result<ToAgent, _> = frame::decode(&body(&frame::encode(&newer).unwrap()));
    assert!(read.is_err());
}
