//! The door: SSH in both directions, and who may come in.
//!
//! This room owns the listening socket, the host key, the keydir and every SSH connection, the
//! coordinator's ([`open`]) as well as the agents' ([`connect`]). It is the only room that names
//! russh. It knows who somebody is ([`Principal`]) and that they want something ([`Request`]), never
//! what the request means: requests go out through a bounded channel, and nothing is called
//! upwards. It starts no shell and no process, and it forwards no port, agent or display.
//!
//! Three rules hold for everything in here, each because of something russh leaves to its user:
//!
//! * a channel is read by a task of its own ([`channel`]), and a connection that has read too much
//!   is not read for a while, because a full channel would stop the whole connection;
//! * a channel is written only through [`GuardedWriter`], because a writer that waits for a window
//!   is not woken when its connection dies;
//! * every connection can be ended from outside by `shutdown(2)`, because nothing else reaches one
//!   that is stuck.
//!
//! Those whom the host's own sshd has let in come through a socket instead of the port
//! ([`local`]), and are served the same.
//!
//! Called by the coordinator (the door) and by the agent (the client).

pub mod authorize;
mod certificates;
pub mod channel;
pub mod client;
mod gate;
pub mod host_key;
mod key_line;
pub mod keyfile;
pub mod keys;
pub mod local;
mod outbox;
mod request;
pub mod server;
mod session;
mod sessions;
mod socket;
mod stream;
mod watch;
mod writer;

pub use authorize::{Certified, Credential, Principal, Quotas, Role};
pub use channel::{ChannelReader, Incoming};
pub use client::{ClientConfig, ConnectError, Connection, OpenError, connect};
pub use host_key::{KeyFileError, KeyPair};
pub use keys::{Keydir, KeydirProblem, ListedKey};
pub use request::{PtySize, Request, RequestKind, SessionId};
pub use server::{Door, DoorConfig, DoorError, DoorLimits, Monitor, open};
pub use sessions::Counters;
pub use writer::{GuardedWriter, WriteError};

use russh::{Preferred, SshId, cipher, compression, keys as russh_keys};
use std::{borrow::Cow, sync::OnceLock, time::Duration};

/// How both our ends introduce themselves: what the other end looks at to choose its windows.
const SOFTWARE: &str = concat!("SSH-2.0-Steading_", env!("CARGO_PKG_VERSION"));

/// What [`SOFTWARE`] starts with in every version.
const SOFTWARE_PREFIX: &[u8] = b"SSH-2.0-Steading_";

/// How long a connection may be silent before its peer is asked whether it still lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How many of those questions may stay unanswered: a dead peer is noticed after
/// (3 + 1) x 15 s = 60 s.
const KEEPALIVES_UNANSWERED_MAX: usize = 3;

/// How long a connection may carry nothing at all, counted also before authentication and while
/// one socket write is blocked. Longer than the 60 s above, so that it strikes only where
/// keepalives cannot.
const INACTIVITY_MAX: Duration = Duration::from_secs(90);

/// How many bytes a side sends under one key at most (RFC 4253 section 9 recommends 1 GiB).
const REKEY_WRITE_BYTES_MAX: usize = 1 << 30;

/// The one user name that means something: an unknown key that comes under it may ask to become
/// known.
pub const ENROLL_USER: &str = "enroll";

/// The environment variable with a lower number for it, with which tests see many key exchanges.
const REKEY_VARIABLE: &str = "STEADING_REKEY_BYTES";

/// The window and packet size between our own two ends. 16 MiB carry about 270 MiB/s over a
/// round trip of 20 ms; packets of 128 KiB cost 40 % less CPU than the usual 32 KiB.
pub const OWN_WINDOW_BYTES: u32 = 16 << 20;

/// See [`OWN_WINDOW_BYTES`].
const OWN_PACKET_BYTES: u32 = 128 << 10;

/// How many received messages russh keeps per channel before its task waits for room. Our own task
/// empties the queue at once, so it holds more than a few only when the machine is very busy.
const CHANNEL_MESSAGES_MAX: usize = 32;

/// The algorithms of both ends. AES-GCM alone: it costs half the CPU of what OpenSSH would choose
/// and every OpenSSH since 6.2 has it. No compression: nars are compressed already, and
/// decompression is a way to be attacked. Key exchange and its pseudo-names stay russh's own.
fn preferred(keys: Cow<'static, [russh_keys::Algorithm]>) -> Preferred {
    Preferred {
        key: keys,
        cipher: Cow::Borrowed(&[cipher::AES_128_GCM, cipher::AES_256_GCM]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// Returns how many bytes this process sends under one key. What the environment says can only
/// lower it, and counts only from 64 KiB on, so that no connection is all key exchange.
fn rekey_write_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let wish = std::env::var(REKEY_VARIABLE).ok().and_then(|text| text.parse().ok());
        wish.map_or(REKEY_WRITE_BYTES_MAX, |wish: usize| {
            wish.clamp(64 << 10, REKEY_WRITE_BYTES_MAX)
        })
    })
}

/// Returns the identification line of this program.
fn software() -> SshId {
    SshId::Standard(Cow::Borrowed(SOFTWARE))
}
