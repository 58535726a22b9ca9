//! Reads nars of anybody's making.

use super::names::{BadName, Names, is_target};
use super::words::{
    CLOSE, CLOSE_ENTRY, ENTRY_NAME, EXECUTABLE_SIZE, KEYWORD_BYTES_MAX, NAME_KIND, START, TARGET,
};
use super::{NAME_BYTES_MAX, NarError, NarLimits, NarSink, Regular, TARGET_BYTES_MAX};
use crate::formats::tokens::{BadToken, Tokens, padding_len, wide};

/// Reads one nar from bytes in any split, and refuses every other.
///
/// It accepts exactly the nars that some file tree has: canonical words, zero padding, strictly
/// ascending names that a directory can hold. It runs without recursion, looks at each byte
/// once, hands content on without copying it, and holds one unfinished token and the last name of
/// every open directory: nothing is reserved because a length was declared.
#[derive(Debug)]
pub struct NarReader {
    limits: NarLimits,
    /// Bytes accepted.
    offset: u64,
    /// Directory entries begun.
    entries: u64,
    names: Names,
    tokens: Tokens,
    /// Fixed words that must come before `state` has its turn.
    words: &'static [u8],
    state: State,
}

/// What comes next, once the fixed words have come.
#[derive(Debug, Clone, Copy)]
enum State {
    /// `regular`, `symlink` or `directory`.
    Kind,
    /// `executable` or `contents`.
    RegularField,
    /// The length of a file's content.
    Size { executable: bool },
    /// `left` bytes of content, then `padding` zeros.
    Content { left: u64, padding: usize },
    /// The zeros behind a content.
    Padding { left: usize },
    /// The target of a symbolic link.
    Target,
    /// `entry`, or the end of the directory.
    Entry,
    /// The name of an entry.
    Name,
    /// Nothing: the nar is complete.
    End,
    /// Nothing: the nar was refused.
    Refused,
}

/// Whether there may be more to read in the input.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    /// The input ran out, or the nar is complete.
    Stop,
}

impl NarReader {
    /// Returns a reader for one nar.
    #[must_use]
    pub fn new(limits: NarLimits) -> Self {
        Self {
            limits,
            offset: 0,
            entries: 0,
            names: Names::default(),
            tokens: Tokens::default(),
            words: START,
            state: State::Kind,
        }
    }

