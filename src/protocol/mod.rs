//! The wire: what agents and the coordinator say to each other.
//!
//! Owns the frames, the messages and the sans-IO session that both ends drive. It never touches a
//! socket, a file or a clock. `README.md` beside this file is the specification, for somebody who
//! would write an agent in another language; a change here changes it in the same commit.
//! Called by the coordinator's sessions and by the agent.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used
)]

pub mod bulk;
pub mod data;
pub mod frame;
pub mod handshake;
pub mod message;
pub mod session;

/// The SSH subsystem of an agent's one control channel.
pub const CONTROL_SUBSYSTEM: &str = "steading-control";
/// The SSH subsystem of bulk channels: derivations, inputs and nars, in both directions.
pub const BULK_SUBSYSTEM: &str = "steading-bulk";
