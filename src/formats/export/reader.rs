//! Reads export streams of anybody's making.

use super::{
    BadToken, ExportError, ExportLimits, ExportSink, ExportTrailer, MAGIC, MORE, NO_MORE,
    NarReader, PATH_BYTES_MAX, REFERENCES_MAX, SIGNATURE_BYTES_MAX, Sha256, Sha256Hasher,
    StorePath, Tokens, put_string,
};

/// Reads one export stream, of Nix or Guix, from bytes in any split.
///
/// Nars go to the sink without being copied. It holds the trailer of one entry, and reserves
/// nothing because a number was declared.
#[derive(Debug)]
pub struct ExportReader {
    limits: ExportLimits,
    /// Entries begun.
    entries: u64,
    tokens: Tokens,
    state: State,
    entry: Entry,
}

/// What is known of the entry being read.
#[derive(Debug, Default)]
struct Entry {
    /// Over everything from the nar on.
    hasher: Sha256Hasher,
    /// SHA-256 and length of the nar.
    nar: Option<(Sha256, u64)>,
    path: Option<StorePath>,
    references: Vec<StorePath>,
    deriver: Option<StorePath>,
}

/// What comes next.
#[derive(Debug)]
enum State {
    /// The number before the first entry; nothing has come.
    Start,
    /// The number before another entry, or the end.
    MoreEntries,
    Nar(NarReader),
    Magic,
    Path,
    ReferenceCount,
    References {
        left: u64,
    },
    Deriver,
    /// The number before a signature.
    MoreSignatures,
    Signature,
    End,
    Refused,
}

impl ExportReader {
    /// Returns a reader for one stream.
    #[must_use]
    pub fn new(limits: ExportLimits) -> Self {
        Self {
            limits,
            entries: 0,
            tokens: Tokens::default(),
            state: State::Start,
            entry: Entry::default(),
        }
    }

