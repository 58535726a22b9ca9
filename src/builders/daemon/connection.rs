//! One connection to a daemon: the handshake, and the messages that precede every answer.
//!
//! Source: Nix `src/libstore/worker-protocol.hh`, `src/libstore/daemon.cc`; Guix
//! `nix/libstore/worker-protocol.hh`, `nix/nix-daemon/nix-daemon.cc`.

use crate::{
    builders::{
        BuilderError,
        wire::{Wire, WireError},
    },
    core::time::Monotonic,
    telemetry::Clock,
};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// The first number of a client (`WORKER_MAGIC_1`).
const MAGIC_CLIENT: u64 = 0x6e69_7863;
/// The first number of a daemon (`WORKER_MAGIC_2`).
const MAGIC_DAEMON: u64 = 0x6478_696f;
/// The major version of the protocol, which never changed.
const MAJOR: u64 = 0x100;
/// The minor version announced: from 35 the daemon says whether it trusts us; from 38 both sides
/// would have to send feature sets.
const MINOR_OURS: u64 = 35;
/// The oldest minor version understood: Nix 2.8 has 34, and 32 (Nix 2.4) is the first whose
/// messages all have the forms read here.
const MINOR_MIN: u64 = 32;
/// Guix counts on from here since it left Nix (`nix/libstore/worker-protocol.hh`).
const MINOR_GUIX: u64 = 0x60;
/// The minor version announced to Guix, which is that of 2022; that of Guix 1.5 has one more.
const MINOR_GUIX_OURS: u64 = 0x63;
/// The oldest one understood there: the first whose options have the form written here.
const MINOR_GUIX_MIN: u64 = 0x61;

/// The longest text kept of a message or of a log line, in bytes; the rest is dropped.
pub(in crate::builders) const TEXT_BYTES_MAX: u64 = 1024 * 1024;
/// The longest path, hash or signature, in bytes.
pub(in crate::builders) const WORD_BYTES_MAX: u64 = 4096;
/// The most store paths in one answer.
pub(in crate::builders) const PATHS_MAX: u64 = 1_000_000;
/// The most fields of one message; real ones have up to four.
const FIELDS_MAX: u64 = 64;
/// The most locations of one error; real ones have up to a few hundred, in evaluations.
const TRACES_MAX: u64 = 10_000;

/// How long one read or write waits before the limits are looked at.
const SLICE: Duration = Duration::from_secs(1);
/// How long a daemon may say nothing outside builds: collecting garbage holds a lock over
/// everything, and takes minutes on large stores.
pub(in crate::builders) const ANSWER_MAX: Duration = Duration::from_mins(15);

/// The stream of a log line in a `RESULT` message (`resBuildLogLine`).
const RESULT_BUILD_LOG_LINE: u64 = 101;
/// The same of a post-build hook (`resPostBuildLogLine`).
const RESULT_POST_BUILD_LOG_LINE: u64 = 107;

/// Whether the daemon trusts this process's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The daemon is too old to tell.
    Unknown,
    /// It does: nars need no signatures.
    Trusted,
    /// It does not.
    Untrusted,
}

/// What a daemon speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::builders) enum Dialect {
    /// That of Nix.
    Nix,
    /// That of Guix: messages are texts in any fragments, errors a text and a number.
    Guix,
}

/// When a read gives up.
#[derive(Debug, Clone, Copy)]
pub(in crate::builders) struct Patience {
    /// The end of all waiting.
    pub(in crate::builders) deadline: Option<Monotonic>,
    /// How long no byte may come.
    pub(in crate::builders) silence: Option<Duration>,
}

/// A socket that waits for bytes no longer than its patience.
#[derive(Debug)]
pub(in crate::builders) struct Line {
    socket: UnixStream,
    clock: Clock,
    pub(in crate::builders) patience: Patience,
}

impl Line {
    /// Tells whether `moment` lies in the past.
    fn is_past(&self, moment: Monotonic) -> bool {
        self.clock.now().mono >= moment
    }
}

