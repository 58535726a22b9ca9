//! How nars get into the store of a Guix daemon: as texts and sources, whose paths follow from what
//! they contain, or as a signed export.

use super::op;
use crate::{
    builders::{
        BuilderError,
        daemon::{Connection, PATHS_MAX, WORD_BYTES_MAX, put_paths, read_path, read_paths},
        wire::WireError,
    },
    core::{path_info::PathInfo, store_path::StorePath},
    formats::{
        export::{entry_begin, signed_entry_trailer, stream_end},
        nar::{NarError, NarLimits, NarReader, NarSink},
    },
};
use std::{
    cell::Cell,
    io::{self, Read, Write},
};

/// The longest text that is taken in, in bytes: many times the longest derivation that is known.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// What the signature of an export begins with, which those of narinfos do not.
pub const SIGNATURE_BEGIN: &str = "(signature";

/// The ways into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As a text, such as a derivation.
    Text,
    /// As a source or fixed output.
    Content(Method),
    /// As an export that somebody signed.
    Export,
}

/// Returns the way that the kind of a path allows.
fn way(info: &PathInfo) -> Way {
    let address = info.content_address.as_deref().unwrap_or_default();
    let refers = !info.references.is_empty();
    if info.path.is_derivation() || address.starts_with("text:") {
        Way::Text
    } else if address.starts_with("fixed:r:sha256:") && !refers {
        Way::Content(Method::Nar)
    } else if address.starts_with("fixed:sha256:") && !refers {
        Way::Content(Method::Flat)
    } else {
        Way::Export
    }
}

/// Tells whether a daemon takes a path in only with a signature over its export.
#[must_use]
pub fn needs_signature(info: &PathInfo) -> bool {
    way(info) == Way::Export
}

/// Takes a path in, in the way that its kind allows.
pub(super) fn take(
    connection: &mut Connection,
    info: &PathInfo,
    nar: &mut dyn Read,
) -> Result<(), BuilderError> {
    match way(info) {
        Way::Text => {
            let text = read_text(info, nar)?;
            add_text(connection, &info.path, &text, &info.references)
        }
        Way::Content(method) => add_content(connection, method, info, nar),
        Way::Export => import(connection, info, nar).map_err(|error| match error {
            BuilderError::Daemon(text) => BuilderError::Daemon(format!(
                "{text} (‘steading agent doctor’ tells whether it believes the coordinator)"
            )),
            error => error,
        }),
    }
}

/// Adds a text such as a derivation. The paths it refers to must be valid.
pub(super) fn add_text(
    connection: &mut Connection,
    path: &StorePath,
    text: &[u8],
    references: &[StorePath],
) -> Result<(), BuilderError> {
    connection.wire.put_u64(op::ADD_TEXT_TO_STORE)?;
    connection.wire.put_bytes(path.name().as_bytes())?;
    connection.wire.put_bytes(text)?;
    put_paths(connection, references)?;
    connection.answer(&mut |_| {})?;
    expect_path(connection, path)
}

/// What the hash is over that a path follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// The nar.
    Nar,
    /// The bytes of the one file in it.
    Flat,
}

/// Adds a source or fixed output. The daemon keeps all of it in memory meanwhile.
fn add_content(
    connection: &mut Connection,
    method: Method,
    info: &PathInfo,
    nar: &mut dyn Read,
) -> Result<(), BuilderError> {
    connection.wire.put_u64(op::ADD_TO_STORE)?;
    connection.wire.put_bytes(info.path.name().as_bytes())?;
    connection.wire.put_u64(1)?; // obsolete
    connection.wire.put_u64(match method {
        Method::Nar => 1,
        Method::Flat => 0,
    })?;
    connection.wire.put_bytes(b"sha256")?;
    connection.wire.put_stream(info.nar_bytes, nar).map_err(|error| of_nar(info, error))?;
    connection.answer(&mut |_| {})?;
    expect_path(connection, &info.path)
}

