//! What a client asks.

use super::PACKET_BYTES_MAX;
use bytes::{Buf as _, Bytes, BytesMut};

/// The longest path that is looked at, in bytes (`PATH_MAX` of Linux).
pub const PATH_BYTES_MAX: usize = 4_096;
/// How long our handles are.
pub const HANDLE_BYTES: usize = 4;
/// How long the length of a packet is.
const LENGTH_BYTES: usize = 4;

/// The numbers of packets (section 3).
mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const LSTAT: u8 = 7;
    pub(super) const FSTAT: u8 = 8;
    pub(super) const SETSTAT: u8 = 9;
    pub(super) const FSETSTAT: u8 = 10;
    pub(super) const OPENDIR: u8 = 11;
    pub(super) const READDIR: u8 = 12;
    pub(super) const REMOVE: u8 = 13;
    pub(super) const MKDIR: u8 = 14;
    pub(super) const RMDIR: u8 = 15;
    pub(super) const REALPATH: u8 = 16;
    pub(super) const STAT: u8 = 17;
    pub(super) const RENAME: u8 = 18;
    pub(super) const SYMLINK: u8 = 20;
    pub(super) const EXTENDED: u8 = 200;
}

/// The flag of `OPEN` for reading; any other asks for a change (section 6.3).
const OPEN_READ: u32 = 1;

/// The extension with which clients ask how long packets may be (OpenSSH's `PROTOCOL`, 4.8).
const LIMITS: &[u8] = b"limits@openssh.com";

/// Why bytes are no conversation. It ends with this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SftpError {
    /// A packet, or a text in it, is longer than allowed.
    #[error("a packet or text of {0} bytes is too long")]
    Long(u32),
    /// A packet ends in the middle of a field, or has none.
    #[error("a packet is cut short")]
    Short,
    /// The first packet is not the first, or the first came again.
    #[error("the conversation begins in the wrong way")]
    Order,
}

/// One request, and the number that its answer bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it; of the first packet, the client's version.
    pub id: u32,
    /// What is asked.
    pub asked: Asked,
}

/// What is asked. Paths are any bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The first packet: which version.
    Version,
    /// A handle for reading a file.
    Open(Bytes),
    /// A handle for reading a directory.
    OpenDir(Bytes),
    /// That a handle is not needed any more.
    Close(Bytes),
    /// Bytes of a file.
    Read {
        /// The handle.
        handle: Bytes,
        /// From where.
        offset: u64,
        /// How many at most.
        bytes: u32,
    },
    /// The next names of a directory.
    ReadDir(Bytes),
    /// What is known of a path. Links do not exist here, so following them makes no difference.
    Stat(Bytes),
    /// What is known of an open file.
    StatHandle(Bytes),
    /// A path without dots.
    RealPath(Bytes),
    /// How long packets may be.
    Limits,
    /// A change of any kind.
    Change,
    /// Anything else.
    Other,
}

/// Makes requests of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    waiting: BytesMut,
    begun: bool,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// Returns the next request; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`SftpError`]: nothing that follows can be understood.
    pub fn next_request(&mut self) -> Result<Option<Request>, SftpError> {
        let Some(length) = self.waiting.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        if length > PACKET_BYTES_MAX {
            return Err(SftpError::Long(length));
        }
        let whole = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LENGTH_BYTES);
        if self.waiting.len() < whole {
            return Ok(None);
        }
        let mut packet = self.waiting.split_to(whole).freeze();
        packet.advance(LENGTH_BYTES);
        let request = request(packet)?;
        if (request.asked == Asked::Version) == self.begun {
            return Err(SftpError::Order);
        }
        self.begun = true;
        Ok(Some(request))
    }
}

/// Reads a packet without its length.
fn request(mut packet: Bytes) -> Result<Request, SftpError> {
    let kind = packet.try_get_u8().map_err(|_| SftpError::Short)?;
    let id = number(&mut packet)?;
    let asked = match kind {
        kind::INIT => Asked::Version,
        kind::OPEN => {
            let path = text(&mut packet)?;
            let flags = number(&mut packet)?;
            if flags == OPEN_READ { Asked::Open(path) } else { Asked::Change }
        }
        kind::CLOSE => Asked::Close(text(&mut packet)?),
        kind::READ => {
            let handle = text(&mut packet)?;
            let offset = packet.try_get_u64().map_err(|_| SftpError::Short)?;
            Asked::Read { handle, offset, bytes: number(&mut packet)? }
        }
        kind::LSTAT | kind::STAT => Asked::Stat(text(&mut packet)?),
        kind::FSTAT => Asked::StatHandle(text(&mut packet)?),
        kind::OPENDIR => Asked::OpenDir(text(&mut packet)?),
        kind::READDIR => Asked::ReadDir(text(&mut packet)?),
        kind::REALPATH => Asked::RealPath(text(&mut packet)?),
        kind::WRITE
        | kind::SETSTAT
        | kind::FSETSTAT
        | kind::REMOVE
        | kind::MKDIR
        | kind::RMDIR
        | kind::RENAME
        | kind::SYMLINK => Asked::Change,
        kind::EXTENDED if &*text(&mut packet)? == LIMITS => Asked::Limits,
        // Links, of which there are none, and other extensions, too.
        _ => Asked::Other,
    };
    Ok(Request { id, asked })
}