impl Read for Line {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let start = self.clock.now().mono;
        let silent_at = self.patience.silence.map(|silence| later(start, silence));
        loop {
            match self.socket.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ends = [self.patience.deadline, silent_at];
                    if ends.into_iter().flatten().any(|end| self.is_past(end)) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                result => return result,
            }
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let give_up = later(self.clock.now().mono, ANSWER_MAX);
        loop {
            match self.socket.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.is_past(give_up) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Returns the moment that much later.
pub(in crate::builders) fn later(moment: Monotonic, duration: Duration) -> Monotonic {
    moment.plus_ms(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(in crate::builders) struct Connection {
    pub(in crate::builders) wire: Wire<Line>,
    pub(in crate::builders) trust: Trust,
    /// What the daemon says of its version; nothing where it is too old to say it.
    pub(in crate::builders) version: Option<String>,
    dialect: Dialect,
}

impl Connection {
    /// Connects and shakes hands.
    pub(in crate::builders) fn open(
        socket: &Path,
        clock: Clock,
        dialect: Dialect,
    ) -> Result<Self, BuilderError> {
        let unreachable = |source| BuilderError::Unreachable { socket: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(unreachable)?;
        stream.set_read_timeout(Some(SLICE)).map_err(unreachable)?;
        stream.set_write_timeout(Some(SLICE)).map_err(unreachable)?;
        let patience = Patience { deadline: None, silence: Some(ANSWER_MAX) };
        let mut wire = Wire::new(Line { socket: stream, clock, patience });
        wire.put_u64(MAGIC_CLIENT)?;
        wire.flush()?;
        let magic = wire.u64()?;
        if magic != MAGIC_DAEMON {
            return Err(BuilderError::Dialect(format!("it greets with {magic:#x}")));
        }
        let version = wire.u64()?;
        let minor = Self::agree(version, dialect)?;
        let ours = match dialect {
            Dialect::Nix => MINOR_OURS,
            Dialect::Guix => MINOR_GUIX_OURS,
        };
        wire.put_u64(MAJOR | ours)?;
        wire.put_u64(0)?; // no processor affinity, obsolete
        wire.put_u64(0)?; // no space to reserve, obsolete
        wire.flush()?;
        // The numbers of the two dialects are not to be compared with each other.
        let since = |first: u64| dialect == Dialect::Nix && minor >= first;
        let version = if since(33) { Some(plain(&wire.text(WORD_BYTES_MAX)?)) } else { None };
        let trust = match if since(35) { wire.u64()? } else { 0 } {
            1 => Trust::Trusted,
            2 => Trust::Untrusted,
            _ => Trust::Unknown,
        };
        let mut connection = Self { wire, trust, version, dialect };
        connection.answer(&mut |_| {})?;
        Ok(connection)
    }

    /// Returns the minor version to speak with a daemon of this version.
    fn agree(version: u64, dialect: Dialect) -> Result<u64, BuilderError> {
        let (major, minor) = (version & 0xff00, version & 0xff);
        if major != MAJOR {
            return Err(BuilderError::Dialect(format!("it speaks version {version:#x}")));
        }
        match dialect {
            Dialect::Nix if minor >= MINOR_GUIX => Err(BuilderError::Dialect(format!(
                "it is a Guix daemon (version {version:#x}): give the socket of nix-daemon"
            ))),
            Dialect::Nix if minor < MINOR_MIN => Err(BuilderError::Dialect(format!(
                "it is too old (version 1.{minor}): Nix 2.4 or later is needed"
            ))),
            Dialect::Nix => Ok(minor.min(MINOR_OURS)),
            Dialect::Guix if minor < MINOR_GUIX => Err(BuilderError::Dialect(format!(
                "it is a Nix daemon (version {version:#x}): give the socket of guix-daemon"
            ))),
            Dialect::Guix if minor < MINOR_GUIX_MIN => Err(BuilderError::Dialect(format!(
                "it is too old (version {version:#x}): Guix 1.0 or later is needed"
            ))),
            Dialect::Guix => Ok(minor.min(MINOR_GUIX_OURS)),
        }
    }

    /// Sends the request and reads the messages up to the answer, which the caller reads next.
    /// What a build prints goes to `log`.
    pub(in crate::builders) fn answer(
        &mut self,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<(), BuilderError> {
        self.answer_with(&mut io::empty(), &mut io::sink(), log)
    }

    /// The same for requests in whose course the daemon asks for bytes, which are those of
    /// `source`, or tells some, which go to `sink`.
    pub(in crate::builders) fn answer_with(
        &mut self,
        source: &mut dyn Read,
        sink: &mut dyn Write,
        log: &mut dyn FnMut(&[u8]),
    ) -> Result<(), BuilderError> {
        self.wire.flush()?;
        loop {
            match self.wire.u64()? {
                // LAST: the answer follows.
                0x616c_7473 => return Ok(()),
                // ERROR
                0x6378_7470 => return Err(BuilderError::Daemon(self.error()?)),
                // NEXT: a message of the daemon itself, in Guix also what is built.
                0x6f6c_6d67 => {
                    let text = self.wire.text(TEXT_BYTES_MAX)?;
                    log(&text);
                    if self.dialect == Dialect::Nix && !text.ends_with(b"\n") {
                        log(b"\n");
                    }
                }
                // READ: at most so many bytes are wanted.
                0x6461_7461 => {
                    let max = self.wire.u64()?;
                    self.wire.put_piece(max, source)?;
                    self.wire.flush()?;
                }
                // WRITE
                0x6461_7416 => {
                    let length = self.wire.u64()?;
                    self.wire.copy_string_to(length, sink)?;
                }
                // START: activity, level, type, text, fields, parent.
                0x5354_5254 => {
                    for _ in 0..3 {
                        self.wire.u64()?;
                    }
                    self.wire.text(TEXT_BYTES_MAX)?;
                    self.fields()?;
                    self.wire.u64()?;
                }
                // STOP: activity.
                0x5354_4f50 => {
                    self.wire.u64()?;
                }
                // RESULT: activity, type, fields.
                0x5253_4c54 => {
                    self.wire.u64()?;
                    let kind = self.wire.u64()?;
                    let text = self.fields()?;
                    if matches!(kind, RESULT_BUILD_LOG_LINE | RESULT_POST_BUILD_LOG_LINE) {
                        let mut line = text.unwrap_or_default();
                        line.push(b'\n');
                        log(&line);
                    }
                }
                tag => {
                    return Err(BuilderError::Protocol(format!("it sent the message {tag:#x}")));
                }
            }
        }
    }

    /// Reads the fields of a message and returns the first that is a text.
    fn fields(&mut self) -> Result<Option<Vec<u8>>, BuilderError> {
        let mut first = None;
        for _ in 0..self.wire.count(FIELDS_MAX)? {
            match self.wire.u64()? {
                0 => {
                    self.wire.u64()?;
                }
                1 => {
                    let text = self.wire.text(TEXT_BYTES_MAX)?;
                    first.get_or_insert(text);
                }
                kind => return Err(BuilderError::Protocol(format!("a field of type {kind}"))),
            }
        }
        Ok(first)
    }

    /// Reads an error (Nix: since 1.26) and returns its text without colors.
    fn error(&mut self) -> Result<String, BuilderError> {
        if self.dialect == Dialect::Guix {
            let text = self.wire.text(TEXT_BYTES_MAX)?;
            self.wire.u64()?; // status: what `guix build` would exit with
            return Ok(plain(&text));
        }
        self.wire.text(WORD_BYTES_MAX)?; // always "Error"
        self.wire.u64()?; // level
        self.wire.text(WORD_BYTES_MAX)?; // name, obsolete
        let text = self.wire.text(TEXT_BYTES_MAX)?;
        self.wire.u64()?; // no location
        for _ in 0..self.wire.count(TRACES_MAX)? {
            self.wire.u64()?;
            self.wire.text(TEXT_BYTES_MAX)?;
        }
        Ok(plain(&text))
    }
}

impl From<WireError> for BuilderError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Stream(error) | WireError::Source(error) | WireError::Sink(error) => {
                Self::Lost(error)
            }
            WireError::TooLong { .. } | WireError::Padding => Self::Protocol(error.to_string()),
        }
    }
}

/// Returns the text of a message: without terminal sequences, and with what is not UTF-8 replaced.
pub(in crate::builders) fn plain(text: &[u8]) -> String {
    let mut kept = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != 0x1b {
            kept.push(byte);
        } else if bytes.next() == Some(b'[') {
            // A control sequence ends with a byte from '@' to '~' (ECMA-48, section 5.4).
            let _end = bytes.by_ref().find(|byte| (0x40..=0x7e).contains(byte));
        }
    }
    kept.utf8_chunks().fold(String::new(), |mut plain, chunk| {
        plain.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            plain.push(char::REPLACEMENT_CHARACTER);
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::net::UnixListener, thread};

    /// Connects to a daemon that greets with this version and then says `rest`.
    fn greeted(dialect: Dialect, version: u64, rest: Vec<u8>) -> Result<Trust, BuilderError> {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0u8; 8];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(&MAGIC_DAEMON.to_le_bytes()).unwrap();
            stream.write_all(&version.to_le_bytes()).unwrap();
            stream.write_all(&rest).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Reads what the client says, so that it never writes into a closed socket.
            io::copy(&mut stream, &mut io::sink()).unwrap();
        });
        let result = Connection::open(&socket, Clock::start(), dialect);
        let result = result.map(|connection| connection.trust);
        daemon.join().unwrap();
        result
    }