    /// Reads the next bytes and tells the sink what they mean.
    ///
    /// Returns how many it took: all of them, unless the nar ends before they do. What follows
    /// the end belongs to the caller.
    ///
    /// # Errors
    /// A [`NarError`] when the nar is refused or the sink fails; the reader is of no use then.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl NarSink) -> Result<usize, NarError> {
        let mut rest = bytes;
        loop {
            match self.step(&mut rest, sink) {
                Ok(Flow::Continue) => {}
                Ok(Flow::Stop) => return Ok(bytes.len().saturating_sub(rest.len())),
                Err(error) => {
                    self.state = State::Refused;
                    self.words = &[];
                    return Err(error);
                }
            }
        }
    }

    /// Tells whether the last byte of the nar has come.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.state, State::End) && self.words.is_empty()
    }

    /// Returns how many bytes of the nar have come.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`NarError::Truncated`] when the nar is not complete.
    pub fn finish(self) -> Result<(), NarError> {
        if self.is_complete() { Ok(()) } else { Err(NarError::Truncated { offset: self.offset }) }
    }

    /// Reads one part: fixed words, a token, or what there is of a content.
    fn step(&mut self, rest: &mut &[u8], sink: &mut impl NarSink) -> Result<Flow, NarError> {
        if !self.words.is_empty() {
            return self.read_words(rest);
        }
        match self.state {
            State::Content { left, padding } => self.read_content(rest, sink, left, padding),
            State::Padding { left } => self.read_padding(rest, left),
            State::Size { executable } => self.read_size(rest, sink, executable),
            State::Kind | State::RegularField | State::Entry => {
                self.read_string(rest, sink, KEYWORD_BYTES_MAX)
            }
            State::Name => self.read_string(rest, sink, NAME_BYTES_MAX),
            State::Target => self.read_string(rest, sink, TARGET_BYTES_MAX),
            State::End => Ok(Flow::Stop),
            State::Refused => Err(NarError::Refused),
        }
    }

    /// Reads what there is of the fixed words.
    fn read_words(&mut self, rest: &mut &[u8]) -> Result<Flow, NarError> {
        let len = self.words.len().min(rest.len());
        let (Some((due, later)), Some((came, tail))) =
            (self.words.split_at_checked(len), rest.split_at_checked(len))
        else {
            return Ok(Flow::Stop);
        };
        if due != came {
            return Err(self.unexpected(match self.state {
                State::Kind if self.offset < wide(START.len()) => "the beginning of a nar",
                State::Kind => "a node",
                State::Size { .. } => "‘contents’",
                State::Target => "‘target’",
                State::Name => "a name",
                _ => "‘)’",
            }));
        }
        *rest = tail;
        self.words = later;
        self.advance(len)?;
        Ok(if later.is_empty() { Flow::Continue } else { Flow::Stop })
    }

    /// Reads a keyword, name or target, and acts on it when it is whole.
    fn read_string(
        &mut self,
        rest: &mut &[u8],
        sink: &mut impl NarSink,
        max: usize,
    ) -> Result<Flow, NarError> {
        // The token may borrow from the tokens, so they step aside while it is looked at.
        let mut tokens = std::mem::take(&mut self.tokens);
        let flow = match tokens.string(rest, max) {
            Ok(taken) => {
                *rest = rest.get(taken.consumed..).unwrap_or_default();
                self.advance(taken.consumed)?;
                match taken.token {
                    Some(string) => self.string(string, sink).map(|()| Flow::Continue),
                    None => Ok(Flow::Stop),
                }
            }
            Err(BadToken::Long(declared)) => {
                Err(NarError::StringTooLong { offset: self.offset, declared, max })
            }
            Err(BadToken::Padding) => Err(NarError::Padding { offset: self.offset }),
        };
        self.tokens = tokens;
        flow
    }

    /// Acts on a whole keyword, name or target.
    fn string(&mut self, token: &[u8], sink: &mut impl NarSink) -> Result<(), NarError> {
        match (self.state, token) {
            (State::Kind, b"regular") => self.state = State::RegularField,
            (State::Kind, b"symlink") => self.expect(TARGET, State::Target),
            (State::Kind, b"directory") => return self.begin_directory(sink),
            (State::RegularField, b"contents") => self.state = State::Size { executable: false },
            (State::RegularField, b"executable") => {
                self.expect(EXECUTABLE_SIZE, State::Size { executable: true });
            }
            (State::Entry, b"entry") => self.expect(ENTRY_NAME, State::Name),
            (State::Entry, b")") => {
                self.names.leave();
                sink.directory_end()?;
                if self.names.depth() == 0 {
                    self.state = State::End;
                } else {
                    self.expect(CLOSE, State::Entry);
                }
            }
            (State::Name, name) => return self.begin_entry(name, sink),
            (State::Target, target) => {
                if !is_target(target) {
                    return Err(NarError::Target { offset: self.offset });
                }
                sink.symlink(target)?;
                self.close_leaf();
            }
            (State::Kind, _) => {
                return Err(self.unexpected("‘regular’, ‘symlink’ or ‘directory’"));
            }
            (State::RegularField, _) => {
                return Err(self.unexpected("‘executable’ or ‘contents’"));
            }
            (State::Entry, _) => return Err(self.unexpected("‘entry’ or ‘)’")),
            (
                State::Size { .. }
                | State::Content { .. }
                | State::Padding { .. }
                | State::End
                | State::Refused,
                _,
            ) => return Err(NarError::Refused),
        }
        Ok(())
    }

    /// Enters a directory.
    fn begin_directory(&mut self, sink: &mut impl NarSink) -> Result<(), NarError> {
        if self.names.depth() >= self.limits.depth_max {
            return Err(NarError::TooDeep { max: self.limits.depth_max });
        }
        self.names.enter();
        self.state = State::Entry;
        sink.directory_begin()
    }

    /// Takes the name of the next node.
    fn begin_entry(&mut self, name: &[u8], sink: &mut impl NarSink) -> Result<(), NarError> {
        self.names.admit(name).map_err(|bad| {
            let (offset, name) = (self.offset, name.escape_ascii().to_string());
            match bad {
                BadName::Forbidden => NarError::Name { offset, name },
                BadName::Order => NarError::Order { offset, name },
            }
        })?;
        if self.entries >= self.limits.entries_max {
            return Err(NarError::TooManyEntries { max: self.limits.entries_max });
        }
        self.entries = self.entries.saturating_add(1);
        self.expect(NAME_KIND, State::Kind);
        sink.entry(name)
    }

    /// Reads the length of a content.
    fn read_size(
        &mut self,
        rest: &mut &[u8],
        sink: &mut impl NarSink,
        executable: bool,
    ) -> Result<Flow, NarError> {
        let taken = self.tokens.number(rest);
        *rest = rest.get(taken.consumed..).unwrap_or_default();
        self.advance(taken.consumed)?;
        let Some(size) = taken.token else {
            return Ok(Flow::Stop);
        };
        if size > self.limits.bytes_max.saturating_sub(self.offset) {
            return Err(NarError::TooManyBytes { max: self.limits.bytes_max });
        }
        self.state = State::Content { left: size, padding: padding_len(size) };
        sink.regular(Regular { executable, size })?;
        Ok(Flow::Continue)
    }

    /// Hands on what there is of a content.
    fn read_content(
        &mut self,
        rest: &mut &[u8],
        sink: &mut impl NarSink,
        left: u64,
        padding: usize,
    ) -> Result<Flow, NarError> {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let Some((came, tail)) = rest.split_at_checked(len) else {
            return Ok(Flow::Stop);
        };
        if !came.is_empty() {
            *rest = tail;
            self.advance(len)?;
            sink.content(came)?;
        }
        let left = left.saturating_sub(wide(len));
        if left > 0 {
            self.state = State::Content { left, padding };
            return Ok(Flow::Stop);
        }
        self.state = State::Padding { left: padding };
        sink.regular_end()?;
        Ok(Flow::Continue)
    }

    /// Reads what there is of the zeros behind a content.
    fn read_padding(&mut self, rest: &mut &[u8], left: usize) -> Result<Flow, NarError> {
        let len = left.min(rest.len());
        let Some((zeros, tail)) = rest.split_at_checked(len) else {
            return Ok(Flow::Stop);
        };
        if zeros.iter().any(|b| *b != 0) {
            return Err(NarError::Padding { offset: self.offset });
        }
        *rest = tail;
        self.advance(len)?;
        let left = left.saturating_sub(len);
        if left > 0 {
            self.state = State::Padding { left };
            return Ok(Flow::Stop);
        }
        self.close_leaf();
        Ok(Flow::Continue)
    }

    /// Expects the end of a file or symbolic link, and of its entry.
    const fn close_leaf(&mut self) {
        if self.names.depth() == 0 {
            self.expect(CLOSE, State::End);
        } else {
            self.expect(CLOSE_ENTRY, State::Entry);
        }
    }

    /// Expects fixed words before the next state.
    const fn expect(&mut self, words: &'static [u8], then: State) {
        self.words = words;
        self.state = then;
    }

    /// Counts accepted bytes.
    fn advance(&mut self, len: usize) -> Result<(), NarError> {
        self.offset = self.offset.saturating_add(wide(len));
        if self.offset > self.limits.bytes_max {
            return Err(NarError::TooManyBytes { max: self.limits.bytes_max });
        }
        Ok(())
    }

    /// Returns the error for anything but `expected`.
    const fn unexpected(&self, expected: &'static str) -> NarError {
        NarError::Unexpected { offset: self.offset, expected }
    }
}

#[cfg(test)]
mod tests;
