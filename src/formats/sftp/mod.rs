//! Packets of the SSH file transfer protocol, version 3, as far as a server needs that only gives
//! (draft-ietf-secsh-filexfer-02, which is what OpenSSH speaks).
//!
//! [`Decoder`] makes requests of the client's bytes in whatever pieces they come; [`answer`] has the
//! packets that go back.

pub mod answer;
mod request;

pub use request::{Asked, Decoder, HANDLE_BYTES, PATH_BYTES_MAX, Request, SftpError};

/// The version that is spoken.
pub const VERSION: u32 = 3;

/// The longest packet of a client, in bytes, without its length: what OpenSSH allows
/// (`SFTP_MAX_MSG_LENGTH`).
pub const PACKET_BYTES_MAX: u32 = 256 << 10;

/// The most bytes that are read with one request; a client that asks for more gets these.
pub const READ_BYTES_MAX: u32 = 128 << 10;
