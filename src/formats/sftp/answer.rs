//! What the server answers.

use super::{PACKET_BYTES_MAX, READ_BYTES_MAX, VERSION};
use bytes::{BufMut as _, Bytes, BytesMut};

/// The numbers of packets (section 3).
mod kind {
    pub(super) const VERSION: u8 = 2;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRS: u8 = 105;
    pub(super) const EXTENDED_REPLY: u8 = 201;
}

/// Which fields attributes have (section 5): size, permissions, times.
const ATTRIBUTE_FLAGS: u32 = 0x1 | 0x4 | 0x8;

/// How a request ended (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// There are no more bytes or names.
    Eof,
    /// There is no such file.
    NoSuchFile,
    /// It is not allowed.
    PermissionDenied,
    /// It did not work.
    Failure,
    /// It is not understood.
    Unsupported,
}

impl Status {
    const fn code(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::Eof => 1,
            Self::NoSuchFile => 2,
            Self::PermissionDenied => 3,
            Self::Failure => 4,
            Self::Unsupported => 8,
        }
    }
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Its size in bytes.
    pub bytes: u64,
    /// Its type and permissions, as in `st_mode`.
    pub mode: u32,
    /// When it was changed, in seconds since 1970.
    pub changed_s: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name, or of `REALPATH` the path: any bytes.
    pub name: Vec<u8>,
    /// The same as `ls -l` would print it.
    pub long: Vec<u8>,
    /// What is known of it.
    pub attributes: Attributes,
}

/// Returns the answer to the first packet.
#[must_use]
pub fn version() -> Bytes {
    let mut extension = Vec::new();
    put_text(&mut extension, b"limits@openssh.com");
    put_text(&mut extension, b"1");
    packet(kind::VERSION, VERSION, &extension)
}

/// Returns how a request ended, with a text for people.
#[must_use]
pub fn status(id: u32, status: Status, text: &str) -> Bytes {
    let mut body = status.code().to_be_bytes().to_vec();
    put_text(&mut body, text.as_bytes());
    // In English.
    put_text(&mut body, b"en");
    packet(kind::STATUS, id, &body)
}

/// Returns a handle.
#[must_use]
pub fn handle(id: u32, handle: &[u8]) -> Bytes {
    let mut body = Vec::new();
    put_text(&mut body, handle);
    packet(kind::HANDLE, id, &body)
}

/// Returns bytes of a file.
#[must_use]
pub fn data(id: u32, bytes: &[u8]) -> Bytes {
    let mut body = Vec::with_capacity(bytes.len().saturating_add(4));
    put_text(&mut body, bytes);
    packet(kind::DATA, id, &body)
}

/// Returns names.
#[must_use]
pub fn names(id: u32, names: &[Named]) -> Bytes {
    let mut body = Vec::new();
    body.put_u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
    for named in names {
        put_text(&mut body, &named.name);
        put_text(&mut body, &named.long);
        put_attributes(&mut body, named.attributes);
    }
    packet(kind::NAME, id, &body)
}

/// Returns what is known of a file.
#[must_use]
pub fn attributes(id: u32, attributes: Attributes) -> Bytes {
    let mut body = Vec::new();
    put_attributes(&mut body, attributes);
    packet(kind::ATTRS, id, &body)
}

/// Returns how long packets may be, and how many handles may be open.
#[must_use]
pub fn limits(id: u32, handles: u64) -> Bytes {
    let mut body = Vec::new();
    body.put_u64(u64::from(PACKET_BYTES_MAX));
    body.put_u64(u64::from(READ_BYTES_MAX));
    // Nothing can be written; a client that divides by this should not fail for it.
    body.put_u64(u64::from(READ_BYTES_MAX));
    body.put_u64(handles);
    packet(kind::EXTENDED_REPLY, id, &body)
}

fn put_text(body: &mut Vec<u8>, text: &[u8]) {
    body.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    body.put_slice(text);
}

fn put_attributes(body: &mut Vec<u8>, attributes: Attributes) {
    body.put_u32(ATTRIBUTE_FLAGS);
    body.put_u64(attributes.bytes);
    body.put_u32(attributes.mode);
    // When it was read: nobody notes that.
    body.put_u32(attributes.changed_s);
    body.put_u32(attributes.changed_s);
}

fn packet(kind: u8, id: u32, body: &[u8]) -> Bytes {
    let length = body.len().saturating_add(5);
    let mut packet = BytesMut::with_capacity(length.saturating_add(4));
    packet.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    packet.put_u8(kind);
    packet.put_u32(id);
    packet.put_slice(body);
    packet.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_bytes_of_the_specification() {
        let told = status(7, Status::Eof, "e");
        assert_eq!(&*told, b"\0\0\0\x14\x65\0\0\0\x07\0\0\0\x01\0\0\0\x01e\0\0\0\x02en");
        assert_eq!(&*data(1, b"xyz"), b"\0\0\0\x0c\x67\0\0\0\x01\0\0\0\x03xyz");
        let known = Attributes { bytes: 5, mode: 0o100_444, changed_s: 9 };
        assert_eq!(
            &*attributes(2, known),
            b"\0\0\0\x1d\x69\0\0\0\x02\0\0\0\x0d\0\0\0\0\0\0\0\x05\0\0\x81\x24\0\0\0\x09\0\0\0\x09"
        );
        assert_eq!(&version()[..9], b"\0\0\0\x20\x02\0\0\0\x03");
    }
}