    #[test]
    fn a_guix_daemon_is_told_apart() {
        let error = greeted(Dialect::Nix, 0x164, Vec::new()).unwrap_err();
        assert!(matches!(&error, BuilderError::Dialect(text) if text.contains("Guix")), "{error}");
        let error = greeted(Dialect::Guix, 0x126, Vec::new()).unwrap_err();
        assert!(matches!(&error, BuilderError::Dialect(text) if text.contains("Nix")), "{error}");
    }

    #[test]
    fn guix_1_5_says_nothing_of_itself() {
        let rest = 0x616c_7473u64.to_le_bytes().to_vec();
        assert_eq!(greeted(Dialect::Guix, 0x164, rest).unwrap(), Trust::Unknown);
    }

    #[test]
    fn nix_2_34_says_whether_it_trusts_us() {
        let mut rest = Vec::new();
        rest.extend_from_slice(&6u64.to_le_bytes());
        rest.extend_from_slice(b"2.34.8\0\0");
        rest.extend_from_slice(&2u64.to_le_bytes());
        rest.extend_from_slice(&0x616c_7473u64.to_le_bytes());
        assert_eq!(greeted(Dialect::Nix, 0x126, rest).unwrap(), Trust::Untrusted);
    }

    #[test]
    fn a_daemon_that_hangs_up_is_lost() {
        assert!(matches!(greeted(Dialect::Nix, 0x122, Vec::new()), Err(BuilderError::Lost(_))));
    }

    #[test]
    fn no_daemon_is_unreachable() {
        let place = tempfile::tempdir().unwrap();
        let result = Connection::open(&place.path().join("socket"), Clock::start(), Dialect::Nix);
        assert!(matches!(result, Err(BuilderError::Unreachable { .. })));
    }

    #[test]
    fn colors_are_taken_out_of_messages() {
        assert_eq!(
            plain(b"\x1b[31;1merror:\x1b[0m builder for '\x1b[35;1mx\x1b[0m'\xff"),
            "error: builder for 'x'\u{fffd}"
        );
        assert_eq!(plain(b"\x1b["), "");
    }
}