/// Imports a path with the signature over its export.
fn import(
    connection: &mut Connection,
    info: &PathInfo,
    nar: &mut dyn Read,
) -> Result<(), BuilderError> {
    let signature = info.signatures.iter().find(|text| text.starts_with(SIGNATURE_BEGIN));
    let signature = signature.ok_or_else(|| {
        // Nothing was sent, so this is as complete as a refusal of the daemon's own.
        BuilderError::Daemon(format!("no signature that a guix-daemon takes is over {}", info.path))
    })?;
    let PathInfo { path, references, deriver, .. } = info;
    let trailer = signed_entry_trailer(path, references, deriver.as_ref(), signature);
    let (begin, end) = (entry_begin(), stream_end());
    let failed = Cell::new(None);
    let exactly = Exactly { left: info.nar_bytes, source: nar, failed: &failed };
    let mut stream = begin.as_slice().chain(exactly).chain(&*trailer).chain(end.as_slice());
    connection.wire.put_u64(op::IMPORT_PATHS)?;
    let result = connection.answer_with(&mut stream, &mut io::sink(), &mut |_| {});
    if let Some(source) = failed.take() {
        return Err(BuilderError::Stream { path: path.clone(), source });
    }
    result?;
    let taken = read_paths(connection, PATHS_MAX)?;
    match &*taken {
        [one] if one == path => Ok(()),
        _ => Err(BuilderError::Protocol(format!("it took in {taken:?} instead of {path}"))),
    }
}

/// Reads the path that the daemon says it added.
fn expect_path(connection: &mut Connection, path: &StorePath) -> Result<(), BuilderError> {
    let added = read_path(&connection.wire.bytes(WORD_BYTES_MAX)?)?;
    if added == *path {
        Ok(())
    } else {
        // A complete answer: what was given is not what the path stands for.
        Err(BuilderError::Daemon(format!("{path} was given with the content of {added}")))
    }
}

/// Reads the nar of one plain file, and returns what the file contains.
fn read_text(info: &PathInfo, nar: &mut dyn Read) -> Result<Vec<u8>, BuilderError> {
    #[derive(Default)]
    struct Text(Vec<u8>);
    impl NarSink for Text {
        fn content(&mut self, bytes: &[u8]) -> Result<(), NarError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    let failed = |source| BuilderError::Stream { path: info.path.clone(), source };
    if info.nar_bytes > TEXT_BYTES_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    let mut bytes = Vec::new();
    nar.take(info.nar_bytes).read_to_end(&mut bytes).map_err(failed)?;
    let limits = NarLimits { bytes_max: TEXT_BYTES_MAX, entries_max: 0, depth_max: 0 };
    let (mut reader, mut text) = (NarReader::new(limits), Text::default());
    let whole = reader.feed(&bytes, &mut text).and_then(|_| reader.finish());
    whole.map_err(|error| failed(io::Error::other(error)))?;
    Ok(text.0)
}

fn of_nar(info: &PathInfo, error: WireError) -> BuilderError {
    match error {
        WireError::Source(source) => BuilderError::Stream { path: info.path.clone(), source },
        error => error.into(),
    }
}

/// Reads as many bytes as were promised, and fails when there are fewer.
struct Exactly<'a> {
    left: u64,
    source: &'a mut dyn Read,
    /// Why it failed, because the reader tells its own caller only that it did.
    failed: &'a Cell<Option<io::Error>>,
}

impl Read for Exactly<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let max = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let count = match self.source.read(bytes.get_mut(..max).unwrap_or_default()) {
            Ok(0) if max > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            result => result,
        };
        match count {
            Ok(count) => {
                self.left = self.left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed.set(Some(error));
                Err(kind.into())
            }
        }
    }
}

/// Passes the first bytes on, and drops the others.
pub(super) struct First<'a> {
    pub(super) left: u64,
    pub(super) sink: &'a mut dyn Write,
    /// Why the sink failed; what follows is dropped, so that the answer is read to its end.
    pub(super) failed: Option<io::Error>,
}

impl Write for First<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if self.failed.is_none() {
            let first = bytes.get(..length).unwrap_or_default();
            self.failed = self.sink.write_all(first).err();
        }
        self.left = self.left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
