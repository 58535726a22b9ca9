//! One end of a control channel without its socket: bytes and times go in, messages and deadlines
//! come out.
//!
//! The owner feeds what it receives to [`Session::receive`], writes what [`Session::encode`]
//! returns, and wakes at [`Session::deadline`] to call [`Session::on_time`]. Both ends use it, with
//! the two message enums the other way round.

use super::{
    frame::{self, Decoder, FrameError},
    message::{FromAgent, ToAgent},
};
use crate::core::time::Monotonic;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::VecDeque, marker::PhantomData};

/// After this long without sending anything, a heartbeat is due.
pub const HEARTBEAT_MS: u64 = 15_000;
/// After this long without a byte from the peer, it counts as dead.
pub const DEAD_AFTER_MS: u64 = 60_000;

/// The agent's end of a control channel.
pub type AgentEnd = Session<ToAgent, FromAgent>;
/// The coordinator's end of a control channel.
pub type CoordinatorEnd = Session<FromAgent, ToAgent>;

/// One end: receives `In`, sends `Out`.
#[derive(Debug)]
pub struct Session<In, Out> {
    decoder: Decoder,
    last_received: Monotonic,
    last_sent: Monotonic,
    received: VecDeque<In>,
    direction: PhantomData<fn(&Out)>,
}

/// What the passing of time asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Send a heartbeat.
    Heartbeat,
    /// The peer is dead: close the connection.
    PeerDead,
}

impl<In: DeserializeOwned, Out: Serialize> Session<In, Out> {
    /// Starts a session; both clocks count from now.
    #[must_use]
    pub fn new(now: Monotonic) -> Self {
        Self {
            decoder: Decoder::default(),
            last_received: now,
            last_sent: now,
            received: VecDeque::new(),
            direction: PhantomData,
        }
    }

    /// Takes in received bytes; the messages in them are returned by [`Session::next_message`].
    ///
    /// # Errors
    /// Any [`FrameError`]: close the connection, nothing sensible can follow.
    pub fn receive(&mut self, now: Monotonic, bytes: &[u8]) -> Result<(), FrameError> {
        self.last_received = now;
        self.decoder.feed(bytes);
        while let Some(message) = self.decoder.next_message()? {
            self.received.push_back(message);
        }
        Ok(())
    }

    /// Returns the next message received. Call until `None` after each [`Session::receive`].
    pub fn next_message(&mut self) -> Option<In> {
        self.received.pop_front()
    }

    /// Returns the frame of a message that is about to be sent.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when the message does not fit a frame.
    pub fn encode(&mut self, now: Monotonic, message: &Out) -> Result<Bytes, FrameError> {
        let bytes = frame::encode(message)?;
        self.last_sent = now;
        Ok(bytes)
    }

    /// Returns when [`Session::on_time`] wants to be called next. Changes with every call of
    /// another method.
    #[must_use]
    pub fn deadline(&self) -> Monotonic {
        self.last_sent.plus_ms(HEARTBEAT_MS).min(self.last_received.plus_ms(DEAD_AFTER_MS))
    }

    /// Returns what is due.
    #[must_use]
    pub fn on_time(&self, now: Monotonic) -> Due {
        if now >= self.last_received.plus_ms(DEAD_AFTER_MS) {
            Due::PeerDead
        } else if now >= self.last_sent.plus_ms(HEARTBEAT_MS) {
            Due::Heartbeat
        } else {
            Due::Nothing
        }
    }

    /// Tells that the stream has ended.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        self.decoder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::AttemptId;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_ms(ms)
    }

    #[test]
    fn both_ends_understand_each_other() {
        let mut agent = AgentEnd::new(at(0));
        let mut coordinator = CoordinatorEnd::new(at(0));
        let attempt = AttemptId::from_bytes([3; 16]);
        let frame = agent.encode(at(1), &FromAgent::Started { attempt }).unwrap();
        coordinator.receive(at(2), &frame).unwrap();
        assert_eq!(coordinator.next_message(), Some(FromAgent::Started { attempt }));
        assert_eq!(coordinator.next_message(), None);
        let frame = coordinator.encode(at(3), &ToAgent::Cancel { attempt }).unwrap();
        agent.receive(at(4), &frame).unwrap();
        assert_eq!(agent.next_message(), Some(ToAgent::Cancel { attempt }));
    }

    #[test]
    fn a_silent_end_sends_heartbeats_and_a_silent_peer_is_dead() {
        let mut agent = AgentEnd::new(at(0));
        assert_eq!(agent.deadline(), at(HEARTBEAT_MS));
        assert_eq!(agent.on_time(at(HEARTBEAT_MS - 1)), Due::Nothing);
        assert_eq!(agent.on_time(at(HEARTBEAT_MS)), Due::Heartbeat);
        let _frame = agent.encode(at(59_000), &FromAgent::Heartbeat {}).unwrap();
        assert_eq!(agent.deadline(), at(DEAD_AFTER_MS));
        assert_eq!(agent.on_time(at(DEAD_AFTER_MS)), Due::PeerDead);
    }

    #[test]
    fn an_unknown_field_of_a_newer_agent_is_passed_over() {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        enum Newer {
            Started { attempt: AttemptId, mood: &'static str },
        }
        let attempt = AttemptId::from_bytes([3; 16]);
        let frame = frame::encode(&Newer::Started { attempt, mood: "good" }).unwrap();
        let mut coordinator = CoordinatorEnd::new(at(0));
        coordinator.receive(at(0), &frame).unwrap();
        assert_eq!(coordinator.next_message(), Some(FromAgent::Started { attempt }));
    }
}
