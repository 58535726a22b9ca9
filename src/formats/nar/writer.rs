//! Makes nars, byte for byte as `nix-store --dump` does.

use super::Regular;
use super::names::{BadName, Names, is_target};
use super::words::{
    CLOSE, CLOSE_ENTRY, DIRECTORY, ENTRY, EXECUTABLE, NAME_KIND, REGULAR, START, SYMLINK,
};
use crate::formats::tokens::{padding, wide};
use std::io::{self, Write};

/// Writes one nar.
///
/// Call [`begin`](Self::begin), then describe one node, then call [`finish`](Self::finish). A node
/// is [`directory_begin`](Self::directory_begin), for each child in the order of the names' bytes
/// [`entry`](Self::entry) and a node, and [`directory_end`](Self::directory_end); or
/// [`regular`](Self::regular) and all of its [`content`](Self::content); or
/// [`symlink`](Self::symlink). A call out of turn is an error and writes nothing.
///
/// Many writes are a few bytes long: give it a buffered writer where writes are costly.
#[derive(Debug)]
pub struct NarWriter<W> {
    out: W,
    names: Names,
    state: State,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// `begin`.
    Begin,
    /// A node.
    Node,
    /// `entry` or `directory_end`.
    Entry,
    /// `content`: this many of `size` bytes are still to come.
    Content { left: u64, size: u64 },
    /// `finish`.
    End,
}

/// Why a nar was not written.
#[derive(Debug, thiserror::Error)]
pub enum NarWriteError {
    /// A call came out of turn.
    #[error("a nar cannot have {0} here")]
    OutOfTurn(&'static str),
    /// An entry's name is empty, too long, `.`, `..`, or has a slash or NUL in it.
    #[error("‘{0}’ cannot be the name of an entry in a nar")]
    Name(String),
    /// An entry's name does not come after the one before it, by bytes.
    #[error(
        "the entry ‘{0}’ comes too late: give the entries of a nar in the order of their bytes"
    )]
    Order(String),
    /// The target of a symbolic link is empty, too long, or has a NUL in it.
    #[error("‘{0}’ cannot be the target of a symbolic link")]
    Target(String),
    /// The content is longer than the file's head said.
    #[error("the content is longer than the {size} bytes declared")]
    ContentTooLong {
        /// The declared length, in bytes.
        size: u64,
    },
    /// What takes the nar failed.
    #[error("the nar could not be written")]
    Write(#[from] io::Error),
}

impl<W: Write> NarWriter<W> {
    /// Returns a writer that has written nothing yet.
    pub fn new(out: W) -> Self {
        Self { out, names: Names::default(), state: State::Begin }
    }

    /// Begins the nar.
    ///
    /// # Errors
    /// [`NarWriteError::OutOfTurn`] or [`NarWriteError::Write`].
    pub fn begin(&mut self) -> Result<(), NarWriteError> {
        self.turn(State::Begin, "a second beginning")?;
        self.state = State::Node;
        Ok(self.out.write_all(START)?)
    }

    /// Begins a directory.
    ///
    /// # Errors
    /// [`NarWriteError::OutOfTurn`] or [`NarWriteError::Write`].
    pub fn directory_begin(&mut self) -> Result<(), NarWriteError> {
        self.turn(State::Node, "a directory")?;
        self.names.enter();
        self.state = State::Entry;
        Ok(self.out.write_all(DIRECTORY)?)
    }

    /// Names the node that follows, within the innermost open directory.
    ///
    /// # Errors
    /// [`NarWriteError::Name`], [`NarWriteError::Order`], [`NarWriteError::OutOfTurn`] or
    /// [`NarWriteError::Write`].
    pub fn entry(&mut self, name: &[u8]) -> Result<(), NarWriteError> {
        self.turn(State::Entry, "an entry")?;
        self.names.admit(name).map_err(|bad| match bad {
            BadName::Forbidden => NarWriteError::Name(name.escape_ascii().to_string()),
            BadName::Order => NarWriteError::Order(name.escape_ascii().to_string()),
        })?;
        self.state = State::Node;
        self.out.write_all(ENTRY)?;
        self.string(name)?;
        Ok(self.out.write_all(NAME_KIND)?)
    }

    /// Ends the innermost open directory.
    ///
    /// # Errors
    /// [`NarWriteError::OutOfTurn`] or [`NarWriteError::Write`].
    pub fn directory_end(&mut self) -> Result<(), NarWriteError> {
        self.turn(State::Entry, "the end of a directory")?;
        self.names.leave();
        self.node_end()
    }

    /// Begins a regular file. All of its content must follow; a file of size 0 is whole already.
    ///
    /// # Errors
    /// [`NarWriteError::OutOfTurn`] or [`NarWriteError::Write`].
    pub fn regular(&mut self, head: Regular) -> Result<(), NarWriteError> {
        self.turn(State::Node, "a regular file")?;
        self.out.write_all(if head.executable { EXECUTABLE } else { REGULAR })?;
        self.out.write_all(&head.size.to_le_bytes())?;
        if head.size == 0 {
            return self.node_end();
        }
        self.state = State::Content { left: head.size, size: head.size };
        Ok(())
    }