fn number(packet: &mut Bytes) -> Result<u32, SftpError> {
    packet.try_get_u32().map_err(|_| SftpError::Short)
}

fn text(packet: &mut Bytes) -> Result<Bytes, SftpError> {
    let length = usize::try_from(number(packet)?).unwrap_or(usize::MAX);
    if length > PATH_BYTES_MAX {
        return Err(SftpError::Long(u32::try_from(length).unwrap_or(u32::MAX)));
    }
    if length > packet.len() {
        return Err(SftpError::Short);
    }
    // Copied, so that a request that waits keeps no more than this of a long packet.
    Ok(Bytes::copy_from_slice(&packet.split_to(length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn packet(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
        let length: usize = fields.concat().len().saturating_add(1);
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(fields.concat());
        bytes
    }

    fn word(text: &[u8]) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
    }

    fn all(bytes: &[u8], piece: usize) -> Result<Vec<Request>, SftpError> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.feed(piece);
            while let Some(request) = decoder.next_request()? {
                found.push(request);
            }
        }
        Ok(found)
    }

    fn init() -> Vec<u8> {
        packet(kind::INIT, &[&[0, 0, 0, 3]])
    }

    #[test]
    fn requests_are_understood_in_whatever_pieces_they_come() {
        let id = [0, 0, 0, 7];
        let mut bytes = init();
        bytes.extend(packet(kind::OPEN, &[&id, &word(b"/a"), &[0, 0, 0, 1], &[0; 4]]));
        bytes.extend(packet(
            kind::READ,
            &[&id, &word(b"hand"), &[0, 0, 0, 1, 0, 0, 0, 0], &[0, 0, 128, 0]],
        ));
        bytes.extend(packet(kind::OPEN, &[&id, &word(b"/a"), &[0, 0, 0, 3], &[0; 4]]));
        bytes.extend(packet(kind::REMOVE, &[&id, &word(b"/a")]));
        bytes.extend(packet(kind::EXTENDED, &[&id, &word(LIMITS)]));
        bytes.extend(packet(kind::EXTENDED, &[&id, &word(b"posix-rename@openssh.com")]));
        bytes.extend(packet(99, &[&id]));
        let expected = [
            Asked::Version,
            Asked::Open(Bytes::from_static(b"/a")),
            Asked::Read { handle: Bytes::from_static(b"hand"), offset: 1 << 32, bytes: 32_768 },
            Asked::Change,
            Asked::Change,
            Asked::Limits,
            Asked::Other,
            Asked::Other,
        ];
        for piece in [1, 3, 1_000] {
            let found = all(&bytes, piece).unwrap();
            assert!(found.iter().map(|request| &request.asked).eq(&expected), "{found:?}");
            assert!(found.iter().skip(1).all(|request| request.id == 7));
        }
    }

    #[test]
    fn a_packet_that_is_too_long_is_refused_before_it_is_kept() {
        let mut bytes = init();
        bytes.extend([0xff, 0xff, 0xff, 0xff, kind::OPEN]);
        assert_eq!(all(&bytes, 4), Err(SftpError::Long(u32::MAX)));
        let mut longest = (PACKET_BYTES_MAX + 1).to_be_bytes().to_vec();
        longest.push(kind::INIT);
        assert_eq!(all(&longest, 100), Err(SftpError::Long(PACKET_BYTES_MAX + 1)));
        let path = packet(kind::STAT, &[&[0; 4], &word(&[b'a'; PATH_BYTES_MAX + 1])]);
        assert_eq!(all(&[init(), path].concat(), 999), Err(SftpError::Long(4_097)));
    }

    #[test]
    fn a_field_that_is_longer_than_its_packet_is_refused() {
        for (kind, fields) in [
            (kind::OPEN, vec![&[0, 0, 0, 7][..], &[0, 0, 0, 9], b"/a"]),
            (kind::CLOSE, vec![&[0, 0, 0, 7][..], &[0, 0, 0, 9], b"short"]),
            (kind::READ, vec![&[0, 0, 0, 7][..], &[0, 0, 0, 1], b"h", &[0; 7]]),
            (kind::STAT, vec![&[0, 0][..]]),
        ] {
            let bytes = [init(), packet(kind, &fields)].concat();
            assert_eq!(all(&bytes, 1_000), Err(SftpError::Short), "{kind}");
        }
        assert_eq!(all(&[0, 0, 0, 0], 4), Err(SftpError::Short));
    }

    #[test]
    fn the_first_packet_comes_first_and_once() {
        assert_eq!(all(&packet(kind::STAT, &[&[0; 4], &word(b"/")]), 99), Err(SftpError::Order));
        assert_eq!(all(&[init(), init()].concat(), 99), Err(SftpError::Order));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), piece in 1..40_usize) {
            all(&[init(), bytes].concat(), piece).ok();
        }

        #[test]
        fn foreign_packets_never_panic(kind in any::<u8>(), body in vec(any::<u8>(), 0..100)) {
            let bytes = [init(), packet(kind, &[&body])].concat();
            all(&bytes, 1_000).ok();
        }
    }
}