    /// Reads the next bytes and tells the sink what they mean.
    ///
    /// # Errors
    /// An [`ExportError`] when the stream is refused or the sink fails; the reader is of no use
    /// then.
    pub fn feed<S: ExportSink>(
        &mut self,
        bytes: &[u8],
        sink: &mut S,
    ) -> Result<(), ExportError<S::Error>> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Err(error) = self.step(&mut rest, sink) {
                self.state = State::Refused;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tells whether the end of the stream has come.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Ends the reading; `E` is the error of the sink, which is not asked any more.
    ///
    /// # Errors
    /// [`ExportError::Empty`] when nothing was fed, [`ExportError::Truncated`] when the stream is
    /// not complete, [`ExportError::Refused`] when it was refused before.
    pub fn finish<E>(self) -> Result<(), ExportError<E>> {
        match self.state {
            State::End => Ok(()),
            State::Start if self.tokens.is_idle() => Err(ExportError::Empty),
            State::Refused => Err(ExportError::Refused),
            State::Start
            | State::MoreEntries
            | State::Nar(_)
            | State::Magic
            | State::Path
            | State::ReferenceCount
            | State::References { .. }
            | State::Deriver
            | State::MoreSignatures
            | State::Signature => Err(ExportError::Truncated { entry: self.entries.max(1) }),
        }
    }

    /// Reads one part of the stream, or what there is of it.
    fn step<S: ExportSink>(
        &mut self,
        rest: &mut &[u8],
        sink: &mut S,
    ) -> Result<(), ExportError<S::Error>> {
        match self.state {
            State::Nar(_) => self.read_nar(rest, sink),
            State::Path | State::References { .. } | State::Deriver => {
                self.read_string(rest, sink, PATH_BYTES_MAX)
            }
            State::Signature => self.read_string(rest, sink, SIGNATURE_BYTES_MAX),
            State::Start
            | State::MoreEntries
            | State::Magic
            | State::ReferenceCount
            | State::MoreSignatures => {
                let taken = self.tokens.number(rest);
                *rest = rest.get(taken.consumed..).unwrap_or_default();
                taken.token.map_or(Ok(()), |number| self.number(number, sink))
            }
            State::End => Err(ExportError::TrailingBytes),
            State::Refused => Err(ExportError::Refused),
        }
    }

    /// Hands on what there is of a nar.
    fn read_nar<S: ExportSink>(
        &mut self,
        rest: &mut &[u8],
        sink: &mut S,
    ) -> Result<(), ExportError<S::Error>> {
        let State::Nar(reader) = &mut self.state else {
            return Err(ExportError::Refused);
        };
        let taken = reader
            .feed(rest, &mut ())
            .map_err(|source| ExportError::Nar { entry: self.entries, source })?;
        let (complete, nar_bytes) = (reader.is_complete(), reader.offset());
        let (came, tail) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
        *rest = tail;
        self.entry.hasher.update(came);
        if !came.is_empty() {
            sink.nar(came).map_err(ExportError::Sink)?;
        }
        if complete {
            // What is signed begins with the nar, so one computation serves both hashes.
            self.entry.nar = Some((self.entry.hasher.clone().finish(), nar_bytes));
            self.state = State::Magic;
        }
        Ok(())
    }

    /// Reads a string, and acts on it when it is whole.
    fn read_string<S: ExportSink>(
        &mut self,
        rest: &mut &[u8],
        sink: &mut S,
        bytes_max: usize,
    ) -> Result<(), ExportError<S::Error>> {
        // The string may borrow from the tokens, so they step aside while it is looked at.
        let mut tokens = std::mem::take(&mut self.tokens);
        let taken = tokens.string(rest, bytes_max).map_err(|bad| match bad {
            BadToken::Long(_) => self.damaged("text, which is too long,"),
            BadToken::Padding => self.damaged("padding"),
        })?;
        *rest = rest.get(taken.consumed..).unwrap_or_default();
        if let Some(string) = taken.token {
            self.string(string, sink)?;
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Acts on a whole number.
    fn number<S: ExportSink>(
        &mut self,
        number: u64,
        sink: &mut S,
    ) -> Result<(), ExportError<S::Error>> {
        match (&self.state, number) {
            (State::Start | State::MoreEntries, NO_MORE) => self.state = State::End,
            (State::Start | State::MoreEntries, MORE) => return self.begin_entry(sink),
            (State::Start, _) => return Err(ExportError::NotExport),
            (State::MoreEntries, _) => return Err(self.damaged("end")),
            (State::Magic, MAGIC) => {
                self.entry.hasher.update(&number.to_le_bytes());
                self.state = State::Path;
            }
            (State::Magic, _) => return Err(self.damaged("magic number")),
            (State::ReferenceCount, count) if count > REFERENCES_MAX => {
                return Err(ExportError::TooManyReferences { entry: self.entries, count });
            }
            (State::ReferenceCount, left) => {
                self.entry.hasher.update(&number.to_le_bytes());
                self.expect_reference(left);
            }
            (State::MoreSignatures, NO_MORE) => return self.end_entry(None, sink),
            (State::MoreSignatures, MORE) => self.state = State::Signature,
            (State::MoreSignatures, _) => return Err(self.damaged("signature")),
            // These states read no numbers.
            (
                State::Nar(_)
                | State::Path
                | State::References { .. }
                | State::Deriver
                | State::Signature
                | State::End
                | State::Refused,
                _,
            ) => return Err(ExportError::Refused),
        }
        Ok(())
    }

    /// Acts on a whole string.
    fn string<S: ExportSink>(
        &mut self,
        string: &[u8],
        sink: &mut S,
    ) -> Result<(), ExportError<S::Error>> {
        if matches!(self.state, State::Signature) {
            return self.end_entry(Some(string.to_vec()), sink);
        }
        let mut wire = Vec::with_capacity(string.len().saturating_add(16));
        put_string(&mut wire, string);
        self.entry.hasher.update(&wire);
        match self.state {
            State::Path => {
                self.entry.path = Some(self.path(string)?);
                self.state = State::ReferenceCount;
            }
            State::References { left } => {
                let reference = self.path(string)?;
                self.entry.references.push(reference);
                self.expect_reference(left.saturating_sub(1));
            }
            State::Deriver => {
                if !string.is_empty() {
                    self.entry.deriver = Some(self.path(string)?);
                }
                self.state = State::MoreSignatures;
            }
            // These states read no strings; a signature was dealt with above.
            State::Start
            | State::MoreEntries
            | State::Nar(_)
            | State::Magic
            | State::ReferenceCount
            | State::MoreSignatures
            | State::Signature
            | State::End
            | State::Refused => return Err(ExportError::Refused),
        }
        Ok(())
    }

    /// Begins an entry.
    fn begin_entry<S: ExportSink>(&mut self, sink: &mut S) -> Result<(), ExportError<S::Error>> {
        if self.entries >= self.limits.entries_max {
            return Err(ExportError::TooManyEntries { max: self.limits.entries_max });
        }
        self.entries = self.entries.saturating_add(1);
        self.entry = Entry::default();
        self.state = State::Nar(NarReader::new(self.limits.nar));
        sink.entry_begin().map_err(ExportError::Sink)
    }

    /// Ends an entry.
    fn end_entry<S: ExportSink>(
        &mut self,
        signature: Option<Vec<u8>>,
        sink: &mut S,
    ) -> Result<(), ExportError<S::Error>> {
        let mut entry = std::mem::take(&mut self.entry);
        let (Some(path), Some((nar_hash, nar_bytes))) = (entry.path, entry.nar) else {
            return Err(self.damaged("order"));
        };
        entry.references.sort();
        entry.references.dedup();
        self.state = State::MoreEntries;
        sink.entry_end(ExportTrailer {
            path,
            references: entry.references,
            deriver: entry.deriver,
            nar_hash,
            nar_bytes,
            signature,
            signed_hash: entry.hasher.finish(),
        })
        .map_err(ExportError::Sink)
    }

    /// Expects the next reference, or what follows the last.
    fn expect_reference(&mut self, left: u64) {
        self.state = if left == 0 { State::Deriver } else { State::References { left } };
    }

    /// Reads a store path, which must be in the same store as the entry's own.
    fn path<E>(&self, bytes: &[u8]) -> Result<StorePath, ExportError<E>> {
        let path = StorePath::from_bytes(bytes)
            .map_err(|source| ExportError::Path { entry: self.entries, source })?;
        match &self.entry.path {
            Some(own) if own.dir() != path.dir() => {
                Err(ExportError::OtherStore { entry: self.entries, path })
            }
            _ => Ok(path),
        }
    }

    /// Returns the error for an invalid part of the current entry.
    const fn damaged<E>(&self, part: &'static str) -> ExportError<E> {
        ExportError::Damaged { entry: self.entries, part }
    }
}