    /// Writes the next bytes of a file's content.
    ///
    /// # Errors
    /// [`NarWriteError::ContentTooLong`], [`NarWriteError::OutOfTurn`] or
    /// [`NarWriteError::Write`].
    pub fn content(&mut self, bytes: &[u8]) -> Result<(), NarWriteError> {
        let State::Content { left, size } = self.state else {
            return Err(NarWriteError::OutOfTurn("content"));
        };
        let Some(left) = left.checked_sub(wide(bytes.len())) else {
            return Err(NarWriteError::ContentTooLong { size });
        };
        self.out.write_all(bytes)?;
        if left > 0 {
            self.state = State::Content { left, size };
            return Ok(());
        }
        self.out.write_all(padding(size))?;
        self.node_end()
    }

    /// Writes a symbolic link.
    ///
    /// # Errors
    /// [`NarWriteError::Target`], [`NarWriteError::OutOfTurn`] or [`NarWriteError::Write`].
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), NarWriteError> {
        self.turn(State::Node, "a symbolic link")?;
        if !is_target(target) {
            return Err(NarWriteError::Target(target.escape_ascii().to_string()));
        }
        self.out.write_all(SYMLINK)?;
        self.string(target)?;
        self.node_end()
    }

    /// Ends the nar and returns what took it, not flushed.
    ///
    /// # Errors
    /// [`NarWriteError::OutOfTurn`] when something is still to come.
    pub fn finish(self) -> Result<W, NarWriteError> {
        self.turn(State::End, "its end")?;
        Ok(self.out)
    }

    /// Ends a node, and the entry it is in.
    fn node_end(&mut self) -> Result<(), NarWriteError> {
        let (words, state) = match self.names.depth() {
            0 => (CLOSE, State::End),
            _ => (CLOSE_ENTRY, State::Entry),
        };
        self.state = state;
        Ok(self.out.write_all(words)?)
    }

    /// Writes a string: length, bytes, padding.
    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = wide(bytes.len());
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(bytes)?;
        self.out.write_all(padding(length))
    }

    /// Checks that it is the turn of `what`.
    fn turn(&self, due: State, what: &'static str) -> Result<(), NarWriteError> {
        if self.state == due { Ok(()) } else { Err(NarWriteError::OutOfTurn(what)) }
    }
}

/// Returns the nar of a regular file that is not executable.
///
/// # Errors
/// None that happens: memory takes everything.
pub fn plain_file(content: &[u8]) -> Result<Vec<u8>, NarWriteError> {
    let mut nar = NarWriter::new(Vec::new());
    nar.begin()?;
    nar.regular(Regular { executable: false, size: wide(content.len()) })?;
    nar.content(content)?;
    nar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a writer inside a directory.
    fn in_directory() -> NarWriter<Vec<u8>> {
        let mut writer = NarWriter::new(Vec::new());
        writer.begin().unwrap();
        writer.directory_begin().unwrap();
        writer
    }

    #[test]
    fn a_call_out_of_turn_is_an_error_and_writes_nothing() {
        let file = Regular { executable: false, size: 3 };
        let mut writer = NarWriter::new(Vec::new());
        assert!(matches!(writer.regular(file), Err(NarWriteError::OutOfTurn(_))));
        writer.begin().unwrap();
        assert!(matches!(writer.begin(), Err(NarWriteError::OutOfTurn(_))));
        assert!(matches!(writer.content(b"x"), Err(NarWriteError::OutOfTurn(_))));
        assert!(matches!(writer.entry(b"x"), Err(NarWriteError::OutOfTurn(_))));
        assert!(matches!(writer.directory_end(), Err(NarWriteError::OutOfTurn(_))));
        writer.regular(file).unwrap();
        assert!(matches!(writer.symlink(b"x"), Err(NarWriteError::OutOfTurn(_))));
        writer.content(b"ab").unwrap();
        let too_long = writer.content(b"cd");
        assert!(matches!(too_long, Err(NarWriteError::ContentTooLong { size: 3 })));
        writer.content(b"c").unwrap();
        assert!(matches!(writer.directory_begin(), Err(NarWriteError::OutOfTurn(_))));
        let nar = writer.finish().unwrap();
        let mut plain = NarWriter::new(Vec::new());
        plain.begin().unwrap();
        plain.regular(file).unwrap();
        plain.content(b"abc").unwrap();
        assert_eq!(nar, plain.finish().unwrap());
    }

    #[test]
    fn names_and_targets_that_no_reader_accepts_are_errors() {
        let mut writer = in_directory();
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(matches!(writer.entry(name), Err(NarWriteError::Name(_))));
        }
        writer.entry(b"b").unwrap();
        for target in [&b""[..], b"a\0", &[b'x'; 4096]] {
            assert!(matches!(writer.symlink(target), Err(NarWriteError::Target(_))));
        }
        writer.symlink(b"x").unwrap();
        assert!(matches!(writer.entry(b"a"), Err(NarWriteError::Order(_))));
        assert!(matches!(writer.entry(b"b"), Err(NarWriteError::Order(_))));
    }

    #[test]
    fn an_unfinished_nar_is_an_error() {
        assert!(matches!(in_directory().finish(), Err(NarWriteError::OutOfTurn(_))));
    }
}
